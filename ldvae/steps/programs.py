"""Gene programs shared by the chosen fits, with their annotation, as tables."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from ldvae import results as layout
from ldvae.config import ProgramsConfig, RotationConfig, corrected_columns, named, removed_effects, same_columns
from ldvae.errors import InputError
from ldvae.io import MAX_CELLS, atomic, read_gmt, read_h5ad, require_columns, write_json, write_table, write_text
from ldvae.methods import Sentence
from ldvae.names import find_own
from ldvae.programs import (
    Frame,
    Programs,
    associations,
    calibrate,
    compare_conditions,
    describe,
    donor_means,
    doubtful_replicates,
    effects_on_all_genes,
    enrichment,
    frame,
    gene_sets,
    ranked_enrichment,
    split_sides,
    technical_flags,
    top_genes,
)
from ldvae.programs.donors import left_out
from ldvae.programs.donors import methods as methods_of_donors
from ldvae.programs.effects import methods as methods_of_effects
from ldvae.programs.enrichment import methods as methods_of_enrichment
from ldvae.programs.find import methods as methods_of_consensus
from ldvae.programs.labels import naming_columns
from ldvae.programs.projection import CELLS_JUDGED, with_identifiers
from ldvae.provenance import versions
from ldvae.rows import positions_in, spaced
from ldvae.steps.qc import TYPE_COLUMNS
from ldvae.steps.select import find, read_factors, read_programs

logger = logging.getLogger(__name__)

FEW_GENES = 1000  # measured: a panel, chosen for what differs between cells


def programs(*, results: Path, config: ProgramsConfig = ProgramsConfig()) -> None:
    """Average the chosen fits, rotate the shared directions to gene programs, and name and test them.

    Parameters
    ----------
    results
        Folder of the results of the dataset, such as results/kang.
    """
    if problems := same_columns({"replicate_key": config.replicate_key, "condition_key": config.condition_key}):
        raise InputError(problems[0])
    counts = layout.COUNTS.existing(results)
    obs, setup = read_obs(counts)
    require_columns(obs, named(config, "obs"))
    choice = layout.BEST.read(results)
    factors = read_factors(results, choice["runs"])
    if config.changed().keys() & RotationConfig.model_fields.keys():
        found = find(factors, choice["reproducible_rank"], choice["threshold"], config)
    else:  # select has found them with the default options
        found = read_programs(layout.CHOSEN_PROGRAMS.existing(results))
    for warning in found.warnings:
        logger.warning(warning)
    batch_key, labels_key = (str(setup.get(key, "")) for key in ("batch_key", "labels_key"))
    removed = removed_effects({"programs.condition_key": config.condition_key}, corrected_columns(setup))
    for warning in removed:
        logger.warning(warning)
    obs = obs.iloc[positions_in(counts, obs.index, found.scores.index, "cells")]
    technical = [*technical_columns(config.technical, obs), batch_key or "batch"]
    related = associations(found.scores, obs, variables=config.variables, technical=technical)
    libraries = [enrichment(found, read_gmt(Path(file)), Path(file).stem) for file in config.gene_sets]
    columns = ["program", "side", "term", "library", "overlap", "n_term", "odds_ratio", "p", "padj", "genes"]
    enriched = pd.concat(libraries, ignore_index=True) if libraries else pd.DataFrame(columns=columns)

    write_table(found.loadings, layout.LOADINGS.at(results), index="gene")
    write_table(found.weighted, layout.WEIGHTED.at(results), index="gene")
    write_table(found.scores, layout.SCORES.at(results), index="cell")
    write_table(long_table(found), layout.CONSENSUS.at(results))
    write_table(top_genes(found, config.n_top), layout.TOP_GENES.at(results))
    flags = technical_flags(
        found.scores,
        obs,
        found.table["share"],
        technical=technical,
        variables=config.variables,
        limit=config.technical_r,
    )
    all_genes = on_all_genes(found.scores, layout.FILTERED.existing(results))
    columns_of_types = {name for name in obs if str(name).lower().replace(".", "_") in TYPE_COLUMNS}
    naming = set(naming_columns(found, related, obs)) - {config.condition_key, config.replicate_key}
    typed = bool(labels_key or columns_of_types or naming)
    flags = with_doubt(flags, all_genes["gene"].nunique(), typed=typed)
    table = describe(found, related, enriched, obs=obs, technical=flags)
    write_table(table, layout.PROGRAMS.at(results), index="program")
    stability = found.cosines.rename_axis("run", axis=1).stack().rename("cosine").reset_index()
    write_table(stability, layout.STABILITY.at(results))
    write_table(related, layout.ASSOCIATIONS.at(results))
    write_table(enriched, layout.ENRICHMENT.at(results))
    means = by_donor(found, obs, config, labels_key)
    donor = config.replicate_key
    doubtful = doubtful_replicates(obs[donor], donor) if donor is not None and len(means) else []
    write_table(means, layout.DONOR_MEANS.at(results))
    compared = compare_conditions(means)
    left = not_compared(obs.loc[found.scores.index], compared, config, labels_key)
    for line in left:
        logger.warning(line)
    write_table(compared, layout.DONORS.at(results))
    write_gmt(gene_sets(found), layout.GMT.at(results))
    write_table(split_sides(found), layout.STARCAT.at(results), index="program")
    write_table(all_genes, layout.ALL_GENES.at(results))
    write_table(ranked_sets(all_genes, list(found.scores), config.gene_sets), layout.RANKED_SETS.at(results))
    model = frame(found, factors.mean, factors.theta)
    write_model(judged(model, counts, batch_key), layout.PROGRAMS_MODEL.at(results))
    write_json(
        {
            "rank": found.rank,
            "n_programs": found.scores.shape[1],
            "runs": choice["runs"],
            "outliers": choice["outliers"],
            "n_obs": len(found.scores),
            "intercept": found.intercept,
            "warnings": [*found.warnings, *removed, *doubtful],
            "left_out": left,
            "settings": config.model_dump(),
            "versions": versions(("ldvae", "numpy", "scipy")),
        },
        layout.PROGRAMS_SUMMARY.at(results),
    )


def technical_columns(names: list[str], obs: pd.DataFrame) -> list[str]:
    """Technical columns of obs; where the user's data have one of the name of the split, ours is meant."""
    own = [find_own(name, obs) for name in names]
    return list(dict.fromkeys([*own, *(name for name in names if name != "split")]))


def with_doubt(flags: pd.Series, n_measured: int, *, typed: bool) -> pd.Series:
    """Flags of programs; counts and their shares may be biology where few genes were measured or no types are known.

    Parameters
    ----------
    flags
        From `technical_flags`.
    n_measured
        Number of measured genes: the counts of a panel are those of the genes that it was chosen for.
    typed
        Whether cell types, or groups of cells that name programs, are known: those of large cells, or of cells with
        many ribosomes, explain such a program.

    Examples
    --------
    >>> with_doubt(pd.Series({"P1": "follows total_counts (r = 0.60)", "P2": ""}), 240, typed=True).tolist()
    ['follows total_counts (r = 0.60); of 240 measured genes, that may as well be biology', '']
    """
    counted = flags.str.contains("total_counts|n_genes_by_counts|pct_counts")
    if n_measured < FEW_GENES:
        flags = flags.where(~counted, flags + f"; of {n_measured:,} measured genes, that may as well be biology")
    elif not typed:
        flags = flags.where(~counted, flags + "; no cell types are known that tell whether that is biology")
    return flags


def by_donor(found: Programs, obs: pd.DataFrame, config: ProgramsConfig, labels_key: str) -> pd.DataFrame:
    """Mean scores of each donor; no rows where the config names no donors or no conditions."""
    if (config.replicate_key is None) != (config.condition_key is None):
        logger.warning("programs: replicate_key and condition_key go together; no comparison with one of them.")
    if config.replicate_key is None or config.condition_key is None:
        return donor_means(found.scores.iloc[:0], obs.assign(none=""), donor="none", condition="none")
    return donor_means(
        found.scores, obs, donor=config.replicate_key, condition=config.condition_key, cell_type=labels_key or None
    )


def not_compared(obs: pd.DataFrame, compared: pd.DataFrame, config: ProgramsConfig, labels_key: str) -> list[str]:
    """What the comparison of conditions leaves out, in sentences; none where nothing was compared."""
    if config.replicate_key is None or config.condition_key is None:
        return []
    return left_out(
        obs, compared, donor=config.replicate_key, condition=config.condition_key, cell_type=labels_key or None
    )


def read_obs(counts: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """What is known of the cells, and the columns that setup, or before it qc, was given, by their keys."""
    data = read_h5ad(counts, backed="r")
    keys = dict(data.uns.get("ldvae_setup", data.uns.get("ldvae_qc", {})))
    obs = data.obs.copy()
    data.file.close()
    return obs, keys


def on_all_genes(scores: pd.DataFrame, filtered: Path) -> pd.DataFrame:
    """Effects of the programs on every measured gene, modeled or not, strongest evidence first in each program.

    Parameters
    ----------
    scores
        Scores of the programs, shape (n_obs, n_programs), named by cell.
    filtered
        AnnData (h5ad) of `ldvae qc`: raw counts of all measured genes. Of more than 20,000 cells, every so-many-th is
        read.
    """
    measured = read_h5ad(filtered, backed="r")
    chosen = spaced(len(scores), MAX_CELLS)
    position = positions_in(filtered, measured.obs_names, scores.index[chosen], "cells")
    order = np.argsort(position)
    counts = sparse.csr_matrix(measured.X[position[order]])
    measured.file.close()
    totals = np.asarray(counts.sum(axis=1)).ravel()
    table = effects_on_all_genes(counts, list(measured.var_names), scores.iloc[chosen[order]], totals)
    by_evidence = table.assign(strength=-table["z"].abs()).sort_values(["program", "strength"], kind="stable")
    return by_evidence.drop(columns="strength")


def ranked_sets(all_genes: pd.DataFrame, names: list[str], files: list[str]) -> pd.DataFrame:
    """Gene sets by the effects on all measured genes, without a cutoff; no rows without gene sets."""
    z = all_genes.pivot(index="gene", columns="program", values="z")[names]
    parts = [ranked_enrichment(z, read_gmt(Path(file)), Path(file).stem) for file in files]
    return pd.concat(parts, ignore_index=True) if parts else ranked_enrichment(z, {}, "")


def write_gmt(sets: dict[str, list[str]], path: Path) -> None:
    """Write gene sets by name, the genes in the order given."""
    write_text("".join("\t".join([name, "ldvae", *genes]) + "\n" for name, genes in sets.items()), path)


def long_table(found: Programs) -> pd.DataFrame:
    """Every gene of every program: program, gene, loading, lower, upper, weighted."""
    tables = {"loading": found.loadings, "lower": found.lower, "upper": found.upper, "weighted": found.weighted}
    columns = {name: table.to_numpy().T.ravel() for name, table in tables.items()}
    names, genes = found.loadings.columns, found.loadings.index
    return pd.DataFrame({"program": np.repeat(names, len(genes)), "gene": np.tile(genes, len(names))} | columns)


def judged(model: Frame, counts: Path, batch_key: str) -> Frame:
    """The model with the identifiers of its genes, where there are any, and how well it explains its own cells."""
    data = read_h5ad(counts, backed="r")
    rows = spaced(data.n_obs, CELLS_JUDGED)
    x, var, obs = sparse.csr_matrix(data.X[rows]), data.var, data.obs.iloc[rows]
    data.file.close()
    batch = obs[batch_key].to_numpy() if batch_key in obs else None
    return calibrate(with_identifiers(model, var), x, list(var.index), batch=batch)


def write_model(model: Frame, path: Path) -> None:
    """Write what scoring other cells needs, as plain arrays."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **model._asdict())


def read_model(path: Path) -> Frame:
    """Read what `write_model` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return Frame(**file)


# What the methods section says


def methods(summary: dict[str, Any], n_programs: int, libraries: list[str]) -> Iterator[Sentence]:
    """What the methods used say of themselves, with the options that ran.

    Parameters
    ----------
    summary
        Contents of programs/summary.json.
    n_programs
        Number of programs.
    libraries
        Names of the gene sets that were tested.
    """
    settings = summary.get("settings", {})
    yield from methods_of_consensus(summary, n_programs)
    yield methods_of_effects()
    if settings.get("replicate_key") and settings.get("condition_key"):
        yield methods_of_donors(settings)
    yield from methods_of_enrichment(libraries)
