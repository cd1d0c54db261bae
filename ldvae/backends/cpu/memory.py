"""Views of a module, its optimizer and the counts as arrays, and the memory of a step."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ldvae.backends.cpu.adam import AdamState
from ldvae.backends.cpu.arrays import (
    BLOCK,
    CountsArrays,
    DecoderArrays,
    DecoderPass,
    EncoderArrays,
    EncoderPass,
    Inputs,
    MinibatchCells,
    Pass,
    RunningMoments,
    Trained,
    array,
    transposed,
)
from ldvae.backends.cpu.math import f32
from ldvae.data import Counts
from ldvae.module import LDVAE, BatchNorm, Encoder, LinearDecoder

_NONE1, _NONE2 = (np.empty((0,) * n, f32) for n in (1, 2))
_NO_MOMENTS = RunningMoments(_NONE1, _NONE1)
_NO_ENCODER = EncoderArrays(_NONE2, _NONE1, _NONE1, _NONE1, _NONE2, _NONE1, _NONE2, _NONE1)
_NO_DECODER = DecoderArrays(_NONE2, _NONE1, _NONE1, _NONE1)


def encoder_tensors(encoder: Encoder | None) -> list[Tensor | None]:
    """Parameters of an encoder of one hidden layer, in the order of `EncoderArrays`; None for a missing one."""
    if encoder is None:
        return [None] * len(EncoderArrays._fields)
    modules = (encoder.first, encoder.batch_norms[0], encoder.mean, encoder.log_var)
    return [tensor for module in modules for tensor in (module.weight, module.bias)]


def decoder_tensors(decoder: LinearDecoder | None) -> list[Tensor | None]:
    """Parameters of a decoder in the order of `DecoderArrays`; None for what does not exist."""
    if decoder is None:
        return [None] * len(DecoderArrays._fields)
    norm = (None, None) if decoder.norm is None else (decoder.norm.weight, decoder.norm.bias)
    return [decoder.weight, decoder.bias, *norm]


def running_moments(norm: BatchNorm | None) -> RunningMoments:
    """Running moments of a batch norm as views of its tensors; of size 0 for None."""
    return _NO_MOMENTS if norm is None else RunningMoments(array(norm.running_mean), array(norm.running_var))


def encoder_pass(encoder: Encoder | None, kl: np.ndarray, first_layer: tuple[np.ndarray, np.ndarray]) -> EncoderPass:
    """An encoder, or None, as arrays, with memory for as many cells as `kl` and Adam's moments of its first weight."""
    n_obs = len(kl)
    if encoder is None:
        weights, moments, n_obs = _NO_ENCODER, _NO_MOMENTS, 0
    else:
        _, *others = encoder_tensors(encoder)
        weights = EncoderArrays(transposed(encoder.first.weight), *map(array, others))
        moments = running_moments(encoder.batch_norms[0])
    n_latent, n_hidden = weights.mean_weight.shape
    memory: tuple[Any, ...] = (
        EncoderArrays(_NONE2, *map(np.empty_like, weights[1:])),
        first_layer,
        *(np.empty((n_obs, n_hidden), f32) for _ in range(3)),
        np.empty(n_hidden, f32),
        *(np.empty((n_obs, n_latent), f32) for _ in range(6)),
        kl,
    )
    return EncoderPass(weights, moments, *memory)


def decoder_pass(decoder: LinearDecoder | None, n_obs: int, n_latent: int, softmax: bool) -> DecoderPass:
    """A decoder as arrays, with memory for `n_obs` cells; it may be None."""
    if decoder is None:
        weights, moments, n_obs = _NO_DECODER, _NO_MOMENTS, 0
    else:
        weights, moments = DecoderArrays(*map(array, decoder_tensors(decoder))), running_moments(decoder.norm)
    n_vars, n_inputs = weights.weight.shape
    n_blocks = -(-n_vars // BLOCK)
    memory: tuple[Any, ...] = (
        DecoderArrays(*map(np.empty_like, weights)),
        *(np.empty((n_blocks, n_obs, BLOCK), f32) for _ in range(2)),
        *(np.zeros((n_blocks, n_inputs, BLOCK), f32) for _ in range(2)),  # beyond the last gene they stay zero
        np.empty(n_vars, f32),
        *(np.empty((n_blocks, n_obs) if softmax else (0, 0), f32) for _ in range(4)),
        np.empty((n_blocks, n_obs, n_latent), f32),
        np.empty((n_blocks, n_latent, n_inputs), f32),
    )
    return DecoderPass(weights, moments, *memory)


MOMENTS = ("exp_avg", "exp_avg_sq")


def first_layer_moments(encoder: Encoder | None, adam: AdamState | None) -> tuple[np.ndarray, np.ndarray]:
    """Adam's moments of an encoder's first weight, (n_vars, n_hidden) each."""
    if encoder is None or adam is None:
        return _NONE2, _NONE2
    first, second = (adam.state[encoder.first.weight][name] for name in MOMENTS)
    return transposed(first), transposed(second)


def make_pass(module: LDVAE, n_obs: int, adam: AdamState | None) -> Pass:
    """A module as arrays, with the memory that minibatches of `n_obs` cells need."""
    shape, config = module.shape, module.config
    encoders, decoders = (module.z_encoder, module.l_encoder), (module.decoder, module.zi_decoder)
    terms = np.zeros((3, n_obs))
    z, library = (encoder_pass(e, k, first_layer_moments(e, adam)) for e, k in zip(encoders, terms[1:], strict=True))
    px, zi = (decoder_pass(d, n_obs, config.n_latent, d is module.decoder) for d in decoders)
    log_theta = _NONE2 if module.log_theta is None else array(module.log_theta).reshape(shape.n_vars, -1)
    theta_gradient = np.empty_like(log_theta)
    standard = RunningMoments(np.zeros(shape.n_batch, f32), np.ones(shape.n_batch, f32))
    of_library = _NO_MOMENTS
    if module.l_encoder is not None:
        of_library = RunningMoments(array(module.library_log_means), array(module.library_log_vars))
    norms = [None if e is None else e.batch_norms[0] for e in encoders]
    norms += [None if d is None else d.norm for d in decoders]

    # All parameters but the first weights, in a fixed order for every model, so that the step is compiled once.
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
        cells=MinibatchCells(*(np.empty(n_obs, kind) for kind in (int, int, int, int, f32))),
        encoders=(z, library),
        priors=(standard, of_library),
        decoders=(px, zi),
        trained=Trained(values[0], tuple(g.reshape(-1) for g in gradients), values[1], values[2]),
        tracked=tuple(np.empty(0, int) if n is None else array(n.num_batches_tracked).reshape(-1) for n in norms),
        u=inputs,
        log_theta=log_theta,
        theta_gradient=theta_gradient,
        log_prob=np.empty((n_blocks, n_obs), f32),
        mean_grad=np.empty((n_blocks, n_obs), f32),
        terms=terms,
        gene_starts=np.empty(shape.n_vars + 1, np.int64),
        block_starts=np.empty((n_blocks, n_obs + 1), np.int64),
    )


def make_dataset(counts: Counts, module: LDVAE, n_obs: int) -> CountsArrays:
    """All counts as arrays, with room for those of any `n_obs` cells."""
    offsets = counts.x.indptr.astype(np.int64)
    covariates, config = counts.covariates, module.config
    theta_row = None
    if module.log_theta is not None:
        theta_row = {"gene-batch": covariates.batch_index, "gene-label": covariates.label_index}.get(config.dispersion)
    sizes = np.diff(offsets)
    n_obs = min(n_obs, len(sizes))
    # Room for the cells with the most entries; memory that is not used costs nothing.
    most = int(np.partition(sizes, len(sizes) - n_obs)[len(sizes) - n_obs :].sum())
    return CountsArrays(
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
