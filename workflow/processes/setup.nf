include { image ; memory ; time } from './resources'

// Choose the genes to model, register batch and covariates, and split the cells once for all runs.
process SETUP {
    tag "${meta.id}"
    memory { memory('setup', filtered, task) }
    time { time('setup', filtered, task) }

    conda "${moduleDir}/../../envs/ldvae.yaml"
    container { image(workflow.containerEngine, task.ext.image) }

    input:
    tuple val(meta), path(filtered, stageAs: '.staged/qc/filtered.h5ad'), path(gene_list), val(flags)

    output:
    tuple val(meta), path("${meta.id}/setup"), emit: setup
    tuple val(meta), path("${meta.id}/setup/counts.h5ad"), emit: counts
    path 'versions.yml', emit: versions

    script:
    def args = task.ext.args ?: ''
    def list = gene_list ? "--gene-list ${gene_list}" : ''
    """
    export LDVAE_PROCESS='${task.process}'
    mv .staged '${meta.id}'
    ldvae setup --results '${meta.id}' ${list} ${flags} ${args} --versions-yml versions.yml
    """

    stub:
    """
    export LDVAE_PROCESS='${task.process}'
    mv .staged '${meta.id}'
    ldvae setup --stub --results '${meta.id}' ${flags} --versions-yml versions.yml
    """
}
