include { arranged ; named } from './inputs'
include { image ; memory ; time } from './resources'

// Read the counts of a dataset, and keep the cells and genes that pass quality control.
process QC {
    tag "${meta.id}"
    memory { memory('qc', counts, task) }
    time { time('qc', counts, task) }

    conda "${moduleDir}/../../envs/ldvae.yaml"
    container { image(workflow.containerEngine, task.ext.image) }

    input:
    // counts: all files of the inputs, none for the embedded demo; inputs: which of them make one, [] if each is one
    tuple val(meta), path(counts, stageAs: '.input?/*'), val(inputs), path(obs_table), val(flags)

    output:
    tuple val(meta), path("${meta.id}/qc"), emit: qc
    tuple val(meta), path("${meta.id}/qc/filtered.h5ad"), emit: filtered
    path 'versions.yml', emit: versions

    script:
    def args = task.ext.args ?: ''
    def table = obs_table ? "--obs-table ${obs_table}" : ''
    """
    export LDVAE_PROCESS='${task.process}'
    ${arranged(counts, inputs)}
    mkdir -p '${meta.id}'
    ldvae qc --results '${meta.id}' --input ${named(counts, inputs)} ${table} --threads ${task.cpus} ${flags} ${args} --versions-yml versions.yml
    """

    stub:
    """
    export LDVAE_PROCESS='${task.process}'
    ldvae qc --stub --input demo:pbmc68k --results '${meta.id}' ${flags} --versions-yml versions.yml
    """
}
