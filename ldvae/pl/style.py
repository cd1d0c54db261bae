"""Colors and type of every figure, and how a figure is made, shown and saved."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.registry import BackendFilter, backend_registry
from matplotlib.colors import is_color_like, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ldvae.errors import InputError

# Colors of the Okabe-Ito palette, which color-blind readers can tell apart; no yellow, which is lost on white.
BLUE, ORANGE, GREEN, PURPLE, RED, SKY = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9"

# The report replaces these four by the colors of the page's light or dark theme.
INK, MUTED, RULE, PAPER = "#1c1e21", "#686d76", "#d5d8dd", "#fefefe"

#: Size of a figure with one pair of axes, in inches.
SIZE = (4.5, 2.8)

STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    # A gene or a label may hold a dollar sign: it is text, never a formula.
    "text.parse_math": False,
    "axes.unicode_minus": True,
    # The same figure gives the same bytes.
    "svg.fonttype": "none",
    "svg.hashsalt": "ldvae",
}

styled = mpl.rc_context(STYLE)

Show = bool | None
Save = Path | str | None


def new_figure(size: tuple[float, float], show: Show, save: Save) -> Figure:
    """Make an empty figure; pyplot knows it only if it may be shown."""
    if save is not None or show is False:
        return Figure(figsize=size, layout="constrained")
    from matplotlib import pyplot

    return pyplot.figure(figsize=size, layout="constrained")


def figure_of(axes: Axes | Sequence[Axes]) -> Figure:
    """The whole figure that axes, or the first of several, belong to."""
    figure = (axes if isinstance(axes, Axes) else axes[0]).figure
    return figure if isinstance(figure, Figure) else figure.figure


def new_axes(ax: Axes | None, show: Show, save: Save, size: tuple[float, float] = SIZE) -> Axes:
    """Return the axes given, or those of a new figure."""
    return ax if ax is not None else new_figure(size, show, save).subplots()


def finish(figure: Any, show: Show, save: Save) -> None:
    """Save the figure if `save` names a file; show it if asked to, or if a window can be opened and nothing was said.

    Jupyter shows a figure of pyplot at the end of the cell without being asked.
    """
    if save is not None:
        kind = Path(save).suffix.lstrip(".").lower()
        dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}
        figure.savefig(save, dpi=180, metadata=dated.get(kind))
    window = mpl.get_backend().lower() in backend_registry.list_builtin(BackendFilter.INTERACTIVE)
    managed = getattr(figure.canvas, "manager", None) is not None
    if show or (show is None and managed and window):
        from matplotlib import pyplot

        pyplot.show()


def need(table: pd.DataFrame, columns: Sequence[str], function: str, source: str) -> None:
    """Raise an `InputError` unless the table has these columns."""
    missing = [column for column in columns if column not in table]
    if missing:
        found = ", ".join(map(str, list(table.columns)[:12])) or "none"
        lacking = ", ".join(map(repr, missing))
        raise InputError(f"pl.{function}: the table has no column {lacking} (its columns: {found}). Give {source}.")


@lru_cache
def _distinct(n: int) -> tuple[str, ...]:
    """Okabe-Ito and then, one after another, the color that differs most from all before it."""
    base = [BLUE, ORANGE, GREEN, PURPLE, RED, SKY, "#8a8a8a"]
    if n <= len(base):
        return tuple(base[:n])
    steps = np.linspace(0, 1, 14)
    rgb = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _oklab(rgb)
    # Neither lost on white nor on a dark page.
    visible = (lab[:, 0] > 0.38) & (lab[:, 0] < 0.82)
    rgb, lab = rgb[visible], lab[visible]
    chosen = [to_rgb(color) for color in base]
    distance = np.min([np.linalg.norm(lab - _oklab(np.array(color)), axis=1) for color in chosen], axis=0)
    while len(chosen) < n:
        best = int(np.argmax(distance))
        red, green, blue = (float(value) for value in rgb[best])
        chosen.append((red, green, blue))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[best], axis=1))
    return tuple(to_hex(color) for color in chosen)


def _oklab(rgb: np.ndarray) -> np.ndarray:
    """Coordinates in which distances are as the eye sees them (Ottosson, 2020: Oklab), for sRGB from 0 to 1."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_lms = [[0.41222147, 0.53633254, 0.05144599], [0.21190350, 0.68069955, 0.10739696]]
    to_lms.append([0.08830246, 0.28171884, 0.62997870])
    to_lab = [[0.21045426, 0.79361778, -0.00407205], [1.97799850, -2.42859221, 0.45059371]]
    to_lab.append([0.02590404, 0.78277177, -0.80867577])
    return np.cbrt(linear @ np.array(to_lms).T) @ np.array(to_lab).T


def palette(n: int, given: Sequence[str] | None = None) -> list[str]:
    """Colors for the levels of a column.

    Parameters
    ----------
    n
        Number of levels.
    given
        Colors to keep if they suffice, such as scanpy's `uns["{column}_colors"]`.

    Returns
    -------
    list of str
        `n` colors as hexadecimal text; the first seven are those of Okabe and Ito, all differ.

    Examples
    --------
    >>> from ldvae import pl
    >>> pl.palette(2)
    ['#0072b2', '#e69f00']
    """
    if given is not None and len(given) >= n and all(is_color_like(color) for color in given):
        return [to_hex(color) for color in given[:n]]
    return list(_distinct(n))


def short(text: object, length: int = 24) -> str:
    """Text cut to a length, with an ellipsis."""
    text = str(text)
    return text if len(text) <= length else text[: length - 1] + "…"


class Names:
    """Writes names at points, leaving out those that would lie on one already written.

    Places are in pixels, so the figure must have been laid out (`draw_without_rendering`).
    """

    def __init__(self, ax: Axes, size: float) -> None:
        self.ax, self.size = ax, size
        self.taken: list[tuple[float, float, float, float]] = []

    def write(self, name: str, x: float, y: float, ha: Literal["left", "right", "center"], **style: Any) -> None:
        """Write `name` at (x, y) in units of the data, beside it or over it."""
        name = short(name)
        point = self.ax.figure.dpi / 72
        width, height = 0.62 * self.size * len(name) * point + 8, 1.15 * self.size * point
        px, py = self.ax.transData.transform((x, y))
        other: dict[str, Literal["left", "right"]] = {"left": "right", "right": "left"}
        # Beside its point, else a little above or below it, else on its other side.
        places = [(ha, 0)] if ha == "center" else [(side, up) for side in (ha, other[ha]) for up in (2, -5, 7, -10)]
        for side, up in places:
            left = px - width * {"left": 0, "center": 0.5, "right": 1}[side]
            bottom = py + up * point
            box = (left, bottom, left + width, bottom + height)
            if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in self.taken):
                continue
            self.taken.append(box)
            self.ax.annotate(
                name,
                (x, y),
                ({"left": 3, "center": 0, "right": -3}[side], up),
                textcoords="offset points",
                ha=side,
                va="center" if side == "center" else "baseline",
                fontsize=self.size,
                path_effects=[withStroke(linewidth=2.2, foreground=PAPER)],
                **style,
            )
            return
