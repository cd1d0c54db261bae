// Jobs that wait on Slurm for what never comes: Nextflow would wait with them without a word.

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
