"""Quality control: which cells stay, and why the others do not."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ldvae.report import figures
from ldvae.report.page import Column, Page, Table
from ldvae.report.results import Results


def section(page: Page, results: Results) -> dict[str, Any]:
    """Cells and genes before and after, the reasons of removal, by batch and by cell type."""
    cells, qc = results.qc_cells, results.qc
    metrics = [name for name in figures.METRIC_TITLES if name in cells and cells[name].nunique() > 1]
    drawn = [page.draw(figures.qc_distribution(name, cells, qc.get("thresholds", {}))) for name in metrics]
    removed = pd.DataFrame(qc["removed"].items(), columns=["reason", "cells"]).sort_values("cells", ascending=False)
    removed["share"] = removed["cells"] / max(qc["n_obs_before"], 1)
    reasons = Table(
        name="qc-removed",
        title="Removed cells by reason",
        frame=removed,
        columns=[
            Column(key="reason", title="Reason"),
            Column(key="cells", title="Cells", kind="number"),
            Column(key="share", title="Share of all cells", kind="bar"),
        ],
        note="A cell can have more than one reason.",
    )
    rows = [
        {"batch": name, **counts, "kept": counts["after"] / max(counts["before"], 1)}
        for name, counts in qc["per_batch"].items()
    ]
    batches = Table(
        name="qc-batches",
        title="Cells per batch",
        frame=pd.DataFrame(rows, columns=["batch", "before", "after", "kept"]),
        columns=[
            Column(key="batch", title="Batch"),
            Column(key="before", title="Before", kind="number"),
            Column(key="after", title="After", kind="number"),
            Column(key="kept", title="Kept", kind="bar"),
        ],
    )
    of_types = [
        {
            "type": name,
            **counts,
            "kept": counts["after"] / max(counts["before"], 1),
            "note": "lost more than a third" if counts["after"] < counts["before"] * 2 / 3 else "",
        }
        for name, counts in qc.get("per_type", {}).items()
    ]
    clustered = qc.get("types") == "clusters"
    types = Table(
        name="qc-types",
        title="Cells per cluster before quality control" if clustered else "Cells per cell type",
        frame=pd.DataFrame(of_types, columns=["type", "before", "after", "kept", "note"]).sort_values("kept"),
        columns=[
            Column(key="type", title="Cluster" if clustered else "Cell type"),
            Column(key="before", title="Before", kind="number"),
            Column(key="after", title="After", kind="number"),
            Column(key="kept", title="Kept", kind="bar"),
            Column(key="note", title="Warning"),
        ],
        note="Limits that fit the common types can remove most cells of a rare one.",
    )
    return {
        "figures": drawn,
        "types": page.table(types) if len(of_types) > 1 else None,
        "removed": page.table(reasons) if len(removed) else None,
        "batches": page.table(batches) if len(rows) > 1 else None,
    }
