"""The figures of the report, each a function of plain tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import is_color_like, to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ldvae.report.drawing import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    PURPLE,
    RED,
    RULE,
    SKY,
    STYLE,
    Drawing,
    Hover,
)

NARROW = 4.5  # inches, at 96 pixels each: half the column of the page, and not much more than a phone

METRIC_TITLES = {
    "total_counts": "Total counts",
    "n_genes_by_counts": "Genes detected",
    "pct_counts_mt": "Mitochondrial counts (%)",
    "pct_counts_ribo": "Ribosomal counts (%)",
    "pct_counts_hb": "Haemoglobin counts (%)",
    "doublet_score": "Doublet score",
}

styled = mpl.rc_context(STYLE)


def palette(n: int, given: Sequence[str] | None = None) -> list[str]:
    """Colours for `n` levels: those given (scanpy's `{column}_colors`), else Okabe-Ito and shades of it."""
    if given is not None and len(given) >= n and all(is_color_like(colour) for colour in given):
        return [mpl.colors.to_hex(colour) for colour in given[:n]]
    base = [BLUE, ORANGE, GREEN, PURPLE, RED, SKY, "#8a8a8a"]
    shades = [(0.0, 0.0), (0.45, 1.0), (0.35, 0.0), (0.7, 1.0), (0.55, 0.0), (0.2, 1.0)]
    colours = []
    for i in range(n):
        share, towards = shades[(i // len(base)) % len(shades)]
        rgb = np.array(to_rgb(base[i % len(base)])) * (1 - share) + towards * share
        colours.append(mpl.colors.to_hex(tuple(rgb)))
    return colours


# ---------------------------------------------------------------------------------------------- quality control


@styled
def qc_distribution(metric: str, cells: pd.DataFrame, thresholds: dict[str, dict[str, float | None]]) -> Drawing:
    """One metric per batch, all cells above the line and kept cells below it, with the thresholds drawn."""
    batches = sorted(cells["batch"].astype(str).unique())
    log = metric in ("total_counts", "n_genes_by_counts")
    figure = Figure(figsize=(NARROW, 0.95 + 0.42 * len(batches)), layout="constrained")
    ax = figure.subplots()
    sampled = False
    for row, batch in enumerate(batches):
        of_batch = cells[cells["batch"].astype(str) == batch]
        for above, colour, part in ((True, MUTED, of_batch), (False, BLUE, of_batch[of_batch["kept"]])):
            values = part[metric].dropna().to_numpy(dtype=float)
            if len(values) > 20_000:
                values, sampled = np.random.default_rng(0).choice(values, 20_000, replace=False), True
            if len(values) == 0:
                continue
            # The axis points down, so that the first batch is on top: matplotlib's "low" half is the upper one.
            parts: Any = ax.violinplot(
                _logged(values, log),
                [row],
                orientation="horizontal",
                widths=0.85,
                showextrema=False,
                side="low" if above else "high",
            )
            for body in parts["bodies"]:
                body.set(facecolor=colour, edgecolor="none", alpha=0.45 if above else 0.75)
        for limit in thresholds.get(batch, {}).values():
            if limit is not None and np.isfinite(limit):
                ax.plot([_logged(limit, log)] * 2, [row - 0.46, row + 0.46], color=RED, linewidth=1.4)
    ax.set(yticks=range(len(batches)), xlabel=METRIC_TITLES.get(metric, metric), ylim=(len(batches) - 0.45, -0.6))
    ax.set_yticklabels([_short(batch) for batch in batches])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    if log:
        ax.set_xticks(*_decades(*ax.get_xlim()))
    caption = "Shapes from 20,000 cells of a batch at most, taken at random." if sampled else ""
    return Drawing(name=f"qc_{metric}", figure=figure, title=METRIC_TITLES.get(metric, metric), caption=caption)


def _logged(values: Any, log: bool) -> Any:
    return np.log10(np.maximum(values, 1)) if log else values


def _decades(low: float, high: float) -> tuple[list[float], list[str]]:
    """Round ticks between two decimal logarithms, as few as tell the range."""
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        values = [factor * 10**power for power in range(9) for factor in factors]
        values = [value for value in values if low <= np.log10(value) <= high]
        if len(values) >= 3:
            break
    return [float(np.log10(value)) for value in values], [f"{value:,.10g}" for value in values]


# ---------------------------------------------------------------------------------------------- training


@styled
def training_curve(quantity: str, title: str, histories: dict[str, pd.DataFrame], best: str) -> Drawing | None:
    """Training and validation values of one quantity per epoch; the best run stands out from the others."""
    columns = {split: f"{quantity}_{split}" for split in ("train", "validation")}
    history = histories[best]
    if columns["train"] not in history:
        return None
    figure = Figure(figsize=(NARROW, 2.8), layout="constrained")
    ax = figure.subplots()
    for run, other in histories.items():
        if run != best and columns["validation"] in other:
            ax.plot(other["epoch"], other[columns["validation"]], color=MUTED, linewidth=0.6, alpha=0.45)
    block, name = history[["epoch"]].copy(), f"training-{quantity}"
    hover = []
    for split, colour, dashes in (("train", BLUE, (None, None)), ("validation", RED, (4, 1.5))):
        if columns[split] in history and history[columns[split]].notna().any():
            block[split] = history[columns[split]]
            ax.plot(history["epoch"], block[split], color=colour, linewidth=1.5, dashes=dashes, label=split)
            shown = Hover(axes=ax, block=name, x="epoch", y=split, name="run", show={"epoch": "epoch", split: split})
            hover.append(shown)
    ax.axvline(history["epoch"].iloc[-1], color=INK, linewidth=0.8, linestyle=":")
    # The first epochs would flatten everything that follows.
    later = block.drop(columns="epoch").iloc[len(block) // 5 :].to_numpy()
    if np.isfinite(later).any():
        low, high = np.nanmin(later), np.nanmax(later)
        ax.set_ylim(low - 0.05 * (high - low) - 1e-6, high + 0.08 * (high - low) + 1e-6)
    ax.set(xlabel="Epoch", ylabel="nats per cell")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    ax.legend(loc="best")
    block.insert(0, "run", best)
    drawing = Drawing(
        name=f"training_{quantity}",
        figure=figure,
        title=title,
        caption="",
        hover=tuple(hover),
        blocks={name: block},
    )
    return drawing


@styled
def kl_per_factor(kl: Sequence[float], collapsed: int, run: str) -> Drawing:
    """KL divergence of each factor from the prior, largest first; the `collapsed` smallest carry no information."""
    order = np.argsort(kl)[::-1]
    values = np.asarray(kl, dtype=float)[order]
    dead = np.arange(len(values)) >= len(values) - collapsed
    figure = Figure(figsize=(NARROW, 2.8), layout="constrained")
    ax = figure.subplots()
    positions = np.arange(len(values))
    ax.bar(positions[~dead], values[~dead], color=BLUE, width=0.75, label="in use")
    if dead.any():
        ax.scatter(
            positions[dead], values[dead], marker="x", color=RED, s=22, linewidth=1.4, label="collapsed", zorder=3
        )
        ax.legend(loc="upper right")
    ax.set(ylabel="KL, nats per cell", xlabel="Factor, largest first", xticks=positions)
    step = max(1, len(values) // 12)
    ax.set_xticklabels([f"{k}" if i % step == 0 else "" for i, k in enumerate(order)])
    block = pd.DataFrame({"factor": [f"Z_{k}" for k in order], "position": positions, "kl": values})
    caption = f"How much each factor of run {run} says about a cell."
    caption += f" {collapsed} of {len(values)} collapsed." if collapsed else " None collapsed."
    return Drawing(
        name="kl_per_factor",
        figure=figure,
        title="KL per factor",
        caption=caption,
        hover=(Hover(axes=ax, block="kl", x="position", y="kl", name="factor", show={"kl": "KL"}),),
        blocks={"kl": block},
    )


# ---------------------------------------------------------------------------------------------- model choice


@styled
def choice_curve(settings: pd.DataFrame, runs: pd.DataFrame, quantity: str) -> Drawing | None:
    """Held-out error, stability or reproducible rank of each setting against its number of factors."""
    titles = {
        "elbo_test": ("Held-out error", "negative ELBO, nats per cell"),
        "stability": ("Stability over seeds", "cosine with the consensus"),
        "reproducible_rank": ("Reproducible rank", "programs that reproduce"),
    }
    title, ylabel = titles[quantity]
    column = {"elbo_test": "elbo_test_mean", "stability": "stability_mean"}.get(quantity, quantity)
    settings = settings[settings[column].notna()].sort_values("n_latent", kind="stable")
    if len(settings) < 2:
        return None  # one point is no curve; the table has its numbers
    # Settings that differ in something other than the number of factors stand side by side.
    by_factors = settings["n_latent"].is_unique
    settings = settings.assign(position=settings["n_latent"] if by_factors else range(len(settings)))
    figure = Figure(figsize=(NARROW, 2.8), layout="constrained")
    ax = figure.subplots()
    block = settings[["setting", "position", "n_latent", "n_runs", column]].copy()
    show = {"n_latent": "factors", "n_runs": "runs", column: title.lower()}
    if quantity == "elbo_test":
        seeds = runs.merge(settings[["setting", "position"]], on="setting")
        ax.scatter(seeds["position"], seeds["elbo_test"], color=MUTED, s=12, alpha=0.6, linewidth=0, label="one run")
        error = settings["elbo_test_se"].fillna(0)
        ax.errorbar(
            settings["position"],
            settings[column],
            yerr=error,
            color=BLUE,
            linewidth=1.2,
            marker="o",
            markersize=4,
            label="mean ± s.e.",
        )
        caption = "Lower is better. Grey: single runs; blue: mean over seeds and its standard error."
    elif quantity == "stability":
        ax.plot(
            settings["position"], settings[column], color=BLUE, marker="o", markersize=4, linewidth=1.2, label="mean"
        )
        ax.plot(
            settings["position"],
            settings["stability_min"],
            color=ORANGE,
            marker="v",
            markersize=4,
            linewidth=1,
            label="least stable program",
        )
        ax.set_ylim(min(0.5, settings["stability_min"].min() - 0.05), 1.01)
        caption = "How alike the programs of single runs are to their consensus; 1 is the same."
    else:
        ax.plot(settings["position"], settings[column], color=BLUE, marker="o", markersize=4, linewidth=1.2)
        if by_factors:
            ax.plot(
                settings["position"],
                settings["n_latent"],
                color=MUTED,
                linestyle=":",
                linewidth=1,
                label="number of factors",
            )
        ax.yaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        caption = "How many directions two halves of the seeds share."
    chosen = settings[settings["chosen"]]
    ax.scatter(
        chosen["position"],
        chosen[column],
        s=90,
        facecolor="none",
        edgecolor=RED,
        linewidth=1.5,
        label="chosen",
        zorder=4,
    )
    ax.set(xlabel="Number of factors" if by_factors else "Setting", ylabel=ylabel)
    if by_factors:
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    else:
        ax.set_xticks(settings["position"], [_short(name) for name in settings["setting"]], rotation=45, ha="right")
    ax.margins(x=0.08)
    ax.legend(loc="best")
    return Drawing(
        name=f"choice_{quantity}",
        figure=figure,
        title=title,
        caption=caption,
        hover=(Hover(axes=ax, block=f"choice-{quantity}", x="position", y=column, name="setting", show=show),),
        blocks={f"choice-{quantity}": block},
    )


@styled
def rank_correlations(correlations: pd.DataFrame, setting: str, rank: float | None, threshold: float) -> Drawing | None:
    """Canonical correlations between two halves of the seeds, rank by rank."""
    chosen = correlations[correlations["setting"] == setting]
    if chosen.empty:
        return None
    figure = Figure(figsize=(NARROW, 2.8), layout="constrained")
    ax = figure.subplots()
    for name, other in correlations.groupby("setting"):
        if name != setting:
            ax.plot(other["rank"], other["correlation"], color=MUTED, linewidth=0.7, alpha=0.6)
    ax.fill_between(chosen["rank"], chosen["lower"], chosen["upper"], color=BLUE, alpha=0.2, linewidth=0)
    ax.plot(chosen["rank"], chosen["correlation"], color=BLUE, marker="o", markersize=4, linewidth=1.2)
    ax.axhline(threshold, color=INK, linewidth=0.8, linestyle=":")
    if rank is not None and np.isfinite(rank):
        ax.axvline(rank + 0.5, color=RED, linewidth=1)
    ax.set(xlabel="Number of directions", ylabel="Canonical correlation", ylim=(0, 1.03))
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    caption = (
        f"Whether the strongest directions of two halves of the seeds of {setting} span the same space, by their "
        "number: smallest canonical correlation, median over random splits (band: 5 to 95 %). Red line: the largest "
        f"number above {threshold:g}, which is kept. A dip before it means that two directions of nearly equal "
        "strength change places."
    )
    if correlations["setting"].nunique() > 1:
        caption += " Grey: the other settings."
    return Drawing(
        name="choice_correlations",
        figure=figure,
        title="What two halves of the seeds share",
        caption=caption,
        hover=(
            Hover(
                axes=ax,
                block="correlations",
                x="rank",
                y="correlation",
                name="setting",
                show={"rank": "rank", "correlation": "correlation"},
            ),
        ),
        blocks={"correlations": chosen[["setting", "rank", "correlation", "lower", "upper"]]},
    )


# ---------------------------------------------------------------------------------------------- programs


@styled
def heatmap(
    matrix: pd.DataFrame,
    *,
    name: str,
    title: str,
    caption: str,
    value: str,
    limits: tuple[float, float] | None = None,
    cmap: str = "RdBu_r",
    italic: bool = False,
) -> Drawing:
    """Rows by columns as colours, with the numbers written into the cells where there is room.

    Parameters
    ----------
    matrix
        Values; NaN stays empty.
    name, title, caption
        File name and words of the figure.
    value
        What a value is, for the colour bar.
    limits
        Ends of the colour scale; None makes it symmetric around 0.
    cmap
        Name of a matplotlib colour map.
    italic
        The columns are genes.
    """
    n_rows, n_cols = matrix.shape
    values = matrix.to_numpy(dtype=float)
    written = n_cols <= 12
    if limits is None:
        end = float(np.nanquantile(np.abs(values), 0.99)) if np.isfinite(values).any() else 1.0
        limits = (-max(end, 1e-6), max(end, 1e-6))
    rows, columns = [_short(row, 34) for row in matrix.index], [_short(column) for column in matrix.columns]
    letter = 0.072  # width in inches
    width = 0.2 + letter * max(map(len, rows)) + (0.34 if written else 0.175) * max(n_cols, 3)
    height = 0.95 + letter * max(map(len, columns)) + 0.2 * max(n_rows, 2)
    figure = Figure(figsize=(width, height), layout="constrained")
    ax = figure.subplots()
    image = ax.pcolormesh(
        values, cmap=cmap, vmin=limits[0], vmax=limits[1], edgecolor="none", rasterized=values.size > 3000
    )
    ax.set_yticks(np.arange(n_rows) + 0.5, rows)
    ax.set_xticks(
        np.arange(n_cols) + 0.5,
        columns,
        rotation=90,
        style="italic" if italic else "normal",
    )
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.invert_yaxis()
    ax.spines[:].set_visible(False)
    if written:
        _write_values(ax, values, image)
    bar = figure.colorbar(
        image, ax=ax, orientation="horizontal", shrink=min(1.0, 2.2 / width), aspect=24, pad=0.03, location="bottom"
    )
    bar.set_label(value)
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(3)
    bar.update_ticks()
    block = pd.DataFrame(
        {
            "row": np.repeat(matrix.index.astype(str), n_cols),
            "column": np.tile(matrix.columns.astype(str), n_rows),
            "x": np.tile(np.arange(n_cols) + 0.5, n_rows),
            "y": np.repeat(np.arange(n_rows) + 0.5, n_cols),
            "value": values.ravel(),
        }
    )
    hover = Hover(axes=ax, block=name, x="x", y="y", name="column", show={"row": "", "value": value})
    return Drawing(name=name, figure=figure, title=title, caption=caption, hover=(hover,), blocks={name: block})


def _write_values(ax: Axes, values: np.ndarray, image: Any) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = float(np.dot(image.cmap(image.norm(value))[:3], (0.299, 0.587, 0.114))) < 0.55
            ax.text(
                column + 0.5,
                row + 0.5,
                f"{round(value, 2) + 0.0:.2f}",
                ha="center",
                va="center",
                fontsize=6.5,
                color="#ffffff" if dark else "#111111",
            )


@styled
def program_genes(program: str, genes: pd.DataFrame) -> Drawing:
    """The genes of both sides of a program with their intervals over seeds, strongest first."""
    genes = genes.reset_index(drop=True)
    gap = (genes["side"] == "negative").astype(int) * 0.6
    genes = genes.assign(position=np.arange(len(genes)) + gap)
    figure = Figure(figsize=(NARROW, 0.65 + 0.158 * (len(genes) + 1)), layout="constrained")
    ax = figure.subplots()
    ax.axvline(0, color=RULE, linewidth=0.8)
    for side, colour in (("positive", RED), ("negative", BLUE)):
        rows = genes[genes["side"] == side]
        ax.hlines(rows["position"], rows["lower"], rows["upper"], color=colour, linewidth=1.3, alpha=0.6)
        ax.scatter(rows["loading"], rows["position"], color=colour, s=15, linewidth=0, zorder=3)
    ax.set_yticks(genes["position"], [_short(gene) for gene in genes["gene"]], style="italic")
    ax.set_ylim(genes["position"].max() + 0.7 if len(genes) else 1, -0.7)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("Loading: log fold change per SD of the score")
    caption = "Ranked by loading × root information, both sides."
    if genes["lower"].notna().any():
        caption += " Lines: the interval over seeds."
    else:
        caption += " One run: no intervals."
    name = f"program_{program}_genes"
    columns = ["gene", "side", "position", "loading", "lower", "upper"]
    show = {"loading": "loading", "lower": "from", "upper": "to"}
    return Drawing(
        name=name,
        figure=figure,
        title=f"Genes of {program}",
        caption=caption,
        hover=(Hover(axes=ax, block=name, x="loading", y="position", name="gene", show=show),),
        blocks={name: genes[columns]},
    )


@styled
def program_map(program: str, umap: np.ndarray, scores: np.ndarray, note: str) -> Drawing:
    """The cells, coloured by their score of a program."""
    figure = Figure(figsize=(NARROW, 3.0), layout="constrained")
    ax = figure.subplots()
    order = np.argsort(scores, kind="stable")
    low, high = np.nanquantile(scores, [0.01, 0.99]) if len(scores) else (0, 1)
    points = ax.scatter(
        umap[order, 0],
        umap[order, 1],
        c=scores[order],
        cmap="viridis",
        vmin=low,
        vmax=max(high, low + 1e-9),
        s=_point_size(len(umap)),
        linewidth=0,
        rasterized=True,
    )
    _plain_map(ax)
    bar = figure.colorbar(points, ax=ax, shrink=0.6, aspect=22, pad=0.01)
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(4)
    bar.update_ticks()
    caption = f"Each point a cell. Colours end at the 1st and 99th percentile.{note}"
    return Drawing(
        name=f"program_{program}_umap", figure=figure, title=f"Score of {program} on the UMAP", caption=caption
    )


@styled
def program_by_group(program: str, scores: np.ndarray, groups: dict[str, pd.Series]) -> Drawing:
    """Distribution of a program's scores in the groups of each column, on one scale, highest median first."""
    tables = {variable: _quantiles(scores, group) for variable, group in groups.items()}
    heights = [len(table) for table in tables.values()]
    figure = Figure(figsize=(NARROW, 0.5 + 0.32 * len(tables) + 0.2 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(tables), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for ax, (variable, table) in zip(axes, tables.items(), strict=True):
        rows = np.arange(len(table))
        ax.axvline(0, color=RULE, linewidth=0.8, zorder=0)
        ax.hlines(rows, table[0.05], table[0.95], color=MUTED, linewidth=0.9)
        ax.hlines(rows, table[0.25], table[0.75], color=SKY, linewidth=9, alpha=0.85)
        ax.vlines(table[0.5], rows - 0.31, rows + 0.31, color=INK, linewidth=1.4, zorder=3)
        ax.set_yticks(rows, [_short(level) for level in table.index])
        ax.set_title(_short(variable), loc="left", color=MUTED)
        ax.set_ylim(len(table) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
    axes[-1].set_xlabel(f"Score of {program}")
    return Drawing(
        name=f"program_{program}_groups",
        figure=figure,
        title=f"Score of {program} by group",
        caption="Boxes: median and quartiles; lines: 5th to 95th percentile.",
    )


def _quantiles(scores: np.ndarray, groups: pd.Series) -> pd.DataFrame:
    """Quantiles of the scores in each group, highest median first."""
    by_level = pd.Series(scores, index=groups.index).groupby(groups, observed=True)
    return by_level.quantile([0.05, 0.25, 0.5, 0.75, 0.95]).unstack().sort_values(0.5, ascending=False)


@styled
def cells_map(umap: np.ndarray, groups: pd.Series, colours: Sequence[str], note: str) -> Drawing:
    """The cells, coloured and labelled by the levels of a column."""
    figure = Figure(figsize=(6.6, 4.6), layout="constrained")
    ax = figure.subplots()
    levels = list(groups.cat.categories)
    order = np.random.default_rng(0).permutation(len(umap))
    rgb = np.array([to_rgb(colour) for colour in colours] or [(0.5, 0.5, 0.5)])
    codes = groups.cat.codes.to_numpy()
    colour = np.where(codes[:, None] < 0, 0.6, rgb[np.maximum(codes, 0)])
    ax.scatter(
        umap[order, 0], umap[order, 1], c=colour[order], s=_point_size(len(umap)) * 2, linewidth=0, rasterized=True
    )
    _plain_map(ax)
    figure.draw_without_rendering()
    placed = _Names(ax, 9)
    for code in np.argsort(-np.bincount(codes[codes >= 0], minlength=len(levels)), kind="stable"):
        if (codes == code).sum() > len(codes) / 200:  # a few scattered cells have no middle
            x, y = np.median(umap[codes == code], axis=0)
            placed.write(str(levels[code]), x, y, "center", fontweight="bold")
    caption = f"Each point a cell, coloured by {groups.name}.{note}"
    return Drawing(name="umap", figure=figure, title="UMAP of the cells", caption=caption)


def _plain_map(ax: Axes) -> None:
    ax.set_aspect("equal", adjustable="datalim")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _point_size(n: int) -> float:
    return float(np.clip(8_000 / max(n, 1), 0.25, 9))


# ---------------------------------------------------------------------------------------------- fit


FIT_TITLES = {"mean": "Mean", "variance": "Variance", "zeros": "Share of zeros"}


@styled
def fit_scatter(fit: pd.DataFrame, quantity: str) -> Drawing:
    """Observed against predicted mean, variance or share of zeros of each gene, over all held-out cells."""
    fit = fit[fit["batch"] == "all"]
    figure = Figure(figsize=(NARROW, 3.1), layout="constrained")
    ax = figure.subplots()
    _fit_axes(ax, fit, quantity)
    ax.set(xlabel="Observed", ylabel="Predicted")
    columns = [f"observed_{quantity}", f"predicted_{quantity}"]
    show = dict(zip(columns, ("observed", "predicted"), strict=True))
    return Drawing(
        name=f"fit_{quantity}",
        figure=figure,
        title=FIT_TITLES[quantity],
        caption=f"Each point a gene, over {int(fit['n_cells'].max()):,} held-out cells; on the line, it is right.",
        hover=(Hover(axes=ax, block="fit", x=columns[0], y=columns[1], name="gene", show=show),),
    )


@styled
def fit_batches(fit: pd.DataFrame, quantity: str, batches: Sequence[str]) -> Drawing:
    """Observed against predicted values of each gene, batch by batch."""
    columns = min(4, len(batches))
    rows = -(-len(batches) // columns)
    figure = Figure(figsize=(max(NARROW, 2.25 * columns + 0.4), 2.3 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, batch in zip(axes, batches, strict=False):
        part = fit[fit["batch"] == batch]
        _fit_axes(ax, part, quantity)
        ax.set_title(f"{_short(batch)} ({int(part['n_cells'].max()):,} cells)", loc="left")
    for ax in axes[len(batches) :]:
        ax.set_visible(False)
    figure.supxlabel("Observed", fontsize=9)
    figure.supylabel("Predicted", fontsize=9)
    return Drawing(
        name=f"fit_batches_{quantity}",
        figure=figure,
        title=f"{FIT_TITLES[quantity]}, batch by batch",
        caption="Each point a gene, over the held-out cells of one batch.",
    )


def _fit_axes(ax: Axes, fit: pd.DataFrame, quantity: str) -> None:
    observed, predicted = fit[f"observed_{quantity}"], fit[f"predicted_{quantity}"]
    if quantity == "zeros":
        ends = (0.0, 1.0)
    else:
        positive = np.concatenate([observed[observed > 0], predicted[predicted > 0], [1e-3, 1]])
        ends = (positive.min() / 1.5, positive.max() * 1.5)
        ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        ax.minorticks_off()
        for axis in (ax.xaxis, ax.yaxis):  # matplotlib's own labels of a log axis are formulas
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.plot(ends, ends, color=MUTED, linewidth=0.9)
    ax.scatter(observed, predicted, color=BLUE, s=7, alpha=0.5, linewidth=0, rasterized=len(fit) > 300)


# ---------------------------------------------------------------------------------------------- differential expression


@styled
def volcano(contrast: str, table: pd.DataFrame, significant: pd.Series, fdr: float, block: str) -> Drawing:
    """Effect against evidence of each gene; the strongest genes of both sides are named."""
    figure = Figure(figsize=(NARROW, 3.5), layout="constrained")
    ax = figure.subplots()
    for chosen, colour, alpha in ((~significant, MUTED, 0.35), (significant, RED, 0.7)):
        part = table[chosen]
        ax.scatter(part["lfc_mean"], part["bayes_factor"], color=colour, s=8, alpha=alpha, linewidth=0, rasterized=True)
    ax.axvline(0, color=RULE, linewidth=0.8, zorder=0)
    ax.set(xlabel="log2 fold change (posterior mean)", ylabel="log Bayes factor")
    ax.margins(x=0.16, y=0.08)
    figure.draw_without_rendering()  # names are placed by pixels, so the axes must have their size
    strongest = table[significant & np.isfinite(table["bayes_factor"])]
    strongest = strongest.assign(strength=strongest["bayes_factor"].rank() + strongest["lfc_mean"].abs().rank())
    names = _Names(ax, 7)
    for row in strongest.nlargest(12, "strength").itertuples():
        names.write(
            str(row.gene), row.lfc_mean, row.bayes_factor, "left" if row.lfc_mean >= 0 else "right", style="italic"
        )
    show = {"lfc_mean": "log2 fold change", "bayes_factor": "log Bayes factor", "proba_de": "P(DE)"}
    return Drawing(
        name=f"de_{_slug(contrast)}_volcano",
        figure=figure,
        title="Effect and evidence",
        caption=f"Each point a gene; in colour: {int(significant.sum()):,} called at an FDR of {fdr:.0%}.",
        hover=(Hover(axes=ax, block=block, x="lfc_mean", y="bayes_factor", name="gene", show=show),),
    )


@styled
def model_against_pseudobulk(contrast: str, table: pd.DataFrame, block: str) -> Drawing:
    """Fold changes of the model against those of a pseudobulk test over replicates."""
    figure = Figure(figsize=(NARROW, 3.5), layout="constrained")
    ax = figure.subplots()
    ax.axline((0, 0), slope=1, color=MUTED, linewidth=0.9)
    agree = table["pseudobulk_padj"] < 0.05
    for chosen, colour, alpha in ((~agree, MUTED, 0.35), (agree, BLUE, 0.7)):
        part = table[chosen]
        ax.scatter(
            part["lfc_mean"], part["pseudobulk_lfc"], color=colour, s=8, alpha=alpha, linewidth=0, rasterized=True
        )
    ax.set(xlabel="log2 fold change, model", ylabel="log2 fold change, pseudobulk")
    both = table[["lfc_mean", "pseudobulk_lfc"]].dropna()
    r = both.corr(method="spearman").iloc[0, 1] if len(both) > 2 else np.nan
    caption = (
        f"Each point a gene; in colour: adjusted p below 0.05 in the pseudobulk test. Spearman correlation {r:.2f}."
    )
    show = {"lfc_mean": "model", "pseudobulk_lfc": "pseudobulk", "pseudobulk_padj": "adjusted p"}
    return Drawing(
        name=f"de_{_slug(contrast)}_pseudobulk",
        figure=figure,
        title="Model against pseudobulk",
        caption=caption,
        hover=(Hover(axes=ax, block=block, x="lfc_mean", y="pseudobulk_lfc", name="gene", show=show),),
    )


class _Names:
    """Writes names at points, skipping those that would lie on one already written; the axes must have their size."""

    def __init__(self, ax: Axes, size: float) -> None:
        self.ax, self.size = ax, size
        self.taken: list[tuple[float, float, float, float]] = []

    def write(self, name: str, x: float, y: float, ha: Literal["left", "right", "center"], **style: Any) -> None:
        """Write `name` at (x, y) in units of the data, beside it or over it."""
        name = _short(name)
        point = self.ax.figure.dpi / 72
        width, height = 0.62 * self.size * len(name) * point + 8, 1.15 * self.size * point
        px, py = self.ax.transData.transform((x, y))
        other: dict[str, Literal["left", "right"]] = {"left": "right", "right": "left"}
        # Beside its point, else a little above or below it, else on its other side.
        places = [(ha, 0)] if ha == "center" else [(side, up) for side in (ha, other[ha]) for up in (2, -5, 7, -10)]
        for side, up in places:
            left = px - width * {"left": 0, "center": 0.5, "right": 1}[side]
            bottom = py + up * point
            box = (left, bottom, left + width, bottom + height)
            if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in self.taken):
                continue
            self.taken.append(box)
            self.ax.annotate(
                name,
                (x, y),
                ({"left": 3, "center": 0, "right": -3}[side], up),
                textcoords="offset points",
                ha=side,
                va="center" if side == "center" else "baseline",
                fontsize=self.size,
                path_effects=[withStroke(linewidth=2.2, foreground=PAPER)],
                **style,
            )
            return


def _short(text: str, length: int = 24) -> str:
    text = str(text)
    return text if len(text) <= length else text[: length - 1] + "…"


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "_" for c in text)
