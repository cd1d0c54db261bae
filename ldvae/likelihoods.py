"""The likelihoods of UMI counts, one object each: the truth that the kernels are tested against.

A new likelihood is a class here and an entry of `LIKELIHOODS`: the options, the module, sampling, the posterior
predictive check and the methods text read the rest from it. Without kernels it trains in plain torch.

torch is imported where a tensor method does not do, so that the options can list the names without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

# scvi-tools adds 1e-8 inside its logarithms. It matters where a mean underflows: log(mu) stays finite there.
EPS = 1e-8
MAX_RATE = 1e8  # scvi-tools' limit for a Poisson rate that is sampled from


class Generative(NamedTuple):
    """Parameters of p(x | z, library)."""

    px_scale: Tensor  # (..., n_obs, n_vars), rows sum to 1
    px_rate: Tensor  # exp(library) * px_scale
    theta: Tensor | None  # broadcastable to px_scale; None for a likelihood without it
    zi_logits: Tensor | None  # as px_scale; None for a likelihood without it

    def given_theta(self) -> Tensor:
        """Inverse dispersion, which the likelihood has."""
        assert self.theta is not None
        return self.theta

    def given_zi_logits(self) -> Tensor:
        """Zero-inflation logits, which the likelihood has."""
        assert self.zi_logits is not None
        return self.zi_logits


class Moments(NamedTuple):
    """Of each entry, shape (..., n_obs, n_vars); the mean square can be averaged over cells, the variance cannot."""

    mean: Tensor
    square: Tensor  # mean of x²
    zeros: Tensor  # probability of x = 0

    @property
    def variance(self) -> Tensor:
        """Mean of (x - mean)²."""
        return self.square - self.mean**2


class Likelihood(ABC):
    """A distribution of counts with mean `px_rate`.

    Attributes
    ----------
    name
        As `gene_likelihood` spells it.
    sentence
        As the methods text calls it, with its article.
    has_theta
        Whether the model learns an inverse dispersion for each gene.
    has_zi_logits
        Whether a second decoder gives the logit of an inflated zero.
    """

    name: ClassVar[str]
    sentence: ClassVar[str]
    has_theta: ClassVar[bool] = False
    has_zi_logits: ClassVar[bool] = False

    @property
    def title(self) -> str:
        """The distribution alone: `sentence` without its article and its noun."""
        return self.sentence.partition(" ")[2].removesuffix(" likelihood")

    @abstractmethod
    def log_prob(self, x: Tensor, px: Generative) -> Tensor:
        """Log-probability of counts, per entry, in nats; shape (..., n_obs, n_vars), as `px.px_rate`."""

    @abstractmethod
    def moments(self, px: Generative) -> Moments:
        """Mean, mean square and probability of zero of each entry."""

    @abstractmethod
    def sample(self, px: Generative, rng: np.random.Generator) -> np.ndarray:
        """Counts drawn from the distribution, float32, of the shape of `px.px_rate`."""


class Poisson(Likelihood):
    """Variance equal to the mean."""

    name = "poisson"
    sentence = "a Poisson likelihood"

    def log_prob(self, x: Tensor, px: Generative) -> Tensor:
        """See `poisson_log_prob`."""
        return poisson_log_prob(x, px.px_rate)

    def moments(self, px: Generative) -> Moments:
        """See `Likelihood.moments`."""
        rate = px.px_rate
        return Moments(rate, rate + rate**2, (-rate).exp())

    def sample(self, px: Generative, rng: np.random.Generator) -> np.ndarray:
        """See `Likelihood.sample`."""
        return rng.poisson(px.px_rate.cpu().numpy().astype("float64").clip(max=MAX_RATE)).astype("float32")


class NB(Likelihood):
    """Negative binomial: variance mu + mu² / theta."""

    name = "nb"
    sentence = "a negative binomial likelihood"
    has_theta = True

    def log_prob(self, x: Tensor, px: Generative) -> Tensor:
        """See `nb_log_prob`."""
        return nb_log_prob(x, px.px_rate, px.given_theta())

    def moments(self, px: Generative) -> Moments:
        """See `Likelihood.moments`."""
        rate, theta = px.px_rate, px.given_theta()
        square = rate + rate**2 + rate**2 / theta
        return Moments(rate, square, (theta * (theta.log() - (theta + rate).log())).exp())

    def sample(self, px: Generative, rng: np.random.Generator) -> np.ndarray:
        """See `Likelihood.sample`: Poisson counts of Gamma rates."""
        rate = px.px_rate.cpu().numpy().astype("float64")
        theta = px.given_theta().expand_as(px.px_rate).cpu().numpy().astype("float64")
        return rng.poisson((rng.standard_gamma(theta) * (rate / theta)).clip(max=MAX_RATE)).astype("float32")


class ZINB(NB):
    """Zero-inflated negative binomial: zero with probability sigmoid(zi_logits), else a negative binomial count."""

    name = "zinb"
    sentence = "a zero-inflated negative binomial likelihood"
    has_zi_logits = True

    def log_prob(self, x: Tensor, px: Generative) -> Tensor:
        """See `zinb_log_prob`."""
        return zinb_log_prob(x, px.px_rate, px.given_theta(), px.given_zi_logits())

    def moments(self, px: Generative) -> Moments:
        """See `Likelihood.moments`."""
        mean, square, zeros = super().moments(px)
        inflated = px.given_zi_logits().sigmoid()
        return Moments((1 - inflated) * mean, (1 - inflated) * square, inflated + (1 - inflated) * zeros)

    def sample(self, px: Generative, rng: np.random.Generator) -> np.ndarray:
        """See `Likelihood.sample`."""
        counts = super().sample(px, rng)
        counts[rng.random(counts.shape) <= px.given_zi_logits().sigmoid().cpu().numpy()] = 0
        return counts


LIKELIHOODS: dict[str, Likelihood] = {likelihood.name: likelihood for likelihood in (NB(), ZINB(), Poisson())}


def poisson_log_prob(x: Tensor, mu: Tensor) -> Tensor:
    """Log-probability of counts under a Poisson distribution, per entry, in nats.

    Parameters
    ----------
    x
        UMI counts, shape (n_obs, n_vars).
    mu
        Mean, >= 0, same shape as `x`.

    Returns
    -------
    Tensor
        Shape (n_obs, n_vars).
    """
    return x.xlogy(mu) - mu - (x + 1).lgamma()


def nb_log_prob(x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    """Log-probability of counts under a negative binomial distribution, per entry, in nats.

    Parameters
    ----------
    x
        UMI counts, shape (n_obs, n_vars).
    mu
        Mean, >= 0, same shape as `x`.
    theta
        Inverse dispersion, > 0, broadcastable to `x`; the variance is mu + mu² / theta.

    Returns
    -------
    Tensor
        Shape (n_obs, n_vars).
    """
    log_total = (theta + mu + EPS).log()
    return (
        theta * ((theta + EPS).log() - log_total)
        + x * ((mu + EPS).log() - log_total)
        + (x + theta).lgamma()
        - theta.lgamma()
        - (x + 1).lgamma()
    )


def zinb_log_prob(x: Tensor, mu: Tensor, theta: Tensor, zi_logits: Tensor) -> Tensor:
    """Log-probability of counts under a zero-inflated negative binomial distribution, per entry, in nats.

    Parameters
    ----------
    x
        UMI counts, shape (n_obs, n_vars).
    mu
        Mean of the negative binomial part, >= 0, same shape as `x`.
    theta
        Inverse dispersion, > 0, broadcastable to `x`.
    zi_logits
        Logit of the probability that a count is an inflated zero, same shape as `x`.

    Returns
    -------
    Tensor
        Shape (n_obs, n_vars).

    Notes
    -----
    With pi = sigmoid(zi_logits): P(0) = pi + (1 - pi) NB(0), P(x) = (1 - pi) NB(x) for x > 0. Both are written
    with softplus, as -softplus(-zi_logits) = log(pi) and -softplus(zi_logits) = log(1 - pi).
    """
    import torch
    import torch.nn.functional as F

    log_nb = nb_log_prob(x, mu, theta)
    log_not_inflated = -F.softplus(zi_logits)
    return torch.where(
        x > 0, log_not_inflated + log_nb, torch.logaddexp(F.logsigmoid(zi_logits), log_not_inflated + log_nb)
    )
