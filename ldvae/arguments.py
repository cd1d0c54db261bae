"""Arguments of LinearSCVI's methods: validation by name, and the forms of scvi-tools' older APIs.

A name means the same in every method, so one table holds the rule of each. NumPy scalars become Python's.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from anndata import AnnData

from ldvae.errors import InputError, other_type
from ldvae.likelihoods import LIKELIHOODS

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
Rule = Callable[[str, Any], Any]


def scalar(value: Any) -> Any:
    """A NumPy scalar, or an array or tensor without axes, as Python's own number; anything else as it is."""
    if isinstance(value, np.generic) or (isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim == 0):
        return value.item()
    return value


def flag(name: str, value: Any) -> bool:
    """True or False, and no number."""
    value = scalar(value)
    if not isinstance(value, bool):
        raise InputError(f"{name} is {value!r}; it must be True or False.")
    return value


def whole(minimum: int, maximum: int | None = None) -> Rule:
    """An integer of at least `minimum`, and at most `maximum`."""

    def rule(name: str, value: Any) -> int:
        value = scalar(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"{name} is {value!r}; it must be a whole number of at least {minimum}.")
        if value < minimum:
            raise InputError(f"{name} is {value}; it must be at least {minimum}.")
        if maximum is not None and value > maximum:
            raise InputError(f"{name} is {value}; it must be at most {maximum}.")
        return value

    return rule


def number(
    minimum: float = -math.inf, *, above: float = -math.inf, maximum: float = math.inf, below: float = math.inf
) -> Rule:
    """A finite number within limits."""
    limits = [
        (f"at least {minimum:g}", minimum > -math.inf),
        (f"above {above:g}", above > -math.inf),
        (f"at most {maximum:g}", maximum < math.inf),
        (f"below {below:g}", below < math.inf),
    ]
    expected = " and ".join(words for words, given in limits if given)

    def rule(name: str, value: Any) -> float:
        value = scalar(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise InputError(f"{name} is {value!r}; it must be a number{f', {expected}' if expected else ''}.")
        if not (minimum <= value <= maximum and above < value < below):
            raise InputError(f"{name} is {value:g}; it must be {expected}.")
        return value

    return rule


def choice(*known: Any) -> Rule:
    """One of some values."""

    def rule(name: str, value: Any) -> Any:
        # Not `in`, for which True is 1, and which fails for arrays.
        if not any(value is one or (isinstance(one, str) and isinstance(value, str) and value == one) for one in known):
            raise InputError(f"{name} is {value!r}; it must be one of {', '.join(map(str, known))}.")
        return str(value) if isinstance(value, str) else value

    return rule


def text(name: str, value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise InputError(f"{name} is {value!r}; it must be a name (a string).")
    return str(value)


def path(name: str, value: Any) -> str | os.PathLike[str]:
    """A file or folder."""
    if not isinstance(value, (str, os.PathLike)):
        found = repr(value) if isinstance(value, (int, float)) else type(value).__name__
        raise InputError(f"{name} must be a path (a string or pathlib.Path), found {found}.")
    return value


def mapping(name: str, value: Any) -> dict[str, Any]:
    """Keyword arguments as a dictionary."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InputError(f"{name} is {value!r}; it must be a dictionary of keyword arguments.")
    return dict(value)


def levels(name: str, value: Any) -> list[float]:
    """A list of fractions from 0 to below 1; a single one stands for a list."""
    given = [value] if isinstance(scalar(value), (int, float)) else value
    if isinstance(given, str) or not isinstance(given, (Sequence, np.ndarray)):
        raise InputError(f"{name} is {value!r}; it must be a list of numbers from 0 to below 1.")
    return [number(0, below=1)(name, level) for level in given]


def several(name: str, value: Any) -> list[Any]:
    """A list; a string, or a value that is no list, stands for a list of one."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        return [value]
    return list(value)


def columns(name: str, value: Any) -> list[str]:
    """Names of columns of obs, each once."""
    if isinstance(value, (str, Mapping, set, frozenset)) or not isinstance(value, Iterable):
        found = f"the string {value!r}; write [{value!r}]" if isinstance(value, str) else repr(value)
        raise InputError(f"{name} must be a list of columns of adata.obs, found {found}.")
    given = list(value)
    for key in given:
        if not isinstance(key, str):
            raise InputError(f"{name} holds {key!r}; each must be the name of a column of adata.obs (a string).")
        if given.count(key) > 1:
            raise InputError(f"{name} names {key!r} more than once.")
    return [str(key) for key in given]


def size_or(word: str) -> Rule:
    """A number above zero, or a word."""

    def rule(name: str, value: Any) -> float | str:
        if isinstance(value, str) and value == word:
            return word
        if isinstance(value, str):
            raise InputError(f"{name} is {value!r}; it must be a number above 0, or {word!r}.")
        return number(above=0)(name, value)

    return rule


def optional(rule: Rule) -> Rule:
    """None, or what a rule says."""
    return lambda name, value: None if value is None else rule(name, value)


def absent(reason: str) -> Rule:
    """None: an argument of scvi-tools that is kept for its position and cannot be used."""

    def rule(name: str, value: Any) -> None:
        if value is not None:
            raise InputError(f"{name} cannot be used: {reason}")

    return rule


def anndata(name: str, value: Any) -> Any:
    """An AnnData; None and False where a method knows what they mean."""
    if not (value is None or value is False or isinstance(value, AnnData)):
        raise InputError(f"{name} must be an AnnData, found {type(value).__name__}.")
    return value


METRICS = [f"{name}_{part}" for part in ("validation", "train") for name in ("elbo", "reconstruction_loss", "kl_local")]
NO_LOADER = absent("ldvae reads cells from an AnnData, in memory or backed on disk. Give adata and indices.")
RULES: dict[str, Rule] = {
    # the model
    "n_hidden": whole(1),
    "n_latent": whole(1),
    "n_layers": whole(1),
    "dropout_rate": number(0, below=1),
    "dispersion": choice("gene", "gene-batch", "gene-label", "gene-cell"),
    "gene_likelihood": choice(*LIKELIHOODS),
    "latent_distribution": choice("normal", "ln"),
    "use_observed_lib_size": flag,
    "use_batch_norm": flag,
    "bias": flag,
    "log_variational": flag,
    "seed": optional(whole(0, 2**32 - 1)),  # what NumPy accepts
    # its data
    "adata": anndata,
    "batch_key": optional(text),
    "labels_key": optional(text),
    "layer": optional(text),
    "size_factor_key": optional(text),
    "categorical_covariate_keys": optional(columns),
    "continuous_covariate_keys": optional(columns),
    "required": flag,
    "legacy_mudata_format": flag,
    "hide_state_registries": flag,
    # training
    "max_epochs": optional(whole(1)),
    "train_size": optional(number()),
    "validation_size": optional(number()),
    "shuffle_set_split": flag,
    "load_sparse_tensor": flag,
    "batch_size": optional(whole(1)),
    "early_stopping": flag,
    "datasplitter_kwargs": optional(mapping),
    "plan_config": optional(mapping),
    "plan_kwargs": optional(mapping),
    "trainer_config": optional(mapping),
    "datamodule": NO_LOADER,
    "enable_progress_bar": flag,
    "drop_last": flag,
    "optimizer": choice("Adam", "AdamW"),
    "lr": number(above=0),  # with 0, which PyTorch takes, nothing is learnt
    "weight_decay": number(0),
    "beta2": number(minimum=0, below=1),
    "eps": number(above=0),
    "n_steps_kl_warmup": optional(whole(0)),
    "n_epochs_kl_warmup": optional(whole(0)),
    "min_kl_weight": number(0),
    "max_kl_weight": number(0),
    "schedule": choice("constant", "cosine", "plateau"),
    "reduce_lr_on_plateau": flag,
    "lr_factor": number(above=0, below=1),
    "lr_patience": whole(0),
    "lr_threshold": number(0),
    "lr_min": number(0),
    "lr_scheduler_metric": choice(*METRICS, "validation_loss", "train_loss"),
    "start_at_mean": flag,
    "check_val_every_n_epoch": optional(whole(1)),
    "early_stopping_monitor": choice(*METRICS, "validation_loss", "train_loss"),
    "early_stopping_mode": choice("min"),
    "early_stopping_patience": whole(1),
    "early_stopping_min_delta": number(0),
    "early_stopping_warmup_epochs": whole(0),
    "gradient_clip_val": optional(number(above=0)),
    # queries
    "give_mean": flag,
    "return_mean": flag,
    "return_dist": flag,
    "return_numpy": optional(flag),
    "silent": flag,
    "mc_samples": whole(1),
    "n_samples": whole(1),
    "n_samples_overall": optional(whole(1)),
    "n_mc_samples": whole(1),
    "n_mc_samples_per_pass": whole(1),
    "max_cells": whole(1),
    "truncation": flag,
    "weights": choice(None, "uniform", "importance"),
    "library_size": size_or("latent"),
    "rna_size_factor": number(above=0),
    "correlation_type": choice("spearman", "pearson"),
    "gene_list": optional(several),
    "dof": optional(number(above=0)),
    "num_cells_posterior": optional(whole(1)),
    "sample_key": optional(text),
    "dataloader": NO_LOADER,
    "data_loader_kwargs": optional(mapping),
    # differential expression
    "groupby": optional(text),
    "mode": text,
    "delta": optional(number(0)),
    "all_stats": flag,
    "batch_correction": flag,
    "batchid1": optional(several),
    "batchid2": optional(several),
    "fdr_target": number(0, maximum=1),
    "filter_outlier_cells": flag,
    "importance_weighting_kwargs": optional(mapping),
    "use_permutation": flag,
    "m_permutation": whole(1),
    "pseudocounts": optional(number(0)),
    "threshold_counts": number(0),
    "cred_interval_lvls": optional(levels),
    # files
    "dir_path": path,
    "output_dir_path": path,
    "checkpoint": optional(path),
    "prefix": optional(text),
    "overwrite": flag,
    "save_anndata": flag,
    "save_kwargs": optional(mapping),
    "backup_url": absent("ldvae downloads nothing; fetch the model yourself, and load it from its folder."),
    "allowed_classes_names_list": absent("only LinearSCVI is loaded."),
    "minified_data_type": text,
    "use_latent_qzm_key": text,
    "use_latent_qzv_key": text,
    "inplace": flag,
    "return_reference_var_names": flag,
    "missing_genes": choice("fill", "refuse"),
}


def check(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Validate arguments by name; those that are not in the table pass unchanged."""
    return {name: RULES[name](name, value) if name in RULES else value for name, value in arguments.items()}


def checked(
    older: Callable[[tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a method: what it is given is checked by `RULES` before it begins.

    Parameters
    ----------
    older
        Turns arguments in the form of an older API (without self) into those of today.
    """

    def decorate(method: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(method)
        first = [name for name in list(signature.parameters)[:1] if name in ("self", "cls")]
        rest = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]

        @functools.wraps(method)
        def validated(*args: P.args, **kwargs: P.kwargs) -> R:
            positional, named = args[len(first) :], dict(kwargs)
            if older is not None:
                positional, named = older(positional, named)
            try:
                bound = signature.bind(*args[: len(first)], *positional, **named)
            except TypeError as error:
                raise TypeError(f"{method.__qualname__}() {error}") from None
            further = {name: check(bound.arguments[name]) for name in rest if name in bound.arguments}
            bound.arguments = check(bound.arguments) | further
            return method(*bound.args, **bound.kwargs)

        return validated

    return decorate


def code_of(name: Any, categories: Sequence[Any]) -> int | None:
    """Place of a category among others; None for one that is not there. True is not 1, as it is for Python."""
    for code, category in enumerate(categories):
        if isinstance(scalar(name), bool) == isinstance(scalar(category), bool) and np.all(name == category):
            return code
    return None


def codes_of(given: Any, categories: Sequence[Any]) -> list[int | None]:
    """Codes of batches given by name, one or several; None, also in a list, stands for each cell's own."""
    one = given is None or isinstance(given, str | bytes) or not isinstance(given, Iterable)
    one = one or (isinstance(given, tuple) and code_of(given, categories) is not None)
    codes: list[int | None] = []
    for name in [given] if one else given:
        code = code_of(name, categories)
        if name is not None and code is None:
            raise InputError(
                f'"{name}" not a valid batch category. There are {", ".join(map(str, categories))}.'
                + other_type(name, categories)
            )
        codes.append(code)
    if not codes:
        raise InputError(f"The list of batches is empty. There are {', '.join(map(str, categories))}.")
    return codes


# Forms of the older API


def deprecated(old: str, new: str, stacklevel: int = 4) -> None:
    """Warn that a form is of scvi-tools' older API, and name its replacement."""
    warnings.warn(f"{old} is of scvi-tools' older API; write {new}.", DeprecationWarning, stacklevel=stacklevel)


ACCELERATORS = ("auto", "cpu", "gpu", "cuda")


def is_use_gpu(value: Any) -> bool:
    """Whether a value is one of the older `use_gpu`: a boolean, a number, None, or a device such as "cuda:0"."""
    value = scalar(value)
    return value is None or isinstance(value, int) or (isinstance(value, str) and value.startswith("cuda:"))


def from_use_gpu(kwargs: dict[str, Any], device_name: str) -> dict[str, Any]:
    """`use_gpu` as `accelerator` and the argument that names the device."""
    value = scalar(kwargs.pop("use_gpu"))
    given = kwargs.get("accelerator", "auto")
    if value is None:
        accelerator, device = given, kwargs.get(device_name, "auto")
    elif isinstance(value, bool):
        accelerator, device = ("gpu" if value else "cpu"), "auto"
    elif isinstance(value, int) and value >= 0:
        accelerator, device = "gpu", [value] if device_name == "devices" else value
    elif isinstance(value, str) and value in ACCELERATORS:
        accelerator, device = value, "auto"
    elif isinstance(value, str) and value.removeprefix("cuda:").isdigit():
        index = int(value.removeprefix("cuda:"))
        accelerator, device = "gpu", [index] if device_name == "devices" else index
    else:
        raise InputError(f"use_gpu is {value!r}; it must be True, False, None, the number of a GPU, or 'cuda:0'.")
    if given != "auto" and {"cuda": "gpu"}.get(given, given) != {"cuda": "gpu"}.get(accelerator, accelerator):
        raise InputError(f"use_gpu is {value!r} and accelerator is {given!r}; give accelerator alone.")
    shown = f"accelerator={accelerator!r}" + ("" if device == "auto" else f", {device_name}={device!r}")
    deprecated(f"use_gpu={value!r}", shown, stacklevel=5)
    return kwargs | {"accelerator": accelerator, device_name: device}


def by_name(args: tuple[Any, ...], kwargs: dict[str, Any], names: Sequence[str], method: str) -> dict[str, Any]:
    """Positional arguments as keyword ones, under the names that they had."""
    if len(args) > len(names):
        raise TypeError(f"{method}() takes {len(names)} positional arguments but {len(args)} were given")
    for name in names[: len(args)]:
        if name in kwargs:
            raise TypeError(f"{method}() got multiple values for argument {name!r}")
    return dict(zip(names, args, strict=False)) | kwargs


def older_init(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """LinearSCVI(adata, …, gene_likelihood, latent_distribution): before there was `use_observed_lib_size`."""
    place = 7
    if len(args) == place + 1 and isinstance(args[place], str) and args[place] in ("normal", "ln"):
        deprecated(f"latent_distribution as the {place + 1}th argument", f"latent_distribution={args[place]!r}")
        return args[:place], kwargs | {"latent_distribution": args[place]}
    return args, kwargs


TRAIN_BEFORE_0_20 = (
    *("max_epochs", "use_gpu", "train_size", "validation_size", "batch_size", "early_stopping", "plan_kwargs"),
)
TRAIN_BEFORE_1_1 = (
    *("max_epochs", "use_gpu", "accelerator", "devices", "train_size", "validation_size", "shuffle_set_split"),
    *("batch_size", "early_stopping", "plan_kwargs"),
)


def older_train(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """train(max_epochs, use_gpu, train_size, …), and with accelerator and devices after use_gpu."""
    if len(args) > 1 and is_use_gpu(args[1]):
        names = TRAIN_BEFORE_1_1 if len(args) > 2 and isinstance(args[2], str) else TRAIN_BEFORE_0_20
        args, kwargs = (), by_name(args, kwargs, names, "train")
    if "use_gpu" in kwargs:
        kwargs = from_use_gpu(kwargs, "devices")
    return args, kwargs


def older_load(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """load(dir_path, adata, use_gpu, prefix, backup_url), and with accelerator and device after use_gpu."""
    if len(args) > 2 and is_use_gpu(args[2]):
        between = ("accelerator", "device") if len(args) > 3 and args[3] in ACCELERATORS else ()
        names = ("dir_path", "adata", "use_gpu", *between, "prefix", "backup_url")
        args, kwargs = (), by_name(args, kwargs, names, "load")
    if "use_gpu" in kwargs:
        kwargs = from_use_gpu(kwargs, "device")
    return args, kwargs


def older_save(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """save(dir_path, overwrite, save_anndata): before there was `prefix`; told apart by its type."""
    if len(args) > 1 and isinstance(scalar(args[1]), bool):
        deprecated("overwrite as the second argument of save", f"overwrite={args[1]!r}")
        return (), by_name(args, kwargs, ("dir_path", "overwrite", "save_anndata"), "save")
    return args, kwargs
