"""AnnData in: what is accepted, in every storage, and what each mistake is told."""

import warnings

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from anndata import AnnData, read_h5ad
from anndata.io import sparse_dataset, write_elem
from scipy import sparse

from ldvae import InputError, LinearSCVI
from ldvae.data import BackedCounts, Counts, library_prior, read_counts, register, registered, split_cells


def make_adata(n_obs: int = 60, n_vars: int = 15, seed: int = 0) -> AnnData:
    random = np.random.default_rng(seed)
    adata = AnnData(sparse.csr_matrix(random.poisson(1.0, (n_obs, n_vars)).astype(np.float32)))
    adata.obs["lane"] = np.where(np.arange(n_obs) % 3, "b", "a")
    adata.obs["age"] = random.normal(size=n_obs)
    adata.obs["factor"] = random.uniform(0.5, 2, n_obs)
    return adata


def counts_of(adata: AnnData, **keys) -> Counts | BackedCounts:
    register(adata, **keys)
    return read_counts(adata, registered(adata))


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("make", [np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, sparse.csc_array])
def test_every_storage_gives_the_same_counts(make, integer):
    dense = make_adata().X.toarray()
    adata = AnnData(make(dense.astype(np.int32 if integer else np.float64)))
    counts = counts_of(adata)
    np.testing.assert_array_equal(counts.x.toarray(), dense)
    assert counts.x.dtype == np.float32


def test_csr_counts_share_their_memory_with_adata():
    adata = make_adata()
    assert np.shares_memory(counts_of(adata).x.data, adata.X.data)


def test_backed_counts_are_read_like_counts_in_memory(tmp_path):
    adata = make_adata(n_obs=1500)
    adata.write_h5ad(tmp_path / "counts.h5ad")
    memory, backed = counts_of(adata), counts_of(read_h5ad(tmp_path / "counts.h5ad", backed="r"))
    assert isinstance(backed, BackedCounts)
    torch.testing.assert_close(backed.covariates.library, memory.covariates.library)
    rows = np.random.default_rng(0).permutation(1500)[:700]
    for mine, theirs in zip(memory.minibatches(rows, 64), backed.minibatches(rows, 64), strict=True):
        torch.testing.assert_close(mine[0].minibatch(mine[1])[0], theirs[0].minibatch(theirs[1])[0])
    for source in (memory, backed):
        seen = [c.minibatch(r)[0] for c, r in source.minibatches(rows, 64, np.random.default_rng(1))]
        order = np.lexsort(torch.cat(seen).numpy().T)
        expected = adata.X[rows].toarray()
        np.testing.assert_array_equal(torch.cat(seen).numpy()[order], expected[np.lexsort(expected.T)])
        assert not np.array_equal(torch.cat(seen).numpy(), expected)


def shuffled_and_split(x: sparse.csr_matrix) -> sparse.csr_matrix:
    """The same matrix, the genes of a cell in no order, and each count stored as two entries."""
    coo = x.tocoo()
    row = np.tile(coo.row, 2)
    at = np.random.default_rng(0).permutation(len(row))
    at = at[np.argsort(row[at], kind="stable")]
    data = np.concatenate([coo.data // 2, coo.data - coo.data // 2])
    return sparse.csr_matrix((data[at], np.tile(coo.col, 2)[at], 2 * x.indptr), shape=x.shape)


@pytest.mark.parametrize(
    ("make", "dtype", "index", "compression"),
    [
        (sparse.csr_matrix, np.float32, np.int32, None),
        (sparse.csr_matrix, np.float64, np.int64, "gzip"),
        (shuffled_and_split, np.float32, np.int32, "gzip"),
        (shuffled_and_split, np.int32, np.int64, None),
        (shuffled_and_split, np.uint8, np.int32, "lzf"),
        (sparse.csc_matrix, np.float32, np.int32, None),
        (sparse.csr_matrix.toarray, np.int32, np.int32, "gzip"),
    ],
)
@pytest.mark.parametrize("store", ["h5ad", "zarr"])
@pytest.mark.filterwarnings("ignore:zarr v3 autosharding")
def test_every_storage_on_disk_gives_the_same_counts(store, make, dtype, index, compression, tmp_path):
    adata = make_adata(n_obs=1500)
    expected = adata.X.toarray()
    x = make(adata.X).astype(dtype)
    if store == "h5ad":
        file = h5py.File(tmp_path / "x.h5", "w")
        write_elem(file, "x", x, dataset_kwargs={"compression": compression})
    else:
        file = zarr.open_group(tmp_path / "x.zarr", mode="w")
        write_elem(file, "x", x)
    if sparse.issparse(x):
        for name in ("indices", "indptr"):
            stored = file["x"][name][...]
            del file["x"][name]
            write_elem(file["x"], name, stored.astype(index))
        np.testing.assert_array_equal(file["x/indices"][...], x.indices)  # as they are: in no order, and repeated
    adata.X = sparse_dataset(file["x"]) if sparse.issparse(x) else file["x"]
    counts = counts_of(adata)
    np.testing.assert_allclose(counts.covariates.library[:, 0], np.log(expected.sum(axis=1)), rtol=1e-6)
    for rows in ([3, 4, 5, 6], [1499, 0, 700, 70, 71]):
        np.testing.assert_array_equal(counts.minibatch(np.array(rows))[0], expected[rows])
    everything = counts.read(np.arange(1500)).x
    assert everything.has_canonical_format
    assert (everything.dtype, everything.indices.dtype) == (np.float32, np.int32)


def test_cells_in_order_are_read_a_buffer_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("ldvae.data.counts.BLOCK_ROWS", 16)
    monkeypatch.setattr("ldvae.data.counts.BUFFER_BLOCKS", 4)
    adata = make_adata(n_obs=1000)
    adata.write_h5ad(tmp_path / "counts.h5ad")
    backed = counts_of(read_h5ad(tmp_path / "counts.h5ad", backed="r"))
    rows = np.random.default_rng(0).permutation(1000)[:333]
    minibatches = list(backed.minibatches(rows, 15))
    assert [len(chosen) for _, chosen in minibatches] == [15] * 22 + [3]
    assert {len(counts) for counts, _ in minibatches} == {60, 33}
    seen = torch.cat([counts.minibatch(chosen)[0] for counts, chosen in minibatches])
    np.testing.assert_array_equal(seen, adata.X[rows].toarray())


def test_covariates_are_coded_and_the_library_is_the_log_total():
    adata = make_adata()
    counts = counts_of(adata, batch_key="lane", categorical_covariate_keys=["lane"], continuous_covariate_keys=["age"])
    known = counts.covariates
    expected = (adata.obs["lane"] == "b").to_numpy().astype(int)
    np.testing.assert_array_equal(known.batch_index, expected)
    np.testing.assert_array_equal(known.categorical[:, 0], expected)
    np.testing.assert_allclose(known.continuous[:, 0], adata.obs["age"], rtol=1e-6)
    np.testing.assert_allclose(known.library[:, 0], np.log(adata.X.sum(axis=1)).A1, rtol=1e-6)
    np.testing.assert_array_equal(adata.obs["_scvi_batch"], expected)


def test_size_factors_take_the_place_of_totals_at_their_scale():
    adata = make_adata()
    library = counts_of(adata, size_factor_key="factor").covariates.library[:, 0]
    scale = adata.X.sum() / adata.obs["factor"].sum()
    np.testing.assert_allclose(library.exp(), adata.obs["factor"] * scale, rtol=1e-5)


def test_library_prior_is_mean_and_population_variance_by_batch():
    adata = make_adata()
    counts = counts_of(adata, batch_key="lane")
    means, variances = library_prior(counts, 2)
    logs = pd.Series(np.log(adata.X.sum(axis=1)).A1).groupby(adata.obs["lane"].to_numpy())
    np.testing.assert_allclose(means, logs.mean(), rtol=1e-6)
    np.testing.assert_allclose(variances, logs.var(ddof=0), rtol=1e-5)


def test_the_variance_of_a_batch_is_left_alone_unless_it_is_far_below_that_of_the_others():
    adata = make_adata(n_obs=300)
    logs = np.log(adata.X.sum(axis=1)).A1
    adata.obs["lane"] = ["alone", *["pair"] * 2, *["same"] * 100, *["rest"] * 197]
    dense = adata.X.toarray()
    dense[3:103] = dense[3]
    adata.X = sparse.csr_matrix(dense)
    logs = pd.Series(np.log(dense.sum(axis=1)))
    with pytest.warns(UserWarning, match="fewer than 3 cells"):
        counts = counts_of(adata, batch_key="lane")
    with pytest.warns(UserWarning, match=r"hardly vary in 2 of 4 batches: alone \(1 cell\), same \(100 cells\)"):
        _, variances = library_prior(counts, 4, ["alone", "pair", "rest", "same"])
    own = logs.groupby(adata.obs["lane"].to_numpy()).var(ddof=0)
    within = (2 * own["pair"] + 197 * own["rest"] + 100 * own["same"]) / 299
    expected = {"alone": within * 5 / 6, "pair": own["pair"], "rest": own["rest"], "same": within * 5 / 105}
    np.testing.assert_allclose(variances, [expected[name] for name in ("alone", "pair", "rest", "same")], rtol=1e-5)
    assert variances[2] == np.float32(
        torch.from_numpy(logs[103:].to_numpy(copy=True)).float().double().var(correction=0)
    )


def test_setup_survives_a_copy_and_a_file(tmp_path):
    adata = make_adata()
    register(adata, batch_key="lane")
    adata.write_h5ad(tmp_path / "a.h5ad")
    for other in (adata.copy(), read_h5ad(tmp_path / "a.h5ad")):
        assert registered(other).categories["batch"] == ("a", "b")


def test_split_is_the_references_permutation():
    split = split_cells(100, seed=3)
    order = np.random.RandomState(3).permutation(100)
    np.testing.assert_array_equal(split.validation, order[:10])
    np.testing.assert_array_equal(split.train, order[10:])
    split = split_cells(100, train_size=0.5, validation_size=0.2, shuffle=False)
    assert [len(part) for part in split] == [50, 20, 30]
    assert split.validation[0] == 50


@pytest.mark.parametrize(("train_size", "validation_size"), [(0, None), (1.2, None), (0.5, 1.0), (0.9, 0.2)])
def test_impossible_splits_are_refused(train_size, validation_size):
    with pytest.raises(InputError, match=r"train_size|validation_size"):
        split_cells(10, train_size, validation_size)


def test_a_share_of_less_than_one_cell_trains_on_none_and_is_refused():
    with pytest.raises(InputError, match=r"train_size is 0\.0001, which of 300 cells is less than one"):
        split_cells(300, 0.0001)
    assert len(split_cells(300, 1 / 300).train) == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1.0, "negative values.*scaled"),
        (0.5, "non-integer values.*normalized"),
        (np.nan, "NaN values"),
        (np.inf, "infinite values"),
    ],
)
def test_entries_that_are_no_counts_are_named(value, message):
    adata = make_adata()
    adata.X = adata.X.toarray()
    adata.X[3, 7] = value
    with pytest.raises(InputError, match=message) as error:
        register(adata)
    assert "gene 7" in str(error.value)
    assert "layer" in str(error.value)


def test_layer_is_used_and_a_missing_one_is_named():
    adata = make_adata()
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X * 0.3
    assert isinstance(counts_of(adata, layer="counts"), Counts)
    with pytest.raises(InputError, match=r"spliced is not a valid key in adata.layers. Found: counts"):
        register(adata, layer="spliced")


def mistake(name: str) -> tuple[AnnData, dict]:
    adata = make_adata()
    match name:
        case "view":
            return adata[:30], {}
        case "duplicates":
            adata.var_names = ["x", *adata.var_names[:-2], "x"]
        case "missing key":
            return adata, {"batch_key": "zz"}
        case "missing values":
            adata.obs["lane"] = adata.obs["lane"].where(np.arange(60) > 4)
            return adata, {"batch_key": "lane"}
        case "text":
            return adata, {"continuous_covariate_keys": ["lane"]}
        case "no cells":
            return adata[:0].copy(), {}
        case "size factor":
            adata.obs["factor"] = 0.0
            return adata, {"size_factor_key": "factor"}
    return adata, {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("view", "is a view"),
        ("duplicates", r"occur more than once.*x.*var_names_make_unique"),
        ("missing key", "zz not found in adata.obs.*lane"),
        ("missing values", "5 missing values"),
        ("text", "must be numeric"),
        ("no cells", "0 cells"),
        ("size factor", "above zero"),
    ],
)
def test_every_mistake_of_the_setup_has_its_message(name, message):
    adata, keys = mistake(name)
    with pytest.raises(InputError, match=message):
        register(adata, **keys)


def test_rare_categories_and_empty_cells_are_warned_of():
    adata = make_adata()
    adata.obs["rare"] = ["once"] + ["often"] * 59
    with pytest.warns(UserWarning, match="once has fewer than 3 cells"):
        register(adata, batch_key="rare")
    adata.X = sparse.diags_array((np.arange(60) != 5).astype(np.float32)) @ adata.X
    with pytest.warns(UserWarning, match="1 of 60 cells have no counts"):
        register(adata)


@pytest.fixture(scope="module")
def model() -> LinearSCVI:
    adata = make_adata()
    LinearSCVI.setup_anndata(adata, batch_key="lane")
    return LinearSCVI(adata, n_latent=3, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[:, :10].copy(), "5 of the model's 15 genes are missing"),
        (lambda a: a[:, ::-1].copy(), "not in the model's order"),
        (lambda a: AnnData(a.X, a.obs.assign(lane="new"), a.var), "has not seen new; it knows a, b"),
        (lambda a: AnnData(a.X, var=a.var), "lane not found in adata.obs"),
    ],
)
def test_other_data_must_have_the_models_genes_and_categories(model, change, message):
    with pytest.raises(InputError, match=message):
        model.adata = change(make_adata())


def test_a_view_of_other_data_can_be_queried(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(read_counts(make_adata()[:20], model._registry)) == 20
