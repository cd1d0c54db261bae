"""Figures of models, programs and results, drawn by matplotlib: plain tables or AnnData in, axes out.

Every function takes `ax` (draw there), `show` and `save`, as scanpy's do, and returns the axes.
"""

from ldvae.pl.across import effects, meta_programs, network, similarity
from ldvae.pl.choice import rank, selection
from ldvae.pl.de import agreement, volcano
from ldvae.pl.genes import loadings
from ldvae.pl.history import kl, training
from ldvae.pl.maps import cells, dotplot, groups, scores
from ldvae.pl.matrix import heatmap, programs_heatmap, stability
from ldvae.pl.predictive import ppc
from ldvae.pl.quality import qc_scatter, qc_violins
from ldvae.pl.replicates import donors
from ldvae.pl.style import palette

__all__ = [
    "agreement",
    "cells",
    "donors",
    "dotplot",
    "effects",
    "groups",
    "heatmap",
    "kl",
    "loadings",
    "meta_programs",
    "network",
    "palette",
    "ppc",
    "programs_heatmap",
    "qc_scatter",
    "qc_violins",
    "rank",
    "scores",
    "selection",
    "similarity",
    "stability",
    "training",
    "volcano",
]
