"""Contrasts between groups of cells, gene by gene: from the model, and from pseudobulks where there are replicates."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.figure import Figure
from scipy import sparse
from threadpoolctl import threadpool_limits

from ldvae import pl
from ldvae import results as layout
from ldvae.config import DeConfig, corrected_columns, removed_effects, same_columns
from ldvae.errors import InputError, counted, first_line, listed, suggestion
from ldvae.io import (
    MAX_CELLS,
    atomic,
    collected_warnings,
    group_names,
    meant_group,
    read_h5ad,
    write_json,
    write_table,
)
from ldvae.markers import methods as methods_of_ranks
from ldvae.markers import rank_sum_test, telling
from ldvae.methods import Sentence
from ldvae.names import find_own
from ldvae.pl.de import called as called_genes
from ldvae.pl.style import styled
from ldvae.programs import doubtful_replicates, known_donors
from ldvae.programs.associations import is_no_label
from ldvae.provenance import versions
from ldvae.rows import positions_in, spaced

if TYPE_CHECKING:
    from ldvae.model import LinearSCVI
    from ldvae.posterior import Cells

logger = logging.getLogger(__name__)

REST = "rest"
COLUMNS = (
    *("contrast", "file", "group1", "group2", "within", "column", "n1", "n2", "pseudobulk", "n_de"),
    *("file_all_genes", "n_ranked", "n_pseudobulk", "n_both", "reason"),
)
MIN_AUC = 0.6  # of a gene that the rank-sum test calls, or 1 - MIN_AUC: with many cells, smaller shifts are certain too
LEAST_COUNTS = 3  # of a gene in as many pseudobulks as the smaller side has, to be tested
# Pairs of pseudobulks beyond which replicates are not in the design: with a coefficient for each of 120, a tenth of the
# genes without a difference have a p value below 0.05, and a contrast takes ten times as long.
MOST_PAIRS = 50
BULK_COLUMNS = ["pseudobulk_lfc", "pseudobulk_p", "pseudobulk_padj"]


class Contrast(NamedTuple):
    """Two groups of cells."""

    column: str
    group1: str
    group2: str  # REST for all other cells with a value
    within_column: str  # "" for all cells
    within: str
    rows1: np.ndarray
    rows2: np.ndarray

    @property
    def name(self) -> str:
        """As tables and figures call it."""
        return f"{self.group1} vs {self.group2}" + (f" in {self.within}" if self.within_column else "")


def de(*, results: Path, threads: int = 1, config: DeConfig = DeConfig()) -> None:
    """Find genes that differ between groups of cells, by ranks, pseudobulks and the best run's model.

    Parameters
    ----------
    results
        Folder of the results of the dataset, such as results/kang.
    threads
        Genes whose pseudobulks DESeq2 fits at the same time, each in a process of its own.

    Notes
    -----
    All measured genes are compared by the Wilcoxon rank-sum test of the counts, with cells as replicates. Where there
    are replicates, pseudobulks of all measured genes come first: the counts of each replicate and side are summed, and
    DESeq2's model is fitted, with the replicate in the design where at least two replicates are on both sides. The
    table of all genes begins with those that both tests call, the most telling first (`confirmed_first`).

    The model is the second opinion, on the genes that were chosen for it: it compares posterior samples of the expected
    proportions (mode "change"), and `proba_de` is how likely the log2 fold change exceeds `delta`. It knows nothing of
    the variation between donors. `both` are the genes that it calls and that the first test of the counts calls too
    (pseudobulks where there are replicates, ranks otherwise), in the same direction.

    References
    ----------
    Boyeau et al., PNAS 120, e2209124120 (2023); Squair et al., Nat. Commun. 12, 5692 (2021); Love et al., Genome Biol.
    15, 550 (2014).
    """
    from ldvae.model import LinearSCVI
    from ldvae.posterior import encode

    named = {f"contrasts[{i}].column": contrast["column"] for i, contrast in enumerate(config.contrasts)}
    for name, column in named.items():
        if problems := same_columns({"replicate_key": config.replicate_key, name: column}):
            raise InputError(problems[0])
    adata = read_h5ad(layout.COUNTS.existing(results), backed="r")
    removed = removed_effects(
        {f"de.{name.removesuffix('.column')}": column for name, column in named.items()},
        corrected_columns(adata.uns.get("ldvae_setup", {})),
    )
    for warning in removed:
        logger.warning(warning)
    columns = {contrast.get(key) for contrast in config.contrasts for key in ("column", "within")}
    # A column of the user's that is called so is taken first.
    for name in {"leiden", "leiden_ldvae"} & columns - set(adata.obs):
        add_clusters(adata, layout.ANNOTATED.existing(results), name)
    with collected_warnings() as skipped:
        contrasts = find_contrasts(adata.obs, config)
    replicates, doubtful = None, []
    if config.replicate_key is not None:
        replicates = group_names(existing_column(adata.obs, config.replicate_key))
        doubtful = doubtful_replicates(replicates, config.replicate_key)
    filtered = layout.FILTERED.existing(results)
    measured = read_h5ad(filtered, backed="r")
    position = positions_in(filtered, measured.obs_names, adata.obs_names, "cells")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of small batches, which setup has seen
        model = LinearSCVI.load(layout.MODEL.existing(results, run=layout.BEST.read(results)["run"]), adata)
    cells = encode(model.module, model.source, np.arange(adata.n_obs))
    bulks = None
    if replicates is not None:
        keys = [adata.obs[name] for name in sorted(str(column) for column in columns if column)]
        bulks = sum_by_replicate(measured, position, known_donors(replicates).to_numpy(), keys)

    rows: list[dict[str, Any]] = []
    with atomic(layout.DE.at(results)) as folder:
        folder.mkdir()
        tables = chain.from_iterable(model_based(model, cells, block, config) for block in blocks(contrasts))
        for contrast, table, name, stem in zip(contrasts, tables, *distinct_names(contrasts), strict=True):
            ranked = all_genes(measured, position, contrast, config)
            n_pseudobulk, untested = None, ""
            if bulks is not None:
                bulk, untested = pseudobulk(bulks, contrast, config, threads)
                if bulk is not None:
                    ranked = confirmed_first(ranked.join(bulk), config)
                    n_pseudobulk = int((bulk["pseudobulk_padj"] < config.fdr).sum())
            called = table[f"is_de_fdr_{config.fdr}"].astype(bool)
            both = called & called_by_counts(ranked, config).reindex(table.index) & same_direction(table, ranked)
            shown = [column for column in BULK_COLUMNS if column in ranked]
            table = table.join(ranked[["auc", "wilcoxon_padj", "detected1", "detected2", *shown]]).assign(both=both)
            n_de = int(called.sum())
            write_table(table, folder / f"{stem}.tsv.gz", index="gene")
            write_table(ranked, folder / f"{stem}.all_genes.tsv.gz", index="gene")
            draw_volcano(table, name, folder / f"{stem}.png")
            values = (name, f"{stem}.tsv.gz", contrast.group1, contrast.group2, contrast.within, contrast.column)
            sizes = (len(contrast.rows1), len(contrast.rows2), n_pseudobulk is not None, n_de)
            found = (f"{stem}.all_genes.tsv.gz", int(ranked["called"].sum()), n_pseudobulk, int(both.sum()))
            reasons = (untested, why_no_count(ranked, config), why_none(table, config))
            reason = " ".join(text for text in reasons if text)
            rows.append(dict(zip(COLUMNS, (*values, *sizes, *found, reason), strict=True)))
            by_bulks = "pseudobulks not tested" if n_pseudobulk is None else f"{n_pseudobulk} by pseudobulks"
            logger.info(
                "%s: %d against %d cells; %d genes differ by the model, %d of all by ranks, %s, %d by the model and "
                "the counts.",
                name, *sizes[:2], n_de, found[1], by_bulks, found[3],
            )  # fmt: skip
        write_table(pd.DataFrame(rows, columns=list(COLUMNS)), folder / "contrasts.tsv")
        summary = {"warnings": [*skipped, *removed, *doubtful], "settings": config.model_dump()}
        packages = ("ldvae", "numpy", "scipy", *(["pydeseq2"] if bulks is not None else []))
        write_json(summary | {"versions": versions(packages)}, folder / "summary.json")
    for data in (adata, measured):
        data.file.close()


# Which cells


def add_clusters(adata: AnnData, annotated: Path, name: str) -> None:
    """Add the clusters of the annotated data to obs, as column `name`."""
    import h5py
    from anndata.io import read_elem

    with h5py.File(annotated) as file:
        obs = read_elem(file["obs"])
    position = positions_in(annotated, obs.index, adata.obs_names, "cells")
    adata.obs[name] = obs[find_own("leiden", obs)].iloc[position]


def find_contrasts(obs: pd.DataFrame, config: DeConfig) -> list[Contrast]:
    """Every contrast that the options ask for and that has enough cells.

    Parameters
    ----------
    obs
        Of all cells. Cells without a value of a column belong to none of its groups, nor to the rest.
    config
        Contrasts: a mapping without group1 means each group in turn, one with `within` each group of that column; what
        is named twice is compared once.
    """
    if not config.contrasts:
        raise InputError("There is nothing to compare; name contrasts, such as [{'column': 'cell_type'}].")
    found, absent, asked = [], [], set()
    for given in config.contrasts:
        groups = levels(obs, given["column"])
        insides = levels(obs, given["within"]) if given.get("within") else pd.Categorical([""] * len(obs))
        if not (len(groups.categories) and len(insides.categories)):
            name = given["column"] if len(insides.categories) else given["within"]
            absent.append(f"contrasts: obs column {name!r} has no value in any cell.")
            continue
        entry = {
            key: meant_group(str(name), groups.categories) if key.startswith("group") else str(name)
            for key, name in given.items()
        }
        if REST in groups.categories:
            raise InputError(
                f"obs column {entry['column']!r} has a group called {REST!r}, which here means all others; rename it."
            )
        firsts = [entry["group1"]] if "group1" in entry else [g for g in groups.categories if g != entry.get("group2")]
        nothing = [name for name in groups.categories if is_no_label(str(name)) and name not in entry.values()]
        if nothing and "group2" not in entry:
            n_cells = int(np.isin(groups, nothing).sum())
            logger.warning(
                "%s: %s says nothing about a cell. In no group, and not in the rest: %s.",
                entry["column"], listed([repr(name) for name in nothing]), counted(n_cells, "cell"),
            )  # fmt: skip
            groups = groups.remove_categories(nothing)
            firsts = [name for name in firsts if name not in nothing]
        named = [*firsts, *([entry["group2"]] if "group2" in entry else [])]
        if lost := [group for group in named if group not in groups.categories]:
            absent.append(
                f"contrasts: no group {lost[0]!r} in {entry['column']!r}.{suggestion(lost[0], groups.categories)}"
            )
            continue
        within = entry.get("within", "")
        if unlabeled := [name for name in insides.categories if within and is_no_label(str(name))]:
            n_cells = np.isin(insides, unlabeled).sum()
            logger.warning(
                "%s: %s says nothing about a cell. Left out, as groups are not compared there: %s.",
                within, listed([repr(name) for name in unlabeled]), counted(n_cells, "cell"),
            )  # fmt: skip
            insides = insides.remove_categories(unlabeled)
        for inside in insides.categories:
            for first in firsts:
                second = entry.get("group2", REST)
                in_group1, in_level = np.asarray(groups == first), np.asarray(insides == inside)
                in_group2 = ~in_group1 & ~groups.isna() if second == REST else np.asarray(groups == second)
                rows = (np.flatnonzero(in_group1 & in_level), np.flatnonzero(in_group2 & in_level))
                contrast = Contrast(entry["column"], first, second, within, inside, *rows)
                if contrast[:5] in asked:
                    continue
                asked.add(contrast[:5])
                if min(map(len, rows)) < config.min_cells:
                    sizes = (len(rows[0]), len(rows[1]), config.min_cells)
                    logger.warning(
                        "%s is skipped: it has %d and %d cells, fewer than min_cells = %d.", contrast.name, *sizes
                    )
                else:
                    found.append(contrast)
    if absent and not found:
        raise InputError(absent[0])
    for said in absent:  # quality control may have removed its cells: the other comparisons are made
        logger.warning("%s The comparison is skipped.", said)
    return found


def levels(obs: pd.DataFrame, column: str) -> pd.Categorical:
    """The groups of a column as text, without unused ones; missing values stay missing."""
    if column not in obs:
        raise InputError(f"contrasts: no obs column {column!r}.{suggestion(column, obs.columns)}")
    return pd.Categorical(group_names(obs[column]))


def distinct_names(contrasts: list[Contrast]) -> tuple[list[str], list[str]]:
    """A name for each contrast, and one that is safe as a file name on any system; no two alike.

    Examples
    --------
    >>> nowhere = np.arange(0)
    >>> pair = [Contrast("type", group, REST, "", "", nowhere, nowhere) for group in ("CD4+/CD25", "CD4+ CD25")]
    >>> distinct_names(pair)
    (['CD4+/CD25 vs rest', 'CD4+ CD25 vs rest'], ['CD4+_CD25_vs_rest', 'CD4+_CD25_vs_rest-2'])
    """
    names: list[str] = []
    stems: list[str] = []
    for contrast in contrasts:
        name = contrast.name
        if name in names:
            name = f"{contrast.column}: {name}"
        stem = re.sub(r"[^\w.+-]+", "_", name).strip("._")[:100] or "contrast"
        taken = [other.lower() for other in stems]  # some file systems do not tell A from a
        number = next(i for i in range(1, len(taken) + 2) if (stem if i == 1 else f"{stem}-{i}").lower() not in taken)
        names.append(name if name not in names else f"{name} ({number})")
        stems.append(stem if number == 1 else f"{stem}-{number}")
    return names, stems


# Tables


def blocks(contrasts: list[Contrast]) -> Iterator[list[Contrast]]:
    """Neighboring contrasts of different groups with the same others, in the same cells."""
    for _, block in groupby(contrasts, key=lambda c: (c.column, c.group2, c.within_column, c.within)):
        yield list(block)


def model_based(model: LinearSCVI, cells: Cells, contrasts: list[Contrast], config: DeConfig) -> Iterator[pd.DataFrame]:
    """The model's comparisons of a block, each indexed by gene, the likeliest changes first.

    Parameters
    ----------
    model
        With its data, which stay on disk.
    cells
        All of its cells, encoded.
    contrasts
        The block: one pass over the counts of its cells sums them for all.
    config
        How to compare.
    """
    import torch

    from ldvae.differential import Comparison, DeOptions, differential_expression

    options = DeOptions(
        mode="change",
        delta=config.delta,
        batch_correction=config.batch_correction,
        fdr_target=config.fdr,
        n_samples_overall=config.n_samples,
    )
    chosen = [Comparison(contrast.rows1, contrast.rows2, contrast.group1, contrast.group2) for contrast in contrasts]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few samples for many batches
        tables = differential_expression(
            model.module,
            cells,
            model.source,
            chosen,
            pd.Index(model.get_var_names()),
            model.get_state_registry("batch").categorical_mapping,
            options,
            torch.Generator().manual_seed(config.seed),
        )
    for contrast in contrasts:
        yield tables[tables["group1"] == contrast.group1].assign(comparison=contrast.name)


def all_genes(measured: AnnData, position: np.ndarray, contrast: Contrast, config: DeConfig) -> pd.DataFrame:
    """The rank-sum test of a contrast over all measured genes, the most telling first.

    Parameters
    ----------
    measured
        Raw counts of all measured genes, backed by its file.
    position
        Row of each modeled cell in `measured`, shape (n_obs,).
    contrast
        The two groups, as rows of the modeled cells.
    config
        False discovery rate of a call.

    Returns
    -------
    DataFrame
        As `ldvae.markers.rank_sum_test` returns it, with `called`: below the false discovery rate, and an AUC of at
        least 0.6 or at most 0.4. Ordered by the z of the test times the absolute log2fc. Of a side with more than
        20,000 cells, every so-many-th is compared.
    """
    some = [rows[spaced(len(rows), MAX_CELLS)] for rows in (contrast.rows1, contrast.rows2)]
    sides = [np.sort(position[rows]) for rows in some]
    counts = sparse.vstack([sparse.csr_matrix(measured.X[rows]) for rows in sides], format="csr")
    n1 = len(sides[0])
    table = rank_sum_test(counts, list(measured.var_names), np.arange(n1), np.arange(n1, counts.shape[0]))
    distance = (table["auc"] - 0.5).abs()
    table["called"] = (table["wilcoxon_padj"] < config.fdr) & (distance >= MIN_AUC - 0.5)
    order = np.argsort(-telling(table, n1, counts.shape[0] - n1).to_numpy(), kind="stable")
    return table.iloc[order]


def confirmed_first(ranked: pd.DataFrame, config: DeConfig) -> pd.DataFrame:
    """The genes that cells and replicates agree on first, otherwise in the order that they have.

    By the p values of pseudobulks alone, genes of many counts that differ a little come before the markers of a type,
    and a marker that is too rare for them comes last.

    Parameters
    ----------
    ranked
        From `all_genes`, the most telling first, with the columns of `pseudobulk`.
    config
        The false discovery rate.

    Returns
    -------
    DataFrame
        First the genes that the rank-sum test and the pseudobulks call at the false discovery rate, in one direction.
        Genes that have too few counts for pseudobulks, but that the rank-sum test calls, keep their place among these.
        A gene with a p value withheld, since one pseudobulk is an outlier (Cook's distance), is not called.
    """
    has_padj = ranked["pseudobulk_padj"].notna()
    in_cells = ranked["wilcoxon_padj"] < config.fdr
    one_direction = (ranked["auc"] > 0.5) == (ranked["pseudobulk_lfc"] > 0)
    confirmed = (in_cells & (ranked["pseudobulk_padj"] < config.fdr) & one_direction).to_numpy()
    outlier = ranked["pseudobulk_lfc"].notna() & ranked["pseudobulk_p"].isna()
    too_few = (in_cells & ~has_padj & ~outlier).to_numpy()
    last = np.flatnonzero(confirmed).max(initial=-1)
    first = confirmed | (too_few & (np.arange(len(ranked)) < last))
    return ranked.iloc[np.argsort(~first, kind="stable")]


def called_by_counts(ranked: pd.DataFrame, config: DeConfig) -> pd.Series:
    """Whether the first test of the counts calls a gene: pseudobulks where there are any, else ranks."""
    if "pseudobulk_padj" in ranked:
        return ranked["pseudobulk_padj"] < config.fdr
    return ranked["called"]


def same_direction(table: pd.DataFrame, ranked: pd.DataFrame) -> pd.Series:
    """Whether the model and the counts say that a gene is higher in the same group, for the genes of the model."""
    higher = ranked["pseudobulk_lfc"] > 0 if "pseudobulk_lfc" in ranked else ranked["auc"] > 0.5
    return (table["lfc_median"] > 0) == higher.reindex(table.index)


def why_none(table: pd.DataFrame, config: DeConfig) -> str:
    """Why the model calls no gene; empty where it calls some.

    Parameters
    ----------
    table
        The model's table of a contrast.
    config
        Its limits.
    """
    if table[f"is_de_fdr_{config.fdr}"].any():
        return ""
    gene, best = table["proba_de"].idxmax(), table["proba_de"].max()
    return (
        f"The model calls no gene: none reaches the certainty that a false discovery rate of {config.fdr:g} needs; the "
        f"likeliest change is that of {gene}, with a probability of {best:.2f}. The model compares expected "
        "expression, smoothed over similar cells: it separates groups that overlap in its latent space badly."
    )


def why_no_count(ranked: pd.DataFrame, config: DeConfig) -> str:
    """Why the tests of the counts call no gene; empty where they call some.

    Parameters
    ----------
    ranked
        All measured genes of a contrast, from `all_genes`, with pseudobulks where there are any.
    config
        The false discovery rate.
    """
    told = []
    if not ranked["called"].any():
        certain = ranked[ranked["wilcoxon_padj"] < config.fdr]
        if len(certain):
            gene = (certain["auc"] - 0.5).abs().idxmax()
            told.append(
                f"The rank-sum test calls no gene: {len(certain):,} of {len(ranked):,} have an adjusted p below "
                f"{config.fdr:g}, but the largest AUC is that of {gene}, {certain.loc[gene, 'auc']:.2f}, within "
                f"{1 - MIN_AUC:g} to {MIN_AUC:g}: the groups overlap in every gene."
            )
        else:
            gene, least = ranked["wilcoxon_padj"].idxmin(), ranked["wilcoxon_padj"].min()
            told.append(f"The rank-sum test calls no gene: the smallest adjusted p is that of {gene}, {least:.2g}.")
    if "pseudobulk_padj" in ranked and not (ranked["pseudobulk_padj"] < config.fdr).any():
        known = ranked["pseudobulk_padj"].dropna()
        least = f": the smallest adjusted p is that of {known.idxmin()}, {known.min():.2g}" if len(known) else ""
        told.append(f"The pseudobulk test calls no gene{least}. Few replicates find strong and shared changes only.")
    return " ".join(told)


class Bulks(NamedTuple):
    """Summed counts of all measured genes, from which the pseudobulks of any contrast are made."""

    sums: np.ndarray  # shape (n_parts, n_vars)
    genes: pd.Index
    part: np.ndarray  # part of each modeled cell, shape (n_obs,); -1 without a replicate
    replicates: np.ndarray  # of each modeled cell, shape (n_obs,)


def existing_column(obs: pd.DataFrame, key: str) -> pd.Series:
    """A column of obs, or an InputError; cells without a value stay without."""
    if key not in obs:
        raise InputError(f"There is no obs column {key!r}.{suggestion(key, obs.columns)}")
    return obs[key]


def sum_by_replicate(
    measured: AnnData, position: np.ndarray, replicates: np.ndarray, columns: list[pd.Series]
) -> Bulks:
    """Sum the counts of all measured genes over the cells that no contrast tells apart, in one pass.

    Parameters
    ----------
    measured
        Raw counts of all measured genes, backed by its file.
    position
        Row of each modeled cell in `measured`, shape (n_obs,).
    replicates
        Replicate of each modeled cell, shape (n_obs,); missing ones are in no sum.
    columns
        Obs columns by which the contrasts divide the cells.
    """
    keys = pd.DataFrame({str(i): pd.factorize(column)[0] for i, column in enumerate(columns)})
    keys["replicate"] = pd.factorize(replicates)[0]
    part = keys.groupby(list(keys), sort=False).ngroup().to_numpy(copy=True)  # pandas 3 gives none to write to
    part[pd.isna(replicates)] = -1
    sums = np.zeros((part.max() + 1, measured.n_vars))
    rows = np.flatnonzero(part >= 0)
    rows = rows[np.argsort(position[rows])]
    for start in range(0, len(rows), MAX_CELLS):
        own = rows[start : start + MAX_CELLS]
        counts = sparse.csr_array(sparse.csr_matrix(measured.X[position[own]]))
        members = sparse.csr_array((np.ones(len(own)), (part[own], np.arange(len(own)))), (len(sums), len(own)))
        sums += (members @ counts).toarray()
    return Bulks(sums, measured.var_names, part, replicates)


def pseudobulk(bulks: Bulks, contrast: Contrast, config: DeConfig, threads: int = 1) -> tuple[pd.DataFrame | None, str]:
    """DESeq2's comparison of summed counts, and why there is none; that needs two replicates on either side.

    Parameters
    ----------
    bulks
        From `sum_by_replicate`.
    contrast
        The two groups.
    config
        Fewest cells of a replicate on a side.
    threads
        Processes that fit genes.

    Returns
    -------
    DataFrame
        pseudobulk_lfc (log2, group 1 over group 2), pseudobulk_p and pseudobulk_padj, indexed by measured gene; missing
        for genes that have not three counts in as many pseudobulks as the smaller side has.
    """
    sums, samples = [], []
    for side, rows in (("one", contrast.rows1), ("two", contrast.rows2)):
        rows = rows[bulks.part[rows] >= 0]
        for replicate in sorted(set(bulks.replicates[rows])):
            cells = rows[bulks.replicates[rows] == replicate]
            if len(cells) >= config.min_cells:
                sums.append(bulks.sums[np.unique(bulks.part[cells])].sum(axis=0))
                samples.append((side, replicate))
    table = pd.DataFrame(samples, columns=["side", "replicate"], index=[f"{side}_{name}" for side, name in samples])
    paired = table["replicate"].value_counts().loc[lambda n: n == 2].index
    design = "~side"
    if 2 <= len(paired) <= MOST_PAIRS:
        table, design = table[table["replicate"].isin(paired)], "~replicate + side"
    n = table["side"].value_counts().reindex(["one", "two"], fill_value=0)
    if n.min() < 2:
        reason = (
            f"There is no pseudobulk test, with {n['one']} and {n['two']} replicates of at least {config.min_cells} "
            "cells; it needs 2."
        )
        logger.warning("%s: %s", contrast.name, reason)
        return None, reason
    bulk = pd.DataFrame(np.array(sums), index=[f"{side}_{name}" for side, name in samples], columns=bulks.genes)
    bulk = bulk.loc[table.index].astype(np.int64)
    try:
        # A gene with less on either side has no power, but costs time and a part of the correction for all genes.
        counted = (bulk >= LEAST_COUNTS).sum() >= n.min()
        result = deseq2(bulk.loc[:, counted], table, design, threads)
    except Exception as error:  # few genes or samples break its fits in many ways; the other tests remain
        reason = f"The pseudobulk test failed: {first_line(error)}"
        logger.warning("%s: %s", contrast.name, reason)
        return None, reason
    return result.reindex(bulks.genes), ""


def deseq2(counts: pd.DataFrame, samples: pd.DataFrame, design: str, threads: int) -> pd.DataFrame:
    """Fold changes (log2, side one over two) and p values of DESeq2, from counts of samples by genes."""
    from pydeseq2.dds import DeseqDataSet
    from pydeseq2.default_inference import DefaultInference
    from pydeseq2.ds import DeseqStats

    # Its matrices have a row for each pseudobulk: BLAS's threads wait for each other longer than they compute.
    with warnings.catch_warnings(), threadpool_limits(1, user_api="blas"):
        warnings.simplefilter("ignore")
        inference = DefaultInference(n_cpus=threads)
        dataset = DeseqDataSet(counts=counts, metadata=samples, design=design, quiet=True, inference=inference)
        dataset.deseq2()
        statistics = DeseqStats(dataset, contrast=["side", "one", "two"], quiet=True, inference=inference)
        statistics.run_wald_test()
        statistics.summary()
    names = {"log2FoldChange": "pseudobulk_lfc", "pvalue": "pseudobulk_p", "padj": "pseudobulk_padj"}
    return statistics.results_df[list(names)].rename(columns=names)


@styled
def draw_volcano(table: pd.DataFrame, title: str, path: Path) -> None:
    """Effect against evidence; beside it, where there is one, the pseudobulk's change against the model's."""
    has_bulk = "pseudobulk_lfc" in table
    figure = Figure(figsize=(9 if has_bulk else 5.2, 4.2), layout="constrained")
    axes = figure.subplots(1, 2 if has_bulk else 1, squeeze=False)[0]
    axes[0].set_title(f"{title}: {called_genes(table).sum()} of {len(table)} genes called", loc="left")
    if has_bulk:
        pl.agreement(table, ax=axes[1])
    pl.volcano(table, ax=axes[0])
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=130, metadata={"Software": None})


# What the methods section says

REFERENCES = {
    "scvi": "Lopez R, Regier J, Cole MB, Jordan MI, Yosef N. Deep generative modeling for single-cell "
    "transcriptomics. Nature Methods 15, 1053–1058 (2018). doi:10.1038/s41592-018-0229-2",
    "boyeau": "Boyeau P, Regier J, Gayoso A, Jordan MI, Lopez R, Yosef N. An empirical Bayes method for "
    "differential expression analysis of single cells with deep generative models. PNAS 120, e2209124120 "
    "(2023). doi:10.1073/pnas.2209124120",
    "deseq2": "Love MI, Huber W, Anders S. Moderated estimation of fold change and dispersion for RNA-seq data with "
    "DESeq2. Genome Biology 15, 550 (2014). doi:10.1186/s13059-014-0550-8",
    "pydeseq2": "Muzellec B, Teleńczuk M, Cabeli V, Andreux M. PyDESeq2: a python package for bulk RNA-seq "
    "differential expression analysis. Bioinformatics 39, btad547 (2023). "
    "doi:10.1093/bioinformatics/btad547",
    "squair": "Squair JW, Gautier M, Kathe C, et al. Confronting false discoveries in single-cell differential "
    "expression. Nature Communications 12, 5692 (2021). doi:10.1038/s41467-021-25960-2",
}


def methods(settings: dict[str, Any], contrasts: pd.DataFrame, run: str) -> Iterator[Sentence]:
    """How groups were compared, with the options that ran.

    Parameters
    ----------
    settings
        Of de/summary.json.
    contrasts
        de/contrasts.tsv.
    run
        The run whose model was asked.
    """
    config = DeConfig(**settings)
    yield from methods_of_ranks(config.fdr, MIN_AUC)
    if contrasts["pseudobulk"].astype(bool).any():
        yield Sentence(
            f"Counts of all measured genes were summed per {config.replicate_key} and group, where a replicate had at "
            f"least {config.min_cells} cells, and these pseudobulks were tested with PyDESeq2 [@pydeseq2; @deseq2] "
            f"(genes with {LEAST_COUNTS} counts in as many pseudobulks as the smaller side has), the replicate in the "
            f"design where 2 to {MOST_PAIRS} were on both sides; they come first, as cells of one replicate are not "
            "independent [@squair].",
            REFERENCES,
            ("pydeseq2.dds", "pydeseq2.ds"),
        )
    yield Sentence(
        f"As a second opinion, the posterior of run {run} gave the probability of a "
        f"log2 fold change beyond {config.delta:g} [@scvi; @boyeau] in {len(contrasts)} "
        f"contrast{'s' if len(contrasts) > 1 else ''}; genes were called at an expected false discovery rate of "
        f"{config.fdr:.0%}.",
        REFERENCES,
    )
