"""One page that shows what was done with a dataset, whether it can be trusted, and what was found."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from ldvae import results as layout
from ldvae.config import MADE, SECTIONS, ModelConfig, ReportConfig, SweepConfig, TrainConfig, expand_sweep, named
from ldvae.errors import InputError, listed
from ldvae.io import plain, read_h5ad, read_table, require_columns, write_json, write_svgs, write_text
from ldvae.methods import Sentence, numbered
from ldvae.names import find_own
from ldvae.report.dataset import render_report
from ldvae.report.results import Results
from ldvae.report.sections.cells import drawn_cells
from ldvae.rows import positions_in
from ldvae.steps.annotate import methods as methods_of_cells
from ldvae.steps.de import methods as methods_of_contrasts
from ldvae.steps.programs import methods as methods_of_programs
from ldvae.steps.qc import methods as methods_of_qc
from ldvae.steps.select import methods as methods_of_choice
from ldvae.steps.setup import methods as methods_of_setup
from ldvae.steps.train import methods as methods_of_training

logger = logging.getLogger(__name__)

# Genes times cells of the map: 8 MB before they are packed to about a fifth.
MAP_VALUES = 8_000_000
CONTRAST_TEXT = ("contrast", "group1", "group2", "within", "column", "reason")


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
    require_columns(cells["obs"], named(config, "obs"), made=MADE["report"])
    qc, setup = layout.QC_SUMMARY.read(results), layout.SETUP_SUMMARY.read(results)
    programs_summary = layout.PROGRAMS_SUMMARY.read(results)
    fields_by_name = {one.name for one in fields(Results)}
    tables = {
        name: file.read_table(results)
        for name, file in layout.NAMED.items()
        if name in fields_by_name and "report" in file.readers and ".tsv" in file.path
    }
    # Steps that are called by hand may have no config: all that is there is then shown.
    resolved = layout.RESOLVED.read(results) if layout.RESOLVED.at(results).exists() else {}
    compared = bool(resolved["de"]["contrasts"]) if "de" in resolved else layout.DE.at(results).exists()
    contrasts = (
        read_table(layout.DE.existing(results) / "contrasts.tsv", text=CONTRAST_TEXT) if compared else pd.DataFrame()
    )
    de_summary = json.loads((layout.DE.at(results) / "summary.json").read_text(encoding="utf-8")) if compared else {}
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
    chosen = list(dict.fromkeys([choice["run"], *(run for run in choice["runs"] if run in runs)]))
    used = merged_versions(
        [
            *(metrics.get("versions", {}) for metrics in runs.values()),
            *(summary.get("versions", {}) for summary in (qc, setup, programs_summary, de_summary)),
            cells["versions"],
        ]
    )
    options = {"n_latent": choice["n_latent"]} | resolved.get("model", {}) | resolved.get("train", {})
    paragraphs = [
        [*methods_of_qc(qc, runs[choice["run"]].get("versions", {})), *methods_of_setup(setup)],
        [
            *methods_of_training([runs[run] for run in chosen], options, setup.get("fields", {}).get("batch_key", "")),
            *methods_of_choice(choice, len(tables["settings"]), len(selected)),
        ],
        methods_of_programs(
            programs_summary, len(tables["programs"]), sorted(tables["enrichment"]["library"].astype(str).unique())
        ),
        [
            *methods_of_cells(cells["settings"], find_own("leiden", cells["obs"]) in cells["obs"], len(cells["obs"])),
            *(methods_of_contrasts(de_summary.get("settings", {}), contrasts, choice["run"]) if len(contrasts) else ()),
            *methods_of_engine(benchmarks is not None and bool(_read_benchmarks(benchmarks, dataset))),
            *methods_of_environment([runs[run] for run in chosen], used),
        ],
    ]
    counted = _read_contrasts(contrasts, layout.DE.at(results), "file_all_genes")
    drawn = drawn_cells(len(cells["obs"]), config.n_cells)
    most = min(config.n_genes_mapped, MAP_VALUES // max(len(drawn), 1))
    mapped = genes_of_map(tables["top_genes"], counted, tables["all_genes"], most)
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
            best=choice,
            **tables,
            programs_summary=programs_summary,
            obs=cells["obs"],
            scores=pd.DataFrame(cells["scores"], columns=tables["programs"].index, index=cells["obs"].index),
            umap=cells["umap"],
            expression=read_expression(layout.FILTERED.existing(results), cells["obs"].index[drawn], mapped),
            colors=cells["colors"],
            contrasts=contrasts,
            de_summary=de_summary,
            de=_read_contrasts(contrasts, layout.DE.at(results), "file"),
            de_all_genes=counted,
            resolved=resolved,
            methods=numbered(paragraphs),
            versions=used,
            figures=layout.FIGURES.path,
            seconds=_read_benchmarks(benchmarks, dataset) if benchmarks else {},
        ),
        config,
    )
    write_svgs(documents, layout.FIGURES.at(results))
    write_text(page, layout.PAGE.at(results))
    write_json({**found, "page": layout.PAGE.path}, layout.REPORT_SUMMARY.at(results))
    logger.info("%s: %.1f MB, %d figures.", layout.PAGE.at(results), len(page.encode()) / 1e6, len(documents))


ENGINES = {
    "snakemake": "Mölder F, Jablonski KP, Letcher B, et al. Sustainable data analysis with Snakemake. F1000Research "
    "10, 33 (2021). doi:10.12688/f1000research.29032.2",
    "nextflow": "Di Tommaso P, Chatzou M, Floden EW, et al. Nextflow enables reproducible computational workflows. "
    "Nature Biotechnology 35, 316–319 (2017). doi:10.1038/nbt.3820",
}


def methods_of_engine(benchmarked: bool) -> Iterator[Sentence]:
    """Which engine ran the steps: only Snakemake writes benchmarks, only Nextflow names its process."""
    if benchmarked:
        yield Sentence("The steps were run by Snakemake [@snakemake].", ENGINES)
    elif os.environ.get("LDVAE_PROCESS"):
        yield Sentence("The steps were run by Nextflow [@nextflow].", ENGINES)


def merged_versions(steps: Iterable[dict[str, str]]) -> dict[str, str]:
    """Versions that the steps wrote down, by package; "1.0 and 1.1" where steps ran with different ones."""
    found: dict[str, list[str]] = {}
    for versions in steps:
        for name, version in versions.items():
            if version not in found.setdefault(name, []):
                found[name].append(version)
    return {name: listed(versions) for name, versions in found.items()}


def methods_of_environment(runs: list[dict[str, Any]], versions: dict[str, str]) -> Iterator[Sentence]:
    """When the models were trained, and with which versions the steps ran."""
    days = sorted({run["date"] for run in runs if run.get("date")})
    if days:
        yield Sentence(f"The models were trained on {days[0]}{f' to {days[-1]}' if len(days) > 1 else ''}.")
    packages = [f"{name} {version}" for name, version in versions.items() if name not in ("ldvae", "commit", "python")]
    if packages and "python" in versions:
        yield Sentence(f"Versions: Python {versions['python']}, {listed(packages, 20)}.")


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
        wrong += [
            f"{section}.{name}: the results were made with {value!r}, the config says {expected!r}"
            for name, value, expected in layout.other_options(options, configured, SECTIONS[section])
        ]
    planned = {}
    if "sweep" in resolved:
        model, train = ModelConfig(**resolved["model"]), TrainConfig(**resolved["train"])
        planned = expand_sweep(model, train, SweepConfig(**resolved["sweep"]))
    for name in sorted(planned.keys() & runs.keys()):
        expected = plain(planned[name].params)
        for option, value in runs[name]["params"].items():
            if value != expected.get(option, value):
                wrong.append(f"run {name}, {option}: trained with {value!r}, the config says {expected[option]!r}")
    if missing := sorted(planned.keys() - runs.keys()):
        wrong.append(f"run {missing[0]} of the config was not compared with the others")
    if wrong:
        raise InputError("\n- ".join(["The results are not those of the config; run the workflow again:", *wrong]))


def _read_annotated(path: Path) -> dict[str, Any]:
    """Annotation, program scores, UMAP and colors of the cells, without reading their expression."""
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
        settings, versions = (
            json.loads(read_elem(uns[key])) if key in uns else {} for key in ("ldvae/settings", "ldvae/versions")
        )
        colors = {key.removesuffix("_colors"): [str(color) for color in read_elem(uns[key])] for key in keys}
    return {
        "obs": obs,
        "scores": scores,
        "umap": umap,
        "colors": colors,
        "settings": settings,
        "versions": versions,
    }


def genes_of_map(
    top_genes: pd.DataFrame, contrasts: dict[str, pd.DataFrame], all_genes: pd.DataFrame, most: int
) -> list[str]:
    """Genes by which the map can be colored: of the programs, of the contrasts, then the surest effects."""
    ranked = list(top_genes.sort_values(["rank", "program"], kind="stable")["gene"])
    for table in contrasts.values():
        ranked += list(table["gene"].head(20))  # the most telling first
    if len(all_genes):
        strongest = all_genes["z"].abs().groupby(all_genes["gene"]).max().sort_values(ascending=False, kind="stable")
        ranked += list(strongest.index[:most])
    return sorted(list(dict.fromkeys(map(str, ranked)))[:most])


def read_expression(filtered: Path, cells: pd.Index, genes: list[str]) -> pd.DataFrame:
    """log(1 + counts per 10,000) of some genes in some cells, of all measured genes, shape (n_cells, n_genes)."""
    measured = read_h5ad(filtered, backed="r")
    genes = [gene for gene in genes if gene in measured.var_names]
    position = positions_in(filtered, measured.obs_names, cells, "cells")
    order = np.argsort(position)
    counts = sparse.csr_matrix(measured.X[position[order]])
    columns = measured.var_names.get_indexer(genes)
    measured.file.close()
    totals = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)
    values = np.empty((len(cells), len(genes)), np.float32)
    values[order] = np.log1p(counts[:, columns].toarray() / totals[:, None] * 1e4)
    return pd.DataFrame(values, cells, genes)


def _read_contrasts(contrasts: pd.DataFrame, folder: Path, column: str) -> dict[str, pd.DataFrame]:
    """The table of each contrast that a column of contrasts.tsv names, by the name of the contrast."""
    found = {}
    for row in contrasts.to_dict("records") if column in contrasts else []:
        path = folder / str(row[column])
        if not path.exists():
            raise InputError(f"{path} is not there, but {folder / 'contrasts.tsv'} lists it. Run `ldvae de` again.")
        found[str(row["contrast"])] = read_table(path, text=("gene", "group1", "group2"))
    return found


def _read_benchmarks(folder: Path, dataset: str) -> dict[str, list[float]]:
    """Seconds of each job of the dataset, by step: {step}/{dataset}.tsv, or {step}/{dataset}/{run}.tsv."""
    seconds: dict[str, list[float]] = {}
    for path in sorted([*folder.glob(f"*/{dataset}.tsv"), *folder.glob(f"*/{dataset}/*.tsv")]):
        step = path.relative_to(folder).parts[0]
        # A benchmark has one row for each repetition.
        seconds.setdefault(step, []).append(float(pd.read_csv(path, sep="\t")["s"].mean()))
    return seconds
