"""Scores of other cells on given programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import sparse

from ldvae.errors import InputError

from .consensus import TINY, information
from .find import Programs, names_of
from .regression import regress_counts


class Frame(NamedTuple):
    """What scoring other cells needs of a set of programs; plain arrays."""

    genes: np.ndarray  # names, shape (n_vars,)
    programs: np.ndarray  # names, shape (n_programs,)
    basis: np.ndarray  # change of the log rate per unit of a component, shape (n_vars, rank)
    transform: np.ndarray  # scores = [1, components] @ transform, shape (1 + rank, n_programs)
    joint: np.ndarray  # the same for the scores of the rotation: loadings = basis @ pinv(joint[1:]).T
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

    Examples
    --------
    Continues the example of `find_programs`.

    >>> frame = gp.frame(programs, mean, truth.theta)
    >>> frame.genes[:2].tolist()
    ['gene_0', 'gene_1']
    """
    share = np.asarray(mean, float) / np.sum(mean)
    weight = information(mean, theta)
    dispersion = np.zeros_like(share) if theta is None else np.atleast_2d(1 / np.asarray(theta, float)).mean(axis=0)
    # The offset that gives the mean expression back, on a sample of cells: the shares of a mean cell are not the mean
    # share. Batches are averaged over in this way too.
    rows = np.unique(np.linspace(0, len(programs.scores) - 1, 2000).astype(int))
    components = (programs.scores.to_numpy()[rows] - programs.transform[0]) @ np.linalg.pinv(programs.transform[1:])
    fold = np.exp(components @ programs.basis.to_numpy().T)
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
        joint=programs.joint,
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

    Examples
    --------
    Continues the example of `find_programs`.

    >>> frame = gp.frame(programs, mean, truth.theta)
    >>> other = simulate(n_obs=50, n_vars=100, n_identity=2, n_activity=2, n_up=10, n_down=5, seed=0)
    >>> projection = gp.project(frame, other.counts, other.loadings.index, cells=other.cells.index)
    >>> projection.scores.shape, projection.missing
    ((50, 4), [])
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
    weighted = np.square(frame.weight[:, None] * (frame.basis @ np.linalg.pinv(frame.joint[1:]).T))
    covered = weighted[here].sum(axis=0) / np.maximum(weighted.sum(axis=0), TINY)
    return Projection(
        scores=pd.DataFrame(
            frame.transform[0] + components @ frame.transform[1:],
            pd.Index(cells if cells is not None else names_of(components, "cell"), name="cell"),
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
    precision = np.ones(design.shape[1])
    precision[0] = 1e-6  # the library size has no prior, but a cell without counts must have an answer
    found = np.zeros((counts.shape[0], basis.shape[1]))
    expected = np.zeros(len(basis))
    for start in range(0, counts.shape[0], 1000):
        x = counts[start : start + 1000].toarray().T
        at = np.zeros((design.shape[1], x.shape[1]))
        at[0] = np.log(np.maximum(x.sum(axis=0), 0.5)) - np.logaddexp.reduce(offset)
        fit = regress_counts(x, design, offset, at, precision=precision, theta=theta, tolerance=1e-5, max_iterations=50)
        found[start : start + 1000] = fit.coefficients[1:].T
        expected += fit.rate.sum(axis=1)
    return found, expected


def _outside(shift: np.ndarray, basis: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The part of a shift of all genes that neither a library size nor the programs can make."""
    design = np.hstack([np.ones((len(basis), 1)), basis])
    return shift - design @ np.linalg.lstsq(design * weight[:, None], shift * weight, rcond=None)[0]
