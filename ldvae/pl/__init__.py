"""Figures of models, programs and results, drawn by matplotlib: plain tables or AnnData in, axes out.

Every function takes `ax` (draw there), `show` and `save`, as scanpy's do, and returns the axes.
"""

from ldvae.pl.cells import cells, dotplot, groups, scores
from ldvae.pl.choice import rank, selection
from ldvae.pl.de import agreement, volcano
from ldvae.pl.donors import donors
from ldvae.pl.heatmap import heatmap, programs_heatmap, stability
from ldvae.pl.loadings import loadings
from ldvae.pl.ppc import ppc
from ldvae.pl.quality import qc_scatter, qc_violins
from ldvae.pl.style import palette
from ldvae.pl.training import kl, training

__all__ = [
    "agreement",
    "cells",
    "donors",
    "dotplot",
    "groups",
    "heatmap",
    "kl",
    "loadings",
    "palette",
    "ppc",
    "programs_heatmap",
    "qc_scatter",
    "qc_violins",
    "rank",
    "scores",
    "selection",
    "stability",
    "training",
    "volcano",
]
