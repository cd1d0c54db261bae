"""What the methods of LinearSCVI are given: checked at the door, and the forms of scvi-tools' older API."""

import inspect
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy import sparse

import ldvae
from ldvae import InputError, LinearSCVI
from ldvae.arguments import RULES
from ldvae.devices import device_named, pick_device
from ldvae.model import SEED_OF_TORCH

QUIET = {"enable_progress_bar": False}


def make_adata() -> AnnData:
    adata = AnnData(sparse.csr_matrix(np.random.default_rng(0).poisson(2.0, (90, 12)).astype(np.float32)))
    adata.obs["lane"] = np.where(np.arange(90) % 3, "b", "a")
    LinearSCVI.setup_anndata(adata, batch_key="lane")
    return adata


def make_model(**options) -> LinearSCVI:
    return LinearSCVI(make_adata(), n_hidden=8, **{"n_latent": 3, "seed": 0} | options)


@pytest.fixture(scope="module")
def model() -> LinearSCVI:
    model = make_model()
    model.train(1, **QUIET)
    return model


# ---------------------------------------------------------------- at the door


def public_methods() -> list[tuple[str, inspect.Signature]]:
    methods = inspect.getmembers(LinearSCVI, callable)
    return [(n, inspect.signature(m)) for n, m in methods if not n.startswith("_") or n == "__init__"]


# Arguments that say what they are by themselves: checked where they are used.
OPEN = {
    *("self", "cls", "args", "kwargs", "indices", "idx1", "idx2", "subset_idx", "group1", "group2", "transform_batch"),
    *("categorical_covariate_keys", "continuous_covariate_keys", "registry", "accelerator", "devices", "device"),
    *("callbacks", "checkpoint", "trainer_kwargs", "data_loader_kwargs", "importance_weighting_kwargs", "z", "batch"),
    *("others", "config", "dir_path", "output_dir_path", "anndata_write_kwargs", "registry_key", "setup_arg"),
    *("split", "on_epoch", "stop", "reference_model"),
}


def test_every_argument_of_every_public_method_is_checked():
    unchecked = {
        (name, argument)
        for name, signature in public_methods()
        for argument in signature.parameters
        if argument not in RULES and argument not in OPEN
    }
    assert not unchecked


def test_positional_arguments_stand_where_scvi_tools_has_them():
    order = {
        "train": "max_epochs accelerator devices train_size validation_size shuffle_set_split load_sparse_tensor "
        "batch_size early_stopping datasplitter_kwargs plan_config plan_kwargs datamodule trainer_config",
        "get_elbo": "adata indices batch_size dataloader return_mean data_loader_kwargs",
        "get_reconstruction_error": "adata indices batch_size dataloader return_mean data_loader_kwargs",
        "get_marginal_ll": "adata indices n_mc_samples batch_size return_mean dataloader data_loader_kwargs",
        "get_latent_representation": "adata indices give_mean mc_samples batch_size return_dist dataloader",
        "get_latent_library_size": "adata indices give_mean batch_size dataloader",
        "get_normalized_expression": "adata indices transform_batch gene_list library_size n_samples n_samples_overall "
        "weights batch_size return_mean return_numpy silent dataloader data_loader_kwargs",
        "get_likelihood_parameters": "adata indices n_samples give_mean batch_size dataloader",
        "posterior_predictive_sample": "adata indices transform_batch n_samples gene_list batch_size dataloader silent",
        "get_feature_correlation_matrix": "adata indices n_samples batch_size rna_size_factor transform_batch "
        "correlation_type silent",
        "differential_abundance": "adata sample_key batch_size num_cells_posterior dof",
        "differential_expression": "adata groupby group1 group2 idx1 idx2 mode delta batch_size all_stats "
        "batch_correction batchid1 batchid2 fdr_target silent weights filter_outlier_cells importance_weighting_kwargs",
        "save": "dir_path prefix overwrite save_anndata save_kwargs legacy_mudata_format datamodule",
        "load": "dir_path adata accelerator device prefix backup_url datamodule allowed_classes_names_list",
        "__init__": "adata n_hidden n_latent n_layers dropout_rate dispersion gene_likelihood use_observed_lib_size "
        "latent_distribution",
        "get_from_registry": "adata registry_key",
        "minify_adata": "minified_data_type use_latent_qzm_key use_latent_qzv_key",
    }
    for name, names in order.items():
        parameters = inspect.signature(getattr(LinearSCVI, name)).parameters.values()
        ours = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]
        assert ours == names.split(), name


FLAGS = [name for name, rule in RULES.items() if rule.__name__ == "flag"]


@pytest.mark.parametrize("value", ["none", "False", 1, 0, 1.0, None, np.nan, [True], np.array([True])])
@pytest.mark.parametrize("name", FLAGS)
def test_nothing_but_true_and_false_is_a_flag(name, value):
    with pytest.raises(InputError, match=f"{name} is .*; it must be True or False"):
        RULES[name](name, value)


@pytest.mark.parametrize("value", [True, np.True_, np.array(True), torch.tensor(True)])
def test_numpys_booleans_are_flags(value):
    assert RULES["bias"]("bias", value) is True


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("n_latent", [0, -1, 2.0, "3", True, None, np.nan]),
        ("dropout_rate", [-0.1, 1, "0.1", True, np.nan, None]),
        ("gene_likelihood", ["normal", None, 1, ["nb"]]),
        ("max_epochs", [0, -1, 1.5, "10", True]),
        ("batch_size", [0, 12.0, "128"]),
        ("lr", [0, -1, "1e-3", np.inf, None]),
        ("seed", [-1, 0.5, "0", True, 2**32]),
        ("categorical_covariate_keys", ["lane", 3, [3], [None], ["lane", "lane"], {"lane": 1}, {"lane"}]),
        ("library_size", [0, -1, "observed", True, None]),
        ("weights", ["importances", True, 0]),
        ("batch_key", [["lane"], 0, True]),
        ("fdr_target", [-0.1, 1.1]),
        ("cred_interval_lvls", ["0.9", [1.0], [-1], {"a": 1}]),
        ("dof", [0, -2]),
        ("dataloader", [[1], "x"]),
        ("early_stopping_monitor", ["elbo", None]),
        ("early_stopping_mode", ["max"]),
        ("adata", ["adata.h5ad", np.ones(3), True]),
    ],
)
def test_values_that_mean_something_else_are_refused_by_name(name, wrong):
    for value in wrong:
        with pytest.raises(InputError, match=rf"^{name} "):
            RULES[name](name, value)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: LinearSCVI(m.adata, use_batch_norm="none"),
        lambda m: LinearSCVI(m.adata, 128, 10, 1, 0.1, "gene", "nb", "yes"),
        lambda m: LinearSCVI(m.adata, n_latent=10.0),
        lambda m: LinearSCVI("adata"),
        lambda m: m.train(0),
        lambda m: m.train(1, early_stopping="False"),
        lambda m: m.train(1, batch_size=0),
        lambda m: m.train(1, plan_kwargs={"lr": "fast"}),
        lambda m: m.train(1, plan_kwargs={"optimizer": "Custom"}),
        lambda m: m.train(1, plan_kwargs={"reduce_lr_on_plateau": "no"}),
        lambda m: m.train(1, plan_kwargs=[1]),
        lambda m: m.train(1, datasplitter_kwargs={"drop_last": "no"}),
        lambda m: m.train(1, early_stopping_patience=0),
        lambda m: m.train(1, accelerator="nonsense"),
        lambda m: m.train(1, devices=2),
        lambda m: m.train(1, devices=0),
        lambda m: m.train(1, devices="nonsense"),
        lambda m: m.get_elbo(None, None, None, True, False),
        lambda m: m.get_elbo(return_mean="no"),
        lambda m: m.get_latent_representation(give_mean=1),
        lambda m: m.get_marginal_ll(n_mc_samples=0),
        lambda m: m.get_normalized_expression(weights="importances"),
        lambda m: m.get_normalized_expression(library_size="observed"),
        lambda m: m.get_normalized_expression(transform_batch=["a", True]),
        lambda m: m.get_likelihood_parameters(n_samples=0),
        lambda m: m.decode(np.zeros((1, 3)), library_size="latent"),
        lambda m: m.differential_expression(idx1=[0], fdr_target=2),
        lambda m: m.differential_expression(idx1=[0], mode="change", test_mode="four"),
        lambda m: m.to_device("nonsense"),
        lambda m: m.save("never", overwrite="no"),
        lambda m: LinearSCVI.load("never", device="nonsense"),
        lambda m: LinearSCVI.load("never", False, "nonsense"),
    ],
)
def test_nothing_is_taken_for_what_it_is_not(model, call):
    before = model.get_loadings()
    with pytest.raises(InputError):
        call(model)
    assert model.get_loadings().equals(before)


def test_numpys_numbers_are_numbers(tmp_path):
    model = make_model(n_latent=np.int64(3), dropout_rate=np.float32(0.25), bias=np.True_, seed=np.uint8(3))
    model.train(np.int32(1), plan_kwargs={"lr": np.float64(1e-2)}, batch_size=np.int64(32), **QUIET)
    model.save(tmp_path / "model")
    loaded = LinearSCVI.load(tmp_path / "model")
    assert loaded.config == model.config
    assert loaded.seed == 3
    assert type(loaded.config.n_latent) is int


def test_devices_are_named_or_refused():
    assert pick_device() == pick_device("auto", 1) == pick_device("auto", "auto") == device_named("auto")
    assert device_named("cpu") == device_named(torch.device("cpu")) == torch.device("cpu")
    assert pick_device("cpu", 1) == pick_device("cpu", [0]) == torch.device("cpu")
    for wrong in ("nonsense", "cuda:x", "tpu", True, 1.5, None, -1):
        with pytest.raises(InputError):
            device_named(wrong)
    for wrong in (2, 0, [0, 1], [], "x", True, None, [-1]):
        with pytest.raises(InputError):
            pick_device("auto", wrong)
    if not torch.cuda.is_available():
        for absent in ("gpu", "cuda", "cuda:0", 0):
            with pytest.raises(InputError, match="sees no GPU"):
                device_named(absent)


# ---------------------------------------------------------------- seeds


@pytest.fixture
def untouched_seeds():
    """As in a process in which nobody has set a seed; what was set is set again afterwards."""
    state, torch.default_generator = torch.get_rng_state(), torch.default_generator
    torch.manual_seed(SEED_OF_TORCH)
    yield
    ldvae.settings.seed = None
    torch.set_rng_state(state)


def test_restarts_without_a_seed_differ_and_say_which_they_drew(untouched_seeds, caplog, tmp_path):
    caplog.set_level(logging.INFO, logger="ldvae")
    fits = []
    for i in range(3):
        fit = make_model(seed=None)
        fit.train(1, **QUIET)
        assert str(fit.seed) in caplog.text
        fit.save(tmp_path / str(i))
        assert LinearSCVI.load(tmp_path / str(i)).seed == fit.seed
        fits.append(fit)
    assert not fits[0].get_loadings().equals(fits[1].get_loadings())
    assert not fits[1].get_loadings().equals(fits[2].get_loadings())
    again = make_model(seed=fits[0].seed)
    again.train(1, **QUIET)
    assert again.get_loadings().equals(fits[0].get_loadings())


def test_settings_and_torch_decide_the_seed_of_models_that_are_given_none(untouched_seeds):
    ldvae.settings.seed = np.int64(5)
    assert make_model(seed=None).seed == 5
    assert make_model(seed=6).seed == 6
    ldvae.settings.seed = None
    torch.manual_seed(7)
    assert make_model(seed=None).seed == 7
    for wrong in (-1, 0.5, "1", True):
        with pytest.raises(InputError, match=r"settings\.seed is"):
            ldvae.settings.seed = wrong


# ---------------------------------------------------------------- the older API


def test_the_eighth_argument_of_old_is_the_latent_distribution():
    with pytest.warns(DeprecationWarning, match="latent_distribution='ln'"):
        model = LinearSCVI(make_adata(), 8, 3, 1, 0.1, "gene", "nb", "ln")
    assert model.config.latent_distribution == "ln"
    assert not model.config.use_observed_lib_size
    assert LinearSCVI(make_adata(), 8, 3, 1, 0.1, "gene", "nb", True, "ln").config.use_observed_lib_size


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((2, False), {}),
        ((2, None), {}),
        ((2, None, 0.8, None, 32, False, {"lr": 1e-2}), {}),
        ((2, False, "cpu", 1, 0.8), {}),
        ((2,), {"use_gpu": False}),
        ((), {"max_epochs": 2, "use_gpu": np.False_, "train_size": 0.8}),
        ((2,), {"use_gpu": "cpu"}),
    ],
)
def test_training_takes_use_gpu(args, kwargs):
    model = make_model()
    with pytest.warns(DeprecationWarning, match=r"use_gpu=.* is of scvi-tools' older API; write accelerator="):
        model.train(*args, **kwargs, **QUIET)
    assert len(model.history["elbo_train"]) == 2
    assert len(model.train_indices) == (72 if 0.8 in (*args, *kwargs.values()) else 81)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("use_gpu", [True, 0, "cuda:0", np.int64(0), "cuda"])
def test_a_gpu_that_is_not_there_is_an_error_in_every_form(model, use_gpu, tmp_path):
    with pytest.raises(InputError, match="sees no GPU"):
        model.train(1, use_gpu=use_gpu)
    with pytest.raises(InputError, match="sees no GPU"):
        LinearSCVI.load(tmp_path, False, use_gpu=use_gpu)
    if use_gpu != "cuda":  # as a positional argument, accelerator="cuda" of today
        with pytest.raises(InputError, match="sees no GPU"):
            model.train(1, use_gpu)
        with pytest.raises(InputError, match="sees no GPU"):
            LinearSCVI.load(tmp_path, False, use_gpu)


def test_use_gpu_is_refused_where_it_means_nothing_or_contradicts(model):
    for wrong in (-1, 1.5, "gpu 0", [0]):
        with pytest.raises(InputError, match="use_gpu is"):
            model.train(1, use_gpu=wrong)
    with pytest.raises(InputError, match="give accelerator alone"):
        model.train(1, accelerator="cpu", use_gpu=True)
    with pytest.raises(TypeError, match="multiple values for argument 'train_size'"):
        model.train(1, False, 0.8, train_size=0.5)


def test_save_tells_overwrite_from_prefix_and_load_takes_use_gpu(model, tmp_path):
    model.save(tmp_path / "model", "a_")
    with pytest.warns(DeprecationWarning, match="overwrite=True"):
        model.save(str(tmp_path / "model"), True, True)
    assert {"a_model.json", "model.json", "adata.h5ad"} <= {path.name for path in (tmp_path / "model").iterdir()}
    with (
        pytest.raises(InputError, match="already exists"),
        pytest.warns(DeprecationWarning, match="overwrite=False"),
    ):
        model.save(tmp_path / "model", False)
    for args, kwargs in (
        ((model.adata, False), {}),
        ((None, None), {}),
        ((None, False, "a_"), {}),
        ((None, False, "cpu", "auto", "a_"), {}),
        ((), {"use_gpu": False}),
    ):
        with pytest.warns(DeprecationWarning, match="accelerator="):
            loaded = LinearSCVI.load(tmp_path / "model", *args, **kwargs)
        assert loaded.get_loadings().equals(model.get_loadings())
    LinearSCVI.load(tmp_path / "model", None, "cpu", "cpu", "a_")
    model.save(tmp_path / "other", save_kwargs={"_use_new_zipfile_serialization": True})


def test_silence_loaders_and_configs_of_the_reference_are_accepted(model, caplog):
    model.posterior_predictive_sample(indices=[0], silent=True)
    model.get_elbo(indices=[0], data_loader_kwargs={"num_workers": 2})
    model.get_latent_representation(indices=[0], num_workers=2)
    assert "num_workers: accepted as in scvi-tools" in caplog.text
    with pytest.raises(TypeError, match="bogus"):
        model.get_latent_representation(bogus=1)
    fit = make_model()
    fit.train(
        3,
        batch_size=None,
        plan_config={"lr": 1e-9, "weight_decay": 0.0},
        plan_kwargs={"lr": 1e-2},
        trainer_config={"early_stopping_patience": 2, "enable_progress_bar": False},
        **QUIET,
    )
    same = make_model()
    same.train(3, plan_kwargs={"lr": 1e-2, "weight_decay": 0.0}, **QUIET)
    assert fit.get_loadings().equals(same.get_loadings())
    np.testing.assert_array_equal(fit.module.get_loadings(), fit.get_loadings())


def test_callbacks_are_honoured_or_refused_by_name():
    class EarlyStopping(SimpleNamespace):
        """Stands for Lightning's."""

    class SaveCheckpoint(SimpleNamespace):
        """Stands for scvi-tools'."""

    seen = []
    model = make_model()
    stopping = EarlyStopping(monitor="elbo_validation", patience=1, min_delta=-1e9, mode="min")
    model.train(5, callbacks=[stopping, lambda report: seen.append(report.epoch)], **QUIET)
    assert seen == [1, 2]  # nothing improves by that much
    with pytest.raises(InputError, match="callbacks holds SaveCheckpoint"):
        model.train(1, callbacks=[SaveCheckpoint()])
    with pytest.raises(InputError, match="mode 'max'"):
        model.train(1, callbacks=EarlyStopping(mode="max"))


def test_settings_are_honoured_or_refused_by_name(caplog):
    threads, level = torch.get_num_threads(), logging.getLogger("ldvae").level
    try:
        ldvae.settings.num_threads = 1
        ldvae.settings.verbosity = logging.ERROR
        assert (torch.get_num_threads(), ldvae.settings.num_threads) == (1, 1)
        assert logging.getLogger("ldvae").level == ldvae.settings.verbosity == logging.ERROR
        ldvae.settings.verbosity = "WARNING"
        ldvae.settings.dl_num_workers = 4
        assert "settings.dl_num_workers: accepted as in scvi-tools, without effect" in caplog.text
        for name, value in (("num_threads", 0), ("num_threads", True), ("verbosity", "loud")):
            with pytest.raises(InputError, match=rf"settings\.{name} is "):
                setattr(ldvae.settings, name, value)
        with pytest.raises(InputError, match=r"no settings\.batch_size; give batch_size to `train`"):
            ldvae.settings.batch_size = 64
        with pytest.raises(InputError, match=r"no settings\.sead; there are seed, num_threads and verbosity"):
            ldvae.settings.sead = 1
    finally:
        torch.set_num_threads(threads)
        logging.getLogger("ldvae").setLevel(level)
