"""Validated counts with the covariates of their cells, in memory or on disk, by minibatch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from anndata.abc import CSRDataset
from scipy import sparse
from torch import Tensor

from ldvae.errors import InputError, counted

PRIOR_CELLS = 5  # weight, in cells, of the variance within all batches in the prior of one batch
LEAST_VARIANCE = 1e-4  # of a posterior (`ldvae.module.VAR_EPS`)
BLOCK_ROWS = 512  # rows read at once from disk; shuffled as blocks
BUFFER_BLOCKS = 32  # blocks held in memory together, and shuffled row by row


class DataShape(NamedTuple):
    """Sizes of the data that the model depends on."""

    n_vars: int
    n_batch: int = 1
    n_labels: int = 1
    n_cats: tuple[int, ...] = ()  # categories of each categorical covariate
    n_continuous: int = 0


class Covariates(NamedTuple):
    """Covariates of cells."""

    batch_index: Tensor  # int64, (n_obs,)
    label_index: Tensor  # int64, (n_obs,)
    categorical: Tensor  # int64, (n_obs, len(n_cats))
    continuous: Tensor  # float32, (n_obs, n_continuous)
    library: Tensor  # float32, log of the total count (or of the scaled size factor), (n_obs, 1)

    def rows(self, rows: np.ndarray | Tensor) -> Covariates:
        """The covariates of some cells, in the order given."""
        rows = torch.as_tensor(rows)
        return Covariates(*(values[rows] for values in self))

    def to(self, device: torch.device | str) -> Covariates:
        """The same on another device."""
        return Covariates(*(values.to(device) for values in self))


@dataclass(frozen=True, eq=False)
class Counts:
    """Validated UMI counts in memory: finite, non-negative integers.

    Attributes
    ----------
    x
        CSR, float32, shape (n_obs, n_vars).
    covariates
        Of every cell, in the order of the rows.
    """

    x: sparse.csr_matrix
    covariates: Covariates

    def __len__(self) -> int:
        return int(self.x.shape[0])

    @property
    def n_vars(self) -> int:
        """Number of genes."""
        return int(self.x.shape[1])

    @cached_property
    def log1p(self) -> np.ndarray:
        """log(1 + count) of the stored entries, float32, shape (nnz,)."""
        return np.log1p(self.x.data)

    @cached_property
    def genes(self) -> np.ndarray:
        """Gene of each stored entry, int32, shape (nnz,)."""
        return self.x.indices.astype(np.int32, copy=False)

    def minibatch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> tuple[Tensor, Covariates]:
        """Dense counts (len(rows), n_vars) and covariates of some cells."""
        return torch.from_numpy(self.x[rows].toarray()).to(device), self.covariates.rows(rows).to(device)

    def minibatches(
        self, rows: np.ndarray, size: int, order: np.random.Generator | None = None, part: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[Counts, np.ndarray]]:
        """Minibatches of the cells `rows`: counts in memory, and the rows of these counts to use.

        Parameters
        ----------
        rows
            Cells to go through, each once.
        size
            Cells in a minibatch; the last one may be smaller.
        order
            Shuffles the cells; without it they come in the order given.
        part
            Which of how many parts of each minibatch to read, such as (0, 4). The minibatches stay whole and the
            same: they have row -1 for a cell of another part.
        """
        if order is not None:
            rows = order.permutation(rows)
        which, n_parts = part
        for start in range(0, len(rows), size):
            chosen = rows[start : start + size]
            if n_parts > 1:
                chosen = np.where(np.arange(len(chosen)) % n_parts == which, chosen, -1)
            yield self, chosen


@dataclass(frozen=True, eq=False)
class BackedCounts:
    """Validated UMI counts on disk, with the interface of `Counts`; a few blocks of rows are in memory at a time.

    Shuffled minibatches come from a buffer of blocks of neighboring rows, the blocks drawn at random, the rows of
    a buffer shuffled: where neighbors in the file are alike, each minibatch still mixes many places of the file.

    Attributes
    ----------
    x
        A matrix on disk as anndata opens it, shape (n_obs, n_vars).
    var_names
        Gene names, for the messages.
    where
        Name of the matrix in messages.
    covariates
        Of every cell, in memory.
    totals
        Total count of each cell at validation, shape (n_obs,); rows read later must have the same totals.
    """

    x: Any
    var_names: Sequence[str]
    where: str
    covariates: Covariates
    totals: np.ndarray

    def __len__(self) -> int:
        return int(self.x.shape[0])

    @property
    def n_vars(self) -> int:
        """Number of genes."""
        return int(self.x.shape[1])

    @cached_property
    def between(self) -> Callable[[int, int], sparse.csr_matrix]:
        """Function that reads rows start to stop."""
        return reader(self.x)

    def read(self, rows: np.ndarray) -> Counts:
        """Counts of some cells, rows ascending, read in runs of neighbors."""
        if len(rows) == 0:
            return Counts(sparse.csr_matrix((0, self.n_vars), dtype=np.float32), self.covariates.rows(rows))
        apart = (np.diff(rows) > BLOCK_ROWS // 8) | (np.diff(rows // (16 * BLOCK_ROWS)) > 0)
        blocks = []
        for run in np.split(rows, np.flatnonzero(apart) + 1):
            block = self.between(int(run[0]), int(run[-1]) + 1)
            blocks.append(block if len(run) == block.shape[0] else block[run - run[0]])
        x = sparse.vstack(blocks, format="csr")
        changed = np.flatnonzero(np.asarray(x.sum(axis=1)).ravel() != self.totals[rows])
        if len(changed):
            row = int(rows[changed[0]])
            raise InputError(
                f"{self.where} has changed on disk since it was checked: row {row} had a total count of "
                f"{self.totals[row]:g}, now it has {x[changed[0]].sum():g}. Open the file again, and set model.adata."
            )
        return Counts(x, self.covariates.rows(rows))

    def read_part(self, rows: np.ndarray, part: tuple[int, int]) -> tuple[Counts, np.ndarray]:
        """Counts of one part of some cells, rows ascending; and for each of the cells its row there, or -1."""
        which, n_parts = part
        own = rows % BLOCK_ROWS * n_parts // BLOCK_ROWS == which
        return self.read(rows[own]), np.where(own, np.cumsum(own) - 1, -1)

    def minibatch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> tuple[Tensor, Covariates]:
        """Dense counts (len(rows), n_vars) and covariates of some cells, in the order given."""
        unique, position = np.unique(rows, return_inverse=True)
        return self.read(unique).minibatch(position, device)

    def minibatches(
        self, rows: np.ndarray, size: int, order: np.random.Generator | None = None, part: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[Counts, np.ndarray]]:
        """As `Counts.minibatches`; cells in the order given are read for as many minibatches as a buffer holds.

        A part reads its own piece of each block, so it has more cells of one minibatch than of another.
        """
        if order is None:
            together = size * max(1, BUFFER_BLOCKS * BLOCK_ROWS // size)
            for start in range(0, len(rows), together):
                unique, position = np.unique(rows[start : start + together], return_inverse=True)
                counts, place = self.read_part(unique, part)
                yield from counts.minibatches(place[position], size)
            return
        rows = np.sort(rows)
        blocks = np.split(rows, np.flatnonzero(np.diff(rows // BLOCK_ROWS)) + 1)
        drawn = order.permutation(len(blocks))
        for start in range(0, len(drawn), BUFFER_BLOCKS):
            buffer = np.concatenate([blocks[i] for i in np.sort(drawn[start : start + BUFFER_BLOCKS])])
            counts, place = self.read_part(buffer, part)
            yield from counts.minibatches(place, size, order)


def reader(x: Any) -> Callable[[int, int], sparse.csr_matrix]:
    """Function that reads rows start to stop of a matrix as CSR (`as_csr`).

    CSR on disk (h5ad or zarr) is read from its stored arrays. A slice through anndata takes milliseconds longer: it
    looks up the metadata of installed packages and makes an empty matrix of the full shape.
    """
    if not isinstance(x, CSRDataset):
        return lambda start, stop: as_csr(x[start:stop])
    data, indices, indptr = x.group["data"], x.group["indices"], x.group["indptr"][...]
    n_vars = x.shape[1]

    def between(start: int, stop: int) -> sparse.csr_matrix:
        first, last = indptr[start], indptr[stop]
        arrays = data[first:last], indices[first:last], indptr[start : stop + 1] - first
        return as_csr(sparse.csr_matrix(arrays, shape=(stop - start, n_vars)))

    return between


def as_csr(x: Any) -> sparse.csr_matrix:
    """Any matrix as float32 CSR, genes ascending and once in each cell; shares memory where it already is."""
    if not isinstance(x, sparse.csr_matrix):
        x = sparse.csr_matrix(x)
    if not x.has_canonical_format:
        x = x.copy()
        x.sum_duplicates()
    return x.astype(np.float32, copy=False)


def library_prior(
    counts: Counts | BackedCounts, n_batch: int, names: Sequence[Any] | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and variance of the log total counts of each batch, shape (n_batch,); 0 and 1 for a batch without cells.

    Parameters
    ----------
    counts
        Counts of all cells.
    n_batch
        Number of batches.
    names
        Of the batches, for the warning; none: no warning.

    Notes
    -----
    The variance v_k of n_k cells is that of scvi-tools (the population variance), but never below

        v n0 / (n_k + n0),    n0 = PRIOR_CELLS,

    the share of the variance v within all batches that n0 further cells without any deviation of their own would keep.
    One cell alone in its batch, or a batch downsampled to one total, has v_k = 0, and a prior so narrow that it decides
    the whole fit. Batches whose totals vary as those of others do keep their variance bit by bit.
    """
    library = counts.covariates.library[:, 0].double()
    batch_index = counts.covariates.batch_index
    means, variances, n = torch.zeros(n_batch), torch.ones(n_batch), torch.zeros(n_batch, dtype=torch.float64)
    for batch in batch_index.unique().tolist():
        of_batch = library[batch_index == batch]
        means[batch], variances[batch] = of_batch.mean(), of_batch.var(correction=0)
        n[batch] = len(of_batch)
    floor = (within_variance(counts) * PRIOR_CELLS / (n + PRIOR_CELLS)).clamp(min=1e-8).float()
    low = (n > 0) & (variances < floor)
    if names is not None and low.any():
        told = ", ".join(f"{names[k]} ({counted(int(n[k]), 'cell')})" for k in low.nonzero()[:5, 0].tolist())
        warnings.warn(
            f"The total counts hardly vary in {int(low.sum())} of {n_batch} batches: {told}. The prior variance of the "
            "log library size there is taken in part from all batches.",
            UserWarning,
            stacklevel=4,
        )
    return means, torch.where(low, floor, variances)


def gene_totals(counts: Counts | BackedCounts) -> np.ndarray:
    """Total count of each gene over all cells, float64, shape (n_vars,)."""
    blocks = counts.minibatches(np.arange(len(counts)), 4096)
    return np.asarray(sum(block.x[rows].sum(axis=0, dtype=np.float64) for block, rows in blocks)).ravel()


def cell_totals(counts: Counts | BackedCounts) -> np.ndarray:
    """Total count of each cell, float32, shape (n_obs,)."""
    blocks = counts.minibatches(np.arange(len(counts)), 4096)
    return np.concatenate([np.asarray(block.x[rows].sum(axis=1)).ravel() for block, rows in blocks])


def within_variance(counts: Counts | BackedCounts) -> float:
    """Variance of the log total counts within batches; where no batch has two cells, over all cells."""
    library = counts.covariates.library[:, 0].double().numpy()
    batch_index = counts.covariates.batch_index.numpy()
    n = np.bincount(batch_index)
    if n.max() < 2:
        return float(library.var())
    means = np.bincount(batch_index, library) / np.maximum(n, 1)
    squares = (library - means[batch_index]) ** 2
    together = n[batch_index] > 1
    return float(squares[together].mean())


def totals_vary(counts: Counts | BackedCounts) -> bool:
    """Whether the total counts of the cells vary enough for a library size to be inferred.

    They do not where their variance is below a tenth of that of counting itself (1 / total, for its logarithm), or
    below the least variance that the posterior can have: as after downsampling all cells to one total.
    """
    library = counts.covariates.library[:, 0].double()
    counting = float((-library).exp().mean())
    return within_variance(counts) > max(LEAST_VARIANCE, 0.1 * counting)


def row_blocks(x: Any, size: int = 16 * BLOCK_ROWS) -> Iterator[sparse.csr_matrix]:
    """The rows of a matrix in memory or on disk, as CSR blocks."""
    between = reader(x)
    for start in range(0, x.shape[0], size):
        yield between(start, min(start + size, x.shape[0]))
