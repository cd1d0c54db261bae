"""The genes of a program."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ldvae.errors import InputError
from ldvae.pl.style import BLUE, RED, RULE, Save, Show, finish, need, new_axes, short, styled


@styled
def loadings(
    table: pd.DataFrame,
    program: str,
    *,
    n_genes: int = 15,
    ax: Axes | None = None,
    show: Show = None,
    save: Save = None,
) -> Axes:
    """Loadings of the strongest genes of both sides of a program, with their intervals over seeds.

    Parameters
    ----------
    table
        programs/top_genes.tsv or programs/consensus.tsv: a row per program and gene with `program`, `gene`, `loading`,
        and `lower`, `upper` where there are intervals. Or loadings as a table of genes by programs.
    program
        Which program, such as "P1"; a column of a table of genes by programs.
    n_genes
        Genes of each side.
    ax
        Axes to draw on; None makes a figure as high as the genes need.
    show
        Show the figure; None does so where a window can be opened and nothing is saved.
    save
        File to write; its suffix gives the format.

    Returns
    -------
    Axes
        The axes: positive side on top in red, negative side below in blue, each strongest first from the outside.

    Examples
    --------
    >>> import pandas as pd
    >>> from ldvae import pl
    >>> table = pd.DataFrame({"P1": [2.0, 0.1, -1.2]}, index=["LYZ", "CD3D", "MS4A1"])
    >>> ax = pl.loadings(table, "P1", show=False)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['LYZ', 'CD3D', 'MS4A1']
    """
    genes = strongest(table, program, n_genes)
    ax = new_axes(ax, show, save, (4.5, 0.65 + 0.158 * (len(genes) + 1)))
    ax.axvline(0, color=RULE, linewidth=0.8)
    for side, color in (("positive", RED), ("negative", BLUE)):
        rows = genes[genes["side"] == side]
        if "lower" in rows:
            ax.hlines(rows["position"], rows["lower"], rows["upper"], color=color, linewidth=1.3, alpha=0.6)
        ax.scatter(rows["loading"], rows["position"], color=color, s=15, linewidth=0, zorder=3)
    ax.set_yticks(genes["position"], [short(gene) for gene in genes["gene"]], style="italic")
    ax.set_ylim(genes["position"].max() + 0.7 if len(genes) else 1, -0.7)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("Loading: log fold change per SD of the score")
    finish(ax.figure, show, save)
    return ax


def strongest(table: pd.DataFrame, program: str, n_genes: int) -> pd.DataFrame:
    """The genes that `loadings` draws, from top to bottom, with `side` and `position` on the axis."""
    long = "gene" in table
    if long:
        need(table, ["program", "loading"], "loadings", "programs/top_genes.tsv")
    known = sorted(table["program"].unique()) if long else list(table)
    if program not in known:
        raise InputError(f"pl.loadings: there is no program {program!r}; the table has {', '.join(map(str, known))}.")
    if long:
        rows = table[table["program"] == program]
    else:
        rows = pd.DataFrame({"gene": table.index.astype(str), "loading": table[program].to_numpy()})
    weight = rows["weighted"] if "weighted" in rows else rows["loading"]
    rows = rows.assign(weight=weight, side=np.where(weight >= 0, "positive", "negative"))
    up = rows[rows["side"] == "positive"].nlargest(n_genes, "weight")
    down = rows[rows["side"] == "negative"].nsmallest(n_genes, "weight").iloc[::-1]
    genes = pd.concat([up, down], ignore_index=True)
    return genes.assign(position=np.arange(len(genes)) + (genes["side"] == "negative") * 0.6)
