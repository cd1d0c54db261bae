"""Arithmetic of the kernels: elementary functions in single precision, log Gamma, sums of rows, prefetching."""

# mypy: allow-untyped-defs
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

f32 = np.float32
SMALLEST_NORMAL = f32(1.2e-38)  # no smaller number is normal

# Sums may be reordered, so that they vectorize; NaN and infinity keep their meaning. Bits stay the same from run to run
# as long as the compiled code takes the same path: it goes one by one where two arrays lie within 256 bytes of each
# other. Hence small arrays of a block of genes are as long as a whole block, and what works on small arrays is exact.
FAST_MATH = {"reassoc", "contract", "arcp", "nsz", "afn"}
# No reordering: these functions rely on the order of their operations.
EXACT_MATH = {"contract"}


def compiled(fastmath: set[str] | frozenset[str] = frozenset(FAST_MATH)) -> Callable[..., Any]:
    """`numba.njit` with the options of all kernels; only functions called from Python are cached on disk (step.py)."""
    # forceinline: a function that is called, not inlined, exists once by itself and once in each caller, optimized in
    # different ways; the process that compiles takes another copy than those that load, with other last digits.
    return numba.njit(fastmath=set(fastmath), nogil=True, error_model="numpy", forceinline=True)


# -- exp, log and log1p: libm's do not vectorize, these do

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
    """log Gamma(z + n) - log Gamma(z) and its derivative w.r.t. z, for z >= 16, in double precision (Stirling)."""
    end = z + n
    log_ratio = math.log1p(n / z)
    value = (z - 0.5) * log_ratio + n * (math.log(end) - 1) + _stirling(end) - _stirling(z)
    return value, log_ratio + _digamma_tail(end) - _digamma_tail(z)


@compiled()
def _stirling(z):
    """Terms of Stirling's series beyond (z - 1/2) log z - z + log(2 pi) / 2."""
    return (1 / 12 - 1 / (360 * z * z)) / z


@compiled()
def _digamma_tail(z):
    return -(0.5 + (1 / 12 - 1 / (120 * z * z)) / z) / z


# -- rows of matrices


def _row_adder(width):
    """Make the inner loop of `add_rows` for `width` columns, whose sums it keeps in vector registers."""

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
def add_rows(out, row, matrix, indices, values, start, stop):
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
def prefetch(typing_context, array, begin, end):
    """Prefetch entries, of four bytes each, of a flat array into the L2 cache."""

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
