"""A rotation keeps what the model predicts and finds simple structure."""

import numpy as np
import pytest
from made_fits import cosines

from ldvae import programs as gp


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
