"""A figure on its way into a page: matplotlib's SVG made to follow the page's theme, and the data of its points."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ldvae.pl.style import INK, MUTED, PAPER, RULE, STYLE

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"

# Drawn in these colors, a part of a figure follows the page's light or dark theme.
THEME = {INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)", PAPER: "var(--paper)"}


@dataclass(frozen=True, kw_only=True)
class Hover:
    """The points of one pair of axes that show their numbers when pointed at.

    Parameters
    ----------
    axes
        Where the points are drawn.
    block
        Name of the table that holds them, one row per point.
    x, y
        Columns with the coordinates, in the units of the axes.
    name
        Column with the name of a point.
    show
        Further columns to show, with their titles.
    """

    axes: Axes
    block: str
    x: str
    y: str
    name: str
    show: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure with its words: `name` is its file name and its id, `blocks` are the tables behind its points."""

    name: str
    figure: Figure
    title: str
    caption: str
    hover: tuple[Hover, ...] = ()
    blocks: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Natural width in CSS pixels."""
        return round(self.figure.get_figwidth() * 96)

    def render(self) -> Rendered:
        """Draw the figure, once, for the page and for a file."""
        buffer = io.StringIO()
        with mpl.rc_context(STYLE):
            # The page is the background.
            self.figure.set_facecolor("none")
            for ax in self.figure.axes:
                ax.set_facecolor("none")
            # Laid out once: savefig would do it twice.
            self.figure.draw_without_rendering()
            self.figure.set_layout_engine("none")
            self.figure.savefig(
                buffer, format="svg", dpi=180, metadata={"Date": None, "Creator": None}, facecolor="none"
            )
        document = buffer.getvalue()
        start = document.index(">", document.index("<svg")) + 1
        white = document[:start] + '<rect width="100%" height="100%" fill="white"/>' + document[start:]
        element = inline(document, prefix=self.name, label=f"{self.title}. {self.caption}", width=self.width)
        return Rendered(document=white, element=element, targets=[_target(hover) for hover in self.hover])


class Rendered(NamedTuple):
    """A drawn figure: a standalone SVG on white, the element of the page, and where the points of its axes lie."""

    document: str
    element: str
    targets: list[dict[str, Any]]


def _target(hover: Hover) -> dict[str, Any]:
    """What a script needs to find a point: the box of the axes in shares of the figure, limits and scales."""
    box = hover.axes.get_position()
    return {
        "block": hover.block,
        "x": hover.x,
        "y": hover.y,
        "name": hover.name,
        "show": hover.show,
        "box": [round(float(value), 5) for value in (box.x0, 1 - box.y1, box.x1, 1 - box.y0)],
        "xlim": [float(value) for value in hover.axes.get_xlim()],
        "ylim": [float(value) for value in hover.axes.get_ylim()],
        "log": [hover.axes.get_xscale() == "log", hover.axes.get_yscale() == "log"],
    }


def inline(svg: str, *, prefix: str, label: str, width: int) -> str:
    """Make matplotlib's SVG an element of a page.

    Ids that nothing refers to are dropped and the others start with `prefix`, so that figures on one page do not
    draw each other's parts; theme colors become CSS variables; text takes the page's font.

    Parameters
    ----------
    svg
        The document that `Figure.savefig` wrote.
    prefix
        Name of the figure, unique on the page.
    label
        What a screen reader says.
    width
        Natural width in CSS pixels.
    """
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(svg)
    # matplotlib's style element speaks of every element of the page; style.css says the same of figures only.
    for element in root.findall(f"{{{SVG}}}metadata") + root.findall(f"{{{SVG}}}defs[{{{SVG}}}style]"):
        root.remove(element)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    for element in root.iter():
        name = element.attrib.pop("id", None)
        if element.tag != f"{{{SVG}}}text":
            element.text = None
        element.tail = None
        if name in used:
            element.set("id", f"{prefix}-{name}")
        for key, value in element.attrib.items():
            if key == "style":
                value = _themed(value)
            if key == f"{{{XLINK}}}href" and value.startswith("#"):
                value = f"#{prefix}-{value[1:]}"
            if key in ("d", "x", "y", "transform"):
                value = re.sub(r"(\.\d\d)\d+", r"\1", value).replace("\n", "")
            element.set(key, value.replace("url(#", f"url(#{prefix}-"))
            if key == f"{{{XLINK}}}href" and value.startswith("data:image/png;base64,"):
                element.set(key, _smaller(value))
    root.attrib.pop("height", None)
    root.set("width", str(width))
    root.set("role", "img")
    root.set("aria-label", label)
    return ElementTree.tostring(root, encoding="unicode")


def _themed(style: str) -> str:
    for color, variable in THEME.items():
        style = style.replace(color, variable)
    return re.sub(r"font-family:[^;]*;? ?", "", style)


def _smaller(image: str) -> str:
    """A PNG as a data URI, with at most 256 colors: points on a map need no more, and a page has many maps."""
    head, data = image.split(",", 1)
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")
    picture.quantize(256, method=Image.Quantize.FASTOCTREE).save(buffer, format="PNG", optimize=True)
    smaller = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"{head},{smaller}" if len(smaller) < len(data) else image
