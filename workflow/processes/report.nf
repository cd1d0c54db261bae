include { image ; memory ; time } from './resources'

// Write the report of a dataset: one page that needs no network.
process REPORT {
    tag "${meta.id}"
    memory { memory('report', [parts, runs], task) }
    time { time('report', [parts, runs], task) }

    conda "${moduleDir}/../../envs/ldvae.yaml"
    container { image(workflow.containerEngine, task.ext.image) }

    input:
    // parts: the folders qc, setup, select, programs and de, and annotated.h5ad; resolved: the options of the dataset (JSON)
    tuple val(meta), path(parts, stageAs: '.staged/*'), path(runs, stageAs: '.staged/runs/*'), val(resolved), val(flags)

    output:
    tuple val(meta), path("${meta.id}/report.html"), path("${meta.id}/report.json"), path("${meta.id}/figures"), emit: report
    path 'versions.yml', emit: versions

    script:
    def args = task.ext.args ?: ''
    """
    export LDVAE_PROCESS='${task.process}'
    mv .staged '${meta.id}'
    cat > '${meta.id}/resolved.json' <<'END_OF_CONFIG'
    ${resolved}
    END_OF_CONFIG
    ldvae report --results '${meta.id}' ${flags} ${args} --versions-yml versions.yml
    """

    stub:
    """
    export LDVAE_PROCESS='${task.process}'
    mv .staged '${meta.id}'
    ldvae report --stub --results '${meta.id}' ${flags} --versions-yml versions.yml
    """
}
