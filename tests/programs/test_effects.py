"""Effects of programs on all measured genes: against statsmodels, on known effects, and where counts are few."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from ldvae.programs import effects_on_all_genes


@pytest.fixture
def simulated():
    rng = np.random.default_rng(1)
    scores = pd.DataFrame(rng.normal(size=(600, 2)), columns=["P1", "P2"])
    totals = rng.integers(500, 3000, 600).astype(float)
    true = np.array([[0.6, 0.0, -0.4, 0.0], [0.0, 0.3, 0.2, 0.0]])
    rate = totals[:, None] * 0.002 * np.exp(scores.to_numpy() @ true)
    counts = rng.poisson(rate)
    counts[:, 3] = 0
    counts[0, 3] = 2
    return sparse.csr_matrix(counts), ["up", "weak", "both", "rare"], scores, totals, true


def test_effects_and_errors_are_those_of_statsmodels(simulated):
    import statsmodels.api as sm

    counts, genes, scores, totals, _ = simulated
    table = effects_on_all_genes(counts, genes, scores, totals).set_index(["gene", "program"])
    design = sm.add_constant(scores)
    fit = sm.GLM(counts.toarray()[:, 2], design, family=sm.families.Poisson(), offset=np.log(totals)).fit()
    # the prior of unit variance moves an effect by some 1 / (600 cells x 3 counts)
    np.testing.assert_allclose(table.loc["both", "effect"], fit.params[["P1", "P2"]], atol=2e-3)
    dispersion = max(1.0, fit.pearson_chi2 / fit.df_resid)
    np.testing.assert_allclose(table.loc["both", "se"], fit.bse[["P1", "P2"]] * np.sqrt(dispersion), rtol=0.01)


def test_known_effects_are_found_within_their_errors(simulated):
    counts, genes, scores, totals, true = simulated
    table = effects_on_all_genes(counts, genes, scores, totals).set_index(["program", "gene"])
    for i, program in enumerate(scores):
        for j, gene in enumerate(genes[:3]):
            row = table.loc[(program, gene)]
            assert abs(row["effect"] - true[i, j]) < 4 * row["se"]


def test_a_gene_with_two_counts_in_one_cell_claims_nothing(simulated):
    counts, genes, scores, totals, _ = simulated
    rare = effects_on_all_genes(counts, genes, scores, totals).query("gene == 'rare'")
    assert np.isfinite(rare[["effect", "se", "z"]].to_numpy()).all()
    assert (rare["z"].abs() < 3).all()


def test_blocks_of_genes_do_not_change_the_result(simulated, monkeypatch):
    from ldvae.programs import effects

    counts, genes, scores, totals, _ = simulated
    whole = effects_on_all_genes(counts, genes, scores, totals)
    monkeypatch.setattr(effects, "BLOCK", 600)
    single = effects_on_all_genes(counts, genes, scores, totals)
    np.testing.assert_allclose(whole["effect"], single["effect"], atol=2e-3)
