"""Log-likelihoods of UMI counts as plain formulas: the truth that the kernels are tested against."""

import torch
import torch.nn.functional as F
from torch import Tensor

# scvi-tools adds 1e-8 inside its logarithms. It matters where a mean underflows: log(mu) stays finite there.
EPS = 1e-8


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
    return torch.xlogy(x, mu) - mu - torch.lgamma(x + 1)


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
    log_total = torch.log(theta + mu + EPS)
    return (
        theta * (torch.log(theta + EPS) - log_total)
        + x * (torch.log(mu + EPS) - log_total)
        + torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
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
    log_nb = nb_log_prob(x, mu, theta)
    log_not_inflated = -F.softplus(zi_logits)
    return torch.where(
        x > 0, log_not_inflated + log_nb, torch.logaddexp(F.logsigmoid(zi_logits), log_not_inflated + log_nb)
    )
