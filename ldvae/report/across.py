"""The page over several datasets: what they share, what is one's own, and how conditions differ."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from ldvae import pl
from ldvae.errors import counted, listed
from ldvae.pl.style import figure_of
from ldvae.programs.donors import ALL_CELLS
from ldvae.report import figures
from ldvae.report.drawing import Drawing, Hover
from ldvae.report.page import Column, Page, Table, as_blocks, environment
from ldvae.report.prose import tested_in

LOOSE = 0.25  # silhouette below which a meta-program is hardly apart from the next
LEAST_P = 0.05
MOST_LINES = 3  # datasets whose own programs have a line each
N_EFFECTS = 8  # effects that are told in words


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What the comparison of several datasets found, as plain tables."""

    #: Names of the datasets with their numbers of cells.
    n_obs: dict[str, int]
    #: One row per meta-program, indexed by its name, shared ones first: label, n_datasets, similarity, silhouette, ….
    table: pd.DataFrame
    members: pd.DataFrame
    loadings: pd.DataFrame
    #: Meta-programs by datasets: cosine with what the fits of the dataset span.
    presence: pd.DataFrame
    #: Programs by programs, named "dataset program".
    similarity: pd.DataFrame
    donors: pd.DataFrame
    donor_means: pd.DataFrame
    settings: dict[str, Any]
    versions: dict[str, str]
    #: Of the step, about its options.
    warnings: list[str] = field(default_factory=list)

    @property
    def shared(self) -> pd.DataFrame:
        """Meta-programs of two datasets or more."""
        return self.table[self.table["shared"]]

    def title(self, meta: str) -> str:
        """Name and label of a meta-program."""
        return f"{meta} {self.table.at[meta, 'label']}".strip()


def findings(compared: Compared) -> list[str]:
    """What was found, in sentences, the most shared first."""
    names, shared = list(compared.n_obs), compared.shared
    n_programs = len(compared.members)
    everywhere = shared.index[shared["n_datasets"] == len(names)]
    own_alone = len(compared.table) - len(shared)
    lines = [
        f"The {len(names)} datasets have {counted(n_programs, 'program')}. {counted(len(shared), 'meta-program')} "
        f"{'is' if len(shared) == 1 else 'are'} in two datasets or more, {len(everywhere)} of them in all; "
        f"{counted(own_alone, 'program')} {'is' if own_alone == 1 else 'are'} in one dataset only."
    ]
    if len(everywhere):
        lines.append(f"In all datasets: {listed([compared.title(meta) for meta in everywhere], 12)}.")
    for meta in shared.index[shared["n_datasets"] < len(names)]:
        own = set(shared.at[meta, "datasets"].split(", "))
        absent = [name for name in names if name not in own]
        where = f"in {listed([name for name in names if name in own])}"
        if len(absent) < len(own):
            where = f"in all but {listed(absent)}"
        lines.append(f"{compared.title(str(meta))} is {where}.")
    private = compared.members[compared.members["meta"].isin(compared.table.index[~compared.table["shared"]])]
    alone = {
        str(name): listed([f"{row.program} {row.label}".strip() for row in rows.itertuples()])
        for name, rows in private.groupby("dataset", sort=False)
    }
    if len(alone) > MOST_LINES:
        lines.append(f"In one dataset only: {'; '.join(f'{name} {titles}' for name, titles in alone.items())}.")
    else:
        lines += [f"Only in {name}: {titles}." for name, titles in alone.items()]
    return lines


def contrasts_in_words(compared: Compared) -> list[str]:
    """The clearest effects of conditions on meta-programs, in sentences."""
    called = compared.donors[compared.donors["padj"] < LEAST_P]
    lines = []
    for row in called.head(N_EFFECTS).itertuples():
        where = "" if row.cell_type == ALL_CELLS else f" in {row.cell_type}"
        lines.append(
            f"{compared.title(row.program)} is {'higher' if row.effect > 0 else 'lower'} in {row.condition} than in "
            f"{row.reference}{where}: {row.effect:+.2f} SD (95 % interval {row.lower:.2f} to {row.upper:.2f}; "
            f"{row.n_donors} donors, {row.design}; adjusted p {row.padj:.1e})."
        )
    if (more := len(called) - N_EFFECTS) > 0:
        have = f"{counted(more, 'more difference')} {'has' if more == 1 else 'have'}"
        lines.append(f"{have} an adjusted p below {LEAST_P:g}; see the table.")
    if len(compared.donors) and called.empty:
        where = tested_in(sorted(compared.donors["cell_type"].unique()))
        lines.append(f"No meta-program differs between conditions at an adjusted p below {LEAST_P:g}{where}.")
    return lines


def doubts(compared: Compared) -> list[str]:
    """What calls for care."""
    lines = list(compared.warnings)
    loose = compared.shared.index[compared.shared["silhouette"] < LOOSE]
    if len(loose):
        lines.append(
            f"{listed([compared.title(meta) for meta in loose])}: the members are hardly more similar to each other "
            f"than to "
            f"another meta-program (silhouette below {LOOSE:g}). Read them with their neighbors in the network."
        )
    few = compared.shared.index[compared.shared["n_programs"] < 2]
    if len(few):
        lines.append(
            f"{listed([compared.title(meta) for meta in few])}: one dataset alone has a program of its own for it; the "
            "fits of the others contain it. It may be a mixture. Fit more seeds before you rely on it."
        )
    if compared.settings.get("condition_key") and compared.donors.empty:
        lines.append("No comparison of conditions has three donors on each side.")
    return lines


def render_across(compared: Compared) -> tuple[str, dict[str, str]]:
    """Render the page over several datasets.

    Returns
    -------
    The page as HTML, and the figures as standalone SVG documents, by name.
    """
    page = Page()
    members = compared.members
    order = list(dict.fromkeys(members["meta"]))
    drawings = [_overview(compared)] if len(compared.shared) else []
    drawings.append(_network(compared))
    drawings.append(
        Drawing(
            name="similarity",
            figure=figure_of(pl.similarity(compared.similarity, members, show=False)),
            title="All programs against all",
            caption="Cosines of the weighted loadings; framed: meta-programs, in the order of the table.",
        )
    )
    if len(compared.donors):
        rows = compared.donors[compared.donors["program"].isin(order)]
        drawings.append(
            Drawing(
                name="effects",
                figure=figure_of(pl.effects(rows.assign(program=rows["program"].map(compared.title)), show=False)),
                title="Conditions on meta-programs",
                caption="Donors are the replicates. Filled: adjusted p below 0.05.",
            )
        )
    panels = []
    for meta in compared.shared.index:
        genes = compared.loadings[compared.loadings["meta"] == meta].rename(columns={"meta": "program"})
        drawn = [page.draw(figures.program_genes(str(meta), genes, 15, "datasets"))]
        own = compared.donor_means[compared.donor_means["program"] == meta]
        if len(own) and own["condition"].nunique() > 1:
            ax = pl.donors(own, str(meta), show=False)
            caption = "Mean score of each donor; lines join the points of one donor."
            title = f"{meta} by condition"
            drawn.append(page.draw(Drawing(name=f"donors_{meta}", figure=figure_of(ax), title=title, caption=caption)))
        panels.append({"name": meta, "row": compared.table.loc[meta], "figures": drawn})
    context: dict[str, Any] = {
        "page": page,
        "results": {"figures": "figures"},
        "compared": compared,
        "findings": findings(compared),
        "contrasts": contrasts_in_words(compared),
        "doubts": doubts(compared),
        "overview": [page.draw(drawing) for drawing in drawings],
        "panels": panels,
        "metas": page.table(_metas(compared)),
        "programs": page.table(_programs(compared)),
        "effects": page.table(_effects(compared)) if len(compared.donors) else None,
    }
    context["blocks"] = as_blocks(page)
    html = environment().get_template("across.html.j2").render(context)
    return html, {name: rendered.document for name, rendered in page.rendered.items()}


def _overview(compared: Compared) -> Drawing:
    """The figure of a paper: meta-programs by datasets, with the effects of conditions."""
    presence = compared.presence[list(compared.n_obs)]
    ax = pl.meta_programs(compared.table, compared.members, presence, compared.donors, show=False)
    rows = compared.shared.index[: len(ax.get_yticks())]
    block = presence.loc[rows].rename_axis("meta").reset_index().melt("meta", var_name="dataset", value_name="presence")
    block["x"] = block["dataset"].map({name: k for k, name in enumerate(presence)})
    block["y"] = block["meta"].map({meta: k for k, meta in enumerate(rows)})
    least = compared.settings["min_presence"]
    caption = (
        f"Points: a dataset's fits contain the meta-program (cosine of {least:g} or more, the area); filled: it has a "
        "program of its own for it; small dots: it lacks it. Right: genes that rise the most"
    )
    if len(compared.donors):
        caption += ", and the difference between conditions with donors as replicates; filled: adjusted p below 0.05"
    show = {"meta": "meta-program", "presence": "cosine"}
    return Drawing(
        name="presence",
        figure=figure_of(ax),
        title="Which datasets have each meta-program",
        caption=f"{caption}.",
        hover=(Hover(axes=ax, block="presence", x="x", y="y", name="dataset", show=show),),
        blocks={"presence": block},
    )


def _network(compared: Compared) -> Drawing:
    ax = pl.network(compared.similarity, compared.members, least=compared.settings["min_similarity"], show=False)
    # The points of a dataset are one collection, in the order of the members.
    block = []
    for name, points in zip(compared.n_obs, ax.collections, strict=True):
        own = compared.members[compared.members["dataset"] == name]
        x, y = np.asarray(points.get_offsets()).T
        block.append(own[["dataset", "program", "meta", "label"]].assign(x=x, y=y))
    table = pd.concat(block)
    table["name"] = table["dataset"] + " " + table["program"]
    shown = {"meta": "meta-program", "label": "label"}
    return Drawing(
        name="network",
        figure=figure_of(ax),
        title="Similar programs",
        caption=f"A point is a program of a dataset; a line joins two whose cosine is at least "
        f"{compared.settings['min_similarity']:g}. Below: programs similar to no other.",
        hover=(Hover(axes=ax, block="network", x="x", y="y", name="name", show=shown),),
        blocks={"network": table},
    )


def _metas(compared: Compared) -> Table:
    columns = [
        Column(key="meta", title="Meta-program", kind="program"),
        Column(key="label", title="Label"),
        Column(key="n_datasets", title="Datasets", kind="number", help="that have it"),
        Column(
            key="n_programs", title="Own programs", kind="number", help="datasets with a program of their own for it"
        ),
        Column(key="similarity", title="Similarity", kind="number", help="mean cosine between its members"),
        Column(
            key="silhouette",
            title="Silhouette",
            kind="number",
            help="1: far from all other meta-programs; 0: between two",
        ),
        Column(key="top_positive", title="Top genes"),
    ]
    frame = compared.shared.reset_index()
    frame["top_positive"] = frame["top_positive"].str.split(", ").str[:8].str.join(", ")
    return Table(name="metas", title="Meta-programs", frame=frame, columns=columns, page=40)


def _programs(compared: Compared) -> Table:
    columns = [
        Column(key="dataset", title="Dataset"),
        Column(key="program", title="Program", kind="id"),
        Column(key="label", title="Label"),
        Column(key="meta", title="Meta-program", kind="id"),
        Column(key="similarity", title="Similarity", kind="number", help="mean cosine to the other members"),
        Column(key="other", title="To the next", kind="number", help="mean cosine to the nearest other meta-program"),
        Column(key="silhouette", title="Silhouette", kind="number"),
    ]
    note = "A program without a similarity has no counterpart in other datasets."
    return Table(
        name="members", title="All programs", frame=compared.members, columns=columns, search=True, note=note, page=15
    )


def _effects(compared: Compared) -> Table:
    columns = [
        Column(key="program", title="Meta-program", kind="program"),
        Column(key="cell_type", title="Cell type"),
        Column(key="condition", title="Condition"),
        Column(key="reference", title="Reference"),
        Column(key="effect", title="Effect (SD)", kind="number"),
        Column(key="lower", title="from", kind="number"),
        Column(key="upper", title="to", kind="number"),
        Column(key="n_donors", title="Donors", kind="number"),
        Column(key="design", title="Design"),
        Column(key="padj", title="Adjusted p", kind="p"),
    ]
    return Table(name="effects", title="Conditions", frame=compared.donors, columns=columns, search=True)
