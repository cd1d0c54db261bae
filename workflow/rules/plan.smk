rule plan:
    """Write down what the config expands to: the runs of a dataset, and its options with every default."""
    input:
        planned_before,
    output:
        runs=f"<results>/{{dataset}}/{layout.RUNS_TABLE.path}",
        resolved=f"<results>/{{dataset}}/{layout.RESOLVED.path}",
    log:
        "<logs>/plan/{dataset}.log",
    localrule: True
    conda:
        "../../envs/ldvae.yaml"
    container:
        image("cpu")
    params:
        # Its name changes with what is in it.
        planned=lambda wildcards: str(layout.keep_plan(plan.datasets[wildcards.dataset], Path(".snakemake/ldvae"))),
        results=lambda wildcards, output: str(layout.RUNS_TABLE.results_of(output.runs)),
    shell:
        "cp {params.planned:q}/* {params.results:q}/ 2>{log:q}"
