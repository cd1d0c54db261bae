// Write the page that leads to the reports of all datasets.
process INDEX {
    executor 'local'

    conda "${moduleDir}/../../envs/ldvae.yaml"

    input:
    val datasets // names, in the order of the page; those without a report are left out
    path reports // the folders of the reports, each called as its dataset

    output:
    path 'index.html', emit: page
    path 'versions.yml', emit: versions

    script:
    def args = task.ext.args ?: ''
    def names = [reports].flatten().collect { it.name }
    def summaries = datasets.findAll { it in names }.collect { "'${it}/report.json'" }.join(' ')
    """
    export LDVAE_PROCESS='${task.process}'
    ldvae index --summaries ${summaries} --output index.html --versions-yml versions.yml ${args}
    """

    stub:
    """
    export LDVAE_PROCESS='${task.process}'
    ldvae index --stub --output index.html --versions-yml versions.yml
    """
}
