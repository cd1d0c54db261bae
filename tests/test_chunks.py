"""Counts that are read some rows at a time: the same numbers as at once, and nothing finished is lost."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from ldvae import results as layout
from ldvae.config import QcConfig
from ldvae.errors import InputError
from ldvae.io import ChunkedCounts, chunks, read, read_input, read_table
from ldvae.io.chunks import StoredMatrix
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
