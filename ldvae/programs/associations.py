"""What the scores follow: each obs column against each program."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import scipy  # imports scipy.stats when it is first used: a second and 45 MB that a training need not have

from ldvae.errors import counted

from .consensus import TINY

# Levels that say of cells that nothing is known of them.
NO_LABEL = re.compile(
    r"(?i)(un(known|assigned|labell?ed|classified|defined|annotated|identified)"
    r"|not (assigned|available|labell?ed|known)|ambiguous|doublets?|multiplets?|n/?a|nan|none|nd|)( cells?)?"
)


def is_no_label(level: str) -> bool:
    """Whether a level of a category says that nothing is known of its cells.

    Examples
    --------
    >>> from ldvae.programs.associations import is_no_label
    >>> [is_no_label(name) for name in ("unlabeled", "Unknown_cells", "doublet", "negative", "NK cells")]
    [True, True, True, False, False]
    """
    return NO_LABEL.fullmatch(level.replace("_", " ").strip()) is not None


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
        Columns program, variable, kind, level, n_cells, effect, auc, p, padj, technical, explained. For each level of a
        category the mean score minus that of the other cells, the AUC and the p-value of Mann and Whitney; for a number
        Spearman's r. padj is Benjamini and Hochberg's over the table; explained is the share of the variance of the
        scores (for a number: of the ranks) that the variable, with all its levels, explains. Cells count as
        independent, which cells of one donor are not: read the effect, not the p-value.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> table = gp.associations(programs.scores, truth.cells)
    >>> table["variable"].unique().tolist()
    ['batch', 'identity']
    """
    obs = obs.reindex(scores.index)
    rows: list[pd.DataFrame] = []
    for variable in variables if variables is not None else obs.columns:
        values = obs[variable]
        known = values.notna().to_numpy()
        kind = kind_of(values[known])
        if kind is None:
            continue
        table = scores[known]
        ranks = scipy.stats.rankdata(table, axis=0)
        test = tests_of_levels if kind == "categorical" else tests_of_number
        share = _explained(ranks if kind == "continuous" else table.to_numpy(), values[known], kind)
        rows += [
            part.assign(variable=variable, kind=kind, explained=share) for part in test(table, ranks, values[known])
        ]
    columns = [
        "program",
        "variable",
        "kind",
        "level",
        "n_cells",
        "effect",
        "auc",
        "p",
        "padj",
        "technical",
        "explained",
    ]
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
    """How close each association is, from 0 to 1.

    Parameters
    ----------
    table
        From `associations`.

    Returns
    -------
    Series
        Row by row: the absolute value of r of a number, and of 2 AUC - 1 of a level.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> table = gp.associations(programs.scores, truth.cells)
    >>> bool(gp.strength(table).between(0, 1).all())
    True
    """
    return (2 * table["auc"] - 1).where(table["kind"] == "categorical", table["effect"]).abs()


def kind_of(values: pd.Series) -> str | None:
    """categorical or continuous; None for what is constant or names single cells."""
    levels = values.nunique()
    if levels < 2:
        return None
    if pd.api.types.is_float_dtype(values) or (pd.api.types.is_integer_dtype(values) and levels > 20):
        return "continuous"
    return "categorical" if levels <= 50 else None


def tests_of_levels(scores: pd.DataFrame, ranks: np.ndarray, values: pd.Series) -> Iterator[pd.DataFrame]:
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
                "n_cells": n_in,
            }
        )


def _explained(scores: np.ndarray, values: pd.Series, kind: str) -> np.ndarray:
    """Share of the variance of scores, or of ranks, that a variable explains, shape (n_programs,)."""
    centered = scores - scores.mean(axis=0)
    total = np.maximum(np.square(centered).sum(axis=0), TINY)
    if kind == "categorical":
        codes = pd.factorize(values)[0]
        sums = np.zeros((codes.max() + 1, scores.shape[1]))
        np.add.at(sums, codes, centered)
        return (np.square(sums) / np.bincount(codes)[:, None]).sum(axis=0) / total
    wanted = scipy.stats.rankdata(values.to_numpy(float))
    wanted = wanted - wanted.mean()
    return np.square(wanted @ centered) / np.square(wanted).sum() / total


def tests_of_number(scores: pd.DataFrame, ranks: np.ndarray, values: pd.Series) -> Iterator[pd.DataFrame]:
    """Spearman's correlation with the scores."""
    wanted = scipy.stats.rankdata(values.to_numpy(float))
    wanted = (wanted - wanted.mean()) / wanted.std()
    r = wanted @ (ranks - ranks.mean(axis=0)) / len(wanted) / np.maximum(ranks.std(axis=0), TINY)
    degrees = max(len(wanted) - 2, 1)
    t = r * np.sqrt(degrees / np.maximum(1 - r**2, TINY))
    p = 2 * scipy.stats.t.sf(np.abs(t), degrees)
    yield pd.DataFrame(
        {"program": scores.columns, "level": "", "effect": r, "auc": np.nan, "p": p, "n_cells": len(wanted)}
    )


def phrase(row: pd.Series, few: float = 0) -> str:
    """An association in words, with the number of cells of a group that has fewer than `few`."""
    if row["kind"] == "categorical":
        n_cells = f", {counted(int(row['n_cells']), 'cell')}" if row["n_cells"] < few else ""
        return f"{row['variable']} = {row['level']} (AUC {row['auc']:.2f}{n_cells})"
    return f"{row['variable']} (r = {row['effect']:.2f})"
