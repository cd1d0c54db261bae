include { image ; memory ; time } from './resources'

// Compare the programs of several datasets: those they share, and those of one dataset only.
process ACROSS {
    tag 'all datasets'
    memory { memory('across', [qc, programs], task) }
    time { time('across', [qc, programs], task) }

    conda "${moduleDir}/../../envs/ldvae.yaml"
    container { image(workflow.containerEngine, task.ext.image) }

    input:
    // of each dataset its name and its folders qc and programs, in one order
    val names
    path qc, stageAs: 'qc?/*'
    path programs, stageAs: 'programs?/*'
    val flags

    output:
    path 'results/across', emit: across
    path 'versions.yml', emit: versions

    script:
    def args = task.ext.args ?: ''
    def quoted = names.collect { "'${it}'" }.join(' ')
    """
    export LDVAE_PROCESS='${task.process}'
    n=0
    for name in ${quoted}; do
        n=\$((n + 1))
        mkdir -p "results/\$name"
        mv qc\$n/qc programs\$n/programs "results/\$name/"
    done
    ldvae across --results results --datasets ${quoted} ${flags} ${args} --versions-yml versions.yml
    """

    stub:
    def quoted = names.collect { "'${it}'" }.join(' ')
    """
    export LDVAE_PROCESS='${task.process}'
    ldvae across --stub --results results --datasets ${quoted} ${flags} --versions-yml versions.yml
    """
}
