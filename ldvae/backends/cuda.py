"""The training step on a GPU: counts in GPU memory, one Triton kernel from gene scores to likelihood and gradients.

The step uses fixed memory, so that it is captured once as a CUDA graph and replayed. All but the capture also runs on a
CPU under Triton's interpreter (`TRITON_INTERPRET=1`), by which it is tested.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from scipy import sparse
from torch import Tensor

from ldvae.backends.plain import PlainBackend
from ldvae.data import Counts, Covariates
from ldvae.distributed import ALONE, Processes
from ldvae.module import LDVAE, ElboTerms, Noise, Posterior

KINDS = {"poisson": 0, "nb": 1, "zinb": 2}
BLOCK = 1024  # genes that a program handles at once
WARM_UP = 3  # steps before the capture, which CUDA graphs require


# -- the kernel --------------------------------------------------------------------------------------------------------


@triton.jit
def _log1p(x):
    """log(1 + x) for x >= 0, exact also where 1 + x rounds to 1 (the interpreter has no log1p)."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * (x / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def _softplus(x):
    return tl.maximum(x, 0.0) + _log1p(tl.exp(-tl.abs(x)))


@triton.jit
def _log_gamma_ratio(theta, x):
    """log Gamma(theta + x) - log Gamma(theta) and its derivative w.r.t. theta: recurrence up by 8, then Stirling.

    The ratio is computed directly: a difference of two log Gammas loses all digits for large theta.
    """
    value, grad = x * 0.0, x * 0.0
    for k in tl.static_range(8):
        value += tl.log((theta + k) / (theta + x + k))
        grad += 1.0 / (theta + k) - 1.0 / (theta + x + k)
    z, end = theta + 8.0, theta + 8.0 + x
    log_ratio = _log1p(x / z)
    value += (z - 0.5) * log_ratio + x * (tl.log(end) - 1.0)
    value += (1.0 / 12 - 1.0 / (360 * end * end)) / end - (1.0 / 12 - 1.0 / (360 * z * z)) / z
    grad += log_ratio
    grad += (0.5 + (1.0 / 12 - 1.0 / (120 * z * z)) / z) / z - (0.5 + (1.0 / 12 - 1.0 / (120 * end * end)) / end) / end
    return value, grad


@triton.jit
def _likelihood(
    x, score, library, log_theta, zi, log_prob, by_score, by_library, by_log_theta, by_zi,
    n_vars, theta_stride, KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per cell: softmax over genes, log-likelihood, and its gradients, in three passes over the genes."""
    cell = tl.program_id(0)
    row = cell.to(tl.int64) * n_vars
    top, mass = -float("inf"), 0.0
    for start in range(0, n_vars, BLOCK):
        g = start + tl.arange(0, BLOCK)
        s = tl.load(score + row + g, mask=g < n_vars, other=-float("inf"))
        higher = tl.maximum(top, tl.max(s, axis=0))
        mass = mass * tl.exp(top - higher) + tl.sum(tl.exp(s - higher), axis=0)
        top = higher
    log_factor = tl.load(library + cell) - tl.log(mass) - top
    total, grad_sum = 0.0, 0.0
    for start in range(0, n_vars, BLOCK):
        g = start + tl.arange(0, BLOCK)
        there = g < n_vars
        count = tl.load(x + row + g, mask=there, other=0.0)
        mu = tl.exp(tl.load(score + row + g, mask=there, other=-float("inf")) + log_factor)
        factorial, _ = _log_gamma_ratio(count * 0.0 + 1.0, count)
        if KIND == 0:
            value = tl.where(count > 0, count * tl.log(tl.maximum(mu, 1e-38)), 0.0) - mu - factorial
            grad = count - mu
        else:
            theta = tl.exp(tl.load(log_theta + cell * theta_stride + g, mask=there, other=0.0))
            ratio = mu / (theta + 1e-8)
            both = theta + mu + 1e-8
            log_zero = -theta * _log1p(ratio)
            gamma, by_gamma = _log_gamma_ratio(theta, count)
            value = log_zero + count * (tl.log(mu + 1e-8) - tl.log(both)) + gamma - factorial
            grad = -theta * mu / both + count * (mu / (mu + 1e-8) - mu / both)
            theta_grad = log_zero + theta * (theta / (theta + 1e-8) * mu / both + by_gamma - count / both)
            if KIND == 2:
                logit = tl.load(zi + row + g, mask=there, other=0.0)
                inflated = 1.0 / (1.0 + tl.exp(tl.minimum(-logit, 80.0)))
                counted = tl.where(count > 0, 1.0, 1.0 / (1.0 + tl.exp(tl.minimum(logit - log_zero, 80.0))))
                at_zero = _softplus(log_zero - logit) - _softplus(-logit)
                value = tl.where(count > 0, value - _softplus(logit), at_zero)
                zi_grad = tl.where(count > 0, -inflated, 1.0 - inflated - counted)
                grad, theta_grad = grad * counted, theta_grad * counted
                tl.store(by_zi + row + g, zi_grad, mask=there)
            tl.store(by_log_theta + row + g, theta_grad, mask=there)
        total += tl.sum(tl.where(there, value, 0.0), axis=0)
        grad_sum += tl.sum(tl.where(there, grad, 0.0), axis=0)
        tl.store(by_score + row + g, grad, mask=there)
    for start in range(0, n_vars, BLOCK):
        g = start + tl.arange(0, BLOCK)
        there = g < n_vars
        share = tl.exp(tl.load(score + row + g, mask=there, other=-float("inf")) - top) / mass
        grad = tl.load(by_score + row + g, mask=there, other=0.0)
        tl.store(by_score + row + g, grad - share * grad_sum, mask=there)
    tl.store(log_prob + cell, total)
    tl.store(by_library + cell, grad_sum)


class FusedLikelihood(torch.autograd.Function):
    """Log-likelihood of each cell from gene scores; the gradients come with the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, kind: str, x: Tensor, score: Tensor, library: Tensor, log_theta: Tensor, zi: Tensor
    ) -> Tensor:
        """See `log_prob`."""
        n_obs, n_vars = x.shape
        score, library, log_theta, zi = (values.contiguous() for values in (score, library, log_theta, zi))
        log_prob, by_library = torch.empty_like(library[:, 0]), torch.empty_like(library)
        by_score = torch.empty_like(score)
        by_log_theta = torch.empty_like(score) if kind != "poisson" else log_theta
        by_zi = torch.empty_like(score) if kind == "zinb" else zi
        _likelihood[(n_obs,)](
            x, score, library, log_theta, zi, log_prob, by_score, by_library, by_log_theta, by_zi,
            n_vars, n_vars if len(log_theta) > 1 else 0, KIND=KINDS[kind], BLOCK=BLOCK,
        )  # fmt: skip
        ctx.kind, ctx.one_theta = kind, len(log_theta) == 1
        ctx.save_for_backward(by_score, by_library, by_log_theta, by_zi)
        return log_prob

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Scale each cell's gradients."""
        by_score, by_library, by_log_theta, by_zi = ctx.saved_tensors
        grad = grad[:, None]
        theta = None
        if ctx.kind != "poisson":
            theta = grad.T @ by_log_theta if ctx.one_theta else grad * by_log_theta
        zi = grad * by_zi if ctx.kind == "zinb" else None
        return None, None, grad * by_score, grad * by_library, theta, zi


def log_prob(
    kind: str, x: Tensor, score: Tensor, library: Tensor, log_theta: Tensor | None = None, zi: Tensor | None = None
) -> Tensor:
    """Log-likelihood of each cell, in nats, shape (n_obs,), with gradients w.r.t. all but the counts.

    Parameters
    ----------
    kind
        "nb", "zinb" or "poisson".
    x
        Counts, float32, (n_obs, n_vars).
    score
        Gene scores before the softmax, (n_obs, n_vars).
    library
        Log library size, (n_obs, 1).
    log_theta
        Log inverse dispersion, (1, n_vars) or (n_obs, n_vars).
    zi
        Zero-inflation logits, (n_obs, n_vars).
    """
    none = score.new_zeros(1, 1)
    return FusedLikelihood.apply(
        kind, x, score, library, none if log_theta is None else log_theta, none if zi is None else zi
    )


# -- counts on the device ----------------------------------------------------------------------------------------------


@triton.jit
def _gather(starts, stops, indices, values, out, n_vars, BLOCK: tl.constexpr):
    """Copy the counts of one cell per program into a row of zeros."""
    cell = tl.program_id(0)
    begin, end = tl.load(starts + cell), tl.load(stops + cell)
    for start in range(begin, end, BLOCK):
        k = start + tl.arange(0, BLOCK)
        gene = tl.load(indices + k, mask=k < end, other=0)
        tl.store(out + cell.to(tl.int64) * n_vars + gene, tl.load(values + k, mask=k < end, other=0.0), mask=k < end)


class DeviceCounts(NamedTuple):
    """CSR counts on a device."""

    indptr: Tensor
    indices: Tensor
    values: Tensor
    n_vars: int

    @classmethod
    def of(cls, x: sparse.csr_matrix, device: torch.device) -> DeviceCounts:
        """A scipy CSR matrix, copied to the device."""
        indptr, indices, values = (
            torch.from_numpy(v).to(device) for v in (x.indptr.astype(np.int64), x.indices, x.data)
        )
        return cls(indptr, indices, values, x.shape[1])

    def minibatch(self, rows: Tensor) -> Tensor:
        """Dense counts of some cells, (n_obs, n_vars)."""
        out = self.values.new_zeros(len(rows), self.n_vars)
        starts, stops = self.indptr[rows], self.indptr[rows + 1]
        _gather[(len(rows),)](starts, stops, self.indices, self.values, out, self.n_vars, BLOCK=BLOCK)
        return out


# -- the step ----------------------------------------------------------------------------------------------------------


class CudaBackend:
    """Training step on a GPU, captured as a CUDA graph; minibatches of another size run step by step.

    Inference, and counts that are not in memory, use plain torch.

    Parameters
    ----------
    module, optimizer
        On the device.
    """

    def __init__(self, module: LDVAE, optimizer: torch.optim.Optimizer) -> None:
        self.module, self.optimizer = module, optimizer
        self.plain = PlainBackend(module, optimizer)
        self.device = next(module.parameters()).device
        self.counts: tuple[Counts, DeviceCounts, Covariates] | None = None  # as given, and on the device
        self.graph: torch.cuda.CUDAGraph | None = None
        self.graph_key: tuple[int | float, ...] = ()
        self.inputs: list[Tensor] = []
        self.sums: Tensor | None = None
        self.n_steps = 0

    @staticmethod
    def unsupported(
        module: LDVAE,
        optimizer: torch.optim.Optimizer | None = None,
        gradient_clip_val: float | None = None,
        processes: Processes = ALONE,
    ) -> str | None:
        """See `Backend.unsupported`."""
        if module.likelihood.name not in KINDS:
            return f"the GPU kernels have the likelihoods {', '.join(KINDS)}, not {module.likelihood.name!r}"
        if gradient_clip_val is not None:
            return "the GPU step does not clip gradients"
        if processes.are_several:
            return f"the GPU step trains in one process, not in {processes.world_size}"
        if not isinstance(optimizer, torch.optim.Adam | None):
            return f"the GPU step has Adam, not {type(optimizer).__name__}"
        return None

    def train(self, counts: Counts, rows: np.ndarray, noise: Noise, kl_weight: float) -> Tensor:
        """Update the module; sums over cells of reconstruction, KL(z) and KL(library), in nats, shape (3,)."""
        if self.counts is None:
            self.counts = (counts, DeviceCounts.of(counts.x, self.device), counts.covariates.to(self.device))
            self.make_capturable()
        if counts is not self.counts[0]:  # a block of counts that stay on disk
            return self.plain.train(counts, rows, noise, kl_weight)
        weight = torch.tensor(kl_weight)
        fresh = [torch.from_numpy(rows), weight, noise.z, noise.library, *noise.z_masks, *noise.l_masks]
        key = (len(rows), len(noise.z_masks), len(noise.l_masks), self.optimizer.param_groups[0]["lr"])
        self.n_steps += 1
        if self.device.type != "cuda" or self.n_steps <= WARM_UP:
            return self.update([values.to(self.device) for values in fresh], noise)
        if key != self.graph_key:
            if self.graph_key and key[0] != self.graph_key[0]:  # the last minibatch of an epoch
                return self.update([values.to(self.device) for values in fresh], noise)
            self.capture(fresh, noise)
            self.graph_key = key
        for static, values in zip(self.inputs, fresh, strict=True):
            static.copy_(values, non_blocking=True)
        assert self.graph is not None
        assert self.sums is not None
        self.graph.replay()
        return self.sums.clone()

    def evaluate(self, counts: Counts, rows: np.ndarray, noise: Noise) -> Tensor:
        """The same sums without an update."""
        return self.plain.evaluate(counts, rows, noise)

    def elbo_terms(self, counts: Counts, rows: np.ndarray, noise: Noise) -> ElboTerms:
        """See `Backend.elbo_terms`."""
        return self.plain.elbo_terms(counts, rows, noise)

    def encode(self, counts: Counts, rows: np.ndarray) -> Posterior:
        """See `Backend.encode`."""
        return self.plain.encode(counts, rows)

    def update(self, inputs: list[Tensor], noise: Noise) -> Tensor:
        """One step from tensors on the device; `noise` gives the form of the masks."""
        module = self.module
        assert self.counts is not None
        rows, weight, z_noise, l_noise, *masks = inputs
        n_masks = len(noise.z_masks)
        noise = noise._replace(
            z=z_noise, library=l_noise, z_masks=tuple(masks[:n_masks]), l_masks=tuple(masks[n_masks:])
        )
        x, covariates = self.counts[1].minibatch(rows), self.counts[2].rows(rows)
        q = module.encode(x, noise)
        kl_z = 0.5 * (q.z_var + q.z_mean**2 - 1 - q.z_var.log()).sum(dim=-1)
        if q.l_mean is None or q.l_var is None:
            library, kl_library = covariates.library, torch.zeros_like(kl_z)
        else:
            library = q.l_mean + q.l_var.sqrt() * noise.library
            kl_library = module.library_kl(q.l_mean, q.l_var, covariates.batch_index)
        u = module.decoder_input(module.latent(q.z_mean + q.z_var.sqrt() * noise.z), covariates)
        theta = module.dispersion(u, covariates)
        log_theta = None if theta is None else torch.atleast_2d(theta.log())
        zi = None if module.zi_decoder is None else module.zi_decoder(u)
        reconstruction = -log_prob(module.likelihood.name, x, module.decoder(u), library, log_theta, zi)
        self.optimizer.zero_grad(set_to_none=True)
        (reconstruction + weight * kl_z + kl_library).mean().backward()
        self.optimizer.step()
        return torch.stack([term.detach().sum() for term in (reconstruction, kl_z, kl_library)])

    def make_capturable(self) -> None:
        """Let Adam keep its step count on the device."""
        for group in self.optimizer.param_groups:
            group["capturable"] = self.device.type == "cuda"
        for state in self.optimizer.state.values():  # of a training that was resumed
            state["step"] = state["step"].to(self.device)

    def capture(self, inputs: list[Tensor], noise: Noise) -> None:
        """Record one step, which is not run, on memory of its own for the inputs."""
        self.inputs = [values.to(self.device) for values in inputs]
        self.graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(self.graph):
            self.sums = self.update(self.inputs, noise)
