"""Fused training step and inference, where they can serve; plain torch does the same elsewhere."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch

logger = logging.getLogger(__name__)


def fused_step(module: Any, optimizer: torch.optim.Optimizer | None = None, plain: Any = None) -> Any | None:
    """The training step and inference of this module as fused kernels, or None where plain torch has to do.

    On a GPU plain torch serves, unless LDVAE_GPU_KERNELS=1 is set: cuda.py has been tested under Triton's interpreter,
    but has not yet run on a device.

    Parameters
    ----------
    module
        An `LDVAE`, on the device to train on.
    optimizer
        Over its parameters; None if nothing is trained.
    plain
        The training step in plain torch, for minibatches of a single cell.
    """
    on_gpu = next(module.parameters()).device.type == "cuda"
    if on_gpu and optimizer is not None and os.environ.get("LDVAE_GPU_KERNELS") == "1":
        from ldvae.kernels.cuda import DeviceStep

        return DeviceStep(module, optimizer, plain)
    reason = unsupported(module, optimizer)
    if reason is None:
        try:
            from ldvae.kernels.cpu import FusedStep
        except (ImportError, OSError) as error:  # no numba, or one that does not run here
            reason = f"numba cannot be used ({error})"
        else:
            return FusedStep(module, optimizer, plain)
    logger.log(logging.INFO if optimizer else logging.DEBUG, "Plain torch: %s.", reason)
    return None


def unsupported(module: Any, optimizer: torch.optim.Optimizer | None) -> str | None:
    """What the fused step cannot do of all this, in words; None if it can do all of it."""
    config = module.config
    parameter = next(module.parameters())
    if parameter.device.type != "cpu":
        return f"the module is on {parameter.device}, the fused step runs on a CPU"
    if parameter.dtype != torch.float32:
        return f"the module is in {parameter.dtype}, the fused step in float32"
    if config.n_layers != 1:
        return f"the fused step has one hidden layer, not {config.n_layers}"
    if config.latent_distribution != "normal":
        return f"the fused step has no latent distribution {config.latent_distribution!r}"
    if config.gene_likelihood != "poisson" and config.dispersion == "gene-cell":
        return "the fused step has no dispersion 'gene-cell'"
    if optimizer is not None:
        options = [group.get("amsgrad") or group.get("maximize") for group in optimizer.param_groups]
        adam = isinstance(optimizer, torch.optim.Adam) and not isinstance(optimizer, torch.optim.AdamW)
        if not adam or any(options) or len(options) > 1:
            return f"the fused step has plain Adam, not {type(optimizer).__name__} with these options"
    return None
