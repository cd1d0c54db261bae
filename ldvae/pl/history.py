"""How the training went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ldvae.errors import InputError
from ldvae.pl.style import BLUE, INK, MUTED, RED, Save, Show, finish, new_axes, styled

QUANTITIES = {
    "elbo": "Negative ELBO",
    "reconstruction_loss": "Reconstruction error",
    "kl_local": "KL divergence",
}


@styled
def training(
    history: pd.DataFrame | Mapping[str, pd.DataFrame],
    *,
    quantity: str = "elbo",
    others: Sequence[pd.DataFrame] = (),
    ax: Axes | None = None,
    show: Show = None,
    save: Save = None,
) -> Axes:
    """Training (solid) and validation (dashed) values of one quantity, epoch by epoch.

    Parameters
    ----------
    history
        `model.history`, or the table history.csv of a run: a column `epoch`, and `{quantity}_train` and
        `{quantity}_validation` in nats per cell.
    quantity
        "elbo" (negative ELBO), "reconstruction_loss" or "kl_local".
    others
        Histories of other runs, whose validation values are drawn thin and gray.
    ax
        Axes to draw on; None makes a figure.
    show
        Show the figure; None does so where a window can be opened and nothing is saved.
    save
        File to write; its suffix gives the format.

    Returns
    -------
    Axes
        They start where the first fifth of the epochs has passed, which would flatten the rest.

    Examples
    --------
    >>> import pandas as pd
    >>> from ldvae import pl
    >>> history = pd.DataFrame({"epoch": [0, 1, 2], "elbo_train": [9.0, 7.0, 6.5], "elbo_validation": [9.2, 7.3, 7.0]})
    >>> ax = pl.training(history, show=False)
    >>> ax.get_xlabel()
    'Epoch'
    """
    table = as_table(history)
    curves = [(f"{quantity}_train", BLUE, "train", "-"), (f"{quantity}_validation", RED, "validation", (0, (4, 1.5)))]
    if not any(column in table for column, *_ in curves):
        kinds = sorted({str(name).removesuffix("_train") for name in table if str(name).endswith("_train")})
        raise InputError(f"pl.training: the history has no {quantity!r}; it has {', '.join(kinds) or 'nothing'}.")
    ax = new_axes(ax, show, save)
    for other in others:
        if curves[1][0] in other:
            ax.plot(other["epoch"], other[curves[1][0]], color=MUTED, linewidth=0.6, alpha=0.45)
    later = []
    for column, color, label, dashes in curves:
        if column in table and table[column].notna().any():
            seen = table[table[column].notna()]
            ax.plot(seen["epoch"], seen[column], color=color, linewidth=1.5, linestyle=dashes, label=label)
            later.append(table[column].to_numpy(dtype=float)[len(table) // 5 :])
    ax.axvline(table["epoch"].iloc[-1], color=INK, linewidth=0.8, linestyle=":")
    finite = np.concatenate(later)[np.isfinite(np.concatenate(later))]
    if len(finite):
        span = finite.max() - finite.min()
        ax.set_ylim(finite.min() - 0.05 * span - 1e-6, finite.max() + 0.08 * span + 1e-6)
    ax.set(xlabel="Epoch", ylabel="nats per cell")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    ax.legend(loc="best")
    finish(ax.figure, show, save)
    return ax


def as_table(history: pd.DataFrame | Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One table with a column `epoch`, from history.csv or from `model.history`."""
    if isinstance(history, pd.DataFrame):
        return history
    return pd.concat(history.values(), axis=1).rename_axis("epoch").reset_index()


@styled
def kl(
    kl_per_factor: Sequence[float],
    *,
    collapsed: int = 0,
    ax: Axes | None = None,
    show: Show = None,
    save: Save = None,
) -> Axes:
    """KL divergence of each factor from its prior, largest first: how much a factor says about a cell.

    Parameters
    ----------
    kl_per_factor
        Mean over cells, in nats, shape (n_latent,).
    collapsed
        How many of the smallest carry no information; they are marked.
    ax, show, save
        As in `training`.

    Examples
    --------
    >>> from ldvae import pl
    >>> ax = pl.kl([0.2, 3.1, 1.0], show=False)
    >>> [label.get_text() for label in ax.get_xticklabels()]
    ['1', '2', '0']
    """
    order = np.argsort(kl_per_factor)[::-1]
    values = np.asarray(kl_per_factor, dtype=float)[order]
    positions = np.arange(len(values))
    dead = positions >= len(values) - collapsed
    ax = new_axes(ax, show, save)
    ax.bar(positions[~dead], values[~dead], color=BLUE, width=0.75, label="in use")
    if dead.any():
        crosses: dict[str, Any] = {"marker": "x", "color": RED, "s": 22, "linewidth": 1.4, "zorder": 3}
        ax.scatter(positions[dead], values[dead], label="collapsed", **crosses)
        ax.legend(loc="upper right")
    ax.set(ylabel="KL, nats per cell", xlabel="Factor, largest first", xticks=positions)
    step = max(1, len(values) // 12)
    ax.set_xticklabels([f"{k}" if i % step == 0 else "" for i, k in enumerate(order)])
    finish(ax.figure, show, save)
    return ax
