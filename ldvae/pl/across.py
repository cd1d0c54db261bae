"""Programs of several datasets: how alike they are, which belong together, and how they differ between conditions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ldvae.errors import InputError
from ldvae.pl.style import BLUE, INK, MUTED, PAPER, RULE, Save, Show, finish, need, new_axes, palette, short, styled

MOST_ROWS = 40  # of the figure of effects


@styled
def meta_programs(
    table: pd.DataFrame,
    members: pd.DataFrame,
    presence: pd.DataFrame,
    effects: pd.DataFrame | None = None,
    *,
    n_genes: int = 4,
    ax: Axes | None = None,
    show: Show = None,
    save: Save = None,
) -> Axes:
    """Shared meta-programs in one figure: their genes, the datasets that have each, and how conditions change them.

    Parameters
    ----------
    table
        Indexed by meta-program: `label`, `datasets` (joined by ", "), `shared` and `top_positive`:
        across/meta_programs.tsv. At most 40 are drawn, in the order given.
    members
        `dataset` and `meta` of each program: across/members.tsv. A filled point is a dataset with a program of its own,
        a ring one that has the meta-program without, a dot one that lacks it.
    presence
        Meta-programs by datasets, from 0 to 1: across/presence.tsv. The area of a point.
    effects
        As in `effects`, across/donors.tsv: for each meta-program and pair of conditions that of all cells; where these
        were not compared, that with the smallest p value. None, or no rows: not drawn.
    n_genes
        Genes named for each meta-program.
    ax, show, save
        As in `similarity`.

    Examples
    --------
    >>> import pandas as pd
    >>> from ldvae import pl
    >>> row = {"label": "interferon", "datasets": "a, b", "shared": True, "top_positive": "IFIT1, ISG15"}
    >>> table = pd.DataFrame([row], index=["M1"])
    >>> members = pd.DataFrame({"dataset": ["a"], "meta": ["M1"]})
    >>> ax = pl.meta_programs(table, members, pd.DataFrame({"a": [0.9], "b": [0.7]}, ["M1"]), show=False)
    >>> [label.get_text() for label in ax.get_xticklabels()]
    ['a', 'b']
    """
    need(table, ["label", "datasets", "shared", "top_positive"], "meta_programs", "across/meta_programs.tsv")
    need(members, ["dataset", "meta"], "meta_programs", "across/members.tsv")
    rows = table[table["shared"].astype(bool)].head(MOST_ROWS)
    if rows.empty:
        raise InputError("pl.meta_programs: no meta-program is in two datasets; there is nothing to draw.")
    datasets = list(presence.columns)
    own = set(zip(members["meta"], members["dataset"], strict=True))
    compared = _main_effects(effects, rows.index) if effects is not None and len(effects) else None
    # Dots to the left, effects in the middle, genes to the right: shares of one panel, so that ax can be any axes.
    dots = 0.24 * len(datasets)
    middle = 1.8 if compared is not None else 0.0
    whole = dots + middle + 0.055 * n_genes * 8
    ax = new_axes(ax, show, save, (1.9 + whole, 1.1 + 0.3 * max(len(rows), 3)))
    for place, (meta, row) in enumerate(rows.iterrows()):
        ax.axhline(place, color=RULE, linewidth=0.4, zorder=0)
        has = set(str(row["datasets"]).split(", "))
        for column, name in enumerate(datasets):
            if str(name) not in has:
                ax.scatter(column, place, s=3, color=MUTED, linewidth=0, zorder=1)
                continue
            face = BLUE if (meta, name) in own else PAPER
            size = 80 * float(presence.at[meta, name]) ** 2
            ax.scatter(column, place, s=size, facecolor=face, edgecolor=BLUE, linewidth=1, zorder=2)
    ax.set_yticks(range(len(rows)), [f"{meta} {short(str(row['label']))}".strip() for meta, row in rows.iterrows()])
    ax.set_xticks(range(len(datasets)), [short(str(name)) for name in datasets], rotation=90)
    ax.set(xlim=(-0.6, -0.6 + len(datasets) * whole / dots), ylim=(len(rows) - 0.5, -0.5))
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if compared is not None:
        inset = ax.inset_axes(((dots + 0.12) / whole, 0, (middle - 0.24) / whole, 1))
        _draw_effects(inset, compared, list(rows.index))
    for place, genes in enumerate(rows["top_positive"].fillna("")):
        named = ", ".join(str(genes).split(", ")[:n_genes])
        start = -0.6 + len(datasets) * (dots + middle) / dots
        ax.text(start, place, named, va="center", fontsize=7, fontstyle="italic", color=INK)
    finish(ax.figure, show, save)
    return ax


def _main_effects(effects: pd.DataFrame, metas: pd.Index) -> pd.DataFrame:
    """One row for each meta-program and pair of conditions: of all cells, or with the smallest p value."""
    columns = ["program", "cell_type", "condition", "reference", "effect", "lower", "upper", "padj"]
    need(effects, columns, "meta_programs", "across/donors.tsv")
    rows = effects[effects["program"].isin(metas)]
    whole = rows["cell_type"] == "all cells"
    rows = rows.assign(part=~whole).sort_values(["part", "padj"], kind="stable")
    return rows.drop_duplicates(["program", "condition", "reference"]).drop(columns="part")


def _draw_effects(ax: Axes, rows: pd.DataFrame, metas: list[str]) -> None:
    pairs = list(dict.fromkeys(zip(rows["condition"], rows["reference"], strict=True)))
    colors = dict(zip(pairs, palette(len(pairs)), strict=True))
    ax.axvline(0, color=RULE, linewidth=0.8, zorder=0)
    for row in rows.itertuples():
        pair = (row.condition, row.reference)
        place = metas.index(row.program) + 0.5 * (pairs.index(pair) - (len(pairs) - 1) / 2) / len(pairs)
        ax.plot([row.lower, row.upper], [place, place], color=colors[pair], linewidth=1.2, zorder=1)
        face = colors[pair] if row.padj < 0.05 else PAPER
        ax.scatter(row.effect, place, s=22, facecolor=face, edgecolor=colors[pair], zorder=2)
    ax.set(ylim=(len(metas) - 0.5, -0.5), yticks=[])
    ax.spines[["left", "right", "top"]].set_visible(False)
    first, second = pairs[0]
    title = f"{short(first)} − {short(second)}" if len(pairs) == 1 else "Conditions"
    ax.set_xlabel(f"{title} (SD, 95 % interval)", fontsize=8)
    if len(pairs) > 1:
        for (condition, reference), color in colors.items():
            ax.plot([], [], color=color, label=f"{short(condition)} − {short(reference)}")
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=7)


@styled
def similarity(
    cosines: pd.DataFrame, members: pd.DataFrame, *, ax: Axes | None = None, show: Show = None, save: Save = None
) -> Axes:
    """Cosines between all programs of all datasets, those of a meta-program side by side and framed.

    Parameters
    ----------
    cosines
        Programs by programs, named "dataset program": across/similarity.tsv.
    members
        `dataset`, `program`, `meta` and `sign` of each program: across/members.tsv.
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
    >>> members = pd.DataFrame({"dataset": ["a", "b", "b"], "program": ["P1", "P1", "P2"], "meta": ["M1", "M1", "M2"]})
    >>> names = members["dataset"] + " " + members["program"]
    >>> cosines = pd.DataFrame([[1, 0.9, 0.1], [0.9, 1, 0.0], [0.1, 0.0, 1]], names, names)
    >>> ax = pl.similarity(cosines, members.assign(sign=1), show=False)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['M1']
    """
    need(members, ["dataset", "program", "meta", "sign"], "similarity", "across/members.tsv")
    names = members["dataset"] + " " + members["program"]
    signs = members["sign"].to_numpy()
    values = cosines.loc[names, names].to_numpy() * np.outer(signs, signs)
    ax = new_axes(ax, show, save, (5.6, 5.2))
    image = ax.pcolormesh(values, cmap="RdBu_r", vmin=-1, vmax=1, edgecolor="none", rasterized=True)
    sizes = members.groupby("meta", sort=False).size()
    ends = np.cumsum(sizes.to_numpy())
    starts = ends - sizes.to_numpy()
    for start, end in zip(starts, ends, strict=True):
        if end - start > 1:
            ax.plot([start, end, end, start, start], [start, start, end, end, start], color=INK, linewidth=0.8)
    several = [k for k, size in enumerate(sizes) if size > 1] or list(range(len(sizes)))
    middle = [(starts[k] + ends[k]) / 2 for k in several]
    ax.set_yticks(middle, [str(sizes.index[k]) for k in several])
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.invert_yaxis()
    ax.set_aspect("equal")
    ax.spines[:].set_visible(False)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.4, aspect=24, label="Cosine")
    bar.outline.set_visible(False)
    finish(ax.figure, show, save)
    return ax


@styled
def network(
    cosines: pd.DataFrame,
    members: pd.DataFrame,
    *,
    least: float = 0.5,
    ax: Axes | None = None,
    show: Show = None,
    save: Save = None,
) -> Axes:
    """Programs of all datasets as points, joined where they are alike; each meta-program is named at its center.

    Parameters
    ----------
    cosines, members
        As in `similarity`.
    least
        Absolute cosine from which two programs are joined.
    ax, show, save
        As in `similarity`.

    Examples
    --------
    >>> import pandas as pd
    >>> from ldvae import pl
    >>> members = pd.DataFrame({"dataset": ["a", "b", "b"], "program": ["P1", "P1", "P2"], "meta": ["M1", "M1", "M2"]})
    >>> names = members["dataset"] + " " + members["program"]
    >>> cosines = pd.DataFrame([[1, 0.9, 0.1], [0.9, 1, 0.0], [0.1, 0.0, 1]], names, names)
    >>> ax = pl.network(cosines, members, show=False)
    >>> [text.get_text() for text in ax.texts]
    ['M1']
    """
    import networkx as nx

    need(members, ["dataset", "program", "meta"], "network", "across/members.tsv")
    names = list(members["dataset"] + " " + members["program"])
    values = np.abs(cosines.loc[names, names].to_numpy())
    graph = nx.Graph()
    graph.add_nodes_from(range(len(names)))
    pairs = [(i, j) for i, j in np.argwhere(np.triu(values >= least, 1))]
    graph.add_weighted_edges_from((int(i), int(j), float(values[i, j])) for i, j in pairs)
    # Those joined to nothing would be flung far out: they stand in a row below.
    joined = [node for node in graph if graph.degree(node)]
    place = nx.spring_layout(graph.subgraph(joined), seed=0, k=1.2 / max(len(joined), 1) ** 0.5) if joined else {}
    alone = [node for node in graph if not graph.degree(node)]
    for rank, node in enumerate(alone):
        place[node] = np.array([-1 + 2 * (rank + 0.5) / len(alone), -1.35])
    ax = new_axes(ax, show, save, (5.6, 4.4))
    for i, j in pairs:
        line: Any = {"color": MUTED, "linewidth": 0.4 + 1.2 * values[i, j], "alpha": 0.35, "zorder": 1}
        ax.plot(*zip(place[int(i)], place[int(j)], strict=True), **line)
    of = dict(zip(names, members["dataset"], strict=True))
    datasets = list(dict.fromkeys(of[name] for name in cosines.index))
    for name, color in zip(datasets, palette(len(datasets)), strict=True):
        own = np.array([place[k] for k in np.flatnonzero(members["dataset"] == name)])
        ax.scatter(own[:, 0], own[:, 1], s=34, color=color, label=short(name), zorder=2, linewidth=0)
    for meta, rows in members.reset_index(drop=True).groupby("meta", sort=False):
        if len(rows) > 1:
            x, y = np.mean([place[k] for k in rows.index], axis=0)
            box: Any = {"boxstyle": "round,pad=0.15", "facecolor": PAPER, "edgecolor": RULE, "linewidth": 0.5}
            ax.text(x, y, str(meta), ha="center", va="center", fontsize=8, color=INK, bbox=box, zorder=3)
    ax.set_axis_off()
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    finish(ax.figure, show, save)
    return ax


@styled
def effects(table: pd.DataFrame, *, ax: Axes | None = None, show: Show = None, save: Save = None) -> Axes:
    """Effects of a condition on programs with their intervals, one row per program and cell type.

    Parameters
    ----------
    table
        `program`, `cell_type`, `condition`, `reference`, `effect`, `lower`, `upper` and `padj`: across/donors.tsv or
        programs/donors.tsv. The rows are drawn in the order given, at most 40; filled points have an adjusted p below
        0.05.
    ax
        Axes to draw on; None makes a figure as high as the rows need.
    show
        Show the figure; None does so where a window can be opened and nothing is saved.
    save
        File to write; its suffix gives the format.

    Examples
    --------
    >>> import pandas as pd
    >>> from ldvae import pl
    >>> row = {"program": "M1", "cell_type": "B", "condition": "stim", "reference": "ctrl", "effect": 2.0}
    >>> table = pd.DataFrame([row | {"lower": 1.5, "upper": 2.5, "padj": 1e-4}])
    >>> ax = pl.effects(table, show=False)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['M1 in B']
    """
    columns = ["program", "cell_type", "condition", "reference", "effect", "lower", "upper", "padj"]
    need(table, columns, "effects", "across/donors.tsv")
    if table.empty:
        raise InputError("pl.effects: the table has no rows; there is nothing to draw.")
    rows = table.head(MOST_ROWS)
    pairs = list(dict.fromkeys(zip(rows["condition"], rows["reference"], strict=True)))
    colors = dict(zip(pairs, palette(len(pairs)), strict=True))
    ax = new_axes(ax, show, save, (5.2, 0.9 + 0.21 * max(len(rows), 3)))
    ax.axvline(0, color=RULE, linewidth=0.8, zorder=0)
    for place, row in enumerate(rows.itertuples()):
        color = colors[row.condition, row.reference]
        ax.plot([row.lower, row.upper], [place, place], color=color, linewidth=1.2, zorder=1)
        filled = row.padj < 0.05
        ax.scatter(row.effect, place, s=26, color=color if filled else PAPER, edgecolor=color, zorder=2)
    for condition, reference in pairs:
        ax.plot([], [], color=colors[condition, reference], label=f"{short(condition)} against {short(reference)}")
    of_cells = ["" if kind == "all cells" else f" in {short(kind)}" for kind in rows["cell_type"]]
    ax.set_yticks(range(len(rows)), [f"{name}{kind}" for name, kind in zip(rows["program"], of_cells, strict=True)])
    ax.set(xlabel="Difference of the mean scores (SD), 95 % interval", ylim=(len(rows) - 0.5, -0.5))
    ax.tick_params(axis="y", length=0)
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    finish(ax.figure, show, save)
    return ax
