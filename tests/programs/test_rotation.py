"""A rotation keeps what the model predicts and finds simple structure."""

import numpy as np
import pytest
from made_fits import cosines, make_fits, weighted_truth

from ldvae import programs as gp


def test_on_the_scores_alone_the_rotation_is_quartimax_of_rows_divided_by_a_power_of_their_length():
    from statsmodels.multivariate.factor_rotation import rotate_factors

    rng = np.random.default_rng(0)
    whole = gp.consensus([rng.laplace(size=(500, 4))], [rng.normal(size=(50, 4))])
    ours = gp.rotate(whole, 4, intercept=False, balance=0, power=1)
    root = np.linalg.norm(whole.scores, axis=1, keepdims=True) ** 0.75
    theirs, turn = rotate_factors(whole.scores / root, "quartimax")
    np.testing.assert_allclose(((ours.scores / root) ** 4).sum(), (theirs**4).sum(), rtol=1e-6)
    np.testing.assert_allclose(np.abs(cosines(ours.scores, whole.scores @ turn)[0]), 1, atol=1e-5)


def test_starts_that_are_left_early_lose_nothing_and_save_most_of_the_steps(mixed, monkeypatch):
    from ldvae.programs import rotation

    whole = gp.consensus(mixed.scores, mixed.weighted)
    climb, svd, steps = rotation._climb, np.linalg.svd, []
    monkeypatch.setattr(np.linalg, "svd", lambda *table, **options: steps.append(1) or svd(*table, **options))
    ours = gp.rotate(whole, 8)
    few = len(steps)
    monkeypatch.setattr(rotation, "_climb", lambda moments, start, tolerance: climb(moments, start, 1e-11))
    slow = gp.rotate(whole, 8)
    np.testing.assert_allclose(np.abs(cosines(ours.loadings, slow.loadings)[0]), 1, atol=1e-6)
    assert few < (len(steps) - few) / 2


@pytest.mark.parametrize("seed", range(2))
def test_one_strong_gene_that_two_small_programs_share_does_not_turn_their_axes(seed):
    """The third and fourth of five programs; before small ones were rotated by themselves, cosines were 0.5."""
    rng = np.random.default_rng(seed)
    scores = (rng.random((3000, 5)) < 0.15) * rng.uniform(0.5, 1.5, (3000, 5))
    scores[:, 2:] += rng.normal(0, 0.6, (3000, 3))
    loadings = np.zeros((500, 5))
    for k, size in enumerate((1.0, 0.8, 0.05, 0.05, 0.05)):
        loadings[80 * k : 80 * k + 80, k] = size * rng.uniform(0.5, 1.5, 80)
    loadings[400, 2:4] = 0.6
    found = gp.rotate(gp.consensus([scores], [loadings]), 5, intercept=False)
    assert np.abs(cosines(found.loadings, loadings)[0]).min() > 0.99


@pytest.mark.parametrize("seed", range(2))
def test_small_programs_do_not_take_the_constant_among_them(seed):
    """Of Gaussian scores: the constant was spread over the small programs, and there was one more of them."""
    rng = np.random.default_rng(seed)
    scores, loadings = rng.normal(size=(1500, 6)), np.zeros((500, 6))
    for k, size in enumerate((1.0, 0.8, 0.8, 0.1, 0.1, 0.1)):
        loadings[80 * k : 80 * k + 80, k] = size * rng.uniform(0.5, 1.5, 80) * rng.choice([1, 1, 1, -1], 80)
    found = gp.drop_baseline(gp.rotate(gp.consensus([scores], [loadings]), 6))
    assert found.loadings.shape[1] == 6
    assert np.abs(cosines(found.loadings, loadings)[0]).min() > 0.93


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


def decoded(contribution, loadings):
    """Weighted expression of the 30 heaviest genes of each program in each cell, from the contribution."""
    heaviest = np.sort(loadings, axis=0)[-30]
    weight = np.where((loadings >= heaviest) & (loadings > 0), loadings, 0)
    return contribution.scores @ (contribution.loadings.T @ weight)


def leaning():
    """A dominant program and a small one whose score leans on it; the genes of the small one know nothing of it."""
    rng = np.random.default_rng(0)
    u = rng.normal(size=(2000, 2))
    u = np.linalg.qr(u - u.mean(axis=0))[0] * np.sqrt(2000)
    loadings = np.zeros((200, 2))
    loadings[:100, 0], loadings[100:140, 1] = 1.0, 0.15
    transform = np.vstack([np.zeros(2), np.array([[1.0, -0.95], [0.0, np.sqrt(1 - 0.95**2)]])])
    contribution = gp.Contribution(u, loadings)
    own = loadings @ np.linalg.inv(transform[1:]).T
    return contribution, gp.Rotation(u @ transform[1:], np.c_[own[:, 0], loadings[:, 1]], transform)


def test_a_score_that_contradicts_its_genes_is_turned_until_it_agrees():
    contribution, rotation = leaning()
    aligned = gp.align_scores(contribution, rotation)
    expression = decoded(contribution, rotation.loadings)
    before = [np.corrcoef(rotation.scores[:, k], expression[:, k])[0, 1] for k in range(2)]
    after = [np.corrcoef(aligned.scores[:, k], expression[:, k])[0, 1] for k in range(2)]
    np.testing.assert_allclose(aligned.agreement, before, atol=1e-9)
    assert before[1] < 0.5
    np.testing.assert_allclose(after[1], 0.9)
    np.testing.assert_allclose(aligned.scores.std(axis=0), rotation.scores.std(axis=0))


def test_aligned_scores_are_linear_in_the_components_and_leave_programs_that_agree_alone(mixed):
    whole = gp.consensus(mixed.scores, mixed.weighted, 8)
    rotation = gp.orient(gp.drop_baseline(gp.rotate(whole, 8)))
    aligned = gp.align_scores(whole, rotation)
    ones = np.ones((len(whole.scores), 1))
    np.testing.assert_allclose(np.hstack([ones, whole.scores]) @ aligned.transform, aligned.scores, atol=1e-8)
    assert (aligned.agreement > 0.9).all()
    np.testing.assert_array_equal(aligned.scores, rotation.scores)


def test_the_side_with_three_quarters_of_the_loadings_is_positive_even_where_the_scores_are_skewed_the_other_way():
    rng = np.random.default_rng(0)
    scores = rng.exponential(size=(1000, 1))
    loadings = np.r_[-np.ones(40), np.ones(10), np.zeros(50)][:, None]
    oriented = gp.orient(gp.rotate(gp.consensus([scores], [loadings]), 1))
    assert (oriented.loadings[:40] > 0).all()


@pytest.mark.parametrize("scenario", ["dominant", "trajectory"])
def test_small_programs_beside_a_dominant_one_have_their_own_genes_and_keep_their_scores(scenario):
    fits = make_fits(scenario, seed=1)
    truth = weighted_truth(fits)
    worst = {}
    for rotation in ("joint", "clean"):
        programs = fits.find(rotation=rotation, rank=8)
        cosine, column = cosines(truth, programs.weighted)
        pairs = zip(fits.true_scores.T.to_numpy(), programs.scores.iloc[:, column].T.to_numpy(), strict=True)
        r = [abs(np.corrcoef(true, score)[0, 1]) for true, score in pairs]
        worst[rotation] = np.abs(cosine).min(), min(r), programs.table["agreement"].min()
    assert worst["joint"][0] < 0.85  # or the scenario no longer shows the fault
    assert worst["clean"][0] > 0.9
    assert worst["clean"][1] > max(worst["joint"][1], 0.95)
    assert worst["clean"][2] > worst["joint"][2]


def test_cleaned_loadings_describe_the_same_contribution_and_are_the_same_for_any_order_and_sign(mixed):
    whole = gp.consensus(mixed.scores, mixed.weighted, 8)
    before = gp.orient(gp.drop_baseline(gp.rotate(whole, 8)))
    after = gp.clean_loadings(before)
    kept = before.scores @ before.loadings.T
    np.testing.assert_allclose(after.scores @ after.loadings.T, kept, atol=1e-8 * np.abs(kept).max())
    ones = np.ones((len(whole.scores), 1))
    np.testing.assert_allclose(np.hstack([ones, whole.scores]) @ after.transform, after.scores, atol=1e-8)
    assert (np.abs(after.loadings).sum(axis=0) <= np.abs(before.loadings).sum(axis=0)).all()
    order, sign = np.random.default_rng(0).permutation(8), np.where(np.arange(8) % 2, -1.0, 1.0)
    changed = gp.clean_loadings(gp.Rotation(*(table[:, order] * sign for table in before)))
    np.testing.assert_allclose(changed.loadings, after.loadings[:, order] * sign, atol=1e-6)
    np.testing.assert_allclose(gp.clean_loadings(before, ridge=1e12).loadings, before.loadings, atol=1e-6)


def test_one_program_or_one_without_loadings_is_left_alone():
    scores = np.random.default_rng(0).normal(size=(30, 2))
    loadings = np.c_[np.arange(20.0), np.zeros(20)]
    for q in (1, 2):
        given = gp.Rotation(scores[:, :q], loadings[:, :q], np.eye(q + 1)[:, 1:])
        np.testing.assert_array_equal(gp.clean_loadings(given).loadings, given.loadings)


@pytest.mark.parametrize(("intercept", "baseline"), [(True, "mean"), (True, "auto"), (False, "auto")])
def test_parts_describe_the_same_contribution_by_scores_that_are_mostly_positive(mixed, intercept, baseline):
    whole = gp.consensus(mixed.scores, mixed.weighted, 8)
    start = gp.rotate(whole, 8, intercept=intercept)
    start = gp.drop_baseline(start) if baseline == "auto" else start
    found = gp.parts(whole, start)
    change = found.scores @ found.loadings.T - whole.scores @ whole.loadings.T
    np.testing.assert_allclose(change - change.mean(axis=0), 0, atol=1e-7)
    ones = np.ones((len(whole.scores), 1))
    np.testing.assert_allclose(np.hstack([ones, whole.scores]) @ found.transform, found.scores, atol=1e-8)
    negative = [
        np.square(np.minimum(table, 0)).sum() / np.square(table).sum() for table in (found.scores, start.scores)
    ]
    assert negative[0] < 0.05
    assert negative[0] < negative[1] or negative[1] < 0.01


def test_parts_find_the_programs_of_cells_that_mix_profiles():
    fits = make_fits("additive", seed=1)
    programs = fits.find(rotation="parts", rank=7)
    cosine, _ = cosines(weighted_truth(fits), programs.weighted)
    assert cosine.min() > 0.9
