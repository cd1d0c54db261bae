"""Does the model fit? Predicted against observed counts of the held-out cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ldvae.report import figures
from ldvae.report.page import Column, Page, Table
from ldvae.report.results import Results


def section(page: Page, results: Results) -> dict[str, Any] | None:
    """Scatter of predicted against observed, by gene and by batch; None where no checks were made."""
    fit = results.fit
    if fit.empty:
        return None
    whole = fit[fit["batch"] == "all"].copy()
    with np.errstate(divide="ignore", invalid="ignore"):
        for quantity in ("mean", "variance"):
            whole[f"{quantity}_ratio"] = np.log2(whole[f"predicted_{quantity}"] / whole[f"observed_{quantity}"])
    whole["zeros_difference"] = whole["predicted_zeros"] - whole["observed_zeros"]
    whole = whole.sort_values("zeros_difference", key=np.abs, ascending=False)
    page.blocks["fit"] = whole.drop(columns=["batch", "n_cells"])
    batches = [name for name in dict.fromkeys(fit["batch"].astype(str)) if name != "all"]
    drawn = [page.draw(figures.fit_scatter(fit, quantity)) for quantity in figures.PREDICTED]
    shown = batches[:12] if len(batches) > 1 else []
    by_batch = [page.draw(figures.fit_batches(fit, name, shown)) for name in ("mean", "zeros")] if shown else []
    genes = Table(
        name="fit",
        title="Genes, worst first",
        frame=whole,
        columns=[
            Column(key="gene", title="Gene", kind="gene"),
            Column(key="observed_mean", title="Mean, observed", kind="number"),
            Column(key="predicted_mean", title="predicted", kind="number"),
            Column(key="mean_ratio", title="log2 ratio", kind="number"),
            Column(key="observed_variance", title="Variance, observed", kind="number"),
            Column(key="predicted_variance", title="predicted", kind="number"),
            Column(key="variance_ratio", title="log2 ratio", kind="number"),
            Column(key="observed_zeros", title="Zeros, observed", kind="number"),
            Column(key="predicted_zeros", title="predicted", kind="number"),
            Column(key="zeros_difference", title="difference", kind="number"),
        ],
        page=12,
        search=True,
    )
    return {
        "figures": drawn,
        "by_batch": by_batch,
        "genes": page.table(genes),
        "batches": page.table(_fit_by_batch(fit, batches)) if len(batches) > 1 else None,
        "left_out": len(batches) - len(shown) if shown else 0,
    }


def _fit_by_batch(fit: pd.DataFrame, batches: list[str]) -> Table:
    """How far the model is off in each batch: median over genes."""
    rows = []
    for name in ["all", *batches]:
        part = fit[(fit["batch"] == name) & (fit["observed_mean"] > 0) & (fit["observed_variance"] > 0)]
        rows.append(
            {
                "batch": name,
                "n_cells": int(part["n_cells"].max()) if len(part) else 0,
                "mean": (np.log2(part["predicted_mean"] / part["observed_mean"])).abs().median(),
                "variance": (np.log2(part["predicted_variance"] / part["observed_variance"])).abs().median(),
                "zeros": (part["predicted_zeros"] - part["observed_zeros"]).abs().median(),
            }
        )
    return Table(
        name="fit-batches",
        title="How far off, by batch",
        frame=pd.DataFrame(rows),
        columns=[
            Column(key="batch", title="Batch"),
            Column(key="n_cells", title="Held-out cells", kind="number"),
            Column(key="mean", title="Mean", kind="number", help="median |log2 ratio| over genes"),
            Column(key="variance", title="Variance", kind="number", help="median |log2 ratio| over genes"),
            Column(key="zeros", title="Zeros", kind="number", help="median |difference| over genes"),
        ],
    )
