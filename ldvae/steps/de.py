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

from ldvae import pl
from ldvae import results as layout
from ldvae.config import DeConfig
from ldvae.errors import InputError, suggestion
from ldvae.io import atomic, collected_warnings, group_names, obs_column, read_h5ad, write_json, write_table
from ldvae.names import find_own
from ldvae.pl.de import called as called_genes
from ldvae.pl.style import styled

if TYPE_CHECKING:
    from ldvae.model import LinearSCVI
from ldvae.markers import rank_sum_test

logger = logging.getLogger(__name__)

REST = "rest"
COLUMNS = (
    *("contrast", "file", "group1", "group2", "within", "column", "n1", "n2", "pseudobulk", "n_de"),
    *("file_all_genes", "n_ranked", "n_both", "reason"),
)
MIN_AUC = 0.6  # of a gene that the rank-sum test calls, or 1 - MIN_AUC: with many cells, smaller shifts are certain too
MAX_CELLS = 20_000  # of a side in the rank-sum test; beyond them an AUC changes in the third digit


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


def de(*, results: Path, config: DeConfig = DeConfig()) -> None:
    """Find the genes that differ between groups of cells, with the best run's model and in pseudobulks.

    Parameters
    ----------
    results
        Folder of the results of the dataset, such as results/kang.

    Notes
    -----
    The model compares posterior samples of the expected proportions (mode "change"): `proba_de` is how likely the log2
    fold change exceeds `delta`. It knows nothing of the variation between donors; the pseudobulk check does. It sums
    the counts of each replicate and side, and fits DESeq2's model, with the replicate in the design where at least
    two replicates are on both sides.

    The model knows the genes that were chosen for it. All measured genes are compared by the Wilcoxon rank-sum test of
    the counts, with cells as units.

    References
    ----------
    Boyeau et al., PNAS 120, e2209124120 (2023); Squair et al., Nat. Commun. 12, 5692 (2021); Love et al., Genome Biol.
    15, 550 (2014).
    """

    from ldvae.model import LinearSCVI

    adata = read_h5ad(layout.COUNTS.existing(results))
    columns = {contrast.get(key) for contrast in config.contrasts for key in ("column", "within")}
    # A column of the user's that is called so is taken first.
    for name in {"leiden", "leiden_ldvae"} & columns - set(adata.obs):
        add_clusters(adata, layout.ANNOTATED.existing(results), name)
    with collected_warnings() as skipped:
        contrasts = find_contrasts(adata.obs, config)
    model = LinearSCVI.load(layout.MODEL.existing(results, run=layout.BEST.read(results)["run"]), adata)
    replicates = None
    if config.replicate_key is not None:
        replicates = obs_column(adata.obs, config.replicate_key).astype(str).to_numpy()

    measured = read_h5ad(layout.FILTERED.existing(results), backed="r")
    position = measured.obs_names.get_indexer(adata.obs_names)

    rows: list[dict[str, Any]] = []
    with atomic(layout.DE.at(results)) as folder:
        folder.mkdir()
        tables = chain.from_iterable(model_based(model, adata, block, config) for block in blocks(contrasts))
        for contrast, table, name, stem in zip(contrasts, tables, *distinct_names(contrasts), strict=True):
            bulk = None if replicates is None else pseudobulk(adata, contrast, replicates, config)
            if bulk is not None:
                table = table.join(bulk)
            called = table[f"is_de_fdr_{config.fdr}"].astype(bool)
            ranked = all_genes(measured, position, contrast, config)
            both = called & ranked["called"].reindex(table.index) & same_direction(table, ranked)
            table = table.join(ranked[["auc", "wilcoxon_padj", "detected1", "detected2"]]).assign(both=both)
            n_de = int(called.sum())
            write_table(table, folder / f"{stem}.tsv.gz", index="gene")
            write_table(ranked, folder / f"{stem}.all_genes.tsv.gz", index="gene")
            draw_volcano(table, name, folder / f"{stem}.png")
            values = (name, f"{stem}.tsv.gz", contrast.group1, contrast.group2, contrast.within, contrast.column)
            sizes = (len(contrast.rows1), len(contrast.rows2), bulk is not None, n_de)
            found = (f"{stem}.all_genes.tsv.gz", int(ranked["called"].sum()), int(both.sum()))
            rows.append(dict(zip(COLUMNS, (*values, *sizes, *found, why_none(table, config)), strict=True)))
            logger.info(
                "%s: %d against %d cells; %d genes differ by the model, %d of all by ranks, %d by both.",
                name, *sizes[:2], n_de, *found[1:],
            )  # fmt: skip
        write_table(pd.DataFrame(rows, columns=list(COLUMNS)), folder / "contrasts.tsv")
        write_json({"warnings": skipped, "settings": config.model_dump()}, folder / "summary.json")
    measured.file.close()


# Which cells


def add_clusters(adata: AnnData, annotated: Path, name: str) -> None:
    """Add the clusters of the annotated data to obs, as column `name`."""
    import h5py
    from anndata.io import read_elem

    with h5py.File(annotated) as file:
        obs = read_elem(file["obs"])
    adata.obs[name] = obs[find_own("leiden", obs)].reindex(adata.obs_names)


def find_contrasts(obs: pd.DataFrame, config: DeConfig) -> list[Contrast]:
    """Every contrast that the options ask for and that has enough cells.

    Parameters
    ----------
    obs
        Of all cells. Cells without a value of a column belong to none of its groups, nor to the rest.
    config
        Contrasts: a mapping without group1 means each group in turn, one with `within` each group of that column.
    """
    if not config.contrasts:
        raise InputError("There is nothing to compare; name contrasts, such as [{'column': 'cell_type'}].")
    found = []
    for entry in config.contrasts:
        groups = levels(obs, entry["column"])
        if REST in groups.categories:
            raise InputError(
                f"obs column {entry['column']!r} has a group called {REST!r}, which here means all others; rename it."
            )
        firsts = [entry["group1"]] if "group1" in entry else [g for g in groups.categories if g != entry.get("group2")]
        for group in (*firsts, *([entry["group2"]] if "group2" in entry else [])):
            if group not in groups.categories:
                raise InputError(
                    f"contrasts: no group {group!r} in {entry['column']!r}.{suggestion(group, groups.categories)}"
                )
        within = entry.get("within", "")
        insides = levels(obs, within) if within else pd.Categorical([""] * len(obs))
        for inside in insides.categories:
            for first in firsts:
                second = entry.get("group2", REST)
                in_group1, in_level = np.asarray(groups == first), np.asarray(insides == inside)
                in_group2 = ~in_group1 & ~groups.isna() if second == REST else np.asarray(groups == second)
                rows = (np.flatnonzero(in_group1 & in_level), np.flatnonzero(in_group2 & in_level))
                contrast = Contrast(entry["column"], first, second, within, inside, *rows)
                if min(map(len, rows)) < config.min_cells:
                    sizes = (len(rows[0]), len(rows[1]), config.min_cells)
                    logger.warning(
                        "%s is skipped: it has %d and %d cells, fewer than min_cells = %d.", contrast.name, *sizes
                    )
                else:
                    found.append(contrast)
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
    """Neighbouring contrasts of different groups with the same others, in the same cells."""
    for _, block in groupby(contrasts, key=lambda c: (c.column, c.group2, c.within_column, c.within)):
        yield list(block)


def model_based(
    model: LinearSCVI, adata: AnnData, contrasts: list[Contrast], config: DeConfig
) -> Iterator[pd.DataFrame]:
    """The model's comparisons of a block, each indexed by gene, the likeliest changes first.

    One call for all of them: the cells are encoded and their counts summed once.
    """
    rows = np.unique(np.concatenate([rows for contrast in contrasts for rows in (contrast.rows1, contrast.rows2)]))
    cells = adata[rows].copy()
    cells.obs["contrast_group"] = group_names(cells.obs[contrasts[0].column]).fillna("nan").to_numpy()
    group2 = contrasts[0].group2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of small batches, which setup has seen
        tables = model.differential_expression(
            cells,
            groupby="contrast_group",
            group1=[contrast.group1 for contrast in contrasts],
            group2=None if group2 == REST else group2,
            mode="change",
            delta=config.delta,
            batch_correction=config.batch_correction,
            fdr_target=config.fdr,
            n_samples_overall=config.n_samples,
            seed=config.seed,
        )
    for contrast in contrasts:
        table = tables[tables["group1"] == contrast.group1]
        yield table.assign(comparison=contrast.name, group1=contrast.group1, group2=contrast.group2)


def all_genes(measured: AnnData, position: np.ndarray, contrast: Contrast, config: DeConfig) -> pd.DataFrame:
    """The rank-sum test of a contrast over all measured genes, the most telling first.

    Parameters
    ----------
    measured
        Raw counts of all measured genes, backed by its file.
    position
        Row of each modelled cell in `measured`, shape (n_obs,).
    contrast
        The two groups, as rows of the modelled cells.
    config
        False discovery rate of a call, and the seed of the cells that are drawn where a side has very many.

    Returns
    -------
    DataFrame
        As `ldvae.markers.rank_sum_test` returns it, with `called`: below the false discovery rate, and an AUC of at
        least 0.6 or at most 0.4.
    """
    rng = np.random.default_rng(config.seed)
    sides = []
    for rows in (contrast.rows1, contrast.rows2):
        if len(rows) > MAX_CELLS:
            rows = rng.choice(rows, MAX_CELLS, replace=False)
            logger.info("%s: ranks are compared in %d cells of a side, drawn at random.", contrast.name, MAX_CELLS)
        sides.append(np.sort(position[rows]))
    counts = sparse.vstack([sparse.csr_matrix(measured.X[rows]) for rows in sides], format="csr")
    n1 = len(sides[0])
    table = rank_sum_test(counts, list(measured.var_names), np.arange(n1), np.arange(n1, counts.shape[0]))
    distance = (table["auc"] - 0.5).abs()
    table["called"] = (table["wilcoxon_padj"] < config.fdr) & (distance >= MIN_AUC - 0.5)
    return table.iloc[np.argsort(-distance.to_numpy(), kind="stable")]


def same_direction(table: pd.DataFrame, ranked: pd.DataFrame) -> pd.Series:
    """Whether the model and the ranks say that a gene is higher in the same group, for the genes of the model."""
    return (table["lfc_median"] > 0) == (ranked["auc"].reindex(table.index) > 0.5)


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
        f"No gene reaches the certainty that a false discovery rate of {config.fdr:g} needs: the likeliest change is "
        f"that of {gene}, with a probability of {best:.2f}. The model compares expected expression, "
        "smoothed over similar cells: it separates groups that overlap in its latent space badly."
    )


def pseudobulk(adata: AnnData, contrast: Contrast, replicates: np.ndarray, config: DeConfig) -> pd.DataFrame | None:
    """DESeq2's comparison of summed counts; None where either side has fewer than two replicates.

    Parameters
    ----------
    adata
        Raw counts.
    contrast
        The two groups.
    replicates
        Replicate of each cell, shape (n_obs,).
    config
        Fewest cells of a replicate on a side.

    Returns
    -------
    DataFrame
        pseudobulk_lfc (log2, group 1 over group 2), pseudobulk_p and pseudobulk_padj, indexed by gene.
    """
    sums, samples = [], []
    for side, rows in (("one", contrast.rows1), ("two", contrast.rows2)):
        for replicate in np.unique(replicates[rows]):
            cells = rows[replicates[rows] == replicate]
            if len(cells) >= config.min_cells:
                sums.append(np.asarray(adata.X[cells].sum(axis=0)).ravel())
                samples.append((side, replicate))
    table = pd.DataFrame(samples, columns=["side", "replicate"], index=[f"{side}_{name}" for side, name in samples])
    paired = table["replicate"].value_counts().loc[lambda n: n == 2].index
    design = "~side"
    if len(paired) >= 2:
        table, design = table[table["replicate"].isin(paired)], "~replicate + side"
    n = table["side"].value_counts().reindex(["one", "two"], fill_value=0)
    if n.min() < 2:
        logger.warning(
            "%s: no pseudobulk check, with %d and %d replicates of at least %d cells; it needs 2.",
            contrast.name, n["one"], n["two"], config.min_cells,
        )  # fmt: skip
        return None
    bulk = pd.DataFrame(np.array(sums), index=[f"{side}_{name}" for side, name in samples], columns=adata.var_names)
    bulk = bulk.loc[table.index].astype(np.int64)
    try:
        result = deseq2(bulk.loc[:, bulk.sum() >= 10], table, design)
    except Exception as error:  # few genes or samples break its fits in many ways; it is a check, not the result
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        logger.warning("%s: the pseudobulk check failed: %s", contrast.name, reason)
        return None
    return result.reindex(adata.var_names)


def deseq2(counts: pd.DataFrame, samples: pd.DataFrame, design: str) -> pd.DataFrame:
    """Fold changes (log2, side one over two) and p values of DESeq2, from counts of samples by genes."""
    from pydeseq2.dds import DeseqDataSet
    from pydeseq2.default_inference import DefaultInference
    from pydeseq2.ds import DeseqStats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inference = DefaultInference(n_cpus=1)
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
