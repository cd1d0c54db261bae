"""One step on a minibatch: its phases, compiled together and cached on disk."""

# mypy: allow-untyped-defs
from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import types
from numba.experimental import structref

from ldvae.backends.cpu.adam import adam_step
from ldvae.backends.cpu.arrays import BLOCK, CELLS_PER_PART, ENCODE, TRAIN, Minibatch
from ldvae.backends.cpu.decoder import (
    decode,
    decoder_gradient,
    input_gradient,
    moments_of,
    set_inputs,
    softmax_pull,
    softmax_scales,
)
from ldvae.backends.cpu.encoder import (
    ByGene,
    encode,
    encoder_backward,
    first_layer,
    first_layer_step,
    group_by_gene,
    prefetch_entries,
)
from ldvae.backends.cpu.likelihood import ByBlock, group_by_block, likelihood, reconstruction
from ldvae.backends.cpu.math import FAST_MATH, compiled, f32
from ldvae.backends.cpu.threads import LINE, clock, parts


def source_digest(folder: Path) -> str:
    """Digest of all Python files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def cached(function: Callable[..., object]) -> Callable[..., object]:
    """`compiled`, and cached on disk if numba finds a writable folder."""
    options: dict[str, Any] = {"fastmath": set(FAST_MATH), "nogil": True, "error_model": "numpy", "forceinline": True}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no such folder
        return numba.njit(**options)(function)


@structref.register
class KeptType(types.StructRef):
    """Numba's type of a `Kept`."""


class Kept(structref.StructRefProxy):
    """A value unboxed for compiled code: passed by pointer, however many arrays it holds."""


structref.define_boxing(KeptType, Kept)
structref.define_constructor(Kept, KeptType, ["value"])


@compiled()
def look_up(rows, data, cells, u):
    """Set `cells` to the entries and covariates of the cells `rows`, and the one-hot columns of `u`."""
    for b in range(len(rows)):
        row = rows[b]
        cells.starts[b], cells.stops[b] = data.offsets[row], data.offsets[row + 1]
        cells.batch[b] = data.batch[row]
        cells.theta_row[b] = data.theta_row[row] if data.theta_row.size > 0 else 0
        cells.log_library[b] = data.log_library[row]
        u.hot[b] = u.n_latent + data.batch[row]


def entry_points(sources: str) -> tuple[Any, Any]:
    """`keep` and `step`, the functions that Python calls.

    Numba's cache on disk notices changes of the file of a function, not of the functions that it calls. It also
    distinguishes functions by the values that they close over: hence the digest of all `sources`.
    """

    @cached
    def keep(value):
        """Unbox a value once; pass the result by pointer."""
        _ = sources
        return Kept(value)

    @cached
    def step(team, dataset, memory, rows, draws, task):
        """Encode the cells `rows`, evaluate the ELBO or train on them, as `task` says.

        `dataset` is a `CountsArrays`, `memory` a `Pass`, which holds the results, both as `keep` returns them; `draws`
        are those of both encoders.
        """
        _ = sources
        if team[LINE + 1] == 0:
            team[LINE + 1] = clock()
        data, work = dataset.value, memory.value
        cells = work.cells
        z, library = work.encoders
        px, zi = work.decoders
        training = task.stage == TRAIN
        n_obs, n_blocks = len(rows), len(px.tiles)
        n_decoders = 2 if len(zi.tiles) > 0 else 1
        n_encoders = 2 if library.hidden.size > 0 else 1
        n_spans = -(-n_obs // CELLS_PER_PART)
        counts = Minibatch(cells.starts, cells.stops, data.indices, data.x, data.inputs)
        genes = ByGene(work.gene_starts, data.by_gene[0], data.by_gene[1])
        blocks = ByBlock(work.block_starts, data.by_block[0], data.by_block[1])

        for _ in parts(team, 0, 1):
            look_up(rows, data, cells, work.u)
            if training:
                for i in range(len(work.tracked)):
                    work.tracked[i][:] += 1

        # First layers of the encoders, one part each for up to two threads; and the sorting of the minibatch by gene.
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
                block,
                work.u,
                d.weights,
                d.moments,
                unbiased,
                d.folded,
                d.inv_std,
                d.spread,
                d.tiles,
                d.highest,
                d.total,
            )

        for span in parts(team, 4, n_spans):
            begin, end = span * CELLS_PER_PART, min((span + 1) * CELLS_PER_PART, n_obs)
            softmax_scales(begin, end, px.highest, px.total, cells.log_library, px.scale)

        weight = f32(-1) / f32(n_obs)  # from log-likelihood to loss
        for part in parts(team, 5, n_blocks):
            block = n_blocks - 1 - part  # the last ones are still in a cache
            likelihood(
                block, task.kind, blocks, cells.theta_row, work.log_theta, px.tiles, px.scale, zi.tiles,
                px.grads, zi.grads, work.theta_gradient, work.log_prob, work.mean_grad,
            )  # fmt: skip
            if training:
                work.theta_gradient[block * BLOCK : (block + 1) * BLOCK] *= weight

        for span in parts(team, 6, n_spans):
            begin, end = span * CELLS_PER_PART, min((span + 1) * CELLS_PER_PART, n_obs)
            reconstruction(begin, end, work.log_prob, work.terms[0])
            if training:
                softmax_pull(begin, end, work.mean_grad, px.scale, cells.log_library, px.pull, weight, library.grad)
        if not training:
            return

        # Gradients, and Adam's update of each parameter as soon as its gradient is complete.
        for part in parts(team, 7, n_encoders - 1 + n_decoders * n_blocks):
            if part == n_encoders - 2:
                encoder_backward(library, draws[1], work.priors[1], cells.batch, task.kl_weights[1], n_obs)
            else:
                part -= n_encoders - 1
                block, d = part // n_decoders, work.decoders[part % n_decoders]
                decoder_gradient(
                    block, d.tiles, d.pull, d.grads, weight, work.u, d.folded, d.inv_std, d.spread, d.weights,
                    d.gradient, d.u_grads, d.cov_grads,
                )  # fmt: skip

        for part in parts(team, 8, 1 + (n_encoders - 1) * n_blocks):
            if part == 0:
                z.grad[:] = 0
                for i in range(n_decoders):
                    d = work.decoders[i]
                    input_gradient(d.u_grads, d.cov_grads, work.u.centered, d.weights.scale.size > 0, z.grad)
                encoder_backward(z, draws[0], work.priors[0], cells.batch, task.kl_weights[0], n_obs)
            else:
                m, v = library.first_layer
                first_layer_step(part - 1, genes, library.hidden_grad, library.weights.weight, m, v, task.adam)

        t = work.trained
        for part in parts(team, 9, len(t.parameters) + n_blocks):
            if part < len(t.parameters):
                adam_step(t.parameters[part], t.firsts[part], t.seconds[part], t.gradients[part], task.adam)
            else:
                m, v = z.first_layer
                block = part - len(t.parameters)
                first_layer_step(block, genes, z.hidden_grad, z.weights.weight, m, v, task.adam)

    return keep, step


keep, step = entry_points(source_digest(Path(__file__).parent))
