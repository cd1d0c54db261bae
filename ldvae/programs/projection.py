"""Scores of other cells on given programs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import sparse, special

from ldvae.errors import InputError
from ldvae.features import share_of_identifiers
from ldvae.rows import spaced

from .consensus import TINY, information
from .find import Programs, names_of
from .regression import regress_counts

# Cells of a batch from which the levels of its genes are learned.
LEVEL_CELLS = 5000
# Genes of a cell whose surprise is averaged: a foreign type has some dozens of its own, an ambient gene is one.
N_SURPRISING = 30
# Cells of the programs' own data on which it is measured how well the programs explain them.
CELLS_JUDGED = 500
# A gene of one rare type has a theta near zero, under which no count of it surprises.
LEAST_THETA = 2.0


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
    ids: np.ndarray = np.array([], dtype=np.str_)  # identifiers such as ENSG00000187608, shape (n_vars,) or (0,)
    usual: np.ndarray = np.array([])  # misfit of cells the programs were made from: 0 to 100 %, shape (101,) or (0,)
    # For `meta_programs` alone: all components of the fits, those beyond the rank too; none of them in older files.
    directions: np.ndarray = np.zeros((0, 0))  # as basis, shape (n_vars, n_components) or (0, 0)
    sampled: np.ndarray = np.zeros((0, 0))  # scores on them of at most 1,000 cells, shape (n_cells, n_components)


class Projection(NamedTuple):
    """Scores of other cells, and how far the data support them."""

    scores: pd.DataFrame  # cells by programs, in standard deviations of the cells the programs were made from
    missing: list[str]  # genes of the programs that the data lack
    covered: pd.Series  # indexed by program: share of its squared weighted loadings in genes that the data have
    error: pd.DataFrame  # cells by programs: standard deviation of the score, given the counts of the cell
    misfit: pd.Series  # indexed by cell: mean -log10 probability of its 30 most surprising counts
    outside: pd.Series  # indexed by cell: true where no mixture of the programs explains the cell
    matched: str  # how genes were matched, such as "gene names with the names of the data"


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
    rows = spaced(len(programs.scores), 2000)
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
        directions=programs.directions.to_numpy(),
        sampled=programs.sampled,
    )


def project(
    frame: Frame,
    counts: sparse.csr_matrix,
    genes: Sequence[str],
    *,
    var: pd.DataFrame | None = None,
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
    var
        What else is known of the columns, shape (n_genes, any): columns of text are further names. Of these and of the
        programs' own (gene names or identifiers, without versions) the pair that matches most genes is taken.
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
    many cells at once. The error of a score is that of the normal approximation there.

    The misfit of a cell tells of genes that it has and the programs cannot give it: the mean, over the 30 genes whose
    counts surprise most, of -log10 of the probability of a count as large under the model (theta at least 2). A cell is
    outside where its misfit exceeds the 99th percentile of cells that the programs were made from; where these are not
    known (`calibrate`), no cell is.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> frame = gp.frame(programs, mean, truth.theta)
    >>> other = simulate(n_obs=50, n_vars=100, n_identity=2, n_activity=2, n_up=10, n_down=5, seed=0)
    >>> projection = gp.project(frame, other.counts, other.loadings.index, cells=other.cells.index)
    >>> projection.scores.shape, projection.missing
    ((50, 4), [])
    """
    position, matched = matched_genes(frame, genes, var)
    here = position >= 0
    counts = sparse.csr_matrix(counts)[:, position[here]].astype(np.float64)
    basis, offset, theta = frame.basis[here], frame.offset[here], frame.theta[here]
    groups = pd.factorize(np.asarray(batch))[0] if batch is not None else np.zeros(counts.shape[0], dtype=int)
    n_obs = counts.shape[0]
    components, misfit = np.zeros((n_obs, basis.shape[1])), np.zeros(n_obs)
    error = np.zeros((n_obs, frame.transform.shape[1]))
    for group in np.unique(groups):
        rows = groups == group
        own, level = counts[rows], offset
        if adjust:
            some = own[spaced(own.shape[0], LEVEL_CELLS)]
            for _ in range(3):
                expected = _most_likely(some, basis, level, theta).expected
                shift = np.log((np.asarray(some.sum(axis=0)).ravel() + 1) / (expected + 1))
                level = level + _outside(shift, basis, frame.weight[here])
        fitted = _most_likely(own, basis, level, theta, frame.transform[1:])
        components[rows], error[rows], misfit[rows] = fitted.components, fitted.error, fitted.misfit
    weighted = np.square(frame.weight[:, None] * (frame.basis @ np.linalg.pinv(frame.joint[1:]).T))
    covered = weighted[here].sum(axis=0) / np.maximum(weighted.sum(axis=0), TINY)
    names = pd.Index(cells if cells is not None else names_of(components, "cell"), name="cell")
    programs = list(frame.programs)
    return Projection(
        scores=pd.DataFrame(frame.transform[0] + components @ frame.transform[1:], names, programs),
        missing=frame.genes[~here].tolist(),
        covered=pd.Series(covered, programs),
        error=pd.DataFrame(error, names, programs),
        misfit=pd.Series(misfit, names, name="misfit"),
        outside=pd.Series(misfit > _limit(frame.usual), names, name="outside"),
        matched=matched,
    )


def matched_genes(frame: Frame, genes: Sequence[str], var: pd.DataFrame | None = None) -> tuple[np.ndarray, str]:
    """Column of each gene of the programs, -1 where there is none, and which names were matched; see `project`."""
    ours = {"gene names": pd.Index(frame.genes)}
    if len(frame.ids):
        ours["gene identifiers"] = pd.Index([_without_version(name) for name in frame.ids])
    theirs = {"the names of the data": pd.Index([_without_version(name) for name in genes])}
    for column, values in () if var is None else var.items():
        if not pd.api.types.is_numeric_dtype(values) and values.nunique() > 1:
            theirs[f"their column {column}"] = pd.Index([_without_version(str(name)) for name in values])
    best: tuple[int, np.ndarray, str] | None = None
    for own, wanted in ours.items():
        for other, found in theirs.items():
            first = ~found.duplicated() & (found != "")
            columns = pd.Series(np.flatnonzero(first), found[first]).reindex(wanted).fillna(-1)
            at = columns.to_numpy(dtype=int, copy=True)  # pandas 2.2 under numpy 2: np.array(columns) is a view
            at[(wanted == "") | wanted.duplicated()] = -1
            if best is None or (at >= 0).sum() > best[0]:
                best = int((at >= 0).sum()), at, f"{own} with {other}"
    if best is None or not best[0]:
        case = set(pd.Index(frame.genes).str.upper()) & set(pd.Index(genes).str.upper())
        hint = " They differ by capital letters: are they of another species?" if case else ""
        raise InputError(
            f"None of the {len(frame.genes)} genes of the programs (such as {', '.join(frame.genes[:3])}) is among the "
            f"{len(genes)} genes of the data (such as {', '.join(genes[:3])}). Use data with the same kind of names."
            f"{hint}"
        )
    return best[1], best[2]


def calibrate(
    frame: Frame,
    counts: sparse.csr_matrix,
    genes: Sequence[str],
    *,
    batch: ArrayLike | None = None,
) -> Frame:
    """Learn how well the programs explain cells that they were made from, by which other cells are judged.

    Parameters
    ----------
    frame
        From `frame`.
    counts
        UMI counts of cells that the programs were made from, shape (n_obs, n_genes); some hundred are enough.
    genes, batch
        As in `project`.

    Returns
    -------
    Frame
        With `usual`.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> frame = gp.frame(programs, mean, truth.theta)
    >>> frame = gp.calibrate(frame, truth.counts, truth.loadings.index)
    >>> int(gp.project(frame, truth.counts, truth.loadings.index).outside.sum())  # of 300
    3
    """
    misfit = project(frame, counts, genes, batch=batch).misfit
    return frame._replace(usual=np.quantile(misfit, np.linspace(0, 1, 101)))


def with_identifiers(frame: Frame, var: pd.DataFrame) -> Frame:
    """The frame with the identifiers of its genes, where a column of var has them; indexed by gene."""
    for column in var:
        if var[column].notna().any() and share_of_identifiers(var[column].dropna()) > 0.5:
            return frame._replace(ids=var[column].astype(str).reindex(frame.genes).fillna("").to_numpy(dtype=np.str_))
    return frame


def _limit(usual: np.ndarray) -> float:
    """Misfit above which a cell is outside."""
    return float(usual[99]) if len(usual) else np.inf


def _without_version(name: str) -> str:
    """ENSG00000187608.10 as ENSG00000187608; other names, which may end in .1, as they are."""
    return re.sub(r"^(ENS[A-Z]*G\d{6,})\.\d+$", r"\1", str(name))


class _Fitted(NamedTuple):
    """What the counts of some cells say."""

    components: np.ndarray  # shape (n_obs, rank)
    expected: np.ndarray  # counts of each gene, summed over cells, shape (n_vars,)
    error: np.ndarray  # standard deviation of the scores, shape (n_obs, n_programs); empty where not asked for
    misfit: np.ndarray  # shape (n_obs,); the same


def _most_likely(
    counts: sparse.csr_matrix,
    basis: np.ndarray,
    offset: np.ndarray,
    theta: np.ndarray,
    transform: np.ndarray | None = None,
) -> _Fitted:
    """Components of each cell; with a transform to scores also their errors and the misfit."""
    design = np.hstack([np.ones((len(basis), 1)), basis])
    precision = np.ones(design.shape[1])
    precision[0] = 1e-6  # the library size has no prior, but a cell without counts must have an answer
    found = np.zeros((counts.shape[0], basis.shape[1]))
    expected = np.zeros(len(basis))
    n_scores = 0 if transform is None else transform.shape[1]
    error, misfit = np.zeros((counts.shape[0], n_scores)), np.zeros(counts.shape[0])
    for start in range(0, counts.shape[0], 1000):
        rows = slice(start, start + 1000)
        x = counts[rows].toarray().T
        at = np.zeros((design.shape[1], x.shape[1]))
        at[0] = np.log(np.maximum(x.sum(axis=0), 0.5)) - np.logaddexp.reduce(offset)
        fit = regress_counts(x, design, offset, at, precision=precision, theta=theta, tolerance=1e-5, max_iterations=50)
        found[rows] = fit.coefficients[1:].T
        expected += fit.rate.sum(axis=1)
        if transform is not None:
            covariance = np.linalg.inv(fit.hessian)[:, 1:, 1:]
            error[rows] = np.sqrt(np.einsum("ip,nij,jp->np", transform, covariance, transform, optimize=True))
            misfit[rows] = _misfit(x, fit.rate, theta)
    return _Fitted(found, expected, error, misfit)


def _misfit(x: np.ndarray, rate: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Misfit of each cell, shape (n_obs,), from counts and expected counts, shape (n_vars, n_obs)."""
    gene, cell = np.nonzero(x)
    mean = rate[gene, cell]
    spread = np.maximum(theta, LEAST_THETA)[gene]
    surprise = np.zeros(x.shape)
    tail = special.betainc(x[gene, cell], spread, mean / (mean + spread))  # of counts as large as these
    surprise[gene, cell] = -np.log10(np.maximum(tail, 1e-50))
    n = min(N_SURPRISING, len(x))
    return np.partition(surprise, len(x) - n, axis=0)[len(x) - n :].mean(axis=0)


def _outside(shift: np.ndarray, basis: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The part of a shift of all genes that neither a library size nor the programs can make."""
    design = np.hstack([np.ones((len(basis), 1)), basis])
    return shift - design @ np.linalg.lstsq(design * weight[:, None], shift * weight, rcond=None)[0]
