"""What is saved of a model, and the folder that it is written into, which appears whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from ldvae.config import ModelConfig
from ldvae.data import Registry, Split
from ldvae.errors import InputError

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
    run_name, run_id
        Name and id of the run.
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
    run_id: str = ""
    seed: int | None = None
    cells: np.ndarray | None = None


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """Hash of the weights of a model, independent of the device, and the same after saving and loading."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).data)
    return digest.hexdigest()


class Target:
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
