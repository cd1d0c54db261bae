"""The map of the cells, and the groups by which they are shown."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
import pandas as pd

from ldvae import pl
from ldvae.config import ReportConfig
from ldvae.names import find_own
from ldvae.report import figures
from ldvae.report.page import Page
from ldvae.report.results import Results

MAX_LEVELS = 60  # levels of a column that are shown; the largest are


def section(page: Page, results: Results, groups: dict[str, pd.Series], cells: np.ndarray) -> dict[str, Any] | None:
    """The map of cells: a figure, and the data to color it by anything in the browser."""
    if results.umap is None:
        return None
    umap = results.umap[cells]
    note = sampled_note(len(cells), len(results.obs))
    first = next(iter(groups), None)
    column = groups[first].iloc[cells] if first else pd.Series(["cells"] * len(cells), dtype="category", name="nothing")
    colors = {name: pl.palette(len(group.cat.categories), results.colors.get(name)) for name, group in groups.items()}
    drawing = page.draw(figures.cells_map(umap, column, colors[first] if first else ["#0072b2"], note))
    low, high = umap.min(axis=0), umap.max(axis=0)
    span = max(float((high - low).max()), 1e-9)
    position = np.round((umap - (low + high) / 2) / span * 60_000 + 32_768).astype("<u2")
    variables: list[dict[str, Any]] = []
    for name, group in groups.items():
        codes = group.iloc[cells].cat.codes.to_numpy()
        variables.append(
            {
                "name": name,
                "kind": "categorical",
                "group": "Annotation",
                "levels": [str(level) for level in group.cat.categories],
                "colors": colors[name],
                "values": in_base64(np.where(codes < 0, 255, codes.astype(np.int16)).astype(np.uint8)),
            }
        )
    for name in results.scores:
        label = results.programs.at[name, "label"]
        title = f"{name} · {label}" if label else name
        variables.append(_continuous(title, "Programs", results.scores[name].to_numpy()[cells]) | {"program": name})
    for name, title in figures.METRIC_TITLES.items():
        name = find_own(name, results.obs)
        if name in results.obs and pd.api.types.is_numeric_dtype(results.obs[name]):
            variables.append(_continuous(title, "Quality", results.obs[name].to_numpy(dtype=float)[cells]))
    genes = _packed_genes(results.expression)
    return {
        "figure": drawing,
        "note": note,
        "variables": variables,
        "genes": genes,
        "data": {"x": in_base64(position[:, 0]), "y": in_base64(position[:, 1]), "variables": variables, "genes": genes}
        | ({"cells": [str(name) for name in results.obs.index[cells]]} if len(cells) <= 30_000 else {}),
    }


def drawn_cells(n: int, most: int) -> np.ndarray:
    """Sorted rows of the cells that are drawn, at most `most`; the same for the same numbers."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, most, replace=False))


def groups_of(results: Results, config: ReportConfig) -> dict[str, pd.Series]:
    """The categorical columns by which programs are shown: those of the config, else those that are in the results.

    The first is the one that names the cells: the label field if there is one. Of the technical ones, batch is shown.
    """
    wanted = list(config.groupby)
    if not wanted:
        wanted = [str(results.fields.get("labels_key") or "")]
        if not results.associations.empty:
            kinds = results.associations[["kind", "technical"]]
            tested = (kinds["kind"] == "categorical") & ~kinds["technical"].astype(bool)
            # What tells cells apart best is what they are best known by: cell types rather than conditions.
            telling = results.associations[tested].groupby("variable")["explained"].mean()
            wanted += list(telling.sort_values(ascending=False, kind="stable").index)
        if "column" in results.contrasts:
            wanted += list(results.contrasts["column"].astype(str))
        wanted += [find_own("leiden", results.obs), str(results.fields.get("batch_key") or "")]
    found = {}
    for name in dict.fromkeys(wanted):
        if name in results.obs and results.obs[name].notna().any():
            column = results.obs[name].astype("string").astype("category")
            if column.nunique() < max(2, len(column)):
                if column.nunique() > MAX_LEVELS:
                    column = column.cat.set_categories(list(column.value_counts().index[:MAX_LEVELS]))
                elif isinstance(results.obs[name].dtype, pd.CategoricalDtype):
                    column = column.cat.set_categories([str(level) for level in results.obs[name].cat.categories])
                found[name] = column.rename(name)
    return found


def _packed_genes(expression: pd.DataFrame) -> dict[str, Any]:
    """Expression of genes in the cells drawn, 0 to 254 up to each gene's highest, gene by gene, deflated.

    In 32 steps, which the eye cannot tell from more and which halve the page.
    """
    values = expression.to_numpy(np.float32).T  # genes by cells
    high = np.maximum(values.max(axis=1, initial=0), 1e-6)
    steps = (np.ceil(values / high[:, None] * 31) * (254 / 31)).astype(np.uint8)
    packed = base64.b64encode(zlib.compress(np.ascontiguousarray(steps).tobytes(), 9)).decode("ascii")
    return {"name": list(expression), "high": [round(float(value), 2) for value in high], "values": packed}


def _continuous(name: str, group: str, values: np.ndarray) -> dict[str, Any]:
    """A variable in 255 steps between its 1st and 99th percentile; 255 is a missing value."""
    low, high = (float(v) for v in np.nanquantile(values, [0.01, 0.99])) if np.isfinite(values).any() else (0.0, 1.0)
    steps = np.clip((values - low) / max(high - low, 1e-12), 0, 1) * 254
    coded = np.where(np.isfinite(values), np.round(np.nan_to_num(steps)), 255).astype(np.uint8)
    return {"name": name, "kind": "continuous", "group": group, "low": low, "high": high, "values": in_base64(coded)}


def in_base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")


def sampled_note(n: int, of: int) -> str:
    return f" Drawn: {n:,} of {of:,} cells, taken at random." if n < of else ""
