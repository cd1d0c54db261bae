"""Every option of the model, the training and the workflow steps: the only place where a default is written."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from ldvae.errors import InputError, suggestion

DATASET_NAME = r"^\w[\w.-]*$"
QC_COLUMNS = (
    "file",
    "total_counts",
    "n_genes_by_counts",
    "pct_counts_mt",
    "pct_counts_ribo",
    "pct_counts_hb",
    "doublet_score",
    "predicted_doublet",
)  # obs columns that the step qc adds
STEPS = ("qc", "setup", "select", "programs", "annotate", "de", "report")  # those with a section of their own
Output = Annotated[Path, "output"]  # a file that a step writes; a folder when it has no suffix


def option(default: Any, help: str, *, names: Literal["obs", "file"] | None = None, **limits: Any) -> Any:
    """A dataclass field with its default, its help text and, optionally, JSON-schema limits (`minimum=1`, …).

    `names="obs"`: the value is the name of an obs column, `names="file"`: the path of a file (or lists of these);
    checked before the first job. Lists and dictionaries are copied for each instance.
    """
    metadata = {"help": help, "limits": limits, "names": names}
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
class FitConfig:
    """Everything that `train.fit` can do; the defaults are those of `scvi.model.LinearSCVI.train`.

    Not a section of the workflow's config: `TrainConfig` is, and becomes one of these.
    """

    max_epochs: int = 400
    batch_size: int = 128
    drop_last: bool = False
    optimizer: Literal["Adam", "AdamW"] = "Adam"
    lr: float = 1e-3
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
    """Epochs that the reference trains `n_obs` cells for: `epochs_cap`, fewer in proportion above 20,000 cells."""
    return max(1, min(round(20_000 / n_obs * epochs_cap), epochs_cap))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained; the defaults are the workflow's (`LinearSCVI.train` has the reference's)."""

    max_epochs: int | None = option(
        None, "Passes over the training cells; none: 160, more below 1,600 cells, fewer above 20,000.", minimum=1
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
    start_at_mean: bool = option(
        False, "Start the decoder's intercepts at the mean profile of the cells; without, all genes start equal."
    )
    early_stopping: bool = option(True, "Stop when the validation ELBO has not improved for `patience` epochs.")
    patience: int = option(45, "Epochs without improvement before an early stop.", minimum=1)
    min_delta: float = option(0.0, "Improvement of the validation ELBO that counts, in nats per cell.", minimum=0)

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


@dataclass(frozen=True, kw_only=True)
class QcConfig:
    """How the counts are read, and which cells and genes are kept; a cell at a limit stays."""

    layer: str | None = option(
        None, "Where the input keeps its raw counts: the name of a layer, or raw for adata.raw; none: X."
    )
    genome: str | None = option(None, "Genome to read where a 10x file holds several; none: the only one.")
    obs_table: str | None = option(
        None,
        "Path of a csv or tsv of cell annotations, cell names in the first column, whose columns join obs.",
        names="file",
    )
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
    gene_list: str | None = option(
        None, "With genes: list, the path of a file with one gene name per line.", names="file"
    )
    keep_genes: list[str] = option([], "Genes that are modelled in any case.")
    batch_key: str | None = option(
        None, "Obs column of the experimental batch; none: the file if there are several, else one batch.", names="obs"
    )
    labels_key: str | None = option(None, "Obs column of cell labels; none: no labels.", names="obs")
    categorical_covariate_keys: list[str] = option(
        [], "Obs columns of further categories the decoder corrects for.", names="obs"
    )
    continuous_covariate_keys: list[str] = option([], "Obs columns of numbers the decoder corrects for.", names="obs")
    size_factor_key: str | None = option(
        None, "Obs column that replaces the inferred library size; none: inferred.", names="obs"
    )
    stratify_by: str | None = option(
        None, "Obs column whose groups the split keeps in proportion; none: labels, else batch.", names="obs"
    )
    validation_size: float = option(
        0.1, "Share of the cells for early stopping and choice of runs.", minimum=0, exclusiveMaximum=1
    )
    test_size: float = option(0.1, "Share of the cells that training never sees.", minimum=0, exclusiveMaximum=1)
    seed: int = option(0, "Seed of the split.", minimum=0)


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """Which setting of the sweep is kept, and which of its fits are left out."""

    rule: Literal["elbo-rank-factors", "elbo", "marginal_ll", "rank"] = option(
        "elbo-rank-factors",
        "How the setting is chosen. elbo-rank-factors: held-out ELBO within one standard error of the best, then the "
        "largest reproducible rank, then the fewest factors. elbo, marginal_ll: the best on held-out cells. rank: the "
        "largest reproducible rank, then the fewest factors.",
    )
    setting: str | None = option(None, "Id of the setting to keep, such as k10-3fa9c1; none: by the rule.")
    threshold: float = option(
        0.9,
        "Smallest canonical correlation between two halves of the fits that counts as reproduced.",
        exclusiveMinimum=0,
        exclusiveMaximum=1,
    )
    n_splits: int = option(20, "Random splits of the fits into halves.", minimum=1)
    outlier_mads: float = option(
        5.0,
        "A fit is an outlier if its validation ELBO is this many median absolute deviations worse than the median …",
        exclusiveMinimum=0,
    )
    outlier_share: float = option(
        0.003, "… and by more than this share of the ELBO: it probably lost a program.", minimum=0
    )
    seed: int = option(0, "Seed of the splits.", minimum=0)


@dataclass(frozen=True, kw_only=True)
class ProgramsConfig:
    """How the programs are turned, named, tested and exported."""

    rank: int | None = option(None, "Directions kept; none: as many as reproduce.", minimum=1)
    intercept: bool = option(
        True, "Turn the constant together with the scores, so that scores count up from zero; one program more."
    )
    baseline: Literal["auto", "mean"] = option(
        "auto",
        "What effects are relative to. auto: the cells without any program where the data show that there are such, "
        "else the mean cell; mean: the mean cell.",
    )
    balance: float = option(
        1.0, "Weight of simple loadings against simple scores in the rotation; 0: scores alone.", minimum=0
    )
    power: float = option(2.0, "Promax power: 1 keeps programs uncorrelated, 2 lets them correlate mildly.", minimum=1)
    n_starts: int = option(20, "Starts of the rotation; the best is kept.", minimum=1)
    seed: int = option(0, "Seed of the random starts.", minimum=0)
    n_top: int = option(30, "Genes listed on each side of a program.", minimum=1)
    variables: list[str] | None = option(
        None, "Obs columns tested for association; none: all categories of 2 to 50 levels and all numbers.", names="obs"
    )
    technical: list[str] = option(
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
        "Obs columns that describe the experiment, not the biology; those the data lack are ignored. The batch key "
        "(without one, a column called batch) is one of them in any case.",
    )
    technical_r: float = option(
        0.5,
        "A program is flagged as technical if its scores correlate with a technical number this much, or separate a "
        "technical group with an AUC of (1 + this) / 2; half of it for a program with less than 2 % of the variation.",
        exclusiveMinimum=0,
        maximum=1,
    )
    gene_sets: list[str] = option([], "GMT files to test the programs' genes against.", names="file")


@dataclass(frozen=True, kw_only=True)
class ProjectConfig:
    """How other cells are scored with the programs of one dataset."""

    layer: str | None = option(None, "Where the input keeps its raw counts: a layer, or raw; none: X.")
    genome: str | None = option(None, "The genome to read where a file holds several.")
    gene_column: str | None = option(
        None, "Var column with gene names like those of the programs; none: the names of the genes."
    )
    batch_key: str | None = option(None, "Obs column of the experimental batch; none: the file, if several.")
    adjust: bool = option(
        True, "Let every gene have its own level in each batch, as far as no mixture of the programs could explain it."
    )


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """Counts with known programs."""

    world: Literal["mixed", "gauss", "additive"] = option(
        "mixed",
        "mixed: one identity or none, and activities on top, on the log scale; gauss: Gaussian scores; additive: "
        "profiles mixed on the scale of counts.",
    )
    n_obs: int = option(4000, "Cells.", minimum=1)
    n_vars: int = option(1000, "Genes.", minimum=1)
    n_identity: int = option(5, "Identity programs, of which a cell has one (mixed: or none).", minimum=0)
    n_activity: int = option(3, "Activity programs, of which a cell may have several.", minimum=0)
    n_up: int = option(70, "Genes that a program raises.", minimum=0)
    n_down: int = option(20, "Genes that a program lowers.", minimum=0)
    n_batch: int = option(2, "Experimental batches.", minimum=1)
    mean_total: float = option(2000.0, "Expected counts of a cell.", exclusiveMinimum=0)
    seed: int = option(0, "Seed of every draw.", minimum=0)


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
        "Comparisons, each a mapping. {column: c}: each group of c against the rest; {column: c, group1: a, group2: b}:"
        " a against b (no group2: the rest); {…, within: d}: the same inside each group of d.",
    )
    replicate_key: str | None = option(
        None, "Obs column of the biological replicate, for the pseudobulk check; none: no check.", names="obs"
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


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """How much the report shows; none of it changes a result."""

    groupby: list[str] = option(
        [],
        "Obs columns of groups by which programs and the map of cells are shown, the most telling first; none: labels, "
        "the categories tested for association, clusters and batch.",
    )
    n_genes: int = option(15, "Genes drawn on each side of a program.", minimum=1)
    n_cells: int = option(20_000, "Most cells drawn on maps; of more, a random part is drawn.", minimum=100)
    n_genes_searchable: int = option(5000, "Most genes that the search in the page knows.", minimum=1)
    n_de_rows: int = option(
        30_000, "Most rows of all differential expression tables together in the page.", minimum=100
    )


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Runs of a dataset: every setting of the grid and every point, each from every seed."""

    seeds: list[int] = option([0, 1, 2, 3, 4], "Random seeds; each setting is fitted once from each.", minItems=1)
    grid: dict[str, list[Any]] = option(
        {}, "Any model or training options, each with a list of values: all combinations."
    )
    points: list[dict[str, Any]] = option(
        [], "Single settings, each a mapping of model or training options to a value."
    )


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Where and how the jobs run; not what they compute."""

    device: Literal["auto", "cpu", "cuda"] = option("auto", "Device of the training; auto: a GPU where one is visible.")
    threads: int = option(1, "CPU threads of one training job.", minimum=1)
    runs_per_job: int = option(1, "Runs of a dataset that one training job fits, one after the other.", minimum=1)
    checkpoint_minutes: float = option(10.0, "Minutes between the checkpoints of a training.", minimum=0)
    max_mem_mb: int = option(256_000, "No job asks for more memory than this, MB.", minimum=1000)
    max_runtime: int = option(2880, "No job asks for more time than this, minutes.", minimum=10)


class Run(NamedTuple):
    """One training: a setting, that is, the model and training options, and a seed."""

    model: ModelConfig
    train: TrainConfig
    seed: int

    @property
    def params(self) -> dict[str, Any]:
        """All model and training options by name."""
        return asdict(self.model) | asdict(self.train)

    @property
    def digest(self) -> str:
        """Hash of the options, not of the seed: runs of one setting share it."""
        return hashlib.sha256(json.dumps(self.params, sort_keys=True).encode()).hexdigest()[:6]

    @property
    def setting(self) -> str:
        """Id of the setting, such as `k10-3fa9c1`."""
        return f"k{self.model.n_latent}-{self.digest}"

    @property
    def id(self) -> str:
        """Id of the run, such as `k10-s0-3fa9c1`."""
        return f"k{self.model.n_latent}-s{self.seed}-{self.digest}"


@dataclass(frozen=True, kw_only=True)
class Sections:
    """The sections of config.yaml, each of which a dataset may override."""

    qc: QcConfig
    setup: SetupConfig
    model: ModelConfig
    train: TrainConfig
    sweep: SweepConfig
    select: SelectConfig
    programs: ProgramsConfig
    annotate: AnnotateConfig
    de: DeConfig
    report: ReportConfig
    compute: ComputeConfig


class Projection(NamedTuple):
    """Other cells to score with the programs of a dataset."""

    inputs: dict[str, str]
    project: ProjectConfig


@dataclass(frozen=True, kw_only=True)
class Dataset(Sections):
    """One dataset of the workflow: its files by name, its options, its runs by id and its projections by name."""

    name: str
    inputs: dict[str, str]
    runs: dict[str, Run]
    projections: dict[str, Projection]

    @property
    def compares_clusters(self) -> bool:
        """Whether a contrast is between clusters, which only the annotated cells have."""
        return any("leiden" in (contrast.get("column"), contrast.get("within")) for contrast in self.de.contrasts)


class Plan(NamedTuple):
    """What a config expands to."""

    outdir: str
    datasets: dict[str, Dataset]

    def path(self, *parts: str) -> str:
        """A path below the output folder."""
        return "/".join(parts) if self.outdir == "." else "/".join((self.outdir.rstrip("/"), *parts))


def load_config(path: Path) -> dict[str, Any]:
    """Read a config.yaml (or JSON) as it stands, unchecked."""
    import yaml

    try:
        config = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a config.yaml.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not valid YAML: {' '.join(str(error).split())}.") from error
    if config is None:
        raise InputError(f"{path}: is empty; expected the keys of a config.yaml, of which `datasets` is needed.")
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds {type(config).__name__}, not the keys of a config.yaml.")
    return config


def expand_config(config: Mapping[str, Any]) -> Plan:
    """Datasets, options and runs of a config, whose data are not looked at.

    Raises
    ------
    InputError
        With every mistake of the config in one message.
    """
    plan, problems = _expand(config)
    raise_problems(problems, "the config")
    return plan


def expand_checked(config: Mapping[str, Any], *, made_elsewhere: bool = False) -> Plan:
    """The same, with what the headers of the data tell: files, layers, obs columns and groups that it names are there.

    Quick, since no counts are read; formats without a header (text, 10x) are left to `ldvae check`.

    Parameters
    ----------
    config
        As `load_config` reads it.
    made_elsewhere
        Missing files are no mistake: another workflow makes them.

    Raises
    ------
    InputError
        With every mistake of the config and of every dataset in one message.
    """
    plan, problems = find_problems(config, made_elsewhere=made_elsewhere)
    raise_problems(problems, "the config and its data")
    return plan


def find_problems(config: Mapping[str, Any], *, made_elsewhere: bool = False) -> tuple[Plan, list[str]]:
    """What `expand_checked` returns and what it would raise; a mistaken option of the plan has its default."""
    plan, problems = _expand(config)
    for dataset in plan.datasets.values():
        problems += [f"datasets.{dataset.name}.{problem}" for problem in _check_dataset(dataset, made_elsewhere)]
    return plan, problems


def _expand(config: Mapping[str, Any]) -> tuple[Plan, list[str]]:
    problems: list[str] = []
    sections = get_type_hints(Sections)
    _refuse_unknown(config, ["outdir", "datasets", *sections], "", problems)
    outdir = str(config.get("outdir") or ".")
    entries = config.get("datasets")
    if not isinstance(entries, dict) or not entries:
        problems.append("datasets: expected at least one, as `name: {input: path/to/counts.h5ad}`.")
        entries = {}
    datasets = {}
    for name, entry in entries.items():
        where = f"datasets.{name}"
        if not re.match(DATASET_NAME, str(name)):
            problems.append(f"{where}: a dataset's name is made of letters, digits, '_', '-' and '.'.")
        if not isinstance(entry, dict):
            entry = {"input": entry}
        _refuse_unknown(entry, ["input", "project", *sections], f"{where}.", problems)
        options = {
            key: _read_section(cls, {key: config.get(key), where + "." + key: entry.get(key)}, problems)
            for key, cls in sections.items()
        }
        inputs = _named_inputs(entry.get("input"), where, problems)
        for contrast in options["de"].contrasts:
            _refuse_unknown(contrast, ["column", "group1", "group2", "within"], f"{where}.de.contrasts.", problems)
            if "column" not in contrast:
                problems.append(f"{where}.de.contrasts: {contrast} names no column of groups.")
        runs = _runs(options["model"], options["train"], options["sweep"], where, problems)
        projections = _projections(entry.get("project"), f"{where}.project", problems)
        datasets[str(name)] = Dataset(name=str(name), inputs=inputs, runs=runs, projections=projections, **options)
    return Plan(outdir, datasets), problems


def raise_problems(problems: Iterable[str], subject: str) -> None:
    """Raise one InputError that lists the problems, each once, if there are any."""
    distinct = list(dict.fromkeys(problems))
    if len(distinct) == 1:
        raise InputError(distinct[0])
    if distinct:
        raise InputError("\n- ".join([f"{len(distinct)} problems in {subject}:", *distinct]))


def _refuse_unknown(given: Iterable[Any], known: Iterable[str], prefix: str, problems: list[str]) -> None:
    known = list(known)
    sections = {name: {item.name for item in fields(cls)} for name, cls in get_type_hints(Sections).items()}
    for key in given:
        if key not in known:
            homes = [name for name, options in sections.items() if key in options]
            remedy = f" It belongs to {' or to '.join(homes)}." if homes else suggestion(str(key), known)
            problems.append(f"{prefix}{key}: there is no such key{' here' * bool(homes)}.{remedy}")


def _projections(given: Any, where: str, problems: list[str]) -> dict[str, Projection]:
    """Projections by name: a path, or a mapping of `input` and the options of `ldvae project`."""
    if not isinstance(given, dict | None):
        problems.append(f"{where}: expected `name: path` or `name: {{input: path, …}}`, found {given!r}.")
        return {}
    found = {}
    for name, entry in (given or {}).items():
        if not re.match(DATASET_NAME, str(name)):
            problems.append(f"{where}.{name}: a name is made of letters, digits, '_', '-' and '.'.")
        options = dict(entry) if isinstance(entry, dict) else {"input": entry}
        inputs = _named_inputs(options.pop("input", None), f"{where}.{name}", problems)
        found[str(name)] = Projection(inputs, _read_section(ProjectConfig, {f"{where}.{name}": options}, problems))
    return found


def _named_inputs(given: Any, where: str, problems: list[str]) -> dict[str, str]:
    """Input files by name: a path, a list of paths (named as the files), or a mapping of names to paths."""
    if isinstance(given, str) and given:
        return {"": given}
    if isinstance(given, list) and given and all(isinstance(path, str) for path in given):
        names = [
            re.sub(r"(\.(h5ad|h5|zarr|loom|mtx|csv|tsv|txt|gz))+$", "", path.rstrip("/")).split("/")[-1]
            for path in given
        ]
        if len(set(names)) == len(given):
            return dict(zip(names, given, strict=True))
        problems.append(f"{where}.input: several files have the same name; give each its own, as `{{name: path, …}}`.")
    elif isinstance(given, dict) and given and all(isinstance(path, str) for path in given.values()):
        return {str(name): path for name, path in given.items()}
    else:
        problems.append(
            f"{where}.input: expected a path, a list of paths or a mapping of names to paths, found {given!r}."
        )
    return {}


def _read_section(cls: type, layers: Mapping[str, Any], problems: list[str]) -> Any:
    """An instance of a section from the values given for it, later ones over earlier ones."""
    hints, values = get_type_hints(cls), {}
    options = {item.name: item for item in fields(cls)}
    for where, layer in layers.items():
        if not isinstance(layer, dict | None):
            problems.append(f"{where}: expected keys and values, found {layer!r}.")
            continue
        _refuse_unknown(layer or {}, options, f"{where}.", problems)
        for key, value in (layer or {}).items():
            try:
                if key in options:
                    values[key] = coerce(value, hints[key], **options[key].metadata["limits"])
            except InputError as error:
                problems.append(f"{where}.{key}: {error}")
    return cls(**values)


def coerce(value: Any, kind: Any, **limits: Any) -> Any:
    """`value` as the type `kind`, or an InputError that says what was expected.

    Numbers may come as text: YAML reads `1e-3` as text, and so does a command line everything.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if (value is None or str(value).lower() == "none") and type(None) in arguments:
            return None
        return coerce(value, next(kind for kind in arguments if kind is not type(None)), **limits)
    if origin is Literal:
        # YAML reads a bare `off` as false, `on` as true.
        value = {False: "off", True: "on"}.get(value, value) if isinstance(value, bool) else value
        if value not in arguments:
            raise InputError(f"expected one of {', '.join(map(str, arguments))}, found {value!r}.")
        return value
    if origin is list:
        if not isinstance(value, list | tuple):
            raise InputError(f"expected a list, found {value!r}.")
        if len(value) < limits.get("minItems", 0):
            raise InputError(f"expected at least {limits['minItems']} value(s), found {len(value)}.")
        return [coerce(item, arguments[0]) for item in value]
    if origin is dict:
        if not isinstance(value, dict):
            raise InputError(f"expected keys and values, found {value!r}.")
        return {coerce(key, arguments[0]): coerce(item, arguments[1]) for key, item in value.items()}
    if kind is Any:
        return value
    if kind is Path and value != "":
        return Path(value)
    if kind is bool:
        if not isinstance(value, bool):
            raise InputError(f"expected true or false, found {value!r}.")
        return value
    if kind in (int, float):
        return _number(value, kind, **limits)
    if kind is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise InputError(f"expected {'text' if kind is str else kind.__name__}, found {value!r}.")


def _number(value: Any, kind: type, **limits: Any) -> int | float:
    try:
        number = float(value) if not isinstance(value, bool | int) else value
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number) or (kind is int and number != int(number)):
        raise InputError(f"expected a {'whole ' if kind is int else ''}number, found {value!r}.")
    bounds = {
        "minimum": (number >= limits.get("minimum", number), "at least"),
        "maximum": (number <= limits.get("maximum", number), "at most"),
        "exclusiveMinimum": (number > limits.get("exclusiveMinimum", -math.inf), "more than"),
        "exclusiveMaximum": (number < limits.get("exclusiveMaximum", math.inf), "less than"),
    }
    for bound, (holds, words) in bounds.items():
        if not holds:
            raise InputError(f"expected {words} {limits[bound]}, found {value!r}.")
    return kind(number)


def expand_sweep(model: ModelConfig, train: TrainConfig, sweep: SweepConfig) -> dict[str, Run]:
    """Runs of a sweep by id: what is not swept is as in `model` and `train`.

    Examples
    --------
    >>> runs = expand_sweep(ModelConfig(), TrainConfig(), SweepConfig(seeds=[0, 1], grid={"n_latent": [8, 9]}))
    >>> [(run.model.n_latent, run.seed) for run in runs.values()]
    [(8, 0), (8, 1), (9, 0), (9, 1)]
    """
    problems: list[str] = []
    runs = _runs(model, train, sweep, "", problems)
    raise_problems(problems, "the sweep")
    return runs


def _runs(
    model: ModelConfig, train: TrainConfig, sweep: SweepConfig, where: str, problems: list[str]
) -> dict[str, Run]:
    """Runs of a sweep by id, each once, by setting and then by seed."""
    grid = [dict(zip(sweep.grid, values, strict=True)) for values in itertools.product(*sweep.grid.values())]
    points = [*(grid if sweep.grid or not sweep.points else []), *sweep.points]
    runs: dict[str, Run] = {}
    for point in points:
        _refuse_unknown(point, [*asdict(model), *asdict(train)], f"{where}.sweep.", problems)
        parts = [
            _read_section(type(part), {"": asdict(part), f"{where}.sweep": _only(point, part)}, problems)
            for part in (model, train)
        ]
        for seed in sweep.seeds:
            run = Run(parts[0], parts[1], seed)
            if runs.setdefault(run.id, run) != run:
                problems.append(f"{where}.sweep: two settings have the same id {run.id}; change one by a hair.")
    return runs


def _only(values: Mapping[str, Any], part: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key in asdict(part)}


def flags(options: Any) -> list[str]:
    """Options as flags of the command line: those alone that differ from the defaults."""
    defaults = asdict(type(options)())
    result: list[str] = []
    for name, value in asdict(options).items():
        if value == defaults[name]:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            result.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list) and not any(isinstance(item, dict | list) for item in value):
            result += [f"--{flag}", *map(str, value)]
        elif isinstance(value, list | dict):
            result += [f"--{flag}", json.dumps(value)]
        else:
            result += [f"--{flag}", "none" if value is None else str(value)]
    return result


def resolved(dataset: Dataset) -> dict[str, Any]:
    """The options of a dataset with every default filled in, section by section."""
    return {section: asdict(getattr(dataset, section)) for section in get_type_hints(Sections)}


def runs_table(dataset: Dataset) -> str:
    """Table (TSV) of the runs of a dataset: ids, seed and every parameter that defines a run."""
    rows = [{"run": run.id, "setting": run.setting, "seed": run.seed, **run.params} for run in dataset.runs.values()]
    lines = [[*rows[0]], *([*row.values()] for row in rows)]
    return "".join("\t".join("" if value is None else str(value) for value in line) + "\n" for line in lines)


def describe(plan: Plan) -> dict[str, Any]:
    """A plan as plain values for other engines: files to hand over, and flags as they stand in the commands."""
    return {
        "outdir": plan.outdir,
        "datasets": [
            {
                "dataset": name,
                "inputs": list(dataset.inputs.values()),
                "tables": {step: [path for _, path in named(getattr(dataset, step), "file")] for step in STEPS},
                "flags": {step: shlex.join(_flags_of_step(dataset, step)) for step in STEPS},
                "contrasts": dataset.de.contrasts,
                "compares_clusters": dataset.compares_clusters,
                "runs": [
                    {
                        "run": run.id,
                        "setting": run.setting,
                        "seed": run.seed,
                        "flags": shlex.join(["--seed", str(run.seed), *flags(run.model), *flags(run.train)]),
                    }
                    for run in dataset.runs.values()
                ],
                "projections": [
                    {
                        "projection": projection,
                        "inputs": list(other.inputs.values()),
                        "flags": shlex.join(_name_flags(other.inputs) + flags(other.project)),
                    }
                    for projection, other in dataset.projections.items()
                ],
                "compute": asdict(dataset.compute),
                "resolved": json.dumps(resolved(dataset)),
            }
            for name, dataset in plan.datasets.items()
        ],
    }


def _flags_of_step(dataset: Dataset, step: str) -> list[str]:
    """Flags of a step but for its files, which an engine may put elsewhere."""
    options = getattr(dataset, step)
    defaults = {name: getattr(type(options)(), name) for name, _ in named(options, "file")}
    result = flags(replace(options, **defaults))
    if step == "qc":
        batch_key = dataset.setup.batch_key
        result = [*_name_flags(dataset.inputs), *(["--batch-key", batch_key] if batch_key else []), *result]
    return result


def _name_flags(inputs: Mapping[str, str]) -> list[str]:
    return ["--names", *inputs] if "" not in inputs else []


def schema() -> dict[str, Any]:
    """JSON schema of config.yaml, from the sections' fields: types, limits, defaults and help texts."""
    sections = {key: _schema_of(cls) for key, cls in get_type_hints(Sections).items()}
    text = {"type": "string", "minLength": 1}
    several = [
        {"type": "array", "items": text, "minItems": 1},
        {"type": "object", "additionalProperties": text, "minProperties": 1},
    ]
    files = {"description": "Path, URL or demo:pbmc68k; several as a list or as name: path.", "anyOf": [text, *several]}
    references = {key: {"$ref": f"#/$defs/{key}"} for key in sections}
    projection = _schema_of(ProjectConfig)
    projection["properties"] = {"input": files} | projection["properties"]
    dataset = {
        "type": "object",
        "properties": {
            "input": files,
            "project": {
                "type": "object",
                "description": "Other cells to score with this dataset's programs, each by name.",
                "additionalProperties": {"anyOf": [text, projection]},
            },
            **references,
        },
        "required": ["input"],
        "additionalProperties": False,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "config.yaml of the ldvae workflow",
        "type": "object",
        "properties": {
            "outdir": {
                "type": "string",
                "default": ".",
                "description": "Folder of results/, logs/, benchmarks/ and checkpoints/; . is the working directory.",
            },
            "datasets": {
                "type": "object",
                "description": "Each dataset by name, with its input and its own values for any section.",
                "propertyNames": {"pattern": DATASET_NAME},
                "minProperties": 1,
                "additionalProperties": {"anyOf": [text, dataset]},
            },
            **references,
        },
        "required": ["datasets"],
        "additionalProperties": False,
        "$defs": sections,
    }


def _schema_of(cls: type) -> dict[str, Any]:
    hints, empty = get_type_hints(cls), cls()
    properties = {
        item.name: {
            "description": item.metadata["help"],
            **_schema_type(hints[item.name]),
            **item.metadata["limits"],
            "default": getattr(empty, item.name),
        }
        for item in fields(cls)
    }
    description = (cls.__doc__ or "").splitlines()[0]
    return {
        "type": ["object", "null"],
        "description": description,
        "properties": properties,
        "additionalProperties": False,
    }


def _schema_type(kind: Any) -> dict[str, Any]:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        known = _schema_type(next(kind for kind in arguments if kind is not type(None)))
        return {**known, "type": [known["type"], "null"]} if "type" in known else {"enum": [*known["enum"], None]}
    if origin is Literal:
        # YAML reads a bare `off` as false.
        return {"enum": [*arguments, False] if "off" in arguments else list(arguments)}
    if origin is list:
        return {"type": "array", "items": _schema_type(arguments[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema_type(arguments[1])}
    names = {bool: "boolean", int: "integer", float: "number", str: "string"}
    return {"type": names[kind]} if kind in names else {}


def named(options: Any, kind: Literal["obs", "file"]) -> list[tuple[str, str]]:
    """Obs columns or files that the options of a section name, each with the name of its option."""
    result = []
    for item in fields(options):
        if item.metadata["names"] == kind:
            value = getattr(options, item.name)
            result += [(item.name, name) for name in ([value] if isinstance(value, str) else value or [])]
    return result


def _check_dataset(dataset: Dataset, made_elsewhere: bool) -> list[str]:
    problems: list[str] = []
    headers: list[Header | None] = []
    for path in dataset.inputs.values():
        try:
            headers.append(read_header(path))
        except FileNotFoundError:
            headers.append(None)
            if not made_elsewhere:
                problems.append(f"input: {_not_there(path)}")
        except InputError as error:
            headers.append(None)
            problems.append(f"input: {error}")
    for name, projection in dataset.projections.items():
        for path in projection.inputs.values():
            if "://" not in path and not path.startswith("demo:") and not made_elsewhere and not Path(path).exists():
                problems.append(f"project.{name}.input: {_not_there(path)}")
    for section in get_type_hints(Sections):
        for option_name, path in named(getattr(dataset, section), "file"):
            if not made_elsewhere and not Path(path).is_file():
                problems.append(f"{section}.{option_name}: {path} is not there.")
    found = [header for header in headers if header is not None]
    if not found or len(found) < len(headers):
        return problems
    layers = sorted(set[str].intersection(*(set(header.layers) for header in found)))
    if dataset.qc.layer is not None and dataset.qc.layer not in layers:
        problems.append(f"qc.layer: no layer {dataset.qc.layer!r}.{suggestion(dataset.qc.layer, layers)}")
    if dataset.qc.obs_table is None:  # else it brings columns of its own
        columns: dict[str, set[str] | None] = {}
        for name, groups in ((name, groups) for header in found for name, groups in header.obs.items()):
            before = columns.get(name, set())
            columns[name] = None if groups is None or before is None else before | groups
        problems += check_columns(dataset, columns)
    return problems


def check_columns(dataset: Dataset, columns: Mapping[str, set[str] | None]) -> list[str]:
    """Problems with the obs columns and groups that a dataset's options name.

    Parameters
    ----------
    dataset
        Options of the dataset.
    columns
        The groups of each obs column; none for columns of numbers.
    """
    known, problems = [*sorted(columns), *QC_COLUMNS], []
    for section in get_type_hints(Sections):
        for option_name, column in named(getattr(dataset, section), "obs"):
            if column not in known:
                problems.append(f"{section}.{option_name}: no obs column {column!r}.{suggestion(column, known)}")
    for contrast in dataset.de.contrasts:
        for key in ("column", "within"):
            name = contrast.get(key)
            if name is not None and name not in [*known, "leiden"]:
                problems.append(f"de.contrasts: no obs column {name!r}.{suggestion(name, known)}")
        groups = columns.get(contrast.get("column", ""))
        for key in ("group1", "group2"):
            group = contrast.get(key)
            if groups is not None and group is not None and group not in groups:
                problems.append(
                    f"de.contrasts: no group {group!r} in {contrast['column']!r}.{suggestion(group, sorted(groups))}"
                )
    return problems


def _not_there(path: str) -> str:
    """That a file is missing, and the file beside it that is probably meant."""
    folder = Path(path).parent
    siblings = sorted(other.name for other in folder.iterdir()) if folder.is_dir() else []
    near = get_close_matches(Path(path).name, siblings, n=1)
    hint = f" Did you mean {str(folder / near[0])!r}?" if near else ""
    return f"{path} is not there (relative paths start at {Path.cwd()}).{hint}"


class Header(NamedTuple):
    """What the header of an h5ad file tells."""

    obs: dict[str, set[str] | None]  # groups of each column; none for numbers
    layers: list[str]


def read_header(path: str) -> Header | None:
    """Obs columns and layers of an input, without reading counts.

    None when the format has no such header (text, 10x, zarr, loom) or the file is not here yet (a URL).
    """
    if path.startswith("demo:"):
        if path != "demo:pbmc68k":
            raise InputError(f"there is no {path}; the embedded data set is demo:pbmc68k.")
        package = find_spec("scanpy")  # found, not imported
        if package is None or package.origin is None:  # Snakemake may run in an environment of its own
            return None
        path = str(Path(package.origin).parent / "datasets" / "10x_pbmc68k_reduced.h5ad")
    if "://" in path:
        if not re.match("https?://", path):
            raise InputError(f"{path}: cannot be fetched; only http and https can. Download it and name the file.")
        return None
    if not Path(path).exists():
        raise FileNotFoundError(path)
    if Path(path).suffix != ".h5ad":
        return None
    try:
        import h5py
    except ModuleNotFoundError:
        return None
    try:
        with h5py.File(path) as file:
            obs, layers = file["obs"], [*file.get("layers", ()), *(["raw"] if "raw" in file else ())]
            if isinstance(obs, h5py.Dataset):  # anndata before 0.7: one structured array, groups as codes
                return Header(dict.fromkeys((obs.dtype.names or ("index",))[1:]), layers)  # the first is the index
            names = obs.keys() - {"__categories", obs.attrs.get("_index")}
            return Header({name: _groups(obs[name]) for name in sorted(names)}, layers)
    except (OSError, KeyError) as error:
        raise InputError(f"{path}: is not an h5ad file that can be read ({error}).") from error


def _groups(column: Any) -> set[str] | None:
    """Groups that occur in a column of an h5ad file; none for numbers."""
    import h5py
    import numpy as np

    if isinstance(column, h5py.Group):
        if "categories" not in column:
            return None
        categories, codes = column["categories"], np.unique(column["codes"][:])
    elif "categories" in column.attrs:
        categories, codes = column.file[column.attrs["categories"]], np.unique(column[:])
    elif h5py.check_string_dtype(column.dtype):
        return set(column.asstr()[:])
    else:
        return {str(bool(value)) for value in np.unique(column[:])} if column.dtype == bool else None
    names = categories.asstr()[:] if h5py.check_string_dtype(categories.dtype) else categories[:].astype(str)
    return {str(names[code]) for code in codes if code >= 0}
