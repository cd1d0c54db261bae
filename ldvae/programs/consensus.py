"""What fits of the same cells and genes share: gauge, information, their mean, and how many directions agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, islice
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ldvae.config import SelectConfig
from ldvae.errors import InputError

SELECT = SelectConfig()  # the defaults

Table: TypeAlias = pd.DataFrame | np.ndarray

# Rows of a cells × factors table that are widened to float64 at a time.
BLOCK = 50_000
TINY = np.finfo(float).tiny
# Fits in a half for which correlations are shown, whatever the number of fits.
REFERENCE_FITS = 4


class Contribution(NamedTuple):
    """The contribution matrix M = scores @ loadings.T of one or several fits, kept as its singular vectors."""

    scores: np.ndarray  # mean 0, variance 1, uncorrelated; shape (n_obs, n_components)
    loadings: np.ndarray  # orthogonal columns, the longest first; shape (n_vars, n_components)


class ReproducibleRank(NamedTuple):
    """How many directions two halves of the fits agree on."""

    rank: int | None  # None with one fit: nothing can be compared
    correlations: pd.DataFrame  # indexed by rank, of halves of 4 fits: correlation (median over splits), lower, upper


def gauge(loadings: Table, mean_expression: ArrayLike) -> Table:
    """Subtract from each factor the constant over genes that the softmax ignores.

    Parameters
    ----------
    loadings
        Change of the log rate per unit of a factor, shape (n_vars, n_factors).
    mean_expression
        Mean expression p of each gene, any positive scale, shape (n_vars,).

    Returns
    -------
    DataFrame or ndarray
        As given, with sum_g p_g L_gk = 0 for each factor k.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> gauged = gp.gauge(truth.loadings, mean)
    >>> bool(np.allclose(mean @ gauged, 0))
    True
    """
    share = np.asarray(mean_expression, float)
    share = share / share.sum()
    return loadings - share @ np.asarray(loadings, float)


def information(mean: ArrayLike, theta: ArrayLike | None = None) -> np.ndarray:
    """Root of the Fisher information that one cell holds about the log mean of each gene.

    Parameters
    ----------
    mean
        Mean count of each gene in a cell, shape (n_vars,).
    theta
        Inverse dispersion (var = mean + mean² / theta), shape (n_vars,) or (n_fits, n_vars), whose dispersions
        are averaged; infinite or not given: Poisson.

    Returns
    -------
    ndarray
        sqrt(mean / (1 + mean / theta)), shape (n_vars,).

    Examples
    --------
    >>> from ldvae import programs as gp
    >>> gp.information([0.1, 10.0], theta=[2.0, 2.0]).round(2).tolist()
    [0.31, 1.29]
    """
    mean = np.asarray(mean, float)
    dispersion = np.zeros_like(mean) if theta is None else np.atleast_2d(1 / np.asarray(theta, float)).mean(axis=0)
    return np.sqrt(mean / (1 + mean * dispersion))


def consensus(scores: Sequence[Table], loadings: Sequence[Table], n_components: int | None = None) -> Contribution:
    """Average the contributions of fits of the same cells and genes; no factor is matched to another.

    Parameters
    ----------
    scores
        One table per fit, shape (n_obs, n_factors); the number of factors may differ.
    loadings
        One table per fit, shape (n_vars, n_factors), in gauge and weighted (`gauge`, `information`).
    n_components
        Largest number of components; none: all that have any weight, of which there may be as many as factors of all
        fits together.

    Returns
    -------
    Contribution
        The singular vectors of M = mean over fits of (Z - mean) L^T, those without any weight left out.

    Notes
    -----
    M never exists: with B = [L_1 … L_S] / S = Q R and the inner products G of the centered scores, M^T M is
    Q (R G R^T) Q^T, so all that grows with the number of cells is G and one product for the scores.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> weight = gp.information(mean, truth.theta)
    >>> weighted = [gp.gauge(table, mean).mul(weight, axis=0) for table in loadings]
    >>> shared = gp.consensus(scores, weighted, n_components=4)
    >>> shared.scores.shape, shared.loadings.shape
    ((300, 4), (100, 4))
    """
    fits = checked_fits(scores, loadings)
    every = np.arange(len(fits))
    norms, genes, coefficients = _mean_components(_inner_products(fits), fits, every)
    norms, genes = norms[:n_components], genes[:, :n_components]
    cells = np.zeros((len(fits[0].scores), len(norms)))
    for fit, part in zip(fits, coefficients, strict=True):
        for rows in blocks(len(cells)):
            cells[rows] += (np.asarray(fit.scores[rows], float) - fit.mean) @ part[:, : len(norms)]
    return Contribution(cells, genes * norms)


def reproducible_rank(
    scores: Sequence[Table],
    loadings: Sequence[Table],
    *,
    threshold: float = SELECT.threshold,
    n_splits: int = SELECT.n_splits,
    seed: int = SELECT.seed,
) -> ReproducibleRank:
    """Find the largest number of directions that two halves of the fits share.

    Parameters
    ----------
    scores, loadings
        As for `consensus`.
    threshold
        Smallest correlation, 0 to 1, at which a direction counts as shared. It is the correlation that halves of four
        fits each would have, so the answer does not grow with the number of fits.
    n_splits
        Random splits of the fits into halves (all of them where there are fewer).
    seed
        Seed of the splits.

    Returns
    -------
    ReproducibleRank
        The rank is the last number of directions before the correlation falls to the threshold.

    Notes
    -----
    Each half of h fits is averaged. Its k leading directions are looked for *anywhere* in the space that the other half
    spans (its leading directions, as many as one fit has factors), so two directions that change places do no harm:
    c_k is the smallest singular value of G1[:, :k]^T G2 and of G1^T G2[:, :k], G1 and G2 being orthonormal bases of
    genes. What the fits share against what each has alone, c_k / (1 - c_k), grows in proportion to h; so
    s_k = c_k / (1 - c_k) / h belongs to one fit, and the correlation shown is 4 s_k / (1 + 4 s_k). The threshold of 0.9
    means s_k > 9/4.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> weight = gp.information(mean, truth.theta)
    >>> weighted = [gp.gauge(table, mean).mul(weight, axis=0) for table in loadings]
    >>> gp.reproducible_rank(scores, weighted).rank
    4
    """
    fits = checked_fits(scores, loadings)
    columns = ["correlation", "lower", "upper"]
    if len(fits) < 2:
        return ReproducibleRank(None, pd.DataFrame(columns=columns, index=pd.Index([], name="rank"), dtype=float))
    gram = _inner_products(fits)
    most = max(fit.scores.shape[1] for fit in fits)
    ranks = range(1, most + 1)
    smallest = []
    for first, second in _halves(len(fits), n_splits, seed):
        _, genes_1, _ = _mean_components(gram, fits, first)
        _, genes_2, _ = _mean_components(gram, fits, second)
        cross = genes_1[:, :most].T @ genes_2[:, :most]
        smallest.append(
            [
                min(_smallest_singular_value(cross[:k]), _smallest_singular_value(cross[:, :k]))
                if k <= min(cross.shape)
                else 0.0
                for k in ranks
            ]
        )
    # Quantiles of the splits first: the correlation of four fits is a monotone function of that of a half.
    half = np.quantile(smallest, [0.5, 0.05, 0.95], axis=0).T
    signal, noise = half * REFERENCE_FITS, (1 - np.minimum(half, 1)) * len(fits) / 2
    table = pd.DataFrame(signal / (signal + noise), index=pd.Index(ranks, name="rank"), columns=columns)
    below = table.index[~(table["correlation"] > threshold)]
    return ReproducibleRank(int(below.min()) - 1 if len(below) else most, table)


def outliers(elbo: ArrayLike, standard_error: ArrayLike = 0.0, *, mads: float = 5.0) -> np.ndarray:
    """Mark fits that are much worse than the others: they have probably lost a program.

    Parameters
    ----------
    elbo
        Negative ELBO of each fit of one setting over the cells trained and validated on, lower is better, nats per
        cell, shape (n_fits,).
    standard_error
        Standard error of these means over cells, shape (n_fits,) or one number. A fit whose distance is within it is
        never an outlier: a few fits can agree with each other more closely than the data can tell them apart.
    mads
        Median absolute deviations, scaled to standard deviations, above the median from which a fit is an outlier.

    Returns
    -------
    ndarray
        Boolean, shape (n_fits,); never the better half.

    Examples
    --------
    >>> from ldvae import programs as gp
    >>> gp.outliers([250.1, 250.3, 250.2, 257.0], standard_error=0.5).tolist()
    [False, False, False, True]
    """
    elbo = np.asarray(elbo, float)
    middle = np.median(elbo)
    spread = 1.4826 * np.median(np.abs(elbo - middle))
    return elbo - middle > np.maximum(mads * spread, np.median(np.asarray(standard_error, float)))


class FitTables(NamedTuple):
    """One fit as the functions above need it."""

    scores: np.ndarray  # as given, shape (n_obs, n_factors)
    mean: np.ndarray  # of the scores over cells, float64, shape (n_factors,)
    loadings: np.ndarray  # float64, shape (n_vars, n_factors)


def checked_fits(scores: Sequence[Table], loadings: Sequence[Table]) -> list[FitTables]:
    """The fits, all of the same cells and genes."""
    if not scores or len(scores) != len(loadings):
        raise InputError(
            f"Found {len(scores)} tables of scores and {len(loadings)} of loadings; expected one of each per fit."
        )
    fits = []
    for number, (cells, genes) in enumerate(zip(scores, loadings, strict=True)):
        z, weights = np.asarray(cells), np.asarray(genes, float)
        if z.shape[1] != weights.shape[1] or len(z) != len(scores[0]) or len(weights) != len(loadings[0]):
            raise InputError(
                f"Fit {number}: scores are {z.shape[0]} cells × {z.shape[1]} factors, loadings {weights.shape[0]} "
                f"genes × {weights.shape[1]} factors; expected the same factors in both, and the {len(scores[0])} "
                f"cells and {len(loadings[0])} genes of the first fit. Give fits of one dataset."
            )
        mean = z.mean(axis=0, dtype=float)
        if not (np.isfinite(mean).all() and np.isfinite(weights).all()):
            raise InputError(f"Fit {number}: scores or loadings hold values that are not finite; leave this fit out.")
        fits.append(FitTables(z, mean, weights))
    return fits


def blocks(n_obs: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, n_obs, BLOCK))


def unit_columns(table: np.ndarray) -> np.ndarray:
    """Columns of length one, or zero."""
    return table / np.maximum(np.linalg.norm(table, axis=0), TINY)


def _inner_products(fits: Sequence[FitTables]) -> np.ndarray:
    """Mean over cells of the products of all centered factors of all fits, shape (n_factors, n_factors) of them."""
    width, n_obs = sum(len(fit.mean) for fit in fits), len(fits[0].scores)
    gram = np.zeros((width, width))
    for rows in blocks(n_obs):
        block = np.hstack([np.asarray(fit.scores[rows], float) - fit.mean for fit in fits])
        gram += block.T @ block
    return gram / n_obs


def _mean_components(
    gram: np.ndarray, fits: Sequence[FitTables], which: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Singular values (per root cell), gene vectors, and each fit's part in the cell vectors of the mean of `which`."""
    ends = np.cumsum([len(fit.mean) for fit in fits])
    columns = np.concatenate([np.arange(ends[s] - len(fits[s].mean), ends[s]) for s in which])
    stacked = np.hstack([fits[s].loadings for s in which]) / len(which)
    q, r = np.linalg.qr(stacked)
    values, vectors = np.linalg.eigh(r @ gram[np.ix_(columns, columns)] @ r.T)
    # Squares below this share of the largest are rounding errors of the inner products.
    keep = values > max(values[-1] * 1e-10, TINY)
    norms, genes = np.sqrt(values[keep][::-1]), q @ vectors[:, keep][:, ::-1]
    genes = genes * np.where((genes**3).sum(axis=0) < 0, -1.0, 1.0)
    coefficients = stacked.T @ genes / norms
    return norms, genes, np.split(coefficients, np.cumsum([len(fits[s].mean) for s in which])[:-1])


def _halves(n_fits: int, n_splits: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Splits of the fits into two halves, each once; where there are too many, a random choice."""
    splits = [
        (np.array(half), np.setdiff1d(np.arange(n_fits), half))
        for half in islice(combinations(range(n_fits), n_fits // 2), 1000)
    ]
    if n_fits % 2 == 0:  # the second half of the list holds the same splits the other way round
        splits = [(first, second) for first, second in splits if 0 in first]
    rng = np.random.default_rng(seed)
    if len(splits) < n_splits or n_fits <= 12:
        chosen = rng.permutation(len(splits))[:n_splits]
        yield from (splits[i] for i in chosen)
        return
    for _ in range(n_splits):
        order = rng.permutation(n_fits)
        yield order[: n_fits // 2], order[n_fits // 2 :]


def _smallest_singular_value(matrix: np.ndarray) -> float:
    return float(np.linalg.svd(matrix, compute_uv=False)[-1])
