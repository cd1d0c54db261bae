"""Tables of all datasets that MultiQC shows as sections of its report (custom content)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def qc_table(summaries: Sequence[dict[str, Any]]) -> str:
    """Quality control, choice of the model and numbers of programs: a row per dataset.

    Parameters
    ----------
    summaries
        As `render_report` returns one for each dataset.
    """
    columns = (
        "Dataset",
        "Cells read",
        "Cells kept",
        "Cells kept (%)",
        "Genes modeled",
        "Runs",
        "Programs",
        "Warnings",
    )
    rows = [
        (
            one["dataset"],
            one["n_obs_before"],
            one["n_obs_after"],
            f"{100 * one['n_obs_after'] / max(one['n_obs_before'], 1):.1f}",
            one["n_vars"],
            len(one["runs"]),
            one["n_programs"],
            len(one["warnings"]),
        )
        for one in summaries
    ]
    return _section("qc", "Cells, genes and programs", "Each dataset after quality control.", columns, rows)


def programs_table(summaries: Sequence[dict[str, Any]]) -> str:
    """The programs of all datasets, a row each: `dataset P1`, label, share of the variation, top genes.

    Parameters
    ----------
    summaries
        As for `qc_table`.
    """
    columns = ("Program", "Label", "Share (%)", "Top genes")
    rows = [
        (
            f"{one['dataset']} {program['program']}",
            program["label"],
            f"{100 * program['share']:.1f}",
            program["top_positive"],
        )
        for one in summaries
        for program in one["programs"]
    ]
    return _section("programs", "Gene programs", "The programs of each dataset, the largest first.", columns, rows)


def _section(name: str, title: str, description: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    head = [
        f"# id: 'ldvae_{name}'",
        f"# section_name: '{title}'",
        f"# description: '{description}'",
        "# parent_id: 'ldvae'",
        "# parent_name: 'ldvae'",
        "# plot_type: 'table'",
        "# pconfig:",
        f"#     id: 'ldvae_{name}_table'",
        f"#     title: 'ldvae: {title}'",
        "#     no_violin: true",
    ]
    lines = ["\t".join(" ".join(str(value).split()) for value in row) for row in (columns, *rows)]
    return "\n".join([*head, *lines]) + "\n"
