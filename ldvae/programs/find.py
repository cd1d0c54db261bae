"""From fits to gene programs: all steps in their order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ldvae.config import RotationConfig
from ldvae.errors import InputError
from ldvae.methods import Sentence
from ldvae.rows import spaced

from .consensus import (
    SELECT,
    Contribution,
    ReproducibleRank,
    Table,
    consensus,
    gauge,
    information,
    reproducible_rank,
    unit_columns,
)
from .rotation import ALIGNED, N_JUDGED, Rotation, align_scores, clean_loadings, drop_baseline, orient, parts, rotate
from .rotation import methods as methods_of_rotation
from .stability import members_of, stability

# Below this many nats per cell (the information-weighted square of the contribution) there is nothing to rotate.
COLLAPSED = 1e-3
# A direction or program with a smaller share of the contribution is next to noise.
SMALLEST_SHARE = 0.005
# Agreement of a score with its genes below which a program is shown with a warning.
DISAGREES = 0.5
# Share of the pairs of halves of the fits that agree on a settled program.
SETTLED = 0.9
# Cells (evenly spaced) whose scores on all components are kept, for comparing datasets.
SAMPLED_CELLS = 1000
# Choices of half of the fits that are tried, the cells (evenly spaced) they are rotated on, and the starts of that.
N_CHOICES, SETTLED_CELLS, SETTLED_STARTS = 10, 20_000, 8
SIDES = {"positive": 1, "negative": -1}


@dataclass(frozen=True, kw_only=True)
class Programs:
    """Gene programs of a set of fits, as tables; programs are called P1, P2, …, the largest first."""

    loadings: pd.DataFrame  # genes by programs: log fold change per standard deviation of the score
    weighted: pd.DataFrame  # genes by programs: loading × root of the information, by which genes are ranked
    lower: pd.DataFrame  # genes by programs: 95 % interval of the loading over fits; nan with one fit
    upper: pd.DataFrame
    members: pd.DataFrame  # genes by programs: 1 where the program raises the gene, -1 where it lowers it, else 0
    scores: pd.DataFrame  # cells by programs: unit variance, agreeing with the genes of their programs
    table: pd.DataFrame  # programs by share, agreement, settled, stability, stability_min, n_runs, n_runs_found, …
    cosines: pd.DataFrame  # programs by fits
    rank: int
    correlations: pd.DataFrame  # of `ReproducibleRank`
    basis: pd.DataFrame  # genes by components: change of the log rate per unit of a component
    transform: np.ndarray  # scores = [1, component scores] @ transform; shape (1 + rank, n_programs)
    joint: np.ndarray  # the same for the scores s of the rotation, with which s @ weighted.T is what the fits share
    intercept: bool  # there is one program more than directions; effects are relative to the mean cell
    warnings: list[str]
    # For `meta_programs`: other datasets can confirm a direction that the fits of this one alone do not settle.
    directions: pd.DataFrame = field(default_factory=pd.DataFrame)  # `basis` with the components beyond the rank
    sampled: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))  # scores on them of at most 1,000 cells


def find_programs(
    scores: Sequence[Table],
    loadings: Sequence[Table],
    *,
    mean: ArrayLike,
    theta: ArrayLike | None = None,
    cells: Sequence[str] | None = None,
    genes: Sequence[str] | None = None,
    runs: Sequence[str] | None = None,
    config: RotationConfig | None = None,
    rank: int | None = None,
    threshold: float = SELECT.threshold,
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
        Directions that reproduce, if known (`reproducible_rank`); not given: found here. `config.rank` goes before it.
    threshold
        What counts as reproduced (`SelectConfig.threshold`): the correlation of two halves of the fits that keeps a
        direction, and the cosine above which a program is found again in a fit or in half of them.

    Returns
    -------
    Programs
        With one fit the same without averaging; `warnings` says what cannot be known from it.

    Examples
    --------
    Three fits of the same cells, here made by adding noise to the truth:

    >>> import numpy as np
    >>> from ldvae import programs as gp
    >>> from ldvae.simulate import simulate
    >>> truth = simulate(n_obs=300, n_vars=100, n_identity=2, n_activity=2, n_up=10, n_down=5)
    >>> rng = np.random.default_rng(0)
    >>> scores = [truth.scores + rng.normal(0, 0.1, truth.scores.shape) for _ in range(3)]
    >>> loadings = [truth.loadings for _ in range(3)]
    >>> mean = truth.mean_expression * 2000  # counts in a cell
    >>> programs = gp.find_programs(scores, loadings, mean=mean, theta=truth.theta)
    >>> programs.rank
    4
    >>> bool((programs.table["stability"] > 0.9).all())
    True
    """
    config = config or RotationConfig()
    genes = pd.Index(genes if genes is not None else names_of(loadings[0], "gene"), name="gene")
    cells = pd.Index(cells if cells is not None else names_of(scores[0], "cell"), name="cell")
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
    if rank is None:
        reproducible = reproducible_rank(scores, weighted, threshold=threshold)
    else:
        reproducible = ReproducibleRank(rank, pd.DataFrame(columns=["correlation", "lower", "upper"], dtype=float))
    rank = _rank(config.rank, reproducible, sizes, most, warnings)
    contribution = Contribution(whole.scores[:, :rank], whole.loadings[:, :rank])
    rotation = rotated(contribution, rank, config)
    aligned = align_scores(contribution, rotation)
    stable = stability(contribution, rotation, scores, weighted)

    names = [f"P{k + 1}" for k in range(rotation.scores.shape[1])]

    def per_gene(values: np.ndarray, columns: Sequence[str]) -> pd.DataFrame:
        # A gene without counts holds no information: nothing is known of its loading.
        known = np.divide(values, weight[:, None], out=np.zeros_like(values), where=weight[:, None] > 0)
        return pd.DataFrame(known, genes, columns)

    cosines = pd.DataFrame(stable.cosines, pd.Index(names, name="program"), runs)
    members = members_of(rotation.loadings, stable.half_width)
    table = pd.DataFrame(
        {
            "share": np.square(rotation.loadings).sum(axis=0) / sizes.sum(),
            "agreement": aligned.agreement,
            "settled": _settled(scores, weighted, rotation, rank, config, threshold),
            "stability": cosines.mean(axis=1) if len(runs) > 1 else np.nan,
            "stability_min": cosines.min(axis=1) if len(runs) > 1 else np.nan,
            "n_runs": len(runs),
            "n_runs_found": (cosines > threshold).sum(axis=1),
            "n_genes_positive": (members > 0).sum(axis=0),
            "n_genes_negative": (members < 0).sum(axis=0),
        },
        index=cosines.index,
    )
    warnings += _doubts(table)
    return Programs(
        loadings=per_gene(rotation.loadings, names),
        weighted=pd.DataFrame(rotation.loadings, genes, names),
        lower=per_gene(rotation.loadings - stable.half_width, names),
        upper=per_gene(rotation.loadings + stable.half_width, names),
        members=pd.DataFrame(members, genes, names),
        scores=pd.DataFrame(aligned.scores, cells, names),
        table=table,
        cosines=cosines,
        rank=rank,
        correlations=reproducible.correlations,
        basis=per_gene(contribution.loadings, [f"U{k + 1}" for k in range(rank)]),
        transform=aligned.transform,
        joint=rotation.transform,
        intercept=bool(rotation.transform.shape[0] == rotation.transform.shape[1]),
        warnings=warnings,
        directions=per_gene(whole.loadings, [f"U{k + 1}" for k in range(whole.loadings.shape[1])]),
        sampled=whole.scores[spaced(len(whole.scores), SAMPLED_CELLS)],
    )


def names_of(table: Table, kind: str) -> Sequence[str]:
    return list(table.index) if isinstance(table, pd.DataFrame) else [f"{kind}_{i}" for i in range(len(table))]


def rotated(contribution: Contribution, rank: int, config: RotationConfig) -> Rotation:
    """Programs of a contribution, oriented."""
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
    if config.rotation == "parts":
        return orient(parts(contribution, rotation))
    return orient(clean_loadings(orient(rotation))) if config.rotation == "clean" else orient(rotation)


def _settled(
    scores: Sequence[Table],
    weighted: Sequence[Table],
    rotation: Rotation,
    rank: int,
    config: RotationConfig,
    threshold: float,
) -> np.ndarray:
    """How likely another set of as many fits has each program, shape (n_programs,); nan with one fit.

    Random halves of the fits, each with a number of directions of its own (`_ranks`), stand for other sets: the share
    of pairs of halves in which both have the program and agree on it. A half against the whole alone would look too
    alike, as it is a part of it. Two halves of h and k fits, o of them common, differ by 1 / h + 1 / k - 2 o / (h k)
    times the noise of a fit, two sets of m fits by 2 / m: the odds c / (1 - c) of their cosines are converted by that
    ratio.
    """
    n_fits, n_programs = len(scores), rotation.loadings.shape[1]
    if n_fits < 2:
        return np.full(n_programs, np.nan)
    choices = _choices(n_fits, np.random.default_rng(config.seed))
    rows = spaced(len(scores[0]), SETTLED_CELLS)
    parts = [np.asarray(table)[rows] for table in scores]
    fewer = config.model_copy(update={"n_starts": min(config.n_starts, SETTLED_STARTS)})
    whole = unit_columns(rotation.loadings)
    found, present = [], []
    ranks = [rank] * len(choices) if config.rank else _ranks(parts, weighted, choices, rank, threshold)
    for choice, own_rank in zip(choices, ranks, strict=True):
        shared = consensus([parts[i] for i in choice], [weighted[i] for i in choice], own_rank)
        other = unit_columns(rotated(shared, shared.loadings.shape[1], fewer).loadings)
        cosines = whole.T @ other
        best = np.abs(cosines).argmax(axis=1)
        own_cosine = cosines[np.arange(n_programs), best]
        found.append(other[:, best] * np.where(own_cosine < 0, -1.0, 1.0))
        present.append(np.abs(own_cosine) > threshold)
    again, pairs = np.zeros(n_programs), 0
    for first, second in combinations(range(len(choices)), 2):
        sizes, both = [len(choices[i]) for i in (first, second)], len(np.intersect1d(choices[first], choices[second]))
        noise = n_fits / 2 * (1 / sizes[0] + 1 / sizes[1] - 2 * both / (sizes[0] * sizes[1]))
        cosine = np.clip((found[first] * found[second]).sum(axis=0), 0, 1)
        alike = cosine * noise > threshold * (1 - cosine + cosine * noise)
        again += alike & present[first] & present[second]
        pairs += 1
    return again / pairs


def _choices(n_fits: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Random halves of the fits, all different; of an odd number, one more and one less than half take turns."""
    sizes = sorted({n_fits // 2, (n_fits + 1) // 2})
    choices: list[np.ndarray] = []
    for size in sizes:
        wanted = N_CHOICES // len(sizes)
        if comb(n_fits, size) <= 1000:
            every = np.array(list(combinations(range(n_fits), size)))
            choices += list(every[rng.permutation(len(every))[:wanted]])
        else:
            choices += [np.sort(rng.permutation(n_fits)[:size]) for _ in range(wanted)]
    return choices


def _ranks(
    scores: Sequence[Table], weighted: Sequence[Table], choices: Sequence[np.ndarray], rank: int, threshold: float
) -> list[int]:
    """How many directions other sets of as many fits may read off: as the choices do, without what halving costs.

    The log odds of the correlations of each choice are those of all fits, plus what this choice differs by from the
    mean of its size. Of fewer than three fits there is one split, which says too little: such a choice takes `rank`.
    """

    def log_odds(which: Iterable[int]) -> np.ndarray:
        fits = list(which)
        found = reproducible_rank([scores[i] for i in fits], [weighted[i] for i in fits], threshold=threshold)
        correlation = np.clip(found.correlations["correlation"].to_numpy(), 1e-6, 1 - 1e-6)
        return np.log(correlation / (1 - correlation))

    def read(curve: np.ndarray) -> int:
        below = np.flatnonzero(curve <= limit)
        return int(below[0]) if len(below) else len(curve)

    limit = np.log(threshold / (1 - threshold)) if threshold < 1 else np.inf
    whole = log_odds(range(len(scores)))
    own = {number: log_odds(choice) for number, choice in enumerate(choices) if len(choice) > 2}
    mean = {
        size: np.mean([curve for number, curve in own.items() if len(choices[number]) == size], axis=0)
        for size in {len(choices[number]) for number in own}
    }
    ranks = [rank] * len(choices)
    for number, curve in own.items():
        ranks[number] = max(1, rank + read(whole + curve - mean[len(choices[number])]) - read(whole))
    return ranks


def _doubts(table: pd.DataFrame) -> list[str]:
    """Warnings about programs whose score contradicts their genes, or that depend on the choice of fits."""
    doubts = []
    contradicting = table.index[table["agreement"] < DISAGREES]
    if len(contradicting):
        whose = "the program's" if len(contradicting) == 1 else "the programs'"
        doubts.append(
            f"{', '.join(contradicting)}: the cells' scores and {whose} own genes disagreed (agreement below "
            f"{DISAGREES:g}); the scores shown were turned towards the genes. Read the genes with caution: some may "
            "belong to a larger program."
        )
    unsettled = table.index[table["settled"] < SETTLED]
    if len(unsettled):
        them = "it" if len(unsettled) == 1 else "them"
        doubts.append(
            f"{', '.join(unsettled)}: fewer than {SETTLED:.0%} of the pairs of halves of the fits agree on {them}, so "
            f"other seeds may not find {them} (not settled). Fit more seeds before building on {them}."
        )
    return doubts


def _rank(
    wanted: int | None, reproducible: ReproducibleRank, sizes: np.ndarray, n_factors: int, warnings: list[str]
) -> int:
    """Directions to keep, and what there is to say about their number."""
    largest = int((sizes > SMALLEST_SHARE * sizes.sum()).sum())
    if reproducible.rank is None:
        warnings.append(
            "One fit: how many programs are real, how stable they are and how far each loading is known cannot be told "
            f"from it. Kept are the {largest} directions with at least {SMALLEST_SHARE:.1%} of the contribution. "
            "Fit at least three seeds, better five."
        )
    elif reproducible.rank == 0:
        warnings.append(
            "No direction is shared by two halves of the fits: what is shown is not reproducible. Fit more seeds, "
            "or train longer."
        )
    elif reproducible.rank >= n_factors:
        warnings.append(
            f"All {n_factors} factors reproduce, so there may be more programs than factors. Fit with more factors."
        )
    rank = wanted or (largest if reproducible.rank is None else reproducible.rank)
    return max(1, min(rank, len(sizes)))


def top_genes(programs: Programs, n_top: int = 30) -> pd.DataFrame:
    """List the genes of both sides of each program, ranked by loading × root of the information.

    By the loading alone rare genes would come first, whose loadings are mostly noise.

    Parameters
    ----------
    programs
        From `find_programs`.
    n_top
        Genes of each side.

    Returns
    -------
    DataFrame
        Columns program, side, rank, gene, loading, lower, upper, weighted.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> gp.top_genes(programs, n_top=2).query("program == 'P1'")[["side", "rank"]].to_numpy().tolist()
    [['positive', 1], ['positive', 2], ['negative', 1], ['negative', 2]]
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

    Parameters
    ----------
    programs
        From `find_programs`.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> sets = gp.gene_sets(programs)
    >>> sorted(sets)[:2]
    ['P1_negative', 'P1_positive']
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

    Parameters
    ----------
    programs
        From `find_programs`.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> gp.split_sides(programs).shape
    (8, 100)
    """
    sides = {}
    for name, weighted in programs.weighted.items():
        sides[f"{name}_pos"], sides[f"{name}_neg"] = weighted.clip(lower=0), (-weighted).clip(lower=0)
    return pd.DataFrame(sides).T


REFERENCES = {
    "cnmf": "Kotliar D, Veres A, Nagy MA, et al. Identifying gene expression programs of cell-type identity and "
    "cellular activity with single-cell RNA-seq. eLife 8, e43803 (2019). doi:10.7554/eLife.43803",
}


def methods(summary: Mapping[str, Any], n_programs: int) -> Iterator[Sentence]:
    """Sentences of the methods section on the consensus and its rotation, from programs/summary.json."""
    n_runs = len(summary["runs"])
    if n_runs > 1:
        yield Sentence(
            "Factors differ between seeds, so gene programs were made by consensus (compare [@cnmf]).", REFERENCES
        )
    rotated = methods_of_rotation(summary.get("settings", {}))
    averaged = f"averaged over {n_runs} runs with different seeds, " if n_runs > 1 else ""
    yield Sentence(
        "Loadings were centered under the mean expression and weighted by the root of their Fisher information; their "
        "products with the centered scores, which no rotation of the factors changes, were "
        f"{averaged}cut to rank {summary.get('rank', n_programs)} and rotated to simple structure: {rotated.text}. "
        f"This gave {n_programs} program{'s' if n_programs != 1 else ''}"
        f"{', an intercept included' if summary.get('intercept') else ''}.",
        rotated.references,
    )
    yield Sentence(
        "A score has unit variance; a loading is the log fold change per standard deviation of the score. Genes are "
        "ranked by loading times root information. A score whose correlation with the decoded expression of the "
        "heaviest "
        f"{N_JUDGED} genes of its program was below {ALIGNED:g} was rotated towards them."
    )
