"""Differential expression: which cells, which samples, which conclusions. Equality with the reference: test_parity."""

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData, read_h5ad
from scipy import sparse, stats

from ldvae import InputError, LinearSCVI, posterior
from ldvae.arguments import codes_of
from ldvae.differential import (
    CountStatistics,
    DeOptions,
    Scales,
    batches_of,
    compare,
    comparisons,
    credible_interval,
    estimate_delta,
    log_fold_change,
    log_fold_changes,
    pairs,
    sample_scales,
)


@pytest.fixture
def model(reference, reference_adata) -> LinearSCVI:
    return LinearSCVI.load(reference / "nb", reference_adata)


@pytest.fixture
def obs() -> pd.DataFrame:
    return pd.DataFrame(
        {"kind": pd.Categorical(list("aabbc"), categories=list("abcd")), "n": [1, 2, 3, 4, 5]}, index=list("vwxyz")
    )


@pytest.fixture(scope="module")
def scales() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    draws = [rng.gamma(2.0, 1e-3, size=(150, 300)).astype(np.float32) for _ in range(2)]
    draws[0][:10] *= 4
    draws[1][10:20] *= 4
    return draws[0], draws[1]


# ---------------------------------------------------------------- which cells


def test_each_group_is_compared_with_the_rest(obs):
    made = comparisons(obs, "kind")
    assert [pair.name for pair in made] == ["a vs Rest", "b vs Rest", "c vs Rest"]  # d has no cells
    np.testing.assert_array_equal(made[1].rows1, [2, 3])
    np.testing.assert_array_equal(made[1].rows2, [0, 1, 4])


def test_named_groups_are_compared_with_each_other(obs):
    (pair,) = comparisons(obs, "kind", "a", "c")
    assert (pair.name, list(pair.rows1), list(pair.rows2)) == ("a vs c", [0, 1], [4])
    assert [pair.name for pair in comparisons(obs, "kind", ["c", "b"])] == ["c vs Rest", "b vs Rest"]


@pytest.mark.parametrize("idx1", [[0, 1], [True, True, False, False, False], np.array([0, 1]), "n < 3", [-5, -4]])
def test_cells_can_be_given_by_rows_mask_or_query(obs, idx1):
    (pair,) = comparisons(obs, idx1=idx1)
    np.testing.assert_array_equal(pair.rows1, [0, 1])
    np.testing.assert_array_equal(pair.rows2, [2, 3, 4])
    with pytest.warns(UserWarning, match="idx1 and idx2 share 1 cell;"):
        (pair,) = comparisons(obs, idx1=idx1, idx2="n == 2 or n == 5")
    assert (list(pair.rows1), list(pair.rows2)) == ([0], [1, 4])  # a cell in both belongs to group 2
    assert pair.group1 is None


def test_a_group_is_not_compared_with_itself(obs):
    assert [pair.name for pair in comparisons(obs, "kind", group2="b")] == ["a vs b", "c vs b"]


def test_options_of_importance_without_it_are_refused():
    with pytest.raises(InputError, match=r"importance_weighting_kwargs \(max_cells\) have no effect"):
        DeOptions(importance={"max_cells": 5})


def test_a_subset_limits_the_groups_and_leaves_the_others_in_the_rest(obs):
    (pair,) = comparisons(obs, "kind", "b", subset_idx="n > 3")
    assert (list(pair.rows1), list(pair.rows2)) == ([3], [0, 1, 2, 4])
    (pair,) = comparisons(obs, "kind", "b", "c", subset_idx=[2, 4])
    assert (list(pair.rows1), list(pair.rows2)) == ([2], [4])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give groupby"),
        ({"groupby": "type"}, "type not found in adata.obs. Its columns are: kind, n"),
        ({"groupby": "kind", "group1": "z"}, "Group 'z' of .* has no cells; there are a, b, c"),
        ({"groupby": "kind", "group1": "a", "group2": "d"}, "Group 'd' of .* has no cells"),
        ({"idx1": []}, "idx1 selects none of the 5 cells"),
        ({"idx1": [0, 1], "idx2": [1, 0]}, r"idx1 and idx2 select the same cells \(2\); give two groups that differ"),
        ({"idx1": [0, 3], "idx2": [0], "subset_idx": [0, 1]}, r"select the same cells within subset_idx \(1\)"),
        ({"idx1": [0], "idx2": [0, 1]}, r"Every cell of idx1 \(1\) is in idx2 too"),
        ({"idx1": "n > 0"}, "idx1 selects all 5 cells; there is none left to compare them with. Give idx2"),
        ({"groupby": "kind", "group1": "a", "group2": "a"}, r"group1 and group2 are both 'a' of obs\['kind'\]"),
        ({"idx1": [9]}, "idx1 names row 9, but there are 5 cells"),
        ({"idx1": [True]}, "idx1 is a mask of 1 cell, but there are 5"),
    ],
)
def test_groups_that_do_not_exist_are_named(obs, arguments, message):
    with pytest.raises(InputError, match=message):
        comparisons(obs, **arguments)


def test_nothing_of_two_ways_to_name_the_cells_is_dropped_without_a_word(obs):
    with pytest.raises(InputError, match="idx2 is given without idx1"):
        comparisons(obs, "kind", "b", idx2=[0, 1])
    with pytest.warns(UserWarning, match=r"groupby, group1 and group2 \(kind, b\) are not used"):
        comparisons(obs, "kind", "b", idx1=[0, 1])
    (inside,) = comparisons(obs, idx1=[0, 1], subset_idx=[1, 2])
    assert inside.rows1.tolist() == [1]
    assert len(inside.rows2) == len(obs) - 1
    with pytest.raises(InputError, match=r"idx1 selects none of the .* cells within subset_idx"):
        comparisons(obs, idx1=[0], subset_idx=[1, 2])


def test_a_single_group_is_refused(obs):
    with pytest.raises(InputError, match="Only a single group"):
        comparisons(obs.assign(kind="a"), "kind")


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "foo"}, "mode 'foo' not recognized; it must be one of vanilla, change"),
        ({"test_mode": "one"}, "test_mode 'one' not recognized"),
        ({"weights": "none"}, "weights 'none' not recognized"),
        ({"batchid1": ["d1"]}, "Inconsistent batch policy"),
        ({"n_samples_overall": 1}, "must be at least 2"),
        ({"change_fn": "ratio"}, "change_fn 'ratio' not understood"),
        ({"change_fn": lambda a, b: a}, "change_fn should take exactly 3 parameters"),
        ({"m1_domain_fn": lambda a, b: a}, r"m1_domain_fn should take exactly 1 parameter\."),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        DeOptions(**options)


def test_unknown_options_are_refused(model):
    with pytest.raises(TypeError, match="n_sample_overall"):
        model.differential_expression(groupby="label", n_sample_overall=10)


# ---------------------------------------------------------------- which samples


def test_samples_have_the_distribution_of_the_groups_expression(model):
    rows = np.arange(30)
    cells = posterior.encode(model.module, model.source, np.arange(len(model.source)))
    generator = torch.Generator().manual_seed(0)
    drawn = sample_scales(model.module, cells, None, rows, [None], DeOptions(n_samples_overall=6000), generator)
    assert drawn.scale.shape == (60, 6000)
    expected = model.get_normalized_expression(indices=rows, n_samples=200, return_mean=False).reshape(-1, 60)
    np.testing.assert_allclose(drawn.scale.mean(axis=1), expected.mean(axis=0), rtol=0.1)
    np.testing.assert_allclose(drawn.scale.std(axis=1), expected.std(axis=0), rtol=0.25)


def test_batches_share_the_samples_and_never_differ_in_total(model):
    """The reference gives 5,000 samples of one batch and 4,998 of three, and fails."""
    cells = posterior.encode(model.module, model.source, np.arange(len(model.source)))
    options = DeOptions(n_samples_overall=500, batch_correction=True)
    drawn = [
        sample_scales(model.module, cells, None, np.arange(20), batches, options, torch.Generator())
        for batches in ([0], [0, 1, 2])
    ]
    assert [of.scale.shape for of in drawn] == [(60, 500), (60, 500)]
    assert np.bincount(drawn[1].batch).tolist() == [167, 167, 166]
    table = model.differential_expression(
        groupby="label", mode="change", batch_correction=True, batchid1=["d1"], batchid2=["d2", "d3"]
    )
    assert len(table) == 120


def test_few_samples_for_many_batches_are_a_warning(model):
    with pytest.warns(UserWarning, match="very small sample size"):
        model.differential_expression(groupby="label", group1="B cell", batch_correction=True, n_samples_overall=4)


def test_pairs_stay_within_their_batch():
    rng = np.random.default_rng(0)
    batches = np.repeat([0, 2, 5], [40, 30, 30])
    shuffled = np.repeat([0, 2, 5], [30, 40, 30])
    options = DeOptions(use_permutation=True, m_permutation=300)
    one, two = pairs(batches, shuffled, options, rng)
    assert len(one) == len(two) == 300
    np.testing.assert_array_equal(batches[one], shuffled[two])
    assert len(np.unique(one)) > 80


def test_overlapping_batches_are_a_warning_and_disjoint_ones_are_not():
    rng = np.random.default_rng(0)
    one, two = pairs(np.zeros(10), np.ones(8), DeOptions(), rng)
    assert (one, two) == (slice(8), slice(8))
    with pytest.warns(UserWarning, match="overlap in part"):
        pairs(np.array([0, 0, 1]), np.array([1, 1, 2]), DeOptions(), rng)


def test_unknown_batches_are_refused(model):
    with pytest.raises(InputError, match="'d9' is not a valid batch category; there are d1, d2, d3"):
        model.differential_expression(groupby="label", batch_correction=True, batchid1=["d9"])


def test_a_number_given_as_text_is_told_as_such(obs):
    obs["number"] = [0, 0, 1, 1, 2]
    with pytest.raises(InputError, match=r"Group '1' .* are 0, 1, 2. Found '1' \(text\); there is 1 \(a number\)"):
        comparisons(obs, "number", "1")
    with pytest.raises(InputError, match=r"\"2\" not a valid .* 0, 1, 2. Found '2' \(text\); there is 2 \(a number\)"):
        codes_of("2", (0, 1, 2))
    with pytest.raises(InputError, match=r"Found 1 \(a number\); there is '1' \(text\)"):
        batches_of([1], ["0", "1"], DeOptions(batch_correction=True))
    obs["number"] = [0, 0, 1, 1, np.nan]
    with pytest.raises(InputError, match=r"Found '1' \(text\); there is 1.0 \(a number\)"):
        comparisons(obs, "number", "1")


# ---------------------------------------------------------------- which conclusions


def test_the_fast_path_is_the_formula(scales):
    """Shares and distribution of the change, block by block, against the definition on whole arrays."""
    pseudocounts, delta = 1e-4, 0.3
    up, down, described = log_fold_changes(*scales, pseudocounts, delta, [0.5])
    change = log_fold_change(*scales, pseudocounts)
    np.testing.assert_array_equal(up, (change >= delta).mean(axis=1))
    np.testing.assert_array_equal(down, (change < -delta).mean(axis=1))
    change = log_fold_change(*scales, 1e-3 * pseudocounts)
    for name in ("mean", "median", "std", "min", "max"):
        np.testing.assert_allclose(described[name], getattr(np, name)(change, axis=1), rtol=1e-9, atol=1e-12)
    assert list(described)[5:] == ["confidence_interval_0.5_min", "confidence_interval_0.5_max"]


def test_changes_are_found_in_both_directions(scales):
    columns = compare(*scales, DeOptions(mode="change", pseudocounts=1e-5, delta=0.25))
    assert (columns["lfc_median"][:10] > 1).all()
    assert (columns["lfc_median"][10:20] < -1).all()
    assert columns["proba_de"][:20].min() > columns["proba_de"][20:].max()
    either = compare(*scales, DeOptions(mode="change", pseudocounts=1e-5, test_mode="two"))
    assert (either["proba_de"] >= columns["proba_de"]).all()


def test_vanilla_counts_pairs(scales):
    columns = compare(*scales, DeOptions())
    np.testing.assert_allclose(columns["proba_m1"], (scales[0] > scales[1]).mean(axis=1))
    expected = np.log(columns["proba_m1"] + 1e-8) - np.log(1 - columns["proba_m1"] + 1e-8)
    np.testing.assert_allclose(columns["bayes_factor"], expected)


def test_the_delta_reported_is_the_delta_used(scales):
    columns = compare(*scales, DeOptions(mode="change", delta=None, pseudocounts=1e-5))
    change = log_fold_change(*scales, 1e-5)
    assert columns["delta"] == estimate_delta(change.mean(axis=1)) > 0.1
    up, down = (change >= columns["delta"]).mean(axis=1), (change < -columns["delta"]).mean(axis=1)
    np.testing.assert_array_equal(columns["proba_de"], np.maximum(up, down))


def test_own_functions_of_change_and_domain_are_used(scales):
    def difference(one, two, pseudocounts):
        return one - two

    masks = compare(
        *scales,
        DeOptions(
            mode="change", pseudocounts=1e-5, change_fn=difference, m1_domain_fn=lambda r: (r > 0.001, r < -0.001)
        ),
    )
    change = scales[0] - scales[1]
    expected = np.maximum((change > 0.001).mean(axis=1), (change < -0.001).mean(axis=1))
    np.testing.assert_array_equal(masks["proba_de"], expected)
    np.testing.assert_allclose(masks["lfc_mean"], change.mean(axis=1), rtol=1e-5)
    one = compare(*scales, DeOptions(mode="change", pseudocounts=1e-5, m1_domain_fn=lambda r: np.abs(r) > 1))
    change = log_fold_change(*scales, 1e-5)
    np.testing.assert_array_equal(one["proba_de"], (np.abs(change) > 1).mean(axis=1))


def test_the_pseudocount_comes_from_the_silent_genes(scales):
    silent = np.zeros(150, dtype=bool)
    silent[30:40] = True
    none = np.zeros_like(silent)
    columns = compare(*scales, DeOptions(mode="change"), silent, none)
    expected = np.quantile(scales[0][30:40].max(axis=1), 0.9) / 150
    assert columns["pseudocounts"] == pytest.approx(expected, rel=1e-6)
    assert compare(*scales, DeOptions(mode="change"), none, none)["pseudocounts"] == 1e-10


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_the_credible_interval_of_a_normal_is_the_central_one(level):
    samples = np.sort(np.random.default_rng(0).normal(size=(3, 100_000)), axis=1)
    low, high = credible_interval(samples, level)
    np.testing.assert_allclose(high, stats.norm.ppf(0.5 + level / 2), atol=0.06)
    np.testing.assert_allclose(low, -high, atol=0.12)
    inside = ((samples >= low[:, None]) & (samples <= high[:, None])).mean(axis=1)
    np.testing.assert_allclose(inside, level, atol=1e-4)
    with pytest.raises(InputError, match="level 1 does not exist"):
        credible_interval(samples, 1)


# ---------------------------------------------------------------- the table


def test_the_table_is_the_same_for_the_same_seed_and_touches_nothing(model, reference_adata):
    columns, keys = list(reference_adata.obs.columns), set(reference_adata.uns)
    table = model.differential_expression(groupby="label", mode="change", seed=4, n_samples_overall=200)
    again = model.differential_expression(groupby="label", mode="change", seed=4, n_samples_overall=200)
    pd.testing.assert_frame_equal(table, again)
    with pytest.raises(InputError):
        model.differential_expression(groupby="label", group1="no such cell")
    assert list(reference_adata.obs.columns) == columns
    assert set(reference_adata.uns) == keys


def test_statistics_are_those_of_the_counts(model, reference_adata):
    table = model.differential_expression(groupby="label", group1="B cell", n_samples_overall=20)
    table = table.loc[list(reference_adata.var_names)]
    x = reference_adata.X.toarray()
    inside = (reference_adata.obs["label"] == "B cell").to_numpy()
    normalized = 1e4 * x / x.sum(axis=1, keepdims=True)
    for group, cells in ((1, inside), (2, ~inside)):
        np.testing.assert_allclose(table[f"raw_mean{group}"], x[cells].mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(table[f"non_zeros_proportion{group}"], (x[cells] > 0).mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(table[f"raw_normalized_mean{group}"], normalized[cells].mean(axis=0), rtol=1e-5)
    without = model.differential_expression(groupby="label", group1="B cell", n_samples_overall=20, all_stats=False)
    assert not any(name.startswith(("raw", "non_zeros")) for name in without)


def test_statistics_follow_the_data_when_they_change(model, reference_adata):
    """The reference keeps the totals of its first call in obs and uses them for ever after."""
    model.differential_expression(groupby="label", n_samples_overall=20)
    doubled = reference_adata.copy()
    doubled.X = doubled.X * 2
    first, second = (
        model.differential_expression(adata, groupby="label", n_samples_overall=20, group1="B cell")
        for adata in (reference_adata, doubled)
    )
    np.testing.assert_allclose(
        second["raw_normalized_mean1"].sort_index(), first["raw_normalized_mean1"].sort_index(), rtol=1e-5
    )
    np.testing.assert_allclose(second["raw_mean1"].sort_index(), 2 * first["raw_mean1"].sort_index(), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:1 of 200 cells have no counts")
def test_a_cell_without_counts_adds_nothing_to_the_statistics(reference_adata):
    reference_adata.X = sparse.csr_matrix(sparse.diags([0.0] + [1.0] * 199, dtype=np.float32) @ reference_adata.X)
    LinearSCVI.setup_anndata(reference_adata)
    source = LinearSCVI(reference_adata, n_latent=2).source
    statistics = CountStatistics(source, [np.arange(10)])
    assert all(np.isfinite(sums).all() for sums in statistics.sums.values())


def test_outliers_are_left_out_of_the_samples_but_not_of_the_statistics(model):
    options = {"groupby": "label", "mode": "change", "n_samples_overall": 300, "group1": "B cell"}
    table = model.differential_expression(**options).sort_index()
    filtered = model.differential_expression(filter_outlier_cells=True, **options).sort_index()
    np.testing.assert_array_equal(filtered["raw_mean1"], table["raw_mean1"])
    assert not np.allclose(filtered["scale1"], table["scale1"], rtol=1e-3)


def test_a_group_too_small_for_outliers_is_used_whole(model):
    with pytest.warns(UserWarning, match="Could not properly estimate Cov"):
        model.differential_expression(idx1=[0], filter_outlier_cells=True, n_samples_overall=10)


def test_minified_data_are_compared_without_statistics(model):
    options = {"groupby": "label", "group1": "B cell", "mode": "change", "pseudocounts": 1e-4}
    table = model.differential_expression(**options).sort_index()
    model.minify_adata()
    with pytest.warns(UserWarning, match="Minified data have no counts"):
        minified = model.differential_expression(**options).sort_index()
    pd.testing.assert_frame_equal(minified, table[list(minified.columns)])
    assert list(minified.columns[-3:]) == ["comparison", "group1", "group2"]
    assert not any(name.startswith(("raw", "non_zeros")) for name in minified)


def test_memory_grows_with_samples_not_with_cells(model, monkeypatch):
    """However many cells a group has, only the samples are decoded."""
    decoded = []
    original = Scales.__new__

    def record(cls, scale, batch):
        decoded.append(scale.shape)
        return original(cls, scale, batch)

    monkeypatch.setattr(Scales, "__new__", record)
    model.differential_expression(groupby="label", n_samples_overall=30)
    assert decoded == [(60, 30)] * 4


def test_known_differences_are_found(reference, reference_adata: AnnData):
    """The simulated labels differ in genes 0 to 25; the rest is noise."""
    model = LinearSCVI.load(reference / "nb", reference_adata)
    table = model.differential_expression(groupby="label", group1="B cell", group2="T cell", mode="change")
    x = reference_adata.X.toarray()
    inside = (reference_adata.obs["label"] == "B cell").to_numpy()
    change = np.log2(x[inside].mean(axis=0) + 0.1) - np.log2(x[~inside].mean(axis=0) + 0.1)
    found = table["lfc_median"].loc[list(reference_adata.var_names)]
    expressed = x.mean(axis=0) > 0.3
    assert stats.spearmanr(found[expressed], change[expressed]).statistic > 0.8
    assert set(table.index[:5]) <= {f"gene{i:02d}" for i in range(26)}


def test_interferon_genes_lead_the_table_of_stimulated_against_control(shared_data):
    adata = read_h5ad(shared_data / "kang2018_stim_ctrl.h5ad")
    mean = np.asarray(adata.X.mean(axis=0)).ravel()
    variance = np.asarray(adata.X.power(2).mean(axis=0)).ravel() - mean**2
    adata = adata[:, np.sort(np.argsort(-variance / np.maximum(mean, 1e-3))[:500])].copy()
    LinearSCVI.setup_anndata(adata)
    model = LinearSCVI(adata, seed=0)
    model.train(15, plan_kwargs={"lr": 1e-2, "n_epochs_kl_warmup": 5}, enable_progress_bar=False)
    table = model.differential_expression(
        groupby="condition", group1="stim", group2="ctrl", mode="change", n_samples_overall=2000
    )
    assert {"ISG15", "IFIT1", "IFIT2", "RSAD2"} <= set(table.index[:10])
    assert (table.loc[["ISG15", "IFIT1", "IFIT2", "RSAD2"], "lfc_median"] > 1).all()
    assert table["is_de_fdr_0.05"].iloc[:10].all()
