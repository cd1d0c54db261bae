"""Posterior predictive checks: what the model predicts beside what was observed."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ldvae.errors import InputError
from ldvae.pl.quality import plain_numbers
from ldvae.pl.style import BLUE, MUTED, RED, Save, Show, finish, need, new_axes, styled

Quantity = Literal["mean", "variance", "zeros"]
QUANTITIES: dict[Quantity, str] = {"mean": "Mean", "variance": "Variance", "zeros": "Share of zeros"}


@styled
def ppc(
    table: pd.DataFrame,
    quantity: Quantity = "mean",
    *,
    batch: str = "all",
    ax: Axes | None = None,
    show: Show = None,
    save: Save = None,
) -> Axes:
    """Observed against predicted mean, variance or share of zeros of each gene; on the line the model is right.

    Parameters
    ----------
    table
        The table of posterior predictive checks of a run: `gene`, `observed_{quantity}`, `predicted_{quantity}`, and
        `batch` where batches were looked at one by one.
    quantity
        What to compare. Means and variances are on logarithmic axes.
    batch
        Which rows; "all" are those over all held-out cells.
    ax
        Axes to draw on; None makes a figure.
    show
        Show the figure; None does so where a window can be opened and nothing is saved.
    save
        File to write; its suffix gives the format.

    Returns
    -------
    Axes
        Genes whose prediction is infinite or not a number stand as red triangles on the upper edge.

    Examples
    --------
    >>> import pandas as pd
    >>> from ldvae import pl
    >>> table = pd.DataFrame({"gene": ["LYZ", "CD3D"], "observed_mean": [5.1, 0.4], "predicted_mean": [5.0, 0.5]})
    >>> ax = pl.ppc(table, show=False)
    >>> ax.get_xscale()
    'log'
    """
    if quantity not in QUANTITIES:
        raise InputError(f"pl.ppc: there is no quantity {quantity!r}; choose mean, variance or zeros.")
    columns = [f"observed_{quantity}", f"predicted_{quantity}"]
    need(table, columns, "ppc", "the table of posterior predictive checks of a run")
    rows = table[table["batch"] == batch] if "batch" in table else table
    observed, predicted = (rows[column].to_numpy(dtype=float) for column in columns)
    ax = new_axes(ax, show, save, (4.5, 3.1))
    ends = limits(observed, predicted, quantity)
    if quantity != "zeros":
        ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        ax.minorticks_off()
        plain_numbers(ax)
    ax.plot(ends, ends, color=MUTED, linewidth=0.9)
    good = np.isfinite(predicted) & np.isfinite(observed)
    many = len(rows) > 300
    ax.scatter(observed[good], predicted[good], color=BLUE, s=7, alpha=0.5, linewidth=0, rasterized=many)
    bad = ~np.isfinite(predicted) & np.isfinite(observed)
    if bad.any():
        marks: dict[str, Any] = {"color": RED, "marker": "^", "s": 14, "linewidth": 0, "clip_on": False}
        ax.scatter(observed[bad], np.full(bad.sum(), ends[1]), label=f"not finite ({bad.sum():,})", **marks)
        ax.legend(loc="lower right")
    ax.set(xlabel="Observed", ylabel="Predicted")
    finish(ax.figure, show, save)
    return ax


def limits(observed: np.ndarray, predicted: np.ndarray, quantity: str) -> tuple[float, float]:
    """Ends of both axes: 0 and 1 for shares, else round all finite values above 0."""
    if quantity == "zeros":
        return 0.0, 1.0
    values = np.concatenate([observed, predicted, [1e-3, 1]])
    values = values[np.isfinite(values) & (values > 0)]
    return float(values.min() / 1.5), float(values.max() * 1.5)
