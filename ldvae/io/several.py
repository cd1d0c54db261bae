"""Several files as one."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ldvae.errors import InputError
from ldvae.io.annotation import as_text, objects_to_categories
from ldvae.io.chunks import ROWS, Part
from ldvae.io.messages import first_names
from ldvae.io.stored import has_neighbors
from ldvae.names import own_name

logger = logging.getLogger(__name__)

SHARED_GENES = 1 / 3  # least share of a file's genes that all files must have


def concatenate(files: Mapping[str, AnnData]) -> AnnData:
    """Cells of all files over the genes they share; obs column ``file`` (or ``file_ldvae``) tells the file.

    Parameters
    ----------
    files
        Counts of each file by its name; `X` may be none.
    """
    import anndata

    first = next(iter(files.values()))
    shared = first.var_names[np.all([first.var_names.isin(file.var_names) for file in files.values()], axis=0)]
    fewest = min(files, key=lambda name: files[name].n_vars)
    if len(shared) < SHARED_GENES * files[fewest].n_vars:
        examples = "; ".join(f"{name} has {first_names(file.var_names, 3)}" for name, file in files.items())
        many = (
            f"{len(shared)} of the {files[fewest].n_vars} genes of {fewest}, too few to model" if len(shared) else "no"
        )
        raise InputError(
            f"The input files share {f'only {many}' if len(shared) else 'no gene name'}: {examples}. {alike(files)}"
        )
    for name, file in files.items():
        if lost := file.n_vars - len(shared):
            logger.warning("%s: %d of %d genes are not in every file and were left out.", name, lost, file.n_vars)
    repeated = pd.concat([file.obs_names.to_series() for file in files.values()]).duplicated().any()
    obs = objects_to_categories(pd.concat(consistent(files)))
    key = own_name("file", obs.columns)
    obs[key] = pd.Categorical(np.repeat(list(files), [file.n_obs for file in files.values()]), categories=list(files))
    widths = {
        name: {file.obsm[name].shape[1:] if name in file.obsm else None for file in files.values()}
        for name in first.obsm
    }
    raws = [file.raw.to_adata() for file in files.values() if file.raw is not None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw = anndata.concat(raws, join="inner", merge="same") if len(raws) == len(files) else None
        adata = anndata.concat(
            {
                name: AnnData(
                    None if file.X is None else file.X[:, file.var_names.get_indexer(shared)],
                    obs=pd.DataFrame(index=file.obs_names),
                    var=file.var.loc[shared],
                    layers={
                        layer: matrix[:, file.var_names.get_indexer(shared)]
                        for layer, matrix in file.layers.items()
                        if layer is not None  # X, since anndata 0.13
                    },
                    obsm={name: values for name, values in file.obsm.items() if len(widths.get(name, ())) == 1},
                    varm=dict(file[:, shared].varm),
                    obsp=dict(file.obsp),
                    varp={name: of_genes(values, file, shared) for name, values in file.varp.items()},
                    uns=file.uns,
                )
                for name, file in files.items()
            },
            join="inner",
            merge="same",
            uns_merge="unique",
            pairwise=True,
            index_unique="-" if repeated else None,
        )
    obs.index = adata.obs_names
    adata.obs = obs
    if adata.X is not None:
        adata.X = sparse.csr_matrix(adata.X)
    for name in [name for name in adata.uns if has_neighbors(adata.uns[name])]:
        del adata.uns[name]  # of one file alone
    adata.uns["ldvae_file_key"] = key
    if raw is not None:
        raw.obs_names = adata.obs_names
        adata.raw = raw
    return adata


def shared_genes(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """var of the genes that all tables have, with the columns that agree in all."""
    import anndata

    if len(tables) == 1:
        return tables[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = [AnnData(obs=pd.DataFrame(index=[str(i)]), var=var) for i, var in enumerate(tables)]
        return anndata.concat(files, join="inner", merge="same").var


def of_genes(values: Any, file: AnnData, genes: pd.Index) -> Any:
    """Entries of pairs of some genes, of a matrix of all pairs of genes of a file."""
    at = file.var_names.get_indexer(genes)
    return (values.tocsr() if sparse.issparse(values) else values)[at][:, at]


def alike(files: Mapping[str, AnnData]) -> str:
    """Why the genes of files are called differently, and what to do."""
    indexes = [file.var_names for file in files.values()]
    kept = [pd.Index(file.var.get("gene_ids", file.var_names)) for file in files.values()]
    ways = {
        "They are called alike by their identifiers: gene_names: index.": kept,
        "They differ in the versions of the identifiers alone; take these off (the dot and what follows).": [
            index.str.replace(r"\.\d+$", "", regex=True) for index in indexes
        ],
        "They differ in capital letters alone, as genes of human and mouse do; are all of one species?": [
            index.str.upper() for index in indexes
        ],
    }
    for said, names in ways.items():
        n_shared = sum(np.all([names[0].isin(other) for other in names[1:]], axis=0))
        if n_shared >= SHARED_GENES * min(map(len, names)):
            return said
    return (
        "Are some named by symbol, others by identifier, or from different species? A var column can name all alike "
        "(gene_names)."
    )


def warn_of_copies(files: Mapping[str, AnnData], counts: Mapping[str, Part]) -> None:
    """Warn of files that hold the same cells with the same counts, as copies of one do."""
    names = list(counts)
    for i, name in enumerate(names):
        for other in names[:i]:
            same = counts[name].shape == counts[other].shape and files[name].obs_names.equals(files[other].obs_names)
            if same and same_counts(counts[name], counts[other]):
                logger.warning("%s and %s hold the same cells with the same counts; is one a copy?", other, name)


def same_counts(one: Part, other: Part) -> bool:
    """Whether two matrices of one shape have the same entries; ends at the first rows that differ."""
    ends = [*range(0, one.shape[0], ROWS), one.shape[0]]
    return all((one.between(*rows) != other.between(*rows)).nnz == 0 for rows in pairwise(ends))


def consistent(files: Mapping[str, AnnData]) -> list[pd.DataFrame]:
    """Obs of each file; a column that is text in one of them is text in all."""
    tables = [file.obs for file in files.values()]
    names = {name for table in tables for name in table.columns}
    text = {name for name in names if any(name in t and not pd.api.types.is_numeric_dtype(t[name]) for t in tables)}
    result = []
    for table in tables:
        values = {name: table[name].astype(object) for name in table.columns if name in text}
        result.append(table.assign(**{name: v.where(v.isna(), v.map(as_text)) for name, v in values.items()}))
    return result
