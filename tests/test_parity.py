"""Equality with scvi-tools 1.4.2, by what it computed once (tests/reference, frozen by make_reference.py)."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from anndata import AnnData

import ldvae
from ldvae import LinearSCVI, posterior
from ldvae._settings import NO_EFFECT
from ldvae.config import FitConfig
from ldvae.data import read_counts
from ldvae.differential import DeOptions, compare, comparisons, differential_expression, expected_fdr
from ldvae.module import LDVAE, Noise
from ldvae.storage import read_checkpoint, read_model, scvi_names
from ldvae.train import make_optimizer

CASES = ("nb", "zinb", "poisson", "gene_batch", "gene_label", "ln")
BATCHES = ("d1", "d2", "d3")


@pytest.fixture(params=CASES)
def case(request, reference: Path, reference_adata: AnnData) -> "Case":
    return Case(reference / request.param, reference_adata)


class Case:
    """A checkpoint of the reference, loaded here, and what the reference computed from it."""

    def __init__(self, folder: Path, adata: AnnData) -> None:
        self.folder = folder
        self.model = LinearSCVI.load(folder, adata)
        self.source = read_counts(adata, read_model(folder).registry)
        self.tensors = dict(np.load(folder / "tensors.npz"))

    def noise(self, part: str, step: int | None = None) -> Noise:
        """Frozen noise; that of the library size is missing where it is observed."""
        z = self.tensors[f"{part}/z_noise"]
        library = self.tensors.get(f"{part}/l_noise", np.zeros((*z.shape[:-1], 1), dtype=np.float32))
        if step is not None:
            z, library = z[step], library[step]
        return Noise(torch.from_numpy(z), torch.from_numpy(library), (), ())

    def without_dropout(self) -> LDVAE:
        """The loaded module in training mode, as the frozen training had it."""
        loaded = self.model.module
        module = LDVAE(loaded.config.model_copy(update={"dropout_rate": 0.0}), loaded.shape)
        module.load_state_dict(loaded.state_dict())
        return module.train()

    def our_name(self, theirs: str) -> str:
        """Name of a parameter here, from its name in the reference."""
        old, new = next(pair for pair in scvi_names(self.model.module.config.n_layers) if theirs.startswith(pair[0]))
        return new + theirs.removeprefix(old)


def assert_close(actual, expected, rtol: float, atol: float = 0.0) -> None:
    """Relative to each entry, and absolute to the scale of the whole: entries near zero carry its rounding."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=max(atol, rtol * np.abs(expected).max()))


def test_a_loaded_checkpoint_encodes_and_decodes_as_the_reference(case):
    model, tensors = case.model, case.tensors
    mean, variance = model.get_latent_representation(return_dist=True)
    assert_close(mean, tensors["qz_mean"], 1e-5)
    assert_close(variance, tensors["qz_var"], 1e-5)
    assert_close(model.get_loadings(), tensors["loadings"], 1e-5)
    if "ql_mean" in tensors:
        cells = posterior.encode(model.module, model.source, np.arange(len(model.source)))
        assert_close(cells.q.l_mean, tensors["ql_mean"], 1e-5)
        assert_close(cells.q.l_var, tensors["ql_var"], 1e-5)
        assert_close(model.get_latent_library_size(), tensors["latent_library"], 1e-5)
    _, covariates = case.source.minibatch(tensors["decode/rows"])
    z, library = (torch.from_numpy(tensors[f"decode/{name}"]) for name in ("z", "library"))
    with torch.inference_mode():
        px = model.module.generative(z, library, covariates)
    assert_close(px.px_scale, tensors["decode/px_scale"], 1e-5)
    assert_close(px.px_rate, tensors["decode/px_rate"], 1e-5)
    if "decode/theta" in tensors:
        assert_close(px.theta.expand_as(px.px_rate), tensors["decode/theta"], 1e-5)
    if "decode/zi_logits" in tensors:
        assert_close(px.zi_logits, tensors["decode/zi_logits"], 1e-5)


def test_elbo_and_reconstruction_of_each_cell_are_the_references(case):
    x, covariates = case.source.minibatch(np.arange(len(case.source)))
    with torch.inference_mode():
        terms = case.model.module.elbo_terms(x, covariates, case.noise("eval"))
    assert_close(-terms.loss(), case.tensors["eval/elbo"], 1e-5)
    assert_close(terms.reconstruction, case.tensors["eval/reconstruction"], 1e-5)


def test_the_marginal_likelihood_of_each_cell_is_the_references(case):
    if case.model.config.latent_distribution == "ln":
        pytest.skip("the reference takes the normal density at the softmax of z; an intentional difference")
    x, covariates = case.source.minibatch(np.arange(len(case.source)))
    noise = case.noise("marginal")
    with torch.inference_mode():
        cells = posterior.Cells(case.model.module.encode(x), covariates)
        log_weights = posterior.log_likelihood(case.model.module, x, cells, noise.z, noise.library)
        log_weights += posterior.log_ratio(case.model.module, cells, noise.z, noise.library)
    marginal_ll = log_weights.logsumexp(dim=0) - np.log(len(log_weights))
    assert_close(marginal_ll, case.tensors["marginal/marginal_ll"], 1e-5)


def test_loss_and_every_gradient_are_the_references(case):
    module, tensors = case.without_dropout(), case.tensors
    x, covariates = case.source.minibatch(tensors["adam/rows"][0])
    terms = module.elbo_terms(x, covariates, case.noise("adam", step=0))
    loss = terms.loss(float(tensors["step/kl_weight"])).mean()
    loss.backward()
    assert_close(loss.detach(), tensors["step/loss"], 1e-5)
    assert_close(terms.reconstruction.detach(), tensors["step/reconstruction"], 1e-5)
    assert_close((terms.kl_z + terms.kl_library).detach(), tensors["step/kl_local"], 1e-5)
    expected = {case.our_name(name.removeprefix("grad/")): name for name in tensors if name.startswith("grad/")}
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert set(gradients) == set(expected)
    # Batch norm takes away any constant per unit: the gradient of a bias before it is zero but for rounding.
    before_norm = {name for name in gradients if ".layers." in name and name.endswith("bias")}
    before_norm |= {"decoder.bias"} if module.config.use_batch_norm else set()
    for name, gradient in gradients.items():
        if name in before_norm:
            assert gradient.abs().max() < 1e-4
        else:
            # The gradient of a mean over cells, in float32: what cancels between them leaves its rounding.
            assert_close(gradient, tensors[expected[name]], 1e-4, atol=1e-6)


def test_loss_and_every_gradient_are_those_of_an_independent_formula(case):
    module = case.without_dropout().double()
    x, covariates = case.source.minibatch(case.tensors["adam/rows"][0])
    x = x.double()
    noise = Noise(*(values.double() for values in case.noise("adam", step=0)[:2]), (), ())
    parameters = dict(module.named_parameters())
    expected = independent_loss(module, parameters, x, covariates, noise, kl_weight=0.3)
    expected_gradients = torch.autograd.grad(expected, list(parameters.values()), allow_unused=True)
    loss = module.elbo_terms(x, covariates._replace(library=x.sum(1, keepdim=True).log()), noise).loss(0.3).mean()
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    assert_close(loss.detach(), expected.detach(), 1e-9)
    for name, gradient, expected_gradient in zip(parameters, gradients, expected_gradients, strict=True):
        error = (gradient - expected_gradient).abs().max()
        assert error <= 1e-9 * max(1.0, float(expected_gradient.abs().max())), name


def independent_loss(module, parameters, x, covariates, noise, kl_weight):
    """The training loss written out from the reference's description, over cells × genes and with no module called."""
    config = module.config

    def norm(values, name):
        if f"{name}.weight" not in parameters:
            return values
        centered = values - values.mean(0)
        scaled = centered / torch.sqrt((centered**2).mean(0) + 1e-3)
        return scaled * parameters[f"{name}.weight"] + parameters[f"{name}.bias"]

    def linear(values, name):
        return values @ parameters[f"{name}.weight"].T + parameters.get(f"{name}.bias", 0.0)

    def encoder(name, n_layers):
        hidden = torch.log(1 + x)
        for i in range(n_layers):
            hidden = norm(linear(hidden, f"{name}.layers.{i}"), f"{name}.norms.{i}").clamp(min=0)
        return linear(hidden, f"{name}.mean"), torch.exp(linear(hidden, f"{name}.log_var")) + 1e-4

    mean, variance = encoder("z_encoder", config.n_layers)
    kl_z = 0.5 * (variance + mean**2 - 1 - torch.log(variance)).sum(1)
    z = mean + torch.sqrt(variance) * noise.z
    if config.latent_distribution == "ln":
        z = torch.exp(z) / torch.exp(z).sum(1, keepdim=True)
    kl_library = torch.zeros_like(kl_z)
    library = torch.log(x.sum(1, keepdim=True))
    if not config.use_observed_lib_size:
        l_mean, l_var = encoder("l_encoder", 1)
        p_mean, p_var = (
            getattr(module, f"library_log_{name}")[covariates.batch_index][:, None] for name in ("means", "vars")
        )
        kl_library = (0.5 * (torch.log(p_var) - torch.log(l_var) + (l_var + (l_mean - p_mean) ** 2) / p_var - 1)).sum(1)
        library = l_mean + torch.sqrt(l_var) * noise.library
    u = z
    if module.shape.n_batch > 1:
        u = torch.cat([z, torch.eye(module.shape.n_batch, dtype=z.dtype)[covariates.batch_index]], dim=1)
    scores = norm(linear(u, "decoder"), "decoder.norm")
    mu = torch.exp(library) * torch.exp(scores) / torch.exp(scores).sum(1, keepdim=True)
    if config.gene_likelihood == "poisson":
        log_prob = x * torch.log(mu) - mu - torch.lgamma(x + 1)
    else:
        log_theta = parameters["log_theta"]
        if log_theta.ndim == 2:
            index = covariates.batch_index if config.dispersion == "gene-batch" else covariates.label_index
            log_theta = log_theta.T[index]
        theta = torch.exp(log_theta).expand_as(mu)
        a = theta * (torch.log(theta + 1e-8) - torch.log(theta + mu + 1e-8))
        rest = x * (torch.log(mu + 1e-8) - torch.log(theta + mu + 1e-8))
        rest = rest + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
        log_prob = a + rest
        if config.gene_likelihood == "zinb":
            pi = norm(linear(u, "zi_decoder"), "zi_decoder.norm")
            at_zero = F.softplus(a - pi) - F.softplus(-pi)
            log_prob = torch.where(x == 0, at_zero, -F.softplus(-pi) - pi + a + rest)
    return (-log_prob.sum(1) + kl_weight * kl_z + kl_library).mean()


def test_twenty_steps_of_adam_end_at_the_references_weights(case):
    module, tensors = case.without_dropout(), case.tensors
    optimizer = make_optimizer(module, FitConfig())
    for step, rows in enumerate(tensors["adam/rows"]):
        x, covariates = case.source.minibatch(rows)
        kl_weight = float(tensors["step/kl_weight"]) if step == 0 else 1.0
        optimizer.zero_grad(set_to_none=True)
        module.elbo_terms(x, covariates, case.noise("adam", step)).loss(kl_weight).mean().backward()
        optimizer.step()
    ended = module.state_dict()
    compared = 0
    for name, expected in tensors.items():
        if not name.startswith("adam/weights/"):
            continue
        ours = case.our_name(name.removeprefix("adam/weights/"))
        if ours in ended:
            np.testing.assert_allclose(ended[ours].reshape(expected.shape), expected, rtol=0, atol=1e-5, err_msg=ours)
            compared += 1
    assert compared == sum("num_batches_tracked" not in name for name in ended)


def test_an_exported_model_is_the_checkpoint_that_it_was_loaded_from(case, tmp_path):
    case.model.export_scvi_tools(tmp_path / "exported")
    ours, theirs = (read_checkpoint(folder / "model.pt") for folder in (tmp_path / "exported", case.folder))
    assert list(ours["var_names"]) == list(theirs["var_names"])
    assert set(ours["attr_dict"]) == set(theirs["attr_dict"])
    for key in ("init_params_", "is_trained_", "run_name_", "run_id_", "get_normalized_function_name_"):
        assert ours["attr_dict"][key] == theirs["attr_dict"][key]
    for key in ("train_indices_", "validation_indices_", "test_indices_"):
        np.testing.assert_array_equal(ours["attr_dict"][key], theirs["attr_dict"][key])
    assert_same_registry(ours["attr_dict"]["registry_"], theirs["attr_dict"]["registry_"])
    ours, theirs = ours["model_state_dict"], theirs["model_state_dict"]
    assert set(ours) == set(theirs)
    used = {case.our_name(name) for name in theirs if name != "pyro_param_store"} & set(case.model.module.state_dict())
    for name, expected in theirs.items():
        if name == "pyro_param_store":
            assert ours[name] == expected
            continue
        assert (ours[name].shape, ours[name].dtype) == (expected.shape, expected.dtype), name
        if case.our_name(name) in used:
            assert torch.equal(ours[name], expected), name


def assert_same_registry(ours, theirs) -> None:
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs)
        for key in theirs:
            assert_same_registry(ours[key], theirs[key])
    else:
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def samples(reference: Path) -> dict[str, np.ndarray]:
    return dict(np.load(reference / "differential" / "samples.npz"))


@pytest.fixture(scope="module")
def tables(reference: Path) -> dict:
    return json.loads((reference / "differential" / "tables.json").read_text())


VARIANTS = ("vanilla", "change", "two_sided", "pseudocounts", "threshold", "batch_correction")


@pytest.mark.parametrize("variant", VARIANTS)
def test_differential_expression_of_given_samples_is_the_references(
    variant, samples, tables, reference_adata, monkeypatch, reference
):
    table = tables[variant]
    options = DeOptions(n_samples_overall=240, **table["arguments"])
    model = LinearSCVI.load(reference / "nb", reference_adata)
    monkeypatch.setattr("ldvae.differential.decode", given_samples(samples, options.batch_correction))
    cells = posterior.encode(model.module, model.source, np.arange(len(model.source)))
    chosen = comparisons(reference_adata.obs, "label", "B cell", "T cell")
    genes = reference_adata.var_names
    source = read_counts(reference_adata, model._registry)
    generator = torch.Generator().manual_seed(0)
    result = differential_expression(model.module, cells, source, chosen, genes, BATCHES, options, generator)

    assert list(result.columns) == list(table["columns"])
    key = "bayes_factor" if options.mode == "vanilla" else "proba_de"
    assert result[key].is_monotonic_decreasing
    result = result.loc[table["index"]]
    for name, expected in table["columns"].items():
        if name in ("comparison", "group1", "group2"):
            assert list(result[name]) == expected
        elif name.startswith(("proba", "is_de", "delta")):
            np.testing.assert_array_equal(result[name], expected, err_msg=name)
        elif name.startswith("bayes"):  # logarithms, whose last bits depend on numpy
            np.testing.assert_allclose(result[name], expected, rtol=1e-12, atol=1e-12, err_msg=name)
        else:
            # The reference computes in single precision here and there.
            np.testing.assert_allclose(result[name], expected, rtol=2e-6, atol=2e-6, err_msg=name)


def given_samples(samples: dict[str, np.ndarray], by_batch: bool) -> Callable[..., np.ndarray]:
    """In place of decoding: the frozen samples, in the order in which groups and batches are asked for."""
    groups = ("scale1", "scale2")
    parts = [f"{group}/{batch}" for group in groups for batch in BATCHES] if by_batch else list(groups)
    queue = [np.ascontiguousarray(samples[name].T) for name in parts]
    return lambda *_, **__: queue.pop(0)


def test_flagged_genes_are_those_whose_expected_false_discoveries_stay_below_the_target(samples):
    columns = compare(samples["scale1"].T, samples["scale2"].T, DeOptions(mode="change", pseudocounts=1e-4))
    proba = np.sort(columns["proba_de"])[::-1]
    rate = expected_fdr(proba)
    expected = [(1 - proba[: i + 1]).mean() for i in range(len(proba))]
    np.testing.assert_allclose(rate, expected)


def test_every_public_name_of_scvi_tools_is_there_or_told(reference, reference_adata):
    """What dir() shows of a trained LinearSCVI of scvi-tools, of its data manager, its module and the settings."""
    names = json.loads((reference / "public_names.json").read_text())
    model = LinearSCVI.load(reference / "nb", reference_adata)
    ours = {"model": model, "adata_manager": model.adata_manager, "module": model.module, "settings": ldvae.settings}
    absent = {label: {name for name in names[label] if not hasattr(of, name)} for label, of in ours.items()}
    assert "train" not in absent["model"]
    for name in absent["model"]:
        with pytest.raises(AttributeError, match=rf"^LinearSCVI\.{name} of scvi-tools is not in ldvae: "):
            getattr(model, name)
    page = (Path(__file__).parents[1] / "docs" / "differences.md").read_text(encoding="utf-8")
    section = page.split("## Names that do not exist")[1].split("\n## ")[0]
    tables = section.split("| of ")[1:]
    for label, table in zip(("model", "adata_manager", "module"), tables, strict=True):
        rows = [row.split(" | ")[0] for row in table.splitlines() if row.startswith("| `")]
        assert set(re.findall(r"`(\w+)`", "".join(rows))) == absent[label]
    of_settings = absent["settings"] - set(NO_EFFECT)
    assert all(f"`{name}`" in section or f"`settings.{name}`" in section for name in of_settings)
