"""The format of scvi-tools: weights under other names, in a pickle."""

from __future__ import annotations

import logging
import os
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ldvae.config import ModelConfig
from ldvae.data import Registry, Split
from ldvae.errors import InputError, listed
from ldvae.likelihoods import LIKELIHOODS
from ldvae.storage.checkpoint import (
    RestrictedUnpickler,
    read_checkpoint,
    read_pickle,
)
from ldvae.storage.saved import History, SavedModel, Target

logger = logging.getLogger(__name__)


SCVI_VERSION = "1.4.2"  # the release whose checkpoints `write_scvi_tools` imitates


def scvi_names(n_layers: int) -> list[tuple[str, str]]:
    """Pairs of prefixes of parameter names: those of scvi-tools and ours, the longer ones first."""
    pairs = [
        ("px_r", "log_theta"),
        ("library_log_means", "library_log_means"),
        ("library_log_vars", "library_log_vars"),
    ]
    for encoder, depth in (("z_encoder", n_layers), ("l_encoder", 1)):
        for i in range(depth):
            block = f"{encoder}.encoder.fc_layers.Layer {i}"
            pairs += [(f"{block}.0.", f"{encoder}.layers.{i}."), (f"{block}.1.", f"{encoder}.norms.{i}.")]
        pairs += [(f"{encoder}.mean_encoder.", f"{encoder}.mean."), (f"{encoder}.var_encoder.", f"{encoder}.log_var.")]
    for theirs, ours in (("decoder.factor_regressor", "decoder"), ("decoder.px_dropout_decoder", "zi_decoder")):
        pairs += [(f"{theirs}.fc_layers.Layer 0.1.", f"{ours}.norm."), (f"{theirs}.fc_layers.Layer 0.0.", f"{ours}.")]
    return pairs


def _rename(name: str, pairs: list[tuple[str, str]]) -> str:
    for old, new in pairs:
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise InputError(f"The checkpoint holds a parameter {name!r} that no LinearSCVI has.")


def reference_attributes(model: SavedModel) -> dict[str, Any]:
    """What scvi-tools 1.4.2 saves of a model besides its weights, by its names."""
    config, registry = model.config, model.registry
    own = {"use_batch_norm", "bias", "log_variational"}  # in scvi-tools these are **model_kwargs
    defaults = ModelConfig()
    module_options = {name: getattr(config, name) for name in own if getattr(config, name) != getattr(defaults, name)}
    if config.dispersion == "gene-label":
        module_options["n_labels"] = registry.shape.n_labels
    parts = model.split._asdict() if model.split is not None else dict.fromkeys(Split._fields)
    return {
        "init_params_": {
            "kwargs": {"model_kwargs": module_options},
            "non_kwargs": {name: value for name, value in config if name not in own},
        },
        "registry_": {"scvi_version": SCVI_VERSION} | registry.reference_layout(),
        "history_": model.history,
        "is_trained_": model.is_trained,
        "run_name_": model.run_name,
        "run_id_": model.run_id,
        "get_normalized_function_name_": "get_normalized_expression",
        **{f"{part}_indices_": indices for part, indices in parts.items()},
    }


def write_scvi_tools(model: SavedModel, directory: Path, *, prefix: str = "", overwrite: bool = False) -> None:
    """Write `model.pt` as scvi-tools 1.4.2 saves it; its own `LinearSCVI.load` accepts the directory.

    Raises
    ------
    InputError
        If the model has what that of scvi-tools does not, or the directory exists and `overwrite` is False.
    """
    config, registry = model.config, model.registry
    extensions = {
        "dispersion 'gene-cell'": config.dispersion == "gene-cell",
        "categorical covariates": bool(registry.categorical_covariate_keys),
        "continuous covariates": bool(registry.continuous_covariate_keys),
        "size factors": registry.size_factor_key is not None,
        "minified data": model.minified is not None,
    }
    if foreign := [name for name, present in extensions.items() if present]:
        raise InputError(f"This model cannot be exported: scvi-tools' LinearSCVI does not have {listed(foreign)}.")

    names = [(ours, theirs) for theirs, ours in scvi_names(config.n_layers)]
    state: dict[str, Any] = OrderedDict(
        (_rename(name, names), tensor.detach().cpu().contiguous()) for name, tensor in model.state.items()
    )
    for name in ("library_log_means", "library_log_vars"):
        if name in state:
            state[name] = state[name][None]
    for name, tensor in list(state.items()):  # scvi-tools has these layers for every likelihood, used or not
        if name.startswith("decoder.factor_regressor."):
            state.setdefault(name.replace("factor_regressor", "px_dropout_decoder"), tensor.clone())
    columns = {"gene": (), "gene-batch": (registry.shape.n_batch,), "gene-label": (registry.shape.n_labels,)}
    state.setdefault("px_r", torch.zeros(registry.shape.n_vars, *columns[config.dispersion]))
    if config.use_observed_lib_size:
        state.update(_inert_library_encoder(config, registry.shape.n_vars))
    state["pyro_param_store"] = {"params": {}, "constraints": {}}

    attributes = reference_attributes(model)
    var_names = np.array(registry.var_names, dtype=object)
    with Target(directory, overwrite) as target:
        temporary = target / f".{prefix}model.pt.{uuid.uuid4().hex}"
        try:
            torch.save({"model_state_dict": state, "var_names": var_names, "attr_dict": attributes}, temporary)
            os.replace(temporary, target / f"{prefix}model.pt")
        finally:
            temporary.unlink(missing_ok=True)


def _inert_library_encoder(config: ModelConfig, n_vars: int) -> Iterator[tuple[str, Tensor]]:
    """The library encoder that scvi-tools keeps, unused, where the library size is observed."""
    n_hidden = config.n_hidden
    block = "l_encoder.encoder.fc_layers.Layer 0"
    yield f"{block}.0.weight", torch.zeros(n_hidden, n_vars)
    yield f"{block}.0.bias", torch.zeros(n_hidden)
    for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
        yield f"{block}.1.{name}", torch.full((n_hidden,), value)
    yield f"{block}.1.num_batches_tracked", torch.tensor(0)
    for head in ("mean_encoder", "var_encoder"):
        yield f"l_encoder.{head}.weight", torch.zeros(1, n_hidden)
        yield f"l_encoder.{head}.bias", torch.zeros(1)


def read_scvi_tools(path: Path) -> SavedModel:
    """Read a LinearSCVI that scvi-tools saved (`model.pt`); what its pickle asks for is described, never executed.

    Raises
    ------
    InputError
        If there is no such file, it is not a LinearSCVI, or its pickle holds anything but arrays and tables.
    """
    if not path.exists():
        raise InputError(
            f"Failed to load a model from {path.parent}: it holds neither {path.with_suffix('.json').name} nor "
            f"{path.name}. If scvi-tools before 0.15.0 saved it, convert it with LinearSCVI.convert_legacy_save."
        )
    content = read_checkpoint(path)
    try:
        return _from_reference(content["model_state_dict"], content["var_names"], content["attr_dict"])
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a checkpoint of scvi-tools' LinearSCVI: found {error!r}.") from error


def read_legacy(directory: Path, prefix: str = "") -> SavedModel:
    """Read a model saved by scvi-tools before 0.15.0: `model_params.pt`, `var_names.csv` and `attr.pkl`."""
    parts = [directory / f"{prefix}{name}" for name in ("model_params.pt", "var_names.csv", "attr.pkl")]
    if missing := [path.name for path in parts if not path.exists()]:
        raise InputError(f"{directory} is not a legacy model of scvi-tools: {', '.join(missing)} not found.")
    with open(parts[2], "rb") as file:
        attributes = read_pickle(parts[2], RestrictedUnpickler(file))
    if "scvi_setup_dict_" in attributes:
        attributes["registry_"] = _modern_registry(attributes["scvi_setup_dict_"])
    var_names = np.atleast_1d(np.genfromtxt(parts[1], delimiter=",", dtype=str))
    return _from_reference(read_checkpoint(parts[0]), var_names, attributes)


def _modern_registry(setup: dict[str, Any]) -> dict[str, Any]:
    """The registry that scvi-tools keeps since 0.15, from the setup dictionary that it kept before."""
    x = setup["data_registry"]["X"]
    mappings, stats = setup["categorical_mappings"], setup["summary_stats"]
    registry: dict[str, Any] = {
        "setup_args": {"layer": x["attr_key"] if x["attr_name"] == "layers" else None},
        "field_registries": {"X": {"state_registry": {"n_obs": stats["n_cells"]}}},
    }
    for name in ("batch", "labels"):
        mapping = mappings[f"_scvi_{name}"]
        key = None if mapping["original_key"] == f"_scvi_{name}" else mapping["original_key"]
        registry["setup_args"][f"{name}_key"] = key
        registry["field_registries"][name] = {"state_registry": {"categorical_mapping": mapping["mapping"]}}
    return registry


# Arguments of scvi-tools' module that change nothing in a LinearSCVI (scvi-tools, constructor).
_WITHOUT_EFFECT = {
    "encode_covariates",
    "deeply_inject_covariates",
    "use_layer_norm",
    "var_activation",
    "extra_encoder_kwargs",
    "n_continuous_cov",
    "n_cats_per_cov",
    "extra_payload_autotune",
    "use_cuda",
}


# Further arguments that change nothing at these values.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "batch_representation": ("one-hot",),
    "use_size_factor_key": (False, None),
    "extra_decoder_kwargs": (None, {}),
    "batch_embedding_kwargs": (None, {}),
}


def _from_reference(weights: Mapping[str, Any], var_names: np.ndarray, attributes: dict[str, Any]) -> SavedModel:
    registry = Registry.from_layout(attributes["registry_"], var_names)
    parameters = attributes["init_params_"]
    options = dict(parameters.get("non_kwargs", {k: v for k, v in parameters.items() if not isinstance(v, dict)}))
    for nested in parameters.get("kwargs", {k: v for k, v in parameters.items() if isinstance(v, dict)}).values():
        options |= nested
    options.pop("n_labels", None)
    for name, neutral in _NEUTRAL.items():
        if name in options and options[name] in neutral:
            del options[name]
    # Any text counted as True, "none" too; the weights know.
    if "use_batch_norm" in options:
        options["use_batch_norm"] = any(".fc_layers.Layer 0.1." in name and "decoder." in name for name in weights)
    known = set(ModelConfig.model_fields)
    if unknown := sorted(options.keys() - known - _WITHOUT_EFFECT):
        raise InputError(f"The checkpoint was made with {', '.join(unknown)}, which ldvae does not have.")
    config = ModelConfig(**{name: value for name, value in options.items() if name in known})
    pairs = scvi_names(config.n_layers)
    tensors = {name: tensor for name, tensor in weights.items() if isinstance(tensor, Tensor)}
    # The state of one of our modules, if somebody saved it in the legacy layout, has our names already.
    ours = any(name.startswith("z_encoder.layers.") for name in tensors)
    state = tensors if ours else {_rename(name, pairs): tensor for name, tensor in tensors.items()}
    likelihood = LIKELIHOODS[config.gene_likelihood]
    unused = [] if likelihood.has_theta else ["log_theta"]
    unused += [] if likelihood.has_zi_logits else ["zi_decoder."]
    unused += ["l_encoder.", "library_log_"] if config.use_observed_lib_size else []
    state = {name: tensor for name, tensor in state.items() if not name.startswith(tuple(unused))}
    for buffer in ("library_log_means", "library_log_vars"):
        if buffer in state:
            state[buffer] = state[buffer].reshape(-1)
    indices: list[Any] = [attributes.get(f"{part}_indices_") for part in Split._fields]
    return SavedModel(
        config=config,
        registry=registry,
        state=state,
        history=_history_of(attributes.get("history_") or {}),
        split=Split(*indices) if all(isinstance(part, np.ndarray) for part in indices) else None,
        is_trained=bool(attributes.get("is_trained_", True)),
        run_name=str(attributes.get("run_name_", "")),
        run_id=str(attributes.get("run_id_", "")),
    )


def _history_of(described: dict[str, Any]) -> History:
    """The training history from what the pickle says of its pandas tables; nothing if pandas wrote them otherwise."""
    history: History = {}
    try:
        for name, frame in described.items():
            blocks, axes = frame.state["_mgr"].args
            index = axes[1].args[1]
            rows = index["data"] if "data" in index else np.arange(index["start"], index["stop"], index["step"])
            values = np.asarray(blocks[0].args[0], dtype=float).reshape(-1)
            history[name] = pd.DataFrame({name: values}, index=pd.Index(rows, name=index.get("name")))
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        logger.warning("The training history of the checkpoint is left out: unknown layout (%r).", error)
        return {}
    return history
