"""The embedded real data set: 700 blood cells, whose raw counts are recovered from what the scanpy wheel ships."""

from __future__ import annotations

import warnings

import numpy as np
from anndata import AnnData
from scipy import sparse


def pbmc68k() -> AnnData:
    """Raw counts of 700 PBMC by 765 variable genes, from `scanpy.datasets.pbmc68k_reduced`; needs no network.

    Returns
    -------
    AnnData
        Counts as float32 CSR in `X`, shape (700, 765). In obs: `bulk_labels` (ten cell types, by similarity to sorted
        cells), `phase`, `S_score`, `G2M_score` (cell cycle), `louvain`, and `n_counts`, `n_genes` and `percent_mito`,
        which were computed over the whole transcriptome.

    Notes
    -----
    The file holds log(1 + 10⁴ count / n_counts) with the n_counts of the whole transcriptome, so
    count = (exp(value) − 1) n_counts / 10⁴, and rounding removes what single precision lost.

    References
    ----------
    Zheng et al., Massively parallel digital transcriptional profiling of single cells, Nat. Commun. 8, 14049 (2017).
    """
    import scanpy

    with warnings.catch_warnings():  # the file is in an old format of anndata
        warnings.simplefilter("ignore")
        reduced = scanpy.datasets.pbmc68k_reduced()
    x = sparse.csr_matrix(reduced.raw.X, dtype=np.float64)
    n_counts = np.repeat(reduced.obs["n_counts"].to_numpy(np.float64), np.diff(x.indptr))
    x.data = np.rint(np.expm1(x.data) * n_counts / 1e4)
    return AnnData(x.astype(np.float32), obs=reduced.obs.copy(), var=reduced.raw.var[[]].copy())
