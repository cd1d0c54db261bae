"""The likelihoods against scipy, their sums, and finite differences."""

import re

import numpy as np
import pytest
import torch
from scipy import stats

from ldvae.likelihoods import LIKELIHOODS, Generative, Likelihood, nb_log_prob, poisson_log_prob, zinb_log_prob

MEANS = [1e-3, 0.3, 2.0, 50.0]
THETAS = [0.05, 1.0, 30.0, 1e4]


def tensors(*values: float) -> list[torch.Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


@pytest.mark.parametrize("mu", MEANS)
@pytest.mark.parametrize("theta", THETAS)
def test_nb_matches_scipy_and_sums_to_one(mu, theta):
    x = torch.arange(40_000, dtype=torch.float64)
    log_prob = nb_log_prob(x, *tensors(mu, theta))
    expected = stats.nbinom.logpmf(x.numpy(), n=theta, p=theta / (theta + mu))
    probable = expected > -200
    # The EPS of the reference inside the logarithms is worth 1e-8 / mu per count, and 1e-8 / theta.
    allowed = 1e-8 * (1 + x.numpy() / mu + 2 / theta + 2)
    assert (np.abs(log_prob.numpy() - expected) < allowed + 1e-8 * np.abs(expected))[probable].all()
    np.testing.assert_allclose(log_prob.exp().sum(), 1, rtol=1e-6)


@pytest.mark.parametrize("mu", MEANS)
def test_poisson_matches_scipy_and_sums_to_one(mu):
    x = torch.arange(2_000, dtype=torch.float64)
    log_prob = poisson_log_prob(x, *tensors(mu))
    np.testing.assert_allclose(log_prob, stats.poisson.logpmf(x.numpy(), mu), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(log_prob.exp().sum(), 1, rtol=1e-8)


@pytest.mark.parametrize("zi_logits", [-30.0, -1.0, 0.0, 4.0])
@pytest.mark.parametrize("mu", MEANS)
def test_zinb_is_a_mixture_of_zero_and_nb_and_sums_to_one(mu, zi_logits):
    x = torch.arange(20_000, dtype=torch.float64)
    mu_, theta, logits = tensors(mu, 2.0, zi_logits)
    inflated = 1 / (1 + np.exp(-zi_logits))
    nb = nb_log_prob(x, mu_, theta).exp().numpy()
    expected = inflated * (x.numpy() == 0) + (1 - inflated) * nb
    probability = zinb_log_prob(x, mu_, theta, logits).exp().numpy()
    np.testing.assert_allclose(probability, expected, rtol=1e-8, atol=1e-300)
    np.testing.assert_allclose(probability.sum(), 1, rtol=1e-6)


@pytest.mark.parametrize("count", [0.0, 1.0, 7.0, 300.0])
def test_gradients_match_finite_differences(count):
    x = torch.tensor([count], dtype=torch.float64)
    mu, theta, logits = (value.reshape(1).requires_grad_() for value in tensors(1.7, 0.6, -0.4))
    assert torch.autograd.gradcheck(lambda m: poisson_log_prob(x, m), (mu,))
    assert torch.autograd.gradcheck(lambda m, t: nb_log_prob(x, m, t), (mu, theta))
    assert torch.autograd.gradcheck(lambda m, t, z: zinb_log_prob(x, m, t, z), (mu, theta, logits))


def test_extreme_values_stay_finite():
    x = torch.tensor([0.0, 1.0, 1e6])
    for mu in (0.0, 1e-20, 1e7):
        for theta in (1e-6, 1e8):
            values = zinb_log_prob(x, torch.full((3,), mu), torch.full((3,), theta), torch.tensor([-80.0, 0.0, 80.0]))
            assert torch.isfinite(values).all(), (mu, theta)


GRID = [(0.3, 0.5), (2.0, 1.0), (9.0, 20.0)]  # mean, theta


def parameters(likelihood: Likelihood, mu: float, theta: float, n_obs: int) -> Generative:
    """The same parameters for each of `n_obs` entries of one gene."""
    rate = torch.full((n_obs, 1), mu, dtype=torch.float64)
    return Generative(
        rate,
        rate,
        torch.tensor([theta], dtype=torch.float64) if likelihood.has_theta else None,
        torch.full_like(rate, -0.7) if likelihood.has_zi_logits else None,
    )


@pytest.mark.parametrize(("mu", "theta"), GRID)
@pytest.mark.parametrize("likelihood", LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_moments_are_those_of_the_probabilities(likelihood, mu, theta):
    x = torch.arange(3_000, dtype=torch.float64)[:, None]
    px = parameters(likelihood, mu, theta, len(x))
    p = likelihood.log_prob(x, px).exp()
    found = likelihood.moments(px)
    mean = (p * x).sum()
    torch.testing.assert_close(found.mean[0, 0], mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.variance[0, 0], (p * (x - mean) ** 2).sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.zeros[0, 0], p[0, 0], rtol=1e-6, atol=0)


@pytest.mark.parametrize(("mu", "theta"), GRID)
@pytest.mark.parametrize("likelihood", LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_samples_have_the_moments(likelihood, mu, theta):
    n = 200_000
    px = parameters(likelihood, mu, theta, n)
    counts = likelihood.sample(px, np.random.default_rng(0))
    assert counts.dtype == np.float32
    assert counts.shape == (n, 1)
    found = likelihood.moments(px)
    sd = float(found.variance[0, 0]) ** 0.5
    assert abs(counts.mean() - float(found.mean[0, 0])) < 5 * sd / n**0.5
    np.testing.assert_allclose(counts.var(), sd**2, rtol=0.05)
    assert abs((counts == 0).mean() - float(found.zeros[0, 0])) < 0.006


@pytest.mark.parametrize("likelihood", LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_the_methods_text_names_each_likelihood_in_its_own_words(likelihood):
    assert re.fullmatch(r"an? [\w -]+ likelihood", likelihood.sentence)
    assert sum(likelihood.sentence == other.sentence for other in LIKELIHOODS.values()) == 1
