"""Counts with known gene programs, as a file to try the workflow on."""

from __future__ import annotations

import logging
from pathlib import Path

from ldvae import simulate as simulation
from ldvae.config import SimulateConfig
from ldvae.io import atomic

logger = logging.getLogger(__name__)


def simulate(*, output: Path, config: SimulateConfig = SimulateConfig()) -> None:
    """Draw counts from known gene programs.

    Parameters
    ----------
    output
        AnnData (h5ad): counts in X; in obs batch and identity; the true scores in obsm["X_programs"], the true loadings
        in varm["program_loadings"], and the settings in uns["simulation"].
    """
    adata = simulation.simulate(**dict(config)).to_anndata()
    adata.uns["simulation"] = config.model_dump()
    with atomic(output) as temporary:
        adata.write_h5ad(temporary, compression="gzip")
    logger.info("%s: %d cells, %d genes, %s", output, adata.n_obs, adata.n_vars, config.scenario)
