"""LinearSCVI, the public face of the library: scvi-tools' class of the same name, faster and without its defects."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData, read_h5ad
from scipy import sparse
from torch import Tensor

from ldvae import posterior
from ldvae._settings import default_seed, fresh_seed
from ldvae.arguments import check, checked, codes_of, older_init, older_load, older_save, older_train
from ldvae.config import FitConfig, ModelConfig, ProgramsConfig, default_max_epochs
from ldvae.data import (
    MINIFIED_TYPES,
    AnnDataManager,
    AttrDict,
    BackedCounts,
    Counts,
    Field,
    ModelData,
    Registry,
    Split,
    TrainedOn,
    cell_totals,
    check_size,
    external_split,
    gene_totals,
    library_prior,
    matched_to,
    minified_type,
    name_hashes,
    register,
    registered,
    restore_categories,
    same_index,
    setup_lines,
    split_cells,
    totals_vary,
    with_text_categories,
)
from ldvae.devices import device_named, pick_device
from ldvae.differential import DeOptions, comparisons, differential_expression
from ldvae.distributed import join
from ldvae.errors import InputError, MissingKeyError, UntrainedError
from ldvae.minified import given_posterior, kept_cells, minify
from ldvae.module import LDVAE, ElboTerms
from ldvae.posterior import Cells
from ldvae.programs import Programs, Reference, calibrate, find_programs, frame
from ldvae.programs.projection import CELLS_JUDGED, with_identifiers
from ldvae.progress import progress_bar
from ldvae.rows import Rows, rows_of, rows_of_genes, spaced
from ldvae.storage import (
    SavedModel,
    adata_path,
    read_legacy,
    read_model,
    reference_attributes,
    weights_hash,
    write_model,
    write_scvi_tools,
)
from ldvae.train import Checkpoint, EpochReport, Fit, fit, seeded
from ldvae.trainer import honoured_callbacks, training_options, warn_no_effect

if TYPE_CHECKING:
    from sparse import GCXS

logger = logging.getLogger(__name__)

ARCHITECTURE = ModelConfig()  # the defaults

DE_FURTHER = (  # fields of DeOptions that `differential_expression` takes without a parameter of that name
    "n_samples_overall",
    "use_permutation",
    "m_permutation",
    "change_fn",
    "m1_domain_fn",
    "pseudocounts",
    "threshold_counts",
    "test_mode",
    "cred_interval_lvls",
)


SEED_OF_TORCH = torch.initial_seed()  # before anybody who imports this file gives one


# Names of scvi-tools' model that are not here: why, and what to take instead.
ABSENT = {
    "trainer": "there is no Lightning trainer; `history` has the metrics of every epoch, and `train(callbacks=…)` "
    "calls a function after each.",
    "id": "no list of models is kept in which it would be the key; `run_name` names a model.",
    "get_importance_weights": "it is the function ldvae.posterior.importance_weights.",
    "register_manager": "nothing is kept outside of the model; methods take other data as `adata`.",
    "transfer_fields": "other data need no setup: give them to a method as `adata`.",
    "update_setup_method_args": "call `setup_anndata` again, and make a new model.",
    "view_registry": "`view_anndata_setup` prints what is registered.",
}


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
        Distribution of the counts, a name of `ldvae.likelihoods.LIKELIHOODS`: "nb", "zinb" or "poisson".
    use_observed_lib_size
        Take the total count of a cell as its library size, instead of inferring it.
    latent_distribution
        "normal", or "ln": the latent coordinates of a cell are positive and sum to one.
    use_batch_norm, bias
        Of the decoder.
    log_variational
        The encoders see log(1 + counts).
    registry
        Of another model (`model.registry`, `LinearSCVI.load_registry`), to build one without data.
    seed
        Seed of the initial weights, and of the training unless `train` is given one; none: `ldvae.settings.seed`;
        otherwise the one that `torch.manual_seed` was last given; otherwise a fresh one, which the log and the saved
        model name. The caller's random state is not changed.

    References
    ----------
    Svensson et al., Interpretable factor models of single-cell RNA-seq via variational autoencoders,
    Bioinformatics 36(11), 2020.

    Examples
    --------
    >>> from ldvae import LinearSCVI
    >>> from ldvae.simulate import simulate
    >>> adata = simulate(n_obs=300, n_vars=100, n_up=10, n_down=5).to_anndata()
    >>> LinearSCVI.setup_anndata(adata, batch_key="batch", labels_key="identity")
    >>> model = LinearSCVI(adata, n_latent=4, seed=0)
    >>> model.train(max_epochs=5, enable_progress_bar=False)
    >>> model.get_loadings().shape
    (100, 4)
    """

    @checked(older_init)
    def __init__(
        self,
        adata: AnnData | None = None,
        n_hidden: int = ARCHITECTURE.n_hidden,
        n_latent: int = ARCHITECTURE.n_latent,
        n_layers: int = ARCHITECTURE.n_layers,
        dropout_rate: float = ARCHITECTURE.dropout_rate,
        dispersion: str = ARCHITECTURE.dispersion,
        gene_likelihood: str = ARCHITECTURE.gene_likelihood,
        use_observed_lib_size: bool = ARCHITECTURE.use_observed_lib_size,
        latent_distribution: str = ARCHITECTURE.latent_distribution,
        *,
        use_batch_norm: bool = ARCHITECTURE.use_batch_norm,
        bias: bool = ARCHITECTURE.bias,
        log_variational: bool = ARCHITECTURE.log_variational,
        registry: Registry | Mapping[str, object] | None = None,
        seed: int | None = None,
    ) -> None:
        arguments = locals()
        self.config = ModelConfig(**{name: arguments[name] for name in ModelConfig.model_fields})
        if adata is None and registry is None:
            raise InputError("adata or registry must be provided.")
        if registry is None:
            registry = registered(adata)
        self._registry = Registry.of(registry)
        check_size(self._registry, self.config)
        default = default_seed(SEED_OF_TORCH) if seed is None else seed
        self.seed = fresh_seed() if default is None else default
        if default is None:
            logger.info(
                "No seed was given: this model has drawn %d; seed=%d gives the same again.", self.seed, self.seed
            )
        self._data: ModelData | None = None
        self._trained_on: TrainedOn | None = None
        prior: tuple[Tensor, ...] = ()
        if adata is not None:
            self._data = ModelData(adata, self._registry)
            prior = self._library_prior(self._data.counts())
        if self._registry.size_factor_key is not None and not self.config.use_observed_lib_size:
            # A size factor takes the place of the library size, so there is none to infer.
            self.config = self.config.model_copy(update={"use_observed_lib_size": True})
        with seeded(self.seed):
            self.module = LDVAE(self.config, self._registry.shape, *prior).eval()
        self.is_trained_ = False
        self.history_: dict[str, pd.DataFrame] | None = None
        self.run_name_ = time.strftime("run_%Y-%m-%d_%H-%M-%S")
        self.run_id_ = ""
        self.get_normalized_function_name_ = "get_normalized_expression"

    def _library_prior(self, counts: Counts | BackedCounts) -> tuple[Tensor, ...]:
        """Prior of the log library size of each batch; none where the observed size is taken."""
        if self.config.use_observed_lib_size or self._registry.size_factor_key is not None:
            return ()
        if totals_vary(counts):
            return library_prior(counts, self._registry.shape.n_batch, self._registry.categories["batch"])
        total = float(counts.covariates.library.exp().mean())
        warnings.warn(
            f"The total counts of the cells hardly vary (about {total:.0f} in every cell), so there is no distribution "
            "of library sizes to learn; the observed ones are taken (use_observed_lib_size=True).",
            UserWarning,
            stacklevel=3,
        )
        self.config = self.config.model_copy(update={"use_observed_lib_size": True})
        return ()

    # ---------------------------------------------------------------- data

    @staticmethod
    @checked()
    def setup_anndata(
        adata: AnnData,
        batch_key: str | None = None,
        labels_key: str | None = None,
        layer: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
    ) -> None:
        """Register the counts and the obs columns that a model uses, and validate them.

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

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> adata.obs["batch"].cat.categories.tolist()
        ['batch_0', 'batch_1']
        >>> LinearSCVI.setup_anndata(adata, batch_key="batch", labels_key="identity")
        >>> model = LinearSCVI(adata)
        >>> model.summary_stats["n_batch"]
        2
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

    @staticmethod
    @checked()
    def prepare_query_anndata(
        adata: AnnData,
        reference_model: LinearSCVI | str | Path,
        return_reference_var_names: bool = False,
        inplace: bool = True,
        *,
        missing_genes: Literal["fill", "refuse"] = "fill",
    ) -> AnnData | pd.Index | None:
        """Match other data to the genes of a model: its genes, in its order.

        Parameters
        ----------
        adata
            Data to match; genes are matched by name.
        reference_model
            A model, or the directory of a saved one.
        return_reference_var_names
            Return the genes of the model, and do nothing else.
        inplace
            Change `adata`; otherwise return a new one.
        missing_genes
            What to do about genes of the model that `adata` lacks: "fill", as if they had not been counted in any cell;
            or "refuse". The model treats filled genes as observed zeros, so few should be missing.

        Returns
        -------
        AnnData, Index or None
            In memory, with X and all layers brought to the model's genes; None with `inplace`.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> other = adata[:50, 99:1:-1].copy()  # in another order, and without gene_0 and gene_1
        >>> LinearSCVI.prepare_query_anndata(other, model)
        >>> model.get_latent_representation(other).shape
        (50, 4)
        """
        if isinstance(reference_model, LinearSCVI):
            wanted = reference_model._genes()
        elif isinstance(reference_model, (str, Path)):
            wanted = pd.Index(read_model(Path(reference_model)).registry.var_names)
        else:
            raise InputError(
                f"reference_model is a {type(reference_model).__name__}; give a LinearSCVI, or the directory of one."
            )
        if return_reference_var_names:
            return wanted
        if adata.is_view and inplace:
            raise InputError("adata is a view of another AnnData, and cannot be changed; use inplace=False, or a copy.")
        if adata.isbacked and inplace:
            raise InputError("adata is backed on disk, and would be changed there; use inplace=False.")
        made = matched_to(adata, wanted, missing_genes)
        if not inplace:
            return made
        adata._init_as_actual(made)  # anndata has no public way to add genes in place; scvi-tools uses this one too
        return None

    @property
    def adata(self) -> AnnData | None:
        """The data of the model; another AnnData with the same genes and fields can be put in its place.

        Every method uses the current data. Changes in place (cells or genes removed, values, columns of obs) are
        validated as by `setup_anndata` and then used; an InputError names a change that the model cannot use.
        """
        return None if self._data is None else self._data.adata

    @adata.setter
    def adata(self, adata: AnnData) -> None:
        if adata is None:
            raise InputError("adata cannot be None.")
        if not isinstance(adata, AnnData):
            raise InputError(f"adata must be an AnnData, found {type(adata).__name__}.")
        data = ModelData(adata, self._registry)
        # Where the counts are gone, what was kept of the cells is read when it is asked for.
        if minified_type(adata) != MINIFIED_TYPES[0]:
            data.counts()
        self._data = data

    @property
    def source(self) -> Counts | BackedCounts:
        """The counts of the model's data, checked."""
        return self._own().counts()

    @property
    def adata_manager(self) -> AnnDataManager:
        """The registered fields of the model's data."""
        return self.get_anndata_manager(self._own_adata(), required=True)

    @checked()
    def get_anndata_manager(self, adata: AnnData, required: bool = False) -> AnnDataManager:
        """The registered fields of an AnnData, as this model reads them.

        Parameters
        ----------
        adata
            Data with the fields of the model's.
        required
            Of scvi-tools; without effect.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> manager = model.get_anndata_manager(adata)
        >>> manager.get_from_registry("X").shape
        (300, 100)
        """
        return AnnDataManager(adata, self._registry, own=adata is self.adata)

    @checked()
    def get_from_registry(self, adata: AnnData, registry_key: str) -> Field:
        """A registered field of an AnnData: "X", "batch", "labels", …; see `AnnDataManager.get_from_registry`.

        Parameters
        ----------
        adata
            Data with the fields of the model's.
        registry_key
            Name of the field.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> model.get_from_registry(adata, "batch").shape
        (300, 1)
        """
        return self.get_anndata_manager(adata).get_from_registry(registry_key)

    def data_registry(self, registry_key: str) -> Field:
        """A registered field of the model's data, as `get_from_registry` gives it.

        Parameters
        ----------
        registry_key
            As for `get_from_registry`.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> model.data_registry("X").shape
        (300, 100)
        """
        return self.adata_manager.get_from_registry(registry_key)

    def get_state_registry(self, registry_key: str) -> AttrDict:
        """Categories or sizes of a registered field.

        Parameters
        ----------
        registry_key
            Name of the field.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> model.get_state_registry("batch")["categorical_mapping"].tolist()
        ['batch_0', 'batch_1']
        """
        return AttrDict(self.registry["field_registries"][registry_key]["state_registry"])

    def get_setup_arg(self, setup_arg: str) -> str | list[str] | None:
        """An argument that `setup_anndata` was given.

        Parameters
        ----------
        setup_arg
            Name of the argument.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> model.get_setup_arg("batch_key")
        'batch'
        """
        return self.registry["setup_args"][setup_arg]

    @checked()
    def deregister_manager(self, adata: AnnData | None = None) -> None:
        """Release the model's data and their memory; of other data nothing is kept.

        Parameters
        ----------
        adata
            Data to forget; none: the model's.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> model.deregister_manager()
        >>> model.adata is None
        True
        >>> model.get_loadings().shape  # of the weights alone
        (100, 4)
        """
        if adata is None or adata is self.adata:
            self._data = None

    @property
    def registry(self) -> dict[str, Any]:
        """What was registered, in the layout of scvi-tools' registry."""
        return self._registry.reference_layout()

    registry_ = registry

    @property
    def summary_stats(self) -> AttrDict:
        """n_batch, n_cells, n_labels, n_vars and the numbers of covariates."""
        return self._registry.summary_stats()

    @property
    def n_latent(self) -> int:
        """Number of factors."""
        return self.config.n_latent

    @checked()
    def get_var_names(self, legacy_mudata_format: bool = False) -> np.ndarray:
        """Gene names in the order of the model, shape (n_vars,).

        Parameters
        ----------
        legacy_mudata_format
            Of scvi-tools; without effect.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> model.get_var_names()[:2].tolist()
        ['gene_0', 'gene_1']
        """
        return np.array(self._registry.var_names, dtype=object)

    def _own(self) -> ModelData:
        if self._data is None:
            raise InputError("This model has no data; pass adata=..., or set model.adata.")
        return self._data

    def _own_adata(self) -> AnnData:
        return self._own().adata

    def _of(self, adata: AnnData | None) -> ModelData:
        """The given data, or the model's; their counts are read and checked when they are asked for."""
        return self._own() if adata is None or adata is self.adata else ModelData(adata, self._registry)

    # ---------------------------------------------------------------- training

    @checked(older_train)
    def train(
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | str | Sequence[int] = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        load_sparse_tensor: bool = False,
        batch_size: int | None = FitConfig.batch_size,
        early_stopping: bool = FitConfig.early_stopping,
        datasplitter_kwargs: Mapping[str, object] | None = None,
        plan_config: Mapping[str, object] | None = None,
        plan_kwargs: Mapping[str, object] | None = None,
        datamodule: None = None,
        trainer_config: Mapping[str, object] | None = None,
        *,
        callbacks: object = None,
        enable_progress_bar: bool = True,
        seed: int | None = None,
        checkpoint: str | Path | None = None,
        **trainer_kwargs: object,
    ) -> None:
        """Train the model; a second call continues the training with a new schedule.

        In a script under `torchrun`, all its processes train one model together, each on a part of every minibatch and
        on a GPU of its own; all of them then hold the same model.

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
            Of scvi-tools; the counts are always sparse here.
        batch_size
            Cells in a minibatch; none: 128.
        early_stopping
            Stop when the validation ELBO has not improved for `early_stopping_patience` (45) epochs.
        datasplitter_kwargs
            `external_indexing`: arrays of rows to train on, validate on and test on; `drop_last`.
        plan_kwargs
            optimizer, lr, weight_decay, eps, n_epochs_kl_warmup, n_steps_kl_warmup, min_kl_weight, max_kl_weight,
            reduce_lr_on_plateau, lr_factor, lr_patience, lr_threshold, lr_min, lr_scheduler_metric: scvi-tools';
            schedule: "constant", "cosine" or "plateau"; beta2: decay rate of Adam's mean of squared gradients (0.999;
            the workflow's 0.99 fits abundant genes and held-out cells better); and start_at_mean: whether an untrained
            decoder starts at the mean profile of the training cells (False).
        plan_config, trainer_config
            The same as plan_kwargs and as trainer_kwargs, which come first.
        datamodule
            Of scvi-tools; the cells come from the model's AnnData.
        callbacks
            Functions to call after every epoch with an `ldvae.train.EpochReport`; of Lightning's, an EarlyStopping is
            taken for the options of that name, those that only show or log are without effect, and others are refused.
        enable_progress_bar
            Show epoch, ELBO, cells per second and the time left.
        seed
            Seed of the split, the order of the cells and the noise; none: the model's.
        checkpoint
            File to save to every ten minutes, and to resume from if it belongs to the same training.
        **trainer_kwargs
            check_val_every_n_epoch (1), early_stopping_monitor, early_stopping_patience, early_stopping_min_delta,
            early_stopping_warmup_epochs, gradient_clip_val.

        Raises
        ------
        InputError
            If an argument cannot be used, or the loss becomes NaN or infinite.
        TypeError
            For an argument that does not exist.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> again = LinearSCVI(adata, n_latent=4, seed=1)
        >>> again.train(max_epochs=3, plan_kwargs={"lr": 5e-3}, enable_progress_bar=False)
        >>> list(again.history["elbo_train"].index)
        [0, 1, 2]
        """
        trainer_kwargs = {**(trainer_config or {}), **trainer_kwargs}
        if "enable_progress_bar" in trainer_kwargs:  # of trainer_config
            enable_progress_bar &= check(trainer_kwargs).pop("enable_progress_bar")
            del trainer_kwargs["enable_progress_bar"]
        stopping, after_epoch = honoured_callbacks(callbacks)
        early_stopping = early_stopping or bool(stopping)
        options = training_options({**(plan_config or {}), **(plan_kwargs or {})}, {**trainer_kwargs, **stopping})
        splitter = check(datasplitter_kwargs or {})
        drop_last = splitter.pop("drop_last", False)
        external = splitter.pop("external_indexing", None)
        warn_no_effect(splitter, "datasplitter_kwargs")
        if seed is None:  # one that was drawn is another in each process
            seed = self.seed = join().of_first(self.seed)
        source = self.source
        config = FitConfig(
            max_epochs=default_max_epochs(len(source)) if max_epochs is None else max_epochs,
            batch_size=batch_size or FitConfig.batch_size,
            drop_last=drop_last,
            early_stopping=early_stopping,
            **options,
        )
        if external is None:
            split = split_cells(len(source), train_size, validation_size, shuffle_set_split, seed % 2**32)
        else:
            split = external_split(external, self._own_adata().obs)
        self.module.to(pick_device(accelerator, devices))
        with progress_bar(enable_progress_bar) as show:
            listeners = [*after_epoch, *([] if show is None else [show])]

            def on_epoch(report: EpochReport) -> None:
                for listener in listeners:
                    listener(report)

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
        """Train on a given split with a given schedule; `train` calls it with its options.

        See `ldvae.train.fit` for the parameters and what is returned.

        Parameters
        ----------
        split
            Rows to train, validate and test on (`ldvae.data.Split`).
        config
            Schedule (`ldvae.train.FitConfig`).
        seed
            Seed of the order of the cells and of all noise.
        checkpoint, on_epoch, stop
            As for `ldvae.train.fit`.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> from ldvae.data import split_cells
        >>> from ldvae.train import FitConfig
        >>> again = LinearSCVI(adata, n_latent=4, seed=1)
        >>> done = again.fit(split_cells(adata.n_obs, 0.8, 0.1, seed=0), FitConfig(max_epochs=2), seed=1)
        >>> done.epochs
        2
        """
        source = self.source
        if isinstance(checkpoint, str | Path):
            checkpoint = Checkpoint(Path(checkpoint))
        done = fit(self.module, source, split, config, seed=seed, checkpoint=checkpoint, on_epoch=on_epoch, stop=stop)
        self._trained_on = TrainedOn(split, name_hashes(self._own_adata().obs_names), self._own().snapshot)
        self.is_trained_ = True
        before = 0 if not self.history_ else len(self.history_["train_loss"])
        table = done.history.set_axis(done.history.index + before).rename_axis("epoch")
        history = {name: table[[name]].dropna() for name in table}
        old = self.history_ or {}
        self.history_ = {name: pd.concat([old[name], new]) if name in old else new for name, new in history.items()}
        return done

    @property
    def history(self) -> dict[str, pd.DataFrame] | None:
        """Metrics by epoch: a DataFrame of one column for each name of scvi-tools."""
        return self.history_

    @property
    def is_trained(self) -> bool:
        """Whether `train` has run, or a trained model was loaded."""
        return self.is_trained_

    @is_trained.setter
    def is_trained(self, value: bool) -> None:
        self.is_trained_ = value

    @property
    def run_name(self) -> str:
        """Name of the run: when the model was made, unless another is set."""
        return self.run_name_

    @run_name.setter
    def run_name(self, value: str) -> None:
        self.run_name_ = value

    @property
    def init_params_(self) -> dict[str, Any]:
        """The arguments of the constructor, in the layout of scvi-tools."""
        return reference_attributes(self._saved())["init_params_"]

    def _get_user_attributes(self) -> list[tuple[str, Any]]:
        """The attributes that scvi-tools saves, by its names."""
        return list(reference_attributes(self._saved()).items())

    @property
    def run_id(self) -> str:
        """Id of the run: empty, unless another is set."""
        return self.run_id_

    @run_id.setter
    def run_id(self, value: str) -> None:
        self.run_id_ = value

    @property
    def get_normalized_function_name(self) -> str:
        """Name of the method that gives normalized expression."""
        return self.get_normalized_function_name_

    @get_normalized_function_name.setter
    def get_normalized_function_name(self, value: str) -> None:
        self.get_normalized_function_name_ = value

    @property
    def train_indices(self) -> np.ndarray | None:
        """Rows of the cells that the model was trained on, in its data as they are now."""
        return self._part("train")

    @train_indices.setter
    def train_indices(self, value: Rows | None) -> None:
        self._set_part("train", value)

    @property
    def validation_indices(self) -> np.ndarray | None:
        """Rows of the cells that it was validated on."""
        return self._part("validation")

    @validation_indices.setter
    def validation_indices(self, value: Rows | None) -> None:
        self._set_part("validation", value)

    @property
    def test_indices(self) -> np.ndarray | None:
        """Rows of the test cells."""
        return self._part("test")

    @test_indices.setter
    def test_indices(self, value: Rows | None) -> None:
        self._set_part("test", value)

    train_indices_, validation_indices_, test_indices_ = train_indices, validation_indices, test_indices

    def _part(self, name: str) -> np.ndarray | None:
        """Rows of a part of the split; None for a model that was not trained here or before it was saved."""
        return None if self._trained_on is None else self._trained_on.rows(name, self.adata, self._registry)

    def _set_part(self, name: str, value: Rows | None) -> None:
        """Note other rows for a part of the split, as scvi-tools lets users do; the other parts stay."""
        parts = {part: np.zeros(0, np.int64) if (rows := self._part(part)) is None else rows for part in Split._fields}
        adata = self._own_adata()
        parts[name] = rows_of([] if value is None else value, adata.obs, f"{name}_indices", none_selected=True)
        self._trained_on = TrainedOn(Split(**parts), name_hashes(adata.obs_names), self._own().snapshot)

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        return next(self.module.parameters()).device

    def to_device(self, device: str | int | torch.device) -> None:
        """Move the module to a device.

        Parameters
        ----------
        device
            "cpu", "cuda", "cuda:0", or the number of a GPU.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> model.to_device("cpu")
        >>> model.device
        device(type='cpu')
        """
        self.module.to(device_named(device))

    # ---------------------------------------------------------------- decoder

    def get_loadings(self) -> pd.DataFrame:
        """Loadings of every gene on every factor.

        Returns
        -------
        DataFrame
            Genes by Z_0, Z_1, …: change of the gene's score before the softmax per unit of z. Raw: factors come in
            an arbitrary rotation, order and sign; see `get_programs` for what can be read.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> loadings = model.get_loadings()
        >>> loadings.columns.tolist()
        ['Z_0', 'Z_1', 'Z_2', 'Z_3']
        >>> strongest = loadings["Z_0"].nlargest(10).index
        """
        columns = [f"Z_{k}" for k in range(self.n_latent)]
        return pd.DataFrame(self.module.get_loadings(), index=self._genes(), columns=columns)

    def get_offset(self) -> pd.Series:
        """Score of every gene before the softmax where z is zero, without batch or covariates; shape (n_vars,).

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> model.get_offset().shape
        (100,)
        """
        return pd.Series(self._folded()[1], index=self._genes(), name="offset")

    def get_batch_loadings(self) -> pd.DataFrame:
        """What each batch adds to the score of every gene before the softmax; no columns where there is one batch.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> model.get_batch_loadings().columns.tolist()
        ['batch_0', 'batch_1']
        """
        n_batch = self._registry.shape.n_batch
        names = list(self._registry.categories["batch"]) if n_batch > 1 else []
        start = self.n_latent
        weight, _ = self._folded()
        return pd.DataFrame(weight[:, start : start + len(names)], index=self._genes(), columns=names)

    def get_covariate_loadings(self) -> pd.DataFrame:
        """What each category and each unit of the further covariates adds to the score of every gene.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> adata.obs["age"] = 40.0 + (adata.obs["batch"] == "batch_1") * 10
        >>> LinearSCVI.setup_anndata(adata, continuous_covariate_keys=["age"])
        >>> LinearSCVI(adata, n_latent=4).get_covariate_loadings().columns.tolist()
        ['age']
        """
        registry = self._registry
        names = [f"{key}={value}" for key in registry.categorical_covariate_keys for value in registry.categories[key]]
        names += registry.continuous_covariate_keys
        weight, _ = self._folded()
        return pd.DataFrame(weight[:, weight.shape[1] - len(names) :], index=self._genes(), columns=names)

    def get_programs(self, *others: LinearSCVI, config: ProgramsConfig | None = None) -> Programs:
        """Gene programs of this fit, or those that it shares with other fits of the same data, which are more reliable.

        Parameters
        ----------
        *others
            Models of the same cells and genes, trained from other seeds.
        config
            Rank, rotation and baseline (`ldvae.config.ProgramsConfig`); none: the defaults.

        Returns
        -------
        Programs
            Tables of loadings, scores, intervals and stability; see `ldvae.programs` and docs/programs.md.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> other = LinearSCVI(adata, n_latent=4, seed=1)
        >>> other.train(max_epochs=5, enable_progress_bar=False)
        >>> programs = model.get_programs(other)
        >>> programs.loadings.index.equals(adata.var_names)
        True
        """
        fits = (self, *others)
        adata, source = self._own_adata(), self.source
        for i, other in enumerate(others, start=1):
            if not isinstance(other, LinearSCVI):
                raise InputError(
                    f"Model {i} of the others is a {type(other).__name__}; give models one by one: get_programs(a, b), "
                    "or get_programs(*models)."
                )
            if not same_index(other._own_adata().obs_names, adata.obs_names):
                raise InputError(
                    f"Model {i} of the others has other cells than this one, or another order; their scores cannot be "
                    "averaged. Give models of the same data."
                )
            if other._registry.var_names != self._registry.var_names:
                raise InputError(
                    f"Model {i} of the others has other genes than this one. Give models of the same data."
                )
        return find_programs(
            [fit.get_latent_representation() for fit in fits],
            [fit.get_loadings() for fit in fits],
            mean=gene_totals(source) / len(source),
            theta=self._theta(fits),
            cells=list(adata.obs_names),
            config=config,
        )

    def get_reference(self, *others: LinearSCVI, config: ProgramsConfig | None = None) -> Reference:
        """Gene programs with all that scoring other cells needs, and comparing them with those of other data.

        Parameters
        ----------
        *others, config
            As for `get_programs`.

        Returns
        -------
        Reference
            `reference.project(adata)` scores other cells, without training and with any genes, and says which cells the
            programs cannot explain; `ldvae.programs.write_reference(reference.frame, path)` writes it into one file;
            `ldvae.programs.meta_programs({name: reference.frame, …})` compares several.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> reference = model.get_reference()
        >>> new = adata[:20, ::-1].copy()  # its genes in another order
        >>> reference.project(new).scores.shape[0]
        20
        """
        found = self.get_programs(*others, config=config)
        adata, source = self._own_adata(), self.source
        made = frame(found, gene_totals(source) / len(source), self._theta((self, *others)))
        x, covariates = source.minibatch(spaced(len(source), CELLS_JUDGED))
        made = calibrate(
            with_identifiers(made, adata.var),
            sparse.csr_matrix(x.numpy()),
            list(adata.var_names),
            batch=covariates.batch_index.numpy(),
        )
        return Reference(made, {"n_obs": len(source), "n_runs": 1 + len(others)})

    def _theta(self, fits: Sequence[LinearSCVI]) -> np.ndarray | None:
        """Inverse dispersion of each gene in each fit, shape (n_fits, n_vars); None where the likelihood has none."""
        if not self.module.likelihood.has_theta:
            return None
        some = np.arange(len(self.source))[:: max(1, len(self.source) // 1000)]
        found = [fit.get_likelihood_parameters(indices=some)["dispersions"] for fit in fits]
        return np.stack([np.atleast_2d(values).mean(axis=0) for values in found])

    @torch.inference_mode()
    @checked()
    def decode(
        self, z: np.ndarray | pd.DataFrame | Tensor, batch: object = None, library_size: float = 1.0
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

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> import numpy as np
        >>> profiles = model.decode(np.array([[0, 0, 0, 0], [2, 0, 0, 0]]), library_size=1e4)
        >>> profiles.shape
        (2, 100)
        >>> profiles.sum(axis=1).round().tolist()
        [10000.0, 10000.0]
        """
        if isinstance(library_size, str):
            raise InputError(
                f"library_size is {library_size!r}; points have no cell whose size that is. Give a number."
            )
        index = z.index if isinstance(z, pd.DataFrame) else None
        values = np.asarray(z)
        if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
            raise InputError("z holds values that are not finite; expected latent coordinates.")
        points = torch.as_tensor(values, dtype=torch.float32, device=self.device)
        if points.ndim != 2 or points.shape[1] != self.n_latent:
            raise InputError(f"z has shape {tuple(points.shape)}; expected (n_points, {self.n_latent}).")
        batches: Sequence[int] = []
        if self._registry.shape.n_batch > 1:
            (code,) = codes_of([batch], self._registry.categories["batch"])
            batches = range(self._registry.shape.n_batch) if code is None else [code]
        px_scale = posterior.decode_points(self.module, points, batches)
        return pd.DataFrame((px_scale * library_size).cpu().numpy(), index=index, columns=self._genes())

    # ---------------------------------------------------------------- what the model says of cells

    @checked()
    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Rows | None = None,
        give_mean: bool = True,
        mc_samples: int = 5000,
        batch_size: int | None = None,
        return_dist: bool = False,
        dataloader: None = None,
        *,
        seed: int | None = None,
        **data_loader_kwargs: object,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Latent coordinates of cells.

        Parameters
        ----------
        adata
            Data with the genes and fields of the model's; none: the model's.
        indices
            Which cells: a mask, row numbers, names of cells, or a query of obs as one string (`ldvae.rows.rows_of`);
            none: all.
        give_mean
            The posterior mean (for "ln", over `mc_samples` draws); otherwise one draw.
        mc_samples
            Draws for a mean that has no closed form.
        batch_size
            Cells encoded together.
        return_dist
            Mean and variance of the posterior (for "ln", before the softmax).
        seed
            Seed of the draws; none: the model's.
        dataloader, **data_loader_kwargs
            Of scvi-tools; the cells come from `adata`.

        Returns
        -------
        ndarray
            float32, shape (n_obs, n_latent); two of them with `return_dist`.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> adata.obsm["X_ldvae"] = model.get_latent_representation()
        >>> adata.obsm["X_ldvae"].shape
        (300, 4)
        >>> model.get_latent_representation(indices="batch == 'batch_1'").shape[1]
        4
        """
        warn_no_effect(data_loader_kwargs)
        self._check_trained()
        cells = self._cells(self._of(adata), indices, batch_size)
        if return_dist:
            return cells.q.z_mean.numpy(), cells.q.z_var.numpy()
        generator = self._generator(seed)
        if give_mean:
            return posterior.latent_mean(self.module, cells, mc_samples, generator).numpy()
        return posterior.draw(self.module, cells, 1, generator).z[0].numpy()

    @checked()
    def get_latent_library_size(
        self,
        adata: AnnData | None = None,
        indices: Rows | None = None,
        give_mean: bool = True,
        batch_size: int | None = None,
        dataloader: None = None,
        *,
        seed: int | None = None,
        **data_loader_kwargs: object,
    ) -> np.ndarray:
        """Library size of cells: its posterior mean, or a draw; float32, shape (n_obs, 1).

        A model that takes the observed library size has no posterior mean of it; `give_mean=False` gives the observed.

        Parameters
        ----------
        adata, indices, batch_size
            As for `get_latent_representation`.
        give_mean
            The posterior mean, instead of a draw.
        dataloader, **data_loader_kwargs
            Of scvi-tools; the cells come from `adata`.
        seed
            Seed of the draws; none: the model's.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> model.get_latent_library_size().shape
        (300, 1)
        """
        warn_no_effect(data_loader_kwargs)
        self._check_trained()
        cells = self._cells(self._of(adata), indices, batch_size)
        return posterior.latent_library_size(self.module, cells, give_mean, self._generator(seed)).numpy()

    @checked()
    def get_elbo(
        self,
        adata: AnnData | None = None,
        indices: Rows | None = None,
        batch_size: int | None = None,
        dataloader: None = None,
        return_mean: bool = True,
        data_loader_kwargs: Mapping[str, object] | None = None,
        *,
        seed: int | None = None,
    ) -> Tensor:
        """Evidence lower bound with one draw of the latent variables; nats per cell, higher is better.

        Parameters
        ----------
        adata, indices, batch_size
            As for `get_latent_representation`.
        return_mean
            The mean over cells, instead of each cell's.
        dataloader, data_loader_kwargs
            Of scvi-tools; the cells come from `adata`.
        seed
            Seed of the draws; none: the model's.

        Returns
        -------
        Tensor
            The mean over cells, or with `return_mean=False` of each cell, shape (n_obs,). The training history has
            the negative of it.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> elbo = model.get_elbo()
        >>> bool(elbo < 0)
        True
        >>> model.get_elbo(return_mean=False).shape
        torch.Size([300])
        """
        warn_no_effect(data_loader_kwargs or {})
        elbo = -self._elbo_terms(adata, indices, batch_size, seed).loss()
        return elbo.mean() if return_mean else elbo

    @checked()
    def get_reconstruction_error(
        self,
        adata: AnnData | None = None,
        indices: Rows | None = None,
        batch_size: int | None = None,
        dataloader: None = None,
        return_mean: bool = True,
        data_loader_kwargs: Mapping[str, object] | None = None,
        *,
        seed: int | None = None,
    ) -> dict[str, Tensor]:
        """-log p(x | z) with one draw of the latent variables, as {"reconstruction_loss": …}; lower is better.

        The mean over cells in nats, or with `return_mean=False` of each cell, shape (n_obs,).

        Parameters
        ----------
        adata, indices, batch_size
            As for `get_latent_representation`.
        return_mean
            The mean over cells, instead of each cell's.
        dataloader, data_loader_kwargs
            Of scvi-tools; the cells come from `adata`.
        seed
            Seed of the draws; none: the model's.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> error = model.get_reconstruction_error(indices=model.validation_indices)
        >>> list(error)
        ['reconstruction_loss']
        """
        warn_no_effect(data_loader_kwargs or {})
        error = self._elbo_terms(adata, indices, batch_size, seed).reconstruction
        return {"reconstruction_loss": error.mean() if return_mean else error}

    @checked()
    def get_marginal_ll(
        self,
        adata: AnnData | None = None,
        indices: Rows | None = None,
        n_mc_samples: int = 1000,
        batch_size: int | None = None,
        return_mean: bool = True,
        dataloader: None = None,
        data_loader_kwargs: Mapping[str, object] | None = None,
        *,
        n_mc_samples_per_pass: int = 1,
        seed: int | None = None,
    ) -> np.float64 | Tensor:
        """Marginal log-likelihood by importance sampling from the posterior; nats per cell, higher is better.

        Parameters
        ----------
        adata, indices, batch_size
            As for `get_latent_representation`.
        n_mc_samples
            Draws for each cell.
        return_mean
            The mean over cells, instead of each cell's.
        n_mc_samples_per_pass
            Draws decoded together; memory grows with it.
        seed
            Seed of the draws; none: the model's.
        dataloader, data_loader_kwargs
            Of scvi-tools; the cells come from `adata`.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> bool(model.get_marginal_ll(n_mc_samples=20) > model.get_elbo())
        True
        """
        warn_no_effect(data_loader_kwargs or {})
        data = self._of(adata)
        log_likelihood = posterior.marginal_ll(
            self.module,
            data.counts(),
            rows_of(indices, data.adata.obs),
            self._generator(seed),
            n_mc_samples,
            n_mc_samples_per_pass,
            batch_size or posterior.BATCH_SIZE,
        )
        return np.float64(log_likelihood.double().mean()) if return_mean else log_likelihood

    @checked()
    def get_normalized_expression(
        self,
        adata: AnnData | None = None,
        indices: Rows | None = None,
        transform_batch: object = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | Literal["latent"] = 1,
        n_samples: int = 1,
        n_samples_overall: int | None = None,
        weights: Literal["uniform", "importance"] | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,
        return_numpy: bool | None = None,
        silent: bool = True,
        dataloader: None = None,
        data_loader_kwargs: Mapping[str, object] | None = None,
        *,
        give_mean: bool = False,
        seed: int | None = None,
        **importance_weighting_kwargs: object,
    ) -> np.ndarray | pd.DataFrame:
        """Expected expression of cells: proportions of the genes, times a library size.

        Parameters
        ----------
        adata, indices, batch_size
            As for `get_latent_representation`.
        transform_batch
            Batch to decode for, by its name, or several to average over; none (also in a list): each cell's own.
        gene_list
            Genes to return, in the order of the model; unknown names are an error.
        library_size
            Total that the proportions of all genes are scaled to, or "latent": each cell's own.
        n_samples
            Draws from the posterior for each cell.
        n_samples_overall
            Instead, so many draws in total, each of a cell at random; only these are decoded.
        weights
            "importance", with `n_samples_overall`: favor draws that are likely for many cells.
        return_mean
            Average over the draws of a cell.
        return_numpy
            An array instead of a DataFrame; draws that are not averaged always come as an array.
        silent
            Of scvi-tools; nothing is printed.
        give_mean
            Decode the posterior mean instead of a draw: nothing is random then.
        seed
            Seed of the draws; none: the model's.
        **importance_weighting_kwargs
            max_cells, truncation, n_mc_samples, n_mc_samples_per_pass; see `ldvae.posterior.importance_weights`.
        dataloader, data_loader_kwargs
            Of scvi-tools; the cells come from `adata`.

        Returns
        -------
        DataFrame or ndarray
            float32, cells (or draws) by genes, the index naming the cell; (n_samples, n_obs, n_genes) for several draws
            that are not averaged.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> table = model.get_normalized_expression(gene_list=["gene_0", "gene_1"], library_size=1e4)
        >>> table.shape
        (300, 2)
        >>> by_identity = table.groupby(adata.obs["identity"], observed=True).mean()
        """
        warn_no_effect(data_loader_kwargs or {})
        posterior.check_draws(give_mean, n_samples, n_samples_overall, weights, importance_weighting_kwargs)
        data = self._of(adata)
        cells = self._cells(data, indices, batch_size)
        generator, batches = self._generator(seed), codes_of(transform_batch, self._registry.categories["batch"])
        rows = rows_of(indices, data.adata.obs)
        names = data.adata.obs_names[rows]
        if n_samples_overall is not None:
            among = None
            if weights == "importance":
                if len(batches) > 1:
                    raise InputError(
                        "Importance weights cannot be computed when expression is averaged across batches."
                    )
                among = data.counts(), rows
            drawn, chosen = posterior.sample_overall(
                self.module,
                cells,
                n_samples_overall,
                generator,
                among=among,
                batch=batches[0],
                importance=importance_weighting_kwargs,
            )
            names, cells, give_mean = names[chosen], drawn, True
        genes = rows_of_genes(gene_list, self._genes())
        expression = posterior.normalized_expression(
            self.module,
            cells,
            generator,
            genes=genes,
            batches=batches,
            library_size=library_size,
            n_samples=0 if give_mean else n_samples,
            return_mean=return_mean,
            batch_size=batch_size or posterior.BATCH_SIZE,
        )
        if return_numpy or expression.ndim == 3:
            return expression
        return pd.DataFrame(expression, index=names, columns=self._genes() if genes is None else self._genes()[genes])

    @checked()
    def get_likelihood_parameters(
        self,
        adata: AnnData | None = None,
        indices: Rows | None = None,
        n_samples: int = 1,
        give_mean: bool = False,
        batch_size: int | None = None,
        dataloader: None = None,
        *,
        seed: int | None = None,
        **data_loader_kwargs: object,
    ) -> dict[str, np.ndarray]:
        """Parameters of the distribution of the counts given draws from the posterior.

        Parameters
        ----------
        adata, indices, batch_size
            As for `get_latent_representation`.
        n_samples
            Draws for each cell.
        give_mean
            Average over the draws of a cell.
        dataloader, **data_loader_kwargs
            Of scvi-tools; the cells come from `adata`.
        seed
            Seed of the draws; none: the model's.

        Returns
        -------
        dict
            "mean"; "dropout" (probability of an inflated zero) for zinb; "dispersions" (theta) but for poisson; each of
            shape (n_obs, n_vars), or (n_samples, n_obs, n_vars) for several draws without `give_mean`.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> parameters = model.get_likelihood_parameters()
        >>> sorted(parameters)
        ['dispersions', 'mean']
        >>> parameters["mean"].shape
        (300, 100)
        """
        warn_no_effect(data_loader_kwargs)
        cells = self._cells(self._of(adata), indices, batch_size)
        size = batch_size or posterior.BATCH_SIZE
        return posterior.likelihood_parameters(
            self.module, cells, self._generator(seed), n_samples=n_samples, give_mean=give_mean, batch_size=size
        )

    @checked()
    def posterior_predictive_sample(
        self,
        adata: AnnData | None = None,
        indices: Rows | None = None,
        transform_batch: object = None,
        n_samples: int = 1,
        gene_list: Sequence[str] | None = None,
        batch_size: int | None = None,
        dataloader: None = None,
        silent: bool = True,
        *,
        seed: int | None = None,
        **data_loader_kwargs: object,
    ) -> GCXS:
        """Counts drawn from the model for each cell.

        Parameters
        ----------
        adata, indices, batch_size
            As for `get_latent_representation`.
        transform_batch
            Batch to draw for; of several, the mean of the counts drawn for each.
        n_samples
            Draws for each cell.
        gene_list
            Genes to return, in the order of the model.
        seed
            Seed of the draws; none: the model's.
        dataloader, **data_loader_kwargs
            Of scvi-tools; the cells come from `adata`.
        silent
            Of scvi-tools; nothing is printed.

        Returns
        -------
        sparse.GCXS
            float32, shape (n_obs, n_genes), or (n_obs, n_genes, n_samples) for several draws.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> drawn = model.posterior_predictive_sample(gene_list=["gene_0", "gene_1"], n_samples=3)
        >>> drawn.shape
        (300, 2, 3)
        """
        warn_no_effect(data_loader_kwargs)
        from sparse import GCXS, concatenate

        cells = self._cells(self._of(adata), indices, batch_size)
        drawn = posterior.posterior_predictive(
            self.module,
            cells,
            self._generator(seed),
            genes=rows_of_genes(gene_list, self._genes()),
            batches=codes_of(transform_batch, self._registry.categories["batch"]),
            n_samples=n_samples,
            batch_size=batch_size or posterior.BATCH_SIZE,
        )
        blocks = (np.moveaxis(block, 0, -1) if n_samples > 1 else block[0] for block in drawn)
        return concatenate([GCXS.from_numpy(block, compressed_axes=(0,)) for block in blocks], axis=0)

    @checked()
    def get_feature_correlation_matrix(
        self,
        adata: AnnData | None = None,
        indices: Rows | None = None,
        n_samples: int = 10,
        batch_size: int = 64,
        rna_size_factor: float = 1000,
        transform_batch: object = None,
        correlation_type: Literal["spearman", "pearson"] = "spearman",
        silent: bool = True,
        *,
        seed: int | None = None,
    ) -> pd.DataFrame:
        """Correlation of genes over denoised draws of cells.

        Parameters
        ----------
        adata, indices
            As for `get_latent_representation`.
        n_samples
            Draws for each cell.
        batch_size
            Cells decoded together.
        rna_size_factor
            Total that a cell's proportions are scaled to before the draw.
        transform_batch
            Batch to decode for; of several, the mean of the correlations in each.
        correlation_type
            "spearman" keeps all draws in memory, n_obs × n_samples × n_vars floats; "pearson" does not.
        silent
            Of scvi-tools; nothing is printed.
        seed
            Seed of the draws; none: the model's.

        Returns
        -------
        DataFrame
            Genes by genes, float64.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> model.get_feature_correlation_matrix(n_samples=2, correlation_type="pearson").shape
        (100, 100)
        """
        cells = self._cells(self._of(adata), indices, None)
        generator = self._generator(seed)
        matrices = [
            posterior.feature_correlation(
                self.module,
                cells,
                generator,
                n_samples=n_samples,
                rna_size_factor=rna_size_factor,
                batch=batch,
                correlation_type=correlation_type,
                batch_size=batch_size,
            )
            for batch in codes_of(transform_batch, self._registry.categories["batch"])
        ]
        return pd.DataFrame(np.mean(matrices, axis=0), index=self._genes(), columns=self._genes())

    @checked()
    def get_aggregated_posterior(
        self,
        adata: AnnData | None = None,
        indices: Rows | None = None,
        batch_size: int | None = None,
        dof: float | None = 3.0,
    ) -> torch.distributions.MixtureSameFamily:
        """The mixture of the posteriors of cells, a density over latent coordinates (for "ln", before the softmax).

        Components are Student's t with `dof` degrees of freedom, or normal for None.

        Parameters
        ----------
        adata, indices, batch_size
            As for `get_latent_representation`.
        dof
            Degrees of freedom of Student's t; None: normal components.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> import torch
        >>> density = model.get_aggregated_posterior()
        >>> density.log_prob(torch.zeros(4)).shape
        torch.Size([])
        """
        self._check_trained()
        cells = self._cells(self._of(adata), indices, batch_size)
        return posterior.aggregated_posterior(cells, dof)

    @checked()
    def differential_abundance(
        self,
        adata: AnnData | None = None,
        sample_key: str | None = None,
        batch_size: int = 128,
        num_cells_posterior: int | None = None,
        dof: float | None = None,
        *,
        seed: int | None = None,
    ) -> None:
        """Log-density of each cell's latent mean among the cells of each sample.

        Writes `adata.obsm["da_log_probs"]`, a DataFrame of cells by samples (in order of appearance), in nats.

        Parameters
        ----------
        adata
            As for `get_latent_representation`.
        sample_key
            Column of obs with the sample.
        batch_size
            Cells whose density is computed together.
        num_cells_posterior
            Maximum number of cells, drawn at random, that represent a sample; none: all.
        dof
            Degrees of freedom of Student components; none: normal ones.
        seed
            Seed of this choice; none: the model's.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> model.differential_abundance(sample_key="batch")
        >>> adata.obsm["da_log_probs"].shape
        (300, 2)
        """
        self._check_trained()
        of = self._of(adata)
        columns = ", ".join(map(str, of.adata.obs.columns))
        if sample_key is None:
            raise InputError(f"Give sample_key, a column of adata.obs with the sample of each cell ({columns}).")
        if sample_key not in of.adata.obs:
            raise MissingKeyError(f"sample_key {sample_key!r} not found in adata.obs ({columns}).")
        data, cells = of.adata, self._cells(of, None, None)
        data.obsm["da_log_probs"] = posterior.sample_densities(
            cells,
            data.obs[sample_key],
            self._generator(seed),
            most=num_cells_posterior,
            dof=dof,
            batch_size=batch_size,
        )

    @checked()
    def differential_expression(
        self,
        adata: AnnData | None = None,
        groupby: str | None = None,
        group1: object = None,
        group2: object = None,
        idx1: Rows | None = None,
        idx2: Rows | None = None,
        mode: Literal["vanilla", "change"] = "vanilla",
        delta: float | None = 0.25,
        batch_size: int | None = None,
        all_stats: bool = True,
        batch_correction: bool = False,
        batchid1: Sequence[object] | None = None,
        batchid2: Sequence[object] | None = None,
        fdr_target: float = 0.05,
        silent: bool = False,
        weights: Literal["uniform", "importance"] | None = "uniform",
        filter_outlier_cells: bool = False,
        importance_weighting_kwargs: Mapping[str, object] | None = None,
        *,
        subset_idx: Rows | None = None,
        seed: int | None = None,
        **kwargs: object,
    ) -> pd.DataFrame:
        """Genes that differ between groups of cells, from posterior samples of their expression.

        Parameters
        ----------
        adata, batch_size
            As for `get_latent_representation`.
        groupby, group1, group2
            Column of obs, the group or groups to compare (none: each in turn), and with which (none: all other cells).
        idx1, idx2
            Instead, the cells, as `indices` elsewhere: a mask, row numbers, names, or a query of obs.
        subset_idx
            Cells that groups may hold.
        silent
            Of scvi-tools; nothing is printed.
        seed
            Seed of the draws; none: the model's.
        importance_weighting_kwargs
            See `get_normalized_expression`.
        mode, delta, all_stats, batch_correction, batchid1, batchid2, fdr_target, weights, filter_outlier_cells
            Fields of `ldvae.differential.DeOptions`, which says what each means.
        **kwargs
            Further ones: n_samples_overall, use_permutation, m_permutation, change_fn, m1_domain_fn, pseudocounts,
            threshold_counts, test_mode, cred_interval_lvls.

        Returns
        -------
        DataFrame
            A row per gene and comparison, with scvi-tools' columns.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> table = model.differential_expression(groupby="identity", group1="identity_0", mode="change")
        >>> table["comparison"].unique().tolist()
        ['identity_0 vs Rest']
        >>> called = table.index[table["is_de_fdr_0.05"]]
        """
        further: dict[str, Any] = dict(kwargs)  # each checked by its name
        if unknown := [name for name in further if name not in DE_FURTHER]:
            raise TypeError(
                f"differential_expression() got an unexpected keyword argument {unknown[0]!r}; further ones are "
                f"{', '.join(DE_FURTHER)}."
            )
        options = DeOptions(
            mode=mode,
            delta=delta,
            all_stats=all_stats,
            batch_correction=batch_correction,
            batchid1=batchid1,
            batchid2=batchid2,
            fdr_target=fdr_target,
            weights=weights,
            filter_outlier_cells=filter_outlier_cells,
            importance=dict(importance_weighting_kwargs or {}),
            **further,
        )
        data = self._of(adata)
        cells = self._cells(data, None, batch_size)
        source = None
        if minified_type(data.adata) != MINIFIED_TYPES[0]:
            source = data.counts()
        elif all_stats:
            warnings.warn(
                "Minified data have no counts: the table has no statistics of them.", UserWarning, stacklevel=2
            )
        chosen = comparisons(data.adata.obs, groupby, group1, group2, idx1, idx2, subset_idx)
        return differential_expression(
            self.module,
            cells,
            source,
            chosen,
            self._genes(),
            self._registry.categories["batch"],
            options,
            self._generator(seed),
            batch_size or posterior.BATCH_SIZE,
        )

    def _check_trained(self) -> None:
        if not self.is_trained_:
            raise UntrainedError(
                "Trying to query inferred values from an untrained model. Please train the model first: model.train()."
            )

    def _generator(self, seed: int | None) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed if seed is None else seed) % 2**63)

    def _cells(self, data: ModelData, indices: Rows | None, batch_size: int | None) -> Cells:
        """The cells asked for, encoded; of minified data as they were kept."""
        rows = rows_of(indices, data.adata.obs)
        if minified_type(data.adata) is not None and (kept := kept_cells(data, self.module)) is not None:
            return kept.take(rows)
        return posterior.encode(self.module, data.counts(), rows, batch_size or posterior.BATCH_SIZE)

    def _elbo_terms(
        self, adata: AnnData | None, indices: Rows | None, batch_size: int | None, seed: int | None
    ) -> ElboTerms:
        data, size = self._of(adata), batch_size or posterior.BATCH_SIZE
        counts, rows = data.counts(), rows_of(indices, data.adata.obs)
        return posterior.elbo_terms(self.module, counts, rows, self._generator(seed), size)

    # ---------------------------------------------------------------- files

    @checked(older_save)
    def save(
        self,
        dir_path: str | Path,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        save_kwargs: Mapping[str, object] | None = None,
        legacy_mudata_format: bool = False,
        datamodule: None = None,
        **anndata_write_kwargs: object,
    ) -> None:
        """Save the model to a directory: safetensors, JSON, and the history as CSV.

        Parameters
        ----------
        dir_path
            Directory; it appears only once all is written.
        prefix
            Put before each file name.
        overwrite
            Replace a model that is there; otherwise a directory that exists is an error, and stays as it is.
        save_anndata
            Save the data too, as `adata.h5ad`.
        save_kwargs, legacy_mudata_format, datamodule
            Of scvi-tools; without effect.
        **anndata_write_kwargs
            For `AnnData.write_h5ad`.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> model.save("model")
        >>> LinearSCVI.load("model", adata=adata).get_loadings().equals(model.get_loadings())
        True
        >>> model.save("model", overwrite=True, save_anndata=True)  # with the data, to be loaded without them
        """
        if save_kwargs:
            logger.warning("save_kwargs: accepted as in scvi-tools, without effect in ldvae.")
        if anndata_write_kwargs and not save_anndata:
            raise TypeError(
                f"unexpected keyword argument {next(iter(anndata_write_kwargs))!r} without save_anndata=True"
            )
        write_adata = None
        if save_anndata:
            adata = with_text_categories(self._own_adata(), self._registry)
            write_adata = partial(adata.write_h5ad, **anndata_write_kwargs)
        write_model(self._saved(), Path(dir_path), prefix=prefix or "", overwrite=overwrite, write_adata=write_adata)

    @checked()
    def export_scvi_tools(self, dir_path: str | Path, prefix: str | None = None, overwrite: bool = False) -> None:
        """Save the model as scvi-tools 1.4.2 does, so that its own `LinearSCVI.load` reads it.

        Parameters
        ----------
        dir_path, prefix, overwrite
            As for `save`.

        Raises
        ------
        InputError
            If the model has what scvi-tools' has not: covariates, size factors, gene-cell dispersion.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> model.export_scvi_tools("for_scvi_tools")
        >>> LinearSCVI.load("for_scvi_tools", adata=adata).get_loadings().equals(model.get_loadings())
        True
        """
        write_scvi_tools(self._saved(), Path(dir_path), prefix=prefix or "", overwrite=overwrite)

    @classmethod
    @checked(older_load)
    def load(
        cls,
        dir_path: str | Path,
        adata: AnnData | Literal[False] | None = None,
        accelerator: str = "auto",
        device: int | str | torch.device = "auto",
        prefix: str | None = None,
        backup_url: None = None,
        datamodule: None = None,
        allowed_classes_names_list: None = None,
    ) -> LinearSCVI:
        """Load a model that `save`, or scvi-tools' LinearSCVI, saved. No pickle is executed.

        Parameters
        ----------
        dir_path, prefix
            As given to `save`.
        adata
            Data with the genes and fields of the model's; none: those saved with it, if any; False: none at all.
        accelerator, device
            Where to put the model: "auto", "cpu", "gpu", or a device such as "cuda:0" or its number.
        backup_url, datamodule, allowed_classes_names_list
            Of scvi-tools; they cannot be used.

        Raises
        ------
        InputError
            If there is no model, it cannot be read, or the data do not fit it.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> model.save("model")
        >>> again = LinearSCVI.load("model", adata=adata)
        >>> again.is_trained
        True
        >>> LinearSCVI.load("model", adata=False).get_loadings().shape  # without data
        (100, 4)
        """
        # A device by name or number decides; the accelerator is asked where none is named.
        where = pick_device(accelerator) if isinstance(device, str) and device == "auto" else device_named(device)
        if accelerator == "cpu" and where.type != "cpu":
            raise InputError(f"accelerator is 'cpu' and device is {device!r}; give one of them.")
        directory = Path(dir_path)
        saved = read_model(directory, prefix or "")
        model = cls(**dict(saved.config), registry=saved.registry, seed=saved.seed)
        try:
            model.module.load_state_dict(dict(saved.state))
        except RuntimeError as error:
            raise InputError(f"The weights in {directory} do not fit the model described there: {error}") from error
        model.is_trained_, model.history_ = saved.is_trained, saved.history or None
        model._trained_on = None if saved.split is None else TrainedOn(saved.split, saved.cells)
        model.run_name_ = saved.run_name or model.run_name_
        model.run_id_ = saved.run_id
        model.to_device(where)
        path = adata_path(directory, prefix or "")
        if adata is None and path is not None:
            adata = read_h5ad(path)
            restore_categories(adata, saved.registry)
        if adata is not None and adata is not False:
            model.adata = adata
        return model

    @staticmethod
    @checked()
    def load_registry(dir_path: str | Path, prefix: str | None = None) -> dict[str, Any]:
        """The registry of a saved model, in the layout of scvi-tools'.

        Parameters
        ----------
        dir_path, prefix
            As given to `save`.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> model.save("model")
        >>> LinearSCVI.load_registry("model")["setup_args"]["batch_key"]
        'batch'
        """
        return read_model(Path(dir_path), prefix or "").registry.reference_layout()

    @staticmethod
    @checked()
    def convert_legacy_save(
        dir_path: str | Path,
        output_dir_path: str | Path,
        overwrite: bool = False,
        prefix: str | None = None,
        save_kwargs: Mapping[str, object] | None = None,
    ) -> None:
        """Convert a model saved by scvi-tools before 0.15.0 (three files) to a directory as `save` writes it.

        Parameters
        ----------
        dir_path, prefix
            Folder of the old files, and what their names begin with.
        output_dir_path, overwrite, save_kwargs
            As for `save`.
        """
        write_model(
            read_legacy(Path(dir_path), prefix or ""), Path(output_dir_path), prefix=prefix or "", overwrite=overwrite
        )

    def _saved(self) -> SavedModel:
        with suppress(InputError):
            self._part("train")  # notes cells that were only renamed
        trained_on = self._trained_on
        return SavedModel(
            config=self.config,
            registry=self._registry,
            state=self.module.state_dict(),
            history=self.history_ or {},
            split=None if trained_on is None else trained_on.split,
            cells=None if trained_on is None else trained_on.cells,
            is_trained=self.is_trained_,
            minified=self.minified_data_type,
            run_name=self.run_name_,
            run_id=self.run_id_,
            seed=self.seed,
        )

    @checked()
    def minify_adata(
        self,
        minified_data_type: str = MINIFIED_TYPES[0],
        use_latent_qzm_key: str = "X_latent_qzm",
        use_latent_qzv_key: str = "X_latent_qzv",
    ) -> None:
        """Replace the model's data by a copy that keeps the latent posterior of each cell in place of its counts.

        Parameters
        ----------
        minified_data_type
            "latent_posterior_parameters", or "latent_posterior_parameters_with_counts" to keep the counts.
        use_latent_qzm_key, use_latent_qzv_key
            Where obsm has the mean and the variance of q(z); they are computed if it does not.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> before = model.get_latent_representation()
        >>> model.minify_adata()
        >>> model.adata.X.nnz  # the counts are gone, what the model says of the cells stays
        0
        >>> bool((model.get_latent_representation() == before).all())
        True
        """
        if minified_data_type not in MINIFIED_TYPES:
            raise InputError(
                f"Unknown minified_data_type {minified_data_type!r}; there are {', '.join(MINIFIED_TYPES)}."
            )
        if self.minified_data_type is not None:
            raise InputError("The model's data are minified already.")
        self._check_trained()
        data, cells = self._own_adata(), self._cells(self._own(), None, None)
        z = given_posterior(data, cells, use_latent_qzm_key, use_latent_qzv_key)
        made_by = weights_hash(self.module.state_dict())
        self.adata = minify(data, minified_data_type, z, cell_totals(self.source), made_by)

    @property
    def minified_data_type(self) -> str | None:
        """How the model's data were minified; None if they were not."""
        return None if self._data is None else minified_type(self._data.adata)

    # ---------------------------------------------------------------- views

    @checked()
    def view_anndata_setup(self, adata: AnnData | None = None, hide_state_registries: bool = False) -> None:
        """Print what is registered of the data: arguments, sizes and, unless hidden, categories.

        Parameters
        ----------
        adata
            Data to describe; none: the model's.
        hide_state_registries
            Leave out categories and names of genes.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> model.view_anndata_setup(hide_state_registries=True)
        Anndata setup of LinearSCVI
        Arguments of setup_anndata:
          batch_key: 'batch'
        ...
        """
        manager = AnnDataManager(self._own_adata() if adata is None else adata, self._registry)
        print(manager.described(hide_state_registries))

    @classmethod
    @checked()
    def view_setup_args(cls, dir_path: str | Path, prefix: str | None = None) -> None:
        """Print the arguments of `setup_anndata` that a saved model was made with.

        Parameters
        ----------
        dir_path, prefix
            As given to `save`.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> model.save("model")
        >>> LinearSCVI.view_setup_args("model")
        Arguments of setup_anndata:
          batch_key: 'batch'
        ...
        """
        print(setup_lines(cls.load_registry(dir_path, prefix)["setup_args"]))

    def view_setup_method_args(self) -> None:
        """Print the arguments of `setup_anndata` that this model was made with.

        Examples
        --------
        Continues the example of `LinearSCVI`.

        >>> model.view_setup_method_args()
        Arguments of setup_anndata:
          batch_key: 'batch'
        ...
        """
        print(setup_lines(self.registry["setup_args"]))

    @property
    def summary_string(self) -> str:
        """What the model is, and whether it is trained."""
        shown = ("n_hidden", "n_latent", "n_layers", "dropout_rate", "dispersion", "gene_likelihood")
        parameters = {
            name: getattr(self.config, name) for name in (*shown, "use_observed_lib_size", "latent_distribution")
        }
        return (
            "LinearSCVI Model with the following params: \n"
            + ", ".join(f"{name}: {value}" for name, value in parameters.items())
            + f"\nTraining status: {'Trained' if self.is_trained_ else 'Not Trained'}"
            + f"\nModel's adata is minified?: {self.minified_data_type is not None}"
        )

    def __repr__(self) -> str:
        return self.summary_string

    def __getattr__(self, name: str) -> Any:
        """Tell whoever asks for a name of scvi-tools that is not here why, and what to take instead."""
        if name in ABSENT:
            raise AttributeError(f"LinearSCVI.{name} of scvi-tools is not in ldvae: {ABSENT[name]}")
        return object.__getattribute__(self, name)

    # ---------------------------------------------------------------- inside

    def _folded(self) -> tuple[np.ndarray, np.ndarray]:
        """The decoder's weight (n_vars, n_inputs) and shift (n_vars,), batch norm folded in."""
        with torch.inference_mode():
            weight, shift = self.module.decoder.folded()
        return weight.detach().cpu().numpy(), shift.detach().cpu().numpy()

    def _genes(self) -> pd.Index:
        return pd.Index(self._registry.var_names)
