rule setup:
    """Choose the genes to model, register batch and covariates, and split the cells once for all runs."""
    input:
        inputs("setup"),
        lists=files("setup"),
    output:
        outputs("setup"),
    log:
        "<logs>/setup/{dataset}.log",
    benchmark:
        "<benchmarks>/setup/{dataset}.tsv"
    conda:
        "../../envs/ldvae.yaml"
    container:
        image("cpu")
    threads: 1
    resources:
        mem_mb=memory("setup"),
        runtime=minutes("setup"),
    params:
        results=results_of("setup"),
        flags=options("setup"),
    shell:
        "ldvae setup --results {params.results:q} {params.flags:q} 2>{log:q}"
