"""Every option of the config, changed after a finished run: which steps run again.

The files of the finished run are stubs, which Snakemake is told to take for made.
"""

import json
import os
import re
import shutil

import pytest
from changed_options import EXCEPT, NAMES, RERUN, changed, differences, not_in_the_matrix, write_config
from workplace import Workplace

from ldvae import results as layout
from ldvae.config import STEPS, describe, expand_config, resolved, runs_table
from ldvae.results.state import SETTINGS_OF

pytestmark = pytest.mark.thorough

# What a Nextflow process is handed over for the options of a section.
HANDED_OVER = {"model": "runs", "train": "runs", "sweep": "runs"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, stubs):
    """A finished run of one dataset for each option, all with the options of the defaults."""
    folder = tmp_path_factory.mktemp("changes")
    config = write_config(folder)
    config["datasets"]["unchanged"] = config["datasets"][NAMES[0]]
    place = Workplace(folder, config, stubs)
    for name, of in expand_config(config).datasets.items():
        verbs = ["plan", "qc", "setup", "train", "select", "programs", "annotate", "de", "report"]
        for file in layout.layout(verbs, list(of.runs)):
            path = folder / "results" / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        (folder / "results" / name / layout.RUNS_TABLE.path).write_text(runs_table(of))
        (folder / "results" / name / layout.RESOLVED.path).write_text(json.dumps(resolved(of)))
    (folder / "results" / layout.INDEX.path).write_text("stub")
    place.snakemake("--touch", "--forceall", "--quiet")
    return place


@pytest.fixture(scope="module")
def copied(finished, tmp_path_factory):
    """The same results in another place, without Snakemake's records; each step has written down its options."""
    folder = tmp_path_factory.mktemp("copied") / "place"
    shutil.copytree(finished.folder, folder, ignore=shutil.ignore_patterns(".snakemake"))
    for name, of in expand_config(finished.config).datasets.items():
        results = folder / "results" / name
        for verb, path in SETTINGS_OF.items():
            write(results / path, json.dumps({"settings": getattr(of, verb).model_dump()}))
        write(layout.SELECT_RUNS.at(results), "".join(f"{run}\n" for run in ["run", *of.runs]))
    return Workplace(folder, finished.config, finished.environment)


def write(path, text):
    """Write a file and leave its time as it was."""
    before = path.stat()
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def planned_steps(place):
    """Rules that would run, by dataset."""
    found = {}
    for name in place.pending():
        rule, _, of = name.partition(":")
        if of:
            found.setdefault(of, set()).add(re.sub(r"^train_.+_k\d+-.*", "train", rule))  # a pack
    return found


def test_every_option_of_every_section_is_in_the_matrix():
    assert not not_in_the_matrix(), "add another value of them to CHANGED"


def found(place):
    """What is missing and superfluous after a change of each option."""
    again = Workplace(place.folder, changed(place.config), place.environment)
    expected = {"unchanged": set()}
    for name in NAMES:
        section = name.partition(".")[0]
        expected[name] = {*EXCEPT.get(name, RERUN.get(section, [])), *(["plan"] if section != "compute" else [])}
    return differences(expected, planned_steps(again))


def test_a_changed_option_reruns_the_steps_that_depend_on_it_and_no_others(finished):
    assert not (others := found(finished)), json.dumps(others, indent=1)


def test_results_copied_without_snakemakes_records_rerun_the_same_steps(copied):
    """But for packs: their commands are not among what the results say of themselves."""
    others = found(copied)
    assert others.pop("compute.runs_per_job")["missing"] == sorted(RERUN["train"])
    assert not others, json.dumps(others, indent=1)


def test_a_changed_option_is_handed_to_the_nextflow_processes_of_its_steps_alone(tmp_path, monkeypatch):
    """What a process is handed over decides whether it runs again; tests/nextflow has the same with a real Nextflow."""
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path)
    before, after = (
        {of["dataset"]: of for of in describe(expand_config(it))["datasets"]} for it in (config, changed(config))
    )
    for name in NAMES:
        section, one, other = name.partition(".")[0], before[name], after[name]
        handed_over = {key for key in ("runs", "inputs", "contrasts", "resolved", "compute") if one[key] != other[key]}
        handed_over |= {step for step in STEPS for kind in ("flags", "tables") if one[kind][step] != other[kind][step]}
        expected = {HANDED_OVER.get(section, section)} | ({"resolved"} if section != "compute" else set())
        if name in ("setup.batch_key", "setup.labels_key"):
            expected |= {"qc"}
        if name == "de.contrasts":
            expected |= {"contrasts"}
        assert handed_over == expected, name
