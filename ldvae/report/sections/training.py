"""Training: losses by epoch and the use of the factors."""

from __future__ import annotations

from typing import Any

from ldvae.report import figures
from ldvae.report.page import Page
from ldvae.report.results import Results


def section(page: Page, results: Results) -> dict[str, Any]:
    """Curves of the chosen runs, and how much each factor of the best one is used."""
    best = results.best["run"]
    histories = {
        run: results.histories[run] for run in dict.fromkeys([*results.chosen_runs, best]) if run in results.histories
    }
    drawn = []
    if best in histories:
        for quantity in figures.QUANTITIES:
            drawn.append(page.draw(figures.training_curve(quantity, histories, best)))
    metrics = results.best_metrics
    if metrics.get("kl_per_factor"):
        drawn.append(page.draw(figures.kl_per_factor(metrics["kl_per_factor"], int(metrics.get("collapsed", 0)), best)))
    total = sum(float(m.get("wall_s") or 0) for m in results.metrics.values())
    return {"figures": [drawing for drawing in drawn if drawing], "total_s": total}
