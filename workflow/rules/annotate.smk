rule annotate:
    """Put the best fit, the programs, UMAP and clusters into one AnnData."""
    input:
        inputs("annotate"),
    output:
        outputs("annotate"),
    log:
        "<logs>/annotate/{dataset}.log",
    benchmark:
        "<benchmarks>/annotate/{dataset}.tsv"
    conda:
        "../../envs/ldvae.yaml"
    container:
        image("cpu")
    threads: 1
    resources:
        mem_mb=memory("annotate"),
        runtime=minutes("annotate"),
    params:
        results=results_of("annotate"),
        made_with=lambda wildcards: programs_but_for_lists(wildcards.dataset),
        flags=options("annotate"),
    shell:
        "ldvae annotate --results {params.results:q} {params.flags:q} 2>{log:q}"
