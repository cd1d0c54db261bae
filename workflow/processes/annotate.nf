include { memory ; time } from './resources'

// Put the best fit, the programs, UMAP and clusters into one AnnData.
process ANNOTATE {
    tag "${meta.id}"
    memory { memory('annotate', [counts, runs], task.attempt) }
    time { time('annotate', [counts, runs], task.attempt) }

    conda "${moduleDir}/../../envs/ldvae.yaml"

    input:
    tuple val(meta), path(counts), path(best), path(runs, stageAs: 'runs/*'), path(loadings), path(scores), val(flags)

    output:
    tuple val(meta), path("${meta.id}/annotated.h5ad"), emit: annotated
    path 'versions.yml', emit: versions

    script:
    def args = task.ext.args ?: ''
    """
    export LDVAE_PROCESS='${task.process}'
    ldvae annotate --counts ${counts} --best ${best} --runs ${runs} --loadings ${loadings} --scores ${scores} \\
        --annotated ${meta.id}/annotated.h5ad --versions-yml versions.yml ${flags} ${args}
    """

    stub:
    """
    export LDVAE_PROCESS='${task.process}'
    ldvae annotate --stub --annotated ${meta.id}/annotated.h5ad --versions-yml versions.yml ${flags}
    """
}
