rule de:
    """Compare groups of cells gene by gene, with the best fit."""
    input:
        inputs("de"),
    output:
        outputs("de"),
    log:
        "<logs>/de/{dataset}.log",
    benchmark:
        "<benchmarks>/de/{dataset}.tsv"
    conda:
        "../../envs/ldvae.yaml"
    container:
        image("cpu")
    threads: 1
    resources:
        mem_mb=memory("de"),
        runtime=minutes("de"),
    params:
        results=results_of("de"),
        flags=options("de"),
    shell:
        "ldvae de --results {params.results:q} --threads {threads} {params.flags:q} 2>{log:q}"
