"""Work sharing of several threads in a step.

All threads run the step on the same arrays. A step consists of phases, and a phase of parts. Each thread claims parts
one at a time, and enters the next phase when all parts of the current one are done. The results do not depend on which
thread computes which part. A thread that starts late finds fewer parts left, and the others do not wait for it.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ldvae.backends.cpu.math import compiled

PHASES = (
    "cells", "first layers", "encoders", "decoder", "softmax", "likelihood", "sums",
    "decoder gradient", "z, Adam", "Adam",
)  # fmt: skip
LINE = 8  # counters on cache lines of their own, so that threads do not slow each other down
_yield = types.ExternalFunction("sched_yield", types.int32())


@intrinsic
def _fetch_add(typing_context, counters, place, n):
    """Add n to counters[place] atomically; returns the previous value."""

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


_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)  # a child process inherits the pool without its threads


def run_team(step: Callable[..., None], n_threads: int, *arguments: object) -> np.ndarray:
    """Run a step on several threads; the team's counters.

    Plain Python threads suffice, as a step releases the interpreter's lock. Numba's threads would spin while they wait
    (OpenMP), or stop the process when two trainings share them (workqueue), and take twice as long to compile. When the
    calling thread returns from the step, all parts are done.
    """
    team = new_team()
    if n_threads > 1 and n_threads not in _pools:
        _pools[n_threads] = ThreadPoolExecutor(n_threads - 1, thread_name_prefix="ldvae")
    for _ in range(n_threads - 1):
        _pools[n_threads].submit(step, team, *arguments)
    step(team, *arguments)
    return team


def new_team() -> np.ndarray:
    """Counters shared by the threads: parts claimed and done in each phase, and the clock at its end."""
    return np.zeros(3 * len(PHASES) * LINE, np.int64)


@compiled()
def clock():
    """The processor's counter of cycles."""
    return _clock()


def phase_begin(team: np.ndarray) -> int:
    """When the first thread entered a finished step, by `clock`."""
    return int(team[LINE + 1])


def phase_ends(team: np.ndarray) -> np.ndarray:
    """When each phase of a finished step ended, by `clock`."""
    return team[2 * LINE :: 3 * LINE]


@numba.njit(nogil=True, error_model="numpy", forceinline=True)
def parts(team, phase, n):
    """The parts of a phase that this thread claims; the generator ends when all `n` parts are done."""
    claimed = 3 * phase * LINE
    done = claimed + LINE
    part = _fetch_add(team, claimed, 1)
    while part < n:
        yield part
        _fetch_add(team, done, 1)
        part = _fetch_add(team, claimed, 1)
    while _fetch_add(team, done, 0) < n:
        _yield()
    team[done + LINE] = _clock()
