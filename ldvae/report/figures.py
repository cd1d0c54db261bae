"""The figures of the report: those of `ldvae.pl`, with their words and the data of their points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ldvae import pl
from ldvae.errors import counted
from ldvae.pl.choice import SELECTION, Selection, placed_settings
from ldvae.pl.genes import strongest
from ldvae.pl.history import QUANTITIES
from ldvae.pl.predictive import QUANTITIES as PREDICTED
from ldvae.pl.predictive import Quantity
from ldvae.pl.quality import METRIC_TITLES, MOST_CELLS, Thresholds
from ldvae.pl.style import figure_of, short, styled
from ldvae.programs.donors import ALL_CELLS
from ldvae.report.drawing import Drawing, Hover

NARROW = 4.5  # inches, at 96 pixels each: half the column of the page, and not much more than a phone


def qc_distribution(metric: str, cells: pd.DataFrame, thresholds: Thresholds) -> Drawing:
    """One metric per batch, all cells above the line and kept cells below it, with the thresholds drawn."""
    ax = pl.qc_violins(cells, metric, thresholds=thresholds, show=False)
    sampled = cells["batch"].value_counts().max() > MOST_CELLS
    caption = f"Shapes from {MOST_CELLS:,} cells of a batch at most, taken at random." if sampled else ""
    return Drawing(name=f"qc_{metric}", figure=figure_of(ax), title=METRIC_TITLES.get(metric, metric), caption=caption)


def training_curve(quantity: str, histories: dict[str, pd.DataFrame], best: str) -> Drawing | None:
    """Training and validation values of one quantity per epoch; the best run stands out from the others."""
    history, name = histories[best], f"training-{quantity}"
    if f"{quantity}_train" not in history:
        return None
    others = [other for run, other in histories.items() if run != best]
    ax = pl.training(history, quantity=quantity, others=others, show=False)
    block, hover = history[["epoch"]].assign(run=best), []
    for split in ("train", "validation"):
        if f"{quantity}_{split}" in history and history[f"{quantity}_{split}"].notna().any():
            block[split] = history[f"{quantity}_{split}"]
            shown = {"epoch": "epoch", split: split}
            hover.append(Hover(axes=ax, block=name, x="epoch", y=split, name="run", show=shown))
    return Drawing(
        name=f"training_{quantity}",
        figure=figure_of(ax),
        title=QUANTITIES[quantity],
        caption="",
        hover=tuple(hover),
        blocks={name: block},
    )


def kl_per_factor(kl: Sequence[float], collapsed: int, run: str) -> Drawing:
    """KL divergence of each factor from the prior, largest first."""
    ax = pl.kl(kl, collapsed=collapsed, show=False)
    order = np.argsort(kl)[::-1]
    values = np.asarray(kl, dtype=float)[order]
    block = pd.DataFrame({"factor": [f"Z_{k}" for k in order], "position": range(len(values)), "kl": values})
    caption = f"Information of each factor of run {run} about a cell."
    caption += f" {collapsed} of {len(values)} collapsed." if collapsed else " None collapsed."
    return Drawing(
        name="kl_per_factor",
        figure=figure_of(ax),
        title="KL per factor",
        caption=caption,
        hover=(Hover(axes=ax, block="kl", x="position", y="kl", name="factor", show={"kl": "KL"}),),
        blocks={"kl": block},
    )


CHOICE = {
    "elbo_test": (
        "Held-out error",
        "Lower is better. Gray: single runs; blue: mean over seeds and standard error.",
    ),
    "stability": (
        "Stability over seeds",
        "Mean cosine of the programs of single runs with their consensus; 1: equal.",
    ),
    "reproducible_rank": ("Reproducible rank", "Number of directions that two halves of the seeds share."),
}


def choice_curve(settings: pd.DataFrame, runs: pd.DataFrame, quantity: Selection) -> Drawing | None:
    """Held-out error, stability or reproducible rank of each setting; None for one setting, which makes no curve."""
    column = SELECTION[quantity][0]
    placed = placed_settings(settings, column)
    if len(placed) < 2:
        return None
    title, caption = CHOICE[quantity]
    ax = pl.selection(settings, runs, quantity=quantity, show=False)
    name = f"choice-{quantity}"
    show = {"n_latent": "factors", "n_runs": "runs", column: title.lower()}
    return Drawing(
        name=f"choice_{quantity}",
        figure=figure_of(ax),
        title=title,
        caption=caption,
        hover=(Hover(axes=ax, block=name, x="position", y=column, name="setting", show=show),),
        blocks={name: placed[["setting", "position", "n_latent", "n_runs", column]]},
    )


def rank_correlations(correlations: pd.DataFrame, setting: str, kept: float | None, threshold: float) -> Drawing | None:
    """What two halves of the seeds share, rank by rank."""
    chosen = correlations[correlations["setting"] == setting]
    if chosen.empty:
        return None
    ax = pl.rank(correlations, setting=setting, kept=kept, threshold=threshold, show=False)
    caption = (
        f"Agreement of the leading directions of two halves of the seeds of {setting}, by their number: smallest "
        "correlation, median over random splits (band: 5 to 95 %). Red line: the number kept; "
        f"dotted: the threshold, {threshold:g}. A dip before the line means that two directions of nearly equal "
        "strength change places."
    )
    if correlations["setting"].nunique() > 1:
        caption += " Gray: the other settings."
    show = {"rank": "rank", "correlation": "correlation"}
    return Drawing(
        name="choice_correlations",
        figure=figure_of(ax),
        title="Agreement between halves of the seeds",
        caption=caption,
        hover=(Hover(axes=ax, block="correlations", x="rank", y="correlation", name="setting", show=show),),
        blocks={"correlations": chosen[["setting", "rank", "correlation", "lower", "upper"]]},
    )


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
    """A table as colors; each of its cells tells its number when pointed at."""
    ax = pl.heatmap(matrix, value=value, limits=limits, cmap=cmap, italic=italic, show=False)
    n_rows, n_columns = matrix.shape
    block = pd.DataFrame(
        {
            "row": np.repeat(matrix.index.astype(str), n_columns),
            "column": np.tile(matrix.columns.astype(str), n_rows),
            "x": np.tile(np.arange(n_columns) + 0.5, n_rows),
            "y": np.repeat(np.arange(n_rows) + 0.5, n_columns),
            "value": matrix.to_numpy(dtype=float).ravel(),
        }
    )
    hover = Hover(axes=ax, block=name, x="x", y="y", name="column", show={"row": "", "value": value})
    return Drawing(name=name, figure=figure_of(ax), title=title, caption=caption, hover=(hover,), blocks={name: block})


def program_genes(program: str, table: pd.DataFrame, n_genes: int, over: str = "seeds") -> Drawing:
    """The genes of both sides of a program with their intervals over seeds or datasets, strongest first."""
    ax = pl.loadings(table, program, n_genes=n_genes, show=False)
    genes = strongest(table, program, n_genes)
    known = genes["lower"].notna().any()
    caption = "Ranked by loading × root information, both sides. "
    caption += f"Lines: the interval over {over}." if known else "One run: no intervals."
    name = f"program_{program}_genes"
    show = {"loading": "loading", "lower": "from", "upper": "to"}
    return Drawing(
        name=name,
        figure=figure_of(ax),
        title=f"Genes of {program}",
        caption=caption,
        hover=(Hover(axes=ax, block=name, x="loading", y="position", name="gene", show=show),),
        blocks={name: genes[["gene", "side", "position", "loading", "lower", "upper"]]},
    )


def program_map(program: str, umap: np.ndarray, scores: np.ndarray, note: str) -> Drawing:
    """The cells, colored by their score of a program."""
    ax = pl.scores(pd.DataFrame({program: scores}), program, basis=umap, show=False)
    return Drawing(
        name=f"program_{program}_umap",
        figure=figure_of(ax),
        title=f"Score of {program} on the UMAP",
        caption=f"Each point is a cell. Colors end at the 1st and 99th percentile.{note}",
    )


@styled
def program_by_group(program: str, scores: np.ndarray, groups: dict[str, pd.Series]) -> Drawing:
    """Distribution of a program's scores in the groups of each column, on one scale, highest median first."""
    heights = [group.nunique() for group in groups.values()]
    figure = Figure(figsize=(NARROW, 0.5 + 0.32 * len(groups) + 0.2 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(groups), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for ax, (variable, group) in zip(axes, groups.items(), strict=True):
        pl.groups(pd.DataFrame({program: scores}), program, group, ax=ax)
        ax.set_title(short(variable), loc="left")
        if ax is not axes[-1]:
            ax.set_xlabel("")
    return Drawing(
        name=f"program_{program}_groups",
        figure=figure,
        title=f"Score of {program} by group",
        caption="Boxes: median and quartiles; lines: 5th to 95th percentile.",
    )


def program_donors(program: str, means: pd.DataFrame, tests: pd.DataFrame) -> Drawing:
    """Mean scores of a program, a point for each donor, by cell type and condition."""
    ax = pl.donors(means, program, show=False)
    rows = means[means["program"] == program]
    own = tests[tests["program"] == program] if len(tests) else tests
    caption = (
        "Each point is a donor, by cell type and condition; thin lines join the points of a donor, bars are means."
    )
    if len(own):
        significant = list(own.loc[own["padj"] < 0.05, "cell_type"].unique())
        kinds = own["cell_type"].unique()
        if list(kinds) == [ALL_CELLS]:
            caption += f" The conditions {'differ' if significant else 'do not differ'} at an adjusted p below 0.05."
        else:
            where = f"{len(significant)} of {counted(len(kinds), 'tested cell type')}"
            caption += f" The conditions differ (adjusted p below 0.05) in {where}."
    else:
        caption += " Too few donors for a test: read the effects only."
    types, conditions = (list(dict.fromkeys(rows[name])) for name in ("cell_type", "condition"))
    step = 0.7 / max(len(conditions), 1)
    x = rows["cell_type"].map(types.index) + step * (
        rows["condition"].map(conditions.index) - (len(conditions) - 1) / 2
    )
    name = f"program_{program}_donors"
    show = {"cell_type": "", "condition": "", "mean": "mean score", "n_cells": "cells"}
    return Drawing(
        name=name,
        figure=figure_of(ax),
        title=f"Score of {program} by donor",
        caption=caption,
        hover=(Hover(axes=ax, block=name, x="x", y="mean", name="donor", show=show),),
        blocks={name: rows.assign(x=x)[["donor", "cell_type", "condition", "mean", "n_cells", "x"]]},
    )


def cells_map(umap: np.ndarray, groups: pd.Series, colors: Sequence[str], note: str) -> Drawing:
    """The cells, colored and labeled by the levels of a column."""
    ax = pl.cells(None, groups, basis=umap, colors=colors, show=False)
    caption = f"Each point is a cell, colored by {groups.name}.{note}"
    return Drawing(name="umap", figure=figure_of(ax), title="UMAP of the cells", caption=caption)


def fit_scatter(fit: pd.DataFrame, quantity: Quantity) -> Drawing:
    """Observed against predicted mean, variance or share of zeros of each gene, over all held-out cells."""
    fit = fit[fit["batch"] == "all"]
    ax = pl.ppc(fit, quantity, show=False)
    columns = [f"observed_{quantity}", f"predicted_{quantity}"]
    show = dict(zip(columns, ("observed", "predicted"), strict=True))
    caption = f"Each point is a gene, over {int(fit['n_cells'].max()):,} held-out cells; on the line, both are equal."
    if bad := int((~np.isfinite(fit[columns[1]])).sum()):
        genes = "gene has" if bad == 1 else "genes have"
        caption += f" {bad:,} {genes} a prediction that is not finite: red, on the edge."
    return Drawing(
        name=f"fit_{quantity}",
        figure=figure_of(ax),
        title=PREDICTED[quantity],
        caption=caption,
        hover=(Hover(axes=ax, block="fit", x=columns[0], y=columns[1], name="gene", show=show),),
    )


@styled
def fit_batches(fit: pd.DataFrame, quantity: Quantity, batches: Sequence[str]) -> Drawing:
    """Observed against predicted values of each gene, batch by batch."""
    columns = min(4, len(batches))
    rows = -(-len(batches) // columns)
    figure = Figure(figsize=(max(NARROW, 2.25 * columns + 0.4), 2.3 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, batch in zip(axes, batches, strict=False):
        pl.ppc(fit, quantity, batch=batch, ax=ax)
        ax.set(xlabel="", ylabel="")
        n_cells = int(fit.loc[fit["batch"] == batch, "n_cells"].max())
        ax.set_title(f"{short(batch)} ({n_cells:,} cells)", loc="left")
    for ax in axes[len(batches) :]:
        ax.set_visible(False)
    figure.supxlabel("Observed", fontsize=9)
    figure.supylabel("Predicted", fontsize=9)
    return Drawing(
        name=f"fit_batches_{quantity}",
        figure=figure,
        title=f"{PREDICTED[quantity]}, batch by batch",
        caption="Each point is a gene, over the held-out cells of one batch.",
    )


def volcano(contrast: str, table: pd.DataFrame, significant: pd.Series, fdr: float, block: str) -> Drawing:
    """Effect against evidence of each gene; the strongest genes of both sides are named."""
    ax = pl.volcano(table, significant=significant, show=False)
    show = {"lfc_mean": "log2 fold change", "bayes_factor": "log Bayes factor", "proba_de": "P(DE)"}
    caption = f"Each point is a gene; in color: {int(significant.sum()):,} called at an FDR of {fdr:.0%}."
    if "delta" in table and len(table):
        caption += f" Dotted: a fold change of ±{table['delta'].iloc[0]:g}, within which a gene counts as unchanged."
    if not np.isfinite(table["bayes_factor"]).all():
        caption += " Genes on which all posterior samples agree lie on the edge."
    return Drawing(
        name=f"de_{slug(contrast)}_volcano",
        figure=figure_of(ax),
        title="Effect and evidence",
        caption=caption,
        hover=(Hover(axes=ax, block=block, x="lfc_mean", y="bayes_factor", name="gene", show=show),),
    )


def model_against_pseudobulk(contrast: str, table: pd.DataFrame, fdr: float, block: str) -> Drawing:
    """Fold changes of the model against those of a pseudobulk test over replicates."""
    ax = pl.agreement(table, significant=table["pseudobulk_padj"] < fdr, show=False)
    both = table[["lfc_mean", "pseudobulk_lfc"]].dropna()
    r = both.corr(method="spearman").iloc[0, 1] if len(both) > 2 else np.nan
    called = f"in color: adjusted p below {fdr:g} in the pseudobulk test"
    caption = f"Each point is a gene; {called}. Spearman correlation {r:.2f}."
    show = {"lfc_mean": "model", "pseudobulk_lfc": "pseudobulk", "pseudobulk_padj": "adjusted p"}
    return Drawing(
        name=f"de_{slug(contrast)}_pseudobulk",
        figure=figure_of(ax),
        title="Model against pseudobulk",
        caption=caption,
        hover=(Hover(axes=ax, block=block, x="lfc_mean", y="pseudobulk_lfc", name="gene", show=show),),
    )


def slug(text: str) -> str:
    """Text as a part of a file name."""
    return "".join(c if c.isalnum() or c in "-." else "_" for c in text)
