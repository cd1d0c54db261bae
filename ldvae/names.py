"""Names: of input files, and of what ldvae adds to the annotation of the user."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldvae.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


def file_names(paths: Sequence[str | Path]) -> list[str]:
    """A short name for each file: its stem, or the first folder above it that tells the files apart.

    Examples
    --------
    >>> file_names(["a/ctrl.h5ad", "a/stim.h5ad"])
    ['ctrl', 'stim']
    >>> file_names(["s1/outs/filtered_feature_bc_matrix", "s2/outs/filtered_feature_bc_matrix"])
    ['s1', 's2']
    """
    parts = [list(reversed(Path(path).parts)) for path in paths]
    for level in range(min(map(len, parts))):
        names = [
            re.sub(r"(\.(h5ad|h5mu|h5|hdf5|loom|zarr|mtx|csv|tsv|txt))?(\.gz)?$", "", part[level]) for part in parts
        ]
        if len(set(names)) == len(names):
            return names
    raise InputError(
        f"The input files cannot be told apart by name ({', '.join(map(str, paths))}); give a name to each."
    )


def column_name(name: object) -> str:
    """The name of a column of obs or var as h5ad can hold it: a slash becomes an underscore.

    Examples
    --------
    >>> column_name("cell/type")
    'cell_type'
    """
    return "index" if name == "_index" else str(name).replace("/", "_")


def own_name(name: str, taken: Iterable[str]) -> str:
    """The name of a column, or other entry, that ldvae adds: `name`, or `name_ldvae` where the user has one called so.

    Examples
    --------
    >>> own_name("leiden", ["donor"]), own_name("leiden", ["donor", "leiden"])
    ('leiden', 'leiden_ldvae')
    """
    taken = list(taken)
    # One that an earlier run left behind makes way, so that `find_own` cannot take it for the new one.
    return f"{name}_ldvae" if {name, f"{name}_ldvae"} & set(taken) else name


def with_columns(table: pd.DataFrame, added: pd.DataFrame) -> pd.DataFrame:
    """A table of obs or var with columns that ldvae adds, called as `own_name` says.

    Examples
    --------
    >>> import pandas as pd
    >>> var = pd.DataFrame({"mean": [1.0], "mean_ldvae": [2.0]}, ["CD3D"])
    >>> with_columns(var, pd.DataFrame({"mean": [3.0]}, ["CD3D"])).to_dict("list")
    {'mean': [1.0], 'mean_ldvae': [3.0]}
    """
    added = added.rename(columns=lambda name: own_name(name, table.columns))
    return table.drop(columns=list(added), errors="ignore").join(added)


def find_own(name: str, present: Iterable[str]) -> str:
    """What `own_name` called an entry: `name_ldvae` if that is there, else `name`."""
    return f"{name}_ldvae" if f"{name}_ldvae" in list(present) else name
