"""Every option of the model, the training and the workflow's steps: the only place where a default is written."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, TypeAlias, get_args, get_origin, get_type_hints

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from ldvae.errors import InputError, suggestion
from ldvae.likelihoods import LIKELIHOODS
from ldvae.names import column_name


def as_column(value: Any) -> Any:
    """The name of an obs column, as the reader of the data calls it; a file may spell it with a slash."""
    return column_name(value) if isinstance(value, str) else value


Column = Annotated[str, BeforeValidator(as_column)]  # the name of an obs column
ObsColumn = Annotated[Column, "obs"]  # the same as the value of an option
File = Annotated[str, "file"]  # the path of a file
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # what NumPy accepts
if TYPE_CHECKING:
    Likelihood: TypeAlias = str
else:
    Likelihood = Literal[tuple(LIKELIHOODS)]  # the names of those there are, for the schema and the command line
Dispersion = Literal["gene", "gene-batch", "gene-label", "gene-cell"]
STRICT = ConfigDict(
    frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True, protected_namespaces=()
)


class Options(BaseModel):
    """Options of one step, checked when they are made.

    Raises
    ------
    InputError
        With an argument for each mistake, which starts with the name of the option.
    """

    model_config = STRICT

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise InputError(*mistakes(error, type(self))) from None

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        return as_meant(value, cls.model_fields[info.field_name or ""].annotation)

    def changed(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        defaults = type(self)()
        return {name: value for name, value in self if value != getattr(defaults, name)}


def as_meant(value: Any, kind: Any) -> Any:
    """`value` as it was meant for an option of type `kind`, whose type and limits are checked afterwards.

    YAML 1.1 and command lines give numbers such as `1e-3` as text, a bare `off` as false and `none` as text.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if type(None) in parts:
        if value is None or (isinstance(value, str) and value.strip().lower() in ("none", "null", "~")):
            return None
        return as_meant(value, next(part for part in parts if part is not type(None)))
    if origin is Annotated:
        return as_meant(value, parts[0])
    if origin in (list, dict) and value is None:  # a key with nothing behind it
        return origin()
    if (
        origin is list and isinstance(value, list) and len(value) == 1 and isinstance(value[0], list)
    ):  # typed as one JSON text
        value = value[0]
    if origin is list and isinstance(value, list | tuple):
        return [as_meant(item, parts[0]) for item in value]
    if origin is Literal and isinstance(value, bool):
        return "on" if value else "off"
    if kind in (int, float):
        return _as_number(value, kind)
    if kind is bool and not isinstance(value, bool):
        words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
        if str(value).lower() not in words:
            raise PydanticCustomError("bool_type", "expected true or false")
        return words[str(value).lower()]
    return value


def _as_number(value: Any, kind: type) -> Any:
    if isinstance(value, bool):  # which Python counts as 0 or 1
        raise PydanticCustomError("int_type" if kind is int else "float_type", "expected a number")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return value
    if isinstance(value, int):
        return value
    return int(number) if kind is int and number.is_integer() else number


def as_group(value: Any) -> Any:
    """The name of a group from what YAML makes of it without quotes: a number, true, a date."""
    return str(value) if isinstance(value, bool | int | float | datetime.date) else value


Group = Annotated[str, BeforeValidator(as_group), WithJsonSchema({"type": ["string", "number", "boolean"]})]


def mistakes(error: ValidationError, cls: type[BaseModel]) -> Iterator[str]:
    """What pydantic found, each mistake in our words after the name of its option."""
    for found in error.errors(include_url=False):
        place, kind, limits = _place(found["loc"]), found["type"], found.get("ctx", {})
        if kind == "extra_forbidden":
            known = Contrast.__annotations__ if len(found["loc"]) > 1 else cls.model_fields
            yield f"{place}: {unknown(found['loc'][-1], known)}"
        elif kind == "missing":
            yield f"{_place(found['loc'][:-1])}: {found['input']} names no {found['loc'][-1]}."
        elif kind == "value_error" and isinstance(limits["error"], InputError):
            yield from (line if line.startswith(place) else f"{place}.{line}" for line in limits["error"].args)
        else:
            hint = _how(place, kind, found["input"])
            yield f"{place}: expected {_expected(kind, limits)}, found {found['input']!r}.{hint}"


def _how(place: str, kind: str, found: Any) -> str:
    """How to write what was probably meant by a value of another type."""
    if kind == "string_type" and isinstance(found, bool | datetime.date | None):
        return " YAML does not read yes, no, on, off, null and dates as text; put it in quotes, as in 'NO'."
    if kind == "list_type" and isinstance(found, str | int | float) and place != "contrasts":
        return f" Write [{found}]."
    return ""


def _place(location: Iterable[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def _expected(kind: str, limits: dict[str, Any]) -> str:
    for words, bound in (("at least", "ge"), ("at most", "le"), ("more than", "gt"), ("less than", "lt")):
        if bound in limits:
            return f"{words} {limits[bound]:g}"
    if kind == "too_short":
        return f"at least {limits['min_length']} value{'s' * (limits['min_length'] > 1)}"
    if kind == "literal_error":
        return "one of " + ", ".join(re.findall(r"'([^']*)'", limits["expected"]))
    kinds = {"int": "a whole number", "float": "a number", "finite": "a number", "bool": "true or false"}
    kinds |= {"string": "text", "list": "a list", "dict": "keys and values"}
    return kinds.get(kind.split("_")[0], kind)


def unknown(key: Any, known: Iterable[str]) -> str:
    """That there is no such key, and which one is probably meant or where it belongs."""
    sections: dict[str, type[Options]] = {**SECTIONS, "across": AcrossSection}
    homes = [name for name, cls in sections.items() if key in cls.model_fields]
    if homes:
        return f"there is no such key here. It belongs to {' or to '.join(homes)}."
    return f"there is no such key.{suggestion(str(key), known)}"


class ModelConfig(Options):
    """Architecture of the linearly decoded VAE; the defaults are those of scvi-tools' LinearSCVI.

    Not a section of the workflow's config: `ModelSection` is, and becomes one of these.
    """

    n_latent: int = Field(10, ge=1, description="Number of factors (dimensions of the latent space).")
    n_hidden: int = Field(128, ge=1, description="Units in each hidden layer of the encoders.")
    n_layers: int = Field(1, ge=1, description="Hidden layers of the encoder of z.")
    dropout_rate: float = Field(0.1, ge=0, lt=1, description="Dropout rate of the encoders, from 0 to below 1.")
    gene_likelihood: Likelihood = Field(
        "nb",
        description="Distribution of the counts: "
        + ", ".join(f"{likelihood.title} ({name})" for name, likelihood in LIKELIHOODS.items())
        + ".",
    )
    dispersion: Dispersion = Field(
        "gene",
        description="What the inverse dispersion theta depends on: the gene alone, or also the batch, the label or the "
        "cell.",
    )
    use_observed_lib_size: bool = Field(
        False, description="Use the total counts of each cell as its library size instead of inferring it."
    )
    latent_distribution: Literal["normal", "ln"] = Field(
        "normal", description="Distribution of z: normal, or logistic normal (ln: the scores of a cell sum to one)."
    )
    use_batch_norm: bool = Field(True, description="Use batch normalization in the decoder.")
    bias: bool = Field(
        False, description="Include an intercept for each gene in the decoder; redundant with batch normalization."
    )
    log_variational: bool = Field(True, description="Give the encoders log(1 + counts) instead of counts.")


class ModelSection(ModelConfig):
    """Architecture of the linearly decoded VAE; the defaults are those of scvi-tools' LinearSCVI, except n_latent."""

    n_latent: int = Field(
        14,
        ge=1,
        description="Number of factors (dimensions of the latent space). The default is not the 10 of scvi-tools' "
        "LinearSCVI: 14 can hold more programs.",
    )

    def architecture(self) -> ModelConfig:
        """The same options, of which those that are not LinearSCVI's defaults are in the ids and flags of runs."""
        return ModelConfig(**dict(self))


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Everything that `train.fit` can do; the defaults are those of `scvi.model.LinearSCVI.train`.

    Not a section of the workflow's config: `TrainConfig` is, and becomes one of these.
    """

    max_epochs: int = 400
    batch_size: int = 128
    drop_last: bool = False
    optimizer: Literal["Adam", "AdamW"] = "Adam"
    lr: float = 1e-3
    beta2: float = 0.999
    eps: float = 0.01
    weight_decay: float = 1e-6
    schedule: Literal["constant", "cosine", "plateau"] = "constant"
    lr_factor: float = 0.6
    lr_patience: int = 30
    lr_threshold: float = 0.0
    lr_min: float = 0.0
    lr_scheduler_metric: str = "elbo_validation"
    n_epochs_kl_warmup: int | None = 400
    n_steps_kl_warmup: int | None = None
    min_kl_weight: float = 0.0
    max_kl_weight: float = 1.0
    check_val_every_n_epoch: int = 1
    early_stopping: bool = False
    early_stopping_monitor: str = "elbo_validation"
    early_stopping_patience: int = 45
    early_stopping_min_delta: float = 0.0
    early_stopping_warmup_epochs: int = 0
    gradient_clip_val: float | None = None
    start_at_mean: bool = False


def default_max_epochs(n_obs: int, epochs_cap: int = 400) -> int:
    """Epochs that scvi-tools trains `n_obs` cells for: `epochs_cap`, in proportion fewer above 20,000 cells."""
    return max(1, min(round(20_000 / n_obs * epochs_cap), epochs_cap))


class TrainConfig(Options):
    """Training; the defaults are the workflow's (`LinearSCVI.train` has those of scvi-tools)."""

    max_epochs: int | None = Field(
        None,
        ge=1,
        description="Maximum number of epochs; null: 160, more below 1,600 cells, fewer above 20,000.",
    )
    batch_size: int = Field(128, ge=1, description="Cells in a minibatch.")
    lr: float = Field(1e-2, gt=0, description="Initial learning rate of Adam.")
    beta2: float = Field(
        0.99,
        ge=0,
        lt=1,
        description="Decay rate of Adam's mean of squared gradients. At torch's 0.999 the large gradients of the first "
        "epochs slow the abundant genes until the end of the training, and they stay below their mean.",
    )
    eps: float = Field(0.01, gt=0, description="Epsilon of Adam.")
    weight_decay: float = Field(1e-6, ge=0, description="L2 penalty on the weights, added to the gradient.")
    schedule: Literal["constant", "cosine", "plateau"] = Field(
        "cosine",
        description="Learning rate over time: constant, a cosine from lr to 0, or reduced when the validation ELBO "
        "reaches a plateau.",
    )
    kl_warmup: float = Field(
        0.25, ge=0, le=1, description="Fraction of the epochs over which the weight of KL(z) rises from 0 to 1."
    )
    start_at_mean: bool = Field(
        False,
        description="Initialize the decoder's intercepts at the mean expression profile; otherwise all genes start "
        "with the "
        "same expression.",
    )
    early_stopping: bool = Field(
        True, description="Stop when the validation ELBO has not improved for `patience` epochs."
    )
    patience: int = Field(45, ge=1, description="Epochs without improvement before training stops early.")
    min_delta: float = Field(
        0.0, ge=0, description="Smallest change of the validation ELBO that counts as an improvement, nats per cell."
    )

    def fit_config(self, n_obs: int) -> FitConfig:
        """What to do for `n_obs` cells: the number of epochs settled, the KL warm-up in epochs."""
        # Few cells make few steps in an epoch: the running moments of the batch norms (momentum 0.01) need some 2,000.
        least = min(400, math.ceil(2000 / math.ceil(n_obs / self.batch_size)))
        max_epochs = self.max_epochs or max(default_max_epochs(n_obs, epochs_cap=160), least)
        warmup = round(self.kl_warmup * max_epochs)
        return FitConfig(
            max_epochs=max_epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            beta2=self.beta2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            n_epochs_kl_warmup=warmup or None,
            start_at_mean=self.start_at_mean,
            early_stopping=self.early_stopping,
            early_stopping_patience=self.patience,
            early_stopping_min_delta=self.min_delta,
            early_stopping_warmup_epochs=warmup,
        )


class QcConfig(Options):
    """How the counts are read, and which cells and genes are kept; a cell exactly at a limit is kept."""

    layer: str | None = Field(
        None, description="Where the input keeps its raw counts: the name of a layer, or raw for adata.raw; null: X."
    )
    genome: str | None = Field(
        None, description="Genome to read from a 10x file that holds several; null: the only one."
    )
    transpose: bool | None = Field(
        None,
        description="Whether the input has genes in rows; null: decided by names, annotation and sums, with an error "
        "when in doubt.",
    )
    feature_types: list[str] | None = Field(
        None,
        description="Feature types to model if the input has several, such as Antibody Capture; null: Gene Expression.",
    )
    gene_names: str | None = Field(
        None,
        description="Var column that names the genes, or index for the names of the input; null: the names of the "
        "input, or the symbols beside them if these are identifiers such as ENSG00000187608.",
    )
    obs_table: File | None = Field(
        None,
        description="Path of a csv or tsv with cell annotations, cell names in the first column; its columns are added "
        "to obs.",
    )
    subset_key: ObsColumn | None = Field(
        None, description="Obs column that selects the cells to read, together with subset; null: all cells are read."
    )
    subset: list[Group] = Field([], description="Levels of subset_key; their cells are read.")
    species: Literal["human", "mouse"] = Field(
        "human", description="Species; sets the prefixes of mitochondrial, ribosomal and hemoglobin genes."
    )
    mt_genes: list[str] | None = Field(
        None, description="Names of the mitochondrial genes; null: those that start with MT- (mouse: mt-)."
    )
    ribo_genes: list[str] | None = Field(
        None, description="Names of the ribosomal genes; null: those that start with RPS or RPL."
    )
    hb_genes: list[str] | None = Field(
        None, description="Names of the hemoglobin genes; null: HBA, HBB, … of the species."
    )
    min_counts: int = Field(1, ge=1, description="Minimum counts per cell; cells without counts cannot be modeled.")
    max_counts: int | None = Field(None, ge=1, description="Maximum counts per cell; null disables the limit.")
    min_genes: int = Field(0, ge=0, description="Minimum number of genes expressed in a cell.")
    max_genes: int | None = Field(
        None, ge=1, description="Maximum number of genes expressed in a cell; null disables the limit."
    )
    max_pct_mt: float | None = Field(
        None, ge=0, le=100, description="Maximum percentage of mitochondrial counts in a cell; null disables the limit."
    )
    max_pct_ribo: float | None = Field(
        None, ge=0, le=100, description="Maximum percentage of ribosomal counts in a cell; null disables the limit."
    )
    max_pct_hb: float | None = Field(
        None, ge=0, le=100, description="Maximum percentage of hemoglobin counts in a cell; null disables the limit."
    )
    n_mads: float | None = Field(
        8.0,
        gt=0,
        description="Remove outliers: cells more than this many median absolute deviations from the median of their "
        "batch, in log counts and log genes (both sides) and in mitochondrial percentage (above); null disables the "
        "limit.",
    )
    doublets: Literal["off", "annotate", "filter"] = Field(
        "annotate", description="Doublets predicted by Scrublet in each batch: off, annotate them, or filter them out."
    )
    expected_doublet_rate: float = Field(0.05, gt=0, lt=1, description="Fraction of doublets that Scrublet expects.")
    min_cells: int = Field(3, ge=0, description="Minimum number of kept cells that express a gene.")
    seed: Seed = Field(0, description="Seed of Scrublet's simulated doublets.")


SMALLEST_BATCH = 20  # cells; the ranks of variable genes in fewer are noise


class SetupConfig(Options):
    """The genes to model, the obs columns that the model uses, and the split of the cells."""

    genes: Literal["seurat_v3", "all", "list"] = Field(
        "seurat_v3",
        description="Genes to model: the most variable ones (seurat_v3, on counts, within batches), all, or a list.",
    )
    n_top_genes: int = Field(2000, ge=1, description="Number of highly variable genes.")
    gene_list: File | None = Field(
        None, description="With `genes: list`, the path of a file with one gene name per line."
    )
    keep_genes: list[str] = Field([], description="Genes to model in any case.")
    batch_key: ObsColumn | None = Field(
        None,
        description="Obs column of the experimental batch; null: the file if there are several, otherwise one batch.",
    )
    labels_key: ObsColumn | None = Field(None, description="Obs column of cell labels; null: no labels.")
    categorical_covariate_keys: list[ObsColumn] = Field(
        [], description="Obs columns of further categories that the decoder corrects for."
    )
    continuous_covariate_keys: list[ObsColumn] = Field(
        [], description="Obs columns of numbers that the decoder corrects for."
    )
    size_factor_key: ObsColumn | None = Field(
        None, description="Obs column of size factors that replace the inferred library size; null: it is inferred."
    )
    stratify_by: ObsColumn | None = Field(
        None,
        description="Obs column by which the split is stratified; null: the labels, or without labels the batch.",
    )
    validation_size: float = Field(
        0.1, ge=0, lt=1, description="Fraction of the cells for early stopping and for the comparison of runs."
    )
    test_size: float = Field(0.1, ge=0, lt=1, description="Fraction of the cells that training never uses.")
    seed: Seed = Field(0, description="Seed of the split.")


def _setting(values: dict[str, Any]) -> dict[str, Any]:
    """Model and training options of one setting of a sweep, as their types; InputError for what they cannot be."""
    read: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in values.items():
        cls = next((cls for cls in (ModelConfig, TrainConfig) if key in cls.model_fields), None)
        if cls is None:
            problems.append(f"{key}: {unknown(key, [*ModelConfig.model_fields, *TrainConfig.model_fields])}")
            continue
        try:
            read[key] = getattr(cls(**{key: value}), key)
        except InputError as error:
            problems += error.args
    if problems:
        raise InputError(*problems)
    return read


class SweepConfig(Options):
    """Runs of a dataset: all combinations of the grid and every point, each from every seed."""

    seeds: list[Seed] = Field(
        [0, 1, 2, 3, 4], min_length=1, description="Random seeds; each setting is trained once from each seed."
    )
    grid: dict[str, list[Any]] = Field(
        {}, description="Model or training options, each with a list of values: all combinations are trained."
    )
    points: list[dict[str, Any]] = Field(
        [],
        description="Further settings, each a mapping of model or training options to values, added to those of the "
        "grid (without a grid, to the setting of the sections model and train).",
    )

    @field_validator("grid")
    @classmethod
    def _grid(cls, grid: dict[str, list[Any]]) -> dict[str, list[Any]]:
        problems: list[str] = []
        read: dict[str, list[Any]] = {}
        for key, values in grid.items():
            if not values:  # would make no setting at all
                problems.append(f"{key}: expected at least 1 value, found [].")
            for value in values:
                try:
                    read.setdefault(key, []).append(_setting({key: value})[key])
                except InputError as error:
                    problems += error.args
        if problems:
            raise InputError(*problems)
        return read

    @field_validator("points")
    @classmethod
    def _points(cls, points: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [_setting(point) for point in points]


class SelectConfig(Options):
    """Choice of one setting of the sweep, and which of its runs are left out."""

    rule: Literal["elbo-rank-factors", "elbo", "marginal_ll", "rank"] = Field(
        "elbo-rank-factors",
        description="How the setting is chosen. elbo-rank-factors: held-out ELBO within one standard error or "
        "0.5 % of the best, then the largest reproducible rank, then the fewest factors. elbo, marginal_ll: the best "
        "on held-out cells. rank: the largest reproducible rank, then the fewest factors.",
    )
    setting: str | None = Field(
        None, description="Id of the setting to choose, such as k10-3fa9c1; null: chosen by the rule."
    )
    threshold: float = Field(
        0.9,
        gt=0,
        lt=1,
        description="Directions are kept while the correlation between halves of the runs, converted to four runs in "
        "each "
        "half, is above this; a program is found in a run if its cosine with the run's version is above it.",
    )
    n_splits: int = Field(20, ge=1, description="Number of random splits of the runs into halves.")
    outlier_mads: float = Field(
        5.0,
        gt=0,
        description="A run is an outlier, which has probably lost a program, if its ELBO on training and validation "
        "cells is worse than the median by more than this many scaled median absolute deviations and by more than the "
        "standard error of the ELBO.",
    )
    seed: Seed = Field(0, description="Seed of the random splits.")


class RotationConfig(Options):
    """Options of the rotation, on which the programs depend besides the fits."""

    rank: int | None = Field(None, ge=1, description="Number of directions to keep; null: all that are reproducible.")
    rotation: Literal["clean", "joint", "parts"] = Field(
        "clean",
        description="joint: a rotation to sparse scores and loadings; clean: joint, then small parts of the other "
        "programs are "
        "subtracted from the loadings of each program, so that a small program does not show genes of a dominant one; "
        "parts: joint, then mostly positive scores as in NMF, which follow cell types and may split a program that all "
        "types have.",
    )
    intercept: bool = Field(
        True,
        description="Include an intercept in the rotation, so that scores start at zero; adds one program.",
    )
    baseline: Literal["auto", "mean"] = Field(
        "auto",
        description="Reference of the effects. auto: cells without any program if the data contain such cells, "
        "otherwise the mean cell; mean: the mean cell.",
    )
    balance: float = Field(
        1.0,
        ge=0,
        description="Weight of sparse loadings relative to sparse scores in the rotation; 0: sparse scores only.",
    )
    power: float = Field(
        2.0, ge=1, description="Promax power: 1 keeps programs uncorrelated, 2 allows mild correlation."
    )
    n_starts: int = Field(20, ge=1, description="Number of random starts of the rotation; the best result is kept.")
    seed: Seed = Field(0, description="Seed of the random starts.")


class ProgramsConfig(RotationConfig):
    """Rotation, naming, tests and export of the programs."""

    n_top: int = Field(30, ge=1, description="Number of genes listed on each side of a program.")
    variables: list[ObsColumn] | None = Field(
        None,
        description="Obs columns tested for association; null: all categories with 2 to 50 levels and all numbers.",
    )
    technical: list[str] = Field(
        [
            "total_counts",
            "n_genes_by_counts",
            "pct_counts_mt",
            "pct_counts_ribo",
            "pct_counts_hb",
            "doublet_score",
            "predicted_doublet",
            "split",
        ],
        description="Obs columns that describe the experiment, not the biology; missing columns are ignored. "
        "The batch key (without one, a column called batch) is always included.",
    )
    technical_r: float = Field(
        0.5,
        gt=0,
        le=1,
        description="A program is flagged as technical if a technical column explains more than technical_r² of the "
        "variance of its scores beyond the biological columns; half of technical_r for a program with less than 2 % of "
        "the contribution.",
    )
    replicate_key: ObsColumn | None = Field(
        None,
        description="Obs column of the biological replicate (donor, sample), with which programs are compared between "
        "conditions; null: no such comparison.",
    )
    condition_key: ObsColumn | None = Field(
        None, description="Obs column of the condition that the replicates are compared by; null: no such comparison."
    )
    gene_sets: list[File] = Field([], description="GMT files of gene sets to test the programs for enrichment.")


class ProjectConfig(Options):
    """Scores of other cells for the programs of one dataset."""

    layer: str | None = Field(
        None, description="Where the input keeps its raw counts: the name of a layer, or raw for adata.raw; null: X."
    )
    genome: str | None = Field(
        None, description="Genome to read from a 10x file that holds several; null: the only one."
    )
    transpose: bool | None = Field(None, description="Whether the input has genes in rows; null: decided as in qc.")
    feature_types: list[str] | None = Field(
        None, description="Feature types to read if the input has several; null: Gene Expression."
    )
    gene_column: str | None = Field(
        None,
        description="Var column with gene names like those of the programs, or index for the names of the input; null: "
        "decided as in qc.",
    )
    batch_key: str | None = Field(
        None, description="Obs column of the experimental batch; null: the file if there are several."
    )
    adjust: bool = Field(
        True, description="Adjust the level of each gene in each batch, as far as no mixture of programs explains it."
    )


class AcrossConfig(Options):
    """Comparison of the programs of several datasets."""

    min_similarity: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Minimum cosine between a program of a dataset and a meta-program that it belongs to, and minimum "
        "mean cosine between two groups of programs that are merged.",
    )
    min_presence: float = Field(
        0.6,
        gt=0,
        le=1,
        description="Minimum cosine between a meta-program and the span of the fits of a dataset that has it.",
    )
    n_top: int = Field(30, ge=1, description="Number of genes listed on each side of a meta-program.")
    condition_key: ObsColumn | None = Field(
        None, description="Obs column of the condition by which meta-programs are compared; null: no such comparison."
    )
    replicate_key: ObsColumn | None = Field(
        None, description="Obs column of the biological replicate (donor, sample); null: each dataset is one."
    )
    cell_type_key: ObsColumn | None = Field(
        None, description="Obs column of the cell type within which conditions are compared; null: in all cells."
    )


class AcrossSection(AcrossConfig):
    """Comparison of the programs of several datasets, and which datasets are compared."""

    compare: list[str] | None = Field(
        None,
        description="Datasets to compare: their names (a dataset with split_by stands for all its levels), or all; "
        "null: the datasets made by split_by; []: none.",
    )


class SimulateConfig(Options):
    """Counts with known programs."""

    scenario: Literal["mixed", "gauss", "additive", "dominant", "trajectory"] = Field(
        "mixed",
        description="mixed: at most one identity per cell plus activities, on the log scale; gauss: Gaussian "
        "scores; additive: profiles mixed on the scale of counts; dominant, trajectory: small programs beside one that "
        "changes all genes.",
    )
    n_obs: int = Field(4000, ge=1, description="Number of cells.")
    n_vars: int = Field(1000, ge=1, description="Number of genes.")
    n_identity: int = Field(5, ge=0, description="Identity programs, of which a cell has one (mixed: or none).")
    n_activity: int = Field(3, ge=0, description="Activity programs, of which a cell may have several.")
    n_up: int = Field(70, ge=0, description="Genes that a program raises.")
    n_down: int = Field(20, ge=0, description="Genes that a program lowers.")
    n_batch: int = Field(2, ge=1, description="Number of experimental batches.")
    mean_total: float = Field(2000.0, gt=0, description="Expected counts per cell.")
    seed: Seed = Field(0, description="Seed of the simulation.")


class AnnotateConfig(Options):
    """Neighbors, UMAP and clusters in the latent space, and the contents of annotated.h5ad."""

    n_neighbors: int = Field(15, ge=2, description="Number of neighbors of a cell in the latent space.")
    min_dist: float = Field(0.5, ge=0, description="Minimum distance between points of the UMAP.")
    resolution: float = Field(1.0, gt=0, description="Resolution of the Leiden clustering; higher: more clusters.")
    normalized_layer: bool = Field(
        False, description="Add the expected expression (px_scale) as the dense layer ldvae_normalized."
    )
    max_cells: int = Field(
        200_000,
        ge=1000,
        description="Maximum number of cells in UMAP and clustering; of more cells, a random sample is used, and each "
        "other cell is placed among its nearest neighbors in the sample.",
    )
    seed: Seed = Field(0, description="Seed of UMAP and Leiden.")


class Contrast(TypedDict):
    """Cells of group1 against those of group2 in an obs column, in all cells or within each group of another column."""

    __pydantic_config__ = STRICT  # type: ignore[misc]  # how pydantic wants it

    column: Column
    group1: NotRequired[Group]
    group2: NotRequired[Group]
    within: NotRequired[Column]


class DeConfig(Options):
    """Differential expression: the comparisons, and what counts as a change."""

    contrasts: list[Contrast] = Field(
        [],
        description="Comparisons. {column: c}: each group of c against the rest; {column: c, group1: a, group2: b}: a "
        "against b (without group2: the rest); {…, within: d}: the same within each group of d.",
    )
    replicate_key: ObsColumn | None = Field(
        None,
        description="Obs column of the biological replicate (donor, sample) for the pseudobulk test; null: no such "
        "test.",
    )
    delta: float = Field(0.25, gt=0, description="Smallest log2 fold change that counts as a change.")
    fdr: float = Field(0.05, gt=0, lt=1, description="False discovery rate of the genes called differential.")
    min_cells: int = Field(
        10, ge=1, description="Minimum number of cells on each side; smaller groups are skipped with a warning."
    )
    batch_correction: bool = Field(False, description="Average expression over the batches of both sides.")
    n_samples: int = Field(5000, ge=100, description="Posterior samples on each side.")
    seed: Seed = Field(0, description="Seed of the posterior samples.")

    @field_validator("contrasts")
    @classmethod
    def _contrasts(cls, contrasts: list[Contrast]) -> list[Contrast]:
        problems = [
            f"contrasts[{i}]: {contrast} compares a group with itself."
            for i, contrast in enumerate(contrasts)
            if "group1" in contrast and contrast["group1"] == contrast.get("group2")
        ]
        if problems:
            raise InputError(*problems)
        return contrasts


class ReportConfig(Options):
    """Contents of the report; no option changes a result."""

    groupby: list[ObsColumn] = Field(
        [],
        description="Obs columns by which programs and the UMAP are grouped, the most important first; empty: "
        "the labels, the categories tested for association, the clusters and the batch.",
    )
    n_genes: int = Field(15, ge=1, description="Genes drawn on each side of a program.")
    n_cells: int = Field(
        20_000, ge=100, description="Maximum number of cells drawn in a UMAP; a random subset if there are more."
    )
    n_genes_mapped: int = Field(
        1000,
        ge=0,
        description="Maximum number of genes by which the map of the report can be colored: genes of the programs "
        "and the "
        "contrasts, then genes with the most certain effects; fewer if there are many cells.",
    )
    n_genes_searchable: int = Field(
        40_000,
        ge=1,
        description="Maximum number of genes in the search of the report; those with the most certain effects.",
    )
    n_de_rows: int = Field(
        30_000, ge=100, description="Maximum total number of rows in the tables of differential expression."
    )


class ComputeConfig(Options):
    """Where and how the jobs run; no option changes a result beyond rounding."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Device of the training; auto: a GPU if one is visible."
    )
    threads: int = Field(1, ge=1, description="CPU threads of one training job.")
    processes: int = Field(
        1,
        ge=1,
        description="Processes that share each training, each with a GPU of its own if there are GPUs.",
    )
    runs_per_job: int = Field(1, ge=1, description="Runs of a dataset that one job trains, one after the other.")
    checkpoint_minutes: float = Field(10.0, ge=0, description="Minutes between the checkpoints of a training.")
    max_mem_mb: int = Field(256_000, ge=1000, description="Maximum memory that a job requests, MB.")
    max_runtime: int = Field(2880, ge=10, description="Maximum time that a job requests, minutes.")


@dataclass(frozen=True, kw_only=True)
class Sections:
    """The sections of config.yaml, each of which a dataset may override."""

    qc: QcConfig
    setup: SetupConfig
    model: ModelSection
    train: TrainConfig
    sweep: SweepConfig
    select: SelectConfig
    programs: ProgramsConfig
    annotate: AnnotateConfig
    de: DeConfig
    report: ReportConfig
    compute: ComputeConfig


SECTIONS: dict[str, type[Options]] = get_type_hints(Sections)


def naming(section: type[Options], kind: Literal["obs", "file"]) -> list[str]:
    """The options of a section whose values are obs columns or files."""
    fields = section.model_fields.items()
    return [name for name, field in fields if kind in _marks(field.annotation) or kind in field.metadata]


def named(options: Options, kind: Literal["obs", "file"]) -> list[tuple[str, str]]:
    """Obs columns or files that the options of a section name, each with the name of its option."""
    result = []
    for name in naming(type(options), kind):
        value = getattr(options, name)
        result += [(name, item) for item in ([value] if isinstance(value, str) else value or [])]
    return result


def _marks(kind: Any) -> set[Any]:
    """What Annotated says anywhere in a type."""
    marks = {mark for mark in getattr(kind, "__metadata__", ()) if isinstance(mark, str)}
    return marks.union(*map(_marks, get_args(kind)))
