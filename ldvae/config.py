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

    max_epochs: int | None = option(None, "Passes over the training cells; none: 160, fewer above 20,000 cells.", minimum=1)
    batch_size: int = option(128, "Cells in a minibatch.", minimum=1)
    lr: float = option(1e-2, "Learning rate of Adam at the start.", exclusiveMinimum=0)
    eps: float = option(0.01, "Adam's epsilon.", exclusiveMinimum=0)
    weight_decay: float = option(1e-6, "L2 penalty on the weights, added to the gradient.", minimum=0)
    schedule: Literal["constant", "cosine", "plateau"] = option(
        "cosine", "Learning rate: constant, a cosine from lr to 0, or lowered when the validation ELBO stalls."
    )
    kl_warmup: float = option(0.25, "Share of the epochs over which the weight of KL(z) rises from 0 to 1.", minimum=0, maximum=1)
    early_stopping: bool = option(True, "Stop when the validation ELBO has not improved for `patience` epochs.")
    patience: int = option(45, "Epochs without improvement before an early stop.", minimum=1)
    min_delta: float = option(0.0, "Improvement of the validation ELBO that counts, in nats per cell.", minimum=0)
