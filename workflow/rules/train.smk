def training(dataset, run):
    """Flags of a training: what defines the run, and no more."""
    run = plan.datasets[dataset].runs[run]
    return ["--seed", str(run.seed), *flags(run.model), *flags(run.train)]


def checkpoint_of(metrics):
    """Folder of the checkpoint of the run with these metrics: outside of the outputs, which Snakemake removes."""
    run = Path(metrics).parent
    return str(run.parents[3] / "checkpoints" / run.parents[1].name / run.name)


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
    wildcard_constraints:
        dataset="|".join([name for name in plan.datasets if name not in packed] or ["(?!)"]),
    conda:
        "../../envs/ldvae-cuda.yaml"
    threads: lambda wildcards: compute(wildcards).threads
    resources:
        mem_mb=memory("train"),
        runtime=minutes("train"),
        gpu=lambda wildcards: 0 if compute(wildcards).device == "cpu" else 1,
        # Not params: a finished run is not repeated because they change.
        device=lambda wildcards: compute(wildcards).device,
        checkpoint_minutes=lambda wildcards: str(compute(wildcards).checkpoint_minutes),
    params:
        checkpoint=lambda wildcards, output: checkpoint_of(output.metrics),
        flags=lambda wildcards: training(wildcards.dataset, wildcards.run),
    # exec: Slurm's signal to stop must find the training, not a shell that dies of it before the checkpoint is written.
    shell:
        r"""
        exec ldvae train --counts {input.counts:q} --model {output.model:q} --history {output.history:q} \
            --metrics {output.metrics:q} --factors {output.factors:q} --fit {output.fit:q} \
            --checkpoint {params.checkpoint:q} --checkpoint-minutes {resources.checkpoint_minutes} \
            --device {resources.device} --threads {threads} {params.flags:q} 2>{log:q}
        """
