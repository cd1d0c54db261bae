"""The cells that quality control kept, and the limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from ldvae.errors import InputError
from ldvae.pl.style import BLUE, MUTED, RED, Save, Show, finish, need, new_axes, new_figure, short, styled

#: Titles of the metrics of a cell, named as scanpy names them.
METRIC_TITLES = {
    "total_counts": "Total counts",
    "n_genes_by_counts": "Genes detected",
    "pct_counts_mt": "Mitochondrial counts (%)",
    "pct_counts_ribo": "Ribosomal counts (%)",
    "pct_counts_hb": "Hemoglobin counts (%)",
    "doublet_score": "Doublet score",
}
LOGARITHMIC = ("total_counts", "n_genes_by_counts")
MOST_CELLS = 20_000  # of a batch, for the shape of a distribution

Thresholds = Mapping[str, Mapping[str, Mapping[str, float | None]]]


def drawn_metrics(cells: pd.DataFrame) -> list[str]:
    """Metrics of the table that are not the same in all cells; where all are, the first."""
    known = [name for name in METRIC_TITLES if name in cells]
    return [name for name in known if cells[name].nunique() > 1] or known[:1]


@styled
def qc_violins(
    cells: pd.DataFrame,
    metrics: str | Sequence[str] | None = None,
    *,
    thresholds: Thresholds | None = None,
    ax: Axes | None = None,
    show: Show = None,
    save: Save = None,
) -> Axes | list[Axes]:
    """Distribution of quality metrics per batch: all cells above the line, kept cells below it, limits in red.

    Parameters
    ----------
    cells
        qc/cells.tsv.gz: one row per cell with `kept`, the metrics, and `batch` if there are several.
    metrics
        One metric or several, such as "total_counts"; None draws all that vary.
    thresholds
        Limits as {metric: {batch: {"lower": number or None, "upper": …}}}, as in qc/summary.json.
    ax
        Axes to draw on, for one metric; None makes a figure.
    show
        Show the figure; None does so where a window can be opened and nothing is saved.
    save
        File to write; its suffix gives the format.

    Returns
    -------
    Axes, or a list of Axes
        The axes; a list of them for several metrics. Counts and genes are on a logarithmic axis; shapes are made from
        20,000 cells of a batch at most, taken at random.

    Examples
    --------
    >>> import pandas as pd
    >>> from ldvae import pl
    >>> cells = pd.DataFrame({"total_counts": [900, 1200, 2500, 100], "kept": [True, True, True, False]})
    >>> ax = pl.qc_violins(cells, "total_counts", show=False)
    >>> ax.get_xlabel()
    'Total counts'
    """
    need(cells, ["kept"], "qc_violins", "qc/cells.tsv.gz")
    single = isinstance(metrics, str)
    names = [metrics] if isinstance(metrics, str) else list(metrics or drawn_metrics(cells))
    need(cells, names, "qc_violins", "qc/cells.tsv.gz")
    if not names:
        raise InputError(f"pl.qc_violins: the table has none of the metrics {', '.join(METRIC_TITLES)}.")
    if ax is not None and len(names) > 1:
        raise InputError(f"pl.qc_violins: one ax was given for {len(names)} metrics. Name one metric.")
    batch = cells["batch"].astype(str) if "batch" in cells else pd.Series("all", index=cells.index)
    if ax is None:
        rows = -(-len(names) // 3)
        columns = min(3, len(names))
        height = 0.95 + 0.42 * batch.nunique()
        axes = new_figure((4.5 * columns if columns == 1 else 3.4 * columns, height * rows), show, save)
        grid = list(axes.subplots(rows, columns, squeeze=False).ravel())
        for empty in grid[len(names) :]:
            empty.set_visible(False)
    else:
        grid = [ax]
    by_batch = dict(list(cells.groupby(batch.to_numpy(), sort=True)))
    for one, metric in zip(grid, names, strict=False):
        _violins(one, metric, by_batch, (thresholds or {}).get(metric, {}))
    finish(grid[0].figure, show, save)
    return grid[0] if single else grid[: len(names)]


def _violins(
    ax: Axes, metric: str, by_batch: Mapping[str, pd.DataFrame], limits: Mapping[str, Mapping[str, float | None]]
) -> None:
    log = metric in LOGARITHMIC
    for row, (name, of_batch) in enumerate(by_batch.items()):
        for above, color, part in ((True, MUTED, of_batch), (False, BLUE, of_batch[of_batch["kept"].astype(bool)])):
            values = part[metric].dropna().to_numpy(dtype=float)
            if len(values) > MOST_CELLS:
                values = np.random.default_rng(0).choice(values, MOST_CELLS, replace=False)
            if len(values) == 0:
                continue
            # The axis points down, so that the first batch is on top: matplotlib's "low" half is the upper one.
            half: Any = {"orientation": "horizontal", "side": "low" if above else "high"}
            parts: Any = ax.violinplot(_logged(values, log), [row], widths=0.85, showextrema=False, **half)
            for body in parts["bodies"]:
                body.set(facecolor=color, edgecolor="none", alpha=0.45 if above else 0.75)
        for limit in limits.get(name, {}).values():
            if limit is not None and np.isfinite(limit):
                ax.plot([_logged(limit, log)] * 2, [row - 0.46, row + 0.46], color=RED, linewidth=1.4)
    ax.set(yticks=range(len(by_batch)), xlabel=METRIC_TITLES.get(metric, metric), ylim=(len(by_batch) - 0.45, -0.6))
    ax.set_yticklabels([short(name) for name in by_batch])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    if log:
        ax.set_xticks(*_decades(*ax.get_xlim()))


def _logged(values: Any, log: bool) -> Any:
    return np.log10(np.maximum(values, 1)) if log else values


def _decades(low: float, high: float) -> tuple[list[float], list[str]]:
    """Round ticks between two decimal logarithms, as few as tell the range."""
    values: list[float] = []
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        values = [factor * 10**power for power in range(9) for factor in factors]
        values = [value for value in values if low <= np.log10(value) <= high]
        if len(values) >= 3:
            break
    return [float(np.log10(value)) for value in values], [f"{value:,.10g}" for value in values]


@styled
def qc_scatter(
    cells: pd.DataFrame,
    *,
    thresholds: Thresholds | None = None,
    ax: Axes | None = None,
    show: Show = None,
    save: Save = None,
) -> Axes:
    """Detected genes against counts of each cell, colored by mitochondrial share; removed cells are crosses.

    Parameters
    ----------
    cells
        qc/cells.tsv.gz: `total_counts`, `n_genes_by_counts`, `kept`, and `pct_counts_mt` if it is known.
    thresholds
        As in `qc_violins`; limits of all batches are drawn.
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
    >>> cells = pd.DataFrame({"total_counts": [900, 1200, 100], "n_genes_by_counts": [500, 600, 50]})
    >>> ax = pl.qc_scatter(cells.assign(kept=[True, True, False]), show=False)
    >>> ax.get_ylabel()
    'Genes detected'
    """
    need(cells, ["total_counts", "n_genes_by_counts", "kept"], "qc_scatter", "qc/cells.tsv.gz")
    ax = new_axes(ax, show, save, (5.2, 3.8))
    cells = cells[cells["total_counts"] > 0]
    has_mt = "pct_counts_mt" in cells and cells["pct_counts_mt"].notna().any()
    if has_mt:
        cells = cells.sort_values("pct_counts_mt", kind="stable")
    kept = cells["kept"].astype(bool)
    for chosen, marker, size in ((kept, "o", 4), (~kept, "x", 9)):
        shown = cells[chosen]
        label = f"{'kept' if marker == 'o' else 'removed'} ({len(shown):,})"
        color: Any = {"color": BLUE if marker == "o" else MUTED}
        if has_mt:
            top = max(1e-9, float(cells["pct_counts_mt"].quantile(0.99)))
            color = {"c": shown["pct_counts_mt"], "cmap": "viridis", "vmin": 0, "vmax": top}
        points: Any = {"s": size, "marker": marker, "linewidth": 0 if marker == "o" else 0.7, "rasterized": True}
        dots = ax.scatter(shown["total_counts"], shown["n_genes_by_counts"], label=label, **points, **color)
    if has_mt:
        bar = ax.figure.colorbar(dots, ax=ax, shrink=0.7, aspect=22, pad=0.02, label=METRIC_TITLES["pct_counts_mt"])
        bar.outline.set_visible(False)
    for metric, line in (("total_counts", ax.axvline), ("n_genes_by_counts", ax.axhline)):
        bounds = {value for batch in (thresholds or {}).get(metric, {}).values() for value in batch.values() if value}
        for value in sorted(bounds):
            if np.isfinite(value) and value > 0:
                line(value, color=RED, linewidth=0.9)
    ax.set(xscale="log", yscale="log", xlabel=METRIC_TITLES["total_counts"], ylabel=METRIC_TITLES["n_genes_by_counts"])
    plain_numbers(ax)
    ax.legend(loc="lower right", markerscale=1.8)
    finish(ax.figure, show, save)
    return ax


def plain_numbers(ax: Axes) -> None:
    """Label logarithmic axes by plain numbers; matplotlib's own labels are formulas."""
    for axis, scale in ((ax.xaxis, ax.get_xscale()), (ax.yaxis, ax.get_yscale())):
        if scale == "log":
            low, high = axis.get_view_interval()
            if high < 30 * low:  # hardly a power of ten lies between them
                axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
            axis.set_minor_formatter(lambda *_: "")
