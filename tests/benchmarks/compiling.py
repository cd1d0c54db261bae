"""Two trainings that start at once on an empty cache of kernels: CPU and wall seconds of each, and what it said of it.

    python tests/benchmarks/compiling.py

Beside them one training on an empty cache, and one on the cache that it leaves. A training that waits for another to
compile takes its time but not its CPU. Prints a table (TSV), and below it what each training said of compiling.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FLAGS = ["--seed", "0", "--max-epochs", "20", "--no-early-stopping", "--device", "cpu", "--threads", "1"]


def start(results: Path, cache: Path) -> tuple[subprocess.Popen[bytes], float]:
    """Start a training whose kernels are kept in a cache."""
    command = [sys.executable, "-m", "ldvae.cli", "train", "--results", results, *FLAGS]
    with (results / "log.txt").open("w") as log:
        return subprocess.Popen(command, env=os.environ | {"NUMBA_CACHE_DIR": str(cache)}, stderr=log), time.time()


def finish(running: tuple[subprocess.Popen[bytes], float]) -> tuple[float, float]:
    """Wall and CPU seconds of a training, when it has ended."""
    process, began = running
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"a training failed: status {status}")
    return time.time() - began, used.ru_utime + used.ru_stime


def told(results: Path) -> list[str]:
    """Lines of a log that speak of compiling, and the first and last ones of speed."""
    lines = (results / "log.txt").read_text().splitlines()
    rates = [line for line in lines if re.search("cells/s", line)]
    return [line for line in lines if re.search("ompil", line)] + rates[:1] + rates[-1:]


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made"
        for command in (["qc", "--input", "demo:pbmc68k"], ["setup", "--genes", "all"]):
            verb, *flags = command
            full = [sys.executable, "-m", "ldvae.cli", verb, "--results", made, *flags]
            subprocess.run(full, check=True, stderr=subprocess.DEVNULL)
        said = {}
        print("trainings", "cache", "wall_s", "cpu_s", sep="\t")
        for name, n, cache in (
            ("two at once", 2, "both"), ("one alone", 1, "alone"), ("one alone, once more", 1, "alone"),
        ):  # fmt: skip
            state = "kept" if (Path(folder) / cache).exists() else "empty"
            copies = [Path(folder) / f"{name} {i}" for i in range(1, n + 1)]
            for copy in copies:
                shutil.copytree(made, copy)
            running = [start(copy, Path(folder) / cache) for copy in copies]
            with ThreadPoolExecutor(n) as pool:
                used = list(pool.map(finish, running))
            for copy, (wall, cpu) in zip(copies, used, strict=True):
                print(copy.name, state, f"{wall:.1f}", f"{cpu:.1f}", sep="\t", flush=True)
                said[copy.name] = told(copy)
        for name, lines in said.items():
            print(f"\n{name}:", *lines, sep="\n  ")


if __name__ == "__main__":
    main()
