"""What a page is made of: tables with their columns, figures, numbers for reading, templates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from ldvae.report.drawing import Drawing, Rendered
from ldvae.report.glossary import GLOSSARY

INFINITE = 1e308


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table in the page: `kind` is text, id, number, p, gene, program, contrast, link or bar (a share).

    The addresses of links are in a column of the same name with _href.
    """

    key: str
    title: str
    kind: str = "text"
    help: str = ""

    @property
    def meaning(self) -> str:
        """What to show of the column when pointed at: its own help, then that of the word."""
        word = next((word for word in GLOSSARY if word.lower() == self.title.lower()), "")
        own = f"{self.help[:1].upper()}{self.help[1:]}." if self.help and word else self.help
        return " ".join(part for part in (own, GLOSSARY.get(word, "")) if part)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table to sort and search; without scripts its first `page` rows are shown."""

    name: str
    title: str
    frame: pd.DataFrame
    columns: list[Column]
    page: int = 25
    search: bool = False
    note: str = ""

    def described(self) -> list[dict[str, Any]]:
        """The columns, for the script."""
        return [{"key": column.key, "kind": column.kind, "whole": self.whole(column)} for column in self.columns]

    def whole(self, column: Column) -> bool:
        """Whether a column holds whole numbers only."""
        values = self.frame[column.key]
        if column.kind != "number" or not pd.api.types.is_numeric_dtype(values):
            return False
        values = values.dropna().to_numpy(dtype=float)
        return bool((values == np.round(values)).all())

    def link(self, column: Column, position: int) -> str | None:
        """Where a cell of a column of links leads to; rows count from 1."""
        return str(self.frame[f"{column.key}_href"].iloc[position - 1]) if column.kind == "link" else None

    def rows(self) -> Iterator[list[tuple[Column, Any]]]:
        """Cells of the first page, as (column, value), with the digits that the script has."""
        first = self.frame.head(self.page)
        for values in zip(*(as_column(first[column.key]) for column in self.columns), strict=True):
            yield list(zip(self.columns, values, strict=True))


@dataclass
class Page:
    """What one page holds besides its words: rendered figures by name, and the tables behind points and rows."""

    drawings: dict[str, Drawing] = field(default_factory=dict)
    rendered: dict[str, Rendered] = field(default_factory=dict)
    blocks: dict[str, pd.DataFrame] = field(default_factory=dict)

    def draw(self, drawing: Drawing | None) -> Drawing | None:
        """Render a figure and keep the tables behind it."""
        if drawing is not None:
            self.drawings[drawing.name] = drawing
            self.rendered[drawing.name] = drawing.render()
            self.blocks.update(drawing.blocks)
        return drawing

    def table(self, table: Table) -> Table:
        """Keep the rows of a table."""
        keys = [column.key for column in table.columns]
        missing = [key for key in keys if key not in table.frame]
        known = self.blocks.get(table.name)
        if missing:
            raise KeyError(f"table {table.name} has no columns {missing}")
        self.blocks[table.name] = table.frame if known is None else known
        return table


def as_blocks(page: Page) -> dict[str, dict[str, list[Any]]]:
    """The tables behind the points and rows of a page, for its script."""
    return {name: as_columns(frame) for name, frame in page.blocks.items()}


def as_columns(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """A table as columns for JSON: numbers shortened (see `short`), missing ones as null, infinite as ±1e308."""
    return {str(name): as_column(frame[name]) for name in frame}


def as_column(column: pd.Series) -> list[Any]:
    if pd.api.types.is_bool_dtype(column):
        return [bool(value) for value in column]
    if pd.api.types.is_integer_dtype(column):
        return [int(value) for value in column]
    if pd.api.types.is_float_dtype(column):
        values = column.to_numpy(dtype=float).clip(-INFINITE, INFINITE)  # JSON has no infinity
        return [None if np.isnan(value) else short(value) for value in values]
    return ["" if pd.isna(value) else str(value) for value in column]


def short(value: float) -> float:
    """A number to five significant digits, or more where these would be shown otherwise than the number itself.

    Examples
    --------
    >>> from ldvae.report.page import short
    >>> short(2.151234), short(2.155043)  # 2.155 would be shown as 2.15, for it is a little less as a double
    (2.1512, 2.155043)
    """
    shown = number(value)
    rounded = (float(f"{value:.{digits}g}") for digits in (5, 7, 9))
    return next((one for one in rounded if number(one) == shown), float(value))


def environment() -> Environment:
    """Templates and filters of all pages."""
    environment = Environment(
        loader=PackageLoader("ldvae.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["glossary"] = GLOSSARY
    environment.filters["number"] = number
    environment.filters["seconds"] = duration
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False, "ensure_ascii": False}
    return environment


def number(value: Any, whole: bool = False) -> str:
    """A number for reading, with three significant digits or two decimals; "–" for none.

    `show` in report.js writes the same.

    Parameters
    ----------
    value
        Anything; text stays as it is.
    whole
        The number counts something: no decimals.
    """
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if not isinstance(value, int | float | np.integer | np.floating):
        return str(value)
    value = float(value)
    if abs(value) >= INFINITE:
        return "∞" if value > 0 else "-∞"
    if whole or value == 0 or abs(value) >= 1e5:
        return f"{value:,.0f}"
    if abs(value) >= 1000:
        return f"{value:,.1f}"
    if abs(value) >= 100:
        return f"{value:.2f}"
    if abs(value) >= 1e-3:
        return f"{value:#.3g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def duration(seconds: float | None) -> str:
    """A time for reading: "12 s", "3 min 20 s", "2 h 5 min"."""
    if seconds is None or not np.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
