"""Rank-sum tests of counts: against scanpy, on known markers, and where there is nothing to test."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse, stats

from ldvae.markers import rank_sum_test


@pytest.fixture
def counts():
    rng = np.random.default_rng(0)
    values = rng.poisson(rng.gamma(1, 1, (1, 40)) * rng.gamma(4, 0.25, (90, 1)))
    values[:30, 3] += 4
    values[:, 7] = 0
    return sparse.csr_matrix(values.astype(np.float32))


def test_p_values_agree_with_scanpy_with_ties_corrected(counts):
    import scanpy

    genes = [f"g{i}" for i in range(40)]
    table = rank_sum_test(counts, genes, np.arange(30), np.arange(30, 90))
    obs = pd.DataFrame({"group": pd.Categorical(["a"] * 30 + ["b"] * 60)}, index=[f"c{i}" for i in range(90)])
    adata = AnnData(counts.copy(), obs=obs, var=pd.DataFrame(index=genes))
    scanpy.pp.normalize_total(adata, target_sum=1e4)
    scanpy.pp.log1p(adata)
    with np.errstate(invalid="ignore"):  # scanpy divides by zero for the gene without counts
        scanpy.tl.rank_genes_groups(adata, "group", reference="b", method="wilcoxon", tie_correct=True)
    expected = scanpy.get.rank_genes_groups_df(adata, "a").set_index("names")["pvals"]
    tested = [gene for gene in genes if gene != "g7"]
    # scanpy ranks logarithms in float32, which makes or breaks single ties
    np.testing.assert_allclose(table.loc[tested, "wilcoxon_p"], expected[tested], rtol=0.02)
    assert table["wilcoxon_padj"].idxmin() == "g3"


def test_auc_is_the_share_of_pairs_that_group_one_wins(counts):
    one, two = np.arange(30), np.arange(30, 90)
    shares = counts.toarray() / counts.toarray().sum(axis=1, keepdims=True)
    pairs = shares[one, 3][:, None] - shares[two, 3][None]
    expected = (pairs > 0).mean() + 0.5 * (pairs == 0).mean()
    table = rank_sum_test(counts, [f"g{i}" for i in range(40)], one, two)
    assert table.loc["g3", "auc"] == pytest.approx(expected, abs=1e-6)
    assert table.loc["g3", "detected1"] == (counts.toarray()[one, 3] > 0).mean()


def test_p_values_below_those_that_float32_holds_are_told():
    values = np.zeros((400, 2), dtype=np.float32)
    values[:, 1] = np.arange(400) % 7 + 5
    values[:200, 0] = np.arange(200) % 11 + 1
    table = rank_sum_test(sparse.csr_matrix(values), ["marker", "other"], np.arange(200), np.arange(200, 400))
    shares = (values[:, 0] / values.sum(axis=1)).astype(np.float64)
    expected = stats.mannwhitneyu(shares[:200], shares[200:], method="asymptotic", use_continuity=False).pvalue
    assert 0 < expected < 1e-45
    np.testing.assert_allclose(table.loc["marker", "wilcoxon_p"], expected, rtol=1e-6)


def test_a_gene_without_counts_is_no_evidence(counts):
    row = rank_sum_test(counts, [f"g{i}" for i in range(40)], np.arange(30), np.arange(30, 90)).loc["g7"]
    assert (row["auc"], row["wilcoxon_p"], row["wilcoxon_padj"], row["log2fc"]) == (0.5, 1.0, 1.0, 0.0)


def test_cells_without_any_count_leave_everything_finite():
    table = rank_sum_test(sparse.csr_matrix((6, 2), dtype=np.float32), ["a", "b"], np.arange(3), np.arange(3, 6))
    assert np.isfinite(table.to_numpy()).all()
