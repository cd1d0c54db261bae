rule train:
    """Fit one model: one setting of the sweep, from one seed."""
    input:
        inputs("train"),
    output:
        outputs("train"),
    log:
        "<logs>/train/{dataset}/{run}.log",
    benchmark:
        "<benchmarks>/train/{dataset}/{run}.tsv"
    wildcard_constraints:
        dataset="|".join([name for name in plan.datasets if name not in packed] or ["(?!)"]),
    conda:
        "../../envs/ldvae-cuda.yaml"
    container:
        image("cuda")
    threads: lambda wildcards: compute(wildcards).threads
    resources:
        mem_mb=memory("train"),
        runtime=minutes("train"),
        gpu=lambda wildcards: gpus(wildcards.dataset),
        # Not params: a finished run is not repeated because they change.
        processes=lambda wildcards: compute(wildcards).processes,
        launcher=lambda wildcards, threads: launcher(threads),
        device=lambda wildcards: compute(wildcards).device,
        checkpoint_minutes=lambda wildcards: str(compute(wildcards).checkpoint_minutes),
    params:
        results=results_of("train"),
        checkpoint=lambda wildcards, output: checkpoint_of(results_of("train")(wildcards, output), wildcards.run),
        flags=lambda wildcards: training(wildcards.dataset, wildcards.run),
    # exec: Slurm's signal to stop must find the training, not a shell that dies of it before the checkpoint is written.
    shell:
        r"""
        exec {resources.launcher} ldvae train --results {params.results:q} --checkpoint {params.checkpoint:q} \
            --checkpoint-minutes {resources.checkpoint_minutes} --device {resources.device} --threads {threads} \
            --processes {resources.processes} {params.flags:q} 2>>{log:q}
        """


rule trained:
    """Train all runs, and no more."""
    input:
        [
            f"<results>/{name}/{path}"
            for name, dataset in plan.datasets.items()
            for path in layout.paths(layout.outputs("train"), list(dataset.runs))
        ],
    localrule: True


for dataset, of_dataset in packed.items():
    for pack, runs in of_dataset.items():
        like_train(f"train_{dataset}_{pack}")

        rule:
            name:
                f"train_{dataset}_{pack}"
            input:
                inputs_of_pack(f"train_{dataset}_{pack}"),
            output:
                [path for run in runs for path in outputs("train", run=run)],
            log:
                f"<logs>/train/{{dataset}}/{pack}.log",
            benchmark:
                f"<benchmarks>/train/{{dataset}}/{pack}.tsv"
            # A wildcard all the same: a rule that has none would be a target of its own under --until.
            wildcard_constraints:
                dataset=re.escape(dataset),
            conda:
                "../../envs/ldvae-cuda.yaml"
            container:
                image("cuda")
            threads: plan.datasets[dataset].compute.threads
            resources:
                mem_mb=memory("train"),
                runtime=minutes("train", runs=runs),
                gpu=gpus(dataset),
                processes=plan.datasets[dataset].compute.processes,
                launcher=lambda wildcards, threads: launcher(threads),
                device=plan.datasets[dataset].compute.device,
                checkpoint_minutes=str(plan.datasets[dataset].compute.checkpoint_minutes),
            params:
                results=results_of("train"),
                pack=runs,
                commands=pack_commands(dataset, runs),
            shell:
                r"""
                exec 2>>{log:q}
                launcher="{resources.launcher}"
                compute="--checkpoint-minutes {resources.checkpoint_minutes} --device {resources.device} --threads {threads} \
                    --processes {resources.processes}"
                {params.commands}
                """
