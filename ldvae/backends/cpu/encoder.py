"""The encoders: first layer on the nonzero counts, hidden layer, heads, sampling; and their gradients."""

# mypy: allow-untyped-defs
from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ldvae.backends.cpu.adam import adam_step
from ldvae.backends.cpu.arrays import BLOCK, BN_EPS, BN_MOMENTUM, ENCODE, LARGEST_CACHED, TRAIN, VAR_EPS, entries_of
from ldvae.backends.cpu.math import EXACT_MATH, add_rows, compiled, exp, f32, log, prefetch

ENCODER_BLOCK = 512  # genes whose first-layer weights (128 units) stay in the L2 cache


class ByGene(NamedTuple):
    """A minibatch gene by gene: gene g has entries first[g] to first[g + 1], cells ascending."""

    first: np.ndarray  # int64, (n_vars + 1,)
    cell: np.ndarray  # int32
    inputs: np.ndarray


@compiled()
def group_by_gene(batch, genes):
    """Sort the entries of a minibatch by gene, into `genes` (a `ByGene`)."""
    first = genes.first
    first[:] = 0
    for b in range(len(batch.starts)):
        for g in entries_of(batch, b, batch.inputs)[0]:
            first[np.uint32(g) + np.uint32(1)] += 1
    for g in range(len(first) - 1):
        first[g + 1] += first[g]
    place = first[:-1].astype(np.uint32)
    for b in range(len(batch.starts)):
        indices, inputs = entries_of(batch, b, batch.inputs)
        for k in range(len(indices)):
            g = np.uint32(indices[k])
            to = place[g]
            place[g] = to + np.uint32(1)
            genes.cell[to] = b
            genes.inputs[to] = inputs[k]


@compiled()
def prefetch_entries(begin, end, batch):
    """Prefetch the counts of the cells from `begin` to `end`, which are scattered in memory."""
    for b in range(begin, end):
        prefetch(batch.indices, batch.starts[b], batch.stops[b])
        prefetch(batch.inputs, batch.starts[b], batch.stops[b])
        prefetch(batch.x, batch.starts[b], batch.stops[b])


@compiled()
def first_layer(begin, end, batch, weight, bias, out):
    """First linear layer of an encoder for the cells from `begin` to `end`, into an array (n_obs, n_hidden).

    All cells are processed together, block by block of genes, so that the weights of a block are read from memory once;
    indices ascend within a cell.
    """
    place = batch.starts[begin:end].copy()
    for b in range(begin, end):
        for h in range(len(bias)):
            out[b, h] = bias[h]
    ahead = ENCODER_BLOCK if weight.size > LARGEST_CACHED else len(weight)
    for limit in range(ENCODER_BLOCK, len(weight) + ENCODER_BLOCK, ENCODER_BLOCK):
        for b in range(begin, end):
            for g in range(ahead, min(len(weight), limit + (b - begin + 1) * ENCODER_BLOCK // (end - begin))):
                prefetch(weight, g * weight.shape[1], (g + 1) * weight.shape[1])
                ahead = g + 1
            start = place[b - begin]
            stop = start
            while stop < batch.stops[b] and batch.indices[stop] < limit:
                stop += 1
            place[b - begin] = stop
            add_rows(out, b, weight, batch.indices, batch.inputs, start, stop)


@compiled(EXACT_MATH)
def hidden_forward(hidden, scale, shift, moments, mask, normalized, inv_std):
    """Batch norm, ReLU and dropout of `hidden` in place; stores inputs of the gradient, updates running moments."""
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
            normalized[b, h] = (hidden[b, h] - mean[h]) * inv_std[h]
            hidden[b, h] = max(normalized[b, h] * scale[h] + shift[h], f32(0))
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
            center = f32(0)
            log_var = f32(0)
            for h in range(hidden.shape[1]):
                center += hidden[b, h] * encoder.mean_weight[i, h]
                log_var += hidden[b, h] * encoder.log_var_weight[i, h]
            mean[b, i] = center + encoder.mean_bias[i]
            var[b, i] = exp(log_var + encoder.log_var_bias[i]) + VAR_EPS


@compiled(EXACT_MATH)
def draw(mean, var, noise, prior, batch, out, kl):
    """Draw from N(mean, var) into `out`; KL divergence from the prior of each cell's batch into `kl`."""
    for b in range(mean.shape[0]):
        prior_mean, prior_var, total = prior.mean[batch[b]], prior.var[batch[b]], f32(0)
        for i in range(mean.shape[1]):
            out[b, i] = mean[b, i] + math.sqrt(var[b, i]) * noise[b, i]
            shift = mean[b, i] - prior_mean
            total += log(prior_var / var[b, i]) + (var[b, i] + shift * shift) / prior_var - f32(1)
        kl[b] = f32(0.5) * total


@compiled()
def encode(encoder, given, prior, batch, stage):
    """Posterior from the first layer's output in `hidden`, and a draw of it; by the minibatch's moments in training."""
    weights, moments = encoder.weights, encoder.moments
    if stage == TRAIN:
        hidden_forward(
            encoder.hidden, weights.scale, weights.shift, moments, given.mask, encoder.normalized, encoder.inv_std
        )
    else:
        hidden_inference(encoder.hidden, weights.scale, weights.shift, moments)
    heads_forward(encoder.hidden, weights, encoder.mean, encoder.var)
    if stage > ENCODE:
        draw(encoder.mean, encoder.var, given.noise, prior, batch, encoder.draw, encoder.kl)


@compiled(EXACT_MATH)
def draw_gradient(mean, var, noise, prior, batch, kl_weight, grad, mean_grad, log_var_grad):
    """Gradient of the loss w.r.t. mean and log-variance, from `grad`, that w.r.t. the draw; `kl_weight` is per cell."""
    for b in range(mean.shape[0]):
        prior_mean, prior_var = prior.mean[batch[b]], prior.var[batch[b]]
        for i in range(mean.shape[1]):
            mean_grad[b, i] = grad[b, i] + kl_weight * (mean[b, i] - prior_mean) / prior_var
            var_grad = f32(0.5) * (
                grad[b, i] * noise[b, i] / math.sqrt(var[b, i]) + kl_weight * (f32(1) / prior_var - f32(1) / var[b, i])
            )
            log_var_grad[b, i] = var_grad * (var[b, i] - VAR_EPS)


@compiled(EXACT_MATH)
def encoder_gradient(hidden, normalized, inv_std, mask, mean_grad, log_var_grad, encoder, gradient, hidden_grad):
    """Gradient w.r.t. all but the first weight into `gradient`; w.r.t. the first layer's output into `hidden_grad`."""
    n_obs, n_hidden = hidden.shape
    gradient.mean_weight[:] = 0
    gradient.mean_bias[:] = 0
    gradient.log_var_weight[:] = 0
    gradient.log_var_bias[:] = 0
    gradient.scale[:] = 0
    gradient.shift[:] = 0
    for b in range(n_obs):
        for h in range(n_hidden):
            hidden_grad[b, h] = f32(0)
        for i in range(mean_grad.shape[1]):
            by_mean, by_log_var = mean_grad[b, i], log_var_grad[b, i]
            gradient.mean_bias[i] += by_mean
            gradient.log_var_bias[i] += by_log_var
            for h in range(n_hidden):
                gradient.mean_weight[i, h] += by_mean * hidden[b, h]
                gradient.log_var_weight[i, h] += by_log_var * hidden[b, h]
            for h in range(n_hidden):
                hidden_grad[b, h] += by_mean * encoder.mean_weight[i, h] + by_log_var * encoder.log_var_weight[i, h]
        for h in range(n_hidden):
            hidden_grad[b, h] = hidden_grad[b, h] if hidden[b, h] > f32(0) else f32(0)
        if mask.size > 0:
            for h in range(n_hidden):
                hidden_grad[b, h] *= mask[b, h]
        for h in range(n_hidden):
            gradient.scale[h] += hidden_grad[b, h] * normalized[b, h]
            gradient.shift[h] += hidden_grad[b, h]
    for h in range(n_hidden):
        gradient.bias[h] = f32(0)  # cancelled by the batch norm
    for b in range(n_obs):
        for h in range(n_hidden):
            centered = f32(n_obs) * hidden_grad[b, h] - gradient.shift[h] - normalized[b, h] * gradient.scale[h]
            hidden_grad[b, h] = centered * encoder.scale[h] * inv_std[h] / f32(n_obs)


@compiled()
def encoder_backward(encoder, given, prior, batch, kl_weight, n_obs):
    """Gradients of an encoder from that w.r.t. its draw, in `grad`."""
    mean_grad, log_var_grad = encoder.mean_grad, encoder.log_var_grad
    draw_gradient(
        encoder.mean, encoder.var, given.noise, prior, batch, kl_weight / f32(n_obs), encoder.grad, mean_grad,
        log_var_grad,
    )  # fmt: skip
    encoder_gradient(
        encoder.hidden, encoder.normalized, encoder.inv_std, given.mask, mean_grad, log_var_grad,
        encoder.weights, encoder.gradient, encoder.hidden_grad,
    )  # fmt: skip


@compiled()
def first_layer_step(block, genes, grad, weight, first, second, adam):
    """Gradient of the first weight of an encoder and its step of Adam, for a block of genes, in one pass over memory.

    `grad` is the gradient w.r.t. the first layer's output, (n_obs, n_hidden); weight and state of Adam are
    (n_vars, n_hidden).
    """
    gradient = np.empty(max(weight.shape[1], BLOCK), f32)
    for g in range(block * BLOCK, min((block + 1) * BLOCK, len(weight))):
        if weight.size > LARGEST_CACHED and g + 8 < len(weight):
            ahead = (g + 8) * weight.shape[1]
            for matrix in (weight, first, second):
                prefetch(matrix, ahead, ahead + weight.shape[1])
        gradient[:] = 0
        add_rows(gradient, 0, grad, genes.cell, genes.inputs, genes.first[g], genes.first[g + 1])
        adam_step(weight[g], first[g], second[g], gradient, adam)
