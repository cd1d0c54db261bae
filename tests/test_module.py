"""The module: every combination of options, its decoder against plain batch norm, its ELBO against formulas."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from ldvae.config import ModelConfig
from ldvae.data import Covariates, DataShape
from ldvae.likelihoods import LIKELIHOODS
from ldvae.module import LDVAE, LinearDecoder, normal_kl

N_OBS, N_VARS = 12, 20


def covariates(n_batch: int, x: torch.Tensor) -> Covariates:
    cells = torch.arange(len(x))
    return Covariates(
        batch_index=cells % n_batch,
        label_index=cells % 2,
        categorical=torch.stack([cells % 2, cells % 3], dim=1),
        continuous=torch.linspace(-1, 1, len(x))[:, None],
        library=torch.log(x.sum(dim=1, keepdim=True)),
    )


@pytest.fixture
def x() -> torch.Tensor:
    return torch.poisson(torch.full((N_OBS, N_VARS), 2.0), generator=torch.Generator().manual_seed(0)) + 1


@pytest.mark.thorough
@pytest.mark.parametrize("latent_distribution", ["normal", "ln"])
@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-label", "gene-cell"])
@pytest.mark.parametrize("gene_likelihood", LIKELIHOODS)
def test_every_combination_gives_finite_terms_and_gradients(gene_likelihood, dispersion, latent_distribution, x):
    rest = itertools.product([False, True], [1, 3], [1, 2], [False, True], [False, True], [0.0, 0.1])
    for observed, n_batch, n_layers, use_batch_norm, bias, dropout in rest:
        config = ModelConfig(
            n_hidden=8,
            n_latent=3,
            n_layers=n_layers,
            dropout_rate=dropout,
            dispersion=dispersion,
            gene_likelihood=gene_likelihood,
            use_observed_lib_size=observed,
            latent_distribution=latent_distribution,
            use_batch_norm=use_batch_norm,
            bias=bias,
        )
        module = LDVAE(config, DataShape(N_VARS, n_batch, n_labels=2, n_cats=(2, 3), n_continuous=1))
        noise = module.draw_noise(N_OBS, torch.Generator().manual_seed(1))
        terms = module.elbo_terms(x, covariates(n_batch, x), noise)
        terms.loss(0.5).mean().backward()
        assert all(term.shape == (N_OBS,) and torch.isfinite(term).all() for term in terms), config
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, (name, config)
            assert torch.isfinite(parameter.grad).all(), (name, config)


def test_folded_batch_norm_equals_batch_norm_over_cells_and_genes():
    torch.manual_seed(0)
    decoder = LinearDecoder(5, 30, use_batch_norm=True, bias=True).double()
    plain = nn.BatchNorm1d(30, eps=1e-3, momentum=0.01).double()
    nn.init.normal_(decoder.norm.weight)
    nn.init.normal_(decoder.norm.bias)
    plain.load_state_dict(decoder.norm.state_dict())
    for _ in range(3):
        u = torch.randn(16, 5, dtype=torch.float64)
        torch.testing.assert_close(decoder(u), plain(u @ decoder.weight.T + decoder.bias), rtol=1e-10, atol=1e-10)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(decoder.norm.state_dict()[name], value, rtol=1e-10, atol=1e-12)
    decoder.eval()
    plain.eval()
    torch.testing.assert_close(decoder(u), plain(u @ decoder.weight.T + decoder.bias), rtol=1e-10, atol=1e-10)


def test_px_scale_is_the_softmax_of_offset_plus_loadings_times_z(x):
    module = LDVAE(ModelConfig(n_latent=4), DataShape(N_VARS, n_batch=3)).eval()
    weight, shift = module.decoder.folded()
    z = torch.randn(N_OBS, 4)
    known = covariates(3, x)
    px = module.generative(z, known.library, known)
    scores = z @ weight[:, :4].T + weight[:, 4:].T[known.batch_index] + shift
    torch.testing.assert_close(px.px_scale, scores.softmax(dim=-1))
    torch.testing.assert_close(px.px_scale.sum(dim=-1), torch.ones(N_OBS))
    torch.testing.assert_close(px.px_rate.sum(dim=-1, keepdim=True), torch.exp(known.library))


def test_samples_can_have_leading_dimensions(x):
    module = LDVAE(ModelConfig(n_latent=4, gene_likelihood="zinb"), DataShape(N_VARS, 3, n_continuous=1)).eval()
    known = covariates(3, x)
    z = torch.randn(5, N_OBS, 4)
    px = module.generative(z, known.library.expand(5, -1, -1), known)
    alone = module.generative(z[2], known.library, known)
    assert px.px_scale.shape == px.zi_logits.shape == (5, N_OBS, N_VARS)
    torch.testing.assert_close(px.px_scale[2], alone.px_scale)


def test_kl_matches_torch_distributions():
    q = torch.distributions.Normal(torch.randn(50), torch.rand(50) + 0.1)
    p = torch.distributions.Normal(torch.tensor(0.7), torch.tensor(1.3))
    expected = torch.distributions.kl_divergence(q, p)
    torch.testing.assert_close(normal_kl(q.mean, q.variance, p.mean, p.variance), expected, rtol=1e-5, atol=1e-6)


def test_zero_inflation_head_exists_only_for_zinb():
    heads = {name: LDVAE(ModelConfig(gene_likelihood=name), DataShape(N_VARS)).zi_decoder for name in ("nb", "poisson")}
    assert set(heads.values()) == {None}
    assert LDVAE(ModelConfig(gene_likelihood="zinb"), DataShape(N_VARS)).zi_decoder is not None


def test_dropout_masks_are_drawn_in_training_only_and_keep_the_mean():
    module = LDVAE(ModelConfig(dropout_rate=0.25, n_layers=2), DataShape(N_VARS))
    noise = module.draw_noise(2000, torch.Generator().manual_seed(0))
    assert len(noise.z_masks) == 2
    assert len(noise.l_masks) == 1
    np.testing.assert_allclose([mask.mean() for mask in noise.z_masks + noise.l_masks], 1, atol=0.01)
    torch.testing.assert_close(noise.z_masks[0].unique(), torch.tensor([0.0, 1 / 0.75]))
    assert module.eval().draw_noise(3, torch.Generator()).z_masks == ()


def test_one_cell_uses_the_running_moments(x):
    module = LDVAE(ModelConfig(dropout_rate=0), DataShape(N_VARS))
    noise = module.draw_noise(1, torch.Generator().manual_seed(0))
    known = covariates(1, x).rows([0])
    before = {name: value.clone() for name, value in module.named_buffers()}
    trained = module.train().elbo_terms(x[:1], known, noise)
    evaluated = module.eval().elbo_terms(x[:1], known, noise)
    torch.testing.assert_close(trained.loss(), evaluated.loss())
    assert all(torch.equal(before[name], value) for name, value in module.named_buffers())
