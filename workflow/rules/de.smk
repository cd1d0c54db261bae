rule de:
    """Compare groups of cells gene by gene, with the best fit."""
    input:
        counts="<results>/{dataset}/setup/counts.h5ad",
        best="<results>/{dataset}/select/best.json",
        models=of_runs("model"),
    output:
        folder=directory("<results>/{dataset}/de"),
    log:
        "<logs>/de/{dataset}.log",
    benchmark:
        "<benchmarks>/de/{dataset}.tsv"
    conda:
        "../../envs/ldvae.yaml"
    threads: 1
    resources:
        mem_mb=memory(3000, 10),
        runtime=minutes(60, 1),
    params:
        runs=folders("models"),
        flags=options("de"),
    shell:
        r"""
        ldvae de --counts {input.counts:q} --best {input.best:q} --runs {params.runs:q} \
            --output {output.folder:q} {params.flags:q} 2>{log:q}
        """
