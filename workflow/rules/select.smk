rule select:
    """Compare the settings of a sweep by held-out error and reproducible rank, and choose one."""
    input:
        inputs("select"),
    output:
        outputs("select"),
    log:
        "<logs>/select/{dataset}.log",
    benchmark:
        "<benchmarks>/select/{dataset}.tsv"
    conda:
        "../../envs/ldvae.yaml"
    container:
        image("cpu")
    threads: 1
    resources:
        mem_mb=memory("select"),
        runtime=minutes("select"),
    params:
        results=results_of("select"),
        runs=lambda wildcards: list(plan.datasets[wildcards.dataset].runs),
        flags=options("select"),
    shell:
        "ldvae select --results {params.results:q} --runs {params.runs:q} {params.flags:q} 2>{log:q}"
