"""Effects of programs on every measured gene: a Poisson regression of the raw counts on the scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from ldvae.methods import Sentence

from .regression import regress_counts

BLOCK = 1 << 22  # expected counts held at a time, float64: 32 MB
TOLERANCE = 1e-3  # largest Newton step, in log fold change, at which a block has converged
RIDGE = 1.0  # precision of the normal prior of an effect: a gene with a handful of counts stays near zero


def effects_on_all_genes(
    counts: sparse.csr_matrix | sparse.csr_array,
    genes: Sequence[str],
    scores: pd.DataFrame,
    total_counts: np.ndarray,
    *,
    max_iterations: int = 25,
) -> pd.DataFrame:
    """Effect of each program on each measured gene, modeled or not, in one joint regression per gene.

    Parameters
    ----------
    counts
        Raw counts of all measured genes, shape (n_obs, n_vars).
    genes
        Gene names, length n_vars.
    scores
        Scores of the programs, shape (n_obs, n_programs), unit variance; columns are the names of the programs.
    total_counts
        Library size of each cell, > 0, shape (n_obs,): its logarithm is the offset.
    max_iterations
        Most Newton steps.

    Returns
    -------
    DataFrame
        Columns program, gene, `effect` (change of the log of the expected share of a gene per standard deviation of the
        score, all other programs held), `se` (its standard error) and `z`. The standard error allows for
        overdispersion by the gene's own Pearson statistic (quasi-Poisson), never below 1.

    Notes
    -----
    ``count_cg ~ Poisson(total_c exp(a_g + sum_k score_ck effect_kg))`` with a normal prior of unit variance on the
    effects, fitted by Newton's method, all genes of a block at once: the Hessians of a block are one product of the
    pairwise products of the scores with the expected counts. cNMF likewise gives spectra of genes that the
    factorization never saw, by least squares.

    References
    ----------
    McCullagh and Nelder, Generalized Linear Models, 2nd ed. (1989), chapters 6 and 9; Kotliar et al., eLife 8, e43803
    (2019).

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> from scipy import sparse
    >>> from ldvae.programs import effects_on_all_genes
    >>> rng = np.random.default_rng(0)
    >>> score = rng.normal(size=400)
    >>> counts = sparse.csr_matrix(rng.poisson(5 * np.exp(np.outer(score, [0.5, 0.0]))))
    >>> table = effects_on_all_genes(counts, ["ISG15", "ACTB"], pd.DataFrame({"P1": score}), np.full(400, 1000.0))
    >>> [round(float(value), 1) + 0.0 for value in table["effect"]]
    [0.5, 0.0]
    """
    design = np.column_stack([np.ones(len(scores)), scores.to_numpy(float)])
    n_obs, n_terms = design.shape
    offset = np.log(np.maximum(np.asarray(total_counts, float), 1))
    by_gene = sparse.csc_array(counts)
    effect = np.zeros((n_terms, by_gene.shape[1]))
    error = np.full_like(effect, np.nan)
    step = max(1, BLOCK // n_obs)
    for start in range(0, by_gene.shape[1], step):
        columns = slice(start, start + step)
        effect[:, columns], error[:, columns] = _effects(
            by_gene[:, columns].toarray().astype(float), design, offset, max_iterations
        )
    names = scores.columns
    table = pd.DataFrame(
        {
            "program": np.repeat(names, len(genes)),
            "gene": np.tile(np.asarray(genes, dtype=object), len(names)),
            "effect": effect[1:].ravel(),
            "se": error[1:].ravel(),
        }
    )
    return table.assign(z=table["effect"] / table["se"])


def _effects(
    x: np.ndarray, design: np.ndarray, offset: np.ndarray, max_iterations: int
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and standard errors of a block of genes, each of shape (n_terms, n_genes)."""
    n_obs, n_terms = design.shape
    start = np.zeros((n_terms, x.shape[1]))
    start[0] = np.log(np.maximum(x.sum(axis=0), 0.5) / np.exp(offset).sum())
    fit = regress_counts(
        x,
        design,
        offset,
        start,
        precision=RIDGE * (np.arange(n_terms) > 0),  # none on the intercept
        tolerance=TOLERANCE,
        max_iterations=max_iterations,
    )
    pearson = ((x - fit.rate) ** 2 / np.maximum(fit.rate, 1e-12)).sum(axis=0) / max(1, n_obs - n_terms)
    variance = np.diagonal(np.linalg.inv(fit.hessian), axis1=1, axis2=2).T
    return fit.coefficients, np.sqrt(variance * np.maximum(1, pearson))


def methods() -> Sentence:
    """What the methods section says of the effects on all genes."""
    return Sentence(
        "Effects of the programs on all measured genes are those of a Poisson regression of the counts on the scores "
        "of all programs, with the logarithm of the library size as offset, a normal prior of unit variance on the "
        "effects, and standard errors that allow for overdispersion."
    )
