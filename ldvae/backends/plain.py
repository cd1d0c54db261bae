"""Plain torch, on any device: the truth that the other backends are tested against."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ldvae.data import Counts
from ldvae.module import LDVAE, ElboTerms, Noise, Posterior


class PlainBackend:
    """Train, evaluate and encode by autograd.

    Parameters
    ----------
    module
        On the device to use.
    optimizer
        Over its parameters; not needed to evaluate.
    gradient_clip_val
        Largest norm of the gradient; None for no limit.
    """

    def __init__(
        self,
        module: LDVAE,
        optimizer: torch.optim.Optimizer | None = None,
        gradient_clip_val: float | None = None,
    ) -> None:
        self.module, self.optimizer, self.clip = module, optimizer, gradient_clip_val

    @staticmethod
    def unsupported(
        module: LDVAE, optimizer: torch.optim.Optimizer | None = None, gradient_clip_val: float | None = None
    ) -> str | None:
        """See `Backend.unsupported`: nothing."""
        return None

    def train(self, counts: Counts, rows: np.ndarray, noise: Noise, kl_weight: float) -> Tensor:
        """See `Backend.train`."""
        assert self.optimizer is not None
        x, covariates = counts.minibatch(rows, self.device)
        terms = self.module.elbo_terms(x, covariates, noise.to(self.device))
        self.optimizer.zero_grad(set_to_none=True)
        terms.loss(kl_weight).mean().backward()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.clip)
        self.optimizer.step()
        return torch.stack([term.detach().sum() for term in terms])

    def evaluate(self, counts: Counts, rows: np.ndarray, noise: Noise) -> Tensor:
        """See `Backend.evaluate`."""
        return torch.stack([term.sum() for term in self.elbo_terms(counts, rows, noise)])

    @torch.no_grad()
    def elbo_terms(self, counts: Counts, rows: np.ndarray, noise: Noise) -> ElboTerms:
        """See `Backend.elbo_terms`."""
        x, covariates = counts.minibatch(rows, self.device)
        return self.module.elbo_terms(x, covariates, noise.to(self.device))

    @torch.no_grad()
    def encode(self, counts: Counts, rows: np.ndarray) -> Posterior:
        """See `Backend.encode`."""
        return self.module.encode(counts.minibatch(rows, self.device)[0])

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        return next(self.module.parameters()).device
