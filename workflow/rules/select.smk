rule select:
    """Compare the settings of a sweep on held-out cells and by what reproduces, and choose one."""
    input:
        metrics=of_runs("metrics.json"),
        factors=of_runs("factors.npz"),
    output:
        runs="<results>/{dataset}/select/runs.tsv",
        settings="<results>/{dataset}/select/settings.tsv",
        correlations="<results>/{dataset}/select/correlations.tsv",
        best="<results>/{dataset}/select/best.json",
        error="<results>/{dataset}/select/error.svg",
        agreement="<results>/{dataset}/select/correlations.svg",
    log:
        "<logs>/select/{dataset}.log",
    benchmark:
        "<benchmarks>/select/{dataset}.tsv"
    conda:
        "../../envs/ldvae.yaml"
    threads: 1
    resources:
        mem_mb=memory("select"),
        runtime=minutes("select"),
    params:
        runs=folders("metrics"),
        folder=folder("best"),
        flags=options("select"),
    shell:
        r"""
        ldvae select --runs {params.runs:q} --output {params.folder:q} {params.flags:q} 2>{log:q}
        """
