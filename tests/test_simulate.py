"""Simulated counts are what the docstring says they are."""

import inspect

import numpy as np
import pytest
from scipy import stats

from ldvae.config import SimulateConfig
from ldvae.errors import InputError
from ldvae.simulate import simulate


@pytest.mark.parametrize("scenario", ["mixed", "gauss", "additive"])
def test_the_same_seed_gives_the_same_counts_and_another_seed_others(scenario):
    first, again, other = (simulate(scenario, n_obs=50, n_vars=120, seed=seed) for seed in (3, 3, 4))
    assert (first.counts != again.counts).nnz == 0
    assert (first.counts != other.counts).nnz > 0
    assert first.counts.dtype == np.float32
    assert set(np.unique(first.counts.data % 1)) == {0}
    assert list(first.loadings.columns) == list(first.scores.columns)


def test_mean_counts_follow_the_stated_expression_and_depth():
    made = simulate("mixed", n_obs=3000, n_vars=200, mean_total=1000, seed=0)
    totals = np.asarray(made.counts.sum(axis=1)).ravel()
    np.testing.assert_allclose(made.mean_expression.sum(), 1)
    np.testing.assert_allclose(totals.mean(), 1000, rtol=0.03)
    mean = np.asarray(made.counts.mean(axis=0)).ravel()
    np.testing.assert_allclose(mean / mean.sum(), made.mean_expression, rtol=0.3, atol=1e-3)
    assert stats.pearsonr(np.log(mean), np.log(made.mean_expression))[0] > 0.99


def test_counts_of_one_state_have_the_variance_of_a_negative_binomial():
    made = simulate("additive", n_obs=4000, n_vars=200, n_identity=1, n_activity=0, n_batch=1, seed=1)
    x = made.counts.toarray()
    mean, variance = x.mean(axis=0), x.var(axis=0)
    # The library size is log-normal with standard deviation 0.4: a factor common to all counts of a cell.
    spread = np.exp(0.4**2) - 1
    expected = mean + mean**2 * ((1 + 1 / made.theta) * (1 + spread) - 1)
    assert np.median(np.abs(variance / expected - 1)) < 0.1


def test_in_the_mixed_world_a_program_changes_the_log_rates_of_its_genes_by_its_loadings():
    made = simulate("mixed", n_obs=6000, n_vars=150, n_up=20, n_down=5, n_batch=1, seed=2)
    x = made.counts.toarray()
    x = x / x.sum(axis=1, keepdims=True)
    scores = made.scores.to_numpy()
    inside = (scores[:, 0] == 1) & (scores[:, 5:] == 0).all(axis=1)
    outside = (scores == 0).all(axis=1)
    change = np.log(x[inside].mean(axis=0) / x[outside].mean(axis=0))
    known = made.mean_expression.to_numpy() > 0.003
    difference = (change - made.loadings.iloc[:, 0])[known]
    np.testing.assert_allclose(difference, difference.mean(), atol=0.25)


def test_in_the_additive_world_every_cell_has_one_identity_and_shares_that_sum_to_one():
    made = simulate("additive", n_obs=500, n_vars=120, seed=0)
    np.testing.assert_allclose(made.scores.sum(axis=1), 1)
    assert ((made.scores.filter(like="identity") > 0).sum(axis=1) == 1).all()
    active = made.scores.filter(like="activity").to_numpy()
    assert 0.15 < (active > 0).any(axis=1).mean() < 0.35
    assert active[active > 0].min() >= 0.1
    assert active.max() <= 0.6


def test_an_anndata_carries_counts_and_truth_by_name():
    made = simulate("gauss", n_obs=30, n_vars=100, seed=0)
    adata = made.to_anndata()
    assert list(adata.var_names) == list(made.loadings.index)
    assert adata.obsm["X_programs"].equals(made.scores)
    assert adata.varm["program_loadings"].equals(made.loadings)
    assert set(adata.obs["batch"]) == {"batch_0", "batch_1"}


def test_the_step_and_the_function_have_the_same_defaults():
    parameters = inspect.signature(simulate).parameters
    assert dict(SimulateConfig()) == {name: parameter.default for name, parameter in parameters.items()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scenario": "flat"}, "expected one of mixed, gauss, additive, dominant, trajectory"),
        ({"n_obs": 0}, "at least one cell"),
        ({"scenario": "additive", "n_identity": 0}, "every cell has an identity"),
        ({"n_vars": 50}, "n_up \\+ n_down = 90 genes, but there are only n_vars=50"),
    ],
)
def test_what_cannot_be_simulated_is_said(arguments, message):
    with pytest.raises(InputError, match=message):
        simulate(**arguments)


@pytest.mark.parametrize("scenario", ["dominant", "trajectory"])
def test_one_program_makes_most_of_the_variation_and_the_others_are_beside_it(scenario):
    made = simulate(scenario, n_obs=2000, n_vars=600, seed=400)
    scores, loadings = made.scores - made.scores.mean(), made.loadings - made.loadings.mean()
    sizes = np.square(scores).mean().to_numpy() * np.square(loadings).sum().to_numpy()
    assert sizes[0] > 0.6 * sizes.sum()
    assert (sizes[1:] > 0).all()
    if scenario == "trajectory":
        states = made.scores.iloc[:, 1:5] > 0.5
        assert (states.sum(axis=1) <= 1).all()
        assert (states.sum() > 50).all()
