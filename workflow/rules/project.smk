rule project:
    """Score other cells with the programs of a dataset."""
    input:
        counts=lambda wildcards: fetched(projection(wildcards).inputs),
        model="<results>/{dataset}/programs/model.npz",
    output:
        scores="<results>/{dataset}/project/{projection}/scores.tsv.gz",
        summary="<results>/{dataset}/project/{projection}/summary.json",
    log:
        "<logs>/project/{dataset}/{projection}.log",
    benchmark:
        "<benchmarks>/project/{dataset}/{projection}.tsv"
    conda:
        "../../envs/ldvae.yaml"
    threads: 1
    resources:
        mem_mb=memory("project"),
        runtime=minutes("project"),
    params:
        input=lambda wildcards, input: input.counts or "demo:pbmc68k",
        names=lambda wildcards: name_flags(projection(wildcards).inputs),
        programs=lambda wildcards, input: str(Path(input.model).parent),
        flags=lambda wildcards: flags(projection(wildcards).project),
    shell:
        r"""
        ldvae project --input {params.input:q} {params.names:q} --programs {params.programs:q} \
            --scores {output.scores:q} --summary {output.summary:q} {params.flags:q} 2>{log:q}
        """
