"""How well the fits agree on each program, and which genes belong to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy  # imports scipy.stats when it is first used: a second and 45 MB that a training need not have

from .consensus import Contribution, Table, blocks, checked_fits
from .rotation import Rotation

# Effect of a member, relative to the mean of the ten heaviest genes; and the most members of a program.
MEMBER_EFFECT, MOST_MEMBERS = 0.25, 300


class Stability(NamedTuple):
    """Each fit's own version of the programs."""

    cosines: np.ndarray  # to the consensus, shape (n_programs, n_fits)
    mean: np.ndarray  # mean loadings over fits, shape (n_vars, n_programs)
    half_width: np.ndarray  # of the 95 % interval of that mean; nan with one fit; shape (n_vars, n_programs)


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

    Examples
    --------
    Continues the example of `find_programs`.

    >>> weight = gp.information(mean, truth.theta)
    >>> weighted = [gp.gauge(table, mean).mul(weight, axis=0) for table in loadings]
    >>> shared = gp.consensus(scores, weighted, n_components=4)
    >>> rotation = gp.rotate(shared, rank=4, intercept=False)
    >>> gp.stability(shared, rotation, scores, weighted).cosines.shape  # programs by fits
    (4, 3)
    """
    fits = checked_fits(scores, loadings)
    rank = rotation.transform.shape[0] - 1
    components = contribution.scores[:, :rank]
    to_programs = np.linalg.lstsq(contribution.loadings[:, :rank], rotation.loadings, rcond=None)[0]
    own = []
    for fit in fits:
        cross = np.zeros((fit.scores.shape[1], rank))
        for rows in blocks(len(components)):
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


def members_of(weighted: np.ndarray, half_width: np.ndarray) -> np.ndarray:
    """1 for genes that a program raises, -1 for those it lowers, else 0; shape (n_vars, n_programs).

    The sign of a member is sure (the 95 % interval over fits, where there is one, leaves zero out), its effect is at
    least a quarter of that of the program's ten heaviest genes, and it is among the 300 heaviest. A rule by the spread
    over all genes would leave a dense program, which moves most genes, with next to none.
    """
    size = np.abs(weighted)
    effect = MEMBER_EFFECT * np.sort(size, axis=0)[-10:].mean(axis=0)
    rank = np.argsort(np.argsort(-size, axis=0, kind="stable"), axis=0, kind="stable")
    sure = np.nan_to_num(half_width, nan=0.0) < size
    return (np.sign(weighted) * (sure & (size >= effect) & (rank < MOST_MEMBERS))).astype(int)
