"""Cells: on a map, and their scores by group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.ticker import MaxNLocator

from ldvae.errors import InputError
from ldvae.pl.style import (
    INK,
    MUTED,
    RULE,
    SKY,
    Names,
    Save,
    Show,
    figure_of,
    finish,
    new_axes,
    new_figure,
    palette,
    short,
    styled,
)

HIGH = 1.0  # standard deviations of the score above which a cell counts as high in `dotplot`
Groups: TypeAlias = str | pd.Series


def _scores(data: Any, function: str) -> pd.DataFrame:
    """Scores as a table of cells by programs, from such a table or from an AnnData."""
    if isinstance(data, pd.DataFrame):
        return data
    if not hasattr(data, "obsm"):
        raise InputError(f"pl.{function}: expected an AnnData, or cells by programs; got {type(data).__name__}.")
    if "X_programs" not in data.obsm:
        raise InputError(
            f"pl.{function}: the AnnData has no obsm['X_programs'] (it has {', '.join(data.obsm) or 'no obsm'}). Give "
            "annotated.h5ad, or a table of cells by programs."
        )
    values = data.obsm["X_programs"]
    if isinstance(values, pd.DataFrame):
        return values
    named = data.varm.get("program_loadings")
    names = list(getattr(named, "columns", [f"P{k + 1}" for k in range(values.shape[1])]))
    return pd.DataFrame(np.asarray(values), index=data.obs_names, columns=names)


def _groups(data: Any, by: Groups, function: str) -> pd.Series:
    """The group of each cell, categorical; levels keep their order."""
    if isinstance(by, str):
        if not hasattr(data, "obs"):
            raise InputError(f"pl.{function}: {by!r} names a column of an AnnData; with a table, give a Series.")
        if by not in data.obs:
            raise InputError(f"pl.{function}: obs has no column {by!r}; it has {', '.join(data.obs.columns)}.")
        by = data.obs[by]
    return by.astype("category")


def _plane(data: Any, basis: Any, function: str) -> np.ndarray:
    """Two coordinates of each cell, from an array or by the name of an obsm entry."""
    if isinstance(basis, str):
        key = basis if basis in getattr(data, "obsm", {}) else f"X_{basis}"
        if key not in getattr(data, "obsm", {}):
            found = ", ".join(getattr(data, "obsm", {})) or "none"
            raise InputError(f"pl.{function}: there is no obsm {basis!r} (there: {found}). Give another or an array.")
        basis = data.obsm[key]
    return np.asarray(basis, dtype=float)[:, :2]


def _order(wanted: Sequence[str] | None, known: pd.Index, function: str) -> list[str]:
    names = list(known) if wanted is None else list(wanted)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"pl.{function}: there is no program {unknown[0]!r}; there are {', '.join(map(str, known))}.")
    return names


def plain_map(ax: Axes) -> None:
    """Axes without ticks and with one scale: the coordinates of a map of cells mean nothing."""
    ax.set_aspect("equal", adjustable="datalim")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _point_size(n: int) -> float:
    return float(np.clip(8_000 / max(n, 1), 0.25, 9))


@styled
def scores(
    data: Any,
    programs: str | Sequence[str] | None = None,
    *,
    basis: Any = "X_umap",
    ncols: int = 4,
    ax: Axes | None = None,
    show: Show = None,
    save: Save = None,
) -> Axes | list[Axes]:
    """The cells on a map, colored by their score of a program; several programs in a grid.

    Parameters
    ----------
    data
        AnnData with obsm["X_programs"] (annotated.h5ad), or a table of scores, cells by programs.
    programs
        One program or several; None draws all.
    basis
        Name of an entry of obsm ("umap", "X_pca" …), or coordinates, shape (n_obs, 2).
    ncols
        Maps in a row.
    ax
        Axes to draw on, for one program; None makes a figure.
    show
        Show the figure; None does so where a window can be opened and nothing is saved.
    save
        File to write; its suffix gives the format.

    Returns
    -------
    Axes, or a list of Axes
        The axes; a list of them for several programs. Colors end at the 1st and 99th percentile.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from ldvae import pl
    >>> table = pd.DataFrame({"P1": [0.1, 2.0, -1.0], "P2": [0.0, 1.0, 0.5]})
    >>> axes = pl.scores(table, basis=np.array([[0, 0], [1, 1], [2, 0]]), show=False)
    >>> [ax.get_title(loc="left") for ax in axes]
    ['P1', 'P2']
    """
    table = _scores(data, "scores")
    single = isinstance(programs, str)
    names = _order([programs] if isinstance(programs, str) else programs, table.columns, "scores")
    plane = _plane(data, basis, "scores")
    if ax is not None and len(names) > 1:
        raise InputError(f"pl.scores: one ax was given for {len(names)} programs. Name one program.")
    if ax is not None:
        grid = [ax]
    elif single:
        grid = [new_figure((4.5, 3.0), show, save).subplots()]
    else:
        columns = max(1, min(ncols, len(names)))
        rows = -(-len(names) // columns)
        grid = list(new_figure((2.4 * columns, 2.1 * rows), show, save).subplots(rows, columns, squeeze=False).ravel())
        for empty in grid[len(names) :]:
            empty.set_visible(False)
    for one, name in zip(grid, names, strict=False):
        values = table[name].to_numpy(dtype=float)
        order = np.argsort(values, kind="stable")
        low, high = np.nanquantile(values, [0.01, 0.99]) if len(values) else (0, 1)
        color: Any = {"c": values[order], "cmap": "viridis", "vmin": low, "vmax": max(high, low + 1e-9)}
        size = _point_size(len(plane)) * (1 if single or ax is not None else 0.6)
        points = one.scatter(plane[order, 0], plane[order, 1], s=size, linewidth=0, rasterized=True, **color)
        plain_map(one)
        bar = one.figure.colorbar(points, ax=one, shrink=0.6, aspect=22, pad=0.01)
        bar.outline.set_visible(False)
        bar.locator = MaxNLocator(4)
        bar.update_ticks()
        if not single and ax is None:
            one.set_title(name, loc="left")
    finish(grid[0].figure, show, save)
    return grid[0] if single or ax is not None else grid[: len(names)]


@styled
def cells(
    data: Any,
    by: Groups,
    *,
    basis: Any = "X_umap",
    colors: Sequence[str] | None = None,
    ax: Axes | None = None,
    show: Show = None,
    save: Save = None,
) -> Axes:
    """The cells on a map, colored by a categorical column, with the levels written where their cells are.

    Parameters
    ----------
    data
        AnnData, or anything if `by` and `basis` hold the values themselves.
    by
        Column of obs, or the group of each cell as a Series.
    basis
        Name of an entry of obsm, or coordinates, shape (n_obs, 2).
    colors
        One per level; None takes scanpy's `uns["{by}_colors"]` if there, else colors that all differ.
    ax
        Axes to draw on; None makes a figure.
    show
        Show the figure; None does so where a window can be opened and nothing is saved.
    save
        File to write; its suffix gives the format.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from ldvae import pl
    >>> ax = pl.cells(None, pd.Series(["B", "T", "T"]), basis=np.array([[0, 0], [1, 1], [2, 0]]), show=False)
    >>> sorted(text.get_text() for text in ax.texts)
    ['B', 'T']
    """
    groups, plane = _groups(data, by, "cells"), _plane(data, basis, "cells")
    levels = list(groups.cat.categories)
    if colors is None:
        colors = palette(len(levels), getattr(data, "uns", {}).get(f"{by}_colors") if isinstance(by, str) else None)
    ax = new_axes(ax, show, save, (6.6, 4.6))
    order = np.random.default_rng(0).permutation(len(plane))
    rgb = np.array([to_rgb(color) for color in colors] or [(0.5, 0.5, 0.5)])
    codes = groups.cat.codes.to_numpy()
    color = np.where(codes[:, None] < 0, 0.6, rgb[np.maximum(codes, 0)])[order]
    size = _point_size(len(plane)) * 2
    ax.scatter(plane[order, 0], plane[order, 1], c=color, s=size, linewidth=0, rasterized=True)
    plain_map(ax)
    figure_of(ax).draw_without_rendering()
    names = Names(ax, 9)
    for code in np.argsort(-np.bincount(codes[codes >= 0], minlength=len(levels)), kind="stable"):
        if (codes == code).sum() > len(codes) / 200:  # a few scattered cells have no middle
            x, y = np.median(plane[codes == code], axis=0)
            names.write(str(levels[code]), x, y, "center", fontweight="bold")
    finish(ax.figure, show, save)
    return ax


@styled
def groups(
    data: Any,
    program: str,
    by: Groups,
    *,
    ax: Axes | None = None,
    show: Show = None,
    save: Save = None,
) -> Axes:
    """Distribution of a program's scores in each group of cells, highest median first.

    Parameters
    ----------
    data
        AnnData with obsm["X_programs"], or a table of scores, cells by programs.
    program
        Which program.
    by
        Column of obs, or the group of each cell as a Series.
    ax
        Axes to draw on; None makes a figure as high as the groups need.
    show
        Show the figure; None does so where a window can be opened and nothing is saved.
    save
        File to write; its suffix gives the format.

    Returns
    -------
    Axes
        Boxes: median and quartiles; lines: 5th to 95th percentile.

    Examples
    --------
    >>> import pandas as pd
    >>> from ldvae import pl
    >>> table = pd.DataFrame({"P1": [0.1, 2.0, -1.0, 1.8]})
    >>> ax = pl.groups(table, "P1", pd.Series(["B", "T", "B", "T"]), show=False)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['T', 'B']
    """
    table = _scores(data, "groups")
    [program] = _order([program], table.columns, "groups")
    levels = _groups(data, by, "groups")
    by_level = pd.Series(table[program].to_numpy()).groupby(levels.to_numpy(), observed=True)
    quantiles = by_level.quantile([0.05, 0.25, 0.5, 0.75, 0.95]).unstack().sort_values(0.5, ascending=False)
    ax = new_axes(ax, show, save, (4.5, 0.7 + 0.2 * len(quantiles)))
    rows = np.arange(len(quantiles))
    ax.axvline(0, color=RULE, linewidth=0.8, zorder=0)
    ax.hlines(rows, quantiles[0.05], quantiles[0.95], color=MUTED, linewidth=0.9)
    ax.hlines(rows, quantiles[0.25], quantiles[0.75], color=SKY, linewidth=9, alpha=0.85)
    ax.vlines(quantiles[0.5], rows - 0.31, rows + 0.31, color=INK, linewidth=1.4, zorder=3)
    ax.set_yticks(rows, [short(level) for level in quantiles.index])
    ax.set_ylim(len(quantiles) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel(f"Score of {program}")
    finish(ax.figure, show, save)
    return ax


@styled
def dotplot(
    data: Any,
    by: Groups,
    *,
    programs: Sequence[str] | None = None,
    ax: Axes | None = None,
    show: Show = None,
    save: Save = None,
) -> Axes:
    """Programs by groups of cells: color is the mean score, size the share of cells with a score above 1 SD.

    Parameters
    ----------
    data
        AnnData with obsm["X_programs"], or a table of scores, cells by programs.
    by
        Column of obs, or the group of each cell as a Series.
    programs
        Which programs, in this order; None draws all.
    ax
        Axes to draw on; None makes a figure.
    show
        Show the figure; None does so where a window can be opened and nothing is saved.
    save
        File to write; its suffix gives the format.

    Examples
    --------
    >>> import pandas as pd
    >>> from ldvae import pl
    >>> table = pd.DataFrame({"P1": [0.1, 2.0, -1.0, 1.8], "P2": [1.2, 0.0, 1.1, -0.3]})
    >>> ax = pl.dotplot(table, pd.Series(["B", "T", "B", "T"]), show=False)
    >>> [label.get_text() for label in ax.get_xticklabels()]
    ['B', 'T']
    """
    table = _scores(data, "dotplot")
    names = _order(programs, table.columns, "dotplot")
    levels = _groups(data, by, "dotplot").to_numpy()
    by_level = table[names].groupby(levels, observed=True)
    means, share = by_level.mean().T, (table[names] > HIGH).groupby(levels, observed=True).mean().T
    end = max(1.0, float(np.nanmax(np.abs(means.to_numpy()))))
    width = 1.9 + 0.26 * means.shape[1] + 0.072 * max(len(short(name)) for name in names)
    height = 0.75 + 0.26 * len(names) + 0.072 * max(len(short(level)) for level in means.columns)
    ax = new_axes(ax, show, save, (width, height))
    y, x = np.divmod(np.arange(means.size), means.shape[1])
    largest = 110
    color: Any = {"c": means.to_numpy().ravel(), "cmap": "RdBu_r", "vmin": -end, "vmax": end}
    sizes = 4 + (largest - 4) * share.to_numpy().ravel()
    dots = ax.scatter(x, y, s=sizes, edgecolor=MUTED, linewidth=0.5, **color)
    ax.set_xticks(range(means.shape[1]), [short(level) for level in means.columns], rotation=90)
    ax.set_yticks(range(len(names)), [short(name) for name in names])
    ax.xaxis.tick_top()
    ax.set(xlim=(-0.6, means.shape[1] - 0.4), ylim=(len(names) - 0.4, -0.6))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    bar = ax.figure.colorbar(dots, ax=ax, shrink=0.5, aspect=14, pad=0.02, anchor=(0, 1), label="Mean score")
    bar.outline.set_visible(False)
    shares = (0.1, 0.5, 1.0)
    marks = [ax.scatter([], [], s=4 + (largest - 4) * value, color=MUTED, linewidth=0) for value in shares]
    place: Any = {"loc": "lower left", "bbox_to_anchor": (1.02, 0.0), "title": f"cells above {HIGH:g} SD"}
    ax.legend(marks, [f"{value:.0%}" for value in shares], labelspacing=0.9, title_fontsize=8, **place)
    finish(ax.figure, show, save)
    return ax
