"""Neighbors of cells by scanpy, with any version of pynndescent."""

from __future__ import annotations

from collections.abc import Callable
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
            **size_of_search(adata.n_obs),
        )
    scanpy.pp.neighbors(adata, n_neighbors=n_neighbors, random_state=seed, transformer=transformer, **options)


def search_among(points: np.ndarray, n_neighbors: int, *, seed: int) -> Callable[[np.ndarray], tuple[Any, Any]]:
    """A function that finds the nearest points of others.

    Parameters
    ----------
    points
        What is searched, shape (n_points, n_dims).
    n_neighbors
        Points to find for each.
    seed
        Of the approximate search among many points.

    Returns
    -------
    Callable
        Given an array of shape (n, n_dims), the numbers of the nearest points and their distances, both of shape
        (n, n_neighbors). Exact among fewer than `APPROXIMATE_FROM` points. Among 200,000 in ten dimensions it found
        94 % of the nearest fifteen, at 0.02 ms for each cell in place of 0.46.
    """
    if len(points) < APPROXIMATE_FROM:
        from sklearn.neighbors import NearestNeighbors

        exact = NearestNeighbors(n_neighbors=n_neighbors).fit(points)
        return lambda others: exact.kneighbors(others)[::-1]
    import scanpy
    from pynndescent import NNDescent

    # What it finds depends on the number of its threads: the same on every machine.
    index = NNDescent(
        points,
        n_neighbors=n_neighbors,
        random_state=seed,
        n_jobs=scanpy.settings.n_jobs,
        **size_of_search(len(points)),
    )
    index.prepare()
    return lambda others: index.query(others, k=n_neighbors)


def size_of_search(n_points: int) -> dict[str, int]:
    """Trees and rounds of an approximate search, as scanpy and umap choose them."""
    return {"n_trees": min(64, 5 + round(n_points**0.5 / 20)), "n_iters": max(5, round(np.log2(n_points)))}
