"""Tables of cells and genes: tidied, joined, and their columns as groups."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from ldvae.errors import InputError, suggestion
from ldvae.io.messages import first_names
from ldvae.io.text import read_annotation
from ldvae.names import column_name

logger = logging.getLogger(__name__)


def tidy(table: pd.DataFrame, where: str, kind: str) -> pd.DataFrame:
    """A copy of obs or var that can be written to h5ad: unique text names, columns of one type each.

    Parameters
    ----------
    table
        One row per cell or gene.
    where
        The file, for the warnings.
    kind
        ``cell`` or ``gene``.
    """
    from anndata.utils import make_index_unique

    table = table.copy()
    names = table.index.astype(str)
    blank = names.str.strip() == ""
    if blank.any():  # a table of results could not tell it from a missing value
        logger.warning("%s: %d %s names are empty; they are called unnamed.", where, blank.sum(), kind)
        names = names.where(~blank, "unnamed")
    repeated = names[names.duplicated()].unique()
    if len(repeated):
        message = "%s: %d %s names occur more than once; repeats got a suffix (%s-1, …): %s"
        logger.warning(message, where, len(repeated), kind, repeated[0], first_names(repeated))
        with warnings.catch_warnings():  # anndata also warns of names that end like a suffix
            warnings.simplefilter("ignore")
            names = make_index_unique(names)
    table.index = names.rename(None)
    columns = pd.Index([column_name(column) for column in table.columns], dtype=object)
    changed = [str(old) for old, new in zip(table.columns, columns, strict=True) if str(old) != new]
    if changed:
        logger.warning("%s: a column name must not hold a slash, replaced by _ in: %s", where, ", ".join(changed))
    if not columns.is_unique:
        columns = make_index_unique(columns)
    return objects_to_categories(table.set_axis(columns, axis=1))


def objects_to_categories(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose columns of text, or of mixed types, are categories of text; missing values stay missing."""
    changed = {}
    for name, column in table.items():
        if isinstance(column.dtype, pd.CategoricalDtype):
            if column.cat.categories.dtype.kind == "O":  # may mix text and numbers
                changed[name] = column.cat.rename_categories(as_text)
        elif column.dtype == object or column.dtype.kind in "mM" or isinstance(column.dtype, pd.StringDtype):
            text = column.astype(object)
            changed[name] = text.where(text.isna(), text.map(as_text)).astype("category")
    return table.assign(**{str(name): column for name, column in changed.items()})


def as_text(value: Any) -> str:
    """A value as the name of a group: numbers without a fraction as integers.

    Examples
    --------
    >>> as_text(101.0), as_text("a"), as_text(0.5), as_text(float("inf"))
    ('101', 'a', '0.5', 'inf')
    """
    return str(int(value)) if isinstance(value, (float, np.floating)) and float(value).is_integer() else str(value)


def join_obs(adata: AnnData, path: Path) -> None:
    """Add the columns of a table of cells to obs, in place; cells that it does not name get missing values."""
    if not path.exists():
        raise InputError(f"{path}: does not exist; expected a table of cells.")
    try:
        table = read_annotation(path)
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read as a table of cells: {error}") from error
    if not table.index.is_unique:
        raise InputError(f"{path}: names cells more than once, e.g. {table.index[table.index.duplicated()][0]}.")
    table = tidy(table, str(path), "cell")
    found = adata.obs_names.isin(table.index)
    if not found.any():
        raise InputError(
            f"{path}: names none of the {adata.n_obs} cells; its first column has {first_names(table.index, 3)}, "
            f"the cells are called {first_names(adata.obs_names, 3)}."
        )
    if not found.all():
        logger.warning("%s: has no row for %d of %d cells.", path, (~found).sum(), adata.n_obs)
    replaced = [column for column in table if column in adata.obs]
    if replaced:
        logger.warning("%s: replaces the obs columns %s of the input.", path, first_names(replaced))
    for column in table:
        adata.obs[column] = table[column].reindex(adata.obs_names)


def require_columns(obs: pd.DataFrame, named: Iterable[tuple[str, str]], made: Container[str] = ()) -> None:
    """Refuse options that name obs columns which are not there.

    Parameters
    ----------
    obs
        What is known of the cells.
    named
        Options, each with the column that it names (`ldvae.config.named`).
    made
        Columns that may be missing: the workflow makes them where it can.
    """
    known = [str(column) for column in obs]
    missing = [(option, name) for option, name in named if name not in known and name not in made]
    if missing:
        raise InputError(*(f"{option}: no obs column {name!r}.{suggestion(name, known)}" for option, name in missing))


def obs_column(obs: pd.DataFrame, key: str) -> pd.Series:
    """A column of obs, which must be there and have a value for every cell."""
    if key not in obs:
        raise InputError(f"There is no obs column {key!r}.{suggestion(key, obs.columns)}")
    if n_missing := int(obs[key].isna().sum()):
        raise InputError(
            f"obs column {key!r} has no value for {n_missing} of {len(obs)} cells. Give these a value of their own, or "
            "leave them out of the input."
        )
    return obs[key]


def group_names(column: pd.Series) -> pd.Series:
    """The groups of a column as text, missing values left missing; whole numbers have no decimals (1, not 1.0).

    Examples
    --------
    >>> group_names(pd.Series([1.0, None, 0.0])).tolist()
    ['1', nan, '0']
    """
    if isinstance(column.dtype, pd.CategoricalDtype) and column.cat.categories.dtype.kind == "f":
        column = column.astype(float)
    values = column.to_numpy() if column.dtype.kind == "f" else None
    if values is not None and (np.isnan(values) | (np.isfinite(values) & (values == np.round(values)))).all():
        column = column.astype("Int64")
    return column.astype(str).astype(object).where(column.notna())


def meant_group(name: str, groups: Iterable[str]) -> str:
    """The group that a name means which YAML may have read otherwise than it is written; the name itself if none.

    Without quotes, ``yes`` is true for YAML, ``1.0`` a number, and groups of whole numbers have no decimals.

    Examples
    --------
    >>> meant_group("True", ["no", "yes"]), meant_group("1.0", ["0", "1"]), meant_group("1", ["1", "1.0"])
    ('yes', '1', '1')
    """
    present = set(groups)
    if name in present:
        return name
    words = {"True": ("yes", "true", "on", "y"), "False": ("no", "false", "off", "n")}.get(name, ())
    found = [group for group in present if group.lower() in words]
    found += [group for group in present if re.fullmatch(r"-?\d+\.0", name) and group == name.removesuffix(".0")]
    return found[0] if len(found) == 1 else name


MAX_CELLS = (
    20_000  # whose counts of all measured genes are held in memory: beyond them a statistic of a gene hardly moves
)
