"""A config that is edited while its run goes on, with real steps: what the results say is what made them."""

import json
import os
import shutil

import pytest
import yaml
from workplace import Workplace

from ldvae import results as layout
from ldvae.results.state import SETTINGS_OF

pytestmark = pytest.mark.slow


def test_results_of_a_config_edited_in_mid_run_are_of_the_config_that_the_run_started_with(tmp_path, counts):
    """The step select edits every section that later steps read, as a person would who has seen the first result."""
    contrast = {"column": "condition", "group1": "stim", "group2": "ctrl"}
    config = {
        "datasets": {"a": {"input": str(counts)}},
        "qc": {"n_mads": None, "min_genes": 1, "doublets": "off"},
        "setup": {"genes": "all"},
        "train": {"max_epochs": 3},
        "sweep": {"seeds": [0, 1]},
        "de": {"contrasts": [contrast]},
        "report": {"n_genes": 10},
    }
    edited = config | {
        "train": {"max_epochs": 4},
        "programs": {"n_top": 7},
        "annotate": {"resolution": 2.0},
        "de": {"contrasts": [contrast], "delta": 0.5},
        "report": {"n_genes": 5},
    }
    (tmp_path / "edited.yaml").write_text(yaml.safe_dump(edited))
    script = tmp_path / "bin" / "ldvae"
    script.parent.mkdir()
    edit = f'[ "$1" != select ] || cp "{tmp_path}/edited.yaml" "{tmp_path}/config.yaml"'
    script.write_text(f'#!/bin/sh\n{edit}\nexec "{shutil.which("ldvae")}" "$@"\n')
    script.chmod(0o755)
    place = Workplace(tmp_path, config, os.environ | {"PATH": f"{script.parent}{os.pathsep}{os.environ['PATH']}"})
    results = tmp_path / "results" / "a"

    def made_with():
        settings = {verb: json.loads((results / path).read_text())["settings"] for verb, path in SETTINGS_OF.items()}
        epochs = {json.loads(path.read_text())["params"]["max_epochs"] for path in results.glob("runs/*/metrics.json")}
        return settings["programs"]["n_top"], settings["de"]["delta"], epochs

    def said():
        resolved = layout.RESOLVED.read(results)
        return resolved["programs"]["n_top"], resolved["de"]["delta"], {resolved["train"]["max_epochs"]}

    place.snakemake()
    assert made_with() == said() == (30, 0.25, {3})
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["de"]["delta"] == 0.5
    script.write_text(script.read_text().replace(edit, ""))
    place.snakemake()  # the next run is of the edited config
    assert said() == (7, 0.5, {4})
    assert made_with() == (7, 0.5, {3, 4})  # the runs of before stay
    best = layout.BEST.read(results)["runs"]
    assert {json.loads((results / f"runs/{run}/metrics.json").read_text())["epochs"] for run in best} == {4}
    assert not place.pending()
