"""The data of a model in their present state: counts read and validated, and read again after a change."""

from __future__ import annotations

import hashlib
import logging
import warnings
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ldvae.counts import verify_counts
from ldvae.data.counts import BackedCounts, Counts, as_csr, row_blocks
from ldvae.data.fields import MINIFIED_CELL_KEY, MINIFIED_TYPES, matrix, minified_type, read_covariates
from ldvae.data.genes import check_genes
from ldvae.data.registry import Registry
from ldvae.errors import InputError, counted

logger = logging.getLogger(__name__)


def read_counts(adata: AnnData, registry: Registry, check_only: bool = False) -> Counts | BackedCounts:
    """The counts and covariates of `adata` as a model with this registry takes them, checked.

    Parameters
    ----------
    adata
        The registered data, or other data with the same genes and fields.
    registry
        Of the model.
    check_only
        Do not check backed data entry by entry: it is the caller's next step that reads them.

    Raises
    ------
    InputError
        If the entries are no counts, or genes, columns or categories are not those of the registry.
    """
    check_genes(adata.var_names, registry.var_names)
    x = matrix(adata, registry)
    names, where = registry.var_names, registry.where
    backed = not isinstance(x, np.ndarray) and not sparse.issparse(x)
    if not backed:
        x = as_csr(x)
        verify_counts(x, where, names)
        totals = np.asarray(x.sum(axis=1)).ravel()
    elif check_only:
        totals = np.ones(adata.n_obs)
    else:
        totals = np.zeros(adata.n_obs)
        start = 0
        for block in row_blocks(x):
            if block.nnz:
                verify_counts(block, where, names)
            totals[start : start + block.shape[0]] = np.asarray(block.sum(axis=1)).ravel()
            start += block.shape[0]
    if n_empty := int((totals == 0).sum()):
        minified = pd.Series(adata.obs.get(MINIFIED_CELL_KEY, np.nan), index=adata.obs_names).notna().to_numpy()
        if n_lost := int(minified[totals == 0].sum()):
            raise InputError(
                f"The counts of {n_lost} of {len(totals)} cells are gone: these were minified (they have a value in "
                f"obs[{MINIFIED_CELL_KEY!r}]), but adata.uns does not say so, as after anndata.concat with others. "
                "Concatenate the full data; or minified data of one model alone, with uns_merge='same'."
            )
        warnings.warn(
            f"{n_empty} of {len(totals)} cells have no counts in {where}; they carry no information. "
            "Consider removing them with scanpy.pp.filter_cells.",
            UserWarning,
            stacklevel=3,
        )
    covariates = read_covariates(adata, registry, totals)
    return BackedCounts(x, names, where, covariates, totals) if backed else Counts(x, covariates)


class Snapshot(NamedTuple):
    """State of an AnnData when its counts were read, by which later changes are found."""

    cells: pd.Index
    genes: pd.Index
    where: tuple[Any, ...]  # the arrays in memory: a matrix put in their place is another one
    content: bytes  # checksum of every entry; of a matrix on disk nothing, its rows are checked as they are read
    annotation: pd.DataFrame  # the registered columns of obs

    @classmethod
    def of(cls, adata: AnnData, registry: Registry) -> Snapshot:
        """The present state of an AnnData."""
        arrays = arrays_of(matrix(adata, registry))
        # A view makes its matrix anew whenever it is asked for.
        where = () if adata.is_view else tuple((a.ctypes.data, a.shape, a.strides, a.dtype.str) for a in arrays)
        keys = [registry.batch_key, registry.labels_key, registry.size_factor_key]
        keys += [*registry.categorical_covariate_keys, *registry.continuous_covariate_keys]
        present = list(dict.fromkeys(key for key in keys if key in adata.obs))
        content = b"".join(checksum(a) for a in arrays)
        return cls(adata.obs_names, adata.var_names, where, content, adata.obs[present].copy())

    def changes(self, now: Snapshot, where: str) -> list[str]:
        """Descriptions of what has changed since; `where` names the matrix."""
        found = []
        if len(self.cells) != len(now.cells):
            found.append(f"{counted(len(self.cells), 'cell')}, now {len(now.cells)}")
        elif not same_index(self.cells, now.cells):
            found.append("the names or the order of the cells")
        if not same_index(self.genes, now.genes):
            found.append("the genes")
        if self.content != now.content:
            found.append(f"the values of {where}")
        elif self.where != now.where:
            found.append(f"{where} is another matrix")
        before, after = (table.reset_index(drop=True) for table in (self.annotation, now.annotation))
        if changed := [key for key in {**before, **after} if not same_column(before, after, key)]:
            found.append(f"adata.obs: {', '.join(map(str, changed))}")
        return found


def same_column(before: pd.DataFrame, after: pd.DataFrame, key: str) -> bool:
    """Whether both tables have the column, with the same values."""
    return key in before and key in after and before[key].equals(after[key])


class ModelData:
    """The data of a model, always in their present state.

    `counts` reads and validates the counts, and keeps them for the next call. It reads them again when the AnnData has
    changed: other cells, genes or columns of obs, another matrix, or other values in it.

    Parameters
    ----------
    adata
        Data with the genes and fields of the registry.
    registry
        Of the model.
    """

    def __init__(self, adata: AnnData, registry: Registry) -> None:
        self.adata = adata
        self.registry = registry
        self._read: tuple[Snapshot, Counts | BackedCounts] | None = None

    @property
    def snapshot(self) -> Snapshot | None:
        """The AnnData when its counts were read; None before."""
        return None if self._read is None else self._read[0]

    def counts(self) -> Counts | BackedCounts:
        """The counts and covariates of the AnnData as it is now.

        Raises
        ------
        InputError
            If there are no counts in them (minified data), or they were changed to what the model cannot use; the
            message says what was changed.
        """
        if minified_type(self.adata) == MINIFIED_TYPES[0]:
            raise InputError("This needs counts, and the data are minified: they hold the latent posterior alone.")
        now = Snapshot.of(self.adata, self.registry)
        if self._read is None:
            self._read = now, read_counts(self.adata, self.registry)
            return self._read[1]
        before, counts = self._read
        if not (changes := before.changes(now, self.registry.where)):
            return counts
        try:
            counts = read_counts(self.adata, self.registry)
        except InputError as error:
            raise InputError(
                f"The data of the model have changed since they were read ({'; '.join(changes)}), and cannot be used "
                f"as they are now: {error}"
            ) from error
        logger.info("The data of the model have changed (%s); they were read again.", "; ".join(changes))
        self._read = now, counts
        return counts


def same_index(one: pd.Index, other: pd.Index) -> bool:
    """Whether two indices hold the same names in the same order."""
    return one is other or one.equals(other)


def name_hashes(names: pd.Index) -> np.ndarray:
    """A number for each name, uint64, shape (n_obs,): the same in every process and in a file."""
    return pd.util.hash_array(names.astype(str).to_numpy(dtype=object), categorize=False)


def arrays_of(x: Any) -> list[np.ndarray]:
    """The arrays that a matrix in memory consists of; none for one on disk."""
    if isinstance(x, np.ndarray):
        return [np.asarray(x)]
    if not sparse.issparse(x):
        return []
    compressed = x if x.format in ("csr", "csc") else x.tocsr()
    return [compressed.data, compressed.indices, compressed.indptr]


def checksum(array: np.ndarray) -> bytes:
    """Checksum of all bytes of an array and of their order, as fast as memory is read (4 GB/s).

    The bytes are laid out as a table of 64-bit numbers, and the sums of its rows and of its columns are hashed: what
    changes one value, or exchanges two, changes a row or a column.
    """
    digest = hashlib.blake2b(f"{array.shape}{array.dtype}".encode(), digest_size=16)
    if not array.flags.c_contiguous:
        array = array.T if array.flags.f_contiguous else np.ascontiguousarray(array)
    raw = array.reshape(-1).view(np.uint8)
    columns, rows_at_once = 4096, 64  # 2 MB, which stay in the cache for the second sum
    n_rows = len(raw) // (8 * columns)
    table = raw[: n_rows * 8 * columns].view(np.uint64).reshape(n_rows, columns)
    column_sums, row_sums = np.zeros(columns, np.uint64), np.empty(n_rows, np.uint64)
    for start in range(0, n_rows, rows_at_once):
        part = table[start : start + rows_at_once]
        column_sums += part.sum(axis=0)
        row_sums[start : start + rows_at_once] = part.sum(axis=1)
    for values in (column_sums, row_sums, raw[n_rows * 8 * columns :]):
        digest.update(values.tobytes())
    return digest.digest()
