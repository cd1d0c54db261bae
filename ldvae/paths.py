"""What the path of an input tells, before any file is opened."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ldvae.errors import InputError


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
