include { PLAN     } from './processes/plan'
include { QC       } from './processes/qc'
include { SETUP    } from './processes/setup'
include { TRAIN    } from './processes/train'
include { SELECT   } from './processes/select'
include { PROGRAMS } from './processes/programs'
include { ANNOTATE } from './processes/annotate'
include { DE       } from './processes/de'
include { PROJECT  } from './processes/project'
include { ACROSS   } from './processes/across'
include { REPORT   } from './processes/report'
include { INDEX    } from './processes/index'
include { keep     } from './processes/resources'
include { keep_partitions } from './slurm'

// From raw counts to gene programs and a report: every dataset of a config.
workflow LDVAE {
    take:
    config // path of a config.yaml
    counts // [name of a dataset, its files of counts], for datasets whose counts other processes make; may be empty

    main:
    failures().deleteDir()
    keep_partitions()
    PLAN(config, named_files(config))
    plan = PLAN.out.plan.map { json -> new groovy.json.JsonSlurperClassic().parseText(json.text) }
    // Each dataset as `ldvae plan` describes it. A process gets only its own part, else every edit would rerun everything.
    dataset = plan.flatMap { it.datasets }.map { [[id: it.dataset], it] }

    files = dataset
        .join(counts.map { name, made -> [[id: name], made] }, remainder: true)
        .filter { _meta, planned, _made -> planned }
        .map { meta, planned, made -> [meta, made ?: files_of(planned.inputs), made ? [] : grouped(planned.inputs)] }
    QC(files.join(dataset).map { meta, counted, inputs, it -> [meta, counted, inputs, tables(it.tables.qc), it.flags.qc] })
    SETUP(QC.out.filtered.join(dataset).map { meta, filtered, it -> [meta, filtered, tables(it.tables.setup), it.flags.setup] })

    TRAIN(
        SETUP.out.counts.join(dataset).flatMap { meta, registered, it ->
            keep(it)
            it.runs.collect { run -> [meta + [run: run.run], registered, [:], run.flags] }
        }
    )
    // The runs of a dataset together, as soon as its last is done, in the order of the plan.
    runs = TRAIN.out.run
        .map { meta, run -> [meta.subMap('id'), run] }
        .combine(dataset, by: 0)
        .map { meta, run, it -> [groupKey(meta, it.runs.size()), run] }
        .groupTuple()
        .map { key, folders -> [key.groupTarget, folders] }
        .join(dataset)
        .map { meta, folders, it -> [meta, it.runs.collect { run -> folders.find { folder -> folder.name == run.run } }] }

    SELECT(runs.join(dataset).map { meta, folders, it -> [meta, folders, it.flags.select] })
    // A process gets folders of the results, each under its own name, and the runs.
    chosen = SETUP.out.setup.join(SELECT.out.select)
    PROGRAMS(
        QC.out.qc.join(chosen).join(runs).join(dataset).map { meta, qc, setup, select, folders, it ->
            [meta, [qc, setup, select], folders, tables(it.tables.programs), it.flags.programs]
        }
    )
    ANNOTATE(
        QC.out.qc.join(chosen).join(PROGRAMS.out.programs).join(runs).join(dataset)
            .map { meta, qc, setup, select, programs, folders, it ->
                [meta, [qc, setup, select, programs], folders, it.flags.annotate]
            }
    )
    // Clusters are made by ANNOTATE, for which the other comparisons need not wait.
    clusters = ANNOTATE.out.annotated
        .join(dataset.filter { _meta, it -> it.compares_clusters })
        .map { meta, annotated, _it -> [meta, [annotated]] }
        .mix(dataset.filter { _meta, it -> !it.compares_clusters }.map { meta, _it -> [meta, []] })
    DE(
        QC.out.qc.join(chosen).join(clusters).join(runs).join(dataset)
            .filter { row -> row[-1].contrasts }
            .map { meta, qc, setup, select, annotated, folders, it -> [meta, [qc, setup, select] + annotated, folders, it.flags.de] }
    )
    de = DE.out.de.map { meta, folder -> [meta, [folder]] }
        .mix(dataset.filter { _meta, it -> !it.contrasts }.map { meta, _it -> [meta, []] })

    PROJECT(
        PROGRAMS.out.programs.join(dataset).flatMap { meta, programs, it ->
            it.projections.collect { other ->
                [meta + [projection: other.projection], files_of(other.inputs), grouped(other.inputs), programs, other.flags]
            }
        }
    )

    REPORT(
        QC.out.qc.join(chosen).join(PROGRAMS.out.programs).join(ANNOTATE.out.annotated).join(de).join(runs).join(dataset)
            .map { meta, qc, setup, select, programs, annotated, compared, folders, it ->
                [meta, [qc, setup, select, programs, annotated] + compared, folders, it.resolved, it.flags.report]
            }
    )
    // All compared datasets together, in the order of the plan, once the programs of the last are done.
    compared = QC.out.qc.join(PROGRAMS.out.programs)
        .map { meta, qc, programs -> [meta.id, qc, programs] }
        .toList()
        .map { made -> [made] } // one item, also where no dataset came so far
        .combine(plan)
        .filter { _made, it -> it.across.datasets }
        .map { made, it ->
            def found = made.collectEntries { one -> [one[0], one] }
            [it.across, it.across.datasets.collect { name -> found[name] }.findAll()]
        }
        .filter { across, made -> made.size() == across.datasets.size() }
    ACROSS(
        compared.map { across, _made -> across.datasets },
        compared.map { _across, made -> made.collect { it[1] } },
        compared.map { _across, made -> made.collect { it[2] } },
        compared.map { across, _made -> across.flags }
    )
    // When all that can run has run, failures included.
    reported = REPORT.out.report
        .map { _meta, page, _summary, _figures -> page.parent }
        .mix(PROJECT.out.scores.map { _meta, _scores -> null }, ACROSS.out.across.map { _folder -> null })
        .toList()
    INDEX(
        plan.map { it.datasets*.dataset },
        reported.map { it.findAll().sort { one -> one.name } },
        ACROSS.out.across.ifEmpty([]),
        reported.map { failed() }
    )

    emit:
    counts = SETUP.out.counts // [meta, h5ad]: genes, columns and split as the models were trained on
    runs = runs // [meta, folders]: each with model/, history.csv, metrics.json, factors.npz
    select = SELECT.out.select // [meta, folder]: best.json names the setting that was chosen and its runs
    programs = PROGRAMS.out.programs // [meta, folder]
    annotated = ANNOTATE.out.annotated // [meta, h5ad]
    de = DE.out.de // [meta, folder]
    projected = PROJECT.out.scores // [meta, folder]
    across = ACROSS.out.across // folder, where datasets are compared
    report = REPORT.out.report // [meta, html, json, folder of figures]
    versions = QC.out.versions.mix(
        SETUP.out.versions, TRAIN.out.versions, SELECT.out.versions, PROGRAMS.out.versions,
        ANNOTATE.out.versions, DE.out.versions, PROJECT.out.versions, ACROSS.out.versions, REPORT.out.versions, INDEX.out.versions
    )
}

// Folders of what failed in this run, each called as its dataset; nextflow.config writes them.
def failed() {
    return failures().exists() ? (failures().listFiles() as List).sort { it.name } : []
}

def failures() {
    return file("${workflow.workDir}/failures/${workflow.sessionId}")
}

// All files of the inputs of counts; the embedded demo has none.
def files_of(inputs) {
    return tables(inputs.collectMany { it.files.sort().values() })
}

// Which of them make one input, and a hash of what is in a folder that is handed over whole.
def grouped(inputs) {
    return inputs.collect { [name: it.name, files: it.files.sort().keySet() as List, contents: it.contents] }
}

// The config and what is there of all that it may name, for a container to show them in their places.
def named_files(config) {
    def options = new org.yaml.snakeyaml.LoaderOptions()
    options.setMaxAliasesForCollections(100000) // datasets that share their options by an anchor; 50 without this
    def content = file(config).exists() ? new org.yaml.snakeyaml.Yaml(options).load(file(config).text) : []
    def paths = [config] + texts(content).findAll { text -> text && text.size() < 1024 && !text.contains(':') }
    def found = tables(paths).findAll { path -> path.exists() }
    return (found + found.collect { path -> path.toRealPath() }).unique()
}

// All texts of a YAML document.
def texts(value) {
    if (value instanceof Map) {
        return texts(value.values() as List)
    }
    if (value instanceof List) {
        return value.collectMany { part -> texts(part) }
    }
    return value instanceof String ? [value] : []
}

def tables(paths) {
    return paths.collect { path -> file(path, glob: false) }
}
