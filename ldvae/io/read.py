"""Inputs of any format as verified counts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ldvae.counts import common_total, is_counts, not_counts
from ldvae.errors import InputError, suggestion
from ldvae.features import genes_in_rows, named_by_symbol, wanted_features
from ldvae.io.annotation import group_names, join_obs, meant_group, objects_to_categories, tidy
from ldvae.io.by_rows import FEW, write_by_rows
from ldvae.io.chunks import ROWS, ChunkedCounts, ChunkedMatrix, LoadedMatrix, Part, RawMatrix, StoredMatrix, same_genes
from ldvae.io.formats import FORMATS, opened_input, samples_of
from ldvae.io.matrices import as_csr, as_numbers, round_off
from ldvae.io.messages import first_names, reading
from ldvae.io.several import concatenate, shared_genes, warn_of_copies
from ldvae.io.stored import Stored, has_neighbors, neighbors_in_obsp
from ldvae.names import file_names

logger = logging.getLogger(__name__)


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
    chunked: bool = False,
    scratch: Path | None = None,
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
        obsp and varp, and `raw`, which has genes of its own; of several files what all have, varp where they agree.
    chunked
        Leave the counts in the files, where their format lets some cells be read at a time (h5ad, zarr and h5mu whose
        matrix is CSR or dense, loom, 10x h5): `X` is none, and `uns["ldvae_counts"]` reads them (`ChunkedCounts`). So
        do with `layers` the layers in `uns["ldvae_layers"]` (`ChunkedMatrix` by name) and `raw` in `uns["ldvae_raw"]`
        (`RawMatrix`), if there is one.
    scratch
        With `chunked`, a folder for large matrices of other formats (CSC, Matrix Market), which are written there by
        rows; it must stay as long as they are read. None: they are read into memory.

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
    refuse_repeated(paths)
    files: dict[str, AnnData] = {}
    matrices: list[Matrices] = []
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
                chunked=chunked,
                scratch=None if scratch is None else scratch / str(len(files)),
            )
            if chunked:
                matrices.append(take_matrices(adata))
            files["_".join(filter(None, (name, sample)))] = adata
            read.append({"path": str(part), "n_obs": adata.n_obs, "n_vars": adata.n_vars})
            if not counts:
                read[-1]["matrices"] = list(stored.matrices)
    if counts:
        parts = [file.counts for file in matrices] if chunked else [LoadedMatrix(file.X) for file in files.values()]
        warn_of_copies(files, dict(zip(files, parts, strict=True)))
    genes = [file.var_names for file in files.values()]
    adata = files[""] if "" in files else concatenate(files)
    adata.uns["ldvae_input"] = read
    if chunked:
        adata.uns |= chunked_matrices(matrices, [names.get_indexer(adata.var_names) for names in genes], layers)
    if obs_table is not None:
        join_obs(adata, Path(obs_table))
    if subset_key is not None:
        adata = of_cells(adata, with_level(adata, subset_key, subset))
    return adata


class Matrices(NamedTuple):
    """The matrices of one file, of which some rows at a time are read."""

    counts: Part
    layers: dict[str, Part]
    raw: Part | None
    raw_var: pd.DataFrame | None


def take_matrices(adata: AnnData) -> Matrices:
    """The matrices of a file, taken out of what `counts_of` returns; those that were loaded, too."""
    counts = adata.uns.pop("ldvae_counts", None) or LoadedMatrix(adata.X)
    layers = adata.uns.pop("ldvae_layers", {})
    for name in [name for name in adata.layers if name is not None]:
        matrix = adata.layers.pop(name)
        if matrix.dtype.kind in "biuf":
            layers[name] = LoadedMatrix(matrix.tocsr() if sparse.issparse(matrix) else np.asarray(matrix))
        else:
            logger.warning("layer %r is left out: it holds values that are not numbers.", name)
    raw = adata.uns.pop("ldvae_raw", None)
    if raw is None and adata.raw is not None:
        x = adata.raw.X
        raw = LoadedMatrix(x.tocsr() if sparse.issparse(x) else np.asarray(x)), adata.raw.var
    adata.X, adata.raw = None, None
    return Matrices(counts, layers, *(raw or (None, None)))


def chunked_matrices(files: Sequence[Matrices], columns: Sequence[np.ndarray], layers: bool) -> dict[str, Any]:
    """The entries of uns that read the matrices of all files, of the genes that all share.

    Parameters
    ----------
    files
        Matrices of each file.
    columns
        The shared genes, as columns of each file.
    layers
        With layers, those that all files have, and raw.
    """
    found: dict[str, Any] = {"ldvae_counts": ChunkedCounts(same_genes([file.counts for file in files], columns))}
    if not layers:
        return found
    names = [name for name in files[0].layers if all(name in file.layers for file in files)]
    found["ldvae_layers"] = {
        name: ChunkedMatrix(same_genes([file.layers[name] for file in files], columns)) for name in names
    }
    raws = [(file.raw, file.raw_var) for file in files if file.raw is not None and file.raw_var is not None]
    if len(raws) == len(files):
        var = shared_genes([var for _, var in raws])
        if not len(var):
            logger.warning("raw is left out: those of the %d files share no gene.", len(files))
            return found
        own = [of_file.index.get_indexer(var.index) for _, of_file in raws]
        found["ldvae_raw"] = RawMatrix(ChunkedMatrix(same_genes([raw for raw, _ in raws], own)), var)
    return found


def of_cells(adata: AnnData, cells: np.ndarray) -> AnnData:
    """Some cells, by a mask, of what `read_input` returns, matrices in files included."""
    unread = {name: adata.uns.pop(name) for name in list(adata.uns) if name in UNREAD}
    adata = adata[cells].copy()
    for name, value in unread.items():
        if isinstance(value, RawMatrix):
            adata.uns[name] = value._replace(matrix=value.matrix.take(cells))
        elif isinstance(value, ChunkedMatrix):
            adata.uns[name] = value.take(cells)
        else:
            adata.uns[name] = {layer: matrix.take(cells) for layer, matrix in value.items()}
    return adata


UNREAD = ("ldvae_counts", "ldvae_layers", "ldvae_raw")  # entries of uns that read matrices from files


def refuse_repeated(paths: Sequence[str | Path]) -> None:
    """Raise an InputError if a file is named twice: all its cells would count twice."""
    places = [path if "://" in str(path) else Path(path).resolve() for path in paths]
    for i, place in enumerate(places):
        if place in places[:i]:
            raise InputError(f"{paths[i]}: is named twice among the input files; name each once.")


def with_level(adata: AnnData, key: str, levels: Sequence[str]) -> np.ndarray:
    """Mask of the cells with one of some levels of an obs column, shape (n_obs,)."""
    if key not in adata.obs:
        raise InputError(f"subset_key: no obs column {key!r}.{suggestion(key, [str(name) for name in adata.obs])}")
    groups = group_names(adata.obs[key])
    known = sorted(groups.dropna().unique())
    levels = [meant_group(level, known) for level in levels]
    for level in levels:
        if level not in known:
            raise InputError(f"subset: obs column {key!r} has no level {level!r}.{suggestion(level, known)}")
    if not levels:
        raise InputError(
            f"subset: no level of {key!r} is named; it has {first_names(known)}. Name those whose cells to read."
        )
    return groups.isin(list(levels)).to_numpy()


def reading_options(section: object) -> dict[str, Any]:
    """The options of a section of the config that say how to read, as arguments of `read_input`."""
    names = ("layer", "genome", "obs_table", "transpose", "feature_types", "gene_names", "subset_key", "subset")
    return {name: getattr(section, name) for name in names if hasattr(section, name)}


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
    chunked: bool = False,
    scratch: Path | None = None,
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
    transpose, feature_types, gene_names, counts, layers, chunked
        As for `read_input`; matrices that stay in their file are in `uns["ldvae_counts"]`, `uns["ldvae_layers"]` (by
        name) and `uns["ldvae_raw"]` (with its var), as `StoredMatrix`.
    scratch
        As for `read_input`, of this file.
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
    x: sparse.csr_matrix | StoredMatrix | None = None
    others: dict[str, Mapping[str, Any]] = {}
    stays = chunked and not (transpose and stored.can_turn)  # what is turned is read as a whole
    if counts:
        with reading(where, kind):
            on_disk = unread(stored, chosen, scratch, where, counts=True) if stays else None
            on_disk = None if on_disk is None or on_disk.dtype.kind == "b" else on_disk
            x = as_csr(stored.matrices[chosen]()) if on_disk is None else on_disk
            others = dict(stored.others(["obsm", "varm", "uns", *(["obsp", "varp"] if layers else [])]))
            others["layers"] = other_matrices(stored, chosen, stays, scratch, where) if layers and not own_genes else {}
        if x is not None and x.shape != (len(obs), len(var)):
            raise InputError(
                f"{where}: {chosen} is {x.shape[0]} by {x.shape[1]}, but there are names of {len(obs)} rows and "
                f"{len(var)} columns. The file is damaged, or lines are missing."
            )
        if x is None:
            refuse_matrix(stored, where, kind, chosen, "values that are not numbers (or true and false)")
    if own_genes:
        others |= {"varm": {}, "varp": {}}
        if layers and (left := [name for name in stored.matrices if name != "raw"]):
            logger.info("%s: %s are left out: raw has other genes.", where, first_names(left))
    with reading(where, kind):
        judged = x.between(0, min(ROWS, x.shape[0])) if isinstance(x, StoredMatrix) else x
    if genes_in_rows(
        obs, var, judged, where, transpose=transpose, prior=stored.prior, fixed=stored.fixed, can_turn=stored.can_turn
    ):
        obs, var = var, obs
        x = None if judged is None else judged.T.tocsr()
        others = {TURNED.get(name, name): values for name, values in others.items()}
        others["layers"] = {name: matrix.T for name, matrix in others.get("layers", {}).items()}
    wanted = wanted_features(var, where, feature_types)
    if not wanted.all():
        var = var[wanted]
        x = x.take(wanted) if isinstance(x, StoredMatrix) else None if x is None else x[:, wanted]
        others["varm"] = {name: values[wanted] for name, values in others.get("varm", {}).items()}
        others["varp"] = {name: values[wanted][:, wanted] for name, values in others.get("varp", {}).items()}
        others["layers"] = {
            name: matrix.take(wanted) if isinstance(matrix, StoredMatrix) else matrix[:, wanted]
            for name, matrix in others.get("layers", {}).items()
        }
    var = named_by_symbol(var, where, gene_names)
    adata = AnnData(obs=tidy(obs, where, "cell"), var=tidy(var, where, "gene"))
    if isinstance(x, StoredMatrix):
        with reading(where, kind):
            totals = totals_of_counts(x, where, adata.var_names)
        if totals is None:  # what is wrong, and with how many, is said of the whole matrix
            return counts_of(
                stored, where, kind, layer, transpose=transpose, feature_types=feature_types, gene_names=gene_names,
                layers=layers,
            )  # fmt: skip
        if "ldvae_qc" not in others.get("uns", {}):  # qc has said it
            warn_if_normalized(totals, where)
        adata.uns["ldvae_counts"] = x
        keep_others(adata, others, where)
    elif x is not None:
        if problem := not_counts(round_off(x, where), adata.var_names):
            refuse_matrix(stored, where, kind, chosen, problem)
        x.sum_duplicates()
        x.eliminate_zeros()
        adata.X = x.astype(np.float32, copy=False)
        if "ldvae_qc" not in others.get("uns", {}):
            warn_if_normalized(np.asarray(x.sum(axis=1), dtype=float).ravel(), where)
        keep_others(adata, others, where)
    if x is not None and layers and chosen != "raw" and stored.raw_var is not None and obs is stored.obs:
        add_raw(adata, stored, unread(stored, "raw", scratch, where) if stays else None, where)
    return adata


def add_raw(adata: AnnData, stored: Stored, on_disk: StoredMatrix | None, where: str) -> None:
    """Add what a file has as `raw`, in place: its matrix, unless that stays on disk; nothing where it does not fit."""
    from anndata.utils import make_index_unique

    with reading(where, "raw"):
        x = stored.matrices["raw"]() if on_disk is None else on_disk
        var = objects_to_categories(pd.DataFrame(stored.raw_var))
        var.index = make_index_unique(var.index.astype(str).rename(None))
        if x.shape != (adata.n_obs, len(var)):
            logger.warning("%s: raw is left out: it is %d by %d, with %d genes.", where, *x.shape, len(var))
        elif on_disk is not None:
            adata.uns["ldvae_raw"] = on_disk, var
        else:
            adata.raw = AnnData(as_numbers(x) if isinstance(x, np.ndarray) else x, adata.obs[[]], var)


def warn_if_normalized(totals: np.ndarray, where: str) -> None:
    """Warn of cells that all have the same total, shape (n_obs,)."""
    if total := common_total(totals):
        logger.warning(
            "%s: all cells have about the same total (%.0f), as if their counts were normalized and rounded. ldvae "
            "models raw UMI counts: start from those, if these are not (down-sampled counts are).",
            where, total,
        )  # fmt: skip


def totals_of_counts(x: StoredMatrix, where: str, var_names: pd.Index) -> np.ndarray | None:
    """Total of each cell of a matrix on disk, some rows at a time; None if not all entries are counts, or all zero."""
    totals = []
    for start in range(0, x.shape[0], ROWS):
        block = x.between(start, min(start + ROWS, x.shape[0]))
        if block.nnz and not_counts(round_off(block, where), var_names):
            return None
        totals.append(np.asarray(block.sum(axis=1), dtype=float).ravel())
    found = np.concatenate(totals)
    return found if found.any() else None


TURNED = {"obsm": "varm", "varm": "obsm", "obsp": "varp", "varp": "obsp"}


def unread(stored: Stored, name: str, scratch: Path | None, where: str, *, counts: bool = False) -> StoredMatrix | None:
    """A matrix of a file of which some rows can be read, written by rows if need be; None: it is read as a whole.

    Parameters
    ----------
    stored, where
        The file, and its path for messages.
    name
        The matrix.
    scratch
        Where a matrix is written that is not stored by rows, unless it is small; None: nowhere.
    counts
        Do not write it if its first entries are no counts: the whole matrix shows what is wrong.
    """
    matrix = stored.on_disk.get(name)
    if matrix is None or isinstance(matrix, StoredMatrix):
        return matrix
    if scratch is None or matrix.n_stored <= FEW:
        return None
    if counts:
        rows, columns, values = next(iter(matrix.pieces()))
        if not is_counts(round_off(sparse.csr_matrix((values, (rows, columns)), matrix.shape), where)):
            return None
    number = list(stored.matrices).index(name)
    return write_by_rows(matrix, scratch.with_name(f"{scratch.name}-{number}.h5"), f"{where}: {name}")


def other_matrices(stored: Stored, chosen: str, stays: bool, scratch: Path | None, where: str) -> dict[str, Any]:
    """The matrices of a file but for the chosen one and raw, that can be sliced, by the name of their layer.

    Parameters
    ----------
    stored, scratch, where
        As for `unread`.
    chosen
        The matrix of the counts.
    stays
        Leave those in the file of which some rows can be read.
    """
    found = {}
    for name, load in stored.matrices.items():
        if name not in (chosen, "raw" if stored.raw_var is not None else chosen):
            on_disk = unread(stored, name, scratch, where) if stays else None
            matrix: Any = load() if on_disk is None else on_disk
            sliced = matrix.tocsr() if sparse.issparse(matrix) else matrix
            found["input_X" if name == "X" else name.removeprefix("layers/")] = sliced
    return found


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
    others = neighbors_in_obsp(others)
    for kind, values in others.items():
        for name, value in values.items():
            if name.startswith("ldvae_") or (has_neighbors(value) and "obsp" not in others):
                continue  # an earlier run's, or neighbors of cells, whose matrix is not read
            if isinstance(value, StoredMatrix):
                if value.shape == adata.shape:
                    adata.uns.setdefault("ldvae_layers", {})[name.replace("/", "_")] = value
                else:
                    logger.warning("%s: layer %r is left out: it is %d by %d.", where, name, *value.shape)
                continue
            try:
                if isinstance(value, pd.DataFrame) and kind != "uns":
                    value = objects_to_categories(value.set_axis(getattr(adata, f"{kind[:3]}_names")))
                getattr(adata, kind)[name.replace("/", "_")] = value
            except (ValueError, TypeError, AttributeError) as error:
                logger.warning("%s: %s[%r] is left out: %s", where, kind, name, str(error).splitlines()[0])
