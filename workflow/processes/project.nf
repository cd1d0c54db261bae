include { arranged ; named } from './inputs'
include { image ; memory ; time } from './resources'

// Score other cells with the programs of a dataset.
process PROJECT {
    tag "${meta.id} ${meta.projection}"
    memory { memory('project', counts, task) }
    time { time('project', counts, task) }

    conda "${moduleDir}/../../envs/ldvae.yaml"
    container { image(workflow.containerEngine, task.ext.image) }

    input:
    // counts: all files of the inputs, none for the embedded demo; inputs: which of them make one, [] if each is one;
    // parts: the folder programs
    tuple val(meta), path(counts, stageAs: '.input?/*'), val(inputs), path(parts, stageAs: '.staged/*'), val(flags)

    output:
    tuple val(meta), path("${meta.id}/project/${meta.projection}"), emit: scores
    path 'versions.yml', emit: versions

    script:
    def args = task.ext.args ?: ''
    """
    export LDVAE_PROCESS='${task.process}'
    ${arranged(counts, inputs)}
    mv .staged '${meta.id}'
    ldvae project --results '${meta.id}' --name '${meta.projection}' --input ${named(counts, inputs)} ${flags} ${args} --versions-yml versions.yml
    """

    stub:
    """
    export LDVAE_PROCESS='${task.process}'
    mv .staged '${meta.id}'
    ldvae project --stub --input demo:pbmc68k --results '${meta.id}' --name '${meta.projection}' ${flags} --versions-yml versions.yml
    """
}
