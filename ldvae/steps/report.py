"""One page that shows what was done with a dataset, whether it can be trusted, and what was found."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ldvae.config import Output, ReportConfig
from ldvae.errors import InputError
from ldvae.io import atomic, write_json
from ldvae.report.page import render_report
from ldvae.report.results import Results

logger = logging.getLogger(__name__)


def report(
    *,
    dataset: str,
    qc_summary: Path,
    qc_cells: Path,
    setup_summary: Path,
    metrics: list[Path],
    histories: list[Path],
    fit: list[Path] | None = None,
    select_runs: Path,
    select_settings: Path,
    select_correlations: Path,
    best: Path,
    programs: Path,
    top_genes: Path,
    consensus: Path,
    stability: Path,
    associations: Path,
    enrichment: Path,
    programs_summary: Path,
    annotated: Path,
    contrasts: Path | None = None,
    de: list[Path] | None = None,
    resolved: Path | None = None,
    benchmarks: Path | None = None,
    output: Output,
    summary: Output,
    figures: Output,
    config: ReportConfig,
) -> None:
    """Write the report of a dataset: one page that needs no network, and its figures as files.

    Parameters
    ----------
    dataset
        Name of the dataset.
    qc_summary
        qc/summary.json.
    qc_cells
        qc/cells.tsv.gz.
    setup_summary
        setup/summary.json.
    metrics
        metrics.json of each run.
    histories
        history.csv of each run, in the order of `metrics`.
    fit
        fit.tsv of each run, in the order of `metrics`; not given: no posterior predictive checks.
    select_runs
        select/runs.tsv.
    select_settings
        select/settings.tsv.
    select_correlations
        select/correlations.tsv.
    best
        select/best.json.
    programs
        programs/programs.tsv.
    top_genes
        programs/top_genes.tsv.
    consensus
        programs/consensus.tsv.
    stability
        programs/stability.tsv.
    associations
        programs/associations.tsv.
    enrichment
        programs/enrichment.tsv.
    programs_summary
        programs/summary.json.
    annotated
        The annotated cells (h5ad); only annotation, scores and UMAP are read.
    contrasts
        de/contrasts.tsv; not given: no differential expression. A summary.json beside it is read as well.
    de
        The tables that `contrasts` names; not given: those beside it.
    resolved
        JSON of the dataset's configuration with every default.
    benchmarks
        Folder of Snakemake's benchmark tables; not given: wall times of the training alone.
    output
        The page (html).
    summary
        JSON: what the index over all datasets shows.
    figures
        Folder of the figures beside the page, such as umap.svg, training_elbo.svg and fit_mean.svg.
    """
    runs = {record["run"]: record for record in map(_read_json, metrics)}
    _check_lengths(metrics, histories, "histories")
    _check_lengths(metrics, fit or metrics, "fit")
    choice = _read_json(best)
    if choice["run"] not in runs:
        raise InputError(
            f"{best}: the best run {choice['run']!r} is not among the metrics given ({', '.join(runs)}). "
            "Give the metrics, histories and fits of all runs."
        )
    cells = _read_annotated(annotated)
    program_table = _read_table(programs).set_index("program")
    text_columns = ["label", "technical", "top_positive", "top_negative", "best_association"]
    program_table[text_columns] = program_table[text_columns].fillna("").astype(str)
    contrast_table = (
        _read_table(contrasts, text=("contrast", "group1", "group2", "within", "column"))
        if contrasts
        else pd.DataFrame()
    )
    de_summary = contrasts.with_name("summary.json") if contrasts else None
    page, documents, found = render_report(
        Results(
            dataset=dataset,
            qc=_read_json(qc_summary),
            qc_cells=_read_table(qc_cells, text=("cell", "batch", "reason")),
            setup=_read_json(setup_summary),
            metrics=runs,
            histories={run: pd.read_csv(path) for run, path in zip(runs, histories, strict=True)},
            fit=_read_table(fit[list(runs).index(choice["run"])], text=("gene", "batch")) if fit else pd.DataFrame(),
            runs=_read_table(select_runs),
            settings=_read_table(select_settings),
            correlations=_read_table(select_correlations),
            best=choice,
            programs=program_table,
            top_genes=_read_table(top_genes, text=("gene",)),
            consensus=_read_table(consensus, text=("gene",)),
            stability=_read_table(stability),
            associations=_read_table(associations, text=("variable", "level")),
            enrichment=_read_table(enrichment, text=("term", "library")),
            programs_summary=_read_json(programs_summary),
            obs=cells["obs"],
            scores=pd.DataFrame(cells["scores"], columns=program_table.index, index=cells["obs"].index),
            umap=cells["umap"],
            colors=cells["colors"],
            contrasts=contrast_table,
            de_summary=_read_json(de_summary) if de_summary and de_summary.exists() else {},
            de=_read_contrasts(contrast_table, contrasts, de),
            resolved=_read_json(resolved) if resolved else {},
            figures=Path(os.path.relpath(figures, output.parent)).as_posix(),
            seconds=_read_benchmarks(benchmarks, dataset) if benchmarks else {},
        ),
        config,
    )
    with atomic(figures) as folder:
        folder.mkdir()
        for name, document in documents.items():
            (folder / f"{name}.svg").write_text(document, encoding="utf-8")
    with atomic(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    write_json({**found, "page": output.name}, summary)
    logger.info("%s: %.1f MB, %d figures.", output, len(page.encode()) / 1e6, len(documents))


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def _read_table(path: Path, text: Sequence[str] = ()) -> pd.DataFrame:
    """A tab-separated table; columns named in `text` stay text, so that a gene called NA or 7 keeps its name."""
    header = pd.read_csv(path, sep="\t", nrows=0).columns
    kinds = {name: str for name in text if name in header}
    table = pd.read_csv(
        path,
        sep="\t",
        dtype=kinds,
        keep_default_na=False,
        na_values={c: ["", "nan", "NaN"] for c in header if c not in kinds},
    )
    return table


def _check_lengths(metrics: list[Path], paths: list[Path], name: str) -> None:
    if len(paths) != len(metrics):
        raise InputError(
            f"--{name} names {len(paths)} files and --metrics {len(metrics)}; expected one per run, in one order."
        )


def _read_annotated(path: Path) -> dict[str, Any]:
    """Annotation, program scores, UMAP and colours of the cells, without reading their expression."""
    import h5py
    from anndata.io import read_elem

    with h5py.File(path) as file:
        obs = read_elem(file["obs"])
        scores = np.asarray(read_elem(file["obsm/X_programs"]))
        umap = np.asarray(file["obsm/X_umap"][:, :2], dtype=float) if "obsm/X_umap" in file else None
        uns = file.get("uns", {})
        keys = [key for key in uns if key.endswith("_colors")]
        colors = {key.removesuffix("_colors"): [str(colour) for colour in read_elem(uns[key])] for key in keys}
    return {"obs": obs, "scores": scores, "umap": umap, "colors": colors}


def _read_contrasts(table: pd.DataFrame, path: Path | None, given: list[Path] | None) -> dict[str, pd.DataFrame]:
    """The table of each contrast, by its name: a file of those given, or one beside the table of contrasts."""
    if path is None or table.empty:
        return {}
    files = {Path(file).name: Path(file) for file in given or path.parent.iterdir()}
    wanted = {row.contrast: Path(str(row.file)).name for row in table.itertuples()}
    missing = sorted(set(wanted.values()) - set(files))
    if missing:
        where = "--de does not name" if given else f"{path.parent} does not hold"
        raise InputError(f"{where} {', '.join(missing)}, which {path} lists. Give the tables with --de.")
    return {contrast: _read_table(files[name], text=("gene", "group1", "group2")) for contrast, name in wanted.items()}


def _read_benchmarks(folder: Path, dataset: str) -> dict[str, list[float]]:
    """Seconds of each job of the dataset, by step: {step}/{dataset}.tsv, or {step}/{dataset}/{run}.tsv."""
    seconds: dict[str, list[float]] = {}
    for path in sorted([*folder.glob(f"*/{dataset}.tsv"), *folder.glob(f"*/{dataset}/*.tsv")]):
        step = path.relative_to(folder).parts[0]
        # A benchmark has one row for each repetition.
        seconds.setdefault(step, []).append(float(pd.read_csv(path, sep="\t")["s"].mean()))
    return seconds
