include { image ; memory ; time } from './resources'

// Average the fits of the chosen setting and turn what they share into gene programs.
process PROGRAMS {
    tag "${meta.id}"
    memory { memory('programs', [parts, runs], task) }
    time { time('programs', [parts, runs], task) }

    conda "${moduleDir}/../../envs/ldvae.yaml"
    container { image(workflow.containerEngine, task.ext.image) }

    input:
    // parts: the folders qc, setup and select
    tuple val(meta), path(parts, stageAs: '.staged/*'), path(runs, stageAs: '.staged/runs/*'), path(gene_sets, stageAs: 'sets?/*'), val(flags)

    output:
    tuple val(meta), path("${meta.id}/programs"), emit: programs
    path 'versions.yml', emit: versions

    script:
    def args = task.ext.args ?: ''
    def sets = gene_sets ? "--gene-sets ${gene_sets}" : ''
    """
    export LDVAE_PROCESS='${task.process}'
    mv .staged '${meta.id}'
    ldvae programs --results '${meta.id}' ${sets} ${flags} ${args} --versions-yml versions.yml
    """

    stub:
    """
    export LDVAE_PROCESS='${task.process}'
    mv .staged '${meta.id}'
    ldvae programs --stub --results '${meta.id}' ${flags} --versions-yml versions.yml
    """
}
