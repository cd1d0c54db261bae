"""Directions that several datasets have in common, rotated to simple structure on the cells of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from ldvae.config import RotationConfig

from .consensus import TINY, Contribution, gauge, unit_columns
from .find import rotated
from .projection import Frame

# A component with a smaller share of a dataset's contribution says nothing that another dataset could confirm.
LEAST_SHARE = 0.002
N_NULL = 20  # draws in which the signs of the genes are exchanged in each dataset
N_ROUNDS = 10  # in which genes that a dataset lacks are filled in
RIDGE = 0.1  # of that filling: a direction with few genes in a dataset says little of the others


class Space(NamedTuple):
    """What the fits of a dataset span, on the genes of all datasets; rows of genes that it lacks are zero."""

    here: np.ndarray  # genes that the dataset models, shape (n_genes,)
    basis: np.ndarray  # orthonormal, shape (n_genes, n_components)
    components: np.ndarray  # weighted loadings in the common gauge, shape (n_genes, n_components)
    programs: np.ndarray  # weighted loadings of its own programs in the common gauge, shape (n_genes, n_programs)
    sampled: np.ndarray  # scores of some cells on the components, shape (n_cells, n_components) or (0, n_components)

    def like(self, direction: np.ndarray) -> float:
        """Cosine of a direction with what the dataset spans, from 0 to 1, on the genes that it models."""
        length = float(np.linalg.norm(direction[self.here]))
        return float(np.linalg.norm(self.basis.T @ direction)) / max(length, TINY)

    def version(self, direction: np.ndarray) -> np.ndarray:
        """What in the dataset comes nearest to a direction, of the direction's length; nan where it lacks the gene."""
        nearest = self.basis @ (self.basis.T @ direction)
        nearest *= np.linalg.norm(direction[self.here]) / max(float(np.linalg.norm(nearest)), TINY)
        return np.where(self.here, nearest, np.nan)


def spaces_of(
    frames: Mapping[str, Frame], loadings: Mapping[str, pd.DataFrame], genes: pd.Index
) -> tuple[list[Space], np.ndarray]:
    """What each dataset spans, in one gauge and under one weight.

    Parameters
    ----------
    frames
        What `frame` gathers for each dataset.
    loadings
        Loadings of its programs (`loadings_of`).
    genes
        On which datasets are compared.

    Returns
    -------
    tuple
        The spaces, and the weight of each gene, shape (n_genes,).
    """
    share, weight = (np.full((len(frames), len(genes)), np.nan) for _ in range(2))
    for d, frame in enumerate(frames.values()):
        at = pd.Index(frame.genes).get_indexer(genes)
        share[d, at >= 0] = np.exp(frame.offset[at[at >= 0]])
        share[d] /= np.nansum(share[d])
        weight[d, at >= 0] = frame.weight[at[at >= 0]] ** 2
    mean, common = np.nanmean(share, axis=0), np.sqrt(np.nanmean(weight, axis=0))
    spaces = []
    for (name, frame), own in zip(frames.items(), share, strict=True):
        at = pd.Index(frame.genes).get_indexer(genes)
        here = ~np.isnan(own)

        def placed(table: np.ndarray, at: np.ndarray = at, here: np.ndarray = here) -> np.ndarray:
            result = np.zeros((len(genes), table.shape[1]))
            result[here] = np.asarray(gauge(table[at[here]], mean[here])) * common[here, None]
            return result

        directions = frame.directions if frame.directions.size else frame.basis
        size = np.square(directions * frame.weight[:, None]).sum(axis=0)
        kept = size > LEAST_SHARE * size.sum()
        components = placed(directions[:, kept])
        sampled = frame.sampled[:, kept] if frame.sampled.size else np.zeros((0, int(kept.sum())))
        spaces.append(Space(here, np.linalg.qr(components)[0], components, placed(loadings[name].to_numpy()), sampled))
    return spaces, common


def common_programs(spaces: Sequence[Space], seed: int = 0) -> np.ndarray:
    """Programs that datasets have in common, of unit length.

    Parameters
    ----------
    spaces
        From `spaces_of`.
    seed
        Of the comparison with chance.

    Returns
    -------
    ndarray
        Shape (n_genes, n_programs); without columns where nothing is shared, or cells are missing (`Frame.sampled`).

    Notes
    -----
    The eigenvectors of the sum of the projections onto all spaces are the directions that spaces come closest to
    together: an eigenvalue is the number of datasets that have the direction, each counted by its squared cosine.
    Kept are those above the largest eigenvalue that is seen where the signs of genes are drawn anew in each dataset.
    The cells of all datasets, each centered on its own mean, are then placed in this space and rotated to simple
    structure together, as the fits of one dataset are: two cell types that one sample confounds are told apart by
    another in which one of them is rare or missing.

    References
    ----------
    The sum of projections is multiset canonical correlation analysis (MAXVAR; Kettenring, Biometrika 58, 433, 1971);
    its comparison with chance follows AJIVE (Feng et al., J. Multivariate Anal. 166, 241, 2018).
    """
    space = _shared_space(spaces, seed)
    if not space.shape[1] or not all(len(one.sampled) for one in spaces):
        return np.zeros((len(space), 0))
    # Coordinates of the cells' contributions on the genes that their dataset has.
    coordinates = []
    for one in spaces:
        placed = one.sampled @ (np.linalg.pinv(space[one.here]) @ one.components[one.here]).T
        coordinates.append(placed - placed.mean(axis=0))
    cells = np.vstack(coordinates)
    scores, sizes, turn = np.linalg.svd(cells, full_matrices=False)
    root = np.sqrt(len(cells))
    found = rotated(Contribution(scores * root, space @ turn.T * (sizes / root)), space.shape[1], RotationConfig())
    return unit_columns(found.loadings)


def _shared_space(spaces: Sequence[Space], seed: int) -> np.ndarray:
    """Orthonormal basis of what is shared beyond chance, shape (n_genes, any)."""
    rng = np.random.default_rng(seed)
    bases = [one.basis for one in spaces]
    chance = [
        _eigenvalues([rng.choice([-1.0, 1.0], (len(basis), 1)) * basis for basis in bases])[1][0] for _ in range(N_NULL)
    ]
    limit = max(chance)
    vectors, values = _eigenvalues(bases)
    space = vectors[:, values > limit]
    if all(one.here.all() for one in spaces):
        return space
    for _ in range(N_ROUNDS):
        bases = []
        for one in spaces:
            known = space[one.here]
            part = np.linalg.solve(known.T @ known + RIDGE * np.eye(space.shape[1]), known.T @ one.basis[one.here])
            filled = one.basis.copy()
            filled[~one.here] = space[~one.here] @ part
            bases.append(np.linalg.qr(filled)[0])
        vectors, values = _eigenvalues(bases)
        space = vectors[:, values > limit]
    return space


def _eigenvalues(bases: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvectors and eigenvalues of the sum of projections, the largest first."""
    vectors, values, _ = np.linalg.svd(np.hstack(bases), full_matrices=False)
    return vectors, values**2
