"""Every option of the model, the training and the workflow steps: the only place where a default is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


def option(default: Any, help: str, **limits: Any) -> Any:
    """A dataclass field with its default, its help text and, optionally, JSON-schema limits (`minimum=1`, …).

    Lists and dictionaries are copied for each instance.
    """
    metadata = {"help": help, "limits": limits}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


Likelihood = Literal["nb", "zinb", "poisson"]
Dispersion = Literal["gene", "gene-batch", "gene-label", "gene-cell"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture of the linearly decoded VAE; the defaults are those of scvi-tools' LinearSCVI."""

    n_latent: int = option(10, "Number of factors (size of the latent space).", minimum=1)
    n_hidden: int = option(128, "Units in each hidden layer of the encoders.", minimum=1)
    n_layers: int = option(1, "Hidden layers of the encoder of z.", minimum=1)
    dropout_rate: float = option(0.1, "Dropout in the encoders, a share from 0 to 1.", minimum=0, exclusiveMaximum=1)
    gene_likelihood: Likelihood = option("nb", "Distribution of the counts.")
    dispersion: Dispersion = option("gene", "What the inverse dispersion theta depends on.")
    use_observed_lib_size: bool = option(False, "Take each cell's total count as its library size, not infer it.")
    latent_distribution: Literal["normal", "ln"] = option(
        "normal", "Latent space: normal, or logistic normal (ln: scores of a cell sum to one)."
    )
    use_batch_norm: bool = option(True, "Batch normalisation in the decoder.")
    bias: bool = option(False, "An intercept per gene in the decoder (with batch norm it is redundant).")
    log_variational: bool = option(True, "The encoders see log(1 + counts), not counts.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained; the defaults are the workflow's (`LinearSCVI.train` has the reference's)."""

    max_epochs: int | None = option(
        None, "Passes over the training cells; none: 160, fewer above 20,000 cells.", minimum=1
    )
    batch_size: int = option(128, "Cells in a minibatch.", minimum=1)
    lr: float = option(1e-2, "Learning rate of Adam at the start.", exclusiveMinimum=0)
    eps: float = option(0.01, "Adam's epsilon.", exclusiveMinimum=0)
    weight_decay: float = option(1e-6, "L2 penalty on the weights, added to the gradient.", minimum=0)
    schedule: Literal["constant", "cosine", "plateau"] = option(
        "cosine", "Learning rate: constant, a cosine from lr to 0, or lowered when the validation ELBO stalls."
    )
    kl_warmup: float = option(
        0.25, "Share of the epochs over which the weight of KL(z) rises from 0 to 1.", minimum=0, maximum=1
    )
    early_stopping: bool = option(True, "Stop when the validation ELBO has not improved for `patience` epochs.")
    patience: int = option(45, "Epochs without improvement before an early stop.", minimum=1)
    min_delta: float = option(0.0, "Improvement of the validation ELBO that counts, in nats per cell.", minimum=0)


@dataclass(frozen=True, kw_only=True)
class QcConfig:
    """Which cells and genes are kept. Limits are inclusive: a cell at the limit stays."""

    species: Literal["human", "mouse"] = option(
        "human", "Whose gene names tell mitochondrial, ribosomal, haemoglobin genes."
    )
    mt_genes: list[str] | None = option(
        None, "Names of the mitochondrial genes; none: those starting with MT- (mouse: mt-)."
    )
    ribo_genes: list[str] | None = option(None, "Names of the ribosomal genes; none: those starting with RPS or RPL.")
    hb_genes: list[str] | None = option(None, "Names of the haemoglobin genes; none: HBA, HBB, … of the species.")
    min_counts: int = option(1, "Fewest counts of a cell; cells without counts cannot be modelled.", minimum=1)
    max_counts: int | None = option(None, "Most counts of a cell; none: no limit.", minimum=1)
    min_genes: int = option(0, "Fewest genes seen in a cell.", minimum=0)
    max_genes: int | None = option(None, "Most genes seen in a cell; none: no limit.", minimum=1)
    max_pct_mt: float | None = option(
        None, "Largest mitochondrial share of a cell's counts, percent; none: no limit.", minimum=0, maximum=100
    )
    max_pct_ribo: float | None = option(
        None, "Largest ribosomal share of a cell's counts, percent; none: no limit.", minimum=0, maximum=100
    )
    max_pct_hb: float | None = option(
        None, "Largest haemoglobin share of a cell's counts, percent; none: no limit.", minimum=0, maximum=100
    )
    n_mads: float | None = option(
        5.0,
        "Outliers: cells further than this many median absolute deviations from the median of their batch, in log "
        "counts and log genes (both sides) and mitochondrial share (above); none: no such limit.",
        exclusiveMinimum=0,
    )
    doublets: Literal["off", "annotate", "filter"] = option(
        "annotate", "Doublets by scrublet, per batch: not sought, marked or removed."
    )
    expected_doublet_rate: float = option(
        0.05, "Share of doublets that scrublet expects.", exclusiveMinimum=0, exclusiveMaximum=1
    )
    min_cells: int = option(3, "Fewest kept cells in which a gene must be seen to stay.", minimum=0)
    seed: int = option(0, "Seed of the simulated doublets.", minimum=0)


@dataclass(frozen=True, kw_only=True)
class SetupConfig:
    """The genes that are modelled, the obs columns the model knows, and the split of the cells."""

    genes: Literal["seurat_v3", "all", "list"] = option(
        "seurat_v3", "Genes to model: the most variable (on counts, within batches), all, or those of a file."
    )
    n_top_genes: int = option(2000, "Number of variable genes.", minimum=1)
    keep_genes: list[str] = option([], "Genes that are modelled in any case.")
    batch_key: str | None = option(None, "Obs column of the experimental batch; none: one batch.")
    labels_key: str | None = option(None, "Obs column of cell labels; none: no labels.")
    categorical_covariate_keys: list[str] = option([], "Obs columns of further categories the decoder corrects for.")
    continuous_covariate_keys: list[str] = option([], "Obs columns of numbers the decoder corrects for.")
    size_factor_key: str | None = option(None, "Obs column that replaces the inferred library size; none: inferred.")
    stratify_by: str | None = option(
        None, "Obs column whose groups the split keeps in proportion; none: labels, else batch."
    )
    validation_size: float = option(
        0.1, "Share of the cells for early stopping and choice of runs.", minimum=0, exclusiveMaximum=1
    )
    test_size: float = option(0.1, "Share of the cells that training never sees.", minimum=0, exclusiveMaximum=1)
    seed: int = option(0, "Seed of the split.", minimum=0)


@dataclass(frozen=True, kw_only=True)
class AnnotateConfig:
    """Neighbours, UMAP and clusters in the latent space, and what the annotated file holds."""

    n_neighbors: int = option(15, "Neighbours of a cell in the latent space.", minimum=2)
    min_dist: float = option(0.5, "UMAP: smallest distance between points.", minimum=0)
    resolution: float = option(1.0, "Leiden: resolution; higher means more clusters.", exclusiveMinimum=0)
    normalized_layer: bool = option(
        False, "Add the expression the model expects (px_scale) as layer ldvae_normalized; dense."
    )
    seed: int = option(0, "Seed of UMAP and Leiden.", minimum=0)


@dataclass(frozen=True, kw_only=True)
class DeConfig:
    """Differential expression: what is compared, and what counts as a change."""

    contrasts: list[dict[str, str]] = option(
        [],
        "Comparisons, each a mapping. {column: c}: each group of c against the rest; {column: c, group1: a, group2: b}: a"
        " against b (no group2: the rest); {…, within: d}: the same inside each group of d.",
    )
    replicate_key: str | None = option(
        None, "Obs column of the biological replicate, for the pseudobulk check; none: no check."
    )
    delta: float = option(0.25, "Smallest log2 fold change that counts as a change.", exclusiveMinimum=0)
    fdr: float = option(
        0.05,
        "Expected share of false discoveries among the genes called changed.",
        exclusiveMinimum=0,
        exclusiveMaximum=1,
    )
    min_cells: int = option(10, "Fewest cells on each side; smaller groups are skipped with a warning.", minimum=1)
    batch_correction: bool = option(False, "Compare expression averaged over the batches of both sides.")
    n_samples: int = option(5000, "Posterior samples for each side.", minimum=100)
    seed: int = option(0, "Seed of the samples.", minimum=0)
