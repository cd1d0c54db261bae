"""Snakemake profiles for clusters and workstations."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Literal

from ldvae.errors import InputError
from ldvae.steps.init import packaged

logger = logging.getLogger(__name__)


def profile(action: Literal["install"], name: Literal["slurm", "workstation"], *, folder: Path | None = None) -> None:
    """Copy a Snakemake profile to where `snakemake --profile` finds it from any folder.

    Parameters
    ----------
    action
        What to do: install.
    name
        Which profile: slurm, or workstation (one machine with a GPU).
    folder
        Where to copy it; not given: the user's folder of Snakemake profiles. A profile that is there is left alone.
    """
    if folder is None:
        home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        folder = home / "snakemake" / name
    if folder.exists() and any(folder.iterdir()):
        raise InputError(
            f"{folder} is there already and may hold your settings; remove it first, or give another --folder."
        )
    shutil.copytree(packaged(name), folder, dirs_exist_ok=True)
    logger.info("Installed %s; set account and partitions in it, then: snakemake --profile %s", folder, name)
