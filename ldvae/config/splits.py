"""Datasets that are split by a column of their cells: one dataset per patient, sample or tissue."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldvae.config.options import SECTIONS
from ldvae.errors import InputError, counted, suggestion

if TYPE_CHECKING:
    import pandas as pd

# Fewest cells of a level that becomes a dataset: with fewer, a tenth to validate on is a handful.
MIN_CELLS = 100
SPLIT_OPTIONS = {"column", "min_cells", "leave_out"}


def split_datasets(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
    """Put one dataset per level in the place of each dataset with `split_by`; only headers of files are read.

    Parameters
    ----------
    config
        As `load_config` reads it.

    Returns
    -------
    tuple
        The config without `split_by`, but for entries that cannot be split; notes about levels and cells left out;
        and why entries cannot be split.
    """
    entries = config.get("datasets")
    notes: list[str] = []
    problems: list[str] = []
    if not isinstance(entries, Mapping) or not any(_is_split(entry) for entry in entries.values()):
        return dict(config), notes, problems
    result: dict[str, Any] = {}
    made: dict[str, list[str]] = {}
    for name, entry in entries.items():
        if not _is_split(entry):
            result[name] = entry
            continue
        try:
            levels = _levels(config, str(name), entry, notes)
        except InputError as error:
            problems += [f"datasets.{name}.{line}" for line in error.args]
            result[name] = entry
            continue
        made[str(name)] = [f"{name}-{suffix}" for suffix in levels.values()]
        rest = {key: value for key, value in entry.items() if key != "split_by"}
        for level, suffix in levels.items():
            qc = {**(rest.get("qc") or {}), "subset_key": _options(entry)["column"], "subset": [level]}
            if f"{name}-{suffix}" in entries:
                problems.append(f"datasets.{name}-{suffix}: is also a level of {name}, which is split; rename one.")
            result[f"{name}-{suffix}"] = {**rest, "qc": qc}
    return {**config, "datasets": result, "across": _compared(config.get("across"), made, notes)}, notes, problems


def _compared(section: Any, made: Mapping[str, list[str]], notes: list[str]) -> Any:
    """The section `across` with the datasets of the levels in the place of the datasets that were split."""
    if not isinstance(section, Mapping | None):
        return section  # a mistake that is told with the others
    section = dict(section or {})
    wanted = section.get("compare")
    if wanted is None:
        found = [name for names in made.values() for name in names]
        if len(found) == 1:
            notes.append(f"{found[0]} is the only dataset that split_by makes; there is nothing to compare it with.")
        section["compare"] = found if len(found) > 1 else []
    elif isinstance(wanted, list):
        section["compare"] = [name for given in wanted for name in made.get(str(given), [given])]
    return section


def _is_split(entry: Any) -> bool:
    return isinstance(entry, Mapping) and entry.get("split_by") is not None


def _options(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What `split_by: patient` or `split_by: {column: patient, min_cells: 50, leave_out: [doublets]}` asks for."""
    given = entry["split_by"]
    options = given if isinstance(given, Mapping) else {"column": given}
    if odd := sorted(map(str, set(options) - SPLIT_OPTIONS)):
        raise InputError(f"split_by.{odd[0]}: there is no such key.{suggestion(odd[0], SPLIT_OPTIONS)}")
    least = options.get("min_cells", MIN_CELLS)
    if not isinstance(options.get("column"), str | int):
        raise InputError(f"split_by: expected the name of an obs column, found {options.get('column')!r}.")
    if isinstance(least, bool) or not isinstance(least, int) or least < 1:
        raise InputError(f"split_by.min_cells: expected a whole number of at least 1, found {least!r}.")
    unwanted = options.get("leave_out") or []
    if not isinstance(unwanted, list):
        unwanted = [unwanted]
    if odd := [level for level in unwanted if not isinstance(level, str | int | float)]:
        raise InputError(f"split_by.leave_out: expected levels of the column as a list, found {odd[0]!r}.")
    return {"column": str(options["column"]), "min_cells": least, "leave_out": unwanted}


def _levels(config: Mapping[str, Any], name: str, entry: Mapping[str, Any], notes: list[str]) -> dict[str, str]:
    """Levels that become datasets, each with the end of the dataset's name."""
    from ldvae.config.checks import read_header
    from ldvae.config.plan import expand

    options = _options(entry)
    column, least = options["column"], options["min_cells"]
    if isinstance(entry.get("qc"), Mapping) and "subset_key" in entry["qc"]:
        raise InputError("split_by: the dataset has qc.subset_key, too; a column splits it or chooses cells, not both.")
    plain = {key: value for key, value in entry.items() if key in ("input", "qc")}
    whole = {key: config[key] for key in SECTIONS if key == "qc" and key in config}
    plan, found = expand({"datasets": {name: plain}, **whole})
    if found:  # told with the rest of the config
        return {}
    missing = [path for path in plan.datasets[name].inputs.values() if not re.match(r"\w+://|demo:", path)]
    missing = [path for path in missing if not Path(path).exists()]
    adata = None if missing else read_header(plan.datasets[name])
    if adata is None:
        raise InputError(
            f"split_by: the levels of {column!r} are read from the input before the first job, but "
            + (f"{missing[0]} is not there." if missing else "it is a URL, or this Python lacks anndata.")
            + " Name a file that is here, and start the workflow where ldvae is installed with its libraries."
        )
    if column not in adata.obs:
        raise InputError(f"split_by: no obs column {column!r}.{suggestion(column, [str(key) for key in adata.obs])}")
    return _kept(adata.obs[column], least, options["leave_out"], name, notes)


def _kept(column: pd.Series, least: int, leave_out: Sequence[object], name: str, notes: list[str]) -> dict[str, str]:
    from ldvae.io import group_names, meant_group

    groups = group_names(column)
    if leave_out:
        levels = [str(level) for level in groups.dropna().unique()]
        unwanted = {meant_group(str(level), levels) for level in leave_out}
        if unknown := sorted(unwanted - set(levels)):
            raise InputError(
                f"split_by.leave_out: obs column {column.name!r} has no level {unknown[0]!r}; it has "
                f"{', '.join(sorted(levels)[:10])}{', …' if len(levels) > 10 else ''}.{suggestion(unknown[0], levels)}"
            )
        without = groups.isin(unwanted)
        notes.append(
            f"datasets.{name}.split_by: left out (split_by.leave_out): {counted(int(without.sum()), 'cell')} of "
            f"{', '.join(sorted(unwanted))}."
        )
        groups = groups[~without]
    sizes = {str(level): int(n) for level, n in groups.value_counts(sort=False).sort_index().items() if n}
    kept = [level for level, n in sizes.items() if n >= least]
    if len(sizes) > max(50, len(groups) // least) or not kept:
        raise InputError(
            f"split_by: obs column {column.name!r} has {len(sizes)} levels for {len(groups)} cells, of which "
            f"{len(kept)} have {least} cells or more. Name a column of patients, samples or tissues, or lower "
            "split_by.min_cells."
        )
    small = [f"{level} ({n})" for level, n in sizes.items() if n < least]
    if small:
        notes.append(
            f"datasets.{name}.split_by: {', '.join(small[:10])}{', …' if len(small) > 10 else ''} "
            f"{'has' if len(small) == 1 else 'have'} fewer than {least} cells and {'is' if len(small) == 1 else 'are'} "
            "left out (split_by.min_cells)."
        )
    if missing := int(groups.isna().sum()):
        notes.append(f"datasets.{name}.split_by: left out, without a {column.name}: {counted(missing, 'cell')}.")
    suffixes: dict[str, str] = {}
    taken: set[str] = set()
    for level in kept:
        stem = re.sub(r"[^\w.-]+", "_", level).strip("_") or "level"
        suffix, n = stem, 1
        while suffix.casefold() in taken:  # "A/B" and "A B", or names that differ by case alone
            n += 1
            suffix = f"{stem}-{n}"
        taken.add(suffix.casefold())
        suffixes[level] = suffix
    return suffixes
