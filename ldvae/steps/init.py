"""A folder to work in: config, Snakefile and profiles, with the workflow of the installed package."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from ldvae.config import commented_config
from ldvae.errors import InputError

logger = logging.getLogger(__name__)

SNAKEFILE = '''\
# The workflow of the installed ldvae, with the config of this folder.
from ldvae.steps.init import packaged


include: packaged("workflow") / "Snakefile"


rule default:
    """Make everything."""
    default_target: True
    input:
        rules.all.input,
    localrule: True
'''


def init(folder: Path) -> None:
    """Write a folder to work in: config, Snakefile and cluster profiles.

    Parameters
    ----------
    folder
        Where to write; it is made. What is in it already stays as it is.
    """
    profiles = ("slurm", "workstation")
    there = [name for name in ("Snakefile", "config/config.yaml", *profiles) if (folder / name).exists()]
    if there:
        raise InputError(
            f"{folder} has {', '.join(there)} already, which may be yours; ldvae init replaces nothing. "
            "Give another folder."
        )
    (folder / "config").mkdir(parents=True, exist_ok=True)
    (folder / "config" / "config.yaml").write_text(commented_config(), encoding="utf-8")
    (folder / "Snakefile").write_text(SNAKEFILE, encoding="utf-8")
    for name in profiles:
        shutil.copytree(packaged(name), folder / name)
    logger.info(
        "Wrote %s. Edit config/config.yaml there (as it stands it runs the demo), then in that folder: "
        "ldvae check config/config.yaml; snakemake --cores all",
        folder,
    )


def packaged(name: str) -> Path:
    """Folder of the workflow or of a profile: beside the package in a clone, inside it when installed from a wheel."""
    package = Path(__file__).parents[1]
    places = (package.parent / name, package / name, package / "profiles" / name)
    return next(path for path in places if path.is_dir())
