"""What rests on undocumented interfaces of Snakemake; SNAKEMAKE_PYTHON names the Python of another version."""

import json
import os
import re
import shutil

import pytest
from workplace import Workplace, write_module

from ldvae.config import expand_config


@pytest.fixture
def place(tmp_path, config, stubs):
    """One dataset; `ldvae` writes stubs and notes each call."""
    script = tmp_path / "bin" / "ldvae"
    script.parent.mkdir()
    script.write_text(
        f"""#!/bin/sh
        echo "$@" >>"{tmp_path}/calls.txt"
        exec "{shutil.which("ldvae", path=stubs["PATH"])}" "$@"
        """.replace(" " * 8, "")
    )
    script.chmod(0o755)
    config = {"datasets": {"a": {**config["datasets"]["a"]}, "b": "demo:pbmc68k"}, "sweep": {"seeds": [0, 1]}}
    return Workplace(tmp_path, config, stubs | {"PATH": f"{script.parent}{os.pathsep}{stubs['PATH']}"})


def fail(place, verb, dataset, code, of_run=""):
    """Let a verb end with an exit code for one dataset (and one run), as the real one does."""
    script = place.folder / "bin" / "ldvae"
    results = place.folder / "results" / dataset
    failure = (
        f'{{"verb": "{verb}", "command": ["{verb}", "{of_run}"], "message": "because", "code": {code}, "run": "%s"}}'
    )
    lines = script.read_text().splitlines()
    lines.insert(
        2,
        f'case "$* " in "{verb} --results results/{dataset} "*{of_run}*) mkdir -p "{results}/failures"; '
        f'printf \'{failure}\' "$LDVAE_RUN" >"{results}/failures/{verb}.json"; exit {code};; esac',
    )
    script.write_text("\n".join(lines) + "\n")


def module(place):
    """Let a workflow of its own use this one, with a prefix."""
    place.snakefile = write_module(place.folder, place.snakefile.parent / "workflow" / "Snakefile")


@pytest.mark.parametrize(("code", "attempts"), [(2, 1), (1, 3)])
def test_a_mistake_of_the_user_is_not_tried_again_and_other_failures_are(place, code, attempts):
    fail(place, "setup", "a", code)
    targets = [f"results/{dataset}/setup/counts.h5ad" for dataset in "ab"]
    said = place.snakemake("--retries", "2", "--keep-going", *targets, check=False)
    calls = (place.folder / "calls.txt").read_text().splitlines()
    assert sum(call.startswith("setup --results results/a") for call in calls) == attempts
    assert said.count("Trying to restart") == attempts - 1
    assert "a: ldvae setup failed: because" in said
    assert (place.folder / targets[1]).exists()  # the other dataset goes on


def mended(place):
    """Let all verbs succeed again."""
    script = place.folder / "bin" / "ldvae"
    script.write_text("".join(line for line in script.read_text().splitlines(True) if "failures" not in line))


def test_a_run_after_one_that_failed_makes_what_is_missing(place):
    place.config |= {"datasets": {"a": place.config["datasets"]["a"]}}
    place.write()
    fail(place, "setup", "a", 1)
    said = place.snakemake("--keep-going", "--quiet", "all", check=False)
    assert said.count("a: ldvae setup failed: because") == 1
    assert said.count("What finished, and what failed and why: results/index.html") == 1
    mended(place)
    assert {"setup", "report", "index"} <= only_rules(place.pending())
    place.snakemake()
    assert not place.pending()
    place.config["setup"] = {"n_top_genes": 7}
    place.write()
    fail(place, "setup", "a", 1)
    place.snakemake("--keep-going", check=False)
    mended(place)
    assert {"setup", "report", "index"} <= only_rules(place.pending())


@pytest.mark.thorough
def test_a_pack_with_a_mistake_of_the_user_is_not_tried_again_and_its_other_runs_are_trained(place):
    place.config |= {"datasets": {"a": place.config["datasets"]["a"]}, "compute": {"runs_per_job": 2}}
    place.write()
    runs = list(expand_config(place.config).datasets["a"].runs)
    fail(place, "train", "a", 2, of_run=runs[0])
    place.snakemake("--retries", "1", "trained", check=False)
    calls = (place.folder / "calls.txt").read_text().splitlines()
    assert [sum(call.startswith("train ") and run in call for call in calls) for run in runs] == [1, 1]


def test_what_ends_at_train_ends_at_packs(place):
    place.config["datasets"]["b"] = {"input": "demo:pbmc68k", "compute": {"runs_per_job": 2}}
    place.write()
    assert only_rules(place.pending("--omit-from", "train")) == {"plan", "qc", "setup"}
    module(place)
    planned = only_rules(place.pending("mine_all", "--until", "mine_train", "--configfile", "config.yaml"))
    assert {re.sub(r"_b_k.*", "_b_PACK", rule) for rule in planned} == {
        "mine_qc",
        "mine_setup",
        "mine_train",
        "mine_train_b_PACK",
    }


def only_rules(pending):
    return {name for name in pending if ":" not in name}


def planned_packs(said, prefix=""):
    """What a dry run says of the packs of trainings, each by itself."""
    return [block for block in said.split("\nrule ")[1:] if block.startswith(f"{prefix}train_")]


@pytest.mark.thorough
def test_packs_follow_what_is_set_for_train(place):
    """Two datasets of two seeds, in a pack each: by name as in a clone, and with the prefix of a module."""
    place.config["compute"] = {"runs_per_job": 2}
    place.write()
    for prefix in ("", "mine_"):
        train, more = f"{prefix}train", []
        if prefix:
            module(place)
            more = ["--configfile", "config.yaml"]
        said = place.snakemake(
            "-n", f"{prefix}trained", "--set-resources", f"{train}:mem_mb=1234", "--set-threads", f"{train}=2",
            "--prioritize", train, *more,
        )  # fmt: skip
        packs = planned_packs(said, prefix)
        assert len(packs) == 2
        assert all("mem_mb=1234" in pack and "threads: 2" in pack and "priority: highest" in pack for pack in packs)


@pytest.mark.thorough
def test_packs_are_made_again_with_train(place):
    place.config["datasets"]["b"] = {"input": "demo:pbmc68k", "compute": {"runs_per_job": 2}}
    place.write()
    place.snakemake("trained")
    assert not place.pending("trained")
    forced = place.pending("trained", "--forcerun", "train")
    assert (forced["train:a"], sum(forced.values())) == (2, 2 * 2 + 2 * 1 + 1), forced
    module(place)
    forced = place.pending("mine_trained", "--forcerun", "mine_train", "--configfile", "config.yaml")
    assert forced["mine_train:a"] == 2
    assert len([name for name in forced if re.fullmatch(r"mine_train_b_k.*-0:b", name)]) == 1, forced


def test_a_training_in_several_processes_asks_for_as_many_gpus_and_follows_the_tasks_of_slurm(place):
    place.config |= {"datasets": {"b": "demo:pbmc68k"}, "compute": {"processes": 4}}
    place.write()

    def trainings(*arguments):
        said = place.snakemake("-n", "trained", "--set-resources", "train:mem_mb=1", *arguments)
        return [block for block in said.split("\nrule ")[1:] if block.startswith("train:")]

    found = trainings()
    assert len(found) == 2
    assert all("gpu=4" in block and "processes=4" in block and "launcher=env" in block for block in found)
    for block in trainings("train:mpi=srun", "train:tasks=2"):
        assert "launcher=srun --ntasks 2 --cpus-per-task 1" in block
    module(place)
    of_module = ["--configfile", "config.yaml", "--set-resources", "mine_train:mpi=srun", "mine_train:tasks=2"]
    assert "launcher=srun --ntasks 2 --cpus-per-task 1" in place.snakemake("-n", "mine_trained", *of_module)


@pytest.mark.thorough
def test_results_under_the_prefix_or_the_pathvars_of_a_module_are_looked_at(place):
    """Those that were made with other options are made again, without Snakemake's records."""
    module(place)
    text = place.snakefile.read_text()
    for given, results in (('prefix: "under"', "under/results"), ('pathvars: results="elsewhere"', "elsewhere")):
        place.snakefile.write_text(text.replace("    config:", f"    {given}\n    config:"))
        wanted = [f"{results}/a/setup/counts.h5ad", f"{results}/a/runs.tsv", "--configfile", "config.yaml"]
        place.snakemake(*wanted)
        (place.folder / results / "a/qc/summary.json").write_text(json.dumps({"settings": {"min_genes": 9}}))
        shutil.rmtree(place.folder / ".snakemake")
        assert place.pending(*wanted)["mine_qc:a"] == 1
