include { memory ; time } from './resources'

// Score other cells with the programs of a dataset.
process PROJECT {
    tag "${meta.id} ${meta.projection}"
    memory { memory('project', counts, task.attempt) }
    time { time('project', counts, task.attempt) }

    conda "${moduleDir}/../../envs/ldvae.yaml"

    input:
    tuple val(meta), path(counts, stageAs: 'input?/*'), path(programs), val(flags) // no counts: the embedded demo

    output:
    tuple val(meta), path("${meta.id}/project/${meta.projection}/{scores.tsv.gz,summary.json}"), emit: scores
    path 'versions.yml', emit: versions

    script:
    def args = task.ext.args ?: ''
    def input = counts ?: 'demo:pbmc68k'
    def folder = "${meta.id}/project/${meta.projection}"
    """
    export LDVAE_PROCESS='${task.process}'
    ldvae project --input ${input} --programs ${programs} --scores ${folder}/scores.tsv.gz \\
        --summary ${folder}/summary.json --versions-yml versions.yml ${flags} ${args}
    """

    stub:
    def folder = "${meta.id}/project/${meta.projection}"
    """
    export LDVAE_PROCESS='${task.process}'
    ldvae project --stub --scores ${folder}/scores.tsv.gz --summary ${folder}/summary.json \\
        --versions-yml versions.yml ${flags}
    """
}
