include { memory ; time } from './resources'

// Score other cells with the programs of a dataset.
process PROJECT {
    tag "${meta.id} ${meta.projection}"
    memory { memory('project', counts, task.attempt) }
    time { time('project', counts, task.attempt) }

    conda "${moduleDir}/../../envs/ldvae.yaml"

    input:
    // parts: the folder programs; no counts: the embedded demo
    tuple val(meta), path(counts, stageAs: 'input?/*'), path(parts, stageAs: '.staged/*'), val(flags)

    output:
    tuple val(meta), path("${meta.id}/project/${meta.projection}"), emit: scores
    path 'versions.yml', emit: versions

    script:
    def args = task.ext.args ?: ''
    def input = counts ?: 'demo:pbmc68k'
    """
    export LDVAE_PROCESS='${task.process}'
    mv .staged '${meta.id}'
    ldvae project --results '${meta.id}' --name '${meta.projection}' --input ${input} ${flags} ${args} --versions-yml versions.yml
    """

    stub:
    """
    export LDVAE_PROCESS='${task.process}'
    mv .staged '${meta.id}'
    ldvae project --stub --input demo:pbmc68k --results '${meta.id}' --name '${meta.projection}' ${flags} --versions-yml versions.yml
    """
}
