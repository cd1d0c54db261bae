"""Batches of every kind: they train, are saved, loaded and asked for; and come in checkpoints of scvi-tools."""

import datetime
import json
from decimal import Decimal
from fractions import Fraction
from uuid import UUID

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from ldvae import InputError, LinearSCVI
from ldvae.categories import decoded, encoded

VALUES = {
    "text": ["a", "b", "c"],
    "numbers": [0, 1, 2],
    "int8": np.array([0, 1, 2], dtype=np.int8),
    "floats": [0.5, 1.5, np.float32(2.5)],
    "booleans": [False, True, False],
    "intervals": pd.IntervalIndex.from_breaks([0.0, 1.5, 3.0, 4.5]),
    "whole intervals": pd.IntervalIndex.from_breaks([0, 10, 20, 30], closed="left"),
    "intervals of time": pd.interval_range(pd.Timestamp("2020-01-01"), periods=3),
    "timestamps": pd.Timestamp("2020-01-01 03:04:05.000000006") + pd.to_timedelta([0, 1, 2], unit="D"),
    "timestamps in seconds": np.array(["1400-01-01", "2020-02-01", "2021-01-01"], dtype="M8[s]"),
    "timestamps in Berlin": pd.to_datetime(["2020-01-01", "2020-07-01", "2021-01-01"]).tz_localize("Europe/Berlin"),
    "durations": pd.to_timedelta([1, 2, 3], unit="h"),
    "months": pd.PeriodIndex(["2020-01", "2020-02", "2021-01"], freq="M"),
    "quarters": pd.PeriodIndex(["2020Q1", "2020Q2", "2021Q1"], freq="Q"),
    "dates": [datetime.date(2020, 1, day) for day in (1, 2, 3)],
    "times of day": [datetime.time(hour) for hour in (1, 2, 3)],
    "decimals": [Decimal(1) / 3, Decimal(2) / 3, Decimal(1)],
    "fractions": [Fraction(1, 3), Fraction(2, 3), Fraction(1)],
    "mixed": ["a", 1, 2.5],
    "nullable numbers": pd.array([1, 2, 3], dtype="Int64"),
    "nullable text": pd.array(["x", "y", "z"], dtype="string"),
}


@pytest.mark.filterwarnings("ignore:.*not sortable", "ignore:.*Transforming to str index:UserWarning")
@pytest.mark.parametrize("kind", VALUES)
def test_what_trains_can_be_saved_and_loaded_with_its_data(kind, tmp_path):
    adata = AnnData(sparse.csr_matrix(np.random.default_rng(0).poisson(2.0, (60, 10)).astype(np.float32)))
    values = VALUES[kind]
    adata.obs["run"] = pd.Series([values[i % 3] for i in range(60)], index=adata.obs_names).astype("category")
    LinearSCVI.setup_anndata(adata, batch_key="run", categorical_covariate_keys=["run"])
    model = LinearSCVI(adata, n_hidden=8, n_latent=2, seed=0)
    model.train(1, enable_progress_bar=False)
    model.save(tmp_path / "model")
    model.save(tmp_path / "model", prefix="b_", overwrite=True, save_anndata=True)
    batches = list(model.get_batch_loadings().columns)
    expected = model.get_normalized_expression(transform_batch=[batches[0]], give_mean=True)
    for loaded in (LinearSCVI.load(tmp_path / "model", adata.copy()), LinearSCVI.load(tmp_path / "model", prefix="b_")):
        assert [type(value) for value in loaded._registry.categories["batch"]] == [
            type(encoded_and_back(value)) for value in model._registry.categories["batch"]
        ]
        assert list(loaded.get_batch_loadings().columns) == batches
        found = loaded.get_normalized_expression(transform_batch=[batches[0]], give_mean=True)
        np.testing.assert_array_equal(found, expected)


COLUMNS = {  # as they stand in obs, not made categories of
    "nullable floats": pd.array([0.5, 1.5, 2.5] * 20, dtype="Float64"),
    "objects of numpy": pd.Series([np.int64(1), np.int64(2), np.int64(3)] * 20, dtype=object).to_numpy(),
    "large numbers": pd.Series([2**70, 1, 2] * 20, dtype=object).to_numpy(),
    "pairs": pd.Series([("a", 1), ("b", 2), ("c", 3)] * 20).to_numpy(),
    "a number and its text": pd.Series([1, "1", "b"] * 20, dtype=object).to_numpy(),
    "complex": np.array([1j, 2j, 3j] * 20),
    "uuids": pd.Series([UUID(int=1), UUID(int=2), UUID(int=3)] * 20).to_numpy(),
    "fractions": pd.Series([Fraction(1, 3), Fraction(2, 3), Fraction(1)] * 20).to_numpy(),
}


@pytest.mark.filterwarnings("ignore:.*not sortable", "ignore:.*Transforming to str index:UserWarning")
@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_that_h5ad_has_no_place_for_are_saved_with_the_data_and_exported(kind, tmp_path):
    adata = AnnData(np.random.default_rng(0).poisson(2.0, (60, 10)).astype(np.float32))
    adata.obs["run"] = COLUMNS[kind]
    LinearSCVI.setup_anndata(adata, batch_key="run")
    model = LinearSCVI(adata, n_hidden=8, n_latent=2, seed=0)
    model.train(1, enable_progress_bar=False)
    model.save(tmp_path / "model", save_anndata=True)
    model.export_scvi_tools(tmp_path / "exported")
    expected = model.get_latent_representation()
    batches = model._registry.categories["batch"]
    mapping = model.adata_manager.get_state_registry("batch").categorical_mapping
    assert mapping.shape == (3,)
    for loaded in (LinearSCVI.load(tmp_path / "model"), LinearSCVI.load(tmp_path / "exported", adata)):
        assert loaded._registry.categories["batch"] == batches
        np.testing.assert_allclose(loaded.get_latent_representation(), expected, atol=1e-6)


def test_a_path_that_leads_through_a_file_and_a_prefix_with_folders_are_refused(tmp_path):
    adata = AnnData(np.random.default_rng(0).poisson(2.0, (60, 10)).astype(np.float32))
    LinearSCVI.setup_anndata(adata)
    model = LinearSCVI(adata, n_hidden=8, n_latent=2, seed=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a part of this path is a file"):
        model.save(tmp_path / "file" / "model")
    with pytest.raises(InputError, match="beginning of a file name"):
        model.save(tmp_path / "model", prefix="a/b")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def encoded_and_back(value):
    return decoded(json.loads(json.dumps(encoded(value))))


@pytest.mark.parametrize("kind", VALUES)
def test_every_value_comes_back_from_json_equal(kind):
    for value in VALUES[kind]:
        assert encoded_and_back(value) == value


def test_values_that_no_file_could_hold_are_refused_before_training():
    adata = AnnData(np.random.default_rng(0).poisson(2.0, (60, 10)).astype(np.float32))
    adata.obs["run"] = pd.Series([frozenset([i % 3]) for i in range(60)], index=adata.obs_names)
    with pytest.raises(InputError, match=r"obs\['run'\]: categories hold frozenset.*astype\(str\)"):
        LinearSCVI.setup_anndata(adata, batch_key="run")


CHECKPOINTS = {
    "date": datetime.date(2020, 1, 1),
    "decimal": Decimal(0),
    "interval": pd.Interval(-0.003, 1.0),
    "period": pd.Period("2020-01", "M"),
    "timestamp": pd.Timestamp("2020-01-01"),
    "timestamp_tz": pd.Timestamp("2020-01-01", tz="Europe/Berlin"),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints_of_scvi_tools_with_such_batches_load(kind, reference, tmp_path):
    model = LinearSCVI.load(reference / "batches" / kind)
    batches = model._registry.categories["batch"]
    assert batches[0] == CHECKPOINTS[kind]
    assert type(batches[0]) is type(CHECKPOINTS[kind])
    adata = AnnData(np.random.default_rng(0).poisson(2.0, (9, 12)).astype(np.float32))
    adata.var_names = model.get_var_names()
    adata.obs["b"] = pd.Series([batches[i % 3] for i in range(9)], index=adata.obs_names)
    model.adata = adata
    assert np.isfinite(model.get_latent_representation()).all()
    model.save(tmp_path / "model")
    assert LinearSCVI.load(tmp_path / "model")._registry.categories["batch"] == batches
