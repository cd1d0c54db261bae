"""Associations, technical flags, enrichment and labels say what the data support."""

import numpy as np
import pandas as pd
import pytest
from made_fits import cosines, weighted_truth
from scipy import stats

from ldvae import programs as gp
from ldvae.errors import InputError


def test_associations_are_those_of_scipy(found):
    rng = np.random.default_rng(0)
    scores = found.scores
    obs = pd.DataFrame(index=scores.index)
    obs["group"] = pd.Categorical(np.where(scores["P1"] + rng.normal(size=len(obs)) > 0, "a", "b"))
    obs["counts"] = scores["P2"] + rng.normal(size=len(obs))
    obs.loc[obs.index[:50], "counts"] = np.nan
    obs["name"] = obs.index
    table = gp.associations(scores, obs.sample(frac=1, random_state=0), technical=["counts"])
    assert set(table["variable"]) == {"group", "counts"}
    row = table[(table["program"] == "P1") & (table["level"] == "a")].iloc[0]
    inside = obs["group"] == "a"
    test = stats.mannwhitneyu(scores["P1"][inside], scores["P1"][~inside], use_continuity=False, method="asymptotic")
    np.testing.assert_allclose(row["auc"], test.statistic / (inside.sum() * (~inside).sum()))
    np.testing.assert_allclose(row["p"], test.pvalue, rtol=1e-6)
    np.testing.assert_allclose(row["effect"], scores["P1"][inside].mean() - scores["P1"][~inside].mean())
    row = table[(table["program"] == "P2") & (table["variable"] == "counts")].iloc[0]
    test = stats.spearmanr(scores["P2"][50:], obs["counts"][50:])
    np.testing.assert_allclose([row["effect"], row["p"]], test, rtol=1e-6)
    assert row["technical"]
    np.testing.assert_allclose(row["explained"], test.statistic**2)
    row = table[(table["program"] == "P1") & (table["level"] == "a")].iloc[0]
    np.testing.assert_allclose(row["explained"], np.corrcoef(scores["P1"], inside)[0, 1] ** 2)
    np.testing.assert_allclose(table["padj"], stats.false_discovery_control(table["p"]))


def test_programs_that_follow_the_experiment_are_flagged_unless_biology_explains_them_better():
    table = pd.DataFrame(
        [
            ("P1", "total_counts", "continuous", "", 0.7, np.nan, True, 0.49),
            ("P1", "cell_type", "categorical", "B", 1.0, 0.7, False, 0.2),
            ("P2", "total_counts", "continuous", "", 0.7, np.nan, True, 0.49),
            ("P2", "cell_type", "categorical", "B", 1.0, 0.7, False, 0.8),
            ("P3", "batch", "categorical", "lane 1", 1.0, 0.65, True, 0.1),
            ("P4", "batch", "categorical", "lane 1", 1.0, 0.65, True, 0.1),
        ],
        columns=["program", "variable", "kind", "level", "effect", "auc", "technical", "explained"],
    )
    flags = gp.technical_flags(table, pd.Series({"P1": 0.5, "P2": 0.3, "P3": 0.1, "P4": 0.01, "P5": 0.003}))
    assert flags.tolist() == [
        "follows total_counts (r = 0.70)",
        "",
        "",
        "weak, and follows batch = lane 1 (AUC 0.65)",
        "very weak (0.3% of the contribution)",
    ]


def test_enrichment_is_fishers_exact_test(found):
    members = gp.gene_sets(found)["P1_positive"]
    genes = list(found.loadings.index)
    library = {"own": [*members[:10], *genes[:5], "UNKNOWN"], "none": [g for g in genes if g not in members][:20]}
    table = gp.enrichment(found, library, "mine")
    row = table[(table["program"] == "P1") & (table["side"] == "positive") & (table["term"] == "own")].iloc[0]
    inside = set(library["own"]) & set(genes)
    both = len(inside & set(members))
    cells = [[both, len(inside) - both], [len(members) - both, len(genes) - len(inside) - len(members) + both]]
    test = stats.fisher_exact(cells, alternative="greater")
    np.testing.assert_allclose([row["odds_ratio"], row["p"]], [test.statistic, test.pvalue])
    assert row["overlap"] == both
    assert row["n_term"] == len(inside)
    assert set(row["genes"].split(", ")) == inside & set(members)


def test_gene_sets_of_other_names_are_refused(found):
    with pytest.raises(InputError, match="none of its genes is among the 800 genes"):
        gp.enrichment(found, {"term": ["ENSG1"]}, "mine")


def test_a_program_is_named_after_its_level_and_genes(mixed, found):
    obs = pd.DataFrame({"identity": mixed.true_scores.iloc[:, :5].idxmax(axis=1)})
    obs.loc[mixed.true_scores.iloc[:, :5].sum(axis=1) == 0, "identity"] = "none"
    table = gp.describe(found, gp.associations(found.scores, obs))
    _, column = cosines(weighted_truth(mixed), found.weighted)
    row = table.iloc[column[2]]
    genes = found.weighted.iloc[:, column[2]].nlargest(3).index
    assert row["label"] == "identity_2: " + ", ".join(genes)
    assert row["best_association"].startswith("identity = identity_2 (AUC")
