"""How a minibatch is computed: one protocol; plain torch, compiled for a CPU, or captured on a GPU."""

from __future__ import annotations

import logging
import os
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ldvae.backends.plain import PlainBackend
from ldvae.data import Counts
from ldvae.distributed import ALONE, Processes
from ldvae.module import LDVAE, ElboTerms, Noise, Posterior

__all__ = ["Backend", "PlainBackend", "pick_backend", "unsupported"]
logger = logging.getLogger(__name__)


class Backend(Protocol):
    """One way to train and evaluate on a minibatch; all give the same numbers up to rounding.

    `rows` are the cells of a minibatch, int64, shape (n_obs,), as rows of `counts`; -1 for a cell that another of the
    processes has that train the module together.
    """

    @staticmethod
    def unsupported(
        module: LDVAE,
        optimizer: torch.optim.Optimizer | None = None,
        gradient_clip_val: float | None = None,
        processes: Processes = ALONE,
    ) -> str | None:
        """What this backend cannot do of all this, in words; None if it can do all of it."""
        ...

    def train(self, counts: Counts, rows: np.ndarray, noise: Noise, kl_weight: float) -> Tensor:
        """Update the module; sums over cells of reconstruction, KL(z) and KL(library), in nats, shape (3,)."""
        ...

    def evaluate(self, counts: Counts, rows: np.ndarray, noise: Noise) -> Tensor:
        """The same sums without an update."""
        ...

    def elbo_terms(self, counts: Counts, rows: np.ndarray, noise: Noise) -> ElboTerms:
        """Reconstruction, KL(z) and KL(library) of each cell, in nats, shape (n_obs,), on the module's device."""
        ...

    def encode(self, counts: Counts, rows: np.ndarray) -> Posterior:
        """Posterior of z, (n_obs, n_latent), and of the log library size, (n_obs, 1), on the module's device."""
        ...


def pick_backend(
    module: LDVAE,
    optimizer: torch.optim.Optimizer | None = None,
    gradient_clip_val: float | None = None,
    processes: Processes = ALONE,
) -> Backend:
    """The fastest backend that can do all this where the module is; the log says why it is plain torch.

    On a GPU that is plain torch, unless LDVAE_GPU_KERNELS=1 is set: the kernels of cuda.py were tested under Triton's
    interpreter, and have not yet run on a device.

    Parameters
    ----------
    module
        On the device to use.
    optimizer
        Over its parameters; None if nothing is trained.
    gradient_clip_val
        Largest norm of the gradient; None for no limit.
    processes
        Those that train the module together.
    """
    on_gpu = next(module.parameters()).device.type == "cuda"
    if on_gpu and optimizer is not None and os.environ.get("LDVAE_GPU_KERNELS") == "1":
        from ldvae.backends.cuda import CudaBackend

        reason = CudaBackend.unsupported(module, optimizer, gradient_clip_val, processes)
        if reason is None:
            return CudaBackend(module, optimizer)
    else:
        reason = unsupported(module, optimizer, gradient_clip_val, processes)
        if reason is None:
            from ldvae.backends.compiling import compile_alone
            from ldvae.backends.cpu.backend import CpuBackend
            from ldvae.backends.cpu.step import keep, step

            for function in (keep, step):
                compile_alone(function)
            return CpuBackend(module, optimizer)
    logger.log(logging.INFO if optimizer else logging.DEBUG, "Plain torch: %s.", reason)
    return PlainBackend(module, optimizer, gradient_clip_val, processes)


def unsupported(
    module: LDVAE,
    optimizer: torch.optim.Optimizer | None = None,
    gradient_clip_val: float | None = None,
    processes: Processes = ALONE,
) -> str | None:
    """What the compiled step on a CPU cannot do of all this, in words; None if it can do all of it."""
    try:
        from ldvae.backends.cpu.backend import CpuBackend
    except (ImportError, OSError) as error:  # no numba, or one that does not run here
        return f"numba cannot be used ({error})"
    return CpuBackend.unsupported(module, optimizer, gradient_clip_val, processes)
