rule annotate:
    """Put the best fit, the programs, UMAP and clusters into one AnnData."""
    input:
        counts="<results>/{dataset}/setup/counts.h5ad",
        best="<results>/{dataset}/select/best.json",
        factors=of_runs("factors.npz"),
        models=of_runs("model"),
        loadings="<results>/{dataset}/programs/loadings.tsv",
        scores="<results>/{dataset}/programs/scores.tsv.gz",
    output:
        annotated="<results>/{dataset}/annotated.h5ad",
    log:
        "<logs>/annotate/{dataset}.log",
    benchmark:
        "<benchmarks>/annotate/{dataset}.tsv"
    conda:
        "../../envs/ldvae.yaml"
    threads: 1
    resources:
        mem_mb=memory("annotate"),
        runtime=minutes("annotate"),
    params:
        runs=folders("factors"),
        flags=options("annotate"),
    shell:
        r"""
        ldvae annotate --counts {input.counts:q} --best {input.best:q} --runs {params.runs:q} \
            --loadings {input.loadings:q} --scores {input.scores:q} \
            --annotated {output.annotated:q} {params.flags:q} 2>{log:q}
        """
