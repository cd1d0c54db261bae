"""A config and its data, checked without running anything."""

from __future__ import annotations

import re
from pathlib import Path

from ldvae.config import Dataset, check_data, find_problems, load_config, raise_problems
from ldvae.errors import InputError, counted
from ldvae.io import read_input, reading_options


def check(
    paths: list[str],
    *,
    quick: bool = False,
    layer: str | None = None,
    genome: str | None = None,
    transpose: bool | None = None,
    feature_types: list[str] | None = None,
    gene_names: str | None = None,
    obs_table: Path | None = None,
) -> str:
    """Check configs with their data, or files of counts, and print what they hold.

    Parameters
    ----------
    paths
        config.yaml files, or inputs of any format.
    quick
        Do not read the counts of a config's data, only its headers.
    layer
        For inputs: where they keep their raw counts.
    genome
        For inputs: which genome to read where there are several.
    transpose
        For inputs: whether genes are in rows; not given: judged by names, annotation and sums, and refused in doubt.
    feature_types
        For inputs: types of the features to read, such as "Antibody Capture"; not given: genes.
    gene_names
        For inputs: the var column that names the genes, or index for the names of the input.
    obs_table
        For inputs: a csv or tsv of cells, whose columns are joined by the names in its first column.
    """
    found, problems = [], []
    for path in paths:
        try:
            if re.search(r"\.(ya?ml|json)$", path):
                found += check_config(Path(path), quick)
            else:
                adata = read_input(
                    [path],
                    layer=layer,
                    genome=genome,
                    transpose=transpose,
                    feature_types=feature_types,
                    gene_names=gene_names,
                    obs_table=obs_table,
                    chunked=True,
                )
                size = f"{counted(adata.n_obs, 'cell')} and {counted(adata.n_vars, 'gene')}"
                found.append(f"{path}: raw counts of {size}.")
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join([*problems, *(f"(fine: {line})" for line in found)]))
    return "\n".join(found)


def check_config(path: Path, quick: bool) -> list[str]:
    """A line for each dataset of a config, whose data are read unless `quick`."""
    plan, problems = find_problems(load_config(path))
    unreadable = {re.split(r"\.(input|qc\.layer): ", problem)[0] for problem in problems}
    lines = []
    for name, dataset in plan.datasets.items():
        where, size = f"datasets.{name}", ""
        remote = any("://" in source for source in dataset.inputs.values())
        if dataset.inputs and not (quick or remote or where in unreadable):
            try:
                size, found = check_counts(dataset)
                problems += [f"{where}.{problem}" for problem in found]
            except InputError as error:
                problems.append(f"{where}: {error}")
        planned = f"{counted(len(dataset.runs), 'run')}, {counted(len(dataset.de.contrasts), 'contrast')}"
        lines.append(f"{path}: {name}: {size}{planned}.")
    raise_problems(problems, f"{path} and its data")
    return lines + [f"{path}: {note}" for note in plan.notes]


def check_counts(dataset: Dataset) -> tuple[str, list[str]]:
    """Read a dataset's counts: its size in words, and what the options name that is not there."""
    names = None if "" in dataset.inputs else list(dataset.inputs)
    adata = read_input(
        list(dataset.inputs.values()),
        names,
        **reading_options(dataset.qc),
        chunked=True,
    )
    return f"{adata.n_obs} cells, {adata.n_vars} genes, ", check_data(dataset, adata)
