"""The check that entries are counts, and a guess at what was done to those that are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from ldvae.errors import InputError

LARGEST_COUNT = 2**24  # above, float32 no longer holds every integer


def verify_counts(x: sparse.csr_matrix, where: str, var_names: Sequence[str]) -> None:
    """Refuse a matrix whose entries are not counts; integers may be stored as floats.

    Parameters
    ----------
    x
        CSR, shape (n_obs, n_vars).
    where
        What to call the matrix in the message, such as ``adata.layers['counts']``.
    var_names
        Gene names, to name an entry that is wrong.

    Raises
    ------
    InputError
        If an entry is NaN, infinite, negative, not an integer, or too large for single precision.
    """
    if problem := not_counts(x, var_names):
        raise InputError(
            f"{where} holds {problem}. ldvae models raw UMI counts: whole numbers, zero or more. Name the layer that "
            "holds them (layer=...), or start from the raw counts."
        )


def not_counts(x: sparse.csr_matrix, var_names: Sequence[str]) -> str:
    """What keeps the entries of a CSR matrix from being counts, with an example; empty for counts."""
    values = x.data
    if not len(values):
        return "no counts at all: every entry is zero"
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())  # NaN if any entry is
        fractional = False if np.isnan(low) else any_fraction(values)
    else:
        low, high, fractional = int(values.min()), int(values.max()), False
    tests: list[tuple[bool, str, Callable[[], np.ndarray], Callable[[], str]]] = [
        (np.isnan(low), "NaN", lambda: np.isnan(values), lambda: "values are missing"),
        (
            np.isinf(low) or np.isinf(high),
            "infinite",
            lambda: np.isinf(values),
            lambda: "something was divided by zero",
        ),
        (low < 0, "negative", lambda: values < 0, lambda: "they look scaled or centered"),
        (fractional, "non-integer", lambda: values != np.rint(values), lambda: transformation(x)),
        (high > LARGEST_COUNT, "huge", lambda: values > LARGEST_COUNT, lambda: "no UMI count is that large"),
    ]
    for found, kind, mask, cause in tests:
        if found:
            wrong = np.flatnonzero(mask())
            example = f"e.g. {values[wrong[0]]:g} for gene {var_names[int(x.indices[wrong[0]])]}"
            share = f"{len(wrong) / len(values):.1%} of its non-zero entries"
            if len(wrong) < 0.001 * len(values):
                share = f"{len(wrong):,} of its {len(values):,} non-zero entries"
            return f"{kind} values in {share} ({example}): {cause()}"
    return ""


def any_fraction(values: np.ndarray, block: int = 2**24) -> bool:
    """Whether an array has a value that is no integer; block by block, so that no copy of the array is made."""
    blocks = (values[start : start + block] for start in range(0, len(values), block))
    return any(bool((block != np.rint(block)).any()) for block in blocks)


def transformation(x: sparse.csr_matrix) -> str:
    """What was probably done to counts to make these non-integer, non-negative values."""
    sample = x[:: max(1, x.shape[0] // 1000)].astype(np.float64)
    sums = np.asarray(sample.sum(axis=1)).ravel()
    if sample.max() < 20:  # exp(20) counts per cell: no such cell
        sample.data = np.expm1(sample.data)
        logged = np.asarray(sample.sum(axis=1)).ravel()
        same = logged.std() < 0.01 * logged.mean()
        return f"they look log-normalized{f' to {logged.mean():.0f} counts per cell' if same else ''}"
    if sums.std() < 0.01 * sums.mean():
        return f"they look normalized to {sums.mean():.0f} counts per cell"
    return "they look normalized or corrected"


def common_total(totals: np.ndarray) -> float:
    """The total that all cells share, as they do once they are normalized, even if the result is rounded; else 0.

    Examples
    --------
    >>> common_total(np.full(20, 150.0)), common_total(np.arange(200, 220.0))
    (150.0, 0.0)
    """
    mean = float(totals.mean())
    return mean if len(totals) >= 20 and mean >= 100 and totals.std() < 0.01 * mean else 0.0


def is_counts(matrix: Any) -> bool:
    """Whether a matrix, sparse or dense, holds counts."""
    if not (sparse.issparse(matrix) or isinstance(matrix, np.ndarray)) or matrix.dtype.kind not in "biuf":
        return False
    x = sparse.csr_matrix(matrix)
    return not not_counts(x, [""] * x.shape[1])
