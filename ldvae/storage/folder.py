"""The format of ldvae: weights in safetensors, a description in JSON, the history in CSV."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ldvae.config import ModelConfig
from ldvae.data import Registry, Split
from ldvae.errors import InputError
from ldvae.storage.saved import History, SavedModel, Target
from ldvae.storage.scvi_tools import read_scvi_tools

FORMAT_VERSION = 1


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
        "run_id": str(model.run_id),
        "seed": model.seed,
    }
    json.dumps(description)  # what cannot be written fails before anything is
    if Path(prefix).name != prefix:
        raise InputError(f"prefix is {prefix!r}; it must be the beginning of a file name. Folders belong in dir_path.")
    with Target(directory, overwrite) as target:
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
        run_id=description.get("run_id", ""),
        seed=description["seed"],
        cells=None if cells is None else cells.numpy().view(np.uint64),
    )


def adata_path(directory: Path, prefix: str = "") -> Path | None:
    """Where the data set was saved beside the model; None if it was not."""
    path = directory / f"{prefix}model.json"
    name = _read_json(path)["files"].get("adata") if path.exists() else f"{prefix}adata.h5ad"
    return directory / name if name is not None and (directory / name).exists() else None


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
