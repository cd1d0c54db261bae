include { memory ; time } from './resources'

// Write the report of a dataset: one page that needs no network.
process REPORT {
    tag "${meta.id}"
    memory { memory('report', [runs, annotated], task.attempt) }
    time { time('report', [runs, annotated], task.attempt) }

    conda "${moduleDir}/../../envs/ldvae.yaml"

    input:
    tuple val(meta), path(qc, stageAs: 'qc/*'), path(setup_summary, stageAs: 'setup/*'), path(runs, stageAs: 'runs/*'),
        path(selection, stageAs: 'select/*'), path(programs), path(annotated), path(de), val(resolved), val(flags)

    output:
    tuple val(meta), path("${meta.id}/report.html"), path("${meta.id}/report.json"), path("${meta.id}/figures"), emit: report
    path 'versions.yml', emit: versions

    script:
    def args = task.ext.args ?: ''
    def contrasts = de ? "--contrasts ${de}/contrasts.tsv" : ''
    """
    export LDVAE_PROCESS='${task.process}'
    cat > resolved.json <<'END_OF_CONFIG'
    ${resolved}
    END_OF_CONFIG
    ldvae report --dataset '${meta.id}' \\
        --qc-summary qc/summary.json --qc-cells qc/cells.tsv.gz --setup-summary ${setup_summary} \\
        --metrics ${of_runs(runs, 'metrics.json')} --histories ${of_runs(runs, 'history.csv')} --fit ${of_runs(runs, 'fit.tsv')} \\
        --select-runs select/runs.tsv --select-settings select/settings.tsv \\
        --select-correlations select/correlations.tsv --best select/best.json \\
        --programs ${programs}/programs.tsv --top-genes ${programs}/top_genes.tsv \\
        --consensus ${programs}/consensus.tsv --stability ${programs}/stability.tsv \\
        --associations ${programs}/associations.tsv --enrichment ${programs}/enrichment.tsv \\
        --programs-summary ${programs}/summary.json --annotated ${annotated} ${contrasts} --resolved resolved.json \\
        --output ${meta.id}/report.html --summary ${meta.id}/report.json --figures ${meta.id}/figures \\
        --versions-yml versions.yml ${flags} ${args}
    """

    stub:
    """
    export LDVAE_PROCESS='${task.process}'
    ldvae report --stub --output ${meta.id}/report.html --summary ${meta.id}/report.json --figures ${meta.id}/figures \\
        --versions-yml versions.yml ${flags}
    """
}

def of_runs(runs, name) {
    return [runs].flatten().collect { run -> "${run}/${name}" }.join(' ')
}
