"""One dataset per level of a column: names that are safe for paths, levels that are too small, early mistakes."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from ldvae.config import expand_checked, expand_config, split_datasets
from ldvae.config.frozen import freeze, frozen
from ldvae.errors import InputError
from ldvae.io import read_input

SIZES = {"P 1/a": 120, "p_1_a": 110, "2": 130, "small": 20}


@pytest.fixture
def counts(tmp_path):
    patient = np.repeat([*SIZES, "none"], [*SIZES.values(), 5])
    obs = pd.DataFrame({"patient": pd.Series(patient).where(patient != "none")})
    obs["condition"] = np.where(np.arange(len(obs)) % 2, "stim", "ctrl")
    obs.index = [f"cell{i}" for i in range(len(obs))]
    rng = np.random.default_rng(0)
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(1.0, (len(obs), 30)).astype(np.float32)), obs=obs)
    adata.write_h5ad(tmp_path / "all.h5ad")
    return str(tmp_path / "all.h5ad")


def test_each_level_becomes_a_dataset_whose_name_is_safe_for_paths(counts):
    given = {"input": counts, "split_by": "patient", "model": {"n_latent": 4}, "qc": {"min_counts": 2}}
    plan = expand_checked({"datasets": {"tumors": given, "other": counts}})
    assert list(plan.datasets) == ["tumors-2", "tumors-P_1_a", "tumors-p_1_a-2", "other"]
    qc = plan.datasets["tumors-P_1_a"].qc
    assert (qc.subset_key, qc.subset, qc.min_counts) == ("patient", ["P 1/a"], 2)
    assert plan.datasets["tumors-2"].model.n_latent == 4
    assert plan.datasets["other"].qc.subset_key is None


def test_levels_and_cells_that_are_left_out_are_told_before_the_run(counts):
    notes = " ".join(expand_checked({"datasets": {"t": {"input": counts, "split_by": "patient"}}}).notes)
    assert "datasets.t.split_by: small (20) has fewer than 100 cells and is left out" in notes
    assert "left out, without a patient: 5 cells" in notes
    few = {"input": counts, "split_by": {"column": "patient", "min_cells": 20}}
    assert "t-small" in expand_checked({"datasets": {"t": few}}).datasets


def test_levels_can_be_left_out_by_name(counts):
    split = {"column": "patient", "leave_out": ["small", 2]}  # a number, as YAML reads it
    plan = expand_checked({"datasets": {"t": {"input": counts, "split_by": split}}})
    assert list(plan.datasets) == ["t-P_1_a", "t-p_1_a-2"]
    assert plan.notes[0].endswith("left out (split_by.leave_out): 150 cells of 2, small.")
    assert not any("fewer than" in note for note in plan.notes)


def test_the_cells_of_a_level_alone_are_read(counts):
    adata = read_input([counts], subset_key="patient", subset=["2"])
    assert adata.n_obs == 130
    assert list(adata.obs["patient"].cat.categories) == ["2"]
    header = read_input([counts], subset_key="patient", subset=["2"], counts=False)
    assert header.n_obs == 130
    with pytest.raises(InputError, match="has no level 'P1'"):
        read_input([counts], subset_key="patient", subset=["P1"])
    with pytest.raises(InputError, match="no level of 'patient' is named; it has"):
        read_input([counts], subset_key="patient")
    with pytest.raises(InputError, match=r"no obs column 'patients'.*patient"):
        read_input([counts], subset_key="patients", subset=["2"])


def test_what_a_level_lacks_is_told_for_that_level(counts):
    contrast = {"column": "patient", "group1": "2"}
    with pytest.raises(InputError, match=r"datasets\.t-2\..*'patient' has 1 group"):
        expand_checked({"datasets": {"t": {"input": counts, "split_by": "patient", "de": {"contrasts": [contrast]}}}})


@pytest.mark.parametrize(
    ("split_by", "message"),
    [
        ("patients", "split_by: no obs column 'patients'. Did you mean 'patient'?"),
        ({"column": "patient", "min_cels": 5}, "split_by.min_cels: there is no such key. Did you mean 'min_cells'?"),
        ({"column": "patient", "min_cells": 0}, "split_by.min_cells: expected a whole number of at least 1, found 0"),
        (
            {"column": "patient", "min_cells": 500},
            "split_by: obs column 'patient' has 4 levels for 385 cells, of which 0 have 500 cells or more",
        ),
        (
            {"column": "patient", "leave_out": ["smal"]},
            "split_by.leave_out: obs column 'patient' has no level 'smal'; it has 2, P 1/a, p_1_a, small. Did you mean",
        ),
        ({"column": "patient", "leave_out": [["a"]]}, "split_by.leave_out: expected levels of the column as a list"),
        ({"min_cells": 5}, "split_by: expected the name of an obs column, found None"),
    ],
)
def test_mistakes_are_told_with_their_place(counts, split_by, message):
    with pytest.raises(InputError) as caught:
        expand_checked({"datasets": {"t": {"input": counts, "split_by": split_by}}})
    assert f"datasets.t.{message}" in str(caught.value)


def test_a_file_that_is_not_there_cannot_be_split(tmp_path):
    entry = {"input": str(tmp_path / "later.h5ad"), "split_by": "patient"}
    with pytest.raises(
        InputError, match=r"split_by: the levels of 'patient' are read from the input before.*not there"
    ):
        expand_checked({"datasets": {"t": entry}}, made_elsewhere=True)


def test_a_level_with_the_name_of_a_dataset_is_refused(counts):
    with pytest.raises(InputError, match=r"datasets\.t-2: is also a level of t"):
        expand_checked({"datasets": {"t": {"input": counts, "split_by": "patient"}, "t-2": counts}})


def test_jobs_read_the_datasets_and_not_the_data(counts, tmp_path, monkeypatch):
    config = {"datasets": {"t": {"input": counts, "split_by": "patient"}}}
    monkeypatch.delenv("LDVAE_CONFIGS", raising=False)
    monkeypatch.setenv("LDVAE_RUN", "")
    given, _, problems = split_datasets(config)
    freeze(given, tmp_path / "frozen")
    assert not problems
    assert list(expand_config(frozen(config)).datasets) == list(expand_checked(config).datasets)
    with pytest.raises(InputError, match=r"datasets\.t\.split_by: its levels are in the data"):
        expand_config(config)
