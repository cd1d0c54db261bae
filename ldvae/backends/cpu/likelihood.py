"""The likelihoods on tiles of cells by genes, with their gradients."""

# mypy: allow-untyped-defs
from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ldvae.backends.cpu.arrays import BLOCK, EPS, NB, POISSON, ZINB, entries_of
from ldvae.backends.cpu.math import EXACT_MATH, SMALLEST_NORMAL, compiled, exp, f32, log, log1p, log_gamma_ratio

CELLS_IN_L1 = 8  # cells whose part of a tile stays in the L1 cache
LARGEST_TABLED = 16  # counts up to here have their log Gamma differences in tables
LOG_FACTORIAL = np.array([math.lgamma(k + 1) for k in range(LARGEST_TABLED + 1)], np.float32)


class ByBlock(NamedTuple):
    """Nonzero counts of a minibatch sorted by block of genes, then by cell, so that they are read in order."""

    first: np.ndarray  # int64, (n_blocks, n_obs + 1): those of cell b are first[block, b] to first[block, b + 1]
    column: np.ndarray  # uint8, gene within the block
    x: np.ndarray


class Tile(NamedTuple):
    """Inputs and outputs of the likelihood for all cells by a block of genes."""

    mean: np.ndarray  # (n_obs, BLOCK), to be multiplied by `scale`, (n_obs,)
    scale: np.ndarray
    theta_row: np.ndarray  # of each cell
    theta: np.ndarray  # (n_rows * BLOCK,), and 1 / theta
    inverse: np.ndarray
    zi: np.ndarray  # zero-inflation logits, (n_obs, BLOCK)
    grad: np.ndarray  # gradient w.r.t. log mean, (n_obs, BLOCK), log theta and zi, each of its own shape
    theta_grad: np.ndarray
    zi_grad: np.ndarray
    log_prob: np.ndarray  # of each cell, (n_obs,), as the sum of its grads
    mean_grad: np.ndarray


class Entries(NamedTuple):
    """Nonzero counts of a few cells in a block of genes, contiguous, and their contributions to a `Tile`.

    Loops run over all of them: a loop over the few of one cell would be too short for the branch predictor.
    """

    end: np.ndarray  # of each cell, after its last entry
    place: np.ndarray  # in the flat part of a tile that these cells have
    theta_place: np.ndarray  # in the flat theta
    x: np.ndarray
    mu: np.ndarray
    theta: np.ndarray
    grad: np.ndarray
    theta_grad: np.ndarray
    zi_grad: np.ndarray
    log_prob: np.ndarray


@compiled()
def group_by_block(batch, blocks):
    """Put the nonzero counts of a minibatch into `blocks` (a `ByBlock`)."""
    first, n_obs = blocks.first, len(batch.starts)
    first[:] = 0
    for b in range(n_obs):
        indices, counts = entries_of(batch, b, batch.x)
        for k in range(len(indices)):
            first[np.uint32(indices[k]) // np.uint32(BLOCK), b] += np.int64(counts[k] > f32(0))
    n = 0
    for block in range(len(first)):
        for b in range(n_obs):
            n, first[block, b] = n + first[block, b], n
        first[block, n_obs] = n
    place = np.empty(len(first), np.int64)
    for b in range(n_obs):
        for block in range(len(first)):
            place[block] = first[block, b]
        indices, counts = entries_of(batch, b, batch.x)
        for k in range(len(indices)):
            if counts[k] > f32(0):  # stored zeros count as zeros
                g = np.uint32(indices[k])
                to = place[g // np.uint32(BLOCK)]
                place[g // np.uint32(BLOCK)] = to + 1
                blocks.column[to] = g % np.uint32(BLOCK)
                blocks.x[to] = counts[k]


@compiled()
def likelihood(
    block,
    kind,
    blocks,
    theta_row,
    log_theta,
    tiles,
    scale,
    zi,
    grads,
    zi_grads,
    theta_grads,
    log_prob,
    mean_grad,
):
    """Log-likelihood in a block of genes, with gradients w.r.t. log means, log thetas and zero-inflation logits.

    Parameters
    ----------
    kind
        POISSON, NB or ZINB.
    blocks
        The minibatch, `ByBlock`.
    theta_row
        Row of theta that each cell uses, (n_obs,).
    log_theta
        (n_vars, n_rows).
    tiles, scale
        The means are tiles * scale, (n_blocks, n_obs, BLOCK) and (n_blocks, n_obs).
    zi
        Zero-inflation logits, as `tiles`.
    grads, zi_grads
        Out: gradient w.r.t. log mean and `zi`, as `tiles`.
    theta_grads
        Out: gradient w.r.t. `log_theta`.
    log_prob, mean_grad
        Out: parts of each cell's log-likelihood and of the sum of its `grads`, (n_blocks, n_obs).
    """
    n_rows, n_obs = log_theta.shape[1], len(theta_row)
    n = min(BLOCK, len(log_theta) - block * BLOCK)
    z = block if kind == ZINB else 0
    tile = Tile(
        tiles[block], scale[block], theta_row, np.ones(max(n_rows, 1) * BLOCK, f32), np.empty(n_rows * BLOCK, f32),
        zi[z] if kind == ZINB else tiles[block], grads[block], np.zeros(n_rows * BLOCK, f32),
        zi_grads[z] if kind == ZINB else grads[block], log_prob[block], mean_grad[block],
    )  # fmt: skip
    for row in range(n_rows):
        for j in range(n):
            tile.theta[row * BLOCK + j] = exp(log_theta[block * BLOCK + j, row])
    for k in range(n_rows * BLOCK):
        tile.inverse[k] = f32(1) / (tile.theta[k] + EPS)
    tables = _log_gamma_tables(tile.theta[: n_rows * BLOCK])  # none for poisson
    size = CELLS_IN_L1 * BLOCK
    floats = np.empty(size, f32), np.empty(size, f32), np.empty(size, f32), np.empty(size, f32)
    entries = Entries(
        np.empty(CELLS_IN_L1, np.int64), np.empty(size, np.uint32), np.empty(size, np.uint32), *floats,
        np.empty(size, f32), np.empty(size, f32), np.empty(size),
    )  # fmt: skip
    for begin in range(0, n_obs, CELLS_IN_L1):
        end = min(begin + CELLS_IN_L1, n_obs)
        n_entries = _gather(begin, end, block, blocks, tile, entries)
        if kind == POISSON:
            _poisson_zeros(begin, end, tile)
            _poisson_counts(n_entries, entries)
        else:
            _nb_counts(n_entries, entries)
            if kind == NB:
                _nb_zeros(begin, end, tile)
            else:
                _zinb_zeros(begin, end, tile)
                _zinb_counts(n_entries, tile.zi[begin:end].reshape(-1), entries)
                _scatter(n_entries, entries.place, entries.zi_grad, tile.zi_grad[begin:end].reshape(-1))
            _log_gammas(n_entries, tables, entries)
            _scatter(n_entries, entries.theta_place, entries.theta_grad, tile.theta_grad)
        _scatter(n_entries, entries.place, entries.grad, tile.grad[begin:end].reshape(-1))
        _sum_cells(begin, end, entries, tile)
    for row in range(n_rows):
        for j in range(n):
            theta_grads[block * BLOCK + j, row] = tile.theta_grad[row * BLOCK + j]


@compiled()
def _gather(begin, end, block, blocks, tile, entries):
    """Copy the nonzero counts of the cells from `begin` to `end` into `entries`; returns their number."""
    first = blocks.first[block]
    start = first[begin]
    n = first[end] - start
    columns, counts = blocks.column[start:], blocks.x[start:]
    i = 0
    for b in range(begin, end):
        mean, scale = tile.mean[b], tile.scale[b]
        row, theta_row = np.uint32((b - begin) * BLOCK), np.uint32(tile.theta_row[b] * BLOCK)
        theta = tile.theta[theta_row : theta_row + BLOCK]
        while i < first[b + 1] - start:
            j = np.uint32(columns[i])
            entries.place[i] = row + j
            entries.theta_place[i] = theta_row + j
            entries.mu[i] = mean[j] * scale
            entries.theta[i] = theta[j]
            i += 1
        entries.end[b - begin] = i
    for i in range(n):
        entries.x[i] = counts[i]
    return n


@compiled(EXACT_MATH)
def _scatter(n, place, values, out):
    """out[place[i]] += values[i]."""
    for i in range(n):
        out[place[i]] += values[i]


@compiled()
def _sum_cells(begin, end, entries, tile):
    """Sums over each cell of the gradients and of its entries' log-likelihood."""
    total, i = 0.0, 0
    for b in range(begin, end):
        mean_grad, before = f32(0), total
        for j in range(BLOCK):
            mean_grad += tile.grad[b, j]
        tile.mean_grad[b] = mean_grad
        while i < entries.end[b - begin]:
            total += entries.log_prob[i]
            i += 1
        tile.log_prob[b] += f32(total - before)


@compiled()
def _softplus(x, e):
    """log(1 + exp(x)), given e = exp(-|x|)."""
    return log1p(e) + (x if x > f32(0) else f32(0))


@compiled()
def _sigmoid(x, e):
    """1 / (1 + exp(-x)), given e = exp(-|x|)."""
    return (f32(1) if x > f32(0) else e) / (f32(1) + e)


@compiled()
def _log_gamma_tables(theta):
    """log Gamma(k + theta) - log Gamma(theta) - log k! for k to LARGEST_TABLED, and its derivative w.r.t. log theta."""
    n = len(theta)
    value, grad = np.empty((LARGEST_TABLED + 1, n), f32), np.empty((LARGEST_TABLED + 1, n), f32)
    value[0], grad[0] = 0, 0
    for k in range(LARGEST_TABLED):
        for j in range(n):
            total = theta[j] + f32(k)
            value[k + 1, j] = value[k, j] + log(total * (f32(1) / f32(k + 1)))
            grad[k + 1, j] = grad[k, j] + theta[j] / total
    return value, grad


@compiled()
def _log_factorial(x):
    if x <= LARGEST_TABLED:
        return np.float64(LOG_FACTORIAL[int(x)])
    return LOG_FACTORIAL[LARGEST_TABLED] + log_gamma_ratio(LARGEST_TABLED + 1.0, x - LARGEST_TABLED)[0]


@compiled()
def _log_gammas(n, tables, entries):
    """Add to `entries` log Gamma(x + theta) - log Gamma(theta) - log x! and its derivative w.r.t. log theta."""
    value, derivative = tables
    for i in range(n):
        x, at = entries.x[i], entries.theta_place[i]
        count = np.uint32(min(x, f32(LARGEST_TABLED)))
        entries.log_prob[i] += value[count, at]
        entries.theta_grad[i] += derivative[count, at]
        if x > f32(LARGEST_TABLED):
            more = np.float64(x) - LARGEST_TABLED
            rest, by_theta = log_gamma_ratio(np.float64(entries.theta[i]) + LARGEST_TABLED, more)
            entries.log_prob[i] += rest - log_gamma_ratio(LARGEST_TABLED + 1.0, more)[0]
            entries.theta_grad[i] += f32(by_theta * entries.theta[i])


@compiled()
def _theta_of(tile, b):
    """Theta of each gene for a cell, 1 / theta, and the gradient w.r.t. log theta."""
    row = tile.theta_row[b] * BLOCK
    return tile.theta[row : row + BLOCK], tile.inverse[row : row + BLOCK], tile.theta_grad[row : row + BLOCK]


@compiled()
def _poisson_zeros(begin, end, tile):
    """Log-probability of a count of zero, for every entry: -mu."""
    for b in range(begin, end):
        total = f32(0)
        for j in range(BLOCK):
            tile.grad[b, j] = -tile.mean[b, j] * tile.scale[b]
            total += tile.grad[b, j]
        tile.log_prob[b] = total


@compiled()
def _poisson_counts(n, entries):
    """Terms of the nonzero counts: x log mu - log x!."""
    for i in range(n):
        entries.grad[i] = entries.x[i]
        entries.log_prob[i] = entries.x[i] * log(max(entries.mu[i], SMALLEST_NORMAL))
    for i in range(n):
        entries.log_prob[i] -= _log_factorial(entries.x[i])


@compiled()
def _nb_zeros(begin, end, tile):
    """Log-probability of a count of zero, for every entry: -theta * log(1 + mu / theta)."""
    for b in range(begin, end):
        factor, value = tile.scale[b], f32(0)
        thetas, inverses, theta_grad = _theta_of(tile, b)
        for j in range(BLOCK):
            theta, inverse = thetas[j], inverses[j]
            ratio = tile.mean[b, j] * factor * inverse
            log_ratio = theta * log1p(ratio)
            share = theta * ratio / (f32(1) + ratio)
            tile.grad[b, j] = -share
            theta_grad[j] += share * theta * inverse - log_ratio
            value += log_ratio
        tile.log_prob[b] = -value


@compiled()
def _nb_counts(n, entries):
    """Terms of the nonzero counts beyond `_nb_zeros`, without the log Gammas: x log(mu / (theta + mu))."""
    for i in range(n):
        mean, theta = entries.mu[i] + EPS, entries.theta[i]
        by_theta = entries.x[i] * theta / (mean + theta)
        entries.log_prob[i] = entries.x[i] * log(max(mean / (mean + theta), SMALLEST_NORMAL))
        entries.grad[i] = by_theta * (entries.mu[i] / mean)
        entries.theta_grad[i] = -by_theta


@compiled()
def _zinb_zeros(begin, end, tile):
    """Log-probability of a count of zero, for every entry: log(pi + (1 - pi) NB(0))."""
    for b in range(begin, end):
        factor, value = tile.scale[b], f32(0)
        thetas, inverses, theta_grad = _theta_of(tile, b)
        for j in range(BLOCK):
            theta, inverse, zi = thetas[j], inverses[j], tile.zi[b, j]
            ratio = tile.mean[b, j] * factor * inverse
            log_zero = -theta * log1p(ratio)
            gap = log_zero - zi
            e_gap, e_zi = exp(-abs(gap)), exp(-abs(zi))
            counted = _sigmoid(gap, e_gap)  # share of the zero that is not inflated
            share = theta * ratio / (f32(1) + ratio)
            tile.grad[b, j] = -share * counted
            tile.zi_grad[b, j] = _sigmoid(-zi, e_zi) - counted
            theta_grad[j] += counted * (share * theta * inverse + log_zero)
            value += _softplus(gap, e_gap) - _softplus(-zi, e_zi)
        tile.log_prob[b] = value


@compiled()
def _zinb_counts(n, zis, entries):
    """Correction of `_zinb_zeros` to log(1 - pi) + `_nb_zeros` at nonzero counts, added to `_nb_counts`."""
    for i in range(n):
        theta, zi = entries.theta[i], zis[entries.place[i]]
        ratio = entries.mu[i] / (theta + EPS)
        log_zero = -theta * log1p(ratio)
        gap = log_zero - zi
        e_gap = exp(-abs(gap))
        inflated = _sigmoid(-gap, e_gap)
        share = theta * ratio / (f32(1) + ratio)
        entries.log_prob[i] += log_zero - zi - _softplus(gap, e_gap)
        entries.grad[i] -= share * inflated
        entries.theta_grad[i] += inflated * (share * theta / (theta + EPS) + log_zero)
        entries.zi_grad[i] = -inflated


@compiled()
def reconstruction(begin, end, log_prob, out):
    """out = -sum over the blocks of log_prob (n_blocks, n_obs), in double precision, for the cells begin to end."""
    for b in range(begin, end):
        total = 0.0
        for block in range(len(log_prob)):
            total += np.float64(log_prob[block, b])
        out[b] = -total
