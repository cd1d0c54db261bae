"""The config of a run as it was when the run started: jobs that start later do not read an edited file."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldvae.errors import InputError

RUN = "LDVAE_RUN"  # in the environment of the jobs: a new id for each run of the workflow
VARIABLE = "LDVAE_CONFIGS"  # in the environment of the jobs: the frozen config of each output folder, as JSON


def freeze(config: Mapping[str, Any], folder: Path = Path(".snakemake/ldvae")) -> dict[str, Any]:
    """Write a config to a file that is named by its hash, and tell the jobs of this run where it is.

    Parameters
    ----------
    config
        As it was read.
    folder
        Where to write it; jobs on other machines see it, too.

    Returns
    -------
    dict
        The config as the jobs will read it.
    """
    text = json.dumps(config, default=str, indent=2) + "\n"
    path = folder.absolute() / f"config-{_digest(text)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    temporary.write_text(text)
    temporary.replace(path)
    os.environ[RUN] = uuid.uuid4().hex
    os.environ[VARIABLE] = json.dumps(_known() | {_key(config): str(path)})
    return json.loads(text)


def frozen(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config that the run of this job started with, in place of one that may have been edited since.

    Parameters
    ----------
    config
        As the job reads it now. It tells which of several frozen configs is meant (those of modules), and is used
        itself where the environment of the job names none.
    """
    known = _known()
    if not known:
        return dict(config)
    # One workflow alone: it is meant even if its output folder was edited.
    path = next(iter(known.values())) if len(known) == 1 else known.get(_key(config))
    if path is None:
        raise InputError(
            f"outdir: {_key(config)!r} is not one of those that this run started with: {', '.join(known)}."
        )
    text = Path(path).read_text()
    if _digest(text) != Path(path).stem.removeprefix("config-"):
        raise InputError(f"{path}: was edited while the run was going on. Start the run again.")
    return json.loads(text)


def _known() -> dict[str, str]:
    return json.loads(os.environ.get(VARIABLE) or "{}")


def _key(config: Mapping[str, Any]) -> str:
    return str(config.get("outdir") or ".")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
