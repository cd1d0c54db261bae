"""LinearSCVI, the public face of the library: scvi-tools' class of the same name, faster and without its defects."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from ldvae.config import FitConfig, ModelConfig, default_max_epochs
from ldvae.data import (
    AnnDataManager,
    BackedCounts,
    Counts,
    Registry,
    Split,
    library_prior,
    read_counts,
    register,
    registered,
    split_cells,
)
from ldvae.errors import InputError
from ldvae.module import LDVAE
from ldvae.train import Checkpoint, EpochReport, Fit, fit, seeded

logger = logging.getLogger(__name__)

# Arguments of the reference's Trainer and data splitter that change no number: accepted, and said to do nothing.
NO_EFFECT = frozenset(
    [
        "benchmark",
        "default_root_dir",
        "enable_checkpointing",
        "enable_model_summary",
        "learning_rate_monitor",
        "log_every_n_steps",
        "log_save_dir",
        "logger",
        "num_sanity_val_steps",
        "num_workers",
        "persistent_workers",
        "pin_memory",
        "progress_bar_refresh_rate",
        "simple_progress_bar",
        "compile",
        "compile_kwargs",
        "on_step",
        "on_epoch",
        "early_stopping_mode",
    ]
)
PLAN_KEYS = frozenset(
    [
        "optimizer",
        "lr",
        "weight_decay",
        "eps",
        "n_steps_kl_warmup",
        "n_epochs_kl_warmup",
        "lr_factor",
        "lr_patience",
        "lr_threshold",
        "lr_min",
        "lr_scheduler_metric",
        "max_kl_weight",
        "min_kl_weight",
        "schedule",
    ]
)
TRAINER_KEYS = frozenset(
    [
        "check_val_every_n_epoch",
        "early_stopping_monitor",
        "early_stopping_patience",
        "early_stopping_min_delta",
        "early_stopping_warmup_epochs",
        "gradient_clip_val",
    ]
)


class LinearSCVI:
    """Linearly decoded variational autoencoder of single-cell counts.

    Parameters
    ----------
    adata
        Data set up by `setup_anndata`; none only together with `registry`.
    n_hidden, n_latent, n_layers, dropout_rate
        Encoder width, number of factors, hidden layers, dropout.
    dispersion
        What the inverse dispersion depends on: "gene", "gene-batch", "gene-label" or "gene-cell".
    gene_likelihood
        "nb", "zinb" or "poisson".
    use_observed_lib_size
        Take the total count of a cell as its library size, instead of inferring it.
    latent_distribution
        "normal", or "ln": the latent coordinates of a cell are positive and sum to one.
    use_batch_norm, bias
        Of the decoder.
    log_variational
        The encoders see log(1 + counts).
    registry
        Of another model, to build one without data.
    seed
        Of the initial weights, and of the training unless `train` is given one; none: the seed that torch was last
        given, so that `torch.manual_seed(s)` decides. The caller's random state is not touched.

    References
    ----------
    Svensson et al., Interpretable factor models of single-cell RNA-seq via variational autoencoders,
    Bioinformatics 36(11), 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from anndata import AnnData
    >>> from ldvae import LinearSCVI
    >>> adata = AnnData(np.random.default_rng(0).poisson(1.0, (200, 50)).astype("float32"))
    >>> LinearSCVI.setup_anndata(adata)
    >>> model = LinearSCVI(adata, n_latent=4, seed=0)
    >>> model.train(max_epochs=2, enable_progress_bar=False)
    >>> model.get_loadings().shape
    (50, 4)
    """

    def __init__(
        self,
        adata: AnnData | None = None,
        n_hidden: int = ModelConfig.n_hidden,
        n_latent: int = ModelConfig.n_latent,
        n_layers: int = ModelConfig.n_layers,
        dropout_rate: float = ModelConfig.dropout_rate,
        dispersion: str = ModelConfig.dispersion,
        gene_likelihood: str = ModelConfig.gene_likelihood,
        use_observed_lib_size: bool = ModelConfig.use_observed_lib_size,
        latent_distribution: str = ModelConfig.latent_distribution,
        *,
        use_batch_norm: bool = ModelConfig.use_batch_norm,
        bias: bool = ModelConfig.bias,
        log_variational: bool = ModelConfig.log_variational,
        registry: Registry | Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> None:
        arguments = locals()
        self.config = ModelConfig(**{f.name: arguments[f.name] for f in fields(ModelConfig)})
        check_config(self.config)
        if adata is None and registry is None:
            raise InputError("adata or registry must be provided.")
        if registry is None:
            registry = registered(adata)
        self._registry = registry if isinstance(registry, Registry) else Registry.from_dict(dict(registry))
        self._seed = seed
        self._adata: AnnData | None = None
        self._source: Counts | BackedCounts | None = None
        prior: tuple[Tensor, ...] = ()
        if adata is not None:
            self._adata, self._source = adata, read_counts(adata, self._registry)
            prior = library_prior(self._source, self._registry.shape.n_batch)
        check_size(self._registry, self.config)
        if self._registry.size_factor_key is not None and not self.config.use_observed_lib_size:
            # A size factor takes the place of the library size, so there is none to infer.
            self.config = replace(self.config, use_observed_lib_size=True)
        with seeded(self.seed):
            self.module = LDVAE(self.config, self._registry.shape, *prior).eval()
        self.is_trained_ = False
        self.history_: dict[str, pd.DataFrame] | None = None
        self.train_indices_: np.ndarray | None = None
        self.validation_indices_: np.ndarray | None = None
        self.test_indices_: np.ndarray | None = None
        self.run_name_ = time.strftime("run_%Y-%m-%d_%H-%M-%S")
        self.run_id_ = ""
        self.get_normalized_function_name_ = "get_normalized_expression"

    # ---------------------------------------------------------------- data

    @staticmethod
    def setup_anndata(
        adata: AnnData,
        batch_key: str | None = None,
        labels_key: str | None = None,
        layer: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
    ) -> None:
        """Note in `adata` which counts and which columns of obs a model shall use, and check them.

        Parameters
        ----------
        adata
            Cells by genes, with raw UMI counts: dense, CSR, CSC, or backed on disk.
        batch_key
            Column of obs with the experimental batch; the decoder has a linear term for each.
        labels_key
            Column of obs with cell labels; used by the dispersion "gene-label" alone.
        layer
            Layer with the counts; none: `adata.X`.
        size_factor_key
            Column of obs with size factors; they take the place of the library size, times the mean count per unit
            of size factor.
        categorical_covariate_keys, continuous_covariate_keys
            Columns of obs that enter the decoder as further linear terms; the loadings stay those of z alone.

        Raises
        ------
        InputError
            If a key is missing, a column has missing values, gene names repeat, or the entries are no counts.
        """
        register(
            adata,
            layer=layer,
            batch_key=batch_key,
            labels_key=labels_key,
            size_factor_key=size_factor_key,
            categorical_covariate_keys=categorical_covariate_keys,
            continuous_covariate_keys=continuous_covariate_keys,
        )

    @property
    def adata(self) -> AnnData | None:
        """The data of the model; another AnnData with the same genes and fields can be put in its place."""
        return self._adata

    @adata.setter
    def adata(self, adata: AnnData) -> None:
        if adata is None:
            raise InputError("adata cannot be None.")
        self._source = read_counts(adata, self._registry)
        self._adata = adata

    @property
    def adata_manager(self) -> AnnDataManager:
        """The registered fields of the model's data."""
        return self.get_anndata_manager(self._own_adata(), required=True)

    def get_anndata_manager(self, adata: AnnData, required: bool = False) -> AnnDataManager:
        """The registered fields of an AnnData, as this model reads them."""
        return AnnDataManager(adata, self._registry)

    def get_from_registry(self, adata: AnnData, key: str) -> Any:
        """A registered field of an AnnData: "X", "batch", "labels", …; see `AnnDataManager.get_from_registry`."""
        return self.get_anndata_manager(adata).get_from_registry(key)

    def deregister_manager(self, adata: AnnData | None = None) -> None:
        """Forget the model's data (or do nothing for other data: none are kept); memory is freed."""
        if adata is None or adata is self._adata:
            self._adata = self._source = None

    @property
    def registry(self) -> dict[str, Any]:
        """What was registered, in the layout of the reference's registry."""
        return self._registry.reference_layout()

    @property
    def summary_stats(self) -> dict[str, int]:
        """n_batch, n_cells, n_labels, n_vars and the numbers of covariates."""
        return self._registry.summary_stats()

    @property
    def n_latent(self) -> int:
        """Number of factors."""
        return self.config.n_latent

    def get_var_names(self, legacy_mudata_format: bool = False) -> np.ndarray:
        """Gene names in the order of the model, shape (n_vars,)."""
        return np.array(self._registry.var_names, dtype=object)

    def _own_adata(self) -> AnnData:
        if self._adata is None:
            raise InputError("This model has no data; pass adata=..., or set model.adata.")
        return self._adata

    def _counts(self, adata: AnnData | None) -> tuple[AnnData, Counts | BackedCounts]:
        """The given data, or the model's, checked against the registry."""
        if adata is None or adata is self._adata:
            own = self._own_adata()
            assert self._source is not None
            return own, self._source
        return adata, read_counts(adata, self._registry)

    # ---------------------------------------------------------------- training

    @property
    def seed(self) -> int:
        """Seed of the initial weights, and of everything random that is not given another."""
        return torch.initial_seed() if self._seed is None else self._seed

    def train(
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | str | Sequence[int] = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        load_sparse_tensor: bool = False,
        batch_size: int = FitConfig.batch_size,
        early_stopping: bool = FitConfig.early_stopping,
        datasplitter_kwargs: Mapping[str, Any] | None = None,
        plan_kwargs: Mapping[str, Any] | None = None,
        *,
        enable_progress_bar: bool = True,
        seed: int | None = None,
        checkpoint: str | Path | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the model; a second call goes on from where the first ended, with a new schedule.

        Parameters
        ----------
        max_epochs
            Passes over the training cells; none: 400, fewer in proportion above 20,000 cells.
        accelerator
            "auto", "cpu" or "gpu" ("cuda"); auto takes a GPU if there is one.
        devices
            "auto", or one device.
        train_size, validation_size
            Shares of the cells; none: 0.9, and all the others. What is left is the test part.
        shuffle_set_split
            Without it, the first cells train, the next validate.
        load_sparse_tensor
            Of the reference; the counts are always sparse here.
        batch_size
            Cells in a minibatch.
        early_stopping
            Stop when the validation ELBO has not improved for `early_stopping_patience` (45) epochs.
        datasplitter_kwargs
            `external_indexing`: arrays of rows to train on, validate on and test on; `drop_last`.
        plan_kwargs
            optimizer, lr, weight_decay, eps, n_epochs_kl_warmup, n_steps_kl_warmup, min_kl_weight, max_kl_weight,
            reduce_lr_on_plateau, lr_factor, lr_patience, lr_threshold, lr_min, lr_scheduler_metric: the reference's;
            and schedule: "constant", "cosine" or "plateau".
        enable_progress_bar
            Show epoch, ELBO, cells per second and the time left.
        seed
            Of the split, the order of the cells and the noise; none: the model's.
        checkpoint
            File to save to every ten minutes, and to resume from if it holds this very training.
        **trainer_kwargs
            check_val_every_n_epoch (1), early_stopping_monitor, early_stopping_patience, early_stopping_min_delta,
            early_stopping_warmup_epochs, gradient_clip_val.

        Raises
        ------
        InputError
            If an argument cannot be used, or the loss becomes NaN or infinite.
        TypeError
            For an argument that does not exist.
        """
        options = training_options(dict(plan_kwargs or {}), trainer_kwargs)
        splitter = dict(datasplitter_kwargs or {})
        drop_last = bool(splitter.pop("drop_last", False))
        external = splitter.pop("external_indexing", None)
        warn_no_effect(splitter)
        seed = self.seed if seed is None else seed
        _, source = self._counts(None)
        config = FitConfig(
            max_epochs=default_max_epochs(len(source)) if max_epochs is None else max_epochs,
            batch_size=batch_size,
            drop_last=drop_last,
            early_stopping=early_stopping,
            **options,
        )
        if external is None:
            split = split_cells(len(source), train_size, validation_size, shuffle_set_split, seed % 2**32)
        else:
            split = external_split(external, len(source))
        self.module.to(pick_device(accelerator, devices))
        with progress_bar(enable_progress_bar) as on_epoch:
            self.fit(split, config, seed=seed, checkpoint=checkpoint, on_epoch=on_epoch)

    def fit(
        self,
        split: Split,
        config: FitConfig,
        *,
        seed: int,
        checkpoint: str | Path | Checkpoint | None = None,
        on_epoch: Callable[[EpochReport], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Fit:
        """Train on a given split with a given schedule: what `train` does after its arguments are settled.

        See `ldvae.train.fit` for the parameters and what is returned.
        """
        _, source = self._counts(None)
        if isinstance(checkpoint, str | Path):
            checkpoint = Checkpoint(Path(checkpoint))
        done = fit(self.module, source, split, config, seed=seed, checkpoint=checkpoint, on_epoch=on_epoch, stop=stop)
        self.train_indices_, self.validation_indices_, self.test_indices_ = split
        self.is_trained_ = True
        before = 0 if not self.history_ else len(self.history_["train_loss"])
        table = done.history.set_axis(done.history.index + before).rename_axis("epoch")
        history = {name: table[[name]].dropna() for name in table}
        old = self.history_ or {}
        self.history_ = {name: pd.concat([old[name], new]) if name in old else new for name, new in history.items()}
        return done

    @property
    def history(self) -> dict[str, pd.DataFrame] | None:
        """Metrics by epoch: a DataFrame of one column for each name of the reference."""
        return self.history_

    @property
    def is_trained(self) -> bool:
        """Whether `train` has run, or a trained model was loaded."""
        return self.is_trained_

    @is_trained.setter
    def is_trained(self, value: bool) -> None:
        self.is_trained_ = value

    @property
    def train_indices(self) -> np.ndarray | None:
        """Rows of the cells that the model was trained on."""
        return self.train_indices_

    @property
    def validation_indices(self) -> np.ndarray | None:
        """Rows of the cells that it was validated on."""
        return self.validation_indices_

    @property
    def test_indices(self) -> np.ndarray | None:
        """Rows of the cells that took no part."""
        return self.test_indices_

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        return next(self.module.parameters()).device

    def to_device(self, device: str | int | torch.device) -> None:
        """Move the module."""
        self.module.to(torch.device(device))

    # ---------------------------------------------------------------- decoder

    def get_loadings(self) -> pd.DataFrame:
        """Loadings of every gene on every factor.

        Returns
        -------
        DataFrame
            Genes by Z_0, Z_1, …: change of the gene's score before the softmax per unit of z. Raw: factors come in
            an arbitrary rotation, order and sign; see `get_programs` for what can be read.
        """
        weight, _ = self._folded()
        columns = [f"Z_{k}" for k in range(self.n_latent)]
        return pd.DataFrame(weight[:, : self.n_latent], index=self._genes(), columns=columns)

    def get_offset(self) -> pd.Series:
        """Score of every gene before the softmax where z is zero, without batch or covariates; shape (n_vars,)."""
        return pd.Series(self._folded()[1], index=self._genes(), name="offset")

    def get_batch_loadings(self) -> pd.DataFrame:
        """What each batch adds to the score of every gene before the softmax; no columns where there is one batch."""
        n_batch = self._registry.shape.n_batch
        names = list(self._registry.categories["batch"]) if n_batch > 1 else []
        start = self.n_latent
        weight, _ = self._folded()
        return pd.DataFrame(weight[:, start : start + len(names)], index=self._genes(), columns=names)

    def get_covariate_loadings(self) -> pd.DataFrame:
        """What each category and each unit of the further covariates adds to the score of every gene."""
        registry = self._registry
        names = [f"{key}={value}" for key in registry.categorical_covariate_keys for value in registry.categories[key]]
        names += registry.continuous_covariate_keys
        weight, _ = self._folded()
        return pd.DataFrame(weight[:, weight.shape[1] - len(names) :], index=self._genes(), columns=names)

    @torch.inference_mode()
    def decode(
        self, z: np.ndarray | pd.DataFrame | Tensor, batch: Any = None, library_size: float = 1.0
    ) -> pd.DataFrame:
        """Expected expression at points of the latent space.

        Parameters
        ----------
        z
            Latent coordinates, shape (n_points, n_latent).
        batch
            Batch to decode for; none: the mean over all batches.
        library_size
            Total of each row of the result.

        Returns
        -------
        DataFrame
            Points by genes. Further covariates are taken as zero.
        """
        index = z.index if isinstance(z, pd.DataFrame) else None
        points = torch.as_tensor(np.asarray(z), dtype=torch.float32, device=self.device)
        if points.ndim != 2 or points.shape[1] != self.n_latent:
            raise InputError(f"z has shape {tuple(points.shape)}; expected (n_points, {self.n_latent}).")
        weight, shift = self.module.decoder.folded()
        scores = points @ weight[:, : self.n_latent].T + shift
        shape = self._registry.shape
        if shape.n_batch == 1:
            px_scale = scores.softmax(dim=-1)
        else:
            categories = self._registry.categories["batch"]
            if batch is not None and batch not in categories:
                raise InputError(
                    f"{batch!r} is not a valid batch category; there are {', '.join(map(str, categories))}."
                )
            chosen = range(shape.n_batch) if batch is None else [categories.index(batch)]
            px_scale = sum((scores + weight[:, self.n_latent + k]).softmax(dim=-1) for k in chosen) / len(chosen)
        return pd.DataFrame((px_scale * library_size).cpu().numpy(), index=index, columns=self._genes())

    def _folded(self) -> tuple[np.ndarray, np.ndarray]:
        """The decoder's weight (n_vars, n_inputs) and shift (n_vars,), batch norm folded in."""
        with torch.inference_mode():
            weight, shift = self.module.decoder.folded()
        return weight.cpu().numpy(), shift.cpu().numpy()

    def _genes(self) -> pd.Index:
        return pd.Index(self._registry.var_names)


def check_config(config: ModelConfig) -> None:
    """Refuse an architecture that does not exist, before anything is built."""
    choices = {
        "gene_likelihood": ("nb", "zinb", "poisson"),
        "dispersion": ("gene", "gene-batch", "gene-label", "gene-cell"),
        "latent_distribution": ("normal", "ln"),
    }
    for name, known in choices.items():
        if getattr(config, name) not in known:
            raise InputError(f"{name} is {getattr(config, name)!r}; it must be one of {', '.join(known)}.")
    for name in ("n_hidden", "n_latent", "n_layers"):
        if getattr(config, name) < 1:
            raise InputError(f"{name} is {getattr(config, name)}; it must be at least 1.")
    if not 0 <= config.dropout_rate < 1:
        raise InputError(f"dropout_rate is {config.dropout_rate:g}; it must be at least 0 and below 1.")


def check_size(registry: Registry, config: ModelConfig) -> None:
    """Refuse data too small for the model."""
    if len(registry.var_names) <= config.n_latent:
        raise InputError(
            f"adata has {len(registry.var_names)} genes for {config.n_latent} factors; there must be more genes than "
            "factors. Lower n_latent, or keep more genes."
        )
    if registry.n_obs < 2:
        raise InputError(f"adata has {registry.n_obs} cell; a model needs at least 2 to learn from.")


def training_options(plan: dict[str, Any], trainer: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the reference's plan and trainer as fields of `FitConfig`; others are refused."""
    if plan.pop("reduce_lr_on_plateau", False):
        plan["schedule"] = "plateau"
    options: dict[str, Any] = {}
    for given, known, name in ((plan, PLAN_KEYS, "plan_kwargs"), (trainer, TRAINER_KEYS, "train()")):
        rest = {key: value for key, value in given.items() if key not in known}
        unknown = sorted(set(rest) - NO_EFFECT)
        if unknown:
            raise TypeError(
                f"{name} got an unexpected keyword argument {unknown[0]!r}; it takes {', '.join(sorted(known))}."
            )
        warn_no_effect(rest)
        options |= {key: value for key, value in given.items() if key in known}
    if options.get("check_val_every_n_epoch", 1) is None:
        del options["check_val_every_n_epoch"]
    return options


def warn_no_effect(arguments: Mapping[str, Any]) -> None:
    """Say which arguments of the reference change nothing here."""
    if unknown := sorted(set(arguments) - NO_EFFECT):
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}")
    if arguments:
        logger.warning("%s: accepted as in scvi-tools, without effect in ldvae.", ", ".join(sorted(arguments)))


def external_split(parts: Sequence[np.ndarray], n_obs: int) -> Split:
    """A split given as arrays of rows: train, validation, test; later ones may be left out."""
    arrays = [np.asarray(part, dtype=np.int64) for part in parts]
    arrays += [np.zeros(0, dtype=np.int64)] * (3 - len(arrays))
    rows = np.concatenate(arrays)
    if len(rows) and (rows.min() < 0 or rows.max() >= n_obs):
        raise InputError(f"external_indexing names row {int(rows.max())}, but there are {n_obs} cells.")
    if len(np.unique(rows)) < len(rows):
        raise InputError("external_indexing names a cell more than once; the parts must be disjoint.")
    return Split(*arrays)


def pick_device(accelerator: str = "auto", devices: int | str | Sequence[int] = "auto") -> torch.device:
    """The device that an accelerator's name stands for, found by looking."""
    index = devices[0] if isinstance(devices, Sequence) and not isinstance(devices, str) else 0
    if isinstance(devices, Sequence) and not isinstance(devices, str) and len(devices) > 1:
        raise InputError(f"devices is {list(devices)}; a model is trained on one device.")
    if accelerator not in ("auto", "cpu", "gpu", "cuda"):
        raise InputError(f"accelerator is {accelerator!r}; it must be auto, cpu, gpu or cuda.")
    if accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError(
            f"accelerator is {accelerator!r}, but torch {torch.__version__} sees no GPU (CUDA_VISIBLE_DEVICES, driver, "
            "or a CPU build of torch). Use accelerator='cpu', or run where a GPU is visible."
        )
    return torch.device("cuda", index)


@contextmanager
def progress_bar(enabled: bool) -> Iterator[Callable[[EpochReport], None] | None]:
    """A bar with epoch, ELBO, cells/s and time left on a terminal; elsewhere a log line every half minute."""
    if not enabled:
        yield None
        return
    if not sys.stderr.isatty():
        said = time.monotonic()

        def log(report: EpochReport) -> None:
            nonlocal said
            if time.monotonic() - said > 30 or report.epoch == report.max_epochs:
                said = time.monotonic()
                logger.info("epoch %d/%d, ELBO %.2f, %.0f cells/s, %.0f s left", *report)

        yield log
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = [
        TextColumn("epoch {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("ELBO {task.fields[elbo]:.2f}  {task.fields[rate]:,.0f} cells/s  {task.fields[left]:.0f} s left"),
    ]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("train", total=None, elbo=float("nan"), rate=0.0, left=float("nan"))

        def show(report: EpochReport) -> None:
            bar.update(
                task,
                completed=report.epoch,
                total=report.max_epochs,
                elbo=report.elbo,
                rate=report.cells_per_s,
                left=report.seconds_left,
            )

        yield show
