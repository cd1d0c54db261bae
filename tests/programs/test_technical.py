"""Programs that follow the experiment beyond biology are flagged, and no others."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ldvae import programs as gp


def draw_experiment(rng, n_obs=2000):
    """Types of cells, T cells with more ribosomal RNA; lanes that copy the condition; depth; one doublet."""
    obs = pd.DataFrame(index=[f"c{i}" for i in range(n_obs)])
    kind = rng.integers(4, size=n_obs)
    obs["cell_type"] = np.array(["B", "T", "NK", "mono"])[kind]
    stim = rng.random(n_obs) < 0.5
    obs["condition"] = np.where(stim, "stim", "ctrl")
    obs["lane"] = np.where(stim, "lane2", "lane1")
    obs["total_counts"] = rng.lognormal(8, 0.4, n_obs)
    obs["n_counts"] = obs["total_counts"] * rng.lognormal(0, 0.05, n_obs)
    obs["pct_counts_ribo"] = 20 + 10 * (kind == 1) + rng.normal(0, 3, n_obs)
    obs["predicted_doublet"] = np.arange(n_obs) < 1
    return obs, kind, stim


TECHNICAL = ["lane", "total_counts", "pct_counts_ribo", "predicted_doublet"]


def flags_of(scores, obs):
    table = pd.DataFrame({"P1": scores}, obs.index)
    return gp.technical_flags(table, obs, pd.Series({"P1": 0.1}), technical=TECHNICAL)["P1"]


@pytest.mark.thorough
def test_technical_programs_are_flagged_and_innocent_ones_are_not():
    rng = np.random.default_rng(400)
    found = {"depth": 0, "ribosomal": 0, "T cells": 0, "one doublet": 0, "activity": 0}
    n_draws = 30
    for _ in range(n_draws):
        obs, kind, _ = draw_experiment(rng)
        noise = rng.normal(size=len(obs))
        depth = stats.zscore(np.log(obs["total_counts"]))
        programs = {
            "depth": depth + 0.8 * noise,
            "ribosomal": stats.zscore(obs["pct_counts_ribo"] - 10 * (kind == 1)) + 0.8 * noise,
            "T cells": 3.0 * (kind == 1) + noise,  # follows the ribosomal share, because T cells do
            "one doublet": noise + 8 * obs["predicted_doublet"],
            "activity": noise + 2 * (rng.random(len(obs)) < 0.3) + 0.2 * depth,
        }
        for name, scores in programs.items():
            found[name] += flags_of(scores, obs) != ""
    assert found["depth"] > 0.9 * n_draws
    assert found["ribosomal"] > 0.9 * n_draws
    assert found["T cells"] + found["one doublet"] + found["activity"] < 0.05 * 3 * n_draws


def test_a_technical_column_that_copies_biology_cannot_be_told_from_it():
    rng = np.random.default_rng(0)
    obs, _, stim = draw_experiment(rng)
    flag = flags_of(3.0 * stim + rng.normal(size=len(obs)), obs)
    assert flag.startswith("follows lane = lane2 (AUC 0.9")
    assert flag.endswith("which cannot be told from condition")


def test_a_copy_of_a_technical_column_under_another_name_excuses_nothing():
    rng = np.random.default_rng(0)
    obs, _, _ = draw_experiment(rng)
    flag = flags_of(np.log(obs["total_counts"]), obs)
    assert flag == "follows total_counts (r = 1.00), which cannot be told from n_counts"


def test_a_program_that_is_low_in_doublets_is_not_technical():
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"predicted_doublet": rng.random(1000) < 0.3})
    scores = rng.normal(size=1000)
    assert flags_of(scores + 3.0 * obs["predicted_doublet"], obs).startswith("follows predicted_doublet = True")
    assert flags_of(scores - 3.0 * obs["predicted_doublet"], obs) == ""


def test_a_program_of_the_doublets_is_flagged_though_they_are_few():
    """Of a group of one cell in 25, ranks explain a tenth at most, however high its scores."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"predicted_doublet": rng.random(2000) < 0.04}, [f"c{i}" for i in range(2000)])
    score = 4 * obs["predicted_doublet"] + rng.normal(0, 0.3, 2000)
    scores = pd.DataFrame({"P1": score / score.std()}, obs.index)
    flags = gp.technical_flags(scores, obs, pd.Series({"P1": 0.1}), technical=["predicted_doublet"])
    assert "predicted_doublet = True" in flags["P1"]


def test_weak_programs_are_flagged_sooner_and_very_weak_ones_in_any_case():
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"total_counts": rng.lognormal(8, 0.4, 2000)}, [f"c{i}" for i in range(2000)])
    depth = stats.zscore(np.log(obs["total_counts"].to_numpy()))
    table = pd.DataFrame({name: 0.45 * depth + rng.normal(size=2000) for name in ("P1", "P2")}, obs.index)
    table["P3"] = rng.normal(size=2000)
    share = pd.Series({"P1": 0.3, "P2": 0.01, "P3": 0.003})
    flags = gp.technical_flags(table, obs, share, technical=["total_counts"])
    assert flags["P1"] == ""
    assert flags["P2"].startswith("weak, and follows total_counts (r = 0.")
    assert flags["P3"] == "very weak (0.3% of the contribution)"


def test_a_weak_program_follows_no_number_with_which_it_neither_rises_nor_falls():
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"pct_counts_ribo": rng.normal(25, 5, 2000)}, [f"c{i}" for i in range(2000)])
    middle = np.abs(obs["pct_counts_ribo"] - 25) < 3
    table = pd.DataFrame({"P1": stats.zscore(middle + rng.normal(0, 0.5, 2000))}, obs.index)
    assert gp.technical_flags(table, obs, pd.Series({"P1": 0.01}), technical=["pct_counts_ribo"])["P1"] == ""
    table["P1"] += 0.5 * stats.zscore(obs["pct_counts_ribo"])
    assert "r = 0.4" in gp.technical_flags(table, obs, pd.Series({"P1": 0.01}), technical=["pct_counts_ribo"])["P1"]
