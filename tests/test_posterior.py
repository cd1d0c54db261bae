"""What a model says of cells, against closed forms, other implementations and itself in another order."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import integrate, stats

from ldvae import InputError, LinearSCVI, posterior
from ldvae.backends import PlainBackend

ALL_CASES = ("nb", "zinb", "poisson", "gene_batch", "gene_label", "ln")


@pytest.fixture
def model(reference, reference_adata) -> LinearSCVI:
    return LinearSCVI.load(reference / "nb", reference_adata)


@pytest.fixture(params=ALL_CASES)
def any_model(request, reference, reference_adata) -> LinearSCVI:
    return LinearSCVI.load(reference / request.param, reference_adata)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- cells: which, in which order, from where


@pytest.mark.parametrize(
    "indices",
    [[5, 3, 199], np.array([5, 3, 199]), [-195, 3, -1], np.isin(np.arange(200), [3, 5, 199])],
)
def test_rows_come_in_the_order_asked_for(model, indices):
    everyone = model.get_latent_representation()
    rows = np.arange(200)[np.asarray(indices)]
    np.testing.assert_allclose(model.get_latent_representation(indices=indices), everyone[rows], rtol=1e-5, atol=1e-6)
    expression = model.get_normalized_expression(indices=indices, give_mean=True)
    assert list(expression.index) == list(model.adata.obs_names[rows])


def test_a_list_of_bools_is_a_mask(model):
    mask = [i % 50 == 0 for i in range(200)]
    assert len(model.get_latent_representation(indices=mask)) == 4
    with pytest.raises(InputError, match="mask of 3 cells, but there are 200"):
        model.get_latent_representation(indices=[True, False, True])


@pytest.mark.parametrize("indices", [[200], [-201], []])
def test_rows_that_do_not_exist_are_refused(model, indices):
    with pytest.raises(InputError, match="indices must name at least one of the 200 cells"):
        model.get_latent_representation(indices=indices)


def test_deterministic_results_do_not_depend_on_the_minibatch(any_model):
    whole = any_model.get_latent_representation(return_dist=True)
    for batch_size in (1, 64, 200):
        parts = any_model.get_latent_representation(return_dist=True, batch_size=batch_size)
        for part, of_whole in zip(parts, whole, strict=True):
            np.testing.assert_allclose(part, of_whole, rtol=1e-4, atol=1e-5)
    expression = any_model.get_normalized_expression(give_mean=True)
    pd.testing.assert_frame_equal(
        any_model.get_normalized_expression(give_mean=True, batch_size=7), expression, rtol=1e-4
    )


def test_random_results_follow_the_seed_and_leave_the_callers_state_alone(model):
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 (the global state is meant)
    for method in (model.get_elbo, model.get_normalized_expression, model.get_likelihood_parameters):
        first, again, other = method(seed=1), method(seed=1), method(seed=2)
        if isinstance(first, dict):
            first, again, other = first["mean"], again["mean"], other["mean"]
        np.testing.assert_array_equal(np.asarray(first), np.asarray(again))
        assert not np.array_equal(np.asarray(first), np.asarray(other))
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_other_data_are_checked_and_read_like_the_models(model, reference_adata):
    other = reference_adata[[7, 2, 150]].copy()
    np.testing.assert_allclose(
        model.get_latent_representation(other),
        model.get_latent_representation(indices=[7, 2, 150]),
        rtol=1e-5,
        atol=1e-6,
    )
    view = reference_adata[:50]
    assert model.get_latent_representation(view).shape == (50, 4)
    other.obs["batch"] = "d9"
    with pytest.raises(InputError, match="d9"):
        model.get_latent_representation(other)


def test_an_untrained_model_says_so(reference_adata):
    LinearSCVI.setup_anndata(reference_adata)
    model = LinearSCVI(reference_adata, n_hidden=4, n_latent=2)
    for method in (model.get_latent_representation, model.get_latent_library_size, model.get_aggregated_posterior):
        with pytest.raises(InputError, match="untrained model"):
            method()


# ---------------------------------------------------------------- latent space


def test_the_mean_of_a_logistic_normal_is_that_of_its_draws(reference, reference_adata):
    model = LinearSCVI.load(reference / "ln", reference_adata)
    mean, variance = model.get_latent_representation(indices=[0], return_dist=True)
    normal = np.random.default_rng(0).normal(mean, np.sqrt(variance), size=(200_000, 4))
    expected = (np.exp(normal) / np.exp(normal).sum(axis=1, keepdims=True)).mean(axis=0)
    found = model.get_latent_representation(indices=[0], mc_samples=20_000)
    np.testing.assert_allclose(found[0], expected, atol=0.01)
    assert found.sum() == pytest.approx(1, abs=1e-5)


def test_a_draw_of_z_has_the_posteriors_mean_and_variance(model):
    mean, variance = model.get_latent_representation(indices=np.zeros(4000, dtype=int), return_dist=True)
    draws = model.get_latent_representation(indices=np.zeros(4000, dtype=int), give_mean=False)
    np.testing.assert_allclose(draws.mean(axis=0), mean[0], atol=4 * np.sqrt(variance[0].max() / 4000))
    np.testing.assert_allclose(draws.var(axis=0), variance[0], rtol=0.15)


def test_the_library_size_is_the_mean_of_a_log_normal(model):
    cells = posterior.encode(model.module, model.source, np.array([3]))
    scale = float(cells.q.l_var.sqrt())
    expected = stats.lognorm.mean(scale, scale=math.exp(float(cells.q.l_mean)))
    assert model.get_latent_library_size(indices=[3])[0, 0] == pytest.approx(expected, rel=1e-5)


def test_an_observed_library_size_is_the_total_count(reference, reference_adata):
    model = LinearSCVI.load(reference / "zinb", reference_adata)
    totals = np.asarray(reference_adata.X.sum(axis=1))
    np.testing.assert_allclose(model.get_latent_library_size(give_mean=False), totals, rtol=1e-5)
    with pytest.raises(InputError, match="give_mean=False"):
        model.get_latent_library_size()


# ---------------------------------------------------------------- likelihood


def test_elbo_is_minus_reconstruction_and_divergences(any_model):
    elbo = any_model.get_elbo(return_mean=False, seed=3)
    error = any_model.get_reconstruction_error(return_mean=False, seed=3)["reconstruction_loss"]
    mean, variance = any_model.get_latent_representation(return_dist=True)
    kl_z = 0.5 * (variance + mean**2 - 1 - np.log(variance)).sum(axis=1)
    if any_model.config.use_observed_lib_size:
        np.testing.assert_allclose(-elbo.numpy(), error.numpy() + kl_z, rtol=1e-5)
    else:
        assert (-elbo.numpy() > error.numpy() + kl_z).all()
    assert elbo.shape == (200,)
    assert any_model.get_elbo(seed=3).shape == ()
    assert any_model.get_elbo(seed=3) == pytest.approx(elbo.mean().item(), rel=1e-6)


@pytest.mark.thorough
def test_marginal_likelihood_by_sampling_is_the_integral(reference_adata):
    """One latent dimension, an observed library: p(x) is an integral over a line."""
    adata = reference_adata[:6, :10].copy()
    LinearSCVI.setup_anndata(adata)
    model = LinearSCVI(adata, n_hidden=4, n_latent=1, use_observed_lib_size=True, gene_likelihood="poisson", seed=0)
    model.is_trained = True
    scores = model.get_loadings().to_numpy()[:, 0], model.get_offset().to_numpy()
    x = adata.X.toarray()

    grid = np.linspace(-8, 8, 4001)
    mu = np.exp(np.outer(grid, scores[0]) + scores[1])
    mu = mu * (x.sum(axis=1)[:, None, None] / mu.sum(axis=1, keepdims=True))
    log_joint = stats.poisson.logpmf(x[:, None], mu).sum(axis=-1) + stats.norm.logpdf(grid)
    expected = np.log(integrate.trapezoid(np.exp(log_joint), grid))
    found = model.get_marginal_ll(n_mc_samples=30_000, n_mc_samples_per_pass=3000, return_mean=False)
    np.testing.assert_allclose(found, expected, atol=0.1)


def test_marginal_likelihood_is_the_mean_over_cells_not_over_minibatches(model):
    cells = np.arange(130)
    each = model.get_marginal_ll(indices=cells, n_mc_samples=5, return_mean=False, batch_size=128)
    mean = model.get_marginal_ll(indices=cells, n_mc_samples=5, batch_size=128)
    assert mean == pytest.approx(each.mean().item())


@pytest.mark.parametrize("per_pass", [1, 4, 10, 99])
def test_marginal_likelihood_takes_as_many_draws_as_it_divides_by(model, monkeypatch, per_pass):
    """The reference adds log(12 / 10) for 10 draws in passes of 4; here, weights of one give a likelihood of one."""
    monkeypatch.setattr(posterior, "pick_backend", PlainBackend)
    monkeypatch.setattr(posterior, "log_likelihood", lambda _, x, __, z_noise, ___: torch.zeros(len(z_noise), len(x)))
    monkeypatch.setattr(posterior, "log_ratio", lambda _, cells, z_noise, __: torch.zeros(len(z_noise), cells.n_obs))
    found = model.get_marginal_ll(n_mc_samples=10, n_mc_samples_per_pass=per_pass, return_mean=False)
    np.testing.assert_allclose(found, 0, atol=1e-6)


def test_kernels_and_plain_torch_give_the_same(any_model, monkeypatch):
    def results() -> list[np.ndarray]:
        return [
            any_model.get_latent_representation(seed=1),
            any_model.get_elbo(return_mean=False, seed=1).numpy(),
            any_model.get_marginal_ll(n_mc_samples=5, n_mc_samples_per_pass=2, return_mean=False, seed=1).numpy(),
        ]

    fused = results()
    monkeypatch.setattr(posterior, "pick_backend", PlainBackend)
    for ours, plain in zip(fused, results(), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4)


def test_marginal_likelihood_is_above_the_elbo(any_model):
    assert any_model.get_marginal_ll(n_mc_samples=50) > any_model.get_elbo().item()


def test_likelihood_parameters_have_the_keys_and_shapes_of_the_reference(any_model):
    names = {"nb": ["mean", "dispersions"], "zinb": ["mean", "dropout", "dispersions"], "poisson": ["mean"]}
    expected = names[any_model.config.gene_likelihood]
    for arguments, shape in (({}, (200, 60)), ({"n_samples": 2}, (2, 200, 60))):
        parameters = any_model.get_likelihood_parameters(**arguments)
        assert list(parameters) == expected
        assert {values.shape for values in parameters.values()} == {shape}
    averaged = any_model.get_likelihood_parameters(n_samples=2, give_mean=True, seed=1)["mean"]
    np.testing.assert_allclose(
        averaged, any_model.get_likelihood_parameters(n_samples=2, seed=1)["mean"].mean(axis=0), rtol=1e-5
    )


def test_predicted_counts_are_sparse_integers_in_the_references_layout(any_model):
    counts = any_model.posterior_predictive_sample(indices=[4, 2], n_samples=3, gene_list=["gene10", "gene05"])
    assert type(counts).__name__ == "GCXS"
    assert counts.shape == (2, 2, 3)
    assert any_model.posterior_predictive_sample().shape == (200, 60)
    dense = counts.todense()
    assert dense.dtype == np.float32
    np.testing.assert_array_equal(dense, np.rint(dense))


# ---------------------------------------------------------------- expression


def test_expression_of_the_mean_is_the_decoded_mean(model):
    z = model.get_latent_representation()
    names = model.adata.obs["batch"].to_numpy()
    expression = model.get_normalized_expression(give_mean=True)
    for batch in ("d1", "d2", "d3"):
        decoded = model.decode(z[names == batch], batch=batch)
        np.testing.assert_allclose(expression[names == batch], decoded, rtol=1e-4)
    assert list(expression.columns) == list(model.adata.var_names)


def test_expression_sums_to_the_library_size(any_model):
    for library_size in (1, 1e4):
        total = any_model.get_normalized_expression(library_size=library_size).sum(axis=1)
        np.testing.assert_allclose(total, library_size, rtol=1e-4)
    latent = any_model.get_normalized_expression(library_size="latent", give_mean=True).sum(axis=1)
    if any_model.config.use_observed_lib_size:
        np.testing.assert_allclose(latent, np.asarray(any_model.adata.X.sum(axis=1))[:, 0], rtol=1e-4)
    else:
        np.testing.assert_allclose(latent, any_model.get_latent_library_size()[:, 0], rtol=1e-4)


def test_expression_can_be_asked_for_any_batch_or_their_mean(model):
    each = [model.get_normalized_expression(transform_batch=batch, give_mean=True) for batch in ("d1", "d2", "d3")]
    assert not np.allclose(each[0], each[1], rtol=1e-3)
    mean = model.get_normalized_expression(transform_batch=["d1", "d2", "d3"], give_mean=True)
    np.testing.assert_allclose(mean, sum(each) / 3, rtol=1e-5)
    own = model.get_normalized_expression(transform_batch=[None, "d2"], give_mean=True)
    np.testing.assert_allclose(own, (model.get_normalized_expression(give_mean=True) + each[1]) / 2, rtol=1e-5)
    with pytest.raises(InputError, match='"d9" not a valid batch category'):
        model.get_normalized_expression(transform_batch="d9")
    with pytest.raises(InputError, match='"1" not a valid batch category'):
        model.get_normalized_expression(transform_batch=1)


def test_genes_come_in_the_models_order_and_unknown_ones_are_refused(model):
    some = model.get_normalized_expression(gene_list=["gene30", "gene02"], give_mean=True)
    assert list(some.columns) == ["gene02", "gene30"]
    np.testing.assert_array_equal(some, model.get_normalized_expression(give_mean=True)[["gene02", "gene30"]])
    with pytest.raises(InputError, match=r"1 of 2 genes of gene_list are not among the model's \(e\.g\. MT-CO1\)"):
        model.get_normalized_expression(gene_list=["gene02", "MT-CO1"])


def test_draws_of_expression_come_by_sample_or_averaged(model):
    draws = model.get_normalized_expression(n_samples=4, return_mean=False, indices=[1, 0, 2], seed=5)
    assert isinstance(draws, np.ndarray)
    assert draws.shape == (4, 3, 60)
    mean = model.get_normalized_expression(n_samples=4, indices=[1, 0, 2], seed=5)
    np.testing.assert_allclose(mean, draws.mean(axis=0), rtol=1e-5)
    assert model.get_normalized_expression(return_numpy=True).shape == (200, 60)


def test_overall_draws_name_their_cells(model):
    draws = model.get_normalized_expression(indices=np.arange(5), n_samples_overall=2000)
    assert draws.shape == (2000, 60)
    counts = draws.index.value_counts()
    assert set(counts.index) == set(model.adata.obs_names[:5])
    assert counts.min() > 300
    many = model.get_normalized_expression(indices=np.arange(5), n_samples=2000)
    np.testing.assert_allclose(draws.groupby(level=0).mean().loc[many.index], many, rtol=0.2, atol=2e-3)


def test_importance_weights_favour_draws_that_explain_the_group(model):
    """Among draws of one group and a few of another, those of the group that is asked about weigh more."""
    labels = model.adata.obs["label"].to_numpy()
    rows = np.flatnonzero(labels == "B cell")[:40]
    cells = posterior.encode(model.module, model.source, rows)
    strangers = posterior.encode(model.module, model.source, np.flatnonzero(labels == "T cell")[:40])
    settled = [posterior.settle(group, generator()) for group in (cells, strangers)]
    candidates = posterior.Cells(
        settled[0].q._make(torch.cat(pair) for pair in zip(settled[0].q, settled[1].q, strict=True)),
        settled[0].covariates._make(
            torch.cat(pair) for pair in zip(settled[0].covariates, settled[1].covariates, strict=True)
        ),
    )
    weight = posterior.importance_weights(
        model.module, model.source, rows, cells, candidates, generator(), n_mc_samples=20, n_mc_samples_per_pass=10
    )
    assert weight.sum().item() == pytest.approx(1)
    assert weight[:40].sum() > weight[40:].sum()


def test_truncation_limits_the_largest_weight(model):
    rows = np.arange(60)
    cells = posterior.encode(model.module, model.source, rows)
    candidates = posterior.settle(cells, generator())
    arguments = (model.module, model.source, rows, cells, candidates)
    options = {"max_cells": 20, "n_mc_samples": 10, "n_mc_samples_per_pass": 10}
    free = posterior.importance_weights(*arguments, generator(), **options)
    limited = posterior.importance_weights(*arguments, generator(), truncation=True, **options)
    assert limited.max() <= free.max()
    assert limited.min() >= free.min()
    most = math.sqrt(60) / 60  # the root of their number times the mean, before all are divided by what remains
    kept = np.minimum(free.numpy(), most)
    np.testing.assert_allclose(limited, kept / kept.sum(), rtol=1e-6)
    assert free.max() > most


@pytest.mark.parametrize("likelihood_case", ["nb", "poisson", "zinb"])
def test_importance_weighted_draws_work_for_every_likelihood(reference, reference_adata, likelihood_case):
    model = LinearSCVI.load(reference / likelihood_case, reference_adata)
    draws = model.get_normalized_expression(
        n_samples_overall=30, weights="importance", max_cells=10, n_mc_samples=4, n_mc_samples_per_pass=2
    )
    np.testing.assert_allclose(draws.sum(axis=1), 1, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"give_mean": True, "n_samples": 2}, "give_mean decodes the posterior mean alone"),
        ({"n_samples": 2, "n_samples_overall": 10}, "takes the place of n_samples"),
        ({"weights": "importance"}, "needs n_samples_overall"),
        (
            {"weights": "importance", "n_samples_overall": 5, "transform_batch": ["d1", "d2"]},
            "cannot be computed when expression is averaged",
        ),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(model, arguments, message):
    with pytest.raises(InputError, match=message):
        model.get_normalized_expression(**arguments)


def test_unknown_arguments_are_refused(model):
    with pytest.raises(TypeError, match="max_cels"):
        model.get_normalized_expression(max_cels=3)


# ---------------------------------------------------------------- correlation, density, abundance


def test_denoised_draws_have_the_scaled_proportions_as_their_mean(any_model):
    cells = posterior.encode(any_model.module, any_model.source, np.array([3]))
    cells = posterior.settle(cells, generator())
    (draws,) = posterior.denoised_samples(
        any_model.module, cells, generator(), n_samples=4000, rna_size_factor=500, batch_size=4000
    )
    expected = 500 * posterior.normalized_expression(any_model.module, cells, generator(), n_samples=0)
    np.testing.assert_allclose(draws.mean(axis=0), expected, rtol=0.3)
    assert draws.shape == (4000, 1, 60)


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
def test_correlations_are_those_of_all_draws_together(model, kind):
    cells = posterior.encode(model.module, model.source, np.arange(len(model.source)))
    blocks = posterior.denoised_samples(model.module, cells, generator(model.seed), n_samples=2, batch_size=64)
    draws = pd.DataFrame(np.concatenate([block.reshape(-1, 60) for block in blocks]))
    found = model.get_feature_correlation_matrix(n_samples=2, correlation_type=kind)
    np.testing.assert_allclose(found, draws.corr(kind), atol=1e-5)
    assert list(found.index) == list(found.columns) == list(model.adata.var_names)


def test_correlations_over_batches_are_averaged_and_poisson_works(reference, reference_adata):
    model = LinearSCVI.load(reference / "nb", reference_adata)
    found = model.get_feature_correlation_matrix(n_samples=1, transform_batch=["d1", "d2"])
    np.testing.assert_allclose(np.diag(found), 1, rtol=1e-5)
    poisson = LinearSCVI.load(reference / "poisson", reference_adata)
    assert np.isfinite(poisson.get_feature_correlation_matrix(n_samples=1).to_numpy()).all()
    with pytest.raises(InputError, match="correlation_type is 'kendall'; it must be one of spearman, pearson"):
        model.get_feature_correlation_matrix(correlation_type="kendall")


@pytest.mark.parametrize("dof", [None, 3.0])
def test_the_aggregated_posterior_is_the_mean_density_of_its_cells(model, dof):
    mean, variance = model.get_latent_representation(indices=[0, 1, 2], return_dist=True)
    mixture = model.get_aggregated_posterior(indices=[0, 1, 2], dof=dof)
    at = np.array([[0.1, -0.2, 0.3, 0.0], [1.0, 1.0, -1.0, 0.5]])
    scale = np.sqrt(variance)
    density = stats.norm(mean, scale).pdf if dof is None else lambda z: stats.t(dof, mean, scale).pdf(z)
    expected = [np.log(density(z).prod(axis=1).mean()) for z in at]
    np.testing.assert_allclose(mixture.log_prob(torch.tensor(at, dtype=torch.float32)), expected, rtol=1e-4)


def test_abundance_is_the_density_of_each_cell_among_the_cells_of_each_sample(model, reference_adata):
    model.differential_abundance(sample_key="batch")
    table = reference_adata.obsm["da_log_probs"]
    assert list(table.columns) == list(reference_adata.obs["batch"].unique())
    assert list(table.index) == list(reference_adata.obs_names)
    rows = np.flatnonzero(reference_adata.obs["batch"] == "d2")
    z = torch.from_numpy(model.get_latent_representation(indices=[9]))
    expected = model.get_aggregated_posterior(indices=rows, dof=None).log_prob(z).item()
    assert table["d2"].iloc[9] == pytest.approx(expected, rel=1e-4)
    model.differential_abundance(sample_key="batch", num_cells_posterior=5)
    assert not np.allclose(reference_adata.obsm["da_log_probs"], table)
    with pytest.raises(InputError, match=r"Give sample_key, a column of adata.obs .*batch"):
        model.differential_abundance()
    with pytest.raises(InputError, match="sample_key 'donor' not found"):
        model.differential_abundance(sample_key="donor")


def test_the_summary_names_the_parameters_and_the_state(model, capsys):
    assert repr(model) == model.summary_string
    for part in ("n_latent: 4", "gene_likelihood: nb", "Training status: Trained", "minified?: False"):
        assert part in model.summary_string
    model.view_anndata_setup()
    shown = capsys.readouterr().out
    assert "batch_key: 'batch'" in shown
    assert "n_batch: 3" in shown
    assert model.get_setup_arg("labels_key") == "label"
    assert list(model.get_state_registry("batch")["categorical_mapping"]) == ["d1", "d2", "d3"]
    assert model.adata_manager.data_registry.batch == {"attr_name": "obs", "attr_key": "_scvi_batch"}
    np.testing.assert_array_equal(model.data_registry("batch"), model.get_from_registry(model.adata, "batch"))
    assert model.summary_stats.n_vars == 60
    assert model.registry_ is model.adata_manager.registry
    model.view_anndata_setup(hide_state_registries=True)
    assert "categorical_mapping" not in capsys.readouterr().out


def test_backed_data_give_what_data_in_memory_give(model, reference_adata: AnnData, tmp_path):
    from anndata import read_h5ad

    reference_adata.write_h5ad(tmp_path / "counts.h5ad")
    backed = read_h5ad(tmp_path / "counts.h5ad", backed="r")
    rows = [150, 3, 77]
    found = model.get_latent_representation(backed, indices=rows)
    np.testing.assert_allclose(found, model.get_latent_representation(indices=rows), rtol=1e-5, atol=1e-6)
    assert model.get_elbo(backed, seed=1) == pytest.approx(model.get_elbo(seed=1).item(), rel=1e-5)
    ours = model.differential_expression(backed, groupby="label", mode="change", n_samples_overall=50, seed=1)
    theirs = model.differential_expression(groupby="label", mode="change", n_samples_overall=50, seed=1)
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-4)
