include { memory ; time } from './resources'

// Choose the genes to model, register batch and covariates, and split the cells once for all runs.
process SETUP {
    tag "${meta.id}"
    memory { memory('setup', filtered, task.attempt) }
    time { time('setup', filtered, task.attempt) }

    conda "${moduleDir}/../../envs/ldvae.yaml"

    input:
    tuple val(meta), path(filtered), path(gene_list), val(flags)

    output:
    tuple val(meta), path("${meta.id}/setup/counts.h5ad"), emit: counts
    tuple val(meta), path("${meta.id}/setup/genes.tsv"), path("${meta.id}/setup/summary.json"), emit: tables
    path 'versions.yml', emit: versions

    script:
    def args = task.ext.args ?: ''
    def list = gene_list ? "--gene-list ${gene_list}" : ''
    """
    export LDVAE_PROCESS='${task.process}'
    ldvae setup --filtered ${filtered} --counts ${meta.id}/setup/counts.h5ad --gene-table ${meta.id}/setup/genes.tsv \\
        --summary ${meta.id}/setup/summary.json --versions-yml versions.yml ${list} ${flags} ${args}
    """

    stub:
    """
    export LDVAE_PROCESS='${task.process}'
    ldvae setup --stub --counts ${meta.id}/setup/counts.h5ad --gene-table ${meta.id}/setup/genes.tsv --summary ${meta.id}/setup/summary.json \\
        --versions-yml versions.yml ${flags}
    """
}
