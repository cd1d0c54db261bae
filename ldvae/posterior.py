"""Posterior quantities of cells: latent coordinates, expression, likelihoods, samples, correlations, densities.

Cells are encoded once, minibatch by minibatch, into `Cells`, from which all that needs no counts is computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, StudentT

from ldvae.backends import PlainBackend, pick_backend
from ldvae.data import BackedCounts, Counts, Covariates
from ldvae.errors import InputError
from ldvae.likelihoods import Generative
from ldvae.module import LDVAE, ElboTerms, Noise, Posterior

Source = Counts | BackedCounts
BATCH_SIZE = 512  # cells encoded or decoded together; results do not depend on it but for the order of the noise
LOG_2PI = math.log(2 * math.pi)


class Cells(NamedTuple):
    """Encoded cells: what the decoder needs of them, without their counts."""

    q: Posterior
    covariates: Covariates

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return len(self.q.z_mean)

    def take(self, rows: np.ndarray | Tensor | slice) -> Cells:
        """Some of the cells, in the order given; a cell may come more than once."""
        rows = torch.as_tensor(rows) if isinstance(rows, np.ndarray) else rows
        q = self.q.each(lambda values: values[rows])
        return Cells(q, Covariates(*(values[rows] for values in self.covariates)))

    def in_batch(self, batch: int | None) -> Cells:
        """The same cells as if all had been measured in this batch (a code); as they were for None."""
        if batch is None:
            return self
        batch_index = torch.full_like(self.covariates.batch_index, batch)
        return Cells(self.q, self.covariates._replace(batch_index=batch_index))

    def to(self, device: torch.device | str) -> Cells:
        """The same on another device."""
        return Cells(self.q.each(lambda values: values.to(device)), self.covariates.to(device))

    def minibatches(self, size: int) -> Iterator[tuple[slice, Cells]]:
        """Consecutive cells, with the rows that they are."""
        for start in range(0, self.n_obs, size):
            rows = slice(start, min(start + size, self.n_obs))
            yield rows, self.take(rows)


class Draws(NamedTuple):
    """Draws of q for the decoder."""

    z: Tensor  # as the decoder takes it, (n_samples, n_obs, n_latent)
    library: Tensor  # log library size, (n_samples, n_obs, 1)


def device_of(module: LDVAE) -> torch.device:
    """Device of the module."""
    return next(module.parameters()).device


@torch.inference_mode()
def encode(module: LDVAE, source: Source, rows: np.ndarray, batch_size: int = BATCH_SIZE) -> Cells:
    """Posterior of z and of the library size of cells, on the CPU, in the order of `rows`."""
    backend = pick_backend(module)
    parts = [backend.encode(counts, chosen) for counts, chosen in source.minibatches(rows, batch_size)]
    z_mean, z_var = (torch.cat([getattr(part, name) for part in parts]).cpu() for name in ("z_mean", "z_var"))
    library: list[Tensor | None] = [None, None]
    if parts[0].l_mean is not None:
        library = [torch.cat([getattr(part, name) for part in parts]).cpu() for name in ("l_mean", "l_var")]
    q = Posterior(z_mean, z_var, *library)
    return Cells(q, source.covariates.rows(rows))


def draw(module: LDVAE, cells: Cells, n_samples: int, generator: torch.Generator) -> Draws:
    """Draw z and the library size of each cell from their posterior `n_samples` times; 0: their means, once.

    The mean of a latent library size is that of the size, not of its log.
    """
    q, observed = cells.q, cells.covariates.library
    n_draws, device = max(n_samples, 1), q.z_mean.device

    def noise(like: Tensor) -> Tensor:
        return torch.randn(n_draws, *like.shape, generator=generator).to(device)

    if n_samples == 0:
        library = observed if q.l_mean is None or q.l_var is None else q.l_mean + q.l_var / 2
        return Draws(module.latent(q.z_mean)[None], library[None])
    z = module.latent(q.z_mean + q.z_var.sqrt() * noise(q.z_mean))
    if q.l_mean is None or q.l_var is None:
        return Draws(z, observed.expand(n_draws, -1, -1))
    return Draws(z, q.l_mean + q.l_var.sqrt() * noise(q.l_mean))


@torch.inference_mode()
def latent_mean(module: LDVAE, cells: Cells, mc_samples: int, generator: torch.Generator) -> Tensor:
    """Posterior mean of the latent coordinates, shape (n_obs, n_latent).

    Exact for a normal latent space; for "ln" the mean over `mc_samples` draws.
    """
    if module.config.latent_distribution == "normal":
        return cells.q.z_mean
    parts = []
    for _, minibatch in cells.minibatches(max(1, 2_000_000 // (mc_samples * module.config.n_latent))):
        parts.append(draw(module, minibatch, mc_samples, generator).z.mean(dim=0))
    return torch.cat(parts)


def latent_library_size(module: LDVAE, cells: Cells, give_mean: bool, generator: torch.Generator) -> Tensor:
    """Posterior mean of the library size, or one draw, shape (n_obs, 1); the observed one has no posterior mean."""
    if give_mean and cells.q.l_mean is None:
        raise InputError(
            "The module for this model does not compute the posterior distribution for the library size: it takes the "
            "observed one. Set give_mean=False to get that."
        )
    return draw(module, cells, 0 if give_mean else 1, generator).library[0].exp()


@torch.inference_mode()
def elbo_terms(
    module: LDVAE, source: Source, rows: np.ndarray, generator: torch.Generator, batch_size: int = BATCH_SIZE
) -> ElboTerms:
    """Terms of the negative ELBO of each cell with one draw of z and of the library size; nats, shape (n_obs,)."""
    backend = pick_backend(module)
    parts = [
        backend.elbo_terms(counts, chosen, module.draw_noise(len(chosen), generator))
        for counts, chosen in source.minibatches(rows, batch_size)
    ]
    return ElboTerms(*(torch.cat(values).cpu() for values in zip(*parts, strict=True)))


@torch.inference_mode()
def marginal_ll(
    module: LDVAE,
    source: Source,
    rows: np.ndarray,
    generator: torch.Generator,
    n_mc_samples: int = 1000,
    n_mc_samples_per_pass: int = 1,
    batch_size: int = BATCH_SIZE,
) -> Tensor:
    """Log marginal likelihood of each cell by importance sampling from q, in nats, shape (n_obs,).

    Parameters
    ----------
    module, source, rows
        Model, counts, cells.
    generator
        Of the noise.
    n_mc_samples
        Draws of q in total.
    n_mc_samples_per_pass
        Draws decoded together; memory grows with it.
    batch_size
        Cells decoded together.

    Notes
    -----
    log p(x) ~ logsumexp_s [log p(x | z_s, l_s) + log p(z_s) + log p(l_s) - log q(z_s) - log q(l_s)] - log S.
    """
    backend, estimates = pick_backend(module), []
    for counts, chosen in source.minibatches(rows, batch_size):
        cells = Cells(backend.encode(counts, chosen), counts.covariates.rows(chosen)).to(device_of(module))
        passes = []
        for start in range(0, n_mc_samples, n_mc_samples_per_pass):
            n_draws = min(n_mc_samples_per_pass, n_mc_samples - start)
            z_noise = torch.randn(n_draws, *cells.q.z_mean.shape, generator=generator).to(cells.q.z_mean.device)
            l_noise = torch.randn(n_draws, len(chosen), 1, generator=generator).to(cells.q.z_mean.device)
            if isinstance(backend, PlainBackend):  # decodes several draws at once
                x, _ = counts.minibatch(chosen, device_of(module))
                log_px = log_likelihood(module, x, cells, z_noise, l_noise)
            else:
                noise = [Noise(*of_draw, (), ()) for of_draw in zip(z_noise, l_noise, strict=True)]
                log_px = -torch.stack([backend.elbo_terms(counts, chosen, of_draw).reconstruction for of_draw in noise])
            passes.append(log_px + log_ratio(module, cells, z_noise, l_noise))
        estimates.append(torch.cat(passes).logsumexp(dim=0) - math.log(n_mc_samples))
    return torch.cat(estimates).cpu()


def log_likelihood(module: LDVAE, x: Tensor, cells: Cells, z_noise: Tensor, l_noise: Tensor) -> Tensor:
    """log p(x | z, l) at the draws made from the noise, in nats, shape (n_samples, n_obs).

    Parameters
    ----------
    module
        Model.
    x
        Counts, shape (n_obs, n_vars).
    cells
        The same cells, encoded.
    z_noise, l_noise
        Standard normal, shapes (n_samples, n_obs, n_latent) and (n_samples, n_obs, 1).
    """
    q, covariates = cells
    z = module.latent(q.z_mean + q.z_var.sqrt() * z_noise)
    library = covariates.library.expand(len(z), -1, -1)
    if q.l_mean is not None and q.l_var is not None:
        library = q.l_mean + q.l_var.sqrt() * l_noise
    return module.log_prob(x, module.generative(z, library, covariates))


def log_ratio(module: LDVAE, cells: Cells, z_noise: Tensor, l_noise: Tensor) -> Tensor:
    """log [p(z, l) / q(z, l)] at the draws made from the noise, in nats, shape (n_samples, n_obs)."""
    q, covariates = cells
    z = q.z_mean + q.z_var.sqrt() * z_noise
    # Densities at the normal z, also for "ln": its softmax is a function of it and has no density of its own here.
    ratio = (normal_log_prob(z, 0.0, torch.ones_like(q.z_var)) - normal_log_prob(z, q.z_mean, q.z_var)).sum(dim=-1)
    if q.l_mean is not None and q.l_var is not None:
        library = q.l_mean + q.l_var.sqrt() * l_noise
        prior_mean = module.library_log_means[covariates.batch_index, None]
        prior_var = module.library_log_vars[covariates.batch_index, None]
        log_prior = normal_log_prob(library, prior_mean, prior_var)
        ratio = ratio + (log_prior - normal_log_prob(library, q.l_mean, q.l_var))[..., 0]
    return ratio


def normal_log_prob(value: Tensor, mean: Tensor | float, var: Tensor) -> Tensor:
    """Log-density of a normal distribution, entry by entry, in nats."""
    return -0.5 * ((value - mean) ** 2 / var + var.log() + LOG_2PI)


def px_scale(module: LDVAE, cells: Cells, z: Tensor) -> Tensor:
    """Expected proportion of every gene, (..., n_obs, n_vars), at latent coordinates as the decoder takes them."""
    return module.decoder(module.decoder_input(z, cells.covariates)).softmax(dim=-1)


@torch.inference_mode()
def normalized_expression(
    module: LDVAE,
    cells: Cells,
    generator: torch.Generator,
    *,
    genes: np.ndarray | None = None,
    batches: Sequence[int | None] = (None,),
    library_size: float | Literal["latent"] = 1.0,
    n_samples: int = 1,
    return_mean: bool = True,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Expected proportions of genes, times a library size.

    Parameters
    ----------
    module, cells
        Model and encoded cells.
    generator
        Of the noise.
    genes
        Rows of the genes to return, none: all; the proportions are of all genes in any case.
    batches
        Codes of the batches to decode for, and to average over; None: each cell's own.
    library_size
        A total to scale the proportions to, or "latent": each cell's.
    n_samples
        Draws from the posterior; 0: decode its mean.
    return_mean
        Average over the draws.
    batch_size
        Cells and draws decoded together.

    Returns
    -------
    ndarray
        Shape (n_obs, n_genes); (n_samples, n_obs, n_genes) for more than one draw that are not averaged.
    """
    n_genes = module.shape.n_vars if genes is None else len(genes)
    n_draws = max(n_samples, 1)
    keep = n_draws > 1 and not return_mean
    out = torch.empty((n_draws, cells.n_obs, n_genes) if keep else (cells.n_obs, n_genes), dtype=torch.float32)
    for rows, minibatch in cells.minibatches(max(1, batch_size // n_draws)):
        expected = []
        for batch in batches:
            decoded = minibatch.in_batch(batch).to(device_of(module))
            z, library = draw(module, decoded, n_samples, generator)
            scale = px_scale(module, decoded, z)
            scale = scale if genes is None else scale[..., genes]
            if library_size != 1:
                scale = scale * (library.exp() if library_size == "latent" else library_size)
            expected.append(scale)
        values = expected[0] if len(expected) == 1 else torch.stack(expected).mean(dim=0)
        if not keep:
            values = values[0] if n_draws == 1 else values.mean(dim=0)
        out[..., rows, :] = values
    return out.numpy()


def sample_cells(cells: Cells, rows: np.ndarray, n: int, generator: torch.Generator) -> Cells:
    """Draw `n` of the cells `rows` with equal probability, and z and the library size of each; see `settle`."""
    drawn = torch.randint(len(rows), (n,), generator=generator)
    return settle(cells.take(torch.as_tensor(rows)[drawn]), generator)


def settle(cells: Cells, generator: torch.Generator) -> Cells:
    """One draw from each posterior, as cells whose posterior is that point: mean the draw, variance zero."""

    def drawn(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return mean + var.sqrt() * torch.randn(mean.shape, generator=generator), torch.zeros_like(var)

    q = cells.q
    library = (None, None) if q.l_mean is None or q.l_var is None else drawn(q.l_mean, q.l_var)
    return cells._replace(q=Posterior(*drawn(q.z_mean, q.z_var), *library))


def check_draws(
    give_mean: bool,
    n_samples: int,
    n_samples_overall: int | None,
    weights: str | None,
    importance: Mapping[str, object],
) -> None:
    """Refuse options of `LinearSCVI.get_normalized_expression` that exclude each other."""
    if give_mean and (n_samples > 1 or n_samples_overall is not None):
        raise InputError("give_mean decodes the posterior mean alone; leave n_samples and n_samples_overall out.")
    if n_samples_overall is not None and n_samples != 1:
        raise InputError("n_samples_overall takes the place of n_samples; give one of them.")
    if weights == "importance" and n_samples_overall is None:
        raise InputError("weights='importance' needs n_samples_overall: it chooses among the draws of all cells.")
    if importance and weights != "importance":
        unknown = next(iter(importance))
        raise TypeError(f"unexpected keyword argument {unknown!r} (only weights='importance' takes further ones)")


def sample_overall(
    module: LDVAE,
    cells: Cells,
    n: int,
    generator: torch.Generator,
    *,
    among: tuple[Source, np.ndarray] | None = None,
    batch: int | None = None,
    importance: Mapping[str, object] | None = None,
) -> tuple[Cells, np.ndarray]:
    """Draw `n` cells, uniformly or by importance, and z and the library size of each; also returns which cells.

    Parameters
    ----------
    module, cells
        Model and encoded cells.
    n
        Number of draws.
    generator
        Of the draws.
    among
        Counts, and the rows of the cells in them: draws that are likely for many cells are favored.
    batch
        Code of the batch to predict for; None: each cell's own.
    importance
        Options of `importance_weights`.
    """
    if among is None:
        chosen = torch.randint(cells.n_obs, (n,), generator=generator)
        return settle(cells.take(chosen), generator), chosen.numpy()
    repeated = torch.arange(cells.n_obs).repeat(n // cells.n_obs + 1)
    candidates = settle(cells.in_batch(batch).take(repeated), generator)
    options: dict[str, Any] = dict(importance or {})
    weight = importance_weights(module, *among, cells, candidates, generator, **options)
    kept = torch.multinomial(weight, n, replacement=True, generator=generator)
    return candidates.take(kept), repeated[kept].numpy()


@torch.inference_mode()
def importance_weights(
    module: LDVAE,
    source: Source,
    rows: np.ndarray,
    cells: Cells,
    candidates: Cells,
    generator: torch.Generator,
    *,
    max_cells: int = 1024,
    truncation: bool = False,
    n_mc_samples: int = 500,
    n_mc_samples_per_pass: int = 250,
    batch_size: int = BATCH_SIZE,
) -> Tensor:
    """Importance weights of draws of z, higher if likely for many cells of a group; shape (n_candidates,), sum 1.

    Parameters
    ----------
    module, source
        Model and counts.
    rows, cells
        The cells of the group, and the same encoded.
    candidates
        Draws from their posteriors, as `settle` gives them.
    generator
        Of the choice of anchors and of the noise.
    max_cells
        Cells of the group that the draws are held against.
    truncation
        Limit each weight to the mean weight times the root of the number of draws (Ionides 2008).
    n_mc_samples, n_mc_samples_per_pass
        Of the marginal likelihood of the anchors.
    batch_size
        Cells decoded together.

    Notes
    -----
    w_s = sum_a p(z_s) p(x_a | z_s) / [p(x_a) sum_b q(z_s | x_b)] over the anchors a, b, where x_a is predicted with its
    observed total.
    """
    anchors = torch.randperm(len(rows), generator=generator)[:max_cells].sort().values
    log_px = marginal_ll(
        module, source, rows[anchors.numpy()], generator, n_mc_samples, n_mc_samples_per_pass, batch_size
    )
    device = device_of(module)
    x, _ = source.minibatch(rows[anchors.numpy()], device)
    anchor_q = cells.take(anchors).to(device).q
    log_weights = []
    for _, minibatch in candidates.minibatches(max(1, batch_size // 4)):
        drawn = minibatch.to(device)
        z = drawn.q.z_mean
        log_qz = normal_log_prob(z[:, None], anchor_q.z_mean, anchor_q.z_var).sum(dim=-1)
        log_pz = normal_log_prob(z, 0.0, torch.ones_like(z)).sum(dim=-1)
        px = module.generative(module.latent(z), torch.zeros_like(z[:, :1]), drawn.covariates)
        log_px_z = torch.stack([module.log_prob(of, px._replace(px_rate=of.sum() * px.px_scale)) for of in x], dim=1)
        log_ratio = log_pz[:, None] + log_px_z - log_px.to(device) - log_qz.logsumexp(dim=1, keepdim=True)
        log_weights.append(log_ratio.logsumexp(dim=1).cpu())
    log_weight = torch.cat(log_weights).double()
    if truncation:
        n = len(log_weight)
        log_weight = log_weight.clamp(max=float(log_weight.logsumexp(dim=0)) - math.log(n) + 0.5 * math.log(n))
    return log_weight.softmax(dim=0)


@torch.inference_mode()
def likelihood_parameters(
    module: LDVAE,
    cells: Cells,
    generator: torch.Generator,
    *,
    n_samples: int = 1,
    give_mean: bool = False,
    batch_size: int = BATCH_SIZE,
) -> dict[str, np.ndarray]:
    """Parameters of p(x | z, library) at draws from the posterior, averaged over the draws if `give_mean`.

    Returns
    -------
    dict
        "mean"; "dropout" (probability of an inflated zero) for zinb; "dispersions" (theta) but for poisson. Shape
        (n_obs, n_vars), or (n_samples, n_obs, n_vars) for more than one draw.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for _, minibatch in cells.minibatches(max(1, batch_size // n_samples)):
        px = decode(module, minibatch, n_samples, generator)
        values = {
            "mean": px.px_rate,
            "dropout": None if px.zi_logits is None else px.zi_logits.sigmoid(),
            "dispersions": None if px.theta is None else px.theta.expand_as(px.px_rate),
        }
        for name, value in values.items():
            if value is not None:
                value = value.mean(dim=0) if give_mean or n_samples == 1 else value
                parts.setdefault(name, []).append(value.cpu().numpy())
    return {name: np.concatenate(values, axis=-2) for name, values in parts.items()}


def decode(module: LDVAE, cells: Cells, n_samples: int, generator: torch.Generator) -> Generative:
    """Parameters of p(x | z, library) at draws from the posterior of cells, (n_samples, n_obs, n_vars)."""
    decoded = cells.to(device_of(module))
    z, library = draw(module, decoded, n_samples, generator)
    return module.generative(z, library, decoded.covariates)


@torch.inference_mode()
def posterior_predictive(
    module: LDVAE,
    cells: Cells,
    generator: torch.Generator,
    *,
    genes: np.ndarray | None = None,
    batches: Sequence[int | None] = (None,),
    n_samples: int = 1,
    batch_size: int = BATCH_SIZE,
) -> Iterator[np.ndarray]:
    """Counts drawn from the model for each cell, minibatch after minibatch, each (n_samples, n_cells, n_genes).

    Several `batches` give the mean of the counts drawn for each.
    """
    for _, minibatch in cells.minibatches(max(1, batch_size // n_samples)):
        decoded = (decode(module, minibatch.in_batch(batch), n_samples, generator) for batch in batches)
        drawn = [module.likelihood.sample(px, numpy_generator(generator)) for px in decoded]
        counts = sum(drawn[1:], start=drawn[0]) / len(drawn)
        yield counts if genes is None else counts[..., genes]


def numpy_generator(generator: torch.Generator) -> np.random.Generator:
    """A numpy generator that continues the stream of a torch one."""
    return np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))


@torch.inference_mode()
def denoised_samples(
    module: LDVAE,
    cells: Cells,
    generator: torch.Generator,
    *,
    n_samples: int = 25,
    rna_size_factor: float = 1000,
    batch: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[np.ndarray]:
    """Expression without counting noise: Gamma draws with mean `rna_size_factor` times the proportion.

    Minibatch after minibatch, each (n_samples, n_cells, n_vars). The shape of the Gamma is theta; a Poisson model has
    no such spread, and gives the mean itself.
    """
    rng = numpy_generator(generator)
    for _, minibatch in cells.minibatches(max(1, batch_size // n_samples)):
        px = decode(module, minibatch.in_batch(batch), n_samples, generator)
        rate = rna_size_factor * px.px_scale.cpu().numpy()
        if px.theta is not None:
            theta = px.theta.cpu().numpy()
            rate = rng.standard_gamma(np.broadcast_to(theta, rate.shape), dtype=np.float32) * (rate / theta)
        yield rate


def feature_correlation(
    module: LDVAE,
    cells: Cells,
    generator: torch.Generator,
    *,
    n_samples: int = 10,
    rna_size_factor: float = 1000,
    batch: int | None = None,
    correlation_type: Literal["spearman", "pearson"] = "spearman",
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Correlation of genes over denoised draws of all cells, float64, shape (n_vars, n_vars).

    Pearson's is accumulated and needs memory for genes × genes. Spearman's ranks need all draws of all genes at once:
    n_obs × n_samples × n_vars floats.
    """
    if correlation_type not in ("spearman", "pearson"):
        raise InputError(f"Unknown correlation type {correlation_type!r}. Choose one of 'spearman', 'pearson'.")
    if len(cells.q.z_mean) * n_samples < 2:
        raise InputError("Correlations of genes need two draws or more: give more cells, or raise n_samples.")
    n_vars = module.shape.n_vars
    blocks = (
        drawn.reshape(-1, n_vars)
        for drawn in denoised_samples(
            module,
            cells,
            generator,
            n_samples=n_samples,
            rna_size_factor=rna_size_factor,
            batch=batch,
            batch_size=batch_size,
        )
    )
    if correlation_type == "spearman":
        from scipy.stats import rankdata

        return np.corrcoef(rankdata(np.concatenate(list(blocks)), axis=0).astype(np.float32), rowvar=False)
    n, mean, scatter = 0, np.zeros(n_vars), np.zeros((n_vars, n_vars))
    for block in blocks:  # Chan's update of mean and scatter, exact where means are large
        centered = block.astype(np.float64) - block.mean(axis=0, dtype=np.float64)
        shift = block.mean(axis=0, dtype=np.float64) - mean
        total = n + len(block)
        scatter += centered.T @ centered + np.outer(shift, shift) * (n * len(block) / total)
        mean += shift * (len(block) / total)
        n = total
    sd = np.sqrt(np.diag(scatter))
    return scatter / np.outer(sd, sd)


def aggregated_posterior(cells: Cells, dof: float | None = 3.0) -> MixtureSameFamily:
    """The mixture of the posteriors of cells: a density over latent coordinates (for "ln", before the softmax).

    Parameters
    ----------
    cells
        Encoded cells.
    dof
        Degrees of freedom of Student components; None: normal ones.
    """
    mean, sd = cells.q.z_mean, cells.q.z_var.sqrt()
    components = Normal(mean, sd) if dof is None else StudentT(dof, mean, sd)
    return MixtureSameFamily(Categorical(logits=torch.zeros(len(mean))), Independent(components, 1))


@torch.inference_mode()
def log_density(at: Tensor, mixture: MixtureSameFamily, batch_size: int = 128) -> Tensor:
    """Log-density of a mixture at latent coordinates, shape (n_points, n_latent), in nats, shape (n_points,)."""
    return torch.cat([mixture.log_prob(block) for block in at.split(batch_size)])


def sample_densities(
    cells: Cells,
    samples: pd.Series,
    generator: torch.Generator,
    *,
    most: int | None = None,
    dof: float | None = None,
    batch_size: int = 128,
) -> pd.DataFrame:
    """Log-density of each cell's latent mean among the cells of each sample, in nats; cells by samples.

    Parameters
    ----------
    cells
        Encoded cells.
    samples
        The sample of each cell, indexed by cell.
    generator
        Of the choice of cells.
    most
        Most cells, drawn at random, that stand for a sample; None: all.
    dof
        As for `aggregated_posterior`.
    batch_size
        Cells whose density is computed together.
    """
    densities = {}
    for sample in samples.unique():
        rows = torch.from_numpy(np.flatnonzero(samples == sample))
        if most is not None:
            rows = rows[torch.randperm(len(rows), generator=generator)[:most].sort().values]
        mixture = aggregated_posterior(cells.take(rows), dof)
        densities[sample] = log_density(cells.q.z_mean, mixture, batch_size).numpy()
    return pd.DataFrame(densities, index=samples.index, columns=samples.unique())


@torch.inference_mode()
def decode_points(module: LDVAE, points: Tensor, batches: Sequence[int]) -> Tensor:
    """Proportions of the genes at latent points, covariates zero: the mean over batches; shape (n_points, n_vars)."""
    weight, shift = module.decoder.folded()
    n_latent = points.shape[1]
    scores = points @ weight[:, :n_latent].T + shift
    if not batches:
        return scores.softmax(dim=-1)
    by_batch = [(scores + weight[:, n_latent + k]).softmax(dim=-1) for k in batches]
    return sum(by_batch[1:], by_batch[0]) / len(batches)
