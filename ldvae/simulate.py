"""Counts with known gene programs: five scenarios in which a method can be compared with the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from scipy import sparse

from .errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

Scenario = Literal["mixed", "gauss", "additive", "dominant", "trajectory"]


class Simulation(NamedTuple):
    """Simulated counts with the programs that made them."""

    counts: sparse.csr_matrix  # UMI counts, float32, shape (n_obs, n_vars)
    cells: pd.DataFrame  # indexed by cell: batch, identity
    scores: pd.DataFrame  # indexed by cell, one column per program
    loadings: pd.DataFrame  # indexed by gene, one column per program: change of the log rate per unit of the score
    mean_expression: pd.Series  # indexed by gene: expected share of a cell's counts, averaged over cells; sums to 1
    theta: pd.Series  # indexed by gene: inverse dispersion

    def to_anndata(self) -> AnnData:
        """Counts in X, truth in obsm["X_programs"] and varm["program_loadings"] (data frames).

        Examples
        --------
        >>> from ldvae.simulate import simulate
        >>> adata = simulate(n_obs=200, n_vars=300).to_anndata()
        >>> adata.varm["program_loadings"].columns[0]
        'identity_0'
        """
        from anndata import AnnData

        adata = AnnData(X=self.counts, obs=self.cells.copy())
        adata.var_names = list(self.loadings.index)
        adata.obsm["X_programs"] = self.scores
        adata.varm["program_loadings"] = self.loadings
        adata.var["mean_expression"] = self.mean_expression
        adata.var["theta"] = self.theta
        return adata


def simulate(
    scenario: Scenario = "mixed",
    *,
    n_obs: int = 4000,
    n_vars: int = 1000,
    n_identity: int = 5,
    n_activity: int = 3,
    n_up: int = 70,
    n_down: int = 20,
    n_batch: int = 2,
    mean_total: float = 2000.0,
    seed: int = 0,
) -> Simulation:
    """Draw negative binomial counts from known gene programs.

    Parameters
    ----------
    scenario
        ``mixed``: log-additive as the model assumes; a cell has one identity program or none, and each activity
        program in 30 % of the cells. ``gauss``: log-additive, independent Gaussian scores (identity and activity
        programs alike). ``additive``: profiles add up on the scale of counts, as NMF assumes; every cell has
        exactly one identity, and in a quarter of the cells one activity profile takes 10 to 60 % of the counts.
        ``dominant``: as ``mixed``, but the first identity is that of half of the cells and changes all genes, so it
        makes most of the variation. ``trajectory``: the first identity program is the position along a tree of two
        branches and changes all genes; the others are states, each in a stretch of one branch; activities as in
        ``mixed``.
    n_obs, n_vars
        Cells and genes.
    n_identity, n_activity
        Programs of each kind.
    n_up, n_down
        Genes that a program raises and lowers.
    n_batch
        Experimental batches; their gene effects have a standard deviation of 0.2 on the log scale (none in
        ``additive``, whose truth is not log-additive).
    mean_total
        Expected counts of a cell; over cells log-normal with a standard deviation of 0.4 (as in pbmc3k).
    seed
        Seed of every draw.

    Returns
    -------
    Simulation
        In ``additive`` the scores of a program are the share of the counts it gives, and its loadings are the mean log
        rate of the cells, weighted by that share, minus that of all cells: the effect as it occurs. The log ratio of a
        pure profile, which no cell of an activity has, would be a larger effect, above all for the lowered genes.

    Examples
    --------
    >>> from ldvae.simulate import simulate
    >>> truth = simulate(n_obs=200, n_vars=300, seed=1)
    >>> truth.loadings.shape
    (300, 8)
    >>> truth.to_anndata()
    AnnData object with n_obs × n_vars = 200 × 300
        obs: 'batch', 'identity'
        var: 'mean_expression', 'theta'
        obsm: 'X_programs'
        varm: 'program_loadings'
    """
    n_programs = n_identity + n_activity
    _check(scenario, n_obs, n_vars, n_identity, n_activity, n_up + n_down, n_batch)
    rng = np.random.default_rng(seed)
    names = [f"identity_{k}" for k in range(n_identity)] + [f"activity_{k}" for k in range(n_activity)]
    genes = pd.Index([f"gene_{g}" for g in range(n_vars)], name="gene")
    cells = pd.Index([f"cell_{c}" for c in range(n_obs)], name="cell")

    base = _log_base_rates(rng, n_vars)
    # Per standard deviation of a Gaussian score, of "on" over "off", and of a pure profile, which is always diluted.
    effect = {"gauss": 0.5, "additive": 1.5}.get(scenario, 1.2)
    loadings = np.zeros((n_vars, n_programs))
    for k in range(n_programs):
        chosen = rng.choice(n_vars, n_up + n_down, replace=False)
        size = np.maximum(rng.normal(effect, effect / 3, len(chosen)), effect / 4)
        loadings[chosen, k] = np.where(np.arange(len(chosen)) < n_up, size, -size)

    if scenario in ("dominant", "trajectory"):
        loadings[:, 0] = rng.normal(0, {"dominant": 1.5, "trajectory": 2.0}[scenario], n_vars)

    identity = rng.integers(n_identity, size=n_obs) if n_identity else np.full(n_obs, -1)
    if scenario == "dominant":
        identity = np.where(rng.random(n_obs) < 0.5, 0, identity)
    if scenario in ("mixed", "dominant"):
        identity = np.where(rng.random(n_obs) < 0.8, identity, -1)
    one_hot = (identity[:, None] == np.arange(n_identity)).astype(float)
    if scenario == "gauss":
        identity = np.full(n_obs, -1)
        scores = rng.normal(size=(n_obs, n_programs))
    elif scenario == "trajectory":
        along, branch = rng.random(n_obs), rng.integers(2, size=n_obs)
        states = np.arange(1, n_identity)
        # The states alternate between the branches, from early to late.
        distance = (along[:, None] - states / n_identity) / 0.1
        on = np.exp(-np.square(distance)) * (branch[:, None] == states % 2)
        identity = np.where((on > 0.5).any(axis=1), 1 + on.argmax(axis=1), -1) if len(states) else np.full(n_obs, -1)
        active = rng.random((n_obs, n_activity)) < 0.3
        scores = np.hstack([along[:, None], on, active * rng.uniform(0.5, 1.5, (n_obs, n_activity))])
    elif scenario in ("mixed", "dominant"):
        active = rng.random((n_obs, n_activity)) < 0.3
        scores = np.hstack([one_hot, active * rng.uniform(0.5, 1.5, (n_obs, n_activity))])
    else:
        active = (rng.random(n_obs) < 0.25) & (n_activity > 0)
        which = rng.integers(max(n_activity, 1), size=n_obs)
        share = active * rng.uniform(0.1, 0.6, n_obs)
        activity = share[:, None] * (which[:, None] == np.arange(n_activity))
        scores = np.hstack([one_hot * (1 - share)[:, None], activity])

    batch = rng.integers(n_batch, size=n_obs)
    batch_effect = rng.normal(0, 0.2 if scenario != "additive" and n_batch > 1 else 0, (n_batch, n_vars))
    total = rng.lognormal(np.log(mean_total) - 0.08, 0.4, n_obs)
    theta = rng.lognormal(np.log(5), 0.5, n_vars)

    profiles = _softmax(base + loadings.T)
    blocks, mean = [], np.zeros(n_vars)
    with_program, in_all = np.zeros((n_vars, n_programs)), np.zeros(n_vars)
    for start in range(0, n_obs, 1000):  # so that a dense block, never the whole matrix, is in memory
        rows = slice(start, start + 1000)
        if scenario == "additive":
            share_of_counts = scores[rows] @ profiles
        else:
            share_of_counts = _softmax(base + scores[rows] @ loadings.T + batch_effect[batch[rows]])
        mean += share_of_counts.sum(axis=0) / n_obs
        if scenario == "additive":
            with_program += np.log(share_of_counts).T @ scores[rows]
            in_all += np.log(share_of_counts).sum(axis=0)
        rate = rng.gamma(theta, share_of_counts * total[rows, None] / theta)
        blocks.append(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)))
    if scenario == "additive":
        loadings = with_program / np.maximum(scores.sum(axis=0), 1e-12) - in_all[:, None] / n_obs

    labels = np.array([*names[:n_identity], "none"], dtype=object)
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical([f"batch_{b}" for b in batch], [f"batch_{b}" for b in range(n_batch)]),
            "identity": pd.Categorical(labels[identity]),
        },
        index=cells,
    )
    return Simulation(
        counts=sparse.csr_matrix(sparse.vstack(blocks)),
        cells=obs,
        scores=pd.DataFrame(scores, cells, names),
        loadings=pd.DataFrame(loadings, genes, names),
        mean_expression=pd.Series(mean, genes, name="mean_expression"),
        theta=pd.Series(theta, genes, name="theta"),
    )


def _log_base_rates(rng: np.random.Generator, n_vars: int) -> np.ndarray:
    """Log expression of genes without any program, up to a constant, shape (n_vars,).

    In pbmc3k the log means of the 1,000 most expressed genes exceed their minimum by 1.1 on average and 5.5 at
    most, with a standard deviation of 1.1: an exponential distribution with its tail cut.
    """
    return np.minimum(rng.exponential(1.1, n_vars), 5.5)


def _softmax(log_rates: np.ndarray) -> np.ndarray:
    """Rows that sum to one, shape as given (n, n_vars)."""
    rates = np.exp(log_rates - log_rates.max(axis=1, keepdims=True))
    return rates / rates.sum(axis=1, keepdims=True)


def _check(
    scenario: str, n_obs: int, n_vars: int, n_identity: int, n_activity: int, n_genes: int, n_batch: int
) -> None:
    if scenario not in get_args(Scenario):
        raise InputError(f"scenario: found {scenario!r}, expected one of {', '.join(get_args(Scenario))}.")
    if n_obs < 1 or n_batch < 1 or n_identity + n_activity < 1:
        raise InputError(
            f"A simulation needs at least one cell, one batch and one program; found n_obs={n_obs}, "
            f"n_batch={n_batch}, n_identity + n_activity={n_identity + n_activity}. Raise them."
        )
    if scenario in ("additive", "dominant", "trajectory") and n_identity < 1:
        raise InputError(
            f"In the {scenario} scenario every cell has an identity; found n_identity=0. Raise n_identity."
        )
    if n_genes > n_vars:
        raise InputError(
            f"A program changes n_up + n_down = {n_genes} genes, but there are only n_vars={n_vars}. "
            "Raise n_vars or lower n_up and n_down."
        )
