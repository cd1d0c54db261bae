"""Counts that are read some rows at a time, from memory or from the files that hold them.

anndata reads its sparse matrices on disk by rows, too, but not those of 10x, and only with dask several files as one;
`read_lazy`, scanpy on dask arrays and seurat_v3 on them need newer versions than ldvae asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ldvae.io.matrices import as_csr, as_numbers

ROWS = 20_000  # cells read at once: 100 to 300 MB of counts
VALUES = 2**25  # values of a dense matrix read at once: 128 MB in single precision
STORED_CHUNK = 2**18  # entries of a sparse matrix that grows, compressed together

Rows: TypeAlias = sparse.csr_matrix | np.ndarray


def rows_at_once(width: int) -> int:
    """Rows of a dense matrix of so many columns to read at once."""
    return max(1, min(ROWS, VALUES // max(1, width)))


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
    turned
        The file has genes in rows: a dense matrix, of which columns are read (loom).
    """

    path: Path
    key: str
    shape: tuple[int, int]
    columns: np.ndarray | None = None
    turned: bool = False

    @cached_property
    def indptr(self) -> np.ndarray | None:
        """Where in the file rows begin, shape (n_obs + 1,); None where the matrix is dense."""
        from ldvae.io.hdf5 import opened

        with opened(self.path) as file:
            return np.asarray(file[self.key]["indptr"][:], np.int64) if hasattr(file[self.key], "keys") else None

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers, as `stored` returns them."""
        return self.stored(0, 0).dtype

    @property
    def is_sparse(self) -> bool:
        """Whether the file has it as CSR."""
        return self.indptr is not None

    @cached_property
    def at_once(self) -> int:
        """Rows to read at once."""
        from ldvae.io.hdf5 import opened

        if self.is_sparse:
            return ROWS
        with opened(self.path) as file:
            width = file[self.key].shape[0 if self.turned else 1]
        return rows_at_once(width)

    def take(self, columns: np.ndarray) -> StoredMatrix:
        """The matrix of some columns, by number or mask."""
        own = np.arange(self.shape[1]) if self.columns is None else self.columns
        return replace(self, columns=own[columns], shape=(self.shape[0], len(own[columns])))

    def stored(self, start: int, stop: int) -> Rows:
        """Rows start to stop, CSR or dense and numbers as they are stored (of CSR: as scipy takes them)."""
        from ldvae.io.hdf5 import opened

        with opened(self.path) as file:
            stored = file[self.key]
            if self.indptr is None:
                x = np.asarray(stored[:, start:stop].T if self.turned else stored[start:stop])
            else:
                first, last = int(self.indptr[start]), int(self.indptr[stop])
                parts = tuple(as_numbers(stored[name][first:last]) for name in ("data", "indices"))
                width = self.shape[1] if self.columns is None else self.n_stored(stored)
                x = sparse.csr_matrix((*parts, self.indptr[start : stop + 1] - first), shape=(stop - start, width))
                x.check_format(full_check=True)  # scipy's compiled code would follow indices out of the matrix
        return x if self.columns is None else x[:, self.columns]

    def between(self, start: int, stop: int) -> sparse.csr_matrix:
        """Rows start to stop as CSR, numbers as they are stored."""
        ends = [*range(start, stop, self.at_once), stop] if stop > start else [start, stop]
        blocks = [as_csr(self.stored(*piece)) for piece in pairwise(ends)]
        if any(block is None for block in blocks):
            raise ValueError("it holds values that are not numbers")
        return blocks[0] if len(blocks) == 1 else sparse.vstack(blocks, format="csr")

    def n_stored(self, stored: Any) -> int:
        """Number of columns in the file: of a group of 10x the first of its shape, of anndata the second."""
        shape = stored.attrs.get("shape", stored.attrs.get("h5sparse_shape"))
        return int(stored["shape"][0] if shape is None else shape[1])


@dataclass(frozen=True, eq=False)
class LoadedMatrix:
    """A CSR or dense matrix in memory, with the interface of `StoredMatrix`."""

    x: Rows

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.x.shape[0]), int(self.x.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers."""
        return self.x.dtype

    @property
    def is_sparse(self) -> bool:
        """Whether it is CSR."""
        return sparse.issparse(self.x)

    @property
    def at_once(self) -> int:
        """Rows to read at once."""
        return ROWS if self.is_sparse else rows_at_once(self.shape[1])

    def take(self, columns: np.ndarray) -> LoadedMatrix:
        """The matrix of some columns, by number or mask."""
        return LoadedMatrix(self.x[:, columns])

    def stored(self, start: int, stop: int) -> Rows:
        """Rows start to stop."""
        return self.x if (start, stop) == (0, self.shape[0]) else self.x[start:stop]

    between = stored


Part = StoredMatrix | LoadedMatrix


@dataclass(frozen=True, eq=False)
class ChunkedMatrix:
    """A matrix of one or several files, of which some rows at a time are in memory.

    Attributes
    ----------
    parts
        The matrix of each file, all with the same columns.
    rows
        Cells to read, as rows of the parts one after the other, ascending for counts; None: all.
    """

    parts: tuple[Part, ...]
    rows: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        n_obs = sum(part.shape[0] for part in self.parts) if self.rows is None else len(self.rows)
        return n_obs, self.parts[0].shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type that holds the numbers of all parts."""
        return np.result_type(*(part.dtype for part in self.parts))

    @property
    def is_sparse(self) -> bool:
        """Whether a part is CSR, and so rows of several parts are."""
        return any(part.is_sparse for part in self.parts)

    def take(self, cells: np.ndarray) -> Self:
        """The matrix of some cells, by a mask or by numbers."""
        rows = np.arange(self.shape[0]) if self.rows is None else self.rows
        return replace(self, rows=rows[cells])

    def take_columns(self, columns: np.ndarray) -> Self:
        """The matrix of some columns, by number or mask."""
        return replace(self, parts=tuple(part.take(columns) for part in self.parts))

    def stored(self, cells: np.ndarray) -> Rows:
        """Rows of some cells, by number in any order, as the files hold them."""
        rows = cells if self.rows is None else self.rows[cells]
        order = np.argsort(rows, kind="stable")
        blocks = self.blocks(rows[order], lambda part, start, stop: part.stored(start, stop))
        if not blocks:
            blocks = [part.stored(0, 0) for part in self.parts]
        if self.is_sparse:
            blocks = [block if sparse.issparse(block) else sparse.csr_matrix(as_numbers(block)) for block in blocks]
        if len(blocks) > 1:
            blocks = [sparse.vstack(blocks, format="csr") if self.is_sparse else np.concatenate(blocks)]
        x = blocks[0].astype(self.dtype, copy=False)
        return x if (np.diff(order) == 1).all() else x[np.argsort(order)]

    def pieces(self) -> Iterator[Rows]:
        """All rows, as the files hold them, some at a time."""
        at_once = min(part.at_once for part in self.parts)
        for start in range(0, max(1, self.shape[0]), at_once):
            yield self.stored(np.arange(start, min(start + at_once, self.shape[0])))

    def blocks(self, rows: np.ndarray, read: Callable[[Part, int, int], Rows]) -> list[Rows]:
        """Some rows of the parts, by ascending numbers, in blocks as they lie there.

        Where the cells are far apart in a file, whole blocks of rows are read on the way, one at a time.
        """
        ends = np.cumsum([part.shape[0] for part in self.parts])
        blocks = []
        for part, end in zip(self.parts, ends, strict=True):
            own = rows[(rows >= end - part.shape[0]) & (rows < end)] - (end - part.shape[0])
            for block in np.split(own, np.flatnonzero(np.diff(own // part.at_once)) + 1) if len(own) else []:
                x = read(part, int(block[0]), int(block[-1]) + 1)
                blocks.append(x if len(block) == x.shape[0] else x[block - block[0]])
        return blocks


@dataclass(frozen=True, eq=False)
class ChunkedCounts(ChunkedMatrix):
    """Verified counts of one or several files, of which some rows at a time are in memory."""

    @classmethod
    def of(cls, x: sparse.csr_matrix) -> ChunkedCounts:
        """Of a matrix in memory."""
        return cls((LoadedMatrix(x),))

    @property
    def on_disk(self) -> bool:
        """Whether another process can read the counts from files."""
        return all(isinstance(part, StoredMatrix) for part in self.parts)

    def read(self, cells: np.ndarray) -> sparse.csr_matrix:
        """Counts of some cells, by ascending numbers: float32, genes ascending, once in each cell, no zeros."""
        rows = np.asarray(cells) if self.rows is None else self.rows[cells]
        blocks = self.blocks(rows, lambda part, start, stop: part.between(start, stop))
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


class RawMatrix(NamedTuple):
    """What files have as `raw`, which has genes of its own."""

    matrix: ChunkedMatrix
    var: pd.DataFrame


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
        pieces = (x if genes.all() else x[:, genes] for _, x in counts.chunks(cells))
        write_rows(file, "X", pieces, adata.shape, compression, n_stored)


def write_matrices(
    path: Path, layers: Mapping[str, ChunkedMatrix], raw: RawMatrix | None, compression: str | None = None
) -> None:
    """Add layers and raw to an h5ad file, some cells at a time.

    Parameters
    ----------
    path
        The file, whose cells those of the matrices are; its genes are those of the layers.
    layers, raw
        What to add.
    compression
        Of all arrays.
    """
    import h5py
    from anndata.io import write_elem

    with h5py.File(path, "a") as file:
        for name, matrix in layers.items():
            write_rows(file["layers"], name, matrix.pieces(), matrix.shape, compression)
        if raw is not None:
            if "raw" in file:
                del file["raw"]
            group = file.create_group("raw")
            group.attrs.update({"encoding-type": "raw", "encoding-version": "0.1.0"})
            write_rows(group, "X", raw.matrix.pieces(), raw.matrix.shape, compression)
            write_elem(group, "var", raw.var)
            write_elem(group, "varm", {})


def write_rows(
    group: Any,
    name: str,
    pieces: Iterable[Rows],
    shape: tuple[int, int],
    compression: str | None = None,
    n_stored: int | None = None,
) -> None:
    """Write a matrix some rows at a time into an HDF5 file, CSR or dense as anndata writes them.

    Parameters
    ----------
    group, name
        Where in the file; what is there is replaced.
    pieces
        Its rows in order, all CSR or all dense, of one type of number.
    shape
        Of the matrix.
    compression
        Of all arrays; none: none.
    n_stored
        Number of entries of a CSR matrix, whose arrays then have their size from the start: without compression each
        lies in one piece. None: they grow.
    """
    if name in group:
        del group[name]
    options: dict[str, Any] = {"compression": compression} if compression else {}
    ends, n_rows, target = [np.zeros(1, np.int64)], 0, None
    for x in pieces:
        if isinstance(x, np.ndarray):
            if target is None:
                options |= {"chunks": True} if min(shape) else {"compression": None}
                target = group.create_dataset(name, shape, x.dtype, **options)
                target.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            target[n_rows : n_rows + len(x)] = x
        else:
            if target is None:
                target = group.create_group(name)
                target.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
                if n_stored is None:
                    options |= {"maxshape": (None,), "chunks": (STORED_CHUNK,)}
                elif n_stored == 0:
                    options = {}  # HDF5 compresses no empty array
                for array, dtype in (("data", x.dtype), ("indices", np.int32)):
                    target.create_dataset(array, (n_stored or 0,), dtype, **options)
            end = int(ends[-1][-1])
            for array in ("data", "indices"):
                if n_stored is None:
                    target[array].resize((end + x.nnz,))
                target[array][end : end + x.nnz] = getattr(x, array)
            ends.append(end + x.indptr[1:].astype(np.int64))
        n_rows += x.shape[0]
    if n_rows != shape[0] or target is None:
        raise ValueError(f"{name}: {n_rows} rows, but {shape[0]} were announced")
    if hasattr(target, "keys"):
        indptr = np.concatenate(ends)
        if n_stored not in (None, indptr[-1]):
            raise ValueError(f"{name}: {indptr[-1]} entries, but {n_stored} were announced")
        small = indptr[-1] < np.iinfo(np.int32).max  # scipy takes no mixture of types
        target.create_dataset("indptr", data=indptr.astype(np.int32 if small else np.int64), compression=compression)


def same_genes(parts: Sequence[Part], columns: Sequence[np.ndarray]) -> tuple[Part, ...]:
    """Matrices of several files, of the columns of each that all share, in one order."""
    pairs = zip(parts, columns, strict=True)
    return tuple(part if same(own, part.shape[1]) else part.take(own) for part, own in pairs)


def same(columns: np.ndarray, n: int) -> bool:
    """Whether columns are all of `n`, in their order."""
    return np.array_equal(columns, np.arange(n))
