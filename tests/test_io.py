"""Every input format gives the same counts; whatever is no counts is refused in words; writers are atomic."""

from __future__ import annotations

import gzip
import json
import logging
import os
import shutil
import time
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import io as scipy_io
from scipy import sparse

from ldvae import io
from ldvae.counts import verify_counts
from ldvae.errors import InputError
from ldvae.io import hdf5

BARCODES = ["AAACATACAACCAC-1", "AAACATTGAGCTAC-1", "AAACATTGATCAGC-1", "AAACCGTGCTTCCG-1"]
GENES = ["MT-CO1", "CD3E", "MS4A1", "LYZ", "ACTB"]
IDS = [f"ENSG{i:011d}" for i in range(5)]
X = np.array([[1, 0, 0, 3, 0], [0, 2, 0, 0, 1], [0, 0, 0, 0, 7], [4, 0, 9, 0, 300]], dtype=np.float32)


@pytest.fixture
def counts() -> AnnData:
    return AnnData(sparse.csr_matrix(X), pd.DataFrame(index=BARCODES), pd.DataFrame(index=GENES))


def write_10x(
    folder: Path, *, version: int, gz: bool, x: np.ndarray = X, genes: list[str] = GENES, prefix: str = ""
) -> Path:
    """A Cell Ranger folder; version 2 has genes.tsv, version 3 features.tsv with the kind of each feature."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = "" if version == 2 else "\tGene Expression"
    texts = {
        f"{prefix}barcodes.tsv": "".join(f"{name}\n" for name in BARCODES),
        f"{prefix}{'genes' if version == 2 else 'features'}.tsv": "".join(
            f"{identifier}\t{name}{kinds}\n" for identifier, name in zip(IDS, genes, strict=True)
        ),
    }
    scipy_io.mmwrite(folder / "m.mtx", sparse.coo_matrix(x.T.astype(int)))
    texts[f"{prefix}matrix.mtx"] = (folder / "m.mtx").read_text()
    (folder / "m.mtx").unlink()
    for name, text in texts.items():
        if gz:
            (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (folder / name).write_text(text)
    return folder


def write_table(path: Path, *, sep: str, transposed: bool = False, corner: bool = True) -> Path:
    table = pd.DataFrame(X.astype(int), BARCODES, GENES)
    table = table.T if transposed else table
    text = table.to_csv(sep=sep)
    path.write_bytes(text.encode() if corner else text.removeprefix(sep).encode())
    return path


def write_h5_v2(path: Path, genomes: list[str]) -> Path:
    import h5py

    with h5py.File(path, "w") as file:
        for genome in genomes:
            by_gene = sparse.csr_matrix(X)
            group = file.create_group(genome)
            group["data"], group["indices"], group["indptr"] = by_gene.data.astype(int), by_gene.indices, by_gene.indptr
            group["shape"], group["barcodes"] = np.array(X.shape[::-1]), np.array(BARCODES, dtype="S")
            group["genes"], group["gene_names"] = np.array(IDS, dtype="S"), np.array(GENES, dtype="S")
    return path


def write_h5_v3(path: Path, genomes: list[str]) -> Path:
    import h5py

    with h5py.File(path, "w") as file:
        by_cell, group = sparse.csr_matrix(X), file.create_group("matrix")
        group["data"], group["indices"], group["indptr"] = by_cell.data.astype(int), by_cell.indices, by_cell.indptr
        group["shape"], group["barcodes"] = np.array(X.shape[::-1]), np.array(BARCODES, dtype="S")
        features = {"id": IDS, "name": GENES, "feature_type": ["Gene Expression"] * 5, "genome": genomes}
        for name, values in features.items():
            group[f"features/{name}"] = np.array(values, dtype="S")
    return path


FORMATS = {
    "h5ad": lambda folder, adata: adata.write_h5ad(folder / "x.h5ad") or folder / "x.h5ad",
    "h5ad called h5": lambda folder, adata: adata.write_h5ad(folder / "x.h5") or folder / "x.h5",
    "csc h5ad": lambda folder, adata: (
        AnnData(adata.X.tocsc(), adata.obs, adata.var).write_h5ad(folder / "x.h5ad") or folder / "x.h5ad"
    ),
    "dense integer h5ad": lambda folder, adata: (
        AnnData(X.astype(np.int64), adata.obs, adata.var).write_h5ad(folder / "x.h5ad") or folder / "x.h5ad"
    ),
    "zarr": lambda folder, adata: adata.write_zarr(folder / "x.zarr") or folder / "x.zarr",
    "10x v2": lambda folder, _: write_10x(folder / "hg19", version=2, gz=False),
    "10x v2, gzipped": lambda folder, _: write_10x(folder / "hg19", version=2, gz=True),
    "10x v3": lambda folder, _: write_10x(folder / "m", version=3, gz=True),
    "10x v3, not gzipped": lambda folder, _: write_10x(folder / "m", version=3, gz=False),
    "10x, outer folder": lambda folder, _: (
        write_10x(folder / "outs/filtered_feature_bc_matrix", version=3, gz=True).parent
    ),
    "10x, with a prefix": lambda folder, _: write_10x(folder / "geo", version=3, gz=True, prefix="GSM1_s1_"),
    "mtx itself": lambda folder, _: write_10x(folder / "m", version=2, gz=False) / "matrix.mtx",
    "10x h5 v2": lambda folder, _: write_h5_v2(folder / "x.h5", ["hg19"]),
    "10x h5 v3": lambda folder, _: write_h5_v3(folder / "x.h5", ["hg19"] * 5),
    "csv": lambda folder, _: write_table(folder / "x.csv", sep=","),
    "tsv, genes in rows": lambda folder, _: write_table(folder / "x.tsv", sep="\t", transposed=True),
    "txt of R": lambda folder, _: write_table(folder / "x.txt", sep="\t", transposed=True, corner=False),
}


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_counts(name: str, tmp_path: Path, counts: AnnData) -> None:
    path = FORMATS[name](tmp_path, counts)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    read = io.read_file(path)
    assert {
        file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()
    } == before  # an input may be read-only: nothing is written beside it
    assert isinstance(read.X, sparse.csr_matrix)
    assert read.X.dtype == np.float32
    pd.testing.assert_frame_equal(read.to_df(), counts.to_df(), check_names=False)


def test_gzipped_tables_read_as_plain_ones(tmp_path: Path, counts: AnnData) -> None:
    path = write_table(tmp_path / "x.csv", sep=",")
    (tmp_path / "y.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    pd.testing.assert_frame_equal(io.read_file(tmp_path / "y.csv.gz").to_df(), counts.to_df(), check_names=False)


def test_loom_reads_with_the_names_it_has(tmp_path: Path, counts: AnnData) -> None:
    h5py = pytest.importorskip("h5py")
    pytest.importorskip("loompy")
    with h5py.File(tmp_path / "x.loom", "w") as file:
        file["matrix"] = X.T
        file["col_attrs/CellID"] = np.array(BARCODES, dtype="S")
        file["row_attrs/Gene"] = np.array(GENES, dtype="S")
        for group in ("layers", "col_graphs", "row_graphs"):
            file.create_group(group)
        file.attrs["LOOM_SPEC_VERSION"] = "2.0.1"
    with_names = io.read_file(tmp_path / "x.loom").to_df()
    np.testing.assert_array_equal(with_names, X)
    assert list(with_names.index) == BARCODES
    assert list(with_names.columns) == GENES


def test_loom_without_names_is_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.loom", "w") as file:
        file["matrix"] = X.T
        file["col_attrs/CellID"] = np.array(BARCODES, dtype="S")
        file.create_group("row_attrs")
    with pytest.raises(InputError, match="no names of its genes: expected the column attribute CellID and the row"):
        io.read_file(tmp_path / "x.loom")


def test_mtx_with_tables_that_have_headers_and_cells_in_rows(tmp_path: Path, counts: AnnData) -> None:
    scipy_io.mmwrite(tmp_path / "counts.mtx", sparse.coo_matrix(X.astype(int)))
    counts.obs.assign(donor="a").rename_axis("barcode").to_csv(tmp_path / "counts_obs.csv")
    counts.var.assign(kind="gene").rename_axis("gene").to_csv(tmp_path / "counts_var.csv")
    read = io.read_file(tmp_path / "counts.mtx")
    assert read.shape == (4, 5)
    np.testing.assert_array_equal(read.X.toarray(), X)
    assert list(read.obs_names) == BARCODES


def test_features_that_are_no_genes_are_left_out(tmp_path: Path) -> None:
    folder = write_10x(tmp_path / "m", version=3, gz=False)
    features = (folder / "features.tsv").read_text().splitlines()
    features[4] = f"{IDS[4]}\tCD3_TotalSeq\tAntibody Capture"
    (folder / "features.tsv").write_text("\n".join(features) + "\n")
    assert list(io.read_file(folder).var_names) == GENES[:4]


def test_a_gene_called_na_stays_a_gene(tmp_path: Path) -> None:
    folder = write_10x(tmp_path / "m", version=2, gz=False, genes=["NA", "nan", "MARCH1", "1-Mar", "T"])
    assert list(io.read_file(folder).var_names) == ["NA", "nan", "MARCH1", "1-Mar", "T"]


def test_repeated_gene_names_get_a_suffix_and_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_10x(tmp_path / "m", version=2, gz=False, genes=["LYZ", "CD3E", "LYZ", "LYZ", "ACTB"])
    read = io.read_file(folder)
    assert list(read.var_names) == ["LYZ", "CD3E", "LYZ-1", "LYZ-2", "ACTB"]
    assert list(read.var["gene_ids"]) == IDS
    assert "1 gene names occur more than once; repeats got a suffix (LYZ-1, …): LYZ" in caplog.text


# Refusals


def test_several_genomes_ask_for_one(tmp_path: Path) -> None:
    for path in (
        write_h5_v2(tmp_path / "2.h5", ["hg19", "mm10"]),
        write_h5_v3(tmp_path / "3.h5", ["hg19"] * 2 + ["mm10"] * 3),
    ):
        with pytest.raises(InputError, match=r"holds 2 genomes \(hg19, mm10\); choose one \(genome=...\)"):
            io.read_file(path)
        with pytest.raises(InputError, match=r"holds no genome 'hg18'\. Did you mean 'hg19'"):
            io.read_file(path, genome="hg18")
    assert io.read_file(tmp_path / "2.h5", genome="mm10").shape == (4, 5)
    assert list(io.read_file(tmp_path / "3.h5", genome="hg19").var_names) == GENES[:2]


def test_a_genome_chooses_among_folders(tmp_path: Path) -> None:
    for genome in ("hg19", "mm10"):
        write_10x(tmp_path / "matrices" / genome, version=2, gz=False)
    with pytest.raises(InputError, match="holds 2 matrices"):
        io.read_file(tmp_path / "matrices")
    assert io.read_file(tmp_path / "matrices", genome="mm10").shape == (4, 5)


def test_the_filtered_matrix_is_taken_beside_the_raw_one(tmp_path: Path) -> None:
    write_10x(tmp_path / "outs/raw_feature_bc_matrix", version=3, gz=True, x=X + 1)
    write_10x(tmp_path / "outs/filtered_feature_bc_matrix", version=3, gz=True)
    np.testing.assert_array_equal(io.read_file(tmp_path / "outs").X.toarray(), X)


def test_a_matrix_whose_offsets_are_longer_integers_than_its_indices(tmp_path: Path, counts: AnnData) -> None:
    path = tmp_path / "counts.h5ad"
    counts.write_h5ad(path)
    with h5py.File(path, "a") as file:
        indptr = file["X/indptr"][:].astype(np.int64)
        indices = file["X/indices"][:].astype(np.int32)
        del file["X/indptr"], file["X/indices"]
        file["X/indptr"], file["X/indices"] = indptr, indices
    pd.testing.assert_frame_equal(io.read_file(path).to_df(), counts.to_df(), check_names=False)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("demo:pbmc", "There is no 'demo:pbmc'. Did you mean 'demo:pbmc68k'"),
        ("https://host/x.h5ad", "is a URL"),
        ("missing/x.h5ad", "does not exist. Nor does its folder"),
        ("x.had", "does not exist. In .*Did you mean 'x.h5ad'"),
        ("object.rds", "is of no format that can be read: h5ad.*Convert the R object"),
        ("empty", "holds no matrix.mtx"),
        ("x.h5ad", "cannot be read as h5ad"),
        ("other.h5", "is HDF5, but neither 10x h5, h5ad, h5mu nor loom; it holds something"),
        ("text.csv", "column 'cell_type' holds text .e.g. 'B'. where counts are expected"),
        ("numbers.csv", "the first row holds numbers"),
        ("blank.csv", "is empty. Copy or download it again"),
        ("alone.mtx", "has no table of genes beside it"),
    ],
)
def test_what_cannot_be_read_says_why(path: str, message: str, tmp_path: Path) -> None:
    import h5py

    (tmp_path / "x.h5ad").write_text("no HDF5")
    (tmp_path / "object.rds").write_text("an R object")
    (tmp_path / "blank.csv").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.csv").write_text("cell,CD3E,cell_type\nAAACATACAACCAC,1,B\n")
    (tmp_path / "numbers.csv").write_text("0,1,1,2\n3,1,2,5\n0,1,0,0\n")
    scipy_io.mmwrite(tmp_path / "alone.mtx", sparse.coo_matrix(X))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["something"] = 1
    where = path if ":" in path else str(tmp_path / path)
    with pytest.raises(InputError, match=message):
        io.read_file(where)


def test_tables_that_do_not_fit_the_matrix_are_refused(tmp_path: Path) -> None:
    folder = write_10x(tmp_path / "m", version=2, gz=False)
    (folder / "barcodes.tsv").write_text("AAACATACAACCAC-1\n")
    with pytest.raises(InputError, match=r"is 5 by 4, but genes.tsv names 5 genes and barcodes.tsv 1 cells"):
        io.read_file(folder)


WRONG = {
    "NaN": (lambda x: np.where(x == 7, np.nan, x), "NaN values in 12.5% .*e.g. nan for gene ACTB.*values are missing"),
    "infinite": (lambda x: np.where(x == 7, np.inf, x), "infinite values .*divided by zero"),
    "negative": (lambda x: x - x.mean(0), "negative values .*look scaled or centered"),
    "log-normalized": (
        lambda x: np.log1p(x / x.sum(1, keepdims=True) * 1e4),
        "non-integer values .*look log-normalized to 10000 counts per cell",
    ),
    "log-transformed": (np.log1p, "non-integer values .*look log-normalized:|they look log-normalized"),
    "normalized": (lambda x: x / x.sum(1, keepdims=True) * 1e6 + 0.0, "look normalized to 1000000 counts per cell"),
    "corrected": (lambda x: x * 1.1, "non-integer values .*normalized or corrected"),
    "huge": (lambda x: x * 2**23, "huge values"),
    "zero": (lambda x: x * 0, "no counts at all: every entry is zero"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_count_is_named(kind: str, tmp_path: Path) -> None:
    change, message = WRONG[kind]
    changed = change(X.astype(np.float64))
    AnnData(changed, pd.DataFrame(index=BARCODES), pd.DataFrame(index=GENES)).write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(
        InputError, match=f"x.h5ad: X holds {message}" if kind in ("NaN", "zero") else message
    ) as caught:
        io.read_file(tmp_path / "x.h5ad")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="ldvae models raw UMI counts: whole numbers, zero or more"):
        verify_counts(sparse.csr_matrix(changed), "adata.X", GENES)


def test_counts_elsewhere_in_the_file_are_pointed_out_and_can_be_chosen(tmp_path: Path, counts: AnnData) -> None:
    both = counts.copy()
    both.raw = counts
    both.layers["counts"] = counts.X.copy()
    both.X = np.log1p(X)
    both = both[:, :3].copy()  # raw keeps all genes
    both.write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(InputError, match=r"Counts are in 'counts' and in 'raw': choose it \(layer=counts\)"):
        io.read_file(tmp_path / "x.h5ad")
    np.testing.assert_array_equal(io.read_file(tmp_path / "x.h5ad", layer="counts").X.toarray(), X[:, :3])
    np.testing.assert_array_equal(io.read_file(tmp_path / "x.h5ad", layer="raw").X.toarray(), X)
    with pytest.raises(InputError, match=r"has no matrix 'count'\. Did you mean 'counts'"):
        io.read_file(tmp_path / "x.h5ad", layer="count")


def test_only_the_chosen_matrix_is_loaded(tmp_path: Path, counts: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    many = counts.copy()
    many.layers["counts"], many.layers["other"] = counts.X.copy(), np.log1p(X)
    many.write_h5ad(tmp_path / "x.h5ad")
    loaded = []
    read_elem, load_matrix = anndata.io.read_elem, hdf5.load_matrix
    monkeypatch.setattr(anndata.io, "read_elem", lambda elem: loaded.append(elem.name) or read_elem(elem))
    monkeypatch.setattr(hdf5, "load_matrix", lambda path, key: loaded.append(key) or load_matrix(path, key))
    io.read_file(tmp_path / "x.h5ad", layer="counts")
    assert loaded == ["/obs", "/var", "layers/counts"]


@pytest.mark.parametrize("null", [False, True])
def test_an_empty_x_beside_a_layer_of_counts(tmp_path: Path, counts: AnnData, null: bool) -> None:
    AnnData(None, counts.obs, counts.var, layers={"counts": counts.X}).write_h5ad(tmp_path / "x.h5ad")
    if null:  # as anndata 0.12.0 writes it
        with h5py.File(tmp_path / "x.h5ad", "a") as file:
            if "X" not in file:
                file["X"] = h5py.Empty("f")
                file["X"].attrs["encoding-type"] = "null"
    with pytest.raises(InputError, match=r"has no matrix 'X'\. There are: counts\. Choose one \(layer=\.\.\.\)"):
        io.read_file(tmp_path / "x.h5ad")
    np.testing.assert_array_equal(io.read_file(tmp_path / "x.h5ad", layer="counts").X.toarray(), X)


def test_obs_that_h5ad_cannot_hold_is_made_writable(
    tmp_path: Path, counts: AnnData, caplog: pytest.LogCaptureFixture
) -> None:
    stored = counts.copy()
    stored.obs["mixed"] = pd.Series([1, "b", np.nan, "d"], index=BARCODES, dtype=object)
    stored.obs["nCount/RNA"] = 1
    read = io.counts_of(io.in_memory(stored), "memory", "AnnData", None)
    read.write_h5ad(tmp_path / "x.h5ad")
    again = anndata.read_h5ad(tmp_path / "x.h5ad").obs
    assert again["mixed"].isna().tolist() == [False, False, True, False]
    assert "nCount_RNA" in again
    assert "a column name must not hold a slash" in caplog.text


# Several files


def test_several_files_keep_their_names(tmp_path: Path, counts: AnnData) -> None:
    other = counts[:, [1, 0, 2, 3]].copy()
    other.obs["donor"] = "d2"
    counts.write_h5ad(tmp_path / "ctrl.h5ad")
    other.write_h5ad(tmp_path / "stim.h5ad")
    both = io.read_input([tmp_path / "ctrl.h5ad", tmp_path / "stim.h5ad"])
    assert both.obs["file"].astype(str).tolist() == ["ctrl"] * 4 + ["stim"] * 4
    assert list(both.var_names) == GENES[:4]
    assert both.obs_names.is_unique
    assert both.obs_names[0] == f"{BARCODES[0]}-ctrl"
    assert both.obs["donor"].isna().sum() == 4
    np.testing.assert_array_equal(both.X.toarray(), np.vstack([X[:, :4], X[:, :4]]))
    assert [file["n_vars"] for file in both.uns["ldvae_input"]] == [5, 4]
    named = io.read_input([tmp_path / "ctrl.h5ad"], ["A"])
    assert named.obs["file"].tolist() == ["A"] * 4
    assert named.obs_names[0] == BARCODES[0]


def test_files_that_do_not_fit_together_are_refused(tmp_path: Path, counts: AnnData) -> None:
    counts.write_h5ad(tmp_path / "a.h5ad")
    counts.var_names = IDS
    counts.write_h5ad(tmp_path / "b.h5ad")
    paths = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    with pytest.raises(InputError, match="share no gene name: a has MT-CO1, CD3E, MS4A1 and 2 more; b has ENSG"):
        io.read_input(paths)
    with pytest.raises(InputError, match="1 names are given for 2 input files"):
        io.read_input(paths, ["a"])
    with pytest.raises(InputError, match="must differ, found a, a"):
        io.read_input(paths, ["a", "a"])
    with pytest.raises(InputError, match="No input file is given"):
        io.read_input([])
    with pytest.raises(InputError, match="cannot be told apart"):
        io.read_input([paths[0], paths[0]])


def test_a_table_of_cells_joins_obs(tmp_path: Path, counts: AnnData, caplog: pytest.LogCaptureFixture) -> None:
    counts.write_h5ad(tmp_path / "a.h5ad")
    (tmp_path / "types.csv").write_text(f"barcode,type\n{BARCODES[2]},B\n{BARCODES[0]},T\nother,T\n")
    read = io.read_input([tmp_path / "a.h5ad"], obs_table=tmp_path / "types.csv")
    assert read.obs["type"].astype(object).fillna("").tolist() == ["T", "", "B", ""]
    assert "has no row for 2 of 4 cells" in caplog.text
    (tmp_path / "types.csv").write_text("barcode,type\nother,T\n")
    with pytest.raises(
        InputError, match="names none of the 4 cells; its first column has other, the cells are called AAAC"
    ):
        io.read_input([tmp_path / "a.h5ad"], obs_table=tmp_path / "types.csv")


def test_obs_column_suggests_and_counts_missing_values() -> None:
    obs = pd.DataFrame({"donor": ["a", None, "b"]})
    with pytest.raises(InputError, match=r"no obs column 'doner'\. Did you mean 'donor'"):
        io.obs_column(obs, "doner")
    with pytest.raises(InputError, match="'donor' has no value for 1 of 3 cells"):
        io.obs_column(obs, "donor")


# Real files


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "anndata_v0.5.0_legacy_format_lognorm.h5ad",
            "X holds negative values .*scaled.*No other matrix of the file holds",
        ),
        ("cellxgene_nan.h5ad", "X holds NaN values .*missing"),
        ("derived_pbmc3k_200x500_sparse_cells_and_empty_genes.h5ad", (200, 500, 16453)),
        ("derived_truncated_mtx", "cannot be read as Matrix Market: Truncated file"),
        ("heart_1k_v2_712x31053_counts_DUPLICATE_varnames.h5ad", (712, 31053, 5851495)),
        ("heart_1k_v2_filtered_gene_bc_matrices_h5.h5", (712, 31053, 5851495)),
        ("kang_lognormalized_not_counts_legacy.h5ad", "X holds non-integer values .*look log-normalized"),
        ("liger_seqwell_244x6713_FLOAT_values.h5ad", "X holds non-integer .*look normalized to 10000 counts per cell"),
        ("pbmc3k_scaled_negative_values_legacy.h5ad", "X holds negative values .*scaled"),
        ("seurat_pbmc_small_10x", (80, 240, 23110)),
        ("scanpy_10x", "holds 2 matrices"),
        ("scanpy_10x/int-ids", (5, 6, 8)),
        ("scanpy_10x/1.2.0", (12, 343, 12)),
        ("scanpy_10x/1.2.0/filtered_gene_bc_matrices_h5.h5", (12, 343, 12)),
        ("scanpy_10x/1.2.0/multiple_genomes.h5", "holds 2 genomes .another_genome, hg19_chr21.; choose one"),
        ("scanpy_10x/3.0.0", (1107, 507, 41549)),
        ("scanpy_10x/3.0.0/filtered_feature_bc_matrix.h5", (1107, 507, 41549)),
    ],
)
def test_what_users_feed_to_a_pipeline_works_or_says_why_not(
    name: str, expected: str | tuple[int, int, int], shared_data: Path
) -> None:
    path = shared_data / "bad" / name
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected) as caught:
            io.read_file(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
        return
    read = io.read_file(path)
    assert (*read.shape, read.X.sum(dtype=np.float64)) == expected
    assert read.var_names.is_unique


# Writing


def test_a_failed_block_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.txt"
    with io.atomic(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".txt"
        temporary.write_text("old")

    def write_and_fail() -> None:
        with io.atomic(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_fail()
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with io.atomic(tmp_path / "model") as temporary:
            temporary.mkdir()
            (temporary / content).touch()
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["two"]
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_what_a_killed_process_left_is_removed_a_day_later(tmp_path: Path) -> None:
    old, new, other = (
        tmp_path / name for name in (".0123abcd-counts.h5ad", ".4567abcd-counts.h5ad", ".0123abcd-a.tsv")
    )
    for path in (old, new, other):
        path.write_text("half")
    (tmp_path / ".89ababcd-counts.h5ad").mkdir()
    for path in (old, other, tmp_path / ".89ababcd-counts.h5ad"):
        os.utime(path, (time.time() - 2 * 24 * 3600,) * 2)
    with io.atomic(tmp_path / "counts.h5ad") as temporary:
        temporary.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, new.name, "counts.h5ad"]


def test_tables_come_back_as_they_were_written(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"a": [1.5, np.nan, np.inf], "b": ["x", "NA", "z"]}, index=pd.Index(["NA", "nan", "1"], name="gene")
    )
    for path in (tmp_path / "x.tsv", tmp_path / "x.tsv.gz"):
        io.write_table(table, path, index="gene")
        pd.testing.assert_frame_equal(io.read_table(path, index="gene"), table)
    first = (tmp_path / "x.tsv.gz").read_bytes()
    io.write_table(table, tmp_path / "x.tsv.gz", index="gene")
    assert (tmp_path / "x.tsv.gz").read_bytes() == first


def test_json_holds_numbers_of_numpy_and_no_nan(tmp_path: Path) -> None:
    io.write_json(
        {"a": np.float32(0.5), "b": [np.nan, np.int64(3)], "c": Path("x"), "d": np.bool_(True)}, tmp_path / "x.json"
    )
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 0.5, "b": [None, 3], "c": "x", "d": True}


def test_the_hash_of_an_input_follows_the_files_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("abc")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert io.sha256_of_input(str(tmp_path / "x.csv")) == abc
    assert io.sha256_of_input("demo:pbmc68k") == ""
    folder = write_10x(tmp_path / "a/outs/filtered_feature_bc_matrix", version=3, gz=False).parent
    first = io.sha256_of_input(str(folder))
    shutil.copytree(folder, tmp_path / "b")
    assert io.sha256_of_input(str(tmp_path / "b")) == first
    (tmp_path / "b/web_summary.html").touch()  # a folder may hold gigabytes that are not read
    assert io.sha256_of_input(str(tmp_path / "b")) == first
    barcodes = tmp_path / "b/filtered_feature_bc_matrix/barcodes.tsv"
    barcodes.write_text(barcodes.read_text().replace("AAACATACAACCAC-1", "AAACATACAACCAC-2"))
    assert io.sha256_of_input(str(tmp_path / "b")) != first


def test_warnings_are_collected_only_inside_the_block() -> None:
    with io.collected_warnings() as messages:
        logging.getLogger("ldvae.io").warning("one of %d", 2)
        logging.getLogger("ldvae.io").info("no warning")
    logging.getLogger("ldvae.io").warning("after")
    assert messages == ["one of 2"]
