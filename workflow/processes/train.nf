include { compute_of ; image ; memory ; time_to_train } from './resources'

// Fit one model: one setting of the sweep, from one seed.
process TRAIN {
    tag "${meta.id} ${meta.run}"
    label 'gpu'
    ext gpu: { compute_of(meta, compute).device == 'cpu' ? 0 : compute_of(meta, compute).processes }
    cpus { compute_of(meta, compute).threads }
    memory { memory('train', counts, task, compute_of(meta, compute).processes) }
    time { time_to_train(meta, counts, task) }

    conda "${moduleDir}/../../envs/ldvae-cuda.yaml"
    container { image(workflow.containerEngine, task.ext.image) }

    input:
    // meta: id, and run, which names the output; compute: device, threads, processes, checkpoint_minutes,
    // or [:] for what the config or the defaults say; flags: --seed and options
    tuple val(meta), path(counts, stageAs: '.staged/setup/counts.h5ad'), val(compute), val(flags)

    output:
    tuple val(meta), path("${meta.id}/runs/${meta.run}"), emit: run
    path 'versions.yml', emit: versions

    script:
    def args = task.ext.args ?: ''
    // Values in the call, not in variables: Nextflow would count them as given to the task.
    """
    export LDVAE_PROCESS='${task.process}'
    mv .staged '${meta.id}'
    # exec: a signal to stop must find the training, not a shell that dies of it before the checkpoint is written
    exec ${task.ext.launcher ?: ''} ldvae train --results '${meta.id}' --run '${meta.run}' --checkpoint '${checkpoint_of(meta)}' \\
        --checkpoint-minutes ${compute_of(meta, compute).checkpoint_minutes} --device ${compute_of(meta, compute).device} --threads ${task.cpus} \\
        --processes ${compute_of(meta, compute).processes} ${flags} ${args} --versions-yml versions.yml
    """

    stub:
    """
    export LDVAE_PROCESS='${task.process}'
    mv .staged '${meta.id}'
    ldvae train --stub --results '${meta.id}' --run '${meta.run}' ${flags} --versions-yml versions.yml
    """
}

// Outside of the task's folder: a retry has a new one. The session stays the same when a pipeline is resumed.
def checkpoint_of(meta) {
    return "${workflow.workDir}/checkpoints/${workflow.sessionId}/${meta.id}/${meta.run}"
}
