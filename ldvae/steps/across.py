"""The programs of several datasets beside each other: shared ones, one's own, and the scores of all cells on them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ldvae import results as layout
from ldvae.config import AcrossConfig, corrected_columns, removed_effects, same_columns
from ldvae.errors import InputError, suggestion
from ldvae.io import read_without_matrices, write_json, write_svgs, write_table, write_text
from ldvae.programs import (
    Frame,
    MetaPrograms,
    compare_across,
    donor_means,
    doubtful_replicates,
    known_donors,
    meta_frame,
    meta_programs,
    project,
)
from ldvae.programs.donors import left_out
from ldvae.provenance import versions
from ldvae.report.across import Compared, contrasts_in_words, doubts, findings, render_across
from ldvae.steps.programs import read_model, read_obs, write_gmt, write_model

logger = logging.getLogger(__name__)

N_SHOWN = 10  # top genes named in the table of the meta-programs


def across(*, results: Path, datasets: list[str], config: AcrossConfig = AcrossConfig()) -> None:
    """Compare the programs of several datasets: those they share, and those of one dataset only.

    Parameters
    ----------
    results
        Folder of the results of all datasets, such as results; tables and page go into its folder across.
    datasets
        Names of the datasets, at least two.
    """
    if len(set(datasets)) < 2:
        raise InputError(f"across: expected two datasets or more, found {', '.join(datasets)}. Name another.")
    frames, labels = {}, {}
    for name in dict.fromkeys(datasets):
        folder = results / name
        if not folder.is_dir():
            known = sorted(path.parent.parent.name for path in results.glob(f"*/{layout.PROGRAMS_MODEL.path}"))
            raise InputError(f"{results} has no results of {name!r}.{suggestion(name, known)}")
        frames[name] = read_model(layout.PROGRAMS_MODEL.existing(folder))
        labels[name] = layout.PROGRAMS.read_table(folder)["label"].fillna("")
    warnings = check_columns(results, list(frames), config)
    found = meta_programs(frames, min_similarity=config.min_similarity, min_presence=config.min_presence)
    sides = top_genes(found, config.n_top)
    members = found.members.copy()
    members["label"] = [str(labels[row.dataset].get(row.program, "")) for row in members.itertuples()]
    table = found.table.copy()
    table.insert(0, "label", [label_of(members[members["meta"] == meta]) for meta in table.index])
    for side in ("positive", "negative"):
        table[f"top_{side}"] = [", ".join(sides.get(f"{meta}_{side}", [])[:N_SHOWN]) for meta in table.index]

    shared = [str(meta) for meta in table.index[table["shared"]]]
    scores, obs = score_cells(results, found, frames, shared)
    means, compared, left = contrasts(scores, obs, shared, config)
    similarity = found.similarity.copy()
    similarity.index = similarity.columns = pd.Index([f"{dataset} {name}" for dataset, name in similarity.index])

    shown = Compared(
        n_obs={str(name): int(n) for name, n in obs["dataset"].value_counts(sort=False).items()},
        table=table,
        members=members,
        loadings=long_table(found),
        presence=found.presence,
        similarity=similarity,
        donors=compared,
        donor_means=means,
        settings=config.model_dump(),
        versions=versions(("ldvae", "numpy", "scipy", "matplotlib")),
        warnings=[*warnings, *left],
    )
    write_table(table, layout.META_PROGRAMS.at(results), index="meta")
    write_table(members, layout.META_MEMBERS.at(results))
    write_table(shown.loadings, layout.META_LOADINGS.at(results))
    write_table(found.presence, layout.META_PRESENCE.at(results), index="meta")
    write_table(similarity, layout.META_SIMILARITY.at(results), index="program")
    write_table(pd.concat([obs[["dataset"]], scores], axis=1), layout.META_SCORES.at(results), index="cell")
    write_gmt(sides, layout.META_GMT.at(results))
    write_model(meta_frame(found, frames, shared or list(table.index)), layout.META_MODEL.at(results))
    write_table(compared, layout.META_DONORS.at(results))
    write_table(means, layout.META_DONOR_MEANS.at(results))
    page, drawn = render_across(shown)
    write_svgs(drawn, layout.ACROSS_FIGURES.at(results))
    write_text(page, layout.ACROSS_PAGE.at(results))
    lines = [*findings(shown), *contrasts_in_words(shown)]
    for line in lines:
        logger.info(line)
    for line in doubts(shown):
        logger.warning(line)
    write_json(
        {
            "datasets": list(frames),
            "n_obs": shown.n_obs,
            "n_programs": len(members),
            "n_shared": len(shared),
            "n_genes": len(found.genes),
            "findings": lines,
            "warnings": doubts(shown),
            "settings": config.model_dump(),
        },
        layout.ACROSS_SUMMARY.at(results),
    )


def label_of(members: pd.DataFrame) -> str:
    """The label that most members have; of several, that of the member most like the others."""
    named = members[members["label"] != ""].sort_values("similarity", ascending=False, kind="stable")
    counts = Counter(named["label"])
    return max(counts, key=lambda label: counts[label]) if counts else ""


def top_genes(found: MetaPrograms, n_top: int) -> dict[str, list[str]]:
    """Genes of both sides of each meta-program whose interval over datasets leaves out zero, the heaviest first."""
    sets = {}
    for name, weighted in found.weighted.items():
        for side, sign in (("positive", 1), ("negative", -1)):
            ranked = (sign * weighted).sort_values(ascending=False, kind="stable")
            bound = (found.lower if sign > 0 else -found.upper)[name]
            sure = (bound > 0) | bound.isna()  # missing: one dataset alone models the gene
            genes = [str(gene) for gene in ranked.index[(ranked > 0) & sure.reindex(ranked.index)][:n_top]]
            if genes:
                sets[f"{name}_{side}"] = genes
    return sets


def long_table(found: MetaPrograms) -> pd.DataFrame:
    """Every gene of every meta-program with side and rank: meta, gene, side, rank, loading, lower, upper, weighted."""
    parts = []
    for name in found.loadings:
        columns = {"loading": found.loadings, "lower": found.lower, "upper": found.upper, "weighted": found.weighted}
        part = pd.DataFrame({column: values[name] for column, values in columns.items()}).dropna(subset=["loading"])
        part.insert(0, "meta", name)
        part.insert(1, "side", np.where(part["weighted"] > 0, "positive", "negative"))
        part = part.sort_values("weighted", key=np.abs, ascending=False, kind="stable")
        part.insert(2, "rank", part.groupby("side").cumcount() + 1)
        parts.append(part.rename_axis("gene").reset_index())
    return pd.concat(parts, ignore_index=True)[
        ["meta", "gene", "side", "rank", "loading", "lower", "upper", "weighted"]
    ]


def check_columns(results: Path, datasets: Sequence[str], config: AcrossConfig) -> list[str]:
    """Refuse keys that are obs columns of no dataset; warn of datasets that lack one, and of doubtful donors.

    Returned is what the page says, too: where the model removes the effect of the condition.
    """
    named = {key: value for key, value in config if key.endswith("_key")}
    if problems := same_columns(named):
        raise InputError(f"across: {problems[0]}")
    read = {name: read_obs(layout.FILTERED.existing(results / name)) for name in datasets}
    columns: dict[str, pd.DataFrame] = {name: obs for name, (obs, _) in read.items()}
    known = list(dict.fromkeys(column for obs in columns.values() for column in obs))
    for key in (config.condition_key, config.replicate_key, config.cell_type_key):
        if key is None:
            continue
        if key not in known:
            raise InputError(f"across: no obs column {key!r} in the datasets.{suggestion(key, known)}")
        for name in [name for name, obs in columns.items() if key not in obs]:
            logger.warning("%s has no obs column %r: conditions are compared without its cells.", name, key)
        if key == config.replicate_key:
            for name in [name for name, obs in columns.items() if key in obs]:
                for line in doubtful_replicates(columns[name][key], key):
                    logger.warning("%s: %s", name, line)
    condition = config.condition_key
    corrected = [name for name, (_, keys) in read.items() if condition in corrected_columns(keys)]
    return removed_effects({f"across.condition_key in {name}": condition for name in corrected}, [str(condition)])


def score_cells(
    results: Path, found: MetaPrograms, frames: dict[str, Frame], shared: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of the cells of all datasets, and what is known of them, with the column `dataset`."""
    scores, obs = [], []
    metas = list(found.table.index)
    for name in frames:
        data, matrices, _ = read_without_matrices(layout.FILTERED.existing(results / name))
        own = [meta for meta in metas if meta not in shared and found.table.at[meta, "datasets"] == name]
        chosen = [*shared, *own]
        cells = [f"{name}:{cell}" for cell in data.obs_names]
        batch = batches(data, name)
        model = meta_frame(found, frames, chosen)
        modeled = data.var_names.isin(model.genes)
        counts = matrices["X"].take_columns(modeled).stored(np.arange(data.n_obs))
        made = project(model, sparse.csr_matrix(counts), list(data.var_names[modeled]), cells=cells, batch=batch).scores
        scores.append(made.reindex(columns=metas))
        logger.info("%s: %d cells scored on %d meta-programs.", name, len(cells), len(chosen))
        obs.append(data.obs.set_axis(pd.Index(cells, name="cell")).astype(object).assign(dataset=name))
    return pd.concat(scores), pd.concat(obs)


def batches(data: AnnData, name: str) -> np.ndarray:
    """Experimental batch of each cell of a dataset, as quality control knew it."""
    key = str(data.uns.get("ldvae_qc", {}).get("batch_key", ""))
    return np.full(data.n_obs, name) if key not in data.obs else data.obs[key].astype(str).to_numpy()


def contrasts(
    scores: pd.DataFrame, obs: pd.DataFrame, shared: Sequence[str], config: AcrossConfig
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Mean scores of the donors, and the comparison of conditions; without rows where no condition is given.

    Third, what the comparison leaves out.
    """
    donor = obs["dataset"]
    if config.replicate_key is not None:
        known = known_donors(obs[config.replicate_key])
        donor = (obs["dataset"] + ": " + known.astype(str)).where(known.notna())
    table = pd.DataFrame({"donor": donor, "condition": ""}, obs.index)
    rows = obs.index
    if config.condition_key is None:
        rows = rows[:0]
    else:
        table["condition"] = obs[config.condition_key]
    kind = None
    if config.cell_type_key is not None:
        table[kind := "cell_type"] = obs[config.cell_type_key]
    scored = scores.loc[rows, list(shared)]
    if not len(shared):
        scored = scores.iloc[:0]
    means = donor_means(scored, table, donor="donor", condition="condition", cell_type=kind)
    dataset = obs["dataset"].groupby(donor).first().to_dict()
    means.insert(3, "dataset", means["donor"].map(dataset).astype(object))
    compared = compare_across(means, dataset)
    return means, compared, left_out(table, compared, donor="donor", condition="condition", cell_type=kind)
