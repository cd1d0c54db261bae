"""Counts in, the cells and genes worth modeling out, with the reason for every cell that is not."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ldvae import pl
from ldvae import results as layout
from ldvae.config import QcConfig, contradictions_of_qc
from ldvae.errors import InputError, first_line, listed, suggestion
from ldvae.io import (
    ChunkedCounts,
    ChunkedMatrix,
    RawMatrix,
    atomic,
    collected_warnings,
    first_names,
    group_names,
    has_neighbors,
    obs_column,
    read_input,
    reading_options,
    sha256_of_input,
    write_chunked,
    write_json,
    write_matrices,
    write_table,
)
from ldvae.methods import Sentence
from ldvae.names import column_name, own_name
from ldvae.neighbors import add_neighbors
from ldvae.provenance import versions as installed
from ldvae.steps.doublets import find_doublets
from ldvae.steps.doublets import methods as methods_of_doublets

logger = logging.getLogger(__name__)

METRICS = ("total_counts", "n_genes_by_counts", "pct_counts_mt", "pct_counts_ribo", "pct_counts_hb")
MIN_CLUSTERED, MAX_CELLS_CLUSTERED = 50, 20_000  # a sample so large has the rare types
TYPE_COLUMNS = (
    "cell_type", "celltype", "cell_types", "celltypes", "cell_type_name", "cell_ontology_class", "bulk_labels",
    "cell_label", "annotation",
)  # fmt: skip
RIBOSOMAL = (
    r"RP[SL]\d+(A|X|AL?|L\d?|Y\d)?$|RPLP\d$|RPSA$"  # proteins of the ribosome, not their kinases and pseudogenes
)
HAEMOGLOBIN = {
    "human": "HBA1 HBA2 HBB HBD HBE1 HBG1 HBG2 HBM HBQ1 HBZ",
    "mouse": "Hba-a1 Hba-a2 Hba-x Hbb-b1 Hbb-b2 Hbb-bh0 Hbb-bh1 Hbb-bh2 Hbb-bs Hbb-bt Hbb-y Hbq1a Hbq1b",
}


class Limit(NamedTuple):
    """A limit that a metric of a cell must keep."""

    metric: str
    side: str  # "<" or ">": which cells it removes
    value: pd.Series  # of each cell's batch, in the metric's unit; NaN for no limit; indexed by batch
    reason: str
    option: str  # that set it


def qc(
    *,
    results: Path,
    input: list[str],
    names: list[str] | None = None,
    batch_key: str | None = None,
    labels_key: str | None = None,
    threads: int = 1,
    config: QcConfig = QcConfig(),
) -> None:
    """Read the counts of a dataset and keep the cells and genes that pass quality control.

    Parameters
    ----------
    results
        Folder of the results of the dataset, such as results/kang; it is made if need be.
    input
        Files of counts of any format (h5ad, 10x folder or h5, zarr, loom, mtx, csv, tsv), or demo:pbmc68k.
    names
        A name for each input file, kept in the obs column `file`; not given: several files are named after themselves.
    batch_key
        Obs column of the batch: outliers and doublets are sought within batches; not given: the file, if several.
    labels_key
        Obs column of the types by which kept and removed cells are counted; not given: cell_type or the like, else a
        quick clustering.
    threads
        Batches whose doublets are sought at the same time, each in a process of its own.

    Notes
    -----
    Counts, layers and raw stay in their files where the format lets some cells be read at a time (h5ad, zarr, 10x h5,
    loom); large ones of Matrix Market and CSC are sorted into qc/.by-rows first, which is removed at the end. Doublets
    of a batch are kept in qc/.doublets as soon as they are known, until all is written: a restart goes on from there.

    Outliers lie further than `n_mads` median absolute deviations (not rescaled to standard deviations) from the median
    of their batch, as in Heumos et al., Nat. Rev. Genet. 24, 550 (2023); log(1 + value) of counts and genes is used.
    """
    if problems := contradictions_of_qc(config):
        raise InputError(*problems)
    scratch = layout.QC_SUMMARY.at(results).with_name(".by-rows")
    shutil.rmtree(scratch, ignore_errors=True)  # of one that was killed
    try:
        control(results, input, names, batch_key, labels_key, threads, config, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def control(
    results: Path,
    input: list[str],
    names: list[str] | None,
    batch_key: str | None,
    labels_key: str | None,
    threads: int,
    config: QcConfig,
    scratch: Path,
) -> None:
    """As `qc`, with a folder for large matrices that are not stored by rows."""
    kept_in = scratch.with_name(".doublets")
    if batch_key is not None or labels_key is not None:  # a wrong name is told before the counts are read
        heads = read_input(input, names, **reading_options(config), counts=False)
        batches(heads, batch_key)
        known_types(heads.obs, labels_key)
    with collected_warnings() as messages:
        adata = read_input(
            input,
            names,
            **reading_options(config),
            layers=True,
            chunked=True,
            scratch=scratch,
        )
        counts: ChunkedCounts = adata.uns.pop("ldvae_counts")
        layers: dict[str, ChunkedMatrix] = adata.uns.pop("ldvae_layers")
        raw: RawMatrix | None = adata.uns.pop("ldvae_raw", None)
        files = adata.uns.pop("ldvae_input")
        file_key = adata.uns.pop("ldvae_file_key", None)
        if batch_key is None and len(files) > 1:
            batch_key = file_key
        batch = batches(adata, batch_key)
        logger.info("%d cells, %d genes; batches: %d.", adata.n_obs, adata.n_vars, batch.nunique())

        metrics = measure(adata, config, counts)
        limits = find_limits(metrics, batch, config)
        reasons = reasons_for_removal(metrics, batch, limits)
        refuse_if_all_removed(metrics, reasons, limits)
        if config.doublets != "off":
            doublets = find_doublets(
                counts, metrics, batch, reasons == "", adata.var_names, config, kept_in=kept_in, threads=threads
            )
            metrics = metrics.join(doublets)
            if config.doublets == "filter":
                reasons[(reasons == "") & metrics["predicted_doublet"]] = "predicted doublet"
        for name, values in metrics.items():
            adata.obs[own_name(str(name), adata.obs)] = values
        kept = (reasons == "").to_numpy()
        types, origin = types_of_cells(adata.obs, counts, labels_key, config.seed)
        warn_of_lost_types(types, origin, kept)
        n_cells = np.zeros(adata.n_vars, np.int64)
        for _, x in counts.chunks(np.flatnonzero(kept)):
            n_cells += x.getnnz(axis=0)
        kept_genes = n_cells >= config.min_cells
        if not kept_genes.any():
            raise InputError(
                f"min_cells = {config.min_cells} removes all {adata.n_vars} genes: the most common one is seen in "
                f"{n_cells.max()} of {kept.sum()} kept cells. Lower min_cells."
            )
        n_genes = np.concatenate([x[:, kept_genes].getnnz(axis=1) for _, x in counts.chunks(np.flatnonzero(kept))])
        emptied = n_genes == 0
        if emptied.any():  # all their genes were rare
            reasons.iloc[np.flatnonzero(kept)[emptied]] = f"no counts in genes of at least {config.min_cells} cells"
            kept = (reasons == "").to_numpy()
        result = adata[kept, kept_genes].copy()
        for name in sorted(set(batch) - set(batch[kept])):
            logger.warning("Batch %s lost all its cells.", name)
        logger.info("%d cells and %d genes are kept.", *result.shape)

    result.uns["ldvae_qc"] = {"batch_key": batch_key or ""}
    others = others_apart(result)
    table = metrics.assign(kept=kept, reason=reasons)
    table.insert(0, "batch", batch)
    thresholds = effective_thresholds(limits)
    with atomic(layout.VIOLINS.at(results)) as temporary:
        pl.qc_violins(table, thresholds=thresholds, save=temporary)
    with atomic(layout.SCATTER.at(results)) as temporary:
        pl.qc_scatter(table, thresholds=thresholds, save=temporary)
    with atomic(layout.FILTERED.at(results)) as temporary:
        write_chunked(
            result,
            counts,
            temporary,
            genes=kept_genes,
            n_stored=int(n_genes.sum()),
            compression="lzf",
            cells=np.flatnonzero(kept),
        )
    with atomic(layout.LAYERS.at(results)) as temporary:
        others.write_h5ad(temporary, compression="lzf")
        write_matrices(
            temporary,
            {name: matrix.take(kept).take_columns(kept_genes) for name, matrix in layers.items()},
            None if raw is None else raw._replace(matrix=raw.matrix.take(kept)),
            compression="lzf",
        )
    write_table(table, layout.CELLS.at(results), index="cell")
    write_json(
        {
            "dataset": results.absolute().name,
            "inputs": [{**file, "sha256": sha256_of_input(file["path"], config.genome)} for file in files],
            "batch_key": batch_key or "",
            "n_obs_before": adata.n_obs,
            "n_obs_after": result.n_obs,
            "n_vars_before": adata.n_vars,
            "n_vars_after": result.n_vars,
            "removed": reasons[reasons != ""].str.split(";").explode().value_counts().to_dict(),
            "thresholds": thresholds,
            "per_batch": cells_by(batch, kept),
            "types": origin,
            "per_type": cells_by(types, kept),
            "doublets": {
                "mode": config.doublets,
                "n_predicted": int(table["predicted_doublet"].sum()) if config.doublets != "off" else 0,
            },
            "warnings": messages,
            "settings": config.model_dump(),
            "versions": installed(("ldvae", "anndata", "scanpy", "numpy", "scipy")),
        },
        layout.QC_SUMMARY.at(results),
    )
    shutil.rmtree(kept_in, ignore_errors=True)


def batches(adata: AnnData, batch_key: str | None) -> pd.Series:
    """The batch of each cell as text; ``all`` without a batch key."""
    if batch_key is None:
        return pd.Series("all", index=adata.obs_names)
    return group_names(obs_column(adata.obs, column_name(batch_key)))


def cells_by(groups: pd.Series, kept: np.ndarray) -> dict[str, dict[str, int]]:
    """Cells of each group before and after, in the order of their names; cells without a group are not counted.

    Examples
    --------
    >>> cells_by(pd.Series(["b", "a", "b", None]), np.array([True, False, False, True]))
    {'a': {'before': 1, 'after': 0}, 'b': {'before': 2, 'after': 1}}
    """
    counted = pd.Series(kept).groupby(groups.to_numpy(), sort=True).agg(["size", "sum"])
    return {str(name): {"before": int(n), "after": int(n_kept)} for name, n, n_kept in counted.itertuples()}


def others_apart(adata: AnnData) -> AnnData:
    """obsp and varp, taken from `adata`: of the later steps only annotate needs them."""
    others = AnnData(obs=adata.obs[[]], var=adata.var[[]])
    for kind in ("obsp", "varp"):
        for name in list(getattr(adata, kind)):
            getattr(others, kind)[name] = getattr(adata, kind).pop(name)
    for name in [name for name, value in adata.uns.items() if has_neighbors(value)]:  # it speaks of entries of obsp
        others.uns[name] = adata.uns.pop(name)
    return others


def known_types(obs: pd.DataFrame, labels_key: str | None) -> str | None:
    """Obs column of the types: the one given, which must be there, else the first that is called so; None for none."""
    if labels_key is not None:
        if column_name(labels_key) not in obs:
            raise InputError(f"There is no obs column {labels_key!r} (labels_key).{suggestion(labels_key, obs)}")
        return column_name(labels_key)
    columns = {str(name).lower().replace(".", "_"): str(name) for name in obs}
    found = (columns[name] for name in TYPE_COLUMNS if name in columns)
    return next((name for name in found if 2 <= obs[name].nunique() <= 200), None)


def types_of_cells(
    obs: pd.DataFrame, counts: ChunkedCounts, labels_key: str | None, seed: int
) -> tuple[pd.Series, str]:
    """The type of each cell, as far as it is known before quality control, and where that comes from.

    Parameters
    ----------
    obs, counts
        All cells, and their counts.
    labels_key
        Obs column of the types; none: the first that is called cell_type or the like.
    seed
        Of a clustering where no column tells the types.

    Returns
    -------
    tuple
        Types as text, missing for cells without one; and the obs column that holds them, or "clusters": Leiden clusters
        of the cells with counts (of at most `MAX_CELLS_CLUSTERED` of them), or "" for too few cells.
    """
    if (name := known_types(obs, labels_key)) is not None:
        return group_names(obs[name]), name
    types = pd.Series(np.nan, index=obs.index, dtype=object)
    cells = np.flatnonzero(np.concatenate([x.getnnz(axis=1) for _, x in counts.chunks()]) > 0)
    if len(cells) > MAX_CELLS_CLUSTERED:
        cells = np.sort(np.random.default_rng(seed).choice(cells, MAX_CELLS_CLUSTERED, replace=False))
    sample = counts.read(cells)
    genes = np.flatnonzero(sample.getnnz(axis=0) >= 3)
    if min(len(cells), len(genes)) < MIN_CLUSTERED:
        return types, ""
    try:
        types.iloc[cells] = quick_clusters(sample[:, genes], seed)
    except Exception as error:  # data without structure break it in many ways; the types are then not known, no more
        logger.info("Cells cannot be clustered before quality control: %s", first_line(error))
        return types, ""
    return types, "clusters"


def quick_clusters(counts: sparse.csr_matrix, seed: int) -> np.ndarray:
    """Leiden clusters of cells, as text, from 20 principal components of the most variable log-normalized genes."""
    import scanpy

    cells = AnnData(counts.copy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scanpy.pp.normalize_total(cells, target_sum=1e4)
        scanpy.pp.log1p(cells)
        if cells.n_vars > 1000:
            scanpy.pp.highly_variable_genes(cells, n_top_genes=1000)
            cells = cells[:, cells.var["highly_variable"]].copy()
        scanpy.pp.scale(cells, max_value=10, zero_center=True)
        scanpy.pp.pca(cells, n_comps=min(20, *(n - 1 for n in cells.shape)), random_state=seed)
        add_neighbors(cells, 10, seed=seed)
        scanpy.tl.leiden(cells, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
    return cells.obs["leiden"].to_numpy(str)


def warn_of_lost_types(types: pd.Series, origin: str, kept: np.ndarray) -> None:
    """Warn of each type that loses more than a third of its cells, as rare types do to limits that fit common ones."""
    for name, own in pd.Series(kept, index=types.to_numpy()).groupby(level=0, sort=True):
        lost = int((~own).sum())
        if lost >= 3 and lost > len(own) / 3:
            what = f"Cluster {name} (of a quick clustering before quality control)" if origin == "clusters" else name
            logger.warning(
                "%s: %d of %d cells are removed. If this is a cell type and not debris, loosen the limits that remove "
                "it (n_mads; qc/cells.tsv.gz has the reasons).",
                what, lost, len(own),
            )  # fmt: skip


def measure(adata: AnnData, config: QcConfig, counts: ChunkedCounts | None = None) -> pd.DataFrame:
    """scanpy's metrics of each cell; the masks mt, ribo and hb are added to var, under names that are free there.

    `counts` are those of `adata`, where it does not hold them itself.
    """
    import scanpy

    prefix = "MT-" if config.species == "human" else "mt-"
    patterns = {
        "mt": (config.mt_genes, rf"{prefix}\w"),
        "ribo": (config.ribo_genes, RIBOSOMAL if config.species == "human" else f"(?i:{RIBOSOMAL})"),
        "hb": (config.hb_genes, "|".join(rf"{name}$" for name in HAEMOGLOBIN[config.species].split())),
    }
    symbols = adata.var_names
    masks = pd.DataFrame(index=symbols)
    for kind, (genes, pattern) in patterns.items():
        if genes is None:
            masks[kind] = symbols.str.match(pattern)
            continue
        masks[kind] = symbols.isin(genes)
        absent = sorted(set(genes) - set(symbols))
        if absent:
            logger.warning(
                "%d of %d %s_genes are not in the data: %s", len(absent), len(genes), kind, first_names(absent)
            )
    if not masks["mt"].any():
        other = "mouse" if config.species == "human" else "human"
        is_other = symbols.str.match(r"mt-\w" if other == "mouse" else r"MT-\w").any()
        logger.warning(
            "No mitochondrial gene is among the %d genes (%s), so pct_counts_mt is zero: expected names that start "
            "with %s (species: %s)%s.",
            adata.n_vars, first_names(symbols, 3), prefix, config.species,
            f"; these look like species: {other}" if is_other else ", or name them (mt_genes)",
        )  # fmt: skip
    with warnings.catch_warnings():  # cells without counts divide by zero
        warnings.simplefilter("ignore", RuntimeWarning)
        per_cell = [
            scanpy.pp.calculate_qc_metrics(
                AnnData(x, var=masks), qc_vars=list(patterns), percent_top=None, log1p=False
            )[0][list(METRICS)]
            for _, x in (counts or ChunkedCounts.of(adata.X)).chunks()
        ]
    for kind in patterns:
        adata.var[own_name(kind, adata.var)] = masks[kind]
    return pd.concat(per_cell).fillna(0).set_axis(adata.obs_names)


def find_limits(obs: pd.DataFrame, batch: pd.Series, config: QcConfig) -> list[Limit]:
    """The fixed limits that are set, and the outlier limits of each batch."""
    names = sorted(set(batch))
    fixed = [
        ("total_counts", "<", "min_counts"),
        ("total_counts", ">", "max_counts"),
        ("n_genes_by_counts", "<", "min_genes"),
        ("n_genes_by_counts", ">", "max_genes"),
        ("pct_counts_mt", ">", "max_pct_mt"),
        ("pct_counts_ribo", ">", "max_pct_ribo"),
        ("pct_counts_hb", ">", "max_pct_hb"),
    ]
    limits = [
        Limit(metric, side, pd.Series(float(value), index=names), f"{metric} {side} {value:g}", f"{option} = {value:g}")
        for metric, side, option in fixed
        if (value := getattr(config, option))
    ]
    if config.n_mads is None:
        return limits
    counted = obs["total_counts"] > 0  # empty cells are removed anyway and would shift the median
    for metric, sides in (("total_counts", "<>"), ("n_genes_by_counts", "<>"), ("pct_counts_mt", ">")):
        values = obs[metric][counted] if metric == "pct_counts_mt" else np.log1p(obs[metric][counted])
        by_batch = values.groupby(batch[counted])
        center = by_batch.median()
        mad = (values - center.reindex(batch[counted]).to_numpy()).abs().groupby(batch[counted]).median()
        constant = mad.index[(mad == 0) & (by_batch.nunique() > 1)]
        if len(constant):
            message = "Over half of the cells%s have the same %s, so this limit removes no outliers: %s."
            of = "" if len(names) == 1 else f" of batch {first_names(constant)}"
            there = obs[metric][counted & batch.isin(constant)]
            spread_of = f"the median is {there.median():.3g}, the highest {there.max():.3g}"
            logger.warning(message, of, metric, spread_of)
        spread = config.n_mads * mad.where(mad > 0)
        for side in sides:
            bound = center - spread if side == "<" else center + spread
            bound = bound if metric == "pct_counts_mt" else np.expm1(bound)
            word = "below" if side == "<" else "above"
            option = f"n_mads = {config.n_mads:g}"
            limits.append(Limit(metric, side, bound.reindex(names), f"{metric} {word} {config.n_mads:g} MADs", option))
    return limits


def reasons_for_removal(obs: pd.DataFrame, batch: pd.Series, limits: list[Limit]) -> pd.Series:
    """The limits each cell breaks, joined by semicolons; empty for a cell that passes."""
    reasons = pd.Series("", index=obs.index, dtype=object)
    for limit in limits:
        broken = breaks(obs, batch, limit)
        reasons[broken] = reasons[broken].where(reasons[broken] == "", reasons[broken] + ";") + limit.reason
    return reasons


def breaks(obs: pd.DataFrame, batch: pd.Series, limit: Limit) -> np.ndarray:
    """Which cells break a limit, shape (n_obs,)."""
    values, bounds = obs[limit.metric].to_numpy(float), limit.value.reindex(batch).to_numpy(float)
    return values < bounds if limit.side == "<" else values > bounds


def refuse_if_all_removed(obs: pd.DataFrame, reasons: pd.Series, limits: list[Limit]) -> None:
    """Name the limit that removes every cell, or the most of them, when none is left."""
    if (reasons == "").any():
        return
    counts = reasons.str.split(";").explode().value_counts()
    worst = next(limit for limit in limits if limit.reason == counts.index[0])
    values = obs[worst.metric]
    raise InputError(
        f"Quality control removes all {len(obs)} cells; {worst.option} alone removes {counts.iloc[0]}: {worst.reason}. "
        f"Their {worst.metric} has the median {values.median():g} and goes from {values.min():g} to {values.max():g}. "
        "Change this threshold, or check that the input is what you think it is."
    )


def effective_thresholds(limits: list[Limit]) -> dict[str, dict[str, dict[str, float | None]]]:
    """The tightest lower and upper limit by metric and batch; None for no limit."""
    thresholds: dict[str, dict[str, dict[str, float | None]]] = {}
    for limit in limits:
        side, tighter = ("lower", max) if limit.side == "<" else ("upper", min)
        for name, value in limit.value.items():
            entry = thresholds.setdefault(limit.metric, {}).setdefault(str(name), {"lower": None, "upper": None})
            if np.isfinite(value):
                known = entry[side]
                entry[side] = float(value) if known is None else tighter(known, float(value))
    return thresholds


# What the methods section says

REFERENCES = {
    "scanpy": "Wolf FA, Angerer P, Theis FJ. SCANPY: large-scale single-cell gene expression data analysis. Genome "
    "Biology 19, 15 (2018). doi:10.1186/s13059-017-1382-0",
    "anndata": "Virshup I, Rybakov S, Theis FJ, Angerer P, Wolf FA. anndata: access and store annotated data "
    "matrices. Journal of Open Source Software 9, 4371 (2024). doi:10.21105/joss.04371",
}


def methods(summary: dict[str, Any], versions: dict[str, str]) -> Iterator[Sentence]:
    """What was read, which limits were kept, how doublets were treated.

    Parameters
    ----------
    summary
        Contents of qc/summary.json.
    versions
        Of the packages, with the commit if there is one.
    """
    version, (commit, _, changed) = versions.get("ldvae", ""), versions.get("commit", "").partition("-")
    code = f" (commit {commit[:10]}{', with changes' if changed else ''})" if commit else ""
    yield Sentence(
        f"Raw counts of {summary['n_obs_before']:,} cells and {summary['n_vars_before']:,} genes were analyzed with "
        f"ldvae{f' {version}' if version else ''}{code}, which builds on "
        "scanpy [@scanpy] and anndata [@anndata].",
        REFERENCES,
        ("scanpy", "anndata"),
    )
    limits = limits_in_words(summary.get("thresholds", {}))
    kept = f"{summary['n_obs_after']:,} cells and {summary['n_vars_after']:,} genes"
    text = f"Cells were kept with {listed(limits, 12)}; {kept} passed." if limits else f"{kept} passed quality control."
    settings = summary.get("settings", {})
    if n_mads := settings.get("n_mads"):
        text += f" Limits for outliers lie {n_mads:g} median absolute deviations from the median"
        text += ", batch by batch." if len(summary.get("per_batch", {})) > 1 else "."
    if (least := settings.get("min_cells", 0)) > 1:
        text += f" Genes were kept that were seen in at least {least} cells."
    yield Sentence(text)
    yield from methods_of_doublets(summary)


WORDS = {
    "total_counts": "total counts",
    "n_genes_by_counts": "detected genes",
    "pct_counts_mt": "% mitochondrial counts",
    "pct_counts_ribo": "% ribosomal counts",
    "pct_counts_hb": "% hemoglobin counts",
    "doublet_score": "doublet score",
}


def limits_in_words(thresholds: dict[str, dict[str, dict[str, float | None]]]) -> list[str]:
    """Limits in words: one number when all batches share it, the range over batches when not."""
    found = []
    for metric, of_batches in thresholds.items():
        for bound, word in (("lower", "at least"), ("upper", "at most")):
            limits = (limit.get(bound) for limit in of_batches.values())
            values = sorted({value for value in limits if value is not None and np.isfinite(value)})
            # One count at least is no choice: a cell without counts cannot be modeled.
            if not values or (metric == "total_counts" and values[-1] <= 1):
                continue
            ends = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in (values[0], values[-1])]
            span = ends[0] if len(values) == 1 else f"{ends[0]} to {ends[1]} (by batch)"
            found.append(f"{word} {span} {WORDS.get(metric, metric)}")
    return found
