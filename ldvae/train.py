"""Fit a module to counts: schedule, loop, early stopping, checkpoint and resume."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ldvae.backends import Backend, pick_backend
from ldvae.backends.compiling import WAITING
from ldvae.config import FitConfig
from ldvae.data import BackedCounts, Counts, Split
from ldvae.distributed import Processes, join
from ldvae.errors import InputError
from ldvae.module import LDVAE

logger = logging.getLogger(__name__)

CHECKPOINT_FORMAT = 1
COMPILING_IS_TOLD_AFTER_S = 3.0
VALIDATION_STREAM = 2**32 - 1  # random stream of the validation; those of training are numbered by epoch
Source = Counts | BackedCounts


class Interrupted(Exception):
    """Training stopped on request, after its checkpoint (if it has one) was written."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from `seed` inside the block; leave the caller's random state untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def generators(seed: int, *stream: int) -> tuple[np.random.Generator, torch.Generator]:
    """Independent numpy and torch generators for a stream of random numbers, such as one epoch's."""
    order, noise = np.random.SeedSequence([seed, *stream]).spawn(2)
    torch_seed = int(noise.generate_state(1, np.uint64)[0]) >> 1  # as a Python int: numpy 1 does not shift its own
    return np.random.default_rng(order), torch.Generator().manual_seed(torch_seed)


class LightOptimizer(torch.optim.Optimizer):
    """Base of the optimizers, which does not import torch's compiler (145 MB, several seconds).

    torch wraps `add_param_group` to exclude it from compilation, and imports the compiler for that.
    """

    add_param_group = getattr(
        torch.optim.Optimizer.add_param_group, "__wrapped__", torch.optim.Optimizer.add_param_group
    )


class Adam(LightOptimizer, torch.optim.Adam):
    """torch's Adam."""


class AdamW(LightOptimizer, torch.optim.AdamW):
    """torch's AdamW."""


def make_optimizer(module: LDVAE, config: FitConfig) -> torch.optim.Optimizer:
    """Adam (weight decay as L2 in the gradient) or AdamW over all parameters."""
    kind = {"Adam": Adam, "AdamW": AdamW}[config.optimizer]
    betas = (0.9, config.beta2)
    return kind(module.parameters(), lr=config.lr, betas=betas, eps=config.eps, weight_decay=config.weight_decay)


def kl_weight(config: FitConfig, epoch: int, step: int) -> float:
    """Weight of KL(z) in an epoch (from 0) and step (from 0, over all epochs)."""
    low, high = config.min_kl_weight, config.max_kl_weight
    if low > high:
        raise InputError(f"min_kl_weight ({low:g}) must not be above max_kl_weight ({high:g}).")
    if config.n_epochs_kl_warmup:
        done = epoch / config.n_epochs_kl_warmup
    elif config.n_steps_kl_warmup:
        done = step / config.n_steps_kl_warmup
    else:
        done = 1.0
    return low + (high - low) * min(done, 1.0)


@dataclass
class Patience:
    """Best value of a metric so far (lower is better), and number of checks since it improved."""

    best: float = math.inf
    waited: int = 0

    def update(self, value: float, min_delta: float) -> int:
        """Add a value; returns the number of checks since the last improvement by more than `min_delta`."""
        improved = value < self.best - min_delta
        self.best, self.waited = (value, 0) if improved else (self.best, self.waited + 1)
        return self.waited


@dataclass
class State:
    """State of a training; with the module and the optimizer, all that is needed to resume it."""

    epoch: int = 0
    lr: float = 0.0
    global_step: int = 0
    sums: list[Tensor] = field(default_factory=list)  # of the steps done in this epoch, (3,) each
    noise: Tensor | None = None  # state of the noise generator in mid-epoch
    history: list[dict[str, float]] = field(default_factory=list)
    stopping: Patience = field(default_factory=Patience)
    plateau: Patience = field(default_factory=Patience)
    seconds: float = 0.0
    finished: bool = False


class Fit(NamedTuple):
    """Result of a training."""

    history: pd.DataFrame  # one row per epoch, columns named as in scvi-tools; index "epoch"
    epochs: int
    stopped_early: bool
    interrupted: bool
    seconds: float  # wall time of training, over all attempts
    cells_per_s: float  # without the first step of the last attempt, which may have been compiled


class EpochReport(NamedTuple):
    """Progress after an epoch, passed to `on_epoch`."""

    epoch: int  # finished epochs
    max_epochs: int
    elbo: float  # negative ELBO, nats per cell: of validation, or of training where nothing is held out
    cells_per_s: float
    seconds_left: float


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often to save the state of a training."""

    path: Path
    every_s: float = 600.0


def fit(
    module: LDVAE,
    source: Source,
    split: Split,
    config: FitConfig,
    *,
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    stop: Callable[[], bool] | None = None,
    make_backend: Callable[[LDVAE, torch.optim.Optimizer, float | None, Processes], Backend] = pick_backend,
) -> Fit:
    """Train a module in place; under `torchrun`, in all its processes together (`ldvae.distributed`).

    Each process reads its part of every minibatch. All hold the same parameters at all times, end with the same module
    and history, and stop together. The first alone writes checkpoints and calls `on_epoch`.

    Parameters
    ----------
    module
        Module with its initial parameters, on the device to train on.
    source
        Counts of all cells.
    split
        Rows to train and to validate on.
    config
        Schedule, optimizer and early stopping.
    seed
        Seed of the order of the cells and of all noise. Each epoch has its own random stream, so that a resumed
        training gives the same bits as an uninterrupted one.
    checkpoint
        File to save to, and to resume from if it belongs to the same training.
    on_epoch
        Called after every epoch.
    stop
        Called before every step; if it returns True, the checkpoint is written and `Interrupted` raised.
    make_backend
        Chooses the backend; not given: the fastest that supports the model.

    Raises
    ------
    InputError
        If the loss becomes NaN or infinite; or if there are fewer than two cells to train on.
    Interrupted
        If `stop` returned True.
    """
    if len(split.train) < 2:
        raise InputError(
            f"There is {'1 cell' if len(split.train) else 'no cell'} to train on, of {len(source)}; batch "
            "normalization needs two or more. Raise train_size, or give more cells."
        )
    if config.early_stopping and len(split.validation) == 0:
        raise InputError("Can't run early stopping with no validation set; lower train_size, or do not stop early.")
    processes = join()
    optimizer = make_optimizer(module, config)
    backend = make_backend(module, optimizer, config.gradient_clip_val, processes)
    state = State(lr=config.lr)
    mark = fingerprint(module, source, split, config, seed) if checkpoint or processes.are_several else ""
    if not processes.is_first:
        checkpoint = on_epoch = None
    if checkpoint:
        state = resume(checkpoint.path, module, optimizer, mark) or state
    if config.start_at_mean and processes.is_first and module.is_untrained:
        module.decoder.start_at(mean_profile(source, split.train))
    if processes.are_several:
        state = start_alike(processes, module, optimizer, state, mark)
    stop = processes.agreed(stop)
    saved_at = started = first_step_ended = time.monotonic()
    seconds_before, done_before = state.seconds, state.global_step
    interrupted = False

    def save_checkpoint(noise_generator: torch.Generator) -> None:
        state.seconds = seconds_before + time.monotonic() - started
        if checkpoint:
            write_checkpoint(checkpoint.path, module, optimizer, state, noise_generator, mark)

    try:
        while not state.finished:
            order, noise_generator = generators(seed, state.epoch)
            if state.noise is not None:
                noise_generator.set_state(state.noise)
            optimizer.param_groups[0]["lr"] = learning_rate(config, state)
            module.train()
            for i, (counts, rows) in enumerate(training_minibatches(source, split.train, config, order, processes)):
                if i < len(state.sums):
                    continue  # done before the interruption
                if stop is not None and stop():
                    save_checkpoint(noise_generator)
                    raise Interrupted
                noise = module.draw_noise(len(rows), noise_generator)
                weight = kl_weight(config, state.epoch, state.global_step)
                with told_of_compiling() if state.global_step == done_before else nullcontext():
                    state.sums.append(backend.train(counts, rows, noise, weight))
                state.global_step += 1
                if state.global_step == done_before + 1:
                    first_step_ended = time.monotonic()
                if checkpoint and time.monotonic() - saved_at > checkpoint.every_s:
                    save_checkpoint(noise_generator)
                    saved_at = time.monotonic()
            module.eval()
            finish_epoch(state, module, backend, source, split, config, seed, processes)
            if on_epoch is not None:
                # Without the first step, which may have been compiled, unless there was no other.
                steps, since = state.global_step - done_before, started
                if steps > 1:
                    steps, since = steps - 1, first_step_ended
                on_epoch(report(state, config, split, steps, time.monotonic() - since))
        if state.global_step > done_before:  # a job that is killed after the training does not train again
            save_checkpoint(noise_generator)
    except KeyboardInterrupt:
        interrupted = True
        logger.warning("Interrupted in epoch %d of %d; keeping the parameters so far.", state.epoch, config.max_epochs)
    finally:
        module.eval()
    ended = time.monotonic()
    state.seconds = seconds_before + ended - started
    # Without the first step, as in what is told of each epoch.
    steps, seconds = state.global_step - done_before - 1, ended - first_step_ended
    if steps < 1:
        steps, seconds = state.global_step, state.seconds
    history = pd.DataFrame(state.history).rename_axis("epoch")
    return Fit(
        history=history,
        epochs=state.epoch,
        stopped_early=state.finished and state.epoch < config.max_epochs,
        interrupted=interrupted,
        seconds=state.seconds,
        cells_per_s=state.epoch * len(split.train) * steps / max(state.global_step * seconds, 1e-9),
    )


def start_alike(
    processes: Processes, module: LDVAE, optimizer: torch.optim.Optimizer, state: State, mark: str
) -> State:
    """Start all processes from the parameters and the state of the first; they must train the same."""
    others = [rank for rank, theirs in enumerate(processes.of_all(mark)) if theirs != mark]
    if others:
        raise InputError(
            f"Process {processes.rank} has other data, another split, other options or another seed than process "
            f"{others[0]}. The processes of one torchrun train one model: give all of them the same."
        )
    state, tensors = processes.of_first((state, tensors_of(module, optimizer)))
    restore(module, optimizer, tensors)
    logger.info("%d processes train together.", processes.world_size)
    return state


@contextmanager
def told_of_compiling() -> Iterator[None]:
    """Say that code is compiled where the block takes long, but not while it waits for another job that compiles."""
    text = "The first step compiles its code, which may take some minutes; the next training here finds it compiled."
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(COMPILING_IS_TOLD_AFTER_S):
            if not WAITING.is_set():
                logger.info(text)
                return

    threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def mean_profile(source: Source, rows: np.ndarray, block: int = 4096) -> Tensor:
    """Mean share of each gene in the counts of the given cells, shape (n_vars,), with one count added to each gene."""
    total = np.zeros(source.n_vars, dtype=np.float64)
    for counts, chosen in source.minibatches(np.sort(rows), block):  # from a file, in one pass
        total += np.asarray(counts.x[chosen].sum(axis=0)).ravel()
    return torch.from_numpy((total + 1) / (total + 1).sum())


def report(state: State, config: FitConfig, split: Split, steps: int, seconds: float) -> EpochReport:
    """Progress after an epoch, from the steps and seconds of this attempt."""
    rate = steps * config.batch_size / max(seconds, 1e-9)
    left = (config.max_epochs - state.epoch) * len(split.train) / max(rate, 1e-9)
    last = state.history[-1]
    return EpochReport(state.epoch, config.max_epochs, last.get("elbo_validation", last["elbo_train"]), rate, left)


def training_minibatches(
    source: Source, rows: np.ndarray, config: FitConfig, order: np.random.Generator, processes: Processes
) -> Iterator[tuple[Counts, np.ndarray]]:
    """Shuffled minibatches of one epoch, each with row -1 for the cells that another process reads."""
    for counts, chosen in source.minibatches(rows, config.batch_size, order, processes):
        if not (config.drop_last and len(chosen) < config.batch_size):
            yield counts, chosen


def learning_rate(config: FitConfig, state: State) -> float:
    """Learning rate of the epoch that begins."""
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * state.epoch / config.max_epochs))
    return state.lr


def finish_epoch(
    state: State,
    module: LDVAE,
    backend: Backend,
    source: Source,
    split: Split,
    config: FitConfig,
    seed: int,
    processes: Processes,
) -> None:
    """Validate, add to the history, and check for early stopping; `state` then is that of the next epoch."""
    weight = kl_weight(config, state.epoch, state.global_step - 1)
    sums = torch.stack(state.sums).double().cpu()
    finite = torch.isfinite(sums).all(dim=1)
    if not finite.all():
        diverged(state, int((~finite).nonzero()[0]), sums)
    row = {"lr": learning_rate(config, state), "kl_weight": weight}
    row |= metrics(sums.sum(dim=0) / len(split.train), weight, "train")
    validate = len(split.validation) > 0 and (state.epoch + 1) % config.check_val_every_n_epoch == 0
    if validate:
        terms = evaluate(module, backend, source, split.validation, config.batch_size, seed, processes)
        row |= metrics(terms, weight, "validation")
    state.history.append(row)
    state.epoch += 1
    state.sums, state.noise = [], None
    state.finished = state.epoch >= config.max_epochs
    if validate and config.schedule == "plateau":
        waited = state.plateau.update(monitored(row, config.lr_scheduler_metric), config.lr_threshold)
        if waited > config.lr_patience:
            state.lr, state.plateau.waited = max(state.lr * config.lr_factor, config.lr_min), 0
    if validate and config.early_stopping and state.epoch > config.early_stopping_warmup_epochs:
        waited = state.stopping.update(monitored(row, config.early_stopping_monitor), config.early_stopping_min_delta)
        state.finished |= waited >= config.early_stopping_patience


def metrics(terms: Tensor, kl_weight: float, part: str) -> dict[str, float]:
    """A part's columns of the history from its mean reconstruction, KL(z) and KL(library) per cell."""
    reconstruction, kl_z, kl_library = terms.tolist()
    loss = "train_loss" if part == "train" else "validation_loss"
    return {
        loss: reconstruction + kl_weight * kl_z + kl_library,
        f"elbo_{part}": reconstruction + kl_z + kl_library,
        f"reconstruction_loss_{part}": reconstruction,
        f"kl_local_{part}": kl_z + kl_library,
        f"kl_global_{part}": 0.0,
    }


def evaluate(
    module: LDVAE,
    backend: Backend,
    source: Source,
    rows: np.ndarray,
    batch_size: int,
    seed: int,
    processes: Processes,
) -> Tensor:
    """Mean reconstruction, KL(z) and KL(library) per cell, in nats, shape (3,).

    The noise depends on the seed alone: epochs are compared on the same draws.
    """
    _, noise_generator = generators(seed, VALIDATION_STREAM)
    total = torch.zeros(3, dtype=torch.float64)
    for counts, chosen in source.minibatches(rows, batch_size, None, processes):
        noise = module.draw_noise(len(chosen), noise_generator)
        total += backend.evaluate(counts, chosen, noise).double().cpu()
    return total / len(rows)


def monitored(row: dict[str, float], name: str) -> float:
    """A metric of the history by name."""
    if name not in row:
        raise InputError(f"There is no metric {name!r} to monitor; the history has {', '.join(row)}.")
    return row[name]


def diverged(state: State, step: int, sums: Tensor) -> None:
    """Raise an InputError that says where the loss became NaN or infinite."""
    names = ("reconstruction", "KL(z)", "KL(library)")
    which = [name for name, value in zip(names, sums[step].tolist(), strict=True) if not math.isfinite(value)]
    raise InputError(
        f"The loss became NaN or infinite in epoch {state.epoch}, step {step} of that epoch ({', '.join(which)}). "
        f"The likely cause is a learning rate that is too high (lr is {state.lr:g}), or a cell or gene with extreme "
        "counts. Lower lr, or look at the cells with the highest totals."
    )


def fingerprint(module: LDVAE, source: Source, split: Split, config: FitConfig, seed: int) -> str:
    """Hash of all that defines a training: architecture, data, split, schedule and seed."""
    mark = hashlib.blake2b(digest_size=16)
    mark.update(repr((module.config, module.shape, config, seed)).encode())
    arrays = [*split, *(values.numpy() for values in source.covariates)]
    if isinstance(source, Counts):
        arrays += [source.x.data, source.x.indices, source.x.indptr]
    for array in arrays:
        mark.update(np.ascontiguousarray(array).data)
    return mark.hexdigest()


def write_checkpoint(
    path: Path,
    module: LDVAE,
    optimizer: torch.optim.Optimizer,
    state: State,
    noise_generator: torch.Generator,
    mark: str,
) -> None:
    """Replace the checkpoint by the current state, atomically.

    If it cannot be written, training continues with a warning, and the previous checkpoint stays.
    """
    tensors = tensors_of(module, optimizer)
    tensors["noise"] = noise_generator.get_state()
    tensors["sums"] = (torch.stack(state.sums) if state.sums else torch.zeros(0, 3)).cpu()
    plain = {f.name: getattr(state, f.name) for f in fields(state) if f.name not in ("sums", "noise")}
    plain |= {"stopping": asdict(state.stopping), "plateau": asdict(state.plateau)}
    header = {"format": CHECKPOINT_FORMAT, "fingerprint": mark, "crc": checksum(tensors), "state": plain}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
            try:
                file.write(save(tensors, metadata={"ldvae": json.dumps(header)}))
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        logger.warning("Could not write the checkpoint %s (%s); training continues without it.", path, error.strerror)
    else:
        logger.info("Checkpoint at epoch %d, step %d: %s", state.epoch, len(state.sums), path)


def tensors_of(module: LDVAE, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors of a module and of the state of its optimizer, by name, contiguous and on the CPU."""
    tensors = {f"module.{name}": value for name, value in module.state_dict().items()}
    for i, parameter in enumerate(module.parameters()):
        for name, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{i}.{name}"] = torch.as_tensor(value)
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def restore(module: LDVAE, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put the tensors of `tensors_of` into a module and the state of its optimizer."""
    module.load_state_dict({k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")})
    for i, parameter in enumerate(module.parameters()):
        prefix = f"optimizer.{i}."
        saved = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        if saved:
            # The moments in the memory layout of their parameter, as Adam makes them.
            optimizer.state[parameter] = {
                name: torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
                for name, value in saved.items()
            }


def resume(path: Path, module: LDVAE, optimizer: torch.optim.Optimizer, mark: str) -> State | None:
    """Restore the module and the optimizer from a checkpoint.

    Returns None if there is no checkpoint. One that is damaged, of another training or of a newer version is renamed,
    and training starts over.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["ldvae"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if header["format"] > CHECKPOINT_FORMAT:
            raise ValueError(f"it has format {header['format']}, newer than the {CHECKPOINT_FORMAT} known here")
        if header["crc"] != checksum(tensors):
            raise ValueError("its checksum does not match: the file is damaged")
        if header["fingerprint"] != mark:
            raise ValueError(
                "it belongs to other data, other parameters or another seed, or the counts were in memory then and are "
                "read from their file now, or the other way round"
            )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as why:
        aside = path.with_name(f"{path.name}.refused-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
        path.rename(aside)
        logger.warning("Cannot resume from %s: %s. Renamed to %s; training starts over.", path, why, aside.name)
        return None
    restore(module, optimizer, tensors)
    plain = header["state"] | {name: Patience(**header["state"][name]) for name in ("stopping", "plateau")}
    state = State(**plain, sums=list(tensors["sums"]), noise=tensors["noise"] if len(tensors["sums"]) else None)
    logger.info("Resumed from epoch %d, step %d: %s", state.epoch, len(state.sums), path)
    return state


def checksum(tensors: dict[str, Tensor]) -> int:
    """CRC-32 of all values, in the order of their names."""
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].numpy().tobytes(), crc)
    return crc
