"""Train one model on the registered counts, evaluate it, and write what later steps need of it."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from ldvae import posterior
from ldvae import results as layout
from ldvae.config import TRAINING_VERSION, ComputeConfig, ModelConfig, Run, TrainConfig
from ldvae.data import Registry, Split, gene_totals, make_registry
from ldvae.devices import pick_device
from ldvae.distributed import join, local_world_size
from ldvae.errors import InputError
from ldvae.io import atomic, read_h5ad, write_json, write_table
from ldvae.likelihoods import LIKELIHOODS, Moments
from ldvae.methods import Sentence
from ldvae.model import LinearSCVI
from ldvae.module import LDVAE
from ldvae.names import find_own
from ldvae.progress import progress_bar
from ldvae.provenance import versions
from ldvae.train import Checkpoint, Fit, Interrupted

logger = logging.getLogger(__name__)

IN_MEMORY = 800_000_000  # bytes of the file of the counts, which take half as much again in memory
COLLAPSED_KL = 0.01  # nats per cell; a factor with less KL has collapsed
FIT_CELLS = 5000  # maximum number of held-out cells in the posterior predictive check
LIKELIHOOD_CELLS = 1000  # maximum number of test cells for the marginal likelihood, the same for all runs …
LIKELIHOOD_SAMPLES = 100  # … and importance samples for each
EVALUATION_SEED = 0  # the same noise for all runs, so that only the fits differ


def train(
    *,
    results: Path,
    run: str | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    checkpoint_minutes: float = ComputeConfig().checkpoint_minutes,
    keep_checkpoint: bool = False,
    device: Literal["auto", "cpu", "cuda"] = ComputeConfig().device,
    threads: int = ComputeConfig().threads,
    processes: int = ComputeConfig().processes,
    architecture: ModelConfig = ModelConfig(),
    config: TrainConfig = TrainConfig(),
) -> None:
    """Fit one model from one seed, and evaluate it on held-out cells.

    On SIGTERM, SIGUSR1 or SIGINT it writes its checkpoint and exits with 128 + the signal's number. A restart resumes
    from the checkpoint and gives the same bits as an uninterrupted training.

    Parameters
    ----------
    results
        Folder of the results of the dataset, such as results/kang.
    run
        Name of the run; not given: its id, made of the number of factors, the seed and a hash of the options.
    seed
        Seed of the initial weights, the order of the cells and all noise.
    checkpoint
        Folder for the checkpoint; kept when the job is killed, removed at the end. Not given: no checkpoint.
    checkpoint_minutes
        Minutes between checkpoints.
    keep_checkpoint
        Keep the last checkpoint: the same command then only evaluates again.
    device
        Device to train on; auto: a GPU if one is visible.
    threads
        CPU threads, shared by the processes of this machine.
    processes
        Processes that train together, each with a GPU of its own unless the device is cpu: the command starts itself
        so often. Under torchrun there are as many as it started; under Slurm's srun, each task starts its share.
    """
    threads = max(1, threads // local_world_size())
    torch.set_num_threads(threads)
    where = pick_device(device)
    together = join()
    logger.info(
        "training on %s", torch.cuda.get_device_name(where) if where.type == "cuda" else f"CPU, {threads} threads"
    )
    granted = os.environ.get("CUDA_VISIBLE_DEVICES", "-1")
    if where.type == "cpu" and device == "auto" and granted not in ("", "-1"):
        logger.warning(
            "This job was granted a GPU (CUDA_VISIBLE_DEVICES=%s), but torch %s sees none; see `nvidia-smi`.",
            granted,
            torch.__version__,
        )
    fitted = Run(architecture, config, seed)
    name = run or fitted.id
    layout.METRICS.at(results, run=name).parent.mkdir(parents=True, exist_ok=True)
    with stop_on_signal() as stopping:
        counts = layout.COUNTS.existing(results)
        adata, registry, split = read_registered(counts, whole=where.type == "cuda")
        linear = LinearSCVI(adata, **dict(architecture), registry=registry, seed=seed)
        linear.module.to(where)
        logger.info("run %s: %d cells to train on, %d genes.", name, len(split.train), adata.n_vars)
        saved = Checkpoint(checkpoint / "checkpoint", 60 * checkpoint_minutes) if checkpoint else None
        schedule = config.fit_config(len(split.train))
        with stopping.gracefully(), progress_bar(True) as on_epoch:
            done = linear.fit(split, schedule, seed=seed, checkpoint=saved, on_epoch=on_epoch, stop=stopping)
        if not together.is_first:  # it evaluates and writes
            return
        found = evaluate(linear, split)
        table = predictive_check(linear, split)
        arrays = factor_arrays(linear, adata.obs_names.to_numpy(str))
        found = describe(name, fitted, done, schedule.max_epochs, split, where, threads) | found
        found["processes"] = together.world_size
    with atomic(layout.MODEL.at(results, run=name)) as temporary:
        linear.save(temporary)
    with atomic(layout.HISTORY.at(results, run=name)) as temporary:
        done.history.to_csv(temporary)
    with atomic(layout.FACTORS.at(results, run=name)) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **arrays)
    write_table(table, layout.PPC.at(results, run=name))
    write_json(found, layout.METRICS.at(results, run=name))
    if checkpoint and not keep_checkpoint:
        shutil.rmtree(checkpoint, ignore_errors=True)


class StopSignal:
    """Whether a signal to stop has arrived. Training checks before each step; all other work ends at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.graceful = False

    def __call__(self) -> bool:
        self.graceful = True
        return self.signal is not None

    def receive(self, number: int, _: Any) -> None:
        """Handle a signal."""
        self.signal = number
        if not self.graceful:
            self.leave()

    @contextmanager
    def gracefully(self) -> Iterator[None]:
        """Let the training inside the block write its checkpoint before the process ends."""
        try:
            yield
        except Interrupted:
            self.signal = self.signal or signal.SIGTERM  # one of the processes that train together was told
        self.graceful = False
        if self.signal is not None:  # also if it arrived after the last check
            self.leave()

    def leave(self) -> None:
        """End the process with the exit code of its signal, on which Slurm, Snakemake and Nextflow retry the job."""
        assert self.signal is not None
        logger.warning("stopped by %s; a restart resumes from the checkpoint.", signal.Signals(self.signal).name)
        sys.exit(128 + self.signal)


@contextmanager
def stop_on_signal() -> Iterator[StopSignal]:
    """Catch SIGTERM, SIGUSR1 and SIGINT inside the block."""
    signalled = StopSignal()
    signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.signal(number, signalled.receive) for number in signals}
    try:
        yield signalled
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_registered(path: Path, whole: bool = False) -> tuple[AnnData, Registry, Split]:
    """Counts as the step setup left them, what it registered of them, and their split; the model checks the counts.

    Counts of a file larger than `IN_MEMORY` stay there, and the training reads them in each epoch; not so with `whole`,
    as a GPU would wait for them.
    """
    adata = read_h5ad(path, backed="r" if path.stat().st_size > IN_MEMORY and not whole else None)
    key = find_own("split", adata.obs)
    if "ldvae_setup" not in adata.uns or key not in adata.obs:
        raise InputError(f"{path}: is not a file of `ldvae setup` (no uns['ldvae_setup'] or no obs['split']).")
    keys = {name: value if isinstance(value, str) else list(value) for name, value in adata.uns["ldvae_setup"].items()}
    registry = make_registry(adata, {name: value for name, value in keys.items() if value})
    part = adata.obs[key].to_numpy(str)
    return adata, registry, Split(*(np.flatnonzero(part == name) for name in Split._fields))


def evaluate(linear: LinearSCVI, split: Split) -> dict[str, Any]:
    """Held-out metrics: negative ELBO and its parts and log marginal likelihood, in nats per cell."""
    module, source = linear.module, linear.source
    found: dict[str, Any] = {}
    fitted = []
    for name, rows in zip(Split._fields, split, strict=True):
        if len(rows) == 0:
            found[f"elbo_{name}"] = None
            continue
        terms = posterior.elbo_terms(module, source, rows, generator())
        loss = terms.loss().double()
        found[f"elbo_{name}"] = float(loss.mean())
        if name != "test":
            fitted.append(loss)
        if name == "test":
            found["reconstruction_test"] = float(terms.reconstruction.double().mean())
            found["kl_test"] = float((terms.kl_z + terms.kl_library).double().mean())
    # With these the step select finds fits that lost a program; the test cells are too few for that.
    both = torch.cat(fitted)
    found["elbo_fitted"] = float(both.mean())
    found["elbo_fitted_se"] = float(both.std() / len(both) ** 0.5) if len(both) > 1 else 0.0
    if len(split.test):
        rows = subset(split.test, LIKELIHOOD_CELLS)
        marginal = posterior.marginal_ll(module, source, rows, generator(), LIKELIHOOD_SAMPLES, 10)
        found["marginal_ll_test"] = float(marginal.double().mean())
    q = posterior.encode(module, source, np.arange(len(source))).q
    kl = 0.5 * (q.z_mean**2 + q.z_var - 1 - q.z_var.log()).double().mean(dim=0)
    found["kl_per_factor"] = kl.tolist()
    found["collapsed"] = int((kl < COLLAPSED_KL).sum())
    return found


def describe(
    name: str, run: Run, done: Fit, max_epochs: int, split: Split, device: torch.device, threads: int
) -> dict[str, Any]:
    """What the run is, and how its training went."""
    packages = ("ldvae", "torch", "numpy", "anndata")
    gpu_mb = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    found = {
        "run": name,
        "setting": run.setting,
        "seed": run.seed,
        "params": run.params,
        "training_version": TRAINING_VERSION,
        **{f"n_{part}": len(rows) for part, rows in zip(Split._fields, split, strict=True)},
        "epochs": done.epochs,
        "max_epochs": max_epochs,
        "stopped_early": done.stopped_early,
        "converged": done.stopped_early or has_converged(done.history),
        "wall_s": round(done.seconds, 3),
        "cells_per_s": round(done.cells_per_s, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1),  # kB on Linux
        "peak_gpu_memory_mb": gpu_mb,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": threads,
        "host": socket.gethostname(),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions(packages),
    }
    if not found["converged"]:
        logger.warning("the ELBO was still improving after %d epochs; consider a higher max_epochs.", done.epochs)
    return found


def has_converged(history: pd.DataFrame) -> bool:
    """Whether the last tenth of the epochs improved the best ELBO by less than a thousandth."""
    elbo = history["elbo_validation" if "elbo_validation" in history else "elbo_train"].dropna()
    before = elbo.iloc[: max(1, int(0.9 * len(elbo)))].min()
    return bool(before - elbo.min() < 1e-3 * abs(before))


def factor_arrays(linear: LinearSCVI, cell_names: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of all cells, loadings, and what else `ldvae programs` needs."""
    module, source = linear.module, linear.source
    all_rows = np.arange(len(source))
    cells = posterior.encode(module, source, all_rows)
    totals = gene_totals(source)
    return {
        "scores": posterior.latent_mean(module, cells, 100, generator()).numpy().astype(np.float32),
        "loadings": linear.get_loadings().to_numpy(np.float32),
        "offset": linear.get_offset().to_numpy(np.float32),
        "theta": mean_theta(module, cells),
        "mean_expression": (totals / totals.sum()).astype(np.float64),
        "mean_total": np.asarray(totals.sum() / len(source)),
        "cells": cell_names,
        "genes": linear.get_var_names().astype(str),
    }


@torch.inference_mode()
def mean_theta(module: LDVAE, cells: posterior.Cells) -> np.ndarray:
    """Inverse dispersion of each gene, its mean over cells where it differs between them; infinite for poisson."""
    some_cells = cells.take(subset(np.arange(cells.n_obs), FIT_CELLS)).to(posterior.device_of(module))
    theta = module.dispersion(module.decoder_input(some_cells.q.z_mean, some_cells.covariates), some_cells.covariates)
    if theta is None:
        return np.full(module.shape.n_vars, np.inf, dtype=np.float32)
    return np.atleast_2d(theta.cpu().numpy()).mean(axis=0)


@torch.inference_mode()
def predictive_check(linear: LinearSCVI, split: Split) -> pd.DataFrame:
    """Posterior predictive check: moments of each gene in held-out cells, as observed and as the model predicts them.

    The predicted ones are exact for one draw of z and of the library size of each cell. With several batches, the
    moments of each follow those of all cells.
    """
    module, source = linear.module, linear.source
    held_out = np.concatenate([split.validation, split.test])
    rows = np.sort(subset(held_out if len(held_out) else split.train, FIT_CELLS))
    draws = generator()
    sums: dict[str, np.ndarray] = {}
    batches = list(linear.get_batch_loadings())
    groups = ["all", *map(str, batches)]
    for counts, chosen in source.minibatches(rows, posterior.BATCH_SIZE):
        cells = posterior.encode(module, counts, chosen)
        px = posterior.decode(module, cells, 1, draws)
        predicted = Moments(*(values[0] for values in module.likelihood.moments(px)))  # of the one draw
        x, _ = counts.minibatch(chosen)
        member = torch.ones(len(groups), len(chosen))
        for i in range(len(batches)):
            member[i + 1] = cells.covariates.batch_index == i
        for name, values in moments(x, predicted).items():
            sums[name] = sums.get(name, 0) + (member.double() @ values.double().cpu()).numpy()
        sums["n_cells"] = sums.get("n_cells", 0) + member.sum(dim=1, keepdim=True).numpy()
    n_cells = sums.pop("n_cells")
    means = {name: values / np.maximum(n_cells, 1) for name, values in sums.items()}  # without cells: not told below
    table = {
        f"{kind}_{name}": values
        for kind in ("observed", "predicted")
        for name, values in (
            ("mean", means[f"{kind}_mean"]),
            ("variance", means[f"{kind}_square"] - means[f"{kind}_mean"] ** 2),
            ("zeros", means[f"{kind}_zeros"]),
        )
    }
    parts = [
        pd.DataFrame({"gene": linear.get_var_names(), "batch": group, "n_cells": int(n_cells[i, 0])}).assign(
            **{name: values[i] for name, values in table.items()}
        )
        for i, group in enumerate(groups)
        if n_cells[i, 0]
    ]
    order = [
        "observed_mean",
        "predicted_mean",
        "observed_variance",
        "predicted_variance",
        "observed_zeros",
        "predicted_zeros",
    ]
    return pd.concat(parts, ignore_index=True)[["gene", "batch", "n_cells", *order]]


def moments(x: torch.Tensor, predicted: Moments) -> dict[str, torch.Tensor]:
    """Mean, mean square and probability of zero of each entry, observed and predicted, shape (n_obs, n_vars)."""
    observed = Moments(x, x**2, (x == 0).float())
    parts = {"observed": observed, "predicted": predicted}
    return {f"{kind}_{name}": value for kind, found in parts.items() for name, value in found._asdict().items()}


def subset(rows: np.ndarray, n: int) -> np.ndarray:
    """At most `n` of the rows, a random subset that is always the same."""
    return rows if len(rows) <= n else np.random.default_rng(EVALUATION_SEED).choice(rows, n, replace=False)


def generator() -> torch.Generator:
    """Random generator of the evaluation."""
    return torch.Generator().manual_seed(EVALUATION_SEED)


# What the methods section says

REFERENCES = {
    "ldvae": "Svensson V, Gayoso A, Yosef N, Pachter L. Interpretable factor models of single-cell RNA-seq via "
    "variational autoencoders. Bioinformatics 36, 3418–3421 (2020). doi:10.1093/bioinformatics/btaa169",
    "scvi": "Lopez R, Regier J, Cole MB, Jordan MI, Yosef N. Deep generative modeling for single-cell "
    "transcriptomics. Nature Methods 15, 1053–1058 (2018). doi:10.1038/s41592-018-0229-2",
    "adam": "Kingma DP, Ba J. Adam: a method for stochastic optimization. ICLR (2015). arXiv:1412.6980",
}


def methods(runs: list[dict[str, Any]], options: dict[str, Any], batch_key: str) -> Iterator[Sentence]:
    """The model and its training, with the options that ran.

    Parameters
    ----------
    runs
        Contents of metrics.json of the runs that the programs were made from, the best first.
    options
        Of the config, for what a run did not write down.
    batch_key
        Obs column that the model knows as the batch; empty for none.
    """
    best = runs[0]
    options = options | best.get("params", {})
    text = f"A linearly decoded variational autoencoder [@ldvae; @scvi] with {options['n_latent']} factors"
    if likelihood := options.get("gene_likelihood", ""):
        text += f" and {LIKELIHOODS[likelihood].sentence}"
    if options.get("n_hidden") and options.get("n_layers"):
        layers = "one hidden layer" if options["n_layers"] == 1 else f"{options['n_layers']} hidden layers"
        text += f" (encoder: {layers} of {options['n_hidden']} units)"
    text += f" and {batch_key} as the batch covariate" if batch_key else ""
    version = best.get("versions", {}).get("torch")
    text += f" was fitted with Adam [@adam]{f' in PyTorch {version}' if version else ''}{training_in_words(options)}."
    epochs = sorted({run["epochs"] for run in runs})
    span = f"{epochs[0]}" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"
    stopped = all(run.get("stopped_early") for run in runs)
    text += f" Training took {span} epochs{', ended by early stopping on the validation ELBO' if stopped else ''}."
    yield Sentence(text, REFERENCES, ("torch",) if version else ())


def training_in_words(options: dict[str, Any]) -> str:
    """Options of the training in brackets; empty where none is known."""
    details = []
    if options.get("lr"):
        schedule = {"cosine": ", falling to 0 as a cosine", "plateau": ", lowered on plateaus"}
        details.append(f"learning rate {options['lr']:g}{schedule.get(options.get('schedule', ''), '')}")
    if options.get("beta2") is not None:
        details.append(f"beta2 {options['beta2']:g}")
    if options.get("start_at_mean"):
        details.append("starting at the mean expression profile")
    if options.get("batch_size"):
        details.append(f"minibatches of {options['batch_size']} cells")
    if options.get("kl_warmup"):
        details.append(f"weight of KL rising from 0 to 1 over the first {options['kl_warmup']:.0%} of the epochs")
    return f" ({'; '.join(details)})" if details else ""
