// What a Slurm allows, and jobs that wait for what never comes: Nextflow would wait with them without a word.

// Ask sinfo once what a job can get in each partition at most, and keep it; nothing where no Slurm answers.
def keep_partitions() {
    partitions_file().parent.deleteDir()
    partitions_file().parent.mkdirs()
    partitions_file().text = groovy.json.JsonOutput.toJson('slurm' in workflow.profile.tokenize(',') ? read_partitions(told_by_sinfo()) : [])
}

def told_by_sinfo() {
    try {
        return ['sinfo', '--noheader', '--exact', '--format', '%P|%l|%m'].execute().text
    }
    catch (IOException _none) {
        return ''
    }
}

// Of lines `name|time limit|MB of a node`, one for each kind of node; the default partition ends in *.
def read_partitions(text) {
    return text.readLines().collect { line ->
        def (name, limit, mb) = line.tokenize('|')
        [name: name - '*', is_default: name.endsWith('*'), minutes: minutes(limit), mem_mb: (mb - '+') as long]
    }
}

// Of a limit such as 2-12:00:00, 1:00:00 or 30:00; none is a long time.
def minutes(limit) {
    if (!(limit ==~ /[\d:-]+/)) {
        return Integer.MAX_VALUE
    }
    def (days, clock) = limit.contains('-') ? limit.tokenize('-') : ['0', limit]
    def parts = ([0, 0] + clock.tokenize(':')*.toInteger()).takeRight(3)
    return days.toInteger() * 1440 + parts[0] * 60 + parts[1]
}

// What a task asks for, minutes or mem_mb, and no more than its partition has, which is told once of each process.
def capped(task, what, wanted) {
    def known = partitions_file().exists() ? new groovy.json.JsonSlurperClassic().parseText(partitions_file().text) : []
    def names = task.queue?.tokenize(',')
    def most = known.findAll { place -> names ? place.name in names : place.is_default }.collect { place -> place[what] as long }.max()
    if (most == null || wanted <= most) {
        return wanted
    }
    if (partitions_file().resolveSibling("${task.process}-${what}".replace(':', '-')).toFile().createNewFile()) {
        def unit = what == 'minutes' ? 'minutes' : 'MB'
        log.warn("${task.process} asks for ${most} of ${wanted} ${unit}, the most that its partition has. If that is not enough, give it another process.queue (docs/nextflow.md, Set up a site).")
    }
    return most
}

def partitions_file() {
    return file("${workflow.workDir}/partitions/${workflow.sessionId}/partitions.json")
}

// Reasons of `squeue` that do not pass by waiting, and what to do; ldvae/config/slurm.py has them for Snakemake.
def remedies() {
    return [
        (/PartitionTimeLimit|\w*MaxWall\w*/): "it asks for more time than is allowed: --max_time '12.h', or another queue",
        (/PartitionNodeLimit|BadConstraints|\w*Max(Mem|TRES|GRES|Cpu|Node)\w*Per(Job|Node)\w*/): 'no node has what it asks for: --max_memory or --max_cpus with less, or correct clusterOptions',
        (/InvalidAccount|AccountNotAllowed/): "correct --account in process.clusterOptions",
        (/InvalidQOS|QOSNotAllowed/): "correct --qos in process.clusterOptions",
        (/PartitionDown|PartitionInactive/): 'the partition is closed: another process.queue',
        (/JobHeldAdmin|.*requeued held/): 'it is held: `scontrol release` with its number, or ask your administrators',
    ]
}

// What to say of a line `job|reason|partition|time limit|name|folder` of squeue; null where waiting helps.
def advice(line) {
    def (job, reason, queue, limit, name, folder) = line.tokenize('|')
    def found = folder?.startsWith("${workflow.workDir}/") ? remedies().find { pattern, _text -> reason ==~ pattern } : null
    if (found) {
        return "Slurm job ${job} (${name}) waits for ${reason}, which does not pass; partition ${queue}, ${limit}: ${found.value}. Write it into nextflow.config (docs/nextflow.md, Set up a site), then Ctrl-C and the same command with -resume."
    }
    return null
}

// While the run goes on, look at my jobs that wait, and say this once of each. Ends quietly where there is no squeue.
def tell_of_jobs_that_never_start() {
    def asked = ['squeue', '--me', '--noheader', '--states', 'PENDING', '--format', '%i|%r|%P|%l|%j|%Z']
    def told = []
    def look = {
        def texts = asked.execute().text.readLines().collect { line -> advice(line) }.findAll() - told
        texts.each { text -> log.warn(text) }
        told.addAll(texts)
    }
    new java.util.Timer(true).schedule(look as java.util.TimerTask, 20000, 20000)
}
