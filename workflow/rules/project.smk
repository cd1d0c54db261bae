rule project:
    """Score other cells with the programs of a dataset."""
    input:
        counts=lambda wildcards: fetched(projection(wildcards).inputs),
        beside=lambda wildcards: beside_counts(projection(wildcards).inputs, projection(wildcards).project.genome),
        programs=inputs("project"),
        others=scored_before,
    output:
        outputs("project"),
    log:
        "<logs>/project/{dataset}/{projection}.log",
    benchmark:
        "<benchmarks>/project/{dataset}/{projection}.tsv"
    conda:
        "../../envs/ldvae.yaml"
    container:
        image("cpu")
    threads: 1
    resources:
        mem_mb=memory("project"),
        runtime=minutes("project"),
    params:
        results=results_of("project"),
        input=lambda wildcards, input: input.counts or "demo:pbmc68k",
        names=lambda wildcards: name_flags(projection(wildcards).inputs),
        flags=lambda wildcards: flags(projection(wildcards).project),
    shell:
        r"""
        ldvae project --results {params.results:q} --name {wildcards.projection:q} --input {params.input:q} \
            {params.names:q} {params.flags:q} 2>{log:q}
        """
