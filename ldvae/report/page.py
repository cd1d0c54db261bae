"""The page: sections put together from tables, figures and sentences, and rendered to one file of HTML."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from ldvae import pl
from ldvae.config import ReportConfig
from ldvae.names import find_own
from ldvae.programs.find import DISAGREES, SETTLED
from ldvae.report import figures, prose
from ldvae.report.drawing import Drawing, Rendered
from ldvae.report.glossary import GLOSSARY
from ldvae.report.results import Results

INFINITE = 1e308
EFFECT_STEP, Z_STEP = 1 / 2000, 1 / 100  # of a packed number; report.js has them too
MAX_LEVELS = 60  # levels of a column that are shown; the largest are

TITLES = {
    "qc": "Quality control",
    "training": "Training",
    "choice": "Model choice",
    "programs": "Programs",
    "conditions": "Between conditions",
    "fit": "Does the model fit?",
    "de": "Differential expression",
}

#: Tables of the results layout that the page links to: path beside the page, what it holds.
DOWNLOADS = {
    "Quality control": {
        "qc/cells.tsv.gz": "every cell with its metrics, kept or the reason",
        "qc/summary.json": "numbers and thresholds",
        "setup/genes.tsv": "every gene, chosen or not",
    },
    "Model": {
        "runs.tsv": "the runs and their parameters",
        "select/runs.tsv": "metrics of each run",
        "select/settings.tsv": "metrics of each setting over its seeds",
        "select/correlations.tsv": "what two halves of the seeds share, rank by rank",
        "select/best.json": "the choice and its reason",
    },
    "Programs": {
        "programs/programs.tsv": "one row per program",
        "programs/loadings.tsv": "genes × programs",
        "programs/scores.tsv.gz": "cells × programs",
        "programs/top_genes.tsv": "top genes of both sides with intervals",
        "programs/consensus.tsv": "all genes with intervals",
        "programs/stability.tsv": "cosines over runs",
        "programs/associations.tsv": "programs against the annotation of the cells",
        "programs/all_genes.tsv.gz": "effects on every measured gene",
        "programs/donors.tsv": "programs between conditions, donors as units",
        "programs/donor_means.tsv": "mean scores of each donor",
        "programs/enrichment.tsv": "gene sets",
        "programs/programs.gmt": "the programs as gene sets",
        "programs/starcat.tsv": "non-negative, for starCAT",
    },
    "Cells": {"annotated.h5ad": "AnnData with latent space, UMAP, clusters and scores; opens in scanpy and CELLxGENE"},
}


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
        for values in zip(*(_column(first[column.key]) for column in self.columns), strict=True):
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


def render_report(results: Results, config: ReportConfig) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Render the report of one dataset.

    Parameters
    ----------
    results
        The tables of the dataset.
    config
        How much to show.

    Returns
    -------
    The page as HTML; the figures as standalone SVG documents, by name; the summary for the index over all datasets.
    """
    page = Page()
    cells = drawn_cells(len(results.obs), config.n_cells)
    groups = _groups(results, config)
    context: dict[str, Any] = {
        "page": page,
        "titles": TITLES,
        "results": results,
        "reason": prose.sentence(str(results.best.get("reason", ""))),
        "warnings": prose.warnings(results),
        "findings": prose.findings(results),
        "methods": results.methods,
        "qc": _qc(page, results),
        "training": _training(page, results),
        "choice": _choice(page, results),
        "cells": _cells_map(page, results, groups, cells),
        "programs": _programs(page, results, groups, cells, config),
        "conditions": _conditions(page, results),
        "measured": _measured(results, config),
        "fit": _fit(page, results, config),
        "de": _de(page, results, config),
        "making": _making(page, results),
    }
    context["blocks"] = as_blocks(page)
    html = environment().get_template("report.html.j2").render(context)
    documents = {name: rendered.document for name, rendered in page.rendered.items()}
    return html, documents, _summary(results, context["warnings"], context["findings"])


def render_index(
    summaries: list[dict[str, Any]], unfinished: list[dict[str, Any]], across: dict[str, Any] | None = None
) -> str:
    """Render the index over all datasets and runs from the summaries that `render_report` returned.

    Parameters
    ----------
    summaries
        Of the finished datasets.
    unfinished
        The others, each a mapping of `dataset` and `failures` (verb, message and exit code of each failed job).
    across
        Of the comparison of the datasets: `page` (its path), `datasets` and `findings`, or its `failures`.
    """
    page = Page()
    runs = pd.DataFrame([{"dataset": summary["dataset"], **run} for summary in summaries for run in summary["runs"]])
    table = page.table(_runs_table(runs, "all-runs", with_dataset=True)) if len(runs) else None
    datasets = page.table(_datasets_table(summaries, unfinished))
    blocks = as_blocks(page)
    return (
        environment()
        .get_template("index.html.j2")
        .render(
            page=page,
            summaries=summaries,
            unfinished=unfinished,
            across=across,
            datasets=datasets,
            runs=table,
            blocks=blocks,
        )
    )


def as_blocks(page: Page) -> dict[str, dict[str, list[Any]]]:
    """The tables behind the points and rows of a page, for its script."""
    return {name: _columns(frame) for name, frame in page.blocks.items()}


def _datasets_table(summaries: list[dict[str, Any]], unfinished: list[dict[str, Any]]) -> Table:
    """One row for each dataset, those that failed first."""
    rows = [
        {
            "dataset": one["dataset"],
            "dataset_href": f"#unfinished-{position}",
            "state": "failed in " + ", ".join(failure["verb"] for failure in one["failures"])
            if one["failures"]
            else "not finished",
        }
        for position, one in enumerate(unfinished, start=1)
    ]
    for one in summaries:
        best = one["programs"][0] if one["programs"] else {"label": ""}
        rows.append(
            {
                "dataset": one["dataset"],
                "dataset_href": quote(one["report"]),
                "state": "finished",
                "n_obs": one["n_obs_after"],
                "n_programs": one["n_programs"],
                "n_runs": len(one["runs"]),
                "n_warnings": len(one["warnings"]),
                "first": best["label"],
            }
        )
    columns = [
        Column(key="dataset", title="Dataset", kind="link"),
        Column(key="state", title="State"),
        Column(key="n_obs", title="Cells", kind="number"),
        Column(key="n_programs", title="Programs", kind="number"),
        Column(key="n_runs", title="Runs", kind="number"),
        Column(key="n_warnings", title="Warnings", kind="number", help="of which the page says what they are"),
        Column(key="first", title="Largest program"),
    ]
    frame = pd.DataFrame(rows, columns=["dataset", "dataset_href", *(column.key for column in columns[1:])])
    return Table(name="datasets", title="Datasets", frame=frame, columns=columns, page=50, search=len(rows) > 5)


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


# ---------------------------------------------------------------------------------------------- numbers


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


def _columns(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """A table as columns for JSON: numbers to five significant digits, missing ones as null, infinite as ±1e308."""
    return {str(name): _column(frame[name]) for name in frame}


def _column(column: pd.Series) -> list[Any]:
    if pd.api.types.is_bool_dtype(column):
        return [bool(value) for value in column]
    if pd.api.types.is_integer_dtype(column):
        return [int(value) for value in column]
    if pd.api.types.is_float_dtype(column):
        values = column.to_numpy(dtype=float).clip(-INFINITE, INFINITE)  # JSON has no infinity
        return [None if np.isnan(value) else float(f"{value:.5g}") for value in values]
    return ["" if pd.isna(value) else str(value) for value in column]


# ---------------------------------------------------------------------------------------------- sections


def _qc(page: Page, results: Results) -> dict[str, Any]:
    cells, qc = results.qc_cells, results.qc
    metrics = [name for name in figures.METRIC_TITLES if name in cells and cells[name].nunique() > 1]
    drawn = [page.draw(figures.qc_distribution(name, cells, qc.get("thresholds", {}))) for name in metrics]
    removed = pd.DataFrame(qc["removed"].items(), columns=["reason", "cells"]).sort_values("cells", ascending=False)
    removed["share"] = removed["cells"] / max(qc["n_obs_before"], 1)
    reasons = Table(
        name="qc-removed",
        title="Removed cells by reason",
        frame=removed,
        columns=[
            Column(key="reason", title="Reason"),
            Column(key="cells", title="Cells", kind="number"),
            Column(key="share", title="Share of all cells", kind="bar"),
        ],
        note="A cell can have more than one reason.",
    )
    rows = [
        {"batch": name, **counts, "kept": counts["after"] / max(counts["before"], 1)}
        for name, counts in qc["per_batch"].items()
    ]
    batches = Table(
        name="qc-batches",
        title="Cells per batch",
        frame=pd.DataFrame(rows, columns=["batch", "before", "after", "kept"]),
        columns=[
            Column(key="batch", title="Batch"),
            Column(key="before", title="Before", kind="number"),
            Column(key="after", title="After", kind="number"),
            Column(key="kept", title="Kept", kind="bar"),
        ],
    )
    of_types = [
        {
            "type": name,
            **counts,
            "kept": counts["after"] / max(counts["before"], 1),
            "note": "lost more than a third" if counts["after"] < counts["before"] * 2 / 3 else "",
        }
        for name, counts in qc.get("per_type", {}).items()
    ]
    clustered = qc.get("types") == "clusters"
    types = Table(
        name="qc-types",
        title="Cells per cluster before quality control" if clustered else "Cells per cell type",
        frame=pd.DataFrame(of_types, columns=["type", "before", "after", "kept", "note"]).sort_values("kept"),
        columns=[
            Column(key="type", title="Cluster" if clustered else "Cell type"),
            Column(key="before", title="Before", kind="number"),
            Column(key="after", title="After", kind="number"),
            Column(key="kept", title="Kept", kind="bar"),
            Column(key="note", title="Warning"),
        ],
        note="Limits that fit the common types can remove most cells of a rare one.",
    )
    return {
        "figures": drawn,
        "types": page.table(types) if len(of_types) > 1 else None,
        "removed": page.table(reasons) if len(removed) else None,
        "batches": page.table(batches) if len(rows) > 1 else None,
    }


def _training(page: Page, results: Results) -> dict[str, Any]:
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


def _runs_table(runs: pd.DataFrame, name: str, *, with_dataset: bool = False) -> Table:
    columns = [column for column in RUN_COLUMNS if column.key in runs]
    if with_dataset:
        columns.insert(0, Column(key="dataset", title="Dataset"))
    if "outlier" in runs and runs["outlier"].astype(bool).any():
        columns.append(Column(key="outlier", title="Outlier"))
    keys = [column.key for column in columns]
    return Table(name=name, title="Runs", frame=runs[keys], columns=columns, search=len(runs) > 10)


def _choice(page: Page, results: Results) -> dict[str, Any]:
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
        "runs": page.table(_runs_table(runs, "runs")),
    }


def drawn_cells(n: int, most: int) -> np.ndarray:
    """Sorted rows of the cells that are drawn, at most `most`; the same for the same numbers."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, most, replace=False))


def _groups(results: Results, config: ReportConfig) -> dict[str, pd.Series]:
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


def _cells_map(page: Page, results: Results, groups: dict[str, pd.Series], cells: np.ndarray) -> dict[str, Any] | None:
    """The map of cells: a figure, and the data to colour it by anything in the browser."""
    if results.umap is None:
        return None
    umap = results.umap[cells]
    note = _sampled_note(len(cells), len(results.obs))
    first = next(iter(groups), None)
    column = groups[first].iloc[cells] if first else pd.Series(["cells"] * len(cells), dtype="category", name="nothing")
    colours = {name: pl.palette(len(group.cat.categories), results.colors.get(name)) for name, group in groups.items()}
    drawing = page.draw(figures.cells_map(umap, column, colours[first] if first else ["#0072b2"], note))
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
                "colours": colours[name],
                "values": _base64(np.where(codes < 0, 255, codes.astype(np.int16)).astype(np.uint8)),
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
        "data": {"x": _base64(position[:, 0]), "y": _base64(position[:, 1]), "variables": variables, "genes": genes}
        | ({"cells": [str(name) for name in results.obs.index[cells]]} if len(cells) <= 30_000 else {}),
    }


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
    return {"name": name, "kind": "continuous", "group": group, "low": low, "high": high, "values": _base64(coded)}


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")


def _sampled_note(n: int, of: int) -> str:
    return f" Drawn: {n:,} of {of:,} cells, taken at random." if n < of else ""


def _programs(
    page: Page, results: Results, groups: dict[str, pd.Series], cells: np.ndarray, config: ReportConfig
) -> dict[str, Any]:
    names = list(results.programs.index)
    loadings = results.consensus.pivot(index="gene", columns="program", values="loading")[names]
    return {
        "table": page.table(_programs_table(results)),
        "overview": [drawing for drawing in _overview(page, results, groups, loadings) if drawing],
        "genes": _gene_finder(page, results, loadings, config),
        "panels": [_panel(page, results, groups, cells, name, config) for name in names],
    }


def _programs_table(results: Results) -> Table:
    frame, threshold = results.programs.reset_index(names="program"), results.best["threshold"]
    columns = [
        Column(key="program", title="Program", kind="program"),
        Column(key="label", title="Label"),
        Column(key="share", title="Share", kind="bar", help="of everything that the fits explain"),
        Column(
            key="agreement",
            title="Agreement",
            kind="number",
            help="of the scores with the program's own genes; 1: full",
        ),
        Column(
            key="settled",
            title="Settled",
            kind="bar",
            help="how likely other seeds find it: share of the pairs of halves of the seeds that agree",
        ),
        Column(key="stability", title="Stability", kind="number", help="mean cosine of single runs with the consensus"),
        Column(key="n_runs_found", title="Found in runs", kind="number", help=f"with a cosine above {threshold:g}"),
        Column(key="best_association", title="Strongest association"),
        Column(key="technical", title="May be technical"),
    ]
    if len(results.chosen_runs) == 1:  # alike with itself, which tells nothing
        columns = [column for column in columns if column.key not in ("stability", "n_runs_found", "settled")]
    columns = [column for column in columns if column.key in frame]
    total = frame["share"].sum()
    note = f"The shares add up to {total:.0%}: "
    note += "programs overlap, so that some of it counts twice." if total > 1.005 else "the rest does not reproduce."
    note = note if abs(total - 1) > 0.005 else "The shares add up to 100%."
    if results.programs_summary.get("intercept"):
        rank = results.programs_summary["rank"]
        note += f" The {rank} directions that the runs share hold {len(frame)} programs: effects count from the mean "
        note += "cell, for no cells lack all programs, and that adds one."
    return Table(name="programs", title="Programs", frame=frame, columns=columns, page=60, note=note)


def _overview(
    page: Page, results: Results, groups: dict[str, pd.Series], loadings: pd.DataFrame
) -> Iterator[Drawing | None]:
    names = list(results.programs.index)
    titles = {name: f"{name} {results.programs.at[name, 'label']}".strip() for name in names}
    per_program = int(np.clip(44 // max(len(names), 1), 2, 6))
    positive = results.top_genes[(results.top_genes["side"] == "positive") & (results.top_genes["rank"] <= per_program)]
    genes = list(dict.fromkeys(positive.sort_values(["program", "rank"], key=_in_order(names))["gene"]))
    yield page.draw(
        figures.heatmap(
            loadings.loc[genes].T.rename(index=titles),
            name="programs_genes",
            title="Programs and their genes",
            caption=f"The {per_program} strongest positive genes of each program.",
            value="Loading",
            italic=True,
        )
    )
    tables = {name: results.scores.groupby(group.to_numpy(), observed=True).mean().T for name, group in groups.items()}
    # One scale for all, or chance differences between two batches would look like those between cell types.
    end = max([1.0, *(float(table.abs().max().max()) for table in tables.values())])
    for variable, group in groups.items():
        means = tables[variable]
        means = means[[level for level in group.cat.categories if level in means]].rename(index=titles)
        yield page.draw(
            figures.heatmap(
                means,
                name=f"programs_by_{figures.slug(variable)}",
                title=f"Programs by {variable}",
                caption=f"Mean score of the cells of each level of {variable}, in standard deviations.",
                value="Mean score",
                limits=(-end, end),
            )
        )
    if len(names) > 1:
        yield page.draw(
            figures.heatmap(
                results.scores[names].corr().rename(index=titles),
                name="programs_correlation",
                title="Which programs go together",
                caption="Correlation of the scores over all cells.",
                value="Correlation",
                limits=(-1, 1),
            )
        )
    if results.stability["run"].nunique() > 1:
        cosines = results.stability.pivot(index="program", columns="run", values="cosine").loc[names]
        yield page.draw(
            figures.heatmap(
                cosines.rename(index=titles),
                name="programs_stability",
                title="Stability over seeds",
                caption="Cosine of each program in a single run with the consensus; 1 is the same.",
                value="Cosine",
                limits=(0.5, 1),
                cmap="viridis",
            )
        )


def _in_order(names: list[str]) -> Any:
    """Sort key for programs in their own order (P10 after P2)."""
    position = {name: i for i, name in enumerate(names)}
    return lambda column: column.map(position) if column.name == "program" else column


def _gene_finder(page: Page, results: Results, loadings: pd.DataFrame, config: ReportConfig) -> dict[str, Any]:
    """Loadings of the genes in all programs, for the search; at most `config.n_genes_searchable` strongest genes."""
    strongest = results.consensus.groupby("gene")["weighted"].agg(lambda values: values.abs().max())
    genes = strongest.nlargest(config.n_genes_searchable).index
    page.blocks["genes"] = loadings.loc[genes].sort_index().reset_index()
    return {"n": len(genes), "of": len(loadings)}


def _panel(
    page: Page,
    results: Results,
    groups: dict[str, pd.Series],
    cells: np.ndarray,
    name: str,
    config: ReportConfig,
) -> dict[str, Any]:
    """Everything about one program."""
    scores = results.scores[name].to_numpy()
    drawn = [figures.program_genes(name, results.top_genes, config.n_genes)]
    if results.umap is not None:
        note = _sampled_note(len(cells), len(results.obs))
        drawn.append(figures.program_map(name, results.umap[cells], scores[cells], note))
    if groups:
        drawn.append(figures.program_by_group(name, scores, groups))
    if len(results.donor_means):
        drawn.append(figures.program_donors(name, results.donor_means, results.donors))
    associations = results.associations[results.associations["program"] == name]
    associations = associations.sort_values("effect", key=np.abs, ascending=False)
    enrichment = results.enrichment[results.enrichment["program"] == name].sort_values("p")
    ranked = results.ranked_sets
    ranked = ranked[ranked["program"] == name] if len(ranked) else ranked
    tables = [
        Table(
            name=f"associations-{name}",
            title="Associations",
            frame=associations,
            columns=[
                Column(key="variable", title="Variable"),
                Column(key="level", title="Level"),
                Column(key="effect", title="Effect", kind="number", help="difference in SD, or correlation"),
                Column(key="auc", title="AUC", kind="number"),
                *([] if len(results.donors) else [Column(key="padj", title="Adjusted p", kind="p")]),
            ],
            page=8,
            note="Cells are no independent replicates, so no p values are shown here; the donors give them."
            if len(results.donors)
            else "p values take cells as independent, which cells of one donor are not: read the effects first.",
        ),
        Table(
            name=f"enrichment-{name}",
            title="Enriched gene sets",
            frame=enrichment,
            columns=[
                Column(key="term", title="Gene set"),
                Column(key="side", title="Side"),
                Column(key="overlap", title="Overlap", kind="number"),
                Column(key="n_term", title="Size", kind="number"),
                Column(
                    key="odds_ratio",
                    title="Odds ratio",
                    kind="number",
                    help="∞: the set has no other gene, or none left",
                ),
                Column(key="padj", title="Adjusted p", kind="p"),
            ],
            page=8,
            note="Members of the program against the modelled genes.",
        ),
        Table(
            name=f"ranked-{name}",
            title="Gene sets by ranks",
            frame=ranked,
            columns=[
                Column(key="term", title="Gene set"),
                Column(key="n_term", title="Size", kind="number", help="measured genes of the set"),
                Column(key="t", title="t", kind="number", help="positive: higher than all other genes"),
                Column(key="padj", title="Adjusted p", kind="p"),
            ]
            if len(ranked)
            else [],
            page=8,
            note="Effects on all measured genes, without a cutoff. Genes of a set vary together: trust the order more "
            "than the p value.",
        ),
    ]
    row = results.programs.loc[name]
    return {
        "name": name,
        "row": row,
        "disagrees": bool(row.get("agreement", 1.0) < DISAGREES),
        "unsettled": bool(row.get("settled", 1.0) < SETTLED),
        "limit": DISAGREES,
        "figures": [page.draw(drawing) for drawing in drawn],
        "tables": [page.table(table) for table in tables if len(table.frame)],
    }


def _conditions(page: Page, results: Results) -> dict[str, Any] | None:
    """Programs between conditions with donors as units; None where there were none."""
    table = results.donors
    if table.empty:
        return None
    names = list(results.programs.index)
    pairs = table[["condition", "reference"]].drop_duplicates().itertuples(index=False)
    drawn = []
    for condition, reference in pairs:
        own = table[(table["condition"] == condition) & (table["reference"] == reference)]
        effects = own.pivot(index="program", columns="cell_type", values="effect").reindex(names).dropna(how="all")
        drawn.append(
            page.draw(
                figures.heatmap(
                    effects.rename(index={name: prose.short_name(results, name) for name in names}),
                    name=f"conditions_{figures.slug(f'{condition}_{reference}')}",
                    title=f"{condition} against {reference}",
                    caption=f"Mean score over donors in {condition} minus that in {reference}, in standard deviations. "
                    "Empty: too few donors.",
                    value="Difference (SD)",
                )
            )
        )
    shown = Table(
        name="donors",
        title="Differences, strongest evidence first",
        frame=table.sort_values("p", kind="stable"),
        columns=[
            Column(key="program", title="Program", kind="program"),
            Column(key="cell_type", title="Cell type"),
            Column(key="condition", title="Condition"),
            Column(key="reference", title="Against"),
            Column(key="effect", title="Difference (SD)", kind="number", help="of the mean scores over donors"),
            Column(key="lower", title="from", kind="number", help="95 % interval"),
            Column(key="upper", title="to", kind="number", help="95 % interval"),
            Column(key="padj", title="Adjusted p", kind="p", help="over all programs, cell types and conditions"),
            Column(key="high_effect", title="High cells", kind="number", help="difference of the shares of high cells"),
            Column(key="high_padj", title="Adjusted p, high cells", kind="p"),
            Column(key="n_donors", title="Donors", kind="number"),
            Column(key="paired", title="Paired", help="each donor was seen in both conditions"),
        ],
        page=15,
        search=True,
    )
    significant = int((table["padj"] < 0.05).sum())
    return {
        "figures": drawn,
        "table": page.table(shown),
        "significant": significant,
        "n": len(table),
        "paired": bool(table["paired"].astype(bool).all()),
    }


def _measured(results: Results, config: ReportConfig) -> dict[str, Any]:
    """Effects of the programs on all measured genes, packed for the search: 16 bits for each effect and each z."""
    table = results.all_genes
    if table.empty:
        return {}
    effects = table.pivot(index="gene", columns="program", values="effect")[list(results.programs.index)]
    z = table.pivot(index="gene", columns="program", values="z").loc[effects.index, effects.columns]
    strongest = z.abs().max(axis=1).fillna(0).nlargest(config.n_genes_searchable, keep="first").index
    effects, z = (part.loc[sorted(strongest)].fillna(0) for part in (effects, z))
    pack = {"effect": (effects, EFFECT_STEP), "z": (z, Z_STEP)}
    packed: dict[str, Any] = {
        name: {
            program: _base64(np.clip(np.round(part[program].to_numpy() / step), -32767, 32767).astype("<i2"))
            for program in part
        }
        for name, (part, step) in pack.items()
    }
    return {"gene": list(effects.index), "n": len(effects), "of": table["gene"].nunique(), **packed}


def _fit(page: Page, results: Results, config: ReportConfig) -> dict[str, Any] | None:
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


def _de(page: Page, results: Results, config: ReportConfig) -> dict[str, Any] | None:
    if results.contrasts.empty:
        return None
    n_rows = max(50, config.n_de_rows // (2 * len(results.contrasts)))  # of each of a contrast's two tables
    panels = []
    for position, row in enumerate(results.contrasts.to_dict("records"), start=1):
        if row["contrast"] in results.de:
            panels.append(_contrast(page, results, row, position, n_rows))
    replicated = "n_pseudobulk" in results.contrasts and results.contrasts["n_pseudobulk"].notna().any()
    overview = Table(
        name="contrasts",
        title="Contrasts",
        frame=results.contrasts,
        columns=[
            column
            for column in [
                Column(key="contrast", title="Contrast", kind="contrast"),
                Column(key="n1", title="Cells 1", kind="number"),
                Column(key="n2", title="Cells 2", kind="number"),
                Column(key="n_pseudobulk", title="Pseudobulks", kind="number", help="genes called, of all measured"),
                Column(key="n_ranked", title="Ranks", kind="number", help="genes called, of all measured"),
                Column(key="n_de", title="Model", kind="number", help="genes called, of the modelled"),
                Column(key="n_both", title="Counts and model", kind="number", help="called by both, in one direction"),
                Column(key="reason", title="Why none"),
            ]
            if column.key in results.contrasts and (column.key != "n_pseudobulk" or replicated)
        ],
        page=60,
        search=len(results.contrasts) > 10,
        note="Genes that each test calls.",
    )
    return {"contrasts": page.table(overview), "panels": panels, "replicated": replicated}


def _contrast(page: Page, results: Results, row: dict[str, Any], position: int, n_rows: int) -> dict[str, Any]:
    table = results.de[row["contrast"]]
    counts = results.de_all_genes.get(row["contrast"], pd.DataFrame())
    fdr = prose.fdr_of(table)
    significant = table[f"{prose.CALLED}{fdr:g}"].astype(bool) if fdr else pd.Series(False, index=table.index)
    name = f"{position}-{row['contrast']}"
    block = f"de-{position}"
    title = f"{row['group1']} against {row['group2']}"
    drawn = [figures.volcano(name, table, significant, fdr or 0.05, block)]
    has_pseudobulk = "pseudobulk_lfc" in table and table["pseudobulk_lfc"].notna().any()
    if has_pseudobulk:
        drawn.append(figures.model_against_pseudobulk(name, table, block))
    columns = [
        Column(key="gene", title="Gene", kind="gene"),
        Column(key=str(significant.name), title="Called", help="at the expected false discovery rate"),
        Column(key="both", title="By both", help="called by the counts and by the model, in one direction"),
        Column(key="lfc_mean", title="log2 fold change", kind="number", help="posterior mean"),
        Column(key="lfc_std", title="SD", kind="number"),
        Column(key="proba_de", title="P(DE)", kind="number", help="posterior probability"),
        Column(key="bayes_factor", title="log Bayes factor", kind="number"),
        Column(key="raw_normalized_mean1", title="Mean 1", kind="number", help="of normalised counts in group 1"),
        Column(key="raw_normalized_mean2", title="Mean 2", kind="number", help="of normalised counts in group 2"),
        Column(key="non_zeros_proportion1", title="Expressed 1", kind="bar", help="share of cells of group 1"),
        Column(key="non_zeros_proportion2", title="Expressed 2", kind="bar", help="share of cells of group 2"),
    ]
    if has_pseudobulk:
        columns += [
            Column(key="pseudobulk_lfc", title="Pseudobulk log2 fc", kind="number"),
            Column(key="pseudobulk_padj", title="Pseudobulk adj. p", kind="p"),
        ]
    ranked = table.sort_values("bayes_factor", ascending=False, kind="stable")
    by_model = _gene_table(block, f"By the model: {title}", ranked, columns, n_rows, "with the largest Bayes factors")
    by_counts = _by_counts(f"counts-{position}", title, counts, n_rows, fdr or 0.05) if len(counts) else None
    both = prose.both_genes(table, counts)
    up, down = (list(both.loc[both["lfc_mean"] > 0, "gene"]), list(both.loc[both["lfc_mean"] <= 0, "gene"]))
    return {
        "row": row,
        "title": title,
        "id": block,
        "reason": row["reason"] if isinstance(row.get("reason"), str) else "",
        "called": _called(row),
        "up": up,
        "down": down,
        "figures": [page.draw(drawing) for drawing in drawn],
        "counts": page.table(by_counts) if by_counts else None,
        "table": page.table(by_model),
        "files": {
            f"de/{Path(str(row[column])).name}": what
            for column, what in (("file_all_genes", "all measured genes"), ("file", "all columns of the model"))
            if isinstance(row.get(column), str)
        },
    }


def _called(row: dict[str, Any]) -> str:
    """How many genes each test of a contrast calls, in words."""
    titles = {"n_pseudobulk": "by pseudobulks", "n_ranked": "by ranks", "n_de": "by the model", "n_both": "by both"}
    known = {how: row[key] for key, how in titles.items() if key in row and not pd.isna(row[key])}
    return "genes called: " + ", ".join(f"{int(n):,} {how}" for how, n in known.items())


def _gene_table(name: str, title: str, ranked: pd.DataFrame, columns: list[Column], n_rows: int, which: str) -> Table:
    """The first rows of a table of genes, with a note of how many there are."""
    columns = [column for column in columns if column.key in ranked]
    first = ranked.head(n_rows)
    note = f"The {len(first):,} genes {which} of {len(ranked):,}." if len(first) < len(ranked) else ""
    keys = [column.key for column in columns]
    return Table(name=name, title=title, frame=first[keys], columns=columns, page=15, search=True, note=note)


def _by_counts(name: str, title: str, counts: pd.DataFrame, n_rows: int, fdr: float) -> Table:
    """All measured genes by the tests of the counts, in the order of the file: the most telling first."""
    has_pseudobulk = "pseudobulk_padj" in counts
    if has_pseudobulk:
        counts = counts.assign(by_pseudobulk=counts["pseudobulk_padj"] < fdr)
    bulk = [
        Column(key="by_pseudobulk", title="Called, pseudobulks", help=f"adjusted p below {fdr:g}"),
        Column(key="pseudobulk_lfc", title="log2 fc, pseudobulks", kind="number"),
        Column(key="pseudobulk_padj", title="Adjusted p", kind="p", help="of pseudobulks, replicates as units"),
    ]
    columns = [
        Column(key="gene", title="Gene", kind="gene"),
        *(bulk if has_pseudobulk else []),
        Column(key="called", title="Called, ranks", help=f"adjusted p below {fdr:g}, AUC from 0.6 or to 0.4"),
        Column(key="auc", title="AUC", kind="number", help="how often a cell of group 1 has more of the gene"),
        Column(key="log2fc", title="log2 fold change", kind="number", help="of the mean counts per ten thousand"),
        Column(key="detected1", title="Detected 1", kind="bar", help="share of cells of group 1"),
        Column(key="detected2", title="Detected 2", kind="bar", help="share of cells of group 2"),
        Column(key="wilcoxon_padj", title="Adjusted p, ranks", kind="p", help="cells as units"),
    ]
    which = "that tell the groups apart best" + (", those that replicates confirm first," if has_pseudobulk else "")
    return _gene_table(name, f"By the counts, all measured genes: {title}", counts, columns, n_rows, which)


STEPS = {
    "qc": "cells and genes kept",
    "setup": "genes chosen, cells split",
    "train": "one model per run",
    "select": "which setting",
    "programs": "consensus over seeds",
    "annotate": "UMAP, clusters, scores",
    "de": "contrasts",
    "report": "this page",
}


def _making(page: Page, results: Results) -> dict[str, Any]:
    """How it was made: steps with their times, inputs, versions, seeds, configuration, downloads."""
    seconds = dict(results.seconds)
    if "train" not in seconds:
        seconds["train"] = [float(metrics["wall_s"]) for metrics in results.metrics.values() if metrics.get("wall_s")]
    steps = [
        {"name": name, "what": what, "jobs": len(seconds.get(name, [])), "seconds": sum(seconds.get(name, []))}
        for name, what in STEPS.items()
        if not (name == "de" and results.contrasts.empty)
    ]
    downloads = {group: dict(paths) for group, paths in DOWNLOADS.items()}
    if not results.contrasts.empty:
        titles = {"file_all_genes": "all measured genes, by the counts", "file": "modelled genes, by the model"}
        files = {
            f"de/{Path(str(row[column])).name}": f"{row['contrast']}, {what}"
            for row in results.contrasts.to_dict("records")
            for column, what in titles.items()
            if isinstance(row.get(column), str)
        }
        downloads["Differential expression"] = {"de/contrasts.tsv": "the contrasts"} | files
    hosts = sorted({str(m["host"]) for m in results.metrics.values() if m.get("host")})
    devices = sorted({str(m["device"]) for m in results.metrics.values() if m.get("device")})
    return {
        "steps": steps,
        "downloads": downloads,
        "versions": {name: version for name, version in results.versions.items() if name != "commit"},
        "commits": results.versions.get("commit", ""),
        "days": sorted({str(m["date"]) for m in results.metrics.values() if m.get("date")}),
        "seeds": {run: m.get("seed") for run, m in results.metrics.items()},
        "hosts": hosts,
        "devices": devices,
        "threads": sorted({m["threads"] for m in results.metrics.values() if m.get("threads")}),
        "config": json.dumps(results.resolved, indent=2, ensure_ascii=False) if results.resolved else "",
    }


def _summary(results: Results, warnings: list[prose.Warning], findings: prose.Findings) -> dict[str, Any]:
    """What the index over all datasets shows of this one."""
    runs = results.runs[[column.key for column in RUN_COLUMNS if column.key in results.runs]]
    programs = [
        {"program": name, "label": row["label"], "share": float(row["share"]), "top_positive": row["top_positive"]}
        for name, row in results.programs.iterrows()
    ]
    columns: Mapping[str, list[Any]] = _columns(runs)
    return {
        "dataset": results.dataset,
        "n_obs_before": results.qc["n_obs_before"],
        "n_obs_after": results.qc["n_obs_after"],
        "n_vars": results.setup["n_vars"],
        "setting": results.best["setting"],
        "reason": results.best["reason"],
        "n_programs": len(results.programs),
        "programs": programs,
        "found": [one.text for one in findings.found],
        "not_found": [one.text for one in findings.not_found],
        "warnings": [warning.text for warning in warnings],
        "runs": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
    }
