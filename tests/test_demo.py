"""The embedded data set."""

import numpy as np
import pandas as pd
from scipy import sparse

from ldvae import demo


def test_counts_are_recovered_exactly() -> None:
    adata = demo.pbmc68k()
    assert adata.shape == (700, 765)
    assert isinstance(adata.X, sparse.csr_matrix)
    values = adata.X.data
    np.testing.assert_array_equal(values, np.rint(values))
    assert values.min() == 1
    assert adata.X.sum(dtype=np.float64) == 486651
    # The total over the genes kept cannot exceed the one over all genes.
    assert (np.asarray(adata.X.sum(axis=1)).ravel() <= adata.obs["n_counts"]).all()


def test_recovery_is_unambiguous() -> None:
    """Before rounding, the values lie within 0.1 of integers."""
    import warnings

    import scanpy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reduced = scanpy.datasets.pbmc68k_reduced()
    x = sparse.csr_matrix(reduced.raw.X, dtype=np.float64)
    n_counts = np.repeat(reduced.obs["n_counts"].to_numpy(np.float64), np.diff(x.indptr))
    values = np.expm1(x.data) * n_counts / 1e4
    assert np.abs(values - np.rint(values)).max() < 0.1
    ours = demo.pbmc68k()
    x.data = np.rint(values)
    np.testing.assert_array_equal(ours.X.toarray(), x.toarray())
    pd.testing.assert_frame_equal(ours.obs, reduced.obs)
    assert list(ours.var_names) == list(reduced.raw.var_names)


def test_the_cells_keep_their_types() -> None:
    labels = demo.pbmc68k().obs["bulk_labels"]
    assert labels.nunique() == 10
    assert "CD19+ B" in set(labels)
