include { memory ; time } from './resources'

// Compare groups of cells gene by gene, with the best fit.
process DE {
    tag "${meta.id}"
    memory { memory('de', [counts, runs], task.attempt) }
    time { time('de', [counts, runs], task.attempt) }

    conda "${moduleDir}/../../envs/ldvae.yaml"

    input:
    tuple val(meta), path(counts), path(best), path(runs, stageAs: 'runs/*'), path(annotated), val(flags)

    output:
    tuple val(meta), path("${meta.id}/de"), emit: de
    path 'versions.yml', emit: versions

    script:
    def args = task.ext.args ?: ''
    def clusters = annotated ? "--annotated ${annotated}" : ''
    """
    export LDVAE_PROCESS='${task.process}'
    ldvae de --counts ${counts} --best ${best} --runs ${runs} ${clusters} --output ${meta.id}/de \\
        --versions-yml versions.yml ${flags} ${args}
    """

    stub:
    """
    export LDVAE_PROCESS='${task.process}'
    ldvae de --stub --output ${meta.id}/de --versions-yml versions.yml ${flags}
    """
}
