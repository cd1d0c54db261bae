"""Which setting was chosen, and how many programs reproduce."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ldvae.pl.style import BLUE, INK, MUTED, ORANGE, RED, Save, Show, finish, need, new_axes, short, styled

#: Column, axis label of each quantity by which settings are compared.
SELECTION = {
    "elbo_test": ("elbo_test_mean", "negative ELBO, nats per cell"),
    "elbo_validation": ("elbo_validation_mean", "negative ELBO, nats per cell"),
    "elbo_train": ("elbo_train_mean", "negative ELBO of the training cells, nats per cell"),
    "stability": ("stability_mean", "cosine with the consensus"),
    "reproducible_rank": ("reproducible_rank", "programs that reproduce"),
}

Selection = Literal["elbo_test", "elbo_validation", "elbo_train", "stability", "reproducible_rank"]


def placed_settings(settings: pd.DataFrame, column: str) -> pd.DataFrame:
    """Settings in the order of their factors, with a column `position`: the factors, or 0, 1… where those repeat."""
    settings = settings[settings[column].notna()].sort_values("n_latent", kind="stable")
    unique = settings["n_latent"].is_unique
    return settings.assign(position=settings["n_latent"].astype(int) if unique else range(len(settings)))


@styled
def selection(
    settings: pd.DataFrame,
    runs: pd.DataFrame | None = None,
    *,
    quantity: Selection = "elbo_test",
    ax: Axes | None = None,
    show: Show = None,
    save: Save = None,
) -> Axes:
    """Held-out error, stability or number of programs of each setting, against its number of factors.

    Parameters
    ----------
    settings
        select/settings.tsv: one row per setting, with `setting`, `n_latent`, `chosen` and the columns of the quantity.
    runs
        select/runs.tsv; its single runs are drawn behind the means of the held-out error.
    quantity
        What to draw.
    ax
        Axes to draw on; None makes a figure.
    show
        Show the figure; None does so where a window can be opened and nothing is saved.
    save
        File to write; its suffix gives the format.

    Examples
    --------
    >>> import pandas as pd
    >>> from ldvae import pl
    >>> settings = pd.DataFrame({"setting": ["k5", "k10"], "n_latent": [5, 10], "chosen": [False, True]})
    >>> ax = pl.selection(settings.assign(elbo_test_mean=[430.0, 426.0]), show=False)
    >>> ax.get_ylabel()
    'negative ELBO, nats per cell'
    """
    column, ylabel = SELECTION[quantity]
    need(settings, ["setting", "n_latent", "chosen", column], "selection", "select/settings.tsv")
    by_factors = settings.loc[settings[column].notna(), "n_latent"].is_unique
    settings = placed_settings(settings, column)
    x = settings["position"]
    ax = new_axes(ax, show, save)
    if quantity in ("elbo_test", "elbo_validation", "elbo_train"):
        if runs is not None and quantity in runs:
            seeds = runs.merge(settings[["setting", "position"]], on="setting")
            left_out = seeds["outlier"].astype(bool) if "outlier" in seeds else pd.Series(False, index=seeds.index)
            kept = seeds[~left_out]
            ax.scatter(kept["position"], kept[quantity], color=MUTED, s=12, alpha=0.6, linewidth=0, label="one run")
            if left_out.any():
                out = seeds[left_out]
                ax.scatter(out["position"], out[quantity], color=RED, marker="x", s=20, label="run left out")
        error = settings.get(f"{quantity}_se", pd.Series(0.0, index=settings.index)).fillna(0)
        points: dict[str, Any] = {
            "color": BLUE,
            "linewidth": 1.2,
            "marker": "o",
            "markersize": 4,
            "label": "mean ± s.e.",
        }
        ax.errorbar(x, settings[column], yerr=error, **points)
    elif quantity == "stability":
        ax.plot(x, settings[column], color=BLUE, marker="o", markersize=4, linewidth=1.2, label="mean")
        lowest = settings["stability_min"]
        worst: dict[str, Any] = {
            "color": ORANGE,
            "marker": "v",
            "markersize": 4,
            "linewidth": 1,
            "label": "least stable program",
        }
        ax.plot(x, lowest, **worst)
        ax.set_ylim(min(0.5, float(lowest.min()) - 0.05), 1.01)
    else:
        ax.plot(x, settings[column], color=BLUE, marker="o", markersize=4, linewidth=1.2)
        if by_factors:
            ax.plot(x, settings["n_latent"], color=MUTED, linestyle=":", linewidth=1, label="number of factors")
        ax.yaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    chosen = settings[settings["chosen"].astype(bool)]
    ring: dict[str, Any] = {
        "s": 90,
        "facecolor": "none",
        "edgecolor": RED,
        "linewidth": 1.5,
        "label": "chosen",
        "zorder": 4,
    }
    ax.scatter(chosen["position"], chosen[column], **ring)
    ax.set(xlabel="Number of factors" if by_factors else "Setting", ylabel=ylabel)
    if by_factors:
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    else:
        ax.set_xticks(x, [short(name) for name in settings["setting"]], rotation=45, ha="right")
    ax.margins(x=0.08)
    ax.legend(loc="best")
    finish(ax.figure, show, save)
    return ax


@styled
def rank(
    correlations: pd.DataFrame,
    *,
    setting: str | None = None,
    kept: float | None = None,
    threshold: float | None = None,
    ax: Axes | None = None,
    show: Show = None,
    save: Save = None,
) -> Axes:
    """How well two halves of the seeds agree on the strongest directions, by their number.

    Parameters
    ----------
    correlations
        select/correlations.tsv: `setting`, `rank`, and the smallest canonical `correlation` between the halves with its
        interval `lower` to `upper` over random splits.
    setting
        The setting that stands out; the first if None. The others are gray.
    kept
        Number of directions that were kept: a line.
    threshold
        Correlation above which a number is kept: a dotted line.
    ax
        Axes to draw on; None makes a figure.
    show
        Show the figure; None does so where a window can be opened and nothing is saved.
    save
        File to write; its suffix gives the format.

    Examples
    --------
    >>> import pandas as pd
    >>> from ldvae import pl
    >>> halves = pd.DataFrame({"setting": "k3", "rank": [1, 2, 3], "correlation": [0.99, 0.97, 0.4]})
    >>> ax = pl.rank(halves.assign(lower=halves.correlation, upper=halves.correlation), kept=2, show=False)
    >>> ax.get_xlabel()
    'Number of directions'
    """
    need(correlations, ["setting", "rank", "correlation"], "rank", "select/correlations.tsv")
    ax = new_axes(ax, show, save)
    if correlations.empty:
        ax.text(0.5, 0.5, "One run per setting: nothing to compare.", ha="center", transform=ax.transAxes)
    elif setting is None:
        setting = str(correlations["setting"].iloc[0])
    for name, curve in correlations.groupby("setting", sort=False):
        if name != setting:
            ax.plot(curve["rank"], curve["correlation"], color=MUTED, linewidth=0.7, alpha=0.6)
            continue
        if "lower" in curve:
            ax.fill_between(curve["rank"], curve["lower"], curve["upper"], color=BLUE, alpha=0.2, linewidth=0)
        ax.plot(curve["rank"], curve["correlation"], color=BLUE, marker="o", markersize=4, linewidth=1.2)
    if threshold is not None:
        ax.axhline(threshold, color=INK, linewidth=0.8, linestyle=":")
    if kept is not None and np.isfinite(kept):
        ax.axvline(kept + 0.5, color=RED, linewidth=1)
    ax.set(xlabel="Number of directions", ylabel="Smallest correlation", ylim=(0, 1.03))
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    finish(ax.figure, show, save)
    return ax
