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
    tuple val(meta), path("${meta.id}/qc/filtered.h5ad"), emit: filtered
    tuple val(meta), path("${meta.id}/qc/cells.tsv.gz"), path("${meta.id}/qc/summary.json"), emit: tables
    tuple val(meta), path("${meta.id}/qc/*.png"), emit: figures
    path 'versions.yml', emit: versions

    script:
    def args = task.ext.args ?: ''
    def input = counts ?: 'demo:pbmc68k'
    def table = obs_table ? "--obs-table ${obs_table}" : ''
    """
    export LDVAE_PROCESS='${task.process}'
    ldvae qc --input ${input} --dataset '${meta.id}' \\
        --filtered ${meta.id}/qc/filtered.h5ad --cells ${meta.id}/qc/cells.tsv.gz --summary ${meta.id}/qc/summary.json \\
        --violins ${meta.id}/qc/violins.png --scatter ${meta.id}/qc/scatter.png --versions-yml versions.yml \\
        ${table} ${flags} ${args}
    """

    stub:
    """
    export LDVAE_PROCESS='${task.process}'
    ldvae qc --stub --filtered ${meta.id}/qc/filtered.h5ad --cells ${meta.id}/qc/cells.tsv.gz --summary ${meta.id}/qc/summary.json \\
        --violins ${meta.id}/qc/violins.png --scatter ${meta.id}/qc/scatter.png --versions-yml versions.yml ${flags}
    """
}
