"""Gene programs: what the fits of one model share, rotated to simple structure, with uncertainty and meaning."""

from .across import MetaPrograms, compare_across, loadings_of, meta_frame, meta_programs
from .associations import associations, strength
from .consensus import (
    Contribution,
    ReproducibleRank,
    consensus,
    gauge,
    information,
    outliers,
    reproducible_rank,
)
from .donors import compare_conditions, donor_means, doubtful_replicates, known_donors
from .effects import effects_on_all_genes
from .enrichment import enrichment, ranked_enrichment
from .find import Programs, find_programs, gene_sets, split_sides, top_genes
from .labels import describe
from .projection import Frame, Projection, calibrate, frame, project
from .reference import Reference, read_reference, write_reference
from .rotation import Alignment, Rotation, align_scores, clean_loadings, drop_baseline, orient, parts, rotate
from .stability import Stability, stability
from .technical import technical_flags

__all__ = [
    "Alignment",
    "Contribution",
    "Frame",
    "MetaPrograms",
    "Programs",
    "Projection",
    "Reference",
    "ReproducibleRank",
    "Rotation",
    "Stability",
    "align_scores",
    "associations",
    "calibrate",
    "clean_loadings",
    "compare_across",
    "compare_conditions",
    "consensus",
    "describe",
    "donor_means",
    "doubtful_replicates",
    "drop_baseline",
    "effects_on_all_genes",
    "enrichment",
    "find_programs",
    "frame",
    "gauge",
    "gene_sets",
    "information",
    "known_donors",
    "loadings_of",
    "meta_frame",
    "meta_programs",
    "orient",
    "outliers",
    "parts",
    "project",
    "ranked_enrichment",
    "read_reference",
    "reproducible_rank",
    "rotate",
    "split_sides",
    "stability",
    "strength",
    "technical_flags",
    "top_genes",
    "write_reference",
]
