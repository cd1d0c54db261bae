#!/usr/bin/env nextflow
// Raw single-cell counts to gene programs and a report: nextflow run . --config config/config.yaml --outdir results

include { LDVAE } from './workflow/ldvae'

workflow {
    main:
    def known = ['config', 'outdir', 'publish']
    def unknown = params.keySet().findAll { !(it in known) }
    if (unknown) {
        error("There is no parameter --${unknown.join(', --')}; there are --${known.join(', --')}.")
    }
    LDVAE(file(params.config, glob: false).toAbsolutePath().toString(), channel.empty())
    LDVAE.out.versions.unique { it.text }.collectFile(name: 'versions.yml', storeDir: "${params.outdir}/pipeline_info", sort: true)

    workflow.onComplete = {
        if (workflow.success && !workflow.stats.ignoredCount) {
            println("The reports: ${file(params.outdir).toAbsolutePath()}/index.html")
        }
    }
}
