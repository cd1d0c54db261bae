// Write the page that leads to the reports of all datasets.
process INDEX {
    executor 'local'

    conda "${moduleDir}/../../envs/ldvae.yaml"

    input:
    val datasets // names, in the order of the page; those without a report are left out
    path reports, stageAs: 'results/*' // the folders of the reports, each called as its dataset
    path across, stageAs: 'results/*' // the folder of the comparison of the datasets; may be none

    output:
    path 'results/index.html', emit: page
    path 'versions.yml', emit: versions

    script:
    def args = task.ext.args ?: ''
    def names = [reports].flatten().collect { it.name }
    def reported = datasets.findAll { it in names }.collect { "'${it}'" }.join(' ')
    """
    export LDVAE_PROCESS='${task.process}'
    ldvae index --results results --datasets ${reported} ${across ? '--across' : '--no-across'} --versions-yml versions.yml ${args}
    """

    stub:
    """
    export LDVAE_PROCESS='${task.process}'
    ldvae index --stub --results results --versions-yml versions.yml
    """
}
