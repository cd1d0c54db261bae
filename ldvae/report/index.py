"""The page that links to the reports of all datasets."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pandas as pd

from ldvae.report.page import Column, Page, Table, as_blocks, environment
from ldvae.report.sections.choice import runs_table


def render_index(
    summaries: list[dict[str, Any]], unfinished: list[dict[str, Any]], across: dict[str, Any] | None = None
) -> str:
    """Render the index over all datasets and runs from the summaries that `render_report` returned.

    Parameters
    ----------
    summaries
        Of the finished datasets.
    unfinished
        The others, each a mapping of `dataset` and `failures` (verb, message and exit code of each failed job).
    across
        Of the comparison of the datasets: `page` (its path), `datasets` and `findings`, or its `failures`.
    """
    page = Page()
    runs = pd.DataFrame([{"dataset": summary["dataset"], **run} for summary in summaries for run in summary["runs"]])
    table = page.table(runs_table(runs, "all-runs", with_dataset=True)) if len(runs) else None
    datasets = page.table(_datasets_table(summaries, unfinished))
    blocks = as_blocks(page)
    return (
        environment()
        .get_template("index.html.j2")
        .render(
            page=page,
            summaries=summaries,
            unfinished=unfinished,
            across=across,
            datasets=datasets,
            runs=table,
            blocks=blocks,
        )
    )


def _datasets_table(summaries: list[dict[str, Any]], unfinished: list[dict[str, Any]]) -> Table:
    """One row for each dataset, those that failed first."""
    rows = [
        {
            "dataset": one["dataset"],
            "dataset_href": f"#unfinished-{position}",
            "state": "failed in " + ", ".join(failure["verb"] for failure in one["failures"])
            if one["failures"]
            else "not finished",
        }
        for position, one in enumerate(unfinished, start=1)
    ]
    for one in summaries:
        best = one["programs"][0] if one["programs"] else {"label": ""}
        rows.append(
            {
                "dataset": one["dataset"],
                "dataset_href": quote(one["report"]),
                "state": "finished",
                "n_obs": one["n_obs_after"],
                "n_programs": one["n_programs"],
                "n_runs": len(one["runs"]),
                "n_warnings": len(one["warnings"]),
                "first": best["label"],
            }
        )
    columns = [
        Column(key="dataset", title="Dataset", kind="link"),
        Column(key="state", title="State"),
        Column(key="n_obs", title="Cells", kind="number"),
        Column(key="n_programs", title="Programs", kind="number"),
        Column(key="n_runs", title="Runs", kind="number"),
        Column(key="n_warnings", title="Warnings", kind="number", help="the report lists them"),
        Column(key="first", title="Largest program"),
    ]
    frame = pd.DataFrame(rows, columns=["dataset", "dataset_href", *(column.key for column in columns[1:])])
    return Table(name="datasets", title="Datasets", frame=frame, columns=columns, page=50, search=len(rows) > 5)
