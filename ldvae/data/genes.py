"""The genes of other data, brought to those of a model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ldvae.data.fields import layer_names
from ldvae.errors import InputError


def check_genes(found: pd.Index, expected: Sequence[str]) -> None:
    """Refuse data whose genes are not those of the model, in the same order."""
    wanted = pd.Index(expected)
    if found.astype(str).equals(wanted):
        return
    missing = wanted.difference(found, sort=False)
    if len(missing):
        raise InputError(
            f"{len(missing)} of the model's {len(wanted)} genes are missing in adata.var_names "
            f"(e.g. {', '.join(missing[:5])}); it has {len(found)} genes. Give data with all of the model's genes "
            "(model.get_var_names())."
        )
    raise InputError(
        f"adata holds the model's {len(wanted)} genes among its {len(found)}, but not in the model's order. "
        "Pass adata[:, model.get_var_names()].copy()."
    )


def matched_to(adata: AnnData, wanted: pd.Index, missing_genes: Literal["fill", "refuse"]) -> AnnData:
    """A copy of `adata` with the genes of a model, matched by name; see `LinearSCVI.prepare_query_anndata`."""
    if not adata.var_names.is_unique:
        raise InputError("Gene names of adata occur more than once. Run `adata.var_names_make_unique()` first.")
    missing = wanted.difference(adata.var_names, sort=False)
    if len(missing) == len(wanted):
        raise InputError(
            f"No reference var names found in query data: none of the model's {len(wanted)} genes (e.g. "
            f"{', '.join(wanted[:3])}) is among the {adata.n_vars} of adata (e.g. "
            f"{', '.join(adata.var_names[:3])}). Give both the same kind of gene names."
        )
    if len(missing) and missing_genes == "refuse":
        raise InputError(
            f"{len(missing)} of the model's {len(wanted)} genes are missing in adata.var_names (e.g. "
            f"{', '.join(missing[:5])}). missing_genes='fill' takes them as not counted in any cell."
        )
    if len(missing) > 0.2 * len(wanted):
        warnings.warn(
            f"Query data contain {1 - len(missing) / len(wanted):.0%} of the reference var names, less than 80%; "
            "the others are filled with zeros. This may result in poor performance.",
            UserWarning,
            stacklevel=4,
        )
    return with_genes(adata, list(wanted))


def with_genes(adata: AnnData, var_names: Sequence[str]) -> AnnData:
    """A copy of `adata` in memory with these genes in this order, where one that it lacks has no counts.

    Keeps obs, obsm, obsp and uns, and var of the genes that there are.
    """
    adata = adata.to_memory() if adata.isbacked else adata
    wanted = pd.Index(var_names)
    position = adata.var_names.get_indexer(wanted)
    there = np.flatnonzero(position >= 0)

    def columns(x: Any) -> Any:
        found = x[:, position[there]]
        if isinstance(found, np.ndarray):
            full = np.zeros((adata.n_obs, len(wanted)), dtype=found.dtype)
            full[:, there] = found
            return full
        found = sparse.csr_matrix(found)
        return sparse.csr_matrix((found.data, there[found.indices], found.indptr), shape=(adata.n_obs, len(wanted)))

    return AnnData(
        None if adata.X is None else columns(adata.X),
        obs=adata.obs.copy(),
        var=adata.var.reindex(wanted),
        uns=dict(adata.uns),
        layers={name: columns(adata.layers[name]) for name in layer_names(adata)},
        obsm=dict(adata.obsm),
        obsp=dict(adata.obsp),
    )
