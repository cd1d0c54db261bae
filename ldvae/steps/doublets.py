"""Doublets by scrublet, batch by batch: several batches at once, each kept as soon as it is done."""

from __future__ import annotations

import hashlib
import logging
import math
import multiprocessing
import os
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ldvae.config import QcConfig
from ldvae.errors import counted, first_line
from ldvae.io import ChunkedCounts, atomic
from ldvae.methods import Sentence

logger = logging.getLogger(__name__)

MAX_CELLS_OF_CAPTURE = 30_000  # more were not in one droplet capture, and cells of two captures make no doublet
MAX_CELLS_AT_ONCE = 10_000  # scrublet makes dense matrices: 2.1 GB for so many cells


class Batch(NamedTuple):
    """What one call of scrublet gets."""

    counts: ChunkedCounts | sparse.csr_matrix  # of all cells on disk, or of the batch
    cells: np.ndarray  # numbers of the cells of the batch, ascending
    kept_at: Path  # file of the result


class Doublets(NamedTuple):
    """What scrublet says of the cells of a batch."""

    score: np.ndarray  # float64, shape (n_obs,)
    predicted: np.ndarray | None  # bool; None where it finds no threshold
    failure: str = ""  # why it says nothing


def find_doublets(
    counts: ChunkedCounts,
    metrics: pd.DataFrame,
    batch: pd.Series,
    passing: pd.Series,
    genes: pd.Index,
    config: QcConfig,
    *,
    kept_in: Path,
    threads: int = 1,
) -> pd.DataFrame:
    """scrublet's doublet_score and predicted_doublet of each cell, from the passing cells of each batch.

    Parameters
    ----------
    counts
        Of all cells.
    metrics, batch, passing
        Metrics, batch and whether it passed the limits, of each cell.
    genes
        Their names.
    config
        Expected rate of doublets, and the seed.
    kept_in
        Folder that keeps the result of each batch as soon as it is done: who is killed goes on from there. A result is
        found by the cells, their metrics, the genes and the options.
    threads
        Batches at the same time, each in a process of its own with its counts in memory; 1: in this process.

    Notes
    -----
    A batch of more than `MAX_CELLS_AT_ONCE` cells is split at random into parts of equal size, each a call of scrublet.
    On a simulated batch of 20,000 cells, 581 of them doublets, two parts found 263 of them (334 called; AUC of the
    scores 0.909) where one call found 273 (320; 0.915), and took 2.4 GB in place of 4.2.

    Neighbors are searched for exactly, whatever the size. From 2,731 cells on, scanpy would approximate them by
    pynndescent, in five times the time: two parts then found 239 (284 called), four parts 137 (149) in place of 252
    (315).
    """
    found = pd.DataFrame({"doublet_score": np.nan, "predicted_doublet": False}, index=metrics.index)
    score, predicted = found["doublet_score"].to_numpy().copy(), found["predicted_doublet"].to_numpy().copy()
    numbers = pd.Series(np.arange(len(batch))).groupby(batch.to_numpy(str), sort=True).indices
    is_passing = passing.to_numpy(bool)
    common = f"exact {config.expected_doublet_rate} {config.seed} {metadata.version('scanpy')} {digest(genes)}"
    batches: list[tuple[str, np.ndarray]] = []  # a name comes more than once where its cells are in several parts
    for name in sorted(numbers):
        cells = np.sort(numbers[name])
        cells = cells[is_passing[cells]]
        if len(cells) > MAX_CELLS_OF_CAPTURE:
            message = (
                "Batch %s has %d cells, more than one capture can; no doublets are sought. Give the captures as batch."
            )
            logger.warning(message, name, len(cells))
        else:
            batches += [(name, part) for part in parts(cells, config.seed)]

    def tasks() -> Iterator[tuple[int, Batch]]:
        for i, (_, cells) in enumerate(batches):
            kept_at = kept_in / f"{digest(metrics.iloc[cells], common)}.npz"
            if not kept_at.exists():
                yield i, Batch(counts if counts.on_disk else counts.read(cells), cells, kept_at)
            else:
                results[i] = read(kept_at)

    results: dict[int, Doublets] = {}
    done = run_apart if threads > 1 and len(batches) > 1 else run_here
    for i, result in done(tasks(), config, threads):
        results[i] = result
        logger.info("Doublets: %d of %d batches are done.", len(results), len(batches))
    for i, (name, cells) in enumerate(batches):
        result = results[i]
        if result.failure:
            n_cells = counted(len(cells), "cell")
            logger.warning("Scrublet cannot find doublets in batch %s (%s): %s", name, n_cells, result.failure)
            continue
        score[cells] = result.score
        if result.predicted is None:
            logger.warning("Scrublet finds no threshold for doublets in batch %s; it has scores only.", name)
            continue
        predicted[cells] = result.predicted
    return found.assign(doublet_score=score, predicted_doublet=predicted)


def parts(cells: np.ndarray, seed: int) -> list[np.ndarray]:
    """The cells of a batch, or random parts of equal size where they are more than `MAX_CELLS_AT_ONCE`."""
    n_parts = math.ceil(len(cells) / MAX_CELLS_AT_ONCE)
    if n_parts < 2:
        return [cells]
    shuffled = np.random.default_rng(seed).permutation(cells)
    return [np.sort(part) for part in np.array_split(shuffled, n_parts)]


def run_here(tasks: Iterator[tuple[int, Batch]], config: QcConfig, _: int) -> Iterator[tuple[int, Doublets]]:
    """One batch after the other, in this process."""
    for i, task in tasks:
        yield i, of_batch(task, config)


def run_apart(tasks: Iterator[tuple[int, Batch]], config: QcConfig, threads: int) -> Iterator[tuple[int, Doublets]]:
    """So many batches at a time, each in a process of its own; the next one is read when one is done."""
    context = multiprocessing.get_context("spawn")  # a fork would share the state of numba's and BLAS's threads
    with ProcessPoolExecutor(threads, mp_context=context, initializer=start_worker) as pool:
        running: dict[Future[Doublets], int] = {}
        try:
            for i, task in tasks:
                running[pool.submit(of_batch, task, config)] = i
                if len(running) == threads:
                    yield from finished(running)
            while running:
                yield from finished(running)
        except BaseException:  # the pool would wait for batches that take minutes
            for worker in multiprocessing.active_children():
                worker.kill()
            raise


def finished(running: dict[Future[Doublets], int]) -> Iterator[tuple[int, Doublets]]:
    """Wait for one or more of the running batches, and take them out."""
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        yield running.pop(future), future.result()


def start_worker() -> None:
    """Use one thread, and end with the parent, also where that is killed."""
    import threadpoolctl

    threadpoolctl.threadpool_limits(1)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def of_batch(task: Batch, config: QcConfig) -> Doublets:
    """scrublet on one batch; the result is kept in its file."""
    import scanpy

    x = task.counts.read(task.cells) if isinstance(task.counts, ChunkedCounts) else task.counts
    # scrublet adds its results to obs; the names mean nothing here.
    cells = AnnData(x, obs=pd.DataFrame(index=[str(i) for i in range(x.shape[0])]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scanpy.pp.scrublet(
                cells,
                expected_doublet_rate=config.expected_doublet_rate,
                random_state=config.seed,
                use_approx_neighbors=False,
                verbose=False,
            )
    except Exception as error:  # few cells or genes break it in many ways; doublets are then not known, nothing else
        return Doublets(np.full(x.shape[0], np.nan), None, first_line(error))
    predicted = None
    if "predicted_doublet" in cells.obs:
        predicted = cells.obs["predicted_doublet"].fillna(False).to_numpy(bool)
    result = Doublets(cells.obs["doublet_score"].to_numpy(float), predicted)
    with atomic(task.kept_at) as temporary:
        arrays = {"score": result.score} | ({} if predicted is None else {"predicted": predicted})
        np.savez(temporary, allow_pickle=False, **arrays)
    return result


def read(path: Path) -> Doublets:
    """A kept result."""
    with np.load(path) as arrays:
        return Doublets(arrays["score"], arrays.get("predicted"))


def digest(table: pd.DataFrame | pd.Index, text: str = "") -> str:
    """Hexadecimal digest of a table with its index, or of names."""
    hashed = pd.util.hash_pandas_object(table, index=True).to_numpy()
    return hashlib.sha256(hashed.tobytes() + text.encode()).hexdigest()[:24]


# What the methods section says

REFERENCES = {
    "scrublet": "Wolock SL, Lopez R, Klein AM. Scrublet: computational identification of cell doublets in single-cell "
    "transcriptomic data. Cell Systems 8, 281–291 (2019). doi:10.1016/j.cels.2018.11.005",
}


def methods(summary: dict[str, Any]) -> Iterator[Sentence]:
    """How doublets were treated, from qc/summary.json; nothing where none were sought."""
    doublets = summary.get("doublets") or {}
    if doublets.get("mode") in ("annotate", "filter"):
        sizes = [cells["before"] for cells in summary.get("per_batch", {}).values()]
        where = " in each batch" if len(sizes) > 1 else ""
        if max(sizes, default=0) > MAX_CELLS_AT_ONCE:
            where += f", in random parts of at most {MAX_CELLS_AT_ONCE:,} cells,"
        done = "removed" if doublets["mode"] == "filter" else "marked but kept"
        text = f"Doublets were predicted with Scrublet [@scrublet]{where} and {done}"
        yield Sentence(f"{text} ({doublets.get('n_predicted', 0):,} cells).", REFERENCES, ("scanpy.pp.scrublet",))
