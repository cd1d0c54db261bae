rule train:
    """Fit one model: one setting of the sweep, from one seed."""
    input:
        counts="<results>/{dataset}/setup/counts.h5ad",
    output:
        model=directory("<results>/{dataset}/runs/{run}/model"),
        history="<results>/{dataset}/runs/{run}/history.csv",
        metrics="<results>/{dataset}/runs/{run}/metrics.json",
        factors="<results>/{dataset}/runs/{run}/factors.npz",
        fit="<results>/{dataset}/runs/{run}/fit.tsv",
    log:
        "<logs>/train/{dataset}/{run}.log",
    benchmark:
        "<benchmarks>/train/{dataset}/{run}.tsv"
    conda:
        "../../envs/ldvae-cuda.yaml"
    threads: lambda wildcards: compute(wildcards).threads
    resources:
        mem_mb=memory(3000, 10),
        runtime=minutes(60, 1),
        gpu=lambda wildcards: 0 if compute(wildcards).device == "cpu" else 1,
    params:
        checkpoint=lambda wildcards, output: str(
            Path(output.metrics).parents[4] / "checkpoints" / wildcards.dataset / wildcards.run
        ),
        seed=lambda wildcards: run_of(wildcards).seed,
        device=lambda wildcards: compute(wildcards).device,
        flags=lambda wildcards: flags(run_of(wildcards).model) + flags(run_of(wildcards).train),
    shell:
        r"""
        ldvae train --counts {input.counts:q} --seed {params.seed} \
            --model {output.model:q} --history {output.history:q} --metrics {output.metrics:q} \
            --factors {output.factors:q} --fit {output.fit:q} --checkpoint {params.checkpoint:q} \
            --device {params.device} --threads {threads} {params.flags:q} 2>{log:q}
        """
