"""Tables as colors: programs by genes, by groups, by runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ldvae.errors import InputError
from ldvae.pl.style import Save, Show, finish, need, new_axes, short, styled


@styled
def heatmap(
    matrix: pd.DataFrame,
    *,
    value: str,
    limits: tuple[float, float] | None = None,
    cmap: str = "RdBu_r",
    italic: bool = False,
    ax: Axes | None = None,
    show: Show = None,
    save: Save = None,
) -> Axes:
    """A table as colors, with its numbers written where there is room (at most 12 columns).

    Parameters
    ----------
    matrix
        Rows by columns; NaN stays empty.
    value
        What a value is, for the color bar.
    limits
        Ends of the color scale; None makes it symmetric around 0.
    cmap
        Name of a matplotlib color map.
    italic
        The columns are genes.
    ax
        Axes to draw on; None makes a figure of the size that the table needs.
    show
        Show the figure; None does so where a window can be opened and nothing is saved.
    save
        File to write; its suffix gives the format.

    Examples
    --------
    >>> import pandas as pd
    >>> from ldvae import pl
    >>> scores = pd.DataFrame({"B": [1.5, -0.2], "T": [-0.8, 0.9]}, index=["P1", "P2"])
    >>> ax = pl.heatmap(scores, value="Mean score", show=False)
    >>> [text.get_text() for text in ax.texts][:2]
    ['1.50', '-0.80']
    """
    n_rows, n_columns = matrix.shape
    if not n_rows or not n_columns:
        raise InputError(f"pl.heatmap: the table has {n_rows} rows and {n_columns} columns; there is nothing to draw.")
    values = matrix.to_numpy(dtype=float)
    written = n_columns <= 12
    if limits is None:
        end = float(np.nanquantile(np.abs(values), 0.99)) if np.isfinite(values).any() else 1.0
        limits = (-max(end, 1e-6), max(end, 1e-6))
    rows, columns = [short(row, 34) for row in matrix.index], [short(column) for column in matrix.columns]
    letter = 0.072  # width in inches
    width = 0.2 + letter * max(map(len, rows)) + (0.34 if written else 0.175) * max(n_columns, 3)
    height = 0.95 + letter * max(map(len, columns)) + 0.2 * max(n_rows, 2)
    ax = new_axes(ax, show, save, (width, height))
    many = values.size > 3000
    image = ax.pcolormesh(values, cmap=cmap, vmin=limits[0], vmax=limits[1], edgecolor="none", rasterized=many)
    ax.set_yticks(np.arange(n_rows) + 0.5, rows)
    ax.set_xticks(np.arange(n_columns) + 0.5, columns, rotation=90, style="italic" if italic else "normal")
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.invert_yaxis()
    ax.spines[:].set_visible(False)
    if written:
        _write_values(ax, values, image)
    shrink = min(1.0, 2.2 / width)
    bar = ax.figure.colorbar(image, ax=ax, location="bottom", shrink=shrink, aspect=24, pad=0.03, label=value)
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(3)
    bar.update_ticks()
    finish(ax.figure, show, save)
    return ax


def _write_values(ax: Axes, values: np.ndarray, image: Any) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = float(np.dot(image.cmap(image.norm(value))[:3], (0.299, 0.587, 0.114))) < 0.55
            place: Any = {"ha": "center", "va": "center", "fontsize": 6.5, "color": "#ffffff" if dark else "#111111"}
            ax.text(column + 0.5, row + 0.5, f"{round(value, 2) + 0.0:.2f}", **place)


@styled
def programs_heatmap(
    loadings: pd.DataFrame,
    genes: Sequence[str] | None = None,
    *,
    n_genes: int | None = None,
    ax: Axes | None = None,
    show: Show = None,
    save: Save = None,
) -> Axes:
    """Loadings of the programs' strongest genes: programs in rows, genes in columns.

    Parameters
    ----------
    loadings
        Genes by programs: programs/loadings.tsv, with genes as index.
    genes
        Genes to draw, in this order; None takes the genes with the largest loadings of each program.
    n_genes
        How many genes of each program if `genes` is None; None gives 2 to 6, fewer for many programs.
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
    >>> loadings = pd.DataFrame({"P1": [2.0, 0.1], "P2": [-0.3, 1.4]}, index=["LYZ", "CD3D"])
    >>> ax = pl.programs_heatmap(loadings, show=False)
    >>> [label.get_text() for label in ax.get_xticklabels()]
    ['LYZ', 'CD3D']
    """
    if genes is None:
        n = n_genes or int(np.clip(44 // max(loadings.shape[1], 1), 2, 6))
        genes = list(dict.fromkeys(gene for name in loadings for gene in loadings[name].nlargest(n).index))
    unknown = [gene for gene in genes if gene not in loadings.index]
    if unknown:
        raise InputError(f"pl.programs_heatmap: the loadings have no gene {', '.join(map(repr, unknown[:5]))}.")
    matrix = loadings.loc[list(genes)].T
    return heatmap(matrix, value="Loading", italic=True, ax=ax, show=show, save=save)


@styled
def stability(cosines: pd.DataFrame, *, ax: Axes | None = None, show: Show = None, save: Save = None) -> Axes:
    """Cosine of each program in a single run with the consensus over runs; 1 is the same.

    Parameters
    ----------
    cosines
        programs/stability.tsv (`program`, `run`, `cosine`), or a table of programs by runs.
    ax, show, save
        As in `heatmap`.

    Examples
    --------
    >>> import pandas as pd
    >>> from ldvae import pl
    >>> cosines = pd.DataFrame({"seed 0": [0.99, 0.7], "seed 1": [0.98, 0.8]}, index=["P1", "P2"])
    >>> ax = pl.stability(cosines, show=False)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['P1', 'P2']
    """
    if "cosine" in cosines:
        need(cosines, ["program", "run"], "stability", "programs/stability.tsv")
        order = list(dict.fromkeys(cosines["program"]))
        cosines = cosines.pivot(index="program", columns="run", values="cosine").loc[order]
    return heatmap(cosines, value="Cosine", limits=(0.5, 1), cmap="viridis", ax=ax, show=show, save=save)
