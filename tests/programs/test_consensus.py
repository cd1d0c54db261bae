"""What fits share does not depend on their axes, and its size is read off."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ldvae import programs as gp
from ldvae.errors import InputError


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


def test_two_directions_of_the_same_size_that_change_places_do_not_lower_the_rank():
    rng = np.random.default_rng(0)
    genes = np.linalg.qr(rng.normal(size=(200, 4)))[0]
    cells = np.linalg.qr(rng.normal(size=(500, 4)))[0] * np.sqrt(500)
    scores, loadings = [], []
    for s in range(4):  # the second and third direction are as long as each other, in each fit another first
        size = np.array([4, 2 + 0.2 * (-1) ** s, 2 - 0.2 * (-1) ** s, 1])
        scores.append(cells + 0.05 * rng.normal(size=cells.shape))
        loadings.append(genes * size + 0.01 * rng.normal(size=genes.shape))
    result = gp.reproducible_rank(scores, loadings, n_splits=3)
    assert result.rank == 4
    assert (result.correlations["correlation"] > 0.95).all()


@pytest.mark.parametrize("n_fits", [2, 3, 5, 9])
def test_the_reproducible_rank_does_not_grow_with_the_number_of_fits(n_fits):
    # Eight directions are shared; the ninth is in every fit, but with as much noise as signal.
    rng = np.random.default_rng(1)
    cells, genes = rng.normal(size=(600, 9)), rng.normal(size=(300, 9))
    size = np.r_[np.full(8, 1.0), 0.04]
    scores = [cells] * n_fits
    loadings = [genes * size + 0.04 * rng.normal(size=genes.shape) for _ in range(n_fits)]
    assert gp.reproducible_rank(scores, loadings).rank == 8


def test_fits_of_nothing_in_common_have_rank_zero():
    rng = np.random.default_rng(0)
    scores = [rng.normal(size=(300, 3)) for _ in range(4)]
    loadings = [rng.normal(size=(100, 3)) for _ in range(4)]
    assert gp.reproducible_rank(scores, loadings).rank == 0


def test_only_fits_far_from_the_better_half_are_outliers():
    assert gp.outliers([420, 421, 420.5, 419.8, 480.0]).tolist() == [False] * 4 + [True]
    assert not gp.outliers([420, 421, 420.5, 419.8, 421.5]).any()
    assert not gp.outliers([420.0, 480.0]).any()
    assert not gp.outliers([420.0]).any()


def test_fits_that_the_cells_cannot_tell_apart_are_no_outliers():
    elbo = [420.00, 420.01, 420.02, 420.01, 420.00, 420.4]  # close to each other by chance
    assert gp.outliers(elbo, 0.02).tolist() == [False] * 5 + [True]
    assert not gp.outliers(elbo, [0.5] * 6).any()


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
