"""Everything per cell and per gene in one AnnData that scanpy and CELLxGENE open."""

from __future__ import annotations

import logging
import warnings
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ldvae import results as layout
from ldvae.config import AnnotateConfig
from ldvae.errors import InputError
from ldvae.io import atomic, read_h5ad

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)


def annotate(*, results: Path, config: AnnotateConfig = AnnotateConfig()) -> None:
    """Put factors, programs, neighbours, UMAP and clusters into one AnnData.

    Parameters
    ----------
    results
        Folder of the results of the dataset, such as results/kang.
    """
    import scanpy

    adata = read_h5ad(layout.COUNTS.existing(results))
    run = layout.BEST.read(results)["run"]
    if config.normalized_layer:
        adata.layers["ldvae_normalized"] = normalized(adata, layout.MODEL.existing(results, run=run))
    add_factors(adata, layout.FACTORS.existing(results, run=run))
    add_programs(adata, results)
    adata.layers["counts"] = adata.X.copy()
    with warnings.catch_warnings():  # scanpy's own deprecations
        warnings.simplefilter("ignore")
        scanpy.pp.normalize_total(adata)
        scanpy.pp.log1p(adata)
    add_embedding(adata, config)
    logger.info("%d cells in %d clusters.", adata.n_obs, adata.obs["leiden"].nunique())
    adata.uns["ldvae"] = {
        "version": metadata.version("ldvae"),
        "run": run,
        "n_latent": adata.obsm["X_ldvae"].shape[1],
        "programs": adata.varm["program_loadings"].columns.to_numpy(str),
        "setup": adata.uns.pop("ldvae_setup", {}),
    }
    with atomic(layout.ANNOTATED.at(results)) as temporary:
        adata.write_h5ad(temporary, compression="gzip")


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


def add_programs(adata: AnnData, results: Path) -> None:
    """Add the consensus programs: obsm X_programs, obs P1, …, varm program_loadings."""
    weights, values = layout.LOADINGS.read_table(results), layout.SCORES.read_table(results)
    for file, table, names in (
        (layout.LOADINGS, weights, adata.var_names),
        (layout.SCORES, values, adata.obs_names),
    ):
        absent = names[~names.isin(table.index)]
        if len(absent):
            raise InputError(
                f"{file.at(results)}: lacks {len(absent)} of the {len(names)} names in the counts, e.g. {absent[0]}."
            )
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
