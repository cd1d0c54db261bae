"""What is known about a config and its data before the first job."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldvae.config.compared import corrected_columns, removed_effects
from ldvae.config.options import SECTIONS, SMALLEST_BATCH, AcrossConfig, Contrast, ModelConfig, named
from ldvae.config.plan import Dataset, Plan, expand, raise_problems, renamed_runs
from ldvae.config.splits import split_datasets
from ldvae.errors import InputError, counted, suggestion

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

QC_COLUMNS = (
    "total_counts",
    "n_genes_by_counts",
    "pct_counts_mt",
    "pct_counts_ribo",
    "pct_counts_hb",
    "doublet_score",
    "predicted_doublet",
)  # obs columns that the step qc adds
QC_MEASURES = QC_COLUMNS[:-1]  # numbers
CLUSTERS = ("leiden", "leiden_ldvae")  # those that the step annotate adds; the second name if the first is taken

# Columns that the workflow adds before a step, by its section.
MADE = {"programs": ("split",), "report": (*CLUSTERS, "split")}


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
    config, notes, problems = split_datasets(config)
    plan, found = expand(config)
    problems += found
    plan.notes.extend(notes)
    for dataset in plan.datasets.values():
        compared = plan.across.config if plan.across and dataset.name in plan.across.datasets else None
        found, notes = _check_dataset(dataset, made_elsewhere, compared)
        problems += [f"datasets.{dataset.name}.{problem}" for problem in found]
        plan.notes.extend(
            [
                *(f"datasets.{dataset.name}.{note}" for note in notes),
                *_older_runs(plan, dataset),
                *_former_default(plan, dataset),
            ]
        )
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


def _former_default(plan: Plan, dataset: Dataset) -> list[str]:
    """That runs are there with the number of factors that was the default before, and that the config names none."""
    folder, former = Path(plan.path("results", dataset.name, "runs")), ModelConfig().n_latent
    if "n_latent" in dataset.model.model_fields_set or any((folder / run).exists() for run in dataset.runs):
        return []
    unnamed = [run for run in dataset.runs.values() if run.model.n_latent == dataset.model.n_latent]
    before = [run._replace(model=run.model.model_copy(update={"n_latent": former})).id for run in unnamed]
    older = {run.id for run in renamed_runs(folder).values()}
    if not any((folder / run).exists() or run in older for run in before):
        return []
    return [
        f"{folder} holds runs of {former} factors, which was the default; it is {dataset.model.n_latent} now, and such "
        f"runs will be trained beside them. To keep the results, name the number: `model: {{n_latent: {former}}}`."
    ]


def _check_dataset(
    dataset: Dataset, made_elsewhere: bool, compared: AcrossConfig | None
) -> tuple[list[str], list[str]]:
    """Problems of a dataset, and notes on what it will do without."""
    notes: list[str] = []
    own_key = None  # of several files, of which each is a batch
    missing = [path for path in dataset.inputs.values() if _lacks(path)]
    problems = [] if made_elsewhere else [f"input: {_not_there(path)}" for path in missing]
    for name, projection in dataset.projections.items():
        for path in projection.inputs.values():
            if "://" not in path and not path.startswith("demo:") and not made_elsewhere and not Path(path).exists():
                problems.append(f"project.{name}.input: {_not_there(path)}")
    for section in SECTIONS:
        for option_name, path in named(getattr(dataset, section), "file"):
            if not made_elsewhere and not Path(path).is_file():
                problems.append(f"{section}.{option_name}: {_not_there(path)}")
    table = dataset.qc.obs_table
    if dataset.inputs and not missing and (table is None or Path(table).is_file()):
        try:
            adata = read_header(dataset)
        except InputError as error:
            problems.append(f"input: {error}")
        else:
            if adata is not None:
                own_key = adata.uns.get("ldvae_file_key")
                problems += check_data(dataset, adata)
            if adata is not None and compared is not None:
                known = [str(column) for column in adata.obs]
                problems += [
                    f"input: across.{option}: no obs column {column!r}.{suggestion(column, known)}"
                    for option, column in named(compared, "obs")
                    if column not in adata.obs
                ]
            notes += [] if adata is None else _notes_on_data(dataset, adata)
    corrected = corrected_columns(dataset.setup.model_dump() | {"batch_key": dataset.setup.batch_key or own_key})
    return problems, notes + removed_effects(_compared_columns(dataset, compared), corrected)


def _compared_columns(dataset: Dataset, across: AcrossConfig | None) -> dict[str, str | None]:
    """The columns whose groups are compared, by the option that names them."""
    return {
        **{f"de.contrasts[{i}]": contrast["column"] for i, contrast in enumerate(dataset.de.contrasts)},
        "programs.condition_key": dataset.programs.condition_key,
        "across.condition_key": None if across is None else across.condition_key,
    }


def _notes_on_data(dataset: Dataset, adata: AnnData) -> list[str]:
    """What groups of cells are too small for, as far as they are known before quality control."""
    notes, obs, key = [], adata.obs, dataset.setup.batch_key or adata.uns.get("ldvae_file_key", "")
    if dataset.setup.genes == "seurat_v3" and key in obs and not _too_many_groups(obs[key]):
        sizes = obs[key].astype(str).value_counts()
        small = sizes[sizes < SMALLEST_BATCH]
        if len(sizes) > 1 and len(small):
            notes.append(
                f"setup.batch_key: {len(small)} of {len(sizes)} batches in {key!r} have fewer than {SMALLEST_BATCH} "
                f"cells ({_few(f'{name}: {n}' for name, n in small.items())}); variable genes are ranked in them "
                "together."
            )
    for i, contrast in enumerate(dataset.de.contrasts):
        compared, skipped = _comparisons(contrast, obs, dataset.de.min_cells)
        if skipped:
            notes.append(
                f"de.contrasts[{i}]: {len(skipped)} of {compared} comparisons will be skipped, for one side has fewer "
                f"than {dataset.de.min_cells} cells (de.min_cells): {_few(skipped)}."
            )
    if (key := dataset.de.replicate_key) is not None and key in obs and (missing := int(obs[key].isna().sum())):
        notes.append(
            f"de.replicate_key: obs column {key!r} has no value for {missing} of {len(obs)} cells, which the "
            "pseudobulk test leaves out."
        )
    if (dataset.programs.replicate_key is None) != (dataset.programs.condition_key is None):
        notes.append("programs: replicate_key and condition_key go together; with one of them nothing is compared.")
    return notes + _notes_on_gene_sets(dataset, adata.var_names)


def _notes_on_gene_sets(dataset: Dataset, var_names: pd.Index) -> list[str]:
    """Which gene sets have no gene in the data; files of which none has any are problems."""
    from ldvae.io import read_gmt

    notes = []
    for path in dataset.programs.gene_sets:
        try:
            sets = read_gmt(Path(path))
        except (InputError, OSError):  # told among the problems
            continue
        empty = [term for term, members in sets.items() if not var_names.isin(members).any()]
        if 0 < len(empty) < len(sets):
            notes.append(
                f"programs.gene_sets: {len(empty)} of {len(sets)} sets of {path} have no gene in the data, such as "
                f"{empty[0]!r}; nothing will be found of them."
            )
    return notes


def _few(names: Iterable[str], n: int = 5) -> str:
    found = list(names)
    return ", ".join(found[:n]) + (", …" if len(found) > n else "")


def _comparisons(contrast: Contrast, obs: pd.DataFrame, min_cells: int) -> tuple[int, list[str]]:
    """How many comparisons a contrast stands for, and which of them have too few cells on a side."""
    import pandas as pd

    from ldvae.io import group_names, meant_group

    column, within = contrast["column"], contrast.get("within")
    if not {column, within} - {None} <= set(obs) or any(_too_many_groups(obs[c]) for c in (column, within) if c):
        return 0, []
    groups = group_names(obs[column])
    inside = group_names(obs[within]) if within else pd.Series("", index=obs.index)
    sizes = pd.crosstab(groups.to_numpy(), inside.to_numpy())
    second = meant_group(contrast["group2"], sizes.index) if "group2" in contrast else None
    firsts = [name for name in sizes.index if name != second]
    if "group1" in contrast:
        firsts = [meant_group(contrast["group1"], sizes.index)]
    if not {*firsts, *([second] if second is not None else [])} <= set(sizes.index):
        return 0, []
    skipped = []
    for level in sizes:
        for first in firsts:
            n1 = sizes.at[first, level]
            n2 = sizes.at[second, level] if second is not None else sizes[level].sum() - n1
            if min(n1, n2) < min_cells:
                where = f" in {level}" if within else ""
                skipped.append(f"{first} vs {second or 'rest'}{where} ({n1} and {n2} cells)")
    return len(firsts) * sizes.shape[1], skipped


def check_data(dataset: Dataset, adata: AnnData) -> list[str]:
    """Problems of a dataset's options with its data, of which counts are not needed.

    Parameters
    ----------
    dataset
        Options of the dataset.
    adata
        As `io.read_input` returns it, with or without counts.
    """
    layer, problems = dataset.qc.layer, []
    for file in adata.uns["ldvae_input"]:
        if layer is not None and layer not in file.get("matrices", [layer]):  # with counts, the reader has refused it
            problems.append(f"qc.layer: no layer {layer!r} in {file['path']}.{suggestion(layer, file['matrices'])}")
    problems += _check_columns(dataset, adata.obs)
    for i, contrast in enumerate(dataset.de.contrasts):
        found = _check_contrast(contrast, adata.obs, columns_of_qc(dataset))
        problems += [f"de.contrasts[{i}]: {problem}" for problem in found]
    return problems + _check_genes(dataset, adata.var_names)


def columns_of_qc(dataset: Dataset) -> list[str]:
    """The obs columns that quality control will add."""
    return [name for name in QC_COLUMNS if dataset.qc.doublets != "off" or "doublet" not in name]


def _lacks(path: str) -> bool:
    """Whether an input is missing; one that is fetched or embedded is not."""
    return not re.match(r"\w+://|demo:", path) and not Path(path).exists()


def _check_columns(dataset: Dataset, obs: pd.DataFrame) -> list[str]:
    """Problems with the obs columns that the options name: absent, with missing values, or of the wrong kind."""
    known, problems = [*map(str, obs.columns), *columns_of_qc(dataset)], []
    labels = ["setup.batch_key", "setup.stratify_by", "setup.labels_key", "setup.categorical_covariate_keys"]
    labels += ["de.replicate_key", "programs.replicate_key", "programs.condition_key"]
    for section in SECTIONS:
        made = MADE.get(section, ())
        for option, column in named(getattr(dataset, section), "obs"):
            if column not in [*known, *made]:
                problems.append(f"{section}.{option}: no obs column {column!r}.{suggestion(column, known)}")
            elif column not in obs and column in QC_MEASURES and f"{section}.{option}" in labels:
                problems.append(f"{section}.{option}: {_no_groups(column)}")
    setup = dataset.setup
    groups = [("setup.batch_key", setup.batch_key), ("setup.stratify_by", setup.stratify_by)]
    groups += [("setup.categorical_covariate_keys", key) for key in setup.categorical_covariate_keys]
    numbers = [("setup.continuous_covariate_keys", key) for key in setup.continuous_covariate_keys]
    numbers += [("setup.size_factor_key", key) for key in [setup.size_factor_key] if key is not None]
    for where, key in (*groups, *numbers):
        if key not in obs:
            continue
        if missing := int(obs[key].isna().sum()):
            problems.append(
                f"{where}: obs column {key!r} has no value for {missing} of {len(obs)} cells. Give these a value of "
                "their own, or leave them out of the input."
            )
    problems += [f"{where}: {problem}" for where, key in numbers if key in obs for problem in _check_numbers(obs[key])]
    if (key := setup.size_factor_key) in obs and obs[key].dtype.kind in "iuf" and (obs[key] <= 0).any():
        problems.append(f"setup.size_factor_key: obs column {key!r} must be above zero, found {obs[key].min():g}.")
    # Cells without a label or without a donor are left out of what labels and donors are for.
    partial = [("setup.labels_key", setup.labels_key), ("de.replicate_key", dataset.de.replicate_key)]
    donors, condition = dataset.programs.replicate_key, dataset.programs.condition_key
    partial += [("programs.replicate_key", donors), ("programs.condition_key", condition)]
    for where, key in (*groups, *partial):
        if key in obs and (problem := _too_many_groups(obs[key])):
            problems.append(f"{where}: {problem}")
    if donors != condition and condition in obs and (n := obs[condition].nunique()) < 2:
        problems.append(
            f"programs.condition_key: obs column {condition!r} has {counted(n, 'value')}; there is nothing to compare."
        )
    return problems


def _no_groups(column: str) -> str:
    return f"{column!r} is a measure of quality control, not groups; name an obs column of groups."


def _check_numbers(column: pd.Series) -> list[str]:
    import numpy as np
    import pandas as pd

    if column.dtype.kind not in "iufb":
        found = next(iter(column.dropna()), None)
        if getattr(column.dtype, "categories", pd.Index([""])).dtype.kind in "iuf":
            return [
                f"obs column {column.name!r} holds categories (such as {found}), not numbers; name it among "
                "categorical_covariate_keys, or store it as numbers."
            ]
        return [f"obs column {column.name!r} must hold numbers, found {found!r}."]
    if infinite := int(np.isinf(column.to_numpy(float)).sum()):
        return [f"obs column {column.name!r} is infinite in {infinite} of {len(column)} cells; correct these values."]
    return []


def _too_many_groups(column: pd.Series) -> str:
    """That a column tells single cells apart instead of groups, by the limits of the step setup."""
    n_groups = column.nunique()
    if n_groups <= (20 if column.dtype.kind == "f" else max(20, len(column) // 2)):
        return ""
    return (
        f"obs column {column.name!r} has {n_groups} values for {counted(len(column), 'cell')}, but groups are expected."
    )


def _check_contrast(contrast: Contrast, obs: pd.DataFrame, made: Iterable[str]) -> list[str]:
    """Problems with the columns and groups of a contrast; clusters (leiden) are not known yet."""
    from ldvae.io import group_names, meant_group

    column, within = contrast["column"], contrast.get("within")
    known = [*map(str, obs.columns), *made]
    problems = [
        f"no obs column {name!r}.{suggestion(name, known)}"
        for name in (column, within)
        if name is not None and name not in [*known, *CLUSTERS]
    ]
    problems += [problem for name in (column, within) if name in obs and (problem := _too_many_groups(obs[name]))]
    problems += [_no_groups(name) for name in (column, within) if name in QC_MEASURES and name not in obs]
    if column == within:
        problems.append(f"{column!r} is compared within itself; name another column in `within`, or leave it out.")
    if column not in obs or _too_many_groups(obs[column]):
        return problems
    sizes = group_names(obs[column]).value_counts()
    sizes = sizes[sizes > 0]
    groups = [meant_group(str(contrast[key]), sizes.index) for key in ("group1", "group2") if key in contrast]
    if len(groups) == 2 and groups[0] == groups[1]:
        problems.append(f"{contrast} compares a group with itself.")
    for group in groups:
        if group not in sizes:
            problems.append(f"no group {group!r} in {column!r}.{suggestion(str(group), sorted(sizes.index))}")
    if "rest" in sizes:
        problems.append(f"{column!r} has a group called 'rest', which here means all others; rename it.")
    if len(sizes) < 2:
        problems.append(
            f"obs column {column!r} has {counted(len(sizes), 'group')}; there is nothing to compare it with."
        )
    return problems


def _check_genes(dataset: Dataset, var_names: pd.Index) -> list[str]:
    """Problems with the genes that options and files name."""
    from ldvae.io import read_gene_list, read_gmt

    problems = []
    shown = ", ".join(map(repr, var_names[:3]))
    absent = [gene for gene in dataset.setup.keep_genes if gene not in var_names]
    if absent:
        listed = ", ".join(map(repr, absent[:5])) + (", …" if len(absent) > 5 else "")
        near = [name for name in var_names if str(name).lower() == absent[0].lower()]
        near = near or get_close_matches(absent[0], var_names.astype(str), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        problems.append(f"setup.keep_genes: {listed} not among the {len(var_names)} genes, such as {shown}.{hint}")
    path = dataset.setup.gene_list
    if dataset.setup.genes == "list" and path is not None and Path(path).is_file():
        try:
            names = read_gene_list(Path(path))
        except InputError as error:
            problems.append(f"setup.gene_list: {error}")
        else:
            if not var_names.isin(names).any():
                problems.append(f"setup.gene_list: {_no_overlap(path, names, var_names)}")
    for path in dataset.programs.gene_sets:
        if not Path(path).is_file():
            continue
        try:
            sets = read_gmt(Path(path))
        except InputError as error:
            problems.append(f"programs.gene_sets: {error}")
            continue
        names = list(dict.fromkeys(gene for members in sets.values() for gene in members))
        if not var_names.isin(names).any():
            problems.append(f"programs.gene_sets: {_no_overlap(path, names, var_names)}")
    return problems


def _no_overlap(path: str, names: list[str], var_names: pd.Index) -> str:
    if not names:
        return f"{path} names no gene."
    advice = "Give names of the same kind and species."
    if (alike := int(var_names.str.upper().isin([name.upper() for name in names]).sum())) > 1:
        advice = (
            f"But for capital letters, {alike} names would agree: are they of another species (human ACTB, mouse "
            "Actb)? Give those of the data's."
        )
    if len(names) == 1 and len(re.split(r"[,;\s]+", names[0])) > 1:
        advice = "Write one name per line."
    return (
        f"none of the {len(names)} genes of {path} (such as {', '.join(map(repr, names[:3]))}) is in the data, whose "
        f"genes are called {', '.join(map(repr, var_names[:3]))}. {advice}"
    )


def _not_there(path: str) -> str:
    """That a file is missing, and the file beside it that is probably meant."""
    if Path(path).is_dir():
        return f"{path} is a folder; name a file."
    if re.match(r"\w+://", path):
        return f"{path} is a URL, which is fetched for `input` alone; download it and name the file."
    folder = Path(path).parent
    siblings = sorted(other.name for other in folder.iterdir()) if folder.is_dir() else []
    near = get_close_matches(Path(path).name, siblings, n=1)
    hint = f" Did you mean {str(folder / near[0])!r}?" if near else ""
    if re.search(r"^~|\$\w|\$\{|\*", path):
        hint += " Paths are taken as they stand: ~, $ and * are not expanded."
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
