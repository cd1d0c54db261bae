"""What stands in a results folder: its runs, the options it was made with, failures, and whether it can be written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldvae.errors import InputError
from ldvae.results.files import (
    BEST,
    DE,
    METRICS,
    ONLY_IF,
    OVER_DATASETS,
    PROGRAMS_SUMMARY,
    QC_SUMMARY,
    SETUP_SUMMARY,
    inputs,
)

if TYPE_CHECKING:
    from ldvae.config import Dataset, TrainConfig
    from ldvae.config.options import Options


def require_inputs(verb: str, results: Path) -> None:
    """Raise an InputError if a file is missing that the verb always reads."""
    for file in inputs(verb):
        if "{" not in file.path and (verb, file) not in ONLY_IF and verb not in OVER_DATASETS:
            file.existing(results)


def require_writable(folder: Path) -> None:
    """Raise an InputError if a folder, which may not exist yet, cannot be written to."""
    place = next(part for part in (folder, *folder.parents) if os.path.lexists(part))
    where = str(place) if place.resolve() == place.absolute() else f"{place} (which is {place.resolve()})"
    if not place.exists():
        problem, remedy = "does not exist", "Make that folder"
    elif not place.is_dir():
        problem, remedy = "is not a folder", "Move that file away"
    elif os.statvfs(place).f_flag & os.ST_RDONLY:
        problem, remedy = "is on a read-only file system", "Mount it for writing"
    elif not os.access(place, os.W_OK | os.X_OK):
        problem, remedy = "cannot be written by this user (permission denied)", "Change its permissions"
    else:
        return
    raise InputError(f"{where} {problem}, and the results are written there. {remedy}, or give another folder.")


def runs_of(results: Path) -> list[str]:
    """Names of the finished runs in a results folder, sorted."""
    name = METRICS.path.format(run="*")
    return sorted(path.parent.name for path in Path(results).glob(name))


#: Where a verb writes down the options that it was called with, under "settings".
SETTINGS_OF = {
    "qc": QC_SUMMARY.path,
    "setup": SETUP_SUMMARY.path,
    "select": BEST.path,
    "programs": PROGRAMS_SUMMARY.path,
    "de": f"{DE.path}/summary.json",
}


def other_options(
    made: Mapping[str, Any], configured: Mapping[str, Any], options: Options
) -> list[tuple[str, Any, Any]]:
    """Options that results were made with and that are configured otherwise: name, value made with, value configured.

    Files are left out, for engines may put them elsewhere, and so is what the config does not know. `options` are the
    configured ones as a section.
    """
    from ldvae.config import named

    files = {option for option, _ in named(options, "file")}
    return [
        (option, value, configured[option])
        for option, value in made.items()
        if option in configured and option not in files and configured[option] != value
    ]


def made_otherwise(results: Path, dataset: Dataset) -> list[str]:
    """Verbs whose results are there and were made with other options than those of the dataset."""
    found = []
    for verb, name in SETTINGS_OF.items():
        try:
            made = json.loads((Path(results) / name).read_text(encoding="utf-8"))["settings"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        options = getattr(dataset, verb)
        if other_options(made, json.loads(json.dumps(options.model_dump())), options):
            found.append(verb)
    return found


def values_to_train(results: Path, train: TrainConfig) -> int:
    """How much work a training is at most: cells times genes times epochs; 0 where that is not known yet."""
    path = SETUP_SUMMARY.at(results)
    setup = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not setup.get("n_train"):
        return 0
    return setup["n_train"] * setup["n_vars"] * train.fit_config(setup["n_train"]).max_epochs


def failure_file(results: Path, verb: str, name: str | None = None) -> Path:
    """Path of the record of a verb's failure; `name` is the run or the projection."""
    return Path(results) / "failures" / f"{verb}{'-' + name if name else ''}.json"


def failures(results: Path) -> list[dict[str, Any]]:
    """Recorded failures of a dataset: verb, command, message, exit code and id of the workflow run."""
    return [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted((Path(results) / "failures").glob("*.json"))
    ]
