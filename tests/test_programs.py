"""Programs are found where they are, the same from whatever axes, and nothing is claimed that cannot be known."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, sparse, stats

from ldvae import programs as gp
from ldvae.config import ProgramsConfig
from ldvae.errors import InputError
from ldvae.simulate import simulate

N_VARS = 800


class Fits(NamedTuple):
    """Made-up fits that share the span of known programs, and the truth."""

    scores: list
    loadings: list
    mean: np.ndarray
    theta: np.ndarray  # (n_vars,)
    true_scores: pd.DataFrame
    true_loadings: pd.DataFrame

    @property
    def weighted(self):
        weight = gp.information(self.mean, self.theta)[:, None]
        return [gp.gauge(loadings, self.mean) * weight for loadings in self.loadings]

    def find(self, **options):
        return gp.find_programs(
            self.scores,
            self.loadings,
            mean=self.mean,
            theta=self.theta,
            cells=list(self.true_scores.index),
            genes=list(self.true_loadings.index),
            config=ProgramsConfig(**options),
        )


def make_fits(world="mixed", n_fits=4, n_extra=3, noise=0.1, n_obs=1200, seed=0):
    """Each fit: an arbitrary rotation of the true factors and of a few weak ones of its own."""
    made = simulate(world, n_obs=n_obs, n_vars=N_VARS, n_up=60, n_down=15, seed=seed)
    rng = np.random.default_rng(seed)
    truth, weights = made.scores.to_numpy(), made.loadings.to_numpy()
    if world == "additive":  # its shares of identities and activities, with effects on the log scale
        weights = 3 * simulate("gauss", n_obs=1, n_vars=N_VARS, n_up=60, n_down=15, seed=seed).loadings.to_numpy()
        weights = weights - weights @ made.scores.mean(axis=0).to_numpy()[:, None]
    scores, loadings = [], []
    for _ in range(n_fits):
        own_scores = rng.normal(size=(n_obs, n_extra))
        own_loadings = rng.normal(size=(N_VARS, n_extra)) * 0.02
        z, w = np.hstack([truth, own_scores]), np.hstack([weights, own_loadings])
        mix = rng.normal(size=(z.shape[1], z.shape[1]))
        z = (z + noise * rng.normal(size=z.shape)) @ mix
        w = (w + noise / 3 * rng.normal(size=w.shape)) @ np.linalg.inv(mix).T
        scores.append(z.astype(np.float32))
        loadings.append(w + rng.normal(size=(1, w.shape[1])))
    mean = made.mean_expression.to_numpy() * 2000
    names = made.loadings.index, made.loadings.columns
    return Fits(scores, loadings, mean, made.theta.to_numpy(), made.scores, pd.DataFrame(weights, *names))


@pytest.fixture(scope="module")
def mixed():
    return make_fits("mixed")


@pytest.fixture(scope="module")
def found(mixed):
    return mixed.find()


def cosines(first, second):
    """Signed cosines between the columns of two tables after the best assignment, and the columns of the second."""
    first, second = (np.asarray(table) / np.linalg.norm(table, axis=0) for table in (first, second))
    products = first.T @ second
    rows, columns = optimize.linear_sum_assignment(-np.abs(products))
    return products[rows, columns], columns


def weighted_truth(fits):
    weight = gp.information(fits.mean, fits.theta)
    return np.asarray(gp.gauge(fits.true_loadings.to_numpy(), fits.mean)) * weight[:, None]


# The steps of the method


def test_gauge_leaves_no_mean_and_ignores_constants():
    rng = np.random.default_rng(0)
    loadings, mean = rng.normal(size=(30, 4)), rng.gamma(1, size=30)
    fixed = gp.gauge(loadings, mean)
    np.testing.assert_allclose(mean @ fixed, 0, atol=1e-12)
    np.testing.assert_allclose(gp.gauge(loadings + rng.normal(size=(1, 4)), mean), fixed)


def test_gauge_keeps_the_names_of_a_table():
    table = pd.DataFrame([[1.0], [3.0]], index=["A", "B"], columns=["Z_0"])
    pd.testing.assert_frame_equal(gp.gauge(table, [1, 1]), table - 2)


@pytest.mark.parametrize(("mean", "theta"), [(0.3, 2.0), (5.0, 0.7), (5.0, np.inf)])
def test_information_is_the_variance_of_the_score_of_the_log_mean(mean, theta):
    x = np.arange(2000)
    if np.isinf(theta):
        probability, score = stats.poisson.pmf(x, mean), x - mean
    else:
        probability = stats.nbinom.pmf(x, theta, theta / (theta + mean))
        score = (x - mean) / (1 + mean / theta)
    np.testing.assert_allclose(gp.information([mean], [theta])[0] ** 2, (probability * score**2).sum(), rtol=1e-6)


def test_information_averages_the_dispersions_of_the_fits():
    np.testing.assert_allclose(gp.information([4.0], [[1.0], [np.inf]]), np.sqrt(4 / (1 + 4 * 0.5)))


def test_consensus_is_the_mean_of_the_contributions(mixed):
    whole = gp.consensus(mixed.scores, mixed.weighted)
    dense = np.mean(
        [(z - z.mean(axis=0, dtype=float)) @ w.T for z, w in zip(mixed.scores, mixed.weighted, strict=True)], axis=0
    )
    np.testing.assert_allclose(whole.scores @ whole.loadings.T, dense, atol=1e-4 * np.abs(dense).max())
    np.testing.assert_allclose(whole.scores.T @ whole.scores / len(dense), np.eye(whole.scores.shape[1]), atol=1e-6)
    values = np.linalg.svd(dense, compute_uv=False)[:8] / np.sqrt(len(dense))
    np.testing.assert_allclose(np.linalg.norm(whole.loadings, axis=0)[:8], values, rtol=1e-6)


def test_the_reproducible_rank_counts_what_the_fits_share_and_not_what_each_has_alone(mixed):
    result = gp.reproducible_rank(mixed.scores, mixed.weighted)
    assert result.rank == 8
    assert list(result.correlations.index) == list(range(1, 12))
    assert result.correlations["correlation"][9] < 0.7
    assert (result.correlations["lower"] <= result.correlations["upper"]).all()


def test_fits_of_nothing_in_common_have_rank_zero():
    rng = np.random.default_rng(0)
    scores = [rng.normal(size=(300, 3)) for _ in range(4)]
    loadings = [rng.normal(size=(100, 3)) for _ in range(4)]
    assert gp.reproducible_rank(scores, loadings).rank == 0


def test_on_the_scores_alone_the_rotation_is_quartimax_of_rows_divided_by_the_root_of_their_length():
    from statsmodels.multivariate.factor_rotation import rotate_factors

    rng = np.random.default_rng(0)
    whole = gp.consensus([rng.laplace(size=(500, 4))], [rng.normal(size=(50, 4))])
    ours = gp.rotate(whole, 4, intercept=False, balance=0, power=1)
    root = np.sqrt(np.linalg.norm(whole.scores, axis=1, keepdims=True))
    theirs, turn = rotate_factors(whole.scores / root, "quartimax")
    np.testing.assert_allclose(((ours.scores / root) ** 4).sum(), (theirs**4).sum(), rtol=1e-6)
    np.testing.assert_allclose(np.abs(cosines(ours.scores, whole.scores @ turn)[0]), 1, atol=1e-5)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_a_rotation_keeps_the_contribution(mixed, intercept, power):
    whole = gp.consensus(mixed.scores, mixed.weighted)
    turned = gp.rotate(whole, 8, intercept=intercept, power=power)
    kept = whole.scores[:, :8] @ whole.loadings[:, :8].T
    np.testing.assert_allclose(turned.scores @ turned.loadings.T, kept, atol=1e-8 * np.abs(kept).max())
    ones = np.ones((len(whole.scores), 1))
    np.testing.assert_allclose(np.hstack([ones, whole.scores[:, :8]]) @ turned.transform, turned.scores, atol=1e-8)
    for result in (gp.drop_baseline(turned), gp.orient(gp.drop_baseline(turned))):
        changed = result.scores @ result.loadings.T - kept
        np.testing.assert_allclose(changed - changed.mean(axis=0), 0, atol=1e-8 * np.abs(kept).max())


def test_oriented_programs_have_unit_variance_fall_in_size_and_do_not_depend_on_the_sign_given(mixed):
    turned = gp.rotate(gp.consensus(mixed.scores, mixed.weighted), 8)
    flip = np.where(np.arange(9) % 2, 1.0, -1.0)
    one = gp.orient(turned)
    other = gp.orient(gp.Rotation(turned.scores * flip, turned.loadings * flip, turned.transform * flip))
    np.testing.assert_allclose(one.scores.std(axis=0), 1, rtol=1e-6)
    assert (np.diff(np.linalg.norm(one.loadings, axis=0)) <= 0).all()
    np.testing.assert_array_equal(one.loadings, other.loadings)
    np.testing.assert_array_equal(one.scores, other.scores)


def test_the_heavy_side_of_the_loadings_is_positive_where_the_scores_say_nothing():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(1000, 1))
    loadings = np.r_[-np.ones(30), np.ones(10), np.zeros(60)][:, None]
    turned = gp.orient(gp.rotate(gp.consensus([scores], [loadings]), 1))
    assert (turned.loadings[:30] > 0).all()


def test_stability_is_the_regression_of_each_fit_on_the_consensus_scores(mixed):
    whole = gp.consensus(mixed.scores, mixed.weighted)
    turned = gp.orient(gp.drop_baseline(gp.rotate(whole, 8)))
    result = gp.stability(whole, turned, mixed.scores, mixed.weighted)
    design = np.hstack([np.ones((len(whole.scores), 1)), turned.scores])
    own = [
        np.linalg.lstsq(design, z @ w.T, rcond=None)[0][1:].T for z, w in zip(mixed.scores, mixed.weighted, strict=True)
    ]
    np.testing.assert_allclose(result.mean, np.mean(own, axis=0), atol=1e-5)
    np.testing.assert_allclose(result.mean, turned.loadings, atol=1e-8)
    interval = stats.ttest_1samp(own, 0, axis=0).confidence_interval()
    np.testing.assert_allclose(result.half_width, (interval.high - interval.low) / 2, atol=1e-4)
    expected = [[stats.pearsonr(o[:, k], turned.loadings[:, k])[0] for o in own] for k in range(turned.scores.shape[1])]
    np.testing.assert_allclose(result.cosines, expected, atol=0.05)


def test_only_fits_far_from_the_better_half_are_outliers():
    assert gp.outliers([420, 421, 420.5, 419.8, 480.0]).tolist() == [False] * 4 + [True]
    assert not gp.outliers([420, 421, 420.5, 419.8, 421.5]).any()
    assert not gp.outliers([420.0, 480.0]).any()
    assert not gp.outliers([420.0]).any()


# All of it


@pytest.mark.parametrize("world", ["mixed", "gauss", "additive"])
def test_programs_are_found_with_their_sign_and_number_where_raw_factors_are_not(world):
    fits = make_fits(world, seed=1)
    programs = fits.find()
    truth = weighted_truth(fits)
    cosine, column = cosines(truth, programs.weighted)
    assert programs.scores.shape[1] == 8
    assert cosine.mean() > 0.95
    assert cosine.min() > 0.9  # positive: the sign is right too
    r = [np.corrcoef(fits.true_scores.iloc[:, k], programs.scores.iloc[:, c])[0, 1] for k, c in enumerate(column)]
    assert min(r) > 0.9
    raw = [np.abs(cosines(truth, own)[0]).mean() for own in fits.weighted]
    assert max(raw) < 0.8


def test_effects_count_from_the_cells_without_a_program_only_where_there_are_such():
    assert not make_fits("mixed").find().intercept
    assert not make_fits("gauss").find().intercept
    assert make_fits("additive").find().intercept
    assert make_fits("mixed").find(baseline="mean").scores.shape[1] == 9


def changed(fits, rng):
    """The same fits with permuted, flipped, rotated, rescaled and shifted factors, in another order."""
    scores, loadings = [], []
    for z, w in zip(fits.scores, fits.loadings, strict=True):
        k = z.shape[1]
        turn = np.linalg.qr(rng.normal(size=(k, k)))[0] @ np.diag(rng.choice([-1, 1], k) * rng.uniform(0.2, 5, k))
        turn = turn[:, rng.permutation(k)]
        scores.append(z.astype(float) @ turn + rng.normal(size=k))
        loadings.append(w @ np.linalg.inv(turn).T + rng.normal(size=(1, k)))
    order = rng.permutation(len(scores))
    return fits._replace(scores=[scores[i] for i in order], loadings=[loadings[i] for i in order])


@pytest.mark.parametrize("world", ["mixed", "gauss", "additive"])
def test_programs_do_not_depend_on_the_axes_of_the_fits(world):
    fits = make_fits(world)
    programs, other = fits.find(), changed(fits, np.random.default_rng(5)).find()
    for name in ("loadings", "weighted", "scores", "lower", "upper"):
        first, second = getattr(programs, name), getattr(other, name)
        np.testing.assert_allclose(first, second, atol=1e-6 * np.abs(first).to_numpy().max(), err_msg=name)
    np.testing.assert_allclose(programs.table["stability"], other.table["stability"], atol=1e-6)


def test_programs_do_not_depend_on_the_order_of_cells_and_genes(mixed, found):
    rng = np.random.default_rng(0)
    cells, genes = rng.permutation(len(mixed.scores[0])), rng.permutation(len(mixed.mean))
    other = Fits(
        [z[cells] for z in mixed.scores],
        [w[genes] for w in mixed.loadings],
        mixed.mean[genes],
        mixed.theta[genes],
        mixed.true_scores.iloc[cells],
        mixed.true_loadings.iloc[genes],
    ).find()
    np.testing.assert_allclose(other.scores.loc[found.scores.index], found.scores, atol=1e-5)
    np.testing.assert_allclose(other.loadings.loc[found.loadings.index], found.loadings, atol=1e-5)


def test_intervals_hold_the_loadings_and_narrow_with_more_fits(found):
    assert (found.lower <= found.loadings).all(axis=None)
    assert (found.loadings <= found.upper).all(axis=None)
    wide, narrow = (make_fits(n_fits=n).find() for n in (3, 9))
    assert (narrow.upper - narrow.lower).to_numpy().mean() < 0.5 * (wide.upper - wide.lower).to_numpy().mean()


def test_member_genes_are_those_the_simulation_changed(mixed, found):
    _, column = cosines(weighted_truth(mixed), found.weighted)
    members = found.members.to_numpy()[:, column]
    truth = np.sign(mixed.true_loadings.to_numpy())
    assert ((members == truth) & (members != 0)).sum() > 0.9 * (members != 0).sum()
    assert ((members == truth) & (members != 0)).sum() > 0.6 * (truth != 0).sum()


def test_with_one_fit_the_programs_come_with_what_cannot_be_known():
    fits = make_fits(n_fits=1, noise=0.02)
    programs = fits.find()
    assert "Fit at least two seeds" in programs.warnings[0]
    assert programs.scores.shape[1] == 8
    assert cosines(weighted_truth(fits), programs.weighted)[0].min() > 0.9
    assert programs.lower.isna().all(axis=None)
    assert programs.table["stability"].isna().all()
    assert programs.correlations.empty


def test_two_fits_are_enough_for_a_rank_and_intervals():
    programs = make_fits(n_fits=2).find()
    assert programs.rank == 8
    assert programs.lower.notna().all(axis=None)
    assert programs.warnings == []


def test_more_genes_than_cells_are_no_hindrance():
    programs = make_fits(n_obs=150, noise=0.05).find()
    assert programs.scores.shape == (150, 8)


def test_one_factor_is_one_program():
    rng = np.random.default_rng(0)
    scores, loadings = rng.exponential(size=(200, 1)), rng.normal(size=(50, 1)) ** 3
    programs = gp.find_programs([scores, -scores], [loadings, -loadings], mean=np.full(50, 1.0))
    assert programs.scores.shape == (200, 1)
    assert abs(np.corrcoef(programs.scores.iloc[:, 0], scores[:, 0])[0, 1]) > 1 - 1e-9
    assert "there may be more programs than factors" in programs.warnings[0]


def test_collapsed_factors_are_called_so():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="All factors are collapsed"):
        gp.find_programs([1e-4 * rng.normal(size=(100, 5))] * 2, [rng.normal(size=(40, 5))] * 2, mean=np.ones(40))


def test_partly_collapsed_factors_are_left_out():
    fits = make_fits()
    loadings = [np.hstack([w, np.random.default_rng(0).normal(size=(N_VARS, 3))]) for w in fits.loadings]
    scores = [np.hstack([z, np.zeros((len(z), 3), z.dtype)]) for z in fits.scores]
    np.testing.assert_allclose(
        fits._replace(scores=scores, loadings=loadings).find().scores, fits.find().scores, atol=1e-5
    )


def test_a_gene_without_counts_has_no_loading_and_disturbs_nothing(mixed, found):
    loadings = [np.vstack([w, np.full((1, w.shape[1]), 50.0)]) for w in mixed.loadings]
    other = gp.find_programs(
        mixed.scores, loadings, mean=np.append(mixed.mean, 0), theta=np.append(mixed.theta, 1), rank=found.rank
    )
    assert (other.loadings.iloc[-1] == 0).all()
    np.testing.assert_allclose(other.scores, found.scores, atol=1e-6)


def test_tables_of_a_pca_will_do():
    rng = np.random.default_rng(0)
    cells, genes = [f"c{i}" for i in range(300)], [f"g{i}" for i in range(60)]
    on = (rng.random((300, 3)) < 0.3) * rng.uniform(0.5, 1.5, (300, 3))
    weights = np.kron(np.eye(6), np.ones((10, 1)))[:, :3]
    x = on @ weights.T + 0.1 * rng.normal(size=(300, 60))
    u, d, vt = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    scores, loadings = pd.DataFrame(u[:, :3] * d[:3], cells), pd.DataFrame(vt[:3].T, genes)
    programs = gp.find_programs([scores], [loadings], mean=np.ones(60))
    assert list(programs.loadings.index) == genes
    assert list(programs.scores.index) == cells
    assert cosines(gp.gauge(weights, np.ones(60)), programs.weighted)[0].min() > 0.98


@pytest.mark.parametrize(
    ("scores", "loadings", "message"),
    [
        ([], [], "Found 0 tables of scores and 0 of loadings"),
        ([np.ones((5, 2))], [np.ones((4, 3))], "Fit 0: scores are 5 cells × 2 factors, loadings 4 genes × 3 factors"),
        ([np.ones((5, 2)), np.ones((6, 2))], [np.ones((4, 2))] * 2, "Give fits of one dataset"),
        ([np.full((5, 2), np.nan)], [np.ones((4, 2))], "not finite"),
    ],
)
def test_tables_that_do_not_belong_together_are_refused(scores, loadings, message):
    with pytest.raises(InputError, match=message):
        gp.consensus(scores, loadings)


def test_means_of_another_number_of_genes_are_refused(mixed):
    with pytest.raises(InputError, match="found 3 values for 800 genes"):
        gp.find_programs(mixed.scores, mixed.loadings, mean=np.ones(3))


# Reading them


def test_genes_are_ranked_by_loading_times_information(found):
    top = gp.top_genes(found, 5)
    first = top[(top["program"] == "P1") & (top["side"] == "positive")]
    assert list(first["gene"]) == list(found.weighted["P1"].nlargest(5).index)
    assert list(first["rank"]) == [1, 2, 3, 4, 5]
    last = top[(top["program"] == "P1") & (top["side"] == "negative")]
    assert list(last["gene"]) == list(found.weighted["P1"].nsmallest(5).index)


def test_the_two_sides_without_negative_numbers_add_up_to_the_program(found):
    sides = gp.split_sides(found)
    assert (sides >= 0).all(axis=None)
    np.testing.assert_allclose(sides.loc["P2_pos"] - sides.loc["P2_neg"], found.weighted["P2"])


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


# Scoring other cells


@pytest.fixture(scope="module")
def counted(mixed):
    return simulate("mixed", n_obs=1200, n_vars=N_VARS, n_up=60, n_down=15, seed=0)


def test_scores_of_other_cells_follow_the_truth_on_the_scale_of_the_old_ones(mixed, found, counted):
    result = gp.project(gp.frame(found, mixed.mean, mixed.theta), counted.counts, list(counted.loadings.index))
    for name in found.scores:
        slope, start = np.polyfit(found.scores[name], result.scores[name], 1)
        assert 0.8 < slope < 1.2
        assert abs(start) < 0.2
        assert np.corrcoef(found.scores[name], result.scores[name])[0, 1] > 0.85
    assert result.missing == []
    np.testing.assert_allclose(result.covered, 1)


def test_scores_depend_neither_on_the_order_of_the_genes_nor_on_foreign_ones(mixed, found, counted):
    frame = gp.frame(found, mixed.mean, mixed.theta)
    genes = np.array(counted.loadings.index)
    straight = gp.project(frame, counted.counts[:200], genes)
    order = np.random.default_rng(0).permutation(N_VARS)
    more = sparse.hstack([counted.counts[:200][:, order], np.ones((200, 1))]).tocsr()
    other = gp.project(frame, more, [*genes[order], "foreign"])
    np.testing.assert_allclose(straight.scores, other.scores, atol=1e-6)


def test_genes_that_are_missing_are_named_and_what_they_cost_is_said(mixed, found, counted):
    genes = list(counted.loadings.index)
    result = gp.project(gp.frame(found, mixed.mean, mixed.theta), counted.counts[:200, 100:], genes[100:])
    assert result.missing == genes[:100]
    assert (result.covered < 1).all()
    assert (result.covered > 0.3).all()


def test_genes_that_a_new_batch_raises_disturb_the_scores_less_when_each_batch_has_its_own_levels(
    mixed, found, counted
):
    frame = gp.frame(found, mixed.mean, mixed.theta)
    genes = list(counted.loadings.index)
    rng = np.random.default_rng(0)
    raised = counted.counts[:600].toarray() * np.where(rng.random(N_VARS) < 0.05, 10, 1)
    new = sparse.csr_matrix(rng.poisson(raised).astype(np.float32))
    old = gp.project(frame, counted.counts[:600], genes).scores
    own, same = (gp.project(frame, new, genes, adjust=adjust).scores for adjust in (True, False))
    assert np.abs(own.mean() - old.mean()).mean() < 0.7 * np.abs(same.mean() - old.mean()).mean()
    assert own.corrwith(old).mean() > same.corrwith(old).mean() + 0.01


def test_a_cell_without_counts_scores_as_the_mean_cell(mixed, found, counted):
    empty = sparse.csr_matrix((1, N_VARS))
    result = gp.project(gp.frame(found, mixed.mean, mixed.theta), empty, list(counted.loadings.index), adjust=False)
    np.testing.assert_allclose(result.scores.iloc[0], found.scores.mean(), atol=0.05)


def test_data_without_any_gene_of_the_programs_are_refused(mixed, found):
    with pytest.raises(InputError, match="None of the 800 genes of the programs"):
        gp.project(gp.frame(found, mixed.mean, mixed.theta), sparse.csr_matrix((2, 2)), ["A", "B"])
