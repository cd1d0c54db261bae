rule setup:
    """Choose the genes to model, register batch and covariates, and split the cells once for all runs."""
    input:
        filtered="<results>/{dataset}/qc/filtered.h5ad",
        lists=files("setup"),
    output:
        counts="<results>/{dataset}/setup/counts.h5ad",
        genes="<results>/{dataset}/setup/genes.tsv",
        summary="<results>/{dataset}/setup/summary.json",
    log:
        "<logs>/setup/{dataset}.log",
    benchmark:
        "<benchmarks>/setup/{dataset}.tsv"
    conda:
        "../../envs/ldvae.yaml"
    threads: 1
    resources:
        mem_mb=memory("setup"),
        runtime=minutes("setup"),
    params:
        flags=options("setup"),
    shell:
        r"""
        ldvae setup --filtered {input.filtered:q} \
            --counts {output.counts:q} --gene-table {output.genes:q} --summary {output.summary:q} \
            {params.flags:q} 2>{log:q}
        """
