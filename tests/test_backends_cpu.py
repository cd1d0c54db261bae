import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse, special

from ldvae.backends import PlainBackend, pick_backend, unsupported
from ldvae.config import ModelConfig
from ldvae.data import Counts, Covariates, DataShape
from ldvae.likelihoods import nb_log_prob, poisson_log_prob, zinb_log_prob
from ldvae.module import LDVAE, Noise

pytest.importorskip("numba")
from ldvae.backends.cpu import arrays, likelihood, math
from ldvae.backends.cpu.backend import KINDS

ROOT = Path(__file__).parents[1]
KL_WEIGHT = 0.3
few_examples = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@math.compiled()
def apply(function, x, out):
    for i in range(x.size):
        out[i] = function(x[i])


@pytest.mark.thorough
def test_a_changed_source_of_the_kernels_is_not_answered_from_the_cache(tmp_path):
    """Numba looks at the file of the function that Python calls; here another one of the package changes."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").touch()
    (tmp_path / "kernels" / "step.py").write_text(
        "from pathlib import Path\n"
        "from ldvae.backends.cpu.step import cached, source_digest\n"
        "from kernels.part import part\n"
        "def entry_point(sources):\n"
        "    @cached\n"
        "    def step(x):\n"
        "        _ = sources\n"
        "        return part(x)\n"
        "    return step\n"
        "step = entry_point(source_digest(Path(__file__).parent))\n"
        "print(step(2.0), sum(step.stats.cache_hits.values()))\n"
    )
    # Each factor in a process of its own, forked from one that has loaded what they share.
    code = """
import os, pathlib, sys
import ldvae.backends.cpu.step
for factor in (3, 3, 5):
    part = f"from ldvae.backends.cpu.math import compiled\\n@compiled()\\ndef part(x):\\n    return {factor} * x\\n"
    pathlib.Path(sys.argv[1], "kernels", "part.py").write_text(part)
    if os.fork() == 0:
        import kernels.step
        sys.exit()
    os.wait()
"""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-B", "-c", code, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines() == ["6.0 0", "6.0 1", "10.0 0"], done.stderr


@pytest.mark.parametrize(
    ("function", "truth", "x", "error"),
    [
        (math.exp, np.exp, np.linspace(-86, 87, 100_001), 2e-7),
        (math.log, np.log, np.geomspace(1e-37, 1e37, 100_001), 2e-7),
        (math.log1p, np.log1p, np.r_[0, np.geomspace(1e-30, 1e30, 100_001)], 3e-7),
    ],
)
def test_elementary_functions_are_exact_to_single_precision(function, truth, x, error):
    x = x.astype(np.float32)
    found = np.empty_like(x)
    apply(function, x, found)
    np.testing.assert_allclose(found, truth(x.astype(np.float64)), rtol=error, atol=1e-38)


@pytest.mark.parametrize("z", [16.0, 100.3, 1e8])
@pytest.mark.parametrize("n", [1.0, 1e2, 1e6])
def test_log_gamma_ratio_matches_scipy(z, n):
    value, grad = math.log_gamma_ratio(z, n)
    np.testing.assert_allclose(value, special.gammaln(z + n) - special.gammaln(z), rtol=1e-7)
    np.testing.assert_allclose(grad, special.digamma(z + n) - special.digamma(z), rtol=1e-6)


def to_tiles(x):
    """(n_obs, n_vars) as the kernels hold it: (n_blocks, n_obs, BLOCK)."""
    n_blocks = -(-x.shape[1] // arrays.BLOCK)
    padded = np.zeros((len(x), n_blocks * arrays.BLOCK), np.float32)
    padded[:, : x.shape[1]] = x
    return np.ascontiguousarray(padded.reshape(len(x), n_blocks, arrays.BLOCK).transpose(1, 0, 2))


def from_tiles(tiles, n_vars):
    return tiles.transpose(1, 0, 2).reshape(tiles.shape[1], -1)[:, :n_vars]


@pytest.mark.thorough
@given(
    kind=st.sampled_from(["nb", "zinb", "poisson"]),
    n_obs=st.integers(1, 9),
    n_vars=st.integers(1, 300),
    n_rows=st.integers(1, 3),
    log_mean=st.floats(-18, 10),
    log_theta=st.floats(-12, 16),
    most=st.sampled_from([1, 3, 15, 16, 17, 40, 10**6]),
    empty=st.booleans(),
    seed=st.integers(0, 2**31),
)
@few_examples
def test_likelihood_and_its_gradients_match_the_plain_formula_in_double_precision(
    kind, n_obs, n_vars, n_rows, log_mean, log_theta, most, empty, seed
):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, most + 1, (n_obs, n_vars)) * (rng.random((n_obs, n_vars)) < 0.4)
    if empty:
        x[0] = 0
        x[:, rng.integers(n_vars)] = 0
    csr = sparse.csr_matrix(x.astype(np.float32))
    mu = np.exp(rng.normal(log_mean, 2, (n_obs, n_vars))).astype(np.float32)
    theta = rng.normal(log_theta, 1, (n_vars, n_rows)).astype(np.float32)
    zi = rng.normal(0, 4, (n_obs, n_vars)).astype(np.float32)
    row = rng.integers(0, n_rows, n_obs)

    log_mu, log_theta_t, zi_t = (
        torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (np.log(mu.astype(float)), theta, zi)
    )
    cell_theta = log_theta_t.exp().T[torch.from_numpy(row)]
    truth = {
        "poisson": lambda x, mu: poisson_log_prob(x, mu),
        "nb": lambda x, mu: nb_log_prob(x, mu, cell_theta),
        "zinb": lambda x, mu: zinb_log_prob(x, mu, cell_theta, zi_t),
    }[kind](torch.tensor(x, dtype=torch.float64), log_mu.exp())
    truth.sum().backward()

    batch = arrays.Minibatch(
        csr.indptr[:-1].astype(np.int64), csr.indptr[1:].astype(np.int64), csr.indices, csr.data, csr.data
    )
    tiles, zi_tiles = to_tiles(mu), to_tiles(zi)
    grads, zi_grads, theta_grads = np.empty_like(tiles), np.empty_like(tiles), np.zeros_like(theta)
    log_prob, mean_grad = (np.empty((len(tiles), n_obs), np.float32) for _ in range(2))
    scale = np.ones((len(tiles), n_obs), np.float32)
    room = np.empty(csr.nnz, np.uint8), np.empty(csr.nnz, np.float32)
    blocks = likelihood.ByBlock(np.empty((len(tiles), n_obs + 1), np.int64), *room)
    likelihood.group_by_block(batch, blocks)
    for block in range(len(tiles)):
        likelihood.likelihood(
            block, KINDS[kind], blocks, row, theta, tiles, scale, zi_tiles,
            grads, zi_grads, theta_grads, log_prob, mean_grad,
        )  # fmt: skip

    def close(found, expected, size):
        """Within single precision of terms of the given size."""
        expected = expected.detach().numpy()
        np.testing.assert_array_less(np.abs(found - expected), 2e-6 * (1 + size) + 2e-5 * np.abs(expected))

    term = x * (1 + np.log1p(x)) + np.exp(np.minimum(log_mu.detach().numpy(), 30))
    close(log_prob.sum(0), truth.sum(1), (term + np.abs(truth.detach().numpy())).sum(1))
    close(from_tiles(grads, n_vars), log_mu.grad, x + mu)
    close(mean_grad.sum(0), log_mu.grad.sum(1), (x + mu).sum(1))
    if kind != "poisson":
        thetas = np.exp(theta.astype(float)).T[row]
        size = np.zeros((n_rows, n_vars))
        np.add.at(
            size, row, np.minimum(mu, thetas * np.log1p(mu / thetas)) + np.minimum(x, thetas * np.log1p(x / thetas))
        )
        close(theta_grads, log_theta_t.grad, size.T)
    if kind == "zinb":
        close(from_tiles(zi_grads, n_vars), zi_t.grad, 1)


def make_counts(n_obs=70, n_vars=300, n_batch=1, n_cats=(), n_continuous=0, largest=100_000, seed=0):
    """Random counts with an empty cell, an empty gene and some large values."""
    rng = np.random.default_rng(seed)
    x = rng.negative_binomial(0.3, 0.2, (n_obs, n_vars)).astype(np.float32)
    x[3], x[:, 5] = 0, 0
    x[0, :3] = 17, 40, largest
    covariates = Covariates(
        batch_index=torch.from_numpy(rng.integers(0, n_batch, n_obs)),
        label_index=torch.from_numpy(rng.integers(0, 2, n_obs)),
        categorical=torch.from_numpy(rng.integers(0, 2, (n_obs, len(n_cats)))),
        continuous=torch.from_numpy(rng.normal(size=(n_obs, n_continuous)).astype(np.float32)),
        library=torch.from_numpy(np.log(np.maximum(x.sum(1, keepdims=True), 1))),
    )
    return Counts(sparse.csr_matrix(x), covariates), DataShape(n_vars, n_batch, 2, n_cats, n_continuous)


MODELS = [
    (ModelConfig(), {}),
    (ModelConfig(gene_likelihood="poisson", n_latent=3), {}),
    (ModelConfig(gene_likelihood="poisson", dispersion="gene-batch"), {"n_batch": 3}),
    (ModelConfig(gene_likelihood="zinb", dropout_rate=0.0), {"n_batch": 3}),
    (ModelConfig(dispersion="gene-batch", bias=True), {"n_batch": 3, "n_cats": (2,), "n_continuous": 1}),
    (ModelConfig(dispersion="gene-label", use_observed_lib_size=True, log_variational=False, n_hidden=33), {}),
    (ModelConfig(gene_likelihood="zinb", use_batch_norm=False, n_latent=1, bias=True), {"n_batch": 2}),
]


def make_module(config, shape):
    torch.manual_seed(1)
    means, variances = torch.full((shape.n_batch,), 5.0), torch.full((shape.n_batch,), 0.7)
    return LDVAE(config, shape, means, variances)


def double(noise):
    return Noise(noise.z.double(), noise.library.double(), *(tuple(m.double() for m in masks) for masks in noise[2:]))


@pytest.mark.parametrize(("config", "data"), MODELS)
def test_a_step_matches_autograd_in_double_precision(config, data):
    counts, shape = make_counts(**data)
    module = make_module(config, shape)
    truth = copy.deepcopy(module).double()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01, eps=0.01)
    rows = np.random.default_rng(0).permutation(len(counts))[:50]
    noise = module.draw_noise(len(rows), torch.Generator().manual_seed(0))

    x, covariates = counts.minibatch(rows)
    covariates = covariates._replace(continuous=covariates.continuous.double(), library=covariates.library.double())
    terms = truth.elbo_terms(x.double(), covariates, double(noise))
    terms.loss(KL_WEIGHT).mean().backward()
    found = pick_backend(module, optimizer).train(counts, rows, noise, KL_WEIGHT)

    np.testing.assert_allclose(found, [term.detach().sum() for term in terms], rtol=1e-5, atol=1e-5)
    for part, own in module.named_children():
        expected = dict(truth.get_submodule(part).named_parameters())
        size = max(float(parameter.grad.abs().max()) for parameter in expected.values())
        for name, parameter in own.named_parameters():
            gradient = optimizer.state[parameter]["exp_avg"] / (1 - 0.9)
            np.testing.assert_allclose(
                gradient, expected[name].grad, rtol=1e-3, atol=2e-5 * size, err_msg=f"{part} {name}"
            )
    if module.log_theta is not None:
        gradient = optimizer.state[module.log_theta]["exp_avg"] / (1 - 0.9)
        np.testing.assert_allclose(gradient, truth.log_theta.grad, rtol=1e-3, atol=1e-5)
    for name, value in truth.named_buffers():
        np.testing.assert_allclose(module.get_buffer(name), value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("config", "data"), MODELS)
def test_steps_end_where_plain_steps_end(config, data):
    counts, shape = make_counts(**data, largest=60)  # larger ones make rounding errors grow from step to step
    modules = [make_module(config, shape) for _ in range(2)]
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01, eps=0.01, weight_decay=1e-3) for m in modules]
    plain = PlainBackend(modules[0], optimizers[0])
    steps = [plain, pick_backend(modules[1], optimizers[1])]
    generator = torch.Generator().manual_seed(0)
    order = np.random.default_rng(0)
    for n_obs in (32, 32, 1, 17, 2):  # the last ones as at the end of an epoch
        rows = order.permutation(len(counts))[:n_obs]
        noise = modules[0].draw_noise(n_obs, generator)
        sums = [step.train(counts, rows, noise, KL_WEIGHT) for step in steps]
        np.testing.assert_allclose(sums[1], sums[0], rtol=2e-4)
    for module in modules:
        module.eval()
    noise = modules[0].draw_noise(len(counts), generator)
    sums = [step.evaluate(counts, np.arange(len(counts)), noise) for step in steps]
    np.testing.assert_allclose(sums[1], sums[0], rtol=1e-3)
    for (name, expected), value in zip(modules[0].state_dict().items(), modules[1].state_dict().values(), strict=True):
        size = max(float(expected.abs().max()), 0.1)
        np.testing.assert_allclose(value, expected, atol=2e-3 * size, err_msg=name)
    assert all(optimizers[1].state[p]["step"] == 5 for p in modules[1].parameters())


@pytest.mark.parametrize(("config", "data"), MODELS)
def test_inference_matches_the_module(config, data):
    counts, shape = make_counts(**data, largest=60)
    module = make_module(config, shape).eval()
    rows = np.random.default_rng(0).permutation(len(counts))[:40]
    x, covariates = counts.minibatch(rows)
    noise = module.draw_noise(len(rows), torch.Generator().manual_seed(0))
    compiled_backend = pick_backend(module)
    with torch.no_grad():
        for found, expected in zip(compiled_backend.encode(counts, rows), module.encode(x), strict=True):
            assert (found is None) == (expected is None)
            if found is not None:
                torch.testing.assert_close(found, expected, rtol=2e-4, atol=1e-4)
        for found, expected in zip(
            compiled_backend.elbo_terms(counts, rows, noise), module.elbo_terms(x, covariates, noise), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-3)


def test_many_genes_train_as_in_plain_torch():
    # Their weights do not stay in a cache: the loops then ask for them ahead.
    counts, shape = make_counts(n_obs=40, n_vars=4_500, largest=60)
    modules = [make_module(ModelConfig(), shape) for _ in range(2)]
    optimizers = [torch.optim.Adam(m.parameters(), eps=0.01) for m in modules]
    plain, compiled_backend = PlainBackend(modules[0], optimizers[0]), pick_backend(modules[1], optimizers[1])
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        noise = modules[0].draw_noise(len(counts), generator)
        sums = [step.train(counts, np.arange(len(counts)), noise, KL_WEIGHT) for step in (plain, compiled_backend)]
        np.testing.assert_allclose(sums[1], sums[0], rtol=1e-4)
    for expected, value in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        np.testing.assert_allclose(value.detach(), expected.detach(), atol=2e-4)


def test_64_bit_indices_give_the_same():
    counts, shape = make_counts()
    wide = counts.x.copy()
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    module = make_module(ModelConfig(), shape).eval()
    noise = module.draw_noise(10, torch.Generator().manual_seed(0))
    sums = [pick_backend(module).evaluate(Counts(x, counts.covariates), np.arange(10), noise) for x in (counts.x, wide)]
    assert torch.equal(*sums)


def test_a_stored_zero_is_a_zero():
    counts, shape = make_counts()
    stored = counts.x.copy()
    stored.data[7:9] = 0
    clean = stored.copy()
    clean.eliminate_zeros()
    module = make_module(ModelConfig(gene_likelihood="zinb"), shape).eval()
    noise = module.draw_noise(10, torch.Generator().manual_seed(0))
    sums = [pick_backend(module).evaluate(Counts(x, counts.covariates), np.arange(10), noise) for x in (stored, clean)]
    torch.testing.assert_close(*sums)


def test_results_do_not_depend_on_the_number_of_threads():
    counts, shape = make_counts(n_vars=700)
    states = []
    before = torch.get_num_threads()
    for n_threads in (1, 2):
        module = make_module(ModelConfig(), shape)
        optimizer = torch.optim.Adam(module.parameters())
        step = pick_backend(module, optimizer)
        generator = torch.Generator().manual_seed(0)
        torch.set_num_threads(n_threads)
        try:
            for _ in range(3):
                step.train(counts, np.arange(64), module.draw_noise(64, generator), 1.0)
        finally:
            torch.set_num_threads(before)
        states.append(module.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (ModelConfig(n_layers=2), "one hidden layer"),
        (ModelConfig(latent_distribution="ln"), "latent distribution 'ln'"),
        (ModelConfig(dispersion="gene-cell"), "gene-cell"),
    ],
)
def test_what_the_compiled_step_cannot_do_is_left_to_plain_torch_with_a_reason(config, reason, caplog):
    module = make_module(config, DataShape(10))
    optimizer = torch.optim.Adam(module.parameters())
    with caplog.at_level("INFO"):
        assert isinstance(pick_backend(module, optimizer), PlainBackend)
    assert reason in caplog.text


def test_other_optimizers_and_devices_are_left_to_plain_torch():
    module = make_module(ModelConfig(), DataShape(10))
    assert unsupported(module, None) is None
    assert "AdamW" in unsupported(module, torch.optim.AdamW(module.parameters()))
    assert "amsgrad" not in (unsupported(module, torch.optim.Adam(module.parameters())) or "")
    assert unsupported(module, torch.optim.Adam(module.parameters(), amsgrad=True)) is not None
    assert "meta" in unsupported(module.to("meta"), None)
    assert "float64" in unsupported(make_module(ModelConfig(), DataShape(10)).double(), None)
