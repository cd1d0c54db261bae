"""The training step and inference on a CPU, compiled by numba: its loops, and `step`, which puts them together.

Genes are handled in blocks of `BLOCK` (a tile: all cells of the minibatch by one block), and each sum runs in an order
that does not depend on the number of threads: neither do the results.

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
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.experimental import structref
from numba.extending import intrinsic

f32 = np.float32

BLOCK = 128  # genes in a tile: 128 cells x 128 genes stay in the L2 cache
ENCODER_BLOCK = 512  # genes whose first-layer weights (128 units) stay in the L2 cache
IN_CACHE = 1 << 19  # entries of a matrix that is still in a cache when it is needed again
POISSON, NB, ZINB = range(3)
FEW = 8  # cells whose part of a tile stays in the L1 cache
LEAST = f32(1.2e-38)  # no smaller number is normal
SMALL = 16  # counts up to here have their log Gamma differences in tables
EPS = f32(1e-8)  # as in likelihoods.py
VAR_EPS = f32(1e-4)  # as in module.py, like the next two
BN_EPS = f32(1e-3)
BN_MOMENTUM = f32(0.01)

ENCODE, EVALUATE, TRAIN = range(3)  # how far a step goes
PHASES = (
    "cells", "first layers", "encoders", "decoder", "softmax", "likelihood", "sums",
    "decoder gradient", "z, Adam", "Adam",
)  # fmt: skip
SPAN = 32  # cells in a part of a phase that goes through cells

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
_TO_INTEGER = f32(1.5 * 2**23)  # a small number plus this is an integer plus this


@intrinsic
def _times_power_of_two(typing_context, x, n):
    """x 2^k, where `n` is k plus `_TO_INTEGER`; x and the product are normal."""

    def codegen(context, builder, signature, args):
        x, n = (builder.bitcast(value, _i32) for value in args)
        return builder.bitcast(builder.add(x, builder.shl(n, _i32(23))), _float)

    return types.float32(types.float32, types.float32), codegen


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
    shifted = x * f32(1.44269504) + _TO_INTEGER
    n = shifted - _TO_INTEGER
    r = x - n * f32(0.693359375) - n * f32(-2.12194440e-4)
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    return _times_power_of_two(p * r * r + r + f32(1), shifted)


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
    columns: np.ndarray  # int32, (n_obs, n_terms): the inputs that are not zero by construction, and their values
    values: np.ndarray
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


class Dataset(NamedTuple):
    """All cells: CSR arrays, and what is known of each cell."""

    offsets: np.ndarray  # int64, (n_cells + 1,): cell i has entries offsets[i] to offsets[i + 1]
    indices: np.ndarray  # as in `Minibatch`, like the next two
    x: np.ndarray
    inputs: np.ndarray
    batch: np.ndarray  # int64, (n_cells,)
    theta_row: np.ndarray  # row of theta, int64, (n_cells,); of size 0 where all have the first
    log_library: np.ndarray  # observed, (n_cells,)
    by_gene: tuple[np.ndarray, np.ndarray]  # room for `cell` and `inputs` of a `ByGene`
    by_block: tuple[np.ndarray, np.ndarray]  # room for `column` and `x` of a `ByBlock`


class Cells(NamedTuple):
    """What `look_up` finds of each cell of a minibatch, (n_obs,) each."""

    starts: np.ndarray  # int64, of its entries
    stops: np.ndarray
    batch: np.ndarray  # int64
    theta_row: np.ndarray  # int64
    log_library: np.ndarray  # observed; or, after its encoder, drawn


class ByGene(NamedTuple):
    """A minibatch gene by gene: gene g has entries first[g] to first[g + 1], cells ascending."""

    first: np.ndarray  # int64, (n_vars + 1,)
    cell: np.ndarray  # int32
    inputs: np.ndarray


class ByBlock(NamedTuple):
    """The nonzero counts of a minibatch block by block of genes, each cell by cell, so that they are read in order."""

    first: np.ndarray  # int64, (n_blocks, n_obs + 1): those of cell b are first[block, b] to first[block, b + 1]
    column: np.ndarray  # uint8, gene within the block
    x: np.ndarray


class Adam(NamedTuple):
    """Factors of one step of Adam as torch defines it, weight decay added to the gradient."""

    rate: np.float32  # lr / (1 - beta1^t)
    root: np.float32  # 1 / sqrt(1 - beta2^t)
    beta1: np.float32
    beta2: np.float32
    eps: np.float32
    weight_decay: np.float32


class EncoderPass(NamedTuple):
    """An encoder as arrays, and what one minibatch leaves in it; of one that does not exist, arrays of size 0."""

    weights: Encoder
    moments: Moments
    gradient: Encoder  # of all but the first weight
    first_layer: tuple[np.ndarray, np.ndarray]  # Adam's moments of the first weight
    hidden: np.ndarray  # (n_obs, n_hidden), as the next two
    normalised: np.ndarray
    hidden_slope: np.ndarray
    inv_std: np.ndarray
    mean: np.ndarray  # (n_obs, n_latent), as the next five
    var: np.ndarray
    draw: np.ndarray
    slope: np.ndarray
    mean_slope: np.ndarray
    log_var_slope: np.ndarray
    kl: np.ndarray  # float64, (n_obs,)


class DecoderPass(NamedTuple):
    """A decoder as arrays, and what one minibatch leaves behind in it; one that does not exist has no tiles."""

    weights: Decoder
    moments: Moments
    gradient: Decoder
    tiles: np.ndarray  # (n_blocks, n_obs, BLOCK), as the next
    slopes: np.ndarray
    folded: np.ndarray  # (n_blocks, n_inputs, BLOCK), as the next
    spread: np.ndarray
    inv_std: np.ndarray
    highest: np.ndarray  # (n_blocks, n_obs), as the next three; of size 0 without a softmax
    total: np.ndarray
    scale: np.ndarray
    pull: np.ndarray
    u_slopes: np.ndarray
    cov_slopes: np.ndarray


class Trained(NamedTuple):
    """All parameters but the encoders' first weights, flat, with gradients and state of Adam."""

    parameters: tuple[np.ndarray, ...]
    gradients: tuple[np.ndarray, ...]
    firsts: tuple[np.ndarray, ...]
    seconds: tuple[np.ndarray, ...]


class Pass(NamedTuple):
    """A module as arrays, with the memory that minibatches of `n_obs` cells need."""

    cells: Cells
    encoders: tuple[EncoderPass, EncoderPass]  # of z, of the library size
    priors: tuple[Moments, Moments]  # of z, of the log library size, in each batch
    decoders: tuple[DecoderPass, DecoderPass]  # of the mean, of the zero inflation
    trained: Trained
    tracked: tuple[np.ndarray, ...]  # int64: how many steps each batch norm has seen
    u: Inputs
    log_theta: np.ndarray  # (n_vars, n_rows), as the next
    theta_gradient: np.ndarray
    log_prob: np.ndarray  # (n_blocks, n_obs), as the next
    mean_slope: np.ndarray
    terms: np.ndarray  # of the negative ELBO, float64, (3, n_obs): reconstruction, KL(z), KL(library)
    gene_starts: np.ndarray  # `first` of a `ByGene` and of a `ByBlock`
    block_starts: np.ndarray


class Draw(NamedTuple):
    """Random numbers for an encoder."""

    noise: np.ndarray  # (n_obs, n_latent)
    mask: np.ndarray  # dropout, (n_obs, n_hidden); of size 0 for none


class Task(NamedTuple):
    """What to do with a minibatch."""

    stage: int  # ENCODE, EVALUATE or TRAIN
    kind: int  # of the likelihood, as in `likelihood`
    kl_weights: tuple[np.float32, np.float32]  # of the KL divergence of each encoder
    adam: Adam
    n_threads: int


@structref.register
class KeptType(types.StructRef):
    """What numba calls the type of a `Kept`."""


class Kept(structref.StructRefProxy):
    """A value as compiled code has it: it is handed over as one pointer, however many arrays it is made of."""


structref.define_boxing(KeptType, Kept)
structref.define_constructor(Kept, KeptType, ["value"])


@compiled()
def keep(value):
    """Take a value apart once, for all calls with it."""
    return Kept(value)


@compiled()
def look_up(rows, data, cells, u):
    """Put what the `Dataset` has of the cells `rows` into `cells`, and their one-hot column into `u`."""
    for b in range(len(rows)):
        row = rows[b]
        cells.starts[b], cells.stops[b] = data.offsets[row], data.offsets[row + 1]
        cells.batch[b] = data.batch[row]
        cells.theta_row[b] = data.theta_row[row] if data.theta_row.size > 0 else 0
        cells.log_library[b] = data.log_library[row]
        u.hot[b] = u.n_latent + data.batch[row]


@compiled()
def _of_cell(batch, b, values):
    """The genes of a cell's entries, and what `values` has of them."""
    start, stop = batch.starts[b], batch.stops[b]
    return batch.indices[start:stop], values[start:stop]


@compiled()
def group_by_block(batch, blocks):
    """Put the nonzero counts of a minibatch into `blocks` (a `ByBlock`)."""
    first, n_obs = blocks.first, len(batch.starts)
    first[:] = 0
    for b in range(n_obs):
        indices, counts = _of_cell(batch, b, batch.x)
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
        indices, counts = _of_cell(batch, b, batch.x)
        for k in range(len(indices)):
            if counts[k] > f32(0):  # a zero that is stored is one like others
                g = np.uint32(indices[k])
                to = place[g // np.uint32(BLOCK)]
                place[g // np.uint32(BLOCK)] = to + 1
                blocks.column[to] = g % np.uint32(BLOCK)
                blocks.x[to] = counts[k]


@compiled()
def group_by_gene(batch, genes):
    """Put the entries of a minibatch into `genes` (a `ByGene`)."""
    first = genes.first
    first[:] = 0
    for b in range(len(batch.starts)):
        for g in _of_cell(batch, b, batch.inputs)[0]:
            first[np.uint32(g) + np.uint32(1)] += 1
    for g in range(len(first) - 1):
        first[g + 1] += first[g]
    place = first[:-1].astype(np.uint32)
    for b in range(len(batch.starts)):
        indices, inputs = _of_cell(batch, b, batch.inputs)
        for k in range(len(indices)):
            g = np.uint32(indices[k])
            to = place[g]
            place[g] = to + np.uint32(1)
            genes.cell[to] = b
            genes.inputs[to] = inputs[k]


# -- encoders ----------------------------------------------------------------------------------------------------------


def _row_adder(width):
    """Make the inner loop of `_add_rows` for `width` columns, whose sums it keeps in vector registers."""

    @intrinsic
    def add(typing_context, out, place, matrix, column, indices, values, start, stop):
        def codegen(context, builder, signature, args):
            int64, vector = ir.IntType(64), ir.VectorType(_float, width)
            out, matrix, indices, values = (
                context.make_array(signature.args[i])(context, builder, args[i]) for i in (0, 2, 4, 5)
            )
            n_columns = builder.extract_value(matrix.shape, 1)

            def vector_at(data, place):
                return builder.bitcast(builder.gep(data, [place]), vector.as_pointer())

            target = vector_at(out.data, args[1])
            total = cgutils.alloca_once(builder, vector)
            builder.store(builder.load(target, align=4), total)
            with cgutils.for_range_slice(builder, args[6], args[7], int64(1), int64) as (k, _):
                index = builder.load(builder.gep(indices.data, [k]))
                index = index if index.type.width == 64 else builder.sext(index, int64)
                source = vector_at(matrix.data, builder.add(builder.mul(index, n_columns), args[3]))
                value = builder.load(builder.gep(values.data, [k]))
                nothing, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(_i32, width), [0] * width)
                factor = builder.shuffle_vector(builder.insert_element(nothing, value, _i32(0)), nothing, first)
                product = builder.fmul(factor, builder.load(source, align=4), flags=("contract",))
                builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
            builder.store(builder.load(total), target, align=4)
            return context.get_dummy_value()

        return types.none(out, types.int64, matrix, types.int64, indices, values, types.int64, types.int64), codegen

    return add


_WIDTH = 128 if get_host_cpu_features().get("avx512f") else 64  # columns that eight registers hold
_add_wide, _add_some, _add_one = _row_adder(_WIDTH), _row_adder(16), _row_adder(1)


@compiled(EXACT_MATH)
def _add_rows(out, row, matrix, indices, values, start, stop):
    """out[row] += sum of values[k] * matrix[indices[k]], k from start to stop; `out` has the columns of `matrix`."""
    n = matrix.shape[1]
    h = 0
    while h + _WIDTH <= n:
        _add_wide(out, row * n + h, matrix, h, indices, values, start, stop)
        h += _WIDTH
    while h + 16 <= n:
        _add_some(out, row * n + h, matrix, h, indices, values, start, stop)
        h += 16
    while h < n:
        _add_one(out, row * n + h, matrix, h, indices, values, start, stop)
        h += 1


@intrinsic
def _prefetch(typing_context, array, begin, end):
    """Ask for some entries, of four bytes each, of the flat array to be brought into the L2 cache."""

    def codegen(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        int64, address = ir.IntType(64), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [address, _i32, _i32, _i32])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        with cgutils.for_range_slice(builder, args[1], args[2], int64(16), int64) as (k, _):  # of a cache line
            place = builder.bitcast(builder.gep(array.data, [k]), address)
            builder.call(prefetch, [place, _i32(0), _i32(2), _i32(1)])  # to read; level 2; data
        return context.get_dummy_value()

    return types.none(array, types.int64, types.int64), codegen


@compiled()
def prefetch_entries(begin, end, batch):
    """Ask for the counts of the cells from `begin` to `end`, which lie anywhere in memory."""
    for b in range(begin, end):
        _prefetch(batch.indices, batch.starts[b], batch.stops[b])
        _prefetch(batch.inputs, batch.starts[b], batch.stops[b])
        _prefetch(batch.x, batch.starts[b], batch.stops[b])


@compiled()
def first_layer(begin, end, batch, weight, bias, out):
    """First linear layer of an encoder for the cells from `begin` to `end`, into an array (n_obs, n_hidden).

    The cells go through the genes together, block by block, so that a block's weights are read from memory once:
    indices ascend within a cell.
    """
    place = batch.starts[begin:end].copy()
    for b in range(begin, end):
        for h in range(len(bias)):
            out[b, h] = bias[h]
    ahead = ENCODER_BLOCK if weight.size > IN_CACHE else len(weight)
    for limit in range(ENCODER_BLOCK, len(weight) + ENCODER_BLOCK, ENCODER_BLOCK):
        for b in range(begin, end):
            for g in range(ahead, min(len(weight), limit + (b - begin + 1) * ENCODER_BLOCK // (end - begin))):
                _prefetch(weight, g * weight.shape[1], (g + 1) * weight.shape[1])
                ahead = g + 1
            start = place[b - begin]
            stop = start
            while stop < batch.stops[b] and batch.indices[stop] < limit:
                stop += 1
            place[b - begin] = stop
            _add_rows(out, b, weight, batch.indices, batch.inputs, start, stop)


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
def draw(mean, var, noise, prior, batch, out, kl):
    """A draw of N(mean, var) into `out`, and the KL divergence from the prior of each cell's batch into `kl`."""
    for b in range(mean.shape[0]):
        prior_mean, prior_var, total = prior.mean[batch[b]], prior.var[batch[b]], f32(0)
        for i in range(mean.shape[1]):
            out[b, i] = mean[b, i] + math.sqrt(var[b, i]) * noise[b, i]
            shift = mean[b, i] - prior_mean
            total += log(prior_var / var[b, i]) + (var[b, i] + shift * shift) / prior_var - f32(1)
        kl[b] = f32(0.5) * total


@compiled(EXACT_MATH)
def draw_gradient(mean, var, noise, prior, batch, kl_weight, slope, mean_slope, log_var_slope):
    """Gradient of the loss by mean and log-variance, from `slope`, that by the draw; `kl_weight` is per cell."""
    for b in range(mean.shape[0]):
        prior_mean, prior_var = prior.mean[batch[b]], prior.var[batch[b]]
        for i in range(mean.shape[1]):
            mean_slope[b, i] = slope[b, i] + kl_weight * (mean[b, i] - prior_mean) / prior_var
            var_slope = f32(0.5) * (
                slope[b, i] * noise[b, i] / math.sqrt(var[b, i]) + kl_weight * (f32(1) / prior_var - f32(1) / var[b, i])
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


@compiled(EXACT_MATH)
def adam_step(parameter, first, second, gradient, adam):
    """One step of Adam of flat arrays."""
    for k in range(parameter.size):
        slope = gradient[k] + adam.weight_decay * parameter[k]
        m = first[k] + (slope - first[k]) * (f32(1) - adam.beta1)
        v = second[k] * adam.beta2 + slope * slope * (f32(1) - adam.beta2)
        first[k] = m
        second[k] = v
        parameter[k] -= adam.rate * m / (math.sqrt(v) * adam.root + adam.eps)


@compiled()
def first_layer_step(block, genes, slope, weight, first, second, adam):
    """Gradient of the first weight of an encoder and its step of Adam, for a block of genes, in one pass over memory.

    `slope` is the gradient by the first layer, (n_obs, n_hidden); weight and state of Adam are (n_vars, n_hidden).
    """
    gradient = np.empty(max(weight.shape[1], BLOCK), f32)
    for g in range(block * BLOCK, min((block + 1) * BLOCK, len(weight))):
        if weight.size > IN_CACHE and g + 8 < len(weight):
            ahead = (g + 8) * weight.shape[1]
            for matrix in (weight, first, second):
                _prefetch(matrix, ahead, ahead + weight.shape[1])
        gradient[:] = 0
        _add_rows(gradient, 0, slope, genes.cell, genes.inputs, genes.first[g], genes.first[g + 1])
        adam_step(weight[g], first[g], second[g], gradient, adam)


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
    """out[b] = offset + u[b] @ folded."""
    for j in range(BLOCK):
        out[b, j] = offset[j]
    n_terms = u.columns.shape[1]
    _add_rows(out, b, folded, u.columns, u.values, b * n_terms, (b + 1) * n_terms)


@compiled()
def _row_max(row, lanes):
    """Largest of BLOCK numbers; the compiler makes no vector loop of a plain maximum."""
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
    offset = np.full(BLOCK, f32(-1e30) if highest.size > 0 else f32(0))  # beyond the last gene: no share of the softmax
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
def _input_slopes(slopes, b, folded, n_latent, out):
    """out[b, p] = sum over genes of slopes[b] * folded[p], for the latent inputs p; five at a time."""
    p = 0
    while p + 5 <= n_latent:
        s0, s1, s2, s3, s4 = f32(0), f32(0), f32(0), f32(0), f32(0)
        for j in range(BLOCK):
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
        for j in range(BLOCK):
            s0 += slopes[b, j] * folded[p, j]
        out[b, p] = s0
        p += 1


@compiled()
def _weight_slopes(slopes, sums, u, has_norm, out):
    """out[p] = sum over cells of slopes[b] * u[b, p], u centred where there is a batch norm. Shape (n_inputs, BLOCK).

    `sums` are those of the slopes over the cells.
    """
    n_inputs = len(out)
    first, last = u.n_latent, u.n_latent + u.n_hot
    for p in range(n_inputs):
        for j in range(BLOCK):
            out[p, j] = -u.centre[p] * sums[j] if has_norm and first <= p < last else f32(0)
    if first < last:
        for b in range(len(slopes)):
            for j in range(BLOCK):
                out[u.hot[b], j] += slopes[b, j]
    dense = u.centred if has_norm else u.u
    _add_weight_slopes(slopes, dense, 0, first, out)
    _add_weight_slopes(slopes, dense, last, n_inputs, out)


@compiled()
def _add_weight_slopes(slopes, u, begin, end, out):
    """out[p] += sum over cells of slopes[b] * u[b, p], p from `begin` to `end`; four cells at a time."""
    n_obs = len(u)
    b = 0
    while b + 4 <= n_obs:
        for p in range(begin, end):
            u0, u1, u2, u3 = u[b, p], u[b + 1, p], u[b + 2, p], u[b + 3, p]
            for j in range(BLOCK):
                out[p, j] += u0 * slopes[b, j] + u1 * slopes[b + 1, j] + u2 * slopes[b + 2, j] + u3 * slopes[b + 3, j]
        b += 4
    while b < n_obs:
        for p in range(begin, end):
            u0 = u[b, p]
            for j in range(BLOCK):
                out[p, j] += u0 * slopes[b, j]
        b += 1


@compiled()
def _weighted_product(weight, a, b, n):
    """Sum of weight[j] * a[j] * b[j]; it stores nothing, so that its order does not depend on where the arrays lie."""
    total = f32(0)
    for j in range(n):
        total += weight[j] * a[j] * b[j]
    return total


@compiled(EXACT_MATH)
def decoder_gradient(
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
    """Gradient of a decoder's parameters, and by its input, from that by the log means, for a block of genes.

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
    n_vars, n_inputs = decoder.weight.shape
    n_obs = len(u.u)
    start = block * BLOCK
    n = min(BLOCK, n_vars - start)
    tile, slope = tiles[block], slopes[block]
    sums = np.zeros(BLOCK, f32)
    for b in range(n_obs):
        if pull.size > 0:
            factor = pull[block, b]
            for j in range(BLOCK):
                slope[b, j] = weight * (slope[b, j] - tile[b, j] * factor)
                sums[j] += slope[b, j]
        else:
            for j in range(BLOCK):
                slope[b, j] *= weight
                sums[j] += slope[b, j]
        _input_slopes(slope, b, folded[block], u.n_latent, u_slopes[block])
    by_weight = np.empty((n_inputs, BLOCK), f32)
    has_norm = decoder.scale.size > 0
    _weight_slopes(slope, sums, u, has_norm, by_weight)
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
def _log_gamma_tables(theta):
    """log Gamma(k + theta) - log Gamma(theta) - log k! for k up to SMALL, and its derivative by log theta."""
    n = len(theta)
    value, slope = np.empty((SMALL + 1, n), f32), np.empty((SMALL + 1, n), f32)
    value[0], slope[0] = 0, 0
    for k in range(SMALL):
        for j in range(n):
            total = theta[j] + f32(k)
            value[k + 1, j] = value[k, j] + log(total * (f32(1) / f32(k + 1)))
            slope[k + 1, j] = slope[k, j] + theta[j] / total
    return value, slope


@compiled()
def _log_factorial(x):
    if x <= SMALL:
        return np.float64(LOG_FACTORIAL[int(x)])
    return LOG_FACTORIAL[SMALL] + log_gamma_ratio(SMALL + 1.0, x - SMALL)[0]


class Tile(NamedTuple):
    """All cells by a block of genes: what the likelihood is given of them, and what it leaves."""

    mean: np.ndarray  # (n_obs, BLOCK), to be multiplied by `scale`, (n_obs,)
    scale: np.ndarray
    theta_row: np.ndarray  # of each cell
    theta: np.ndarray  # (n_rows * BLOCK,), and 1 / theta
    inverse: np.ndarray
    zi: np.ndarray  # zero-inflation logits, (n_obs, BLOCK)
    slope: np.ndarray  # gradient by log mean, (n_obs, BLOCK), and by log theta and zi as they are
    theta_slope: np.ndarray
    zi_slope: np.ndarray
    log_prob: np.ndarray  # of each cell, (n_obs,), as the sum of its slopes
    mean_slope: np.ndarray


class Entries(NamedTuple):
    """The nonzero counts of a few cells in a block of genes, one after the other, and what they add to a `Tile`.

    Loops go through all of them at once: a loop for the few of one cell would end where no processor expects it.
    """

    end: np.ndarray  # of each cell, after its last entry
    place: np.ndarray  # in the flat part of a tile that these cells have
    theta_place: np.ndarray  # in the flat theta
    x: np.ndarray
    mu: np.ndarray
    theta: np.ndarray
    slope: np.ndarray
    theta_slope: np.ndarray
    zi_slope: np.ndarray
    log_prob: np.ndarray


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
    slopes,
    zi_slopes,
    theta_slopes,
    log_prob,
    mean_slope,
):
    """Log-likelihood of cells in a block of genes, and its gradient by log means, log thetas and zero-inflation logits.

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
    slopes, zi_slopes
        Out: gradient by log mean and by `zi`, as `tiles`.
    theta_slopes
        Out: gradient by `log_theta`.
    log_prob, mean_slope
        Out: parts of each cell's log-likelihood and of the sum of its `slopes`, (n_blocks, n_obs).
    """
    n_rows, n_obs = log_theta.shape[1], len(theta_row)
    n = min(BLOCK, len(log_theta) - block * BLOCK)
    z = block if kind == ZINB else 0
    tile = Tile(
        tiles[block], scale[block], theta_row, np.ones(max(n_rows, 1) * BLOCK, f32), np.empty(n_rows * BLOCK, f32),
        zi[z] if kind == ZINB else tiles[block], slopes[block], np.zeros(n_rows * BLOCK, f32),
        zi_slopes[z] if kind == ZINB else slopes[block], log_prob[block], mean_slope[block],
    )  # fmt: skip
    for row in range(n_rows):
        for j in range(n):
            tile.theta[row * BLOCK + j] = exp(log_theta[block * BLOCK + j, row])
    for k in range(n_rows * BLOCK):
        tile.inverse[k] = f32(1) / (tile.theta[k] + EPS)
    tables = _log_gamma_tables(tile.theta[: n_rows * BLOCK])  # none for poisson
    size = FEW * BLOCK
    floats = np.empty(size, f32), np.empty(size, f32), np.empty(size, f32), np.empty(size, f32)
    entries = Entries(
        np.empty(FEW, np.int64), np.empty(size, np.uint32), np.empty(size, np.uint32), *floats,
        np.empty(size, f32), np.empty(size, f32), np.empty(size),
    )  # fmt: skip
    for begin in range(0, n_obs, FEW):
        end = min(begin + FEW, n_obs)
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
                _scatter(n_entries, entries.place, entries.zi_slope, tile.zi_slope[begin:end].reshape(-1))
            _log_gammas(n_entries, tables, entries)
            _scatter(n_entries, entries.theta_place, entries.theta_slope, tile.theta_slope)
        _scatter(n_entries, entries.place, entries.slope, tile.slope[begin:end].reshape(-1))
        _sum_cells(begin, end, entries, tile)
    for row in range(n_rows):
        for j in range(n):
            theta_slopes[block * BLOCK + j, row] = tile.theta_slope[row * BLOCK + j]


@compiled()
def _gather(begin, end, block, blocks, tile, entries):
    """Put the nonzero counts of the cells from `begin` to `end` into `entries`; how many there are."""
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
    """Each cell's sum of slopes, and of what its entries add to its log-likelihood."""
    total, i = 0.0, 0
    for b in range(begin, end):
        mean_slope, before = f32(0), total
        for j in range(BLOCK):
            mean_slope += tile.slope[b, j]
        tile.mean_slope[b] = mean_slope
        while i < entries.end[b - begin]:
            total += entries.log_prob[i]
            i += 1
        tile.log_prob[b] += f32(total - before)


@compiled()
def _log_gammas(n, tables, entries):
    """Add to `entries` log Gamma(x + theta) - log Gamma(theta) - log x! and its derivative by log theta."""
    value, derivative = tables
    for i in range(n):
        x, at = entries.x[i], entries.theta_place[i]
        count = np.uint32(min(x, f32(SMALL)))
        entries.log_prob[i] += value[count, at]
        entries.theta_slope[i] += derivative[count, at]
        if x > f32(SMALL):
            more = np.float64(x) - SMALL
            rest, by_theta = log_gamma_ratio(np.float64(entries.theta[i]) + SMALL, more)
            entries.log_prob[i] += rest - log_gamma_ratio(SMALL + 1.0, more)[0]
            entries.theta_slope[i] += f32(by_theta * entries.theta[i])


@compiled()
def _poisson_zeros(begin, end, tile):
    """What every entry adds, as if its count were zero: -mu."""
    for b in range(begin, end):
        total = f32(0)
        for j in range(BLOCK):
            tile.slope[b, j] = -tile.mean[b, j] * tile.scale[b]
            total += tile.slope[b, j]
        tile.log_prob[b] = total


@compiled()
def _poisson_counts(n, entries):
    """What the nonzero counts add: x log mu - log x!."""
    for i in range(n):
        entries.slope[i] = entries.x[i]
        entries.log_prob[i] = entries.x[i] * log(max(entries.mu[i], LEAST))
    for i in range(n):
        entries.log_prob[i] -= _log_factorial(entries.x[i])


@compiled()
def _theta_of(tile, b):
    """The theta that a cell has for each gene, 1 / theta, and the gradient by log theta."""
    row = tile.theta_row[b] * BLOCK
    return tile.theta[row : row + BLOCK], tile.inverse[row : row + BLOCK], tile.theta_slope[row : row + BLOCK]


@compiled()
def _nb_zeros(begin, end, tile):
    """What every entry adds, as if its count were zero: -theta * log(1 + mu / theta)."""
    for b in range(begin, end):
        factor, value = tile.scale[b], f32(0)
        thetas, inverses, theta_slope = _theta_of(tile, b)
        for j in range(BLOCK):
            theta, inverse = thetas[j], inverses[j]
            ratio = tile.mean[b, j] * factor * inverse
            log_ratio = theta * log1p(ratio)
            share = theta * ratio / (f32(1) + ratio)
            tile.slope[b, j] = -share
            theta_slope[j] += share * theta * inverse - log_ratio
            value += log_ratio
        tile.log_prob[b] = -value


@compiled()
def _nb_counts(n, entries):
    """What the nonzero counts add to `_nb_zeros`, but for the log Gammas: x log(mu / (theta + mu))."""
    for i in range(n):
        mean, theta = entries.mu[i] + EPS, entries.theta[i]
        by_theta = entries.x[i] * theta / (mean + theta)
        entries.log_prob[i] = entries.x[i] * log(max(mean / (mean + theta), LEAST))
        entries.slope[i] = by_theta * (entries.mu[i] / mean)
        entries.theta_slope[i] = -by_theta


@compiled()
def _zinb_zeros(begin, end, tile):
    """What every entry adds, as if its count were zero: log(pi + (1 - pi) NB(0))."""
    for b in range(begin, end):
        factor, value = tile.scale[b], f32(0)
        thetas, inverses, theta_slope = _theta_of(tile, b)
        for j in range(BLOCK):
            theta, inverse, zi = thetas[j], inverses[j], tile.zi[b, j]
            ratio = tile.mean[b, j] * factor * inverse
            log_zero = -theta * log1p(ratio)
            gap = log_zero - zi
            e_gap, e_zi = exp(-abs(gap)), exp(-abs(zi))
            counted = _sigmoid(gap, e_gap)  # share of the zero that is not inflated
            share = theta * ratio / (f32(1) + ratio)
            tile.slope[b, j] = -share * counted
            tile.zi_slope[b, j] = _sigmoid(-zi, e_zi) - counted
            theta_slope[j] += counted * (share * theta * inverse + log_zero)
            value += _softplus(gap, e_gap) - _softplus(-zi, e_zi)
        tile.log_prob[b] = value


@compiled()
def _zinb_counts(n, zis, entries):
    """What turns that of `_zinb_zeros` into log(1 - pi) and `_nb_zeros` at the counts, added to `_nb_counts`."""
    for i in range(n):
        theta, zi = entries.theta[i], zis[entries.place[i]]
        ratio = entries.mu[i] / (theta + EPS)
        log_zero = -theta * log1p(ratio)
        gap = log_zero - zi
        e_gap = exp(-abs(gap))
        inflated = _sigmoid(-gap, e_gap)
        share = theta * ratio / (f32(1) + ratio)
        entries.log_prob[i] += log_zero - zi - _softplus(gap, e_gap)
        entries.slope[i] -= share * inflated
        entries.theta_slope[i] += inflated * (share * theta / (theta + EPS) + log_zero)
        entries.zi_slope[i] = -inflated


# -- the team ----------------------------------------------------------------------------------------------------------
#
# (In this file, as numba's cache notices changes of the file of `step`, not of others that it calls.)
#
# Several threads run `step` side by side on the same arrays. It is made of phases, a phase of parts; each thread claims
# one part after the other, and goes on to the next phase when all parts of this one are done. Who does which part does
# not change the result. A thread that comes late finds less left to do, and one that never comes is not missed.

_LINE = 8  # counters on cache lines of their own, so that threads do not slow each other down
_yield = types.ExternalFunction("sched_yield", types.int32())


@intrinsic
def _fetch_add(typing_context, counters, place, n):
    """Add n to counters[place] in one indivisible operation; what it was before."""

    def codegen(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.atomic_rmw("add", builder.gep(array.data, [args[1]]), args[2], "seq_cst")

    return types.int64(types.Array(types.int64, 1, "C"), types.int64, types.int64), codegen


@intrinsic
def _clock(typing_context):
    """The processor's counter of cycles."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.IntType(64), [])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.readcyclecounter"), [])

    return types.int64(), codegen


def new_team() -> np.ndarray:
    """What the threads of a step share: of each phase, parts claimed, parts done, and the clock when all were done."""
    return np.zeros(3 * len(PHASES) * _LINE, np.int64)


@compiled()
def clock():
    """The processor's counter of cycles."""
    return _clock()


def phase_begin(team: np.ndarray) -> int:
    """The clock when the first thread began a step that is done."""
    return int(team[_LINE + 1])


def phase_ends(team: np.ndarray) -> np.ndarray:
    """The clock at the end of each phase of a step that is done."""
    return team[2 * _LINE :: 3 * _LINE]


@numba.njit(nogil=True, error_model="numpy", forceinline=True)  # numba cannot compile with a generator from its cache
def parts(team, phase, n):
    """The parts of a phase that this thread claims; it ends when all `n` parts are done, by whomever."""
    claimed = 3 * phase * _LINE
    done = claimed + _LINE
    part = _fetch_add(team, claimed, 1)
    while part < n:
        yield part
        _fetch_add(team, done, 1)
        part = _fetch_add(team, claimed, 1)
    while _fetch_add(team, done, 0) < n:
        _yield()
    team[done + _LINE] = _clock()


# -- the step ----------------------------------------------------------------------------------------------------------


@compiled()
def step(team, dataset, memory, rows, draws, task):
    """Encode the cells `rows`, evaluate the ELBO or train on them, as `task` says.

    `dataset` is a `Dataset`, `memory` a `Pass` that has the results, both as `keep` gives them; `draws` are those of
    both encoders.
    """
    if team[_LINE + 1] == 0:
        team[_LINE + 1] = _clock()
    data, work = dataset.value, memory.value
    cells = work.cells
    z, library = work.encoders
    px, zi = work.decoders
    training = task.stage == TRAIN
    n_obs, n_blocks = len(rows), len(px.tiles)
    n_decoders = 2 if len(zi.tiles) > 0 else 1
    n_encoders = 2 if library.hidden.size > 0 else 1
    n_spans = -(-n_obs // SPAN)
    counts = Minibatch(cells.starts, cells.stops, data.indices, data.x, data.inputs)
    genes = ByGene(work.gene_starts, data.by_gene[0], data.by_gene[1])
    blocks = ByBlock(work.block_starts, data.by_block[0], data.by_block[1])

    for _ in parts(team, 0, 1):
        look_up(rows, data, cells, work.u)
        if training:
            for i in range(len(work.tracked)):
                work.tracked[i][:] += 1

    # The encoders' first layers, each in one piece for two threads; and the minibatch gene by gene.
    n_pieces = max(1, task.n_threads // n_encoders)
    prefetch_entries(0, n_obs, counts)
    for part in parts(team, 1, 2 + n_encoders * n_pieces):
        if part == 0 and training:
            group_by_gene(counts, genes)
        elif part == 1 and task.stage > ENCODE:
            group_by_block(counts, blocks)
        elif part > 1:
            piece, encoder = (part - 2) // n_encoders, work.encoders[(part - 2) % n_encoders]
            begin, end = piece * n_obs // n_pieces, (piece + 1) * n_obs // n_pieces
            first_layer(begin, end, counts, encoder.weights.weight, encoder.weights.bias, encoder.hidden)

    for part in parts(team, 2, n_encoders):
        encode(work.encoders[part], draws[part], work.priors[part], cells.batch, task.stage)
        if part == 0 and task.stage > ENCODE:
            set_inputs(work.u, z.draw)
            if training:
                moments_of(work.u)
        elif part == 1 and task.stage > ENCODE:
            cells.log_library[:] = library.draw[:, 0]
    if task.stage == ENCODE:
        return

    unbiased = f32(n_obs) / f32(n_obs - 1) if training else f32(0)
    for part in parts(team, 3, n_decoders * n_blocks):
        block, d = part // n_decoders, work.decoders[part % n_decoders]
        decode(
            block, work.u, d.weights, d.moments, unbiased, d.folded, d.inv_std, d.spread, d.tiles, d.highest, d.total
        )

    for span in parts(team, 4, n_spans):
        begin, end = span * SPAN, min((span + 1) * SPAN, n_obs)
        softmax_scales(begin, end, px.highest, px.total, cells.log_library, px.scale)

    weight = f32(-1) / f32(n_obs)  # from log-likelihood to loss
    for part in parts(team, 5, n_blocks):
        block = n_blocks - 1 - part  # the last ones are still in a cache
        likelihood(
            block, task.kind, blocks, cells.theta_row, work.log_theta, px.tiles, px.scale, zi.tiles,
            px.slopes, zi.slopes, work.theta_gradient, work.log_prob, work.mean_slope,
        )  # fmt: skip
        if training:
            work.theta_gradient[block * BLOCK : (block + 1) * BLOCK] *= weight

    for span in parts(team, 6, n_spans):
        begin, end = span * SPAN, min((span + 1) * SPAN, n_obs)
        reconstruction(begin, end, work.log_prob, work.terms[0])
        if training:
            softmax_pull(begin, end, work.mean_slope, px.scale, cells.log_library, px.pull, weight, library.slope)
    if not training:
        return

    # Gradients, and Adam's step of what has its gradient.
    for part in parts(team, 7, n_encoders - 1 + n_decoders * n_blocks):
        if part == n_encoders - 2:
            encoder_backward(library, draws[1], work.priors[1], cells.batch, task.kl_weights[1], n_obs)
        else:
            part -= n_encoders - 1
            block, d = part // n_decoders, work.decoders[part % n_decoders]
            decoder_gradient(
                block, d.tiles, d.pull, d.slopes, weight, work.u, d.folded, d.inv_std, d.spread, d.weights,
                d.gradient, d.u_slopes, d.cov_slopes,
            )  # fmt: skip

    for part in parts(team, 8, 1 + (n_encoders - 1) * n_blocks):
        if part == 0:
            z.slope[:] = 0
            for i in range(n_decoders):
                d = work.decoders[i]
                input_gradient(d.u_slopes, d.cov_slopes, work.u.centred, d.weights.scale.size > 0, z.slope)
            encoder_backward(z, draws[0], work.priors[0], cells.batch, task.kl_weights[0], n_obs)
        else:
            m, v = library.first_layer
            first_layer_step(part - 1, genes, library.hidden_slope, library.weights.weight, m, v, task.adam)

    t = work.trained
    for part in parts(team, 9, len(t.parameters) + n_blocks):
        if part < len(t.parameters):
            adam_step(t.parameters[part], t.firsts[part], t.seconds[part], t.gradients[part], task.adam)
        else:
            m, v = z.first_layer
            block = part - len(t.parameters)
            first_layer_step(block, genes, z.hidden_slope, z.weights.weight, m, v, task.adam)


@compiled()
def encode(encoder, given, prior, batch, stage):
    """Posterior from the first layer's output in `hidden`, and a draw of it; by the minibatch's moments in training."""
    weights, moments = encoder.weights, encoder.moments
    if stage == TRAIN:
        hidden_forward(
            encoder.hidden, weights.scale, weights.shift, moments, given.mask, encoder.normalised, encoder.inv_std
        )
    else:
        hidden_inference(encoder.hidden, weights.scale, weights.shift, moments)
    heads_forward(encoder.hidden, weights, encoder.mean, encoder.var)
    if stage > ENCODE:
        draw(encoder.mean, encoder.var, given.noise, prior, batch, encoder.draw, encoder.kl)


@compiled()
def encoder_backward(encoder, given, prior, batch, kl_weight, n_obs):
    """Gradients of an encoder from that by its draw, in `slope`."""
    mean_slope, log_var_slope = encoder.mean_slope, encoder.log_var_slope
    draw_gradient(
        encoder.mean, encoder.var, given.noise, prior, batch, kl_weight / f32(n_obs), encoder.slope, mean_slope,
        log_var_slope,
    )  # fmt: skip
    encoder_gradient(
        encoder.hidden, encoder.normalised, encoder.inv_std, given.mask, mean_slope, log_var_slope,
        encoder.weights, encoder.gradient, encoder.hidden_slope,
    )  # fmt: skip


@compiled()
def set_inputs(u, z):
    """Put the latent part and the one-hot part into u; the other covariates are there."""
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


@compiled()
def reconstruction(begin, end, log_prob, out):
    """out = -sum over the blocks of log_prob (n_blocks, n_obs), in double precision, for the cells begin to end."""
    for b in range(begin, end):
        total = 0.0
        for block in range(len(log_prob)):
            total += np.float64(log_prob[block, b])
        out[b] = -total


@compiled()
def softmax_pull(begin, end, mean_slope, scale, log_total, pull, weight, library_slope):
    """What the softmax takes off each gene's slope, per unit of tile; and the loss's gradient by log library size."""
    for b in range(begin, end):
        total = f32(0)
        for block in range(len(mean_slope)):
            total += mean_slope[block, b]
        factor = total / exp(log_total[b])
        for block in range(len(mean_slope)):
            pull[block, b] = scale[block, b] * factor
        if library_slope.size > 0:
            library_slope[b, 0] = weight * total
