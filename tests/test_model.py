"""LinearSCVI: its constructor, its training arguments, its decoder, and recovery of known programs."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy import sparse

from ldvae import InputError, LinearSCVI
from ldvae.programs import gauge, information
from ldvae.simulate import simulate


def make_adata(n_obs: int = 120, n_vars: int = 25) -> AnnData:
    random = np.random.default_rng(0)
    adata = AnnData(sparse.csr_matrix(random.poisson(2.0, (n_obs, n_vars)).astype(np.float32)))
    adata.obs["lane"] = np.where(np.arange(n_obs) % 3, "b", "a")
    adata.obs["sex"] = np.where(np.arange(n_obs) % 2, "f", "m")
    adata.obs["age"] = random.normal(size=n_obs)
    LinearSCVI.setup_anndata(
        adata, batch_key="lane", categorical_covariate_keys=["sex"], continuous_covariate_keys=["age"]
    )
    return adata


def make_model(**options) -> LinearSCVI:
    return LinearSCVI(make_adata(), n_hidden=8, **{"n_latent": 3, "seed": 0} | options)


@pytest.fixture(scope="module")
def trained() -> LinearSCVI:
    model = make_model()
    model.train(4, plan_kwargs={"lr": 1e-2}, enable_progress_bar=False)
    return model


def test_loadings_offset_and_batches_give_back_what_the_decoder_gives(trained):
    z = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    for batch in ("a", "b"):
        scores = z @ trained.get_loadings().T + trained.get_offset() + trained.get_batch_loadings()[batch]
        expected = np.exp(scores) / np.exp(scores).sum(axis=1).to_numpy()[:, None]
        np.testing.assert_allclose(trained.decode(z, batch=batch), expected, rtol=1e-4)
    both = (trained.decode(z, batch="a") + trained.decode(z, batch="b")) / 2
    np.testing.assert_allclose(trained.decode(z), both, rtol=1e-4)
    assert trained.decode(z, library_size=1e4).sum(axis=1).to_numpy() == pytest.approx(1e4, rel=1e-4)


def test_loadings_carry_the_names_of_the_genes_and_nothing_but_z(trained):
    loadings = trained.get_loadings()
    assert loadings.shape == (25, 3)
    assert list(loadings.columns) == ["Z_0", "Z_1", "Z_2"]
    assert loadings.index.equals(trained.adata.var_names)
    assert list(trained.get_batch_loadings().columns) == ["a", "b"]
    assert list(trained.get_covariate_loadings().columns) == ["sex=f", "sex=m", "age"]
    n_inputs = trained.module.decoder.weight.shape[1]
    assert n_inputs == 3 + 2 + 3


def test_bad_points_and_batches_are_refused(trained):
    with pytest.raises(InputError, match=r"expected \(n_points, 3\)"):
        trained.decode(np.zeros((2, 4)))
    with pytest.raises(InputError, match="'c' is not a valid batch category; there are a, b"):
        trained.decode(np.zeros((2, 3)), batch="c")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gene_likelihood": "normal"}, "gene_likelihood is 'normal'; it must be one of nb, zinb, poisson"),
        ({"dispersion": "genes"}, "dispersion is 'genes'"),
        ({"latent_distribution": "ln2"}, "latent_distribution"),
        ({"n_latent": 25}, "25 genes for 25 factors"),
        ({"n_latent": 0}, "n_latent is 0"),
        ({"dropout_rate": 1.0}, "dropout_rate is 1"),
    ],
)
def test_architectures_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        make_model(**options)


def test_unknown_arguments_are_refused_everywhere():
    with pytest.raises(TypeError, match="encode_covariates"):
        LinearSCVI(make_adata(), encode_covariates=True)
    with pytest.raises(TypeError, match="bogus"):
        LinearSCVI.setup_anndata(make_adata(), bogus="x")
    model = make_model()
    for arguments in ({"bogus": 1}, {"plan_kwargs": {"bogus": 1}}, {"datasplitter_kwargs": {"bogus": 1}}):
        with pytest.raises(TypeError, match="bogus"):
            model.train(1, **arguments)


def test_one_cell_and_data_that_were_not_set_up_are_refused():
    with pytest.raises(InputError, match="set up your AnnData"):
        LinearSCVI(AnnData(np.ones((5, 20), dtype=np.float32)))
    with pytest.raises(InputError, match="adata or registry"):
        LinearSCVI()
    adata = AnnData(np.ones((1, 20), dtype=np.float32))
    LinearSCVI.setup_anndata(adata)
    with pytest.raises(InputError, match="1 cell"):
        LinearSCVI(adata, n_latent=2)


def test_seeds_decide_and_torchs_seed_stands_in_for_a_missing_one():
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        model = make_model(seed=None)
        model.train(1, enable_progress_bar=False)
        assert torch.equal(torch.get_rng_state(), state)
        weights.append(model.get_loadings())
    assert weights[0].equals(weights[1])
    assert not weights[0].equals(weights[2])


def test_arguments_without_effect_are_accepted_and_named(caplog):
    make_model().train(1, log_every_n_steps=5, datasplitter_kwargs={"num_workers": 2}, enable_progress_bar=False)
    assert "log_every_n_steps: accepted" in caplog.text
    assert "num_workers: accepted" in caplog.text


def test_history_has_a_frame_for_each_metric_and_goes_on_in_a_second_training():
    model = make_model()
    assert model.history is None
    assert not model.is_trained
    model.train(3, enable_progress_bar=False)
    model.train(2, enable_progress_bar=False)
    frame = model.history["elbo_validation"]
    assert list(frame.columns) == ["elbo_validation"]
    assert frame.index.tolist() == [0, 1, 2, 3, 4]
    assert frame.index.name == "epoch"
    assert model.is_trained


def test_the_split_can_be_given_and_is_remembered():
    parts = [np.arange(80), np.arange(80, 100), np.arange(100, 120)]
    model = make_model()
    model.train(1, datasplitter_kwargs={"external_indexing": parts}, enable_progress_bar=False)
    for mine, part in zip((model.train_indices, model.validation_indices, model.test_indices), parts, strict=True):
        np.testing.assert_array_equal(mine, part)
    for wrong, message in (([[0, 1], [1]], "more than once"), ([[500]], "row 500")):
        with pytest.raises(InputError, match=message):
            model.train(1, datasplitter_kwargs={"external_indexing": wrong})


def test_device_is_found_by_looking():
    model = make_model()
    assert model.device.type == "cpu"
    with pytest.raises(InputError, match="tpu"):
        model.train(1, accelerator="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="sees no GPU"):
            model.train(1, accelerator="gpu")


def test_a_model_can_be_made_of_a_registry_and_given_data_later():
    first = make_model()
    second = LinearSCVI(n_hidden=8, n_latent=3, registry=first._registry.to_dict(), seed=0)
    assert second.get_loadings().equals(first.get_loadings())
    with pytest.raises(InputError, match="no data"):
        second.train(1)
    second.adata = make_adata()
    second.train(1, enable_progress_bar=False)


def test_import_is_light():
    code = "import ldvae, sys; print([m for m in ('scanpy', 'matplotlib', 'snakemake', 'plotly') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("world", ["mixed", "gauss"])
def test_known_programs_lie_in_the_span_of_the_fitted_loadings_in_any_order_of_cells(world):
    truth = simulate(world, n_obs=3000, n_vars=500, n_up=50, n_down=15, mean_total=2000, seed=1)
    adata = truth.to_anndata()
    weight = information(truth.mean_expression * 2000, truth.theta)[:, None]
    programs = gauge(truth.loadings.to_numpy(), truth.mean_expression) * weight
    for order in (slice(None), np.random.default_rng(0).permutation(adata.n_obs)):
        cells = adata[order].copy()
        LinearSCVI.setup_anndata(cells, batch_key="batch")
        model = LinearSCVI(cells, n_latent=12, seed=0)
        plan = {"lr": 1e-2, "schedule": "cosine", "n_epochs_kl_warmup": 20}
        model.train(60, plan_kwargs=plan, enable_progress_bar=False)
        span, _ = np.linalg.qr(gauge(model.get_loadings().to_numpy(), truth.mean_expression) * weight)
        cosines = np.linalg.norm(span.T @ programs, axis=0) / np.linalg.norm(programs, axis=0)
        assert cosines.min() > 0.95, cosines
