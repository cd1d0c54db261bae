"""The programs: a table of all, figures over all, a panel of each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from ldvae.config import ReportConfig
from ldvae.programs.find import DISAGREES, SETTLED
from ldvae.report import figures
from ldvae.report.drawing import Drawing
from ldvae.report.page import Column, Page, Table
from ldvae.report.results import Results
from ldvae.report.sections.cells import in_base64, sampled_note

EFFECT_STEP, Z_STEP = 1 / 2000, 1 / 100  # of a packed number; report.js has them too


def section(
    page: Page, results: Results, groups: dict[str, pd.Series], cells: np.ndarray, config: ReportConfig
) -> dict[str, Any]:
    """The table of programs, figures over all of them, the search for genes, and a panel of each program."""
    names = list(results.programs.index)
    loadings = results.consensus.pivot(index="gene", columns="program", values="loading")[names]
    return {
        "table": page.table(_programs_table(results)),
        "overview": [drawing for drawing in _overview(page, results, groups, loadings) if drawing],
        "genes": _gene_finder(page, results, loadings, config),
        "panels": [_panel(page, results, groups, cells, name, config) for name in names],
    }


def _programs_table(results: Results) -> Table:
    frame, threshold = results.programs.reset_index(names="program"), results.best["threshold"]
    columns = [
        Column(key="program", title="Program", kind="program"),
        Column(key="label", title="Label"),
        Column(key="share", title="Share", kind="bar", help="of the contribution of the fits"),
        Column(
            key="agreement",
            title="Agreement",
            kind="number",
            help="correlation of the scores with the program's own genes",
        ),
        Column(
            key="settled",
            title="Settled",
            kind="bar",
            help="how likely other seeds find it: share of the pairs of halves of the seeds that agree",
        ),
        Column(key="stability", title="Stability", kind="number", help="mean cosine of single runs with the consensus"),
        Column(key="n_runs_found", title="Found in runs", kind="number", help=f"with a cosine above {threshold:g}"),
        Column(key="best_association", title="Strongest association"),
        Column(key="technical", title="May be technical"),
    ]
    if len(results.chosen_runs) == 1:  # alike with itself, which tells nothing
        columns = [column for column in columns if column.key not in ("stability", "n_runs_found", "settled")]
    columns = [column for column in columns if column.key in frame]
    total = frame["share"].sum()
    note = f"The shares add up to {total:.0%}: "
    note += "programs overlap, so some of it counts twice." if total > 1.005 else "the rest does not reproduce."
    note = note if abs(total - 1) > 0.005 else "The shares add up to 100%."
    if results.programs_summary.get("intercept"):
        rank = results.programs_summary["rank"]
        note += f" The {rank} directions that the runs share give {len(frame)} programs: no cells lack all "
        note += "programs, so effects are relative to the mean cell, which adds one program."
    return Table(name="programs", title="Programs", frame=frame, columns=columns, page=60, note=note)


def _overview(
    page: Page, results: Results, groups: dict[str, pd.Series], loadings: pd.DataFrame
) -> Iterator[Drawing | None]:
    names = list(results.programs.index)
    titles = {name: f"{name} {results.programs.at[name, 'label']}".strip() for name in names}
    per_program = int(np.clip(44 // max(len(names), 1), 2, 6))
    positive = results.top_genes[(results.top_genes["side"] == "positive") & (results.top_genes["rank"] <= per_program)]
    genes = list(dict.fromkeys(positive.sort_values(["program", "rank"], key=_in_order(names))["gene"]))
    yield page.draw(
        figures.heatmap(
            loadings.loc[genes].T.rename(index=titles),
            name="programs_genes",
            title="Programs and their genes",
            caption=f"The {per_program} strongest positive genes of each program.",
            value="Loading",
            italic=True,
        )
    )
    tables = {name: results.scores.groupby(group.to_numpy(), observed=True).mean().T for name, group in groups.items()}
    # One scale for all, or chance differences between two batches would look like those between cell types.
    end = max([1.0, *(float(table.abs().max().max()) for table in tables.values())])
    for variable, group in groups.items():
        means = tables[variable]
        means = means[[level for level in group.cat.categories if level in means]].rename(index=titles)
        yield page.draw(
            figures.heatmap(
                means,
                name=f"programs_by_{figures.slug(variable)}",
                title=f"Programs by {variable}",
                caption=f"Mean score of the cells of each level of {variable}, in standard deviations.",
                value="Mean score",
                limits=(-end, end),
            )
        )
    if len(names) > 1:
        yield page.draw(
            figures.heatmap(
                results.scores[names].corr().rename(index=titles),
                name="programs_correlation",
                title="Correlation between programs",
                caption="Correlation of the scores over all cells.",
                value="Correlation",
                limits=(-1, 1),
            )
        )
    if results.stability["run"].nunique() > 1:
        cosines = results.stability.pivot(index="program", columns="run", values="cosine").loc[names]
        yield page.draw(
            figures.heatmap(
                cosines.rename(index=titles),
                name="programs_stability",
                title="Stability over seeds",
                caption="Cosine of each program in a single run with the consensus; 1: equal.",
                value="Cosine",
                limits=(0.5, 1),
                cmap="viridis",
            )
        )


def _in_order(names: list[str]) -> Any:
    """Sort key for programs in their own order (P10 after P2)."""
    position = {name: i for i, name in enumerate(names)}
    return lambda column: column.map(position) if column.name == "program" else column


def _panel(
    page: Page,
    results: Results,
    groups: dict[str, pd.Series],
    cells: np.ndarray,
    name: str,
    config: ReportConfig,
) -> dict[str, Any]:
    """Everything about one program."""
    scores = results.scores[name].to_numpy()
    drawn = [figures.program_genes(name, results.top_genes, config.n_genes)]
    if results.umap is not None:
        note = sampled_note(len(cells), len(results.obs))
        drawn.append(figures.program_map(name, results.umap[cells], scores[cells], note))
    if groups:
        drawn.append(figures.program_by_group(name, scores, groups))
    if len(results.donor_means):
        drawn.append(figures.program_donors(name, results.donor_means, results.donors))
    associations = results.associations[results.associations["program"] == name]
    associations = associations.sort_values("effect", key=np.abs, ascending=False)
    enrichment = results.enrichment[results.enrichment["program"] == name].sort_values("p")
    ranked = results.ranked_sets
    ranked = ranked[ranked["program"] == name] if len(ranked) else ranked
    tables = [
        Table(
            name=f"associations-{name}",
            title="Associations",
            frame=associations,
            columns=[
                Column(key="variable", title="Variable"),
                Column(key="level", title="Level"),
                Column(key="effect", title="Effect", kind="number", help="difference in SD, or correlation"),
                Column(key="auc", title="AUC", kind="number"),
                *([] if len(results.donors) else [Column(key="padj", title="Adjusted p", kind="p")]),
            ],
            page=8,
            note="Cells are not independent replicates, so this table has no p values; see Between conditions."
            if len(results.donors)
            else "p values treat cells as independent, which cells of one donor are not: read the effects first.",
        ),
        Table(
            name=f"enrichment-{name}",
            title="Enriched gene sets",
            frame=enrichment,
            columns=[
                Column(key="term", title="Gene set"),
                Column(key="side", title="Side"),
                Column(key="overlap", title="Overlap", kind="number"),
                Column(key="n_term", title="Size", kind="number"),
                Column(
                    key="odds_ratio",
                    title="Odds ratio",
                    kind="number",
                    help="∞: the set has no other gene, or none left",
                ),
                Column(key="padj", title="Adjusted p", kind="p"),
            ],
            page=8,
            note="Over-representation of the members of the program among the modeled genes.",
        ),
        Table(
            name=f"ranked-{name}",
            title="Gene sets by ranks",
            frame=ranked,
            columns=[
                Column(key="term", title="Gene set"),
                Column(key="n_term", title="Size", kind="number", help="measured genes of the set"),
                Column(key="t", title="t", kind="number", help="positive: higher than all other genes"),
                Column(key="padj", title="Adjusted p", kind="p"),
            ]
            if len(ranked)
            else [],
            page=8,
            note="Effects on all measured genes, without a cutoff. Genes of a set vary together: trust the order more "
            "than the p value.",
        ),
    ]
    row = results.programs.loc[name]
    return {
        "name": name,
        "row": row,
        "disagrees": bool(row.get("agreement", 1.0) < DISAGREES),
        "unsettled": bool(row.get("settled", 1.0) < SETTLED),
        "limit": DISAGREES,
        "figures": [page.draw(drawing) for drawing in drawn],
        "tables": [page.table(table) for table in tables if len(table.frame)],
    }


def _gene_finder(page: Page, results: Results, loadings: pd.DataFrame, config: ReportConfig) -> dict[str, Any]:
    """Loadings of the genes in all programs, for the search; at most `config.n_genes_searchable` strongest genes."""
    strongest = results.consensus.groupby("gene")["weighted"].agg(lambda values: values.abs().max())
    genes = strongest.nlargest(config.n_genes_searchable).index
    page.blocks["genes"] = loadings.loc[genes].sort_index().reset_index()
    return {"n": len(genes), "of": len(loadings)}


def measured(results: Results, config: ReportConfig) -> dict[str, Any]:
    """Effects of the programs on all measured genes, packed for the search: 16 bits for each effect and each z."""
    table = results.all_genes
    if table.empty:
        return {}
    effects = table.pivot(index="gene", columns="program", values="effect")[list(results.programs.index)]
    z = table.pivot(index="gene", columns="program", values="z").loc[effects.index, effects.columns]
    strongest = z.abs().max(axis=1).fillna(0).nlargest(config.n_genes_searchable, keep="first").index
    effects, z = (part.loc[sorted(strongest)].fillna(0) for part in (effects, z))
    pack = {"effect": (effects, EFFECT_STEP), "z": (z, Z_STEP)}
    packed: dict[str, Any] = {
        name: {
            program: in_base64(np.clip(np.round(part[program].to_numpy() / step), -32767, 32767).astype("<i2"))
            for program in part
        }
        for name, (part, step) in pack.items()
    }
    return {"gene": list(effects.index), "n": len(effects), "of": table["gene"].nunique(), **packed}
