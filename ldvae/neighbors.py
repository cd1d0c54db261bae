"""Neighbors of cells by scanpy, with any version of pynndescent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from anndata import AnnData

# From here on, scanpy leaves the neighbors to pynndescent.
APPROXIMATE_FROM = 8192


def add_neighbors(adata: AnnData, n_neighbors: int, *, seed: int, **options: Any) -> None:
    """Add the graph of neighbors to `adata`, as `scanpy.pp.neighbors` does.

    Parameters
    ----------
    adata
        Cells with a representation in obsm.
    n_neighbors
        Neighbors of a cell, itself included.
    seed
        Of the approximate search among many cells.
    **options
        Of `scanpy.pp.neighbors`: use_rep, key_added.

    Notes
    -----
    pynndescent 0.7 returns sparse arrays, in which scanpy up to 1.12 looks for an attribute of sparse matrices. Many
    cells therefore get scanpy's own search, with its parameters, whose result is made a matrix.
    """
    import scanpy

    transformer = None
    if adata.n_obs >= APPROXIMATE_FROM:
        from pynndescent import PyNNDescentTransformer

        class Approximate(PyNNDescentTransformer):
            """scanpy's search, whose result is a sparse matrix whatever pynndescent returns."""

            def fit_transform(self, X: np.ndarray, y: None = None) -> sparse.csr_matrix:
                """Distances to the neighbors, shape (n_obs, n_obs)."""
                return sparse.csr_matrix(super().fit_transform(X))

        transformer = Approximate(
            n_neighbors=n_neighbors,
            metric="euclidean",
            metric_kwds={},
            random_state=seed,
            n_jobs=scanpy.settings.n_jobs,
            n_trees=min(64, 5 + round(adata.n_obs**0.5 / 20)),
            n_iters=max(5, round(np.log2(adata.n_obs))),
        )
    scanpy.pp.neighbors(adata, n_neighbors=n_neighbors, random_state=seed, transformer=transformer, **options)
