"""Plain torch, on any device: the truth that the other backends are tested against."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ldvae.data import Counts
from ldvae.distributed import ALONE, Processes
from ldvae.module import LDVAE, ElboTerms, Noise, Posterior, sharing


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
    processes
        Those that train the module together, each on its part of every minibatch.
    """

    def __init__(
        self,
        module: LDVAE,
        optimizer: torch.optim.Optimizer | None = None,
        gradient_clip_val: float | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.module, self.optimizer, self.clip, self.processes = module, optimizer, gradient_clip_val, processes

    @staticmethod
    def unsupported(
        module: LDVAE,
        optimizer: torch.optim.Optimizer | None = None,
        gradient_clip_val: float | None = None,
        processes: Processes = ALONE,
    ) -> str | None:
        """See `Backend.unsupported`: nothing."""
        return None

    def train(self, counts: Counts, rows: np.ndarray, noise: Noise, kl_weight: float) -> Tensor:
        """See `Backend.train`."""
        assert self.optimizer is not None
        self.optimizer.zero_grad(set_to_none=True)
        with sharing(self.module, self.processes, len(rows)):
            terms = self.own_terms(counts, rows, noise)
            (terms.loss(kl_weight).sum() / len(rows)).backward()
        sums = self.over_processes(torch.stack([term.detach().sum() for term in terms]))
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.clip)
        self.optimizer.step()
        return sums

    def over_processes(self, sums: Tensor) -> Tensor:
        """Sum the gradients over the processes, and some other sums with them, which are returned."""
        if not self.processes.are_several:
            return sums
        gradients = [one.grad for one in self.module.parameters() if one.grad is not None]
        total = self.processes.sum(torch.cat([sums, *(gradient.flatten() for gradient in gradients)]))
        start = len(sums)
        for gradient in gradients:
            gradient.copy_(total[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()
        return total[: len(sums)]

    def own_terms(self, counts: Counts, rows: np.ndarray, noise: Noise) -> ElboTerms:
        """The terms of those cells of a minibatch that this process has."""
        own = rows >= 0
        x, covariates = counts.minibatch(rows[own], self.device)
        return self.module.elbo_terms(x, covariates, noise.of(own).to(self.device))

    @torch.no_grad()
    def evaluate(self, counts: Counts, rows: np.ndarray, noise: Noise) -> Tensor:
        """See `Backend.evaluate`."""
        return self.processes.sum(torch.stack([term.sum() for term in self.own_terms(counts, rows, noise)]))

    @torch.no_grad()
    def elbo_terms(self, counts: Counts, rows: np.ndarray, noise: Noise) -> ElboTerms:
        """See `Backend.elbo_terms`."""
        return self.own_terms(counts, rows, noise)

    @torch.no_grad()
    def encode(self, counts: Counts, rows: np.ndarray) -> Posterior:
        """See `Backend.encode`."""
        return self.module.encode(counts.minibatch(rows, self.device)[0])

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        return next(self.module.parameters()).device
