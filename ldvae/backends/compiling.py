"""Compiling once for all processes that share a cache: the others wait, and load what the first has compiled."""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol

logger = logging.getLogger(__name__)

WAIT_S = 600  # a process that was stopped while it compiled would keep the others waiting for ever
LOCK = "ldvae-compiling.lock"
WAITING = threading.Event()  # set while this process waits for another one to compile


class Dispatcher(Protocol):
    """What is used of a dispatcher of numba."""

    __name__: str
    compile: Callable[..., object]  # the code for the types of some arguments: compiled, or loaded
    stats: object


def compile_alone(function: Dispatcher) -> None:
    """Let a function that numba compiles, and keeps on disk, be compiled by one process at a time.

    Without this, jobs that start together on an empty cache compile the same code for a minute or more each.

    Parameters
    ----------
    function
        Dispatcher of numba; without a cache on disk it is left as it is.
    """
    compile_now = function.compile
    folder = getattr(function.stats, "cache_path", None)
    if folder is None or hasattr(compile_now, "alone"):
        return

    def compile_or_load(signature: object) -> object:
        # What is there already is only loaded, by as many processes as like.
        known = any(Path(folder).glob(f"*.{function.__name__}-*.nbi"))
        with lock(Path(folder), shared=known):
            return compile_now(signature)

    compile_or_load.alone = True  # type: ignore[attr-defined]
    function.compile = compile_or_load


@contextmanager
def lock(folder: Path, *, shared: bool, wait_s: float = WAIT_S) -> Iterator[None]:
    """Hold the lock of a folder inside the block; without it where it cannot be had.

    Parameters
    ----------
    folder
        Made if it is not there. The lock ends with the process that holds it.
    shared
        Whether others may hold it at the same time, if they share it too.
    wait_s
        For how many seconds to wait for it at most.
    """
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        file = (folder / LOCK).open("a")
    except OSError:  # a cache that can only be read
        yield
        return
    with file:
        try:
            _acquire(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, wait_s)
        finally:
            WAITING.clear()
        yield


def _acquire(file: IO[str], kind: int, wait_s: float) -> None:
    """Lock a file; say so once where that takes waiting, and when the waiting is given up."""
    until = time.monotonic() + wait_s
    while time.monotonic() < until:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if not WAITING.is_set():
                logger.info(
                    "Another job compiles the code that this one needs. This one waits for it, %.0f s at most.", wait_s
                )
            WAITING.set()
            time.sleep(0.2)
        except OSError:  # a file system without locks
            return
        else:
            return
    logger.info("The other job has not finished compiling in %.0f s. This one compiles the code itself.", wait_s)
