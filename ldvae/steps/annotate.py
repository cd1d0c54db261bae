"""Everything per cell and per gene in one AnnData that scanpy and CELLxGENE open."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ldvae.config import AnnotateConfig, Output
from ldvae.errors import InputError, suggestion
from ldvae.io import atomic, read_h5ad, read_table

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)


def annotate(
    *,
    counts: Path,
    best: Path,
    runs: list[Path],
    loadings: Path,
    scores: Path,
    annotated: Output,
    config: AnnotateConfig,
) -> None:
    """Put factors, programs, neighbours, UMAP and clusters into one AnnData.

    Parameters
    ----------
    counts
        AnnData (h5ad) of `ldvae setup`.
    best
        JSON of `ldvae select`, which names the best run.
    runs
        Folders of the runs, each called as its run.
    loadings
        Table of the programs' loadings, genes by programs.
    scores
        Table of the programs' scores, cells by programs.
    annotated
        AnnData (h5ad): log-normalised `X`, layer counts, obsm X_ldvae, X_programs and X_umap, varm LDVAE_loadings and
        program_loadings; in obs the scores (Z_0, …, P1, …) and clusters (leiden).
    """
    import scanpy

    adata = read_h5ad(counts)
    run = best_run(best, runs)
    if config.normalized_layer:
        adata.layers["ldvae_normalized"] = normalized(adata, run / "model")
    add_factors(adata, run / "factors.npz")
    add_programs(adata, loadings, scores)
    adata.layers["counts"] = adata.X.copy()
    with warnings.catch_warnings():  # scanpy's own deprecations
        warnings.simplefilter("ignore")
        scanpy.pp.normalize_total(adata)
        scanpy.pp.log1p(adata)
    add_embedding(adata, config)
    logger.info("%d cells in %d clusters.", adata.n_obs, adata.obs["leiden"].nunique())
    adata.uns["ldvae"] = {
        "version": metadata.version("ldvae"),
        "run": run.name,
        "n_latent": adata.obsm["X_ldvae"].shape[1],
        "programs": adata.varm["program_loadings"].columns.to_numpy(str),
        "setup": adata.uns.pop("ldvae_setup", {}),
    }
    with atomic(annotated) as temporary:
        adata.write_h5ad(temporary, compression="gzip")


def best_run(best: Path, runs: Sequence[Path]) -> Path:
    """The folder of the best run, among those given."""
    name = json.loads(best.read_text())["run"]
    for folder in runs:
        if folder.name == name:
            return folder
    raise InputError(
        f"{best}: names run {name} as the best, whose folder is not given.{suggestion(name, [r.name for r in runs])}"
    )


def normalized(adata: AnnData, model: Path) -> np.ndarray:
    """The expression that the model expects of each cell, as shares of its counts, float32, shape (n_obs, n_vars)."""
    from ldvae.model import LinearSCVI

    return (
        LinearSCVI.load(model, adata.copy())
        .get_normalized_expression(give_mean=True, return_numpy=True)
        .astype(np.float32)
    )


def add_factors(adata: AnnData, factors: Path) -> None:
    """Add latent and loadings of a run: obsm X_ldvae, obs Z_0, …, varm LDVAE_loadings."""
    with np.load(factors) as run:
        scores, weights, cells, genes = (run[name] for name in ("scores", "loadings", "cells", "genes"))
    for kind, found, expected in (("cells", cells, adata.obs_names), ("genes", genes, adata.var_names)):
        if not np.array_equal(found.astype(str), expected.to_numpy(str)):
            raise InputError(f"{factors}: its {len(found)} {kind} are not the {len(expected)} of the counts file.")
    names = [f"Z_{i}" for i in range(scores.shape[1])]
    adata.obsm["X_ldvae"] = scores.astype(np.float32)
    adata.obs[names] = adata.obsm["X_ldvae"]
    adata.varm["LDVAE_loadings"] = pd.DataFrame(weights, index=adata.var_names, columns=names)


def add_programs(adata: AnnData, loadings: Path, scores: Path) -> None:
    """Add the consensus programs: obsm X_programs, obs P1, …, varm program_loadings."""
    weights, values = read_table(loadings, index="gene"), read_table(scores, index="cell")
    for path, table, names in ((loadings, weights, adata.var_names), (scores, values, adata.obs_names)):
        absent = names[~names.isin(table.index)]
        if len(absent):
            raise InputError(f"{path}: lacks {len(absent)} of the {len(names)} names in the counts, e.g. {absent[0]}.")
    values = values.loc[adata.obs_names].astype(np.float32)
    adata.obsm["X_programs"] = values.to_numpy()
    adata.obs[list(values)] = values
    adata.varm["program_loadings"] = weights.loc[adata.var_names]


def add_embedding(adata: AnnData, config: AnnotateConfig) -> None:
    """Add neighbours in the latent space, and from them UMAP and Leiden clusters."""
    import scanpy

    n_neighbors = min(config.n_neighbors, adata.n_obs - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scanpy.pp.neighbors(adata, n_neighbors=n_neighbors, use_rep="X_ldvae", random_state=config.seed)
        # The spectral start of UMAP needs more cells than it has dimensions.
        start = "spectral" if adata.n_obs > 10 else "random"
        scanpy.tl.umap(adata, min_dist=config.min_dist, init_pos=start, random_state=config.seed)
        scanpy.tl.leiden(
            adata,
            resolution=config.resolution,
            flavor="igraph",
            n_iterations=2,
            directed=False,
            random_state=config.seed,
        )
