"""Readers of every input format, the check that counts are counts, and atomic writers."""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import json
import logging
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, cast

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ldvae.counts import is_counts, not_counts
from ldvae.errors import InputError, suggestion
from ldvae.features import (
    SAY_WHICH,
    SYMBOL_COLUMNS,
    genes_in_rows,
    is_split_by_splicing,
    named_by_symbol,
    spread_of_sums,
    sum_of_splices,
    wanted_features,
)
from ldvae.names import column_name, file_names, own_name

logger = logging.getLogger(__name__)

FORMATS = (
    "h5ad, h5mu, zarr, loom, 10x h5 (.h5), a folder with matrix.mtx, an .mtx with its tables beside it, csv or tsv "
    "(.gz), or demo:pbmc68k"
)
READABLE = r"\.(h5ad|h5mu|loom|h5|zarr|((csv|tsv|txt)(\.gz)?))$"
NAMES_SHOWN = 20
SHARED_GENES = 1 / 3  # least share of a file's genes that all files must have
GENES_TABLES = ("features", "genes", "var", "var_names", "gene_names", "all_genes", "gene_metadata")
CELLS_TABLES = ("barcodes", "cells", "obs", "obs_names", "cell_names", "cell_metadata", "metadata")
# Columns that tables with genes in rows have before their counts, such as those of featureCounts.
COLUMNS_OF_GENES = {
    *SYMBOL_COLUMNS, "gene", "gene_id", "geneid", "gene_ids", "ensembl", "ensembl_id", "ensembl_gene_id", "entrezid",
    "entrez_id", "description", "biotype", "gene_biotype", "gene_type", "feature_type", "feature_types", "chr",
    "chrom", "chromosome", "seqnames", "start", "end", "strand", "length", "width", "locus",
}  # fmt: skip
MISSING = ("", "NA", "N/A", "NaN", "nan", "<NA>")  # in tables of cells; None and null may be names of groups


def read_input(
    paths: Sequence[str | Path],
    names: Sequence[str] | None = None,
    *,
    layer: str | None = None,
    genome: str | None = None,
    obs_table: str | Path | None = None,
    transpose: bool | None = None,
    feature_types: Sequence[str] | None = None,
    gene_names: str | None = None,
    subset_key: str | None = None,
    subset: Sequence[str] = (),
    counts: bool = True,
    layers: bool = False,
) -> AnnData:
    """Read raw counts from one or several files, as one AnnData.

    Parameters
    ----------
    paths
        Files or folders of any format, or ``demo:pbmc68k``. A folder with the matrices of several samples (GEO: each
        with a prefix) counts as so many files.
    names
        A name for each file, kept in the obs column ``file``; without them, several files are named after themselves.
    layer
        Where the files keep their raw counts: a layer, or ``raw`` for `adata.raw`; none: `X`.
    genome
        The genome to read where a file holds several.
    obs_table
        csv or tsv of cell annotations, cell names in the first column; its columns join obs.
    transpose
        Whether the files have genes in rows; none: judged by names, annotation and sums, and refused in doubt.
    feature_types
        Types of the features to read, where there are others than genes; none: genes.
    gene_names
        Column of var that names the genes, ``index``: the names as they are; none: the names as they are, symbols where
        these are identifiers with symbols beside them.
    subset_key, subset
        Obs column and its levels whose cells are kept; none: all cells.
    counts
        Read the counts, too; without them, `X` is none, and whatever the files tell of cells and genes follows the same
        rules; `uns["ldvae_input"]` then names the matrices of each file.
    layers
        Keep the other matrices of the files, too: those of cells and genes in layers (`X` is called ``input_X`` there),
        obsp and varp. Not kept are `adata.raw`, which has genes of its own, and obsp and varp of several files.

    Returns
    -------
    AnnData
        Verified counts as float32 CSR in `X`, unique cell and gene names; obs, var, obsm, varm and uns of the files; in
        `uns["ldvae_input"]` path, n_obs and n_vars of each file.

    Raises
    ------
    InputError
        If a file cannot be read, or does not hold counts.
    """
    if isinstance(paths, (str, Path)):
        raise TypeError("paths must be a sequence of paths, not one path")
    if not paths:
        raise InputError("No input file is given. Name at least one: " + FORMATS + ".")
    if names is not None and len(names) != len(paths):
        raise InputError(f"{len(names)} names are given for {len(paths)} input files; give one each.")
    if names is None and len(paths) > 1:
        names = file_names(paths)
    if names is not None and len(set(names)) < len(names):
        raise InputError(f"The names of the input files must differ, found {', '.join(names)}.")
    files: dict[str, AnnData] = {}
    read = []
    for path, name in zip(paths, names or [""] * len(paths), strict=True):
        for sample, part in samples_of(path).items():
            kind, stored = opened_input(part, genome, transpose)
            adata = counts_of(
                stored,
                str(part),
                kind,
                layer,
                transpose=transpose,
                feature_types=feature_types,
                gene_names=gene_names,
                counts=counts,
                layers=layers,
            )
            files["_".join(filter(None, (name, sample)))] = adata
            read.append({"path": str(part), "n_obs": adata.n_obs, "n_vars": adata.n_vars})
            if not counts:
                read[-1]["matrices"] = list(stored.matrices)
    adata = files[""] if "" in files else concatenate(files)
    adata.uns["ldvae_input"] = read
    if obs_table is not None:
        join_obs(adata, Path(obs_table))
    return adata if subset_key is None else cells_of(adata, subset_key, subset)


def cells_of(adata: AnnData, key: str, levels: Sequence[str]) -> AnnData:
    """The cells with one of some levels of an obs column, whose categories are then those that are left."""
    if key not in adata.obs:
        raise InputError(f"subset_key: no obs column {key!r}.{suggestion(key, [str(name) for name in adata.obs])}")
    groups = group_names(adata.obs[key])
    known = sorted(groups.dropna().unique())
    for level in levels:
        if level not in known:
            raise InputError(f"subset: obs column {key!r} has no level {level!r}.{suggestion(level, known)}")
    if not levels:
        raise InputError(
            f"subset: no level of {key!r} is named; it has {listed(known)}. Name those whose cells to read."
        )
    return adata[groups.isin(list(levels)).to_numpy()].copy()


def reading_options(section: object) -> dict[str, Any]:
    """The options of a section of the config that say how to read, as arguments of `read_input`."""
    names = ("layer", "genome", "obs_table", "transpose", "feature_types", "gene_names", "subset_key", "subset")
    return {name: getattr(section, name) for name in names if hasattr(section, name)}


class Stored(NamedTuple):
    """What a file holds; its matrices are loaded when they are called."""

    obs: pd.DataFrame
    var: pd.DataFrame
    matrices: dict[str, Callable[[], Any]]  # X, raw and the layers
    raw_var: pd.DataFrame | None = None
    others: Callable[[Sequence[str]], Mapping[str, Mapping[str, Any]]] = lambda kinds: {}  # obsm, varm, uns, obsp, varp
    prior: int = 0  # points for cells in rows from what else the file says
    fixed: bool = True  # the format has cells in rows
    can_turn: bool = True  # False where the names come with their axes, as in the tables of a Matrix Market file


def read_file(
    path: str | Path,
    *,
    layer: str | None = None,
    genome: str | None = None,
    transpose: bool | None = None,
    feature_types: Sequence[str] | None = None,
    gene_names: str | None = None,
    counts: bool = True,
) -> AnnData:
    """Read raw counts from one file or folder; parameters and result as for `read_input`."""
    kind, stored = opened_input(path, genome, transpose)
    return counts_of(
        stored,
        str(path),
        kind,
        layer,
        transpose=transpose,
        feature_types=feature_types,
        gene_names=gene_names,
        counts=counts,
    )


def opened_input(path: str | Path, genome: str | None, transpose: bool | None) -> tuple[str, Stored]:
    """The name of the format of a file or folder, and what it holds."""
    kind, reader = find_reader(str(path), genome, transpose)
    with reading(path, kind):
        return kind, reader()


@contextmanager
def reading(path: str | Path, kind: str) -> Iterator[None]:
    """Turn whatever a reader stumbles over into an InputError, and silence what it warns of."""
    try:
        with warnings.catch_warnings():  # old formats and repeated names; what matters of it is said elsewhere
            warnings.simplefilter("ignore")
            yield
    except (InputError, MemoryError):
        raise
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: cannot be read as {kind}: is no text in UTF-8 (byte {error.object[error.start]:#04x} at "
            f"{error.start}). If it is a text file, save it as UTF-8 (iconv -f LATIN1 -t UTF-8); if it is a sheet of "
            "Excel or an archive, save it as csv or unpack it."
        ) from error
    except Exception as error:  # it lies in the file; the chained error keeps the details
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path}: cannot be read as {kind}: {reason.rstrip('.')}. The file may be damaged or cut short (copy it "
            "again), or of another format than its name says."
        ) from error


# Which reader


def find_reader(path: str, genome: str | None, transpose: bool | None) -> tuple[str, Callable[[], Stored]]:
    """The name of the format of `path`, and a function that reads it."""
    if path.startswith("demo:"):
        from ldvae import demo

        if path != "demo:pbmc68k":
            raise InputError(f"There is no {path!r}.{suggestion(path, ['demo:pbmc68k'])}")
        return "the demo", lambda: in_memory(demo.pbmc68k())
    if re.match(r"[a-z][a-z0-9+]+:/", path):
        raise InputError(
            f"{path}: is a URL, which only the workflow fetches, before any step. Download it and name the file."
        )
    file = existing(Path(path))
    if file.is_dir():
        if is_zarr(file):
            return "zarr", lambda: read_anndata(file)
        matrix = find_matrix(file, genome)
        return "Matrix Market", lambda: read_mtx(matrix, transpose)
    name = file.name.lower().removesuffix(".gz")
    if name.endswith(".mtx"):
        return "Matrix Market", lambda: read_mtx(file, transpose)
    if name.endswith((".csv", ".tsv", ".txt", ".tab")):
        return "a table of counts", lambda: read_table_of_counts(file)
    if name.endswith((".h5ad", ".h5mu", ".loom", ".h5", ".hdf5")):
        with file.open("rb") as start:
            if start.read(2) == GZIP:
                raise InputError(f"{path}: is gzipped. Unpack it (gunzip) and name the unpacked file.")
        if name.endswith(".loom"):
            return "loom", lambda: read_loom(file)
        return ("HDF5", lambda: read_h5(file, genome)) if "5ad" not in name else ("h5ad", lambda: read_anndata(file))
    with file.open("rb") as start:
        if start.read(8) == HDF5:  # as a download whose address ends without a file name
            return "HDF5", lambda: read_h5(file, genome)
    hints = {
        ".rds": " Convert the R object to h5ad first (zellkonverter, or schard for reading back).",
        ".rdata": " Convert the R object to h5ad first (zellkonverter).",
        ".h5seurat": " Convert it to h5ad first (SeuratDisk).",
        ".st": " This is the long table of BD Rhapsody: name its MolsPerCell.csv or MEX folder instead.",
        ".xlsx": " Save the sheet as csv first.",
        **dict.fromkeys((".tar", ".tgz", ".zip", ".bz2", ".xz", ".zst", ".7z"), " Unpack it first."),
    }
    raise InputError(f"{path}: is of no format that can be read: {FORMATS}.{hints.get(Path(name).suffix, '')}")


def existing(file: Path) -> Path:
    """The path, if there is something; else an InputError with the name beside it that is probably meant."""
    if not file.exists():
        siblings = [other.name for other in file.parent.iterdir()] if file.parent.is_dir() else []
        where = f"In {file.parent}:{suggestion(file.name, sorted(siblings))}" if siblings else "Nor does its folder."
        raise InputError(f"{file}: does not exist. {where}")
    return file


def is_zarr(folder: Path) -> bool:
    """Whether a folder is a zarr store."""
    return any((folder / name).exists() for name in (".zgroup", ".zattrs", "zarr.json"))


def samples_of(path: str | Path) -> dict[str, str | Path]:
    """The matrices of a folder that holds those of several samples, by sample; else the path alone, called \"\".

    GEO has the files of all samples in one folder, each with the sample before its name.
    """
    folder = Path(path)
    if folder.is_dir() and not is_zarr(folder):
        found = matrices_in(folder)
        samples = [re.sub(r"[._-]?matrix\.mtx(\.gz)?$", "", matrix.name) for matrix in found]
        if len(found) > 1 and all(samples) and len(set(samples)) == len(found):
            logger.info("%s: has the matrices of %d samples: %s.", path, len(found), listed(samples))
            return dict(zip(samples, found, strict=True))
    return {"": path}


def matrices_in(folder: Path) -> list[Path]:
    """The Matrix Market files of a folder itself that are called matrix.mtx, with or without a prefix."""
    found = sorted(p for p in folder.iterdir() if re.fullmatch(r"(.+[._-])?matrix\.mtx(\.gz)?", p.name))
    return [p for p in found if "filtered" in p.name and "unfiltered" not in p.name] or found


def find_matrix(folder: Path, genome: str | None) -> Path:
    """The Matrix Market file of a folder, or of the one folder inside it that has one."""
    found = matrices_in(folder)
    if not found:
        found = sorted(folder.glob("*.mtx")) + sorted(folder.glob("*.mtx.gz"))
    if not found:
        found = sorted(p for p in folder.rglob("*.mtx*") if p.name.endswith((".mtx", ".mtx.gz")))
    if genome is not None and len(found) > 1:
        found = [p for p in found if p.parent.name == genome]
    # Cell Ranger and STARsolo write raw and filtered matrices side by side; the raw one is mostly empty droplets.
    filtered = [
        p for p in found if any(re.search(r"(^|[^n])filtered", part) for part in p.relative_to(folder).parent.parts)
    ]
    found = filtered or found
    # STARsolo writes its other counts beside matrix.mtx.
    found = [p for p in found if p.name in ("matrix.mtx", "matrix.mtx.gz")] or found
    if len(found) > 1:
        names = listed([str(p.relative_to(folder)) for p in found])
        raise InputError(
            f"{folder}: holds {len(found)} matrices ({names}); name one of them, list them as several inputs, or "
            "choose a genome (genome=...)."
        )
    if not found:
        inside = listed(sorted(p.name for p in folder.iterdir())) or "nothing"
        hint = ""
        if list(folder.rglob("quants_mat.gz")):
            hint = " Salmon alevin writes one with --dumpMtx, alevin-fry with --use-mtx."
        elif packed := sorted(folder.rglob("*.mtx.*")):
            hint = f" Unpack {packed[0].name}; only gzip is read as it is."
        elif readable := sorted(p.name for p in folder.iterdir() if re.search(READABLE, p.name)):
            files = [str(folder / name) for name in readable]
            hint = f" Name the file: {files[0]}" if len(files) == 1 else f" List its files: input: [{', '.join(files)}]"
            hint += "."
        raise InputError(f"{folder}: holds no matrix.mtx(.gz) and is no zarr store; found {inside}.{hint}")
    return found[0]


def files_of(path: str | Path, genome: str | None = None) -> list[Path]:
    """All files that reading an input reads: the file, a matrix with its tables, or every file of a zarr store.

    Parameters
    ----------
    path
        An input of any format; nothing is returned for ``demo:pbmc68k`` and URLs.
    genome
        As for `read_input`.
    """
    if re.match(r"[a-z][a-z0-9+]+:", str(path)):
        return []
    file = existing(Path(path))
    if file.is_dir() and is_zarr(file):
        return sorted(p for p in file.rglob("*") if p.is_file())
    if not file.is_dir() and not file.name.endswith((".mtx", ".mtx.gz")):
        return [file]
    samples = [Path(part) for part in samples_of(file).values()]
    matrices = [find_matrix(part, genome) if part.is_dir() else part for part in samples]
    return [found for matrix in matrices for found in (matrix, *tables_of(matrix))]


# Readers of single formats, where anndata or scanpy leaves something open


def read_anndata(path: Path) -> Stored:
    """An h5ad file or zarr store, or the genes of an h5mu file; only the matrix that is chosen will be loaded."""
    from anndata.io import read_elem

    with opened(path) as file:
        store, prefix = file, ""
        if "mod" in file and "obs" in file:  # of muon
            modality = next((name for name in ("rna", "gex", "RNA", "GEX") if name in file["mod"]), None)
            if modality is None:
                raise InputError(f"{path}: has no modality called rna or gex; found {', '.join(file['mod'])}.")
            store, prefix = file["mod"][modality], f"mod/{modality}/"
        if not hasattr(store["obs"], "keys"):
            return read_old_anndata(path)
        keys = matrices_of(store)

        def others(kinds: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
            with opened(path) as file:
                return {kind: elements(file[prefix + kind], read_elem) for kind in kinds if prefix + kind in file}

        return Stored(
            read_elem(store["obs"]),
            read_elem(store["var"]),
            {name: partial(load_matrix, path, prefix + key) for name, key in keys.items()},
            read_elem(store["raw/var"]) if "raw/var" in store else None,
            others,
        )


def read_old_anndata(path: Path) -> Stored:
    """An h5ad file written before anndata 0.7, whose obs and var are arrays."""
    import anndata

    adata = anndata.io.read_h5ad(path, backed="r")  # leaves the matrices in the file
    adata.file.close()
    with opened(path) as file:
        keys = matrices_of(file)
    return Stored(
        adata.obs,
        adata.var,
        {name: partial(load_matrix, path, key) for name, key in keys.items()},
        None if adata.raw is None else adata.raw.var,
        partial(others_of, adata),
    )


def matrices_of(store: Any) -> dict[str, str]:
    """Where in an h5ad file or zarr store the matrices are, by name: X, raw and the layers."""
    x = {"X": "X"} if "X" in store else {}
    raw = next(({"raw": key} for key in ("raw/X", "raw.X") if key in store), {})
    return x | {layer_name(name, x | raw): f"layers/{name}" for name in store.get("layers", ())} | raw


def layer_name(name: str, taken: Iterable[str]) -> str:
    """What a layer is called among the matrices of a file: layers/raw and layers/X where these are, too."""
    return f"layers/{name}" if name in taken else name


def load_matrix(path: Path, key: str) -> Any:
    """A matrix of an h5ad file or zarr store, sparse or dense.

    anndata's own reader makes a sparse matrix of the numbers as they are stored, and scipy has none of 16 bit floats.
    """
    from anndata.io import read_elem

    with opened(path) as file:
        group = file[key]
        if not hasattr(group, "keys") or "indptr" not in group:
            return read_elem(group)
        attributes = dict(group.attrs)
        kind = str(attributes.get("encoding-type", attributes.get("h5sparse_format", "csr")))[:3]
        shape = tuple(int(n) for n in attributes.get("shape", attributes.get("h5sparse_shape", group.get("shape"))))
        parts = tuple(as_numbers(group[name][:]) for name in ("data", "indices", "indptr"))
    return (sparse.csc_matrix if kind == "csc" else sparse.csr_matrix)(parts, shape=shape)


def as_numbers(values: np.ndarray) -> np.ndarray:
    """An array as scipy can take it: in the byte order of the machine, and floats of 16 bits as ones of 32."""
    kind = np.dtype(np.float32) if values.dtype == np.float16 else values.dtype.newbyteorder("=")
    return values.astype(kind, copy=False)


def elements(group: Any, read_elem: Callable[[Any], Any]) -> dict[str, Any]:
    """The elements of a group of an h5ad file, each that can be read."""
    found = {}
    for name in group:
        try:
            found[name] = read_elem(group[name])
        except Exception as error:  # of an encoding that this anndata does not know; nothing here needs it
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            logger.warning("%s: cannot be read and is left out: %s", group[name].name, reason)
    return found


def read_h5ad(path: Path, **options: Any) -> AnnData:
    """The AnnData that an earlier step wrote; a file that is cut off or no AnnData is the user's to know of."""
    import anndata

    try:
        return anndata.io.read_h5ad(path, **options)
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read as h5ad ({error}); if a full disk or a broken copy cut it off, make it anew."
        ) from error


def opened(path: Path) -> Any:
    """A context manager of an h5ad file, or of a zarr store, opened to be read."""
    import h5py
    import zarr

    return nullcontext(zarr.open_group(path, mode="r")) if path.is_dir() else h5py.File(path)


def in_memory(adata: AnnData) -> Stored:
    """An AnnData as if it were a file."""
    x = {} if adata.X is None else {"X": adata.X}
    raw = {} if adata.raw is None else {"raw": adata.raw.X}
    # Since anndata 0.13 X is also the layer called None.
    layers = {layer_name(name, x | raw): matrix for name, matrix in adata.layers.items() if name is not None}
    matrices: dict[str, Any] = x | layers | raw
    raw_var = None if adata.raw is None else adata.raw.var
    # An unnamed lambda of the loop variable would return the last matrix for all.
    loaders: dict[str, Callable[[], Any]] = {name: partial(lambda x: x, x) for name, x in matrices.items()}
    return Stored(adata.obs, adata.var, loaders, raw_var, partial(others_of, adata))


def others_of(adata: AnnData, kinds: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
    """What an AnnData has of some kinds (obsm, uns, …), by name."""
    return {kind: dict(getattr(adata, kind)) for kind in kinds}


def read_h5(path: Path, genome: str | None) -> Stored:
    """A 10x h5 of version 2 or 3, or an h5ad or h5mu file that is called h5.

    scanpy.read_10x_h5 reads the same fields, but always with the matrix.
    """
    import h5py

    with h5py.File(path) as file:
        if "obs" in file and ("X" in file or "mod" in file or "var" in file):
            return read_anndata(path)
        if "matrix" in file:
            key, group = "matrix", file["matrix"]
            features = {name: values for name, values in group["features"].items() if isinstance(values, h5py.Dataset)}
            var = pd.DataFrame(
                {
                    new: features[old].asstr()[:]
                    for old, new in (("id", "gene_ids"), ("feature_type", "feature_types"), ("genome", "genome"))
                    if old in features
                },
                index=features["name"].asstr()[:],
            )
            # Antibodies belong to no genome, and peaks to that of the genes.
            genomes = sorted(set(var.get("genome", pd.Series(dtype=str))) - {""})
        else:
            genomes = sorted(name for name, part in file.items() if isinstance(part, h5py.Group) and "barcodes" in part)
            if not genomes:
                raise InputError(
                    f"{path}: is HDF5, but neither of 10x nor of anndata; it holds {', '.join(file) or 'nothing'}."
                )
        if genome is None and len(genomes) > 1:
            raise InputError(f"{path}: holds {len(genomes)} genomes ({', '.join(genomes)}); choose one (genome=...).")
        if genome is not None and genome not in genomes:
            raise InputError(f"{path}: holds no genome {genome!r}.{suggestion(genome, genomes)}")
        if "matrix" not in file:
            key = genome or genomes[0]
            group = file[key]
            var = pd.DataFrame({"gene_ids": group["genes"].asstr()[:]}, index=group["gene_names"].asstr()[:])
        obs = pd.DataFrame(index=group["barcodes"].asstr()[:])
    own = np.ones(len(var), bool)
    if genome is not None and "genome" in var:
        own = (var["genome"] == genome).to_numpy()

    def load() -> sparse.csr_matrix:
        with h5py.File(path) as file:
            parts = tuple(as_numbers(file[f"{key}/{name}"][:]) for name in ("data", "indices", "indptr"))
        x = as_csr(sparse.csr_matrix(parts, shape=(len(obs), len(var))))  # by cell, though 10x calls it genes x cells
        return x if x is None or own.all() else x[:, own]

    return Stored(obs, var[own], {"X": load}, can_turn=False)


def read_loom(path: Path) -> Stored:
    """A loom file, cell and gene names from whichever attributes hold them; it has genes in rows."""
    import h5py

    with h5py.File(path) as file:
        obs, obsm = loom_attributes(file["col_attrs"])
        var, varm = loom_attributes(file["row_attrs"])
        keys = {"X": "matrix"} | {layer_name(name, ["X"]): f"layers/{name}" for name in file.get("layers", ())}
    cells = [name for name in ("CellID", "obs_names", "cell_id", "barcode", "barcodes") if name in obs]
    genes = [name for name in ("Gene", "var_names", "gene", "gene_name", "Accession") if name in var]
    if not (cells and genes):
        raise InputError(
            f"{path}: has no names of its {'genes' if cells else 'cells'}: expected the column attribute CellID "
            f"and the row attribute Gene, found {', '.join(obs)}; {', '.join(var)}."
        )

    def load(key: str) -> sparse.csr_matrix:
        with h5py.File(path) as file:
            matrix, step = file[key], 1000
            blocks = [sparse.csr_matrix(as_numbers(matrix[i : i + step])) for i in range(0, matrix.shape[0], step)]
        return sparse.vstack(blocks, format="csr").T.tocsr()

    return Stored(
        obs.set_index(cells[0]),
        var.set_index(genes[0]),
        {name: partial(load, key) for name, key in keys.items()},
        others=lambda _: {"obsm": obsm, "varm": varm},
    )


def loom_attributes(group: Any) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Attributes of the cells or genes of a loom file: a table of those with one value each, and arrays of the rest."""
    import h5py

    columns: dict[str, np.ndarray] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, values in group.items():
        if isinstance(values, h5py.Dataset) and values.ndim:
            read = values[:] if values.dtype.kind in "biuf" else values.asstr()[:]
            (columns if values.ndim == 1 else arrays)[name] = read
    return pd.DataFrame(columns), arrays


def read_mtx(matrix: Path, transpose: bool | None) -> Stored:
    """A Matrix Market file with the tables of genes and cells beside it, as 10x, STARsolo, kallisto and others write.

    Parameters
    ----------
    matrix
        The .mtx file.
    transpose
        Whether its rows are genes; only a square matrix leaves it open.
    """
    from scipy.io import mminfo, mmread

    genes_file, cells_file, *symbols_file = tables_of(matrix)
    n_rows, n_columns, _, _, field, _ = mminfo(mtx_source(matrix))
    if field == "pattern":
        raise InputError(f"{matrix}: holds a pattern, that is, where counts are, not which. Start from the raw counts.")
    var, obs = read_names(genes_file), read_names(cells_file)
    fits = {
        in_rows: tuple(headed(table, n) for table, n in ((var, n_genes), (obs, n_cells)))
        for in_rows, (n_genes, n_cells) in {True: (n_rows, n_columns), False: (n_columns, n_rows)}.items()
    }
    fits = {in_rows: tables for in_rows, tables in fits.items() if tables[0] is not None and tables[1] is not None}
    if not fits:
        raise InputError(
            f"{matrix}: is {n_rows} by {n_columns}, but {genes_file.name} names {len(var)} genes and {cells_file.name} "
            f"{len(obs)} cells. One of the three files is cut short, or belongs to another sample."
        )
    square = n_rows == n_columns
    # As those that have genes in rows call their files; kallisto, alevin and Parse have cells in rows.
    usual = genes_file.name.startswith(("features", "genes.tsv")) or "matrix" in matrix.name.removeprefix(
        "count_matrix"
    )
    in_rows = next(iter(fits)) if not square else usual if transpose is None else transpose
    genes, cells = (table for table in fits[in_rows] if table is not None)
    genes = named_features(genes)
    if symbols_file and genes.shape[1] == 1:
        symbols = headed(read_names(symbols_file[0]), len(genes))
        if symbols is not None:
            genes = pd.DataFrame({"gene_ids": genes.index, "gene_name": symbols.iloc[:, 0].to_numpy()}, genes.index)
    splices = is_split_by_splicing(genes.index)
    names = genes.index

    def load() -> sparse.csr_matrix:
        x = sparse.csr_matrix(mmread(mtx_source(matrix)))
        x = x.T.tocsr() if in_rows else x
        if square and transpose is None and spread_of_sums(x)[0] < 0:
            raise InputError(
                f"{matrix}: has as many rows as columns ({n_rows}), and cannot tell which are genes: files called so "
                f"have {'genes' if in_rows else 'cells'} in rows, but sums of what would be the cells differ more "
                f"widely than sums of the genes. {SAY_WHICH}"
            )
        return sum_of_splices(names, x)[1] if splices else x

    if splices:
        logger.info("%s: spliced and ambiguous counts of each gene are added; unspliced ones are left out.", matrix)
        genes = genes.iloc[: len(genes) // 3]
    return Stored(typed(cells.set_index(cells.columns[0])), genes, {"X": load}, can_turn=False)


def mtx_source(matrix: Path) -> Path | io.BytesIO:
    """A Matrix Market file for scipy, which unpacks by the name; in memory where the content is not what scipy expects.

    That is, where the content disagrees with the name, or begins with a byte order mark.
    """
    with matrix.open("rb") as file:
        packed = file.read(2) == GZIP
    with opened_bytes(matrix) as file:
        start = file.read(3)
        if packed == matrix.name.endswith(".gz") and start != codecs.BOM_UTF8:
            return matrix
        # An open file will not do: scipy's reader seeks from its end, and an error there ends the process.
        return io.BytesIO(start.removeprefix(codecs.BOM_UTF8) + file.read())


def tables_of(matrix: Path) -> list[Path]:
    """The tables of genes and cells of a Matrix Market file, and one of the genes' symbols where there is a third."""
    base = re.sub(r"(^|[._-])matrix$", "", re.sub(r"\.mtx(\.gz)?$", "", matrix.name))
    alevin = base == "quants_mat"
    genes = table_beside(matrix, base, ("cols",) if alevin else GENES_TABLES)
    cells = table_beside(matrix, base, ("rows",) if alevin else CELLS_TABLES)
    symbols = find_beside(matrix, base, ("genes.names",))  # of kallisto
    return [genes, cells, *([symbols] if symbols else [])]


def table_beside(matrix: Path, base: str, names: Sequence[str]) -> Path:
    """The table in the folder of `matrix` called by one of `names`, best with the same prefix as the matrix."""
    found = find_beside(matrix, base, names)
    if found is None:
        raise InputError(
            f"{matrix}: has no table of {'genes' if set(names) & {'genes', 'cols'} else 'cells'} beside it; expected "
            f"{' or '.join(f'{name}.tsv' for name in names[:2])} (also .csv, .txt, .gz) in {matrix.parent}."
        )
    return found


def find_beside(matrix: Path, base: str, names: Sequence[str]) -> Path | None:
    """As `table_beside`, or none."""
    words = re.split(r"(?<=[._-])", base)
    prefixes = ["".join(words[:n]) for n in range(len(words), -1, -1)]  # S1_count_, S1_, nothing
    others = sorted(other.name for other in matrix.parent.iterdir())
    for prefix in prefixes:
        start = rf"{re.escape(prefix.rstrip('._-'))}[._-]?" if prefix else ""
        for name in names:
            for other in others:
                if re.fullmatch(rf"{start}{re.escape(name)}\.(tsv|csv|txt)(\.gz)?", other):
                    return matrix.parent / other
    return None


def read_names(path: Path) -> pd.DataFrame:
    """All fields of a small table as text, without taking any line for a header."""
    sep = separator(path)
    with opened_text(path) as file:
        # 10x quotes nothing, and some names hold a quote.
        quoting = csv.QUOTE_MINIMAL if sep in ",;" else csv.QUOTE_NONE
        return pd.read_csv(file, sep=sep, header=None, dtype=str, keep_default_na=False, quoting=quoting)


def headed(table: pd.DataFrame, n: int) -> pd.DataFrame | None:
    """A table of `n` rows, or of a header and `n` rows, which names the columns then; None if it has another length."""
    if len(table) == n:
        return table
    if len(table) == n + 1:
        return table[1:].reset_index(drop=True).set_axis(table.iloc[0].to_list(), axis=1)
    return None


def named_features(table: pd.DataFrame) -> pd.DataFrame:
    """Features by name, from a table with a header, or as 10x writes them: identifier, name, type."""
    if not isinstance(table.columns[0], str):  # no header
        if table.shape[1] == 2 and (table[1] == "Gene Expression").any():
            table = table.rename(columns={1: "feature_types"})
        usual = ["gene_ids", "name", "feature_types", *map(str, range(3, table.shape[1]))]
        table = table.rename(columns=dict(zip(range(table.shape[1]), usual, strict=False)))
        names = "name" if "name" in table else "gene_ids"
    else:
        table = table.rename(columns={"gene_id": "gene_ids"})
        symbols = {str(column).lower(): column for column in table.columns}
        names = next((symbols[name] for name in SYMBOL_COLUMNS if name in symbols), table.columns[0])
    if names != table.columns[0]:  # a gene without a symbol
        table[names] = table[names].where(table[names].str.strip() != "", table.iloc[:, 0])
    ids = table.columns[0] if names != table.columns[0] else None
    table = table.set_index(names, drop=ids is not None)
    return table.rename(columns={ids: "gene_ids"}) if ids is not None else table


# Text


GZIP = b"\x1f\x8b"
HDF5 = b"\x89HDF\r\n\x1a\n"


def opened_bytes(path: Path) -> BinaryIO:
    """A file opened to be read, unpacked where its content is gzipped, whatever its name says."""
    with path.open("rb") as file:
        packed = file.read(2) == GZIP
    return cast(BinaryIO, gzip.open(path)) if packed else path.open("rb")


def opened_text(path: Path) -> IO[str]:
    """A text file opened to be read, unpacked where it is gzipped, without a byte order mark."""
    with opened_bytes(path) as file:
        wide = file.read(2) in (b"\xff\xfe", b"\xfe\xff")  # as Excel saves "Unicode text"
    return io.TextIOWrapper(opened_bytes(path), encoding="utf-16" if wide else "utf-8-sig", newline="")


def separator(path: Path) -> str:
    """The separator of a text table, from its first line."""
    if re.search(r"\.tsv(\.gz)?$", path.name):
        return "\t"
    with opened_text(path) as file:
        first = file.readline()
    return next((mark for mark in "\t,;" if mark in first), "," if path.name.endswith((".csv", ".csv.gz")) else "\t")


class Table(NamedTuple):
    """How a text table is laid out."""

    sep: str
    skipped: int  # lines of comments before the header
    header: list[str]  # names of the columns, the first one included
    corner: str  # name of the first column; empty if it has none
    width: int  # fields in a line; one more than the header where lines end with a separator
    n_annotations: int = 0  # columns after the first that describe its names: a second name, where the gene lies


def layout(path: Path) -> Table:
    """How a text table with names in its first row and column is laid out.

    R leaves out the name of the first column; some tools begin with lines of comments, or end each line by a separator.
    """
    with opened_text(path) as file:
        lines = list(islice(file, 200))

    def fields(line: str, mark: str) -> list[str]:
        return next(csv.reader([line.rstrip("\r\n")], delimiter=mark, skipinitialspace=mark == " "), [])

    def is_comment(i: int) -> bool:
        if lines[i].startswith("##") or not lines[i].strip(" #,;\t\r\n"):
            return True
        # A header may start with a #, too, but has as many fields as the lines below it.
        return lines[i].startswith("#") and i + 1 < len(lines) and not any(fitting(i))

    def fitting(i: int) -> dict[str, tuple[int, int]]:
        first, second = ([*lines[i : i + 2], "", ""])[:2]
        sizes = {mark: (len(fields(first, mark)), len(fields(second, mark))) for mark in "\t,; "}
        return {mark: (n, m) for mark, (n, m) in sizes.items() if m > 1 and m - n in (0, 1)}

    skipped = next((i for i in range(len(lines)) if not is_comment(i)), 0)
    first, second = ([*lines[skipped : skipped + 2], "", ""])[:2]
    sizes = fitting(skipped)
    sep = max(sizes or "\t,; ", key=lambda mark: (len(fields(first, mark)), len(fields(second, mark))))
    header, n_fields = fields(first, sep), len(fields(second, sep))
    if n_fields > len(header) + 1:
        raise InputError(
            f"{path}: its first row has {len(header)} fields, the line below {n_fields}. Expected as many names in the "
            "first row as there are columns (or one less, as R writes them)."
        )
    if sep in sizes and n_fields > len(header):
        header = ["", *header]
    width = len(header)
    if sep != " " and all(line.rstrip("\r\n").endswith(sep) for line in lines[skipped:]) and width > 2:
        header = header[:-1]
    described = [name.strip().lower() in COLUMNS_OF_GENES for name in header[1:-1]]
    return Table(sep, skipped, header, header[0] if header else "", width, [*described, False].index(False))


def read_table_of_counts(path: Path) -> Stored:
    """A csv or tsv of counts with names in the first row and column; genes in columns or, as often, in rows."""
    table = layout(path)
    columns = table.header[1 + table.n_annotations :]
    if not columns:
        raise InputError(
            f"{path}: cannot be read as a table of counts: expected names in the first row and in the first column."
        )
    if len(set(columns)) < len(columns) and all(re.fullmatch(r"[\d.]+", name) for name in columns):
        raise InputError(f"{path}: the first row holds numbers; expected the names of the genes (or cells) there.")
    if table.n_annotations:
        blocks = [block.iloc[:, : 1 + table.n_annotations] for block in rows_of(path, table)]
        described = pd.concat([pd.DataFrame(columns=blocks[0].columns), *blocks]).set_index(0)
        described.columns = pd.Index([name.strip() for name in table.header[1 : 1 + table.n_annotations]])
        obs = typed(described)
    else:
        with opened_text(path) as file:
            for _ in range(table.skipped + 1):
                file.readline()
            rows = [first_field(line, table.sep) for line in file if line.strip()]
        obs = pd.DataFrame(index=pd.Index(rows, dtype=object))
    prior = 2 * int(bool(re.match(r"cell|barcode|bc_|cb$|index$", table.corner, re.I)))
    prior -= 2 * int(bool(re.match(r"gene|symbol|feature|ensembl|ensg|transcript|hgnc|locus", table.corner, re.I)))
    prior -= 2 * bool(table.n_annotations)
    var = pd.DataFrame(index=pd.Index(columns, dtype=object))
    return Stored(obs, var, {"X": partial(load_table, path, table)}, prior=prior, fixed=False)


def rows_of(path: Path, table: Table, **options: Any) -> Iterator[pd.DataFrame]:
    """The lines of a text table below its header, in blocks; without options of pandas, text as it stands.

    A line that is too long is an error of pandas, unless columns are chosen (`usecols`): it must see them all.
    """
    options = {"dtype": str, "keep_default_na": False} | options
    with opened_text(path) as file:
        for block in pd.read_csv(
            file,
            sep=table.sep,
            header=None,
            names=range(table.width),
            index_col=False,
            skiprows=table.skipped + 1,
            skipinitialspace=table.sep == " ",
            chunksize=1000,
            **options,
        ):
            yield block.iloc[:, : len(table.header)]


def first_field(line: str, sep: str) -> str:
    """The first field of a line of a table, without quotes."""
    if line.startswith('"'):
        return next(csv.reader([line], delimiter=sep))[0]
    return line.split(sep, 1)[0].rstrip("\r\n")


def load_table(path: Path, table: Table) -> sparse.csr_matrix:
    """The counts of a table as CSR, in its orientation."""
    blocks = []
    described = dict.fromkeys(range(table.n_annotations + 1), str)
    for block in rows_of(path, table, dtype=None, keep_default_na=True, converters=described):
        values = block.iloc[:, 1 + table.n_annotations :]
        text = values.columns[[kind.kind not in "iuf" for kind in values.dtypes]]
        if len(text):
            raise InputError(
                f"{path}: column {table.header[text[0]]!r} holds text (e.g. {str(values[text[0]].dropna().iloc[0])!r}) "
                "where counts are expected. Keep annotations of cells in a table of their own (obs_table)."
            )
        blocks.append(sparse.csr_matrix(values.to_numpy(np.float64)))
    if not blocks:
        raise InputError(f"{path}: holds a first row of names, but no counts below it.")
    return sparse.vstack(blocks, format="csr")


def read_annotation(path: Path) -> pd.DataFrame:
    """A table of cells: names in the first column and text as it stands; columns of numbers are numbers.

    Text is whatever does not look like a number, and numbers with zeros before them (donor 007).
    """
    table = layout(path)
    values = pd.concat([pd.DataFrame(), *rows_of(path, table)])
    if values.empty:
        raise InputError(f"{path}: holds no cells below its first row.")
    values = values.set_index(0)
    values.columns = pd.Index([name.strip() for name in table.header[1:]])
    return typed(values)


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """Columns of text as numbers or booleans where all their values are such; empty and NA are missing.

    Examples
    --------
    >>> typed(pd.DataFrame({"age": ["20", "NA"], "donor": ["007", "12"], "dead": ["TRUE", "FALSE"]})).dtypes.to_dict()
    {'age': dtype('float64'), 'donor': dtype('O'), 'dead': dtype('bool')}
    """
    columns = []
    for position in range(table.shape[1]):
        column = table.iloc[:, position].astype(object)
        column = column.where(~column.isin(MISSING), np.nan)
        present = column.dropna().astype(str)
        if len(present) and not present.str.match(r"[+-]?0\d").any():
            numbers = pd.to_numeric(present, errors="coerce")
            if numbers.notna().all():
                column = pd.to_numeric(column)
            elif present.str.lower().isin(["true", "false"]).all() and len(present) == len(column):
                column = present.str.lower() == "true"
        columns.append(column)
    return pd.concat(columns, axis=1) if columns else table


# From what is stored to verified counts


def counts_of(
    stored: Stored,
    where: str,
    kind: str,
    layer: str | None,
    *,
    transpose: bool | None = None,
    feature_types: Sequence[str] | None = None,
    gene_names: str | None = None,
    counts: bool = True,
    layers: bool = False,
) -> AnnData:
    """The matrix of raw counts of a file, verified, cells in rows, genes in columns, with tidy names.

    Parameters
    ----------
    stored
        The file.
    where, kind
        Path and format, for the messages.
    layer
        The matrix: a layer, or raw; none: X.
    transpose, feature_types, gene_names, counts, layers
        As for `read_input`.
    """
    chosen = "X" if layer is None else layer
    if counts and chosen not in stored.matrices:
        raise InputError(
            f"{where}: has no matrix {chosen!r}.{suggestion(chosen, stored.matrices)} Choose one (layer=...)."
        )
    obs, var = stored.obs, stored.var
    own_genes = chosen == "raw" and stored.raw_var is not None and not stored.raw_var.index.equals(var.index)
    if chosen == "raw" and stored.raw_var is not None:  # which often lacks what X has
        new = [name for name in var.columns if name not in stored.raw_var.columns]
        shared = stored.raw_var.index.isin(var.index)
        var = stored.raw_var.join(var[new]) if shared.all() and var.index.is_unique else stored.raw_var
    if 0 in (len(obs), len(var)):
        raise InputError(f"{where}: has {len(obs)} cells and {len(var)} genes; there is nothing to read.")
    x: sparse.csr_matrix | None = None
    others: dict[str, Mapping[str, Any]] = {}
    if counts:
        with reading(where, kind):
            x = as_csr(stored.matrices[chosen]())
            others = dict(stored.others(["obsm", "varm", "uns", *(["obsp", "varp"] if layers else [])]))
            others["layers"] = other_matrices(stored, chosen) if layers and not own_genes else {}
        if x is not None and x.shape != (len(obs), len(var)):
            raise InputError(
                f"{where}: {chosen} is {x.shape[0]} by {x.shape[1]}, but there are names of {len(obs)} rows and "
                f"{len(var)} columns. The file is damaged, or lines are missing."
            )
        if x is None:
            refuse_matrix(stored, where, kind, chosen, "values that are no numbers (or true and false)")
    if own_genes:
        others |= {"varm": {}, "varp": {}}
        if layers and (left := [name for name in stored.matrices if name != "raw"]):
            logger.info("%s: %s are left out: raw has other genes.", where, listed(left))
    if genes_in_rows(
        obs, var, x, where, transpose=transpose, prior=stored.prior, fixed=stored.fixed, can_turn=stored.can_turn
    ):
        obs, var = var, obs
        x = None if x is None else x.T.tocsr()
        others = {TURNED.get(name, name): values for name, values in others.items()}
        others["layers"] = {name: matrix.T for name, matrix in others.get("layers", {}).items()}
    wanted = wanted_features(var, where, feature_types)
    if not wanted.all():
        var = var[wanted]
        x = None if x is None else x[:, wanted]
        others["varm"] = {name: values[wanted] for name, values in others.get("varm", {}).items()}
        others["varp"] = {name: values[wanted][:, wanted] for name, values in others.get("varp", {}).items()}
        others["layers"] = {name: matrix[:, wanted] for name, matrix in others.get("layers", {}).items()}
    var = named_by_symbol(var, where, gene_names)
    adata = AnnData(obs=tidy(obs, where, "cell"), var=tidy(var, where, "gene"))
    if x is not None:
        if problem := not_counts(round_off(x, where), adata.var_names):
            refuse_matrix(stored, where, kind, chosen, problem)
        x.sum_duplicates()
        x.eliminate_zeros()
        adata.X = x.astype(np.float32, copy=False)
        keep_others(adata, others, where)
    return adata


TURNED = {"obsm": "varm", "varm": "obsm", "obsp": "varp", "varp": "obsp"}


def other_matrices(stored: Stored, chosen: str) -> dict[str, Any]:
    """The matrices of a file but for the chosen one and raw, that can be sliced, by the name of their layer."""
    found = {}
    for name, load in stored.matrices.items():
        if name not in (chosen, "raw" if stored.raw_var is not None else chosen):
            matrix = load()
            sliced = matrix.tocsr() if sparse.issparse(matrix) else matrix
            found["input_X" if name == "X" else name.removeprefix("layers/")] = sliced
    return found


def as_csr(matrix: Any) -> sparse.csr_matrix | None:
    """A matrix of numbers, dense or sparse, as CSR; None for other values.

    Raises
    ------
    ValueError
        If indices of a sparse matrix lie outside of it: scipy's compiled code would read and write there.
    """
    if not (sparse.issparse(matrix) or isinstance(matrix, np.ndarray)) or matrix.dtype.kind not in "iuf":
        return None
    if isinstance(matrix, np.ndarray):
        return sparse.csr_matrix(as_numbers(matrix))
    if matrix.format in ("csr", "csc"):
        matrix.check_format(full_check=True)
    x = sparse.csr_matrix(matrix)
    if x.indptr.dtype != x.indices.dtype:  # as anndata's concatenation on disk writes; scipy cannot work on it
        x = sparse.csr_matrix((x.data, x.indices, x.indptr), x.shape)
    return x


def round_off(x: sparse.csr_matrix, where: str) -> sparse.csr_matrix:
    """Round entries, in place, that all are integers but for an error of floating point (10⁻⁶ of the entry)."""
    if x.data.dtype.kind == "f" and len(x.data) and np.isfinite(x.data).all():
        nearest = np.rint(x.data)
        error = np.abs(x.data - nearest) / np.maximum(1, np.abs(nearest))
        if 0 < error.max() <= 1e-6:
            logger.info("%s: counts are integers but for up to %.0e, and are rounded.", where, error.max())
            x.data = nearest
    return x


def refuse_matrix(stored: Stored, where: str, kind: str, chosen: str, problem: str) -> None:
    """Raise the InputError that says what a matrix holds instead of counts, and which other one holds them."""

    def holds_counts(load: Callable[[], Any]) -> bool:
        x = as_csr(load())
        return x is not None and is_counts(x)

    with reading(where, kind):
        others = [name for name, load in stored.matrices.items() if name != chosen and holds_counts(load)]
    remedy = (
        f"Counts are in {' and in '.join(map(repr, others))}: choose it (layer={others[0]})."
        if others
        else f"No other matrix of the file holds counts{' (it has only this one)' * (len(stored.matrices) == 1)}: "
        "start from the raw counts."
    )
    if "corrected" in problem:
        remedy += (
            " Fractions come from counting that splits reads among genes (STARsolo EM) or from corrections (SoupX, "
            "CellBender means): take the unique counts, or let the tool round (SoupX: roundToInt = TRUE)."
        )
    raise InputError(f"{where}: {chosen} holds {problem}. ldvae models raw UMI counts. {remedy}")


def keep_others(adata: AnnData, others: Mapping[str, Mapping[str, Any]], where: str) -> None:
    """Add layers, obsm, varm, uns, obsp and varp of a file, in place, as far as anndata takes them."""
    for kind, values in others.items():
        for name, value in values.items():
            if name.startswith("ldvae_") or (has_neighbors(value) and "obsp" not in others):
                continue  # an earlier run's, or neighbours of cells, whose matrix is not read
            try:
                if isinstance(value, pd.DataFrame) and kind != "uns":
                    value = objects_to_categories(value.set_axis(getattr(adata, f"{kind[:3]}_names")))
                getattr(adata, kind)[name.replace("/", "_")] = value
            except (ValueError, TypeError, AttributeError) as error:
                logger.warning("%s: %s[%r] is left out: %s", where, kind, name, str(error).splitlines()[0])


def has_neighbors(value: Any) -> bool:
    """Whether an entry of uns is of scanpy's neighbours, whose matrices are in obsp."""
    return isinstance(value, Mapping) and "connectivities_key" in value


def tidy(table: pd.DataFrame, where: str, kind: str) -> pd.DataFrame:
    """A copy of obs or var that can be written to h5ad: unique text names, columns of one type each.

    Parameters
    ----------
    table
        One row per cell or gene.
    where
        The file, for the warnings.
    kind
        ``cell`` or ``gene``.
    """
    from anndata.utils import make_index_unique

    table = table.copy()
    names = table.index.astype(str)
    blank = names.str.strip() == ""
    if blank.any():  # a table of results could not tell it from a missing value
        logger.warning("%s: %d %s names are empty; they are called unnamed.", where, blank.sum(), kind)
        names = names.where(~blank, "unnamed")
    repeated = names[names.duplicated()].unique()
    if len(repeated):
        message = "%s: %d %s names occur more than once; repeats got a suffix (%s-1, …): %s"
        logger.warning(message, where, len(repeated), kind, repeated[0], listed(repeated))
        with warnings.catch_warnings():  # anndata also warns of names that end like a suffix
            warnings.simplefilter("ignore")
            names = make_index_unique(names)
    table.index = names.rename(None)
    columns = pd.Index([column_name(column) for column in table.columns], dtype=object)
    changed = [str(old) for old, new in zip(table.columns, columns, strict=True) if str(old) != new]
    if changed:
        logger.warning("%s: a column name must not hold a slash, replaced by _ in: %s", where, ", ".join(changed))
    if not columns.is_unique:
        columns = make_index_unique(columns)
    return objects_to_categories(table.set_axis(columns, axis=1))


def objects_to_categories(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose columns of text, or of mixed types, are categories of text; missing values stay missing."""
    changed = {}
    for name, column in table.items():
        if isinstance(column.dtype, pd.CategoricalDtype):
            if column.cat.categories.dtype.kind == "O":  # may mix text and numbers
                changed[name] = column.cat.rename_categories(as_text)
        elif column.dtype == object or column.dtype.kind in "mM" or isinstance(column.dtype, pd.StringDtype):
            text = column.astype(object)
            changed[name] = text.where(text.isna(), text.map(as_text)).astype("category")
    return table.assign(**{str(name): column for name, column in changed.items()})


def as_text(value: Any) -> str:
    """A value as the name of a group: numbers without a fraction as integers.

    Examples
    --------
    >>> as_text(101.0), as_text("a"), as_text(0.5), as_text(float("inf"))
    ('101', 'a', '0.5', 'inf')
    """
    return str(int(value)) if isinstance(value, (float, np.floating)) and float(value).is_integer() else str(value)


# Several files


def concatenate(files: Mapping[str, AnnData]) -> AnnData:
    """Cells of all files over the genes they share; obs column ``file`` (or ``file_ldvae``) tells the file.

    Parameters
    ----------
    files
        Counts of each file by its name; `X` may be none.
    """
    import anndata

    first = next(iter(files.values()))
    shared = first.var_names[np.all([first.var_names.isin(file.var_names) for file in files.values()], axis=0)]
    fewest = min(files, key=lambda name: files[name].n_vars)
    if len(shared) < SHARED_GENES * files[fewest].n_vars:
        examples = "; ".join(f"{name} has {listed(file.var_names, 3)}" for name, file in files.items())
        many = (
            f"{len(shared)} of the {files[fewest].n_vars} genes of {fewest}, too few to model" if len(shared) else "no"
        )
        raise InputError(
            f"The input files share {f'only {many}' if len(shared) else 'no gene name'}: {examples}. Are some named by "
            "symbol, others by identifier, or from different species? A var column can name all alike (gene_names)."
        )
    for name, file in files.items():
        if lost := file.n_vars - len(shared):
            logger.warning("%s: %d of %d genes are not in every file and were left out.", name, lost, file.n_vars)
    repeated = pd.concat([file.obs_names.to_series() for file in files.values()]).duplicated().any()
    obs = objects_to_categories(pd.concat(consistent(files)))
    key = own_name("file", obs.columns)
    obs[key] = pd.Categorical(np.repeat(list(files), [file.n_obs for file in files.values()]), categories=list(files))
    widths = {
        name: {file.obsm[name].shape[1:] if name in file.obsm else None for file in files.values()}
        for name in first.obsm
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = anndata.concat(
            {
                name: AnnData(
                    None if file.X is None else file.X[:, file.var_names.get_indexer(shared)],
                    obs=pd.DataFrame(index=file.obs_names),
                    var=file.var.loc[shared],
                    layers={
                        name: matrix[:, file.var_names.get_indexer(shared)] for name, matrix in file.layers.items()
                    },
                    obsm={name: values for name, values in file.obsm.items() if len(widths.get(name, ())) == 1},
                    uns=file.uns,
                )
                for name, file in files.items()
            },
            join="inner",
            merge="same",
            uns_merge="unique",
            index_unique="-" if repeated else None,
        )
    obs.index = adata.obs_names
    adata.obs = obs
    if adata.X is not None:
        adata.X = sparse.csr_matrix(adata.X)
    for name in [name for name in adata.uns if has_neighbors(adata.uns[name])]:
        del adata.uns[name]  # of one file alone
    adata.uns["ldvae_file_key"] = key
    return adata


def consistent(files: Mapping[str, AnnData]) -> list[pd.DataFrame]:
    """Obs of each file; a column that is text in one of them is text in all."""
    tables = [file.obs for file in files.values()]
    names = {name for table in tables for name in table.columns}
    text = {name for name in names if any(name in t and not pd.api.types.is_numeric_dtype(t[name]) for t in tables)}
    result = []
    for table in tables:
        values = {name: table[name].astype(object) for name in table.columns if name in text}
        result.append(table.assign(**{name: v.where(v.isna(), v.map(as_text)) for name, v in values.items()}))
    return result


def join_obs(adata: AnnData, path: Path) -> None:
    """Add the columns of a table of cells to obs, in place; cells that it does not name get missing values."""
    if not path.exists():
        raise InputError(f"{path}: does not exist; expected a table of cells.")
    try:
        table = read_annotation(path)
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read as a table of cells: {error}") from error
    if not table.index.is_unique:
        raise InputError(f"{path}: names cells more than once, e.g. {table.index[table.index.duplicated()][0]}.")
    table = tidy(table, str(path), "cell")
    found = adata.obs_names.isin(table.index)
    if not found.any():
        raise InputError(
            f"{path}: names none of the {adata.n_obs} cells; its first column has {listed(table.index, 3)}, the cells "
            f"are called {listed(adata.obs_names, 3)}."
        )
    if not found.all():
        logger.warning("%s: says nothing of %d of %d cells.", path, (~found).sum(), adata.n_obs)
    replaced = [column for column in table if column in adata.obs]
    if replaced:
        logger.warning("%s: replaces the obs columns %s of the input.", path, listed(replaced))
    for column in table:
        adata.obs[column] = table[column].reindex(adata.obs_names)


def obs_column(obs: pd.DataFrame, key: str) -> pd.Series:
    """A column of obs, which must be there and have a value for every cell."""
    if key not in obs:
        raise InputError(f"There is no obs column {key!r}.{suggestion(key, obs.columns)}")
    if n_missing := int(obs[key].isna().sum()):
        raise InputError(
            f"obs column {key!r} has no value for {n_missing} of {len(obs)} cells. Give these a value of their own, or "
            "leave them out of the input."
        )
    return obs[key]


def group_names(column: pd.Series) -> pd.Series:
    """The groups of a column as text, missing values left missing; whole numbers have no decimals (1, not 1.0).

    Examples
    --------
    >>> group_names(pd.Series([1.0, None, 0.0])).tolist()
    ['1', nan, '0']
    """
    if isinstance(column.dtype, pd.CategoricalDtype) and column.cat.categories.dtype.kind == "f":
        column = column.astype(float)
    values = column.to_numpy() if column.dtype.kind == "f" else None
    if values is not None and (np.isnan(values) | (np.isfinite(values) & (values == np.round(values)))).all():
        column = column.astype("Int64")
    return column.astype(str).astype(object).where(column.notna())


MAX_CELLS = (
    20_000  # whose counts of all measured genes are held in memory: beyond them a statistic of a gene hardly moves
)


def thinned(rows: np.ndarray, most: int = MAX_CELLS) -> np.ndarray:
    """At most so many of some rows, evenly spaced, so that every part of a file has its share.

    Examples
    --------
    >>> thinned(np.arange(10), 4).tolist()
    [0, 3, 6, 9]
    """
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int))]


def meant_group(name: str, groups: Iterable[str]) -> str:
    """The group that a name means which YAML may have read otherwise than it is written; the name itself if none.

    Without quotes, ``yes`` is true for YAML, ``1.0`` a number, and groups of whole numbers have no decimals.

    Examples
    --------
    >>> meant_group("True", ["no", "yes"]), meant_group("1.0", ["0", "1"]), meant_group("1", ["1", "1.0"])
    ('yes', '1', '1')
    """
    present = set(groups)
    if name in present:
        return name
    words = {"True": ("yes", "true", "on", "y"), "False": ("no", "false", "off", "n")}.get(name, ())
    found = [group for group in present if group.lower() in words]
    found += [group for group in present if re.fullmatch(r"-?\d+\.0", name) and group == name.removesuffix(".0")]
    return found[0] if len(found) == 1 else name


def read_lines(path: Path) -> list[str]:
    """The lines of a small text file that are not blank; gzipped or not, with or without a byte order mark."""
    with reading(path, "text"), opened_text(path) as file:
        return [line for line in file.read().splitlines() if line.strip()]


def read_gene_list(path: Path) -> list[str]:
    """The gene names of a file, one per line, each once."""
    return list(dict.fromkeys(line.strip() for line in read_lines(path)))


def read_gmt(path: Path) -> dict[str, list[str]]:
    """Gene sets by term: a line holds the term, a description and the genes, separated by tabs."""
    lines = [line.split("\t") for line in read_lines(path)]
    for number, line in enumerate(lines, 1):
        if len(line) < 3:
            raise InputError(
                f"{path}: line {number} has {len(line)} fields; expected a term, a description and at least one gene, "
                "separated by tabs. Give a GMT file."
            )
    return {line[0]: [gene.strip() for gene in line[2:] if gene.strip()] for line in lines}


def listed(names: Sequence[str] | pd.Index, n: int = NAMES_SHOWN) -> str:
    """The first `n` names, and how many more there are."""
    more = len(names) - n
    return ", ".join(map(str, names[:n])) + (f" and {more} more" if more > 0 else "")


# Writing


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, for a file or a folder, and give it that name when the block succeeds.

    A killed process leaves nothing that looks finished, and of two that write the same path the last one wins.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name ends as the final one does: many writers choose the format by the suffix.
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():  # a folder cannot be renamed onto another
            old = path.with_name(f".{uuid.uuid4().hex[:8]}-old-{path.name}")
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def write_table(table: pd.DataFrame, path: Path, *, index: str | None = None) -> None:
    """Write a tab-separated table, gzipped if the name ends in .gz; the same table gives the same bytes.

    Parameters
    ----------
    table
        Without a meaningful index, unless `index` names it.
    path
        File to write.
    index
        Write the index as first column, under this name.
    """
    text = table.to_csv(sep="\t", index=index is not None, index_label=index, float_format="%.7g").encode()
    with atomic(path) as temporary:
        # Neither time nor name of the temporary file in the header of the gzip file.
        temporary.write_bytes(gzip.compress(text, compresslevel=6, mtime=0) if path.suffix == ".gz" else text)


def read_table(path: Path, *, index: str | None = None, text: Sequence[str] = ()) -> pd.DataFrame:
    """Read a table of `write_table`; a gene called NA stays text, only empty fields are missing.

    Parameters
    ----------
    path
        File to read.
    index
        Column of names to make the index.
    text
        Columns to keep as text, in which an empty field is an empty text; those that the table lacks are ignored.
    """
    header = pd.read_csv(path, sep="\t", nrows=0).columns
    kinds = {name: str for name in (*text, index) if name in header}
    missing = {name: [""] for name in header if name not in kinds}
    table = pd.read_csv(path, sep="\t", keep_default_na=False, na_values=missing, dtype=kinds)
    return table if index is None else table.set_index(index)


def write_json(value: Any, path: Path) -> None:
    """Write plain values, numpy's and paths included, as JSON; what is not finite becomes null."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """A value as JSON can hold it.

    Examples
    --------
    >>> plain({"a": np.float32(0.5), "b": [np.nan, Path("x")], 3: np.arange(2)})
    {'a': 0.5, 'b': [None, 'x'], '3': [0, 1]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_input(path: str, genome: str | None = None) -> str:
    """Hexadecimal SHA-256 of what reading an input reads: a file, or the names and hashes of its files; empty for none.

    Parameters
    ----------
    path, genome
        As for `files_of`.
    """
    files = files_of(path, genome)
    if len(files) == 1:
        return sha256(files[0])
    lines = "".join(f"{sha256(file)}  {os.path.relpath(file, path)}\n" for file in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest() if files else ""


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect what the modules of `ldvae` log as warnings inside the block, for the summary of a step."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Collector(level=logging.WARNING)
    logging.getLogger("ldvae").addHandler(handler)
    try:
        yield messages
    finally:
        logging.getLogger("ldvae").removeHandler(handler)
