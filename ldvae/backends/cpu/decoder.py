"""The linear decoder: batch norm folded into its weight, softmax over genes; and its gradients."""

# mypy: allow-untyped-defs
from __future__ import annotations

import math

import numpy as np

from ldvae.backends.cpu.arrays import BLOCK, BN_EPS, BN_MOMENTUM
from ldvae.backends.cpu.math import EXACT_MATH, add_rows, compiled, exp, f32


@compiled()
def set_inputs(u, z):
    """Set the latent and the one-hot columns of u; the other covariates are set already."""
    for b in range(len(z)):
        for p in range(u.n_latent):
            u.u[b, p] = z[b, p]
        for p in range(u.n_latent, u.n_latent + u.n_hot):
            u.u[b, p] = f32(1) if p == u.hot[b] else f32(0)
        term = 0
        for p in range(u.u.shape[1]):
            if p < u.n_latent or p >= u.n_latent + u.n_hot or p == u.hot[b]:
                u.columns[b, term] = p
                u.values[b, term] = u.u[b, p]
                term += 1


@compiled(EXACT_MATH)
def moments_of(u):
    """Mean, deviations and (population) covariance of `Inputs` over the minibatch."""
    n_obs, n_inputs = u.u.shape
    first, last = u.n_latent, u.n_latent + u.n_hot
    u.center[:] = 0
    for b in range(n_obs):
        for p in range(n_inputs):
            u.center[p] += u.u[b, p] / f32(n_obs)
    for b in range(n_obs):
        for p in range(n_inputs):
            u.centered[b, p] = u.u[b, p] - u.center[p]
    u.covariance[:] = 0
    for b in range(n_obs):
        for p in range(n_inputs):
            if first <= p < last:
                continue
            part = u.centered[b, p] / f32(n_obs)
            for q in range(first):
                u.covariance[p, q] += part * u.centered[b, q]
            for q in range(last, n_inputs):
                u.covariance[p, q] += part * u.centered[b, q]
            if first < last:
                u.covariance[p, u.hot[b]] += part
    for p in range(n_inputs):
        if not first <= p < last:
            for q in range(first, last):
                u.covariance[q, p] = u.covariance[p, q]


@compiled(EXACT_MATH)
def _spread_of_weights(u, weight, n, out):
    """out = covariance of u @ weight, shape (n_inputs, n of BLOCK)."""
    n_inputs = len(weight)
    first, last = u.n_latent, u.n_latent + u.n_hot
    level = np.zeros(BLOCK, f32)  # mean weight of the one-hot columns
    for p in range(first, last):
        for j in range(n):
            level[j] += u.center[p] * weight[p, j]
    for p in range(n_inputs):
        for j in range(n):
            out[p, j] = u.center[p] * (weight[p, j] - level[j]) if first <= p < last else f32(0)
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
    the running moments are updated (their variance times `unbiased`); otherwise the running moments are used.
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
                mean[j] += folded[p, j] * u.center[p]
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
    """out[b] = offset + u[b] @ folded."""
    for j in range(BLOCK):
        out[b, j] = offset[j]
    n_terms = u.columns.shape[1]
    add_rows(out, b, folded, u.columns, u.values, b * n_terms, (b + 1) * n_terms)


@compiled()
def _row_max(row, lanes):
    """Maximum of BLOCK numbers; the compiler does not vectorize a plain maximum."""
    n = len(lanes)
    for i in range(n):
        lanes[i] = row[i]
    for j in range(n, BLOCK, n):
        for i in range(n):
            lanes[i] = row[j + i] if row[j + i] > lanes[i] else lanes[i]
    while n > 1:
        n //= 2
        for i in range(n):
            lanes[i] = lanes[n + i] if lanes[n + i] > lanes[i] else lanes[i]
    return lanes[0]


@compiled()
def decode(block, u, decoder, moments, unbiased, folded, inv_std, spread, tiles, highest, total):
    """Gene scores of each cell for a block of genes; exponentiated for a softmax unless `highest` has size 0.

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
    n_vars = len(decoder.weight)
    start = block * BLOCK
    n = min(BLOCK, n_vars - start)
    offset = np.full(BLOCK, f32(-1e30) if highest.size > 0 else f32(0))  # beyond the last gene: zero in the softmax
    lanes = np.empty(16, f32)
    weight = folded[block]
    _fold(decoder, moments, u, unbiased, start, weight, offset[:n], inv_std, spread[block])
    tile = tiles[block]
    for b in range(len(u.u)):
        _scores(u, b, weight, offset, tile)
        if highest.size > 0:
            top = _row_max(tile[b], lanes)
            mass = f32(0)
            for j in range(n):
                tile[b, j] = exp(tile[b, j] - top)
                mass += tile[b, j]
            for j in range(n, BLOCK):
                tile[b, j] = f32(0)
            highest[block, b] = top
            total[block, b] = mass


@compiled(EXACT_MATH)
def softmax_scales(begin, end, highest, total, library, scale):
    """Factor (n_blocks, n_obs) that turns the exponentials of a tile into means: exp(library) * softmax."""
    n_blocks = len(highest)
    for b in range(begin, end):
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


@compiled()
def softmax_pull(begin, end, mean_grad, scale, log_total, pull, weight, library_grad):
    """Term that the softmax subtracts from the gradients, per unit of tile; gradient w.r.t. log library size."""
    for b in range(begin, end):
        total = f32(0)
        for block in range(len(mean_grad)):
            total += mean_grad[block, b]
        factor = total / exp(log_total[b])
        for block in range(len(mean_grad)):
            pull[block, b] = scale[block, b] * factor
        if library_grad.size > 0:
            library_grad[b, 0] = weight * total


@compiled()
def _input_grads(grads, b, folded, n_latent, out):
    """out[b, p] = sum over genes of grads[b] * folded[p], for the latent inputs p; five at a time."""
    p = 0
    while p + 5 <= n_latent:
        s0, s1, s2, s3, s4 = f32(0), f32(0), f32(0), f32(0), f32(0)
        for j in range(BLOCK):
            grad = grads[b, j]
            s0 += grad * folded[p, j]
            s1 += grad * folded[p + 1, j]
            s2 += grad * folded[p + 2, j]
            s3 += grad * folded[p + 3, j]
            s4 += grad * folded[p + 4, j]
        out[b, p], out[b, p + 1], out[b, p + 2], out[b, p + 3], out[b, p + 4] = s0, s1, s2, s3, s4
        p += 5
    while p < n_latent:
        s0 = f32(0)
        for j in range(BLOCK):
            s0 += grads[b, j] * folded[p, j]
        out[b, p] = s0
        p += 1


@compiled()
def _weight_grads(grads, sums, u, has_norm, out):
    """out[p] = sum over cells of grads[b] * u[b, p], u centered where there is a batch norm. Shape (n_inputs, BLOCK).

    `sums` are those of the grads over the cells.
    """
    n_inputs = len(out)
    first, last = u.n_latent, u.n_latent + u.n_hot
    for p in range(n_inputs):
        for j in range(BLOCK):
            out[p, j] = -u.center[p] * sums[j] if has_norm and first <= p < last else f32(0)
    if first < last:
        for b in range(len(grads)):
            for j in range(BLOCK):
                out[u.hot[b], j] += grads[b, j]
    dense = u.centered if has_norm else u.u
    _add_weight_grads(grads, dense, 0, first, out)
    _add_weight_grads(grads, dense, last, n_inputs, out)


@compiled()
def _add_weight_grads(grads, u, begin, end, out):
    """out[p] += sum over cells of grads[b] * u[b, p], p from `begin` to `end`; four cells at a time."""
    n_obs = len(u)
    b = 0
    while b + 4 <= n_obs:
        for p in range(begin, end):
            u0, u1, u2, u3 = u[b, p], u[b + 1, p], u[b + 2, p], u[b + 3, p]
            for j in range(BLOCK):
                out[p, j] += u0 * grads[b, j] + u1 * grads[b + 1, j] + u2 * grads[b + 2, j] + u3 * grads[b + 3, j]
        b += 4
    while b < n_obs:
        for p in range(begin, end):
            u0 = u[b, p]
            for j in range(BLOCK):
                out[p, j] += u0 * grads[b, j]
        b += 1


@compiled()
def _weighted_product(weight, a, b, n):
    """Sum of weight[j] * a[j] * b[j]; it stores nothing, so its order is independent of the arrays' addresses."""
    total = f32(0)
    for j in range(n):
        total += weight[j] * a[j] * b[j]
    return total


@compiled(EXACT_MATH)
def decoder_gradient(
    block,
    tiles,
    pull,
    grads,
    weight,
    u,
    folded,
    inv_std,
    spread,
    decoder,
    gradient,
    u_grads,
    cov_grads,
):
    """Gradients w.r.t. parameters and input of a decoder, from those w.r.t. the log means, for a block of genes.

    Parameters
    ----------
    tiles, pull
        Through the softmax: grads - tiles * pull, pull of shape (n_blocks, n_obs); without one, `pull` has size 0.
    grads
        Gradient of the log-likelihood w.r.t. the log means (the scores), (n_blocks, n_obs, BLOCK); overwritten.
    weight
        Factor from log-likelihood to loss.
    u
        `Inputs`.
    folded, spread
        As `decode` left them.
    gradient
        Out: a `DecoderArrays`.
    u_grads
        Out: gradient w.r.t. the latent part of u with the batch moments fixed, (n_blocks, n_obs, n_latent).
    cov_grads
        Out: gradient w.r.t. the covariance of the latent part of u with u, (n_blocks, n_latent, n_inputs).
    """
    n_vars, n_inputs = decoder.weight.shape
    n_obs = len(u.u)
    start = block * BLOCK
    n = min(BLOCK, n_vars - start)
    tile, grad = tiles[block], grads[block]
    sums = np.zeros(BLOCK, f32)
    for b in range(n_obs):
        if pull.size > 0:
            factor = pull[block, b]
            for j in range(BLOCK):
                grad[b, j] = weight * (grad[b, j] - tile[b, j] * factor)
                sums[j] += grad[b, j]
        else:
            for j in range(BLOCK):
                grad[b, j] *= weight
                sums[j] += grad[b, j]
        _input_grads(grad, b, folded[block], u.n_latent, u_grads[block])
    by_weight = np.empty((n_inputs, BLOCK), f32)
    has_norm = decoder.scale.size > 0
    _weight_grads(grad, sums, u, has_norm, by_weight)
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
    by_var = np.empty(BLOCK, f32)  # gradient w.r.t. the variance of the gene's score
    for j in range(n):
        g = start + j
        gradient.shift[g] = sums[j]
        gradient.scale[g] = along[j] * inv_std[g]
        by_var[j] = f32(-0.5) * decoder.scale[g] * along[j] * inv_std[g] * inv_std[g] * inv_std[g]
        if decoder.bias.size > 0:
            gradient.bias[g] = f32(0)  # cancelled by the batch norm
    for p in range(n_inputs):
        for j in range(n):
            g = start + j
            direct = decoder.scale[g] * inv_std[g] * by_weight[p, j]
            gradient.weight[g, p] = direct + f32(2) * by_var[j] * spread[block, p, j]
    for p in range(u.n_latent):
        for q in range(p, n_inputs):
            cov_grads[block, p, q] = _weighted_product(by_var, own[p], own[q], n)
            if q < u.n_latent:
                cov_grads[block, q, p] = cov_grads[block, p, q]


@compiled(EXACT_MATH)
def input_gradient(u_grads, cov_grads, centered, has_norm, out):
    """Add to `out` (n_obs, n_latent) the gradient w.r.t. z: direct, through the mean and the covariance of u."""
    n_blocks, n_obs, n_latent = u_grads.shape
    direct = np.zeros((n_obs, n_latent), f32)
    for block in range(n_blocks):
        for b in range(n_obs):
            for p in range(n_latent):
                direct[b, p] += u_grads[block, b, p]
    if has_norm:
        mean = np.zeros(n_latent, f32)
        for b in range(n_obs):
            for p in range(n_latent):
                mean[p] += direct[b, p] / f32(n_obs)
        n_inputs = centered.shape[1]
        by_cov = np.zeros((n_latent, n_inputs), f32)
        for block in range(n_blocks):
            for p in range(n_latent):
                for q in range(n_inputs):
                    by_cov[p, q] += cov_grads[block, p, q]
        for b in range(n_obs):
            for p in range(n_latent):
                through = f32(0)
                for q in range(n_inputs):
                    through += by_cov[p, q] * centered[b, q]
                direct[b, p] += f32(2) / f32(n_obs) * through - mean[p]
    for b in range(n_obs):
        for p in range(n_latent):
            out[b, p] += direct[b, p]
