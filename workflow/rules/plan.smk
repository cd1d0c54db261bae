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
        runs=lambda wildcards: runs_table(plan.datasets[wildcards.dataset]),
        resolved=lambda wildcards: json.dumps(resolved(plan.datasets[wildcards.dataset])),
    shell:
        r"""
        (
            printf %s {params.runs:q} >{output.runs:q}
            printf %s {params.resolved:q} >{output.resolved:q}
        ) 2>{log:q}
        """
