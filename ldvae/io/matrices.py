"""Matrices as CSR of numbers that scipy can take."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from scipy import sparse

logger = logging.getLogger(__name__)


def as_numbers(values: np.ndarray) -> np.ndarray:
    """An array as scipy can take it: in the byte order of the machine, and floats of 16 bits as ones of 32."""
    kind = np.dtype(np.float32) if values.dtype == np.float16 else values.dtype.newbyteorder("=")
    return values.astype(kind, copy=False)


def as_csr(matrix: Any) -> sparse.csr_matrix | None:
    """A matrix of numbers, dense or sparse, as CSR; None for other values.

    Raises
    ------
    ValueError
        If indices of a sparse matrix lie outside of it: scipy's compiled code would read and write there.
    """
    if not (sparse.issparse(matrix) or isinstance(matrix, np.ndarray)) or matrix.dtype.kind not in "iuf":
        return None
    if isinstance(matrix, np.ndarray):
        return sparse.csr_matrix(as_numbers(matrix))
    if matrix.format in ("csr", "csc"):
        matrix.check_format(full_check=True)
    x = sparse.csr_matrix(matrix)
    if x.indptr.dtype != x.indices.dtype:  # as anndata's concatenation on disk writes; scipy cannot work on it
        x = sparse.csr_matrix((x.data, x.indices, x.indptr), x.shape)
    return x


def round_off(x: sparse.csr_matrix, where: str) -> sparse.csr_matrix:
    """Round entries, in place, that all are integers but for an error of floating point (10⁻⁶ of the entry)."""
    if x.data.dtype.kind == "f" and len(x.data) and np.isfinite(x.data).all():
        nearest = np.rint(x.data)
        error = np.abs(x.data - nearest) / np.maximum(1, np.abs(nearest))
        if 0 < error.max() <= 1e-6:
            logger.info("%s: counts are integers but for up to %.0e, and are rounded.", where, error.max())
            x.data = nearest
    return x
