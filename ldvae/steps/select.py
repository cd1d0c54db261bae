"""Choice of a setting of the sweep and of its fits, from the metrics and factors of the runs."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ldvae import pl
from ldvae import results as layout
from ldvae.config import RotationConfig, SelectConfig
from ldvae.errors import InputError, listed, suggestion
from ldvae.io import atomic, write_json, write_table
from ldvae.methods import Sentence
from ldvae.pl.choice import Selection
from ldvae.pl.style import styled
from ldvae.programs import Programs, find_programs, gauge, information, outliers, reproducible_rank

logger = logging.getLogger(__name__)

# Settings whose held-out ELBO is within this share of the best, or within one standard error, fit equally well, and the
# programs decide. On 3,853 cells 10 factors were better than 14 by 0.3 % and lost two programs that 14 reproduce.
ELBO_TOLERANCE = 0.005

METRICS = [
    "elbo_train",
    "elbo_validation",
    "elbo_test",
    "elbo_fitted",
    "elbo_fitted_se",
    "reconstruction_test",
    "marginal_ll_test",
    "collapsed",
    "epochs",
    "stopped_early",
    "wall_s",
    "cells_per_s",
    "peak_memory_mb",
    "device",
]


class Factors(NamedTuple):
    """Factors of the fits of one setting, all of the same cells and genes."""

    scores: list[np.ndarray]  # one per fit, (n_obs, n_latent)
    loadings: list[np.ndarray]  # one per fit, (n_vars, n_latent)
    theta: np.ndarray  # (n_fits, n_vars)
    mean: np.ndarray  # mean count of each gene in a cell, (n_vars,)
    cells: list[str]
    genes: list[str]
    runs: list[str]


def select(*, results: Path, runs: list[str] | None = None, config: SelectConfig = SelectConfig()) -> None:
    """Compare the settings of a sweep by held-out error and reproducible rank, and choose one.

    Parameters
    ----------
    results
        Folder of the results of the dataset, such as results/kang.
    runs
        Names of the runs to compare; not given: all that are in the folder.
    """
    names = runs or layout.runs_of(results)
    if not names:
        raise InputError(f"{results}: holds no finished run to compare; `ldvae train` makes one.")
    table = runs_table([layout.METRICS.read(results, run=name) for name in names])
    criterion = held_out(table)
    table["outlier"] = False
    for _, own in table.groupby("setting"):
        bad = outliers(own["elbo_fitted"], own["elbo_fitted_se"], mads=config.outlier_mads)
        table.loc[own.index, "outlier"] = bad

    rows, correlations, found = [], [], {}
    for setting, own in table.groupby("setting", sort=False):
        kept = own[~own["outlier"]]
        factors = read_factors(results, kept["run"].tolist())
        row, correlation, found[setting] = compare_fits(factors, config)
        rows.append(
            {"setting": setting, "n_latent": own["n_latent"].iloc[0], "n_runs": len(own)} | averages(kept) | row
        )
        correlations.append(correlation.reset_index().assign(setting=setting))
        logger.info(
            "%s: %d fits, %d left out, rank %s", setting, len(own), len(own) - len(kept), row["reproducible_rank"]
        )
    swept = [name for name in table.columns if name not in {"run", "seed", "n_latent", "outlier", *METRICS}]
    settings = pd.DataFrame(rows).merge(table[swept].drop_duplicates("setting"), on="setting")
    chosen, reason = choose(settings, criterion, config)
    settings.insert(settings.columns.get_loc("wall_s_mean") + 1, "chosen", settings["setting"] == chosen)

    own = table[table["setting"] == chosen]
    kept = own[~own["outlier"]]
    best = {
        "setting": chosen,
        "runs": kept["run"].tolist(),
        "outliers": own.loc[own["outlier"], "run"].tolist(),
        "run": kept.loc[kept["elbo_validation"].fillna(kept["elbo_train"]).idxmin(), "run"],
        "n_latent": int(own["n_latent"].iloc[0]),
        "reproducible_rank": settings.loc[settings["chosen"], "reproducible_rank"].iloc[0],
        "threshold": config.threshold,
        "rule": "by hand" if config.setting else config.rule,
        "reason": reason,
        "settings": config.model_dump(),
    }
    across = pd.concat(correlations, ignore_index=True)[["setting", "rank", "correlation", "lower", "upper"]]
    shared = found[chosen] or find(read_factors(results, best["runs"]), best["reproducible_rank"], config.threshold)
    write_programs(shared, layout.CHOSEN_PROGRAMS.at(results))
    write_table(table, layout.SELECT_RUNS.at(results))
    write_table(settings, layout.SETTINGS.at(results))
    write_table(across, layout.CORRELATIONS.at(results))
    draw_error(table, settings, criterion, layout.ERROR_FIGURE.at(results))
    chosen = settings[settings["chosen"]].iloc[0]
    kept = {"setting": chosen["setting"], "kept": chosen["reproducible_rank"], "threshold": config.threshold}
    with atomic(layout.CORRELATIONS_FIGURE.at(results)) as temporary:
        pl.rank(across, **kept, save=temporary)
    write_json(best, layout.BEST.at(results))
    logger.info("%s", reason)


def read_factors(results: Path, runs: Sequence[str]) -> Factors:
    """Read the factors of the runs of one setting."""
    files = [np.load(layout.FACTORS.existing(results, run=run), allow_pickle=False) for run in runs]
    first = files[0]
    for run, file in zip(runs, files, strict=True):
        for name in ("cells", "genes"):
            if not np.array_equal(file[name], first[name]):
                raise InputError(
                    f"{results}: the {name} of run {run} differ from those of {runs[0]}; "
                    "expected runs of the same counts. "
                    "Train them again from one counts.h5ad."
                )
    return Factors(
        scores=[file["scores"] for file in files],
        loadings=[file["loadings"] for file in files],
        theta=np.stack([file["theta"] for file in files]),
        mean=np.asarray(first["mean_expression"], float) * float(first["mean_total"]),
        cells=first["cells"].tolist(),
        genes=first["genes"].tolist(),
        runs=list(runs),
    )


def runs_table(metrics: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per run: its metrics, and the parameters in which the runs differ."""
    params = pd.DataFrame([run["params"] for run in metrics])
    differing = [name for name in params if name != "n_latent" and params[name].map(json.dumps).nunique() > 1]
    table = pd.DataFrame(
        [
            {"run": run["run"], "setting": run["setting"], "seed": run["seed"], "n_latent": run["params"]["n_latent"]}
            | {name: run.get(name) for name in METRICS}
            for run in metrics
        ]
    )
    if table["run"].duplicated().any():
        raise InputError(
            f"Run {table.loc[table['run'].duplicated(), 'run'].iloc[0]} is given twice; give each run once."
        )
    numbers = METRICS[: METRICS.index("collapsed")]
    table[numbers] = table[numbers].astype(float)
    table = pd.concat([table, params[differing]], axis=1)
    return table.sort_values(["n_latent", "setting", "seed"], ignore_index=True)


def held_out(table: pd.DataFrame) -> Selection:
    """The ELBO by which settings are compared: of the test cells, otherwise of validation or training cells."""
    return next(name for name in ("elbo_test", "elbo_validation", "elbo_train") if table[name].notna().all())


def averages(runs: pd.DataFrame) -> dict[str, float]:
    """Means over the runs of a setting, and standard errors of those means."""
    values: dict[str, float] = {}
    for name in ("elbo_test", "elbo_validation", "elbo_train", "marginal_ll_test", "reconstruction_test"):
        values[f"{name}_mean"] = runs[name].mean()
        values[f"{name}_se"] = runs[name].sem() if len(runs) > 1 else np.nan
    return values | {"collapsed_mean": runs["collapsed"].mean(), "wall_s_mean": runs["wall_s"].mean()}


def compare_fits(factors: Factors, config: SelectConfig) -> tuple[dict[str, Any], pd.DataFrame, Programs | None]:
    """Compare the fits of a setting: rank and stability, canonical correlations, and the programs if any reproduce."""
    weight = information(factors.mean, factors.theta)[:, None]
    weighted = [gauge(loadings, factors.mean) * weight for loadings in factors.loadings]
    reproducible = reproducible_rank(
        factors.scores, weighted, threshold=config.threshold, n_splits=config.n_splits, seed=config.seed
    )
    found = find(factors, reproducible.rank, config.threshold) if reproducible.rank else None
    stability = found.table["stability"] if found else pd.Series([np.nan])
    row = {
        "reproducible_rank": reproducible.rank,
        "stability_mean": stability.mean(),
        "stability_min": stability.min(),
    }
    return row, reproducible.correlations, found


def find(factors: Factors, rank: int | None, threshold: float, config: RotationConfig | None = None) -> Programs:
    """The programs that the fits of a setting share; rank and threshold as for `find_programs`."""
    return find_programs(
        factors.scores,
        factors.loadings,
        mean=factors.mean,
        theta=factors.theta,
        cells=factors.cells,
        genes=factors.genes,
        runs=factors.runs,
        config=config,
        rank=rank,
        threshold=threshold,
    )


def write_programs(found: Programs, path: Path) -> None:
    """Write programs as plain arrays, tables with the names of their rows and columns."""
    arrays: dict[str, np.ndarray] = {}
    for name, value in vars(found).items():
        if isinstance(value, pd.DataFrame):
            arrays[f"{name}.rows"] = np.asarray(value.index, dtype=str)
            arrays[f"{name}.rows_name"] = np.asarray(value.index.name or "")
            arrays[f"{name}.columns"] = np.asarray(value.columns, dtype=str)
            # Columns of several types each keep their own.
            value = value.to_numpy() if value.dtypes.nunique() < 2 else value.to_records(index=False)
        arrays[name] = np.asarray(value)
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_programs(path: Path) -> Programs:
    """Read what `write_programs` wrote."""
    values: dict[str, Any] = {}
    with np.load(path, allow_pickle=False) as file:
        for field in dataclasses.fields(Programs):
            if field.name not in file and field.default_factory is not dataclasses.MISSING:
                continue  # of an earlier version
            value = file[field.name]
            if f"{field.name}.rows" in file:
                rows = pd.Index(
                    file[f"{field.name}.rows"].tolist(), name=file[f"{field.name}.rows_name"].item() or None
                )
                columns = file[f"{field.name}.columns"].tolist()
                by_column = {name: value[name] for name in value.dtype.names or ()}
                values[field.name] = pd.DataFrame(by_column or value, rows, columns)
            else:
                values[field.name] = value if value.ndim == 2 else value.tolist()
    return Programs(**values)


def choose(settings: pd.DataFrame, criterion: Selection, config: SelectConfig) -> tuple[str, str]:
    """The chosen setting, and the reason in a sentence."""
    if config.setting is not None:
        if config.setting not in set(settings["setting"]):
            raise InputError(
                f"setting: {config.setting!r} is not in the sweep.{suggestion(config.setting, settings['setting'])} "
                "Name one of these, or leave the choice to the rule."
            )
        return config.setting, f"{config.setting} was named by hand."
    elbo, spread = settings[f"{criterion}_mean"], settings[f"{criterion}_se"].fillna(0)
    rank = settings["reproducible_rank"].astype(float).fillna(0)
    name = {"elbo_test": "held-out ELBO", "elbo_validation": "validation ELBO", "elbo_train": "training ELBO"}[
        criterion
    ]
    if len(settings) == 1:
        return settings["setting"].iloc[0], f"{settings['setting'].iloc[0]} is the only setting."
    keys = pd.DataFrame({"elbo": elbo, "rank": -rank, "n_latent": settings["n_latent"]})
    if config.rule == "elbo":
        best, why = elbo.idxmin(), f"it has the best {name}"
    elif config.rule == "marginal_ll":
        if settings["marginal_ll_test_mean"].isna().all():
            raise InputError(
                "select: rule marginal_ll needs test cells, and the runs have no marginal_ll_test. Set setup.test_size "
                "above 0, or choose another rule."
            )
        best, why = settings["marginal_ll_test_mean"].idxmax(), "it has the best marginal likelihood on held-out cells"
    elif config.rule == "rank":
        best = keys.sort_values(["rank", "n_latent", "elbo"]).index[0]
        why = "it has the largest reproducible rank, and of those that have it the fewest factors"
    else:
        first = elbo.idxmin()
        margin = max(spread[first], ELBO_TOLERANCE * abs(elbo[first]))
        close = keys[elbo <= elbo[first] + margin]
        best = close.sort_values(["rank", "n_latent", "elbo"]).index[0]
        why = (
            f"of the {len(close)} settings whose {name} is within {margin:.2f} nats of the best "
            f"({elbo[first]:.2f} nats), it has the largest reproducible rank, then the fewest factors"
        )
    chosen = settings["setting"][best]
    reproduced = f"{rank[best]:.0f} directions reproduce" if rank[best] else "with one fit, reproducibility is unknown"
    return chosen, f"{chosen} ({name} {elbo[best]:.2f} nats, {reproduced}): {why}."


@styled
def draw_error(runs: pd.DataFrame, settings: pd.DataFrame, criterion: Selection, path: Path) -> None:
    """Held-out error and stability of each setting, with every run, as users of cNMF know it."""
    figure = Figure(figsize=(max(4.5, 0.6 * len(settings) + 2), 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    pl.selection(settings, runs, quantity=criterion, ax=upper)
    upper.set_xlabel("")
    if settings["stability_mean"].notna().any():
        pl.selection(settings, quantity="stability", ax=lower)
    else:
        lower.set_visible(False)
    with atomic(path) as temporary:
        figure.savefig(temporary, metadata={"Date": None})


# What the methods section says


def methods(choice: dict[str, Any], n_settings: int, n_runs: int) -> Iterator[Sentence]:
    """How one setting was chosen and which runs were left out, from select/best.json."""
    if n_settings > 1:
        reason = str(choice["reason"]).strip()
        reason = reason[:1].upper() + reason[1:] + ("" if reason.endswith(".") else ".")
        yield Sentence(f"{n_settings} settings were compared over {n_runs} runs. {reason}")
    if choice.get("outliers"):
        mads = choice.get("settings", {}).get("outlier_mads")
        beyond = f" by more than {mads:g} median absolute deviations of their ELBO" if mads else ""
        yield Sentence(f"Runs that fitted worse than the others{beyond} were left out: {listed(choice['outliers'])}.")
