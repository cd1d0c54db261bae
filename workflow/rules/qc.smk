rule qc:
    """Read the counts of a dataset, and keep the cells and genes that pass quality control."""
    input:
        counts=counts_files,
        beside=lambda wildcards: beside_counts(
            plan.datasets[wildcards.dataset].inputs, plan.datasets[wildcards.dataset].qc.genome
        ),
        tables=files("qc"),
    output:
        outputs("qc"),
    log:
        "<logs>/qc/{dataset}.log",
    benchmark:
        "<benchmarks>/qc/{dataset}.tsv"
    conda:
        "../../envs/ldvae.yaml"
    container:
        image("cpu")
    threads: 1
    resources:
        mem_mb=memory("qc"),
        runtime=minutes("qc"),
    params:
        results=results_of("qc"),
        input=lambda wildcards, input: input.counts or "demo:pbmc68k",
        names=names_of_inputs,
        columns=columns,
        flags=options("qc"),
    shell:
        r"""
        ldvae qc --results {params.results:q} --input {params.input:q} {params.names:q} {params.columns:q} \
            --threads {threads} {params.flags:q} 2>{log:q}
        """
