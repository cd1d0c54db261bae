"""What stands in a results folder: its runs, the options it was made with, failures, and whether it can be written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
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
    RESOLVED,
    RUNS_TABLE,
    SELECT_RUNS,
    SETUP_SUMMARY,
    File,
    inputs,
)

if TYPE_CHECKING:
    from ldvae.config import Dataset, TrainConfig
    from ldvae.config.options import Options


def write_plan(dataset: Dataset, folder: Path) -> None:
    """Write the files of the verb plan, runs.tsv and resolved.json, into a folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in _plan_of(dataset).items():
        file.at(folder).write_text(text, encoding="utf-8")


def keep_plan(dataset: Dataset, folder: Path) -> Path:
    """Write the files of the verb plan into a folder that is named by what they hold, unless it is there.

    Parameters
    ----------
    dataset
        Its name begins that of the folder.
    folder
        In which the folder is made.

    Returns
    -------
    Path
        The folder, such as `folder`/kang-3fa9c1d2.
    """
    digest = hashlib.sha256("".join(_plan_of(dataset).values()).encode()).hexdigest()[:8]
    kept = folder / f"{dataset.name}-{digest}"
    if not kept.exists():
        temporary = folder / f".{os.getpid()}-{kept.name}"
        write_plan(dataset, temporary)
        try:
            temporary.replace(kept)
        except OSError:  # another process was faster
            shutil.rmtree(temporary)
    return kept


def _plan_of(dataset: Dataset) -> dict[File, str]:
    """What the files of the verb plan hold."""
    from ldvae.config import resolved, runs_table

    return {RUNS_TABLE: runs_table(dataset), RESOLVED: json.dumps(resolved(dataset), indent=2) + "\n"}


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
    made: Mapping[str, Any], configured: Mapping[str, Any], section: type[Options]
) -> list[tuple[str, Any, Any]]:
    """Options that results were made with and that are configured otherwise: name, value made with, value configured.

    Parameters
    ----------
    made
        The options that were written down; one that is missing had its default. Nothing written down, nothing differs.
    configured
        The options of the config; what was written down and is no option any more is left out.
    section
        Whose options they are. Of files the names alone are compared, for engines may put them elsewhere.
    """
    from ldvae.config import naming

    if not made:
        return []
    made = {**_plain(section()), **made}
    files = naming(section, "file")
    return [
        (option, made[option], value)
        for option, value in configured.items()
        if option in made and (_names(made[option]) != _names(value) if option in files else made[option] != value)
    ]


def records_others(summary: Path, options: Options | None = None, **others: Any) -> bool:
    """Whether a summary is there whose results were made with other options, or whose entries have other values."""
    record = _read_record(summary)
    differs = any(record.get(name, value) != value for name, value in others.items())
    if options is None:
        return differs
    return differs or bool(other_options(record.get("settings") or {}, _plain(options), type(options)))


def made_otherwise(results: Path, dataset: Dataset) -> list[str]:
    """Verbs whose results are there and were made with other options, files or runs than those of the dataset.

    What a verb does not write down itself is compared with the options of the dataset when it was last planned.
    """
    from ldvae.config import SECTIONS, resolved

    results = Path(results)
    found = {verb for verb, name in SETTINGS_OF.items() if records_others(results / name, getattr(dataset, verb))}
    planned, now = _read_record(RESOLVED.at(results)), json.loads(json.dumps(resolved(dataset)))
    changed = {
        section: {option for option, _, _ in other_options(planned.get(section) or {}, now[section], SECTIONS[section])}
        for section in now
    }
    if planned and planned != now:
        found.add("plan")
    if changed["annotate"]:
        found.add("annotate")
    if changed["setup"] & {"batch_key", "labels_key"} or _of_other_inputs(results, dataset):
        found.add("qc")
    if _of_other_runs(results, dataset):
        found.add("select")
    return sorted(found)


def _of_other_inputs(results: Path, dataset: Dataset) -> bool:
    """Whether qc read files of other names. A folder of several samples is recorded as those."""
    read = [Path(file["path"]).parts for file in _read_record(QC_SUMMARY.at(results)).get("inputs", [])]
    names = {Path(path).name for path in dataset.inputs.values()}
    if not read or "" in names or any("://" in path for path in dataset.inputs.values()):
        return False
    return not all(names.intersection(parts) for parts in read) or not names <= {
        part for parts in read for part in parts
    }


def _of_other_runs(results: Path, dataset: Dataset) -> bool:
    """Whether select compared other runs."""
    try:
        lines = SELECT_RUNS.at(results).read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    head, *rows = (line.split("\t") for line in lines)
    return "run" in head and {row[head.index("run")] for row in rows} != dataset.runs.keys()


def _read_record(path: Path) -> dict[str, Any]:
    """What a file of JSON holds; nothing where it is not there or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _plain(options: Options) -> dict[str, Any]:
    """Options as JSON holds them."""
    plain: dict[str, Any] = json.loads(json.dumps(options.model_dump()))
    return plain


def _names(value: Any) -> Any:
    """Names of files, without their folders."""
    if isinstance(value, list):
        return [_names(one) for one in value]
    return Path(value).name if isinstance(value, str) else value


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
