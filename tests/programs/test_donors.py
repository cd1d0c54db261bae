"""Conditions are compared with donors as replicates: what donors share is found, what one donor has is not."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ldvae import programs as gp
from ldvae.programs.donors import left_out


def draw(rng, n_donors=8, n_cells=60, effect=0.0, paired=True):
    """Cells of donors that differ from each other more than chance; P1 changes with the condition."""
    rows, scores = [], []
    for donor in range(n_donors):
        own = rng.normal(0, 1.0)
        for condition in ("ctrl", "stim") if paired else (("ctrl", "stim")[donor % 2],):
            shift = own + rng.normal(0, 0.3) + effect * (condition == "stim")
            rows += [(f"D{donor}", condition, "B" if i % 2 else "T") for i in range(n_cells)]
            scores.append(shift + rng.normal(size=n_cells))
    index = [f"c{i}" for i in range(len(rows))]
    obs = pd.DataFrame(rows, index, ["donor", "condition", "cell_type"])
    return pd.DataFrame({"P1": np.concatenate(scores)}, index), obs


def compare(scores, obs, cell_type="cell_type"):
    return gp.compare_conditions(gp.donor_means(scores, obs, donor="donor", condition="condition", cell_type=cell_type))


def test_the_test_is_the_paired_t_of_the_means_of_the_donors():
    scores, obs = draw(np.random.default_rng(0), effect=1.0)
    row = compare(scores, obs, None).iloc[0]
    means = scores["P1"].groupby([obs["donor"], obs["condition"]]).mean().unstack()
    test = stats.ttest_rel(means["stim"], means["ctrl"])
    np.testing.assert_allclose([row["p"], row["effect"]], [test.pvalue, (means["stim"] - means["ctrl"]).mean()])
    np.testing.assert_allclose([row["lower"], row["upper"]], test.confidence_interval())
    assert row["paired"]
    assert row["n_donors"] == 8
    assert (row["condition"], row["reference"], row["cell_type"]) == ("stim", "ctrl", "all cells")


def test_donors_of_one_condition_each_are_compared_without_pairs():
    scores, obs = draw(np.random.default_rng(0), n_donors=10, effect=5.0, paired=False)
    row = compare(scores, obs, None).iloc[0]
    means = scores["P1"].groupby(obs["donor"]).mean()
    stim = obs.groupby("donor")["condition"].first() == "stim"
    np.testing.assert_allclose(row["p"], stats.ttest_ind(means[stim], means[~stim], equal_var=False).pvalue)
    assert not row["paired"]
    assert row["padj"] < 0.05


@pytest.mark.parametrize("paired", [True, False])
def test_without_an_effect_one_p_value_in_twenty_is_below_five_percent(paired):
    rng = np.random.default_rng(400)
    _, obs = draw(rng, paired=paired, n_cells=40)
    own, shift = rng.normal(size=(8, 400)), rng.normal(0, 0.3, (16, 400))
    donor = obs["donor"].str[1:].astype(int)
    group = 2 * donor + (obs["condition"] == "stim")
    scores = pd.DataFrame(own[donor] + shift[group] + rng.normal(size=(len(obs), 400)), obs.index).add_prefix("P")
    p = compare(scores, obs, None)["p"]
    assert len(p) == 400
    assert 0.02 < (p < 0.05).mean() < 0.08


def test_small_groups_and_too_few_donors_are_left_out():
    scores, obs = draw(np.random.default_rng(0), n_donors=2)
    assert compare(scores, obs).empty
    scores, obs = draw(np.random.default_rng(0), n_donors=4)
    obs.loc[(obs["donor"] == "D0") & (obs["cell_type"] == "B"), "cell_type"] = "T"
    kept = obs["donor"].ne("D1") | (np.arange(len(obs)) % 12 == 0)  # 5 cells of D1 in each condition
    table = compare(scores[kept], obs[kept]).set_index("cell_type")
    assert list(table.index) == ["T"]
    assert table.loc["T", "n_donors"] == 3


def test_all_programs_and_types_at_once_are_what_they_are_one_by_one():
    rng = np.random.default_rng(1)
    rows = [
        {"cell_type": kind, "condition": condition, "donor": donor, "n_cells": 20, "program": program}
        for program in ("P1", "P2", "P3")
        for kind in ("B", "T", "NK", "rare")
        for condition in ("a", "b", "c")
        for donor in ("D1", "D2", "D3", "D4", "D5")
    ]
    means = pd.DataFrame(rows).assign(mean=rng.normal(size=len(rows)), high=rng.random(len(rows)))
    keep = rng.random(len(means)) > 0.25  # not every donor has cells of every type in every condition
    keep &= ~((means["cell_type"] == "rare") & means["donor"].isin(["D1", "D2", "D3"])).to_numpy()
    means = means[keep | (means["cell_type"] == "B").to_numpy()].reset_index(drop=True)
    means.loc[(means["program"] == "P3") & (means["cell_type"] == "B"), "mean"] = 1.0  # nothing to test
    table = gp.compare_conditions(means)
    assert set(table["paired"]) == {True, False}
    assert "rare" not in set(table["cell_type"])
    for row in table.itertuples():
        own = means[(means["program"] == row.program) & (means["cell_type"] == row.cell_type)]
        sides = own.pivot(index="donor", columns="condition", values="mean")[[row.reference, row.condition]]
        both = sides.dropna()
        assert row.paired == (len(both) >= 3)
        first, second = (both if row.paired else sides).T.to_numpy()
        first, second = first[~np.isnan(first)], second[~np.isnan(second)]
        if row.program == "P3" and row.cell_type == "B":
            assert row.p == 1
            assert np.isnan([row.lower, row.upper]).all()
            continue
        test = stats.ttest_rel(second, first) if row.paired else stats.ttest_ind(second, first, equal_var=False)
        np.testing.assert_allclose([row.p, row.effect], [test.pvalue, second.mean() - first.mean()])
        np.testing.assert_allclose([row.lower, row.upper], test.confidence_interval())
        assert row.n_donors == (
            len(both) if row.paired else own[own["condition"].isin([row.condition, row.reference])]["donor"].nunique()
        )


def test_the_order_of_the_cells_and_unknown_donors_do_not_matter():
    scores, obs = draw(np.random.default_rng(0), effect=0.5)
    extra = pd.DataFrame({"P1": [50.0]}, ["unknown"])
    first = compare(scores, obs)
    means = gp.donor_means(scores, obs.sample(frac=1, random_state=0), donor="donor", condition="condition")
    again = gp.donor_means(pd.concat([scores, extra]), obs, donor="donor", condition="condition")
    pd.testing.assert_series_equal(means["mean"], again["mean"])
    assert set(first["cell_type"]) == {"B", "T"}


def test_cells_of_unknown_type_are_no_type():
    scores, obs = draw(np.random.default_rng(0), effect=0.5)
    unlabeled = obs.assign(cell_type=pd.Categorical(obs["cell_type"].replace("B", "unlabeled")))
    found, expected = compare(scores, unlabeled), compare(scores, obs)
    assert set(found["cell_type"]) == {"T"}
    columns = ["effect", "lower", "upper", "p"]
    pd.testing.assert_frame_equal(
        found[columns].reset_index(drop=True), expected.query("cell_type == 'T'")[columns].reset_index(drop=True)
    )


@pytest.mark.parametrize("as_categories", [False, True])
def test_cells_of_no_one_donor_are_no_donor(as_categories):
    """Kang's `doublet_or_unknown` stood as the ninth of eight donors."""
    scores, obs = draw(np.random.default_rng(0), effect=0.5)
    first = obs["donor"].unique()[0]
    named = obs.assign(donor=obs["donor"].astype(str).replace(str(first), "doublet_or_unknown"))
    missing = obs.assign(donor=obs["donor"].astype(object).where(obs["donor"] != first))
    if as_categories:
        named, missing = (table.astype({"donor": "category"}) for table in (named, missing))
    pd.testing.assert_frame_equal(compare(scores, named), compare(scores, missing))
    assert compare(scores, named)["n_donors"].max() < compare(scores, obs)["n_donors"].max()


def test_cell_types_conditions_and_donors_that_are_left_out_are_named():
    """Dendritic cells that had too few donors, and a donor without stimulated cells, were left out in silence."""
    keys = {"donor": "donor", "condition": "condition", "cell_type": "cell_type"}
    scores, obs = draw(np.random.default_rng(0), n_donors=6)
    assert left_out(obs, compare(scores, obs), **keys) == []
    stim = obs["condition"] == "stim"
    gone = (obs["donor"] == "D0") & stim
    few = (obs["donor"] == "D1") & stim & (np.arange(len(obs)) % 12 != 0)
    rare = (obs["cell_type"] == "B") & obs["donor"].isin(["D2", "D3", "D4"]) & stim
    kept = ~(gone | few | rare)
    table = compare(scores[kept], obs[kept])
    assert set(table["cell_type"]) == {"T"}
    assert left_out(obs[kept], table, **keys) == [
        "Programs were not compared in B: a test needs 3 donors with at least 10 cells in each condition.",
        "Donor D0 has no stim cells: paired tests leave it out.",
        "Donor D1 has fewer than 10 stim cells of any one type: paired tests leave it out.",
    ]
    third = obs[kept].assign(condition=obs[kept]["condition"].mask(obs[kept]["donor"] == "D5", "other"))
    told = left_out(third, compare(scores[kept], third), **keys)
    assert told[0].startswith(
        "Programs were not compared for other against ctrl and stim against other: a test needs 3"
    )
    assert left_out(obs, table.iloc[:0], **keys) == []


def test_donors_of_one_condition_each_are_not_left_out():
    scores, obs = draw(np.random.default_rng(0), n_donors=10, paired=False)
    assert left_out(obs, compare(scores, obs, None), donor="donor", condition="condition") == []


def test_a_donor_whose_cells_have_no_type_is_not_said_to_have_none():
    scores, obs = draw(np.random.default_rng(0), n_donors=5)
    obs.loc[(obs["donor"] == "D0") & (obs["condition"] == "stim"), "cell_type"] = "unknown"
    told = left_out(obs, compare(scores, obs), donor="donor", condition="condition", cell_type="cell_type")
    assert told == ["Donor D0 has fewer than 10 stim cells of any one type: paired tests leave it out."]
