"""Differential expression: the contrasts, by the counts and by the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from ldvae.config import ReportConfig
from ldvae.pl.de import called, fdr_of
from ldvae.report import figures, prose
from ldvae.report.page import Column, Page, Table
from ldvae.report.results import Results


def section(page: Page, results: Results, config: ReportConfig) -> dict[str, Any] | None:
    """The contrasts, and a panel of each; None where none was asked for."""
    if results.contrasts.empty:
        return None
    n_rows = max(50, config.n_de_rows // (2 * len(results.contrasts)))  # of each of a contrast's two tables
    panels = []
    for position, row in enumerate(results.contrasts.to_dict("records"), start=1):
        if row["contrast"] in results.de:
            panels.append(_contrast(page, results, row, position, n_rows))
    replicated = "n_pseudobulk" in results.contrasts and results.contrasts["n_pseudobulk"].notna().any()
    overview = Table(
        name="contrasts",
        title="Contrasts",
        frame=results.contrasts,
        columns=[
            column
            for column in [
                Column(key="contrast", title="Contrast", kind="contrast"),
                Column(key="n1", title="Cells 1", kind="number"),
                Column(key="n2", title="Cells 2", kind="number"),
                Column(key="n_pseudobulk", title="Pseudobulks", kind="number", help="genes called, of all measured"),
                Column(key="n_ranked", title="Ranks", kind="number", help="genes called, of all measured"),
                Column(key="n_de", title="Model", kind="number", help="genes called, of the modeled"),
                Column(key="n_both", title="Counts and model", kind="number", help="called by both, in one direction"),
                Column(key="reason", title="Why none"),
            ]
            if column.key in results.contrasts and (column.key != "n_pseudobulk" or replicated)
        ],
        page=60,
        search=len(results.contrasts) > 10,
        note="Number of genes that each test calls.",
    )
    return {"contrasts": page.table(overview), "panels": panels, "replicated": replicated}


def _contrast(page: Page, results: Results, row: dict[str, Any], position: int, n_rows: int) -> dict[str, Any]:
    table = results.de[row["contrast"]]
    counts = results.de_all_genes.get(row["contrast"], pd.DataFrame())
    fdr = fdr_of(table)
    significant = called(table)
    name = f"{position}-{row['contrast']}"
    block = f"de-{position}"
    title = f"{row['group1']} against {row['group2']}"
    drawn = [figures.volcano(name, table, significant, fdr or 0.05, block)]
    has_pseudobulk = "pseudobulk_lfc" in table and table["pseudobulk_lfc"].notna().any()
    if has_pseudobulk:
        drawn.append(figures.model_against_pseudobulk(name, table, fdr or 0.05, block))
    columns = [
        Column(key="gene", title="Gene", kind="gene"),
        Column(key=str(significant.name), title="Called", help="at the expected false discovery rate"),
        Column(key="both", title="By both", help="called by the counts and by the model, in one direction"),
        Column(key="lfc_mean", title="log2 fold change", kind="number", help="posterior mean"),
        Column(key="lfc_std", title="SD", kind="number"),
        Column(key="proba_de", title="P(DE)", kind="number", help="posterior probability"),
        Column(key="bayes_factor", title="log Bayes factor", kind="number"),
        Column(key="raw_normalized_mean1", title="Mean 1", kind="number", help="of normalized counts in group 1"),
        Column(key="raw_normalized_mean2", title="Mean 2", kind="number", help="of normalized counts in group 2"),
        Column(key="non_zeros_proportion1", title="Expressed 1", kind="bar", help="share of cells of group 1"),
        Column(key="non_zeros_proportion2", title="Expressed 2", kind="bar", help="share of cells of group 2"),
    ]
    if has_pseudobulk:
        columns += [
            Column(key="pseudobulk_lfc", title="Pseudobulk log2 fc", kind="number"),
            Column(key="pseudobulk_padj", title="Pseudobulk adj. p", kind="p"),
        ]
    ranked = table.sort_values("bayes_factor", ascending=False, kind="stable")
    by_model = _gene_table(block, f"By the model: {title}", ranked, columns, n_rows, "with the largest Bayes factors")
    by_counts = _by_counts(f"counts-{position}", title, counts, n_rows, fdr or 0.05) if len(counts) else None
    both = prose.both_genes(table, counts)
    up, down = (list(both.loc[both["lfc_mean"] > 0, "gene"]), list(both.loc[both["lfc_mean"] <= 0, "gene"]))
    return {
        "row": row,
        "title": title,
        "id": block,
        "reason": row["reason"] if isinstance(row.get("reason"), str) else "",
        "called": _called(row),
        "up": up,
        "down": down,
        "figures": [page.draw(drawing) for drawing in drawn],
        "counts": page.table(by_counts) if by_counts else None,
        "table": page.table(by_model),
        "files": {
            f"de/{Path(str(row[column])).name}": what
            for column, what in (("file_all_genes", "all measured genes"), ("file", "all columns of the model"))
            if isinstance(row.get(column), str)
        },
    }


def _called(row: dict[str, Any]) -> str:
    """How many genes each test of a contrast calls, in words."""
    titles = {"n_pseudobulk": "by pseudobulks", "n_ranked": "by ranks", "n_de": "by the model", "n_both": "by both"}
    known = {how: row[key] for key, how in titles.items() if key in row and not pd.isna(row[key])}
    return "genes called: " + ", ".join(f"{int(n):,} {how}" for how, n in known.items())


def _gene_table(name: str, title: str, ranked: pd.DataFrame, columns: list[Column], n_rows: int, which: str) -> Table:
    """The first rows of a table of genes, with a note of how many there are."""
    columns = [column for column in columns if column.key in ranked]
    first = ranked.head(n_rows)
    note = f"The {len(first):,} genes {which}, of {len(ranked):,}." if len(first) < len(ranked) else ""
    keys = [column.key for column in columns]
    return Table(name=name, title=title, frame=first[keys], columns=columns, page=15, search=True, note=note)


def _by_counts(name: str, title: str, counts: pd.DataFrame, n_rows: int, fdr: float) -> Table:
    """All measured genes by the tests of the counts, in the order of the file: the most telling first."""
    has_pseudobulk = "pseudobulk_padj" in counts
    if has_pseudobulk:
        counts = counts.assign(by_pseudobulk=counts["pseudobulk_padj"] < fdr)
    bulk = [
        Column(key="by_pseudobulk", title="Called, pseudobulks", help=f"adjusted p below {fdr:g}"),
        Column(key="pseudobulk_lfc", title="log2 fc, pseudobulks", kind="number"),
        Column(key="pseudobulk_padj", title="Adjusted p", kind="p", help="of pseudobulks"),
    ]
    columns = [
        Column(key="gene", title="Gene", kind="gene"),
        *(bulk if has_pseudobulk else []),
        Column(key="called", title="Called, ranks", help=f"adjusted p below {fdr:g}, AUC from 0.6 or to 0.4"),
        Column(key="auc", title="AUC", kind="number", help="how often a cell of group 1 has more of the gene"),
        Column(key="log2fc", title="log2 fold change", kind="number", help="of the mean counts per ten thousand"),
        Column(key="detected1", title="Detected 1", kind="bar", help="share of cells of group 1"),
        Column(key="detected2", title="Detected 2", kind="bar", help="share of cells of group 2"),
        Column(key="wilcoxon_padj", title="Adjusted p, ranks", kind="p", help="cells as replicates"),
    ]
    which = "that separate the groups best" + (" (those that replicates confirm first)" if has_pseudobulk else "")
    return _gene_table(name, f"By the counts, all measured genes: {title}", counts, columns, n_rows, which)
