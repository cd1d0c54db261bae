include { memory ; time } from './resources'

// Average the fits of the chosen setting and turn what they share into gene programs.
process PROGRAMS {
    tag "${meta.id}"
    memory { memory('programs', [runs, counts], task.attempt) }
    time { time('programs', [runs, counts], task.attempt) }

    conda "${moduleDir}/../../envs/ldvae.yaml"

    input:
    tuple val(meta), path(best), path(runs, stageAs: 'runs/*'), path(counts), path(gene_sets, stageAs: 'sets?/*'), val(flags)

    output:
    tuple val(meta), path("${meta.id}/programs"), emit: programs
    tuple val(meta), path("${meta.id}/programs/loadings.tsv"), path("${meta.id}/programs/scores.tsv.gz"), emit: scores
    path 'versions.yml', emit: versions

    script:
    def args = task.ext.args ?: ''
    def sets = gene_sets ? "--gene-sets ${gene_sets}" : ''
    """
    export LDVAE_PROCESS='${task.process}'
    ldvae programs --best ${best} --runs ${runs} --counts ${counts} --output ${meta.id}/programs \\
        --versions-yml versions.yml ${sets} ${flags} ${args}
    """

    stub:
    """
    export LDVAE_PROCESS='${task.process}'
    ldvae programs --stub --output ${meta.id}/programs --versions-yml versions.yml ${flags}
    """
}
