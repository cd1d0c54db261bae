"""One page that shows what was done with a dataset, whether it can be trusted, and what was found."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ldvae import results as layout
from ldvae.config import SECTIONS, ReportConfig, expand_sweep, named
from ldvae.errors import InputError
from ldvae.io import atomic, plain, read_table, write_json
from ldvae.names import find_own
from ldvae.report.page import render_report
from ldvae.report.results import Results

logger = logging.getLogger(__name__)

CONTRAST_TEXT = ("contrast", "group1", "group2", "within", "column")


def report(*, results: Path, benchmarks: Path | None = None, config: ReportConfig = ReportConfig()) -> None:
    """Write the report of a dataset: one page that needs no network, and its figures as files.

    Parameters
    ----------
    results
        Folder of the results of the dataset, such as results/kang; the dataset has its name.
    benchmarks
        Folder of Snakemake's benchmark tables; not given: wall times of the training alone.
    """
    dataset = results.absolute().name
    selected = layout.SELECT_RUNS.read_table(results)
    names = selected["run"].tolist()
    runs = {name: layout.METRICS.read(results, run=name) for name in names}
    choice = layout.BEST.read(results)
    if choice["run"] not in runs:
        raise InputError(
            f"{layout.BEST.at(results)}: the best run {choice['run']!r} is not in {layout.SELECT_RUNS.at(results)} "
            f"({', '.join(runs)}). Run `ldvae select` again."
        )
    cells = _read_annotated(layout.ANNOTATED.existing(results))
    qc, setup = layout.QC_SUMMARY.read(results), layout.SETUP_SUMMARY.read(results)
    programs_summary = layout.PROGRAMS_SUMMARY.read(results)
    programs = layout.PROGRAMS.read_table(results)
    # Steps that are called by hand may have no config: all that is there is then shown.
    resolved = layout.RESOLVED.read(results) if layout.RESOLVED.at(results).exists() else {}
    compared = bool(resolved["de"]["contrasts"]) if "de" in resolved else layout.DE.at(results).exists()
    contrasts = (
        read_table(layout.DE.existing(results) / "contrasts.tsv", text=CONTRAST_TEXT) if compared else pd.DataFrame()
    )
    de_summary = _read_json(layout.DE.at(results) / "summary.json") if compared else {}
    if resolved:
        made = {
            "qc": qc.get("settings", {}),
            "setup": setup.get("settings", {}),
            "select": choice.get("settings", {}),
            "programs": programs_summary.get("settings", {}),
            "annotate": cells["settings"],
            "de": de_summary.get("settings", {}),
        }
        refuse_other_options(resolved, made, runs)
    page, documents, found = render_report(
        Results(
            dataset=dataset,
            qc=qc,
            qc_cells=layout.CELLS.read_table(results),
            setup=setup,
            metrics=runs,
            histories={name: pd.read_csv(layout.HISTORY.existing(results, run=name)) for name in names},
            fit=layout.PPC.read_table(results, run=choice["run"]),
            runs=selected,
            settings=layout.SETTINGS.read_table(results),
            correlations=layout.CORRELATIONS.read_table(results),
            best=choice,
            programs=programs,
            top_genes=layout.TOP_GENES.read_table(results),
            consensus=layout.CONSENSUS.read_table(results),
            stability=layout.STABILITY.read_table(results),
            associations=layout.ASSOCIATIONS.read_table(results),
            enrichment=layout.ENRICHMENT.read_table(results),
            programs_summary=programs_summary,
            obs=cells["obs"],
            scores=pd.DataFrame(cells["scores"], columns=programs.index, index=cells["obs"].index),
            umap=cells["umap"],
            colors=cells["colors"],
            contrasts=contrasts,
            de_summary=de_summary,
            de=_read_contrasts(contrasts, layout.DE.at(results)),
            resolved=resolved,
            figures=layout.FIGURES.path,
            seconds=_read_benchmarks(benchmarks, dataset) if benchmarks else {},
        ),
        config,
    )
    with atomic(layout.FIGURES.at(results)) as folder:
        folder.mkdir()
        for name, document in documents.items():
            (folder / f"{name}.svg").write_text(document, encoding="utf-8")
    with atomic(layout.PAGE.at(results)) as temporary:
        temporary.write_text(page, encoding="utf-8")
    write_json({**found, "page": layout.PAGE.path}, layout.REPORT_SUMMARY.at(results))
    logger.info("%s: %.1f MB, %d figures.", layout.PAGE.at(results), len(page.encode()) / 1e6, len(documents))


def refuse_other_options(
    resolved: dict[str, Any], made: dict[str, dict[str, Any]], runs: dict[str, dict[str, Any]]
) -> None:
    """Raise an InputError where results were made with other options than those of the config.

    Parameters
    ----------
    resolved
        The options of the config, section by section.
    made
        The options that each step wrote down beside its results; one that it does not know is of a newer version.
    runs
        Metrics of each run, by its name.
    """
    wrong = []
    for section, options in made.items():
        configured = resolved.get(section, {})
        files = {name for name, _ in named(SECTIONS[section](**configured), "file")}  # an engine renames these
        for name, value in options.items():
            expected = configured.get(name, value)
            if value != expected and name not in files:
                wrong.append(f"{section}.{name}: the results were made with {value!r}, the config says {expected!r}")
    planned = {}
    if "sweep" in resolved:
        options_of = {section: SECTIONS[section](**resolved[section]) for section in ("model", "train", "sweep")}
        planned = expand_sweep(*options_of.values())  # type: ignore[arg-type]
    for name in sorted(planned.keys() & runs.keys()):
        expected = plain(planned[name].params)
        for option, value in runs[name]["params"].items():
            if value != expected.get(option, value):
                wrong.append(f"run {name}, {option}: trained with {value!r}, the config says {expected[option]!r}")
    if missing := sorted(planned.keys() - runs.keys()):
        wrong.append(f"run {missing[0]} of the config was not compared with the others")
    if wrong:
        raise InputError("\n- ".join(["The results are not those of the config; run the workflow again:", *wrong]))


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _read_annotated(path: Path) -> dict[str, Any]:
    """Annotation, program scores, UMAP and colours of the cells, without reading their expression."""
    import h5py
    from anndata.io import read_elem

    with h5py.File(path) as file:
        obs = read_elem(file["obs"])
        obsm = file["obsm"]
        scores = np.asarray(read_elem(obsm[find_own("X_programs", obsm)]))
        name = find_own("X_umap", obsm)
        umap = np.asarray(obsm[name][:, :2], dtype=float) if name in obsm else None
        uns = file.get("uns", {})
        keys = [key for key in uns if key.endswith("_colors")]
        settings = json.loads(read_elem(uns["ldvae/settings"])) if "ldvae/settings" in uns else {}
        colors = {key.removesuffix("_colors"): [str(colour) for colour in read_elem(uns[key])] for key in keys}
    return {"obs": obs, "scores": scores, "umap": umap, "colors": colors, "settings": settings}


def _read_contrasts(contrasts: pd.DataFrame, folder: Path) -> dict[str, pd.DataFrame]:
    """The table of each contrast, by its name."""
    found = {}
    for row in contrasts.itertuples():
        path = folder / str(row.file)
        if not path.exists():
            raise InputError(f"{path} is not there, but {folder / 'contrasts.tsv'} lists it. Run `ldvae de` again.")
        found[str(row.contrast)] = read_table(path, text=("gene", "group1", "group2"))
    return found


def _read_benchmarks(folder: Path, dataset: str) -> dict[str, list[float]]:
    """Seconds of each job of the dataset, by step: {step}/{dataset}.tsv, or {step}/{dataset}/{run}.tsv."""
    seconds: dict[str, list[float]] = {}
    for path in sorted([*folder.glob(f"*/{dataset}.tsv"), *folder.glob(f"*/{dataset}/*.tsv")]):
        step = path.relative_to(folder).parts[0]
        # A benchmark has one row for each repetition.
        seconds.setdefault(step, []).append(float(pd.read_csv(path, sep="\t")["s"].mean()))
    return seconds
