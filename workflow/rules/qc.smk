rule qc:
    """Read the counts of a dataset, and keep the cells and genes that pass quality control."""
    input:
        counts=counts_files,
        tables=files("qc"),
    output:
        filtered="<results>/{dataset}/qc/filtered.h5ad",
        cells="<results>/{dataset}/qc/cells.tsv.gz",
        summary="<results>/{dataset}/qc/summary.json",
        violins=report(
            "<results>/{dataset}/qc/violins.png",
            caption="../report/qc_violins.rst",
            category="{dataset}",
            subcategory="1 quality control",
            labels={"content": "metrics by batch"},
        ),
        scatter=report(
            "<results>/{dataset}/qc/scatter.png",
            caption="../report/qc_scatter.rst",
            category="{dataset}",
            subcategory="1 quality control",
            labels={"content": "genes against counts"},
        ),
    log:
        "<logs>/qc/{dataset}.log",
    benchmark:
        "<benchmarks>/qc/{dataset}.tsv"
    conda:
        "../../envs/ldvae.yaml"
    threads: 1
    resources:
        mem_mb=memory("qc"),
        runtime=minutes("qc"),
    params:
        input=lambda wildcards, input: input.counts or "demo:pbmc68k",
        names=names_of_inputs,
        batch=batch_flag,
        flags=options("qc"),
    shell:
        r"""
        ldvae qc --input {params.input:q} {params.names:q} {params.batch:q} --dataset {wildcards.dataset} \
            --filtered {output.filtered:q} --cells {output.cells:q} --summary {output.summary:q} \
            --violins {output.violins:q} --scatter {output.scatter:q} \
            {params.flags:q} 2>{log:q}
        """
