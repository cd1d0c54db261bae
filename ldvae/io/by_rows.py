"""Matrices that files hold by columns or in no order (CSC, Matrix Market), written by rows: memory stays small."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from ldvae.io.chunks import StoredMatrix, write_rows

logger = logging.getLogger(__name__)

FEW = 20_000_000  # entries of a matrix that is read as a whole: some 500 MB
READ_AT_ONCE = 2**21  # entries
SORTED_AT_ONCE = 2**23  # entries: some 400 MB

Entries = tuple[np.ndarray, np.ndarray, np.ndarray]  # rows, columns, values


@dataclass(frozen=True, eq=False)
class ByEntries:
    """A sparse matrix in a file of which no rows can be read, but some entries at a time.

    Attributes
    ----------
    shape
        Rows and columns.
    n_stored
        Number of entries.
    dtype
        Of the values.
    pieces
        Function that goes through all entries, in any order: rows, columns, values of some of them.
    """

    shape: tuple[int, int]
    n_stored: int
    dtype: np.dtype[Any]
    pieces: Callable[[], Iterator[Entries]]


def write_by_rows(entries: ByEntries, path: Path, name: str) -> StoredMatrix:
    """Write a matrix as CSR; entries of the same place are added.

    The entries go into a file for each block of rows first; the blocks are then sorted one after the other.

    Parameters
    ----------
    entries
        The matrix.
    path
        HDF5 file to write, and beside it for the time being a folder for the blocks.
    name
        What the matrix is called in the log.
    """
    import h5py

    (n_obs, n_vars), folder = entries.shape, path.with_suffix(".blocks")
    n_rows = max(1, min(n_obs, SORTED_AT_ONCE * n_obs // max(1, entries.n_stored)))  # of a block
    kind = np.dtype([("row", np.int32), ("column", np.int32), ("value", entries.dtype)])
    logger.info("%s: is not stored by rows; its %d entries are sorted into a temporary file.", name, entries.n_stored)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    def blocks() -> Iterator[sparse.csr_matrix]:
        for number, start in enumerate(range(0, n_obs, n_rows)):
            file = folder / str(number)
            found = np.fromfile(file, kind) if file.exists() else np.empty(0, kind)
            file.unlink(missing_ok=True)
            shape = (min(n_rows, n_obs - start), n_vars)
            yield sparse.csr_matrix((found["value"], (found["row"], found["column"])), shape)

    try:
        for rows, columns, values in entries.pieces():
            if len(rows) == 0:
                continue
            if min(rows.min(), columns.min()) < 0 or rows.max() >= n_obs or columns.max() >= n_vars:
                raise ValueError(f"an entry lies outside of the {n_obs} by {n_vars} matrix")
            block = rows // n_rows
            order = np.argsort(block, kind="stable")
            piece = np.empty(len(rows), kind)
            for field, of_entries in (("row", rows - block * n_rows), ("column", columns), ("value", values)):
                piece[field] = of_entries[order]
            numbers, starts = np.unique(block[order], return_index=True)
            for number, of_block in zip(numbers, np.split(piece, starts[1:]), strict=True):
                with (folder / str(number)).open("ab") as file:
                    of_block.tofile(file)
        with h5py.File(path, "w") as target:
            write_rows(target, "X", blocks(), entries.shape)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return StoredMatrix(path, "X", entries.shape)
