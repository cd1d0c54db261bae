"""The embedded real data set: 700 blood cells, whose raw counts are recovered from what the scanpy wheel ships."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from anndata import AnnData, read_h5ad
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
    scanpy = find_spec("scanpy")  # its import takes longer than everything that a plan of the demo needs
    if scanpy is None or scanpy.origin is None:
        raise ModuleNotFoundError("No module named 'scanpy'", name="scanpy")
    with warnings.catch_warnings():  # the file is in an old format of anndata
        warnings.simplefilter("ignore")
        reduced = read_h5ad(Path(scanpy.origin).parent / "datasets" / "10x_pbmc68k_reduced.h5ad")
    x = sparse.csr_matrix(reduced.raw.X, dtype=np.float64)
    n_counts = np.repeat(reduced.obs["n_counts"].to_numpy(np.float64), np.diff(x.indptr))
    x.data = np.rint(np.expm1(x.data) * n_counts / 1e4)
    return AnnData(x.astype(np.float32), obs=reduced.obs.copy(), var=reduced.raw.var[[]].copy())
