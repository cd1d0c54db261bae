"""What `setup_anndata` registered: which fields of an AnnData a model reads, and their categories."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from ldvae.categories import decoded, encoded
from ldvae.config import ModelConfig
from ldvae.data.counts import DataShape
from ldvae.errors import InputError, counted

SETUP_KEY = "_ldvae_setup"  # in adata.uns: arguments of setup_anndata, as JSON


@dataclass(frozen=True, kw_only=True)
class Registry:
    """What `setup_anndata` registered; other data given to the model must match it.

    Attributes
    ----------
    layer, batch_key, labels_key, size_factor_key, categorical_covariate_keys, continuous_covariate_keys
        The arguments of `setup_anndata`.
    var_names
        Genes in the order of the model.
    categories
        Categories of the batch ("batch"), of the labels ("labels") and of each categorical covariate, by its key.
    n_obs
        Number of cells registered.
    size_factor_scale
        Mean count per unit of size factor in the registered data.
    uuid
        Identifier that scvi-tools keeps in `adata.uns["_scvi_uuid"]`.
    """

    layer: str | None = None
    batch_key: str | None = None
    labels_key: str | None = None
    size_factor_key: str | None = None
    categorical_covariate_keys: tuple[str, ...] = ()
    continuous_covariate_keys: tuple[str, ...] = ()
    var_names: tuple[str, ...] = ()
    categories: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    n_obs: int = 0
    size_factor_scale: float = 1.0
    uuid: str = ""

    @property
    def shape(self) -> DataShape:
        """Sizes for the model."""
        return DataShape(
            n_vars=len(self.var_names),
            n_batch=len(self.categories["batch"]),
            n_labels=len(self.categories["labels"]),
            n_cats=tuple(len(self.categories[key]) for key in self.categorical_covariate_keys),
            n_continuous=len(self.continuous_covariate_keys),
        )

    @property
    def where(self) -> str:
        """Name of the matrix of counts in messages."""
        return "adata.X" if self.layer is None else f"adata.layers[{self.layer!r}]"

    def summary_stats(self) -> AttrDict:
        """Sizes under scvi-tools' names."""
        shape = self.shape
        sizes = {
            "n_batch": shape.n_batch,
            "n_cells": self.n_obs,
            "n_extra_categorical_covs": len(shape.n_cats),
            "n_extra_continuous_covs": shape.n_continuous,
            "n_labels": shape.n_labels,
            "n_vars": shape.n_vars,
        }
        return AttrDict(sizes)

    def reference_layout(self) -> dict[str, Any]:
        """As scvi-tools lays out its registry: fields, where they are, their states and sizes; always one object."""
        return self._layout

    @cached_property
    def _layout(self) -> dict[str, Any]:

        def obs_field(attr_key: str, original_key: str | None, name: str) -> dict[str, Any]:
            values = self.categories[name]
            categories = np.array(values) if original_key is None else object_array(values)
            return {
                "data_registry": {"attr_name": "obs", "attr_key": attr_key},
                "state_registry": {"categorical_mapping": categories, "original_key": original_key or attr_key},
                "summary_stats": {f"n_{name}": len(categories)},
            }

        in_layer = {"attr_name": "layers", "attr_key": self.layer}
        fields = {
            "X": {
                "data_registry": {"attr_name": "X", "attr_key": None} if self.layer is None else in_layer,
                "state_registry": {
                    "n_obs": self.n_obs,
                    "n_vars": len(self.var_names),
                    "column_names": np.array(self.var_names, dtype=object),
                },
                "summary_stats": {"n_vars": len(self.var_names), "n_cells": self.n_obs},
            },
            "batch": obs_field("_scvi_batch", self.batch_key, "batch"),
            "labels": obs_field("_scvi_labels", self.labels_key, "labels"),
        }
        setup_args: dict[str, Any] = {"batch_key": self.batch_key, "labels_key": self.labels_key, "layer": self.layer}
        if self.size_factor_key is not None:
            setup_args["size_factor_key"] = self.size_factor_key
            fields["size_factor"] = {
                "data_registry": {"attr_name": "obs", "attr_key": self.size_factor_key},
                "state_registry": {"scale": self.size_factor_scale},
                "summary_stats": {},
            }
        if keys := list(self.categorical_covariate_keys):
            setup_args["categorical_covariate_keys"] = keys
            mappings = {key: object_array(self.categories[key]) for key in keys}
            fields["extra_categorical_covs"] = {
                "data_registry": {"attr_name": "obs", "attr_key": keys},
                "state_registry": {
                    "mappings": mappings,
                    "field_keys": keys,
                    "n_cats_per_key": list(self.shape.n_cats),
                },
                "summary_stats": {"n_extra_categorical_covs": len(keys)},
            }
        if keys := list(self.continuous_covariate_keys):
            setup_args["continuous_covariate_keys"] = keys
            fields["extra_continuous_covs"] = {
                "data_registry": {"attr_name": "obs", "attr_key": keys},
                "state_registry": {"columns": np.array(keys, dtype=object)},
                "summary_stats": {"n_extra_continuous_covs": len(keys)},
            }
        return {
            "model_name": "LinearSCVI",
            "setup_method_name": "setup_anndata",
            "setup_args": setup_args,
            "field_registries": fields,
            "_scvi_uuid": self.uuid,
        }

    def to_dict(self) -> dict[str, Any]:
        """As plain values that JSON can hold."""
        plain = asdict(self)
        plain["categories"] = {key: [encoded(value) for value in values] for key, values in self.categories.items()}
        return plain

    @classmethod
    def of(cls, given: Registry | Mapping[str, Any]) -> Registry:
        """A registry as users have it: an object of this class, what `to_dict` returns, or the layout of scvi-tools.

        Raises
        ------
        InputError
            If it is none of these.
        """
        if isinstance(given, Registry):
            return given
        try:
            return cls.from_layout(given) if "field_registries" in given else cls.from_dict(dict(given))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"registry is not that of a model (found {error!r}); give `model.registry`, or what "
                "`LinearSCVI.load_registry` returns."
            ) from error

    @classmethod
    def from_layout(cls, layout: Mapping[str, Any], var_names: Iterable[object] | None = None) -> Registry:
        """Inverse of `reference_layout`.

        Parameters
        ----------
        layout
            Of a LinearSCVI of ldvae or of scvi-tools.
        var_names
            Genes in the order of the model; none: those in the layout.
        """
        name = layout.get("model_name", "LinearSCVI")
        if name != "LinearSCVI":
            raise InputError(
                f"It appears you are loading a model from a different class: found {name}, expected LinearSCVI."
            )
        arguments = layout["setup_args"]
        states = {key: part["state_registry"] for key, part in layout["field_registries"].items()}
        mappings = {key: states[key]["categorical_mapping"] for key in ("batch", "labels")}
        mappings |= states.get("extra_categorical_covs", {}).get("mappings", {})
        return cls(
            layer=arguments.get("layer"),
            batch_key=arguments.get("batch_key"),
            labels_key=arguments.get("labels_key"),
            size_factor_key=arguments.get("size_factor_key"),
            categorical_covariate_keys=tuple(arguments.get("categorical_covariate_keys") or ()),
            continuous_covariate_keys=tuple(arguments.get("continuous_covariate_keys") or ()),
            var_names=tuple(map(str, states["X"]["column_names"] if var_names is None else var_names)),
            categories={key: categories_of(mapping) for key, mapping in mappings.items()},
            n_obs=int(states["X"].get("n_obs", 0)),
            size_factor_scale=float(states.get("size_factor", {}).get("scale", 1)),
            uuid=str(layout.get("_scvi_uuid", "")),
        )

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Registry:
        """Inverse of `to_dict`."""
        tuples = ("categorical_covariate_keys", "continuous_covariate_keys", "var_names")
        values = plain | {name: tuple(plain[name]) for name in tuples}
        return cls(**values | {"categories": {key: tuple(map(decoded, v)) for key, v in plain["categories"].items()}})


def categories_of(mapping: Any) -> tuple[Any, ...]:
    """Categories from an array of them, as Python's own values."""
    values = np.asarray(mapping)
    # Dates and durations would become numbers.
    return tuple(pd.Index(values)) if values.dtype.kind in "mM" else tuple(values.tolist())


def object_array(values: Sequence[Any]) -> np.ndarray:
    """Values as an array of one axis, whatever they are: NumPy makes a table of tuples."""
    array = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        array[i] = value
    return array


class AttrDict(dict[str, Any]):
    """A dictionary whose string keys are attributes too, also of the dictionaries in it, as scvi-tools gives them."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__({key: AttrDict(v) if type(v) is dict else v for key, v in content.items()})

    def __eq__(self, other: object) -> bool:
        # scvi-tools' own such dictionary is equal to none but its kind, unless asked from this side.
        return super().__eq__(dict(other.items()) if hasattr(other, "items") else other)

    __hash__ = None  # type: ignore[assignment]  # as of every dictionary

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"There is no {name!r}; there are {', '.join(map(str, self))}.") from None


def setup_lines(arguments: Mapping[str, Any]) -> str:
    """The arguments of `setup_anndata`, a line each."""
    return "\n".join(["Arguments of setup_anndata:", *(f"  {name}: {value!r}" for name, value in arguments.items())])


def check_size(registry: Registry, config: ModelConfig) -> None:
    """Refuse data too small for the model, and warn of a latent space that cannot be smaller than the data."""
    if len(registry.var_names) <= config.n_latent:
        warnings.warn(
            f"adata has {counted(len(registry.var_names), 'gene')} for {counted(config.n_latent, 'factor')}: the "
            "factors can do no more than "
            "the genes themselves. Lower n_latent, or keep more genes.",
            UserWarning,
            stacklevel=4,
        )
    if registry.n_obs < 2:
        raise InputError(f"adata has {counted(registry.n_obs, 'cell')}; a model needs at least 2 to learn from.")
