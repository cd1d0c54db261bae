"""Model directories: what is saved comes back, a kill leaves a model, a pickle is never executed."""

import io
import json
import os
import pickle
import shutil
import stat
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData, read_h5ad

from ldvae import InputError, LinearSCVI
from ldvae.storage import checkpoint, folder, read_checkpoint, read_model


def make_model(adata: AnnData, **options) -> LinearSCVI:
    keys = {"batch_key": "batch", "labels_key": "label"}
    LinearSCVI.setup_anndata(adata, **keys)
    model = LinearSCVI(adata, n_hidden=8, n_latent=3, seed=0, **options)
    model.train(3, enable_progress_bar=False)
    return model


@pytest.fixture
def model(reference_adata) -> LinearSCVI:
    return make_model(reference_adata)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_same_model(loaded: LinearSCVI, saved: LinearSCVI) -> None:
    assert loaded.config == saved.config
    assert loaded._registry == saved._registry
    for name, tensor in saved.module.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], tensor), name


# ---------------------------------------------------------------- our own format


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gene_likelihood": "zinb", "dispersion": "gene-batch", "use_observed_lib_size": True},
        {"dispersion": "gene-cell", "latent_distribution": "ln", "n_layers": 2},
        {"gene_likelihood": "poisson", "use_batch_norm": False, "bias": True, "dispersion": "gene-label"},
    ],
)
def test_a_saved_model_comes_back_bit_by_bit(reference_adata, tmp_path, options):
    model = make_model(reference_adata, **options)
    model.save(tmp_path / "model")
    loaded = LinearSCVI.load(tmp_path / "model", reference_adata)
    assert_same_model(loaded, model)
    assert loaded.is_trained
    assert list(loaded.history) == list(model.history)
    for name in model.history:
        pd.testing.assert_frame_equal(loaded.history[name], model.history[name])
    for part in ("train_indices", "validation_indices", "test_indices"):
        np.testing.assert_array_equal(getattr(loaded, part), getattr(model, part))
    np.testing.assert_array_equal(loaded.get_latent_representation(), model.get_latent_representation())
    assert loaded.run_name_ == model.run_name_


def test_a_directory_holds_safetensors_json_and_csv_and_no_pickle(model, tmp_path):
    model.save(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "history.csv",
        "model.json",
        "model.safetensors",
    ]
    description = json.loads((tmp_path / "model" / "model.json").read_text())
    assert description["config"]["n_latent"] == 3
    assert description["registry"]["categories"]["batch"] == ["d1", "d2", "d3"]
    history = pd.read_csv(tmp_path / "model" / "history.csv", index_col="epoch")
    assert len(history) == 3
    assert {"train_loss", "elbo_train", "elbo_validation"} <= set(history)


def test_files_can_be_read_by_others_as_the_umask_says(model, tmp_path):
    model.save(tmp_path / "model")
    model.export_scvi_tools(tmp_path / "exported")
    umask = os.umask(0)
    os.umask(umask)
    for path in (tmp_path / "model").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_loaded_model_needs_no_data_for_its_loadings(model, tmp_path):
    model.save(tmp_path / "model")
    loaded = LinearSCVI.load(tmp_path / "model")
    pd.testing.assert_frame_equal(loaded.get_loadings(), model.get_loadings())
    with pytest.raises(InputError, match="has no data"):
        loaded.get_latent_representation()


def test_the_data_can_be_saved_with_the_model(model, tmp_path):
    model.save(tmp_path / "model", save_anndata=True, compression="gzip")
    loaded = LinearSCVI.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.get_latent_representation(), model.get_latent_representation())
    assert LinearSCVI.load(tmp_path / "model", adata=False).adata is None
    with pytest.raises(TypeError, match="compression"):
        model.save(tmp_path / "other", compression="gzip")


def test_models_share_a_directory_by_prefix(model, reference_adata, tmp_path):
    other = make_model(reference_adata, gene_likelihood="poisson")
    model.save(tmp_path / "models", prefix="nb_")
    other.save(tmp_path / "models", prefix="poisson_", overwrite=True)
    assert_same_model(LinearSCVI.load(tmp_path / "models", prefix="nb_"), model)
    assert_same_model(LinearSCVI.load(tmp_path / "models", prefix="poisson_"), other)


def test_without_overwrite_what_is_there_is_not_touched(model, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    for write in (model.save, model.export_scvi_tools):
        with pytest.raises(InputError, match="already exists"):
            write(tmp_path / "model")
    assert contents(tmp_path / "model") == {"notes.txt": b"mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_overwriting_leaves_one_model_and_the_files_of_others(model, reference_adata, tmp_path):
    model.save(tmp_path / "model", save_anndata=True)
    (tmp_path / "model" / "notes.txt").write_text("mine")
    other = make_model(reference_adata, gene_likelihood="poisson")
    for _ in range(2):
        other.save(tmp_path / "model", overwrite=True)
        assert_same_model(LinearSCVI.load(tmp_path / "model"), other)
        files = contents(tmp_path / "model")
        assert files["notes.txt"] == b"mine"
        assert len(files) == 4  # weights, description, history, notes: the data of the first model went with it


def test_a_save_that_fails_at_any_point_leaves_the_old_model_or_the_new(model, reference_adata, tmp_path, monkeypatch):
    other = make_model(reference_adata, gene_likelihood="poisson")

    class Killed(BaseException):
        pass

    n_calls, n_allowed = 0, 0

    def dying(function):
        def call(*args, **kwargs):
            nonlocal n_calls
            n_calls += 1
            if n_calls > n_allowed:
                raise Killed
            return function(*args, **kwargs)

        return call

    outcomes = set()
    for n_allowed in range(12):
        folder = tmp_path / f"run{n_allowed}"
        model.save(folder, overwrite=True)
        n_calls = 0
        with monkeypatch.context() as patch:
            for owner, name in ((Path, "write_bytes"), (Path, "write_text"), (Path, "unlink"), (os, "replace")):
                patch.setattr(owner, name, dying(getattr(owner, name)))
            patch.setattr(pd.DataFrame, "to_csv", dying(pd.DataFrame.to_csv))
            try:
                other.save(folder, overwrite=True)
                completed = True
            except Killed:
                completed = False
        loaded = LinearSCVI.load(folder)
        likelihood = loaded.config.gene_likelihood
        assert_same_model(loaded, other if likelihood == "poisson" else model)
        outcomes.add((completed, likelihood))
    assert outcomes == {(False, "nb"), (False, "poisson"), (True, "poisson")}


def test_a_first_save_that_fails_leaves_nothing(model, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "_write_history", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        model.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_newer_format_is_refused_by_its_version(model, tmp_path):
    model.save(tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    newer = json.loads(path.read_text()) | {"format_version": 99, "ldvae_version": "9.9.9"}
    path.write_text(json.dumps(newer))
    with pytest.raises(InputError, match=r"format version 99, written by ldvae 9\.9\.9.*upgrade ldvae"):
        LinearSCVI.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.json", lambda _: b"{", "not the description of an ldvae model"),
        ("model.json", lambda _: b'{"a": 1}', "not the description of an ldvae model"),
        ("model.safetensors", lambda content: content[:100], "cannot be read"),
    ],
)
def test_a_damaged_model_says_which_file_is_wrong(model, tmp_path, name, damage, message):
    model.save(tmp_path / "model")
    path = tmp_path / "model" / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=message):
        LinearSCVI.load(tmp_path / "model")


def test_weights_that_do_not_fit_the_description_are_refused(model, tmp_path):
    model.save(tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    description = json.loads(path.read_text())
    description["config"]["n_latent"] = 4
    path.write_text(json.dumps(description))
    with pytest.raises(InputError, match="do not fit the model"):
        LinearSCVI.load(tmp_path / "model")


def test_loading_from_nowhere_names_what_was_looked_for(tmp_path):
    with pytest.raises(InputError, match=r"neither model\.json nor model\.pt.*convert_legacy_save"):
        LinearSCVI.load(tmp_path / "missing")


def test_data_that_lack_a_gene_of_the_model_are_refused_on_load(model, reference_adata, tmp_path):
    model.save(tmp_path / "model")
    with pytest.raises(InputError, match="genes are missing"):
        LinearSCVI.load(tmp_path / "model", reference_adata[:, 1:].copy())
    with pytest.raises(InputError, match="not in the model's order"):
        LinearSCVI.load(tmp_path / "model", reference_adata[:, ::-1].copy())


def test_the_registry_of_a_saved_model_reads_as_the_references(model, tmp_path, capsys):
    model.save(tmp_path / "model")
    registry = LinearSCVI.load_registry(tmp_path / "model")
    assert registry["setup_args"] == {"batch_key": "batch", "labels_key": "label", "layer": None}
    mapping = registry["field_registries"]["batch"]["state_registry"]["categorical_mapping"]
    assert list(mapping) == ["d1", "d2", "d3"]
    LinearSCVI.view_setup_args(tmp_path / "model")
    assert "batch_key: 'batch'" in capsys.readouterr().out


# ---------------------------------------------------------------- minified data


@pytest.mark.parametrize("observed", [False, True])
def test_a_minified_model_gives_the_same_after_reloading(reference_adata, tmp_path, observed):
    model = make_model(reference_adata, use_observed_lib_size=observed, gene_likelihood="zinb")
    expected = {
        "latent": model.get_latent_representation(),
        "scaled": model.get_normalized_expression(give_mean=True, library_size="latent"),
        "parameters": model.get_likelihood_parameters()["mean"],
    }
    n_stored = reference_adata.X.nnz
    model.minify_adata()
    assert reference_adata.X.nnz == n_stored  # the caller's data stay as they were
    assert model.adata.X.nnz == 0
    model.save(tmp_path / "model", save_anndata=True)
    loaded = LinearSCVI.load(tmp_path / "model")
    assert loaded.minified_data_type == "latent_posterior_parameters"
    for minified in (model, loaded):
        np.testing.assert_array_equal(minified.get_latent_representation(), expected["latent"])
        scaled = minified.get_normalized_expression(give_mean=True, library_size="latent")
        np.testing.assert_allclose(scaled, expected["scaled"], rtol=1e-5)
        np.testing.assert_allclose(minified.get_likelihood_parameters()["mean"], expected["parameters"], rtol=1e-5)
        for needs_counts in (minified.get_elbo, minified.get_marginal_ll, minified.train):
            with pytest.raises(InputError, match="data are minified"):
                needs_counts()


def test_minified_data_with_counts_still_train(model):
    latent = model.get_latent_representation()
    model.minify_adata("latent_posterior_parameters_with_counts")
    np.testing.assert_array_equal(model.get_latent_representation(), latent)
    assert torch.isfinite(model.get_elbo())
    model.train(1, enable_progress_bar=False)


def test_minification_takes_the_latent_space_that_it_is_told(model):
    mean, variance = model.get_latent_representation(return_dist=True)
    model.adata.obsm["X_mine"], model.adata.obsm["X_mine_var"] = mean + 1, variance
    with pytest.warns(UserWarning, match="are not what this model says of the cells"):
        model.minify_adata(use_latent_qzm_key="X_mine", use_latent_qzv_key="X_mine_var")
    np.testing.assert_array_equal(model.get_latent_representation(), mean + 1)
    with pytest.raises(InputError, match="minified already"):
        model.minify_adata()


def test_the_latent_space_of_another_model_in_obsm_is_not_kept_for_this_ones(model):
    mean, variance = model.get_latent_representation(return_dist=True)
    model.adata.obsm["X_latent_qzm"], model.adata.obsm["X_latent_qzv"] = mean[::-1], variance[::-1]
    with pytest.raises(InputError, match="another model made them"):
        model.minify_adata()
    with pytest.raises(KeyError, match=r"X_mine not found in adata\.obsm"):
        model.minify_adata(use_latent_qzm_key="X_mine")
    model.adata.obsm["X_latent_qzm"], model.adata.obsm["X_latent_qzv"] = mean, variance
    model.minify_adata()
    np.testing.assert_array_equal(model.get_latent_representation(), mean)


def test_an_unknown_kind_of_minification_is_refused(model):
    with pytest.raises(InputError, match="Unknown minified_data_type 'tiny'"):
        model.minify_adata("tiny")


# ---------------------------------------------------------------- checkpoints of scvi-tools


def test_a_checkpoint_brings_its_training(reference, reference_adata):
    model = LinearSCVI.load(reference / "nb", reference_adata)
    assert model.is_trained
    assert list(model.history["elbo_validation"].index) == list(range(25))
    assert model.history["elbo_validation"].index.name == "epoch"
    losses = model.history["train_loss"]["train_loss"]
    assert losses.iloc[0] > losses.iloc[-1] > 0
    assert list(model.history["kl_weight"].index) == [3, 6, 9, 13, 16, 19, 23]
    parts = [model.train_indices, model.validation_indices, model.test_indices]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(200))
    assert model._registry.labels_key == "label"


def test_a_checkpoint_saved_here_needs_no_scvi_tools_any_more(reference, reference_adata, tmp_path):
    model = LinearSCVI.load(reference / "gene_batch", reference_adata)
    model.save(tmp_path / "model")
    assert_same_model(LinearSCVI.load(tmp_path / "model"), model)


class Malicious:
    """Its pickle calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("place", ["model_state_dict", "var_names", "attr_dict"])
def test_a_malicious_pickle_is_refused_and_does_not_run(reference, tmp_path, place):
    shutil.copytree(reference / "nb", tmp_path / "model")
    content = torch.load(reference / "nb" / "model.pt", weights_only=False)
    marker = tmp_path / "was_run"
    harm = Malicious(os.mkdir, str(marker))
    if place == "var_names":
        content[place] = np.array([harm, *content[place][1:]], dtype=object)
    else:
        content[place]["extra"] = harm
    torch.save(content, tmp_path / "model" / "model.pt")
    with pytest.raises(InputError, match=r"refused: its pickle holds posix\.mkdir.*Nothing of it was executed"):
        LinearSCVI.load(tmp_path / "model")
    assert not marker.exists()
    torch.load(tmp_path / "model" / "model.pt", weights_only=False)
    assert marker.exists()  # the pickle is one that does run where pickles are executed


@pytest.mark.parametrize(
    "harm",
    [
        Malicious(eval, "1 + 1"),
        Malicious(getattr, "", "join"),
        Malicious(bytes, 10**9),
        Malicious(torch.load, "model.pt"),
        Malicious(OrderedDict.fromkeys, [1]),
        Malicious(pd.read_pickle, "model.pt"),
    ],
    ids=lambda harm: harm.call[0].__name__,
)
def test_every_callable_but_the_few_that_are_described_is_refused_or_inert(reference, tmp_path, harm):
    content = torch.load(reference / "nb" / "model.pt", weights_only=False)
    content["attr_dict"]["extra"] = harm
    torch.save(content, tmp_path / "model.pt")
    if harm.call[0] is pd.read_pickle:  # of pandas, everything is only written down
        assert read_checkpoint(tmp_path / "model.pt")["attr_dict"]["extra"].args == ("model.pt",)
    else:
        with pytest.raises(InputError, match=r"model\.pt"):
            read_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize("name", [b"ctorch._utils\n_rebuild_tensor_v2\n", b"cnumpy\nndarray\n"])
def test_a_pickle_cannot_change_the_reader(reference, tmp_path, name):
    """The opcode BUILD sets attributes of whatever came before it: here, of what stands for a function or a class."""
    slots = b"N}X\x0c\x00\x00\x00__setstate__Ns\x86b"  # (None, {"__setstate__": None})
    replaced = b"(c_codecs\nencode\n)}Ntb"  # (function, (), {}, None): the state of a partial
    before = dict(vars(checkpoint.Described)), checkpoint._tensor.__dict__.copy()
    for program in (slots, replaced):
        with suppress(TypeError):
            checkpoint.RestrictedUnpickler(io.BytesIO(b"\x80\x02" + name + program + b".")).load()
    assert (dict(vars(checkpoint.Described)), checkpoint._tensor.__dict__) == before
    assert len(read_checkpoint(reference / "nb" / "model.pt")["var_names"]) == 60


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    with pytest.raises(pickle.UnpicklingError, match="larger than its storage"):
        checkpoint._tensor(torch.zeros(4), 0, (10**6, 10**6), (0, 0))
    with pytest.raises(RuntimeError):
        checkpoint._tensor(torch.zeros(4), 3, (2,), (1,))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps({"a": 1})])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(InputError, match="not a zip archive"):
        LinearSCVI.load(tmp_path)


def test_a_checkpoint_of_another_class_is_refused(reference, tmp_path):
    content = torch.load(reference / "nb" / "model.pt", weights_only=False)
    content["attr_dict"]["registry_"]["model_name"] = "SCVI"
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(InputError, match="from a different class: found SCVI, expected LinearSCVI"):
        LinearSCVI.load(tmp_path)


def test_a_checkpoint_with_options_that_do_not_exist_here_names_them(reference, tmp_path):
    content = torch.load(reference / "nb" / "model.pt", weights_only=False)
    content["attr_dict"]["init_params_"]["kwargs"]["model_kwargs"] = {"encode_covariates": True, "batch_embedding": 3}
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(InputError, match="batch_embedding, which ldvae does not have"):
        LinearSCVI.load(tmp_path)


def test_other_checkpoints_of_torch_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "model.pt")
    with pytest.raises(InputError, match="not a checkpoint of scvi-tools' LinearSCVI"):
        LinearSCVI.load(tmp_path)


def test_arrays_of_every_kind_are_read(tmp_path):
    arrays = {
        "text": np.array(["a", "bc"], dtype=object),
        "unicode": np.array(["a", "bc"]),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "flags": np.array([True, False]),
        "scalar": np.float32(1.5),
        "empty": np.zeros(0),
    }
    tensors = {"part": torch.arange(12.0).reshape(3, 4)[1:, ::2], "half": torch.ones(2, dtype=torch.float64)}
    torch.save(arrays | tensors, tmp_path / "file.pt")
    content = read_checkpoint(tmp_path / "file.pt")
    for name, array in arrays.items():
        np.testing.assert_array_equal(content[name], array)
    for name, tensor in tensors.items():
        assert torch.equal(content[name], tensor)


def test_models_that_the_reference_does_not_have_are_not_exported(reference_adata, tmp_path):
    adata = reference_adata
    adata.obs["age"] = np.arange(adata.n_obs) / 100
    LinearSCVI.setup_anndata(adata, continuous_covariate_keys=["age"])
    model = LinearSCVI(adata, n_hidden=8, n_latent=3, dispersion="gene-cell")
    with pytest.raises(InputError, match=r"does not have dispersion 'gene-cell' and continuous covariates"):
        model.export_scvi_tools(tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_a_legacy_model_is_converted(reference, reference_adata, tmp_path):
    content = torch.load(reference / "nb" / "model.pt", weights_only=False)
    legacy = tmp_path / "legacy"
    legacy.mkdir()
    torch.save(content["model_state_dict"], legacy / "model_params.pt")
    np.savetxt(legacy / "var_names.csv", content["var_names"], fmt="%s")
    attributes = content["attr_dict"]
    fields = attributes.pop("registry_")["field_registries"]
    attributes["scvi_setup_dict_"] = {
        "scvi_version": "0.14.6",
        "data_registry": {"X": {"attr_name": "X", "attr_key": None}},
        "summary_stats": {"n_cells": 200, "n_vars": 60, "n_batch": 3, "n_labels": 2},
        "categorical_mappings": {
            f"_scvi_{name}": {
                "original_key": fields[name]["state_registry"]["original_key"],
                "mapping": fields[name]["state_registry"]["categorical_mapping"],
            }
            for name in ("batch", "labels")
        },
    }
    with open(legacy / "attr.pkl", "wb") as file:
        pickle.dump(attributes, file)
    LinearSCVI.convert_legacy_save(legacy, tmp_path / "converted")
    expected = LinearSCVI.load(reference / "nb", reference_adata).get_latent_representation()
    converted = LinearSCVI.load(tmp_path / "converted", reference_adata)
    np.testing.assert_array_equal(converted.get_latent_representation(), expected)
    assert converted._registry.batch_key == "batch"
    (legacy / "attr.pkl").unlink()
    with pytest.raises(InputError, match=r"attr\.pkl not found"):
        LinearSCVI.convert_legacy_save(legacy, tmp_path / "again")


def test_the_saved_data_are_plain_anndata(model, tmp_path):
    model.save(tmp_path / "model", save_anndata=True)
    saved = read_h5ad(tmp_path / "model" / "adata.h5ad")
    assert saved.shape == model.adata.shape
    assert read_model(tmp_path / "model").registry.var_names == tuple(saved.var_names)


# ---------------------------------------------------------------- a failed save leaves nothing behind


@pytest.mark.parametrize("where", ["new", "parents that are not there/new", "old"])
@pytest.mark.parametrize("failing", ["_write_tensors", "_write_history", "write_h5ad"])
def test_a_failed_save_leaves_no_file_and_no_folder(model, tmp_path, monkeypatch, where, failing):
    def fail(*_args, **_kwargs):
        path = _args[-1]
        if isinstance(path, Path):
            path.write_bytes(b"half")
        raise OSError("disk full")

    if where == "old":
        model.save(tmp_path / "old", save_anndata=True)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    folders = {path for path in tmp_path.rglob("*") if path.is_dir()}
    if failing == "write_h5ad":
        monkeypatch.setattr(AnnData, failing, fail)
    else:
        monkeypatch.setattr(folder, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        model.save(tmp_path / where, overwrite=True, save_anndata=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert {path for path in tmp_path.rglob("*") if path.is_dir()} == folders


def test_a_model_is_not_saved_over_a_file(model, tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(InputError, match="is a file; a model is saved to a directory"):
        model.save(tmp_path / "model", overwrite=True)
    assert (tmp_path / "model").read_text() == "mine"


@pytest.mark.parametrize(
    "argument", [{"batch_representation": "one-hot"}, {"use_size_factor_key": False}, {"extra_decoder_kwargs": None}]
)
def test_neutral_arguments_of_a_checkpoint_are_no_obstacle(reference, tmp_path, argument):
    content = torch.load(reference / "nb" / "model.pt", weights_only=False)
    content["attr_dict"]["init_params_"]["kwargs"]["model_kwargs"] |= argument
    torch.save(content, tmp_path / "model.pt")
    assert LinearSCVI.load(tmp_path).is_trained
    ((name, _),) = argument.items()
    content["attr_dict"]["init_params_"]["kwargs"]["model_kwargs"][name] = "other"
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(InputError, match=f"made with {name}"):
        LinearSCVI.load(tmp_path)


@pytest.mark.parametrize("method", ["save", "export_scvi_tools"])
def test_a_folder_that_cannot_be_made_is_named_as_it_was_given(model, tmp_path, method):
    with pytest.raises(InputError, match=r"/aaa+ cannot be made: File name too long\. Give another folder"):
        getattr(model, method)(tmp_path / "new" / ("a" * 300))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("values", [[1j, 2.5 - 1j], [1, 2], [0.5, 2], [True, False], ["a", "b"], [b"a", b"b"]])
def test_a_checkpoint_gives_back_the_arrays_it_holds(tmp_path, values):
    """Batches that are complex numbers stand in checkpoints of scvi-tools as an array, which was refused."""
    torch.save({"categorical_mapping": np.array(values)}, tmp_path / "model.pt")
    found = read_checkpoint(tmp_path / "model.pt")["categorical_mapping"]
    assert found.dtype == np.array(values).dtype
    assert found.tolist() == values
