"""Gene sets by Fisher's exact test and by ranks."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ldvae import programs as gp
from ldvae.errors import InputError


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
    with pytest.raises(InputError, match="own: names no gene"):
        gp.enrichment(found, {"empty": []}, "own")
    with pytest.raises(InputError, match="none of its genes is among the 800 genes"):
        gp.enrichment(found, {"term": ["ENSG1"]}, "mine")


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
