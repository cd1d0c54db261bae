"""Freeze what scvi-tools 1.4.2 computes, so that the tests compare with it without installing it.

Run once, in an environment of its own, from the root of the repository::

    pip install "scvi-tools==1.4.2" "torch==2.13.0"
    python tests/reference/make_reference.py

It writes beside itself ``counts.npz`` (the data), for every case of `CASES` a directory with ``model.pt`` (the
checkpoint as scvi-tools saves it) and ``tensors.npz`` (below), ``batches/`` (checkpoints whose batches are dates,
intervals and the like), and ``differential/`` (posterior samples, and the
tables that the reference makes of them).

Keys of ``tensors.npz``; all cells in the order of ``counts.npz``, in evaluation mode unless it says otherwise:

- ``qz_mean``, ``qz_var``, ``ql_mean``, ``ql_var``, ``latent_library``, ``loadings``
- ``decode/{z, library, rows, px_scale, px_rate, theta[, zi_logits]}``: the decoder at given z and library
- ``eval/{z_noise, l_noise, elbo, reconstruction}``: per cell with the given standard normal noise
- ``marginal/{z_noise, l_noise, marginal_ll}``: the importance-sampled marginal likelihood of each cell, one draw a pass
- ``step/{rows, z_noise, l_noise, kl_weight, loss, reconstruction, kl_local}`` and ``grad/{parameter}``: one training
  step from the checkpoint's weights, dropout 0, moving batch statistics
- ``adam/{rows, z_noise, l_noise}`` and ``adam/weights/{name}``: parameters and running statistics after 20 steps of the
  reference's optimiser from the same weights
"""

from __future__ import annotations

import datetime
import decimal
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scvi
import torch
from scipy import sparse
from torch.distributions import normal

HERE = Path(__file__).parent
N_OBS, N_VARS, N_LATENT, N_HIDDEN = 200, 60, 4, 16
N_STEPS, N_ROWS, N_DRAWS = 20, 32, 8
ADAM = {"lr": 1e-3, "eps": 0.01, "weight_decay": 1e-6}

CASES: dict[str, dict[str, Any]] = {
    "nb": {"batch_key": "batch", "labels_key": "label"},
    "zinb": {"gene_likelihood": "zinb", "use_observed_lib_size": True, "n_layers": 2, "dropout_rate": 0.0},
    "poisson": {"gene_likelihood": "poisson", "use_batch_norm": False, "bias": True},
    "gene_batch": {"gene_likelihood": "zinb", "dispersion": "gene-batch", "batch_key": "batch"},
    # The reference forgets to tell its module the number of labels; without n_labels its forward pass fails.
    "gene_label": {"dispersion": "gene-label", "labels_key": "label", "n_labels": 2, "use_observed_lib_size": True},
    "ln": {"latent_distribution": "ln", "bias": True, "batch_key": "batch"},
}


def simulate() -> anndata.AnnData:
    """Counts of two labels in three batches: twenty genes differ by label, six are silent in one of them."""
    rng = np.random.default_rng(0)
    label = rng.choice(["B cell", "T cell"], size=N_OBS, p=[0.4, 0.6])
    batch = rng.choice(["d1", "d2", "d3"], size=N_OBS, p=[0.5, 0.3, 0.2])
    rate = rng.gamma(0.6, 1.0, size=N_VARS) + 0.02
    change = np.zeros(N_VARS)
    change[:20] = rng.normal(0, 1.5, 20)
    change[20:26] = -12
    log_rate = np.log(rate) + np.outer(label == "B cell", change)
    log_rate += np.outer(batch == "d2", rng.normal(0, 0.4, N_VARS))
    mu = np.exp(log_rate) * rng.lognormal(0.3, 0.4, size=(N_OBS, 1))
    counts = rng.poisson(rng.gamma(2.0, mu / 2.0)).astype(np.float32)
    obs = pd.DataFrame({"batch": batch, "label": label}, index=[f"cell{i:03d}" for i in range(N_OBS)])
    var = pd.DataFrame(index=[f"gene{i:02d}" for i in range(N_VARS)])
    return anndata.AnnData(sparse.csr_matrix(counts), obs=obs, var=var)


@contextmanager
def given_noise(draws: list[torch.Tensor]) -> Iterator[None]:
    """Every reparameterised draw inside the block takes the next tensor of `draws` as its standard normal noise."""
    original, queue = normal._standard_normal, list(draws)

    def next_draw(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        draw = queue.pop(0)
        assert draw.shape == torch.Size(shape)
        return draw.to(dtype=dtype, device=device)

    normal._standard_normal = next_draw
    try:
        yield
    finally:
        normal._standard_normal = original
    assert not queue, "the reference drew less often than it was given noise for"


def tensors_of(model: scvi.model.LinearSCVI, rows: np.ndarray) -> dict[str, torch.Tensor]:
    """The minibatch of `rows`, as the reference's loader makes it."""
    (tensors,) = model._make_data_loader(model.adata, indices=rows, batch_size=len(rows))
    return tensors


def interleave(z: np.ndarray, library: np.ndarray | None) -> list[torch.Tensor]:
    """Noise in the order in which the reference draws it: z, then the library size where it is latent."""
    z_draws = [torch.from_numpy(draw) for draw in z]
    if library is None:
        return z_draws
    return [draw for pair in zip(z_draws, map(torch.from_numpy, library), strict=True) for draw in pair]


def freeze_case(adata: anndata.AnnData, case: str, settings: dict[str, Any]) -> None:
    keys = {key: settings[key] for key in ("batch_key", "labels_key") if key in settings}
    options = {key: value for key, value in settings.items() if key not in keys}
    scvi.settings.seed = 0
    scvi.model.LinearSCVI.setup_anndata(adata, **keys)
    model = scvi.model.LinearSCVI(adata, n_hidden=N_HIDDEN, n_latent=N_LATENT, **options)
    model.train(
        max_epochs=25,
        accelerator="cpu",
        batch_size=64,
        check_val_every_n_epoch=1,
        plan_kwargs={"lr": 0.01, "n_epochs_kl_warmup": 10},
        enable_progress_bar=False,
    )
    model.save(HERE / case, overwrite=True)

    module, rng = model.module, np.random.default_rng(1)
    latent_library = not module.use_observed_lib_size
    out: dict[str, Any] = {"loadings": model.get_loadings().to_numpy().copy()}

    def noise(n_draws: int, n_rows: int) -> tuple[np.ndarray, np.ndarray | None]:
        z = rng.standard_normal((n_draws, n_rows, N_LATENT), dtype=np.float32)
        return z, rng.standard_normal((n_draws, n_rows, 1), dtype=np.float32) if latent_library else None

    everyone = tensors_of(model, np.arange(N_OBS))
    with torch.inference_mode():
        inference = module.inference(**module._get_inference_input(everyone))
        out |= {"qz_mean": inference["qz"].loc.numpy(), "qz_var": inference["qz"].variance.numpy()}
        if latent_library:
            out |= {"ql_mean": inference["ql"].loc.numpy(), "ql_var": inference["ql"].variance.numpy()}
            out["latent_library"] = model.get_latent_library_size()

        rows = rng.choice(N_OBS, N_ROWS, replace=False)
        tensors = tensors_of(model, rows)
        z = rng.standard_normal((N_ROWS, N_LATENT), dtype=np.float32)
        if module.latent_distribution == "ln":
            z = torch.from_numpy(z).softmax(-1).numpy()
        library = rng.normal(4, 0.5, size=(N_ROWS, 1)).astype(np.float32)
        px = module.generative(
            torch.from_numpy(z),
            torch.from_numpy(library),
            tensors["batch"],
            y=tensors["labels"],
        )["px"]
        mean = px.rate if module.gene_likelihood == "poisson" else px.mu
        out |= {"decode/z": z, "decode/library": library, "decode/rows": rows}
        out |= {"decode/px_scale": px.scale.numpy(), "decode/px_rate": mean.numpy()}
        if module.gene_likelihood != "poisson":
            out["decode/theta"] = px.theta.expand(N_ROWS, N_VARS).numpy()
        if module.gene_likelihood == "zinb":
            out["decode/zi_logits"] = px.zi_logits.numpy()

        z_noise, l_noise = noise(1, N_OBS)
        out["eval/z_noise"] = z_noise[0]
        if l_noise is not None:
            out["eval/l_noise"] = l_noise[0]
        with given_noise(interleave(z_noise, l_noise)):
            out["eval/elbo"] = model.get_elbo(return_mean=False, batch_size=N_OBS).numpy()
        with given_noise(interleave(z_noise, l_noise)):
            error = model.get_reconstruction_error(return_mean=False, batch_size=N_OBS)
            out["eval/reconstruction"] = error["reconstruction_loss"].numpy()

        z_noise, l_noise = noise(N_DRAWS, N_OBS)
        out["marginal/z_noise"] = z_noise
        if l_noise is not None:
            out["marginal/l_noise"] = l_noise
        with given_noise(interleave(z_noise, l_noise)):
            out["marginal/marginal_ll"] = model.get_marginal_ll(
                n_mc_samples=N_DRAWS, return_mean=False, batch_size=N_OBS
            ).numpy()

    freeze_training(model, out, noise, rng)
    np.savez_compressed(HERE / case / "tensors.npz", **out)


def freeze_training(model: scvi.model.LinearSCVI, out: dict[str, Any], noise: Any, rng: np.random.Generator) -> None:
    """The loss and its gradient at the checkpoint, and the weights after `N_STEPS` steps; changes `model`."""
    module = model.module.train()
    for layer in module.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0

    def loss_of(rows: np.ndarray, z: np.ndarray, library: np.ndarray | None, kl_weight: float) -> Any:
        draws = interleave(z[None], None if library is None else library[None])
        with given_noise(draws):
            return module(tensors_of(model, rows), loss_kwargs={"kl_weight": kl_weight})[2]

    rows = np.stack([rng.choice(N_OBS, N_ROWS, replace=False) for _ in range(N_STEPS)])
    z_noise, l_noise = noise(N_STEPS, N_ROWS)
    out |= {"adam/rows": rows, "adam/z_noise": z_noise}
    if l_noise is not None:
        out["adam/l_noise"] = l_noise

    optimizer = torch.optim.Adam((p for p in module.parameters() if p.requires_grad), **ADAM)
    for step in range(N_STEPS):
        kl_weight = 0.3 if step == 0 else 1.0
        losses = loss_of(rows[step], z_noise[step], None if l_noise is None else l_noise[step], kl_weight)
        optimizer.zero_grad(set_to_none=True)
        losses.loss.backward()
        if step == 0:
            out |= {"step/kl_weight": kl_weight, "step/loss": losses.loss.detach().numpy()}
            out["step/reconstruction"] = losses.dict_sum(losses.reconstruction_loss).detach().numpy()
            out["step/kl_local"] = losses.dict_sum(losses.kl_local).detach().numpy()
            for name, parameter in module.named_parameters():
                if parameter.grad is not None:
                    out[f"grad/{name}"] = parameter.grad.numpy().copy()
        optimizer.step()
    for name, tensor in module.state_dict().items():
        if "num_batches_tracked" not in name:
            out[f"adam/weights/{name}"] = tensor.numpy()


def freeze_differential(adata: anndata.AnnData) -> None:
    """Tables that the reference's differential expression makes of given posterior samples."""
    scvi.model.LinearSCVI.setup_anndata(adata, batch_key="batch", labels_key="label")
    model = scvi.model.LinearSCVI.load(HERE / "nb", adata=adata, accelerator="cpu")
    b_cells = np.flatnonzero(adata.obs["label"] == "B cell")
    t_cells = np.flatnonzero(adata.obs["label"] == "T cell")
    batches, n_samples = ["d1", "d2", "d3"], 240

    scvi.settings.seed = 2
    draw = model.get_normalized_expression
    samples = {
        "scale1": draw(indices=b_cells, n_samples_overall=n_samples, return_numpy=True),
        "scale2": draw(indices=t_cells, n_samples_overall=n_samples, return_numpy=True),
    }
    for batch in batches:
        for name, cells in (("scale1", b_cells), ("scale2", t_cells)):
            samples[f"{name}/{batch}"] = draw(
                indices=cells, transform_batch=batch, n_samples_overall=n_samples // 3, return_numpy=True
            )

    def given_samples(adata: anndata.AnnData, indices: np.ndarray, transform_batch: str | None, **_: Any) -> np.ndarray:
        name = "scale1" if np.array_equal(indices, b_cells) else "scale2"
        return samples[name if transform_batch is None else f"{name}/{transform_batch}"]

    model.get_normalized_expression = given_samples
    variants: dict[str, dict[str, Any]] = {
        "vanilla": {"mode": "vanilla"},
        "change": {"mode": "change"},
        "two_sided": {"mode": "change", "test_mode": "two", "delta": 0.5, "fdr_target": 0.2},
        "pseudocounts": {"mode": "change", "pseudocounts": 1e-3, "cred_interval_lvls": [0.5, 0.94]},
        "threshold": {"mode": "change", "threshold_counts": 0.2},
        "batch_correction": {"mode": "change", "batch_correction": True},
    }
    tables = {}
    for name, arguments in variants.items():
        table = model.differential_expression(
            groupby="label", group1="B cell", group2="T cell", silent=True, n_samples_overall=n_samples, **arguments
        ).loc[list(adata.var_names)]
        columns = {column: table[column].tolist() for column in table}
        tables[name] = {"arguments": arguments, "index": list(table.index), "columns": columns}
    (HERE / "differential").mkdir(exist_ok=True)
    np.savez_compressed(HERE / "differential" / "samples.npz", **samples)
    (HERE / "differential" / "tables.json").write_text(json.dumps(tables))


def save_batches() -> None:
    """Checkpoints whose batches are dates, decimals, intervals, periods and timestamps, in ``batches/``."""
    rows = np.arange(90) % 3
    days = pd.to_datetime(["2020-01-01", "2020-02-01", "2021-01-01"])
    kinds = {
        "date": np.array([datetime.date(2020, 1, 1 + row) for row in rows], dtype=object),
        "decimal": np.array([decimal.Decimal(int(row)) / 3 for row in rows], dtype=object),
        "interval": pd.cut(rows * 1.5, 3),
        "period": pd.PeriodIndex(days, freq="M")[rows],
        "timestamp": days[rows],
        "timestamp_tz": days.tz_localize("Europe/Berlin")[rows],
    }
    for kind, batches in kinds.items():
        adata = anndata.AnnData(np.random.default_rng(0).poisson(2.0, (90, 12)).astype(np.float32))
        adata.obs["b"] = batches
        scvi.model.LinearSCVI.setup_anndata(adata, batch_key="b")
        model = scvi.model.LinearSCVI(adata, n_hidden=8, n_latent=2)
        model.train(1)
        model.save(HERE / "batches" / kind, overwrite=True)


def main() -> None:
    save_batches()
    adata = simulate()
    np.savez_compressed(
        HERE / "counts.npz",
        counts=adata.X.toarray().astype(np.uint16),
        batch=adata.obs["batch"].to_numpy(dtype=str),
        label=adata.obs["label"].to_numpy(dtype=str),
        cells=adata.obs_names.to_numpy(dtype=str),
        genes=adata.var_names.to_numpy(dtype=str),
    )
    for case, settings in CASES.items():
        shutil.rmtree(HERE / case, ignore_errors=True)
        freeze_case(adata, case, settings)
    freeze_differential(adata)


if __name__ == "__main__":
    main()
