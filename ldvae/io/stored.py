"""What a file holds, whatever its format; its matrices are loaded when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
from anndata import AnnData

from ldvae.io.by_rows import ByEntries
from ldvae.io.chunks import StoredMatrix


class Stored(NamedTuple):
    """What a file holds; its matrices are loaded when they are called."""

    obs: pd.DataFrame
    var: pd.DataFrame
    matrices: dict[str, Callable[[], Any]]  # X, raw and the layers
    raw_var: pd.DataFrame | None = None
    others: Callable[[Sequence[str]], Mapping[str, Mapping[str, Any]]] = lambda kinds: {}  # obsm, varm, uns, obsp, varp
    prior: int = 0  # points for cells in rows from what else the file says
    fixed: bool = True  # the format has cells in rows
    on_disk: Mapping[str, StoredMatrix | ByEntries] = {}  # of the matrices those that need not be read as a whole
    can_turn: bool = True  # False where the names come with their axes, as in the tables of a Matrix Market file


def in_memory(adata: AnnData) -> Stored:
    """An AnnData as if it were a file."""
    x = {} if adata.X is None else {"X": adata.X}
    raw = {} if adata.raw is None else {"raw": adata.raw.X}
    # Since anndata 0.13 X is also the layer called None.
    layers = {layer_name(name, x | raw): matrix for name, matrix in adata.layers.items() if name is not None}
    matrices: dict[str, Any] = x | layers | raw
    raw_var = None if adata.raw is None else adata.raw.var
    # An unnamed lambda of the loop variable would return the last matrix for all.
    loaders: dict[str, Callable[[], Any]] = {name: partial(lambda x: x, x) for name, x in matrices.items()}
    return Stored(adata.obs, adata.var, loaders, raw_var, partial(others_of, adata))


def others_of(adata: AnnData, kinds: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
    """What an AnnData has of some kinds (obsm, uns, …), by name."""
    return {kind: dict(getattr(adata, kind)) for kind in kinds}


def layer_name(name: str, taken: Iterable[str]) -> str:
    """What a layer is called among the matrices of a file: layers/raw and layers/X where these are, too."""
    return f"layers/{name}" if name in taken else name


def has_neighbors(value: Any) -> bool:
    """Whether an entry of uns is of scanpy's neighbors, whose matrices are in obsp."""
    return isinstance(value, Mapping) and "connectivities_key" in value


def neighbors_in_obsp(others: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What a file has (obsm, uns, …, by name) with the matrices of scanpy's neighbors in obsp.

    scanpy up to 1.4 had them in uns. anndata moves them when some of the cells are taken, and not before.
    """
    found = {kind: dict(values) for kind, values in others.items()}
    for name, value in others.get("uns", {}).items():
        own = [key for key in ("connectivities", "distances") if isinstance(value, Mapping) and key in value]
        if own:
            places = {key: key if name == "neighbors" else f"{name}_{key}" for key in own}
            if "obsp" in found:
                found["obsp"].update({places[key]: value[key] for key in own})
            rest = {key: entry for key, entry in value.items() if key not in own}
            found["uns"][name] = rest | {f"{key}_key": place for key, place in places.items()}
    return found
