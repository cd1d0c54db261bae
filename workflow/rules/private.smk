"""All that is used of Snakemake and its plugins without being documented. tests/workflow/test_private.py runs it.

Where a version lacks one of these, the workflow works without: a step that met a mistake of the user is then started
again and ends at once, packs of trainings do not follow the settings of the rule train, and a Slurm that is away for a
while may be asked by sacct.
"""

from snakemake.jobs import Job


def refused(job):
    """Whether the step of a job met a mistake of the user in this run: more memory and time do not help.

    In a pack of trainings, one that did is enough: those that ended otherwise are trained by the run after the correction.
    """
    results = job.params.get("results")
    if results is None or not Path(results).is_dir():
        return False
    pack = job.params.get("pack")
    name = job.wildcards_dict.get("run") or job.wildcards_dict.get("projection")
    names = pack or [name] if pack or name else None
    return any(
        failure["code"] == 2
        and failure["run"] == os.environ.get(RUN)
        and (failure["verb"] == "train" if pack else re.search(rf"(^|_){failure['verb']}$", job.rule.name))
        and (names is None or not set(names).isdisjoint(failure["command"]))
        for failure in layout.failures(results)
    )


_module = workflow.modifier  # this workflow as a part of another; later on, `workflow.modifier` is that of the other

# Exit code 2 is not tried again. Snakemake has one number of retries for all reasons to fail.
if isinstance(getattr(Job, "restart_times", None), property) and not hasattr(Job, "ldvae_asked"):
    restart_times = Job.restart_times.fget
    Job.restart_times = property(lambda job: restart_times(job) and (0 if refused(job) else restart_times(job)))
    Job.ldvae_asked = True


def source_for_pip():
    """What pip installs this very version of ldvae from: its clone, its tag of a repository, or its release."""
    if SOURCE is None:
        here = workflow.current_basedir
        repository = getattr(here, "repo_path", None) or getattr(here, "repo", None)
        address = (
            f"file://{repository}"
            if hasattr(here, "repo_path")
            else f"https://{getattr(here, 'host', '')}/{repository}"
        )
        return f"git+{address}@{here.ref}" if repository else ""
    if (SOURCE / "pyproject.toml").exists():
        return str(SOURCE)
    releases = [path.name for path in SOURCE.parent.glob("ldvae-*.dist-info")]
    return releases[0].removesuffix(".dist-info").replace("-", "==") if len(releases) == 1 else ""


# The scripts in envs/ read it.
os.environ.update(LDVAE_SOURCE=source_for_pip())


def quiet_about_rules():
    """Whether --quiet leaves out the blocks of text on each job, but not everything."""
    return "rules" in quiet_about() and "all" not in quiet_about()


def make_again(path):
    """Let the job run that makes a file, as --forcerun does; for use while Snakemake asks for the inputs of that job."""
    forced = getattr(getattr(workflow, "dag", None), "forcefiles", None)
    if forced is not None:
        forced.add(path)


def placed(path):
    """Where a file such as <results>/kang/report.html is: by the pathvars of the module, under its prefix."""
    variables = getattr(_module, "pathvars", None)
    modifier = getattr(_module, "path_modifier", None)
    if variables is None or modifier is None:
        return plan.path(path.replace("<", "").replace(">", ""))
    return modifier.replace_prefix(variables.apply(path))


def is_forced(rule):
    """Whether --forcerun names a rule."""
    forced = getattr(getattr(workflow, "dag", None), "forcerules", None) or ()
    return _module.modify_rulename(rule) in [one.name for one in forced]


def like_train(pack):
    """Let what --set-resources and --set-threads (or a profile) say of the rule train hold for a pack of trainings."""
    of_pack, of_train = (_module.modify_rulename(name) for name in (pack, "train"))
    for kind in ("_parsed_overwrite_resources", "_parsed_overwrite_threads"):
        overwritten = getattr(workflow.resource_settings, kind, {})
        if of_train in overwritten:
            overwritten.setdefault(of_pack, overwritten[of_train])


def inputs_of_pack(pack):
    """Inputs of a pack, which come when Snakemake knows what the command line says of rules, and chooses no jobs yet.

    What --until, --omit-from, --forcerun and --prioritize say of the rule train then holds for the pack.
    """
    of_pack, of_train = (_module.modify_rulename(name) for name in (pack, "train"))

    def found(wildcards):
        for kind in ("untilrules", "omitrules", "forcerules", "priorityrules"):
            meant = getattr(getattr(workflow, "dag", None), kind, set())  # names, or rules
            meant |= {of_pack for rule in meant if rule == of_train}
            meant |= {workflow.get_rule(of_pack) for rule in meant if getattr(rule, "name", "") == of_train}
        return inputs("train")(wildcards)

    return found


def slurm_status_command():
    """The command by which the plugin asks for the state of jobs; None where another executor runs them."""
    return getattr(workflow.executor_settings, "status_command", None)


def partition_of(rule):
    """The Slurm partitions that a profile or the command line name for a rule, if any."""
    return set_for(rule, "slurm_partition")


def set_for(rule, resource):
    """What a profile or the command line say of a resource of a rule, if anything."""
    settings = workflow.resource_settings
    own = getattr(settings, "_parsed_overwrite_resources", {}).get(_module.modify_rulename(rule), {})
    for resources in (own, getattr(settings, "_parsed_default_resources", {})):
        if resource in resources:
            return resources[resource].raw
    return None


def chooses_partitions():
    """Whether the plugin chooses the partition of each job from a file."""
    return bool(
        getattr(workflow.executor_settings, "partition_config", None) or "SNAKEMAKE_SLURM_PARTITIONS" in os.environ
    )


def requests():
    """What the jobs to submit ask for, as far as it is known before the first one runs."""
    for job in workflow.dag.needrun_jobs():
        if not job.is_local:
            known = {name: value for name, value in job.resources.items() if isinstance(value, int)}
            gpus = known.get("gpu") or int("gpu" in str(job.resources.get("gres", "")))
            gpus = -(-gpus // known.get("nodes", 1))  # of one node
            partition = job.resources.get("slurm_partition")
            yield slurm.Request(job.rule.name, partition, known.get("runtime"), known.get("mem_mb"), job.threads, gpus)


def keep_to_status_command():
    """Ask once for how long Slurm remembers ended jobs.

    While its controller is away, the plugin would otherwise take sacct in place of squeue, accounts of jobs or not.
    """
    import snakemake_executor_plugin_slurm as plugin

    if hasattr(plugin, "get_min_job_age"):  # not in 2.0
        min_job_age = plugin.get_min_job_age()
        plugin.get_min_job_age = lambda: min_job_age
