include { memory ; time } from './resources'

// Read the counts of a dataset, and keep the cells and genes that pass quality control.
process QC {
    tag "${meta.id}"
    memory { memory('qc', counts, task.attempt) }
    time { time('qc', counts, task.attempt) }

    conda "${moduleDir}/../../envs/ldvae.yaml"

    input:
    tuple val(meta), path(counts, stageAs: 'input?/*'), path(obs_table), val(flags) // no counts: the embedded demo

    output:
    tuple val(meta), path("${meta.id}/qc"), emit: qc
    tuple val(meta), path("${meta.id}/qc/filtered.h5ad"), emit: filtered
    path 'versions.yml', emit: versions

    script:
    def args = task.ext.args ?: ''
    def input = counts ?: 'demo:pbmc68k'
    def table = obs_table ? "--obs-table ${obs_table}" : ''
    """
    export LDVAE_PROCESS='${task.process}'
    ldvae qc --results '${meta.id}' --input ${input} ${table} ${flags} ${args} --versions-yml versions.yml
    """

    stub:
    """
    export LDVAE_PROCESS='${task.process}'
    ldvae qc --stub --input demo:pbmc68k --results '${meta.id}' ${flags} --versions-yml versions.yml
    """
}
