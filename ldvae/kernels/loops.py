"""The loops of a training step and of inference on a CPU, compiled by numba.

Genes are handled in blocks of `BLOCK` (a tile: all cells of the minibatch by one block) and each sum runs in an order
that does not depend on the number of threads: neither do the results. Functions that take `begin` and `end` do that
range of blocks (or cells), and are meant to run side by side.

Notes
-----
For nb with mean mu, the terms at x = 0 are needed for every gene, the others only at the nonzero counts::

    log p(x) = -theta log1p(mu / theta)                              every gene
               + x (log mu - log(theta + mu))                        nonzero counts
               + log Gamma(x + theta) - log Gamma(theta) - log x!    nonzero counts

and log Gamma(x + theta) - log Gamma(theta) is the sum of log(theta + k), k < x, for the small integers that counts are.
The decoder is linear in u, so the batch norm of gene g follows from the mean m and the covariance C of u over the
minibatch: mean w_g'm, variance w_g'C w_g.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

f32 = np.float32

BLOCK = 128  # genes in a tile: 128 cells x 128 genes stay in the L2 cache
ENCODER_BLOCK = 256  # genes whose first-layer weights (two encoders, 128 units) stay in the L2 cache
SMALL = 16  # counts up to here have their log Gamma differences in tables
EPS = f32(1e-8)  # as in likelihoods.py
VAR_EPS = f32(1e-4)  # as in module.py, like the next two
BN_EPS = f32(1e-3)
BN_MOMENTUM = f32(0.01)

# Sums may be reordered, so that they vectorise; NaN and infinity keep their meaning. Bits stay the same from run to run
# as long as the compiled code takes the same path: it goes one by one where two arrays lie within 256 bytes of each
# other. Hence small arrays of a block of genes are as long as a whole block, and what works on small arrays is exact.
FAST_MATH = {"reassoc", "contract", "arcp", "nsz", "afn"}
# No reordering: these functions rely on the order of their operations.
EXACT_MATH = {"contract"}


def compiled(fastmath: set[str] | frozenset[str] = frozenset(FAST_MATH)) -> Callable[..., Any]:
    """`numba.njit` as every kernel here uses it; cached on disk where a folder for it can be written."""
    # forceinline: a function that is called, not inlined, exists once by itself and once in each caller, optimised in
    # different ways; the process that compiles takes another copy than those that load, with other last digits.
    options = {"fastmath": set(fastmath), "nogil": True, "error_model": "numpy", "forceinline": True}

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # numba found no writable folder for its cache
            return numba.njit(**options)(function)

    return decorate


# -- exp, log and log1p in single precision: libm's do not vectorise, these do -----------------------------------------

_i32, _float = ir.IntType(32), ir.FloatType()
_SQRT_HALF = 0x3F3504F3  # bits of sqrt(1/2)


@intrinsic
def _power_of_two(typing_context, n):
    """2^n for a float n that holds an integer from -126 to 127."""

    def codegen(context, builder, signature, args):
        exponent = builder.add(builder.fptosi(args[0], _i32), _i32(127))
        return builder.bitcast(builder.shl(exponent, _i32(23)), _float)

    return types.float32(types.float32), codegen


@intrinsic
def _exponent(typing_context, x):
    """k in x = 2^k m with m from sqrt(1/2) to sqrt(2), as a float."""

    def codegen(context, builder, signature, args):
        bits = builder.sub(builder.bitcast(args[0], _i32), _i32(_SQRT_HALF))
        return builder.sitofp(builder.ashr(bits, _i32(23)), _float)

    return types.float32(types.float32), codegen


@intrinsic
def _mantissa(typing_context, x):
    """m in x = 2^k m with m from sqrt(1/2) to sqrt(2)."""

    def codegen(context, builder, signature, args):
        bits = builder.sub(builder.bitcast(args[0], _i32), _i32(_SQRT_HALF))
        return builder.bitcast(builder.add(builder.and_(bits, _i32(0x007FFFFF)), _i32(_SQRT_HALF)), _float)

    return types.float32(types.float32), codegen


@compiled(EXACT_MATH)
def exp(x):
    """e^x to 1e-7 relative error, x held within -87 and 88 (Cephes expf)."""
    x = f32(-87) if x < f32(-87) else x
    x = f32(88) if x > f32(88) else x
    half = f32(0.5) if x > f32(0) else f32(-0.5)
    n = f32(np.int32(x * f32(1.44269504) + half))
    r = x - n * f32(0.693359375) - n * f32(-2.12194440e-4)
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    return (p * r * r + r + f32(1)) * _power_of_two(n)


@compiled(EXACT_MATH)
def _log_of_product(f, k):
    """log((1 + f) 2^k) for f from sqrt(1/2) - 1 to sqrt(2) - 1 (Cephes logf)."""
    p = f32(7.0376836292e-2)
    p = p * f - f32(1.1514610310e-1)
    p = p * f + f32(1.1676998740e-1)
    p = p * f - f32(1.2420140846e-1)
    p = p * f + f32(1.4249322787e-1)
    p = p * f - f32(1.6668057665e-1)
    p = p * f + f32(2.0000714765e-1)
    p = p * f - f32(2.4999993993e-1)
    p = p * f + f32(3.3333331174e-1)
    square = f * f
    return f + (p * f * square - f32(0.5) * square + k * f32(-2.12194440e-4)) + k * f32(0.693359375)


@compiled(EXACT_MATH)
def log(x):
    """log(x) to 1e-7 relative error, for normal x > 0."""
    return _log_of_product(_mantissa(x) - f32(1), _exponent(x))


@compiled(EXACT_MATH)
def log1p(x):
    """log(1 + x) to 2e-7 relative error, for x >= 0."""
    k = _exponent(f32(1) + x)
    return _log_of_product(x if k == f32(0) else _mantissa(f32(1) + x) - f32(1), k)


@compiled()
def log_gamma_ratio(z, n):
    """log Gamma(z + n) - log Gamma(z) and its derivative by z, for z >= 16, in double precision (Stirling)."""
    end = z + n
    log_ratio = math.log1p(n / z)
    value = (z - 0.5) * log_ratio + n * (math.log(end) - 1) + _stirling(end) - _stirling(z)
    return value, log_ratio + _digamma_tail(end) - _digamma_tail(z)


@compiled()
def _stirling(z):
    """What Stirling's series adds to (z - 1/2) log z - z + log(2 pi) / 2."""
    return (1 / 12 - 1 / (360 * z * z)) / z


@compiled()
def _digamma_tail(z):
    return -(0.5 + (1 / 12 - 1 / (120 * z * z)) / z) / z


LOG_FACTORIAL = np.array([math.lgamma(k + 1) for k in range(SMALL + 1)], np.float32)


# -- what the kernels work on ------------------------------------------------------------------------------------------


class Encoder(NamedTuple):
    """Arrays of an encoder with one hidden layer; those of an encoder that does not exist have size 0."""

    weight: np.ndarray  # (n_vars, n_hidden)
    bias: np.ndarray
    scale: np.ndarray  # of the batch norm
    shift: np.ndarray
    mean_weight: np.ndarray  # (n_latent, n_hidden)
    mean_bias: np.ndarray
    log_var_weight: np.ndarray
    log_var_bias: np.ndarray


class Decoder(NamedTuple):
    """Arrays of a linear decoder; what it does not have (bias, batch norm) has size 0."""

    weight: np.ndarray  # (n_vars, n_inputs)
    bias: np.ndarray
    scale: np.ndarray  # of the batch norm
    shift: np.ndarray


class Inputs(NamedTuple):
    """The decoder's input u = [z, one-hot batch, other covariates] and its moments over the minibatch.

    Of the one-hot columns, `n_latent` to `n_latent + n_hot`, each cell has one, which `hot` names: together they cost
    what one column costs. Their covariance with each other is not stored: it is centre[k] ([k = l] - centre[l]).
    """

    u: np.ndarray  # (n_obs, n_inputs)
    centre: np.ndarray
    centred: np.ndarray
    covariance: np.ndarray  # (n_inputs, n_inputs)
    hot: np.ndarray  # int64, (n_obs,)
    n_latent: int
    n_hot: int


class Moments(NamedTuple):
    """Running mean and variance of a batch norm."""

    mean: np.ndarray
    var: np.ndarray


class Minibatch(NamedTuple):
    """Cells as the places of their counts in CSR arrays: cell b has entries starts[b] to stops[b]."""

    starts: np.ndarray  # int64, (n_obs,)
    stops: np.ndarray
    indices: np.ndarray  # gene of each entry, of the whole data set
    x: np.ndarray  # count of each entry
    inputs: np.ndarray  # what the encoders see of it


class ByGene(NamedTuple):
    """A minibatch gene by gene: gene g has entries first[g] to first[g + 1], cells ascending."""

    first: np.ndarray  # int64, (n_vars + 1,)
    cell: np.ndarray  # int32
    x: np.ndarray
    inputs: np.ndarray


class Adam(NamedTuple):
    """Factors of one step of Adam as torch defines it, weight decay added to the gradient."""

    rate: np.float32  # lr / (1 - beta1^t)
    root: np.float32  # 1 / sqrt(1 - beta2^t)
    beta1: np.float32
    beta2: np.float32
    eps: np.float32
    weight_decay: np.float32


@compiled()
def group_by_gene(batch, genes):
    """Put the entries of a minibatch into `genes` (a `ByGene`)."""
    first = genes.first
    first[:] = 0
    for b in range(len(batch.starts)):
        for k in range(batch.starts[b], batch.stops[b]):
            first[batch.indices[k] + 1] += 1
    for g in range(len(first) - 1):
        first[g + 1] += first[g]
    place = first[:-1].copy()
    for b in range(len(batch.starts)):
        for k in range(batch.starts[b], batch.stops[b]):
            g = batch.indices[k]
            to = place[g]
            place[g] = to + 1
            genes.cell[to] = b
            genes.x[to] = batch.x[k]
            genes.inputs[to] = batch.inputs[k]


# -- encoders ----------------------------------------------------------------------------------------------------------


@compiled(EXACT_MATH)
def _add_rows(out, row, weight, indices, values, start, stop):
    """out[row] += sum of values[k] * weight[indices[k]], k from start to stop; four at a time, for fewer stores."""
    k = start
    while k + 4 <= stop:
        g0, g1, g2, g3 = indices[k], indices[k + 1], indices[k + 2], indices[k + 3]
        v0, v1, v2, v3 = values[k], values[k + 1], values[k + 2], values[k + 3]
        for h in range(weight.shape[1]):
            out[row, h] += v0 * weight[g0, h] + v1 * weight[g1, h] + v2 * weight[g2, h] + v3 * weight[g3, h]
        k += 4
    while k < stop:
        g0, v0 = indices[k], values[k]
        for h in range(weight.shape[1]):
            out[row, h] += v0 * weight[g0, h]
        k += 1


@compiled()
def first_layers(begin, end, batch, genes, z_weight, z_bias, l_weight, l_bias, z_out, l_out):
    """First linear layer of both encoders for the cells from `begin` to `end`, into arrays (n_obs, n_hidden).

    The cells go through the genes together, block by block, so that a block's weights are read from memory once:
    indices ascend within a cell. What comes after the last cell is the grouping of the minibatch by gene.
    """
    if begin <= len(batch.starts) < end:
        group_by_gene(batch, genes)
    end = min(end, len(batch.starts))
    place = batch.starts[begin:end].copy()
    for b in range(begin, end):
        for h in range(len(z_bias)):
            z_out[b, h] = z_bias[h]
        for h in range(len(l_bias)):
            l_out[b, h] = l_bias[h]
    for limit in range(ENCODER_BLOCK, len(z_weight) + ENCODER_BLOCK, ENCODER_BLOCK):
        for b in range(begin, end):
            start = place[b - begin]
            stop = start
            while stop < batch.stops[b] and batch.indices[stop] < limit:
                stop += 1
            place[b - begin] = stop
            _add_rows(z_out, b, z_weight, batch.indices, batch.inputs, start, stop)
            _add_rows(l_out, b, l_weight, batch.indices, batch.inputs, start, stop)


@compiled(EXACT_MATH)
def hidden_forward(hidden, scale, shift, moments, mask, normalised, inv_std):
    """Batch norm, ReLU and dropout of `hidden` in place; keeps what the gradient needs, moves the running moments."""
    n_obs, n_hidden = hidden.shape
    mean, var = np.zeros(n_hidden, f32), np.zeros(n_hidden, f32)
    for b in range(n_obs):
        for h in range(n_hidden):
            mean[h] += hidden[b, h]
    for h in range(n_hidden):
        mean[h] /= f32(n_obs)
    for b in range(n_obs):
        for h in range(n_hidden):
            var[h] += (hidden[b, h] - mean[h]) * (hidden[b, h] - mean[h])
    for h in range(n_hidden):
        inv_std[h] = f32(1) / math.sqrt(var[h] / f32(n_obs) + BN_EPS)
        moments.mean[h] += BN_MOMENTUM * (mean[h] - moments.mean[h])
        moments.var[h] += BN_MOMENTUM * (var[h] / f32(n_obs - 1) - moments.var[h])
    for b in range(n_obs):
        for h in range(n_hidden):
            normalised[b, h] = (hidden[b, h] - mean[h]) * inv_std[h]
            hidden[b, h] = max(normalised[b, h] * scale[h] + shift[h], f32(0))
        if mask.size > 0:
            for h in range(n_hidden):
                hidden[b, h] *= mask[b, h]


@compiled(EXACT_MATH)
def hidden_inference(hidden, scale, shift, moments):
    """Batch norm by the running moments, and ReLU, of `hidden` in place."""
    for b in range(hidden.shape[0]):
        for h in range(hidden.shape[1]):
            factor = scale[h] / math.sqrt(moments.var[h] + BN_EPS)
            hidden[b, h] = max((hidden[b, h] - moments.mean[h]) * factor + shift[h], f32(0))


@compiled()
def heads_forward(hidden, encoder, mean, var):
    """Mean and variance of the posterior, shape (n_obs, n_latent), from the hidden layer."""
    for b in range(hidden.shape[0]):
        for i in range(mean.shape[1]):
            centre = f32(0)
            log_var = f32(0)
            for h in range(hidden.shape[1]):
                centre += hidden[b, h] * encoder.mean_weight[i, h]
                log_var += hidden[b, h] * encoder.log_var_weight[i, h]
            mean[b, i] = centre + encoder.mean_bias[i]
            var[b, i] = exp(log_var + encoder.log_var_bias[i]) + VAR_EPS


@compiled(EXACT_MATH)
def draw(mean, var, noise, prior_mean, prior_var, out, kl):
    """A draw of N(mean, var) into `out`, and its KL divergence from the prior of each cell into `kl`.

    The prior's moments are scalars per cell, shape (n_obs,).
    """
    for b in range(mean.shape[0]):
        total = f32(0)
        for i in range(mean.shape[1]):
            out[b, i] = mean[b, i] + math.sqrt(var[b, i]) * noise[b, i]
            shift = mean[b, i] - prior_mean[b]
            total += log(prior_var[b] / var[b, i]) + (var[b, i] + shift * shift) / prior_var[b] - f32(1)
        kl[b] = f32(0.5) * total


@compiled(EXACT_MATH)
def draw_gradient(mean, var, noise, prior_mean, prior_var, kl_weight, slope, mean_slope, log_var_slope):
    """Gradient of the loss by mean and log-variance, from `slope`, that by the draw; `kl_weight` is per cell."""
    for b in range(mean.shape[0]):
        for i in range(mean.shape[1]):
            mean_slope[b, i] = slope[b, i] + kl_weight * (mean[b, i] - prior_mean[b]) / prior_var[b]
            var_slope = f32(0.5) * (
                slope[b, i] * noise[b, i] / math.sqrt(var[b, i])
                + kl_weight * (f32(1) / prior_var[b] - f32(1) / var[b, i])
            )
            log_var_slope[b, i] = var_slope * (var[b, i] - VAR_EPS)


@compiled(EXACT_MATH)
def encoder_gradient(hidden, normalised, inv_std, mask, mean_slope, log_var_slope, encoder, gradient, hidden_slope):
    """Gradient of all but the first weight of an encoder into `gradient`; by the first layer into `hidden_slope`."""
    n_obs, n_hidden = hidden.shape
    gradient.mean_weight[:] = 0
    gradient.mean_bias[:] = 0
    gradient.log_var_weight[:] = 0
    gradient.log_var_bias[:] = 0
    gradient.scale[:] = 0
    gradient.shift[:] = 0
    for b in range(n_obs):
        for h in range(n_hidden):
            hidden_slope[b, h] = f32(0)
        for i in range(mean_slope.shape[1]):
            by_mean, by_log_var = mean_slope[b, i], log_var_slope[b, i]
            gradient.mean_bias[i] += by_mean
            gradient.log_var_bias[i] += by_log_var
            for h in range(n_hidden):
                gradient.mean_weight[i, h] += by_mean * hidden[b, h]
                gradient.log_var_weight[i, h] += by_log_var * hidden[b, h]
            for h in range(n_hidden):
                hidden_slope[b, h] += by_mean * encoder.mean_weight[i, h] + by_log_var * encoder.log_var_weight[i, h]
        for h in range(n_hidden):
            hidden_slope[b, h] = hidden_slope[b, h] if hidden[b, h] > f32(0) else f32(0)
        if mask.size > 0:
            for h in range(n_hidden):
                hidden_slope[b, h] *= mask[b, h]
        for h in range(n_hidden):
            gradient.scale[h] += hidden_slope[b, h] * normalised[b, h]
            gradient.shift[h] += hidden_slope[b, h]
    for h in range(n_hidden):
        gradient.bias[h] = f32(0)  # the batch norm takes it out again
    for b in range(n_obs):
        for h in range(n_hidden):
            centred = f32(n_obs) * hidden_slope[b, h] - gradient.shift[h] - normalised[b, h] * gradient.scale[h]
            hidden_slope[b, h] = centred * encoder.scale[h] * inv_std[h] / f32(n_obs)


@compiled()
def _adam_row(weight, first, second, row, gradient, adam):
    for h in range(weight.shape[1]):
        slope = gradient[h] + adam.weight_decay * weight[row, h]
        m = first[row, h] + (slope - first[row, h]) * (f32(1) - adam.beta1)
        v = second[row, h] * adam.beta2 + slope * slope * (f32(1) - adam.beta2)
        first[row, h] = m
        second[row, h] = v
        weight[row, h] -= adam.rate * m / (math.sqrt(v) * adam.root + adam.eps)


@compiled(EXACT_MATH)
def _weigh_cells(gradient, cell, value, start, stop, slope):
    """gradient = sum of value[k] * slope[cell[k]], k from start to stop."""
    for h in range(slope.shape[1]):
        gradient[h] = f32(0)
    k = start
    while k + 4 <= stop:
        b0, b1, b2, b3 = cell[k], cell[k + 1], cell[k + 2], cell[k + 3]
        v0, v1, v2, v3 = value[k], value[k + 1], value[k + 2], value[k + 3]
        for h in range(slope.shape[1]):
            gradient[h] += v0 * slope[b0, h] + v1 * slope[b1, h] + v2 * slope[b2, h] + v3 * slope[b3, h]
        k += 4
    while k < stop:
        b0, v0 = cell[k], value[k]
        for h in range(slope.shape[1]):
            gradient[h] += v0 * slope[b0, h]
        k += 1


@compiled()
def first_layers_step(begin, end, genes, z_slope, z, z_first, z_second, l_slope, l_weight, l_first, l_second, adam):
    """Gradient of both encoders' first weights and their step of Adam, gene by gene, in one pass over the memory."""
    for block in range(begin, end):
        _first_layers_block(block, genes, z_slope, z, z_first, z_second, l_slope, l_weight, l_first, l_second, adam)


@compiled()
def _first_layers_block(block, genes, z_slope, z, z_first, z_second, l_slope, l_weight, l_first, l_second, adam):
    n_vars = len(z)
    z_gradient = np.empty(max(z.shape[1], BLOCK), f32)
    l_gradient = np.empty(max(l_weight.shape[1], BLOCK), f32)
    for g in range(block * BLOCK, min((block + 1) * BLOCK, n_vars)):
        start, stop = genes.first[g], genes.first[g + 1]
        _weigh_cells(z_gradient, genes.cell, genes.inputs, start, stop, z_slope)
        _adam_row(z, z_first, z_second, g, z_gradient, adam)
        _weigh_cells(l_gradient, genes.cell, genes.inputs, start, stop, l_slope)
        _adam_row(l_weight, l_first, l_second, g, l_gradient, adam)


@compiled(EXACT_MATH)
def adam_step(parameters, gradients, firsts, seconds, adam):
    """One step of Adam of flat arrays, given as tuples."""
    for i in range(len(parameters)):
        parameter, gradient, first, second = parameters[i], gradients[i], firsts[i], seconds[i]
        for k in range(parameter.size):
            slope = gradient[k] + adam.weight_decay * parameter[k]
            m = first[k] + (slope - first[k]) * (f32(1) - adam.beta1)
            v = second[k] * adam.beta2 + slope * slope * (f32(1) - adam.beta2)
            first[k] = m
            second[k] = v
            parameter[k] -= adam.rate * m / (math.sqrt(v) * adam.root + adam.eps)


# -- decoder -----------------------------------------------------------------------------------------------------------


@compiled(EXACT_MATH)
def _spread_of_weights(u, weight, n, out):
    """out = covariance of u @ weight, shape (n_inputs, n of BLOCK)."""
    n_inputs = len(weight)
    first, last = u.n_latent, u.n_latent + u.n_hot
    level = np.zeros(BLOCK, f32)  # mean weight of the one-hot columns
    for p in range(first, last):
        for j in range(n):
            level[j] += u.centre[p] * weight[p, j]
    for p in range(n_inputs):
        for j in range(n):
            out[p, j] = u.centre[p] * (weight[p, j] - level[j]) if first <= p < last else f32(0)
        for q in range(n_inputs):
            if first <= p < last and first <= q < last:
                continue
            shared = u.covariance[p, q]
            for j in range(n):
                out[p, j] += shared * weight[q, j]


@compiled(EXACT_MATH)
def _fold(decoder, moments, u, unbiased, start, folded, offset, inv_std, spread):
    """Weight (n_inputs, n of BLOCK) and offset (n,) of the genes from `start` on, with the batch norm folded in.

    With `unbiased` > 0 the moments are those of u in the minibatch, `spread` is its covariance times the weight, and
    the running moments move (their variance times `unbiased`); else the running ones.
    """
    n_inputs, n = len(folded), len(offset)
    for p in range(n_inputs):
        for j in range(n):
            folded[p, j] = decoder.weight[start + j, p]
    for j in range(n):
        offset[j] = decoder.bias[start + j] if decoder.bias.size > 0 else f32(0)
    if decoder.scale.size == 0:
        return
    if unbiased > f32(0):
        mean, var = np.zeros(BLOCK, f32), np.zeros(BLOCK, f32)
        _spread_of_weights(u, folded, n, spread)
        for p in range(n_inputs):
            for j in range(n):
                mean[j] += folded[p, j] * u.centre[p]
                var[j] += folded[p, j] * spread[p, j]
        for j in range(n):
            g = start + j
            moments.mean[g] += BN_MOMENTUM * (mean[j] + offset[j] - moments.mean[g])
            moments.var[g] += BN_MOMENTUM * (var[j] * unbiased - moments.var[g])
            inv_std[g] = f32(1) / math.sqrt(max(var[j], f32(0)) + BN_EPS)
            offset[j] = decoder.shift[g] - mean[j] * inv_std[g] * decoder.scale[g]
    else:
        for j in range(n):
            g = start + j
            inv_std[g] = f32(1) / math.sqrt(moments.var[g] + BN_EPS)
            offset[j] = decoder.shift[g] + (offset[j] - moments.mean[g]) * inv_std[g] * decoder.scale[g]
    for p in range(n_inputs):
        for j in range(n):
            folded[p, j] *= inv_std[start + j] * decoder.scale[start + j]


@compiled()
def _scores(u, b, folded, offset, out):
    """out = offset + u[b] @ folded, and zeros up to a whole block."""
    n = len(offset)
    for j in range(n):
        out[b, j] = offset[j]
    for j in range(n, BLOCK):
        out[b, j] = f32(0)
    if u.n_hot > 0:
        for j in range(n):
            out[b, j] += folded[u.hot[b], j]
    _add_scores(u.u, b, folded, 0, u.n_latent, n, out)
    _add_scores(u.u, b, folded, u.n_latent + u.n_hot, len(folded), n, out)


@compiled()
def _add_scores(u, b, folded, p, end, n, out):
    """out += u[b] @ folded for the inputs from `p` to `end`; five at a time, for fewer stores."""
    while p + 5 <= end:
        u0, u1, u2, u3, u4 = u[b, p], u[b, p + 1], u[b, p + 2], u[b, p + 3], u[b, p + 4]
        for j in range(n):
            out[b, j] += (
                u0 * folded[p, j]
                + u1 * folded[p + 1, j]
                + u2 * folded[p + 2, j]
                + u3 * folded[p + 3, j]
                + u4 * folded[p + 4, j]
            )
        p += 5
    while p < end:
        u0 = u[b, p]
        for j in range(n):
            out[b, j] += u0 * folded[p, j]
        p += 1


@compiled(FAST_MATH | {"nnan"})
def _row_max(row, b, n):
    highest = row[b, 0]
    for j in range(n):
        highest = max(highest, row[b, j])
    return highest


@compiled()
def decode(begin, end, u, decoder, moments, unbiased, folded, inv_std, spread, tiles, highest, total):
    """Gene scores of each cell, tile by tile; exponentiated for a softmax unless `highest` has size 0.

    Parameters
    ----------
    u
        `Inputs`.
    unbiased
        As in `_fold`.
    folded, spread
        Out: weights with the batch norm folded in; covariance of u times the weights; (n_blocks, n_inputs, BLOCK).
    tiles
        Out: scores, or exp(score - highest), (n_blocks, n_obs, BLOCK).
    highest, total
        Out: largest score of a cell in a block, sum of the exponentials, (n_blocks, n_obs).
    """
    for block in range(begin, end):
        _decode_block(block, u, decoder, moments, unbiased, folded, inv_std, spread, tiles, highest, total)


@compiled()
def _decode_block(block, u, decoder, moments, unbiased, folded, inv_std, spread, tiles, highest, total):
    n_vars = len(decoder.weight)
    start = block * BLOCK
    n = min(BLOCK, n_vars - start)
    offset = np.empty(BLOCK, f32)[:n]
    weight = folded[block]
    _fold(decoder, moments, u, unbiased, start, weight, offset, inv_std, spread[block])
    tile = tiles[block]
    for b in range(len(u.u)):
        _scores(u, b, weight, offset, tile)
        if highest.size > 0:
            top = _row_max(tile, b, n)
            mass = f32(0)
            for j in range(n):
                tile[b, j] = exp(tile[b, j] - top)
                mass += tile[b, j]
            highest[block, b] = top
            total[block, b] = mass


@compiled(EXACT_MATH)
def softmax_scales(highest, total, library, scale):
    """Factor (n_blocks, n_obs) that turns the exponentials of a tile into means: exp(library) * softmax."""
    n_blocks, n_obs = highest.shape
    for b in range(n_obs):
        top = highest[0, b]
        for block in range(n_blocks):
            top = max(top, highest[block, b])
        mass = f32(0)
        for block in range(n_blocks):
            scale[block, b] = exp(highest[block, b] - top)
            mass += scale[block, b] * total[block, b]
        factor = exp(library[b]) / mass
        for block in range(n_blocks):
            scale[block, b] *= factor


@compiled(EXACT_MATH)
def moments_of(u):
    """Mean, deviations and (population) covariance of `Inputs` over the minibatch."""
    n_obs, n_inputs = u.u.shape
    first, last = u.n_latent, u.n_latent + u.n_hot
    u.centre[:] = 0
    for b in range(n_obs):
        for p in range(n_inputs):
            u.centre[p] += u.u[b, p] / f32(n_obs)
    for b in range(n_obs):
        for p in range(n_inputs):
            u.centred[b, p] = u.u[b, p] - u.centre[p]
    u.covariance[:] = 0
    for b in range(n_obs):
        for p in range(n_inputs):
            if first <= p < last:
                continue
            part = u.centred[b, p] / f32(n_obs)
            for q in range(first):
                u.covariance[p, q] += part * u.centred[b, q]
            for q in range(last, n_inputs):
                u.covariance[p, q] += part * u.centred[b, q]
            if first < last:
                u.covariance[p, u.hot[b]] += part
    for p in range(n_inputs):
        if not first <= p < last:
            for q in range(first, last):
                u.covariance[q, p] = u.covariance[p, q]


@compiled()
def _input_slopes(slopes, b, folded, n, n_latent, out):
    """out[b, p] = sum over genes of slopes[b] * folded[p], for the latent inputs p; five at a time."""
    p = 0
    while p + 5 <= n_latent:
        s0, s1, s2, s3, s4 = f32(0), f32(0), f32(0), f32(0), f32(0)
        for j in range(n):
            slope = slopes[b, j]
            s0 += slope * folded[p, j]
            s1 += slope * folded[p + 1, j]
            s2 += slope * folded[p + 2, j]
            s3 += slope * folded[p + 3, j]
            s4 += slope * folded[p + 4, j]
        out[b, p], out[b, p + 1], out[b, p + 2], out[b, p + 3], out[b, p + 4] = s0, s1, s2, s3, s4
        p += 5
    while p < n_latent:
        s0 = f32(0)
        for j in range(n):
            s0 += slopes[b, j] * folded[p, j]
        out[b, p] = s0
        p += 1


@compiled()
def _weight_slopes(slopes, sums, u, has_norm, n, out):
    """out[p] = sum over cells of slopes[b] * u[b, p], u centred where there is a batch norm. Shape (n_inputs, n).

    `sums` are those of the slopes over the cells.
    """
    n_inputs = len(out)
    first, last = u.n_latent, u.n_latent + u.n_hot
    for p in range(n_inputs):
        for j in range(n):
            out[p, j] = -u.centre[p] * sums[j] if has_norm and first <= p < last else f32(0)
    if first < last:
        for b in range(len(slopes)):
            for j in range(n):
                out[u.hot[b], j] += slopes[b, j]
    dense = u.centred if has_norm else u.u
    _add_weight_slopes(slopes, dense, 0, first, n, out)
    _add_weight_slopes(slopes, dense, last, n_inputs, n, out)


@compiled()
def _add_weight_slopes(slopes, u, begin, end, n, out):
    """out[p] += sum over cells of slopes[b] * u[b, p], p from `begin` to `end`; four cells at a time."""
    n_obs = len(u)
    b = 0
    while b + 4 <= n_obs:
        for p in range(begin, end):
            u0, u1, u2, u3 = u[b, p], u[b + 1, p], u[b + 2, p], u[b + 3, p]
            for j in range(n):
                out[p, j] += u0 * slopes[b, j] + u1 * slopes[b + 1, j] + u2 * slopes[b + 2, j] + u3 * slopes[b + 3, j]
        b += 4
    while b < n_obs:
        for p in range(begin, end):
            u0 = u[b, p]
            for j in range(n):
                out[p, j] += u0 * slopes[b, j]
        b += 1


@compiled()
def decoder_gradient(
    begin,
    end,
    tiles,
    pull,
    slopes,
    weight,
    u,
    folded,
    inv_std,
    spread,
    decoder,
    gradient,
    u_slopes,
    cov_slopes,
):
    """Gradient of a decoder's parameters, and by its input, from that by the log means.

    Parameters
    ----------
    tiles, pull
        Through the softmax: slopes - tiles * pull, pull of shape (n_blocks, n_obs); without one, `pull` has size 0.
    slopes
        Gradient of the log-likelihood by the log means (by the scores), (n_blocks, n_obs, BLOCK); overwritten.
    weight
        Factor from log-likelihood to loss.
    u
        `Inputs`.
    folded, spread
        As `decode` left them.
    gradient
        Out: a `Decoder`.
    u_slopes
        Out: gradient by the latent part of u with the batch moments fixed, (n_blocks, n_obs, n_latent).
    cov_slopes
        Out: gradient by the covariance of the latent part of u with u, (n_blocks, n_latent, n_inputs).
    """
    for block in range(begin, end):
        _decoder_gradient_block(
            block,
            tiles,
            pull,
            slopes,
            weight,
            u,
            folded,
            inv_std,
            spread,
            decoder,
            gradient,
            u_slopes,
            cov_slopes,
        )


@compiled()
def _weighted_product(weight, a, b, n):
    """Sum of weight[j] * a[j] * b[j]; it stores nothing, so that its order does not depend on where the arrays lie."""
    total = f32(0)
    for j in range(n):
        total += weight[j] * a[j] * b[j]
    return total


@compiled(EXACT_MATH)
def _decoder_gradient_block(
    block,
    tiles,
    pull,
    slopes,
    weight,
    u,
    folded,
    inv_std,
    spread,
    decoder,
    gradient,
    u_slopes,
    cov_slopes,
):
    n_vars, n_inputs = decoder.weight.shape
    n_obs = len(u.u)
    start = block * BLOCK
    n = min(BLOCK, n_vars - start)
    tile, slope = tiles[block], slopes[block]
    sums = np.zeros(BLOCK, f32)
    for b in range(n_obs):
        if pull.size > 0:
            factor = pull[block, b]
            for j in range(n):
                slope[b, j] = weight * (slope[b, j] - tile[b, j] * factor)
                sums[j] += slope[b, j]
        else:
            for j in range(n):
                slope[b, j] *= weight
                sums[j] += slope[b, j]
        _input_slopes(slope, b, folded[block], n, u.n_latent, u_slopes[block])
    by_weight = np.empty((n_inputs, BLOCK), f32)
    has_norm = decoder.scale.size > 0
    _weight_slopes(slope, sums, u, has_norm, n, by_weight)
    if not has_norm:
        for p in range(n_inputs):
            for j in range(n):
                gradient.weight[start + j, p] = by_weight[p, j]
        if decoder.bias.size > 0:
            for j in range(n):
                gradient.bias[start + j] = sums[j]
        return
    own = np.empty((n_inputs, BLOCK), f32)
    along = np.zeros(BLOCK, f32)
    for p in range(n_inputs):
        for j in range(n):
            own[p, j] = decoder.weight[start + j, p]
            along[j] += own[p, j] * by_weight[p, j]
    by_var = np.empty(BLOCK, f32)  # gradient by the variance of the gene's score
    for j in range(n):
        g = start + j
        gradient.shift[g] = sums[j]
        gradient.scale[g] = along[j] * inv_std[g]
        by_var[j] = f32(-0.5) * decoder.scale[g] * along[j] * inv_std[g] * inv_std[g] * inv_std[g]
        if decoder.bias.size > 0:
            gradient.bias[g] = f32(0)  # the batch norm takes it out again
    for p in range(n_inputs):
        for j in range(n):
            g = start + j
            direct = decoder.scale[g] * inv_std[g] * by_weight[p, j]
            gradient.weight[g, p] = direct + f32(2) * by_var[j] * spread[block, p, j]
    for p in range(u.n_latent):
        for q in range(p, n_inputs):
            cov_slopes[block, p, q] = _weighted_product(by_var, own[p], own[q], n)
            if q < u.n_latent:
                cov_slopes[block, q, p] = cov_slopes[block, p, q]


@compiled(EXACT_MATH)
def input_gradient(u_slopes, cov_slopes, centred, has_norm, out):
    """Add to `out` (n_obs, n_latent) the gradient by z: direct, through the mean of u and through its covariance."""
    n_blocks, n_obs, n_latent = u_slopes.shape
    direct = np.zeros((n_obs, n_latent), f32)
    for block in range(n_blocks):
        for b in range(n_obs):
            for p in range(n_latent):
                direct[b, p] += u_slopes[block, b, p]
    if has_norm:
        mean = np.zeros(n_latent, f32)
        for b in range(n_obs):
            for p in range(n_latent):
                mean[p] += direct[b, p] / f32(n_obs)
        n_inputs = centred.shape[1]
        by_cov = np.zeros((n_latent, n_inputs), f32)
        for block in range(n_blocks):
            for p in range(n_latent):
                for q in range(n_inputs):
                    by_cov[p, q] += cov_slopes[block, p, q]
        for b in range(n_obs):
            for p in range(n_latent):
                through = f32(0)
                for q in range(n_inputs):
                    through += by_cov[p, q] * centred[b, q]
                direct[b, p] += f32(2) / f32(n_obs) * through - mean[p]
    for b in range(n_obs):
        for p in range(n_latent):
            out[b, p] += direct[b, p]


# -- likelihood --------------------------------------------------------------------------------------------------------


@compiled()
def _softplus(x, e):
    """log(1 + exp(x)), given e = exp(-|x|)."""
    return log1p(e) + (x if x > f32(0) else f32(0))


@compiled()
def _sigmoid(x, e):
    """1 / (1 + exp(-x)), given e = exp(-|x|)."""
    return (f32(1) if x > f32(0) else e) / (f32(1) + e)


@compiled()
def _log_gamma_tables(theta, top):
    """log Gamma(k + theta) - log Gamma(theta) for k up to `top`, and theta times its derivative by theta."""
    n_rows, n = theta.shape
    value, slope = np.zeros((top + 1, n_rows, n), f32), np.zeros((top + 1, n_rows, n), f32)
    for k in range(top):
        for row in range(n_rows):
            for j in range(n):
                value[k + 1, row, j] = value[k, row, j] + log(theta[row, j] + f32(k))
                slope[k + 1, row, j] = slope[k, row, j] + theta[row, j] / (theta[row, j] + f32(k))
    return value, slope


@compiled()
def _log_factorial(x):
    if x <= SMALL:
        return np.float64(LOG_FACTORIAL[int(x)])
    return LOG_FACTORIAL[SMALL] + log_gamma_ratio(SMALL + 1.0, x - SMALL)[0]


@compiled()
def likelihood(
    begin,
    end,
    kind,
    genes,
    theta_row,
    log_theta,
    tiles,
    scale,
    zi,
    slopes,
    zi_slopes,
    theta_slopes,
    log_prob,
    mean_slope,
):
    """Log-likelihood of each cell and its gradient by the log means, the log thetas and the zero-inflation logits.

    Parameters
    ----------
    kind
        0 poisson, 1 nb, 2 zinb.
    genes
        The minibatch, `ByGene`.
    theta_row
        Row of theta that each cell uses, (n_obs,).
    log_theta
        (n_vars, n_rows).
    tiles, scale
        The means are tiles * scale, (n_blocks, n_obs, BLOCK) and (n_blocks, n_obs).
    zi
        Zero-inflation logits, as `tiles`.
    slopes, zi_slopes
        Out: gradient by log mean and by `zi`, as `tiles`.
    theta_slopes
        Out: gradient by `log_theta`.
    log_prob, mean_slope
        Out: parts of each cell's log-likelihood and of the sum of its `slopes`, (n_blocks, n_obs).
    """
    for block in range(begin, end):
        _likelihood_block(
            block,
            kind,
            genes,
            theta_row,
            log_theta,
            tiles,
            scale,
            zi,
            slopes,
            zi_slopes,
            theta_slopes,
            log_prob,
            mean_slope,
        )


@compiled()
def _likelihood_block(
    block, kind, genes, theta_row, log_theta, tiles, scale, zi, slopes, zi_slopes, theta_slopes, log_prob, mean_slope
):
    n_vars = len(genes.first) - 1
    start = block * BLOCK
    n = min(BLOCK, n_vars - start)
    log_prob[block] = 0
    mean_slope[block] = 0
    if kind == 0:
        _poisson_tile(genes, start, n, tiles[block], scale[block], slopes[block], log_prob[block], mean_slope[block])
    else:
        theta = np.ones((log_theta.shape[1], BLOCK), f32)
        theta_slope = np.zeros((log_theta.shape[1], BLOCK), f32)
        for row in range(len(theta)):
            for j in range(n):
                theta[row, j] = exp(log_theta[start + j, row])
        tile, factor, slope = tiles[block], scale[block], slopes[block]
        value, total = log_prob[block], mean_slope[block]
        if kind == 1:
            _nb_zeros(theta_row, theta, tile, factor, slope, theta_slope, value, total)
        else:
            of_zero = zi[block], slope, zi_slopes[block], theta_slope, value, total
            _zinb_zeros(theta_row, theta, tile, factor, *of_zero)
            _zinb_counts(genes, start, theta_row, theta, tile, factor, *of_zero)
        _nb_counts(genes, start, theta_row, theta, tile, factor, slope, theta_slope, value, total)
        for row in range(len(theta)):
            for j in range(n):
                theta_slopes[start + j, row] = theta_slope[row, j]


@compiled()
def _poisson_tile(genes, start, n, tile, scale, slope, log_prob, mean_slope):
    for b in range(len(scale)):
        total = f32(0)
        for j in range(n):
            slope[b, j] = -tile[b, j] * scale[b]
            total += slope[b, j]
        log_prob[b] += total
        mean_slope[b] += total
    for j in range(n):
        for k in range(genes.first[start + j], genes.first[start + j + 1]):
            b, x = genes.cell[k], genes.x[k]
            slope[b, j] += x
            mean_slope[b] += x
            log_prob[b] += x * math.log(max(tile[b, j] * scale[b], f32(1.2e-38))) - _log_factorial(x)


@compiled()
def _nb_zeros(theta_row, theta, tile, scale, slope, theta_slope, log_prob, mean_slope):
    """What every entry adds, as if its count were zero: -theta * log(1 + mu / theta)."""
    n = theta.shape[1]
    inverse = np.empty((len(theta), BLOCK), f32)
    for row in range(len(theta)):
        for j in range(n):
            inverse[row, j] = f32(1) / (theta[row, j] + EPS)
    for b in range(len(scale)):
        row, factor = theta_row[b], scale[b]
        value, total = f32(0), f32(0)
        for j in range(n):
            ratio = tile[b, j] * factor * inverse[row, j]
            log_ratio = log1p(ratio)
            share = theta[row, j] * ratio / (f32(1) + ratio)
            slope[b, j] = -share
            theta_slope[row, j] += share * theta[row, j] * inverse[row, j] - theta[row, j] * log_ratio
            value += theta[row, j] * log_ratio
            total += share
        log_prob[b] -= value
        mean_slope[b] -= total


@compiled()
def _nb_counts(genes, start, theta_row, theta, tile, scale, slope, theta_slope, log_prob, mean_slope):
    """What the nonzero counts add to `_nb_zeros`."""
    n = min(BLOCK, len(genes.first) - 1 - start)
    begin, end = genes.first[start], genes.first[start + n]
    top = f32(0)
    for k in range(begin, end):
        top = max(top, genes.x[k])
    value, derivative = _log_gamma_tables(theta, int(min(top, f32(SMALL))))
    mu, sum_, log_ratio = np.empty(end - begin, f32), np.empty(end - begin, f32), np.empty(end - begin, f32)
    for j in range(n):
        for k in range(genes.first[start + j], genes.first[start + j + 1]):
            b = genes.cell[k]
            mu[k - begin] = tile[b, j] * scale[b]
            sum_[k - begin] = theta[theta_row[b], j]
    for i in range(end - begin):
        sum_[i] += mu[i] + EPS
        log_ratio[i] = log(mu[i] + EPS) - log(sum_[i])
    for j in range(n):
        for k in range(genes.first[start + j], genes.first[start + j + 1]):
            b, x, i = genes.cell[k], genes.x[k], k - begin
            row = theta_row[b]
            by_mean = x * mu[i] * (f32(1) / (mu[i] + EPS) - f32(1) / sum_[i])
            slope[b, j] += by_mean
            mean_slope[b] += by_mean
            theta_slope[row, j] -= x * theta[row, j] / sum_[i]
            if x <= f32(SMALL):
                log_prob[b] += x * log_ratio[i] + value[int(x), row, j] - LOG_FACTORIAL[int(x)]
                theta_slope[row, j] += derivative[int(x), row, j]
            else:
                rest, by_theta = log_gamma_ratio(np.float64(theta[row, j]) + SMALL, np.float64(x) - SMALL)
                rest += np.float64(x) * np.float64(log_ratio[i]) - _log_factorial(x)
                log_prob[b] += f32(rest) + value[SMALL, row, j]
                theta_slope[row, j] += f32(by_theta * theta[row, j]) + derivative[SMALL, row, j]


@compiled()
def _zinb_zeros(theta_row, theta, tile, scale, zi, slope, zi_slope, theta_slope, log_prob, mean_slope):
    """What every entry adds, as if its count were zero: log(pi + (1 - pi) NB(0))."""
    n = theta.shape[1]
    inverse = np.empty((len(theta), BLOCK), f32)
    for row in range(len(theta)):
        for j in range(n):
            inverse[row, j] = f32(1) / (theta[row, j] + EPS)
    for b in range(len(scale)):
        row, factor = theta_row[b], scale[b]
        value, total = f32(0), f32(0)
        for j in range(n):
            ratio = tile[b, j] * factor * inverse[row, j]
            log_zero = -theta[row, j] * log1p(ratio)
            gap = log_zero - zi[b, j]
            e_gap, e_zi = exp(-abs(gap)), exp(-abs(zi[b, j]))
            counted = _sigmoid(gap, e_gap)  # share of the zero that is not inflated
            share = theta[row, j] * ratio / (f32(1) + ratio)
            slope[b, j] = -share * counted
            zi_slope[b, j] = _sigmoid(-zi[b, j], e_zi) - counted
            theta_slope[row, j] += counted * (share * theta[row, j] * inverse[row, j] + log_zero)
            value += _softplus(gap, e_gap) - _softplus(-zi[b, j], e_zi)
            total += share * counted
        log_prob[b] += value
        mean_slope[b] -= total


@compiled()
def _zinb_counts(genes, start, theta_row, theta, tile, scale, zi, slope, zi_slope, theta_slope, log_prob, mean_slope):
    """At the nonzero counts, replace what `_zinb_zeros` added by log(1 - pi) and `_nb_zeros`."""
    n = min(BLOCK, len(genes.first) - 1 - start)
    for j in range(n):
        for k in range(genes.first[start + j], genes.first[start + j + 1]):
            if genes.x[k] == f32(0):  # stored, but a zero like others
                continue
            b = genes.cell[k]
            row = theta_row[b]
            ratio = tile[b, j] * scale[b] / (theta[row, j] + EPS)
            log_zero = -theta[row, j] * log1p(ratio)
            gap, logit = log_zero - zi[b, j], zi[b, j]
            e_gap, e_zi = exp(-abs(gap)), exp(-abs(logit))
            inflated = f32(1) - _sigmoid(gap, e_gap)
            share = theta[row, j] * ratio / (f32(1) + ratio)
            slope[b, j] = -share
            zi_slope[b, j] = -_sigmoid(logit, e_zi)
            theta_slope[row, j] += inflated * (share * theta[row, j] / (theta[row, j] + EPS) + log_zero)
            log_prob[b] += log_zero - _softplus(logit, e_zi) - _softplus(gap, e_gap) + _softplus(-logit, e_zi)
            mean_slope[b] -= share * inflated
