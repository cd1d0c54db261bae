"""Which cells a model trains on, validates on and leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from ldvae.data.present import Snapshot, name_hashes, same_index
from ldvae.data.registry import Registry
from ldvae.errors import InputError
from ldvae.rows import Rows, rows_of


class Split(NamedTuple):
    """Row numbers of the cells of each part, int64."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@dataclass
class TrainedOn:
    """Which cells a model was trained on; found again by their names where its data have changed since.

    Attributes
    ----------
    split
        Rows of the cells when the model was trained.
    cells
        Hashes of their names then (`name_hashes`); None: unknown.
    snapshot
        The data then; None for a model that was loaded.
    """

    split: Split
    cells: np.ndarray | None
    snapshot: Snapshot | None = None

    def rows(self, part: str, adata: AnnData | None, registry: Registry) -> np.ndarray:
        """Rows of a part of the split in the data as they are now; cells that are gone are left out."""
        rows = getattr(self.split, part)
        if self.cells is None or adata is None:
            return rows
        if self.snapshot is not None and same_index(self.snapshot.cells, adata.obs_names):
            return rows
        names = name_hashes(adata.obs_names)
        if np.array_equal(names, self.cells):
            return rows
        if self.snapshot is not None:
            now = Snapshot.of(adata, registry)
            if (self.snapshot.where, self.snapshot.content) == (now.where, now.content):
                self.snapshot, self.cells = now, names  # the same cells under other names
                return rows
        if len(np.unique(names)) < len(names) or len(np.unique(self.cells)) < len(self.cells):
            raise InputError(
                "The cells of the model's data have changed since the training, and their names repeat: which of them "
                f"were in the {part} part cannot be told."
            )
        found = pd.Index(names).get_indexer(self.cells[rows])
        return found[found >= 0]


def split_cells(
    n_obs: int,
    train_size: float | None = None,
    validation_size: float | None = None,
    shuffle: bool = True,
    seed: int = 0,
) -> Split:
    """Split cells at random as scvi-tools does: validation first, then training; the rest is the test set.

    Parameters
    ----------
    n_obs
        Number of cells.
    train_size
        Share of the cells to train on, above 0 and at most 1; none: 0.9.
    validation_size
        Share to validate on; none: all that is not trained on.
    shuffle
        Without it, the first cells train, the next validate.
    seed
        Of the permutation.
    """
    share = 0.9 if train_size is None else train_size
    if not 0 < share <= 1:
        raise InputError(f"Invalid train_size: {share:g}. Must be: 0 < train_size <= 1.")
    if validation_size is not None and not 0 <= validation_size < 1:
        raise InputError(f"Invalid validation_size: {validation_size:g}. Must be: 0 <= validation_size < 1.")
    if validation_size is not None and share + validation_size > 1:
        raise InputError(
            f"train_size + validation_size is {share + validation_size:g}; together they must be at most 1."
        )
    if share * n_obs < 1:
        raise InputError(
            f"train_size is {share:g}, which of {n_obs} cells is less than one; give the share of the cells."
        )
    n_train = int(np.ceil(share * n_obs))
    n_validation = n_obs - n_train if validation_size is None else int(n_obs * validation_size)
    if not shuffle:
        order = np.arange(n_obs)
        return Split(*np.split(order, [n_train, n_train + n_validation]))
    order = np.random.RandomState(seed).permutation(n_obs)
    validation, train, test = np.split(order, [n_validation, n_validation + n_train])
    return Split(train, validation, test)


def external_split(parts: Sequence[Rows], obs: pd.DataFrame) -> Split:
    """A split given as the cells of its parts: train, validation, test; later ones may be left out."""
    if isinstance(parts, str) or len(parts) not in (1, 2, 3):
        raise InputError("external_indexing must be a list of up to three parts: cells to train on, validate, test.")
    names = [f"external_indexing[{i}]" for i in range(3)]
    given = [*parts, *[[]] * (3 - len(parts))]
    rows = [
        rows_of([] if part is None else part, obs, name, none_selected=True)
        for part, name in zip(given, names, strict=True)
    ]
    if len(np.unique(np.concatenate(rows))) < sum(map(len, rows)):
        raise InputError("external_indexing names a cell more than once; the parts must be disjoint.")
    return Split(*rows)
