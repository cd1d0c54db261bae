"""`setup_anndata`: check an AnnData, note which fields a model shall use, and find them again."""

from __future__ import annotations

import copy
import json
import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from anndata import AnnData

from ldvae.categories import encoded
from ldvae.data.counts import row_blocks
from ldvae.data.fields import Field, codes, matrix, obs_column, read_covariates, size_factors
from ldvae.data.present import read_counts
from ldvae.data.registry import SETUP_KEY, AttrDict, Registry, setup_lines
from ldvae.errors import InputError


class AnnDataManager:
    """The registered fields of one AnnData, as a model with this registry reads them.

    Parameters
    ----------
    adata
        Data with the genes and columns of the registry.
    registry
        Of the model.
    own
        Whether these are the data of the model, whose registry is then the same object.
    """

    def __init__(self, adata: AnnData, registry: Registry, own: bool = False) -> None:
        self.adata = adata
        self._registry = registry
        layout = registry.reference_layout()
        self.registry: dict[str, Any] = layout if own else copy.deepcopy(layout)

    @property
    def summary_stats(self) -> AttrDict:
        """Numbers of cells, genes, batches, labels and covariates."""
        return self._registry.summary_stats()

    @property
    def data_registry(self) -> AttrDict:
        """Where in the AnnData each field is."""
        return AttrDict({key: of["data_registry"] for key, of in self.registry["field_registries"].items()})

    def get_state_registry(self, registry_key: str) -> AttrDict:
        """Categories or sizes of a field."""
        fields = self.registry["field_registries"]
        if registry_key not in fields:
            raise InputError(f"There is no field {registry_key!r} in the registry; it has {', '.join(fields)}.")
        return AttrDict(fields[registry_key]["state_registry"])

    def get_from_registry(self, registry_key: str) -> Field:
        """A field's values: "X" as stored; "batch" and "labels" as codes, int64, shape (n_obs, 1); covariates."""
        registry = self._registry
        self.get_state_registry(registry_key)
        if registry_key == "X":
            return matrix(self.adata, registry)
        if registry_key in ("batch", "labels"):
            column = registry.batch_key if registry_key == "batch" else registry.labels_key
            return codes(self.adata, column, registry.categories[registry_key])[:, None]
        covariates = read_covariates(self.adata, registry, np.ones(self.adata.n_obs))
        name = {"extra_categorical_covs": "categorical", "extra_continuous_covs": "continuous"}.get(registry_key)
        return getattr(covariates, name).numpy() if name else size_factors(self.adata, registry)

    def described(self, hide_state_registries: bool = False) -> str:
        """What is registered, line by line: arguments, sizes and, unless hidden, categories."""
        lines = ["Anndata setup of LinearSCVI", setup_lines(self.registry["setup_args"]), "Sizes:"]
        lines += [f"  {name}: {size}" for name, size in self.summary_stats.items()]
        if not hide_state_registries:
            for name, of in self.registry["field_registries"].items():
                lines += [f"{name} ({'.'.join(str(part) for part in of['data_registry'].values())}):"]
                with np.printoptions(threshold=30):  # not every gene name
                    lines += [f"  {key}: {values}" for key, values in of["state_registry"].items()]
        return "\n".join(lines)


def register(
    adata: AnnData,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    labels_key: str | None = None,
    size_factor_key: str | None = None,
    categorical_covariate_keys: Sequence[str] | None = None,
    continuous_covariate_keys: Sequence[str] | None = None,
) -> None:
    """Check `adata` and note in it which fields a model shall use; the arguments of `LinearSCVI.setup_anndata`.

    Adds `uns["_ldvae_setup"]` and, as scvi-tools does, `obs["_scvi_batch"]`, `obs["_scvi_labels"]` (category
    codes) and `uns["_scvi_uuid"]`.
    """
    if not isinstance(adata, AnnData):
        raise InputError(f"setup_anndata needs an AnnData, found {type(adata).__name__}.")
    if adata.is_view:
        raise InputError("adata is a view of another AnnData, and cannot be set up. Please run `adata = adata.copy()`.")
    if not adata.var_names.is_unique:
        repeated = adata.var_names[adata.var_names.duplicated()].unique()
        raise InputError(
            f"{len(repeated)} gene names occur more than once in adata.var_names (e.g. {', '.join(repeated[:5])}), and "
            "loadings could not be told apart. Run `adata.var_names_make_unique()` first."
        )
    arguments = {
        "layer": layer,
        "batch_key": batch_key,
        "labels_key": labels_key,
        "size_factor_key": size_factor_key,
        "categorical_covariate_keys": tuple(categorical_covariate_keys or ()),
        "continuous_covariate_keys": tuple(continuous_covariate_keys or ()),
    }
    registry = make_registry(adata, arguments)
    read_counts(adata, registry, check_only=True)
    adata.uns[SETUP_KEY] = json.dumps(arguments)
    adata.uns.setdefault("_scvi_uuid", str(uuid.uuid4()))
    adata.uns["_scvi_manager_uuid"] = str(uuid.uuid4())
    for column, key in (("batch", batch_key), ("labels", labels_key)):
        adata.obs[f"_scvi_{column}"] = codes(adata, key, registry.categories[column])


def registered(adata: AnnData) -> Registry:
    """The registry of an AnnData that was set up."""
    if SETUP_KEY not in adata.uns:
        raise InputError("Please set up your AnnData with LinearSCVI.setup_anndata first.")
    return make_registry(adata, json.loads(adata.uns[SETUP_KEY]))


def make_registry(adata: AnnData, arguments: Mapping[str, Any]) -> Registry:
    """Categories, genes and scales of `adata` under the arguments of `setup_anndata`."""
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise InputError(f"adata has {adata.n_obs} cells and {adata.n_vars} genes; there is nothing to model.")
    lists: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in arguments.items()}
    registry = Registry(**lists)
    keys = {"batch": registry.batch_key, "labels": registry.labels_key}
    keys |= {key: key for key in registry.categorical_covariate_keys}
    categories = {}
    for name, key in keys.items():
        column = obs_column(adata, key)
        if column is None:
            categories[name] = (0,)
            continue
        column = column.astype("category")
        rare = column.value_counts().loc[lambda n: (n < 3) & (n > 0)]
        if len(rare):
            warnings.warn(
                f"obs[{key!r}]: {', '.join(map(str, rare.index[:5]))} has fewer than 3 cells; "
                "estimates for it are poor.",
                UserWarning,
                stacklevel=4,
            )
        categories[name] = tuple(column.cat.categories)
        try:
            for value in categories[name]:
                encoded(value)
        except InputError as error:
            raise InputError(f"obs[{key!r}]: {error}") from error
    registry = replace(
        registry,
        var_names=tuple(adata.var_names.astype(str)),
        categories=categories,
        n_obs=adata.n_obs,
        uuid=str(adata.uns.get("_scvi_uuid", "")),
    )
    if registry.size_factor_key is not None:
        factors = size_factors(adata, registry)
        total = sum(float(block.sum()) for block in row_blocks(matrix(adata, registry)))
        registry = replace(registry, size_factor_scale=total / float(factors.sum()))
    return registry
