"""Scores of other cells under the programs of one dataset, without training."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ldvae import programs as gene_programs
from ldvae import results as layout
from ldvae.config import ProjectConfig
from ldvae.io import ChunkedCounts, first_names, obs_column, read_input, reading_options, write_json, write_table
from ldvae.programs.projection import matched_genes
from ldvae.steps.programs import read_model

logger = logging.getLogger(__name__)

MANY_OUTSIDE = 0.05  # share of cells outside from which a warning says so


def project(
    *,
    results: Path,
    name: str,
    input: list[str],
    names: list[str] | None = None,
    programs: Path | None = None,
    config: ProjectConfig = ProjectConfig(),
) -> None:
    """Score the cells of a new dataset with the programs of an old one.

    Parameters
    ----------
    results
        Folder of the results of the dataset, such as results/kang.
    name
        Name of the other dataset; its tables go into the folder project/{name} of the results.
    input
        Files of raw counts of any format, or demo:pbmc68k; all their genes, not only variable ones.
    names
        A name for each input file; not given: several files are named after themselves.
    programs
        File that `ldvae pack` wrote, whose programs are taken; not given: those of the results.
    """
    about: dict[str, Any] = {}
    if programs is not None:
        frame, about = gene_programs.read_reference(programs)
    else:
        frame = read_model(layout.PROGRAMS_MODEL.existing(results))
    adata = read_input(input, names, **(reading_options(config) | {"gene_names": config.gene_column}), chunked=True)
    position, _ = matched_genes(frame, list(adata.var_names), adata.var)
    modeled = np.unique(position[position >= 0])
    counts: ChunkedCounts = adata.uns.pop("ldvae_counts").take_columns(modeled)
    batch_key = config.batch_key or adata.uns.get("ldvae_file_key")
    result = gene_programs.project(
        frame,
        counts.read(np.arange(adata.n_obs)),
        list(adata.var_names[modeled]),
        var=adata.var.iloc[modeled],
        cells=list(adata.obs_names),
        batch=obs_column(adata.obs, batch_key).to_numpy() if batch_key else None,
        adjust=config.adjust,
    )
    warnings = []
    for program, share in result.covered.items():
        if share < 0.5:
            warnings.append(f"{program}: the data hold only {share:.0%} of what defines it; its scores are uncertain.")
    outside, n_found = int(result.outside.sum()), len(frame.genes) - len(result.missing)
    logger.info("%d of %d genes are found, %s.", n_found, len(frame.genes), result.matched)
    if n_found < len(frame.genes) / 2:
        warnings.append(f"Only {n_found} of the {len(frame.genes)} genes of the programs are in the data.")
    if outside > MANY_OUTSIDE * adata.n_obs:
        warnings.append(
            f"{outside} of {adata.n_obs} cells are outside of what the programs explain (outside in cells.tsv.gz): "
            "their scores say little. They may be of types that the programs were not made from."
        )
    if result.missing:
        logger.info(
            "%d of %d genes are missing: %s", len(result.missing), len(frame.genes), first_names(result.missing)
        )
    for warning in warnings:
        logger.warning(warning)
    write_table(result.scores, layout.PROJECTED_SCORES.at(results, projection=name), index="cell")
    cells = pd.DataFrame({"misfit": result.misfit, "outside": result.outside})
    cells = cells.join(result.error.add_prefix("error_"))
    write_table(cells, layout.PROJECTED_CELLS.at(results, projection=name), index="cell")
    write_json(
        {
            "n_obs": adata.n_obs,
            "n_outside": outside,
            "matched": result.matched,
            "programs": {key: about[key] for key in ("title", "licence", "sha256") if key in about},
            "n_genes": len(frame.genes),
            "n_found": n_found,
            "missing": result.missing,
            "covered": result.covered.to_dict(),
            "batch_key": batch_key or "",
            "warnings": warnings,
            "settings": config.model_dump(),
        },
        layout.PROJECTED_SUMMARY.at(results, projection=name),
    )
