"""Save and load models (safetensors, JSON, CSV); import and export of scvi-tools checkpoints. No pickle is executed."""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import os
import pickle
import shutil
import uuid
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from functools import partial
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ldvae.config import ModelConfig
from ldvae.data import Registry, Split
from ldvae.errors import InputError
from ldvae.likelihoods import LIKELIHOODS

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
SCVI_VERSION = "1.4.2"  # the release whose checkpoints `write_scvi_tools` imitates
History = dict[str, pd.DataFrame]


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """Everything that a model directory holds.

    Attributes
    ----------
    config
        Architecture.
    registry
        What was registered of the data that the model was made from.
    state
        `LDVAE.state_dict()`.
    history
        One table for each metric of the training: a single column named as its key, index named "epoch".
    split
        Cells of the last training; None before one.
    is_trained
        Whether the model was trained.
    minified
        "latent_posterior_parameters" or "latent_posterior_parameters_with_counts" for a minified model, else None.
    run_name
        Name of the run.
    seed
        Seed of the training; None: unknown.
    cells
        Hashes of the names of the cells that `split` numbers (`ldvae.data.name_hashes`); None: unknown.
    """

    config: ModelConfig
    registry: Registry
    state: Mapping[str, Tensor]
    history: History = field(default_factory=dict)
    split: Split | None = None
    is_trained: bool = True
    minified: str | None = None
    run_name: str = ""
    seed: int | None = None
    cells: np.ndarray | None = None


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """Hash of the weights of a model, independent of the device, and the same after saving and loading."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).data)
    return digest.hexdigest()


# Our own format


def write_model(
    model: SavedModel,
    directory: Path,
    *,
    prefix: str = "",
    overwrite: bool = False,
    write_adata: Callable[[Path], None] | None = None,
) -> None:
    """Write a model directory: `model.safetensors`, `model.json`, `history.csv` and, if given, `adata.h5ad`.

    Parameters
    ----------
    model
        What to write.
    directory
        Where to; its parents are made.
    prefix
        Put before each file name, so that several models can share a directory.
    overwrite
        Replace the model of that prefix in a directory that exists; other files in it stay.
    write_adata
        Writes the data set to the path it is given.

    Raises
    ------
    InputError
        If the directory exists and `overwrite` is False; nothing in it is touched then.

    Notes
    -----
    A new directory appears complete, by one rename. In one that exists, `model.json` is what makes the other files a
    model: it is replaced last, by one rename, and names them. Until then they have other names than the files of the
    model that is there, so that whenever the process is killed, either the old or the new model can be loaded.
    """
    description = {
        "format": "ldvae model",
        "format_version": FORMAT_VERSION,
        "ldvae_version": version("ldvae"),
        "files": {},
        "config": dict(model.config),
        "registry": model.registry.to_dict(),
        "is_trained": bool(model.is_trained),
        "minified": model.minified,
        "run_name": str(model.run_name),
        "seed": model.seed,
    }
    json.dumps(description)  # what cannot be written fails before anything is
    if Path(prefix).name != prefix:
        raise InputError(f"prefix is {prefix!r}; it must be the beginning of a file name. Folders belong in dir_path.")
    with _target(directory, overwrite) as target:
        previous = _json_files(target / f"{prefix}model.json")
        files: dict[str, str] = {}
        temporary = target / f".{prefix}model.json.{uuid.uuid4().hex}"
        try:
            for role, name, write in (
                ("weights", "model.safetensors", partial(_write_tensors, model)),
                ("history", "history.csv", partial(_write_history, model.history)),
                ("adata", "adata.h5ad", write_adata),
            ):
                if write is not None:
                    files[role] = _unused(prefix + name, set(previous.values()))
                    write(target / files[role])
            temporary.write_text(json.dumps(description | {"files": files}, indent=1) + "\n")
            os.replace(temporary, target / f"{prefix}model.json")
        except BaseException:
            for path in (temporary, *(target / name for name in files.values())):
                path.unlink(missing_ok=True)
            raise
        for name in set(previous.values()) - set(files.values()):
            (target / name).unlink(missing_ok=True)


def read_model(directory: Path, prefix: str = "") -> SavedModel:
    """Read a model directory of ours, or one of scvi-tools (`model.pt`).

    Raises
    ------
    InputError
        If there is no model, or it is of a newer format, damaged, or of another class.
    """
    path = directory / f"{prefix}model.json"
    if not path.exists():
        return read_scvi_tools(directory / f"{prefix}model.pt")
    description = _read_json(path)
    weights = directory / description["files"]["weights"]
    try:
        with safe_open(weights, framework="pt") as tensors:
            loaded = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{weights} cannot be read: {error}. The model was damaged or copied in part.") from error
    split = [loaded.pop(f"split.{part}", None) for part in Split._fields]
    cells = loaded.pop("split.cells", None)
    return SavedModel(
        config=ModelConfig(**description["config"]),
        registry=Registry.from_dict(description["registry"]),
        state=loaded,
        history=_read_history(directory / description["files"]["history"]),
        split=Split(*(part.numpy() for part in split if part is not None)) if split[0] is not None else None,
        is_trained=description["is_trained"],
        minified=description["minified"],
        run_name=description["run_name"],
        seed=description["seed"],
        cells=None if cells is None else cells.numpy().view(np.uint64),
    )


def adata_path(directory: Path, prefix: str = "") -> Path | None:
    """Where the data set was saved beside the model; None if it was not."""
    path = directory / f"{prefix}model.json"
    name = _read_json(path)["files"].get("adata") if path.exists() else f"{prefix}adata.h5ad"
    return directory / name if name is not None and (directory / name).exists() else None


class _target:
    """The directory to write into: a hidden one that gets its name when all is written, or the one that exists."""

    def __init__(self, directory: Path, overwrite: bool) -> None:
        self.directory = self.working = Path(directory).absolute()
        self.made: list[Path] = []  # parents that were not there, the nearest first
        exists = os.path.exists  # unlike Path.exists, also for a name that is too long
        if exists(self.directory) and not self.directory.is_dir():
            raise InputError(f"{directory} is a file; a model is saved to a directory.")
        if not exists(self.directory):
            self.made = [parent for parent in self.directory.parents if not exists(parent)]
            self.working = self.directory.parent / f".{self.directory.name}.{uuid.uuid4().hex}"
        elif not overwrite:
            raise InputError(
                f"{directory} already exists. Please provide another directory for saving, or overwrite=True."
            )

    def __enter__(self) -> Path:
        try:
            self.working.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(
                f"{self.directory} cannot be made: a part of this path is a file. Give another."
            ) from error
        except OSError as error:  # no permission, a name that is too long, a file system that takes no folders
            self.remove_parents()
            raise InputError(f"{self.directory} cannot be made: {error.strerror}. Give another folder.") from error
        return self.working

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self.working == self.directory:
            return
        if error is None:
            os.rename(self.working, self.directory)
            return
        shutil.rmtree(self.working)
        self.remove_parents()

    def remove_parents(self) -> None:
        """Remove the parents that were made, unless something else has come into them."""
        for parent in self.made:
            with suppress(OSError):
                parent.rmdir()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text())
        format_version = description["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not the description of an ldvae model ({error!r}).") from error
    if format_version > FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {format_version}, written by ldvae {description.get('ldvae_version')}; this is "
            f"ldvae {version('ldvae')}, which reads versions up to {FORMAT_VERSION}. Please upgrade ldvae to load it."
        )
    return description


def _json_files(path: Path) -> dict[str, str]:
    """Files of the model that is in the way, by role."""
    return _read_json(path)["files"] if path.exists() else {}


def _unused(name: str, used: set[str]) -> str:
    """`name`, or a variant of it while the model in the directory uses it."""
    stem, suffix = name.rsplit(".", 1)
    return f"{stem}.new.{suffix}" if name in used else name


def _write_tensors(model: SavedModel, path: Path) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state.items()}
    if model.split is not None:
        tensors |= {f"split.{k}": torch.as_tensor(v, dtype=torch.int64) for k, v in model.split._asdict().items()}
        if model.cells is not None:
            tensors["split.cells"] = torch.from_numpy(model.cells.view(np.int64))
    path.write_bytes(save(tensors))


def _write_history(history: History, path: Path) -> None:
    table = pd.concat(history.values(), axis=1) if history else pd.DataFrame()
    table.to_csv(path, index_label="epoch")


def _read_history(path: Path) -> History:
    # As text first: the float parser of pandas is exact only on request, and the request differs between its versions.
    table = pd.read_csv(path, dtype=str, index_col="epoch").astype(float)
    table.index = table.index.astype(int)
    return {name: table[[name]].dropna() for name in table}


# The format of scvi-tools: weights under other names, in a pickle


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
        "run_id_": "",
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
        "a size factor": registry.size_factor_key is not None,
        "minified data": model.minified is not None,
    }
    if foreign := [name for name, present in extensions.items() if present]:
        raise InputError(
            f"scvi-tools' LinearSCVI has no {' and no '.join(foreign)}: this model cannot be exported to it."
        )

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
    with _target(directory, overwrite) as target:
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
        attributes = _restricted(parts[2], _RestrictedUnpickler(file))
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
    registered = attributes["registry_"]
    name = registered.get("model_name", "LinearSCVI")
    if name != "LinearSCVI":
        raise InputError(
            f"It appears you are loading a model from a different class: found {name}, expected LinearSCVI."
        )
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

    categories = {}
    for field_name in ("batch", "labels"):
        mapping = registered["field_registries"][field_name]["state_registry"]["categorical_mapping"]
        values = np.asarray(mapping)
        # Dates and durations would become numbers.
        categories[field_name] = tuple(pd.Index(values)) if values.dtype.kind in "mM" else tuple(values.tolist())
    arguments = registered["setup_args"]
    registry = Registry(
        layer=arguments.get("layer"),
        batch_key=arguments.get("batch_key"),
        labels_key=arguments.get("labels_key"),
        var_names=tuple(map(str, var_names)),
        categories=categories,
        n_obs=int(registered["field_registries"]["X"]["state_registry"].get("n_obs", 0)),
        uuid=str(registered.get("_scvi_uuid", "")),
    )
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


# Unpickling into placeholders: a pickle can only call the functions below


class _Described:
    """Placeholder for an object of a pickle, with the arguments it would have been made from."""

    args: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *args: Any) -> _Described:
        described = super().__new__(cls)
        described.args = args
        return described

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _ArrayDescription(_Described):
    """A numpy array as its pickle gives it: version, shape, dtype, Fortran order, values."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return _array_of(self)


def _array_of(described: _Described) -> np.ndarray:
    _, shape, dtype, fortran, values = described.state
    dtype = dtype.numpy_dtype()
    if dtype.hasobject:
        array = np.empty(len(values), dtype=object)
        for i, value in enumerate(values):  # a slice would make a table of tuples
            array[i] = value
    else:
        array = np.frombuffer(values, dtype=dtype).copy()
    return array.reshape(shape, order="F" if fortran else "C")


class _DtypeDescription(_Described):
    """A numpy dtype: its code, and the state that holds its byte order."""

    def numpy_dtype(self) -> np.dtype:
        code = str(self.args[0])
        if code in ("M8", "m8") and self.state:
            unit, count = self.state[-1][1][:2]
            code = f"{code}[{int(count)}{unit.decode() if isinstance(unit, bytes) else unit}]"
        elif code[0] not in "biufOSU":
            raise pickle.UnpicklingError(f"array of dtype {code!r}")
        dtype = np.dtype(code)
        return dtype.newbyteorder(">") if self.state and self.state[1] == ">" else dtype


class _Value(_Described):
    """A date, a duration, a number or an interval: made from plain values by `plain`, and by nothing in the pickle."""

    def plain(self) -> Any:
        """The value."""
        raise NotImplementedError


class _IntervalDescription(_Value):
    def plain(self) -> pd.Interval:
        return pd.Interval(*self.args)


class _PeriodDescription(_Value):
    def plain(self) -> pd.Period:
        _, freq, ordinal = self.args
        return pd.Period(ordinal=int(ordinal), freq=freq)


class _OffsetDescription(_Value):
    """A frequency of periods, such as MonthEnd."""

    def plain(self) -> Any:
        return getattr(pd.offsets, type(self).__name__)(*self.args)


_RESOLUTIONS = {7: "s", 8: "ms", 9: "us", 10: "ns"}  # of pandas, by the numbers in its pickles


class _TimestampDescription(_Value):
    def plain(self) -> pd.Timestamp:
        value, _, zone, resolution = self.args
        utc = pd.Timestamp(np.array(value, dtype=f"M8[{_RESOLUTIONS[resolution]}]")[()])
        return utc.tz_localize("UTC").tz_convert(zone) if zone else utc


class _TimedeltaDescription(_Value):
    def plain(self) -> pd.Timedelta:
        value, resolution = self.args
        return pd.Timedelta(np.array(value, dtype=f"m8[{_RESOLUTIONS[resolution]}]")[()])


class _ZoneDescription(_Value):
    """A time zone of pytz, by its name."""

    def plain(self) -> str:
        return str(self.args[0]) if self.args else "UTC"


class _DateDescription(_Value):
    """Of the module datetime, whose pickles give the fields as bytes."""

    def plain(self) -> Any:
        return getattr(datetime, type(self).__name__)(*self.args)


class _DecimalDescription(_Value):
    def plain(self) -> Decimal:
        return Decimal(*self.args)


class _FractionDescription(_Value):
    def plain(self) -> Fraction:
        return Fraction(*self.args)


class _ComplexDescription(_Value):
    def plain(self) -> complex:
        return complex(*self.args)


class _UUIDDescription(_Value):
    def plain(self) -> uuid.UUID:
        return uuid.UUID(int=self.state["int"])


def _scalar(dtype: _DtypeDescription, value: bytes) -> Any:
    return np.frombuffer(value, dtype=dtype.numpy_dtype())[0].item()


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


def _mapping(*_factory: Any) -> dict[Any, Any]:
    return OrderedDict()  # not a dict: a state_dict comes with an attribute, and needs a place for it


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if prod(size) > storage.numel() or min((offset, *size, *stride)) < 0:
        raise pickle.UnpicklingError("a tensor larger than its storage")
    return torch.as_strided(storage, size, stride, offset).clone()


_SAFE: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _mapping,
    ("collections", "defaultdict"): _mapping,
    ("builtins", "dict"): _mapping,
    ("builtins", "bytes"): _no_bytes,
    ("builtins", "slice"): _Described,
    ("_codecs", "encode"): _latin1,
    ("numpy", "dtype"): _DtypeDescription,
    ("numpy", "ndarray"): _Described,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("pandas._libs.interval", "Interval"): _IntervalDescription,
    ("pandas._libs.tslibs.period", "Period"): _PeriodDescription,
    ("pandas._libs.tslibs.timestamps", "_unpickle_timestamp"): _TimestampDescription,
    ("pandas._libs.tslibs.timedeltas", "_timedelta_unpickle"): _TimedeltaDescription,
    ("pytz", "_p"): _ZoneDescription,
    ("pytz", "_UTC"): _ZoneDescription,
    ("decimal", "Decimal"): _DecimalDescription,
    ("fractions", "Fraction"): _FractionDescription,
    ("builtins", "complex"): _ComplexDescription,
    ("uuid", "UUID"): _UUIDDescription,
    ("uuid", "SafeUUID"): _Described,
    **{("datetime", name): _DateDescription for name in ("date", "datetime", "time", "timedelta", "timezone")},
    **{
        ("pandas._libs.tslibs.offsets", name): _OffsetDescription
        for name in (
            *("Nano", "Micro", "Milli", "Second", "Minute", "Hour", "Day", "Week", "BusinessDay"),
            *("MonthEnd", "MonthBegin", "QuarterEnd", "QuarterBegin", "YearEnd", "YearBegin"),
        )
    },
}
for _numpy in ("numpy.core", "numpy._core"):
    _SAFE[_numpy + ".multiarray", "_reconstruct"] = _ArrayDescription
    _SAFE[_numpy + ".multiarray", "scalar"] = _scalar
_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


class _RestrictedUnpickler(pickle.Unpickler):
    """Reads arrays, tensors and plain containers; tables are described, and everything else is refused by name."""

    def __init__(self, file: IO[bytes], read_storage: Callable[[str], bytes] | None = None) -> None:
        super().__init__(file, encoding="latin1")
        self._read_storage = read_storage
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module
        if module == "torch" and name in _STORAGES:
            return name
        safe = _SAFE.get((module, name))
        if safe is None and module.split(".")[0] in ("pandas", "pyarrow"):
            safe = _Described
        if safe is None:
            raise pickle.UnpicklingError(f"{module}.{name}")
        # A fresh object each time: the pickle may set attributes on what it is given, and shall reach nothing of ours.
        return type(name, (safe,), {}) if isinstance(safe, type) else partial(safe)

    def persistent_load(self, identifier: Any) -> Tensor:
        kind, storage_type, key, *_ = identifier
        if kind != "storage" or self._read_storage is None or storage_type not in _STORAGES:
            raise pickle.UnpicklingError(f"storage {identifier!r}")
        if key not in self._storages:
            content = bytearray(self._read_storage(key))
            dtype = _STORAGES[storage_type]
            self._storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self._storages[key]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a file written by `torch.save`, if it holds nothing but tensors, arrays, tables and containers.

    Raises
    ------
    InputError
        If it is another file, or its pickle names anything that is not on the list.
    """
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not a checkpoint of torch 1.6 or later (not a zip archive).")
    with zipfile.ZipFile(path) as archive:
        roots = [name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise InputError(f"{path} is not a checkpoint of torch: expected one data.pkl in it, found {len(roots)}.")
        root = roots[0]
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise InputError(f"{path} was written on a big-endian machine; ldvae reads little-endian checkpoints.")
        with archive.open(f"{root}data.pkl") as file:
            return _restricted(path, _RestrictedUnpickler(file, lambda key: archive.read(f"{root}data/{key}")))


def _restricted(path: Path, unpickler: _RestrictedUnpickler) -> dict[str, Any]:
    try:
        content = _plain(unpickler.load())
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} was refused: its pickle holds {error}, which no model of scvi-tools needs and which may run code. "
            "Nothing of it was executed. Load it only if you know its origin: in scvi-tools itself, to save it again."
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError, EOFError, IndexError, RuntimeError) as error:
        raise InputError(f"{path} is damaged, or no checkpoint of scvi-tools: {error}.") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path} is no checkpoint of scvi-tools: it holds a {type(content).__name__}, not a dictionary."
        )
    return content


def _plain(value: Any) -> Any:
    """Arrays made from their descriptions, everywhere inside containers and described objects."""
    if isinstance(value, _ArrayDescription):
        value.state = _plain(value.state)
        return _array_of(value)
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, _Described):
        value.args, value.state = _plain(value.args), _plain(value.state)
    return value.plain() if isinstance(value, _Value) else value
