"""Rotation of what the fits share to simple structure; sign, order, scale and origin of the programs; their scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy  # imports scipy.optimize when it is first used
from threadpoolctl import threadpool_limits

from ldvae.methods import Sentence
from ldvae.rows import spaced

from .consensus import TINY, Contribution, blocks, unit_columns

# A score agrees with its genes at least this much after `align_scores`.
ALIGNED = 0.9
# Genes on the positive side by which the agreement is judged.
N_JUDGED = 30
# Price of a foreign part in `clean_loadings`: half of this times the square of its coefficient.
RIDGE = 5.0
# Absolute loadings are rounded below this share of their mean, weighted by themselves, so the minimum is easy to find.
ROUNDED = 0.02
PARTS_CELLS = 20_000
# Power of its length by which a cell, and a gene, weighs in the criterion of the rotation.
CELL_WEIGHT, GENE_WEIGHT = 1, 3
# Programs with a smaller share of the contribution are rotated once more, among themselves, and there a gene weighs no
# more than the one of this rank by length.
SMALL_SHARE, HEAVIEST = 0.025, 25
# Mean of a score over its standard deviation above which it is the constant, not a program.
STEADY = 3
# Excess of the squared loadings on one side from which it alone decides the sign: three quarters on one side.
ONE_SIDED = 0.5


class Rotation(NamedTuple):
    """Programs: M = scores @ loadings.T up to a constant per gene, and scores = [1, u] @ transform."""

    scores: np.ndarray  # shape (n_obs, n_programs)
    loadings: np.ndarray  # shape (n_vars, n_programs)
    transform: np.ndarray  # from the constant and the contribution's scores u; shape (1 + rank, n_programs)


class Alignment(NamedTuple):
    """Scores that agree with the genes of their programs."""

    scores: np.ndarray  # shape (n_obs, n_programs)
    transform: np.ndarray  # scores = [1, u] @ transform, u the contribution's scores; shape (1 + rank, n_programs)
    agreement: np.ndarray  # correlation of the score before with the decoded expression of its genes, (n_programs,)


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
    sum_k a_k⁴ / (sum_k a_k²)²: 1 for a row with one entry, 1 / n_programs for one whose entries are all alike. Cells
    weigh by the length of their row, genes by its cube: what a program is, its strongest genes say, and a few extreme
    cells do not. (Plain fourth powers weigh rows by the fourth power of their length, and then one gene that two
    programs share can turn both by 45 degrees; Kaiser's normalization weighs all rows alike, and then noise does.) It
    depends on a table only through fourth moments, so the search costs the same for a thousand and for a million cells.

    Beside large programs, the rows of small ones are short, and the criterion is nearly flat in the planes of two of
    them: a few strong genes of theirs, which differ between sets of fits, then decide on both axes. So programs with
    less than 2.5 % of the contribution each are rotated once more, among themselves: the rows are those of these
    programs alone, and no gene is longer than the 25th.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> weight = gp.information(mean, truth.theta)
    >>> weighted = [gp.gauge(table, mean).mul(weight, axis=0) for table in loadings]
    >>> shared = gp.consensus(scores, weighted, n_components=4)
    >>> gp.rotate(shared, rank=4, intercept=False).loadings.shape
    (100, 4)
    """
    scores, loadings = contribution.scores[:, :rank], contribution.loadings[:, :rank]
    if intercept and rank > 1:  # one direction has two ends but is one program
        loadings = np.hstack([np.zeros((len(loadings), 1)), loadings])
    else:
        intercept = False
    moments = _fourth_moments(scores, constant=intercept, weight=CELL_WEIGHT)
    of_genes = _fourth_moments(loadings, constant=False, weight=GENE_WEIGHT)
    rotation = _simplest(moments, of_genes, balance, n_starts, seed)
    rotation = _among_small(scores, loadings, rotation, intercept, balance)
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

    Examples
    --------
    Continues the example of `find_programs`.

    >>> weight = gp.information(mean, truth.theta)
    >>> weighted = [gp.gauge(table, mean).mul(weight, axis=0) for table in loadings]
    >>> rotation = gp.rotate(gp.consensus(scores, weighted, n_components=4), rank=4)
    >>> rotation.loadings.shape[1] - gp.drop_baseline(rotation).loadings.shape[1] in (0, 1)
    True
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
    if steadiness.max() > STEADY:  # scores that hardly vary are the constant itself
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
    contributes most to M comes first. The positive side is the heavier side of the weighted loadings, where it holds
    three quarters of the sum of squares. Otherwise the sign is that of a sum: the excess of one side in the sum of
    squares (-1 to 1), a quarter of the skewness of the scores, and their mean over their standard deviation, where the
    last two count for no more than 0.5 each.

    Parameters
    ----------
    rotation
        From `rotate`.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> weight = gp.information(mean, truth.theta)
    >>> weighted = [gp.gauge(table, mean).mul(weight, axis=0) for table in loadings]
    >>> rotation = gp.rotate(gp.consensus(scores, weighted, n_components=4), rank=4, intercept=False)
    >>> gp.orient(rotation).scores.std(axis=0).round(6).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    scores, loadings, transform = rotation
    scale = np.linalg.norm(transform[1:], axis=0)  # the components have unit variance and do not correlate
    scale = np.where(scale > 0, scale, 1.0)
    total = np.square(loadings).sum(axis=0)
    heavier = np.divide((np.sign(loadings) * np.square(loadings)).sum(axis=0), total, out=total * 0, where=total > 0)
    cubes = np.zeros(len(scale))
    for rows in blocks(len(scores)):
        cubes += ((scores[rows] - transform[0]) ** 3).sum(axis=0)
    skewness = cubes / len(scores) / scale**3
    evidence = heavier + np.clip(skewness / 4, -0.5, 0.5) + np.clip(transform[0] / scale, -0.5, 0.5)
    evidence = np.where(np.abs(heavier) > ONE_SIDED, heavier, evidence)
    factor = np.where(evidence >= 0, 1.0, -1.0) / scale
    scores, loadings, transform = scores * factor, loadings / factor, transform * factor
    order = np.argsort(-np.square(loadings).sum(axis=0), kind="stable")
    return Rotation(scores[:, order], loadings[:, order], transform[:, order])


def clean_loadings(rotation: Rotation, *, ridge: float = RIDGE) -> Rotation:
    """Free the loadings of each program of those of the others, where that hardly changes a score.

    Parameters
    ----------
    rotation
        Programs with scores of unit variance (`orient`).
    ridge
        Price of what is taken away; infinite: nothing is.

    Returns
    -------
    Rotation
        The same contribution M. The scale of the scores is no longer one: `orient` again.

    Notes
    -----
    The scores of a rotation hardly correlate. Where programs do occur together, or exclude each other, the loadings pay
    for it: a small program carries some of a large one, which beside its own genes can be most of it. With l_k the
    loadings of program k, the coefficients c minimize::

        |l_k + sum_j c_j l_j|_1 / |l_k|_1 + ridge / 2 sum_j c_j²,

    each program by itself; this is convex, so there is one answer. The first term is a median regression: it takes
    away what most genes of another program have in common with this one, and leaves a few shared genes alone. In return
    the score of program j loses c_j times that of program k, which is what the second term limits. To take a large
    program out of a small one needs a small c, so the scores stay; to take a program out of its equal costs more
    than it gains.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> weight = gp.information(mean, truth.theta)
    >>> weighted = [gp.gauge(table, mean).mul(weight, axis=0) for table in loadings]
    >>> shared = gp.consensus(scores, weighted, n_components=4)
    >>> before = gp.orient(gp.rotate(shared, rank=4, intercept=False))
    >>> after = gp.clean_loadings(before)
    >>> np.allclose(after.scores @ after.loadings.T, before.scores @ before.loadings.T)
    True
    >>> bool((np.abs(after.loadings).sum(axis=0) <= np.abs(before.loadings).sum(axis=0)).all())
    True
    """
    scores, loadings, transform = rotation
    q = loadings.shape[1]
    mixing = np.eye(q)
    # The Gram matrices are small: threads wait for each other longer than they compute.
    with threadpool_limits(1, user_api="blas"):
        for k in range(q):
            others = np.arange(q) != k
            mixing[others, k] = _foreign(loadings[:, k], loadings[:, others], ridge)
    back = np.linalg.inv(mixing).T
    return Rotation(scores @ back, loadings @ mixing, transform @ back)


def parts(contribution: Contribution, rotation: Rotation, *, keep: float = 0.1) -> Rotation:
    """Turn programs into parts: mostly positive, sparse scores times sparse loadings, as NMF has them.

    Parameters
    ----------
    contribution
        The consensus, cut to the rank of the rotation.
    rotation
        Where to start, from `rotate` or `drop_baseline`.
    keep
        Price of leaving the start.

    Notes
    -----
    The transform minimizes, over the scores s_k (second moment 1) and the loadings l_k of all programs,

        sum_k h(s_k) n(l_k) + keep J / q sum_k (1 - r_k),

    where h is the mean of the absolute scores, negative ones counted three times, n the mean of the absolute loadings,
    J the first sum at the start and r_k the correlation with the start about zero. At most 20,000 cells, evenly
    spaced, are looked at. A program that cells of all types have can come apart by type: that costs this criterion
    nothing.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> weight = gp.information(mean, truth.theta)
    >>> weighted = [gp.gauge(table, mean).mul(weight, axis=0) for table in loadings]
    >>> shared = gp.consensus(scores, weighted, n_components=4)
    >>> start = gp.rotate(shared, rank=4, intercept=False)
    >>> found = gp.parts(shared, start)
    >>> change = found.scores @ found.loadings.T - start.scores @ start.loadings.T
    >>> bool(np.abs(change - change.mean(axis=0)).max() < 1e-6)
    True
    """
    rank, q = len(rotation.transform) - 1, rotation.transform.shape[1]
    free = slice(0, None) if q > rank else slice(1, None)  # the rows of the transform that the loadings depend on
    rows = spaced(len(contribution.scores), PARTS_CELLS)
    cells = np.hstack([np.ones((len(rows), 1)), contribution.scores[rows, :rank]])
    genes = np.hstack([np.zeros((len(contribution.loadings), 1)), contribution.loadings[:, :rank]])[:, free]
    middle = cells @ rotation.transform  # signs by the mean, or where it is next to nothing by the skew
    sign = np.where(middle.mean(axis=0) + 0.01 * (middle**3).mean(axis=0) >= 0, 1.0, -1.0)
    start = sign * rotation.transform / np.linalg.norm(rotation.transform, axis=0)
    rounded = ROUNDED * np.abs(genes @ np.linalg.inv(start[free]).T).mean()

    def products(transform: np.ndarray) -> tuple[float, np.ndarray]:
        scores = cells @ transform
        size = np.hypot(scores, ROUNDED)
        inverse = np.linalg.inv(transform[free])
        loadings = genes @ inverse.T
        length = np.hypot(loadings, rounded)
        h, n = (2 * size - scores).mean(axis=0), length.mean(axis=0)
        gradient = cells.T @ (2 * scores / size - 1) / len(cells) * n
        gradient[free] -= inverse.T @ ((loadings / length * h / len(loadings)).T @ loadings)
        return float(h @ n), gradient

    scale = products(start)[0]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        given = flat.reshape(start.shape)
        lengths = np.linalg.norm(given, axis=0)
        transform = given / lengths
        value, gradient = products(transform)
        like = (transform * start).sum(axis=0)
        gradient = gradient / scale - keep / q * start
        gradient = (gradient - transform * (gradient * transform).sum(axis=0)) / lengths
        return value / scale + keep * float(np.mean(1 - like)), gradient.ravel()

    with threadpool_limits(1, user_api="blas"):
        best = scipy.optimize.minimize(objective, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    transform = best.x.reshape(start.shape)
    transform = transform / np.linalg.norm(transform, axis=0)
    scores = transform[0] + contribution.scores[:, :rank] @ transform[1:]
    return Rotation(scores, genes @ np.linalg.inv(transform[free]).T, transform)


def align_scores(contribution: Contribution, rotation: Rotation) -> Alignment:
    """Turn each score towards the expression of its program's genes until both agree; the loadings stay.

    Parameters
    ----------
    contribution
        The consensus, cut to the rank of the rotation.
    rotation
        Oriented programs (`orient`): scores of unit variance.

    Notes
    -----
    Scores of a rotation hardly correlate. Where one direction carries most of the contribution, a score that leans on
    it by 0.2 takes along loadings as large as those of a small program, and can be high in cells where the
    program's genes are low. The weighted expression of the 30 heaviest positive genes, decoded from the
    contribution M, lies along m in the space of the components; the score along t. Their cosine is the agreement.
    Below 0.9, t is replaced by the unit vector in the plane of both whose cosine with m is 0.9. This is linear in the
    components, so scores of other cells follow (`project`). M = scores @ loadings.T holds for the scores of the
    rotation only.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> weight = gp.information(mean, truth.theta)
    >>> weighted = [gp.gauge(table, mean).mul(weight, axis=0) for table in loadings]
    >>> shared = gp.consensus(scores, weighted, n_components=4)
    >>> oriented = gp.orient(gp.rotate(shared, rank=4, intercept=False))
    >>> gp.align_scores(shared, oriented).agreement.shape
    (4,)
    """
    directions = rotation.transform[1:]
    lengths = np.linalg.norm(directions, axis=0)
    t = directions / np.where(lengths > 0, lengths, 1.0)
    weight = np.maximum(rotation.loadings, 0)
    if len(weight) > N_JUDGED:
        weight = np.where(weight >= np.sort(weight, axis=0)[-N_JUDGED], weight, 0)
    m = unit_columns(contribution.loadings[:, : len(t)].T @ weight)
    agreement = np.clip((t * m).sum(axis=0), -1, 1)
    across = t - agreement * m
    size = np.linalg.norm(across, axis=0)
    turned = ALIGNED * m + np.sqrt(1 - ALIGNED**2) * across / np.maximum(size, TINY)
    # An exactly opposite score leaves no plane to turn in: its genes alone tell the direction.
    turned = np.where(size > 1e-9, turned, m)
    transform = np.vstack([rotation.transform[:1], np.where(agreement < ALIGNED, turned * lengths, directions)])
    scores = rotation.scores.copy()
    for k in np.flatnonzero(agreement < ALIGNED):
        for rows in blocks(len(scores)):
            scores[rows, k] = transform[0, k] + contribution.scores[rows, : len(t)] @ transform[1:, k]
    return Alignment(scores, transform, agreement)


def _fourth_moments(table: np.ndarray, *, constant: bool, weight: float, axes: np.ndarray | None = None) -> np.ndarray:
    """Mean over rows a, weighted by |a|^weight, of a_i a_j a_k a_l / |a|⁴, (q², q²); `constant`: rows start with 1.

    `axes`: the rows are a @ axes, shape (columns of the table and the constant, q).
    """
    q = table.shape[1] + constant if axes is None else axes.shape[1]
    first, second = np.triu_indices(q)
    sums = np.zeros((len(first), len(first)))
    for rows in blocks(len(table)):
        block = table[rows]
        if constant:
            block = np.hstack([np.ones((len(block), 1)), block])
        if axes is not None:
            block = block @ axes
        length = np.linalg.norm(block, axis=1, keepdims=True)
        block = block / np.where(length > 0, length, 1) ** (1 - weight / 4)
        products = block[:, first] * block[:, second]
        sums += products.T @ products
    position = np.zeros((q, q), dtype=int)
    position[first, second] = position[second, first] = np.arange(len(first))
    diagonal = np.diag(position)
    whole = sums[np.ix_(diagonal, diagonal)].sum()
    return sums[np.ix_(position.ravel(), position.ravel())] / max(whole, TINY)


def _simplest(scores: np.ndarray, loadings: np.ndarray, balance: float, n_starts: int, seed: int) -> np.ndarray:
    """The rotation with the largest fourth powers, shape (q, q).

    Most starts end at the same maximum and spend nearly all of their steps on its last digits: each is followed until
    it hardly moves, the best few further, and only the best of these to the end.
    """
    moments = scores + balance * loadings
    q = round(np.sqrt(len(moments)))
    rng = np.random.default_rng(seed)
    starts = [np.eye(q) if start == 0 else np.linalg.qr(rng.normal(size=(q, q)))[0] for start in range(n_starts)]
    # Thousands of products of small matrices: threads wait for each other longer than they compute.
    with threadpool_limits(1, user_api="blas"):
        for followed, tolerance in ((n_starts, 1e-3), (3, 1e-6), (1, 1e-11)):
            ends = [_climb(moments, rotation, tolerance) for rotation in starts[:followed]]
            # The first of those that are the same to rounding, whatever the last digits of this machine's library.
            starts = [rotation for _, rotation in sorted(ends, key=lambda end: -round(end[0], 12))]
    return starts[0]


def _among_small(
    scores: np.ndarray, loadings: np.ndarray, rotation: np.ndarray, intercept: bool, balance: float
) -> np.ndarray:
    """The rotation with the axes of all small programs turned among themselves, where there are two or more."""
    rotated = loadings @ rotation
    squares = np.square(rotated).sum(axis=0)
    small = squares < SMALL_SHARE * squares.sum()
    if intercept:  # an axis whose scores hardly vary is the constant itself, not a program
        small &= np.abs(rotation[0]) < STEADY * np.linalg.norm(rotation[1:], axis=0)
    small = np.flatnonzero(small)
    if len(small) < 2:
        return rotation
    axes, genes = rotation[:, small], rotated[:, small]
    length = np.linalg.norm(genes, axis=1, keepdims=True)
    longest = np.sort(length, axis=0)[-min(HEAVIEST, len(length))]
    genes = genes * np.minimum(1, longest / np.maximum(length, TINY))
    moments = _fourth_moments(scores, constant=intercept, weight=CELL_WEIGHT, axes=axes)
    moments = moments + balance * _fourth_moments(genes, constant=False, weight=GENE_WEIGHT)
    with threadpool_limits(1, user_api="blas"):
        turn = _climb(moments, np.eye(len(small)), 1e-11)[1]
    rotation = rotation.copy()
    rotation[:, small] = axes @ turn
    return rotation


def _climb(moments: np.ndarray, rotation: np.ndarray, tolerance: float) -> tuple[float, np.ndarray]:
    """Go up from a rotation until no entry changes by more than the tolerance; the criterion there, and the rotation.

    The criterion is convex in the rotation, so replacing it by its tangent and going to that one's maximum (the
    polar factor of the gradient) never goes down: the classical algorithm of varimax.
    """
    q, value = len(rotation), -np.inf
    for _ in range(2000):
        squares = (rotation[:, None, :] * rotation[None, :, :]).reshape(q * q, q)
        pulled = moments @ squares
        value = float((squares * pulled).sum())
        u, _, vt = np.linalg.svd((pulled.reshape(q, q, q) * rotation[None, :, :]).sum(axis=1))
        change, rotation = np.abs(u @ vt - rotation).max(), u @ vt
        if change < tolerance:
            break
    return value, rotation


def _foreign(own: np.ndarray, others: np.ndarray, ridge: float) -> np.ndarray:
    """Coefficients of the other programs that make the absolute loadings of one smallest, shape (n_others,).

    Each step is a regression with weights 1 / |residual|, which never goes up (majorization).
    """
    total = np.abs(own).sum()
    coefficients = np.zeros(others.shape[1])
    if total <= TINY or not len(coefficients):
        return coefficients
    rounded = ROUNDED * np.square(own).sum() / total
    penalty = ridge * total * np.eye(len(coefficients))
    for _ in range(200):  # some 20 are needed
        weight = 1 / np.hypot(own + others @ coefficients, rounded)
        pulled = (others * weight[:, None]).T
        before, coefficients = coefficients, -np.linalg.solve(pulled @ others + penalty, pulled @ own)
        if np.abs(coefficients - before).max() < 1e-5:
            break
    return coefficients


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
    for rows in blocks(len(scores)):
        squares = np.square(scores[rows] * constant)
        weight = np.abs(scores[rows]) ** 3
        shares += (weight * squares / np.maximum(squares.sum(axis=1, keepdims=True), TINY)).sum(axis=0)
        weights += weight.sum(axis=0)
    return shares / np.maximum(weights, TINY)


def _promax(scores: np.ndarray, transform: np.ndarray, power: float) -> np.ndarray:
    """Oblique transform towards the scores raised to `power` (sign kept), shape (q, q), columns of length 1."""
    target = np.zeros((transform.shape[1], transform.shape[1]))
    for rows in blocks(len(scores)):
        block = transform[0] + scores[rows] @ transform[1:]
        target += block.T @ (np.sign(block) * np.abs(block) ** power)
    return target / np.linalg.norm(target, axis=0)


REFERENCES = {
    "varimax": "Rohe K, Zeng M. Vintage factor analysis with varimax performs statistical inference. Journal of the "
    "Royal Statistical Society B 85, 1037–1060 (2023). doi:10.1093/jrsssb/qkad029",
    "promax": "Hendrickson AE, White PO. Promax: a quick method for rotation to oblique simple structure. British "
    "Journal of Statistical Psychology 17, 65–70 (1964).",
}


def methods(settings: Mapping[str, Any]) -> Sentence:
    """What the rotation of the programs maximized, with the options that ran."""
    balance, power = settings.get("balance"), settings.get("power")
    of = "the scores" if balance == 0 else "the scores and the loadings"
    text = (
        "the sum over factors of fourth powers, relative to the fourth power of the length of a row (cells weighted by "
        f"the length to the power of {CELL_WEIGHT}, genes of {GENE_WEIGHT}), was maximized over {of}"
    )
    if balance:
        text += f" (weight of the loadings {balance:g})"
    text += (
        f", a criterion of the family of varimax [@varimax]; programs with less than {SMALL_SHARE:.1%} of the "
        f"contribution were rotated once more among themselves, no gene weighing more than their {HEAVIEST}th heaviest"
    )
    if power is not None and power > 1:
        text += f"; a promax rotation of power {power:g} [@promax] followed"
    elif power is not None:
        text += "; no oblique rotation followed"
    if settings.get("rotation") == "clean":
        text += (
            "; small multiples of the other programs were then subtracted from the loadings of each program, by an L1 "
            "regression with a ridge penalty, and the scores changed accordingly"
        )
    if settings.get("rotation") == "parts":
        text += (
            "; from there the sum over programs of mean absolute score (three times for negative scores) times mean "
            "absolute loading was minimized"
        )
    return Sentence(text, REFERENCES)
