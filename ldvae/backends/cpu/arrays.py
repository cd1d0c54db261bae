"""Arguments of the kernels: module, optimizer, counts and results as arrays."""

# mypy: allow-untyped-defs
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from ldvae import likelihoods, module
from ldvae.backends.cpu.math import compiled, f32

BLOCK = 128  # genes in a tile: 128 cells x 128 genes stay in the L2 cache
CELLS_PER_PART = 32  # cells in a part of a phase over cells
LARGEST_CACHED = 1 << 19  # entries of a matrix that stays in a cache until it is needed again
POISSON, NB, ZINB = range(3)  # kinds of likelihood
ENCODE, EVALUATE, TRAIN = range(3)  # stages: what a step computes
EPS = f32(likelihoods.EPS)
VAR_EPS, BN_EPS, BN_MOMENTUM = f32(module.VAR_EPS), f32(module.BN_EPS), f32(module.BN_MOMENTUM)


class EncoderArrays(NamedTuple):
    """Arrays of an encoder with one hidden layer; without an encoder they have size 0."""

    weight: np.ndarray  # (n_vars, n_hidden)
    bias: np.ndarray
    scale: np.ndarray  # of the batch norm
    shift: np.ndarray
    mean_weight: np.ndarray  # (n_latent, n_hidden)
    mean_bias: np.ndarray
    log_var_weight: np.ndarray
    log_var_bias: np.ndarray


class DecoderArrays(NamedTuple):
    """Arrays of a linear decoder; absent parts (bias, batch norm) have size 0."""

    weight: np.ndarray  # (n_vars, n_inputs)
    bias: np.ndarray
    scale: np.ndarray  # of the batch norm
    shift: np.ndarray


class Inputs(NamedTuple):
    """The decoder's input u = [z, one-hot batch, other covariates] and its moments over the minibatch.

    `hot` is the one-hot column of each cell, among `n_latent` to `n_latent + n_hot`: together they cost as much as one
    column. Their covariance with each other is not stored, as it is center[k] ([k = l] - center[l]).
    """

    u: np.ndarray  # (n_obs, n_inputs)
    center: np.ndarray
    centered: np.ndarray
    covariance: np.ndarray  # (n_inputs, n_inputs)
    hot: np.ndarray  # int64, (n_obs,)
    columns: np.ndarray  # int32, (n_obs, n_terms): the inputs that are not zero by construction, and their values
    values: np.ndarray
    n_latent: int
    n_hot: int


class RunningMoments(NamedTuple):
    """Running mean and variance of a batch norm."""

    mean: np.ndarray
    var: np.ndarray


class Minibatch(NamedTuple):
    """Positions of the counts of a minibatch in CSR arrays: cell b has entries starts[b] to stops[b]."""

    starts: np.ndarray  # int64, (n_obs,)
    stops: np.ndarray
    indices: np.ndarray  # gene of each entry, of the whole data set
    x: np.ndarray  # count of each entry
    inputs: np.ndarray  # input of the encoders


class CountsArrays(NamedTuple):
    """Counts of all cells as CSR arrays, with their covariates."""

    offsets: np.ndarray  # int64, (n_cells + 1,): cell i has entries offsets[i] to offsets[i + 1]
    indices: np.ndarray  # as in `Minibatch`, like the next two
    x: np.ndarray
    inputs: np.ndarray
    batch: np.ndarray  # int64, (n_cells,)
    theta_row: np.ndarray  # row of theta, int64, (n_cells,); of size 0 where all have the first
    log_library: np.ndarray  # observed, (n_cells,)
    by_gene: tuple[np.ndarray, np.ndarray]  # room for `cell` and `inputs` of a `ByGene`
    by_block: tuple[np.ndarray, np.ndarray]  # room for `column` and `x` of a `ByBlock`


class MinibatchCells(NamedTuple):
    """Entries and covariates of the cells of a minibatch, as `look_up` finds them; (n_obs,) each."""

    starts: np.ndarray  # int64, of its entries
    stops: np.ndarray
    batch: np.ndarray  # int64
    theta_row: np.ndarray  # int64
    log_library: np.ndarray  # observed; or, after its encoder, drawn


class AdamFactors(NamedTuple):
    """Factors of one step of Adam as torch defines it, weight decay added to the gradient."""

    rate: np.float32  # lr / (1 - beta1^t)
    root: np.float32  # 1 / sqrt(1 - beta2^t)
    beta1: np.float32
    beta2: np.float32
    eps: np.float32
    weight_decay: np.float32


class EncoderPass(NamedTuple):
    """An encoder as arrays, with its activations and gradients; of size 0 without an encoder."""

    weights: EncoderArrays
    moments: RunningMoments
    gradient: EncoderArrays  # of all but the first weight
    first_layer: tuple[np.ndarray, np.ndarray]  # Adam's moments of the first weight
    hidden: np.ndarray  # (n_obs, n_hidden), as the next two
    normalized: np.ndarray
    hidden_grad: np.ndarray
    inv_std: np.ndarray
    mean: np.ndarray  # (n_obs, n_latent), as the next five
    var: np.ndarray
    draw: np.ndarray
    grad: np.ndarray
    mean_grad: np.ndarray
    log_var_grad: np.ndarray
    kl: np.ndarray  # float64, (n_obs,)


class DecoderPass(NamedTuple):
    """A decoder as arrays, with its activations and gradients; without a decoder there are no tiles."""

    weights: DecoderArrays
    moments: RunningMoments
    gradient: DecoderArrays
    tiles: np.ndarray  # (n_blocks, n_obs, BLOCK), as the next
    grads: np.ndarray
    folded: np.ndarray  # (n_blocks, n_inputs, BLOCK), as the next
    spread: np.ndarray
    inv_std: np.ndarray
    highest: np.ndarray  # (n_blocks, n_obs), as the next three; of size 0 without a softmax
    total: np.ndarray
    scale: np.ndarray
    pull: np.ndarray
    u_grads: np.ndarray
    cov_grads: np.ndarray


class Trained(NamedTuple):
    """All parameters but the encoders' first weights, flat, with gradients and state of Adam."""

    parameters: tuple[np.ndarray, ...]
    gradients: tuple[np.ndarray, ...]
    firsts: tuple[np.ndarray, ...]
    seconds: tuple[np.ndarray, ...]


class Pass(NamedTuple):
    """A module as arrays, with the memory that minibatches of `n_obs` cells need."""

    cells: MinibatchCells
    encoders: tuple[EncoderPass, EncoderPass]  # of z, of the library size
    priors: tuple[RunningMoments, RunningMoments]  # of z, of the log library size, in each batch
    decoders: tuple[DecoderPass, DecoderPass]  # of the mean, of the zero inflation
    trained: Trained
    tracked: tuple[np.ndarray, ...]  # int64: number of steps of each batch norm
    u: Inputs
    log_theta: np.ndarray  # (n_vars, n_rows), as the next
    theta_gradient: np.ndarray
    log_prob: np.ndarray  # (n_blocks, n_obs), as the next
    mean_grad: np.ndarray
    terms: np.ndarray  # of the negative ELBO, float64, (3, n_obs): reconstruction, KL(z), KL(library)
    gene_starts: np.ndarray  # `first` of a `ByGene` and of a `ByBlock`
    block_starts: np.ndarray


class EncoderNoise(NamedTuple):
    """Random numbers for an encoder."""

    noise: np.ndarray  # (n_obs, n_latent)
    mask: np.ndarray  # dropout, (n_obs, n_hidden); of size 0 for none


class Task(NamedTuple):
    """What a step computes."""

    stage: int  # ENCODE, EVALUATE or TRAIN
    kind: int  # of the likelihood, as in `likelihood`
    kl_weights: tuple[np.float32, np.float32]  # of the KL divergence of each encoder
    adam: AdamFactors
    n_threads: int


@compiled()
def entries_of(batch, b, values):
    """Genes of the entries of a cell, and their `values`."""
    start, stop = batch.starts[b], batch.stops[b]
    return batch.indices[start:stop], values[start:stop]


_NONE = np.empty(0, f32)


def array(tensor: Tensor | None) -> np.ndarray:
    """View of a tensor as an array; of size 0 for None."""
    if tensor is None:
        return _NONE
    if not tensor.is_contiguous():
        tensor.data = tensor.data.contiguous()
    return tensor.detach().numpy()


def transposed(tensor: Tensor) -> np.ndarray:
    """The transpose of a matrix as a contiguous view; changes the memory layout of the tensor if necessary."""
    if not tensor.T.is_contiguous():
        tensor.data = tensor.data.T.contiguous().T
    return tensor.detach().numpy().T
