"""One training step of an LDVAE, and its inference, on a CPU: its tensors as arrays for the loops of loops.py."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldvae.kernels.loops import (
    BLOCK,
    ENCODE,
    EVALUATE,
    NB,
    POISSON,
    TRAIN,
    ZINB,
    Adam,
    Cells,
    Dataset,
    Decoder,
    DecoderPass,
    Draw,
    Encoder,
    EncoderPass,
    Inputs,
    Kept,
    Moments,
    Pass,
    Task,
    Trained,
    keep,
    new_team,
    step,
)

f32 = np.float32
KINDS = {"poisson": POISSON, "nb": NB, "zinb": ZINB}

_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)  # a child process has the pool, but not its threads


def run_team(dataset: Kept, memory: Kept, rows: np.ndarray, draws: tuple[Draw, Draw], task: Task) -> np.ndarray:
    """A step by as many threads as the task says; the team's counters.

    Plain threads, as a step holds no lock of the interpreter: numba's own would spin while they wait (OpenMP), or stop
    the process when two trainings share it (workqueue); and they take twice as long to compile. Nobody waits for the
    others to begin or to end: what they have claimed is done before `step` returns.
    """
    team = new_team()
    if task.n_threads > 1 and task.n_threads not in _pools:
        _pools[task.n_threads] = ThreadPoolExecutor(task.n_threads - 1, thread_name_prefix="ldvae")
    for _ in range(task.n_threads - 1):
        _pools[task.n_threads].submit(step, team, dataset, memory, rows, draws, task)
    step(team, dataset, memory, rows, draws, task)
    return team


_NONE1, _NONE2 = (np.empty((0,) * n, f32) for n in (1, 2))
_NO_MOMENTS = Moments(_NONE1, _NONE1)
_NO_ENCODER = Encoder(_NONE2, _NONE1, _NONE1, _NONE1, _NONE2, _NONE1, _NONE2, _NONE1)
_NO_DECODER = Decoder(_NONE2, _NONE1, _NONE1, _NONE1)
_NO_DRAW = Draw(_NONE2, _NONE2)
_NO_ADAM = Adam(*[f32(0)] * 6)


def array(tensor: Tensor | None) -> np.ndarray:
    """The memory of a tensor as an array, which is of size 0 for None."""
    if tensor is None:
        return _NONE1
    if not tensor.is_contiguous():
        tensor.data = tensor.data.contiguous()
    return tensor.detach().numpy()


def transposed(tensor: Tensor) -> np.ndarray:
    """The transpose of a matrix as a contiguous array in the memory of the tensor, laid out anew if need be."""
    if not tensor.T.is_contiguous():
        tensor.data = tensor.data.T.contiguous().T
    return tensor.detach().numpy().T


def encoder_tensors(encoder: Any) -> list[Tensor | None]:
    """Parameters of an encoder of one hidden layer, in the order of `Encoder`; None for one that does not exist."""
    if encoder is None:
        return [None] * len(Encoder._fields)
    modules = (encoder.layers[0], encoder.norms[0], encoder.mean, encoder.log_var)
    return [tensor for module in modules for tensor in (module.weight, module.bias)]


def decoder_tensors(decoder: Any) -> list[Tensor | None]:
    """Parameters of a decoder in the order of `Decoder`; None for what does not exist."""
    if decoder is None:
        return [None] * len(Decoder._fields)
    norm = (None, None) if decoder.norm is None else (decoder.norm.weight, decoder.norm.bias)
    return [decoder.weight, decoder.bias, *norm]


def running_moments(norm: Any) -> Moments:
    """Running moments of a batch norm in the memory of its tensors, or of none."""
    return _NO_MOMENTS if norm is None else Moments(array(norm.running_mean), array(norm.running_var))


def encoder_pass(encoder: Any, kl: np.ndarray, first_layer: tuple[np.ndarray, np.ndarray]) -> EncoderPass:
    """An encoder, or None, as arrays, with memory for as many cells as `kl` and Adam's moments of its first weight."""
    n_obs = len(kl)
    if encoder is None:
        weights, moments, n_obs = _NO_ENCODER, _NO_MOMENTS, 0
    else:
        first, *others = encoder_tensors(encoder)
        weights, moments = Encoder(transposed(first), *map(array, others)), running_moments(encoder.norms[0])
    n_latent, n_hidden = weights.mean_weight.shape
    memory: tuple[Any, ...] = (
        Encoder(_NONE2, *map(np.empty_like, weights[1:])),
        first_layer,
        *(np.empty((n_obs, n_hidden), f32) for _ in range(3)),
        np.empty(n_hidden, f32),
        *(np.empty((n_obs, n_latent), f32) for _ in range(6)),
        kl,
    )
    return EncoderPass(weights, moments, *memory)


def decoder_pass(decoder: Any, n_obs: int, n_latent: int, softmax: bool) -> DecoderPass:
    """A decoder as arrays, with memory for `n_obs` cells; it may be None."""
    if decoder is None:
        weights, moments, n_obs = _NO_DECODER, _NO_MOMENTS, 0
    else:
        weights, moments = Decoder(*map(array, decoder_tensors(decoder))), running_moments(decoder.norm)
    n_vars, n_inputs = weights.weight.shape
    n_blocks = -(-n_vars // BLOCK)
    memory: tuple[Any, ...] = (
        Decoder(*map(np.empty_like, weights)),
        *(np.empty((n_blocks, n_obs, BLOCK), f32) for _ in range(2)),
        *(np.zeros((n_blocks, n_inputs, BLOCK), f32) for _ in range(2)),  # beyond the last gene they stay zero
        np.empty(n_vars, f32),
        *(np.empty((n_blocks, n_obs) if softmax else (0, 0), f32) for _ in range(4)),
        np.empty((n_blocks, n_obs, n_latent), f32),
        np.empty((n_blocks, n_latent, n_inputs), f32),
    )
    return DecoderPass(weights, moments, *memory)


class AdamState:
    """The state of a torch.optim.Adam as arrays, in the memory of its tensors; what is missing is created."""

    def __init__(self, module: Any, optimizer: Any) -> None:
        self.group = optimizer.param_groups[0]
        parameters = self.group["params"]
        for parameter in parameters:
            if not optimizer.state[parameter]:
                zeros = [torch.zeros_like(parameter, memory_format=torch.preserve_format) for _ in range(2)]
                optimizer.state[parameter] = {"step": torch.zeros(()), "exp_avg": zeros[0], "exp_avg_sq": zeros[1]}
        self.state = optimizer.state
        steps = torch.stack([self.state[parameter]["step"] for parameter in parameters])
        for parameter, n_steps in zip(parameters, steps, strict=True):
            self.state[parameter]["step"] = n_steps  # a view: they advance together
        self.steps = array(steps)

    def of(self, parameter: Tensor | None, name: str) -> Tensor | None:
        """A parameter's moment of this name; None for no parameter."""
        return None if parameter is None else self.state[parameter][name]

    def advance(self) -> Adam:
        """Begin another step; its factors."""
        self.steps += 1
        n_steps = float(self.steps[0])
        beta1, beta2 = self.group["betas"]
        return Adam(
            rate=f32(self.group["lr"] / (1 - beta1**n_steps)),
            root=f32(1 / math.sqrt(1 - beta2**n_steps)),
            beta1=f32(beta1),
            beta2=f32(beta2),
            eps=f32(self.group["eps"]),
            weight_decay=f32(self.group["weight_decay"]),
        )


MOMENTS = ("exp_avg", "exp_avg_sq")


def first_layer_moments(encoder: Any, adam: AdamState | None) -> tuple[np.ndarray, np.ndarray]:
    """Adam's moments of an encoder's first weight, (n_vars, n_hidden) each."""
    if encoder is None or adam is None:
        return _NONE2, _NONE2
    weight = encoder_tensors(encoder)[0]
    return transposed(adam.of(weight, MOMENTS[0])), transposed(adam.of(weight, MOMENTS[1]))


def make_pass(module: Any, n_obs: int, adam: AdamState | None) -> Pass:
    """A module as arrays, with the memory that minibatches of `n_obs` cells need."""
    shape, config = module.shape, module.config
    encoders, decoders = (module.z_encoder, module.l_encoder), (module.decoder, module.zi_decoder)
    terms = np.zeros((3, n_obs))
    z, library = (encoder_pass(e, k, first_layer_moments(e, adam)) for e, k in zip(encoders, terms[1:], strict=True))
    px, zi = (decoder_pass(d, n_obs, config.n_latent, d is module.decoder) for d in decoders)
    log_theta = _NONE2 if module.log_theta is None else array(module.log_theta).reshape(shape.n_vars, -1)
    theta_gradient = np.empty_like(log_theta)
    standard = Moments(np.zeros(shape.n_batch, f32), np.ones(shape.n_batch, f32))
    of_library = _NO_MOMENTS
    if module.l_encoder is not None:
        of_library = Moments(array(module.library_log_means), array(module.library_log_vars))
    norms = [e and e.norms[0] for e in encoders] + [d and d.norm for d in decoders]

    # All parameters but the first weights, in one order whatever the model has, so that it is compiled once.
    tensors = [t for e in encoders for t in encoder_tensors(e)[1:]] + [t for d in decoders for t in decoder_tensors(d)]
    tensors.append(module.log_theta)
    gradients = [*z.gradient[1:], *library.gradient[1:], *px.gradient, *zi.gradient, theta_gradient]
    moments = [[None if adam is None else adam.of(t, name) for t in tensors] for name in MOMENTS]
    values = [tuple(array(t).reshape(-1) for t in of) for of in (tensors, *moments)]

    n_blocks, n_inputs = px.folded.shape[:2]
    columns = (config.n_latent, shape.n_batch if shape.n_batch > 1 else 0)
    n_terms = n_inputs - max(columns[1] - 1, 0)
    inputs = Inputs(
        np.empty((n_obs, n_inputs), f32),
        np.empty(n_inputs, f32),
        np.empty((n_obs, n_inputs), f32),
        np.empty((n_inputs, n_inputs), f32),
        np.zeros(n_obs, np.int64),
        np.zeros((n_obs, n_terms), np.int32),
        np.empty((n_obs, n_terms), f32),
        *columns,
    )
    return Pass(
        cells=Cells(*(np.empty(n_obs, kind) for kind in (int, int, int, int, f32))),
        encoders=(z, library),
        priors=(standard, of_library),
        decoders=(px, zi),
        trained=Trained(values[0], tuple(g.reshape(-1) for g in gradients), values[1], values[2]),
        tracked=tuple(np.empty(0, int) if n is None else array(n.num_batches_tracked).reshape(-1) for n in norms),
        u=inputs,
        log_theta=log_theta,
        theta_gradient=theta_gradient,
        log_prob=np.empty((n_blocks, n_obs), f32),
        mean_slope=np.empty((n_blocks, n_obs), f32),
        terms=terms,
        gene_starts=np.empty(shape.n_vars + 1, np.int64),
        block_starts=np.empty((n_blocks, n_obs + 1), np.int64),
    )


def make_dataset(counts: Any, module: Any, n_obs: int) -> Dataset:
    """All counts as arrays, with room for those of any `n_obs` cells."""
    offsets = counts.x.indptr.astype(np.int64)
    covariates, config = counts.covariates, module.config
    theta_row = None
    if module.log_theta is not None:
        theta_row = {"gene-batch": covariates.batch_index, "gene-label": covariates.label_index}.get(config.dispersion)
    sizes = np.diff(offsets)
    n_obs = min(n_obs, len(sizes))
    most = int(np.partition(sizes, len(sizes) - n_obs)[len(sizes) - n_obs :].sum())  # memory that nobody uses is free
    return Dataset(
        offsets=offsets,
        indices=counts.genes,
        x=counts.x.data,
        inputs=counts.log1p if config.log_variational else counts.x.data,
        batch=array(covariates.batch_index),
        theta_row=np.empty(0, np.int64) if theta_row is None else array(theta_row),
        log_library=array(covariates.library).reshape(-1),
        by_gene=(np.empty(most, np.int32), np.empty(most, f32)),
        by_block=(np.empty(most, np.uint8), np.empty(most, f32)),
    )


class FusedStep:
    """Train and evaluate a module by compiled loops, in the memory of its own tensors.

    Parameters
    ----------
    module
        An `LDVAE` that `kernels.unsupported` has nothing against.
    optimizer
        `torch.optim.Adam` over its parameters, whose state is kept up to date; not needed to evaluate.
    plain
        The same step in plain torch, for a minibatch of a single cell, which has no moments.
    """

    def __init__(self, module: Any, optimizer: torch.optim.Optimizer | None = None, plain: Any = None) -> None:
        self.module, self.optimizer, self.plain = module, optimizer, plain
        self.passes: dict[int, tuple[Pass, Kept]] = {}
        self.adam: AdamState | None = None
        self.team = new_team()  # of the last step
        self.counts: Any = None  # of the last step; also as compiled code has them, with room for so many cells
        self.kept: Any = None
        self.room = 0

    def train(self, counts: Any, rows: np.ndarray, noise: Any, kl_weight: float) -> Tensor:
        """Update the module; sums over cells of reconstruction, KL(z) and KL(library), in nats, shape (3,)."""
        if len(rows) == 1:
            return self.plain.train(counts, rows, noise, kl_weight)
        if self.adam is None:
            self.adam = AdamState(self.module, self.optimizer)
            self.passes.clear()
        return self.sums(self.run(TRAIN, counts, rows, noise, kl_weight, self.adam.advance()))

    def evaluate(self, counts: Any, rows: np.ndarray, noise: Any) -> Tensor:
        """The same sums without an update."""
        return self.sums(self.run(EVALUATE, counts, rows, noise))

    def elbo_terms(self, counts: Any, rows: np.ndarray, noise: Any) -> list[Tensor]:
        """Reconstruction, KL(z) and KL(library) of each cell, in nats, shape (n_obs,)."""
        return list(torch.from_numpy(self.run(EVALUATE, counts, rows, noise).terms.astype(f32)))

    def encode(self, counts: Any, rows: np.ndarray) -> list[Tensor | None]:
        """Mean and variance of the posterior of z, (n_obs, n_latent), and of the log library size, (n_obs, 1)."""
        z, library = self.run(ENCODE, counts, rows).encoders
        moments = [torch.from_numpy(values.copy()) for values in (z.mean, z.var)]
        if not library.mean.size:
            return [*moments, None, None]
        return [*moments, *(torch.from_numpy(values.copy()) for values in (library.mean, library.var))]

    def run(
        self,
        stage: int,
        counts: Any,
        rows: np.ndarray,
        noise: Any = None,
        kl_weight: float = 1.0,
        adam: Adam = _NO_ADAM,
    ) -> Pass:
        """A step as far as `stage`; results are in the memory for minibatches of this size."""
        work, memory = self.work(len(rows))
        dataset = self.dataset(counts, len(rows))
        draws = (_NO_DRAW, _NO_DRAW)
        if stage > ENCODE:
            masks = [array(m[0]) if m and stage == TRAIN else _NONE2 for m in (noise.z_masks, noise.l_masks)]
            draws = (Draw(array(noise.z), masks[0]), Draw(array(noise.library), masks[1]))
            u, n_hot = work.u, work.u.n_hot
            if u.n_latent + n_hot < u.u.shape[1]:
                others = self.module.decoder_input(torch.empty(len(rows), 0), counts.covariates.rows(rows))
                u.u[:, u.n_latent + n_hot :] = others.numpy()[:, n_hot:]
        n_threads = min(torch.get_num_threads(), len(work.decoders[0].tiles))
        kind = KINDS[self.module.config.gene_likelihood]
        task = Task(stage, kind, (f32(kl_weight), f32(1)), adam, n_threads)
        self.team = run_team(dataset, memory, np.ascontiguousarray(rows, np.int64), draws, task)
        return work

    def work(self, n_obs: int) -> tuple[Pass, Kept]:
        """Memory for minibatches of this size, for Python and for compiled code; that of the last few sizes is kept."""
        if n_obs not in self.passes:
            if len(self.passes) > 3:
                self.passes.clear()
            work = make_pass(self.module, n_obs, self.adam)
            self.passes[n_obs] = work, keep(work)
        return self.passes[n_obs]

    def dataset(self, counts: Any, n_obs: int) -> Kept:
        """The counts for compiled code; those of the last step are kept."""
        if self.counts is not counts or self.room < n_obs:
            self.kept, self.counts, self.room = keep(make_dataset(counts, self.module, n_obs)), counts, n_obs
        return self.kept

    def sums(self, work: Pass) -> Tensor:
        """The sums of the terms of the negative ELBO over the cells."""
        return torch.from_numpy(work.terms.sum(axis=1).astype(f32))
