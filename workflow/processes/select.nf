include { memory ; time } from './resources'

// Compare the settings of a sweep on held-out cells and by what reproduces, and choose one.
process SELECT {
    tag "${meta.id}"
    memory { memory('select', runs, task.attempt) }
    time { time('select', runs, task.attempt) }

    conda "${moduleDir}/../../envs/ldvae.yaml"

    input:
    tuple val(meta), path(runs, stageAs: 'runs/*'), val(flags)

    output:
    tuple val(meta), path("${meta.id}/select/best.json"), emit: best
    tuple val(meta), path("${meta.id}/select/runs.tsv"), path("${meta.id}/select/settings.tsv"), path("${meta.id}/select/correlations.tsv"), emit: tables
    tuple val(meta), path("${meta.id}/select/*.svg"), emit: figures
    path 'versions.yml', emit: versions

    script:
    def args = task.ext.args ?: ''
    """
    export LDVAE_PROCESS='${task.process}'
    ldvae select --runs ${runs} --output ${meta.id}/select --versions-yml versions.yml ${flags} ${args}
    """

    stub:
    """
    export LDVAE_PROCESS='${task.process}'
    ldvae select --stub --output ${meta.id}/select --versions-yml versions.yml ${flags}
    """
}
