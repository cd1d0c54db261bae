#!/usr/bin/env nextflow
// Raw single-cell counts to gene programs and a report: nextflow run . --config config/config.yaml --outdir results

include { LDVAE } from './workflow/ldvae'
include { tell_of_jobs_that_never_start } from './workflow/slurm'

workflow {
    main:
    if (params.help) {
        println(help())
    }
    else {
        def unknown = given() - known().keySet()
        if (unknown) {
            error("There is no parameter --${unknown.join(', --')}; there are --${known().keySet().join(', --')} (--help explains them).")
        }
        if ('slurm' in workflow.profile.tokenize(',')) {
            tell_of_jobs_that_never_start()
        }
        LDVAE(file(params.config, glob: false).toAbsolutePath().toString(), channel.empty())
        LDVAE.out.versions.unique { it.text }.collectFile(name: 'versions.yml', storeDir: "${params.outdir}/pipeline_info", sort: true)
    }

    workflow.onComplete = {
        def summary = file("${params.outdir}/summary.txt")
        if (!params.help && summary.exists() && summary.lastModified() >= workflow.start.toInstant().toEpochMilli()) {
            println(summary.text.replace('results/index.html', "${file(params.outdir).toAbsolutePath()}/index.html").trim())
        }
    }
}

// Parameters by name, as nextflow_schema.json describes them.
def known() {
    def schema = new groovy.json.JsonSlurper().parse(file("${projectDir}/nextflow_schema.json").toFile())
    return schema['$defs'].values().collectEntries { it.properties }
}

// Names of the parameters of the command line and of -params-file. Configs of institutions set others, which do no harm.
def given() {
    def names = (workflow.commandLine =~ /(?:^|\s)--([A-Za-z][\w-]*)/).collect { it[1] }
    def files = (workflow.commandLine =~ /\s-params-file[ =](?:'([^']*)'|"([^"]*)"|(\S+))/).collect { found -> found[1..3].find { it } }
    return (names + files.collectMany { new org.yaml.snakeyaml.Yaml().load(file(it).text)?.keySet() ?: [] }).unique()
}

def help() {
    def lines = known().collect { name, entry ->
        def values = entry['enum'] ? " (${entry['enum'].join(', ')})" : ''
        def preset = entry.default != null && entry.type != 'boolean' ? " [${entry.default.toString().replace('${projectDir}/', '')}]" : ''
        "  --${name.padRight(12)} ${entry.description}${values}${preset}"
    }
    return """\
        |Raw single-cell counts to gene programs and a report.
        |
        |  nextflow run . --config config.yaml --outdir results -profile podman -resume
        |
        |${lines.join('\n')}
        |
        |Profiles: ${['docker', 'podman', 'apptainer', 'singularity', 'conda', 'gpu', 'slurm', 'test'].join(', ')}; several with commas. See docs/nextflow.md.
        |""".stripMargin()
}
