"""Config A, then B, then A again with -resume, with real steps: the results are those of the last run, to the byte."""

import hashlib

import pytest

pytestmark = pytest.mark.nextflow


def test_the_results_are_those_of_the_config_that_ran_last(pipeline):
    sections = {
        "datasets": {"one": {"input": "demo:pbmc68k", "de": {"contrasts": [{"column": "bulk_labels"}]}}},
        "setup": {"genes": "all"},
        "sweep": {"seeds": [0]},
        "train": {"max_epochs": 2},
    }
    results = pipeline.folder / "results"

    def run(**changes):
        pipeline.configure(**sections | changes)
        done = pipeline.run("--config", "config.yaml", "-resume")
        assert done.code == 0, done.text
        files = (path for path in results.rglob("*") if path.is_file() and "pipeline_info" not in path.parts)
        return done.ran(), {
            path.relative_to(results): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)
        }

    _, first = run()
    ran, other = run(de={"delta": 0.5}, report={"n_genes": 5})
    assert ran == {"DE": 1, "REPORT": 1, "INDEX": 1}
    changed = {str(path) for path in first if other[path] != first[path]}
    assert {"one/resolved.json", "one/report.html", "one/de/summary.json"} <= changed
    ran, last = run()
    assert (ran, last) == ({}, first)
