// What a job gets: memory and time from workflow/resources.yaml, which the rules of Snakemake read too, and its image.

def memory(step, files, attempt) {
    return "${scaled(resources(step).mem_mb, files, attempt)} MB"
}

def time(step, files, attempt) {
    return "${scaled(resources(step).minutes, files, attempt)} min"
}

// As containers/README.md makes them; kind: cpu or cuda.
def image(engine, kind) {
    def file = "${moduleDir}/../../containers/ldvae-${kind ?: 'cpu'}.sif"
    return engine in ['apptainer', 'singularity'] ? file : "localhost/ldvae:${kind ?: 'cpu'}"
}

def resources(step) {
    return new org.yaml.snakeyaml.Yaml().load(file("${moduleDir}/../resources.yaml").text)[step]
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
