"""Inputs that people bring, by kind: for each the counts that come out, entry by entry, or the message."""

from __future__ import annotations

import gzip
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from anndata import AnnData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import io as scipy_io
from scipy import sparse

from ldvae import cli
from ldvae.errors import InputError
from ldvae.io import (
    ChunkedMatrix,
    RawMatrix,
    files_of,
    objects_to_categories,
    read_annotation,
    read_gene_list,
    read_gmt,
    read_input,
    write_matrices,
)
from ldvae.io.chunks import LoadedMatrix
from ldvae.steps.annotate import layers_of
from ldvae.steps.qc import others_apart

# Of each case of ../shared/data/cases: how it is read, and the message; or the shape, the first gene and cell.
# All hold the counts of 16_plain.h5ad, or their first rows and columns.
CASES: dict[str, tuple[dict[str, object], str | tuple[int, int, str, str]]] = {
    "01_starsolo": ({}, (80, 343, "ISG15", "AAACATTGAGCTAC")),
    "03_kallisto": ({}, (80, 343, "ISG15", "AAACATTGAGCTAC")),
    "05_parse": ({}, (80, 343, "ISG15", "01_01_01")),
    "06_geo_flat": ({}, (80, 343, "ISG15", "AAACATTGAGCTAC-1")),
    "07_citeseq_mtx": ({}, (80, 343, "ISG15", "AAACATTGAGCTAC-1")),
    "08_citeseq_h5ad.h5ad": ({}, (80, 343, "ISG15", "AAACATTGAGCTAC-1")),
    "09_multiome.h5": ({}, (80, 343, "ISG15", "AAACATTGAGCTAC-1")),
    "10_em_float": ({}, "X holds non-integer values .*STARsolo EM.*take the unique counts"),
    "11_gz_without_suffix": ({}, (80, 343, "ISG15", "AAACATTGAGCTAC-1")),
    "13_crlf_header": ({}, (80, 343, "ISG15", "AAACATTGAGCTAC-1")),
    "14_cellbender_v2out.h5": ({}, (80, 343, "ISG15", "AAACATTGAGCTAC-1")),
    "15_cellbender_legacy.h5": ({}, (80, 343, "ISG15", "AAACATTGAGCTAC-1")),
    "16_plain.h5ad": ({}, (80, 343, "ISG15", "AAACATTGAGCTAC-1")),
    "16_plain.h5ad.gz": ({}, r"is gzipped. Unpack it \(gunzip\)"),
    "17_fly_genes_in_rows.csv": ({}, (80, 200, "w", "E1")),
    "18_dropseq_dge.txt.gz": ({}, (80, 343, "ISG15", "AAACATTGAGCT")),
    "19_rhapsody_RSEC_MolsPerCell.csv": ({}, (80, 250, "ISG15", "1000")),
    "24_layer_called_raw.h5ad": ({"layer": "raw"}, (80, 343, "ISG15", "AAACATTGAGCTAC-1")),
    "25_scanpy_scaled_counts_layer.h5ad": ({"layer": "counts"}, (50, 240, "ISG15", "AAACATTGAGCTAC-1")),
    "27_cellxgene_raw.h5ad": ({"layer": "raw"}, (60, 343, "ISG15", "AAACATTGAGCTAC-1")),
    "28_csc_bool.h5ad": ({}, "X holds values that are not numbers .or true and false."),
    "28_dense_bool.h5ad": ({}, "X holds values that are not numbers .or true and false."),
    "28_dense_float16.h5ad": ({}, (80, 343, "ISG15", "AAACATTGAGCTAC-1")),
    "28_dense_float64.h5ad": ({}, (80, 343, "ISG15", "AAACATTGAGCTAC-1")),
    "28_dense_int64.h5ad": ({}, (80, 343, "ISG15", "AAACATTGAGCTAC-1")),
    "28_dense_uint16.h5ad": ({}, (80, 343, "ISG15", "AAACATTGAGCTAC-1")),
    "28_dense_uint32.h5ad": ({}, (80, 343, "ISG15", "AAACATTGAGCTAC-1")),
    "28_dense_uint8.h5ad": ({}, (80, 343, "ISG15", "AAACATTGAGCTAC-1")),
    "31_types_of_columns.h5ad": ({}, (80, 343, "ISG15", "AAACATTGAGCTAC-1")),
    "33_odd_gene_names.h5ad": ({}, (80, 343, "ISG15", "AAACATTGAGCTAC-1")),
    "34_transposed.h5ad": ({}, "genes and cells seem to be swapped .*transpose: true for genes in rows"),
    "35_zarr_v3.zarr": ({}, (80, 200, "ISG15", "AAACATTGAGCTAC-1")),
    "43_single_cell_batch.h5ad": ({}, (80, 343, "ISG15", "AAACATTGAGCTAC-1")),
    "47_a.h5ad": ({}, (40, 343, "ISG15", "AAACATTGAGCTAC-1")),
    "47_b.h5ad": ({}, (40, 343, "ISG15", "AAACATTGAGCTAC-1")),
    "48_empty_cells.h5ad": ({}, (80, 343, "ISG15", "AAACATTGAGCTAC-1")),
    "52_bom.csv": ({}, "column 'donor2' holds text"),
    "52_r_short_header.tsv": ({}, "column 'donor2' holds text"),
}
OTHER_COUNTS = {"28_dense_uint8.h5ad": 255, "47_b.h5ad": 0, "48_empty_cells.h5ad": 0}  # not the counts of 16_plain


def stored_counts(path: Path) -> np.ndarray:
    x = anndata.read_h5ad(path).X
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


@pytest.mark.parametrize("name", CASES)
def test_a_case_gives_its_counts_or_says_why_not(name: str, shared_data: Path) -> None:
    folder = shared_data / "cases"
    options, expected = CASES[name]
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected) as caught:
            read_input([folder / name], **options)
        assert "\n" not in str(caught.value)
        return
    read = read_input([folder / name], **options)
    assert (*read.shape, read.var_names[0], read.obs_names[0]) == expected
    truth = stored_counts(folder / (name if name in OTHER_COUNTS else "16_plain.h5ad"))
    np.testing.assert_array_equal(read.X.toarray(), truth[: read.n_obs, : read.n_vars])
    header = read_input([folder / name], **options, counts=False)  # the same rules without the counts
    assert header.X is None
    pd.testing.assert_frame_equal(header.obs, read.obs)
    pd.testing.assert_frame_equal(header.var, read.var)


def test_every_case_is_among_those_that_are_tried(shared_data: Path) -> None:
    found = {path.name for path in (shared_data / "cases").iterdir() if path.suffix not in (".md", ".gmt")}
    assert found == set(CASES)


def test_a_case_is_read_the_other_way_round_when_told(shared_data: Path) -> None:
    folder = shared_data / "cases"
    read = read_input([folder / "34_transposed.h5ad"], transpose=True)
    np.testing.assert_array_equal(read.X.toarray(), stored_counts(folder / "16_plain.h5ad"))
    assert {"cell_type", "donor", "condition"} <= set(read.obs)


def test_symbols_make_mitochondrial_genes_known(shared_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    path = shared_data / "cases" / "27_cellxgene_raw.h5ad"
    read = read_input([path], layer="raw")
    assert read.var_names.str.startswith("MT-").any()
    assert read.var["gene_ids"].str.startswith("ENSG").all()
    assert "genes are called by var column 'feature_name', not by identifiers such as ENSG" in caplog.text
    assert read_input([path], layer="raw", gene_names="index").var_names.str.startswith("ENSG").all()
    with pytest.raises(InputError, match=r"has no var column 'feature_nam' .*Did you mean 'feature_name'"):
        read_input([path], layer="raw", gene_names="feature_nam")


def test_donors_that_are_numbers_in_one_file_are_one_column_of_text(shared_data: Path) -> None:
    both = read_input([shared_data / "cases" / name for name in ("47_a.h5ad", "47_b.h5ad")])
    assert both.shape == (80, 343)
    assert both.obs["donor"].dtype == "category"
    assert all(isinstance(donor, str) and "." not in donor for donor in both.obs["donor"].cat.categories)
    assert "file" in both.obs  # the one of 47_a
    assert both.obs["file_ldvae"].tolist() == ["47_a"] * 40 + ["47_b"] * 40


@pytest.mark.parametrize("name", ["52_bom.csv", "52_r_short_header.tsv"])
def test_tables_of_cells_join_by_name(name: str, shared_data: Path) -> None:
    folder = shared_data / "cases"
    read = read_input([folder / "16_plain.h5ad"], obs_table=folder / name)
    assert read.obs["donor2"].tolist()[:4] == ["x0", "x1", "x2", "x3"]
    assert read.obs["age"].tolist()[:4] == [20, 21, 22, 23]


# Cases of our own, whose counts are these.

BARCODES = [f"{'ACGT' * 3}{a}{b}{c}-1" for a in "ACGT" for b in "ACGT" for c in "ACGT"][:60]
RNG = np.random.default_rng(0)
X = RNG.poisson(RNG.gamma(0.5, 4, 60) * np.ones((60, 1))).astype(np.float32)
X[:, 0] += 1
SYMBOLS = [*("MT-CO1", "RPL3", "ACTB", "CD3E", "NDUFA4"), *(f"NAME{i}" for i in range(55))]


def plain(names: list[str] | None = None, **parts: object) -> AnnData:
    return AnnData(sparse.csr_matrix(X), pd.DataFrame(index=BARCODES), pd.DataFrame(index=names or SYMBOLS), **parts)


def write_mtx(folder: Path, x: np.ndarray, files: dict[str, list[str]], matrix: str = "matrix.mtx") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    scipy_io.mmwrite(folder / "m.mtx", sparse.coo_matrix(x.astype(int)))
    (folder / "m.mtx").rename(folder / matrix)
    for name, lines in files.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder


def write_csv(path: Path, names: list[str], *, genes_in_rows: bool, corner: str = "", sep: str = ",") -> Path:
    table = pd.DataFrame(X.astype(int), BARCODES, names)
    path.write_text((table.T if genes_in_rows else table).to_csv(sep=sep, index_label=corner))
    return path


def gene_ids(pattern: str) -> list[str]:
    return [pattern.format(i) for i in range(60)]


IDENTIFIERS = {
    "human": "ENSG{:011d}", "versioned": "ENSG{:011d}.12", "mouse": "ENSMUSG{:011d}", "zebrafish": "ENSDARG{:011d}",
    "fly": "FBgn{:07d}", "worm": "WBGene{:08d}", "Arabidopsis": "AT1G{:05d}", "rice": "LOC_Os01g{:05d}",
    "maize": "Zm00001d{:06d}", "tomato": "Solyc01g{:06d}.2", "yeast": "YAL{:03d}C", "Plasmodium": "PF3D7_{:07d}",
    "soybean": "Glyma.01G{:06d}", "wheat": "TraesCS1A02G{:06d}",
}  # fmt: skip


@pytest.mark.parametrize("species", IDENTIFIERS)
@pytest.mark.parametrize("genes_in_rows", [True, False])
def test_tables_are_turned_by_the_identifiers_of_many_species(
    species: str, genes_in_rows: bool, tmp_path: Path
) -> None:
    names = gene_ids(IDENTIFIERS[species])
    path = write_csv(tmp_path / "x.csv", names, genes_in_rows=genes_in_rows)
    table = pd.read_csv(path, index_col=0)
    cells = [f"sample{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(60)]  # no barcodes
    axis = 1 if genes_in_rows else 0
    table.set_axis(cells, axis=axis).to_csv(path)
    read = read_input([path])
    assert read.var_names.tolist() == names
    np.testing.assert_array_equal(read.X.toarray(), X)


@pytest.mark.parametrize("species", IDENTIFIERS)
def test_a_swapped_h5ad_is_refused_for_every_species(species: str, tmp_path: Path) -> None:
    plain(gene_ids(IDENTIFIERS[species])).T.copy().write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(InputError, match=r"genes and cells seem to be swapped .*transpose: true for genes in rows"):
        read_input([tmp_path / "x.h5ad"])
    read = read_input([tmp_path / "x.h5ad"], transpose=True)
    np.testing.assert_array_equal(read.X.toarray(), X)


def test_names_that_tell_nothing_are_refused_until_told(tmp_path: Path) -> None:
    """Neither the names nor the few sums of a small table tell; a wrong guess would train on cells as genes."""
    (tmp_path / "x.csv").write_text(",eve,Notch,hh\nalpha,1,0,2\nbeta,0,3,0\n")
    with pytest.raises(InputError, match=r"cannot tell which are genes and which are cells .*transpose: true"):
        read_input([tmp_path / "x.csv"])
    assert read_input([tmp_path / "x.csv"], transpose=False).var_names.tolist() == ["eve", "Notch", "hh"]
    assert read_input([tmp_path / "x.csv"], transpose=True).var_names.tolist() == ["alpha", "beta"]
    (tmp_path / "x.csv").write_text("gene,eve,Notch,hh\nalpha,1,0,2\nbeta,0,3,0\n")
    assert read_input([tmp_path / "x.csv"]).var_names.tolist() == ["alpha", "beta"]


def test_a_swapped_h5ad_without_telling_names_is_refused_by_its_sums(tmp_path: Path) -> None:
    names = [f"alpha{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(60)]
    upright = AnnData(sparse.csr_matrix(X), pd.DataFrame(index=names), pd.DataFrame(index=[f"x{n}" for n in names]))
    upright.write_h5ad(tmp_path / "x.h5ad")
    np.testing.assert_array_equal(read_input([tmp_path / "x.h5ad"]).X.toarray(), X)
    upright.T.copy().write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(InputError, match="genes and cells seem to be swapped"):
        read_input([tmp_path / "x.h5ad"])


def test_a_square_matrix_with_cells_in_rows_is_refused_until_told(tmp_path: Path) -> None:
    files = {"genes.tsv": [f"ENSG{i:011d}\t{name}" for i, name in enumerate(SYMBOLS)], "barcodes.tsv": BARCODES}
    good = write_mtx(tmp_path / "good", X.T, files)
    np.testing.assert_array_equal(read_input([good]).X.toarray(), X)
    swapped = write_mtx(tmp_path / "swapped", X, files)
    with pytest.raises(InputError, match=r"as many rows as columns .60., and cannot tell which are genes.*transpose"):
        read_input([swapped])
    np.testing.assert_array_equal(read_input([swapped], transpose=False).X.toarray(), X)
    kallisto = {"cells_x_genes.genes.txt": SYMBOLS, "cells_x_genes.barcodes.txt": BARCODES}
    folder = write_mtx(tmp_path / "kallisto", X, kallisto, "cells_x_genes.mtx")
    np.testing.assert_array_equal(read_input([folder]).X.toarray(), X)


def types_of(folder: Path, kind: str) -> Path:
    """Genes, three antibodies, two guides, a peak and a spike-in, in one of the formats."""
    names = [*SYMBOLS[:53], "CD3_A", "CD4_A", "CD8_A", "g1", "g2", "chr1:100-2000", "ERCC-00002"]
    types = ["Gene Expression"] * 53 + ["Antibody Capture"] * 3 + ["CRISPR Guide Capture"] * 2 + ["Peaks", "Spike-in"]
    adata = plain(names)
    adata.var["feature_types"] = types
    if kind == "h5ad":
        adata.write_h5ad(folder / "x.h5ad")
        return folder / "x.h5ad"
    if kind == "zarr":
        adata.write_zarr(folder / "x.zarr")
        return folder / "x.zarr"
    if kind == "loom":
        loompy = pytest.importorskip("loompy")  # write_loom of anndata 0.13 takes its X for a layer without a name
        of_genes = {"var_names": np.array(names), "feature_types": np.array(types)}
        loompy.create(
            str(folder / "x.loom"), X.T.astype(np.float32), of_genes, {"obs_names": np.array(adata.obs_names)}
        )
        return folder / "x.loom"
    lines = [f"ID{i}\t{name}\t{type_}" for i, (name, type_) in enumerate(zip(names, types, strict=True))]
    return write_mtx(folder / "m", X.T, {"features.tsv": lines, "barcodes.tsv": BARCODES})


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["h5ad", "zarr", "loom", "mtx"])
def test_other_features_are_left_out_or_chosen_in_every_format(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = types_of(tmp_path, kind)
    genes = read_input([path])
    np.testing.assert_array_equal(genes.X.toarray(), X[:, :53])
    assert "7 features were left out: 3 of type Antibody Capture, 2 of type CRISPR Guide Capture, 1 of" in caplog.text
    antibodies = read_input([path], feature_types=["Antibody Capture"])
    np.testing.assert_array_equal(antibodies.X.toarray(), X[:, 53:56])
    with pytest.raises(InputError, match=r"has no features of type 'Antibodies'.*Did you mean 'Antibody Capture'"):
        read_input([path], feature_types=["Antibodies"])


def test_biotypes_are_no_feature_types(tmp_path: Path) -> None:
    adata = plain()
    adata.var["feature_type"] = ["protein_coding", "lncRNA"] * 30
    adata.write_h5ad(tmp_path / "x.h5ad")
    assert read_input([tmp_path / "x.h5ad"]).n_vars == 60


LAYOUTS = (
    "alevin", "alevin-fry, spliced and unspliced", "Parse, old names, with a prefix", "STARsolo, raw beside filtered",
    "BD Rhapsody", "R write.table", "semicolons", "byte order mark", "UTF-16 of Excel",
    "csv gzipped without suffix", "csv called gz that is none", "matrix gzipped without suffix", "a path with braces",
    "h5ad, almost integers", "h5ad, symbols beside identifiers", "h5ad, CSC of 16 bits", "h5ad, CSR of float16",
    "h5ad, other byte order", "h5ad of 2018", "kallisto, filtered beside unfiltered", "bustools", "featureCounts",
    "columns of identifiers and symbols", "separators at the ends of lines", "header with a hash",
    "matrix with a byte order mark",
)  # fmt: skip


def layout_of(folder: Path, kind: str) -> Path:
    """The counts in the layout of a tool."""
    ids = [f"ENSG{i:011d}" for i in range(60)]
    ten_x = {
        "features.tsv": [f"{i}\t{n}\tGene Expression" for i, n in zip(ids, SYMBOLS, strict=True)],
        "barcodes.tsv": BARCODES,
    }
    three = np.hstack([X // 2, X + 5, X - X // 2])
    return {
        "alevin": lambda: write_mtx(
            folder / "alevin", X, {"quants_mat_cols.txt": SYMBOLS, "quants_mat_rows.txt": BARCODES}, "quants_mat.mtx"
        ),
        "alevin-fry, spliced and unspliced": lambda: (
            write_mtx(
                folder / "fry/alevin",
                three,
                {
                    "quants_mat_cols.txt": [f"{n}{s}" for s in ("", "-U", "-A") for n in SYMBOLS],
                    "quants_mat_rows.txt": BARCODES,
                },
                "quants_mat.mtx",
            ).parent
        ),
        "Parse, old names, with a prefix": lambda: write_mtx(
            folder / "parse",
            X,
            {
                "GSM1_genes.csv": [
                    "gene_id,gene_name,genome",
                    *(f"{i},{n},hg38" for i, n in zip(ids, SYMBOLS, strict=True)),
                ],
                "GSM1_cell_metadata.csv": ["bc_wells,sample", *(f"{b},s1" for b in BARCODES)],
            },
            "GSM1_DGE.mtx",
        ),
        "STARsolo, raw beside filtered": lambda: [
            write_mtx(folder / "Solo.out/Gene/raw", X.T + 1, ten_x),
            write_mtx(folder / "Solo.out/Gene/filtered", X.T, ten_x),
        ][1].parents[1],
        "BD Rhapsody": lambda: rhapsody(folder / "x_RSEC_MolsPerCell.csv"),
        "R write.table": lambda: r_table(folder / "x.txt"),
        "semicolons": lambda: write_csv(folder / "x.csv", SYMBOLS, genes_in_rows=True, corner="gene", sep=";"),
        "byte order mark": lambda: bom(write_csv(folder / "x.csv", SYMBOLS, genes_in_rows=False)),
        "UTF-16 of Excel": lambda: bom(write_csv(folder / "x.txt", SYMBOLS, genes_in_rows=True, sep="\t"), "utf-16"),
        "csv gzipped without suffix": lambda: packed(write_csv(folder / "x.csv", SYMBOLS, genes_in_rows=True)),
        "csv called gz that is none": lambda: write_csv(folder / "x.csv.gz", SYMBOLS, genes_in_rows=True),
        "matrix gzipped without suffix": lambda: packed(write_mtx(folder / "m", X.T, ten_x) / "matrix.mtx").parent,
        "a path with braces": lambda: write_mtx(folder / "{sample} [1]", X.T, ten_x),
        "h5ad, almost integers": lambda: h5ad(folder, AnnData(X.astype(float) * (1 + 1e-9), plain().obs, plain().var)),
        "h5ad, symbols beside identifiers": lambda: h5ad(folder, symbols_beside()),
        "h5ad, CSC of 16 bits": lambda: h5ad(
            folder, AnnData(sparse.csc_matrix(X.astype(np.uint16)), plain().obs, plain().var)
        ),
        "h5ad, CSR of float16": lambda: stored_as(h5ad(folder, plain()), "X/data", np.float16),
        "h5ad, other byte order": lambda: stored_as(
            h5ad(folder, AnnData(X, plain().obs, plain().var)), "X", np.dtype(np.float32).newbyteorder("S")
        ),
        "h5ad of 2018": lambda: old_h5ad(folder / "x.h5ad"),
        "kallisto, filtered beside unfiltered": lambda: (
            [
                write_mtx(
                    folder / "kb" / name,
                    X + add,
                    {"cells_x_genes.genes.txt": SYMBOLS, "cells_x_genes.barcodes.txt": BARCODES},
                    "cells_x_genes.mtx",
                )
                for name, add in (("counts_unfiltered", 1), ("counts_filtered", 0))
            ][1].parent
        ),
        "bustools": lambda: write_mtx(
            folder / "bus", X, {"output.genes.txt": SYMBOLS, "output.barcodes.txt": BARCODES}, "output.mtx"
        ),
        "featureCounts": lambda: feature_counts(folder / "counts.txt"),
        "columns of identifiers and symbols": lambda: described(folder / "x.tsv", ids),
        "separators at the ends of lines": lambda: edited(
            write_csv(folder / "x.csv", SYMBOLS, genes_in_rows=True), lambda text: text.replace("\n", ",\r\n")
        ),
        "header with a hash": lambda: edited(
            write_csv(folder / "x.tsv", SYMBOLS, genes_in_rows=True, corner="gene", sep="\t"), lambda text: "#" + text
        ),
        "matrix with a byte order mark": lambda: bom(write_mtx(folder / "m", X.T, ten_x) / "matrix.mtx").parent,
    }[kind]()


def edited(path: Path, edit: Callable[[str], str]) -> Path:
    path.write_bytes(edit(path.read_text()).encode())
    return path


def stored_as(path: Path, key: str, dtype: object) -> Path:
    """An h5ad file, an array of which is stored in another type, as other tools than anndata do."""
    with h5py.File(path, "a") as file:
        values, attributes = file[key][:], dict(file[key].attrs)
        del file[key]
        file[key] = values.astype(dtype)
        file[key].attrs.update(attributes)
    return path


def old_h5ad(path: Path) -> Path:
    """As anndata 0.6 wrote it: tables as arrays of records, categories in uns."""
    with h5py.File(path, "w") as file:
        obs = np.zeros(60, dtype=[("index", "S30"), ("cell_type", "i1")])
        obs["index"], obs["cell_type"] = BARCODES, np.arange(60) % 2
        var = np.zeros(60, dtype=[("index", "S30")])
        var["index"] = SYMBOLS
        file["obs"], file["var"] = obs, var
        file["uns/cell_type_categories"] = np.array(["B", "T"], dtype="S")
        x, group = sparse.csr_matrix(X), file.create_group("X")
        group.attrs["h5sparse_format"], group.attrs["h5sparse_shape"] = "csr", X.shape
        group["data"], group["indices"], group["indptr"] = x.data, x.indices, x.indptr
    return path


def feature_counts(path: Path) -> Path:
    """Of subread: where each gene lies, and its length, which is a number, before the counts."""
    table = pd.DataFrame(X.T.astype(int), SYMBOLS, [f"/data/{name}.bam" for name in BARCODES])
    for i, (name, value) in enumerate(
        {"Chr": "1;1", "Start": "1;9", "End": "4;12", "Strand": "+;+", "Length": 8}.items()
    ):
        table.insert(i, name, value)
    command = '# Program:featureCounts v2.0.1; Command:"featureCounts" "-T" "4"\n'
    path.write_text(command + table.to_csv(sep="\t", index_label="Geneid"))
    return path


def described(path: Path, ids: list[str]) -> Path:
    table = pd.DataFrame(X.T.astype(int), ids, BARCODES)
    table.insert(0, "gene_name", SYMBOLS)
    path.write_text(table.to_csv(sep="\t", index_label="gene_id"))
    return path


def rhapsody(path: Path) -> Path:
    table = pd.DataFrame(X.astype(int), range(1000, 1060), SYMBOLS).to_csv(index_label="Cell_Index")
    path.write_text("####\n## BD Targeted, pipeline 1.9\n## Sample: x, y, z\n####\n" + table)
    return path


def r_table(path: Path) -> Path:
    """Spaces, quotes, and no name of the first column."""
    lines = [" ".join(f'"{name}"' for name in BARCODES)]
    lines += [" ".join([f'"{name}"', *map(str, row)]) for name, row in zip(SYMBOLS, X.T.astype(int), strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def bom(path: Path, encoding: str = "utf-8-sig") -> Path:
    path.write_bytes(path.read_text().encode(encoding))
    return path


def packed(path: Path) -> Path:
    path.write_bytes(gzip.compress(path.read_bytes()))
    return path


def h5ad(folder: Path, adata: AnnData) -> Path:
    adata.write_h5ad(folder / "x.h5ad")
    return folder / "x.h5ad"


def symbols_beside() -> AnnData:
    adata = plain(gene_ids("ENSMUSG{:011d}"))
    adata.var["Symbol"] = SYMBOLS
    return adata


@pytest.mark.parametrize("kind", LAYOUTS)
def test_layouts_of_many_tools_give_the_same_counts(kind: str, tmp_path: Path) -> None:
    path = layout_of(tmp_path, kind)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    read = read_input([path])
    np.testing.assert_array_equal(read.X.toarray(), X)
    assert read.var_names.tolist() == SYMBOLS
    assert len(files_of(path)) in (1, 3)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.filterwarnings("ignore::anndata.OldFormatWarning")
@pytest.mark.parametrize("kind", ["h5ad", "h5ad of 2018", "loom"])
def test_the_header_of_a_file_is_read_without_its_matrix(kind: str, tmp_path: Path) -> None:
    path = h5ad(tmp_path, plain()) if kind == "h5ad" else old_h5ad(tmp_path / "x.h5ad")
    if kind == "loom":
        path = loom(tmp_path / "x.loom")
    with h5py.File(path, "a") as file:  # what cannot be read is not read
        del file["matrix" if kind == "loom" else "X/data"]
        file["matrix" if kind == "loom" else "X/data"] = np.array(["no", "numbers"], dtype="S")
    header = read_input([path], counts=False)
    assert header.shape == (60, 60)
    assert header.var_names.tolist() == SYMBOLS
    with pytest.raises(InputError):
        read_input([path])


def loom(path: Path, genes: str = "Gene", cells: str = "CellID") -> Path:
    with h5py.File(path, "w") as file:
        file["matrix"], file["layers/spliced"] = X.T, (X // 2).T
        file[f"row_attrs/{genes}"], file[f"col_attrs/{cells}"] = np.array(SYMBOLS, "S"), np.array(BARCODES, "S")
        file["col_attrs/donor"], file["col_attrs/umap"] = np.array(["a", "b"] * 30, "S"), X[:, :2]
    return path


def test_loom_is_read_with_layers_and_attributes_of_any_shape(tmp_path: Path) -> None:
    read = read_input([loom(tmp_path / "x.loom")])
    np.testing.assert_array_equal(read.X.toarray(), X)
    assert read.obs["donor"].tolist() == ["a", "b"] * 30
    np.testing.assert_array_equal(read.obsm["umap"], X[:, :2])
    spliced = read_input([tmp_path / "x.loom"], layer="spliced")
    np.testing.assert_array_equal(spliced.X.toarray(), X // 2)


@pytest.mark.parametrize("kind", ["csr", "csc", "10x"])
def test_indices_outside_of_a_matrix_are_refused(kind: str, tmp_path: Path) -> None:
    """scipy's compiled code would write there: the process died, or other numbers changed."""
    path = h5ad(tmp_path, plain())
    if kind == "csc":
        h5ad(tmp_path, AnnData(sparse.csc_matrix(X), plain().obs, plain().var))
    if kind == "10x":
        with h5py.File(tmp_path / "x.h5ad") as old, h5py.File(tmp_path / "x.h5", "w") as new:
            for name in ("data", "indices", "indptr"):
                new[f"matrix/{name}"] = old[f"X/{name}"][:]
            new["matrix/barcodes"], new["matrix/features/name"] = np.array(BARCODES, "S"), np.array(SYMBOLS, "S")
        path = tmp_path / "x.h5"
    key = "matrix" if kind == "10x" else "X"
    np.testing.assert_array_equal(read_input([path]).X.toarray(), X)
    with h5py.File(path, "a") as file:
        file[f"{key}/indices"][5] = 10**6
    with pytest.raises(InputError, match=r"cannot be read as .*: .*(indices|values) must be < 60.*may be damaged"):
        read_input([path])


def test_exchanged_tables_are_refused_until_they_are_said_to_be_right(tmp_path: Path) -> None:
    folder = write_mtx(tmp_path / "m", X[:40].T, {"barcodes.tsv": SYMBOLS, "features.tsv": BARCODES[:40]})
    with pytest.raises(InputError, match=r"seem to be swapped.*exchange the two files.*transpose: false"):
        read_input([folder])
    assert read_input([folder], transpose=False).obs_names.tolist() == SYMBOLS


def test_a_table_that_is_no_matrix_of_counts_is_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "x.csv", SYMBOLS, genes_in_rows=True, corner="gene")
    text = path.read_text()
    lines = text.splitlines()
    wrong = {
        re.sub(r",0(?=[,\n])", ",FALSE", re.sub(r",[1-9]\d*(?=[,\n])", ",TRUE", text)): "holds text .e.g. 'True'.",
        "\n".join([*lines[:5], f"{lines[5]},3", *lines[6:]]): "Expected 61 fields in line",
        "\n".join([lines[0], *(f"{line},1,2" for line in lines[1:])]): "first row has 61 fields, the line below 63",
        "\n".join(
            [*lines[:5], lines[5].rsplit(",", 2)[0], *lines[6:]]
        ): "the count of 'NDUFA4' in column .* is missing",
    }
    for changed, message in wrong.items():
        path.write_text(changed)
        with pytest.raises(InputError, match=message):
            read_input([path])
    path.write_bytes(text.replace("MT-CO1", "Gen é").encode("latin-1"))
    with pytest.raises(InputError, match=r"is not text in UTF-8 .byte 0xe9.*iconv"):
        read_input([path])


def test_a_folder_of_files_says_how_they_are_listed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        plain().write_h5ad(tmp_path / f"{name}.h5ad")
    with pytest.raises(InputError, match=r"List its files: input: \[.*/a.h5ad, .*/b.h5ad\]\."):
        read_input([tmp_path])


def test_words_of_10x_leave_out_whatever_is_not_gene_expression(tmp_path: Path) -> None:
    adata = plain()
    adata.var["feature_types"] = ["Gene Expression"] * 50 + ["Metabolite"] * 10
    np.testing.assert_array_equal(read_input([h5ad(tmp_path, adata)]).X.toarray(), X[:, :50])
    names = [*SYMBOLS[:58], "CD3:UCHT1|CD3E|AHS0231|pAbO", "CD4:SK3|CD4|AHS0032|pAbO"]  # AbSeq of BD
    np.testing.assert_array_equal(read_input([h5ad(tmp_path, plain(names))]).X.toarray(), X[:, :58])


def test_columns_of_cells_beside_a_matrix_have_their_types(tmp_path: Path) -> None:
    files = {
        "all_genes.csv": ["gene_id,gene_name", *(f"i{i},{name}" for i, name in enumerate(SYMBOLS))],
        "cell_metadata.csv": ["bc_wells,sample,age", *(f"{b},007,{i}" for i, b in enumerate(BARCODES))],
    }
    read = read_input([write_mtx(tmp_path / "parse", X, files, "count_matrix.mtx")])
    assert read.obs["age"].tolist() == list(range(60))
    assert set(read.obs["sample"]) == {"007"}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", ["h5ad", "zarr", "loom"])
def test_a_layer_called_x_does_not_take_the_place_of_the_matrix(form: str, tmp_path: Path) -> None:
    """It was trained on without a word."""
    if form == "loom":
        with h5py.File(loom(tmp_path / "x.loom"), "a") as file:
            file["layers/X"] = X.T + 1
    else:
        adata = plain(layers={"X": sparse.csr_matrix(X + 1)})
        adata.write_h5ad(tmp_path / "x.h5ad") if form == "h5ad" else adata.write_zarr(tmp_path / "x.zarr")
    path = tmp_path / f"x.{form}"
    np.testing.assert_array_equal(read_input([path]).X.toarray(), X)
    np.testing.assert_array_equal(read_input([path], layer="layers/X").X.toarray(), X + 1)


@pytest.mark.parametrize("kind", ["X", "layer", "raw", "layer beside raw"])
def test_a_layer_called_raw(kind: str, tmp_path: Path) -> None:
    adata = plain()
    if kind != "X":
        adata.X = adata.X.log1p()
    if "layer" in kind:
        adata.layers["raw"] = sparse.csr_matrix(X)
    if kind in ("raw", "layer beside raw"):
        adata.raw = AnnData(sparse.csr_matrix(X + (kind != "raw")), adata.obs, adata.var)
    adata.write_h5ad(tmp_path / "x.h5ad")
    layer = {"X": None, "layer beside raw": "layers/raw"}.get(kind, "raw")
    np.testing.assert_array_equal(read_input([tmp_path / "x.h5ad"], layer=layer).X.toarray(), X)
    header = read_input([tmp_path / "x.h5ad"], layer=layer, counts=False)
    assert layer is None or layer in header.uns["ldvae_input"][0]["matrices"]


def test_infinite_values_among_text_are_text(tmp_path: Path) -> None:
    column = pd.Series(["a", np.inf, 1.0, None] * 15, dtype=object)
    assert objects_to_categories(pd.DataFrame({"x": column}))["x"].tolist()[:3] == ["a", "inf", "1"]


def test_names_are_text_whatever_they_look_like(tmp_path: Path) -> None:
    names = ["NA", "nan", "00012", "1e5", "TRUE", "None", "1-Mar", " x", "3.0", "null"]
    cells = ["NA", "007", "nan", "1e3"]
    table = pd.DataFrame(np.arange(1, 41).reshape(4, 10), cells, names)
    table.to_csv(tmp_path / "x.csv", index_label="cell")
    read = read_input([tmp_path / "x.csv"])
    assert read.var_names.tolist() == names
    assert read.obs_names.tolist() == cells
    (tmp_path / "obs.csv").write_text(
        "cell,donor,age,dead\nNA,007,1,TRUE\n007,12,NA,FALSE\nnan,None,3,TRUE\n1e3,,4,TRUE\n"
    )
    obs = read_input([tmp_path / "x.csv"], obs_table=tmp_path / "obs.csv").obs
    assert obs["donor"].astype(object).where(obs["donor"].notna(), "?").tolist() == ["007", "12", "None", "?"]
    assert obs["age"].isna().tolist() == [False, True, False, False]
    assert obs["dead"].tolist() == [True, False, True, True]
    assert read_annotation(tmp_path / "obs.csv").index.tolist() == cells


def test_files_that_share_few_genes_are_refused_with_both_namings(tmp_path: Path) -> None:
    plain().write_h5ad(tmp_path / "a.h5ad")
    plain([*gene_ids("ENSG{:011d}")[:55], *SYMBOLS[:5]]).write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(InputError, match=r"share only 5 of the 60 genes .*a has MT-CO1, .*b has ENSG00000000000"):
        read_input([tmp_path / "a.h5ad", tmp_path / "b.h5ad"])


def test_files_of_an_input_are_those_that_are_read(tmp_path: Path) -> None:
    files = {"genes.tsv": [f"i\t{name}" for name in SYMBOLS], "barcodes.tsv": BARCODES}
    folder = write_mtx(tmp_path / "outs/filtered_feature_bc_matrix", X.T, files)
    (tmp_path / "outs/possorted.bam").touch()
    expected = {"matrix.mtx", "genes.tsv", "barcodes.tsv"}
    for path in (folder, tmp_path / "outs", folder / "matrix.mtx"):
        assert {file.name for file in files_of(path)} == expected
        assert all(file.parent == folder for file in files_of(path))
    assert files_of("demo:pbmc68k") == files_of("https://host/x.h5ad") == []
    for sample in "AB":
        for name in expected:
            shutil.copy(folder / name, (tmp_path / f"GSM1_{sample}_{name}"))
    for name in expected:
        shutil.copy(folder / name, tmp_path / name)
        (tmp_path / name).unlink()
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in tmp_path.glob("GSM1_*"):
        file.rename(flat / file.name)
    assert len(files_of(flat)) == 6
    both = read_input([flat])
    assert both.obs["file"].value_counts().to_dict() == {"GSM1_A": 60, "GSM1_B": 60}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_all_files_of_a_zarr_store_are_its_files(tmp_path: Path) -> None:
    plain().write_zarr(tmp_path / "x.zarr")
    assert set(files_of(tmp_path / "x.zarr")) == {file for file in (tmp_path / "x.zarr").rglob("*") if file.is_file()}


def h5_of_10x(path: Path, **features: list[str]) -> Path:
    """A 10x h5 of version 3."""
    x = sparse.csc_matrix(X.T)
    columns = {"id": IDS, "name": SYMBOLS, "feature_type": ["Gene Expression"] * 60, "genome": ["GRCh38"] * 60}
    with h5py.File(path, "w") as file:
        for name, values in (("data", x.data.astype("i4")), ("indices", x.indices), ("indptr", x.indptr)):
            file[f"matrix/{name}"] = values
        file["matrix/barcodes"] = np.array(BARCODES, "S")
        for name, values in (columns | features).items():
            file[f"matrix/features/{name}"] = np.array(values, "S")
    return path


def h5mu(path: Path, modality: str = "rna") -> Path:
    """As muon writes it: what is known of the cells of all modalities stands above these."""
    adata = plain()
    with h5py.File(path, "w") as file:
        for key, element in (("obs", adata.obs.assign(donor="d1")), ("var", adata.var)):
            anndata.io.write_elem(file, key, element)
        anndata.io.write_elem(file.create_group("mod"), modality, adata)
    return path


def zarr_store(path: Path, within: str = "", drop: str = "", zarr_format: int = 3) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the setting, since anndata 0.13
        with anndata.settings.override(zarr_write_format=zarr_format):
            if within:
                zarr.open_group(str(path), mode="w").create_group(str(Path(within).parent))
            plain().write_zarr(path / within)
    if drop:
        shutil.rmtree(path / drop)
    return path


def text_file(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def tables_of_r(folder: Path, sep: str, header: str, quote: str = '"') -> Path:
    """Names as R's write.csv and write.table write them: row numbers before them, quoted."""

    def lines(names: list[str]) -> list[str]:
        return [header, *(f"{quote}{i}{quote}{sep}{quote}{name}{quote}" for i, name in enumerate(names, 1))]

    suffix = "csv" if sep == "," else "tsv"
    return write_mtx(folder / "m", X.T, {f"genes.{suffix}": lines(SYMBOLS), f"barcodes.{suffix}": lines(BARCODES)})


def counts_table(genes_in_rows: bool = False) -> pd.DataFrame:
    table = pd.DataFrame(X.astype(int), BARCODES, SYMBOLS)
    return table.T if genes_in_rows else table


IDS = gene_ids("ENSG{:011d}")
NORMALISED = X / X.sum(axis=1, keepdims=True)
BY_CONTENT: dict[str, tuple[Callable[[Path], Path], str | list[str]]] = {
    # What is read, entry by entry: names of its genes.
    "zarr 2": (lambda f: zarr_store(f / "x.zarr", zarr_format=2), SYMBOLS),
    "a table of SpatialData": (lambda f: zarr_store(f / "x.zarr", "tables/table"), SYMBOLS),
    "10x h5 called h5ad": (lambda f: h5_of_10x(f / "x.h5ad"), SYMBOLS),
    "loom called h5ad": (lambda f: loom(f / "x.loom").rename(f / "x.h5ad"), SYMBOLS),
    "h5ad called csv": (lambda f: h5ad(f, plain()).rename(f / "x.csv"), SYMBOLS),
    "h5ad without suffix": (lambda f: h5ad(f, plain()).rename(f / "download"), SYMBOLS),
    "h5mu": (lambda f: h5mu(f / "x.h5mu"), SYMBOLS),
    "loom of SCENIC": (lambda f: loom(f / "x.loom", "GeneName", "Cell"), SYMBOLS),
    "tables of write.csv": (lambda f: tables_of_r(f, ",", '"","x"'), SYMBOLS),
    "tables of write.table": (lambda f: tables_of_r(f, " ", '"x"'), SYMBOLS),
    "tables of pandas": (lambda f: tables_of_r(f, ",", ",0", ""), SYMBOLS),
    "quoted names": (
        lambda f: write_mtx(
            f / "m", X.T, {"genes.tsv": [f'"{n}"' for n in SYMBOLS], "barcodes.tsv": [f'"{n}"' for n in BARCODES]}
        ),
        SYMBOLS,
    ),
    "spaces between identifiers and symbols": (
        lambda f: write_mtx(
            f / "m",
            X.T,
            {"genes.tsv": [f"{i} {n}" for i, n in zip(IDS, SYMBOLS, strict=True)], "barcodes.tsv": BARCODES},
        ),
        SYMBOLS,
    ),
    "decimal commas": (
        lambda f: text_file(f / "x.csv", counts_table().astype(float).to_csv(sep=";", decimal=",")),
        SYMBOLS,
    ),
    "reads that htseq-count did not assign": (
        lambda f: text_file(
            f / "x.tsv",
            counts_table(True).to_csv(sep="\t") + "__no_feature" + "\t7" * 60 + "\n",
        ),
        SYMBOLS,
    ),
    # What is refused, and what is said.
    "zarr without the files of an array": (
        lambda f: zarr_store(f / "x.zarr", drop="X/data"),
        "lacks some of the files of X",
    ),
    "zarr of something else": (
        lambda f: [zarr.save(str(f / "x.zarr"), a=np.arange(3)), f / "x.zarr"][1],
        "is of no AnnData: it lacks obs, and holds a",
    ),
    "proteins of muon": (lambda f: h5mu(f / "x.h5mu", "prot"), "has no modality called rna or gex; found prot"),
    "a link to nowhere": (
        lambda f: [(f / "x.h5ad").symlink_to(f / "gone"), f / "x.h5ad"][1],
        "is a link to .*gone, which does not",
    ),
    "an empty file": (lambda f: text_file(f / "x.h5ad", b""), "is empty. Copy or download it again"),
    "an empty table": (lambda f: text_file(f / "x.csv", b""), "is empty. Copy or download it again"),
    "an empty list of cells": (
        lambda f: write_mtx(f / "m", X.T, {"features.tsv": SYMBOLS, "barcodes.tsv": []}),
        "barcodes.tsv: is empty",
    ),
    "a web page": (lambda f: text_file(f / "x.h5ad", "<!DOCTYPE html>\n<html>404</html>"), "is a web page"),
    "a pointer of Git LFS": (
        lambda f: text_file(f / "x.csv", "version https://git-lfs.github.com/spec/v1\n"),
        "git lfs pull",
    ),
    "a sheet of Excel": (lambda f: text_file(f / "x.csv", b"PK\x03\x04"), "is a zip archive, or a sheet of Excel"),
    "an archive in gzip": (
        lambda f: text_file(f / "x.csv.gz", gzip.compress(b"x.csv".ljust(257, b"\0") + b"ustar")),
        "is a tar archive. Unpack it",
    ),
    "an R object called csv": (
        lambda f: text_file(f / "x.csv", gzip.compress(b"X\n\0\0\0\x03")),
        "is a file of R. Convert",
    ),
    "a table called h5ad": (
        lambda f: text_file(f / "x.h5ad", counts_table().to_csv()),
        "is no HDF5 file, but text, which begins with ',MT-CO1.*call it .csv",
    ),
    "gzip cut short": (
        lambda f: text_file(f / "x.csv.gz", gzip.compress(counts_table().to_csv().encode())[:15]),
        "is gzipped, but cut short or damaged",
    ),
    "a table without names of cells": (
        lambda f: text_file(f / "x.csv", counts_table().to_csv(index=False)),
        "lacks the names of its rows: the first column, called 'MT-CO1', holds numbers",
    ),
    "a table without names of genes": (
        lambda f: text_file(f / "x.csv", counts_table(True).to_csv(index=False)),
        "lacks the names of its rows: the first column, called 'ACGTACGTACGTAAA-1'",
    ),
    "thousands with commas": (
        lambda f: text_file(f / "x.tsv", counts_table().to_csv(sep="\t").replace("\t3\t", "\t1,003,000\t", 1)),
        "holds text .e.g. '1,003,000'.* Write numbers without marks between",
    ),
    "counts per million": (
        lambda f: h5ad(f, AnnData(NORMALISED * 1e6, plain().obs, plain().var)),
        "they look normalized to 1000000 counts per cell",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", BY_CONTENT)
def test_a_file_is_what_it_holds_whatever_it_is_called(kind: str, tmp_path: Path) -> None:
    make, expected = BY_CONTENT[kind]
    path = make(tmp_path)
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected) as caught:
            read_input([path])
        assert "\n" not in str(caught.value)
        return
    read = read_input([path])
    np.testing.assert_array_equal(read.X.toarray(), X)
    assert read.var_names.tolist() == expected
    assert read.obs_names.tolist() == BARCODES
    assert kind != "h5mu" or read.obs["donor"].tolist() == ["d1"] * 60


def test_counts_that_were_normalized_and_rounded_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read_input([h5ad(tmp_path, AnnData(np.rint(NORMALISED * 1e4), plain().obs, plain().var))])
    assert "all cells have about the same total (9999), as if their counts were normalized" in caplog.text


def test_files_named_alike_are_told_why_they_share_no_gene(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    named = plain(IDS)
    named.var["gene_name"] = SYMBOLS
    others = {
        "differ in the versions of the identifiers alone": plain([f"{name}.3" for name in IDS]),
        "called alike by their identifiers: gene_names: index": named,
        "differ in capital letters alone": plain([name.lower() for name in IDS]),
    }
    plain(IDS).write_h5ad(tmp_path / "a.h5ad")
    for message, other in others.items():
        other.write_h5ad(tmp_path / "b.h5ad")
        with pytest.raises(InputError, match=message):
            read_input([tmp_path / "a.h5ad", tmp_path / "b.h5ad"])
    named.write_h5ad(tmp_path / "b.h5ad")
    assert read_input([tmp_path / "a.h5ad", tmp_path / "b.h5ad"], gene_names="index").n_vars == 60
    assert "a and b hold the same cells with the same counts" in caplog.text
    caplog.clear()
    read_input([tmp_path / "a.h5ad", tmp_path / "b.h5ad"], gene_names="index", chunked=True)
    assert "a and b hold the same cells with the same counts" in caplog.text
    with pytest.raises(InputError, match="is named twice among the input files"):
        read_input([tmp_path / "a.h5ad", tmp_path / "." / "a.h5ad"], ["x", "y"])


def test_gene_sets_are_read_from_every_variant_of_gmt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = {"one": ["CD3E", "ACTB"], "two": ["RPL3"]}
    plain_text = "one\thttp://x\tCD3E\tACTB\ntwo\t\tRPL3\n"
    for text in (
        plain_text,
        plain_text.replace("\n", "\r\n"),
        "\ufeff" + plain_text,
        "# of MSigDB\n\n" + plain_text.replace("\n", "\t\t\n"),
        plain_text.replace("CD3E", '"CD3E"').replace("ACTB", "ACTB\tCD3E"),
        "one\t\tCD3E,1.0\tACTB,2e-05\ntwo\t\tRPL3,1\n",  # Enrichr
        '{"one": {"systematicName": "M1", "geneSymbols": ["CD3E", "ACTB"]}, "two": ["RPL3"]}',
    ):
        (tmp_path / "x.gmt").write_bytes(text.encode())
        assert read_gmt(tmp_path / "x.gmt") == expected
    assert not caplog.records
    (tmp_path / "x.gmt").write_text("one\t\tCD3E\none\t\tACTB\ntwo\t\tRPL3\nthree\tnothing\n")
    assert read_gmt(tmp_path / "x.gmt") == expected | {"three": []}
    assert "1 term in more than one line, such as 'one'; the genes of these lines are taken together" in caplog.text
    assert "1 set without a gene, such as 'three'" in caplog.text
    for text, found in {"one CD3E ACTB\n": "1 field;", "one\tCD3E\ntwo\tACTB\n": "2 fields"}.items():
        (tmp_path / "x.gmt").write_text(text)
        with pytest.raises(InputError, match=f"line 1 has {found}.*Give a GMT file"):
            read_gmt(tmp_path / "x.gmt")


def test_lists_of_genes_and_tables_of_cells_may_have_quotes_and_decimal_commas(tmp_path: Path) -> None:
    (tmp_path / "genes.txt").write_bytes(b'\xef\xbb\xbf"CD3E"\r\n"5S_rRNA"\r\nCD3E\r\n')
    assert read_gene_list(tmp_path / "genes.txt") == ["CD3E", "5S_rRNA"]
    (tmp_path / "cells.csv").write_text("cell;age;stage\na;1,5;1,a\nb;2;2\nc;NA;3\n")
    table = read_annotation(tmp_path / "cells.csv")
    assert table["age"].tolist()[:2] == [1.5, 2]
    assert table["stage"].tolist() == ["1,a", "2", "3"]


@pytest.mark.parametrize("levels", [["yes"], ["True"]])  # `subset: [yes]` is true for YAML
def test_levels_of_a_subset_are_those_that_yaml_may_have_read_otherwise(levels: list[str], tmp_path: Path) -> None:
    adata = plain()
    adata.obs["smoker"] = ["yes", "no"] * 30
    assert read_input([h5ad(tmp_path, adata)], subset_key="smoker", subset=levels).n_obs == 30


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("n_files", [1, 2])
@pytest.mark.parametrize("chunked", [False, True])
def test_raw_and_pairs_of_cells_and_genes_are_kept(n_files: int, chunked: bool, tmp_path: Path) -> None:
    adata = plain(layers={"counts": sparse.csr_matrix(X)})
    adata.X = adata.X.log1p()
    adata.raw = adata.copy()
    adata = adata[:, 5:].copy()  # raw has all genes
    adata.obsp["kin"], adata.varp["near"] = sparse.csr_matrix(np.eye(60) * 2), np.eye(55) * 3
    adata.varm["PCs"] = np.arange(110.0).reshape(55, 2)
    adata.uns["neighbors"] = {"connectivities_key": "kin", "distances_key": "kin", "params": {"n_neighbors": 3}}
    paths = [tmp_path / f"{i}.h5ad" for i in range(n_files)]
    for i, path in enumerate(paths):
        adata.obs_names = [f"{name}_{i}" for name in BARCODES]
        adata.write_h5ad(path)
    read = read_input(paths, layer="counts", layers=True, chunked=chunked)
    n = 60 * n_files
    raw = read.uns.pop("ldvae_raw") if chunked else RawMatrix(ChunkedMatrix((LoadedMatrix(read.raw.X),)), read.raw.var)
    assert [name for name in read.layers if name is not None] == ([] if chunked else ["input_X"])
    layers = read.uns.pop("ldvae_layers") if chunked else {}
    assert list(layers) == (["input_X"] if chunked else [])
    np.testing.assert_array_equal(raw.matrix.stored(np.arange(n)).toarray(), np.tile(np.log1p(X), (n_files, 1)))
    assert raw.var.index.tolist() == SYMBOLS
    np.testing.assert_array_equal(read.obsp["kin"].toarray(), 2 * np.eye(n))
    np.testing.assert_array_equal(read.varp["near"], 3 * np.eye(55))
    np.testing.assert_array_equal(read.varm["PCs"], adata.varm["PCs"])
    kept = read[10:50].copy()
    others = others_apart(kept)
    assert "neighbors" not in kept.uns
    others.write_h5ad(tmp_path / "layers.h5ad")
    some = np.arange(10, 50)
    of_kept = {name: matrix.take(some) for name, matrix in layers.items()}
    write_matrices(tmp_path / "layers.h5ad", of_kept, raw._replace(matrix=raw.matrix.take(some)))
    own_layers, own_raw = layers_of(kept, tmp_path / "layers.h5ad")
    expected, everyone = np.tile(np.log1p(X), (n_files, 1))[10:50], np.arange(40)
    np.testing.assert_array_equal(own_raw.matrix.stored(everyone).toarray(), expected)
    layer = own_layers["input_X"].stored(everyone) if chunked else kept.layers["input_X"]
    np.testing.assert_array_equal(layer.toarray(), expected[:, 5:])
    assert kept.obsp["kin"].sum() == 2 * 40
    assert ("neighbors" in kept.uns) == (n_files == 1)  # of several files, each had its own


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("chunked", [False, True])
def test_neighbors_of_an_old_scanpy_are_kept_for_the_cells_that_are_kept(chunked: bool, tmp_path: Path) -> None:
    adata = plain()
    graph = sparse.csr_matrix(np.eye(60))
    adata.uns["neighbors"] = {"connectivities": graph, "distances": 2 * graph, "params": {"n_neighbors": 3}}
    adata.obs["half"] = np.where(np.arange(60) < 30, "first", "second")
    path = h5ad(tmp_path, adata)
    read = read_input([path], layers=True, chunked=chunked, subset_key="half", subset=["first"])
    assert read.uns["neighbors"]["connectivities_key"] == "connectivities"
    assert read.obsp["distances"].sum() == 2 * 30
    others = others_apart(read[5:20].copy())
    assert others.obsp["connectivities"].shape == (15, 15)
    assert "neighbors" not in read_input([path], subset_key="half", subset=["first"]).uns


def test_raws_that_share_no_gene_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = []
    for i in range(2):
        adata = plain()
        adata.raw = AnnData(adata.X, adata.obs, pd.DataFrame(index=[f"{name}_{i}" for name in adata.var_names]))
        adata.obs_names = [f"{name}_{i}" for name in BARCODES]
        adata.write_h5ad(tmp_path / f"{i}.h5ad")
        paths.append(tmp_path / f"{i}.h5ad")
    read = read_input(paths, layers=True, chunked=True)
    assert "ldvae_raw" not in read.uns
    assert "raw is left out: those of the 2 files share no gene." in caplog.text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("chunked", [False, True])
def test_a_layer_with_a_slash_in_its_name_has_an_underscore(chunked: bool, tmp_path: Path) -> None:
    path = h5ad(tmp_path, plain())
    with h5py.File(path, "a") as file:
        anndata.io.write_elem(file.require_group("layers/spliced"), "all", sparse.csr_matrix(X))
        anndata.io.write_elem(file["layers"], "plain", X)
    read = read_input([path], layers=True, chunked=chunked)
    layers = read.uns["ldvae_layers"] if chunked else {name: x for name, x in read.layers.items() if name is not None}
    assert set(layers) == {"spliced_all", "plain"}


def test_names_of_10x_are_utf_8_whatever_their_type_says(tmp_path: Path) -> None:
    names = [name.encode() for name in SYMBOLS]
    names[3] = "TNFα".encode()
    assert read_input([h5_of_10x(tmp_path / "counts.h5", name=names)]).var_names[3] == "TNFα"


# Random data

text = st.one_of(
    st.sampled_from(
        ["", "NA", "nan", "00012", "1e5", "x/y", "_index", "MT-CO1", "ACGTACGTACGT-1", " ", "é", "a,b", '"', "None"]
    ),
    st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=6),
)
ENTRY_NAMES = ["counts", "raw", "X", "leiden", "a b", "é", "input_X", "X_umap", "spatial"]
DTYPES = ["float16", "float32", "float64", "int8", "int32", "int64", "uint8", "uint16", "uint64", "bool"]
MAKERS: dict[str, Callable[[np.ndarray], object]] = {
    "dense": np.asarray, "csr": sparse.csr_matrix, "csc": sparse.csc_matrix,
}  # fmt: skip


class Case(NamedTuple):
    """Random data, how they are stored and how they are read."""

    adata: AnnData
    zarr: bool
    layer: str | None
    transpose: bool | None


@st.composite
def matrices(draw: st.DrawFn, n_obs: int, n_vars: int) -> object:
    x = np.array(draw(st.lists(st.integers(0, 3), min_size=n_obs * n_vars, max_size=n_obs * n_vars)))
    x = x.reshape(n_obs, n_vars).astype(draw(st.sampled_from(DTYPES)))
    if x.dtype.kind == "f" and draw(st.integers(0, 3)) == 0:
        x[0, 0] = draw(st.sampled_from([0.5, -1, np.nan, np.inf, 7, 2**25]))
    return MAKERS[draw(st.sampled_from(sorted(MAKERS))) if x.dtype != np.float16 else "dense"](x)


@st.composite
def columns(draw: st.DrawFn, n: int) -> pd.Series:
    """A column as people have them: text, numbers, nullable types, categories of any of them, in order or not."""
    values = {
        "text": text,
        "float": st.floats(allow_nan=True),
        "bool": st.booleans(),
        "int": st.integers(-3, 3),
        "Int64": st.one_of(st.none(), st.integers(-3, 3)),
        "boolean": st.one_of(st.none(), st.booleans()),
        "string": st.one_of(st.none(), text),
    }
    kind = draw(st.sampled_from(sorted(values)))
    found = pd.Series(draw(st.lists(values[kind], min_size=n, max_size=n)), dtype=kind if kind[0] in "Ibs" else None)
    if draw(st.booleans()) and kind not in ("Int64", "boolean", "string"):
        found = found.astype("category")
        if draw(st.booleans()):
            found = found.cat.as_ordered()
    return found


@st.composite
def random_data(draw: st.DrawFn) -> Case:
    n_obs, n_vars = draw(st.integers(1, 6)), draw(st.integers(1, 6))

    def names(n: int) -> pd.Index:
        if draw(st.integers(0, 4)) == 0:
            return pd.RangeIndex(n)
        return pd.Index(draw(st.lists(text, min_size=n, max_size=n)), dtype=object)

    def table(n: int) -> pd.DataFrame:
        named = draw(st.lists(text.filter(lambda t: "/" not in t and t not in ("_index", "")), max_size=3, unique=True))
        return pd.DataFrame({name: draw(columns(n)) for name in named}, index=range(n)).set_axis(names(n))

    def some(values: st.SearchStrategy) -> dict[str, object]:
        return draw(st.dictionaries(st.sampled_from(ENTRY_NAMES), values, max_size=2))

    embeddings = st.integers(2, 3).map(lambda n: np.arange(n_obs * n, dtype=float).reshape(n_obs, n))
    adata = AnnData(
        draw(matrices(n_obs, n_vars)),
        table(n_obs),
        table(n_vars),
        layers=some(matrices(n_obs, n_vars)),
        obsm=some(st.one_of(embeddings, embeddings.map(sparse.csr_matrix))),
        obsp=some(st.just(sparse.csr_matrix(np.eye(n_obs)))),
        uns=some(st.one_of(text, st.integers(), st.just({"a": {"b": np.arange(3)}}), st.just(["x", "y"]))),
    )
    if draw(st.integers(0, 3)) == 0:
        adata.raw = AnnData(draw(matrices(n_obs, n_vars + 1)), adata.obs[[]], pd.DataFrame(index=names(n_vars + 1)))
    layer = draw(st.sampled_from([None, None, None, "raw", *adata.layers, "no such layer"]))
    return Case(adata, draw(st.booleans()), layer, draw(st.sampled_from([None, None, False, True])))


def dense(matrix: object) -> np.ndarray:
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


def as_words(column: pd.Series) -> list[str]:
    """Values as text, whatever their type: missing ones, and numbers without a fraction, alike."""

    def word(value: object) -> str:
        if pd.isna(value):
            return "missing"
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

    return [word(value) for value in column.astype(object)]


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=random_data())
def test_random_data_give_equal_counts_or_one_message(
    case: Case, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    adata, layer = case.adata, case.layer
    path = tmp_path_factory.mktemp("random") / f"x.{'zarr' if case.zarr else 'h5ad'}"
    with anndata.settings.override(allow_write_nullable_strings=True):
        try:
            adata.write_zarr(path) if case.zarr else adata.write_h5ad(path)
        except Exception:  # what anndata cannot write, nobody brings
            return
    if case.transpose is None:
        code = cli.main(["check", str(path), *(["--layer", layer] if layer else [])])
        said = capsys.readouterr().err
        assert code in (0, 2)
        assert "Traceback" not in said
    message = ""
    try:
        read = read_input([path], layer=layer, transpose=case.transpose, layers=True)
    except InputError as error:
        message = str(error)
    assert case.transpose is not None or code == (2 if message else 0)
    if message:
        assert str(path) in message
        assert "\n" not in message
        return
    stored = anndata.read_zarr(path) if case.zarr else anndata.read_h5ad(path)
    from_raw = layer == "raw" and stored.raw is not None
    x = stored.raw.X if from_raw else stored.X if layer in (None, "X") else stored.layers[layer]
    obs, var = stored.obs, stored.raw.var if from_raw else stored.var
    if case.transpose:
        x, obs, var = x.T, var, obs
    kept = [not re.match("ERCC|chr", str(name)) for name in var.index]
    np.testing.assert_array_equal(read.X.toarray(), dense(x)[:, kept])
    assert read.obs_names.is_unique
    assert read.var_names.is_unique
    for table, truth in ((read.obs, obs), (read.var, var[kept])):
        for i, column in enumerate(truth):
            assert table.columns[i] == str(column)
            assert as_words(table.iloc[:, i]) == as_words(truth[column])
    if not (from_raw or case.transpose):
        for name, values in stored.obsm.items():
            np.testing.assert_array_equal(dense(read.obsm[name]), dense(values))
        for name in [name for name in stored.layers if name not in (None, layer, "input_X")]:
            np.testing.assert_array_equal(dense(read.layers[name]), dense(stored.layers[name])[:, kept])
        assert set(stored.obsp) == set(read.obsp)
        assert set(stored.uns) <= set(read.uns)
    header = read_input([path], layer=layer, transpose=case.transpose, counts=False)
    assert header.obs_names.tolist() == read.obs_names.tolist()
    assert header.var_names.tolist() == read.var_names.tolist()
    del read.uns["ldvae_input"]
    read.write_h5ad(path.with_name("again.h5ad"))
    again = anndata.read_h5ad(path.with_name("again.h5ad"))
    np.testing.assert_array_equal(again.X.toarray(), read.X.toarray())
