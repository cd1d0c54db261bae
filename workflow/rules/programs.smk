rule programs:
    """Average the fits of the chosen setting and turn what they share into gene programs."""
    input:
        best="<results>/{dataset}/select/best.json",
        metrics=of_runs("metrics.json"),
        factors=of_runs("factors.npz"),
        counts="<results>/{dataset}/setup/counts.h5ad",
        gene_sets=files("programs"),
    output:
        loadings="<results>/{dataset}/programs/loadings.tsv",
        weighted="<results>/{dataset}/programs/weighted.tsv",
        scores="<results>/{dataset}/programs/scores.tsv.gz",
        consensus="<results>/{dataset}/programs/consensus.tsv",
        top_genes=report(
            "<results>/{dataset}/programs/top_genes.tsv",
            caption="../report/top_genes.rst",
            category="{dataset}",
            subcategory="4 programs",
            labels={"content": "table of the top genes"},
        ),
        programs=report(
            "<results>/{dataset}/programs/programs.tsv",
            caption="../report/programs.rst",
            category="{dataset}",
            subcategory="4 programs",
            labels={"content": "table of the programs"},
        ),
        stability="<results>/{dataset}/programs/stability.tsv",
        associations="<results>/{dataset}/programs/associations.tsv",
        enrichment="<results>/{dataset}/programs/enrichment.tsv",
        gmt="<results>/{dataset}/programs/programs.gmt",
        starcat="<results>/{dataset}/programs/starcat.tsv",
        model="<results>/{dataset}/programs/model.npz",
        summary="<results>/{dataset}/programs/summary.json",
    log:
        "<logs>/programs/{dataset}.log",
    benchmark:
        "<benchmarks>/programs/{dataset}.tsv"
    conda:
        "../../envs/ldvae.yaml"
    threads: 1
    resources:
        mem_mb=memory("programs"),
        runtime=minutes("programs"),
    params:
        runs=folders("metrics"),
        folder=folder("summary"),
        flags=options("programs"),
    shell:
        r"""
        ldvae programs --best {input.best:q} --runs {params.runs:q} --counts {input.counts:q} \
            --output {params.folder:q} {params.flags:q} 2>{log:q}
        """
