"""Programs in an experiment with replicates: one point per donor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ldvae.errors import InputError
from ldvae.pl.style import INK, MUTED, RULE, Save, Show, finish, need, new_axes, palette, short, styled


@styled
def donors(
    table: pd.DataFrame,
    program: str,
    *,
    value: str = "mean",
    ax: Axes | None = None,
    show: Show = None,
    save: Save = None,
) -> Axes:
    """Mean score of a program in each cell type and condition, a point per donor, lines between a donor's points.

    Parameters
    ----------
    table
        programs/donor_means.tsv, or what `ldvae.programs.donor_means` returns: a row per program, donor, cell type and
        condition, with `program`, `cell_type`, `condition`, `donor` and `mean` (of the scores).
    program
        Which program.
    value
        Column to draw: mean, or high (share of the cells among the highest tenth).
    ax
        Axes to draw on; None makes a figure as wide as the cell types need.
    show
        Show the figure; None does so where a window can be opened and nothing is saved.
    save
        File to write; its suffix gives the format.

    Examples
    --------
    >>> import pandas as pd
    >>> from ldvae import pl
    >>> table = pd.DataFrame({"donor": ["d1", "d1", "d2", "d2"], "condition": ["ctrl", "stim"] * 2})
    >>> table = table.assign(program="P2", cell_type="B", mean=[-0.4, 1.9, -0.2, 2.2])
    >>> ax = pl.donors(table, "P2", show=False)
    >>> [label.get_text() for label in ax.get_xticklabels()]
    ['B']
    """
    need(table, ["program", "cell_type", "condition", "donor", value], "donors", "programs/donor_means.tsv")
    rows = table[table["program"] == program]
    if rows.empty:
        found = ", ".join(map(str, table["program"].unique()))
        raise InputError(f"pl.donors: there is no program {program!r}; the table has {found}.")
    types = list(dict.fromkeys(rows["cell_type"]))
    conditions = list(dict.fromkeys(rows["condition"]))
    colors = dict(zip(conditions, palette(len(conditions)), strict=True))
    step = 0.7 / max(len(conditions), 1)
    offset = {name: (k - (len(conditions) - 1) / 2) * step for k, name in enumerate(conditions)}
    ax = new_axes(ax, show, save, (max(4.5, 1.2 + 0.28 * len(types) * max(len(conditions), 1)), 3.2))
    ax.axhline(0, color=RULE, linewidth=0.8, zorder=0)
    x = rows["cell_type"].map(types.index) + rows["condition"].map(offset)
    for _, pair in rows.assign(x=x).groupby(["cell_type", "donor"], sort=False):
        if len(pair) > 1:
            pair = pair.sort_values("x")
            ax.plot(pair["x"], pair[value], color=MUTED, linewidth=0.5, alpha=0.6, zorder=1)
    for name in conditions:
        own = rows["condition"] == name
        points: Any = {"color": colors[name], "s": 16, "linewidth": 0, "alpha": 0.85, "zorder": 2}
        ax.scatter(x[own], rows[value][own], label=short(name), **points)
        means = rows[own].groupby("cell_type", sort=False)[value].mean()
        middle = np.array([types.index(kind) for kind in means.index]) + offset[name]
        ax.hlines(means, middle - step * 0.38, middle + step * 0.38, color=INK, linewidth=1.4, zorder=3)
    ax.set_xticks(range(len(types)), [short(kind) for kind in types], rotation=45 if len(types) > 3 else 0)
    if len(types) > 3:
        for name in ax.get_xticklabels():
            name.set(ha="right", rotation_mode="anchor")
    ax.set(
        ylabel=f"Mean score of {program}" if value == "mean" else f"{program}: {value}", xlim=(-0.6, len(types) - 0.4)
    )
    ax.tick_params(axis="x", length=0)
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    finish(ax.figure, show, save)
    return ax
