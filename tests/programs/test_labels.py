"""Programs are named by what fits their scores and their genes."""

import dataclasses
import re

import numpy as np
import pandas as pd
from made_fits import cosines, weighted_truth

from ldvae import programs as gp
from ldvae import results as layout
from ldvae.io import read_table
from ldvae.programs.labels import naming_columns


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


def test_groups_in_which_a_program_is_low_do_not_name_it_because_one_small_group_lacks_it(mixed, found):
    """A program of T cells that dendritic cells lack was named after monocytes too, in which it is low."""
    turned = dataclasses.replace(found, scores=found.scores.assign(P1=-found.scores["P1"]))  # a quarter lacks it
    rank = turned.scores["P1"].rank(pct=True)
    kind = np.select([rank < 0.25, rank > 0.5], ["dendritic cells", "T cells"], "")
    kind = np.where(kind == "", np.where(np.arange(len(kind)) % 2 == 0, "NK cells", "monocytes"), kind)
    obs = pd.DataFrame({"kind": kind}, rank.index)
    related = gp.associations(turned.scores, obs)
    assert (related.set_index(["program", "level"]).loc["P1"]["auc"][["NK cells", "monocytes"]] < 0.5).all()
    label = gp.describe(turned, related, obs=obs).loc["P1", "label"]
    assert "NK cells" not in label
    assert "monocytes" not in label


def test_nearly_all_cells_name_nothing(mixed, found):
    above = dataclasses.replace(found, scores=found.scores.assign(P1=2 - found.scores["P1"]))  # all means above zero
    low = (above.scores["P1"].rank(pct=True) < 0.08).to_numpy()
    kind = np.where(low, "dendritic cells", np.where(np.arange(len(low)) % 2 == 0, "T cells", "B cells"))
    obs = pd.DataFrame({"kind": kind}, above.scores.index)
    related = gp.associations(above.scores, obs)
    assert (related.set_index(["program", "level"]).loc["P1"]["auc"].drop("dendritic cells") > 0.5).all()
    assert ": " not in gp.describe(above, related, obs=obs).loc["P1", "label"]


def test_columns_that_name_programs_are_known_but_no_pair_of_conditions(mixed, found):
    obs = pd.DataFrame({"louvain": mixed.true_scores.iloc[:, :5].idxmax(axis=1)}, found.scores.index)
    obs["treated"] = np.where(found.scores["P1"] > found.scores["P1"].quantile(0.7), "yes", "no")
    obs["cluster"] = pd.factorize(obs["louvain"])[0].astype(str)
    obs["shuffled"] = obs["louvain"].sample(frac=1, random_state=0).to_numpy()
    assert naming_columns(found, gp.associations(found.scores, obs), obs) == ["louvain"]


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
