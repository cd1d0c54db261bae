"""Counts that are read some rows at a time, from memory or from the files that hold them.

anndata reads its sparse matrices on disk by rows, too, but not those of 10x, and only with dask several files as one;
`read_lazy`, scanpy on dask arrays and seurat_v3 on them need newer versions than ldvae asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from ldvae.io.matrices import as_csr, as_numbers

ROWS = 20_000  # cells read at once: 100 to 300 MB of counts


@dataclass(frozen=True, eq=False)
class StoredMatrix:
    """A matrix in a file, CSR or dense, of which rows are read when they are needed.

    Attributes
    ----------
    path, key
        The file or zarr store, and where in it the matrix is.
    shape
        Rows and columns to read.
    columns
        Columns of the file that are read, ascending or not; None: all.
    """

    path: Path
    key: str
    shape: tuple[int, int]
    columns: np.ndarray | None = None

    @cached_property
    def indptr(self) -> np.ndarray | None:
        """Where in the file rows begin, shape (n_obs + 1,); None where the matrix is dense."""
        from ldvae.io.hdf5 import opened

        with opened(self.path) as file:
            return np.asarray(file[self.key]["indptr"][:], np.int64) if hasattr(file[self.key], "keys") else None

    def take(self, columns: np.ndarray) -> StoredMatrix:
        """The matrix of some columns, by number or mask."""
        own = np.arange(self.shape[1]) if self.columns is None else self.columns
        return replace(self, columns=own[columns], shape=(self.shape[0], len(own[columns])))

    def between(self, start: int, stop: int) -> sparse.csr_matrix:
        """Rows start to stop, numbers as they are stored."""
        from ldvae.io.hdf5 import opened

        with opened(self.path) as file:
            stored = file[self.key]
            if self.indptr is None:
                x = as_csr(stored[start:stop])
            else:
                first, last = int(self.indptr[start]), int(self.indptr[stop])
                parts = tuple(as_numbers(stored[name][first:last]) for name in ("data", "indices"))
                width = self.shape[1] if self.columns is None else self.n_stored(stored)
                matrix = sparse.csr_matrix((*parts, self.indptr[start : stop + 1] - first), shape=(stop - start, width))
                x = as_csr(matrix)
        if x is None:
            raise ValueError("it holds values that are no numbers")
        return x if self.columns is None else x[:, self.columns]

    def n_stored(self, stored: Any) -> int:
        """Number of columns in the file: of a group of 10x the first of its shape, of anndata the second."""
        shape = stored.attrs.get("shape", stored.attrs.get("h5sparse_shape"))
        return int(stored["shape"][0] if shape is None else shape[1])


@dataclass(frozen=True, eq=False)
class LoadedMatrix:
    """A CSR matrix in memory, with the interface of `StoredMatrix`."""

    x: sparse.csr_matrix

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.x.shape[0]), int(self.x.shape[1])

    def take(self, columns: np.ndarray) -> LoadedMatrix:
        """The matrix of some columns, by number or mask."""
        return LoadedMatrix(self.x[:, columns])

    def between(self, start: int, stop: int) -> sparse.csr_matrix:
        """Rows start to stop."""
        return self.x if (start, stop) == (0, self.shape[0]) else self.x[start:stop]


@dataclass(frozen=True, eq=False)
class ChunkedCounts:
    """Verified counts of one or several files, of which some rows at a time are in memory.

    Attributes
    ----------
    parts
        The matrix of each file, all with the same columns.
    rows
        Cells to read, ascending, as rows of the parts one after the other; None: all.
    """

    parts: tuple[StoredMatrix | LoadedMatrix, ...]
    rows: np.ndarray | None = None

    @classmethod
    def of(cls, x: sparse.csr_matrix) -> ChunkedCounts:
        """Of a matrix in memory."""
        return cls((LoadedMatrix(x),))

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of cells and genes."""
        n_obs = sum(part.shape[0] for part in self.parts) if self.rows is None else len(self.rows)
        return n_obs, self.parts[0].shape[1]

    @property
    def on_disk(self) -> bool:
        """Whether another process can read the counts from files."""
        return all(isinstance(part, StoredMatrix) for part in self.parts)

    def take(self, cells: np.ndarray) -> ChunkedCounts:
        """The counts of some cells, by a mask or by ascending numbers."""
        rows = np.arange(self.shape[0]) if self.rows is None else self.rows
        return replace(self, rows=rows[cells])

    def read(self, cells: np.ndarray) -> sparse.csr_matrix:
        """Counts of some cells, by ascending numbers: float32, genes ascending and once in each cell, no stored zeros.

        Where the cells are far apart in a file, whole blocks of rows are read on the way, one at a time.
        """
        rows = np.asarray(cells) if self.rows is None else self.rows[cells]
        ends = np.cumsum([part.shape[0] for part in self.parts])
        blocks = []
        for part, end in zip(self.parts, ends, strict=True):
            own = rows[(rows >= end - part.shape[0]) & (rows < end)] - (end - part.shape[0])
            for block in np.split(own, np.flatnonzero(np.diff(own // ROWS)) + 1) if len(own) else []:
                x = part.between(int(block[0]), int(block[-1]) + 1)
                blocks.append(x if len(block) == x.shape[0] else x[block - block[0]])
        if not blocks:
            return sparse.csr_matrix((0, self.shape[1]), dtype=np.float32)
        return canonical(blocks[0] if len(blocks) == 1 else sparse.vstack(blocks, format="csr"))

    def chunks(self, cells: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, sparse.csr_matrix]]:
        """Some cells at a time: their numbers, ascending, and their counts.

        Parameters
        ----------
        cells
            Ascending numbers of the cells to go through; none: all.
        """
        cells = np.arange(self.shape[0]) if cells is None else cells
        for start in range(0, len(cells), ROWS):
            own = cells[start : start + ROWS]
            yield own, self.read(own)


def canonical(x: sparse.csr_matrix) -> sparse.csr_matrix:
    """Counts as whole numbers in float32, genes ascending and once in each cell, without stored zeros."""
    if not isinstance(x, sparse.csr_matrix) or not x.has_canonical_format or not x.data.all():
        x = sparse.csr_matrix(x, copy=True)
        x.sum_duplicates()
        x.eliminate_zeros()
    data = x.data
    if data.dtype.kind == "f" and not np.array_equal(data, nearest := np.rint(data)):  # off by an error of rounding
        data = nearest
    return sparse.csr_matrix((data.astype(np.float32, copy=False), x.indices, x.indptr), x.shape)


def write_chunked(
    adata: AnnData,
    counts: ChunkedCounts,
    path: Path,
    *,
    genes: np.ndarray,
    n_stored: int,
    compression: str | None = None,
    cells: np.ndarray | None = None,
) -> None:
    """Write an AnnData without X and its counts, some cells at a time, as one h5ad file.

    Parameters
    ----------
    adata
        Everything but the counts.
    counts
        Of at least these cells and genes.
    path
        The file.
    genes
        Mask of the genes to write, shape (counts.shape[1],).
    n_stored
        Number of counts above zero that will be written.
    compression
        Of all arrays; without it each array of the matrix lies in one piece, which is what reads fastest.
    cells
        Ascending numbers of the cells to write; none: all.
    """
    import h5py

    adata.write_h5ad(path, compression=compression)
    with h5py.File(path, "a") as file:
        if "X" in file:
            del file["X"]
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": adata.shape})
        options: dict[str, Any] = {"compression": compression} if n_stored else {}
        for name, dtype in (("data", np.float32), ("indices", np.int32)):
            group.create_dataset(name, (n_stored,), dtype, **options)
        ends: list[np.ndarray] = [np.zeros(1, np.int64)]
        for _, x in counts.chunks(cells):
            x = x if genes.all() else x[:, genes]
            end = int(ends[-1][-1])
            group["data"][end : end + x.nnz] = x.data
            group["indices"][end : end + x.nnz] = x.indices
            ends.append(end + x.indptr[1:].astype(np.int64))
        indptr = np.concatenate(ends)
        if indptr[-1] != n_stored or len(indptr) != adata.n_obs + 1:
            raise ValueError(f"{path}: {indptr[-1]} counts of {len(indptr) - 1} cells, but {n_stored} were announced")
        # One type for both, unless the number of counts needs the longer one: scipy takes no mixture.
        small = n_stored < np.iinfo(np.int32).max
        group.create_dataset("indptr", data=indptr.astype(np.int32 if small else np.int64), compression=compression)


def same_genes(parts: Sequence[StoredMatrix | LoadedMatrix], columns: Sequence[np.ndarray]) -> ChunkedCounts:
    """The counts of several files as one, of the columns of each that all share, in one order."""
    pairs = zip(parts, columns, strict=True)
    return ChunkedCounts(tuple(part if same(own, part.shape[1]) else part.take(own) for part, own in pairs))


def same(columns: np.ndarray, n: int) -> bool:
    """Whether columns are all of `n`, in their order."""
    return np.array_equal(columns, np.arange(n))
