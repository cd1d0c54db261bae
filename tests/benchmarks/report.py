"""Size of the report and time to write it, for datasets of growing size (made-up results, real report)."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from results_folder import World, write_results

from ldvae.config import ReportConfig

LABELS = tuple(f"cell type {i + 1}" for i in range(12))
BATCHES = tuple(f"donor {i + 1}" for i in range(8))


def main() -> None:
    """Print a table; results are made and each report is written in a process of its own, so that memory is its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, nargs="+", default=[700, 12_000, 1_000_000])
    parser.add_argument("--make", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        write_results(arguments.folder, world(arguments.make))
    elif arguments.measure:
        print(measure(arguments.folder, arguments.measure))
    else:
        print("    cells   page MB   figures MB   wall s    CPU s   peak MB", flush=True)
        for n_obs in arguments.cells:
            with tempfile.TemporaryDirectory() as folder:
                for part in ("--make", "--measure"):
                    command = [sys.executable, __file__, part, str(n_obs), "--folder", folder]
                    subprocess.run(command, check=True)


def world(n_obs: int) -> World:
    """2,000 genes, 12 programs, 8 batches, 12 cell types, 12 contrasts, 15 runs."""
    return World(
        n_obs=n_obs,
        n_vars=2000,
        n_programs=12,
        labels=LABELS,
        batches=BATCHES,
        n_latents=(10, 14, 20),
        n_seeds=5,
        n_contrasts=12,
    )


def measure(folder: Path, n_obs: int) -> str:
    """One line of the table."""
    from ldvae.steps.report import report

    results = folder / world(n_obs).name
    wall, cpu = time.perf_counter(), time.process_time()
    report(results=results, config=ReportConfig())
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    page = (results / "report.html").stat().st_size / 1e6
    drawn = sum(path.stat().st_size for path in (results / "figures").iterdir()) / 1e6
    return f"{n_obs:9,d} {page:9.2f} {drawn:12.2f} {wall:8.1f} {cpu:8.1f} {peak:9.0f}"


if __name__ == "__main__":
    main()
