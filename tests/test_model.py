"""LinearSCVI: its constructor, its training arguments, its decoder, and recovery of known programs."""

import subprocess
import sys
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData, concat, read_h5ad
from scipy import sparse

from ldvae import InputError, LinearSCVI
from ldvae.likelihoods import LIKELIHOODS
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
    with pytest.raises(InputError, match=r'"c" not a valid batch category\. There are a, b'):
        trained.decode(np.zeros((2, 3)), batch="c")
    for z in ([["x", "y", "z"]], np.full((1, 3), np.nan), [[np.inf, 0, 0]]):
        with pytest.raises(InputError, match="z holds values that are not finite"):
            trained.decode(z)


def test_nothing_chosen_is_no_empty_answer(trained):
    with pytest.raises(InputError, match="gene_list is empty"):
        trained.get_normalized_expression(gene_list=[])
    with pytest.raises(InputError, match=r"The list of batches is empty\. There are a, b"):
        trained.get_normalized_expression(transform_batch=[])
    with pytest.raises(InputError, match="need two draws or more"):
        trained.get_feature_correlation_matrix(indices=[0], n_samples=1)


def test_others_that_are_no_models_are_named(trained):
    with pytest.raises(InputError, match=r"Model 1 of the others is a list; .*get_programs\(\*models\)"):
        trained.get_programs([trained])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gene_likelihood": "normal"}, f"gene_likelihood is 'normal'; it must be one of {', '.join(LIKELIHOODS)}"),
        ({"dispersion": "genes"}, "dispersion is 'genes'; it must be one of gene, "),
        ({"latent_distribution": "ln2"}, "latent_distribution"),
        ({"n_latent": 0}, "n_latent is 0"),
        ({"dropout_rate": 1.0}, "dropout_rate is 1"),
    ],
)
def test_architectures_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        make_model(**options)


def test_as_many_factors_as_genes_are_a_warning():
    with pytest.warns(UserWarning, match="25 genes for 25 factors"):
        model = make_model(n_latent=25)
    model.train(1, enable_progress_bar=False)


def test_unknown_arguments_are_refused_everywhere():
    with pytest.raises(TypeError, match="encode_covariates"):
        LinearSCVI(make_adata(), encode_covariates=True)
    with pytest.raises(TypeError, match="bogus"):
        LinearSCVI.setup_anndata(make_adata(), bogus="x")
    model = make_model()
    for arguments in ({"bogus": 1}, {"plan_kwargs": {"bogus": 1}}, {"datasplitter_kwargs": {"bogus": 1}}):
        with pytest.raises(TypeError, match="bogus"):
            model.train(1, **arguments)
    for arguments, told in (
        ({"lr": 0.1}, r"it belongs to the plan: plan_kwargs=\{'lr'"),
        ({"plan_kwargs": {"max_epochs": 3}}, r"it is an argument of train\(\) itself"),
        ({"datasplitter_kwargs": {"bogus": 1}}, "datasplitter_kwargs got an unexpected"),
    ):
        with pytest.raises(TypeError, match=told):
            model.train(1, **arguments)


def test_what_is_no_path_is_refused_by_what_it_is():
    model = make_model()
    with pytest.raises(InputError, match=r"checkpoint must be a path .*, found 3"):
        model.train(1, checkpoint=3)
    with pytest.raises(InputError, match=r"dir_path must be a path .*, found AnnData"):
        model.save(model.adata)


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


def every_field() -> AnnData:
    """Data whose registry has all that a registry can have."""
    adata = make_adata()
    adata.obs["day"] = pd.to_datetime("2026-01-01") + pd.to_timedelta(np.arange(120) % 3, unit="D")
    adata.obs["size"] = 1.5
    adata.layers["counts"] = adata.X
    LinearSCVI.setup_anndata(
        adata,
        batch_key="day",
        layer="counts",
        size_factor_key="size",
        categorical_covariate_keys=["sex", "lane"],
        continuous_covariate_keys=["age"],
    )
    return adata


@pytest.mark.parametrize("make", [make_adata, every_field, lambda: fitted().adata])
def test_a_model_can_be_made_of_the_public_registry(make, tmp_path):
    adata = make()
    first = LinearSCVI(adata, n_hidden=8, n_latent=3, seed=0)
    first.save(tmp_path / "model")
    for registry in (first.registry, first.registry_, LinearSCVI.load_registry(tmp_path / "model")):
        second = LinearSCVI(registry=registry, n_hidden=8, n_latent=3, seed=0)
        assert second._registry == first._registry
        assert second.get_loadings().equals(first.get_loadings())
        second.adata = adata.copy()
        second.is_trained = first.is_trained = True
        np.testing.assert_array_equal(second.get_latent_representation(), first.get_latent_representation())


@pytest.mark.parametrize("wrong", [{}, {"field_registries": {}}, {"setup_args": {}}, "model", 3])
def test_a_registry_that_is_none_says_where_there_is_one(wrong):
    with pytest.raises(InputError, match=r"registry is not that of a model .* give `model\.registry`"):
        LinearSCVI(registry=wrong)
    with pytest.raises(InputError, match="different class: found SCVI"):
        LinearSCVI(registry=make_model().registry | {"model_name": "SCVI"})


@pytest.mark.slow
@pytest.mark.parametrize(("scenario", "n_orders"), [("mixed", 2), ("gauss", 1)])
def test_known_programs_lie_in_the_span_of_the_fitted_loadings_in_any_order_of_cells(scenario, n_orders):
    truth = simulate(scenario, n_obs=3000, n_vars=500, n_up=50, n_down=15, mean_total=2000, seed=1)
    adata = truth.to_anndata()
    weight = information(truth.mean_expression * 2000, truth.theta)[:, None]
    programs = gauge(truth.loadings.to_numpy(), truth.mean_expression) * weight
    for order in (slice(None), np.random.default_rng(0).permutation(adata.n_obs))[:n_orders]:
        cells = adata[order].copy()
        LinearSCVI.setup_anndata(cells, batch_key="batch")
        model = LinearSCVI(cells, n_latent=12, seed=0)
        plan = {"lr": 1e-2, "schedule": "cosine", "n_epochs_kl_warmup": 20}
        model.train(60, plan_kwargs=plan, enable_progress_bar=False)
        span, _ = np.linalg.qr(gauge(model.get_loadings().to_numpy(), truth.mean_expression) * weight)
        cosines = np.linalg.norm(span.T @ programs, axis=0) / np.linalg.norm(programs, axis=0)
        assert cosines.min() > 0.95, cosines


# ---------------------------------------------------------------- the model's data, as they are when asked


def fitted(make=sparse.csr_matrix, dtype=np.float32, layer=None, observed=False) -> LinearSCVI:
    """A trained model of 150 cells in two lanes; its data under its own control."""
    random = np.random.default_rng(3)
    counts = make(random.poisson(2.0, (150, 20)).astype(dtype))
    adata = AnnData(counts) if layer is None else AnnData(shape=(150, 20), layers={layer: counts})
    adata.obs_names, adata.var_names = [f"cell{i}" for i in range(150)], [f"gene{i}" for i in range(20)]
    adata.obs["lane"] = pd.Categorical(np.where(random.random(150) < 0.5, "a", "b"))
    adata.obs["kind"] = np.where(np.arange(150) % 4, "x", "y")
    LinearSCVI.setup_anndata(adata, batch_key="lane", layer=layer)
    model = LinearSCVI(adata, n_hidden=8, n_latent=3, use_observed_lib_size=observed, seed=0)
    model.train(2, enable_progress_bar=False)
    return model


def answers(model: LinearSCVI) -> dict[str, np.ndarray]:
    """What a model says of each cell of its data, by methods of every kind."""
    return {
        "latent": model.get_latent_representation(),
        "expression": model.get_normalized_expression(give_mean=True, library_size="latent").to_numpy(),
        "elbo": model.get_elbo(return_mean=False).numpy(),
        "rate": model.get_likelihood_parameters()["mean"],
        "de": model.differential_expression(idx1="kind == 'y'", mode="change")
        .sort_index()
        .drop(columns="pseudocounts")
        .to_numpy(),
    }


def afresh(model: LinearSCVI) -> LinearSCVI:
    """A model with the same weights that never saw any data but a copy of those of now."""
    fresh = LinearSCVI(registry=model._registry, seed=0, **vars(model.config))
    fresh.module.load_state_dict(model.module.state_dict())
    fresh.is_trained = True
    fresh.adata = model.adata.copy()
    return fresh


def subset_in_place(adata):
    adata._inplace_subset_obs(np.arange(150) % 3 != 0)


def shuffle_in_place(adata):
    adata._inplace_subset_obs(np.random.default_rng(0).permutation(150))


def filter_with_scanpy(adata):
    import scanpy as sc

    try:
        sc.pp.filter_cells(adata, min_counts=38)
    except AttributeError:
        assert isinstance(adata.X, sparse.csr_array)
        pytest.skip("scanpy 1.11.0 cannot filter by a sparse array")


def other_lanes(adata):
    adata.obs["lane"] = adata.obs["lane"].to_numpy()[::-1]


def one_count(adata):
    adata.X[7, 3] = 9


def other_counts(adata):
    adata.X = adata.X[::-1].copy()


STORAGES = [
    sparse.csr_matrix,
    *(pytest.param(make, marks=pytest.mark.thorough) for make in (sparse.csc_matrix, np.asarray, sparse.csr_array)),
]


@pytest.mark.filterwarnings("ignore::scipy.sparse.SparseEfficiencyWarning")
@pytest.mark.parametrize(
    "change", [subset_in_place, shuffle_in_place, filter_with_scanpy, other_lanes, one_count, other_counts]
)
@pytest.mark.parametrize("make", STORAGES)
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_every_method_follows_the_data_as_they_are_now(make, dtype, change):
    model = fitted(make, dtype)
    before = answers(model)
    change(model.adata)
    now, expected = answers(model), answers(afresh(model))
    for name in expected:
        np.testing.assert_array_equal(now[name], expected[name])
    assert not all(np.array_equal(now[name], before[name]) for name in before)
    assert list(model.get_normalized_expression().index) == list(model.adata.obs_names)


def normalize(adata):
    adata.X = adata.X.astype(np.float32)
    adata.X.data[:] = np.log1p(adata.X.data)


def normalize_in_place(adata):
    adata.X.data[:] = np.log1p(adata.X.data)


def reorder_genes(adata):
    adata._inplace_subset_var(np.arange(20)[::-1])


def drop_a_gene(adata):
    adata._inplace_subset_var(np.arange(19))


def new_lane(adata):
    adata.obs["lane"] = np.where(np.arange(150) < 5, "c", "a")


def no_matrix(adata):
    adata.X = None


def drop_lane(adata):
    del adata.obs["lane"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (normalize, r"have changed .*the values of adata\.X.*non-integer"),
        (normalize_in_place, r"have changed .*the values of adata\.X.*non-integer"),
        (reorder_genes, r"have changed .*the genes.*not in the model's order"),
        (drop_a_gene, r"have changed .*the genes.*1 of the model's 20 genes are missing"),
        (new_lane, r"have changed .*adata\.obs: .*lane.*Category c"),
        (no_matrix, r"adata\.X is None"),
        (drop_lane, r"have changed .*lane not found in adata\.obs"),
    ],
)
def test_changes_that_the_model_cannot_use_are_refused_by_every_method_until_they_are_undone(change, message):
    model = fitted()
    kept, expected = model.adata.copy(), answers(model)
    change(model.adata)
    for method in (
        model.get_latent_representation,
        model.get_elbo,
        model.get_marginal_ll,
        model.get_normalized_expression,
        model.get_programs,
        model.train,
        model.minify_adata,
        lambda: model.differential_expression(idx1=[0, 1]),
        lambda: model.posterior_predictive_sample(indices=[0]),
    ):
        for _ in range(2):  # refused is refused, also when asked again
            with pytest.raises(InputError, match=message):
                method()
    model.adata = kept
    np.testing.assert_array_equal(model.get_latent_representation(), expected["latent"])


def test_a_replaced_layer_is_read_and_checked():
    model = fitted(layer="counts")
    model.adata.layers["counts"] = model.adata.layers["counts"][::-1].copy()
    np.testing.assert_array_equal(model.get_latent_representation(), afresh(model).get_latent_representation())
    model.adata.layers["counts"] = model.adata.layers["counts"] / 2
    with pytest.raises(InputError, match=r"the values of adata\.layers\['counts'\].*non-integer"):
        model.get_latent_representation()
    del model.adata.layers["counts"]
    with pytest.raises(InputError, match=r"counts is not a valid key in adata\.layers"):
        model.get_latent_representation()


def test_the_split_is_found_again_by_the_names_of_the_cells():
    model = fitted()
    names = [set(model.adata.obs_names[rows]) for rows in (model.train_indices, model.validation_indices)]
    shuffle_in_place(model.adata)
    model.adata._inplace_subset_obs(np.arange(100))
    left = set(model.adata.obs_names)
    for rows, before in zip((model.train_indices, model.validation_indices_), names, strict=True):
        assert set(model.adata.obs_names[rows]) == before & left
    model.adata.obs_names = [f"{name}-1" for name in model.adata.obs_names]
    model.train(1, enable_progress_bar=False)
    rows = model.train_indices
    model.adata.obs_names = [f"{name}-2" for name in model.adata.obs_names]
    np.testing.assert_array_equal(model.train_indices, rows)  # the same cells under other names


def test_what_users_set_on_a_model_of_scvi_tools_can_be_set_and_is_saved(tmp_path):
    model = fitted()
    validation = model.validation_indices
    model.train_indices = np.arange(3)
    model.test_indices_ = [f"cell{i}" for i in (7, 5)]
    model.run_id, model.run_name, model.get_normalized_function_name = "42", "mine", "get_normalized_expression"
    model.save(tmp_path / "model")
    for given in (model, LinearSCVI.load(tmp_path / "model", model.adata.copy())):
        np.testing.assert_array_equal(given.train_indices, [0, 1, 2])
        np.testing.assert_array_equal(given.validation_indices, validation)
        np.testing.assert_array_equal(given.test_indices, [7, 5])
        assert (given.run_id, given.run_name) == ("42", "mine")
    model.train_indices = None
    assert len(model.train_indices) == 0
    with pytest.raises(InputError, match="train_indices names row 500"):
        model.train_indices = [500]
    untrained = make_model()
    untrained.validation_indices = np.arange(120) < 4
    np.testing.assert_array_equal(untrained.validation_indices, np.arange(4))
    model.deregister_manager()
    with pytest.raises(InputError, match="no data"):
        model.train_indices = [0]


def test_the_split_of_a_loaded_model_is_found_again_in_whatever_data_it_is_given(tmp_path):
    model = fitted()
    names = list(model.adata.obs_names[model.validation_indices])
    model.save(tmp_path / "model")
    whole = LinearSCVI.load(tmp_path / "model", model.adata.copy())
    np.testing.assert_array_equal(whole.validation_indices, model.validation_indices)
    shuffle_in_place(whole.adata)
    assert list(whole.adata.obs_names[whole.validation_indices]) == names
    part = LinearSCVI.load(tmp_path / "model", model.adata[40:100].copy())
    assert list(part.adata.obs_names[part.validation_indices]) == [n for n in names if 40 <= int(n[4:]) < 100]
    others = model.adata.copy()
    others.obs_names = [f"other{i}" for i in range(150)]
    assert len(LinearSCVI.load(tmp_path / "model", others).validation_indices) == 0
    model.adata.obs_names = [f"{name}-1" for name in model.adata.obs_names]  # renamed, the same
    model.save(tmp_path / "renamed", save_anndata=True)
    renamed = LinearSCVI.load(tmp_path / "renamed")
    np.testing.assert_array_equal(renamed.validation_indices, model.validation_indices)


def test_data_that_change_on_disk_are_refused(tmp_path):
    import h5py

    model = fitted()
    model.adata.write_h5ad(tmp_path / "counts.h5ad")
    model.adata = read_h5ad(tmp_path / "counts.h5ad", backed="r+")
    latent = model.get_latent_representation()
    model.adata.file.close()
    with h5py.File(tmp_path / "counts.h5ad", "r+") as file:
        file["X/data"][5] += 1
    model.adata = read_h5ad(tmp_path / "counts.h5ad", backed="r+")
    assert not np.array_equal(model.get_latent_representation(), latent)  # set anew: read anew
    model.adata.file._file["X/data"][5] += 1
    with pytest.raises(InputError, match=r"adata\.X has changed on disk since it was checked: row 0"):
        model.get_latent_representation()


@pytest.mark.parametrize("observed", [False, True])
def test_minified_data_of_another_model_are_refused_also_from_a_file(tmp_path, observed):
    model, other = fitted(observed=observed), fitted(observed=observed)
    other.train(1, enable_progress_bar=False)
    latent = model.get_latent_representation()
    model.minify_adata()
    model.adata.write_h5ad(tmp_path / "small.h5ad")
    for minified in (model.adata, read_h5ad(tmp_path / "small.h5ad")):
        with pytest.raises(InputError, match="Another model encoded the minified data"):
            other.get_normalized_expression(minified)
        with pytest.raises(InputError, match="Another model encoded the minified data"):
            other.get_latent_representation(minified)
        np.testing.assert_array_equal(model.get_latent_representation(minified), latent)
    model.save(tmp_path / "model")
    loaded = LinearSCVI.load(tmp_path / "model", read_h5ad(tmp_path / "small.h5ad"))
    np.testing.assert_array_equal(loaded.get_latent_representation(), latent)


def test_minified_data_with_counts_are_encoded_again_where_model_or_counts_have_changed(caplog):
    model = fitted()
    model.minify_adata("latent_posterior_parameters_with_counts")
    np.testing.assert_array_equal(model.get_latent_representation(), afresh(model).get_latent_representation())
    model.train(1, enable_progress_bar=False)
    np.testing.assert_array_equal(model.get_latent_representation(), afresh(model).get_latent_representation())
    assert "this one was trained further" in caplog.text
    model.adata.X = model.adata.X[::-1].copy()
    np.testing.assert_array_equal(model.get_latent_representation(), afresh(model).get_latent_representation())


def test_minified_data_that_name_no_model_are_a_warning():
    model = fitted()
    model.minify_adata()
    del model.adata.uns["_ldvae_minified_by"]
    with pytest.warns(UserWarning, match="do not name the model"):
        model.get_latent_representation()


def replace_column(adata: AnnData, key: str, value: float) -> None:
    adata.obs[key] = value


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda a: a.obsm.pop("ldvae_latent_qzm"), r"obsm\['ldvae_latent_qzm'\] is missing"),
        (lambda a: a.obs.pop("observed_lib_size"), r"obs\['observed_lib_size'\] is missing"),
        (lambda a: a.obs.pop("ldvae_latent_qlm"), r"obs\['ldvae_latent_qlm'\] is missing"),
        (lambda a: replace_column(a, "ldvae_latent_qlm", np.nan), r"obs\['ldvae_latent_qlm'\] holds values that are"),
        (lambda a: replace_column(a, "ldvae_latent_qlv", 0.0), "variances that are not above zero"),
        (lambda a: a.obsm.__setitem__("ldvae_latent_qzv", np.ones((150, 2))), "another shape than its mean"),
    ],
)
def test_minified_data_that_lost_a_part_or_hold_no_numbers_are_refused(spoil, told):
    model = fitted()
    model.minify_adata()
    spoil(model.adata)
    with pytest.raises(InputError, match=told):
        model.get_normalized_expression(library_size="latent")


def exchange_rows(values):
    """The same with the first two rows exchanged."""
    order = [1, 0, *range(2, len(values))]
    return values.iloc[order].set_axis(values.index) if isinstance(values, pd.DataFrame) else values[order]


@pytest.mark.parametrize("observed", [False, True])
def test_minified_cells_keep_their_latent_coordinates_or_are_refused(observed, tmp_path):
    model = fitted(observed=observed)
    latent = model.get_latent_representation()
    model.minify_adata()
    whole = model.adata.copy()
    order = np.random.default_rng(0).permutation(150)[:60]
    some = whole[order].copy()
    some.obs_names = [f"renamed {i}" for i in range(60)]
    some.write_h5ad(tmp_path / "some.h5ad")
    for part in (some, read_h5ad(tmp_path / "some.h5ad"), concat([some[:20], some[20:]], uns_merge="same")):
        np.testing.assert_array_equal(model.get_latent_representation(part), latent[order])
    for spoil in (
        lambda a: a.obsm.__setitem__("ldvae_latent_qzm", exchange_rows(a.obsm["ldvae_latent_qzm"])),
        lambda a: a.obsm.__setitem__("ldvae_latent_qzv", exchange_rows(a.obsm["ldvae_latent_qzv"])),
        lambda a: replace_column(a, "observed_lib_size", exchange_rows(a.obs["observed_lib_size"].to_numpy())),
        lambda a: setattr(a, "obs", exchange_rows(a.obs)),
    ):
        model.adata = whole.copy()
        spoil(model.adata)
        with pytest.raises(
            InputError, match=r"posterior of \d+ of the 150 cells \(the first is 'cell0'\) has been changed"
        ):
            model.get_normalized_expression()


def test_latent_coordinates_that_were_moved_are_encoded_again_where_there_are_counts(caplog):
    model = fitted()
    latent = model.get_latent_representation()
    model.minify_adata("latent_posterior_parameters_with_counts")
    model.adata.obsm["ldvae_latent_qzm"] = model.adata.obsm["ldvae_latent_qzm"][::-1].copy()
    np.testing.assert_allclose(model.get_latent_representation(), latent, rtol=1e-5, atol=1e-6)
    assert "has been changed, or moved to another cell" in caplog.text


def test_minified_cells_among_others_are_not_read_as_cells_without_counts():
    model = fitted()
    full = model.adata.copy()
    model.minify_adata()
    both = concat([model.adata, full[:50].copy()], join="outer", index_unique="-")
    with pytest.raises(InputError, match="The counts of 150 of 200 cells are gone: these were minified"):
        model.get_latent_representation(both)


def test_columns_that_changed_are_named_alone_and_numbers_are_to_be_filled():
    model = fitted()
    adata = model.adata
    adata.obs["age"], adata.obs["size"] = 1.5, 1.0
    LinearSCVI.setup_anndata(adata, batch_key="lane", continuous_covariate_keys=["age"], size_factor_key="size")
    model = LinearSCVI(adata, n_hidden=8, n_latent=3)
    model.train(1, enable_progress_bar=False)
    adata.obs["age"] = np.nan
    with pytest.raises(InputError, match=r"\(adata\.obs: age\).*Fill them, or remove these cells"):
        model.get_latent_representation()


def test_what_differential_expression_cannot_use_is_named():
    model = fitted()
    with pytest.raises(TypeError, match=r"differential_expression\(\) got .* 'method'; further ones are n_samples"):
        model.differential_expression(groupby="kind", method="nope")
    with pytest.raises(InputError, match=r"A group to compare is \['y'\]; group1 takes one group or a list"):
        model.differential_expression(groupby="kind", group1=["x"], group2=["y"])
    model.adata.obs["age"] = np.linspace(0, 1, 150)
    with pytest.raises(InputError, match=r"obs\['age'\] holds measurements \(150 values in 150 cells\)"):
        model.differential_expression(groupby="age")


def test_no_cells_are_told_as_such():
    model = fitted()
    with pytest.raises(InputError, match="adata has no cells"):
        model.get_latent_representation(model.adata[:0].copy())


def test_programs_of_models_with_other_cells_are_refused():
    model, other = fitted(), fitted()
    shuffle_in_place(other.adata)
    with pytest.raises(InputError, match="Model 1 of the others has other cells"):
        model.get_programs(other)


def test_a_training_on_one_cell_is_refused():
    model = fitted()
    with pytest.raises(InputError, match="There is 1 cell to train on, of 150; batch normalization needs two"):
        model.train(1, train_size=1 / 150, enable_progress_bar=False)
    with pytest.raises(InputError, match="There is 1 cell to train on"):
        model.train(1, datasplitter_kwargs={"external_indexing": [[3], [4, 5]]}, enable_progress_bar=False)


def test_parts_of_a_split_are_cells_and_never_a_mask_read_as_numbers():
    model = fitted()
    train = np.arange(150) < 100
    model.train(1, datasplitter_kwargs={"external_indexing": [train, ~train]}, enable_progress_bar=False)
    np.testing.assert_array_equal(model.validation_indices, np.arange(100, 150))
    with pytest.raises(InputError, match=r"external_indexing\[0\] holds values of dtype float64"):
        model.train(1, datasplitter_kwargs={"external_indexing": [train.astype(float)]})


# ---------------------------------------------------------------- batches whose totals hardly vary


def downsampled(counts: np.ndarray, total: int) -> np.ndarray:
    random = np.random.default_rng(0)
    return np.stack([random.multivariate_hypergeometric(row.astype(int), total) for row in counts]).astype(np.float32)


def negative_elbo(adata: AnnData, epochs: int = 150, **options) -> np.ndarray:
    LinearSCVI.setup_anndata(adata, batch_key="batch")
    model = LinearSCVI(adata, seed=0, **options)
    plan = {"lr": 1e-2, "schedule": "cosine", "n_epochs_kl_warmup": 10}
    model.train(epochs, plan_kwargs=plan, enable_progress_bar=False)
    return -model.get_elbo(return_mean=False).numpy()


@pytest.fixture(scope="module")
def two_batches() -> AnnData:
    adata = simulate(n_obs=600, n_vars=200, n_up=20, n_down=6, mean_total=1500, seed=1).to_anndata()
    adata.obs["batch"] = adata.obs["batch"].astype(str)
    return adata


@pytest.fixture(scope="module")
def donors(shared_data) -> AnnData:
    adata = read_h5ad(shared_data / "kang2018_ctrl_8donors.h5ad")
    adata = adata[np.sort(np.random.default_rng(0).choice(adata.n_obs, 700, replace=False))].copy()
    adata = adata[:, np.argsort(-np.asarray(adata.X.sum(axis=0)).ravel())[:1500]].copy()
    adata.obs["batch"] = adata.obs["batch"].astype(str)
    return adata


@pytest.mark.thorough
@pytest.mark.parametrize("data", ["two_batches", pytest.param("donors", marks=pytest.mark.slow)])
def test_a_cell_alone_in_its_batch_does_not_spoil_the_fit_and_is_named(request, data):
    adata = request.getfixturevalue(data).copy()
    plain = np.delete(negative_elbo(adata.copy()), 5)
    adata.obs.loc[adata.obs_names[5], "batch"] = "alone"
    with (
        pytest.warns(UserWarning, match="alone has fewer than 3 cells"),
        pytest.warns(UserWarning, match=r"hardly vary in 1 of \d batches: alone \(1 cell\)"),
    ):
        odd = negative_elbo(adata)
    assert np.isfinite(odd).all()
    assert np.delete(odd, 5).mean() < 1.01 * plain.mean()
    assert odd.mean() < 1.01 * plain.mean()


@pytest.mark.thorough
def test_a_batch_downsampled_to_one_total_harms_no_other(two_batches):
    adata = two_batches.copy()
    low = int(adata.X.sum(axis=1).min())
    flat = np.arange(adata.n_obs) % 5 == 0
    counts = adata.X.toarray()
    counts[flat] = downsampled(counts[flat], low)
    adata.X = sparse.csr_matrix(counts)
    without = negative_elbo(adata[~flat].copy())
    adata.obs.loc[flat, "batch"] = "flat"
    with pytest.warns(UserWarning, match=r"hardly vary in 1 of 3 batches: flat \(120 cells\)"):
        odd = negative_elbo(adata)
    assert odd[~flat].mean() < 1.01 * without.mean()
    assert odd[flat].mean() < odd[~flat].mean()  # fewer counts, and no worse for it


@pytest.mark.thorough
@pytest.mark.parametrize("jitter", [0, 1])
def test_counts_downsampled_to_one_total_take_the_observed_library_size(two_batches, jitter):
    adata = two_batches.copy()
    counts = downsampled(adata.X.toarray(), int(adata.X.sum(axis=1).min()))
    counts[::2, 0] += jitter
    adata.X = sparse.csr_matrix(counts)
    observed = negative_elbo(adata.copy(), use_observed_lib_size=True)
    with pytest.warns(UserWarning, match=r"hardly vary .about \d+ in every cell.*observed ones are taken"):
        np.testing.assert_array_equal(negative_elbo(adata), observed)


@pytest.mark.filterwarnings("ignore:.*fewer than 3 cells", "ignore:The total counts hardly vary")
def test_each_cell_its_own_batch_and_batches_of_a_few_cells_train():
    adata = make_adata(40)
    for n in (1, 2, 3):
        adata.obs["batch"] = [f"b{i // n}" for i in range(40)]
        assert negative_elbo(adata.copy(), epochs=20).mean() < 200


# ---------------------------------------------------------------- other data, brought to the model's genes


@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
def test_other_data_are_brought_to_the_models_genes(make, tmp_path):
    model = fitted(layer="counts")
    model.save(tmp_path / "model")
    full = model.adata.layers["counts"].toarray()
    genes = [4, 3, 19, 2, *range(5, 19)]  # in another order, and without the genes 0 and 1
    other = AnnData(
        make(np.ones((150, 19), dtype=np.float32)),
        obs=model.adata.obs,
        var=pd.DataFrame({"n": range(19)}, index=[*(f"gene{i}" for i in genes), "unknown"]),
        layers={"counts": make(np.hstack([full[:, genes], np.full((150, 1), 7, dtype=np.float32)]))},
        obsm={"X_pca": np.ones((150, 2))},
    )
    expected = model.adata.layers["counts"].toarray()
    expected[:, :2] = 0
    for reference_model in (model, tmp_path / "model", str(tmp_path / "model")):
        made = LinearSCVI.prepare_query_anndata(other, reference_model, inplace=False)
        assert list(made.var_names) == list(model.get_var_names())
        counts = made.layers["counts"]
        np.testing.assert_array_equal(counts.toarray() if sparse.issparse(counts) else counts, expected)
        assert other.n_vars == 19
    with pytest.raises(InputError, match=r"2 of the model's 20 genes are missing .*gene0, gene1"):
        LinearSCVI.prepare_query_anndata(other, model, missing_genes="refuse")
    assert LinearSCVI.prepare_query_anndata(other, model) is None
    assert (other.shape, other.obsm["X_pca"].shape) == ((150, 20), (150, 2))
    assert np.isfinite(model.get_latent_representation(other)).all()
    assert list(LinearSCVI.prepare_query_anndata(other, model, True)) == list(model.get_var_names())


def test_data_that_cannot_be_brought_to_the_models_genes_are_refused():
    model = fitted()
    other = model.adata.copy()
    with pytest.warns(UserWarning, match="contain 50% of the reference var names"):
        LinearSCVI.prepare_query_anndata(other[:, :10], model, inplace=False)
    with pytest.raises(InputError, match="is a view"):
        LinearSCVI.prepare_query_anndata(other[:, :10], model)
    with pytest.raises(InputError, match="reference_model is a int"):
        LinearSCVI.prepare_query_anndata(other, 3)
    other.var_names = [f"ENSG{i}" for i in range(20)]
    with pytest.raises(InputError, match=r"none of the model's 20 genes \(e\.g\. gene0"):
        LinearSCVI.prepare_query_anndata(other, model)
    other.var_names = ["gene0"] * 20
    with pytest.raises(InputError, match="occur more than once"):
        LinearSCVI.prepare_query_anndata(other, model)


# ---------------------------------------------------------------- the public face


def test_progress_is_shown_in_notebooks_from_the_first_epoch_on(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    make_model().train(3)
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "ELBO" in shown
    assert "None" not in shown
    assert "nan" not in shown


LOOP_WITHOUT_SEEDS = """
import os, sys, warnings
import anndata, numpy, torch
before, after = sys.argv[1:]
exec(before)
import ldvae
from ldvae import LinearSCVI
exec(after)
warnings.simplefilter("ignore")
counts = numpy.random.default_rng(0).poisson(1, (60, 12)).astype(numpy.float32)
adata = anndata.AnnData(counts)
LinearSCVI.setup_anndata(adata)
weights = [LinearSCVI(adata, n_latent=2).module.decoder.weight.sum().item() for _ in range(3)]
print(len(set(weights)))
"""
IN_FORKS = """
import os, sys
import anndata, numba, numpy, pandas, scipy.sparse, torch
for sys.argv[1:] in {cases}:
    if os.fork() == 0:
        exec({code!r})
        sys.exit()
    os.wait()
"""


@pytest.mark.thorough
def test_restarts_in_a_loop_differ_unless_somebody_gave_a_seed():
    # In processes of their own, whose random state nobody has touched.
    fits = {
        ("", ""): 3,
        ("torch.manual_seed(5)", ""): 1,
        ("", "torch.manual_seed(2**40)"): 1,
        ("", "ldvae.settings.seed = 0"): 1,
        ("", "ldvae.settings.seed = 0; ldvae.settings.seed = None"): 3,
    }
    code = IN_FORKS.format(cases=list(fits), code=LOOP_WITHOUT_SEEDS)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert dict(zip(fits, map(int, done.stdout.split()), strict=True)) == fits
