"""Everything per cell and per gene in one AnnData that scanpy and CELLxGENE open."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ldvae import results as layout
from ldvae.config import AnnotateConfig
from ldvae.errors import InputError
from ldvae.io import ChunkedMatrix, RawMatrix, atomic, read_h5ad, read_without_matrices, write_matrices, write_rows
from ldvae.methods import Sentence
from ldvae.names import find_own, own_name, with_columns
from ldvae.neighbors import add_neighbors, search_among
from ldvae.provenance import versions
from ldvae.rows import positions_in

logger = logging.getLogger(__name__)

CELLS_PLACED = 20_000  # at once


def annotate(*, results: Path, config: AnnotateConfig = AnnotateConfig()) -> None:
    """Put factors, programs, neighbors, UMAP and clusters into one AnnData.

    Parameters
    ----------
    results
        Folder of the results of the dataset, such as results/kang.

    Notes
    -----
    Counts, layers and raw are never in memory as a whole: they go from file to file, some cells at a time.
    """
    adata, matrices, _ = read_without_matrices(layout.COUNTS.existing(results))
    counts = matrices.pop("X")
    layers, raw = layers_of(adata, layout.LAYERS.existing(results))
    run = layout.BEST.read(results)["run"]
    n_latent = add_factors(adata, layout.FACTORS.existing(results, run=run))
    programs = add_programs(adata, results)
    embedded = add_embedding(adata, config)
    layers[own_name("counts", layers)] = counts
    adata.uns["log1p"] = {"base": None}  # as scanpy tells it
    adata.uns["ldvae"] = {
        "version": metadata.version("ldvae"),
        "run": run,
        "n_latent": n_latent,
        "programs": np.array(programs, str),
        "setup": adata.uns.pop("ldvae_setup", {}),
        "settings": json.dumps(config.model_dump()),
        "versions": json.dumps(versions(("ldvae", "anndata", "scanpy", "umap-learn", "igraph"))),
    }
    if embedded is not None:
        adata.uns["ldvae"]["embedded"] = embedded
    with atomic(layout.ANNOTATED.at(results)) as temporary:
        adata.write_h5ad(temporary, compression="gzip")
        write_matrices(temporary, layers, raw, compression="gzip")
        with h5py.File(temporary, "a") as file:
            write_rows(file, "X", log_normalized(counts), adata.shape, "gzip")
            if config.normalized_layer:
                expression = expected(layout.COUNTS.at(results), layout.MODEL.existing(results, run=run))
                write_rows(file["layers"], "ldvae_normalized", expression, adata.shape, "gzip")


def layers_of(adata: AnnData, path: Path) -> tuple[dict[str, ChunkedMatrix], RawMatrix | None]:
    """Layers and raw of the cells and genes that are modeled; obsp (with its entries of uns) and varp are added.

    Parameters
    ----------
    adata
        Cells and genes, some of those in the file, in their order.
    path
        The file that the step qc wrote.
    """
    others, layers, raw = read_without_matrices(path)
    cells = positions_in(path, others.obs_names, adata.obs_names, "cells")
    genes = positions_in(path, others.var_names, adata.var_names, "genes")
    own = others[cells, genes]
    for kind in ("obsp", "varp"):
        for name, values in getattr(own, kind).items():
            getattr(adata, kind)[name] = values.copy()
    adata.uns.update(own.uns)
    layers = {name: matrix.take(cells).take_columns(genes) for name, matrix in layers.items()}
    return layers, None if raw is None else raw._replace(matrix=raw.matrix.take(cells))


def log_normalized(counts: ChunkedMatrix) -> Iterator[sparse.csr_matrix]:
    """log(1 + counts scaled to the median total), some cells at a time, as scanpy computes them of all at once."""
    import scanpy

    totals = np.concatenate([np.asarray(x.sum(axis=1)).ravel() for x in counts.pieces()])
    median = np.median(totals[totals > 0])
    for x in counts.pieces():
        cells = AnnData(x)
        with warnings.catch_warnings():  # scanpy's own deprecations
            warnings.simplefilter("ignore")
            scanpy.pp.normalize_total(cells, target_sum=median)
            scanpy.pp.log1p(cells)
        yield cells.X


def expected(counts: Path, model: Path) -> Iterator[np.ndarray]:
    """The expression that a model expects of each cell, as shares of its counts, float32, some cells at a time."""
    from ldvae.model import LinearSCVI
    from ldvae.posterior import BATCH_SIZE

    adata = read_h5ad(counts, backed="r")
    fitted = LinearSCVI.load(model, adata)
    for start in range(0, adata.n_obs, 32 * BATCH_SIZE):
        cells = slice(start, start + 32 * BATCH_SIZE)
        yield fitted.get_normalized_expression(indices=cells, give_mean=True, return_numpy=True)
    adata.file.close()


def add_factors(adata: AnnData, factors: Path) -> int:
    """Add latent and loadings of a run: obsm X_ldvae, obs Z_0, …, varm LDVAE_loadings; returns the number of factors.

    Where the user's data have an entry of one of these names, the new one ends in _ldvae; so do those of programs,
    UMAP and clusters.
    """
    with np.load(factors) as run:
        scores, weights, cells, genes = (run[name] for name in ("scores", "loadings", "cells", "genes"))
    for kind, found, expected in (("cells", cells, adata.obs_names), ("genes", genes, adata.var_names)):
        if not np.array_equal(found.astype(str), expected.to_numpy(str)):
            raise InputError(f"{factors}: its {len(found)} {kind} are not the {len(expected)} of the counts file.")
    names = [f"Z_{i}" for i in range(scores.shape[1])]
    add_columns(adata, pd.DataFrame(scores.astype(np.float32), adata.obs_names, names))
    adata.obsm[own_name("X_ldvae", adata.obsm)] = scores.astype(np.float32)
    loadings = pd.DataFrame(weights, index=adata.var_names, columns=names)
    adata.varm[own_name("LDVAE_loadings", adata.varm)] = loadings
    return len(names)


def add_columns(adata: AnnData, table: pd.DataFrame) -> None:
    """Add columns to obs, in place."""
    adata.obs = with_columns(adata.obs, table)


def add_programs(adata: AnnData, results: Path) -> list[str]:
    """Add the consensus programs: obsm X_programs, obs P1, …, varm program_loadings; returns their names."""
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
    adata.obsm[own_name("X_programs", adata.obsm)] = values.to_numpy()
    add_columns(adata, values)
    adata.varm[own_name("program_loadings", adata.varm)] = weights.loc[adata.var_names]
    return list(values)


def add_embedding(adata: AnnData, config: AnnotateConfig) -> np.ndarray | None:
    """Add neighbors in the latent space, and from them UMAP and Leiden clusters.

    Of more cells than `config.max_cells`, a random sample gets its own neighbors, UMAP and clusters; every other cell
    gets the mean position of its nearest cells in the sample and the cluster that most of them are in, the closer ones
    counting more in both. Neighbors are then not kept. Returned are the rows of the sample, ascending; None for all.
    """
    rep = find_own("X_ldvae", adata.obsm)
    latent = adata.obsm[rep]
    taken = ["neighbors"] if {"connectivities", "distances"} & set(adata.obsp) else []
    neighbors = own_name("neighbors", [*adata.uns, *taken])
    umap = "X_umap_ldvae" if "X_umap" in adata.obsm or "umap" in adata.uns else "X_umap"
    leiden = own_name("leiden", [*adata.obs, *adata.uns])
    n_obs, is_sample = adata.n_obs, adata.n_obs > config.max_cells
    rows = np.arange(n_obs)
    if is_sample:
        rows = np.sort(np.random.default_rng(config.seed).choice(n_obs, config.max_cells, replace=False))
        logger.info("UMAP and clusters are of %d of %d cells; the others are placed among them.", len(rows), n_obs)
    # Without the user's data: scanpy takes entries of uns for its own, whatever they are.
    cells = AnnData(obs=pd.DataFrame(index=adata.obs_names[rows]), obsm={rep: latent[rows]})
    embed(cells, config, neighbors=neighbors, umap=umap, leiden=leiden)
    if is_sample:
        positions, clusters = placed(latent, rows, cells.obsm[umap], cells.obs[leiden].cat.codes, config)
        adata.obsm[umap] = positions
        adata.obs[leiden] = pd.Categorical.from_codes(clusters, cells.obs[leiden].cat.categories)
    else:
        adata.obsp.update(cells.obsp)
        adata.uns.update(cells.uns)
        adata.obsm[umap], adata.obs[leiden] = cells.obsm[umap], cells.obs[leiden]
    return rows if is_sample else None


def placed(
    latent: np.ndarray, rows: np.ndarray, positions: np.ndarray, clusters: pd.Series, config: AnnotateConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Positions and clusters of all cells, from those of a sample; the cells of the sample keep their own.

    Parameters
    ----------
    latent
        Of all cells, shape (n_obs, n_latent).
    rows
        Cells of the sample.
    positions, clusters
        Of the sample: UMAP, and the number of the cluster.
    config
        Number of neighbors.
    """
    nearest_in_sample = search_among(latent[rows], min(config.n_neighbors, len(rows)), seed=config.seed)
    onto = np.empty((len(latent), positions.shape[1]), np.float32)
    into = np.empty(len(latent), np.int64)
    onto[rows], into[rows] = positions, clusters
    others = np.setdiff1d(np.arange(len(latent)), rows)
    n_clusters = int(clusters.max()) + 1
    for start in range(0, len(others), CELLS_PLACED):
        own = others[start : start + CELLS_PLACED]
        nearest, distance = nearest_in_sample(latent[own])
        weight = 1 / np.maximum(distance, 1e-12)
        weight /= weight.sum(axis=1, keepdims=True)
        onto[own] = (positions[nearest] * weight[:, :, None]).sum(axis=1)
        members = clusters.to_numpy()[nearest]
        share = np.zeros((len(own), n_clusters))
        np.add.at(share, (np.arange(len(own))[:, None], members), weight)
        into[own] = share.argmax(axis=1)
    return onto, into


def embed(adata: AnnData, config: AnnotateConfig, *, neighbors: str, umap: str, leiden: str) -> None:
    """Add neighbors in the one representation of all cells, UMAP and Leiden clusters, under these names."""
    import scanpy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        add_neighbors(
            adata,
            min(config.n_neighbors, adata.n_obs - 1),
            seed=config.seed,
            use_rep=next(iter(adata.obsm)),
            key_added=None if neighbors == "neighbors" else neighbors,
        )
        # The spectral start of UMAP needs more cells than it has dimensions.
        start = "spectral" if adata.n_obs > 10 else "random"
        scanpy.tl.umap(
            adata,
            min_dist=config.min_dist,
            init_pos=start,
            random_state=config.seed,
            neighbors_key=neighbors,
            key_added=None if umap == "X_umap" else umap,
        )
        scanpy.tl.leiden(
            adata,
            resolution=config.resolution,
            flavor="igraph",
            n_iterations=2,
            directed=False,
            random_state=config.seed,
            neighbors_key=neighbors,
            key_added=leiden,
        )
    logger.info("%d cells in %d clusters.", adata.n_obs, adata.obs[leiden].nunique())


# What the methods section says

REFERENCES = {
    "umap": "McInnes L, Healy J, Melville J. UMAP: uniform manifold approximation and projection for dimension "
    "reduction. arXiv:1802.03426 (2018).",
    "leiden": "Traag VA, Waltman L, van Eck NJ. From Louvain to Leiden: guaranteeing well-connected communities. "
    "Scientific Reports 9, 5233 (2019). doi:10.1038/s41598-019-41695-z",
}


def methods(settings: dict[str, Any], clustered: bool, n_obs: int) -> Iterator[Sentence]:
    """How cells are shown and grouped, from the options that annotated.h5ad keeps."""
    neighbors = f" (the {settings['n_neighbors']} nearest cells)" if "n_neighbors" in settings else ""
    text = f"Cells are shown by UMAP [@umap] of the latent space{neighbors}"
    tools = ["scanpy.tl.umap"]
    if clustered:
        resolution = f" at resolution {settings['resolution']:g}" if "resolution" in settings else ""
        text += f" and grouped by Leiden clustering [@leiden]{resolution}"
        tools.append("scanpy.tl.leiden")
    if n_obs > (most := settings.get("max_cells", n_obs)):
        text += (
            f"; both are of a random sample of {most:,} cells, and each other cell was placed at the weighted mean of "
            "its nearest cells in the sample"
            + (", in the cluster that most of them are in (the closer ones count more)" if clustered else "")
        )
    yield Sentence(text + ".", REFERENCES, tuple(tools))
