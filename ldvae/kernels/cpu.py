"""One training step of an LDVAE, and its inference, on a CPU: the loops of loops.py put together, without autograd."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldvae.kernels.loops import (
    BLOCK,
    Adam,
    ByGene,
    Decoder,
    Encoder,
    Inputs,
    Minibatch,
    Moments,
    adam_step,
    decode,
    decoder_gradient,
    draw,
    draw_gradient,
    encoder_gradient,
    first_layers,
    first_layers_step,
    heads_forward,
    hidden_forward,
    hidden_inference,
    input_gradient,
    likelihood,
    moments_of,
    softmax_scales,
)

f32 = np.float32
KINDS = {"poisson": 0, "nb": 1, "zinb": 2}

_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)  # a child process has the pool, but not its threads


def spread(function: Any, n: int, *args: Any) -> None:
    """Call function(begin, end, *args) on ranges that make up 0 to n, side by side on as many threads as torch uses.

    Plain threads, as the kernels hold no lock of the interpreter: numba's own would spin while they wait (OpenMP), or
    stop the process when two trainings share it (workqueue); and they take twice as long to compile.
    """
    n_threads = min(torch.get_num_threads(), n)
    if n_threads > 1 and n_threads not in _pools:
        _pools[n_threads] = ThreadPoolExecutor(n_threads - 1, thread_name_prefix="ldvae")
    bounds = [i * n // n_threads for i in range(n_threads + 1)]
    others = [_pools[n_threads].submit(function, *bounds[i : i + 2], *args) for i in range(1, n_threads)]
    function(0, bounds[1], *args)
    for other in others:
        other.result()


_NONE1, _NONE2, _NONE3 = (np.empty((0,) * n, f32) for n in (1, 2, 3))


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


def encoder_tensors(encoder: Any) -> list[Tensor]:
    """Parameters of an encoder of one hidden layer, in the order of `Encoder`."""
    modules = (encoder.layers[0], encoder.norms[0], encoder.mean, encoder.log_var)
    return [tensor for module in modules for tensor in (module.weight, module.bias)]


def decoder_tensors(decoder: Any) -> list[Tensor | None]:
    """Parameters of a decoder in the order of `Decoder`."""
    norm = (None, None) if decoder.norm is None else (decoder.norm.weight, decoder.norm.bias)
    return [decoder.weight, decoder.bias, *norm]


def running_moments(norm: Any) -> Moments:
    """Running moments of a batch norm in the memory of its tensors, or of none."""
    return Moments(_NONE1, _NONE1) if norm is None else Moments(array(norm.running_mean), array(norm.running_var))


class EncoderPass:
    """An encoder as arrays, and what one minibatch leaves behind in it."""

    def __init__(self, encoder: Any, n_obs: int) -> None:
        first, *rest = encoder_tensors(encoder)
        self.weights = Encoder(transposed(first), *map(array, rest))
        self.moments = running_moments(encoder.norms[0])
        n_latent, n_hidden = self.weights.mean_weight.shape
        self.hidden, self.normalised, self.hidden_slope = (np.empty((n_obs, n_hidden), f32) for _ in range(3))
        self.inv_std = np.empty(n_hidden, f32)
        self.mean, self.var, self.draw, self.slope, self.mean_slope, self.log_var_slope = (
            np.empty((n_obs, n_latent), f32) for _ in range(6)
        )
        self.kl = np.empty(n_obs, f32)
        self.gradient = Encoder(_NONE2, *map(np.empty_like, self.weights[1:]))

    def forward(self, mask: np.ndarray | None) -> None:
        """Posterior from the first layer's output in `hidden`, with the minibatch's moments if a mask is given."""
        if mask is None:
            hidden_inference(self.hidden, self.weights.scale, self.weights.shift, self.moments)
        else:
            hidden_forward(
                self.hidden, self.weights.scale, self.weights.shift, self.moments, mask, self.normalised, self.inv_std
            )
        heads_forward(self.hidden, self.weights, self.mean, self.var)

    def backward(self, noise: np.ndarray, prior: Moments, kl_weight: float, mask: np.ndarray) -> None:
        """Gradients from that by the draw, in `slope`; `kl_weight` is that of the KL divergence of one cell."""
        draw_gradient(
            self.mean, self.var, noise, *prior, f32(kl_weight), self.slope, self.mean_slope, self.log_var_slope
        )
        encoder_gradient(
            self.hidden,
            self.normalised,
            self.inv_std,
            mask,
            self.mean_slope,
            self.log_var_slope,
            self.weights,
            self.gradient,
            self.hidden_slope,
        )


class DecoderPass:
    """A decoder as arrays, and what one minibatch leaves behind in it."""

    def __init__(self, decoder: Any, n_obs: int, n_latent: int, softmax: bool) -> None:
        self.weights = Decoder(*map(array, decoder_tensors(decoder)))
        self.moments = running_moments(decoder.norm)
        n_vars, n_inputs = self.weights.weight.shape
        n_blocks = -(-n_vars // BLOCK)
        self.tiles, self.slopes = (np.empty((n_blocks, n_obs, BLOCK), f32) for _ in range(2))
        self.folded, self.spread = (np.empty((n_blocks, n_inputs, BLOCK), f32) for _ in range(2))
        self.inv_std = np.empty(n_vars, f32)
        # Sums over a block of genes, which a softmax and the gradients then put together.
        self.highest, self.total, self.scale, self.pull = (
            np.empty((n_blocks, n_obs) if softmax else (0, 0), f32) for _ in range(4)
        )
        self.u_slopes = np.empty((n_blocks, n_obs, n_latent), f32)
        self.cov_slopes = np.empty((n_blocks, n_latent, n_inputs), f32)
        self.gradient = Decoder(*map(np.empty_like, self.weights))

    def forward(self, u: Inputs, training: bool) -> None:
        """Scores, tile by tile; exponentiated if there is a softmax to come."""
        n_obs = len(u.u)
        unbiased = n_obs / (n_obs - 1) if training else 0.0
        spread(
            decode, len(self.tiles), u, self.weights, self.moments, f32(unbiased),
            self.folded, self.inv_std, self.spread, self.tiles, self.highest, self.total,
        )  # fmt: skip

    def backward(self, u: Inputs, weight: float, u_slope: np.ndarray) -> None:
        """Gradients from that by the scores, in `slopes`; that by z is added to `u_slope`."""
        spread(
            decoder_gradient, len(self.tiles), self.tiles, self.pull, self.slopes, f32(weight), u,
            self.folded, self.inv_std, self.spread, self.weights, self.gradient, self.u_slopes, self.cov_slopes,
        )  # fmt: skip
        input_gradient(self.u_slopes, self.cov_slopes, u.centred, self.weights.scale.size > 0, u_slope)


class Pass:
    """A module as arrays, with the memory that minibatches of `n_obs` cells need."""

    def __init__(self, module: Any, n_obs: int) -> None:
        shape, config = module.shape, module.config
        self.z = EncoderPass(module.z_encoder, n_obs)
        self.library = None if module.l_encoder is None else EncoderPass(module.l_encoder, n_obs)
        self.decoder = DecoderPass(module.decoder, n_obs, config.n_latent, softmax=True)
        self.zi = None if module.zi_decoder is None else DecoderPass(module.zi_decoder, n_obs, config.n_latent, False)
        n_inputs = self.decoder.weights.weight.shape[1]
        square = np.empty((n_inputs, n_inputs), f32)
        tall = [np.empty((n_obs, n_inputs), f32) for _ in range(2)]
        columns = (config.n_latent, shape.n_batch if shape.n_batch > 1 else 0)
        self.u = Inputs(tall[0], np.empty(n_inputs, f32), tall[1], square, np.zeros(n_obs, np.int64), *columns)
        self.log_theta = array(module.log_theta).reshape(shape.n_vars, -1) if module.log_theta is not None else _NONE2
        self.theta_gradient = np.empty_like(self.log_theta)
        self.log_prob, self.mean_slope = (np.empty_like(self.decoder.highest) for _ in range(2))
        self.standard = Moments(np.zeros(n_obs, f32), np.ones(n_obs, f32))
        self.genes = no_entries(shape.n_vars)
        # Of the minibatch at hand; lists go over `encoders`.
        self.noise: list[np.ndarray] = []
        self.masks: list[np.ndarray] = []
        self.priors: list[Moments] = []
        self.log_total = _NONE1

    @property
    def encoders(self) -> list[EncoderPass]:
        """The encoders there are."""
        return [self.z] if self.library is None else [self.z, self.library]

    @property
    def decoders(self) -> list[DecoderPass]:
        """The decoders there are."""
        return [self.decoder] if self.zi is None else [self.decoder, self.zi]


class Terms(NamedTuple):
    """The parts of the negative ELBO of each cell, in nats, shape (n_obs,)."""

    reconstruction: np.ndarray
    kl_z: np.ndarray
    kl_library: np.ndarray


class AdamState:
    """The state of a torch.optim.Adam as arrays, in the memory of its tensors; what is missing is created."""

    def __init__(self, module: Any, optimizer: Any) -> None:
        self.group = optimizer.param_groups[0]
        encoders = [encoder_tensors(e) for e in (module.z_encoder, module.l_encoder) if e is not None]
        decoders = [decoder_tensors(d) for d in (module.decoder, module.zi_decoder) if d is not None]
        first_layers = [tensors[0] for tensors in encoders]
        others = [tensor for tensors in encoders for tensor in tensors[1:]]
        others += [tensor for tensors in decoders for tensor in tensors if tensor is not None]
        others += [] if module.log_theta is None else [module.log_theta]
        for parameter in first_layers + others:
            if not optimizer.state[parameter]:
                zeros = [torch.zeros_like(parameter, memory_format=torch.preserve_format) for _ in range(2)]
                optimizer.state[parameter] = {"step": torch.zeros(()), "exp_avg": zeros[0], "exp_avg_sq": zeros[1]}
        states = [optimizer.state[parameter] for parameter in first_layers + others]
        self.steps = [array(state["step"]) for state in states]
        names = ("exp_avg", "exp_avg_sq")
        self.first_layers = [[transposed(optimizer.state[p][name]) for name in names] for p in first_layers]
        self.others = tuple(array(parameter).reshape(-1) for parameter in others)
        self.firsts, self.seconds = (
            tuple(array(optimizer.state[parameter][name]).reshape(-1) for parameter in others) for name in names
        )

    def step(self, work: Pass) -> None:
        """Update all parameters from the gradients in `work`."""
        for step in self.steps:
            step += 1
        n_steps = float(self.steps[0])
        beta1, beta2 = self.group["betas"]
        adam = Adam(
            rate=f32(self.group["lr"] / (1 - beta1**n_steps)),
            root=f32(1 / math.sqrt(1 - beta2**n_steps)),
            beta1=f32(beta1),
            beta2=f32(beta2),
            eps=f32(self.group["eps"]),
            weight_decay=f32(self.group["weight_decay"]),
        )
        encoders = [
            (e.hidden_slope, e.weights.weight, *m) for e, m in zip(work.encoders, self.first_layers, strict=True)
        ]
        encoders += [(_NONE2,) * 4] * (2 - len(encoders))
        n_blocks = -(-len(encoders[0][1]) // BLOCK)
        spread(first_layers_step, n_blocks, work.genes, *encoders[0], *encoders[1], adam)
        gradients = [values for e in work.encoders for values in e.gradient[1:]]
        gradients += [values for d in work.decoders for values in d.gradient if values.size]
        gradients += [work.theta_gradient] if work.theta_gradient.size else []
        adam_step(self.others, tuple(g.reshape(-1) for g in gradients), self.firsts, self.seconds, adam)


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
        self.passes: dict[int, Pass] = {}
        self.adam: AdamState | None = None
        self.tracked = [values for name, values in module.named_buffers() if name.endswith("num_batches_tracked")]

    def train(self, counts: Any, rows: np.ndarray, noise: Any, kl_weight: float) -> Tensor:
        """Update the module; sums over cells of reconstruction, KL(z) and KL(library), in nats, shape (3,)."""
        if len(rows) == 1:
            return self.plain.train(counts, rows, noise, kl_weight)
        if self.adam is None:
            self.adam = AdamState(self.module, self.optimizer)
        work = self.work(len(rows))
        terms = self.forward(work, counts, rows, noise, training=True)
        self.backward(work, kl_weight)
        self.adam.step(work)
        for tracked in self.tracked:
            tracked += 1
        return torch.tensor([values.sum(dtype=np.float64) for values in terms], dtype=torch.float32)

    def evaluate(self, counts: Any, rows: np.ndarray, noise: Any) -> Tensor:
        """The same sums without an update."""
        terms = self.elbo_terms(counts, rows, noise)
        return torch.stack([values.double().sum() for values in terms]).float()

    def elbo_terms(self, counts: Any, rows: np.ndarray, noise: Any) -> list[Tensor]:
        """Reconstruction, KL(z) and KL(library) of each cell, in nats, shape (n_obs,)."""
        terms = self.forward(self.work(len(rows)), counts, rows, noise, training=False)
        return [torch.from_numpy(values.astype(f32)) for values in terms]

    def encode(self, counts: Any, rows: np.ndarray) -> list[Tensor | None]:
        """Mean and variance of the posterior of z, (n_obs, n_latent), and of the log library size, (n_obs, 1)."""
        work = self.work(len(rows))
        first_layer(work, minibatch(counts, rows, self.module.config.log_variational), group=False)
        for encoder in work.encoders:
            encoder.forward(None)
        moments = [torch.from_numpy(v.copy()) for encoder in work.encoders for v in (encoder.mean, encoder.var)]
        return moments + [None] * (4 - len(moments))

    def work(self, n_obs: int) -> Pass:
        """Memory for minibatches of this size; that of the last few sizes is kept."""
        if n_obs not in self.passes:
            if len(self.passes) > 3:
                self.passes.clear()
            self.passes[n_obs] = Pass(self.module, n_obs)
        return self.passes[n_obs]

    def forward(self, work: Pass, counts: Any, rows: np.ndarray, noise: Any, training: bool) -> Terms:
        """Each cell's terms of the ELBO."""
        config = self.module.config
        batch = minibatch(counts, rows, config.log_variational)
        covariates = counts.covariates.rows(rows)
        work.masks = [array(masks[0]) if masks else _NONE2 for masks in (noise.z_masks, noise.l_masks)]
        work.noise = [array(noise.z), array(noise.library)]
        first_layer(work, batch, group=True)
        work.priors = [work.standard]
        if work.library is not None:
            index = covariates.batch_index
            module = self.module
            work.priors.append(Moments(array(module.library_log_means[index]), array(module.library_log_vars[index])))
        for encoder, mask, prior, eps in zip(work.encoders, work.masks, work.priors, work.noise, strict=False):
            encoder.forward(mask if training else None)
            draw(encoder.mean, encoder.var, eps, *prior, encoder.draw, encoder.kl)
        u, n_latent = work.u, config.n_latent
        u.u[:, :n_latent] = work.z.draw
        if u.u.shape[1] > n_latent:
            u.u[:, n_latent:] = array(self.module.decoder_input(torch.empty(len(rows), 0), covariates))
            np.add(array(covariates.batch_index), n_latent, out=u.hot)
        if training:
            moments_of(u)
        for decoder in work.decoders:
            decoder.forward(u, training)
        px = work.decoder
        library = array(covariates.library) if work.library is None else work.library.draw
        work.log_total = library.reshape(-1)
        softmax_scales(px.highest, px.total, work.log_total, px.scale)
        theta_row = {"gene-batch": covariates.batch_index, "gene-label": covariates.label_index}.get(config.dispersion)
        spread(
            likelihood, len(px.tiles), KINDS[config.gene_likelihood], work.genes,
            np.zeros(len(rows), np.int64) if theta_row is None else array(theta_row),
            work.log_theta, px.tiles, px.scale,
            _NONE3 if work.zi is None else work.zi.tiles,
            px.slopes,
            _NONE3 if work.zi is None else work.zi.slopes,
            work.theta_gradient, work.log_prob, work.mean_slope,
        )  # fmt: skip
        kl_library = np.zeros(len(rows), f32) if work.library is None else work.library.kl
        return Terms(-work.log_prob.sum(axis=0, dtype=np.float64), work.z.kl, kl_library)

    def backward(self, work: Pass, kl_weight: float) -> None:
        """Gradients of the mean loss per cell, after `forward`."""
        n_obs = len(work.u.u)
        px = work.decoder
        mean_slope = work.mean_slope.sum(axis=0)
        np.multiply(px.scale, mean_slope / np.exp(np.minimum(work.log_total, 88)), out=px.pull)
        work.z.slope[:] = 0
        for decoder in work.decoders:
            decoder.backward(work.u, -1 / n_obs, work.z.slope)
        work.theta_gradient *= f32(-1 / n_obs)
        if work.library is not None:
            work.library.slope[:, 0] = mean_slope * f32(-1 / n_obs)
        for encoder, eps, prior, mask, weight in zip(
            work.encoders, work.noise, work.priors, work.masks, (kl_weight, 1.0), strict=False
        ):
            encoder.backward(eps, prior, weight / n_obs, mask)


def minibatch(counts: Any, rows: np.ndarray, log_variational: bool) -> Minibatch:
    """Where the counts of some cells are."""
    x = counts.x
    starts, stops = x.indptr[rows].astype(np.int64), x.indptr[rows + 1].astype(np.int64)
    return Minibatch(starts, stops, x.indices, x.data, counts.log1p if log_variational else x.data)


def first_layer(work: Pass, batch: Minibatch, group: bool) -> None:
    """First linear layer of the encoders that there are; and the minibatch gene by gene, if it is wanted."""
    first = [(e.weights.weight, e.weights.bias, e.hidden) for e in work.encoders] + [(_NONE2, _NONE1, _NONE2)]
    (z_weight, z_bias, z_out), (l_weight, l_bias, l_out) = first[:2]
    n_obs = len(batch.starts)
    n_parts = n_obs
    if group:
        work.genes = room(work.genes, batch)
        n_parts += 1 + n_obs // 4  # grouping takes as long as these cells
    spread(first_layers, n_parts, batch, work.genes, z_weight, z_bias, l_weight, l_bias, z_out, l_out)


def no_entries(n_vars: int) -> ByGene:
    """An empty minibatch, gene by gene."""
    return ByGene(np.empty(n_vars + 1, np.int64), np.empty(0, np.int32), _NONE1, _NONE1)


def room(genes: ByGene, batch: Minibatch) -> ByGene:
    """Memory for a minibatch gene by gene: that of `genes` where it is large enough."""
    size = int((batch.stops - batch.starts).sum())
    if size <= len(genes.cell):
        return genes
    size += size // 4
    return ByGene(genes.first, np.empty(size, np.int32), np.empty(size, f32), np.empty(size, f32))
