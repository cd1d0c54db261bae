"""Gene programs: what the fits of one model share, rotated to simple structure, with uncertainty and meaning."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import scipy  # imports scipy.stats when it is first used: a second and 45 MB that a training need not have
from numpy.typing import ArrayLike
from scipy import sparse

from .config import ProgramsConfig
from .errors import InputError

logger = logging.getLogger(__name__)

Table: TypeAlias = pd.DataFrame | np.ndarray

# Rows of a cells × factors table that are widened to float64 at a time.
BLOCK = 50_000
# Below this many nats per cell (the information-weighted square of the contribution) there is nothing to rotate.
COLLAPSED = 1e-3
# A direction or program with a smaller share of the contribution is next to noise.
SMALLEST_SHARE = 0.005
# Cosine from which a fit is said to hold a program of the consensus.
FOUND = 0.9
# Share of the contribution below which a program is called weak.
WEAK_SHARE = 0.02
TINY = np.finfo(float).tiny
SIDES = {"positive": 1, "negative": -1}


class Contribution(NamedTuple):
    """The contribution matrix M = scores @ loadings.T of one or several fits, kept as its singular vectors."""

    scores: np.ndarray  # mean 0, variance 1, uncorrelated; shape (n_obs, n_components)
    loadings: np.ndarray  # orthogonal columns, the longest first; shape (n_vars, n_components)


class Rotation(NamedTuple):
    """Programs: M = scores @ loadings.T up to a constant per gene, and scores = [1, u] @ transform."""

    scores: np.ndarray  # shape (n_obs, n_programs)
    loadings: np.ndarray  # shape (n_vars, n_programs)
    transform: np.ndarray  # from the constant and the contribution's scores u; shape (1 + rank, n_programs)


class ReproducibleRank(NamedTuple):
    """How many directions two halves of the fits agree on."""

    rank: int | None  # None with one fit: nothing can be compared
    correlations: pd.DataFrame  # indexed by rank: correlation (median over splits), lower, upper (5 and 95 %)


class Stability(NamedTuple):
    """Each fit's own version of the programs."""

    cosines: np.ndarray  # to the consensus, shape (n_programs, n_fits)
    mean: np.ndarray  # mean loadings over fits, shape (n_vars, n_programs)
    half_width: np.ndarray  # of the 95 % interval of that mean; nan with one fit; shape (n_vars, n_programs)


# ---------------------------------------------------------------------------------------------------------------------
# The method, step by step
# ---------------------------------------------------------------------------------------------------------------------


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
    M never exists: with B = [L_1 … L_S] / S = Q R and the inner products G of the centred scores, M^T M is
    Q (R G R^T) Q^T, so all that grows with the number of cells is G and one product for the scores.
    """
    fits = _checked(scores, loadings)
    every = np.arange(len(fits))
    norms, genes, coefficients = _mean_components(_inner_products(fits), fits, every)
    norms, genes = norms[:n_components], genes[:, :n_components]
    cells = np.zeros((len(fits[0].scores), len(norms)))
    for fit, part in zip(fits, coefficients, strict=True):
        for rows in _blocks(len(cells)):
            cells[rows] += (np.asarray(fit.scores[rows], float) - fit.mean) @ part[:, : len(norms)]
    return Contribution(cells, genes * norms)


def reproducible_rank(
    scores: Sequence[Table],
    loadings: Sequence[Table],
    *,
    threshold: float = 0.9,
    n_splits: int = 20,
    seed: int = 0,
) -> ReproducibleRank:
    """Find the largest number of directions that two halves of the fits share.

    Parameters
    ----------
    scores, loadings
        As for `consensus`.
    threshold
        The smallest canonical correlation between the gene spaces of two halves that counts as shared, 0 to 1.
    n_splits
        Random splits of the fits into halves (all of them where there are fewer).
    seed
        Seed of the splits.
    """
    fits = _checked(scores, loadings)
    columns = ["correlation", "lower", "upper"]
    if len(fits) < 2:
        return ReproducibleRank(None, pd.DataFrame(columns=columns, index=pd.Index([], name="rank"), dtype=float))
    gram = _inner_products(fits)
    smallest = []
    for first, second in _halves(len(fits), n_splits, seed):
        _, genes_1, _ = _mean_components(gram, fits, first)
        _, genes_2, _ = _mean_components(gram, fits, second)
        cross = genes_1.T @ genes_2
        most = max(fit.scores.shape[1] for fit in fits)
        ranks = range(1, most + 1)
        smallest.append([_smallest_singular_value(cross[:k, :k]) if k <= min(cross.shape) else 0.0 for k in ranks])
    table = pd.DataFrame(
        np.quantile(smallest, [0.5, 0.05, 0.95], axis=0).T, index=pd.Index(ranks, name="rank"), columns=columns
    )
    above = table.index[table["correlation"] > threshold]
    return ReproducibleRank(int(above.max()) if len(above) else 0, table)


def rotate(
    contribution: Contribution,
    rank: int,
    *,
    intercept: bool = True,
    balance: float = 1.0,
    power: float = 2.0,
    n_starts: int = 20,
    seed: int = 0,
) -> Rotation:
    """Rotate the leading components so that cells and genes each belong to few programs.

    Parameters
    ----------
    contribution
        From `consensus`.
    rank
        Components kept.
    intercept
        Rotate the constant together with the scores. Gives one program more than the rank, whose scores count up
        from zero by themselves; needed where every cell has exactly one identity.
    balance
        Weight of the simplicity of the loadings against that of the scores; 0 looks at the scores alone.
    power
        Promax power: 1 keeps the programs uncorrelated, 2 lets them correlate mildly.
    n_starts
        Starts of the search (one from the components themselves, the others random); the best is kept.
    seed
        Seed of the random starts.

    Notes
    -----
    The criterion is f(scores) + balance f(loadings), where f is the mean simplicity of the rows a of a table,
    sum_k a_k⁴ / (sum_k a_k²)²: 1 for a row with one entry, 1 / n_programs for one whose entries are all alike. Rows are
    weighted by their squared length. (Varimax weights them by its square, and then a few extreme rows decide, Kaiser's
    normalisation does not weight them, and then noise does.) It depends on a table only through fourth moments,
    so the search costs the same for a thousand and for a million cells.
    """
    scores, loadings = contribution.scores[:, :rank], contribution.loadings[:, :rank]
    if intercept and rank > 1:  # one direction has two ends but is one program
        loadings = np.hstack([np.zeros((len(loadings), 1)), loadings])
        moments = _fourth_moments(scores, constant=True)
    else:
        intercept = False
        moments = _fourth_moments(scores, constant=False)
    rotation = _simplest(moments, _fourth_moments(loadings, constant=False), balance, n_starts, seed)
    transform = rotation if intercept else np.vstack([np.zeros((1, rank)), rotation])
    if power > 1:
        transform = transform @ _promax(scores, transform, power)
    inverse = np.linalg.pinv(transform if intercept else transform[1:])
    return Rotation(transform[0] + scores @ transform[1:], loadings @ inverse.T, transform)


def drop_baseline(rotation: Rotation, *, genes: float = 0.5, cells: float = 0.85) -> Rotation:
    """Count the other programs from the cells without any, where such a state exists.

    With an intercept there is one program more than directions, and any one of them can be the origin from which the
    others are counted. It is one only if it has no genes of its own (counted from it, each of its genes belongs mostly
    to one other program; were it a program, its genes would be lowered in all the others) and if its cells have nothing
    else that a cell has one of. Where that is in doubt, effects stay relative to the mean cell.

    Parameters
    ----------
    rotation
        From `rotate` with an intercept (returned as it is otherwise).
    genes
        Smallest share of the squared loadings of the candidate's genes in the program each belongs to. In simulations
        0.56 or more for the state without programs, 0.45 or less for a program.
    cells
        Smallest share of the candidate in the squared scores of its cells, scores scaled so that they sum to one. In
        simulations 0.92 or more for the state without programs; on blood cells no program had more than 0.75.
    """
    scores, loadings, transform = rotation
    if not np.any(transform[0]) or transform.shape[0] != transform.shape[1]:
        return rotation
    # 1 = scores @ constant
    constant = np.linalg.solve(transform, np.eye(len(transform))[0])
    counted_from = [
        np.delete(loadings - np.outer(loadings[:, k], constant / weight), k, axis=1)
        for k, weight in enumerate(np.where(np.abs(constant) > 1e-9, constant, np.inf))
    ]
    steadiness = np.abs(transform[0]) / np.linalg.norm(transform[1:], axis=0)
    if steadiness.max() > 3:  # scores that hardly vary are the constant itself
        origin = int(steadiness.argmax())
    else:
        belonging = [_belonging(others, loadings[:, k]) for k, others in enumerate(counted_from)]
        origin = int(np.argmax(belonging))
        if belonging[origin] < genes or _exclusive(scores, constant)[origin] < cells:
            return rotation
    return Rotation(np.delete(scores, origin, 1), counted_from[origin], np.delete(transform, origin, 1))


def orient(rotation: Rotation) -> Rotation:
    """Give programs their sign, order and scale.

    Scores have unit variance, so a loading is the log fold change per standard deviation of the score. The program that
    contributes most to M comes first. Three things tell the positive side, and the sign is that of their sum: the
    heavier side of the weighted loadings (its excess in the sum of squares, -1 to 1), the side to which the scores are
    skewed (a quarter of the skewness), and the side on which they lie off their origin (mean over standard
    deviation), where the last two count for no more than 0.5 each.
    """
    scores, loadings, transform = rotation
    scale = np.linalg.norm(transform[1:], axis=0)  # the components have unit variance and do not correlate
    scale = np.where(scale > 0, scale, 1.0)
    total = np.square(loadings).sum(axis=0)
    heavier = np.divide((np.sign(loadings) * np.square(loadings)).sum(axis=0), total, out=total * 0, where=total > 0)
    cubes = np.zeros(len(scale))
    for rows in _blocks(len(scores)):
        cubes += ((scores[rows] - transform[0]) ** 3).sum(axis=0)
    skewness = cubes / len(scores) / scale**3
    evidence = heavier + np.clip(skewness / 4, -0.5, 0.5) + np.clip(transform[0] / scale, -0.5, 0.5)
    factor = np.where(evidence >= 0, 1.0, -1.0) / scale
    scores, loadings, transform = scores * factor, loadings / factor, transform * factor
    order = np.argsort(-np.square(loadings).sum(axis=0), kind="stable")
    return Rotation(scores[:, order], loadings[:, order], transform[:, order])


def stability(
    contribution: Contribution, rotation: Rotation, scores: Sequence[Table], loadings: Sequence[Table]
) -> Stability:
    """Express each fit in the frame of the consensus and compare.

    Parameters
    ----------
    contribution, rotation
        The consensus, cut to the rank of the rotation here, and the programs made from it.
    scores, loadings
        The fits, as for `consensus`.

    Notes
    -----
    A fit's own loadings are the regression of its contribution on the consensus scores. The interval is that of the
    mean over fits (Student's t); it holds the randomness of the fits, not that of the cells sampled.
    """
    fits = _checked(scores, loadings)
    rank = rotation.transform.shape[0] - 1
    components = contribution.scores[:, :rank]
    to_programs = np.linalg.lstsq(contribution.loadings[:, :rank], rotation.loadings, rcond=None)[0]
    own = []
    for fit in fits:
        cross = np.zeros((fit.scores.shape[1], rank))
        for rows in _blocks(len(components)):
            cross += (np.asarray(fit.scores[rows], float) - fit.mean).T @ components[rows]
        own.append(fit.loadings @ (cross / len(components)) @ to_programs)
    stacked = np.stack(own)
    lengths = np.linalg.norm(stacked, axis=1) * np.linalg.norm(rotation.loadings, axis=0)
    products = (stacked * rotation.loadings).sum(axis=1)
    cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    n_fits = len(fits)
    if n_fits > 1:
        half_width = scipy.stats.t.ppf(0.975, n_fits - 1) * stacked.std(axis=0, ddof=1) / np.sqrt(n_fits)
    else:
        half_width = np.full(rotation.loadings.shape, np.nan)
    return Stability(cosines.T, stacked.mean(axis=0), half_width)


def outliers(elbo: ArrayLike, *, mads: float = 5.0, share: float = 0.003) -> np.ndarray:
    """Mark fits that are much worse than the others: they have probably lost a program.

    Parameters
    ----------
    elbo
        Negative ELBO of each fit of one setting, lower is better, shape (n_fits,).
    mads
        How many median absolute deviations above the median, and …
    share
        … by which share of the median at least.

    Returns
    -------
    ndarray
        Boolean, shape (n_fits,); never the better half.
    """
    elbo = np.asarray(elbo, float)
    middle = np.median(elbo)
    spread = np.median(np.abs(elbo - middle))
    return elbo - middle > np.maximum(mads * spread, share * np.abs(middle))


# ---------------------------------------------------------------------------------------------------------------------
# All of it
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Programs:
    """Gene programs of a set of fits, as tables; programs are called P1, P2, …, the largest first."""

    loadings: pd.DataFrame  # genes by programs: log fold change per standard deviation of the score
    weighted: pd.DataFrame  # genes by programs: loading × root of the information, by which genes are ranked
    lower: pd.DataFrame  # genes by programs: 95 % interval of the loading over fits; nan with one fit
    upper: pd.DataFrame
    members: pd.DataFrame  # genes by programs: 1 where the program raises the gene, -1 where it lowers it, else 0
    scores: pd.DataFrame  # cells by programs: unit variance
    table: pd.DataFrame  # programs by share, stability, stability_min, n_runs, n_runs_found, n_genes_positive, …
    cosines: pd.DataFrame  # programs by fits
    rank: int
    correlations: pd.DataFrame  # of `ReproducibleRank`
    basis: pd.DataFrame  # genes by components: change of the log rate per unit of a component
    transform: np.ndarray  # scores = [1, component scores] @ transform; shape (1 + rank, n_programs)
    intercept: bool  # there is one program more than directions; effects are relative to the mean cell
    warnings: list[str]


def find_programs(
    scores: Sequence[Table],
    loadings: Sequence[Table],
    *,
    mean: ArrayLike,
    theta: ArrayLike | None = None,
    cells: Sequence[str] | None = None,
    genes: Sequence[str] | None = None,
    runs: Sequence[str] | None = None,
    config: ProgramsConfig | None = None,
    rank: int | None = None,
) -> Programs:
    """Find the gene programs that fits of the same cells and genes share.

    Parameters
    ----------
    scores
        Cell scores of each fit, shape (n_obs, n_factors).
    loadings
        Gene loadings of each fit on the log scale, as they came out, shape (n_vars, n_factors).
    mean
        Mean count of each gene in a cell, shape (n_vars,).
    theta
        Inverse dispersion of each gene, shape (n_vars,) or (n_fits, n_vars); not given: Poisson.
    cells, genes, runs
        Names; by default those of the first tables, else numbers.
    config
        Rank, rotation and baseline; the defaults where not given.
    rank
        Directions kept where the config does not say; by default those that two halves of the fits share.

    Returns
    -------
    Programs
        With one fit the same without averaging; `warnings` says what cannot be known from it.
    """
    config = config or ProgramsConfig()
    genes = pd.Index(genes if genes is not None else _names(loadings[0], "gene"), name="gene")
    cells = pd.Index(cells if cells is not None else _names(scores[0], "cell"), name="cell")
    runs = list(runs if runs is not None else [f"run {s}" for s in range(len(scores))])
    weight = information(mean, theta)
    if weight.shape != (len(genes),):
        raise InputError(f"mean and theta: found {len(weight)} values for {len(genes)} genes; give one per gene.")
    weighted = [np.asarray(gauge(np.asarray(table, float), mean)) * weight[:, None] for table in loadings]

    # A fit's own factors are the most that can be shared; what an average has beyond them is noise of the fits.
    most = max(table.shape[1] for table in scores)
    whole = consensus(scores, weighted, most)
    sizes = np.square(whole.loadings).sum(axis=0)
    if sizes.sum() < COLLAPSED:
        raise InputError(
            f"All factors are collapsed: together they change the expected counts by {sizes.sum():.1e} nats per cell, "
            "so there are no programs in these fits. Train longer, with a slower KL warm-up, or check that the counts "
            "vary between cells."
        )
    warnings: list[str] = []
    reproducible = reproducible_rank(scores, weighted)
    rank = _rank(config.rank or rank, reproducible, sizes, most, warnings)
    contribution = Contribution(whole.scores[:, :rank], whole.loadings[:, :rank])
    rotation = rotate(
        contribution,
        rank,
        intercept=config.intercept,
        balance=config.balance,
        power=config.power,
        n_starts=config.n_starts,
        seed=config.seed,
    )
    if config.baseline == "auto":
        rotation = drop_baseline(rotation)
    rotation = orient(rotation)
    stable = stability(contribution, rotation, scores, weighted)

    names = [f"P{k + 1}" for k in range(rotation.scores.shape[1])]

    def per_gene(values: np.ndarray, columns: Sequence[str]) -> pd.DataFrame:
        # A gene without counts holds no information: nothing is known of its loading.
        known = np.divide(values, weight[:, None], out=np.zeros_like(values), where=weight[:, None] > 0)
        return pd.DataFrame(known, genes, columns)

    cosines = pd.DataFrame(stable.cosines, pd.Index(names, name="program"), runs)
    members = _members(rotation.loadings, stable.half_width)
    table = pd.DataFrame(
        {
            "share": np.square(rotation.loadings).sum(axis=0) / sizes.sum(),
            "stability": cosines.mean(axis=1) if len(runs) > 1 else np.nan,
            "stability_min": cosines.min(axis=1) if len(runs) > 1 else np.nan,
            "n_runs": len(runs),
            "n_runs_found": (cosines > FOUND).sum(axis=1),
            "n_genes_positive": (members > 0).sum(axis=0),
            "n_genes_negative": (members < 0).sum(axis=0),
        },
        index=cosines.index,
    )
    return Programs(
        loadings=per_gene(rotation.loadings, names),
        weighted=pd.DataFrame(rotation.loadings, genes, names),
        lower=per_gene(rotation.loadings - stable.half_width, names),
        upper=per_gene(rotation.loadings + stable.half_width, names),
        members=pd.DataFrame(members, genes, names),
        scores=pd.DataFrame(rotation.scores, cells, names),
        table=table,
        cosines=cosines,
        rank=rank,
        correlations=reproducible.correlations,
        basis=per_gene(contribution.loadings, [f"U{k + 1}" for k in range(rank)]),
        transform=rotation.transform,
        intercept=bool(rotation.transform.shape[0] == rotation.transform.shape[1]),
        warnings=warnings,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Reading them
# ---------------------------------------------------------------------------------------------------------------------


def top_genes(programs: Programs, n_top: int = 30) -> pd.DataFrame:
    """List the genes of both sides of each program, ranked by loading × root of the information.

    By the loading alone rare genes would come first, whose loadings are mostly noise.

    Returns
    -------
    DataFrame
        Columns program, side, rank, gene, loading, lower, upper, weighted.
    """
    parts = []
    for name, weighted in programs.weighted.items():
        for side, sign in SIDES.items():
            ranked = (sign * weighted).sort_values(ascending=False, kind="stable")
            genes = ranked.index[ranked > 0][:n_top]
            tables = {"loading": programs.loadings, "lower": programs.lower, "upper": programs.upper}
            columns = {column: table.loc[genes, name].to_numpy() for column, table in tables.items()}
            listed = {"program": name, "side": side, "rank": np.arange(1, len(genes) + 1), "gene": genes}
            parts.append(pd.DataFrame(listed | columns | {"weighted": weighted[genes].to_numpy()}))
    return pd.concat(parts, ignore_index=True)


def gene_sets(programs: Programs) -> dict[str, list[str]]:
    """The member genes of each side of each program, the heaviest first: `P1_positive`, `P1_negative`, ….

    A side without members is left out.
    """
    sets = {}
    for name, members in programs.members.items():
        for side, sign in SIDES.items():
            genes = (sign * programs.weighted.loc[members == sign, name]).sort_values(ascending=False, kind="stable")
            if len(genes):
                sets[f"{name}_{side}"] = list(genes.index)
    return sets


def split_sides(programs: Programs) -> pd.DataFrame:
    """Programs without negative numbers, as NMF tools such as starCAT expect: `P1_pos`, `P1_neg`, … by genes.

    The two sides of a program become two programs, of the weighted loadings; their scores are not those of the program.
    """
    sides = {}
    for name, weighted in programs.weighted.items():
        sides[f"{name}_pos"], sides[f"{name}_neg"] = weighted.clip(lower=0), (-weighted).clip(lower=0)
    return pd.DataFrame(sides).T


def associations(
    scores: pd.DataFrame, obs: pd.DataFrame, *, variables: Sequence[str] | None = None, technical: Sequence[str] = ()
) -> pd.DataFrame:
    """Test how the scores of each program relate to what is known of the cells.

    Parameters
    ----------
    scores
        Cells by programs, unit variance.
    obs
        What is known, indexed by cell; cells are matched by name.
    variables
        Columns to test; by default all categories of 2 to 50 levels and all numbers.
    technical
        Columns that describe the experiment, to be marked as such.

    Returns
    -------
    DataFrame
        Columns program, variable, kind, level, effect, auc, p, padj, technical, explained. For each level of a category
        the mean score minus that of the other cells, the AUC and the p-value of Mann and Whitney; for a number
        Spearman's r. padj is Benjamini and Hochberg's over the table; explained is the share of the variance of the
        scores (for a number: of the ranks) that the variable, with all its levels, explains. Cells count as
        independent, which cells of one donor are not: read the effect, not the p-value.
    """
    obs = obs.reindex(scores.index)
    rows: list[pd.DataFrame] = []
    for variable in variables if variables is not None else obs.columns:
        values = obs[variable]
        known = values.notna().to_numpy()
        kind = _kind(values[known])
        if kind is None:
            continue
        table = scores[known]
        ranks = scipy.stats.rankdata(table, axis=0)
        test = _test_levels if kind == "categorical" else _test_number
        share = _explained(ranks if kind == "continuous" else table.to_numpy(), values[known], kind)
        rows += [
            part.assign(variable=variable, kind=kind, explained=share) for part in test(table, ranks, values[known])
        ]
    columns = ["program", "variable", "kind", "level", "effect", "auc", "p", "padj", "technical", "explained"]
    if not rows:
        return pd.DataFrame(columns=columns)
    result = pd.concat(rows, ignore_index=True)
    result["padj"] = scipy.stats.false_discovery_control(result["p"])
    result["technical"] = result["variable"].isin(technical)
    order = {name: k for k, name in enumerate(scores.columns)}
    return result.sort_values("program", key=lambda names: names.map(order), kind="stable")[columns].reset_index(
        drop=True
    )


def strength(table: pd.DataFrame) -> pd.Series:
    """How close each association is, from 0 to 1: |r| of a number, |2 AUC - 1| of a level."""
    return (2 * table["auc"] - 1).where(table["kind"] == "categorical", table["effect"]).abs()


def technical_flags(table: pd.DataFrame, share: pd.Series, *, limit: float = 0.5) -> pd.Series:
    """Say which programs follow the experiment and not the biology, and what they follow.

    Parameters
    ----------
    table
        From `associations`.
    share
        Share of the contribution, indexed by program.
    limit
        Strength from which a program is flagged; half of it where the share is below 2 %, since the fits can make a
        weak program out of the sequencing depth that the encoder sees.

    Returns
    -------
    Series
        Indexed by program: "" or a reason. A program that some biological variable explains better is not flagged; one
        with less than 0.5 % of the contribution is, unless biology explains it.
    """
    flags = pd.Series("", index=share.index)
    table = table.assign(strength=strength(table))
    for program, weight in share.items():
        own = table[table["program"] == program]
        technical, other = own[own["technical"].astype(bool)], own[~own["technical"].astype(bool)]
        biology = np.sqrt(other["explained"].max()) if len(other) else 0
        least = limit / 2 if weight < WEAK_SHARE else limit
        if len(technical) and technical["strength"].max() > max(least, biology):
            first = technical.loc[technical["strength"].idxmax()]
            flags[program] = ("weak, and " if weight < WEAK_SHARE else "") + f"follows {_phrase(first)}"
        elif weight < SMALLEST_SHARE and biology < limit / 2:
            flags[program] = f"very weak ({weight:.1%} of the contribution)"
    return flags


def enrichment(programs: Programs, library: Mapping[str, Sequence[str]], name: str) -> pd.DataFrame:
    """Test the members of each side of each program against a library of gene sets (hypergeometric).

    Parameters
    ----------
    programs
        Their genes are the background.
    library
        Gene sets by term.
    name
        Name of the library.

    Returns
    -------
    DataFrame
        Columns program, side, term, library, overlap, n_term, odds_ratio, p, padj, genes: terms that share a gene with
        the side; padj is Benjamini and Hochberg's over the terms of one side.
    """
    background = set(programs.loadings.index)
    terms = {term: background.intersection(genes) for term, genes in library.items()}
    terms = {term: genes for term, genes in terms.items() if genes}
    if not terms:
        raise InputError(
            f"{name}: none of its genes is among the {len(background)} genes of the programs (such as "
            f"{', '.join(programs.loadings.index[:3])}). Use gene sets with the same kind of names."
        )
    columns = ["program", "side", "term", "library", "overlap", "n_term", "odds_ratio", "p", "padj", "genes"]
    parts = []
    for label, members in gene_sets(programs).items():
        program, side = label.rsplit("_", 1)
        table = pd.DataFrame(
            {
                "term": list(terms),
                "overlap": [len(genes.intersection(members)) for genes in terms.values()],
                "n_term": [len(genes) for genes in terms.values()],
                "genes": [", ".join(gene for gene in members if gene in genes) for genes in terms.values()],
            }
        )
        both, n_term = table["overlap"], table["n_term"]
        table["p"] = scipy.stats.hypergeom.sf(both - 1, len(background), n_term, len(members))
        table["padj"] = scipy.stats.false_discovery_control(table["p"])
        neither = len(background) - n_term - len(members) + both
        with np.errstate(divide="ignore"):
            table["odds_ratio"] = both * neither / np.asarray((n_term - both) * (len(members) - both), float)
        table = table[both > 0].sort_values("p", kind="stable")
        parts.append(table.assign(program=program, side=side, library=name))
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def describe(
    programs: Programs, found: pd.DataFrame, enriched: pd.DataFrame | None = None, *, limit: float = 0.5
) -> pd.DataFrame:
    """Put in one table what is known of each program.

    Parameters
    ----------
    programs
        From `find_programs`.
    found
        From `associations`.
    enriched
        From `enrichment`, if there were gene sets.
    limit
        As for `technical_flags`.

    Returns
    -------
    DataFrame
        `programs.table` with label, technical, top_positive, top_negative and best_association. The label is the best
        enriched term (padj below 0.05) or the best separated level (AUC above 0.9), if any, and the first three genes.
    """
    listed = top_genes(programs, 10)
    table = programs.table.copy()
    names, best = {}, {}
    biological = found[~found["technical"].astype(bool) & (found["padj"] < 0.05)]
    biological = biological.assign(strength=strength(biological))
    for program in table.index:
        own = biological[biological["program"] == program]
        genes = listed.loc[(listed["program"] == program) & (listed["side"] == "positive"), "gene"]
        label = ", ".join(genes[:3])
        if len(own):
            # Of two levels the one that is high says the same as the one that is low, and reads better.
            raised = own[~(own["auc"] < 0.5)]
            strongest = (raised if len(raised) else own)["strength"].idxmax()
            best[program] = _phrase(own.loc[strongest])
            numbered = own["level"].astype(str).str.isnumeric()  # the number of a cluster names nothing
            upper = own[(own["auc"] > 0.9) & ~numbered]
            if len(upper):
                label = f"{upper.loc[upper['auc'].idxmax(), 'level']}: {label}"
        if enriched is not None and len(enriched):
            terms = enriched[
                (enriched["program"] == program) & (enriched["side"] == "positive") & (enriched["padj"] < 0.05)
            ]
            if len(terms):
                label = f"{terms.loc[terms['p'].idxmin(), 'term']}: {', '.join(genes[:3])}"
        names[program] = label
    table.insert(0, "label", pd.Series(names))
    table["technical"] = technical_flags(found, table["share"], limit=limit)
    for side in SIDES:
        joined = listed[listed["side"] == side].groupby("program")["gene"].agg(", ".join)
        table[f"top_{side}"] = joined.reindex(table.index).fillna("")
    table["best_association"] = pd.Series(best, dtype=object).reindex(table.index).fillna("")
    return table


def _kind(values: pd.Series) -> str | None:
    """categorical or continuous; None for what is constant or names single cells."""
    levels = values.nunique()
    if levels < 2:
        return None
    if pd.api.types.is_float_dtype(values) or (pd.api.types.is_integer_dtype(values) and levels > 20):
        return "continuous"
    return "categorical" if levels <= 50 else None


def _test_levels(scores: pd.DataFrame, ranks: np.ndarray, values: pd.Series) -> Iterator[pd.DataFrame]:
    """Each level against the other cells; of True and False only True."""
    n_obs, total = len(scores), scores.to_numpy().sum(axis=0)
    levels = [True] if pd.api.types.is_bool_dtype(values) else sorted(values.unique(), key=str)
    for level in levels:
        inside = (values == level).to_numpy()
        n_in, n_out = inside.sum(), (~inside).sum()
        sums = scores.to_numpy()[inside].sum(axis=0)
        pairs = n_in * n_out
        wins = ranks[inside].sum(axis=0) - n_in * (n_in + 1) / 2
        z = (wins - pairs / 2) / np.sqrt(pairs * (n_obs + 1) / 12)
        yield pd.DataFrame(
            {
                "program": scores.columns,
                "level": str(level),
                "effect": sums / n_in - (total - sums) / n_out,
                "auc": wins / pairs,
                "p": 2 * scipy.stats.norm.sf(np.abs(z)),
            }
        )


def _explained(scores: np.ndarray, values: pd.Series, kind: str) -> np.ndarray:
    """Share of the variance of scores, or of ranks, that a variable explains, shape (n_programs,)."""
    centred = scores - scores.mean(axis=0)
    total = np.maximum(np.square(centred).sum(axis=0), TINY)
    if kind == "categorical":
        codes = pd.factorize(values)[0]
        sums = np.zeros((codes.max() + 1, scores.shape[1]))
        np.add.at(sums, codes, centred)
        return (np.square(sums) / np.bincount(codes)[:, None]).sum(axis=0) / total
    wanted = scipy.stats.rankdata(values.to_numpy(float))
    wanted = wanted - wanted.mean()
    return np.square(wanted @ centred) / np.square(wanted).sum() / total


def _test_number(scores: pd.DataFrame, ranks: np.ndarray, values: pd.Series) -> Iterator[pd.DataFrame]:
    """Spearman's correlation with the scores."""
    wanted = scipy.stats.rankdata(values.to_numpy(float))
    wanted = (wanted - wanted.mean()) / wanted.std()
    r = wanted @ (ranks - ranks.mean(axis=0)) / len(wanted) / np.maximum(ranks.std(axis=0), TINY)
    degrees = max(len(wanted) - 2, 1)
    t = r * np.sqrt(degrees / np.maximum(1 - r**2, TINY))
    p = 2 * scipy.stats.t.sf(np.abs(t), degrees)
    yield pd.DataFrame({"program": scores.columns, "level": "", "effect": r, "auc": np.nan, "p": p})


def _phrase(row: pd.Series) -> str:
    if row["kind"] == "categorical":
        return f"{row['variable']} = {row['level']} (AUC {row['auc']:.2f})"
    return f"{row['variable']} (r = {row['effect']:.2f})"


# ---------------------------------------------------------------------------------------------------------------------
# Scoring other cells
# ---------------------------------------------------------------------------------------------------------------------


class Frame(NamedTuple):
    """What scoring other cells needs of a set of programs; plain arrays."""

    genes: np.ndarray  # names, shape (n_vars,)
    programs: np.ndarray  # names, shape (n_programs,)
    basis: np.ndarray  # change of the log rate per unit of a component, shape (n_vars, rank)
    transform: np.ndarray  # scores = [1, components] @ transform, shape (1 + rank, n_programs)
    offset: np.ndarray  # log share of the counts in the mean cell, shape (n_vars,)
    theta: np.ndarray  # inverse dispersion, shape (n_vars,)
    weight: np.ndarray  # root of the information, shape (n_vars,)


class Projection(NamedTuple):
    """Scores of other cells, and how far the data support them."""

    scores: pd.DataFrame  # cells by programs, in standard deviations of the cells the programs were made from
    missing: list[str]  # genes of the programs that the data lack
    covered: pd.Series  # indexed by program: share of its squared weighted loadings in genes that the data have


def frame(programs: Programs, mean: ArrayLike, theta: ArrayLike | None = None) -> Frame:
    """Gather what scoring other cells needs.

    Parameters
    ----------
    programs
        From `find_programs`.
    mean, theta
        As given there.
    """
    share = np.asarray(mean, float) / np.sum(mean)
    weight = information(mean, theta)
    dispersion = np.zeros_like(share) if theta is None else np.atleast_2d(1 / np.asarray(theta, float)).mean(axis=0)
    # The offset that gives the mean expression back, on a sample of cells: the shares of a mean cell are not the mean
    # share. Batches are averaged over in this way too.
    rows = np.unique(np.linspace(0, len(programs.scores) - 1, 2000).astype(int))
    centred = programs.scores.to_numpy()[rows] - programs.scores.to_numpy().mean(axis=0)
    fold = np.exp(centred @ programs.loadings.to_numpy().T)
    offset = share.copy()
    for _ in range(50):
        rates = fold * offset
        offset = offset * share / np.maximum((rates / rates.sum(axis=1, keepdims=True)).mean(axis=0), TINY)
        offset /= offset.sum()
    with np.errstate(divide="ignore"):
        theta_mean = 1 / dispersion
    return Frame(
        genes=np.asarray(programs.loadings.index, dtype=np.str_),
        programs=np.asarray(programs.loadings.columns, dtype=np.str_),
        basis=programs.basis.to_numpy(),
        transform=programs.transform,
        offset=np.log(np.maximum(offset, 1e-12)),
        theta=theta_mean,
        weight=weight,
    )


def project(
    frame: Frame,
    counts: sparse.csr_matrix,
    genes: Sequence[str],
    *,
    cells: Sequence[str] | None = None,
    batch: ArrayLike | None = None,
    adjust: bool = True,
) -> Projection:
    """Score cells with given programs, whose loadings stay as they are.

    Parameters
    ----------
    frame
        From `frame`.
    counts
        UMI counts of any cells, shape (n_obs, n_genes).
    genes
        Names of the columns; matched by name, in any order. Genes the programs do not have are left out.
    cells
        Names of the rows.
    batch
        Experimental batch of each cell, shape (n_obs,); not given: one batch.
    adjust
        Let every gene have its own level in each batch, as far as no mixture of the programs could explain it.

    Notes
    -----
    For each cell the maximum a posteriori of its components u under counts ~ NB(exp(l + offset + basis u), theta)
    with a library size l of its own and u ~ N(0, 1), as in the cells the programs were made from; by Fisher scoring for
    many cells at once.
    """
    names = pd.Index(np.asarray(genes, dtype=str))
    position = pd.Series(np.arange(len(names)), names)[~names.duplicated()].reindex(frame.genes)
    here = position.notna().to_numpy()
    if not here.any():
        raise InputError(
            f"None of the {len(here)} genes of the programs (such as {', '.join(frame.genes[:3])}) is among the "
            f"{len(names)} genes of the data (such as {', '.join(names[:3])}). Use data with the same kind of names."
        )
    counts = sparse.csr_matrix(counts)[:, position[here].astype(int).to_numpy()].astype(np.float64)
    basis, offset, theta = frame.basis[here], frame.offset[here], frame.theta[here]
    groups = pd.factorize(np.asarray(batch))[0] if batch is not None else np.zeros(counts.shape[0], dtype=int)
    components = np.zeros((counts.shape[0], basis.shape[1]))
    for group in np.unique(groups):
        rows = groups == group
        own, level = counts[rows], offset
        if adjust:
            for _ in range(3):
                _, expected = _most_likely(own, basis, level, theta)
                shift = np.log((np.asarray(own.sum(axis=0)).ravel() + 1) / (expected + 1))
                level = level + _outside(shift, basis, frame.weight[here])
        components[rows], _ = _most_likely(own, basis, level, theta)
    weighted = np.square(frame.weight[:, None] * (frame.basis @ np.linalg.pinv(frame.transform[1:]).T))
    covered = weighted[here].sum(axis=0) / np.maximum(weighted.sum(axis=0), TINY)
    return Projection(
        scores=pd.DataFrame(
            frame.transform[0] + components @ frame.transform[1:],
            pd.Index(cells if cells is not None else _names(components, "cell"), name="cell"),
            list(frame.programs),
        ),
        missing=frame.genes[~here].tolist(),
        covered=pd.Series(covered, list(frame.programs)),
    )


def _most_likely(
    counts: sparse.csr_matrix, basis: np.ndarray, offset: np.ndarray, theta: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Components of each cell, shape (n_obs, rank), and the expected counts of each gene summed over cells."""
    design = np.hstack([np.ones((len(basis), 1)), basis])
    first, second = np.triu_indices(design.shape[1])
    products = design[:, first] * design[:, second]
    prior = np.ones(design.shape[1])
    prior[0] = 1e-6  # the library size has none, but a cell without counts must have an answer
    found = np.zeros((counts.shape[0], basis.shape[1]))
    expected = np.zeros(len(basis))
    for start in range(0, counts.shape[0], 1000):
        x = counts[start : start + 1000].toarray()
        at = np.zeros((len(x), design.shape[1]))
        at[:, 0] = np.log(np.maximum(x.sum(axis=1), 0.5)) - np.logaddexp.reduce(offset)
        for _ in range(50):
            rate = np.exp(np.minimum(at @ design.T + offset, 50))
            damped = 1 + rate / theta
            gradient = ((x - rate) / damped) @ design - prior * at * (np.arange(design.shape[1]) > 0)
            hessian = np.zeros((len(x), design.shape[1], design.shape[1]))
            hessian[:, first, second] = hessian[:, second, first] = (rate / damped) @ products
            step = np.linalg.solve(hessian + np.diag(prior), gradient[:, :, None])[:, :, 0]
            # Fisher scoring overshoots where the rates grow quickly; a step of one standard deviation never does.
            step /= np.maximum(np.abs(step).max(axis=1, keepdims=True), 1)
            at += step
            if np.abs(step).max() < 1e-5:
                break
        found[start : start + 1000] = at[:, 1:]
        expected += np.exp(np.minimum(at @ design.T + offset, 50)).sum(axis=0)
    return found, expected


def _outside(shift: np.ndarray, basis: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The part of a shift of all genes that neither a library size nor the programs can make."""
    design = np.hstack([np.ones((len(basis), 1)), basis])
    return shift - design @ np.linalg.lstsq(design * weight[:, None], shift * weight, rcond=None)[0]


class Fit(NamedTuple):
    """One fit as the functions above need it."""

    scores: np.ndarray  # as given, shape (n_obs, n_factors)
    mean: np.ndarray  # of the scores over cells, float64, shape (n_factors,)
    loadings: np.ndarray  # float64, shape (n_vars, n_factors)


def _checked(scores: Sequence[Table], loadings: Sequence[Table]) -> list[Fit]:
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
        fits.append(Fit(z, mean, weights))
    return fits


def _names(table: Table, kind: str) -> Sequence[str]:
    return list(table.index) if isinstance(table, pd.DataFrame) else [f"{kind}_{i}" for i in range(len(table))]


def _blocks(n_obs: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, n_obs, BLOCK))


def _inner_products(fits: Sequence[Fit]) -> np.ndarray:
    """Mean over cells of the products of all centred factors of all fits, shape (n_factors, n_factors) of them."""
    width, n_obs = sum(len(fit.mean) for fit in fits), len(fits[0].scores)
    gram = np.zeros((width, width))
    for rows in _blocks(n_obs):
        block = np.hstack([np.asarray(fit.scores[rows], float) - fit.mean for fit in fits])
        gram += block.T @ block
    return gram / n_obs


def _mean_components(
    gram: np.ndarray, fits: Sequence[Fit], which: np.ndarray
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


def _rank(
    given: int | None, reproducible: ReproducibleRank, sizes: np.ndarray, n_factors: int, warnings: list[str]
) -> int:
    """Directions to keep, and what there is to say about their number."""
    largest = int((sizes > SMALLEST_SHARE * sizes.sum()).sum())
    if reproducible.rank is None:
        warnings.append(
            "One fit: how many programs are real, how stable they are and how far each loading is known cannot be told "
            f"from it. Kept are the {largest} directions with at least {SMALLEST_SHARE:.1%} of the contribution. "
            "Fit at least two seeds, better six."
        )
        rank = given or largest
    else:
        rank = given or reproducible.rank
        if reproducible.rank == 0:
            warnings.append(
                "No direction is shared by two halves of the fits: what is shown is not reproducible. Fit more seeds, "
                "or train longer."
            )
        elif reproducible.rank >= n_factors:
            warnings.append(
                f"All {n_factors} factors reproduce, so there may be more programs than factors. Fit with more factors."
            )
    return max(1, min(rank, len(sizes)))


def _members(weighted: np.ndarray, half_width: np.ndarray) -> np.ndarray:
    """1 for genes that a program raises, -1 for those it lowers, else 0; shape (n_vars, n_programs).

    Most genes take no part in a program, so the median absolute deviation measures the noise; a member stands
    four robust standard deviations out, and its interval (where fits allow one) leaves zero out.
    """
    noise = 1.4826 * np.median(np.abs(weighted), axis=0)
    sure = np.nan_to_num(half_width, nan=0.0) < np.abs(weighted)
    return (np.sign(weighted) * (sure & (np.abs(weighted) > 4 * noise))).astype(int)


def _fourth_moments(table: np.ndarray, *, constant: bool) -> np.ndarray:
    """Mean over rows a, weighted by |a|², of a_i a_j a_k a_l / |a|⁴; with `constant` rows start with a 1; (q², q²)."""
    q = table.shape[1] + constant
    first, second = np.triu_indices(q)
    sums = np.zeros((len(first), len(first)))
    for rows in _blocks(len(table)):
        block = table[rows]
        if constant:
            block = np.hstack([np.ones((len(block), 1)), block])
        length = np.linalg.norm(block, axis=1, keepdims=True)
        block = block / np.sqrt(np.where(length > 0, length, 1))
        products = block[:, first] * block[:, second]
        sums += products.T @ products
    position = np.zeros((q, q), dtype=int)
    position[first, second] = position[second, first] = np.arange(len(first))
    diagonal = np.diag(position)
    whole = sums[np.ix_(diagonal, diagonal)].sum()
    return sums[np.ix_(position.ravel(), position.ravel())] / max(whole, TINY)


def _simplest(scores: np.ndarray, loadings: np.ndarray, balance: float, n_starts: int, seed: int) -> np.ndarray:
    """The rotation with the largest fourth powers, shape (q, q).

    The criterion is convex in the rotation, so replacing it by its tangent and going to that one's maximum (the
    polar factor of the gradient) never goes down: the classical algorithm of varimax.
    """
    moments = scores + balance * loadings
    q = round(np.sqrt(len(moments)))
    rng = np.random.default_rng(seed)
    best, best_value = np.eye(q), -np.inf
    for start in range(n_starts):
        rotation = np.eye(q) if start == 0 else np.linalg.qr(rng.normal(size=(q, q)))[0]
        for _ in range(2000):  # some 50 are needed where there is any structure
            squares = (rotation[:, None, :] * rotation[None, :, :]).reshape(q * q, q)
            pulled = moments @ squares
            u, _, vt = np.linalg.svd((pulled.reshape(q, q, q) * rotation[None, :, :]).sum(axis=1))
            change, rotation = np.abs(u @ vt - rotation).max(), u @ vt
            if change < 1e-11:
                break
        value = float((squares * pulled).sum())
        if value > best_value + 1e-12:
            best, best_value = rotation, value
    return best


def _belonging(loadings: np.ndarray, candidate: np.ndarray) -> float:
    """Mean share of the squared loadings of a gene in its largest program, over the genes of a candidate."""
    squares = np.square(loadings)
    total = squares.sum(axis=1)
    share = np.divide(squares.max(axis=1), total, out=np.zeros_like(total), where=total > 0)
    # The cube lets its strongest genes decide, not the noise of the many others.
    weight = np.abs(candidate) ** 3
    return float(np.average(share, weights=weight)) if np.any(weight) else 0.0


def _exclusive(scores: np.ndarray, constant: np.ndarray) -> np.ndarray:
    """Mean share of each program in the squared scores of its own cells, scaled to sum to one; shape (n_programs,)."""
    shares, weights = np.zeros(len(constant)), np.zeros(len(constant))
    for rows in _blocks(len(scores)):
        squares = np.square(scores[rows] * constant)
        weight = np.abs(scores[rows]) ** 3
        shares += (weight * squares / np.maximum(squares.sum(axis=1, keepdims=True), TINY)).sum(axis=0)
        weights += weight.sum(axis=0)
    return shares / np.maximum(weights, TINY)


def _promax(scores: np.ndarray, transform: np.ndarray, power: float) -> np.ndarray:
    """Oblique transform towards the scores raised to `power` (sign kept), shape (q, q), columns of length 1."""
    target = np.zeros((transform.shape[1], transform.shape[1]))
    for rows in _blocks(len(scores)):
        block = transform[0] + scores[rows] @ transform[1:]
        target += block.T @ (np.sign(block) * np.abs(block) ** power)
    return target / np.linalg.norm(target, axis=0)
