"""Minified data: cells kept as their latent posterior, in place of their counts or beside them."""

from __future__ import annotations

import logging
import warnings
import zlib
from typing import NamedTuple

import numpy as np
import torch
from anndata import AnnData
from scipy import sparse

from ldvae.data import (
    MINIFIED_CELL_KEY,
    MINIFIED_KEY,
    MINIFIED_TYPES,
    Covariates,
    ModelData,
    Registry,
    cell_totals,
    check_genes,
    layer_names,
    minified_type,
    read_covariates,
)
from ldvae.errors import InputError, MissingKeyError
from ldvae.module import LDVAE, Posterior
from ldvae.posterior import Cells
from ldvae.storage import weights_hash

logger = logging.getLogger(__name__)

MINIFIED_BY_KEY = "_ldvae_minified_by"  # in adata.uns: hash of the weights of the model that encoded the cells

USUAL_KEYS = ("X_latent_qzm", "X_latent_qzv")  # in adata.obsm, as in scvi-tools: mean and variance of q(z)


class Minified(NamedTuple):
    """What is kept of cells in place of their counts; numpy arrays, of every cell."""

    z_mean: np.ndarray  # (n_obs, n_latent)
    z_var: np.ndarray
    l_mean: np.ndarray | None  # log library size, (n_obs, 1); None where it is observed
    l_var: np.ndarray | None

    def checksums(self, total_counts: np.ndarray) -> np.ndarray:
        """CRC-32 of what is kept of each cell, with its total count: uint32, shape (n_obs,)."""
        kept = [self.z_mean, self.z_var, self.l_mean, self.l_var, np.reshape(total_counts, (-1, 1))]
        table = np.hstack([np.asarray(part, dtype="<f4") for part in kept if part is not None])
        return np.fromiter(map(zlib.crc32, table), dtype=np.uint32, count=len(table))


def minify(adata: AnnData, kind: str, kept: Minified, total_counts: np.ndarray, made_by: str) -> AnnData:
    """A copy of `adata` with the latent posterior of its cells and, unless `kind` says so, without counts.

    Adds obsm `ldvae_latent_qzm` and `ldvae_latent_qzv`, obs `observed_lib_size`, `ldvae_latent_checksum` and, of a
    latent library size, obs `ldvae_latent_qlm` and `ldvae_latent_qlv`; X and all layers are empty matrices, raw is
    gone. `made_by` is the hash of the weights of the model that encoded the cells, in uns `_ldvae_minified_by`.
    """
    if kind == MINIFIED_TYPES[1]:
        made = adata.to_memory() if adata.isbacked else adata.copy()
    else:
        empty = sparse.csr_matrix(adata.shape, dtype=np.float32)
        made = AnnData(
            empty,
            obs=adata.obs.copy(),
            var=adata.var.copy(),
            uns=dict(adata.uns),
            layers={name: empty.copy() for name in layer_names(adata)},
            **{name: dict(getattr(adata, name)) for name in ("obsm", "varm", "obsp", "varp")},
        )
    made.uns[MINIFIED_KEY] = kind
    made.uns[MINIFIED_BY_KEY] = made_by
    made.obs["observed_lib_size"] = total_counts
    made.obsm["ldvae_latent_qzm"], made.obsm["ldvae_latent_qzv"] = kept.z_mean, kept.z_var
    if kept.l_mean is not None and kept.l_var is not None:
        made.obs["ldvae_latent_qlm"], made.obs["ldvae_latent_qlv"] = kept.l_mean[:, 0], kept.l_var[:, 0]
    made.obs[MINIFIED_CELL_KEY] = kept.checksums(total_counts)
    return made


def read_minified(adata: AnnData, registry: Registry) -> tuple[Minified, Covariates]:
    """The latent posterior and the covariates of every cell of minified data."""
    check_genes(adata.var_names, registry.var_names)
    check_minified(adata)
    covariates = read_covariates(adata, registry, adata.obs["observed_lib_size"].to_numpy())
    # Copies: pandas 3, and pandas 2.2 under numpy 2, give arrays that torch must not write to.
    z_mean, z_var = (np.asarray(adata.obsm[f"ldvae_latent_qz{name}"], dtype=np.float32).copy() for name in "mv")
    if "ldvae_latent_qlm" not in adata.obs:
        return Minified(z_mean, z_var, None, None), covariates
    l_mean, l_var = (adata.obs[f"ldvae_latent_ql{name}"].to_numpy(np.float32, copy=True)[:, None] for name in "mv")
    return Minified(z_mean, z_var, l_mean, l_var), covariates


def check_minified(adata: AnnData) -> None:
    """Refuse minified data that have lost a part, or whose values are no numbers, or variances not above zero.

    Raises
    ------
    InputError
        Naming the part.
    """
    latent_library = [f"ldvae_latent_ql{name}" for name in "mv"]
    parts = {f"adata.obsm['ldvae_latent_qz{name}']": adata.obsm.get(f"ldvae_latent_qz{name}") for name in "mv"}
    for key in ["observed_lib_size", *(latent_library if set(latent_library) & set(adata.obs) else [])]:
        parts[f"adata.obs[{key!r}]"] = adata.obs.get(key)
    shapes = {np.shape(values) for where, values in parts.items() if "obsm" in where and values is not None}
    for where, values in parts.items():
        if values is None:
            fault = "is missing"
        elif not np.isfinite(numbers := np.asarray(values, dtype=np.float64)).all():
            fault = "holds values that are not finite"
        elif "_q" in where and where.endswith("v']") and not (numbers > 0).all():
            fault = "holds variances that are not above zero"
        elif "obsm" in where and len(shapes) > 1:
            fault = "has another shape than its mean or variance"
        else:
            continue
        raise InputError(
            f"The minified data cannot be used: {where} {fault}. Take the AnnData as model.minify_adata() or load() "
            "gave it, or subsets of it."
        )


def given_posterior(adata: AnnData, cells: Cells, mean_key: str, variance_key: str) -> Minified:
    """The posterior of cells, that of z as obsm has it under these keys if it does and if it is this model's."""
    for key, usual in zip((mean_key, variance_key), USUAL_KEYS, strict=True):
        if key != usual and key not in adata.obsm:
            raise MissingKeyError(
                f"{key} not found in adata.obsm. It has {', '.join(adata.obsm) or 'nothing'}. Leave the argument out, "
                "and the posterior is computed."
            )
    z = [cells.q.z_mean.numpy(), cells.q.z_var.numpy()]
    if mean_key in adata.obsm and variance_key in adata.obsm:
        given = [np.asarray(adata.obsm[key], dtype=np.float32) for key in (mean_key, variance_key)]
        if given[0].shape != z[0].shape or given[1].shape != z[0].shape or not (given[1] > 0).all():
            raise InputError(
                f"adata.obsm[{mean_key!r}] and [{variance_key!r}] must be the mean and the "
                f"variance (above zero) of {z[0].shape[0]} cells by {z[0].shape[1]} factors; found the shapes "
                f"{given[0].shape} and {given[1].shape}. Remove them to have them computed."
            )
        if not all(np.allclose(own, of_obsm, rtol=0.01, atol=0.01) for own, of_obsm in zip(z, given, strict=True)):
            told = (
                f"adata.obsm[{mean_key!r}] and [{variance_key!r}] are not what this model says of the cells: another "
                "model made them, this one was trained further since, or the cells have changed."
            )
            if (mean_key, variance_key) == USUAL_KEYS:  # nobody has asked for these
                raise InputError(f"{told} Remove them to have them computed, or name their keys to use them.")
            warnings.warn(f"{told} They are used, as you name them.", UserWarning, stacklevel=4)
        z = given
    return Minified(*z, *(None if values is None else values.numpy() for values in (cells.q.l_mean, cells.q.l_var)))


def kept_cells(data: ModelData, module: LDVAE) -> Cells | None:
    """The cells of minified data as they were encoded; None where the counts must be encoded again.

    Raises
    ------
    InputError
        If another model encoded them, or they were moved to other cells or changed since, and there are no counts to
        encode again.
    """
    adata = data.adata
    kept, covariates = read_minified(adata, data.registry)
    z_mean, z_var, l_mean, l_var = kept
    problem = ""
    made_by = adata.uns.get(MINIFIED_BY_KEY)
    if made_by is None:
        warnings.warn(
            "The minified data do not name the model that encoded them; they are taken for this one's.",
            UserWarning,
            stacklevel=4,
        )
    elif made_by != weights_hash(module.state_dict()):
        problem = "another model encoded the minified data, or this one was trained further since"
    if z_mean.shape[1] != module.config.n_latent or (l_mean is None) != module.config.use_observed_lib_size:
        problem = "the minified data were made by a model of another architecture"
    with_counts = minified_type(adata) == MINIFIED_TYPES[1]
    if with_counts and not problem and not np.array_equal(cell_totals(data.counts()), adata.obs["observed_lib_size"]):
        problem = "the counts have changed since the data were minified"
    moved = np.zeros(0, dtype=int)
    if MINIFIED_CELL_KEY in adata.obs:  # not in data minified before there was one
        moved = np.flatnonzero(kept.checksums(adata.obs["observed_lib_size"]) != adata.obs[MINIFIED_CELL_KEY])
    if len(moved) and not problem:
        told = (
            f"the latent posterior of {len(moved)} of the {adata.n_obs} cells (the first is "
            f"{adata.obs_names[moved[0]]!r}) has been changed, or moved to another cell, since the data were minified"
        )
        if not with_counts:
            raise InputError(
                f"{told[0].upper()}{told[1:]}. Take the AnnData as model.minify_adata() or load() gave it, or subsets "
                "of it; to order cells anew, index the AnnData (adata[order]), so that all its parts follow."
            )
        problem = told
    if problem and not with_counts:
        raise InputError(
            f"{problem[0].upper()}{problem[1:]}: its latent coordinates mean nothing to this model. Use the model "
            "that minified the data, or minify the full data with this one (model.minify_adata())."
        )
    if problem:
        logger.warning("%s; the counts are encoded again.", problem)
        return None
    z = torch.from_numpy(z_mean), torch.from_numpy(z_var)
    if l_mean is None or l_var is None:
        return Cells(Posterior(*z, None, None), covariates)
    return Cells(Posterior(*z, torch.from_numpy(l_mean), torch.from_numpy(l_var)), covariates)
