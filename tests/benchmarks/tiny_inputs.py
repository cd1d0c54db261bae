"""Tiny, odd, sparse data through qc and setup: no signal, no traceback; counts or one message.

Run `python tests/benchmarks/tiny_inputs.py 1000`. Each step runs in a process of its own, so that a crash of native
code is seen as the signal it is.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse


def tiny(seed: int) -> AnnData:
    """1 to 60 cells and genes of up to 12 batches, some of one cell, with empty cells, genes and repeated values."""
    rng = np.random.default_rng(seed)
    n_obs, n_vars = rng.integers(1, 60, 2)
    x = rng.poisson(
        rng.choice([0.02, 0.3, 3, 30]) * rng.choice([np.ones(n_vars), rng.gamma(0.3, 3, n_vars)]), (n_obs, n_vars)
    )
    x = x * rng.choice([1, 1, 1000])
    if rng.random() < 0.2:
        x[:] = x[:1]  # all cells alike
    if rng.random() < 0.2:
        x[:, rng.random(n_vars) < 0.8] = 0
    obs = pd.DataFrame({"batch": [f"b{i}" for i in rng.integers(0, rng.integers(1, 12), n_obs)]})
    obs.index = [f"cell{i}" for i in range(n_obs)]
    return AnnData(
        sparse.csr_matrix(x.astype(np.float32)), obs, pd.DataFrame(index=[f"gene{i}" for i in range(n_vars)])
    )


def outcome(seed: int) -> str:
    """What qc and setup make of a case: done, refused, or how they died."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tiny(seed).write_h5ad(Path(folder) / "x.h5ad")
        batch = ["--batch-key", "batch"] if rng.random() < 0.7 else []
        command = [str(Path(sys.executable).parent / "ldvae")]
        steps = [
            ["qc", "--input", f"{folder}/x.h5ad", "--min-cells", str(rng.integers(0, 3)), *batch],
            ["setup", "--n-top-genes", str(rng.integers(1, 40))],
        ]
        for step in steps:
            done = subprocess.run([*command, *step, "--results", f"{folder}/r"], capture_output=True, text=True)
            if done.returncode == 2 and "Traceback" not in done.stderr:
                return "refused"
            if done.returncode:
                return f"seed {seed}: {step[0]} ends with {done.returncode}: {done.stderr[-300:]}"
    return "done"


def main(n: int) -> None:
    """Run `n` cases and print how often each outcome came."""
    with ThreadPoolExecutor(2) as pool:
        found = Counter(pool.map(outcome, range(n)))
    for text, times in found.most_common():
        print(times, text)
    if set(found) - {"done", "refused"}:
        raise SystemExit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
