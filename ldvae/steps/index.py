"""The front page over the reports of all datasets."""

from __future__ import annotations

import logging
from pathlib import Path

from ldvae import results as layout
from ldvae.io import atomic
from ldvae.report.page import render_index
from ldvae.report.prose import end_of_run

logger = logging.getLogger(__name__)


def index(*, results: Path, datasets: list[str] | None = None) -> None:
    """Write the page that leads to the reports of all datasets and compares all runs.

    Parameters
    ----------
    results
        Folder of the results of all datasets, such as results.
    datasets
        Names of the datasets, in the order of the page; not given: all that have a report. Those that are not finished
        come first, with what failed.
    """
    names = datasets or sorted(path.parent.name for path in results.glob(f"*/{layout.REPORT_SUMMARY.path}"))
    failures = {name: layout.failures(results / name) for name in names}
    finished = [name for name in names if layout.REPORT_SUMMARY.at(results / name).exists() and not failures[name]]
    found = [
        {**layout.REPORT_SUMMARY.read(results / name), "report": f"{name}/{layout.PAGE.path}"} for name in finished
    ]
    unfinished = [{"dataset": name, "failures": failures[name]} for name in names if name not in finished]
    with atomic(layout.INDEX.at(results)) as temporary:
        temporary.write_text(render_index(found, unfinished), encoding="utf-8")
    logger.info("%s", end_of_run(found, str(layout.INDEX.at(results))))
