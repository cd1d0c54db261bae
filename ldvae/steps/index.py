"""The front page over the reports of all datasets."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ldvae.config import Output
from ldvae.io import atomic
from ldvae.report.page import render_index


def index(*, summaries: list[Path], output: Output) -> None:
    """Write the page that leads to the reports of all datasets and compares all runs.

    Parameters
    ----------
    summaries
        The report.json of each dataset; its report.html lies beside it.
    output
        The page (html).
    """
    found = []
    for path in summaries:
        summary = json.loads(Path(path).read_text(encoding="utf-8"))
        page = Path(path).parent / summary["page"]
        found.append({**summary, "report": Path(os.path.relpath(page, output.parent)).as_posix()})
    with atomic(output) as temporary:
        temporary.write_text(render_index(found), encoding="utf-8")
