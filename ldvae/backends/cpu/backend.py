"""Backend that trains, evaluates and encodes with the compiled step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ldvae.backends.cpu.adam import AdamState
from ldvae.backends.cpu.arrays import (
    ENCODE,
    EVALUATE,
    NB,
    POISSON,
    TRAIN,
    ZINB,
    AdamFactors,
    EncoderNoise,
    Pass,
    Task,
    array,
)
from ldvae.backends.cpu.math import f32
from ldvae.backends.cpu.memory import make_dataset, make_pass
from ldvae.backends.cpu.step import Kept, keep, step
from ldvae.backends.cpu.threads import new_team, run_team
from ldvae.backends.plain import PlainBackend
from ldvae.data import Counts
from ldvae.distributed import ALONE, Processes
from ldvae.module import LDVAE, ElboTerms, Noise, Posterior

KINDS = {"poisson": POISSON, "nb": NB, "zinb": ZINB}
_NO_MASK = np.empty((0, 0), f32)
_NO_DRAW = EncoderNoise(_NO_MASK, _NO_MASK)
_NO_ADAM = AdamFactors(*[f32(0)] * 6)


class CpuBackend:
    """Train and evaluate a module by compiled loops that share the memory of its tensors.

    Parameters
    ----------
    module
        Supported by this backend (`unsupported`).
    optimizer
        `torch.optim.Adam` over its parameters, whose state is updated; not needed to evaluate.
    """

    def __init__(self, module: LDVAE, optimizer: torch.optim.Optimizer | None = None) -> None:
        self.module, self.optimizer = module, optimizer
        self.plain = PlainBackend(module, optimizer)  # for minibatches of one cell, which has no variance
        self.passes: dict[int, tuple[Pass, Kept]] = {}
        self.adam: AdamState | None = None
        self.team = new_team()  # of the last step
        self.counts: Counts | None = None  # of the last step; and unboxed, with room for so many cells
        self.kept: Kept | None = None
        self.room = 0

    @staticmethod
    def unsupported(
        module: LDVAE,
        optimizer: torch.optim.Optimizer | None = None,
        gradient_clip_val: float | None = None,
        processes: Processes = ALONE,
    ) -> str | None:
        """See `Backend.unsupported`."""
        config, parameter = module.config, next(module.parameters())
        if parameter.device.type != "cpu":
            return f"the module is on {parameter.device}, the compiled step runs on a CPU"
        if parameter.dtype != torch.float32:
            return f"the module is in {parameter.dtype}, the compiled step in float32"
        if module.likelihood.name not in KINDS:
            return f"the compiled step has the likelihoods {', '.join(KINDS)}, not {module.likelihood.name!r}"
        if config.n_layers != 1:
            return f"the compiled step has one hidden layer, not {config.n_layers}"
        if config.latent_distribution != "normal":
            return f"the compiled step has no latent distribution {config.latent_distribution!r}"
        if module.log_theta_head is not None:
            return "the compiled step has no dispersion 'gene-cell'"
        if gradient_clip_val is not None:
            return "the compiled step does not clip gradients"
        if processes.are_several:
            return f"the compiled step trains in one process, not in {processes.world_size}"
        if optimizer is not None:
            options = [group.get("amsgrad") or group.get("maximize") for group in optimizer.param_groups]
            adam = isinstance(optimizer, torch.optim.Adam) and not isinstance(optimizer, torch.optim.AdamW)
            if not adam or any(options) or len(options) > 1:
                return f"the compiled step has plain Adam, not {type(optimizer).__name__} with these options"
        return None

    def train(self, counts: Counts, rows: np.ndarray, noise: Noise, kl_weight: float) -> Tensor:
        """Update the module; sums over cells of reconstruction, KL(z) and KL(library), in nats, shape (3,)."""
        if len(rows) == 1:
            return self.plain.train(counts, rows, noise, kl_weight)
        if self.adam is None:
            assert self.optimizer is not None
            self.adam = AdamState(self.optimizer)
            self.passes.clear()
        return self.sums(self.run(TRAIN, counts, rows, noise, kl_weight, self.adam.advance()))

    def evaluate(self, counts: Counts, rows: np.ndarray, noise: Noise) -> Tensor:
        """The same sums without an update."""
        return self.sums(self.run(EVALUATE, counts, rows, noise))

    def elbo_terms(self, counts: Counts, rows: np.ndarray, noise: Noise) -> ElboTerms:
        """Reconstruction, KL(z) and KL(library) of each cell, in nats, shape (n_obs,)."""
        return ElboTerms(*torch.from_numpy(self.run(EVALUATE, counts, rows, noise).terms.astype(f32)))

    def encode(self, counts: Counts, rows: np.ndarray) -> Posterior:
        """Mean and variance of the posterior of z, (n_obs, n_latent), and of the log library size, (n_obs, 1)."""
        z, library = self.run(ENCODE, counts, rows).encoders
        z_mean, z_var = torch.from_numpy(z.mean.copy()), torch.from_numpy(z.var.copy())
        if not library.mean.size:
            return Posterior(z_mean, z_var, None, None)
        return Posterior(z_mean, z_var, torch.from_numpy(library.mean.copy()), torch.from_numpy(library.var.copy()))

    def run(
        self,
        stage: int,
        counts: Counts,
        rows: np.ndarray,
        noise: Noise | None = None,
        kl_weight: float = 1.0,
        adam: AdamFactors = _NO_ADAM,
    ) -> Pass:
        """Run a step up to `stage`; returns the memory that holds the results."""
        work, memory = self.work(len(rows))
        dataset = self.dataset(counts, len(rows))
        draws = (_NO_DRAW, _NO_DRAW)
        if noise is not None:
            masks = [array(m[0]) if m and stage == TRAIN else _NO_MASK for m in (noise.z_masks, noise.l_masks)]
            draws = (EncoderNoise(array(noise.z), masks[0]), EncoderNoise(array(noise.library), masks[1]))
            u, n_hot = work.u, work.u.n_hot
            if u.n_latent + n_hot < u.u.shape[1]:
                others = self.module.decoder_input(torch.empty(len(rows), 0), counts.covariates.rows(rows))
                u.u[:, u.n_latent + n_hot :] = others.numpy()[:, n_hot:]
        n_threads = min(torch.get_num_threads(), len(work.decoders[0].tiles))
        kind = KINDS[self.module.likelihood.name]
        task = Task(stage, kind, (f32(kl_weight), f32(1)), adam, n_threads)
        self.team = run_team(step, n_threads, dataset, memory, np.ascontiguousarray(rows, np.int64), draws, task)
        return work

    def work(self, n_obs: int) -> tuple[Pass, Kept]:
        """Memory for minibatches of this size, for Python and for compiled code; kept for the last few sizes."""
        if n_obs not in self.passes:
            if len(self.passes) > 3:
                self.passes.clear()
            work = make_pass(self.module, n_obs, self.adam)
            self.passes[n_obs] = work, keep(work)
        return self.passes[n_obs]

    def dataset(self, counts: Counts, n_obs: int) -> Kept:
        """The counts for compiled code; kept from the last step."""
        if self.kept is None or self.counts is not counts or self.room < n_obs:
            self.kept, self.counts, self.room = keep(make_dataset(counts, self.module, n_obs)), counts, n_obs
        return self.kept

    def sums(self, work: Pass) -> Tensor:
        """The sums of the terms of the negative ELBO over the cells."""
        return torch.from_numpy(work.terms.sum(axis=1).astype(f32))
