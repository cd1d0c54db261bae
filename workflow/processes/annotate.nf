include { image ; memory ; time } from './resources'

// Put the best fit, the programs, UMAP and clusters into one AnnData.
process ANNOTATE {
    tag "${meta.id}"
    memory { memory('annotate', [parts, runs], task) }
    time { time('annotate', [parts, runs], task) }

    conda "${moduleDir}/../../envs/ldvae.yaml"
    container { image(workflow.containerEngine, task.ext.image) }

    input:
    // parts: the folders qc, setup, select and programs
    tuple val(meta), path(parts, stageAs: '.staged/*'), path(runs, stageAs: '.staged/runs/*'), val(flags)

    output:
    tuple val(meta), path("${meta.id}/annotated.h5ad"), emit: annotated
    path 'versions.yml', emit: versions

    script:
    def args = task.ext.args ?: ''
    """
    export LDVAE_PROCESS='${task.process}'
    mv .staged '${meta.id}'
    ldvae annotate --results '${meta.id}' ${flags} ${args} --versions-yml versions.yml
    """

    stub:
    """
    export LDVAE_PROCESS='${task.process}'
    mv .staged '${meta.id}'
    ldvae annotate --stub --results '${meta.id}' ${flags} --versions-yml versions.yml
    """
}
