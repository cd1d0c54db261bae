"""The pipeline under a real Nextflow: what runs, what runs again, what is written where, what happens to mistakes.

Most tests run the commands as they are with stubs for results (`Pipeline.quick`), so that they test the pipeline alone.
"""

import copy
import json
import re
import subprocess

import pytest
import yaml
from pipelines import BIN, ROOT, SMALL

from ldvae import results as layout
from ldvae.config import ComputeConfig

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
    assert [re.sub("[0-9a-f]{6}$", "", run) for run in runs] == ["k10-s0-", "k10-s1-"]
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
    assert f"{pipeline.folder}/results/index.html" in done.text


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
    assert all(line in done.text for line in said.splitlines())
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


def test_a_mistake_ends_its_dataset_alone_with_its_message_and_is_not_repeated(pipeline):
    pipeline.configure(**small())
    pipeline.quick(
        'if [[ $1 == qc && "$*" == *"--dataset one "* ]]; then echo "ldvae qc: no cell is left." >&2; exit 2; fi'
    )
    done = pipeline.run("--config", "config.yaml")
    assert done.code != 0
    assert "LDVAE:QC (one) failed:\nldvae qc: no cell is left.\n" in done.text
    assert "The reports:" not in done.text
    failed = [row for row in done.trace if row["status"] == "FAILED"]
    assert [(row["tag"], row["exit"], row["attempt"]) for row in failed] == [("one", "2", "1")]
    assert done.ran() == STEPS | {"INDEX": 1}


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
    (tables / "gene list.txt").write_text("g1\n")
    (tables / "gene sets.gmt").write_text("set\t\tg1\n")
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


def test_the_syntax_is_strict(engine):
    done = subprocess.run(
        [ROOT / "tests" / "nextflow" / "nextflow", "lint", "main.nf", "workflow", "nextflow.config"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "15 files had no errors" in done.stdout


def test_every_step_of_the_snakemake_workflow_has_its_process():
    rules = {path.stem for path in (ROOT / "workflow" / "rules").glob("*.smk")} - {"common"}
    processes = {path.stem for path in (ROOT / "workflow" / "processes").glob("*.nf")} - {"resources", "index"}
    assert rules == processes


def test_the_limits_of_a_job_are_those_of_the_config():
    limits = re.search(
        r"resourceLimits = \[memory: (\d+)\.GB, time: (\d+)\.h\]", (ROOT / "nextflow.config").read_text()
    )
    assert int(limits[1]) * 1000 == ComputeConfig.max_mem_mb
    assert int(limits[2]) * 60 == ComputeConfig.max_runtime


def test_the_schema_describes_every_parameter():
    schema = json.loads((ROOT / "nextflow_schema.json").read_text())
    described = {name: entry for group in schema["$defs"].values() for name, entry in group["properties"].items()}
    block = re.search(r"^params \{\n(.*?)^\}", (ROOT / "nextflow.config").read_text(), re.DOTALL | re.MULTILINE)
    defaults = dict(re.findall(r"(\w+) +?= ['\"](.*)['\"]", block[1]))
    assert {name: entry["default"] for name, entry in described.items()} == defaults
    assert all(entry["description"] for entry in described.values())


def test_results_are_those_of_the_run_that_finished_last(pipeline):
    """A, then B, then A again, with -resume: the tasks of A are cached, and their results are published again."""
    pipeline.quick()
    results, written = pipeline.folder / "results", []
    changes = ({}, {"de": {"delta": 0.5}, "qc": {"min_genes": 10}, "sweep": {"seeds": [0]}}, {})
    for number, change in enumerate(changes):
        pipeline.configure(**small() | change)
        assert pipeline.run("--config", "config.yaml", "-resume").code == 0, number
        # A stub in JSON tells the command that wrote it.
        written.append({path.relative_to(results): path.read_text() for path in results.glob("*/**/*.json")})
    first, other, last = written
    assert first == last
    assert {path.parts[1] for path in first if first[path] != other.get(path)} >= {"qc", "de", "resolved.json"}
