"""The front page over the reports of all datasets."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from ldvae import results as layout
from ldvae.io import write_text
from ldvae.report.index import render_index
from ldvae.report.multiqc import programs_table, qc_table
from ldvae.report.prose import end_of_run

logger = logging.getLogger(__name__)

WITHOUT_FINDINGS: dict[str, Any] = {"found": [], "not_found": []}  # reports of earlier versions hold none


def index(*, results: Path, datasets: list[str] | None = None, across: bool | None = None) -> None:
    """Write the page that links to the reports of all datasets and compares all runs.

    Parameters
    ----------
    results
        Folder of the results of all datasets, such as results.
    datasets
        Names of the datasets, in the order of the page; not given: all that have a report. Those that are not finished
        come first, with what failed.
    across
        Whether to lead to the comparison of the datasets, too; not given: if there is one.
    """
    names = datasets or sorted(path.parent.name for path in results.glob(f"*/{layout.REPORT_SUMMARY.path}"))
    failures = {name: layout.failures(results / name) for name in names}
    finished = [name for name in names if layout.REPORT_SUMMARY.at(results / name).exists() and not failures[name]]
    found = [
        {**WITHOUT_FINDINGS, **layout.REPORT_SUMMARY.read(results / name), "report": f"{name}/{layout.PAGE.path}"}
        for name in finished
    ]
    unfinished = [{"dataset": name, "failures": failures[name]} for name in names if name not in finished]
    compared = comparison(results) if across is not False else None
    failed = [*unfinished, *([{"dataset": "across", **compared}] if compared and compared["failures"] else [])]
    said = end_of_run(found, str(layout.INDEX.at(results)), failed)
    texts = {
        layout.INDEX: render_index(found, unfinished, compared),
        layout.INDEX_RECORD: json.dumps({"datasets": names, "across": compared is not None}) + "\n",
        layout.SUMMARY: said + "\n",
        layout.MULTIQC_QC: qc_table(found),
        layout.MULTIQC_PROGRAMS: programs_table(found),
    }
    for file, text in texts.items():
        write_text(text, file.at(results))
    logger.info("%s", said)


def comparison(results: Path) -> dict[str, Any] | None:
    """What the page says of the comparison of the datasets; none where there is none."""
    if failures := [one for one in layout.failures(results) if one["verb"] == "across"]:
        return {"failures": failures}
    if not layout.ACROSS_SUMMARY.at(results).exists():
        return None
    return {**layout.ACROSS_SUMMARY.read(results), "page": layout.ACROSS_PAGE.path, "failures": []}
