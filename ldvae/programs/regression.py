"""Regression of counts with a shared design: many responses at once, with a normal prior on the coefficients."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MAX_LOG_RATE = 30.0  # exp(30) counts are more than any gene has, and far from overflow


class CountRegression(NamedTuple):
    """The most likely coefficients of each response, and what surrounds them."""

    coefficients: np.ndarray  # shape (n_terms, n_responses)
    rate: np.ndarray  # expected counts, shape (n_units, n_responses)
    hessian: np.ndarray  # expected information with the prior, shape (n_responses, n_terms, n_terms)


def regress_counts(
    counts: np.ndarray,
    design: np.ndarray,
    offset: np.ndarray,
    start: np.ndarray,
    *,
    precision: np.ndarray,
    theta: np.ndarray | None = None,
    tolerance: float,
    max_iterations: int,
) -> CountRegression:
    """Fit log E[counts] = offset + design @ coefficients to each column of counts, by Fisher scoring.

    Parameters
    ----------
    counts
        Shape (n_units, n_responses): cells by genes for effects of programs, genes by cells for scores of cells.
    design
        Shape (n_units, n_terms); its first column is the intercept.
    offset
        Shape (n_units,).
    start
        Coefficients to start from, shape (n_terms, n_responses).
    precision
        Precision of the normal prior of each coefficient, shape (n_terms,); 0: none.
    theta
        Inverse dispersion of each unit, shape (n_units,); not given: Poisson.
    tolerance
        Largest step at which the coefficients have converged.
    max_iterations
        Most steps.

    References
    ----------
    McCullagh and Nelder, Generalized Linear Models, 2nd ed. (1989), chapter 2.
    """
    n_terms = design.shape[1]
    upper = np.triu_indices(n_terms)  # the Hessian is symmetric
    pairs = design[:, upper[0]] * design[:, upper[1]]
    prior = np.diag(precision)
    coefficients = start.copy()

    def expected() -> tuple[np.ndarray, np.ndarray | float, np.ndarray]:
        rate = np.exp(np.minimum(design @ coefficients + offset[:, None], MAX_LOG_RATE))
        damped = 1.0 if theta is None else 1 + rate / theta[:, None]
        hessian = np.empty((counts.shape[1], n_terms, n_terms))
        hessian[:, upper[0], upper[1]] = hessian[:, upper[1], upper[0]] = (pairs.T @ (rate / damped)).T
        return rate, damped, hessian + prior

    rate, damped, hessian = expected()
    for _ in range(max_iterations):
        gradient = design.T @ ((counts - rate) / damped) - precision[:, None] * coefficients
        step = np.linalg.solve(hessian, gradient.T[..., None])[..., 0].T
        # The exponential makes a long step overshoot: no coefficient moves by more than 1.
        step /= np.maximum(1, np.abs(step).max(axis=0))
        coefficients += step
        rate, damped, hessian = expected()
        if np.abs(step).max() < tolerance:
            break
    return CountRegression(coefficients, rate, hessian)
