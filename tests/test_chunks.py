"""Counts that are read some rows at a time: the same numbers as at once, and nothing finished is lost."""

from __future__ import annotations

import gzip
import sys
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse
from scipy.io import mmwrite

from ldvae import results as layout
from ldvae.config import QcConfig
from ldvae.errors import InputError
from ldvae.io import (
    ChunkedCounts,
    by_rows,
    chunks,
    hdf5,
    mtx,
    read,
    read_input,
    read_table,
    read_without_matrices,
    write_matrices,
)
from ldvae.io.chunks import ChunkedMatrix, LoadedMatrix, StoredMatrix
from ldvae.steps import doublets
from ldvae.steps.qc import qc


@pytest.fixture
def raw(monkeypatch: pytest.MonkeyPatch) -> AnnData:
    """Three donors of 60 cells, mixed in the file, whose types differ in 300 genes; 7 rows are read at once."""
    for module in (chunks, read):
        monkeypatch.setattr(module, "ROWS", 7)
    rng = np.random.default_rng(0)
    rates = rng.lognormal(0, 1.5, (4, 300))
    x = rng.poisson(rates[np.arange(180) % 4]).astype(np.float32)
    obs = pd.DataFrame({"donor": [f"d{i % 3}" for i in range(180)]}, [f"c{i}" for i in range(180)])
    return AnnData(sparse.csr_matrix(x), obs, pd.DataFrame(index=[f"G{i}" for i in range(300)]))


def write_10x(adata: AnnData, path: Path) -> None:
    """A 10x h5 of version 3 with a second genome, whose columns are left out."""
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        x = sparse.csr_matrix(adata.X)
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(x, name).astype(np.int32)
        group["shape"] = adata.shape[::-1]
        group["barcodes"] = adata.obs_names.to_numpy("S")
        group["features/name"] = adata.var_names.to_numpy("S")
        group["features/id"] = adata.var_names.to_numpy("S")
        group["features/feature_type"] = np.full(adata.n_vars, b"Gene Expression")
        group["features/genome"] = np.where(np.arange(adata.n_vars) % 5, b"GRCh38", b"mm10")


def read_twice(paths: list[Path], **options: object) -> tuple[AnnData, ChunkedCounts]:
    """The counts as one matrix, and those that are read by rows, of the same files."""
    whole = read_input(paths, **options)  # type: ignore[arg-type]
    adata = read_input(paths, chunked=True, **options)  # type: ignore[arg-type]
    counts = adata.uns.pop("ldvae_counts")
    assert adata.X is None
    pd.testing.assert_frame_equal(adata.obs, whole.obs)
    pd.testing.assert_frame_equal(adata.var, whole.var)
    return whole, counts


@pytest.mark.parametrize("kind", ["csr", "dense", "csc", "10x", "rounded", "zeros"])
def test_some_rows_at_a_time_are_the_rows_of_the_whole(raw: AnnData, tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("counts.h5" if kind == "10x" else "counts.h5ad")
    if kind == "10x":
        write_10x(raw, path)
    else:
        raw.X = {"dense": raw.X.toarray(), "csc": raw.X.tocsc()}.get(kind, raw.X)
        if kind == "rounded":
            raw.X.data = raw.X.data.astype(np.float64) + 1e-9
        if kind == "zeros":
            raw.X.data[::9] = 0
        raw.write_h5ad(path)
    whole, counts = read_twice([path], **({"genome": "GRCh38"} if kind == "10x" else {}))
    assert counts.on_disk == (kind != "csc")
    assert counts.shape == whole.shape
    pieces = [x for _, x in counts.chunks()]
    assert max(x.shape[0] for x in pieces) <= 7
    rows = np.array([0, 3, 90, 91, 179])
    for found, expected in ((sparse.vstack(pieces, "csr"), whole.X), (counts.read(rows), whole.X[rows])):
        for name in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert found.dtype == np.float32


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix is too large to be read as a whole: 1,000 entries are read at once, 3,000 sorted."""
    monkeypatch.setattr(read, "FEW", 0)
    monkeypatch.setattr(by_rows, "SORTED_AT_ONCE", 3_000)
    for module in (hdf5, mtx):
        monkeypatch.setattr(module, "READ_AT_ONCE", 1_000)


@pytest.mark.usefixtures("large")
@pytest.mark.filterwarnings("ignore")  # of zarr's formats
@pytest.mark.parametrize("kind", ["csc", "zarr", "10x", "cells in rows", "alevin-fry", "real"])
def test_what_is_not_stored_by_rows_is_written_by_rows(raw: AnnData, tmp_path: Path, kind: str) -> None:
    path, options = tmp_path / "counts", {}
    if kind in ("csc", "zarr"):
        raw.X = raw.X.tocsc().astype(np.int16)
        path = path.with_suffix(".h5ad" if kind == "csc" else ".zarr")
        (raw.write_h5ad if kind == "csc" else raw.write_zarr)(path)
    else:
        x, genes = raw.X.astype(np.float64 if kind == "real" else np.int64), list(raw.var_names)
        if kind == "alevin-fry":
            genes = [*genes[:100], *(f"{name}-U" for name in genes[:100]), *(f"{name}-A" for name in genes[:100])]
            options = {"transpose": False}
        path.mkdir()
        in_rows = kind in ("10x", "real")
        with gzip.open(path / "matrix.mtx.gz", "wb") as file:
            mmwrite(file, x.T if in_rows else x, comment="one\ntwo")
        (path / "genes.tsv").write_text("\n".join(genes))
        (path / "barcodes.tsv").write_text("\n".join(f"cell_{i}" for i in range(raw.n_obs)))
    whole = read_input([path], **options)
    adata = read_input([path], chunked=True, scratch=tmp_path / "scratch" / "here", **options)
    counts = adata.uns.pop("ldvae_counts")
    assert counts.on_disk
    pd.testing.assert_frame_equal(adata.var, whole.var)
    assert (sparse.vstack([x for _, x in counts.chunks()]) != whole.X).nnz == 0
    assert sum(x.nnz for _, x in counts.chunks()) == whole.X.nnz
    found = [file for file in (tmp_path / "scratch").rglob("*") if file.is_file()]
    assert len(found) == 1  # no block is left


@pytest.mark.usefixtures("large")
def test_a_matrix_that_is_cut_short_is_refused_before_it_is_sorted(raw: AnnData, tmp_path: Path) -> None:
    mmwrite(tmp_path / "matrix.mtx", raw.X.T.astype(int))
    lines = (tmp_path / "matrix.mtx").read_text().splitlines()
    (tmp_path / "genes.tsv").write_text("\n".join(raw.var_names))
    (tmp_path / "barcodes.tsv").write_text("\n".join(raw.obs_names))
    (tmp_path / "matrix.mtx").write_text("\n".join(lines[:-5]))
    with pytest.raises(InputError, match=f"has {raw.X.nnz - 5} of the {raw.X.nnz} entries that its header announces"):
        read_input([tmp_path], chunked=True, scratch=tmp_path / "scratch")
    (tmp_path / "matrix.mtx").write_text("\n".join([*lines[:-1], "301 1 1"]))
    with pytest.raises(InputError, match="an entry lies outside of the 180 by 300 matrix"):
        read_input([tmp_path], chunked=True, scratch=tmp_path / "scratch")


@pytest.mark.usefixtures("large")
def test_what_is_no_counts_is_not_sorted_and_nothing_stays_after_a_refusal(
    raw: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw.X = raw.X.tocsc()
    raw.write_h5ad(tmp_path / "counts.h5ad")
    with pytest.raises(InputError, match="min_counts"):
        qc(results=tmp_path / "r", input=[str(tmp_path / "counts.h5ad")], config=QcConfig(min_counts=10**8))
    assert not list((tmp_path / "r").rglob("*"))[1:]  # but for the folder qc
    raw.X = raw.X.log1p()
    raw.write_h5ad(tmp_path / "log.h5ad")
    monkeypatch.setattr(read, "write_by_rows", None)
    with pytest.raises(InputError, match="X holds non-integer values"):
        read_input([tmp_path / "log.h5ad"], chunked=True, scratch=tmp_path / "scratch")


def test_columns_are_looked_for_before_anything_is_read(
    raw: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw.write_h5ad(tmp_path / "counts.h5ad")
    monkeypatch.setattr("ldvae.steps.qc.measure", None)
    for key in ("batch_key", "labels_key"):
        with pytest.raises(InputError, match="no obs column 'nope'"):
            qc(results=tmp_path / "r", input=[str(tmp_path / "counts.h5ad")], **{key: "nope"})


def test_half_precision_beside_sparse_is_single_precision() -> None:
    x = np.arange(6, dtype=np.float16).reshape(2, 3)
    matrix = ChunkedMatrix((LoadedMatrix(x), LoadedMatrix(sparse.csr_matrix(x.astype(np.float32)))))
    rows = matrix.stored(np.arange(4))
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows.toarray(), np.vstack([x, x]))


@contextmanager
def tracing() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


@pytest.mark.thorough
@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("store", ["csr", "csc", "dense"])
def test_no_matrix_is_ever_in_memory_as_a_whole(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (chunks, read):
        monkeypatch.setattr(module, "ROWS", 60)
    for module, name in ((hdf5, "READ_AT_ONCE"), (by_rows, "SORTED_AT_ONCE"), (chunks, "VALUES")):
        monkeypatch.setattr(module, name, 20_000)
    x = np.random.default_rng(0).poisson(0.7, (2000, 1000)).astype(np.float32)
    kept = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "dense": np.asarray}[store]
    adata = AnnData(kept(np.log1p(x)), layers={"counts": kept(x)})
    adata.obs_names, adata.var_names = [f"c{i}" for i in range(2000)], [f"G{i}" for i in range(1000)]
    adata.raw = adata.copy()
    adata.write_h5ad(tmp_path / "counts.h5ad")
    others = AnnData(obs=adata.obs, var=adata.var)
    del adata
    peaks = []
    while len(peaks) < 3 and min(peaks, default=np.inf) > 3e6:  # imports and other threads allocate in some runs alone
        with tracing():
            scratch = tmp_path / f"scratch_{len(peaks)}"
            found = read_input([tmp_path / "counts.h5ad"], layer="counts", layers=True, chunked=True, scratch=scratch)
            total = sum(counts.sum() for _, counts in found.uns["ldvae_counts"].chunks())
            others.write_h5ad(tmp_path / "layers.h5ad")
            layers, as_raw = found.uns["ldvae_layers"], found.uns["ldvae_raw"]
            write_matrices(tmp_path / "layers.h5ad", layers, as_raw, "lzf")
            peaks.append(tracemalloc.get_traced_memory()[1])
        assert total == x.sum()
    assert min(peaks) < 3e6 < x.size * 8 / 3  # one matrix has 8 MB (CSR, half of its values are zero) or more
    written = anndata.read_h5ad(tmp_path / "layers.h5ad")
    assert isinstance(written.layers["input_X"], np.ndarray) == (store == "dense")
    for matrix in (written.layers["input_X"], written.raw.X):
        np.testing.assert_array_equal(matrix if store == "dense" else matrix.toarray(), np.log1p(x))


def test_layers_that_an_earlier_version_wrote_are_read(raw: AnnData, tmp_path: Path) -> None:
    others = AnnData(obs=raw.obs, var=raw.var, layers={"raw": raw.X, "X": raw.X.toarray()})
    others.raw = AnnData(raw.X.tocsc() * 2, raw.obs, raw.var)
    others.write_h5ad(tmp_path / "layers.h5ad")
    _, layers, found = read_without_matrices(tmp_path / "layers.h5ad")
    rows = np.arange(5, 9)
    assert sorted(layers) == ["X", "raw"]
    assert (layers["raw"].stored(rows) != raw.X[rows]).nnz == 0
    np.testing.assert_array_equal(layers["X"].stored(rows), raw.X[rows].toarray())
    assert (found.matrix.stored(rows) != 2 * raw.X[rows]).nnz == 0


def test_layers_of_several_files_are_those_that_all_have(raw: AnnData, tmp_path: Path) -> None:
    raw.layers["spliced"], raw.layers["dense"] = raw.X.astype(np.int32), raw.X.toarray()
    raw.raw = raw.copy()
    first, second = raw[:80, 20:].copy(), raw[80:, ::-1].copy()
    first.layers["own"] = first.X.copy()
    second.layers["spliced"] = second.layers["spliced"].astype(np.float32)
    second.layers["spliced"].data += 0.5
    first.write_h5ad(tmp_path / "a.h5ad")
    second.write_h5ad(tmp_path / "b.h5ad")
    paths, options = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"], {"subset_key": "donor", "subset": ["d0"]}
    whole = read_input(paths, layers=True, **options)
    found = read_input(paths, layers=True, chunked=True, **options)
    assert sorted(found.uns["ldvae_layers"]) == ["dense", "spliced"]
    rows = np.arange(found.n_obs)
    for name, matrix in found.uns["ldvae_layers"].items():
        x, expected = matrix.stored(rows), whole.layers[name]
        assert (x.dtype, sparse.issparse(x)) == (np.float64 if name == "spliced" else np.float32, name == "spliced")
        assert (x != expected).sum() == 0
    pd.testing.assert_frame_equal(found.uns["ldvae_raw"].var, whole.raw.var)
    assert (found.uns["ldvae_raw"].matrix.stored(rows) != whole.raw.X).nnz == 0


def test_a_loom_file_is_read_some_cells_at_a_time(
    raw: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "VALUES", 1_000)  # of 300 genes
    with h5py.File(tmp_path / "counts.loom", "w") as file:
        file["matrix"] = raw.X.toarray().T
        file["layers/spliced"] = 2 * raw.X.toarray().T
        file["col_attrs/CellID"] = raw.obs_names.to_numpy("S")
        file["row_attrs/Gene"] = raw.var_names.to_numpy("S")
    whole, counts = read_twice([tmp_path / "counts.loom"], layer="spliced")
    assert counts.on_disk
    assert counts.parts[0].at_once == 3
    assert (sparse.vstack([x for _, x in counts.chunks()]) != whole.X).nnz == 0


def test_several_files_share_genes_and_a_subset_is_one_of_all_of_them(raw: AnnData, tmp_path: Path) -> None:
    raw[:80, 20:].copy().write_h5ad(tmp_path / "a.h5ad")
    raw[80:, ::-1].copy().write_h5ad(tmp_path / "b.h5ad")
    options = {"subset_key": "donor", "subset": ["d0", "d2"]}
    whole, counts = read_twice([tmp_path / "a.h5ad", tmp_path / "b.h5ad"], **options)
    assert counts.on_disk
    assert counts.shape == (120, 280)
    assert (sparse.vstack([x for _, x in counts.chunks()]) != whole.X).nnz == 0
    assert (counts.take(np.arange(120) % 2 == 1).read(np.array([2, 50])) != whole.X[[5, 101]]).nnz == 0


def test_what_is_wrong_in_one_place_is_said_of_the_whole_matrix(raw: AnnData, tmp_path: Path) -> None:
    raw.X = raw.X.astype(np.float64)
    raw.X.data[-1] = 0.5
    raw.write_h5ad(tmp_path / "counts.h5ad")
    messages = []
    for chunked in (False, True):
        with pytest.raises(InputError, match="non-integer values in") as error:
            read_input([tmp_path / "counts.h5ad"], chunked=chunked)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_an_index_outside_of_the_matrix_is_refused_before_scipy_follows_it(raw: AnnData, tmp_path: Path) -> None:
    raw.write_h5ad(tmp_path / "counts.h5ad")
    with h5py.File(tmp_path / "counts.h5ad", "a") as file:
        file["X/indices"][-1] = 10_000
    with pytest.raises(InputError, match="cannot be read as h5ad"):
        read_input([tmp_path / "counts.h5ad"], chunked=True)


def written(folder: Path) -> tuple[AnnData, pd.DataFrame]:
    return anndata.read_h5ad(layout.FILTERED.at(folder)), read_table(layout.CELLS.at(folder), index="cell")


@pytest.mark.thorough
def test_doublets_are_the_same_however_many_batches_run_together(
    raw: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw.write_h5ad(tmp_path / "raw.h5ad")
    pools = []

    def one_pool(*arguments: object, **options: object) -> AbstractContextManager[ProcessPoolExecutor]:
        """The processes of the first call serve the second one, too: scanpy's import takes longer than the rest."""
        pools[:] = pools or [ProcessPoolExecutor(*arguments, **options)]  # type: ignore[arg-type]
        return nullcontext(pools[0])

    monkeypatch.setattr(doublets, "ProcessPoolExecutor", one_pool)
    batch, passing = raw.obs["donor"], pd.Series(np.arange(180) != 7, raw.obs_names)
    tables = []
    for x in (raw.X, StoredMatrix(tmp_path / "raw.h5ad", "X", raw.shape)):
        counts = ChunkedCounts((x,)) if isinstance(x, StoredMatrix) else ChunkedCounts.of(x)
        for threads in (1, 2):
            options = {"kept_in": tmp_path / str(len(tables)), "threads": threads}
            table = doublets.find_doublets(
                counts,
                raw.obs,
                batch,
                passing,
                raw.var_names,
                QcConfig(),
                **options,  # type: ignore[arg-type]
            )
            tables.append(table)
    pools[0].shutdown()
    assert tables[0]["doublet_score"].notna().sum() == 179
    for table in tables[1:]:
        pd.testing.assert_frame_equal(tables[0], table)


def test_a_large_batch_is_searched_for_doublets_in_random_parts(
    raw: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = []

    def of_batch(task: doublets.Batch, _: QcConfig) -> doublets.Doublets:
        searched.append(task.cells)
        return doublets.Doublets(task.cells.astype(float), task.cells % 2 == 0)

    monkeypatch.setattr(doublets, "of_batch", of_batch)
    monkeypatch.setattr(doublets, "MAX_CELLS_AT_ONCE", 50)
    everyone = pd.Series(True, raw.obs_names)
    table = doublets.find_doublets(
        ChunkedCounts.of(raw.X), raw.obs, raw.obs["donor"], everyone, raw.var_names, QcConfig(), kept_in=tmp_path
    )
    assert [len(cells) for cells in searched] == [30] * 6
    assert table["doublet_score"].tolist() == list(range(180))  # each cell has its own
    assert table["predicted_doublet"].sum() == 90


@pytest.mark.thorough
def test_neighbors_of_many_cells_are_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynndescent", None)  # the search that scanpy approximates with
    counts = sparse.csr_matrix(np.random.default_rng(0).poisson(1.0, (2800, 400)).astype(np.float32))
    batch = doublets.Batch(counts, np.arange(2800), tmp_path / "kept.npz")
    found = doublets.of_batch(batch, QcConfig())
    assert found.failure == ""
    assert np.isfinite(found.score).all()


@pytest.mark.thorough
def test_qc_is_the_same_whatever_is_read_at_once(raw: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw.X = sparse.diags_array((np.arange(180) != 5).astype(np.float32)) @ raw.X
    raw.X = sparse.csr_matrix(raw.X)
    raw.X.eliminate_zeros()
    raw.write_h5ad(tmp_path / "raw.h5ad")
    config = QcConfig(n_mads=None, doublets="filter", min_cells=100)
    arguments = {"input": [str(tmp_path / "raw.h5ad")], "batch_key": "donor", "config": config}
    qc(results=tmp_path / "some", **arguments)  # type: ignore[arg-type]
    monkeypatch.setattr(chunks, "ROWS", 20_000)
    qc(results=tmp_path / "once", **arguments)  # type: ignore[arg-type]
    (some, cells), (once, again) = written(tmp_path / "some"), written(tmp_path / "once")
    pd.testing.assert_frame_equal(cells, again)
    assert cells["doublet_score"].notna().sum() == 179
    pd.testing.assert_frame_equal(some.obs, once.obs)
    assert (some.X != once.X).nnz == 0
    assert (some.X != raw[some.obs_names, some.var_names].X).nnz == 0
    assert 0 < some.n_vars < 300
    assert not (layout.CELLS.at(tmp_path / "some").parent / ".doublets").exists()


@pytest.mark.thorough
def test_a_stop_in_the_middle_of_qc_loses_no_finished_batch(
    raw: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import scanpy

    raw.write_h5ad(tmp_path / "raw.h5ad")
    scrublet, sizes = scanpy.pp.scrublet, []

    def stops(cells: AnnData, **options: object) -> None:
        if len(sizes) == 2:
            raise KeyboardInterrupt
        sizes.append(cells.n_obs)
        scrublet(cells, **options)

    monkeypatch.setattr(scanpy.pp, "scrublet", stops)
    config = QcConfig(n_mads=None, doublets="annotate", min_cells=0)
    arguments = {"input": [str(tmp_path / "raw.h5ad")], "batch_key": "donor"}
    with pytest.raises(KeyboardInterrupt):
        qc(results=tmp_path / "r", config=config, **arguments)  # type: ignore[arg-type]
    assert len(list((tmp_path / "r" / "qc" / ".doublets").iterdir())) == 2
    assert not layout.FILTERED.at(tmp_path / "r").exists()

    sizes.clear()
    qc(results=tmp_path / "r", config=config, **arguments)  # type: ignore[arg-type]
    assert sizes == [60]
    monkeypatch.setattr(scanpy.pp, "scrublet", scrublet)
    qc(results=tmp_path / "whole", config=config, **arguments)  # type: ignore[arg-type]
    pd.testing.assert_frame_equal(written(tmp_path / "r")[1], written(tmp_path / "whole")[1])


def test_a_kept_batch_is_of_the_same_cells_and_options(raw: AnnData, tmp_path: Path) -> None:
    metrics = pd.DataFrame({"total_counts": np.asarray(raw.X.sum(axis=1)).ravel()}, raw.obs_names)
    batch, passing = pd.Series("all", raw.obs_names), pd.Series(True, raw.obs_names)

    def found(seed: int, cells: pd.Series) -> int:
        config = QcConfig(seed=seed)
        counts = ChunkedCounts.of(raw.X)
        doublets.find_doublets(counts, metrics, batch, cells, raw.var_names, config, kept_in=tmp_path / "kept")
        return len(list((tmp_path / "kept").iterdir()))

    assert [found(0, passing), found(0, passing), found(1, passing)] == [1, 1, 2]
    passing.iloc[0] = False
    assert found(0, passing) == 3


def test_a_stored_matrix_takes_columns_of_columns(raw: AnnData, tmp_path: Path) -> None:
    raw.write_h5ad(tmp_path / "raw.h5ad")
    matrix = StoredMatrix(tmp_path / "raw.h5ad", "X", raw.shape)
    chosen = matrix.take(np.arange(299, -1, -3)).take(np.arange(100) < 40)
    assert chosen.shape == (180, 40)
    assert (chosen.between(11, 30) != raw.X[11:30, np.arange(299, -1, -3)[:40]]).nnz == 0
