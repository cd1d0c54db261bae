"""The GPU path: on a CPU under Triton's interpreter, where there is a device on that, captured as a CUDA graph."""

import os

import numpy as np
import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

from test_backends_cpu import KL_WEIGHT, MODELS, make_counts, make_module  # noqa: E402

from ldvae.backends import PlainBackend  # noqa: E402
from ldvae.likelihoods import nb_log_prob, poisson_log_prob, zinb_log_prob  # noqa: E402

cuda = pytest.importorskip("ldvae.backends.cuda")


@pytest.mark.parametrize(("kind", "n_thetas"), [("nb", 1), ("nb", 4), ("zinb", 4), ("poisson", 1)])
@pytest.mark.parametrize(("log_mean", "log_theta", "most"), [(0, 0, 5), (-16, -10, 3), (5, 8, 60), (9, -3, 1_000_000)])
def test_likelihood_and_its_gradients_match_the_plain_formula_in_double_precision(
    kind, n_thetas, log_mean, log_theta, most
):
    rng = np.random.default_rng(0)
    n_obs, n_vars = 4, 1030  # more than one block
    x = rng.integers(0, most + 1, (n_obs, n_vars)) * (rng.random((n_obs, n_vars)) < 0.3)
    x[0], x[:, 7] = 0, 0
    values = [
        rng.normal(0, 2, (n_obs, n_vars)),
        np.full((n_obs, 1), log_mean + np.log(n_vars)),
        rng.normal(log_theta, 1, (n_thetas, n_vars)),
        rng.normal(0, 3, (n_obs, n_vars)),
    ]
    found_in = [torch.tensor(v, dtype=torch.float32, device=DEVICE, requires_grad=True) for v in values]
    truth_in = [v.detach().cpu().double().requires_grad_() for v in found_in]
    weights = torch.linspace(0.5, 2, n_obs)
    found = cuda.log_prob(kind, torch.tensor(x, dtype=torch.float32, device=DEVICE), *found_in).cpu()
    (found * weights).sum().backward()

    score, library, theta, zi = truth_in
    mu = library.exp() * score.softmax(dim=-1)
    counts = torch.tensor(x, dtype=torch.float64)
    truth = {
        "poisson": lambda: poisson_log_prob(counts, mu),
        "nb": lambda: nb_log_prob(counts, mu, theta.exp()),
        "zinb": lambda: zinb_log_prob(counts, mu, theta.exp(), zi),
    }[kind]()
    (truth.sum(dim=1) * weights).sum().backward()
    size = truth.detach().abs().sum(dim=1) + (counts * (1 + counts.log1p())).sum(dim=1)
    assert ((found - truth.sum(dim=1)).abs() <= 1e-5 * (10 + size)).all()
    slope_size = float((counts + mu.detach()).max())
    used = {"poisson": 2, "nb": 3, "zinb": 4}[kind]
    for a, b in zip(found_in[:used], truth_in, strict=False):
        size = slope_size * (n_vars if a.shape[1] == 1 else 1)
        torch.testing.assert_close(a.grad.cpu().double(), b.grad, rtol=1e-3, atol=2e-5 * (1 + size))


def test_gathered_minibatches_are_the_rows_asked_for():
    counts, _ = make_counts()
    rows = np.random.default_rng(0).permutation(len(counts))[:9]
    on_device = cuda.DeviceCounts.of(counts.x, DEVICE)
    found = on_device.minibatch(torch.from_numpy(rows).to(DEVICE)).cpu()
    np.testing.assert_array_equal(found, counts.x[rows].toarray())


@pytest.mark.thorough
@pytest.mark.parametrize(("config", "data"), MODELS)
def test_a_step_matches_the_plain_step(config, data):
    counts, shape = make_counts(**data, largest=60)
    modules = [make_module(config, shape).to(DEVICE) for _ in range(2)]
    plain, other = (PlainBackend(m, torch.optim.Adam(m.parameters(), lr=0.01, eps=0.01)) for m in modules)
    device = cuda.CudaBackend(modules[1], other.optimizer)
    generator = torch.Generator().manual_seed(0)
    # Captured at the fourth; of the interpreter, fewer cells take less time.
    for n_obs in [20, 7, 20, 20, 20, 7, 20] if DEVICE.type == "cuda" else [12, 7, 12]:
        rows = np.random.default_rng(n_obs).permutation(len(counts))[:n_obs]
        noise = modules[0].draw_noise(n_obs, generator)
        sums = [step.train(counts, rows, noise, KL_WEIGHT) for step in (plain, device)]
        torch.testing.assert_close(sums[1], sums[0], rtol=1e-4, atol=1e-3)
    for (name, expected), value in zip(modules[0].state_dict().items(), modules[1].state_dict().values(), strict=True):
        size = max(float(expected.abs().max()), 0.1)
        torch.testing.assert_close(value, expected, rtol=0, atol=2e-3 * size, msg=name)
