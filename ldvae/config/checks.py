"""What is known about a config and its data before the first job."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldvae.config.options import SECTIONS, named
from ldvae.config.plan import Dataset, Plan, expand, raise_problems, renamed_runs
from ldvae.errors import InputError, suggestion

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

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

    Quick, since no counts are read: these are left to `ldvae check`.

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
    missing = [path for path in dataset.inputs.values() if _lacks(path)]
    problems = [] if made_elsewhere else [f"input: {_not_there(path)}" for path in missing]
    for name, projection in dataset.projections.items():
        for path in projection.inputs.values():
            if "://" not in path and not path.startswith("demo:") and not made_elsewhere and not Path(path).exists():
                problems.append(f"project.{name}.input: {_not_there(path)}")
    for section in SECTIONS:
        for option_name, path in named(getattr(dataset, section), "file"):
            if not made_elsewhere and not Path(path).is_file():
                problems.append(f"{section}.{option_name}: {path} is not there.")
    if not missing:
        try:
            adata = read_header(dataset)
        except InputError as error:
            problems.append(f"input: {error}")
        else:
            problems += [] if adata is None else check_header(dataset, adata)
    return problems


def check_header(dataset: Dataset, adata: AnnData) -> list[str]:
    """Problems with the layers, obs columns and groups that a dataset's options name, from what `read_header` found."""
    layer, problems = dataset.qc.layer, []
    for file in adata.uns["input"] if layer is not None else []:
        if layer not in file["matrices"]:
            problems.append(f"qc.layer: no layer {layer!r} in {file['path']}.{suggestion(layer, file['matrices'])}")
    return problems + check_columns(dataset, groups_of(adata.obs))


def _lacks(path: str) -> bool:
    """Whether an input is missing; one that is fetched or embedded is not."""
    return not re.match(r"\w+://|demo:", path) and not Path(path).exists()


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


def read_header(dataset: Dataset) -> AnnData | None:
    """What the files of a dataset tell of cells and genes, by the rules of `io.read_input`, without their counts.

    None where they are not here yet (a URL), or where Snakemake runs in an environment that cannot read them.
    """
    paths = list(dataset.inputs.values())
    remote = [path for path in paths if "://" in path]
    for path in remote:
        if not re.match("https?://", path):
            raise InputError(f"{path}: cannot be fetched; only http and https can. Download it and name the file.")
    if remote:
        return None
    try:
        from ldvae.io import read_input, reading_options
    except ModuleNotFoundError:
        return None
    names = None if "" in dataset.inputs else list(dataset.inputs)
    return read_input(paths, names, **reading_options(dataset.qc), counts=False)


def groups_of(obs: pd.DataFrame) -> dict[str, set[str] | None]:
    """The groups that occur in each obs column, as text; none for columns of numbers."""
    return {
        str(name): None if column.dtype.kind in "iuf" else set(column.dropna().astype(str))
        for name, column in obs.items()
    }
