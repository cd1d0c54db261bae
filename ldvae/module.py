"""The linearly decoded variational autoencoder: two encoders, a linear decoder, and the terms of its ELBO."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldvae.config import ModelConfig
from ldvae.data import Covariates, DataShape
from ldvae.distributed import Processes
from ldvae.likelihoods import LIKELIHOODS, Generative

# scvi-tools' constants: of both batch norms, and what is added to the variance of q(z).
BN_MOMENTUM = 0.01
BN_EPS = 1e-3
VAR_EPS = 1e-4


class Posterior(NamedTuple):
    """Parameters of q(z | x) and q(library | x); the latter None where the library size is observed."""

    z_mean: Tensor  # (n_obs, n_latent)
    z_var: Tensor
    l_mean: Tensor | None  # (n_obs, 1), of the log library size
    l_var: Tensor | None

    def each(self, change: Callable[[Tensor], Tensor]) -> Posterior:
        """A copy with a function applied to every tensor."""
        z_mean, z_var, l_mean, l_var = self
        library = (None, None) if l_mean is None or l_var is None else (change(l_mean), change(l_var))
        return Posterior(change(z_mean), change(z_var), *library)


class ElboTerms(NamedTuple):
    """The parts of the negative ELBO of each cell, in nats, shape (n_obs,)."""

    reconstruction: Tensor  # -log p(x | z, library)
    kl_z: Tensor
    kl_library: Tensor

    def loss(self, kl_weight: float = 1.0) -> Tensor:
        """Negative ELBO of each cell, with KL(z) weighted as during warm-up; shape (n_obs,)."""
        return self.reconstruction + kl_weight * self.kl_z + self.kl_library


class Noise(NamedTuple):
    """All random numbers of one training step, shared by all backends."""

    z: Tensor  # standard normal, (n_obs, n_latent)
    library: Tensor  # standard normal, (n_obs, 1)
    z_masks: tuple[Tensor, ...]  # one per hidden layer of z_encoder: 0, or 1 / (1 - dropout), (n_obs, n_hidden)
    l_masks: tuple[Tensor, ...]  # the same for the single layer of l_encoder; empty where nothing is dropped

    def to(self, device: torch.device | str) -> Noise:
        """The same on another device."""
        return self.each(lambda values: values.to(device))

    def of(self, cells: np.ndarray) -> Noise:
        """That of some cells of the minibatch, by a mask."""
        return self if cells.all() else self.each(lambda values: values[torch.from_numpy(cells)])

    def each(self, change: Callable[[Tensor], Tensor]) -> Noise:
        """A copy with a function applied to every tensor."""
        masks = (tuple(change(mask) for mask in masks) for masks in (self.z_masks, self.l_masks))
        return Noise(change(self.z), change(self.library), *masks)


class LDVAE(nn.Module):
    """Linearly decoded VAE of counts.

    Parameters
    ----------
    config
        Architecture.
    shape
        Numbers of genes, batches, labels and covariates.
    library_log_means, library_log_vars
        Prior of the log library size for each batch, shape (n_batch,); mean 0 and variance 1 if not given.

    Notes
    -----
    With u = [z, one-hot batch, one-hot covariates, continuous covariates]::

        z ~ N(0, I)    library ~ N(mean_batch, var_batch), or observed
        px_scale = softmax(BN(W u))
        x ~ NB(mean exp(library) * px_scale, inverse dispersion theta)

    References
    ----------
    Svensson et al., Interpretable factor models of single-cell RNA-seq via variational autoencoders,
    Bioinformatics 36(11), 2020.
    """

    library_log_means: Tensor
    library_log_vars: Tensor

    def __init__(
        self,
        config: ModelConfig,
        shape: DataShape,
        library_log_means: Tensor | None = None,
        library_log_vars: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.shape = shape
        self.likelihood = LIKELIHOODS[config.gene_likelihood]
        hidden = (config.n_hidden, config.n_layers, config.dropout_rate)
        self.z_encoder = Encoder(shape.n_vars, config.n_latent, *hidden)
        # scvi-tools gives the library encoder one layer whatever n_layers says.
        self.l_encoder = (
            None if config.use_observed_lib_size else Encoder(shape.n_vars, 1, config.n_hidden, 1, config.dropout_rate)
        )
        n_batch_columns = shape.n_batch if shape.n_batch > 1 else 0
        n_inputs = config.n_latent + n_batch_columns + sum(shape.n_cats) + shape.n_continuous
        self.decoder = LinearDecoder(n_inputs, shape.n_vars, config.use_batch_norm, config.bias)
        self.zi_decoder = (
            LinearDecoder(n_inputs, shape.n_vars, config.use_batch_norm, config.bias)
            if self.likelihood.has_zi_logits
            else None
        )
        self.log_theta: nn.Parameter | None = None
        self.log_theta_head: nn.Linear | None = None
        if self.likelihood.has_theta:
            if config.dispersion == "gene-cell":
                self.log_theta_head = nn.Linear(n_inputs, shape.n_vars)
            else:
                columns = {"gene": (), "gene-batch": (shape.n_batch,), "gene-label": (shape.n_labels,)}
                self.log_theta = nn.Parameter(torch.randn(shape.n_vars, *columns[config.dispersion]))
        if not config.use_observed_lib_size:
            means = torch.zeros(shape.n_batch) if library_log_means is None else library_log_means
            variances = torch.ones(shape.n_batch) if library_log_vars is None else library_log_vars
            self.register_buffer("library_log_means", means.float())
            self.register_buffer("library_log_vars", variances.float())

    @property
    def is_untrained(self) -> bool:
        """Whether no step of training has been done."""
        return int(self.z_encoder.batch_norms[0].num_batches_tracked) == 0

    # Under scvi-tools' names.

    @property
    def n_input(self) -> int:
        """Number of genes."""
        return self.shape.n_vars

    @property
    def n_batch(self) -> int:
        """Number of batches."""
        return self.shape.n_batch

    @property
    def n_labels(self) -> int:
        """Number of labels."""
        return self.shape.n_labels

    @property
    def n_latent(self) -> int:
        """Number of factors."""
        return self.config.n_latent

    @property
    def gene_likelihood(self) -> str:
        """Distribution of the counts."""
        return self.config.gene_likelihood

    @property
    def latent_distribution(self) -> str:
        """Distribution of z."""
        return self.config.latent_distribution

    @property
    def use_observed_lib_size(self) -> bool:
        """Whether the library size is that of the counts."""
        return self.config.use_observed_lib_size

    @property
    def px_r(self) -> nn.Parameter | None:
        """Log of the inverse dispersion, shape (n_vars,) or (n_vars, n_batch or n_labels); None where there is none."""
        return self.log_theta

    @torch.inference_mode()
    def get_loadings(self) -> np.ndarray:
        """Change of the score of each gene before the softmax per unit of z, float32, shape (n_vars, n_latent)."""
        return self.decoder.folded()[0][:, : self.config.n_latent].cpu().numpy()

    def encode(self, x: Tensor, noise: Noise | None = None) -> Posterior:
        """Posterior of z and of the log library size given counts, shape (n_obs, n_vars)."""
        if self.config.log_variational:
            x = torch.log1p(x)
        z_mean, z_var = self.z_encoder(x, noise.z_masks if noise else ())
        if self.l_encoder is None:
            return Posterior(z_mean, z_var, None, None)
        return Posterior(z_mean, z_var, *self.l_encoder(x, noise.l_masks if noise else ()))

    def latent(self, z: Tensor) -> Tensor:
        """A draw of q(z) as the decoder takes it: itself, or its softmax if the latent space is "ln"."""
        return z.softmax(dim=-1) if self.config.latent_distribution == "ln" else z

    def decoder_input(self, z: Tensor, covariates: Covariates) -> Tensor:
        """u = [z, one-hot batch, one-hot covariates, continuous covariates]; z of shape (..., n_obs, n_latent)."""
        parts = []
        if self.shape.n_batch > 1:
            parts.append(F.one_hot(covariates.batch_index, self.shape.n_batch))
        for column, n_categories in enumerate(self.shape.n_cats):
            parts.append(F.one_hot(covariates.categorical[:, column], n_categories))
        if self.shape.n_continuous:
            parts.append(covariates.continuous)
        return torch.cat([z, *(part.to(z.dtype).expand(*z.shape[:-1], -1) for part in parts)], dim=-1)

    def dispersion(self, u: Tensor, covariates: Covariates) -> Tensor | None:
        """Inverse dispersion theta, broadcastable to (..., n_obs, n_vars); None for a likelihood without it."""
        if self.log_theta_head is not None:
            return torch.exp(self.log_theta_head(u))
        if self.log_theta is None:
            return None
        if self.config.dispersion == "gene-batch":
            return torch.exp(self.log_theta[:, covariates.batch_index].T)
        if self.config.dispersion == "gene-label":
            return torch.exp(self.log_theta[:, covariates.label_index].T)
        return torch.exp(self.log_theta)

    def generative(self, z: Tensor, library: Tensor, covariates: Covariates) -> Generative:
        """Parameters of p(x | z, library).

        Parameters
        ----------
        z
            Latent coordinates as `latent` gives them, shape (..., n_obs, n_latent).
        library
            Log library size, shape (..., n_obs, 1).
        covariates
            Of the same cells.
        """
        u = self.decoder_input(z, covariates)
        px_scale = self.decoder(u).softmax(dim=-1)
        zi_logits = None if self.zi_decoder is None else self.zi_decoder(u)
        return Generative(px_scale, torch.exp(library) * px_scale, self.dispersion(u, covariates), zi_logits)

    def log_prob(self, x: Tensor, px: Generative) -> Tensor:
        """log p(x | z, library) of each cell, in nats, shape (..., n_obs)."""
        return self.likelihood.log_prob(x, px).sum(dim=-1)

    def library_kl(self, l_mean: Tensor, l_var: Tensor, batch_index: Tensor) -> Tensor:
        """KL(q(library) || p(library | batch)) of each cell, in nats, shape (n_obs,)."""
        prior_mean = self.library_log_means[batch_index, None]
        prior_var = self.library_log_vars[batch_index, None]
        return normal_kl(l_mean, l_var, prior_mean, prior_var).sum(dim=-1)

    def elbo_terms(self, x: Tensor, covariates: Covariates, noise: Noise) -> ElboTerms:
        """The negative ELBO's terms for each cell, with one draw of z and of the library size.

        Parameters
        ----------
        x
            UMI counts, shape (n_obs, n_vars).
        covariates
            Of the same cells.
        noise
            From `draw_noise`.
        """
        q = self.encode(x, noise)
        z = self.latent(q.z_mean + q.z_var.sqrt() * noise.z)
        kl_z = normal_kl(q.z_mean, q.z_var).sum(dim=-1)
        if q.l_mean is None or q.l_var is None:
            library, kl_library = covariates.library, torch.zeros_like(kl_z)
        else:
            library = q.l_mean + q.l_var.sqrt() * noise.library
            kl_library = self.library_kl(q.l_mean, q.l_var, covariates.batch_index)
        px = self.generative(z, library, covariates)
        return ElboTerms(-self.log_prob(x, px), kl_z, kl_library)

    def draw_noise(self, n_obs: int, generator: torch.Generator) -> Noise:
        """All random numbers of one step for `n_obs` cells; dropout masks only in training mode."""
        drop = self.config.dropout_rate if self.training else 0.0
        n_masks = [len(encoder.layers) if drop and encoder else 0 for encoder in (self.z_encoder, self.l_encoder)]
        masks = dropout_masks((sum(n_masks), n_obs, self.config.n_hidden), drop, generator)
        return Noise(
            z=torch.randn(n_obs, self.config.n_latent, generator=generator),
            library=torch.randn(n_obs, 1, generator=generator),
            z_masks=masks[: n_masks[0]],
            l_masks=masks[n_masks[0] :],
        )


def dropout_masks(shape: tuple[int, int, int], drop: float, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Masks of 0 and 1 / (1 - drop), as many as the first of `shape` says.

    Each random 64-bit number makes four entries: the share that is dropped is `drop` rounded to 1 / 65,536, and the
    numbers take a quarter of the time, which a fast training step feels.
    """
    n = math.prod(shape)
    if not n:
        return ()
    bits = torch.empty(-(-n // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    kept = bits.numpy().view(np.int16)[:n] >= round(drop * 2**16) - 2**15
    return torch.from_numpy(kept * np.float32(1 / (1 - drop))).view(shape).unbind()  # numpy: ten times less time here


class Shared(NamedTuple):
    """A minibatch of which several processes have a part each."""

    processes: Processes
    n_obs: int  # cells of all parts

    def moments(self, values: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of the values and population covariance of the products, over the cells of all parts.

        Parameters
        ----------
        values
            Of the cells of this part, float64, shape (cells, n).
        products
            Their sums of squares, shape (n,), or of products, (n, n).
        """
        total = self.processes.sum(torch.cat([values.sum(dim=0), products.flatten()])) / self.n_obs
        mean, second = total[: values.shape[1]], total[values.shape[1] :].view_as(products)
        return mean, second - (mean * mean if products.dim() == 1 else torch.outer(mean, mean))


class BatchNorm(nn.BatchNorm1d):
    """Batch norm that has running moments.

    Attributes
    ----------
    shared
        The minibatch, while several processes have a part of it each.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    shared: Shared | None = None

    def n_obs(self, values: Tensor) -> int:
        """Number of cells of the minibatch that some values are of."""
        return len(values) if self.shared is None else self.shared.n_obs

    @torch.no_grad()
    def track(self, mean: Tensor, var: Tensor, n_obs: int) -> None:
        """Move the running moments to those of a minibatch; `var` is that of a population."""
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, BN_MOMENTUM)
        self.running_var.lerp_(var * (n_obs / (n_obs - 1)), BN_MOMENTUM)


@contextmanager
def sharing(module: nn.Module, processes: Processes, n_obs: int) -> Iterator[None]:
    """Inside the block, batch norms take the moments of the minibatch of `n_obs` cells that the processes share."""
    norms = [norm for norm in module.modules() if isinstance(norm, BatchNorm)] if processes.are_several else []
    for norm in norms:
        norm.shared = Shared(processes, n_obs)
    try:
        yield
    finally:
        for norm in norms:
            norm.shared = None


class Encoder(nn.Module):
    """Gaussian posterior of a latent variable given counts.

    Each hidden layer is linear, batch norm, ReLU, dropout; two linear heads give the mean and the log-variance.
    """

    def __init__(self, n_vars: int, n_latent: int, n_hidden: int, n_layers: int, dropout_rate: float) -> None:
        super().__init__()
        widths = [n_vars] + [n_hidden] * n_layers
        self.layers = nn.ModuleList(nn.Linear(n_in, n_hidden) for n_in in widths[:-1])
        self.norms = nn.ModuleList(BatchNorm(n_hidden, BN_EPS, BN_MOMENTUM) for _ in self.layers)
        self.mean = nn.Linear(n_hidden, n_latent)
        self.log_var = nn.Linear(n_hidden, n_latent)
        # Stored gene by gene: a cell's counts then pick contiguous rows of the weight (backends/cpu).
        self.first.weight = nn.Parameter(self.first.weight.detach().T.contiguous().T)

    @property
    def first(self) -> nn.Linear:
        """The layer that reads the counts."""
        return cast(nn.Linear, self.layers[0])

    @property
    def batch_norms(self) -> list[BatchNorm]:
        """The batch norm of each hidden layer."""
        return [cast(BatchNorm, norm) for norm in self.norms]

    def forward(self, x: Tensor, masks: tuple[Tensor, ...] = ()) -> tuple[Tensor, Tensor]:
        """Mean and variance, each of shape (n_obs, n_latent), from input of shape (n_obs, n_vars)."""
        hidden = x
        for i, (layer, norm) in enumerate(zip(self.layers, self.batch_norms, strict=True)):
            hidden = F.relu(batch_norm(layer(hidden), norm))
            if masks:
                hidden = hidden * masks[i]
        return self.mean(hidden), torch.exp(self.log_var(hidden)) + VAR_EPS


class LinearDecoder(nn.Module):
    """Gene scores that are linear in u, batch-normalized gene by gene.

    Attributes
    ----------
    weight
        Shape (n_vars, n_inputs).
    bias
        Shape (n_vars,), or None.
    norm
        Batch norm over the genes, or None.
    """

    def __init__(self, n_inputs: int, n_vars: int, use_batch_norm: bool, bias: bool) -> None:
        super().__init__()
        linear = nn.Linear(n_inputs, n_vars, bias=bias)
        self.weight, self.bias = linear.weight, linear.bias
        self.norm = BatchNorm(n_vars, BN_EPS, BN_MOMENTUM) if use_batch_norm else None

    @torch.no_grad()
    def start_at(self, profile: Tensor) -> None:
        """Set the intercepts, if there are any, so that their softmax is `profile`, shape (n_vars,)."""
        intercept = self.bias if self.norm is None else self.norm.bias
        if intercept is not None:
            intercept.copy_(profile.log() - profile.log().mean())

    def forward(self, u: Tensor) -> Tensor:
        """Gene scores before the softmax, shape (..., n_obs, n_vars), from u of shape (..., n_obs, n_inputs)."""
        weight, shift = self.folded(u if self.training else None)
        return F.linear(u, weight, shift)

    def folded(self, u: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Weight (n_vars, n_inputs) and shift (n_vars,) with the batch norm folded in.

        Given a minibatch `u`, its moments are used and the running moments move; without, the running moments.

        Notes
        -----
        The score of gene g is w_g'u, so over a minibatch with mean m and covariance C of u its mean is w_g'm and
        its variance w_g'C w_g: nothing of size (n_obs, n_vars) is needed.
        """
        bias = self.weight.new_zeros(len(self.weight)) if self.bias is None else self.bias
        if self.norm is None:
            return self.weight, bias
        mean, var = self.norm.running_mean, self.norm.running_var
        if u is not None and (n_obs := self.norm.n_obs(u)) > 1:  # one cell has no variance: like inference
            if self.norm.shared is None:
                center = u.mean(dim=0)
                covariance = (u - center).T @ (u - center) / n_obs
            else:
                wide = u.double()
                center, covariance = (found.to(u) for found in self.norm.shared.moments(wide, wide.T @ wide))
            mean = self.weight @ center + bias
            var = ((self.weight @ covariance) * self.weight).sum(dim=1)
            self.norm.track(mean, var, n_obs)
        scale = self.norm.weight / torch.sqrt(var + BN_EPS)
        return scale[:, None] * self.weight, self.norm.bias + scale * (bias - mean)


def batch_norm(hidden: Tensor, norm: BatchNorm) -> Tensor:
    """Batch norm of shape (n_obs, n_hidden); a minibatch of one cell uses the running moments."""
    training = norm.training and norm.n_obs(hidden) > 1
    if training and norm.shared is not None:
        wide = hidden.double()
        mean, var = (found.to(hidden) for found in norm.shared.moments(wide, (wide * wide).sum(dim=0)))
        norm.track(mean, var, norm.shared.n_obs)
        return (hidden - mean) * torch.rsqrt(var + BN_EPS) * norm.weight + norm.bias
    if training:
        norm.num_batches_tracked += 1
    return F.batch_norm(
        hidden, norm.running_mean, norm.running_var, norm.weight, norm.bias, training, BN_MOMENTUM, BN_EPS
    )


def normal_kl(mean: Tensor, var: Tensor, prior_mean: Tensor | float = 0.0, prior_var: Tensor | float = 1.0) -> Tensor:
    """KL(N(mean, var) || N(prior_mean, prior_var)), entry by entry, in nats."""
    prior_var = torch.as_tensor(prior_var, dtype=mean.dtype, device=mean.device)
    return 0.5 * (torch.log(prior_var / var) + (var + (mean - prior_mean) ** 2) / prior_var - 1)
