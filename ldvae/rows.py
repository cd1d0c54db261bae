"""Selection of cells: row numbers from a mask, row numbers, names, or a query of obs; by names; or evenly spaced."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ldvae.errors import InputError, counted

Rows = str | slice | Sequence[int] | Sequence[bool] | Sequence[str] | np.ndarray | pd.Series | pd.Index
FORMS = "a mask (dtype bool), row numbers (integers), a list of names from adata.obs_names, or a query of adata.obs"


def positions_in(path: Path, present: pd.Index, wanted: pd.Index, kind: str) -> np.ndarray:
    """Where a file of the results has each of some cells or genes, shape (len(wanted),).

    Parameters
    ----------
    path
        The file, for the message.
    present, wanted
        Names in the file, and names to find there.
    kind
        ``cells`` or ``genes``.

    Raises
    ------
    InputError
        If some are not there: other results were made of another run of quality control.
    """
    position = present.get_indexer(wanted)
    if len(absent := wanted[position < 0]):
        raise InputError(
            f"{path}: lacks {len(absent):,} of the {len(wanted):,} {kind} that are asked of it, e.g. {absent[0]}. A "
            "step before was run again since: run all steps after it again, in their order."
        )
    return position


def rows_of(given: Any, obs: pd.DataFrame, name: str = "indices", *, none_selected: bool = False) -> np.ndarray:
    """Row numbers of the selected cells, in the order given.

    Parameters
    ----------
    given
        A mask: booleans of any kind, one for each cell, none missing. Row numbers: integers, from the end if negative;
        a slice. Names of cells: a list or array of strings. One string: a query of `obs`, as `DataFrame.query` has it.
        None: all cells.
    obs
        Annotation of the cells, indexed by their names.
    name
        Of the argument, for the messages.
    none_selected
        Whether no cell at all is an answer.

    Returns
    -------
    ndarray
        int64, each from 0 to below len(obs); of names and row numbers, a row may come more than once.

    Raises
    ------
    InputError
        If it is none of these, names cells that do not exist, or selects none.
    """
    if given is None:
        rows = np.arange(len(obs))
    elif isinstance(given, str):
        rows = np.flatnonzero(queried(given, obs, name))
    elif isinstance(given, slice):
        rows = np.arange(len(obs))[given]
    else:
        rows = from_list(given, obs, name)
    if len(obs) == 0 and given is None and not none_selected:
        raise InputError("adata has no cells; it must have at least one.")
    if len(rows) == 0 and not none_selected:
        raise InputError(
            f"{name} selects none of the {len(obs)} cells; {name} must name at least one of the {len(obs)} cells. "
            f"Give {FORMS}."
        )
    return rows


def queried(query: str, obs: pd.DataFrame, name: str) -> np.ndarray:
    """Mask of the cells for which a query holds, by position, also where names repeat."""
    if query in obs.index and query not in obs:
        raise InputError(f"{name} is the string {query!r}, a name in adata.obs_names; write [{query!r}] for that cell.")
    advice = f"Give {FORMS}, such as \"{obs.columns[0] if len(obs.columns) else 'donor'} == 'a'\"."
    try:
        mask = obs.eval(query)
    except Exception as error:  # pandas raises whatever its parser, its resolvers and the comparison raise
        raise InputError(f"{name} is {query!r}, which is not a query of adata.obs: {error}. {advice}") from error
    mask = np.asarray(mask)
    if mask.dtype == object and all(isinstance(value, (bool, np.bool_)) for value in mask.ravel()):
        mask = mask.astype(bool)  # comparisons of columns with missing values
    if mask.dtype != bool or mask.shape != (len(obs),):
        raise InputError(f"{name} is {query!r}, which does not give true or false for each cell. {advice}")
    return mask


def from_list(given: Any, obs: pd.DataFrame, name: str) -> np.ndarray:
    """Row numbers from a mask, row numbers or names."""
    if isinstance(given, (dict, set, frozenset, pd.DataFrame)) or not (
        hasattr(given, "__len__") or hasattr(given, "__array__") or hasattr(given, "__index__")
    ):
        raise InputError(f"{name} is a {type(given).__name__}; expected {FORMS}.")
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        masked = counted(int(np.ma.count_masked(given)), "masked value")
        raise InputError(f"{name} has {masked}; give those that are meant alone.")
    if isinstance(given, (list, tuple)) and len({isinstance(v, (bool, np.bool_)) for v in given}) == 2:
        given = np.array([*given, None], dtype=object)[:-1]  # NumPy would take True for row 1
    values = plain_values(given, name)
    if values.ndim > 1:  # as np.where and np.argwhere give them: (1, n) or (n, 1)
        if max(values.shape) != values.size:
            raise InputError(f"{name} has shape {values.shape}; expected one value for each cell. Give {FORMS}.")
        values = values.reshape(-1)
    values = np.atleast_1d(values)
    if values.size == 0:
        return np.zeros(0, dtype=np.int64)
    if values.dtype == object:
        values = of_one_type(values, name)
    if values.dtype == bool:
        return from_mask(given, values, obs, name)
    if values.dtype.kind in "iu":
        return from_numbers(values, len(obs), name)
    if values.dtype.kind in "UT" or values.dtype == object:
        return from_names(values.astype(object), obs, name)
    raise InputError(f"{name} holds values of dtype {values.dtype} (e.g. {values[0]!r}); expected {FORMS}.")


def plain_values(given: Any, name: str) -> np.ndarray:
    """The values as a numpy array; those of pandas' own dtypes without missing ones."""
    if isinstance(given, (pd.Series, pd.Index, pd.api.extensions.ExtensionArray)):
        if n_missing := int(pd.isna(given).sum()):
            missing = counted(n_missing, "missing value")
            raise InputError(f"{name} has {missing} among {len(given)}; fill them, or leave them out.")
        dtype = given.dtype
        if isinstance(dtype, pd.CategoricalDtype):
            given = np.asarray(given)
        elif pd.api.types.is_bool_dtype(dtype):
            return np.asarray(given, dtype=bool)
        elif pd.api.types.is_integer_dtype(dtype):
            return np.asarray(given, dtype=np.int64)
    try:
        with np.errstate(all="ignore"):
            return np.asarray(given)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists, tensors on a GPU
        raise InputError(f"{name} cannot be read as a list of cells: {error}. Give {FORMS}.") from error


def of_one_type(values: np.ndarray, name: str) -> np.ndarray:
    """Values of dtype object, all of which are booleans, integers or strings, as an array of that type."""
    kinds: tuple[tuple[tuple[type, ...], Any], ...] = (
        ((bool, np.bool_), bool),
        ((int, np.integer), np.int64),
        ((str,), object),
    )
    for types, dtype in kinds:
        # A boolean is an integer for Python; a list of both is nobody's intention.
        if all(isinstance(v, types) and (dtype is bool or not isinstance(v, (bool, np.bool_))) for v in values):
            try:
                return values.astype(dtype)
            except OverflowError as error:
                raise InputError(f"{name} holds an integer that is not a row: {max(values, key=abs)}.") from error
    found = sorted({type(value).__name__ for value in values})
    raise InputError(f"{name} holds values of type {', '.join(found)}; expected {FORMS}.")


def from_mask(given: Any, mask: np.ndarray, obs: pd.DataFrame, name: str) -> np.ndarray:
    """Rows where a mask is true."""
    if len(mask) != len(obs):
        raise InputError(f"{name} is a mask of {counted(len(mask), 'cell')}, but there are {len(obs)}.")
    index = given.index if isinstance(given, pd.Series) else None
    # A Series may be in another order of the same cells: its names decide, unless they are pandas' own numbers.
    if index is not None and not index.equals(obs.index) and not index.equals(pd.RangeIndex(len(obs))):
        if not (index.is_unique and obs.index.is_unique and len(obs.index.difference(index)) == 0):
            raise InputError(
                f"{name} is a mask whose index holds other cells than adata.obs_names; align it by its names "
                "(mask.reindex(adata.obs_names)), or give its values alone (mask.to_numpy())."
            )
        mask = mask[index.get_indexer(obs.index)]
    return np.flatnonzero(mask)


def from_numbers(values: np.ndarray, n_obs: int, name: str) -> np.ndarray:
    """Rows from row numbers."""
    if len(values) == n_obs > 2 and values.min() >= 0 and values.max() <= 1:
        raise InputError(
            f"{name} holds {n_obs} numbers, one for each cell, and all are 0 or 1: a mask must have dtype bool "
            "(mask.astype(bool))."
        )
    low, high = int(values.min()), int(values.max())
    if high >= n_obs or low < -n_obs:
        wrong = high if high >= n_obs else low
        raise InputError(
            f"{name} names row {wrong}, but there are {n_obs} cells; {name} must name at least "
            f"one of the {n_obs} cells, each from 0 to {n_obs - 1}."
        )
    return values.astype(np.int64) % n_obs


def from_names(values: np.ndarray, obs: pd.DataFrame, name: str) -> np.ndarray:
    """Rows from names of cells."""
    wanted = pd.Index(values)
    unknown = wanted[~wanted.isin(obs.index)]
    if len(unknown):
        raise InputError(
            f"{name} holds strings, and {len(unknown)} of the {len(wanted)} are not in adata.obs_names (e.g. "
            f"{', '.join(map(repr, unknown[:3]))}). Give {FORMS}."
        )
    if not obs.index.is_unique:
        repeated = wanted[wanted.isin(obs.index[obs.index.duplicated()])]
        if len(repeated):
            raise InputError(
                f"{name} names {repeated[0]!r}, and several cells have this name. Run adata.obs_names_make_unique(), "
                "or give row numbers or a mask."
            )
    unique = obs.index if obs.index.is_unique else obs.index[~obs.index.duplicated()]
    positions = np.arange(len(obs)) if obs.index.is_unique else np.flatnonzero(~obs.index.duplicated())
    return positions[unique.get_indexer(wanted)].astype(np.int64)


def spaced(n: int, most: int) -> np.ndarray:
    """Row numbers of at most so many of `n` cells, evenly spaced, so that every part of a file has its share.

    Examples
    --------
    >>> spaced(10, 4).tolist()
    [0, 3, 6, 9]
    """
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(int))


def rows_of_genes(given: Sequence[str] | None, genes: pd.Index) -> np.ndarray | None:
    """Row numbers of genes given by name, ascending; None, which stands for all, for None."""
    if given is None:
        return None
    if len(given) == 0:
        raise InputError("gene_list is empty; name at least one gene, or leave it out to have all.")
    rows = genes.get_indexer(list(given))
    if (rows < 0).any():
        unknown = [str(gene) for gene, row in zip(given, rows, strict=True) if row < 0]
        raise InputError(
            f"{len(unknown)} of {len(rows)} genes of gene_list are not among the model's (e.g. "
            f"{', '.join(unknown[:5])}); see model.get_var_names()."
        )
    return np.unique(rows)
