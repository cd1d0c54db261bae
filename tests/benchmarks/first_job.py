"""How long it takes until the first job could start: `snakemake -n` and `ldvae plan` of a large config.

    python tests/benchmarks/first_job.py --datasets 20 --settings 3 --seeds 10

Prints a row for each command and state of the results: nothing made yet, and all made.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import yaml
from scipy import sparse

ROOT = Path(__file__).parents[2]


def write_config(folder: Path, n_datasets: int, n_settings: int, n_seeds: int, n_obs: int, n_vars: int) -> None:
    """A config of datasets with counts of their own, batch and condition, a sweep and a contrast."""
    rng = np.random.default_rng(0)
    datasets = {}
    for i in range(n_datasets):
        obs = pd.DataFrame({"donor": [f"d{j % 4}" for j in range(n_obs)], "condition": ["stim", "ctrl"] * (n_obs // 2)})
        obs.index = [f"cell{j}" for j in range(n_obs)]
        counts = sparse.random(n_obs, n_vars, 0.1, "csr", np.float32, rng, data_rvs=lambda n: rng.integers(1, 5, n))
        path = folder / f"counts{i}.h5ad"
        anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{j}" for j in range(n_vars)])).write_h5ad(path)
        datasets[f"d{i}"] = {"input": str(path), "de": {"contrasts": [{"column": "condition"}]}}
    config = {
        "datasets": datasets,
        "setup": {"batch_key": "donor"},
        "sweep": {"seeds": list(range(n_seeds)), "grid": {"n_latent": list(range(8, 8 + n_settings))}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def seconds(command: list[str], folder: Path) -> tuple[float, float]:
    """Wall time of a command, which must succeed, and its CPU time, on which other work has less effect."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - began, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def make_all(folder: Path) -> None:
    """Every file of the results, empty, and Snakemake's records of them."""
    from ldvae import results as layout
    from ldvae.config import expand_config, load_config

    for name, dataset in expand_config(load_config(folder / "config.yaml")).datasets.items():
        verbs = ["plan", "qc", "setup", "train", "select", "programs", "annotate", "de", "report"]
        for file in layout.layout(verbs, list(dataset.runs)):
            path = folder / "results" / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
    (folder / "results" / layout.INDEX.path).write_text("")
    command = ["-s", str(ROOT / "Snakefile"), "--configfile", "config.yaml", "--cores", "2", "--touch", "--forceall"]
    seconds([sys.executable, "-m", "snakemake", *command, "--quiet"], folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {"datasets": 20, "settings": 3, "seeds": 10, "cells": 2000, "genes": 2000}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path, help="where to write it; not given: removed in the end")
    given = parser.parse_args()
    snakemake = [sys.executable, "-m", "snakemake", "-n", "--quiet", "-s", str(ROOT / "Snakefile")]
    commands = {
        "ldvae plan": [sys.executable, "-m", "ldvae.cli", "plan", "config.yaml"],
        "snakemake -n": [*snakemake, "--configfile", "config.yaml"],
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        write_config(folder, given.datasets, given.settings, given.seeds, given.cells, given.genes)
        print("state\tcommand\twall_s\tcpu_s")
        for state in ("nothing made", "all made"):
            if state == "all made":
                make_all(folder)
            for name, command in commands.items():
                wall, cpu = seconds(command, folder)
                print(f"{state}\t{name}\t{wall:.1f}\t{cpu:.1f}", flush=True)


if __name__ == "__main__":
    main()
