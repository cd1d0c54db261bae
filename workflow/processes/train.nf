include { memory ; time } from './resources'

// Fit one model: one setting of the sweep, from one seed.
process TRAIN {
    tag "${meta.id} ${meta.run}"
    label 'gpu'
    ext gpu: { compute.device != 'cpu' }
    cpus { compute.threads ?: 1 }
    memory { memory('train', counts, task.attempt) }
    time { time('train', counts, task.attempt) }

    conda "${moduleDir}/../../envs/ldvae-cuda.yaml"

    input:
    // meta: id, and run, which names the output; compute: device, threads, checkpoint_minutes, or [:]; flags: --seed and options
    tuple val(meta), path(counts), val(compute), val(flags)

    output:
    tuple val(meta), path("${meta.id}/runs/${meta.run}"), emit: run
    path 'versions.yml', emit: versions

    script:
    def args = task.ext.args ?: ''
    def run = "${meta.id}/runs/${meta.run}"
    """
    export LDVAE_PROCESS='${task.process}'
    # exec: a signal to stop must find the training, not a shell that dies of it before the checkpoint is written
    exec ldvae train --counts ${counts} \\
        --model ${run}/model --history ${run}/history.csv --metrics ${run}/metrics.json \\
        --factors ${run}/factors.npz --fit ${run}/fit.tsv --checkpoint '${checkpoint_of(meta)}' \\
        --checkpoint-minutes ${compute.checkpoint_minutes ?: 10} --device ${compute.device ?: 'auto'} --threads ${task.cpus} \\
        --versions-yml versions.yml ${flags} ${args}
    """

    stub:
    def run = "${meta.id}/runs/${meta.run}"
    """
    export LDVAE_PROCESS='${task.process}'
    ldvae train --stub --model ${run}/model --history ${run}/history.csv \\
        --metrics ${run}/metrics.json --factors ${run}/factors.npz --fit ${run}/fit.tsv \\
        --versions-yml versions.yml ${flags}
    """
}

// Outside of the task's folder: a retry has a new one. The session stays the same when a pipeline is resumed.
def checkpoint_of(meta) {
    return "${workflow.workDir}/checkpoints/${workflow.sessionId}/${meta.id}/${meta.run}"
}
