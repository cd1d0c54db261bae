"""Doublets by scrublet, batch by batch: several batches at once, each kept as soon as it is done."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ldvae.config import QcConfig
from ldvae.io import ChunkedCounts, atomic
from ldvae.methods import Sentence

logger = logging.getLogger(__name__)

MAX_CELLS_OF_SCRUBLET = 30_000  # more than a capture has; scrublet makes dense matrices, 1.4 GB of them for 9,000 cells


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
    """
    found = pd.DataFrame({"doublet_score": np.nan, "predicted_doublet": False}, index=metrics.index)
    score, predicted = found["doublet_score"].to_numpy().copy(), found["predicted_doublet"].to_numpy().copy()
    numbers = pd.Series(np.arange(len(batch))).groupby(batch.to_numpy(str), sort=True).indices
    is_passing = passing.to_numpy(bool)
    common = f"{config.expected_doublet_rate} {config.seed} {version()} {digest(genes)}"
    batches: dict[str, np.ndarray] = {}
    for name in sorted(numbers):
        cells = np.sort(numbers[name])
        batches[name] = cells[is_passing[cells]]
        if len(batches[name]) > MAX_CELLS_OF_SCRUBLET:
            message = (
                "Batch %s has %d cells, more than one capture can; no doublets are sought. Give the captures as batch."
            )
            logger.warning(message, name, len(batches.pop(name)))

    def tasks() -> Iterator[tuple[str, Batch]]:
        for name, cells in batches.items():
            kept_at = kept_in / f"{digest(metrics.iloc[cells], common)}.npz"
            if not kept_at.exists():
                yield name, Batch(counts if counts.on_disk else counts.read(cells), cells, kept_at)
            else:
                results[name] = read(kept_at)

    results: dict[str, Doublets] = {}
    done = run_apart if threads > 1 and len(batches) > 1 else run_here
    for name, result in done(tasks(), config, threads):
        results[name] = result
        logger.info("Doublets: %d of %d batches are done.", len(results), len(batches))
    for name, cells in batches.items():
        result = results[name]
        if result.failure:
            logger.warning("Scrublet cannot seek doublets in batch %s (%d cells): %s", name, len(cells), result.failure)
            continue
        score[cells] = result.score
        if result.predicted is None:
            logger.warning("Scrublet finds no threshold for doublets in batch %s; it has scores only.", name)
            continue
        predicted[cells] = result.predicted
    return found.assign(doublet_score=score, predicted_doublet=predicted)


def run_here(tasks: Iterator[tuple[str, Batch]], config: QcConfig, _: int) -> Iterator[tuple[str, Doublets]]:
    """One batch after the other, in this process."""
    for name, task in tasks:
        yield name, of_batch(task, config)


def run_apart(tasks: Iterator[tuple[str, Batch]], config: QcConfig, threads: int) -> Iterator[tuple[str, Doublets]]:
    """So many batches at a time, each in a process of its own; the next one is read when one is done."""
    context = multiprocessing.get_context("spawn")  # a fork would share the state of numba's and BLAS's threads
    with ProcessPoolExecutor(threads, mp_context=context, initializer=start_worker) as pool:
        running: dict[Future[Doublets], str] = {}
        for name, task in tasks:
            running[pool.submit(of_batch, task, config)] = name
            if len(running) == threads:
                yield from finished(running)
        while running:
            yield from finished(running)


def finished(running: dict[Future[Doublets], str]) -> Iterator[tuple[str, Doublets]]:
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
                cells, expected_doublet_rate=config.expected_doublet_rate, random_state=config.seed, verbose=False
            )
    except Exception as error:  # few cells or genes break it in many ways; doublets are then not known, nothing else
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Doublets(np.full(x.shape[0], np.nan), None, reason)
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


def version() -> str:
    """Of scanpy, whose results may change."""
    from importlib import metadata

    return metadata.version("scanpy")


# What the methods section says

REFERENCES = {
    "scrublet": "Wolock SL, Lopez R, Klein AM. Scrublet: computational identification of cell doublets in single-cell "
    "transcriptomic data. Cell Systems 8, 281–291 (2019). doi:10.1016/j.cels.2018.11.005",
}


def methods(summary: dict[str, Any]) -> Iterator[Sentence]:
    """How doublets were treated, from qc/summary.json; nothing where none were sought."""
    doublets = summary.get("doublets") or {}
    if doublets.get("mode") in ("annotate", "filter"):
        where = " in each batch" if len(summary.get("per_batch", {})) > 1 else ""
        done = "removed" if doublets["mode"] == "filter" else "marked but kept"
        text = f"Doublets were predicted with Scrublet [@scrublet]{where} and {done}"
        yield Sentence(f"{text} ({doublets.get('n_predicted', 0):,} cells).", REFERENCES, ("scanpy.pp.scrublet",))
