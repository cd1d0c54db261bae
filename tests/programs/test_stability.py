"""Each fit in the frame of the consensus."""

import numpy as np
from made_fits import N_VARS, cosines, make_fits, weighted_truth
from scipy import stats

from ldvae import programs as gp


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


def test_a_dense_program_has_members_too_and_two_sets_of_fits_have_the_same():
    rng = np.random.default_rng(0)
    scores = np.c_[rng.random(1000) < 0.5, rng.random(1000) < 0.2].astype(float)
    loadings = np.c_[rng.normal(size=N_VARS), np.where(np.arange(N_VARS) < 40, 1.0, 0.0)]
    sets = []
    for _ in range(2):
        fits = [scores + 0.02 * rng.normal(size=scores.shape) for _ in range(4)]
        tables = [loadings + 0.05 * rng.normal(size=loadings.shape) for _ in range(4)]
        sets.append(gp.find_programs(fits, tables, mean=np.ones(N_VARS)).members)
    for program in ("P1", "P2"):
        first, second = (members[program] for members in sets)
        assert 15 <= (first != 0).sum() <= 300
        shared = ((first == second) & (first != 0)).sum() / ((first != 0) | (second != 0)).sum()
        assert shared > 0.7
