include { image ; memory ; time } from './resources'

// Compare groups of cells gene by gene, with the best fit.
process DE {
    tag "${meta.id}"
    memory { memory('de', [parts, runs], task) }
    time { time('de', [parts, runs], task) }

    conda "${moduleDir}/../../envs/ldvae.yaml"
    container { image(workflow.containerEngine, task.ext.image) }

    input:
    // parts: the folders qc, setup and select, and annotated.h5ad where clusters are compared
    tuple val(meta), path(parts, stageAs: '.staged/*'), path(runs, stageAs: '.staged/runs/*'), val(flags)

    output:
    tuple val(meta), path("${meta.id}/de"), emit: de
    path 'versions.yml', emit: versions

    script:
    def args = task.ext.args ?: ''
    """
    export LDVAE_PROCESS='${task.process}'
    mv .staged '${meta.id}'
    ldvae de --results '${meta.id}' --threads ${task.cpus} ${flags} ${args} --versions-yml versions.yml
    """

    stub:
    """
    export LDVAE_PROCESS='${task.process}'
    mv .staged '${meta.id}'
    ldvae de --stub --results '${meta.id}' ${flags} --versions-yml versions.yml
    """
}
