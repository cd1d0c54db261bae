"""Readers of every input format, the check that counts are counts, and atomic writers."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ldvae.counts import is_counts, not_counts
from ldvae.errors import InputError, suggestion

logger = logging.getLogger(__name__)

FORMATS = (
    "h5ad, zarr, loom, 10x h5 (.h5), a folder with matrix.mtx, an .mtx with its tables beside it, csv or tsv (.gz), "
    "or demo:pbmc68k"
)
NAMES_SHOWN = 20


def read_input(
    paths: Sequence[str | Path],
    names: Sequence[str] | None = None,
    *,
    layer: str | None = None,
    genome: str | None = None,
    obs_table: str | Path | None = None,
) -> AnnData:
    """Read raw counts from one or several files, as one AnnData with nothing but counts, obs and var.

    Parameters
    ----------
    paths
        Files or folders of any format, or ``demo:pbmc68k``.
    names
        A name for each file, kept in the obs column ``file``; without them, several files are named after themselves.
    layer
        Where the files keep their raw counts: a layer, or ``raw`` for `adata.raw`; none: `X`.
    genome
        The genome to read where a file holds several.
    obs_table
        csv or tsv of cell annotations, cell names in the first column; its columns join obs.

    Returns
    -------
    AnnData
        Verified counts as float32 CSR in `X`, unique cell and gene names; in `uns["input"]` path, n_obs and n_vars of
        each file.

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
    files = [read_file(path, layer=layer, genome=genome) for path in paths]
    adata = files[0] if names is None else concatenate(dict(zip(names, files, strict=True)))
    adata.uns["input"] = [
        {"path": str(path), "n_obs": file.n_obs, "n_vars": file.n_vars} for path, file in zip(paths, files, strict=True)
    ]
    if obs_table is not None:
        join_obs(adata, Path(obs_table))
    return adata


class Stored(NamedTuple):
    """What a file holds; its matrices are loaded when they are called."""

    obs: pd.DataFrame
    var: pd.DataFrame
    raw_var: pd.DataFrame | None
    matrices: dict[str, Callable[[], Any]]  # X, raw and the layers


def read_file(path: str | Path, *, layer: str | None = None, genome: str | None = None) -> AnnData:
    """Read raw counts from one file or folder; parameters and result as for `read_input`."""
    kind, reader = find_reader(str(path), genome)
    with reading(path, kind):
        stored = reader()
        if isinstance(stored, AnnData):
            stored = in_memory(stored)
    return counts_of(stored, str(path), kind, layer)


@contextmanager
def reading(path: str | Path, kind: str) -> Iterator[None]:
    """Turn whatever a reader stumbles over into an InputError, and silence what it warns of."""
    try:
        with warnings.catch_warnings():  # old formats and repeated names; what matters of it is said elsewhere
            warnings.simplefilter("ignore")
            yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # it lies in the file; the chained error keeps the details
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path}: cannot be read as {kind}: {reason} The file may be damaged or cut short (copy it again), or of "
            "another format than its name says."
        ) from error


# Which reader


def find_reader(path: str, genome: str | None) -> tuple[str, Callable[[], AnnData | Stored]]:
    """The name of the format of `path`, and a function that reads it."""
    if path.startswith("demo:"):
        from ldvae import demo

        if path != "demo:pbmc68k":
            raise InputError(f"There is no {path!r}.{suggestion(path, ['demo:pbmc68k'])}")
        return "the demo", demo.pbmc68k
    if re.match(r"[a-z][a-z0-9+]+:/", path):
        raise InputError(
            f"{path}: is a URL, which only the workflow fetches, before any step. Download it and name the file."
        )
    file = Path(path)
    if not file.exists():
        siblings = [other.name for other in file.parent.iterdir()] if file.parent.is_dir() else []
        where = f"In {file.parent}:{suggestion(file.name, sorted(siblings))}" if siblings else "Nor does its folder."
        raise InputError(f"{path}: does not exist. {where}")
    if file.is_dir():
        if any((file / name).exists() for name in (".zgroup", ".zattrs", "zarr.json")):
            return "zarr", lambda: read_anndata(file)
        matrix = find_matrix(file, genome)
        return "Matrix Market", lambda: read_mtx(matrix)
    name = file.name.lower().removesuffix(".gz")
    if name.endswith(".mtx"):
        return "Matrix Market", lambda: read_mtx(file)
    if name.endswith((".csv", ".tsv", ".txt")):
        return "a table of counts", lambda: read_table_of_counts(file)
    if name.endswith(".h5ad"):
        return "h5ad", lambda: read_anndata(file)
    if name.endswith(".loom"):
        return "loom", lambda: read_loom(file)
    if name.endswith((".h5", ".hdf5")):
        return "HDF5", lambda: read_h5(file, genome)
    hints = {
        ".rds": " Convert the R object to h5ad first (zellkonverter, or schard for reading back).",
        ".h5seurat": " Convert it to h5ad first (SeuratDisk).",
        ".tar": " Unpack it first.",
        ".tgz": " Unpack it first.",
        ".zip": " Unpack it first.",
    }
    raise InputError(f"{path}: is of no format that can be read: {FORMATS}.{hints.get(Path(name).suffix, '')}")


def find_matrix(folder: Path, genome: str | None) -> Path:
    """The matrix.mtx of a 10x folder, or of the one folder inside it that has one."""
    found = sorted(p for p in folder.glob("*") if re.fullmatch(r"(.+[._-])?matrix\.mtx(\.gz)?", p.name))
    if not found:
        found = sorted(p for p in folder.rglob("matrix.mtx*") if p.name in ("matrix.mtx", "matrix.mtx.gz"))
    if genome is not None and len(found) > 1:
        found = [p for p in found if p.parent.name == genome]
    # Cell Ranger writes raw and filtered matrices side by side; the raw one is mostly empty droplets.
    filtered = [p for p in found if any(part.startswith("filtered_") for part in p.relative_to(folder).parts)]
    found = filtered or found
    if len(found) > 1:
        listed = ", ".join(str(p.relative_to(folder)) for p in found[:NAMES_SHOWN])
        raise InputError(
            f"{folder}: holds {len(found)} matrices ({listed}); name one folder, list them as several inputs, or "
            "choose a genome (genome=...)."
        )
    if not found:
        inside = ", ".join(sorted(p.name for p in folder.iterdir())[:NAMES_SHOWN]) or "nothing"
        raise InputError(f"{folder}: holds no matrix.mtx(.gz) and is no zarr store; found {inside}.")
    return found[0]


# Readers of single formats, where anndata or scanpy leaves something open


def read_anndata(path: Path) -> Stored:
    """An h5ad file or zarr store, of which only the matrix that is chosen will be loaded."""
    import anndata
    from anndata.io import read_elem

    with opened(path) as store:
        if store.attrs.get("encoding-type") != "anndata":  # written before anndata 0.8
            return in_memory(anndata.io.read_zarr(path) if path.is_dir() else anndata.io.read_h5ad(path))
        layers = list(store["layers"]) if "layers" in store else []
        keys = {"X": "X", **{name: f"layers/{name}" for name in layers}, "raw": "raw/X"}

        def load(key: str) -> Any:
            with opened(path) as store:
                return read_elem(store[key])

        return Stored(
            read_elem(store["obs"]),
            read_elem(store["var"]),
            read_elem(store["raw/var"]) if "raw/var" in store else None,
            {name: partial(load, key) for name, key in keys.items() if key in store},
        )


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
    matrices = {"X": adata.X, **adata.layers} | ({} if adata.raw is None else {"raw": adata.raw.X})
    raw_var = None if adata.raw is None else adata.raw.var
    # An unnamed lambda of the loop variable would return the last matrix for all.
    return Stored(adata.obs, adata.var, raw_var, {name: partial(lambda x: x, x) for name, x in matrices.items()})


def read_h5(path: Path, genome: str | None) -> AnnData | Stored:
    """A 10x h5 of version 2 or 3, or an h5ad that is called h5."""
    import h5py
    import scanpy

    with h5py.File(path) as file:
        if "X" in file and "obs" in file:
            return read_anndata(path)
        if "matrix" in file:
            features = file["matrix/features"]
            stored = features["genome"][:] if "genome" in features else []
            genomes = sorted({name.decode() for name in stored} - {""})
        else:
            genomes = sorted(
                name for name, group in file.items() if isinstance(group, h5py.Group) and "barcodes" in group
            )
        if not genomes and "matrix" not in file:
            raise InputError(
                f"{path}: is HDF5, but neither of 10x nor of anndata; it holds {', '.join(file) or 'nothing'}."
            )
    if genome is None and len(genomes) > 1:
        raise InputError(f"{path}: holds {len(genomes)} genomes ({', '.join(genomes)}); choose one (genome=...).")
    if genome is not None and genome not in genomes:
        raise InputError(f"{path}: holds no genome {genome!r}.{suggestion(genome, genomes)}")
    return scanpy.read_10x_h5(path, genome=genome)


def read_loom(path: Path) -> AnnData:
    """A loom file, cell and gene names from whichever attributes hold them."""
    import anndata
    import h5py

    with h5py.File(path) as file:
        cells = [
            name for name in ("CellID", "obs_names", "cell_id", "barcode", "barcodes") if name in file["col_attrs"]
        ]
        genes = [name for name in ("Gene", "var_names", "gene", "gene_name", "Accession") if name in file["row_attrs"]]
        if not (cells and genes):
            raise InputError(
                f"{path}: has no names of its {'genes' if cells else 'cells'}: expected the column attribute CellID "
                f"and the row attribute Gene, found {', '.join(file['col_attrs'])}; {', '.join(file['row_attrs'])}."
            )
    try:
        return anndata.io.read_loom(path, sparse=True, obs_names=cells[0], var_names=genes[0])
    except ImportError as error:
        raise InputError(f"{path}: reading loom needs loompy, which is not installed (pip install loompy).") from error


def read_mtx(matrix: Path) -> AnnData:
    """A Matrix Market file with the tables of genes and cells beside it, as 10x writes them or alike."""
    from scipy.io import mmread

    stem = re.sub(r"\.mtx(\.gz)?$", "", matrix.name)
    base = re.sub(r"[._-]?matrix$", "", stem)
    genes_file = table_beside(matrix, base, ("features", "genes", "var", "var_names", "gene_names"))
    cells_file = table_beside(matrix, base, ("barcodes", "cells", "obs", "obs_names", "cell_names"))
    x = sparse.csr_matrix(mmread(matrix))
    n_genes, n_cells = x.shape
    var, obs = read_names(genes_file), read_names(cells_file)
    for rows, columns in ((n_genes, n_cells), (n_cells, n_genes)):  # 10x has genes in rows, others have cells
        genes, cells = without_header(var, rows), without_header(obs, columns)
        if genes is not None and cells is not None:
            break
    else:
        raise InputError(
            f"{matrix}: is {n_genes} by {n_cells}, but {genes_file.name} names {len(var)} genes and {cells_file.name} "
            f"{len(obs)} cells. One of the three files is cut short, or belongs to another sample."
        )
    if len(genes) == n_genes and len(cells) == n_cells:
        x = x.T
    genes.columns = pd.Index(["gene_ids", "name", "feature_types", *map(str, range(3, 99))][: genes.shape[1]])
    names = genes["name"] if "name" in genes else genes["gene_ids"]
    adata = AnnData(x.tocsr(), pd.DataFrame(index=pd.Index(cells[0])), genes.drop(columns="name", errors="ignore"))
    adata.var_names = pd.Index(names)
    kinds = genes.get("feature_types", pd.Series(dtype=str)).to_numpy()
    if (kinds == "Gene Expression").any() and not (kinds == "Gene Expression").all():
        logger.info("%s: %d features that are no genes were left out.", matrix, (kinds != "Gene Expression").sum())
        adata = adata[:, kinds == "Gene Expression"].copy()
    return adata


def table_beside(matrix: Path, base: str, names: Sequence[str]) -> Path:
    """The table in the folder of `matrix` called by one of `names`, best with the same prefix as the matrix."""
    for prefix in dict.fromkeys((base, "")):
        start = rf"{re.escape(prefix)}[._-]?" if prefix else ""
        for name in names:
            for other in sorted(matrix.parent.iterdir()):
                if re.fullmatch(rf"{start}{name}\.(tsv|csv|txt)(\.gz)?", other.name):
                    return other
    raise InputError(
        f"{matrix}: has no table of {'genes' if 'genes' in names else 'cells'} beside it; expected "
        f"{' or '.join(f'{name}.tsv' for name in names[:2])} (also .csv, .txt, .gz) in {matrix.parent}."
    )


def read_names(path: Path) -> pd.DataFrame:
    """All cells of a small table as text, without taking any line for a header."""
    return pd.read_csv(path, sep=separator(path), header=None, dtype=str, keep_default_na=False)


def without_header(table: pd.DataFrame, n: int) -> pd.DataFrame | None:
    """The last `n` rows of a table of `n` rows, or of a header and `n` rows; None if it has another length."""
    return table.tail(n).reset_index(drop=True) if len(table) in (n, n + 1) else None


def separator(path: Path) -> str:
    """The separator of a text table, from its first line."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as file:
        first = file.readline()
    return next((mark for mark in "\t,;" if mark in first), "," if path.name.endswith((".csv", ".csv.gz")) else "\t")


def read_table_of_counts(path: Path, chunk_rows: int = 1000) -> AnnData:
    """A csv or tsv of counts with names in the first row and column; genes in columns or, as often, in rows."""
    sep = separator(path)
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as file:
        header = pd.read_csv(file, sep=sep, header=None, nrows=1, dtype=str, keep_default_na=False).iloc[0].tolist()
    rows: list[str] = []
    blocks = []
    for chunk in pd.read_csv(path, sep=sep, header=None, skiprows=1, chunksize=chunk_rows, dtype={0: str}):
        values = chunk.iloc[:, 1:]
        text = values.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in values.dtypes]]
        if len(text):
            name = header[text[0] - len(chunk.columns)]
            raise InputError(
                f"{path}: column {name!r} holds text (e.g. {values[text[0]].iloc[0]!r}) where counts are expected. "
                "Keep annotations of cells in a table of their own (obs_table)."
            )
        rows.extend(chunk[0].astype(str))
        blocks.append(sparse.csr_matrix(values.to_numpy(np.float32)))
    if not blocks or not blocks[0].shape[1]:
        raise InputError(
            f"{path}: holds no table: expected names in the first row and in the first column, and counts."
        )
    x = sparse.vstack(blocks, format="csr")
    columns = header[-x.shape[1] :]  # R leaves out the name of the first column
    if len(header) not in (x.shape[1], x.shape[1] + 1):
        raise InputError(f"{path}: has {len(header)} names in its first row but {x.shape[1]} columns of counts.")
    if len(set(columns)) < len(columns) and all(re.fullmatch(r"[\d.]+", name) for name in columns):
        raise InputError(f"{path}: the first row holds numbers; expected the names of the genes (or cells) there.")
    looks = genes_likeness(rows) - genes_likeness(columns)
    if looks == 0:
        logger.warning("%s: cannot tell genes from cells by their names; taking columns for genes.", path)
    if looks > 0:
        logger.info("%s: has genes in rows.", path)
        x, rows, columns = x.T.tocsr(), columns, rows
    return AnnData(x, pd.DataFrame(index=pd.Index(rows)), pd.DataFrame(index=pd.Index(columns)))


def genes_likeness(names: Sequence[str]) -> float:
    """How much a list of names looks like genes (positive) or like cell barcodes (negative), from −1 to 1."""
    known = re.compile(
        r"ENS[A-Z]*G\d{6}|MT-|RP[SL]\d+[AXLY]?\d?$|(ACTB|B2M|GAPDH|MALAT1|EEF1A1|TMSB4X|FTL|CD3[DEG])$", re.I
    )
    barcode = re.compile(r"(^|[^A-Z])[ACGT]{10,}([^A-Z]|$)")
    return float(np.mean([bool(known.match(name)) - bool(barcode.search(name)) for name in names]))


# From what is stored to verified counts


def counts_of(stored: Stored, where: str, kind: str, layer: str | None) -> AnnData:
    """The matrix of raw counts of a file, verified, with tidy names and nothing else but obs and var.

    Parameters
    ----------
    stored
        The file.
    where, kind
        Path and format, for the messages.
    layer
        The matrix: a layer, or raw; none: X.
    """
    chosen = "X" if layer is None else layer
    if chosen not in stored.matrices:
        raise InputError(
            f"{where}: has no matrix {chosen!r}.{suggestion(chosen, stored.matrices)} Choose one (layer=...)."
        )
    var = stored.raw_var if chosen == "raw" and stored.raw_var is not None else stored.var
    with reading(where, kind):
        x = stored.matrices[chosen]()
    adata = AnnData(obs=tidy(stored.obs, where, "cell"), var=tidy(var, where, "gene"))
    if 0 in adata.shape:
        raise InputError(f"{where}: has {adata.n_obs} cells and {adata.n_vars} genes; there is nothing to read.")
    if (sparse.issparse(x) or isinstance(x, np.ndarray)) and x.dtype.kind in "biuf":
        x = sparse.csr_matrix(x)
        if x.indptr.dtype != x.indices.dtype:  # as anndata's concatenation on disk writes; scipy cannot work on it
            x = sparse.csr_matrix((x.data, x.indices, x.indptr), x.shape)
        problem = not_counts(x, adata.var_names)
    else:
        problem = "no values" if x is None else f"values of type {getattr(x, 'dtype', type(x).__name__)}"
    if problem:
        with reading(where, kind):
            others = [name for name, load in stored.matrices.items() if name != chosen and is_counts(load())]
        remedy = (
            f"Counts are in {' and in '.join(map(repr, others))}: choose it (layer={others[0]})."
            if others
            else f"No other matrix of the file holds counts{' (it has only this one)' * (len(stored.matrices) == 1)}: "
            "start from the raw counts."
        )
        raise InputError(f"{where}: {chosen} holds {problem}. ldvae models raw UMI counts. {remedy}")
    x.sum_duplicates()
    x.eliminate_zeros()
    adata.X = x.astype(np.float32, copy=False)
    return adata


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
    table.index = table.index.astype(str).rename(None)
    repeated = table.index[table.index.duplicated()].unique()
    if len(repeated):
        message = "%s: %d %s names occur more than once; repeats got a suffix (%s-1, …): %s"
        logger.warning(message, where, len(repeated), kind, repeated[0], listed(repeated))
        with warnings.catch_warnings():  # anndata also warns of names that end like a suffix
            warnings.simplefilter("ignore")
            table.index = make_index_unique(table.index)
    renamed = {column: str(column).replace("/", "_") for column in table.columns}
    slashed = [str(column) for column, name in renamed.items() if str(column) != name]
    if slashed:
        logger.warning("%s: a column name must not hold a slash, replaced by _ in: %s", where, ", ".join(slashed))
    table = table.rename(columns=renamed).drop(columns="_index", errors="ignore")
    return objects_to_categories(table)


def objects_to_categories(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose columns of text, or of mixed types, are categories of text; missing values stay missing."""
    mixed = table.select_dtypes("object")
    return table.assign(
        **{name: mixed[name].where(mixed[name].isna(), mixed[name].astype(str)) for name in mixed}
    ).astype(dict.fromkeys(mixed, "category"))


# Several files


def file_names(paths: Sequence[str | Path]) -> list[str]:
    """A short name for each file: its stem, or the first folder above it that tells the files apart.

    Examples
    --------
    >>> file_names(["a/ctrl.h5ad", "a/stim.h5ad"])
    ['ctrl', 'stim']
    >>> file_names(["s1/outs/filtered_feature_bc_matrix", "s2/outs/filtered_feature_bc_matrix"])
    ['s1', 's2']
    """
    parts = [list(reversed(Path(path).parts)) for path in paths]
    for level in range(min(map(len, parts))):
        names = [re.sub(r"(\.(h5ad|h5|hdf5|loom|zarr|mtx|csv|tsv|txt))?(\.gz)?$", "", part[level]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise InputError(
        f"The input files cannot be told apart by name ({', '.join(map(str, paths))}); give a name to each."
    )


def concatenate(files: Mapping[str, AnnData]) -> AnnData:
    """Cells of all files over the genes they share; obs column ``file`` tells the file.

    Parameters
    ----------
    files
        Counts of each file by its name.
    """
    import anndata

    first = next(iter(files.values()))
    shared = first.var_names[np.all([first.var_names.isin(file.var_names) for file in files.values()], axis=0)]
    if not len(shared):
        examples = "; ".join(f"{name} has {listed(file.var_names, 3)}" for name, file in files.items())
        raise InputError(
            f"The input files share no gene name: {examples}. Are some named by symbol, others by identifier?"
        )
    for name, file in files.items():
        if lost := file.n_vars - len(shared):
            logger.warning("%s: %d of %d genes are not in every file and were left out.", name, lost, file.n_vars)
        if "file" in file.obs:
            logger.warning("%s: the obs column 'file' is replaced by the name of the file.", name)
    repeated = pd.concat([file.obs_names.to_series() for file in files.values()]).duplicated().any()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = anndata.concat(
            {name: file[:, shared] for name, file in files.items()},
            join="inner",
            merge="same",
            index_unique="-" if repeated else None,
        )
        obs = objects_to_categories(pd.concat([file.obs.assign(file=name) for name, file in files.items()]))
    obs["file"] = pd.Categorical(obs["file"], categories=list(files))
    obs.index = adata.obs_names
    adata.obs = obs
    adata.X = sparse.csr_matrix(adata.X)
    return adata


def join_obs(adata: AnnData, path: Path) -> None:
    """Add the columns of a table of cells to obs, in place; cells that it does not name get missing values."""
    if not path.exists():
        raise InputError(f"{path}: does not exist; expected a table of cells.")
    try:
        table = pd.read_csv(path, sep=separator(path), index_col=0)
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


def read_table(path: Path, *, index: str | None = None) -> pd.DataFrame:
    """Read a table of `write_table`; a gene called NA stays text, only empty fields are missing.

    Parameters
    ----------
    path
        File to read.
    index
        Column of names to make the index.
    """
    text = {index: str} if index is not None else None
    table = pd.read_csv(path, sep="\t", keep_default_na=False, na_values=[""], dtype=text)
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
    """Hexadecimal SHA-256 of a file, or of the names and hashes of all files of a folder."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        lines = "".join(f"{sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in files)
        return hashlib.sha256(lines.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
