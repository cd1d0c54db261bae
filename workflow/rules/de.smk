rule de:
    """Compare groups of cells gene by gene, with the best fit."""
    input:
        counts="<results>/{dataset}/setup/counts.h5ad",
        best="<results>/{dataset}/select/best.json",
        models=of_runs("model"),
        annotated=lambda wildcards: ("<results>/{dataset}/annotated.h5ad" if compares_clusters(wildcards) else []),
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
        mem_mb=memory("de"),
        runtime=minutes("de"),
    params:
        runs=folders("models"),
        annotated=lambda wildcards, input: ["--annotated", input.annotated] if input.annotated else [],
        flags=options("de"),
    shell:
        r"""
        ldvae de --counts {input.counts:q} --best {input.best:q} --runs {params.runs:q} \
            {params.annotated:q} --output {output.folder:q} {params.flags:q} 2>{log:q}
        """
