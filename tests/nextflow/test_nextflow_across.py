"""The comparison of datasets under a real Nextflow: staged where the verb finds it, and told on the front page."""

import copy

import pytest
from pipelines import REPORTED, SMALL

from ldvae import results as layout

pytestmark = pytest.mark.nextflow


def test_datasets_are_compared_once_their_programs_are_made(pipeline):
    pipeline.configure(**copy.deepcopy(SMALL), across={"compare": ["two", "one"], "min_similarity": 0.4})
    done = pipeline.run("--config", "config.yaml", "-stub-run")
    assert done.code == 0, done.text
    assert done.ran()["ACROSS"] == 1
    results = pipeline.folder / "results"
    assert [path for path in layout.layout(["across"], []) if not (results / path).exists()] == []
    told = layout.ACROSS_SUMMARY.at(results).read_text()
    assert "--datasets two one --min-similarity 0.4" in told


def test_the_verb_finds_what_each_dataset_made(pipeline):
    hook = 'if [ "$1" = across ]; then ls results/*/qc/filtered.h5ad results/*/programs/model.npz > staged.txt; fi'
    pipeline.quick(hook)
    pipeline.configure(**copy.deepcopy(SMALL), across={"compare": ["all"]})
    done = pipeline.run("--config", "config.yaml")
    assert done.code == 0, done.text
    (task,) = (row["workdir"] for row in done.trace if row["process"].endswith(":ACROSS"))
    staged = (pipeline.folder / task / "staged.txt").read_text().split()
    expected = ["qc/filtered.h5ad", "programs/model.npz"]
    assert sorted(staged) == sorted(f"results/{name}/{path}" for path in expected for name in ("one", "two"))


def test_a_comparison_that_fails_is_told_and_the_reports_of_the_datasets_stay(pipeline):
    pipeline.quick(
        """
        case "$1 $*" in
            across*) mkdir -p results/failures
                printf '{"verb": "across", "command": ["across"], "message": "too few genes", "code": 2, "run": ""}' \\
                    > results/failures/across.json
                exit 2 ;;
            index*) exec ldvae "$@" ;;
        esac
        """
        + REPORTED
    )
    pipeline.configure(**copy.deepcopy(SMALL), across={"compare": ["all"]})
    done = pipeline.run("--config", "config.yaml")
    assert done.code == 1, done.text
    assert done.ran("FAILED") == {"ACROSS": 1}  # once
    results = pipeline.folder / "results"
    assert "too few genes" in (results / layout.INDEX.path).read_text()
    assert "too few genes" in done.text
    assert all((results / name / layout.PAGE.path).exists() for name in ("one", "two"))
