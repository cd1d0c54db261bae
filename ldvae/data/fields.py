"""The registered fields of an AnnData: its matrix, its columns of obs as codes or numbers, the covariates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset
from scipy import sparse

from ldvae.categories import as_saved, as_text
from ldvae.data.counts import Covariates
from ldvae.data.registry import Registry
from ldvae.errors import InputError, MissingKeyError, counted

MINIFIED_KEY = "_scvi_adata_minify_type"  # in adata.uns, as in scvi-tools
MINIFIED_CELL_KEY = "ldvae_latent_checksum"  # in adata.obs: checksum of what was kept of a minified cell
MINIFIED_TYPES = ("latent_posterior_parameters", "latent_posterior_parameters_with_counts")
Field: TypeAlias = np.ndarray | sparse.csr_matrix | sparse.csc_matrix | CSRDataset | CSCDataset  # of an AnnData


def minified_type(adata: AnnData) -> str | None:
    """How `adata` was minified: one of `MINIFIED_TYPES`, or None."""
    return adata.uns.get(MINIFIED_KEY)


def read_covariates(adata: AnnData, registry: Registry, totals: np.ndarray) -> Covariates:
    """Covariates of every cell of `adata`, coded as the registry codes them; `totals` of shape (n_obs,)."""
    # An empty cell counts as log 1 = 0, as in scvi-tools' library prior.
    library = np.log(np.where(totals > 0, totals, 1.0))
    if registry.size_factor_key is not None:
        library = np.log(size_factors(adata, registry) * registry.size_factor_scale)
    categorical = [codes(adata, key, registry.categories[key]) for key in registry.categorical_covariate_keys]
    continuous = [numeric(adata, key) for key in registry.continuous_covariate_keys]
    n_obs = adata.n_obs
    return Covariates(
        batch_index=torch.from_numpy(codes(adata, registry.batch_key, registry.categories["batch"])),
        label_index=torch.from_numpy(codes(adata, registry.labels_key, registry.categories["labels"])),
        categorical=torch.from_numpy(np.reshape(categorical, (-1, n_obs)).T.astype(np.int64)),
        continuous=torch.from_numpy(np.reshape(continuous, (-1, n_obs)).T.astype(np.float32)),
        library=torch.from_numpy(library.astype(np.float32)[:, None]),
    )


def matrix(adata: AnnData, registry: Registry) -> Any:
    """The matrix that holds the counts, as it is stored."""
    if registry.layer is None:
        if adata.X is None:
            raise InputError("adata.X is None: there are no counts. Name the layer that holds them, or set adata.X.")
        return adata.X
    layers = layer_names(adata)
    if registry.layer not in layers:
        raise MissingKeyError(
            f"{registry.layer} is not a valid key in adata.layers. Found: {', '.join(layers) or 'no layers'}. "
            "Pass the name of the layer that holds the raw counts, or layer=None for adata.X."
        )
    return adata.layers[registry.layer]


def layer_names(adata: AnnData) -> list[str]:
    """The layers of `adata`; since anndata 0.13 there is one called None, which is X."""
    return [name for name in adata.layers if name is not None]


def obs_column(adata: AnnData, key: str | None, *, numbers: bool = False) -> pd.Series | None:
    """A column of obs (of numbers, or of categories) without missing values; None for no key."""
    if key is None:
        return None
    if key not in adata.obs:
        raise MissingKeyError(
            f"{key} not found in adata.obs. Its columns are: {', '.join(map(str, adata.obs.columns)) or 'none'}."
        )
    column = adata.obs[key]
    if n_missing := int(column.isna().sum()):
        raise InputError(
            f"obs[{key!r}] has {counted(n_missing, 'missing value')} (NaN) among {len(column)} cells. "
            + (
                "Fill them, or remove these cells."
                if numbers
                else f"Give them a category of their own, e.g. adata.obs[{key!r}] = adata.obs[{key!r}].astype(str), or "
                "remove these cells."
            )
        )
    return column


def codes(adata: AnnData, key: str | None, categories: Sequence[Any]) -> np.ndarray:
    """Category codes of a column of obs, int64, shape (n_obs,); zeros for no key."""
    column = obs_column(adata, key)
    if column is None:
        return np.zeros(adata.n_obs, dtype=np.int64)
    coded = column.astype("category").cat
    place = {as_saved(value): code for code, value in enumerate(categories)}
    coded = np.array([place.get(as_saved(v), -1) for v in coded.categories], dtype=np.int64)[coded.codes]
    if (coded < 0).any():
        unseen = sorted(map(str, column[coded < 0].unique()))
        raise InputError(
            f"Category {unseen[0]} of obs[{key!r}] not found in source registry: the model has not seen "
            f"{', '.join(unseen[:5])}; it knows {', '.join(map(str, categories[:20]))}. Relabel these cells, or leave "
            "them out."
        )
    return coded


def categorical_columns(registry: Registry) -> dict[str, Sequence[Any]]:
    """Categories of each registered column of obs that has them."""
    keys = {"batch": registry.batch_key, "labels": registry.labels_key}
    keys |= {key: key for key in registry.categorical_covariate_keys}
    return {key: registry.categories[name] for name, key in keys.items() if key is not None}


def category_columns(registry: Registry) -> dict[str, dict[str, Any]]:
    """Registered columns of obs whose categories a file does not hold as they are: their values by their text."""
    texts = {key: as_text(categories) for key, categories in categorical_columns(registry).items()}
    return {key: by_text for key, by_text in texts.items() if by_text}


def held_by_no_file(column: pd.Series) -> bool:
    """Whether h5ad has no place for a column of plain values: numbers of dtype object, pandas' Float64."""
    dtype = column.dtype
    return (pd.api.types.is_object_dtype(dtype) and not all(isinstance(value, str) for value in column)) or (
        pd.api.types.is_extension_array_dtype(dtype) and pd.api.types.is_float_dtype(dtype)
    )


def with_text_categories(adata: AnnData, registry: Registry) -> AnnData:
    """`adata` itself, or where h5ad cannot hold its batches as they are, a copy with their text or categories."""
    texts = category_columns(registry)
    columns = {
        key: texts.get(key) or dict(zip(categories, categories, strict=True))
        for key, categories in categorical_columns(registry).items()
        if key in texts or held_by_no_file(adata.obs[key])
    }
    numbers = [key for key in registry.continuous_covariate_keys if held_by_no_file(adata.obs[key])]
    if not columns and not numbers:
        return adata
    made = adata.to_memory() if adata.isbacked else adata.copy()
    for key, of_text in columns.items():
        made.obs[key] = pd.Categorical.from_codes(codes(adata, key, list(of_text.values())), list(of_text))
    for key in numbers:
        made.obs[key] = numeric(adata, key)
    return made


def restore_categories(adata: AnnData, registry: Registry) -> None:
    """Give the columns that `with_text_categories` wrote as text their values again, in place."""
    for key, by_text in category_columns(registry).items():
        column = adata.obs.get(key)
        if column is not None and set(column.astype(str)) <= set(by_text):
            adata.obs[key] = pd.Series([by_text[text] for text in column.astype(str)], adata.obs_names).astype(
                "category"
            )


def numeric(adata: AnnData, key: str) -> np.ndarray:
    """A numeric column of obs, float64, shape (n_obs,)."""
    column = obs_column(adata, key, numbers=True)
    assert column is not None
    try:
        values = column.to_numpy(dtype=float)
    except (TypeError, ValueError) as error:
        raise InputError(f"obs[{key!r}] must be numeric, found e.g. {column.iloc[0]!r} ({column.dtype}).") from error
    if not np.isfinite(values).all():
        raise InputError(f"obs[{key!r}] holds infinite values; expected finite numbers.")
    return values


def size_factors(adata: AnnData, registry: Registry) -> np.ndarray:
    """Size factors of every cell, positive, shape (n_obs,)."""
    assert registry.size_factor_key is not None
    factors = numeric(adata, registry.size_factor_key)
    if (factors <= 0).any():
        raise InputError(
            f"obs[{registry.size_factor_key!r}] holds size factors of {factors.min():g}; they must be above zero."
        )
    return factors
