"""Kept cells in; the genes to model, the registered columns and one fixed split out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from ldvae import results as layout
from ldvae.config import SetupConfig, TrainConfig, contradictions_of_setup
from ldvae.config.options import SMALLEST_BATCH
from ldvae.errors import InputError, counted, suggestion
from ldvae.io import (
    ChunkedCounts,
    atomic,
    collected_warnings,
    first_names,
    group_names,
    obs_column,
    read_gene_list,
    read_input,
    write_chunked,
    write_json,
    write_table,
)
from ldvae.methods import Sentence
from ldvae.names import own_name, with_columns
from ldvae.provenance import versions
from ldvae.steps.variable import BatchSums, seurat_v3, sum_by_batch

logger = logging.getLogger(__name__)

SPANS = (0.3, 0.6, 1.0)  # of the loess fit; wider ones survive where many genes have the same mean
# Of fewer than 4 varying genes, loess (scikit-misc 0.5) reads memory that is not its own, and the process dies.
MIN_VARYING_GENES = 30


class Genes(NamedTuple):
    """Which genes are modeled, and why."""

    table: pd.DataFrame  # chosen, mean, variance, variance_norm, reason; indexed by gene
    method: str


def setup(*, results: Path, config: SetupConfig = SetupConfig()) -> None:
    """Choose the genes to model, register the obs columns that the model uses, and split the cells once.

    Parameters
    ----------
    results
        Folder of the results of the dataset, such as results/kang.
    """
    if problems := contradictions_of_setup(config):
        raise InputError(*problems)
    filtered = layout.FILTERED.existing(results)
    with collected_warnings() as messages:
        adata = read_input([filtered], chunked=True)
        del adata.uns["ldvae_input"]
        counts: ChunkedCounts = adata.uns.pop("ldvae_counts")
        fields = registered_fields(adata, batch_key_of_qc(filtered), config)
        chosen = choose_genes(adata, counts, str(fields["batch_key"]) or None, config)
        adata.var = with_columns(adata.var, chosen.table.drop(columns=["chosen", "reason"]))
        genes = chosen.table["chosen"].to_numpy(bool)
        result = adata[:, genes].copy()
        n_genes = np.concatenate([x[:, genes].getnnz(axis=1) for _, x in counts.chunks()])
        empty = n_genes == 0
        if empty.all():
            raise InputError("No cell has counts in the chosen genes; choose more of them (n_top_genes, keep_genes).")
        if empty.any():
            names = first_names(result.obs_names[empty], 5)
            logger.warning(
                "Without counts in the chosen genes, and left out: %s (%s).", counted(empty.sum(), "cell"), names
            )
            result = result[~empty].copy()
        parts = split(result.obs, fields, config)
        result.obs[own_name("split", result.obs)] = parts
        sizes = parts.value_counts()
        logger.info("%d cells (%s), %d genes.", result.n_obs, sizes.to_dict(), result.n_vars)
    result.uns["ldvae_setup"] = fields

    with atomic(layout.COUNTS.at(results)) as temporary:
        # Uncompressed, each array in one piece: training may read it from disk, row by row.
        write_chunked(result, counts, temporary, genes=genes, n_stored=int(n_genes.sum()), cells=np.flatnonzero(~empty))
    write_table(chosen.table, layout.GENES.at(results), index="gene")
    write_json(
        {
            "n_obs": result.n_obs,
            "n_vars": result.n_vars,
            **{f"n_{part}": int(sizes[part]) for part in ("train", "validation", "test")},
            "default_epochs": TrainConfig().fit_config(max(1, int(sizes["train"]))).max_epochs,
            "method": chosen.method,
            "fields": fields,
            "warnings": messages,
            "settings": config.model_dump(),
            "versions": versions(("ldvae", "anndata", "numpy", "scipy", "scikit-misc")),
        },
        layout.SETUP_SUMMARY.at(results),
    )


def batch_key_of_qc(filtered: Path) -> str:
    """The batch key that qc used: the file, where there are several; empty for none."""
    import h5py
    from anndata.io import read_elem

    with h5py.File(filtered) as file:
        return str(read_elem(file["uns/ldvae_qc/batch_key"])) if "uns/ldvae_qc" in file else ""


def registered_fields(adata: AnnData, batch_key: str, config: SetupConfig) -> dict[str, str | list[str]]:
    """The obs columns that the model knows, checked; an empty text or list for none.

    Parameters
    ----------
    adata
        Its registered columns become categories of text, without unused ones.
    batch_key
        Of the batch, unless the config names one.
    config
        Names of the columns.
    """
    fields: dict[str, str | list[str]] = {
        "batch_key": config.batch_key or batch_key,
        "labels_key": config.labels_key or "",
        "categorical_covariate_keys": config.categorical_covariate_keys,
        "continuous_covariate_keys": config.continuous_covariate_keys,
        "size_factor_key": config.size_factor_key or "",
    }
    labels = config.labels_key
    if labels in adata.obs and (missing := adata.obs[labels].isna()).any():
        logger.warning("Labeled 'unlabeled', without a value of %s: %s.", labels, counted(missing.sum(), "cell"))
        adata.obs[labels] = adata.obs[labels].astype(object).where(~missing, "unlabeled").astype(str).astype("category")
    for kind, value in fields.items():
        for key in [value] if isinstance(value, str) else value:
            if not key:
                continue
            column = obs_column(adata.obs, key)
            if kind in ("continuous_covariate_keys", "size_factor_key"):
                if not pd.api.types.is_numeric_dtype(column):
                    raise InputError(f"obs column {key!r} ({kind}) must hold numbers, found {column.iloc[0]!r}.")
                if infinite := int(np.isinf(column.to_numpy(float)).sum()):
                    raise InputError(
                        f"obs column {key!r} ({kind}) is infinite in {infinite} of {len(column)} cells; correct these "
                        "values."
                    )
                if kind == "size_factor_key" and not (column > 0).all():
                    raise InputError(f"obs column {key!r} ({kind}) must be above zero, found {column.min():g}.")
                continue
            n_groups, is_number = column.nunique(), pd.api.types.is_float_dtype(column)
            if n_groups > (20 if is_number else max(20, len(column) // 2)):
                raise InputError(
                    f"obs column {key!r} ({kind}) has {n_groups} values for {len(column)} cells, but groups are "
                    "expected. Register numbers as continuous_covariate_keys."
                )
            # Numbers as names of groups (donor 101) are text from here on; unused categories would be empty groups.
            adata.obs[key] = group_names(column).astype("category")
    return fields


# Genes


def choose_genes(adata: AnnData, counts: ChunkedCounts, batch_key: str | None, config: SetupConfig) -> Genes:
    """The genes to model: variable ones, all or those of a list, and those kept in any case.

    `adata` tells of the cells and genes, `counts` reads their counts.
    """
    batch, names = batches(adata.obs, batch_key)
    sums = sum_by_batch(counts, batch)
    mean, mean_square = (values.sum(axis=0) / adata.n_obs for values in (sums.counts, sums.squares))
    variance = (mean_square - mean**2) * adata.n_obs / max(1, adata.n_obs - 1)
    table = pd.DataFrame({"chosen": False, "mean": mean, "variance": variance}, index=adata.var_names)
    reason = pd.Series("", index=table.index, dtype=object)
    method: str = config.genes
    if config.genes == "list":
        reason[listed_genes(config.gene_list, adata.var_names)] = "list"
    elif config.genes == "all" or config.n_top_genes >= adata.n_vars:
        if config.genes != "all":
            logger.info("There are only %d genes, and all are modeled.", adata.n_vars)
            method = "all"
        reason[:] = "all"
    else:
        group = pooled_batches(sums, names, batch_key)
        method, chosen, variance_norm = variable_genes(counts, group[batch], sums.pooled(group), config.n_top_genes)
        table["variance_norm"] = variance_norm
        reason[chosen] = "variable"
    absent = [gene for gene in config.keep_genes if gene not in reason.index]
    if absent:
        raise InputError(
            f"keep_genes: {first_names(absent)} not among the {adata.n_vars} genes that passed quality control."
            + suggestion(absent[0], adata.var_names)
        )
    for gene in config.keep_genes:
        reason[gene] = reason[gene] or "kept"
    return Genes(table.assign(chosen=reason != "", reason=reason), method)


def most_variable(adata: AnnData, batch_key: str | None, n_top_genes: int) -> tuple[str, pd.DataFrame]:
    """The most variable genes of counts in memory, and the method that found them.

    Returns
    -------
    tuple
        ``seurat_v3``, or ``pearson_residuals`` where the loess fit of the former fails; and a table with the columns
        chosen and variance_norm, indexed by gene.
    """
    counts = ChunkedCounts.of(adata.X)
    batch, names = batches(adata.obs, batch_key)
    sums = sum_by_batch(counts, batch)
    group = pooled_batches(sums, names, batch_key)
    method, chosen, variance_norm = variable_genes(counts, group[batch], sums.pooled(group), n_top_genes)
    return method, pd.DataFrame({"chosen": chosen, "variance_norm": variance_norm}, index=adata.var_names)


def variable_genes(
    counts: ChunkedCounts, batch: np.ndarray, sums: BatchSums, n_top_genes: int
) -> tuple[str, np.ndarray, np.ndarray]:
    """The method (see `most_variable`), which genes are the most variable, and their normalized variance.

    Parameters
    ----------
    counts
        Of all cells.
    batch
        Batch of each cell in which it is ranked, from 0, shape (n_obs,).
    sums
        Of these batches.
    n_top_genes
        Number of genes to choose.

    References
    ----------
    Stuart et al., Cell 177, 1888 (2019); Lause et al., Genome Biol. 22, 258 (2021).
    """
    reason = ""
    spans: tuple[float, ...] = SPANS
    if len(sums.n_obs) == 1 and (n := int(sums.n_varying()[0])) < MIN_VARYING_GENES:
        reason, spans = f"only {n} genes vary, {MIN_VARYING_GENES} are needed", ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for span in spans:
            try:
                chosen, variance_norm = seurat_v3(counts, batch, sums, n_top_genes, span)
            except ImportError:
                reason = "scikit-misc is not installed"
                break
            except ValueError as error:  # "reciprocal condition number", "Extrapolation not allowed", …
                reason = str(error).strip().splitlines()[0].removeprefix("b'").rstrip(" '")
                continue
            if span != SPANS[0]:
                # A wider window moves few genes; it is no reason to mistrust a result.
                logger.info("seurat_v3: the fit needs a window of %g of the genes (%s).", span, reason)
            return "seurat_v3", chosen, variance_norm
        logger.warning("seurat_v3 cannot be used (%s); genes are ranked by their Pearson residuals instead.", reason)
        return "pearson_residuals", *by_pearson_residuals(counts, batch, n_top_genes)


def by_pearson_residuals(counts: ChunkedCounts, batch: np.ndarray, n_top_genes: int) -> tuple[np.ndarray, np.ndarray]:
    """scanpy's choice of genes by the variance of their Pearson residuals, which needs all counts in memory."""
    import scanpy

    cells = AnnData(counts.read(np.arange(counts.shape[0])))
    arguments: dict[str, object] = {}
    if batch.max() > 0:
        cells.obs["batch"] = pd.Categorical(batch.astype(str))
        arguments["batch_key"] = "batch"
    found = scanpy.experimental.pp.highly_variable_genes(
        cells, flavor="pearson_residuals", n_top_genes=n_top_genes, inplace=False, **arguments
    )
    # With batches the table comes sorted otherwise than the genes, but named.
    found = found.reindex(cells.var_names)
    return found["highly_variable"].to_numpy(bool), found["residual_variances"].to_numpy()


def batches(obs: pd.DataFrame, batch_key: str | None) -> tuple[np.ndarray, list[str]]:
    """The batch of each cell, from 0, shape (n_obs,), and the names of the batches; one batch without a key."""
    codes, names = pd.factorize(obs[batch_key].astype(str) if batch_key else np.full(len(obs), ""), sort=True)
    return codes, list(names)


def pooled_batches(sums: BatchSums, names: list[str], batch_key: str | None) -> np.ndarray:
    """The batch in which the cells of each batch are ranked, from 0; batches too small for their own are pooled.

    A pool that is too small itself joins the largest batch.
    """

    def too_small(sums: BatchSums) -> np.ndarray:
        return (sums.n_obs < SMALLEST_BATCH) | (sums.n_varying() < MIN_VARYING_GENES)

    small = too_small(sums)
    if not small.any() or len(names) == 1:
        return np.arange(len(names))
    order = np.lexsort((np.arange(len(names)), -sums.n_obs))  # the largest first
    found = [names[i] for i in order if small[i]]
    logger.warning(
        "%s: %d of %d batches are too small to rank genes on their own (fewer than %d cells or %d varying genes): %s. "
        "Their cells are ranked together.",
        batch_key, len(found), len(names), SMALLEST_BATCH, MIN_VARYING_GENES, first_names(found, 5),
    )  # fmt: skip
    group = np.where(small, -1, np.cumsum(~small) - 1)
    pool = int((~small).sum())  # the last one
    group[small] = pool
    if pool and too_small(sums.pooled(group))[pool]:
        group[small] = group[next(i for i in order if not small[i])]
    return group


def listed_genes(path: str | None, var_names: pd.Index) -> Sequence[str]:
    """The genes of a file, one name per line, that are in the data."""
    assert path is not None
    if not Path(path).is_file():
        raise InputError(f"gene_list: {path} does not exist.")
    names = read_gene_list(Path(path))
    if not names:
        raise InputError(f"gene_list: {path} names no gene.")
    absent = [name for name in names if name not in var_names]
    if len(absent) == len(names):
        raise InputError(
            f"gene_list: {path}: none of its {counted(len(names), 'gene')} ({first_names(names, 3)}) is in the data, "
            f"whose genes are called {first_names(var_names, 3)}."
        )
    if absent:
        logger.warning("%s: %d of %d genes are not in the data: %s", path, len(absent), len(names), first_names(absent))
    return [name for name in names if name in var_names]


# Split


def split(obs: pd.DataFrame, fields: dict[str, str | list[str]], config: SetupConfig) -> pd.Categorical:
    """Train, validation or test for each cell; shares are exact overall and kept within strata to one cell.

    Parameters
    ----------
    obs
        Of the cells to split.
    fields
        As `registered_fields` returns them: strata are the labels, else the batches, unless the config names a column.
    config
        Shares and seed.
    """
    held_out = config.validation_size + config.test_size
    if held_out >= 1:
        raise InputError(f"validation_size and test_size together are {held_out:g}; leave cells for training.")
    key = config.stratify_by or fields["labels_key"] or fields["batch_key"]
    strata = obs_column(obs, str(key)).astype(str) if key else pd.Series("", index=obs.index)
    # Cells in random order within strata, strata one after the other; the parts then take every so-many-th cell.
    order = np.lexsort((np.random.default_rng(config.seed).random(len(obs)), strata.to_numpy(str)))
    parts = np.full(len(obs), "train", dtype=object)
    is_held = spread(len(order), held_out)
    parts[order[is_held]] = "validation"
    if held_out > 0:
        held = order[is_held]
        parts[held[spread(len(held), config.test_size / held_out)]] = "test"
    for part, share in (("train", 1 - held_out), ("validation", config.validation_size), ("test", config.test_size)):
        if share > 0 and not (parts == part).any():
            option = "validation_size and test_size" if part == "train" else f"{part}_size"
            raise InputError(
                f"{len(obs)} cells are too few to give {share:.2g} of them to the {part} part. Keep more cells in "
                f"quality control, or change setup.{option}."
            )
    return pd.Categorical(parts, categories=["train", "validation", "test"])


def spread(n: int, share: float) -> np.ndarray:
    """A mask of `n` places with round(n share) of them true, evenly spread.

    Examples
    --------
    >>> spread(8, 0.25).astype(int)
    array([0, 1, 0, 0, 0, 1, 0, 0])
    """
    steps = np.floor(np.arange(n + 1) * (round(n * share) / max(1, n)) + 0.5)
    return np.diff(steps).astype(bool)


# What the methods section says

REFERENCES = {
    "seurat_v3": "Stuart T, Butler A, Hoffman P, et al. Comprehensive integration of single-cell data. Cell 177, "
    "1888–1902 (2019). doi:10.1016/j.cell.2019.05.031",
    "pearson_residuals": "Lause J, Berens P, Kobak D. Analytic Pearson residuals for normalization of single-cell "
    "RNA-seq UMI data. Genome Biology 22, 258 (2021). doi:10.1186/s13059-021-02451-7",
}


def methods(summary: dict[str, Any]) -> Iterator[Sentence]:
    """How genes were chosen and cells split, from setup/summary.json."""
    n_vars = f"{summary['n_vars']:,}"
    match summary.get("method"):
        case "seurat_v3":
            text = f"The {n_vars} most variable genes were chosen by the method of Seurat v3 [@seurat_v3]."
            yield Sentence(text, REFERENCES, ("ldvae.steps.variable.seurat_v3",))
        case "pearson_residuals":
            text = f"The {n_vars} most variable genes were chosen by their Pearson residuals [@pearson_residuals]."
            yield Sentence(text, REFERENCES, ("scanpy.experimental.pp.highly_variable_genes",))
        case "list":
            yield Sentence(f"{n_vars} genes of a given list were used.")
        case _:
            yield Sentence(f"All {n_vars} genes were used.")
    fields = summary.get("fields", {})
    strata = summary.get("settings", {}).get("stratify_by") or fields.get("labels_key") or fields.get("batch_key")
    how = f"at random, in equal shares of each level of {strata}" if strata else "at random"
    yield Sentence(
        f"The cells were split once {how}: {summary['n_train']:,} for training, {summary['n_validation']:,} for "
        f"validation, {summary['n_test']:,} for testing."
    )
