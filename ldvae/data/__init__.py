"""AnnData in, validated counts out.

`setup` notes in an AnnData which `fields` a model reads, as a `registry`. `present` reads them as `counts`, and reads
them again when the AnnData has changed. `splits` says which cells are trained on, and `genes` brings other data to the
genes of a model.
"""

from ldvae.data.counts import (
    BackedCounts,
    Counts,
    Covariates,
    DataShape,
    as_csr,
    cell_totals,
    gene_totals,
    library_prior,
    totals_vary,
)
from ldvae.data.fields import (
    MINIFIED_CELL_KEY,
    MINIFIED_KEY,
    MINIFIED_TYPES,
    Field,
    layer_names,
    minified_type,
    read_covariates,
    restore_categories,
    with_text_categories,
)
from ldvae.data.genes import check_genes, matched_to
from ldvae.data.present import ModelData, name_hashes, read_counts, same_index
from ldvae.data.registry import AttrDict, Registry, check_size, setup_lines
from ldvae.data.setup import AnnDataManager, make_registry, register, registered
from ldvae.data.splits import Split, TrainedOn, external_split, split_cells

__all__ = [
    "MINIFIED_CELL_KEY",
    "MINIFIED_KEY",
    "MINIFIED_TYPES",
    "AnnDataManager",
    "AttrDict",
    "BackedCounts",
    "Counts",
    "Covariates",
    "DataShape",
    "Field",
    "ModelData",
    "Registry",
    "Split",
    "TrainedOn",
    "as_csr",
    "cell_totals",
    "check_genes",
    "check_size",
    "external_split",
    "gene_totals",
    "layer_names",
    "library_prior",
    "make_registry",
    "matched_to",
    "minified_type",
    "name_hashes",
    "read_counts",
    "read_covariates",
    "register",
    "registered",
    "restore_categories",
    "same_index",
    "setup_lines",
    "split_cells",
    "totals_vary",
    "with_text_categories",
]
