"""What is known about a config and its data before the first job."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ldvae.config.options import SECTIONS, named
from ldvae.config.plan import Dataset, Plan, expand, raise_problems, renamed_runs
from ldvae.errors import InputError, suggestion

QC_COLUMNS = (
    "file",
    "total_counts",
    "n_genes_by_counts",
    "pct_counts_mt",
    "pct_counts_ribo",
    "pct_counts_hb",
    "doublet_score",
    "predicted_doublet",
)  # obs columns that the step qc adds


def expand_checked(config: Mapping[str, Any], *, made_elsewhere: bool = False) -> Plan:
    """What `expand_config` returns, for a config that fits its data: what it names is in the headers of the files.

    Quick, since no counts are read; formats without a header (text, 10x) are left to `ldvae check`.

    Parameters
    ----------
    config
        As `load_config` reads it.
    made_elsewhere
        Missing files are no mistake: another workflow makes them.

    Raises
    ------
    InputError
        With every mistake of the config and of every dataset in one message.
    """
    plan, problems = find_problems(config, made_elsewhere=made_elsewhere)
    raise_problems(problems, "the config and its data")
    return plan


def find_problems(config: Mapping[str, Any], *, made_elsewhere: bool = False) -> tuple[Plan, list[str]]:
    """What `expand_checked` returns and what it would raise; a mistaken option of the plan has its default."""
    plan, problems = expand(config)
    for dataset in plan.datasets.values():
        problems += [f"datasets.{dataset.name}.{problem}" for problem in _check_dataset(dataset, made_elsewhere)]
        plan.notes.extend(_older_runs(plan, dataset))
    return plan, problems


def _older_runs(plan: Plan, dataset: Dataset) -> list[str]:
    """That runs of an older version are there, if any would be trained again for their name alone."""
    folder = Path(plan.path("results", dataset.name, "runs"))
    if all((folder / run).exists() for run in dataset.runs) or not folder.is_dir():
        return []
    known = {run.id for run in renamed_runs(folder).values()} & dataset.runs.keys()
    missing = [run for run in known if not (folder / run).exists()]
    if not missing:
        return []
    return [
        f"{folder} holds {len(missing)} of the runs under the ids of an older version; they will be trained again "
        f"unless `ldvae migrate {shlex.quote(plan.outdir)}` renames them first."
    ]


def _check_dataset(dataset: Dataset, made_elsewhere: bool) -> list[str]:
    problems: list[str] = []
    headers: list[Header | None] = []
    for path in dataset.inputs.values():
        try:
            headers.append(read_header(path))
        except FileNotFoundError:
            headers.append(None)
            if not made_elsewhere:
                problems.append(f"input: {_not_there(path)}")
        except InputError as error:
            headers.append(None)
            problems.append(f"input: {error}")
    for name, projection in dataset.projections.items():
        for path in projection.inputs.values():
            if "://" not in path and not path.startswith("demo:") and not made_elsewhere and not Path(path).exists():
                problems.append(f"project.{name}.input: {_not_there(path)}")
    for section in SECTIONS:
        for option_name, path in named(getattr(dataset, section), "file"):
            if not made_elsewhere and not Path(path).is_file():
                problems.append(f"{section}.{option_name}: {path} is not there.")
    found = [header for header in headers if header is not None]
    if not found or len(found) < len(headers):
        return problems
    layers = sorted(set[str].intersection(*(set(header.layers) for header in found)))
    if dataset.qc.layer is not None and dataset.qc.layer not in layers:
        problems.append(f"qc.layer: no layer {dataset.qc.layer!r}.{suggestion(dataset.qc.layer, layers)}")
    if dataset.qc.obs_table is None:  # else it brings columns of its own
        columns: dict[str, set[str] | None] = {}
        for name, groups in ((name, groups) for header in found for name, groups in header.obs.items()):
            before = columns.get(name, set())
            columns[name] = None if groups is None or before is None else before | groups
        problems += check_columns(dataset, columns)
    return problems


def check_columns(dataset: Dataset, columns: Mapping[str, set[str] | None]) -> list[str]:
    """Problems with the obs columns and groups that a dataset's options name.

    Parameters
    ----------
    dataset
        Options of the dataset.
    columns
        The groups of each obs column; none for columns of numbers.
    """
    known, problems = [*sorted(columns), *QC_COLUMNS], []
    for section in SECTIONS:
        for option_name, column in named(getattr(dataset, section), "obs"):
            if column not in known:
                problems.append(f"{section}.{option_name}: no obs column {column!r}.{suggestion(column, known)}")
    for contrast in dataset.de.contrasts:
        for key in ("column", "within"):
            name = contrast.get(key)
            if name is not None and name not in [*known, "leiden"]:
                problems.append(f"de.contrasts: no obs column {name!r}.{suggestion(name, known)}")
        groups = columns.get(contrast.get("column", ""))
        for key in ("group1", "group2"):
            group = contrast.get(key)
            if groups is not None and group is not None and group not in groups:
                problems.append(
                    f"de.contrasts: no group {group!r} in {contrast['column']!r}.{suggestion(group, sorted(groups))}"
                )
    return problems


def _not_there(path: str) -> str:
    """That a file is missing, and the file beside it that is probably meant."""
    folder = Path(path).parent
    siblings = sorted(other.name for other in folder.iterdir()) if folder.is_dir() else []
    near = get_close_matches(Path(path).name, siblings, n=1)
    hint = f" Did you mean {str(folder / near[0])!r}?" if near else ""
    return f"{path} is not there (relative paths start at {Path.cwd()}).{hint}"


class Header(NamedTuple):
    """What the header of an h5ad file tells."""

    obs: dict[str, set[str] | None]  # groups of each column; none for numbers
    layers: list[str]


def read_header(path: str) -> Header | None:
    """Obs columns and layers of an input, without reading counts.

    None when the format has no such header (text, 10x, zarr, loom) or the file is not here yet (a URL).
    """
    if path.startswith("demo:"):
        if path != "demo:pbmc68k":
            raise InputError(f"there is no {path}; the embedded data set is demo:pbmc68k.")
        package = find_spec("scanpy")  # found, not imported
        if package is None or package.origin is None:  # Snakemake may run in an environment of its own
            return None
        path = str(Path(package.origin).parent / "datasets" / "10x_pbmc68k_reduced.h5ad")
    if "://" in path:
        if not re.match("https?://", path):
            raise InputError(f"{path}: cannot be fetched; only http and https can. Download it and name the file.")
        return None
    if not Path(path).exists():
        raise FileNotFoundError(path)
    if Path(path).suffix != ".h5ad":
        return None
    try:
        import h5py
    except ModuleNotFoundError:
        return None
    try:
        with h5py.File(path) as file:
            obs, layers = file["obs"], [*file.get("layers", ()), *(["raw"] if "raw" in file else ())]
            if isinstance(obs, h5py.Dataset):  # anndata before 0.7: one structured array, groups as codes
                return Header(dict.fromkeys((obs.dtype.names or ("index",))[1:]), layers)  # the first is the index
            names = obs.keys() - {"__categories", obs.attrs.get("_index")}
            return Header({name: _groups(obs[name]) for name in sorted(names)}, layers)
    except (OSError, KeyError) as error:
        raise InputError(f"{path}: is not an h5ad file that can be read ({error}).") from error


def _groups(column: Any) -> set[str] | None:
    """Groups that occur in a column of an h5ad file; none for numbers."""
    import h5py
    import numpy as np

    if isinstance(column, h5py.Group):
        if "categories" not in column:
            return None
        categories, codes = column["categories"], np.unique(column["codes"][:])
    elif "categories" in column.attrs:
        categories, codes = column.file[column.attrs["categories"]], np.unique(column[:])
    elif h5py.check_string_dtype(column.dtype):
        return set(column.asstr()[:])
    else:
        return {str(bool(value)) for value in np.unique(column[:])} if column.dtype == bool else None
    names = categories.asstr()[:] if h5py.check_string_dtype(categories.dtype) else categories[:].astype(str)
    return {str(names[code]) for code in codes if code >= 0}
