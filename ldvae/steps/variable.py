"""The most variable genes by seurat_v3, from counts that are read some cells at a time.

scanpy's function needs all counts in memory, and those of each batch once more. These are the formulas of scanpy 1.11,
in its order: the same numbers to the bit, and so the same genes. scanpy 1.12 has the same numbers for a single batch;
the moments of several batches it rounds otherwise. loess is sensitive to rounding: on Kang et al. 2018 a change of
1e-15 in the means moves the fitted log10 variances by up to 0.002, which is 0.2 % of the normalized variances and 2 of
1,000 genes, at the limit of n_top_genes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from ldvae.io import ChunkedCounts


class BatchSums(NamedTuple):
    """Sums over the cells of each batch, gene by gene, float64, shape (n_batch, n_vars)."""

    n_obs: np.ndarray  # cells, shape (n_batch,)
    counts: np.ndarray
    squares: np.ndarray
    single: np.ndarray  # of squares in single precision, as scanpy sums them: they differ above 4,096 counts

    def pooled(self, group: np.ndarray) -> BatchSums:
        """Of batches put together, by the group of each batch, from 0."""
        pools = [np.zeros((group.max() + 1, *values.shape[1:]), values.dtype) for values in self]
        for pool, values in zip(pools, self, strict=True):
            np.add.at(pool, group, values)
        return BatchSums(*pools)

    def n_varying(self) -> np.ndarray:
        """Number of genes whose counts are not the same in all cells, by batch, shape (n_batch,)."""
        n = self.n_obs[:, None].astype(float)
        # A gene that differs in one cell, by one count, has n - 1.
        return (n * self.squares - self.counts**2 > 0.5 * np.maximum(n - 1, 1)).sum(axis=1)


def sum_by_batch(counts: ChunkedCounts, batch: np.ndarray) -> BatchSums:
    """Sums of the counts of each batch, in one pass.

    Parameters
    ----------
    counts
        Of all cells.
    batch
        Batch of each cell, from 0, shape (n_obs,).
    """
    n_batch, n_vars = int(batch.max()) + 1, counts.shape[1]
    sums = np.zeros((3, n_batch * n_vars))
    for cells, x in counts.chunks():
        place = np.repeat(batch[cells], np.diff(x.indptr)) * n_vars + x.indices
        exact = x.data.astype(np.float64)
        for total, values in zip(sums, (exact, exact**2, x.data * x.data), strict=True):
            total += np.bincount(place, values, len(total))
    n_obs = np.bincount(batch, minlength=n_batch)
    return BatchSums(n_obs, *sums.reshape(3, n_batch, n_vars))


def seurat_v3(
    counts: ChunkedCounts, batch: np.ndarray, sums: BatchSums, n_top_genes: int, span: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which genes are the most variable, and their normalized variance, the mean over batches.

    Parameters
    ----------
    counts
        Of all cells.
    batch
        Batch of each cell, from 0, shape (n_obs,).
    sums
        Of these batches, from `sum_by_batch`.
    n_top_genes
        Number of genes to choose.
    span
        Share of the genes in the window of the loess fit.

    Raises
    ------
    ImportError
        Without scikit-misc.
    ValueError
        Where the fit fails.

    References
    ----------
    Stuart et al., Cell 177, 1888 (2019).
    """
    from skmisc.loess import loess

    n_obs = sums.n_obs[:, None].astype(float)
    mean = sums.counts / n_obs
    variance = sums.single / n_obs - mean**2
    variance *= np.where(n_obs > 1, n_obs / np.maximum(n_obs - 1, 1), 1)
    deviation = np.empty_like(mean)  # expected of a gene of this mean
    for i in range(len(mean)):
        fitted = np.zeros(mean.shape[1])
        varies = variance[i] > 0
        model = loess(np.log10(mean[i][varies]), np.log10(variance[i][varies]), span=span, degree=2)
        model.fit()
        fitted[varies] = model.outputs.fitted_values
        deviation[i] = np.sqrt(10**fitted)
    limit = deviation * np.sqrt(n_obs) + mean  # larger counts are clipped
    clipped, squared = np.zeros(mean.size), np.zeros(mean.size)
    for cells, x in counts.chunks():
        place = np.repeat(batch[cells], np.diff(x.indptr)) * mean.shape[1] + x.indices
        values = np.minimum(x.data.astype(np.float64), limit.ravel()[place])
        # One after the other, as scanpy adds them: rounding is the same whatever is read at once.
        np.add.at(clipped, place, values)
        np.add.at(squared, place, values**2)
    clipped, squared = clipped.reshape(mean.shape), squared.reshape(mean.shape)
    normalized = (1 / ((n_obs - 1) * np.square(deviation))) * ((n_obs * np.square(mean)) + squared - 2 * clipped * mean)
    rank = np.argsort(np.argsort(-normalized, axis=1), axis=1).astype(np.float32)
    n_batches = (rank < n_top_genes).sum(axis=0)
    rank[rank >= n_top_genes] = np.nan
    table = pd.DataFrame({"rank": np.ma.median(np.ma.masked_invalid(rank), axis=0).filled(np.nan), "n": n_batches})
    order = table.sort_values(["rank", "n"], ascending=[True, False], na_position="last").index.to_numpy()
    chosen = np.zeros(mean.shape[1], bool)
    chosen[order[:n_top_genes]] = True
    return chosen, normalized.mean(axis=0)
