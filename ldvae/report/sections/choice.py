"""Model choice: settings and runs, and how many directions reproduce."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ldvae.report import figures
from ldvae.report.page import Column, Page, Table
from ldvae.report.results import Results

RUN_COLUMNS = [
    Column(key="run", title="Run", kind="id"),
    Column(key="setting", title="Setting", kind="id"),
    Column(key="seed", title="Seed", kind="number"),
    Column(key="n_latent", title="Factors", kind="number"),
    Column(
        key="elbo_validation",
        title="Validation ELBO",
        kind="number",
        help="negative ELBO, nats per cell; lower is better",
    ),
    Column(key="elbo_test", title="Test ELBO", kind="number", help="negative ELBO, nats per cell; lower is better"),
    Column(
        key="marginal_ll_test", title="Marginal log-likelihood", kind="number", help="nats per cell; higher is better"
    ),
    Column(key="collapsed", title="Collapsed", kind="number"),
    Column(key="epochs", title="Epochs", kind="number"),
    Column(key="wall_s", title="Time (s)", kind="number"),
    Column(key="cells_per_s", title="Cells/s", kind="number"),
    Column(key="peak_memory_mb", title="Memory (MB)", kind="number"),
    Column(key="device", title="Device"),
]


def section(page: Page, results: Results) -> dict[str, Any]:
    """Settings and runs of the sweep, and the curve by which the number of programs was chosen."""
    settings, runs, best = results.settings, results.runs, results.best
    drawn = [figures.choice_curve(settings, runs, name) for name in ("elbo_test", "stability", "reproducible_rank")]
    rank = best.get("reproducible_rank")
    drawn.append(figures.rank_correlations(results.correlations, best["setting"], rank, best["threshold"]))
    columns = [
        Column(key="setting", title="Setting", kind="id"),
        Column(key="chosen", title="Chosen"),
        Column(key="n_latent", title="Factors", kind="number"),
        Column(key="n_runs", title="Runs", kind="number"),
        Column(
            key="elbo_test_mean", title="Test ELBO", kind="number", help="negative ELBO, nats per cell; lower is better"
        ),
        Column(key="elbo_test_se", title="± s.e.", kind="number"),
        Column(
            key="marginal_ll_test_mean",
            title="Marginal log-likelihood",
            kind="number",
            help="nats per cell; higher is better",
        ),
        Column(key="reproducible_rank", title="Reproducible rank", kind="number"),
        Column(key="stability_mean", title="Stability", kind="number", help="mean cosine with the consensus"),
        Column(key="stability_min", title="Least stable", kind="number"),
        Column(key="collapsed_mean", title="Collapsed", kind="number"),
        Column(key="wall_s_mean", title="Time (s)", kind="number"),
    ]
    table = Table(name="settings", title="Settings", frame=settings, columns=[c for c in columns if c.key in settings])
    return {
        "figures": [drawing for drawing in map(page.draw, drawn) if drawing],
        "settings": page.table(table),
        "runs": page.table(runs_table(runs, "runs")),
    }


def runs_table(runs: pd.DataFrame, name: str, *, with_dataset: bool = False) -> Table:
    columns = [column for column in RUN_COLUMNS if column.key in runs]
    if with_dataset:
        columns.insert(0, Column(key="dataset", title="Dataset"))
    if "outlier" in runs and runs["outlier"].astype(bool).any():
        columns.append(Column(key="outlier", title="Outlier"))
    keys = [column.key for column in columns]
    return Table(name=name, title="Runs", frame=runs[keys], columns=columns, search=len(runs) > 10)
