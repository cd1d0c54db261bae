"""What the rules share: the plan of the config, and how resources follow the size of the input."""

import functools
import json
import math
import os
import re
import shlex
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import yaml
from snakemake.logging import logger

from ldvae import results as layout
from ldvae.config import (
    column_flags,
    expand_checked,
    expand_config,
    flags,
    name_flags,
    named,
    slurm,
    split_datasets,
)
from ldvae.config.frozen import RUN, freeze, frozen
from ldvae.config.inputs import input_files

try:
    if workflow.is_main_process:
        for path in workflow.configfiles:
            load_config(Path(path))  # it sees what Snakemake's reader drops: keys that stand twice
        # As a module, files may come from rules of the workflow around it; Snakemake then says what is missing.
        given, split_notes, _ = split_datasets(config)  # what cannot be split is told below, with all mistakes
        plan = expand_checked(freeze(given), made_elsewhere=len(workflow.modifier_stack) > 1)
        plan.notes.extend(split_notes)
    else:
        # A job of a cluster: the file of the config may have been edited since the run started.
        plan = expand_config(frozen(config))
except InputError as error:
    raise WorkflowError(str(error))

if workflow.is_main_process:
    for note in plan.notes:
        logger.warning(note)

WITH_ACROSS = "--across" if plan.across else "--no-across"
RESOURCES = yaml.safe_load(Path(workflow.source_path("../resources.yaml")).read_text())


wildcard_constraints:
    dataset="|".join(map(re.escape, plan.datasets)),
    run=r"k\d+-s\d+-[0-9a-f]{6}",


onstart:
    # On Slurm. Snakemake would wait for ever for jobs whose state it cannot ask for.
    command = slurm_status_command()
    if command:
        asked = subprocess.run([command, "--noheader", "--name", "none"], capture_output=True, text=True)
        if asked.returncode:
            raise WorkflowError(
                f"`{command}` does not tell the state of jobs: {asked.stderr.strip()}. No job was submitted. If it "
                f"stays so, set `slurm-status-command: {'squeue' if command == 'sacct' else 'sacct'}` in the profile."
            )
        keep_to_status_command()
        # Slurm takes jobs that ask for more than their partition has, and lets them wait for ever.
        problems = [] if chooses_partitions() else slurm.problems(requests(), partitions())
        if problems:
            raise WorkflowError("\n- ".join(["Slurm would never start these jobs. None was submitted.", *problems]))
        threading.Thread(target=tell_of_jobs_that_never_start, daemon=True).start()


onerror:
    # Written here too, since its rule waits for all datasets. It tells what finished, and what failed and why.
    command = ["ldvae", "index", "--results", in_results(), "--datasets", *plan.datasets, WITH_ACROSS]
    written = Path(in_results()).is_dir() and not subprocess.run(command, capture_output=True).returncode
    for dataset in plan.datasets:
        for failure in layout.failures(in_results(dataset)):
            logger.error(f"{dataset}: ldvae {failure['verb']} failed: {failure['message']}")
    if written:
        logger.error(f"What finished, and what failed and why: {in_results(layout.INDEX.path)}")


def image(kind):
    """The image of `--sdm apptainer`: what LDVAE_IMAGE names, else the file that containers/README.md makes."""
    folder = (SOURCE or Path.cwd()) / "containers"
    if re.search(r"\s", str(folder)):  # Snakemake refuses it, but not from here
        folder = Path(os.path.relpath(folder))
    made = [folder / f"ldvae-{name}.sif" for name in (kind, "cpu")]
    path = str(next((path for path in made if path.exists()), made[-1]))
    return os.environ.get("LDVAE_IMAGE") or re.sub(r"\s", "_", path)  # of an image that cannot be named, none is there


def in_results(*parts):
    """A path below the folder of all results, as a person sees it."""
    return placed(Path("<results>", *parts).as_posix())


def options(section):
    """Flags of a step: the options of a section that differ from the defaults."""
    return lambda wildcards: flags(getattr(plan.datasets[wildcards.dataset], section))


def fetched(inputs, finished=False):
    """Files of an input; URLs are fetched by Snakemake. The embedded demo has no file."""
    paths = [path for path in inputs.values() if not path.startswith("demo:")]
    return [path if "://" not in path else of_url(path, finished) for path in paths]


def of_url(url, finished):
    """A file to fetch; where it cannot be fetched now, and what is made of it is there, a file that is not there.

    Snakemake then takes what is there as given, and would otherwise stop.
    """
    if finished and workflow.is_main_process and not reachable(url):
        return f".snakemake/ldvae/not-reachable/{Path(url).name}"
    return storage.http(url)


@functools.cache
def reachable(url):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10):
            return True
    except urllib.error.HTTPError as error:
        return error.code not in (404, 410)
    except OSError:
        logger.warning(f"{url} cannot be reached. What was made of it is used as it is.")
        return False


@functools.cache
def made_otherwise(dataset):
    """Verbs whose results are there and were made with other options, files or runs."""
    found = layout.made_otherwise(in_results(dataset), plan.datasets[dataset])
    told = [verb for verb in found if verb != "plan"]  # which only writes the options down
    if told and workflow.is_main_process:  # Snakemake gives "Forced execution" as the reason
        logger.warning(
            f"{dataset}: made with other options, files or runs than those of the config: {', '.join(told)}."
        )
    return found


def make_again_if_made_otherwise(verb, dataset):
    """Where results were copied without Snakemake's records, or a default has changed, Snakemake knows nothing of it."""
    if workflow.is_main_process and verb in made_otherwise(dataset):
        make_again(in_results(dataset, layout.outputs(verb)[0].path))


def planned_before(wildcards):
    """No files, but a reason to write down the plan again."""
    make_again_if_made_otherwise("plan", wildcards.dataset)
    return []


def scored_before(wildcards):
    """No files, but a reason to score cells again: those that are there were scored with other options."""
    of = {"projection": wildcards.projection}
    summary = in_results(wildcards.dataset, layout.PROJECTED_SUMMARY.path.format(**of))
    if workflow.is_main_process and layout.records_others(Path(summary), projection(wildcards).project):
        make_again(in_results(wildcards.dataset, layout.outputs("project")[0].path.format(**of)))
    return []


def compared_before(wildcards):
    """No files, but a reason to compare datasets again: others were compared, or with other options."""
    summary, across = Path(in_results(layout.ACROSS_SUMMARY.path)), plan.across
    if workflow.is_main_process and across and layout.records_others(summary, across.config, datasets=across.datasets):
        make_again(in_results(layout.outputs("across")[0].path))
    return []


def indexed_before(wildcards):
    """No files, but a reason to write the index again: it has other datasets, or was written where a job had failed."""
    others = dict(datasets=list(plan.datasets), across=bool(plan.across))
    reports = [in_results(name, layout.REPORT_SUMMARY.path) for name in plan.datasets]
    reports += [in_results(layout.ACROSS_SUMMARY.path)] if plan.across else []
    unfinished = not all(Path(path).exists() for path in reports)
    if workflow.is_main_process and (
        unfinished or layout.records_others(Path(in_results(layout.INDEX_RECORD.path)), **others)
    ):
        make_again(in_results(layout.INDEX.path))
    return []


def counts_files(wildcards):
    name = wildcards.dataset
    make_again_if_made_otherwise("qc", name)
    filtered = Path(in_results(name, layout.FILTERED.path))
    return fetched(plan.datasets[name].inputs, filtered.exists() and "qc" not in made_otherwise(name))


def beside_counts(inputs, genome):
    """Files that are read with an input or in its folder, so that a changed one reruns the step."""
    paths = [path for path in inputs.values() if "://" not in path]
    return [file for path in paths for file in input_files(path, genome) if file != path]


def projection(wildcards):
    return plan.datasets[wildcards.dataset].projections[wildcards.projection]


def files(section):
    """Files that the options of a section name, so that a changed file reruns the step."""
    return lambda wildcards: [path for _, path in named(getattr(plan.datasets[wildcards.dataset], section), "file")]


def names_of_inputs(wildcards):
    return name_flags(plan.datasets[wildcards.dataset].inputs)


def columns(wildcards):
    """Flags of the columns that qc needs and setup defines."""
    return column_flags(plan.datasets[wildcards.dataset].setup)


def inputs(verb):
    """Files of the results folder that a verb reads, as ldvae.results lists them."""

    def found(wildcards):
        make_again_if_made_otherwise(verb, wildcards.dataset)
        dataset = plan.datasets[wildcards.dataset]
        files = layout.inputs(verb, dataset)
        paths = [
            (file, f"<results>/{wildcards.dataset}/{path}")
            for file in files
            for path in layout.paths([file], list(dataset.runs))
        ]
        stays = verb == "annotate" and programs_stay(wildcards.dataset)
        return [ancient(path) if stays and file.writer == "programs" else path for file, path in paths]

    return found


@functools.cache
def programs_stay(name):
    """Whether scores and loadings of programs that are there stay as they are: at most the lists of genes (n_top) change.

    Snakemake would otherwise run all that reads any file of the step programs. What else changes them is among the params
    of annotate, in case it was interrupted.
    """
    results = Path(in_results(name))
    configured = json.loads(json.dumps(plan.datasets[name].programs.model_dump()))
    summary = layout.PROGRAMS_SUMMARY.at(results)
    try:
        made = json.loads(summary.read_text()).get("settings") or json.loads(layout.RESOLVED.at(results).read_text())
        made = made.get("programs", made)
        remade = made["n_top"] != configured["n_top"]
        newer = layout.ANNOTATED.at(results).stat().st_mtime >= summary.stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    same = made | {"n_top": None} == configured | {"n_top": None}
    return same and (newer or not remade) and not is_forced("programs")


def programs_but_for_lists(name):
    """Options of the step programs but for that of the lists of genes, which the report alone reads."""
    programs = plan.datasets[name].programs
    return shlex.join(flags(programs.model_copy(update={"n_top": type(programs)().n_top})))


# What `snakemake --report` shows, and where.
SHOWN = {
    layout.PAGE: ("report", "0 report", "the report"),
    layout.VIOLINS: ("qc_violins", "1 quality control", "metrics by batch"),
    layout.SCATTER: ("qc_scatter", "1 quality control", "genes against counts"),
    layout.TOP_GENES: ("top_genes", "4 programs", "table of the top genes"),
    layout.PROGRAMS: ("programs", "4 programs", "table of the programs"),
}
# Its sections by the first word of the name of a figure.
SECTIONS = {
    "training": "2 training",
    "kl": "2 training",
    "choice": "3 choice of the model",
    "fit": "5 fit",
    "de": "6 differential expression",
}


def outputs(verb, dataset="{dataset}", run="{run}"):
    """Files of the results folder that a verb writes."""
    return [declared(file, f"<results>/{dataset}/{file.path}".replace("{run}", run)) for file in layout.outputs(verb)]


def declared(file, path):
    """An output as Snakemake wants it told: what is a folder, and what its report shows."""
    if file == layout.FIGURES:
        return report(
            directory(path),
            patterns=["{figure,(?!qc_).+}.svg"],  # the step qc has its own
            caption="../report/figure.rst",
            category="{dataset}",
            subcategory=lambda wildcards: SECTIONS.get(wildcards.figure.split("_")[0], "4 programs"),
            labels=lambda wildcards: {"content": wildcards.figure.replace("_", " ")},
        )
    if file in SHOWN:
        caption, section, content = SHOWN[file]
        labels = {"content": content}
        return report(
            path, caption=f"../report/{caption}.rst", category="{dataset}", subcategory=section, labels=labels
        )
    return directory(path) if file.is_folder else path


def results_of(verb):
    """The results folder that a verb writes to, wherever a module has put it."""
    return lambda wildcards, output: str(layout.outputs(verb)[0].results_of(output[0]))


def beside(results, name):
    """A folder beside that of all results, such as checkpoints."""
    return Path(results).parent.parent / name


def compute(wildcards):
    return plan.datasets[wildcards.dataset].compute


def gpus(dataset):
    """GPUs of a training job: one for each of its processes."""
    compute = plan.datasets[dataset].compute
    return 0 if compute.device == "cpu" else compute.processes


def launcher(threads):
    """What starts a training: srun, where a profile spreads it over several tasks of Slurm (`mpi: srun`); else nothing.

    `env` is a command that does nothing but call another.
    """
    mpi, tasks = (set_for("train", resource) for resource in ("mpi", "tasks"))
    return f"{mpi} --ntasks {tasks or 1} --cpus-per-task {threads}" if mpi else "env"


@functools.cache
def partitions():
    """What the partitions of this Slurm have."""
    return slurm.partitions()


@functools.cache
def most_of_partition(step, what):
    """The most minutes or MB of memory that a job of a step can get in its partition on Slurm."""
    if slurm_status_command() is None:
        return math.inf
    known = partitions()
    places = known.values() if chooses_partitions() else slurm.usable(partition_of(step), known)
    return max((getattr(place, what) for place in places), default=math.inf)


@functools.cache
def tell_of_limit(step, what, wanted, most):
    """Say once that a job of a step asks for less than it should."""
    unit = "MB" if what == "mem_mb" else "minutes"
    logger.warning(
        f"{step}: asks for {most} of {wanted} {unit}, the most that its partition has. If that is not enough, name "
        f"another one: `set-resources: {{{step}: {{slurm_partition: …}}}}` in {slurm.PROFILE}."
    )


def asked(step, what, limit, dataset=None, runs=None):
    """What a job asks for by the size of its work, doubled at each attempt, up to what config and partition allow."""

    def amount(wildcards, input, attempt):
        base, per_mb = RESOURCES[step][what]
        work = per_mb * input.size_mb
        found = plan.datasets[dataset or wildcards.dataset]
        if (step, what) == ("train", "minutes"):
            # setup writes its summary with the counts.
            results = layout.COUNTS.results_of(input[0])
            here = [found.runs[run] for run in runs or [wildcards.run]]
            values = sum(layout.values_to_train(results, run.train) for run in here)
            work = RESOURCES[step]["minutes_per_1e9_values"] * values / 1e9 or work * len(here)
            base *= len(here)
        wanted = base + work
        if large := RESOURCES[step].get(f"{what}_large"):
            wanted = min(wanted, large[0] + large[1] * input.size_mb)
        if (step, what) == ("train", "mem_mb"):
            wanted *= -(-found.compute.processes // int(set_for("train", "nodes") or 1))  # each reads the counts
        wanted, allowed = int(wanted * 2 ** (attempt - 1)), limit(found.compute)
        most = most_of_partition(step, what)
        if attempt == 1 and min(wanted, allowed) > most:
            tell_of_limit(step, what, min(wanted, allowed), int(most))
        return int(min(wanted, allowed, most))

    return amount


def memory(step, **job):
    """MB of memory that a job of a step asks for."""
    return asked(step, "mem_mb", lambda compute: compute.max_mem_mb, **job)


def minutes(step, **job):
    """Minutes that a job of a step asks for."""
    return asked(step, "minutes", lambda compute: compute.max_runtime, **job)


def tell_of_jobs_that_never_start():
    """While the run goes on, look at the jobs that wait, and say once of each that it waits for what never comes."""
    told = set()
    while True:
        time.sleep(20)
        mine = [job for job in slurm.pending() if job.folder == os.getcwd()]
        for job, text in slurm.never_start(mine).items():
            if job not in told:
                logger.error(text)
                told.add(job)


def training(dataset, run):
    """Flags of a training: its name and what defines the run, and no more."""
    run = plan.datasets[dataset].runs[run]
    return ["--run", run.id, "--seed", str(run.seed), *flags(run.model), *flags(run.train)]


def checkpoint_of(results, run):
    """Folder of the checkpoint of a run: outside of the outputs, which Snakemake removes."""
    return str(beside(results, "checkpoints") / Path(results).name / run)


def packs(dataset):
    """Runs of a dataset that share a job, by the name of the pack.

    Those of one setting whose seeds are neighbors: a new value of a sweep joins no pack of other settings.
    """
    found = {}
    for run in dataset.runs.values():
        found.setdefault(f"{run.setting}-{run.seed // dataset.compute.runs_per_job}", []).append(run.id)
    return found


def pack_commands(dataset, runs):
    """Commands that fit several runs in turn. One that fails does not stop the others; Slurm's signal stops them all.

    The exit code is 2 if a run met a mistake of the user.
    """

    def commands(wildcards, input, output):
        results = results_of("train")(wildcards, output)
        lines = ["failed=0", "trap 'exit 143' TERM"]
        for run in runs:
            kept = ["--checkpoint", checkpoint_of(results, run), "--keep-checkpoint"]
            command = ["ldvae", "train", "--results", results, *kept, *training(dataset, run)]
            lines.append(f"$launcher {shlex.join(command)} $compute || {{ code=$?; [ $failed = 2 ] || failed=$code; }}")
        return "\n".join([*lines, "exit $failed"])

    return commands


packed = {name: packs(dataset) for name, dataset in plan.datasets.items() if dataset.compute.runs_per_job > 1}


def of_all(verb):
    """Files of the results of the compared datasets that a verb over datasets reads."""
    names = plan.across.datasets if plan.across else []
    files = [file for file in layout.inputs(verb) if not file.path.startswith("across/")]
    return [f"<results>/{name}/{file.path}" for name in names for file in files]
