"""Every option of the config, changed after a finished run, under a real Nextflow: which processes run again."""

import json

import pytest
from changed_options import EXCEPT, NAMES, RERUN, changed, differences, write_config

pytestmark = pytest.mark.nextflow


def test_a_changed_option_reruns_the_processes_that_depend_on_it_and_no_others(pipeline):
    """As under Snakemake, but that lists of genes (n_top) are part of the folder that ANNOTATE reads."""
    pipeline.quick()
    config = write_config(pipeline.folder)

    def run(config):
        pipeline.configure(**config)
        done = pipeline.run("--config", "config.yaml", "-resume")
        assert done.code == 0, done.text
        found = {}
        for row in done.trace:
            process, name = row["process"].split(":")[-1].lower(), row["tag"].split(" ")[0]
            if name in NAMES and row["status"] == "COMPLETED":
                found.setdefault(name, set()).add(process)
        return found

    assert run(config) == {name: set(RERUN["qc"]) for name in NAMES}
    expected = {}
    for name in NAMES:
        section = name.partition(".")[0]
        steps = RERUN["programs"] if name == "programs.n_top" else EXCEPT.get(name, RERUN.get(section, []))
        expected[name] = set(steps) if section != "compute" else set()
    found = differences(expected, run(changed(config)))
    assert not found, json.dumps(found, indent=1)
