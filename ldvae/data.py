"""AnnData in, validated counts out: what was registered, the split, the minibatches."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset
from scipy import sparse
from torch import Tensor

from ldvae.categories import as_saved, as_text, decoded, encoded
from ldvae.config import ModelConfig
from ldvae.counts import verify_counts
from ldvae.errors import InputError, MissingKeyError
from ldvae.rows import Rows, rows_of

logger = logging.getLogger(__name__)

MINIFIED_KEY = "_scvi_adata_minify_type"  # in adata.uns, as in scvi-tools
MINIFIED_TYPES = ("latent_posterior_parameters", "latent_posterior_parameters_with_counts")
SETUP_KEY = "_ldvae_setup"  # in adata.uns: arguments of setup_anndata, as JSON
PRIOR_CELLS = 5  # weight, in cells, of the variance within all batches in the prior of one batch
LEAST_VARIANCE = 1e-4  # of a posterior (`ldvae.module.VAR_EPS`)
BLOCK_ROWS = 512  # rows read at once from disk; shuffled as blocks
BUFFER_BLOCKS = 32  # blocks held in memory together, and shuffled row by row


Field: TypeAlias = np.ndarray | sparse.csr_matrix | sparse.csc_matrix | CSRDataset | CSCDataset  # of an AnnData


class DataShape(NamedTuple):
    """Sizes of the data that the model depends on."""

    n_vars: int
    n_batch: int = 1
    n_labels: int = 1
    n_cats: tuple[int, ...] = ()  # categories of each categorical covariate
    n_continuous: int = 0


class Covariates(NamedTuple):
    """Covariates of cells."""

    batch_index: Tensor  # int64, (n_obs,)
    label_index: Tensor  # int64, (n_obs,)
    categorical: Tensor  # int64, (n_obs, len(n_cats))
    continuous: Tensor  # float32, (n_obs, n_continuous)
    library: Tensor  # float32, log of the total count (or of the scaled size factor), (n_obs, 1)

    def rows(self, rows: np.ndarray | Tensor) -> Covariates:
        """The covariates of some cells, in the order given."""
        rows = torch.as_tensor(rows)
        return Covariates(*(values[rows] for values in self))

    def to(self, device: torch.device | str) -> Covariates:
        """The same on another device."""
        return Covariates(*(values.to(device) for values in self))


@dataclass(frozen=True, eq=False)
class Counts:
    """Validated UMI counts in memory: finite, non-negative integers.

    Attributes
    ----------
    x
        CSR, float32, shape (n_obs, n_vars).
    covariates
        Of every cell, in the order of the rows.
    """

    x: sparse.csr_matrix
    covariates: Covariates

    def __len__(self) -> int:
        return int(self.x.shape[0])

    @property
    def n_vars(self) -> int:
        """Number of genes."""
        return int(self.x.shape[1])

    @cached_property
    def log1p(self) -> np.ndarray:
        """log(1 + count) of the stored entries, float32, shape (nnz,)."""
        return np.log1p(self.x.data)

    @cached_property
    def genes(self) -> np.ndarray:
        """Gene of each stored entry, int32, shape (nnz,)."""
        return self.x.indices.astype(np.int32, copy=False)

    def minibatch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> tuple[Tensor, Covariates]:
        """Dense counts (len(rows), n_vars) and covariates of some cells."""
        return torch.from_numpy(self.x[rows].toarray()).to(device), self.covariates.rows(rows).to(device)

    def minibatches(
        self, rows: np.ndarray, size: int, order: np.random.Generator | None = None
    ) -> Iterator[tuple[Counts, np.ndarray]]:
        """Minibatches of the cells `rows`: counts in memory, and the rows of these counts to use.

        Parameters
        ----------
        rows
            Cells to go through, each once.
        size
            Cells in a minibatch; the last one may be smaller.
        order
            Shuffles the cells; without it they come in the order given.
        """
        if order is not None:
            rows = order.permutation(rows)
        for start in range(0, len(rows), size):
            yield self, rows[start : start + size]


@dataclass(frozen=True, eq=False)
class BackedCounts:
    """Validated UMI counts on disk, with the interface of `Counts`; a few blocks of rows are in memory at a time.

    Shuffled minibatches come from a buffer of blocks of neighbouring rows, the blocks drawn at random, the rows of
    a buffer shuffled: where neighbours in the file are alike, each minibatch still mixes many places of the file.

    Attributes
    ----------
    x
        A matrix on disk as anndata opens it, shape (n_obs, n_vars).
    var_names
        Gene names, for the messages.
    where
        Name of the matrix in messages.
    covariates
        Of every cell, in memory.
    totals
        Total count of each cell at validation, shape (n_obs,); rows read later must have the same totals.
    """

    x: Any
    var_names: Sequence[str]
    where: str
    covariates: Covariates
    totals: np.ndarray

    def __len__(self) -> int:
        return int(self.x.shape[0])

    @property
    def n_vars(self) -> int:
        """Number of genes."""
        return int(self.x.shape[1])

    @cached_property
    def between(self) -> Callable[[int, int], sparse.csr_matrix]:
        """Function that reads rows start to stop."""
        return reader(self.x)

    def read(self, rows: np.ndarray) -> Counts:
        """Counts of some cells, rows ascending, read in runs of neighbours."""
        apart = (np.diff(rows) > BLOCK_ROWS // 8) | (np.diff(rows // (16 * BLOCK_ROWS)) > 0)
        blocks = []
        for run in np.split(rows, np.flatnonzero(apart) + 1):
            block = self.between(int(run[0]), int(run[-1]) + 1)
            blocks.append(block if len(run) == block.shape[0] else block[run - run[0]])
        x = sparse.vstack(blocks, format="csr")
        changed = np.flatnonzero(np.asarray(x.sum(axis=1)).ravel() != self.totals[rows])
        if len(changed):
            row = int(rows[changed[0]])
            raise InputError(
                f"{self.where} has changed on disk since it was checked: row {row} had a total count of "
                f"{self.totals[row]:g}, now it has {x[changed[0]].sum():g}. Open the file again, and set model.adata."
            )
        return Counts(x, self.covariates.rows(rows))

    def minibatch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> tuple[Tensor, Covariates]:
        """Dense counts (len(rows), n_vars) and covariates of some cells, in the order given."""
        unique, position = np.unique(rows, return_inverse=True)
        return self.read(unique).minibatch(position, device)

    def minibatches(
        self, rows: np.ndarray, size: int, order: np.random.Generator | None = None
    ) -> Iterator[tuple[Counts, np.ndarray]]:
        """As `Counts.minibatches`; cells in the order given are read for as many minibatches as a buffer holds."""
        if order is None:
            together = size * max(1, BUFFER_BLOCKS * BLOCK_ROWS // size)
            for start in range(0, len(rows), together):
                unique, position = np.unique(rows[start : start + together], return_inverse=True)
                yield from self.read(unique).minibatches(position, size)
            return
        rows = np.sort(rows)
        blocks = np.split(rows, np.flatnonzero(np.diff(rows // BLOCK_ROWS)) + 1)
        drawn = order.permutation(len(blocks))
        for start in range(0, len(drawn), BUFFER_BLOCKS):
            buffer = np.concatenate([blocks[i] for i in np.sort(drawn[start : start + BUFFER_BLOCKS])])
            yield from self.read(buffer).minibatches(np.arange(len(buffer)), size, order)


def reader(x: Any) -> Callable[[int, int], sparse.csr_matrix]:
    """Function that reads rows start to stop of a matrix as CSR (`as_csr`).

    CSR on disk (h5ad or zarr) is read from its stored arrays. A slice through anndata takes milliseconds longer: it
    looks up the metadata of installed packages and makes an empty matrix of the full shape.
    """
    if not isinstance(x, CSRDataset):
        return lambda start, stop: as_csr(x[start:stop])
    data, indices, indptr = x.group["data"], x.group["indices"], x.group["indptr"][...]
    n_vars = x.shape[1]

    def between(start: int, stop: int) -> sparse.csr_matrix:
        first, last = indptr[start], indptr[stop]
        arrays = data[first:last], indices[first:last], indptr[start : stop + 1] - first
        return as_csr(sparse.csr_matrix(arrays, shape=(stop - start, n_vars)))

    return between


def as_csr(x: Any) -> sparse.csr_matrix:
    """Any matrix as float32 CSR, genes ascending and once in each cell; shares memory where it already is."""
    if not isinstance(x, sparse.csr_matrix):
        x = sparse.csr_matrix(x)
    if not x.has_canonical_format:
        x = x.copy()
        x.sum_duplicates()
    return x.astype(np.float32, copy=False)


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
            categories = np.array(self.categories[name], dtype=None if original_key is None else object)
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
            mappings = {key: np.array(self.categories[key], dtype=object) for key in keys}
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
    def from_dict(cls, plain: dict[str, Any]) -> Registry:
        """Inverse of `to_dict`."""
        tuples = ("categorical_covariate_keys", "continuous_covariate_keys", "var_names")
        values = plain | {name: tuple(plain[name]) for name in tuples}
        return cls(**values | {"categories": {key: tuple(map(decoded, v)) for key, v in plain["categories"].items()}})


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


def setup_lines(arguments: Mapping[str, Any]) -> str:
    """The arguments of `setup_anndata`, a line each."""
    return "\n".join(["Arguments of setup_anndata:", *(f"  {name}: {value!r}" for name, value in arguments.items())])


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
    for name, keys in (
        ("categorical_covariate_keys", categorical_covariate_keys),
        ("continuous_covariate_keys", continuous_covariate_keys),
    ):
        if isinstance(keys, str):
            raise InputError(
                f"{name} must be a list of columns of adata.obs, found the string {keys!r}; write [{keys!r}]."
            )
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


def check_size(registry: Registry, config: ModelConfig) -> None:
    """Refuse data too small for the model, and warn of a latent space that cannot be smaller than the data."""
    if len(registry.var_names) <= config.n_latent:
        warnings.warn(
            f"adata has {len(registry.var_names)} genes for {config.n_latent} factors: the factors can do no more than "
            "the genes themselves. Lower n_latent, or keep more genes.",
            UserWarning,
            stacklevel=4,
        )
    if registry.n_obs < 2:
        raise InputError(f"adata has {registry.n_obs} cell; a model needs at least 2 to learn from.")


def read_counts(adata: AnnData, registry: Registry, check_only: bool = False) -> Counts | BackedCounts:
    """The counts and covariates of `adata` as a model with this registry takes them, checked.

    Parameters
    ----------
    adata
        The registered data, or other data with the same genes and fields.
    registry
        Of the model.
    check_only
        Do not check backed data entry by entry: it is the caller's next step that reads them.

    Raises
    ------
    InputError
        If the entries are no counts, or genes, columns or categories are not those of the registry.
    """
    check_genes(adata.var_names, registry.var_names)
    x = matrix(adata, registry)
    names, where = registry.var_names, registry.where
    backed = not isinstance(x, np.ndarray) and not sparse.issparse(x)
    if not backed:
        x = as_csr(x)
        verify_counts(x, where, names)
        totals = np.asarray(x.sum(axis=1)).ravel()
    elif check_only:
        totals = np.ones(adata.n_obs)
    else:
        totals = np.zeros(adata.n_obs)
        start = 0
        for block in row_blocks(x):
            if block.nnz:
                verify_counts(block, where, names)
            totals[start : start + block.shape[0]] = np.asarray(block.sum(axis=1)).ravel()
            start += block.shape[0]
    if n_empty := int((totals == 0).sum()):
        warnings.warn(
            f"{n_empty} of {len(totals)} cells have no counts in {where}; they carry no information. "
            "Consider removing them with scanpy.pp.filter_cells.",
            UserWarning,
            stacklevel=3,
        )
    covariates = read_covariates(adata, registry, totals)
    return BackedCounts(x, names, where, covariates, totals) if backed else Counts(x, covariates)


class Snapshot(NamedTuple):
    """State of an AnnData when its counts were read, by which later changes are found."""

    cells: pd.Index
    genes: pd.Index
    where: tuple[Any, ...]  # the arrays in memory: a matrix put in their place is another one
    content: bytes  # checksum of every entry; of a matrix on disk nothing, its rows are checked as they are read
    annotation: pd.DataFrame  # the registered columns of obs

    @classmethod
    def of(cls, adata: AnnData, registry: Registry) -> Snapshot:
        """The present state of an AnnData."""
        arrays = arrays_of(matrix(adata, registry))
        # A view makes its matrix anew whenever it is asked for.
        where = () if adata.is_view else tuple((a.ctypes.data, a.shape, a.strides, a.dtype.str) for a in arrays)
        keys = [registry.batch_key, registry.labels_key, registry.size_factor_key]
        keys += [*registry.categorical_covariate_keys, *registry.continuous_covariate_keys]
        present = list(dict.fromkeys(key for key in keys if key in adata.obs))
        content = b"".join(checksum(a) for a in arrays)
        return cls(adata.obs_names, adata.var_names, where, content, adata.obs[present].copy())

    def changes(self, now: Snapshot, where: str) -> list[str]:
        """Descriptions of what has changed since; `where` names the matrix."""
        found = []
        if len(self.cells) != len(now.cells):
            found.append(f"{len(self.cells)} cells are now {len(now.cells)}")
        elif not same_index(self.cells, now.cells):
            found.append("the names or the order of the cells")
        if not same_index(self.genes, now.genes):
            found.append("the genes")
        if self.content != now.content:
            found.append(f"the values of {where}")
        elif self.where != now.where:
            found.append(f"{where} is another matrix")
        if not self.annotation.reset_index(drop=True).equals(now.annotation.reset_index(drop=True)):
            found.append(f"adata.obs: {', '.join(map(str, self.annotation.columns))}")
        return found


class ModelData:
    """The data of a model, always in their present state.

    `counts` reads and validates the counts, and keeps them for the next call. It reads them again when the AnnData has
    changed: other cells, genes or columns of obs, another matrix, or other values in it.

    Parameters
    ----------
    adata
        Data with the genes and fields of the registry.
    registry
        Of the model.
    """

    def __init__(self, adata: AnnData, registry: Registry) -> None:
        self.adata = adata
        self.registry = registry
        self._read: tuple[Snapshot, Counts | BackedCounts] | None = None

    @property
    def snapshot(self) -> Snapshot | None:
        """The AnnData when its counts were read; None before."""
        return None if self._read is None else self._read[0]

    def counts(self) -> Counts | BackedCounts:
        """The counts and covariates of the AnnData as it is now.

        Raises
        ------
        InputError
            If there are no counts in them (minified data), or they were changed to what the model cannot use; the
            message says what was changed.
        """
        if minified_type(self.adata) == MINIFIED_TYPES[0]:
            raise InputError("This needs counts, and the data are minified: they hold the latent posterior alone.")
        now = Snapshot.of(self.adata, self.registry)
        if self._read is None:
            self._read = now, read_counts(self.adata, self.registry)
            return self._read[1]
        before, counts = self._read
        if not (changes := before.changes(now, self.registry.where)):
            return counts
        try:
            counts = read_counts(self.adata, self.registry)
        except InputError as error:
            raise InputError(
                f"The data of the model have changed since they were read ({'; '.join(changes)}), and cannot be used "
                f"as they are now: {error}"
            ) from error
        logger.info("The data of the model have changed (%s); they were read again.", "; ".join(changes))
        self._read = now, counts
        return counts


def minified_type(adata: AnnData) -> str | None:
    """How `adata` was minified: one of `MINIFIED_TYPES`, or None."""
    return adata.uns.get(MINIFIED_KEY)


def same_index(one: pd.Index, other: pd.Index) -> bool:
    """Whether two indices hold the same names in the same order."""
    return one is other or one.equals(other)


def name_hashes(names: pd.Index) -> np.ndarray:
    """A number for each name, uint64, shape (n_obs,): the same in every process and in a file."""
    return pd.util.hash_array(names.astype(str).to_numpy(dtype=object), categorize=False)


def arrays_of(x: Any) -> list[np.ndarray]:
    """The arrays that a matrix in memory consists of; none for one on disk."""
    if isinstance(x, np.ndarray):
        return [np.asarray(x)]
    if not sparse.issparse(x):
        return []
    compressed = x if x.format in ("csr", "csc") else x.tocsr()
    return [compressed.data, compressed.indices, compressed.indptr]


def checksum(array: np.ndarray) -> bytes:
    """Checksum of all bytes of an array and of their order, as fast as memory is read (4 GB/s).

    The bytes are laid out as a table of 64-bit numbers, and the sums of its rows and of its columns are hashed: what
    changes one value, or exchanges two, changes a row or a column.
    """
    digest = hashlib.blake2b(f"{array.shape}{array.dtype}".encode(), digest_size=16)
    if not array.flags.c_contiguous:
        array = array.T if array.flags.f_contiguous else np.ascontiguousarray(array)
    raw = array.reshape(-1).view(np.uint8)
    columns, rows_at_once = 4096, 64  # 2 MB, which stay in the cache for the second sum
    n_rows = len(raw) // (8 * columns)
    table = raw[: n_rows * 8 * columns].view(np.uint64).reshape(n_rows, columns)
    column_sums, row_sums = np.zeros(columns, np.uint64), np.empty(n_rows, np.uint64)
    for start in range(0, n_rows, rows_at_once):
        part = table[start : start + rows_at_once]
        column_sums += part.sum(axis=0)
        row_sums[start : start + rows_at_once] = part.sum(axis=1)
    for values in (column_sums, row_sums, raw[n_rows * 8 * columns :]):
        digest.update(values.tobytes())
    return digest.digest()


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


def library_prior(
    counts: Counts | BackedCounts, n_batch: int, names: Sequence[Any] | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and variance of the log total counts of each batch, shape (n_batch,); 0 and 1 for a batch without cells.

    Parameters
    ----------
    counts
        Counts of all cells.
    n_batch
        Number of batches.
    names
        Of the batches, for the warning; none: no warning.

    Notes
    -----
    The variance v_k of n_k cells is that of scvi-tools (the population variance), but never below

        v n0 / (n_k + n0),    n0 = PRIOR_CELLS,

    the share of the variance v within all batches that n0 further cells without any deviation of their own would keep.
    One cell alone in its batch, or a batch downsampled to one total, has v_k = 0, and a prior so narrow that it decides
    the whole fit. Batches whose totals vary as those of others do keep their variance bit by bit.
    """
    library = counts.covariates.library[:, 0].double()
    batch_index = counts.covariates.batch_index
    means, variances, n = torch.zeros(n_batch), torch.ones(n_batch), torch.zeros(n_batch, dtype=torch.float64)
    for batch in batch_index.unique().tolist():
        of_batch = library[batch_index == batch]
        means[batch], variances[batch] = of_batch.mean(), of_batch.var(correction=0)
        n[batch] = len(of_batch)
    floor = (within_variance(counts) * PRIOR_CELLS / (n + PRIOR_CELLS)).clamp(min=1e-8).float()
    low = (n > 0) & (variances < floor)
    if names is not None and low.any():
        told = ", ".join(f"{names[k]} ({int(n[k])} cells)" for k in low.nonzero()[:5, 0].tolist())
        warnings.warn(
            f"The total counts hardly vary in {int(low.sum())} of {n_batch} batches: {told}. The prior variance of the "
            "log library size there is taken in part from all batches.",
            UserWarning,
            stacklevel=4,
        )
    return means, torch.where(low, floor, variances)


def gene_totals(counts: Counts | BackedCounts) -> np.ndarray:
    """Total count of each gene over all cells, float64, shape (n_vars,)."""
    blocks = counts.minibatches(np.arange(len(counts)), 4096)
    return np.asarray(sum(block.x[rows].sum(axis=0, dtype=np.float64) for block, rows in blocks)).ravel()


def cell_totals(counts: Counts | BackedCounts) -> np.ndarray:
    """Total count of each cell, float32, shape (n_obs,)."""
    blocks = counts.minibatches(np.arange(len(counts)), 4096)
    return np.concatenate([np.asarray(block.x[rows].sum(axis=1)).ravel() for block, rows in blocks])


def within_variance(counts: Counts | BackedCounts) -> float:
    """Variance of the log total counts within batches; where no batch has two cells, over all cells."""
    library = counts.covariates.library[:, 0].double().numpy()
    batch_index = counts.covariates.batch_index.numpy()
    n = np.bincount(batch_index)
    if n.max() < 2:
        return float(library.var())
    means = np.bincount(batch_index, library) / np.maximum(n, 1)
    squares = (library - means[batch_index]) ** 2
    together = n[batch_index] > 1
    return float(squares[together].mean())


def totals_vary(counts: Counts | BackedCounts) -> bool:
    """Whether the total counts of the cells vary enough for a library size to be inferred.

    They do not where their variance is below a tenth of that of counting itself (1 / total, for its logarithm), or
    below the least variance that the posterior can have: as after downsampling all cells to one total.
    """
    library = counts.covariates.library[:, 0].double()
    counting = float((-library).exp().mean())
    return within_variance(counts) > max(LEAST_VARIANCE, 0.1 * counting)


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


def row_blocks(x: Any, size: int = 16 * BLOCK_ROWS) -> Iterator[sparse.csr_matrix]:
    """The rows of a matrix in memory or on disk, as CSR blocks."""
    between = reader(x)
    for start in range(0, x.shape[0], size):
        yield between(start, min(start + size, x.shape[0]))


def obs_column(adata: AnnData, key: str | None) -> pd.Series | None:
    """A column of obs without missing values; None for no key."""
    if key is None:
        return None
    if key not in adata.obs:
        raise MissingKeyError(
            f"{key} not found in adata.obs. Its columns are: {', '.join(map(str, adata.obs.columns)) or 'none'}."
        )
    column = adata.obs[key]
    if n_missing := int(column.isna().sum()):
        raise InputError(
            f"obs[{key!r}] has {n_missing} missing values (NaN) among {len(column)} cells. Give them a "
            f"category of their own, e.g. adata.obs[{key!r}] = adata.obs[{key!r}].astype(str), or remove these cells."
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


def category_columns(registry: Registry) -> dict[str, dict[str, Any]]:
    """Registered columns of obs whose categories a file does not hold as they are: their values by their text."""
    keys = {"batch": registry.batch_key, "labels": registry.labels_key}
    keys |= {key: key for key in registry.categorical_covariate_keys}
    texts = {key: as_text(registry.categories[name]) for name, key in keys.items() if key is not None}
    return {key: by_text for key, by_text in texts.items() if by_text}


def with_text_categories(adata: AnnData, registry: Registry) -> AnnData:
    """`adata` itself, or where its batches are intervals, dates and the like, a copy with their text, for h5ad."""
    columns = category_columns(registry)
    if not columns:
        return adata
    made = adata.to_memory() if adata.isbacked else adata.copy()
    for key, by_text in columns.items():
        made.obs[key] = pd.Categorical.from_codes(codes(adata, key, list(by_text.values())), list(by_text))
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
    column = obs_column(adata, key)
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


class Split(NamedTuple):
    """Row numbers of the cells of each part, int64."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@dataclass
class TrainedOn:
    """Which cells a model was trained on; found again by their names where its data have changed since.

    Attributes
    ----------
    split
        Rows of the cells when the model was trained.
    cells
        Hashes of their names then (`name_hashes`); None: unknown.
    snapshot
        The data then; None for a model that was loaded.
    """

    split: Split
    cells: np.ndarray | None
    snapshot: Snapshot | None = None

    def rows(self, part: str, adata: AnnData | None, registry: Registry) -> np.ndarray:
        """Rows of a part of the split in the data as they are now; cells that are gone are left out."""
        rows = getattr(self.split, part)
        if self.cells is None or adata is None:
            return rows
        if self.snapshot is not None and same_index(self.snapshot.cells, adata.obs_names):
            return rows
        names = name_hashes(adata.obs_names)
        if np.array_equal(names, self.cells):
            return rows
        if self.snapshot is not None:
            now = Snapshot.of(adata, registry)
            if (self.snapshot.where, self.snapshot.content) == (now.where, now.content):
                self.snapshot, self.cells = now, names  # the same cells under other names
                return rows
        if len(np.unique(names)) < len(names) or len(np.unique(self.cells)) < len(self.cells):
            raise InputError(
                "The cells of the model's data have changed since the training, and their names repeat: which of them "
                f"were in the {part} part cannot be told."
            )
        found = pd.Index(names).get_indexer(self.cells[rows])
        return found[found >= 0]


def split_cells(
    n_obs: int,
    train_size: float | None = None,
    validation_size: float | None = None,
    shuffle: bool = True,
    seed: int = 0,
) -> Split:
    """Split cells at random as scvi-tools does: validation first, then training; the rest is the test set.

    Parameters
    ----------
    n_obs
        Number of cells.
    train_size
        Share of the cells to train on, above 0 and at most 1; none: 0.9.
    validation_size
        Share to validate on; none: all that is not trained on.
    shuffle
        Without it, the first cells train, the next validate.
    seed
        Of the permutation.
    """
    share = 0.9 if train_size is None else train_size
    if not 0 < share <= 1:
        raise InputError(f"Invalid train_size: {share:g}. Must be: 0 < train_size <= 1.")
    if validation_size is not None and not 0 <= validation_size < 1:
        raise InputError(f"Invalid validation_size: {validation_size:g}. Must be: 0 <= validation_size < 1.")
    if validation_size is not None and share + validation_size > 1:
        raise InputError(
            f"train_size + validation_size is {share + validation_size:g}; together they must be at most 1."
        )
    n_train = int(np.ceil(share * n_obs))
    n_validation = n_obs - n_train if validation_size is None else int(n_obs * validation_size)
    if not shuffle:
        order = np.arange(n_obs)
        return Split(*np.split(order, [n_train, n_train + n_validation]))
    order = np.random.RandomState(seed).permutation(n_obs)
    validation, train, test = np.split(order, [n_validation, n_validation + n_train])
    return Split(train, validation, test)


def external_split(parts: Sequence[Rows], obs: pd.DataFrame) -> Split:
    """A split given as the cells of its parts: train, validation, test; later ones may be left out."""
    if isinstance(parts, str) or len(parts) not in (1, 2, 3):
        raise InputError("external_indexing must be a list of up to three parts: cells to train on, validate, test.")
    names = [f"external_indexing[{i}]" for i in range(3)]
    given = [*parts, *[[]] * (3 - len(parts))]
    rows = [
        rows_of([] if part is None else part, obs, name, none_selected=True)
        for part, name in zip(given, names, strict=True)
    ]
    if len(np.unique(np.concatenate(rows))) < sum(map(len, rows)):
        raise InputError("external_indexing names a cell more than once; the parts must be disjoint.")
    return Split(*rows)
