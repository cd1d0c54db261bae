// What a job gets: memory and time from workflow/resources.yaml, which the rules of Snakemake read too, and its image.

include { capped } from '../slurm'

// times: processes that read the files, each for itself.
def memory(step, files, task, times = 1) {
    return "${capped(task, 'mem_mb', times * wanted(step, 'mem_mb', files, task.attempt))} MB"
}

def time(step, files, task) {
    return "${capped(task, 'minutes', wanted(step, 'minutes', files, task.attempt))} min"
}

// Time of a training: by its values (training cells times genes times epochs), where `ldvae setup` left its summary with the counts.
def time_to_train(meta, counts, task) {
    def values = values_to_train(meta, counts)
    if (values) {
        def asked = resources('train')
        def minutes = (asked.minutes[0] + asked.minutes_per_1e9_values * values / 1e9) * 2 ** (task.attempt - 1)
        return "${capped(task, 'minutes', Math.ceil(minutes) as long)} min"
    }
    return time('train', counts, task)
}

def values_to_train(meta, counts) {
    def summary = counts.toRealPath().resolveSibling('summary.json')
    def setup = summary.exists() ? new groovy.json.JsonSlurperClassic().parseText(summary.text) : [:]
    def epochs = kept(meta.id).epochs?.get(meta.run) ?: setup.default_epochs
    return epochs && setup.n_train ? (setup.n_train as long) * setup.n_vars * epochs : 0
}

// How a training is computed. Not of this: what changes its result.
def compute_of(meta, given) {
    return [device: 'auto', threads: 1, processes: 1, checkpoint_minutes: 10] + (kept(meta.id).compute ?: [:]) + given
}

// What the workflow LDVAE knows of the trainings of a dataset and tells no task: Nextflow would train again once it changed.
def keep(planned) {
    def file = kept_file(planned.dataset)
    file.parent.mkdirs()
    def epochs = planned.runs.collectEntries { [it.run, it.max_epochs] }
    file.text = groovy.json.JsonOutput.toJson([compute: planned.compute.subMap('device', 'threads', 'processes', 'checkpoint_minutes'), epochs: epochs])
}

def kept(dataset) {
    def file = kept_file(dataset)
    return file.exists() ? new groovy.json.JsonSlurperClassic().parseText(file.text) : [:]
}

def kept_file(dataset) {
    return file("${workflow.workDir}/compute/${workflow.sessionId}/${dataset}.json")
}

// As containers/README.md makes them; kind: cpu or cuda.
def image(engine, kind) {
    def file = "${moduleDir}/../../containers/ldvae-${kind ?: 'cpu'}.sif"
    return engine in ['apptainer', 'singularity'] ? file : "localhost/ldvae:${kind ?: 'cpu'}"
}

def resources(step) {
    return new org.yaml.snakeyaml.Yaml().load(file("${moduleDir}/../resources.yaml").text)[step]
}

// Of two lines the smaller result.
def wanted(step, what, files, attempt) {
    def asked = resources(step)
    return [asked[what], asked["${what}_large".toString()]].findAll().collect { line -> scaled(line, files, attempt) }.min()
}

def scaled(base_and_per_mb, files, attempt) {
    def (base, per_mb) = base_and_per_mb
    def bytes = [files].flatten().collect { staged -> size(staged.toRealPath()) }.sum(0)
    return Math.ceil((base + per_mb * bytes / 1e6) * 2 ** (attempt - 1)) as long
}

// Of a run: its files.
def size(path) {
    return path.isDirectory() ? (path.listFiles() as List)*.size().sum(0) : path.size()
}
