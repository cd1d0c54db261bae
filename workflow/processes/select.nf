include { image ; memory ; time } from './resources'

// Compare the settings of a sweep by held-out error and reproducible rank, and choose one.
process SELECT {
    tag "${meta.id}"
    memory { memory('select', runs, task) }
    time { time('select', runs, task) }

    conda "${moduleDir}/../../envs/ldvae.yaml"
    container { image(workflow.containerEngine, task.ext.image) }

    input:
    tuple val(meta), path(runs, stageAs: '.staged/runs/*'), val(flags)

    output:
    tuple val(meta), path("${meta.id}/select"), emit: select
    path 'versions.yml', emit: versions

    script:
    def args = task.ext.args ?: ''
    """
    export LDVAE_PROCESS='${task.process}'
    mv .staged '${meta.id}'
    ldvae select --results '${meta.id}' ${flags} ${args} --versions-yml versions.yml
    """

    stub:
    """
    export LDVAE_PROCESS='${task.process}'
    mv .staged '${meta.id}'
    ldvae select --stub --results '${meta.id}' ${flags} --versions-yml versions.yml
    """
}
