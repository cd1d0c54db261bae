"""Datasets made by split_by, and the comparison of datasets, as rules; steps are stubs."""

import pytest
from workplace import Workplace

from ldvae import results as layout

pytestmark = pytest.mark.thorough


def test_a_split_file_becomes_datasets_that_are_compared(tmp_path, counts, stubs):
    split = {"input": str(counts), "split_by": {"column": "donor", "min_cells": 10}}
    config = {"datasets": {"all": split}, "setup": {"genes": "all"}, "sweep": {"seeds": [0]}}
    place = Workplace(tmp_path, {**config, "across": {"condition_key": "condition"}}, stubs)
    place.snakemake()
    files = place.files()
    assert {f"results/all-{donor}/report.html" for donor in ("d1", "d2")} <= files
    assert {f"results/{path}" for path in layout.layout(["across"], [])} <= files
    assert "logs/across/across.log" in files
    assert not place.pending()
    place.config["across"] = {"condition_key": "condition", "min_similarity": 0.6}
    place.write()
    assert {name for name in place.pending() if ":" not in name} == {"across", "index"}


def test_datasets_are_not_compared_unless_the_config_says_so(tmp_path, config, stubs):
    place = Workplace(tmp_path, config, stubs)
    assert "across" not in place.pending()
    place.config = {**config, "across": {"compare": ["all"]}}
    place.write()
    assert place.pending()["across"] == 1
