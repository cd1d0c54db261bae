"""The report of one dataset: its sections in order, rendered to one file of HTML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldvae.config import ReportConfig
from ldvae.report import prose
from ldvae.report.page import Page, as_blocks, as_columns, environment
from ldvae.report.results import Results
from ldvae.report.sections import cells, choice, conditions, de, fit, making, programs, quality, training
from ldvae.report.sections.cells import drawn_cells, groups_of
from ldvae.report.sections.choice import RUN_COLUMNS

TITLES = {
    "qc": "Quality control",
    "training": "Training",
    "choice": "Model choice",
    "programs": "Programs",
    "conditions": "Between conditions",
    "fit": "Does the model fit?",
    "de": "Differential expression",
}


def render_report(results: Results, config: ReportConfig) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Render the report of one dataset.

    Parameters
    ----------
    results
        The tables of the dataset.
    config
        How much to show.

    Returns
    -------
    The page as HTML; the figures as standalone SVG documents, by name; the summary for the index over all datasets.
    """
    page = Page()
    drawn = drawn_cells(len(results.obs), config.n_cells)
    groups = groups_of(results, config)
    context: dict[str, Any] = {
        "page": page,
        "titles": TITLES,
        "results": results,
        "reason": prose.sentence(str(results.best.get("reason", ""))),
        "warnings": prose.warnings(results),
        "findings": prose.findings(results),
        "methods": results.methods,
        "qc": quality.section(page, results),
        "training": training.section(page, results),
        "choice": choice.section(page, results),
        "cells": cells.section(page, results, groups, drawn),
        "programs": programs.section(page, results, groups, drawn, config),
        "conditions": conditions.section(page, results),
        "measured": programs.measured(results, config),
        "fit": fit.section(page, results),
        "de": de.section(page, results, config),
        "making": making.section(results),
    }
    context["blocks"] = as_blocks(page)
    html = environment().get_template("report.html.j2").render(context)
    documents = {name: rendered.document for name, rendered in page.rendered.items()}
    return html, documents, _summary(results, context["warnings"], context["findings"])


def _summary(results: Results, warnings: list[prose.Warning], findings: prose.Findings) -> dict[str, Any]:
    """What the index over all datasets shows of this one."""
    runs = results.runs[[column.key for column in RUN_COLUMNS if column.key in results.runs]]
    programs = [
        {"program": name, "label": row["label"], "share": float(row["share"]), "top_positive": row["top_positive"]}
        for name, row in results.programs.iterrows()
    ]
    columns: Mapping[str, list[Any]] = as_columns(runs)
    return {
        "dataset": results.dataset,
        "n_obs_before": results.qc["n_obs_before"],
        "n_obs_after": results.qc["n_obs_after"],
        "n_vars": results.setup["n_vars"],
        "setting": results.best["setting"],
        "reason": results.best["reason"],
        "n_programs": len(results.programs),
        "programs": programs,
        "found": [one.text for one in findings.found],
        "not_found": [one.text for one in findings.not_found],
        "warnings": [warning.text for warning in warnings],
        "runs": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
    }
