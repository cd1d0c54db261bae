"""How the report was made: steps, versions, seeds, configuration, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ldvae import results as layout
from ldvae.report.results import Results

#: Files that a reader of the page can open: tables, numbers, gene sets and AnnData, but not the figures that it shows.
SUFFIXES = (".tsv", ".tsv.gz", ".json", ".gmt", ".h5ad", ".npz")
#: The steps that write results of one dataset, in their order, in the few words that fit beside each other on the page.
STEPS = {
    "qc": "cells and genes kept",
    "setup": "genes chosen, cells split",
    "train": "one model per run",
    "select": "setting chosen",
    "programs": "consensus over seeds",
    "annotate": "UMAP, clusters, scores",
    "de": "contrasts",
    "report": "this page",
}


def section(results: Results) -> dict[str, Any]:
    """How it was made: steps with their times, inputs, versions, seeds, configuration, downloads."""
    seconds = dict(results.seconds)
    if "train" not in seconds:
        seconds["train"] = [float(metrics["wall_s"]) for metrics in results.metrics.values() if metrics.get("wall_s")]
    steps = [
        {"name": name, "what": what, "jobs": len(seconds.get(name, [])), "seconds": sum(seconds.get(name, []))}
        for name, what in STEPS.items()
        if not (name == "de" and results.contrasts.empty)
    ]
    hosts = sorted({str(m["host"]) for m in results.metrics.values() if m.get("host")})
    devices = sorted({str(m["device"]) for m in results.metrics.values() if m.get("device")})
    return {
        "steps": steps,
        "downloads": {name: files for name in STEPS if (files := _downloads(name, results))},
        "versions": {name: version for name, version in results.versions.items() if name != "commit"},
        "commits": results.versions.get("commit", ""),
        "days": sorted({str(m["date"]) for m in results.metrics.values() if m.get("date")}),
        "seeds": {run: m.get("seed") for run, m in results.metrics.items()},
        "hosts": hosts,
        "devices": devices,
        "threads": sorted({m["threads"] for m in results.metrics.values() if m.get("threads")}),
        "config": json.dumps(results.resolved, indent=2, ensure_ascii=False) if results.resolved else "",
    }


def _downloads(step: str, results: Results) -> dict[str, str]:
    """What the results layout says of the files that a step writes once for the dataset, by path beside the page."""
    files = {
        file.path: file.holds
        for file in layout.outputs(step)
        if file.path.endswith(SUFFIXES) and "{" not in file.path and file is not layout.REPORT_SUMMARY
    }
    if step == "de" and not results.contrasts.empty:
        titles = {"file_all_genes": "All measured genes, by the counts.", "file": "Modeled genes, by the model."}
        files["de/contrasts.tsv"] = "One row for each contrast: groups, numbers of cells, genes called."
        files |= {
            f"de/{Path(str(row[column])).name}": f"{row['contrast']}. {what}"
            for row in results.contrasts.to_dict("records")
            for column, what in titles.items()
            if isinstance(row.get(column), str)
        }
    return files
