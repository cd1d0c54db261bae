rule plan:
    """Write down what the config expands to: the runs of a dataset, and its options with every default."""
    output:
        runs="<results>/{dataset}/runs.tsv",
        resolved="<results>/{dataset}/resolved.json",
    localrule: True
    params:
        dataset=lambda wildcards: json.dumps(resolved(plan.datasets[wildcards.dataset])),
    run:
        Path(output.runs).write_text(runs_table(plan.datasets[wildcards.dataset]))
        Path(output.resolved).write_text(params.dataset)
