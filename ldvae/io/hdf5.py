"""Files of HDF5 and zarr: h5ad, h5mu, zarr, loom and 10x h5."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ldvae.errors import InputError, first_line, suggestion
from ldvae.io.by_rows import READ_AT_ONCE, ByEntries, Entries
from ldvae.io.chunks import ChunkedMatrix, LoadedMatrix, RawMatrix, StoredMatrix
from ldvae.io.matrices import as_csr, as_numbers
from ldvae.io.messages import first_names, reading
from ldvae.io.stored import Stored, layer_name, others_of

logger = logging.getLogger(__name__)


def read_anndata(path: Path) -> Stored:
    """An h5ad file or zarr store, or the genes of an h5mu file; only the matrix that is chosen will be loaded."""
    from anndata.io import read_elem

    with opened(path) as file:
        prefix = prefix_of_genes(file, path)
        store = file[prefix] if prefix else file
        if not hasattr(store["obs"], "keys"):
            return read_old_anndata(path)
        keys = matrices_of(store)

        def others(kinds: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
            with opened(path) as file:
                return {kind: elements(file[prefix + kind], read_elem) for kind in kinds if prefix + kind in file}

        obs = read_elem(store["obs"])
        if "mod" in file:  # what muon says of the cells of all modalities
            shared = read_elem(file["obs"])
            new = [c for c in shared if c not in obs and str(c).split(":")[0] not in file["mod"]]
            obs = obs.join(shared[new]) if shared.index.is_unique else obs
        return Stored(
            obs,
            read_elem(store["var"]),
            {name: partial(load_matrix, path, prefix + key) for name, key in keys.items()},
            read_elem(store["raw/var"]) if "raw/var" in store else None,
            others,
            on_disk=stored_matrices(path, file, {name: prefix + key for name, key in keys.items()}),
        )


def prefix_of_genes(file: Any, path: Path) -> str:
    """Where in a file the AnnData of the genes is: at its root, a modality of muon, or a table of SpatialData."""
    if "mod" in file and "obs" in file:
        modality = next((name for name in ("rna", "gex", "RNA", "GEX") if name in file["mod"]), None)
        if modality is None:
            raise InputError(f"{path}: has no modality called rna or gex; found {', '.join(file['mod'])}.")
        return f"mod/{modality}/"
    if "obs" in file:
        return ""
    for folder in ("tables", "table"):
        tables = [name for name in file.get(folder, ()) if "obs" in file[folder][name]]
        if len(tables) > 1:
            names = ", ".join(str(path / folder / name) for name in tables)
            raise InputError(f"{path}: holds {len(tables)} tables of SpatialData; name one of them: {names}.")
        if tables:
            return f"{folder}/{tables[0]}/"
    raise InputError(f"{path}: is of no AnnData: it lacks obs, and holds {first_names(list(file)) or 'nothing'}.")


def read_old_anndata(path: Path) -> Stored:
    """An h5ad file written before anndata 0.7, whose obs and var are arrays."""
    import anndata

    adata = anndata.io.read_h5ad(path, backed="r")  # leaves the matrices in the file
    adata.file.close()
    with opened(path) as file:
        keys = matrices_of(file)
        on_disk = stored_matrices(path, file, keys)
    return Stored(
        adata.obs,
        adata.var,
        {name: partial(load_matrix, path, key) for name, key in keys.items()},
        None if adata.raw is None else adata.raw.var,
        partial(others_of, adata),
        on_disk=on_disk,
    )


def matrices_of(store: Any) -> dict[str, str]:
    """Where in an h5ad file or zarr store the matrices are, by name: X, raw and the layers."""

    def there(key: str) -> bool:
        # anndata 0.12.0 writes an element of this kind in place of an X that is None.
        return key in store and store[key].attrs.get("encoding-type") != "null"

    x = {"X": "X"} if there("X") else {}
    raw = next(({"raw": key} for key in ("raw/X", "raw.X") if there(key)), {})
    layers = matrices_below(store["layers"]) if "layers" in store else []
    return x | {layer_name(name, x | raw): f"layers/{name}" for name in layers} | raw


def matrices_below(group: Any, prefix: str = "") -> list[str]:
    """Names of the matrices of a group; HDF5 and zarr keep one whose name has a slash in a group of its own."""
    found: list[str] = []
    for name in group:
        item = group[name]
        is_matrix = not hasattr(item, "keys") or "encoding-type" in item.attrs or "h5sparse_format" in item.attrs
        found += [prefix + name] if is_matrix else matrices_below(item, f"{prefix}{name}/")
    return found


def stored_matrices(path: Path, file: Any, keys: Mapping[str, str]) -> dict[str, StoredMatrix | ByEntries]:
    """Those of the matrices of an h5ad file or zarr store that need not be read as a whole: CSR, dense and CSC."""
    found: dict[str, StoredMatrix | ByEntries] = {}
    for name, key in keys.items():
        group = file[key]
        if not hasattr(group, "keys"):
            if group.ndim == 2 and group.dtype.kind in "biuf" and not lacks_chunks(group):
                found[name] = StoredMatrix(path, key, (int(group.shape[0]), int(group.shape[1])))
            continue
        if "indptr" not in group or any(lacks_chunks(group[name]) for name in ("data", "indices", "indptr")):
            continue  # the whole matrix shows what is missing
        attributes = dict(group.attrs)
        kind = str(attributes.get("encoding-type", attributes.get("h5sparse_format", "")))[:3]
        shape = attributes.get("shape", attributes.get("h5sparse_shape"))
        if shape is None or group["data"].dtype.kind not in "biuf":
            continue
        n_obs, n_vars = (int(n) for n in shape)
        if kind == "csr":
            found[name] = StoredMatrix(path, key, (n_obs, n_vars))
        if kind == "csc":
            n_stored, dtype = int(group["data"].shape[0]), as_numbers(group["data"][:0]).dtype
            found[name] = ByEntries((n_obs, n_vars), n_stored, dtype, partial(entries_by_columns, path, key))
    return found


def entries_by_columns(path: Path, key: str) -> Iterator[Entries]:
    """The entries of a CSC matrix of an h5ad file or zarr store, column by column: rows, columns, values."""
    with opened(path) as file:
        group = file[key]
        indptr = np.asarray(group["indptr"][:], np.int64)
        if indptr[0] != 0 or (np.diff(indptr) < 0).any() or indptr[-1] != group["indices"].shape[0]:
            raise ValueError("its columns (indptr) do not fit its entries")
        for start in range(0, int(indptr[-1]), READ_AT_ONCE):
            stop = min(start + READ_AT_ONCE, int(indptr[-1]))
            first, last = np.searchsorted(indptr, [start, stop - 1], side="right") - 1
            sizes = np.diff(np.clip(indptr[first : last + 2], start, stop)).astype(np.int64)
            columns = np.repeat(np.arange(first, last + 1), sizes)
            yield np.asarray(group["indices"][start:stop]), columns, as_numbers(group["data"][start:stop])


def load_matrix(path: Path, key: str) -> Any:
    """A matrix of an h5ad file or zarr store, sparse or dense.

    anndata's own reader makes a sparse matrix of the numbers as they are stored, and scipy has none of 16 bit floats.
    """
    from anndata.io import read_elem

    with opened(path) as file:
        group = file[key]
        if not hasattr(group, "keys") or "indptr" not in group:
            if lacks_chunks(group):
                logger.warning("%s: some files of %s are not there: its entries in them count as zeros.", path, key)
            return read_elem(group)
        attributes = dict(group.attrs)
        kind = str(attributes.get("encoding-type", attributes.get("h5sparse_format", "csr")))[:3]
        shape = tuple(int(n) for n in attributes.get("shape", attributes.get("h5sparse_shape", group.get("shape"))))
        parts = tuple(as_numbers(group[name][:]) for name in ("data", "indices", "indptr"))
        gaps = any(lacks_chunks(group[name]) for name in ("data", "indices", "indptr"))
    matrix = (sparse.csc_matrix if kind == "csc" else sparse.csr_matrix)(parts, shape=shape)
    # A chunk of zeros need not be written; but sparse matrices store no zeros, nor the same entry twice.
    if gaps and (not parts[0].all() or has_repeats(matrix)):
        raise InputError(
            f"{path}: lacks some of the files of {key}, which would count as zeros. Copy the folder again."
        )
    return matrix


def lacks_chunks(array: Any) -> bool:
    """Whether files of an array of a zarr store are not there: zarr reads zeros in their place."""
    return getattr(array, "nchunks_initialized", 0) < getattr(array, "nchunks", 0)


def has_repeats(matrix: sparse.csr_matrix | sparse.csc_matrix) -> bool:
    """Whether a matrix stores an entry more than once."""
    once = matrix.copy()
    once.sum_duplicates()
    return bool(once.nnz < matrix.nnz)


def elements(group: Any, read_elem: Callable[[Any], Any]) -> dict[str, Any]:
    """The elements of a group of an h5ad file, each that can be read."""
    found = {}
    for name in group:
        try:
            found[name] = read_elem(group[name])
        except Exception as error:  # of an encoding that this anndata does not know; nothing here needs it
            reason = first_line(error)
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


def read_without_matrices(path: Path) -> tuple[AnnData, dict[str, ChunkedMatrix], RawMatrix | None]:
    """An h5ad file that an earlier step wrote, without its matrices; and these: X and layers by name, and raw.

    The matrices stay in the file, and are read some rows at a time.
    """
    layers, raw = {}, None
    with reading(path, "h5ad"):
        stored = read_anndata(path)
        adata = AnnData(obs=stored.obs, var=stored.var, **stored.others(["obsm", "varm", "uns", "obsp", "varp"]))
        for name, load in stored.matrices.items():
            part = stored.on_disk.get(name)
            # Earlier versions wrote raw as it was, CSC included.
            own = part if isinstance(part, StoredMatrix) else LoadedMatrix(sparse.csr_matrix(load()))
            if name == "raw" and stored.raw_var is not None:
                raw = RawMatrix(ChunkedMatrix((own,)), stored.raw_var)
            else:
                layers[name.removeprefix("layers/")] = ChunkedMatrix((own,))
    return adata, layers, raw


def opened(path: Path) -> Any:
    """A context manager of an h5ad file, or of a zarr store, opened to be read."""
    if path.is_dir():
        import zarr

        return nullcontext(zarr.open_group(path, mode="r"))
    import h5py

    return h5py.File(path)


def read_hdf5(path: Path, genome: str | None) -> Stored:
    """An HDF5 file of any kind: h5ad, h5mu, loom or 10x h5, whatever its name says."""
    import h5py

    with h5py.File(path) as file:
        inside = set(file)
    if {"obs", "var"} <= inside:
        return read_anndata(path)
    if {"matrix", "col_attrs", "row_attrs"} <= inside:
        return read_loom(path)
    if {"assays", "cell.names"} <= inside:
        raise InputError(f"{path}: is an h5Seurat file. Convert it to h5ad first (SeuratDisk).")
    return read_h5(path, genome)


def read_h5(path: Path, genome: str | None) -> Stored:
    """A 10x h5 of version 2 or 3.

    scanpy.read_10x_h5 reads the same fields, but always with the matrix.
    """
    import h5py

    with h5py.File(path) as file:
        if "matrix" in file:
            key, group = "matrix", file["matrix"]
            features = {name: values for name, values in group["features"].items() if isinstance(values, h5py.Dataset)}
            var = pd.DataFrame(
                {
                    new: features[old].asstr("utf-8")[:]
                    for old, new in (("id", "gene_ids"), ("feature_type", "feature_types"), ("genome", "genome"))
                    if old in features
                },
                index=features["name"].asstr("utf-8")[:],
            )
            # Antibodies belong to no genome, and peaks to that of the genes.
            genomes = sorted(set(var.get("genome", pd.Series(dtype=str))) - {""})
        else:
            genomes = sorted(name for name, part in file.items() if isinstance(part, h5py.Group) and "barcodes" in part)
            if not genomes:
                raise InputError(
                    f"{path}: is HDF5, but neither 10x h5, h5ad, h5mu nor loom; it holds "
                    f"{first_names(list(file)) or 'nothing'}."
                )
        if genome is None and len(genomes) > 1:
            raise InputError(f"{path}: holds {len(genomes)} genomes ({', '.join(genomes)}); choose one (genome=...).")
        if genome is not None and genome not in genomes:
            raise InputError(f"{path}: holds no genome {genome!r}.{suggestion(genome, genomes)}")
        if "matrix" not in file:
            key = genome or genomes[0]
            group = file[key]
            var = pd.DataFrame(
                {"gene_ids": group["genes"].asstr("utf-8")[:]}, index=group["gene_names"].asstr("utf-8")[:]
            )
        obs = pd.DataFrame(index=group["barcodes"].asstr("utf-8")[:])
    own = np.ones(len(var), bool)
    if genome is not None and "genome" in var:
        own = (var["genome"] == genome).to_numpy()

    def load() -> sparse.csr_matrix:
        with h5py.File(path) as file:
            parts = tuple(as_numbers(file[f"{key}/{name}"][:]) for name in ("data", "indices", "indptr"))
        x = as_csr(sparse.csr_matrix(parts, shape=(len(obs), len(var))))  # by cell, though 10x calls it genes x cells
        return x if x is None or own.all() else x[:, own]

    columns = None if own.all() else np.flatnonzero(own)
    matrix = StoredMatrix(path, key, (len(obs), int(own.sum())), columns)
    return Stored(obs, var[own], {"X": load}, on_disk={"X": matrix}, can_turn=False)


# Attributes of loom files that name cells and genes, the best first.
LOOM_CELLS = ("cellid", "obs_names", "cell_id", "barcode", "barcodes", "cell", "cell_name", "cell_names", "cells")
LOOM_GENES = (
    "gene", "var_names", "gene_name", "gene_names", "genename", "genes", "symbol", "gene_symbol", "gene_symbols",
    "accession", "gene_id", "gene_ids", "ensembl_id",
)  # fmt: skip


def read_loom(path: Path) -> Stored:
    """A loom file, cell and gene names from whichever attributes hold them; it has genes in rows."""
    import h5py

    with h5py.File(path) as file:
        obs, obsm = loom_attributes(file["col_attrs"])
        var, varm = loom_attributes(file["row_attrs"])
        keys = {"X": "matrix"} | {layer_name(name, ["X"]): f"layers/{name}" for name in file.get("layers", ())}
        shapes = {name: file[key].shape[::-1] for name, key in keys.items() if file[key].dtype.kind in "biuf"}
    cells, genes = (
        [columns[name] for name in names if name in columns]
        for names, columns in (
            (LOOM_CELLS, {name.lower(): name for name in obs}),
            (LOOM_GENES, {name.lower(): name for name in var}),
        )
    )
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
        on_disk={name: StoredMatrix(path, keys[name], shape, turned=True) for name, shape in shapes.items()},
    )


def loom_attributes(group: Any) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Attributes of the cells or genes of a loom file: a table of those with one value each, and arrays of the rest."""
    import h5py

    columns: dict[str, np.ndarray] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, values in group.items():
        if isinstance(values, h5py.Dataset) and values.ndim:
            read = values[:] if values.dtype.kind in "biuf" else values.asstr("utf-8")[:]
            (columns if values.ndim == 1 else arrays)[name] = read
    return pd.DataFrame(columns), arrays
