rule programs:
    """Average the fits of the chosen setting and turn what they share into gene programs."""
    input:
        inputs("programs"),
        gene_sets=files("programs"),
    output:
        outputs("programs"),
    log:
        "<logs>/programs/{dataset}.log",
    benchmark:
        "<benchmarks>/programs/{dataset}.tsv"
    conda:
        "../../envs/ldvae.yaml"
    container:
        image("cpu")
    threads: 1
    resources:
        mem_mb=memory("programs"),
        runtime=minutes("programs"),
    params:
        results=results_of("programs"),
        flags=options("programs"),
    shell:
        "ldvae programs --results {params.results:q} {params.flags:q} 2>{log:q}"
