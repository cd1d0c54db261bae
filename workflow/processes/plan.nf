include { image } from './resources'

// Check a config and its data, and expand it to datasets, runs and flags.
process PLAN {
    tag "${config}"
    executor 'local'
    cache false // else files that have gone since would not be missed

    conda "${moduleDir}/../../envs/ldvae.yaml"
    container { image(workflow.containerEngine, task.ext.image) }

    input:
    val config // path of a config.yaml; paths in it start at the folder where Nextflow was started
    path files, stageAs: '.named?/*' // it and those that it names; a container sees them, also in their places

    output:
    path 'plan.json', emit: plan
    path '*/{runs.tsv,resolved.json}', emit: tables

    script:
    def args = task.ext.args ?: ''
    """
    work=\$PWD
    cd '${workflow.launchDir}' || true # a container shows it where it is needed
    ldvae plan '${config}' --tables "\$work" ${args} > "\$work/plan.json"
    """

    stub:
    def args = task.ext.args ?: ''
    """
    work=\$PWD
    cd '${workflow.launchDir}' || true # a container shows it where it is needed
    ldvae plan '${config}' --tables "\$work" ${args} > "\$work/plan.json"
    """
}
