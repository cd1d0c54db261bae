"""The pipeline under a real Nextflow: what runs, what runs again, what is written where, what happens to mistakes.

Most tests run the commands as they are with stubs for results (`Pipeline.quick`), so that they test the pipeline alone.
"""

import copy
import json
import os
import re
import subprocess

import anndata
import pytest
import yaml
from downloads import READ_ONLY, WITHOUT_SUFFIX, served
from matrix_market import write_matrix
from pipelines import BIN, REPORTED, ROOT, SMALL

from ldvae import results as layout
from ldvae.config import ComputeConfig
from ldvae.steps import VERBS

pytestmark = pytest.mark.nextflow

ONCE = dict.fromkeys(("SELECT", "PROGRAMS", "ANNOTATE", "DE", "REPORT"), 1)
STEPS = {"QC": 1, "SETUP": 1, "TRAIN": 2} | ONCE  # tasks of a dataset


def twice(steps):
    return {name: 2 * count for name, count in steps.items()} | {"INDEX": 1}


def small(**changes):
    return copy.deepcopy(SMALL) | changes


def test_a_stub_run_writes_every_file_of_the_layout(pipeline):
    config = small()
    config["datasets"]["two"]["project"] = {"same": "demo:pbmc68k"}
    pipeline.configure(**config)
    done = pipeline.run(
        "--config", "config.yaml", "-stub-run", "-with-report", "-with-timeline", "-with-dag", "dag.html"
    )
    assert done.code == 0, done.text
    assert done.ran() == twice(STEPS) | {"PROJECT": 1}
    assert (pipeline.folder / "results/two/project/same/scores.tsv.gz").exists()
    runs = sorted(path.name for path in (pipeline.folder / "results" / "one" / "runs").iterdir())
    assert [re.sub("[0-9a-f]{6}$", "", run) for run in runs] == ["k14-s0-", "k14-s1-"]
    verbs = ("plan", "qc", "setup", "train", "select", "programs", "annotate", "de", "report")
    expected = layout.layout(verbs, runs)
    for name in ("one", "two"):
        missing = [path for path in expected if not (pipeline.folder / "results" / name / path).exists()]
        assert not missing
    assert (pipeline.folder / "results" / "index.html").exists()
    versions = yaml.safe_load((pipeline.folder / "results" / "pipeline_info" / "versions.yml").read_text())
    assert set(versions) == {f"LDVAE:{name}" for name in [*STEPS, "PROJECT", "INDEX"]}
    assert versions["LDVAE:TRAIN"]["ldvae"]
    assert list(pipeline.folder.glob("report-*.html"))
    assert list(pipeline.folder.glob("timeline-*.html"))
    assert (pipeline.folder / "dag.html").exists()


def test_without_arguments_it_runs_the_demo(pipeline):
    pipeline.quick()
    done = pipeline.run()
    assert done.code == 0, done.text
    assert done.ran() == STEPS | {"TRAIN": 5, "INDEX": 1}
    assert (pipeline.folder / "results" / "pbmc68k" / "report.html").exists()
    assert (pipeline.folder / "results" / "multiqc").is_dir()


def test_only_what_depends_on_a_change_runs_again(pipeline):
    pipeline.quick()
    arguments = ["--config", "config.yaml", "-resume"]
    config = small()
    path = pipeline.configure(**config)
    assert pipeline.run(*arguments).ran() == twice(STEPS)

    done = pipeline.run(*arguments)
    assert (done.ran(), done.ran("CACHED")) == ({}, twice(STEPS))

    path.write_text("# A comment.\n" + yaml.safe_dump(dict(reversed(config.items())), sort_keys=False))
    assert pipeline.run(*arguments).ran() == {}

    pipeline.configure(**config, de={"delta": 0.5})
    assert pipeline.run(*arguments).ran() == {"DE": 2, "REPORT": 2, "INDEX": 1}

    config["datasets"]["one"]["qc"] = {"min_genes": 10}
    pipeline.configure(**config)
    assert pipeline.run(*arguments).ran() == STEPS | {"INDEX": 1}

    pipeline.configure(**config | {"sweep": {"seeds": [0, 1, 2]}})
    done = pipeline.run(*arguments)
    assert (done.ran(), done.ran("CACHED")["TRAIN"]) == (twice({"TRAIN": 1} | ONCE), 4)


def test_a_mistake_in_the_config_is_told_before_the_first_job(pipeline):
    config = small(modle={})
    config["datasets"]["one"]["setup"] = {"batch_key": "donor"}
    pipeline.configure(**config)
    done = pipeline.run("--config", "config.yaml")
    checked = subprocess.run(
        [BIN / "ldvae", "check", "config.yaml"], cwd=pipeline.folder, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 2
    said = checked.stderr.removeprefix("ldvae check: ").strip()
    assert "modle" in said
    assert "2 problems in the config" in done.text
    assert all(line in done.text for line in said.splitlines()[1:])
    assert done.code != 0
    assert [row["process"] for row in done.trace] == ["LDVAE:PLAN"]


def test_columns_and_files_that_are_not_there_are_told_before_the_first_job(pipeline):
    config = small()
    config["datasets"]["one"]["setup"] = {"batch_key": "bulk_label"}
    config["datasets"]["two"]["input"] = "missing.h5ad"
    pipeline.configure(**config)
    done = pipeline.run("--config", "config.yaml")
    assert done.code != 0
    assert "bulk_label" in done.text
    assert "missing.h5ad is not there" in done.text
    assert len(done.trace) == 1


def test_a_misspelt_parameter_is_refused(pipeline):
    done = pipeline.run("--confg", "config.yaml")
    assert done.code != 0
    assert "no parameter --confg" in done.text
    assert not done.trace


def test_a_mistake_ends_its_dataset_alone_and_the_index_tells_it(pipeline):
    """Exit code 2 is not repeated; the page and the terminal say what finished and what failed, and why."""
    config = small()
    config["datasets"] |= {"empty": {"input": "demo:pbmc68k", "qc": {"min_genes": 5000}}, "killed": "demo:pbmc68k"}
    pipeline.configure(**config)
    pipeline.quick(
        """
        case "$1 $*" in
            "qc "*"--results empty"* | index*) exec ldvae "$@" ;;
            "setup "*"--results killed"*) echo "almost done" >&2; exit 9 ;;
        esac
        """
        + REPORTED
    )
    done = pipeline.run("--config", "config.yaml")
    assert done.code != 0
    assert "LDVAE:QC (empty) failed:\n" in done.text
    failed = sorted((row["tag"], row["exit"], row["attempt"]) for row in done.trace if row["status"] == "FAILED")
    assert failed == [("empty", "2", "1"), ("killed", "9", "1")]
    assert done.ran() == twice(STEPS) | {"QC": 3}
    page = (pipeline.folder / "results" / "index.html").read_text()
    for said in (page, done.text):
        assert re.search("ldvae qc.*min_genes", said)
        assert "ended with exit code 9 at attempt 1. almost done" in said
    assert "Finished: 2 of 4 datasets." in done.text
    assert f"open {pipeline.folder}/results/index.html" in done.text

    # Once it is right, it is no failure any more.
    config["datasets"] = {name: config["datasets"][name] for name in ("one", "two")}
    pipeline.configure(**config)
    done = pipeline.run("--config", "config.yaml", "-resume")
    assert done.code == 0, done.text
    assert "not finished" not in (pipeline.folder / "results" / "summary.txt").read_text()


def test_where_no_dataset_comes_to_its_end_the_index_tells_why(pipeline):
    pipeline.configure(datasets={"one": {"input": "demo:pbmc68k"}}, sweep={"seeds": [0]})
    pipeline.quick('case $1 in index) exec ldvae "$@" ;; qc) echo "removes all cells" >&2; exit 2 ;; esac')
    done = pipeline.run("--config", "config.yaml")
    assert done.code != 0
    assert done.ran() == {"INDEX": 1}
    assert "removes all cells" in (pipeline.folder / "results" / "index.html").read_text()
    assert "Finished: 0 of 1 dataset." in done.text


@pytest.mark.parametrize("signal", [137, 143])
def test_a_killed_job_is_repeated_with_twice_the_memory_and_time(pipeline, signal):
    pipeline.configure(**small(datasets={"one": SMALL["datasets"]["one"]}, sweep={"seeds": [0]}))
    pipeline.quick(f'if [ $1 = qc ] && mkdir "{pipeline.folder}/once" 2>/dev/null; then exit {signal}; fi')
    done = pipeline.run("--config", "config.yaml")
    assert done.code == 0, done.text
    asked = [
        (int(row["memory"]) / 2**20, int(row["time"]) / 60e3) for row in done.trace if row["process"] == "LDVAE:QC"
    ]
    resources = yaml.safe_load((ROOT / "workflow" / "resources.yaml").read_text())["qc"]
    megabytes, minutes = resources["mem_mb"][0], resources["minutes"][0]  # the demo has no input file
    assert asked == [(megabytes, minutes), (2 * megabytes, 2 * minutes)]


def test_a_training_is_given_what_compute_says_and_asks_for_time_by_its_values(pipeline):
    """50,000 cells times 2,000 genes times 100 epochs, at 2 minutes per 1e9 of them, beside the base of 20."""
    config = small(train={"max_epochs": 100}, compute={"device": "cpu", "threads": 2, "checkpoint_minutes": 3})
    config["datasets"].pop("two")
    pipeline.configure(**config)
    summary = json.dumps({"n_train": 50_000, "n_vars": 2000, "default_epochs": 160})
    pipeline.quick(
        f"""
        trap 'if [ "$verb" = setup ]; then echo '"'"'{summary}'"'"' > "$results/setup/summary.json"; fi' EXIT
        if [ "$1" = train ]; then echo "$@" >> "{pipeline.folder}/train.txt"; fi
        """
    )
    done = pipeline.run("--config", "config.yaml")
    assert done.code == 0, done.text
    asked = {int(row["time"]) / 60e3 for row in done.trace if row["process"].endswith(":TRAIN")}
    assert asked == {20 + 2 * 10}
    called = (pipeline.folder / "train.txt").read_text()
    assert called.count("--checkpoint-minutes 3.0 --device cpu --threads 2 ") == 2


def test_a_job_asks_for_no_more_than_its_partition_has(pipeline):
    """As `sinfo` tells of them: the partition cpu allows 20 hours and has nodes of 2,500 MB, gpu allows 15 minutes."""
    pipeline.configure(**small(datasets={"one": SMALL["datasets"]["one"]}, sweep={"seeds": [0]}))
    pipeline.quick()
    sinfo = pipeline.folder / "quick" / "sinfo"
    sinfo.write_text(
        "#!/bin/sh\nprintf 'cpu*|20:00:00|2500\\ngpu|15:00|9000\\ngpu|15:00|500+\\nbig|infinite|9000\\n'\n"
    )
    sinfo.chmod(0o755)
    done = pipeline.run("--config", "config.yaml", "-profile", "slurm", "-process.executor", "local")
    assert done.code == 0, done.text
    jobs = {row["process"].split(":")[-1]: row for row in done.trace}
    asked = {name: (int(jobs[name]["memory"]) >> 20, int(jobs[name]["time"]) / 60e3) for name in STEPS}
    assert asked["TRAIN"][1] == 15
    assert asked["TRAIN"][0] >= 3000
    assert asked["QC"] == (2500, 20)
    assert asked["DE"][0] == 2500
    told = re.findall(r"LDVAE:(\w+) asks for (\w+) of \w+ (\w+), the most that its partition has", done.text)
    assert sorted(told) == [
        ("ANNOTATE", "2500", "MB"), ("DE", "2500", "MB"), ("QC", "2500", "MB"), ("TRAIN", "15", "minutes"),
    ]  # fmt: skip


def test_a_job_that_is_always_killed_ends_after_three_attempts(pipeline):
    pipeline.configure(**small(datasets={"one": SMALL["datasets"]["one"]}))
    pipeline.quick("if [ $1 = setup ]; then exit 137; fi")
    done = pipeline.run("--config", "config.yaml")
    assert done.code != 0
    assert [row["attempt"] for row in done.trace if row["process"] == "LDVAE:SETUP"] == ["1", "2", "3"]


def test_paths_may_have_spaces_and_start_at_the_folder_of_the_launch(pipeline, tmp_path):
    tables = pipeline.folder / "my tables"
    tables.mkdir()
    for name in ("my counts.h5ad", "other.h5ad"):
        subprocess.run([BIN / "ldvae", "simulate", "--stub", "--output", tables / name], check=True)
    (tables / "gene list.txt").write_text("1\n")  # a gene of the stub
    (tables / "gene sets.gmt").write_text("set\t\t1\n")
    pipeline.configure(
        name="my config.yaml",
        datasets={
            "one": {"input": {"first": "my tables/my counts.h5ad", "second one": "my tables/other.h5ad"}},
            "two": {"input": "my tables/my counts.h5ad"},
        },
        setup={"genes": "list", "gene_list": "my tables/gene list.txt"},
        programs={"gene_sets": ["my tables/gene sets.gmt"]},
        sweep={"seeds": [0]},
    )
    # Every file that a command names is there.
    pipeline.quick(
        f"""
        for argument in "$@"; do
            case "$argument" in
                *.h5ad | *.txt | *.gmt) echo "$1: $argument $(test -s "$argument" && echo is there)" ;;
            esac
        done >> "{pipeline.folder}/files.txt"
        """
    )
    project = tmp_path / "the clone"
    project.symlink_to(ROOT)
    outside = tmp_path / "out side"
    done = pipeline.run("--config", "my config.yaml", "--outdir", outside, script=project)
    assert done.code == 0, done.text
    found = (pipeline.folder / "files.txt").read_text()
    for file in (
        "qc: input1/my counts.h5ad",
        "qc: input2/other.h5ad",
        "setup: gene list.txt",
        "programs: sets1/gene sets.gmt",
    ):
        assert f"{file} is there\n" in found
    assert (outside / "two" / "report.html").exists()

    done = pipeline.run("--config", "my config.yaml", "--outdir", "../rela tive", "-resume", script=project)
    assert done.ran() == {}, done.text
    assert (tmp_path / "rela tive" / "two" / "report.html").exists()


def test_an_input_is_all_its_files(pipeline):
    """Real QC of a folder of Cell Ranger and of a matrix with its tables beside it, again when one of them changes."""
    inputs = [write_matrix(pipeline.folder / name, value=2) for name in ("ten x", "alone")]
    pipeline.quick('if [ $1 = qc ] || [ $1 = project ]; then exec ldvae "$@"; fi')
    pipeline.configure(
        datasets={"a": {"input": "ten x"}, "b": {"input": {"x": "alone/matrix.mtx", "y": "ten x/"}}},
        qc={"min_genes": 1, "min_counts": 1, "min_cells": 1, "n_mads": None, "doublets": "off"},
        sweep={"seeds": [0]},
    )
    arguments = ["--config", "config.yaml", "-resume"]
    done = pipeline.run(*arguments)
    assert done.code == 0, done.text
    filtered = {name: layout.FILTERED.at(pipeline.folder / "results" / name) for name in "ab"}
    totals = {name: anndata.io.read_h5ad(path).X.sum() for name, path in filtered.items()}
    assert totals["b"] == 2 * totals["a"] > 1000

    for number, (path, changed) in enumerate(zip(inputs, (["a", "b"], ["b"]), strict=True), start=3):
        before = path.parent.stat()
        write_matrix(path.parent, value=number)
        os.utime(path.parent, ns=(before.st_atime_ns, before.st_mtime_ns))
        done = pipeline.run(*arguments)
        assert done.code == 0, done.text
        assert (
            sorted(row["tag"] for row in done.trace if ":QC" in row["process"] and row["status"] == "COMPLETED")
            == changed
        )


def test_counts_come_from_urls_without_a_suffix(pipeline):
    """Real QC: what was fetched is known by its content."""
    counts = pipeline.folder / "counts.h5ad"
    subprocess.run([BIN / "ldvae", "simulate", "--output", counts, "--n-obs", "60", "--n-vars", "100"], check=True)
    pipeline.quick('if [ $1 = qc ]; then exec ldvae "$@"; fi')
    with served(counts) as address:
        urls = {name: f"{address}/{path}" for name, path in WITHOUT_SUFFIX.items()}
        pipeline.configure(datasets=urls, qc=READ_ONLY, sweep={"seeds": [0]})
        done = pipeline.run("--config", "config.yaml")
    assert done.code == 0, done.text
    for name in urls:
        assert layout.QC_SUMMARY.read(pipeline.folder / "results" / name)["n_obs_before"] == 60


def test_the_syntax_is_strict(engine):
    done = subprocess.run(
        [ROOT / "tests" / "nextflow" / "nextflow", "lint", "main.nf", "workflow", "nextflow.config"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "18 files had no errors" in done.stdout


def test_every_step_of_the_snakemake_workflow_has_its_process():
    steps = VERBS.keys() - {"index"}  # its rule stands with that of the report
    rules = {path.stem for path in (ROOT / "workflow" / "rules").glob("*.smk")} & steps
    processes = {path.stem for path in (ROOT / "workflow" / "processes").glob("*.nf")} & steps
    assert len(rules) > 8
    assert rules == processes


def parameters() -> dict[str, object]:
    """Parameters of nextflow.config with their defaults."""
    block = re.search(r"^params \{\n(.*?)^\}", (ROOT / "nextflow.config").read_text(), re.DOTALL | re.MULTILINE)
    return {name: yaml.safe_load(value) for name, value in re.findall(r"(\w+) +?= (.*)", block[1])}


def test_the_limits_of_a_job_are_those_of_the_config():
    defaults = parameters()
    assert int(defaults["max_memory"].removesuffix(".GB")) * 1000 == ComputeConfig().max_mem_mb
    assert int(defaults["max_time"].removesuffix(".h")) * 60 == ComputeConfig().max_runtime


def test_the_schema_describes_every_parameter():
    schema = json.loads((ROOT / "nextflow_schema.json").read_text())
    described = {name: entry for group in schema["$defs"].values() for name, entry in group["properties"].items()}
    assert {name: entry["default"] for name, entry in described.items()} == parameters()
    assert all(entry["description"] for entry in described.values())
    assert [entry["$ref"] for entry in schema["allOf"]] == [f"#/$defs/{name}" for name in schema["$defs"]]


def test_help_tells_every_parameter_and_runs_nothing(pipeline):
    done = pipeline.run("--help")
    assert done.code == 0, done.text
    assert all(f"--{name} " in done.text for name in parameters())
    assert not done.trace
    assert "Finished" not in done.text


def test_parameters_may_come_from_a_file_and_from_the_config_of_an_institution(pipeline):
    pipeline.configure(**small(datasets={"one": SMALL["datasets"]["one"]}, sweep={"seeds": [0]}))
    pipeline.quick()
    given = pipeline.folder / "my params.json"
    given.write_text(json.dumps({"config": "config.yaml", "outdir": "else where"}))
    pipeline.site = """
        params {
            config_profile_description = 'An institute'
            max_memory = '3.GB'
            max_cpus = 1
            max_time = '15.min'
        }
        """
    done = pipeline.run("-params-file", given)
    assert done.code == 0, done.text
    asked = {(int(row["memory"]) / 2**30, int(row["time"]) / 60e3) for row in done.trace if ":QC" in row["process"]}
    assert asked == {(3, 15)}
    assert (pipeline.folder / "else where" / "one" / "report.html").exists()

    given.write_text(json.dumps({"confg": "config.yaml"}))
    done = pipeline.run("-params-file", given)
    assert done.code != 0
    assert "no parameter --confg" in done.text


RESOLVED = {  # what each profile sets, as `nextflow config` resolves it
    "standard": {"process.executor = 'local'"},
    "test": {f"params.config = '{ROOT}/tests/nextflow/config.yaml'"},
    "docker": {"docker.enabled = true", "docker.runOptions = '-u $(id -u):$(id -g)'"},
    "podman": {"podman.enabled = true"},
    "apptainer": {"apptainer.enabled = true", "apptainer.autoMounts = true"},
    "singularity": {"singularity.enabled = true", "singularity.autoMounts = true"},
    "conda": {"conda.enabled = true"},
    "gpu": {"process.'withLabel:gpu'.ext.image = 'cuda'"},
    "slurm": {"process.executor = 'slurm'", "executor.queueSize = 100"},
    "docker,gpu": {"docker.enabled = true", "docker.runOptions = '-u $(id -u):$(id -g) --gpus all'"},
    "gpu,docker": {"docker.enabled = true", "docker.runOptions = '-u $(id -u):$(id -g) --gpus all'"},
    "slurm,apptainer,gpu": {"process.executor = 'slurm'", "apptainer.enabled = true", "apptainer.runOptions = '--nv'"},
}


def test_every_profile_resolves(engine, tmp_path):
    declared = re.search(r"^profiles \{\n(.*)^\}", (ROOT / "nextflow.config").read_text(), re.DOTALL | re.MULTILINE)[1]
    names = re.findall(r"^ {4}(\w+) \{", declared, re.MULTILINE)
    assert set(names) == {name for name in RESOLVED if "," not in name}
    asked = re.search(r"Profiles: \$\{\[(.*?)\]", (ROOT / "main.nf").read_text())[1]
    assert {*re.findall(r"\w+", asked), "standard"} == set(names)  # what --help tells
    for names, expected in RESOLVED.items():
        done = subprocess.run(
            [engine, "config", "-flat", "-profile", names, ROOT],
            cwd=tmp_path,
            env=os.environ | {"NXF_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert expected <= set(done.stdout.splitlines()), (names, done.stdout)


# A change of each section of a config, and what then runs. What a step gets from one that ran again is new to it.
LAST = {"REPORT": 1, "INDEX": 1}
AFTER_SELECT = {"PROGRAMS": 1, "ANNOTATE": 1, "DE": 1, "PROJECT": 1} | LAST
AFTER_TRAINING = {"SELECT": 1} | AFTER_SELECT
CHANGES = {
    "qc": ({"min_genes": 10}, {"QC": 1, "SETUP": 1, "TRAIN": 2} | AFTER_TRAINING),
    "setup": ({"test_size": 0.2}, {"SETUP": 1, "TRAIN": 2} | AFTER_TRAINING),
    "model": ({"n_latent": 5}, {"TRAIN": 2} | AFTER_TRAINING),
    "train": ({"lr": 0.02}, {"TRAIN": 2} | AFTER_TRAINING),
    "sweep": ({"seeds": [0, 1, 2]}, {"TRAIN": 1} | AFTER_TRAINING),
    "select": ({"seed": 1}, {"SELECT": 1} | AFTER_SELECT),
    "programs": ({"n_top": 20}, {"PROGRAMS": 1, "ANNOTATE": 1, "PROJECT": 1} | LAST),
    "annotate": ({"resolution": 2.0}, {"ANNOTATE": 1} | LAST),
    "de": ({"delta": 0.5}, {"DE": 1} | LAST),
    "report": ({"n_genes": 10}, LAST),
    "project": ({}, {"PROJECT": 1}),
    "compute": ({"device": "cpu", "threads": 2, "checkpoint_minutes": 1}, {}),
}


def test_a_change_of_each_section_reruns_what_it_must_and_leaves_no_trace_once_it_is_undone(pipeline):
    """Config A, then one that differs in a section, then the next, and A again, all with -resume.

    A stub in JSON tells the command that wrote it. Whatever belongs to other sections is that of A after each run.
    """
    pipeline.quick()
    results = pipeline.folder / "results" / "one"

    def run(section=None):
        config = small(sweep={"seeds": [0, 1]}, train={"max_epochs": 3})
        config["datasets"] = {"one": config["datasets"]["one"] | {"project": {"other": {"input": "demo:pbmc68k"}}}}
        if section == "project":
            config["datasets"]["one"]["project"]["other"]["adjust"] = False
        elif section is not None:
            config[section] = config.get(section, {}) | CHANGES[section][0]
        pipeline.configure(**config)
        done = pipeline.run("--config", "config.yaml", "-resume")
        assert done.code == 0, done.text
        runs = {line.split("\t")[0] for line in (results / "runs.tsv").read_text().splitlines()[1:]}
        files = {path.relative_to(results): path.read_text() for path in results.rglob("*.json")}
        return done.ran(), {
            path: text for path, text in files.items() if path.parts[0] != "runs" or path.parts[1] in runs
        }

    ran, first = run()
    assert ran == STEPS | {"PROJECT": 1, "INDEX": 1}
    for section, (_, expected) in CHANGES.items():
        ran, files = run(section)
        assert ran == expected, section
        own = {"model": "runs", "train": "runs", "sweep": "runs", "report": "report.json"}.get(section, section)
        differing = {path.parts[0] for path in first.keys() | files.keys() if first.get(path) != files.get(path)}
        assert differing - {"resolved.json"} <= {own}, section
        assert differing or section == "compute", section
    ran, last = run()
    assert (ran, last) == ({}, first)
