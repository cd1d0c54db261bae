include { image } from './resources'

// Write the page that links to the reports of all datasets, the end of the run in words, and tables for MultiQC.
process INDEX {
    tag 'all datasets'
    executor 'local'

    conda "${moduleDir}/../../envs/ldvae.yaml"
    container { image(workflow.containerEngine, task.ext.image) }

    input:
    val datasets // names, in the order of the page
    path reports, stageAs: 'reports/*' // the folders of the reports, each called as its dataset
    path across, stageAs: 'compared/*' // the folder of the comparison of the datasets; may be none
    path failures, stageAs: 'failed/*' // folders with what failed of a dataset, each called as the dataset

    output:
    path 'results/index.html', emit: page
    path 'results/index.json', emit: record
    path 'results/summary.txt', emit: summary
    path 'results/multiqc', emit: multiqc
    path 'versions.yml', emit: versions

    script:
    def args = task.ext.args ?: ''
    """
    export LDVAE_PROCESS='${task.process}'
    for part in reports/*/report.json failed/*/failures; do
        folder=\$(basename "\$(dirname "\$part")")
        folder=results/\${folder#@all} # what failed of no single dataset
        if [ -e "\$part" ]; then mkdir -p "\$folder" && cp -r "\$part" "\$folder"; fi
    done
    if [ -e compared/across ]; then mkdir -p results && cp -r compared/across results/; fi
    ldvae index --results results --datasets ${datasets.collect { "'${it}'" }.join(' ')} --versions-yml versions.yml ${args}
    """

    stub:
    """
    export LDVAE_PROCESS='${task.process}'
    ldvae index --stub --results results --versions-yml versions.yml
    """
}
