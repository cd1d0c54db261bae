"""Associations, technical flags, enrichment and labels say what the data support."""

import re

import numpy as np
import pandas as pd
import pytest
from made_fits import cosines, weighted_truth
from scipy import stats

from ldvae import programs as gp
from ldvae import results as layout
from ldvae.errors import InputError
from ldvae.io import read_table


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


def test_a_headline_is_given_once_needs_twenty_cells_and_high_genes_and_is_no_cluster_number(mixed, found):
    identity = mixed.true_scores.iloc[:, :5].idxmax(axis=1)
    obs = pd.DataFrame({"identity": identity}, found.scores.index)
    obs["cluster"] = pd.Categorical(pd.factorize(identity)[0].astype(str))
    top = found.scores["P1"].nlargest(4).index
    obs["rare"] = np.where(obs.index.isin(top), "four cells", "others")
    obs["program"] = np.where(found.scores["P1"] > found.scores["P1"].quantile(0.7), "high in P1", "low in P1")
    copied = found.scores.assign(P2=found.scores["P1"])
    related = gp.associations(copied, obs)
    table = gp.describe(found, related, obs=obs)
    headlines = table["label"].str.extract("^(.*): ")[0].dropna()
    assert headlines.is_unique
    assert not headlines.isin(["four cells", "0", "1", "2", "3", "4"]).any()
    # The scores of P2 are those of P1 here, but its genes are not high where P1 is.
    assert table.loc["P1", "label"].startswith("high in P1: ")
    assert ": " not in table.loc["P2", "label"]


def test_what_nothing_is_known_of_is_empty_text_and_is_read_as_such(found, tmp_path):
    """A page said "lowest in nan" of programs that are low in no known group."""
    table = gp.describe(found, gp.associations(found.scores, pd.DataFrame(index=found.scores.index)))
    table.to_csv(tmp_path / "programs.tsv", sep="\t", index_label="program")
    texts = table.columns[[isinstance(value, str) for value in table.iloc[0]]]
    assert "opposite_association" in texts
    assert set(texts) <= set(layout.PROGRAMS.text)
    again = read_table(tmp_path / "programs.tsv", index="program", text=layout.PROGRAMS.text)
    assert (again[["best_association", "opposite_association", "technical"]] == "").all(axis=None)


def test_groups_that_are_high_together_name_a_program_together(mixed, found):
    """The T cells of the demo were called regulatory T cells, after the one kind that is highest."""
    scores = found.scores["P1"]
    kind = np.where(np.arange(len(scores)) % 2 == 0, "a", "b").astype(object)
    kind[np.arange(len(scores)) % 9 == 0] = "c"
    low = scores <= scores.quantile(0.6)
    kind = np.where(low & (np.arange(len(scores)) % 3 == 0), "other", np.where(low, "others", kind))
    obs = pd.DataFrame({"kind": kind}, scores.index)
    labels = gp.describe(found, gp.associations(found.scores, obs), obs=obs)["label"]
    assert labels["P1"].split(": ")[0] in ("a, b and c", "b, a and c")


def test_a_group_too_small_to_name_a_program_lets_no_worse_one_do_it(mixed, found):
    """The demo's program of progenitors (13 cells) was called after naive T cells, the next best."""
    order = found.scores["P1"].sort_values(ascending=False).index
    for n_few, name in ((8, ""), (25, "few: ")):
        kind = pd.Series("rest", order)
        kind[order[:n_few]] = "few"
        kind[order[n_few : len(order) // 3 : 2]] = "worse"
        obs = kind.to_frame("kind")
        row = gp.describe(found, gp.associations(found.scores, obs), obs=obs).loc["P1"]
        assert ": " not in row["label"] if not name else row["label"].startswith(name)
    obs = pd.Series("rest", order).where(~order.isin(order[:15]), "few").to_frame("kind")
    obs["cluster"] = np.where(order.isin(order[:16]), "7", "8")
    row = gp.describe(found, gp.associations(found.scores, obs), obs=obs).loc["P1"]
    assert row["opposite_association"].startswith("kind = rest")
    low = gp.describe(found, gp.associations(-found.scores, obs), obs=obs).loc["P1"]
    assert low["opposite_association"].startswith("kind = few (AUC 0.00, 15 cells)")
    assert not low["best_association"].startswith("kind = few")  # it was said to follow what it is lowest in
    # Named rather than the cluster, which fits as well; and how few cells it is.
    assert re.fullmatch(r"kind = few \(AUC 1\.00, 15 cells\)", row["best_association"])


def test_a_better_group_is_not_replaced_by_a_gene_set(mixed, found):
    obs = pd.DataFrame({"identity": mixed.true_scores.iloc[:, :5].idxmax(axis=1)}, found.scores.index)
    related = gp.associations(found.scores, obs)
    named = gp.describe(found, related, obs=obs)["label"]
    program = named.index[named.str.startswith("identity_")][0]
    enriched = gp.enrichment(found, {"NAMED": list(gp.gene_sets(found)[f"{program}_positive"])}, "mine")
    assert gp.describe(found, related, enriched, obs=obs).loc[program, "label"] == named[program]
    assert gp.describe(found, related.iloc[:0], enriched).loc[program, "label"].startswith("NAMED: ")


def test_a_gene_set_without_the_strongest_genes_names_nothing(mixed, found):
    """Kang's heat shock program was called after interferon, of which it has five genes far down."""
    related = gp.associations(found.scores, pd.DataFrame(index=found.scores.index))
    members = gp.gene_sets(found)["P1_positive"]
    for start, named in ((0, True), (10, False)):
        enriched = gp.enrichment(found, {"NAMED": members[start : start + 20]}, "mine")
        assert gp.describe(found, related, enriched).loc["P1", "label"].startswith("NAMED: ") == named


def test_a_gene_set_names_the_program_that_has_most_of_it_and_no_other(mixed, found):
    """Kang's dendritic cells were called B_CELL for two of eight genes, when the B cells had a name already."""
    sets = gp.gene_sets(found)
    own, other = sets["P1_positive"][:8], sets["P2_positive"][:2]
    obs = pd.DataFrame({"high": np.where(found.scores["P1"] > found.scores["P1"].quantile(0.7), "yes", "no")})
    related = gp.associations(found.scores, obs.set_axis(found.scores.index))
    enriched = gp.enrichment(found, {"NAMED": [*own, *other]}, "mine")
    assert (enriched.set_index(["program", "side"]).loc[("P2", "positive"), "padj"] < 0.05).all()
    labels = gp.describe(found, related, enriched, obs=obs.set_axis(found.scores.index))["label"]
    assert not labels.str.startswith("NAMED").any()  # P1 is named by its cells
    assert gp.describe(found, related.iloc[:0], enriched)["label"].str.startswith("NAMED").to_dict()["P1"]
    others = [gene for gene in found.loadings.index if gene not in sets["P2_positive"]]
    few = gp.enrichment(found, {"NAMED": [*other, *others[:6]]}, "mine")  # two of eight
    assert not gp.describe(found, related.iloc[:0], few)["label"].str.startswith("NAMED").any()


def test_sets_by_ranks_are_the_linear_model_of_the_statistic_on_membership():
    rng = np.random.default_rng(0)
    genes = [f"G{i}" for i in range(200)]
    effects = pd.DataFrame(rng.normal(size=(200, 2)), genes, ["P1", "P2"])
    effects.iloc[:20, 0] += 1.5
    library = {"up": [*genes[:20], "NOT_MEASURED"], "random": genes[50:80], "tiny": genes[:3], "none": ["X", "Y"]}
    table = gp.ranked_enrichment(effects, library, "own").set_index(["program", "term"])
    assert set(table.index.get_level_values("term")) == {"up", "random"}, "sets of fewer than five genes are not tested"
    for (program, term), row in table.iterrows():
        fit = stats.linregress(np.isin(genes, library[term]).astype(float), effects[program])
        np.testing.assert_allclose([row["t"], row["p"]], [fit.slope / fit.stderr, fit.pvalue])
    assert table.loc[("P1", "up"), "n_term"] == 20
    assert table.loc[("P1", "up"), "padj"] < 1e-6 < table.loc[("P2", "up"), "padj"]
    assert gp.ranked_enrichment(effects, {}, "own").empty
