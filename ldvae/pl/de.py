"""Differential expression: effect against evidence, and one test against another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ldvae.pl.style import BLUE, MUTED, RED, RULE, Names, Save, Show, figure_of, finish, need, new_axes, styled

CALLED = "is_de_fdr_"  # scvi-tools' column, followed by the rate


def called(table: pd.DataFrame) -> pd.Series:
    """Which genes a table of differential expression calls; none where it has no such column."""
    for column in table:
        if str(column).startswith(CALLED):
            return table[column].astype(bool)
    return pd.Series(False, index=table.index)


def fdr_of(table: pd.DataFrame) -> float | None:
    """The false discovery rate at which a differential expression table calls genes, from its column's name."""
    rates = [str(name).removeprefix(CALLED) for name in table if str(name).startswith(CALLED)]
    return float(rates[0]) if rates else None


@styled
def volcano(
    table: pd.DataFrame,
    *,
    significant: pd.Series | None = None,
    n_names: int = 12,
    delta: float | None = None,
    ax: Axes | None = None,
    show: Show = None,
    save: Save = None,
) -> Axes:
    """Effect against evidence of each gene; genes that are called are red, the strongest are named.

    Parameters
    ----------
    table
        A table of `LinearSCVI.differential_expression` or ``de/CONTRAST.tsv.gz``: `lfc_mean` (log2 fold change,
        posterior mean), `bayes_factor` (natural log), genes in the column `gene` or as index.
    significant
        Which genes are called; None takes the column `is_de_fdr_…`.
    n_names
        How many genes to name.
    delta
        Fold changes within ±delta count as no change: two dotted lines. None takes the column `delta` if there is one.
    ax
        Axes to draw on; None makes a figure.
    show
        Show the figure; None does so where a window can be opened and nothing is saved.
    save
        File to write; its suffix gives the format.

    Returns
    -------
    Axes
        An infinite Bayes factor (all posterior samples agree) is drawn at the upper edge of the finite ones.

    Examples
    --------
    >>> import pandas as pd
    >>> from ldvae import pl
    >>> table = pd.DataFrame({"lfc_mean": [2.1, -0.1], "bayes_factor": [4.2, -1.0]}, index=["ISG15", "ACTB"])
    >>> ax = pl.volcano(table.assign(**{"is_de_fdr_0.05": [True, False]}), show=False)
    >>> [text.get_text() for text in ax.texts]
    ['ISG15']
    """
    source = "a table of differential_expression, or de/CONTRAST.tsv.gz"
    need(table, ["lfc_mean", "bayes_factor"], "volcano", source)
    significant = called(table) if significant is None else significant
    genes = table["gene"] if "gene" in table else table.index.to_series()
    evidence = drawn_evidence(table["bayes_factor"])
    ax = new_axes(ax, show, save, (4.5, 3.5))
    for chosen, color, alpha in ((~significant, MUTED, 0.35), (significant, RED, 0.7)):
        points: Any = {"color": color, "s": 8, "alpha": alpha, "linewidth": 0, "rasterized": True}
        ax.scatter(table["lfc_mean"][chosen], evidence[chosen], **points)
    if delta is None and "delta" in table and len(table):
        delta = float(table["delta"].iloc[0])
    ax.axvline(0, color=RULE, linewidth=0.8, zorder=0)
    for end in (-delta, delta) if delta else ():
        ax.axvline(end, color=MUTED, linewidth=0.7, linestyle=":", zorder=0)
    ax.set(xlabel="log2 fold change (posterior mean)", ylabel="log Bayes factor")
    ax.margins(x=0.16, y=0.08)
    if ax.get_figure() is not None:
        figure_of(ax).draw_without_rendering()  # names are placed by pixels, so the axes must have their size
    strength = evidence[significant].rank() + table["lfc_mean"][significant].abs().rank()
    names = Names(ax, 7)
    for row in strength.nlargest(n_names).index:
        x = float(table.at[row, "lfc_mean"])
        names.write(str(genes.at[row]), x, float(evidence.at[row]), "left" if x >= 0 else "right", style="italic")
    finish(ax.figure, show, save)
    return ax


def drawn_evidence(bayes_factor: pd.Series) -> pd.Series:
    """Log Bayes factors with infinite ones at the ends of the finite ones."""
    finite = bayes_factor[np.isfinite(bayes_factor)]
    return bayes_factor.clip(finite.min(), finite.max()) if len(finite) else bayes_factor.clip(-1, 1)


@styled
def agreement(
    table: pd.DataFrame,
    x: str = "lfc_mean",
    y: str = "pseudobulk_lfc",
    *,
    significant: pd.Series | None = None,
    labels: tuple[str, str] = ("log2 fold change, model", "log2 fold change, pseudobulk"),
    ax: Axes | None = None,
    show: Show = None,
    save: Save = None,
) -> Axes:
    """Fold changes of one test against those of another, gene by gene; on the line they agree.

    Parameters
    ----------
    table
        A table with both fold changes, such as ``de/CONTRAST.tsv.gz`` with a pseudobulk test.
    x, y
        Its columns.
    significant
        Genes to color; None takes those with `pseudobulk_padj` below the rate of the column `is_de_fdr_…`, or 0.05.
    labels
        Labels of the axes.
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
    >>> table = pd.DataFrame({"lfc_mean": [2.1, -0.1], "pseudobulk_lfc": [1.8, 0.0], "pseudobulk_padj": [0.001, 0.9]})
    >>> ax = pl.agreement(table, show=False)
    >>> ax.get_ylabel()
    'log2 fold change, pseudobulk'
    """
    need(table, [x, y], "agreement", "de/CONTRAST.tsv.gz of a contrast that was tested by pseudobulk too")
    if significant is None:
        padj = table["pseudobulk_padj"] if "pseudobulk_padj" in table else pd.Series(np.nan, index=table.index)
        significant = padj < (fdr_of(table) or 0.05)
    ax = new_axes(ax, show, save, (4.5, 3.5))
    ax.axline((0, 0), slope=1, color=MUTED, linewidth=0.9)
    for chosen, color, alpha in ((~significant, MUTED, 0.35), (significant, BLUE, 0.7)):
        points: Any = {"color": color, "s": 8, "alpha": alpha, "linewidth": 0, "rasterized": True}
        ax.scatter(table[x][chosen], table[y][chosen], **points)
    ax.set(xlabel=labels[0], ylabel=labels[1])
    finish(ax.figure, show, save)
    return ax
