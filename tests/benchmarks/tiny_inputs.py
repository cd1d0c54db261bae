"""Tiny, odd, sparse data through qc and setup: no signal, no traceback; counts or one message.

Run `python tests/benchmarks/tiny_inputs.py 1000`, and with a second number for other seeds than those from 0. Each case
runs in a process of its own, so that a crash of native code is seen as the signal it is; all are forked from one that
has imported and compiled everything, which takes longer than a case.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import warnings
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

# A process that has started threads of OpenMP cannot be forked.
os.environ.update(NUMBA_THREADING_LAYER="workqueue", NUMBA_NUM_THREADS="1", OMP_NUM_THREADS="1")

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from ldvae import pl

WORKERS = 2
WARM_UP = (3, 9, 4)  # whose steps all succeed
SECONDS = 300  # a case that takes longer hangs


def tiny(seed: int) -> AnnData:
    """1 to 60 cells and genes of up to 12 batches, some of one cell, with empty cells, genes and repeated values."""
    rng = np.random.default_rng(seed)
    n_obs, n_vars = rng.integers(1, 60, 2)
    if rng.random() < 0.3:  # enough genes for a fit of their variances, few cells to fit them to
        n_vars = rng.integers(60, 400)
    x = rng.poisson(
        rng.choice([0.02, 0.3, 3, 30]) * rng.choice([np.ones(n_vars), rng.gamma(0.3, 3, n_vars)]), (n_obs, n_vars)
    )
    x = x * rng.choice([1, 1, 1000])
    if rng.random() < 0.2:
        x[:] = x[:1]  # all cells alike
    if rng.random() < 0.2:
        x[:, rng.random(n_vars) < 0.8] = 0
    if rng.random() < 0.2:
        x = np.minimum(x, 1)  # all entries alike
    if rng.random() < 0.1:
        x[:, 1:] = x[:, :1]  # all genes alike
    obs = pd.DataFrame({"batch": [f"b{i}" for i in rng.integers(0, rng.integers(1, 12), n_obs)]})
    obs["cell_type"] = pd.Categorical(rng.choice(["a", "b", None], n_obs, p=[0.6, 0.3, 0.1]))
    obs["age"] = rng.choice([1.0, 2.0, 2.5], n_obs)
    obs.index = [f"cell{i}" for i in range(n_obs)]
    return AnnData(
        sparse.csr_matrix(x.astype(np.float32)), obs, pd.DataFrame(index=[f"gene{i}" for i in range(n_vars)])
    )


def commands(seed: int, folder: str) -> list[list[str]]:
    """The two steps of a case, with options as they come."""
    rng = np.random.default_rng(seed)
    batch = ["--batch-key", "batch"] if rng.random() < 0.7 else []
    qc = ["--min-cells", str(rng.integers(0, 3)), "--n-mads", str(rng.choice(["8", "3", "none"]))]
    qc += ["--doublets", str(rng.choice(["off", "annotate", "filter"]))]
    setup = ["--n-top-genes", str(rng.integers(1, 40 if rng.random() < 0.7 else 300))]
    setup += ["--labels-key", "cell_type"] if rng.random() < 0.3 else []
    setup += ["--continuous-covariate-keys", "age"] if rng.random() < 0.3 else []
    setup += ["--batch-key", "batch"] if batch and rng.random() < 0.5 else []
    return [
        ["qc", "--results", f"{folder}/r", "--input", f"{folder}/x.h5ad", *batch, *qc],
        ["setup", "--results", f"{folder}/r", *setup],
    ]


def run_case(seed: int, folder: str) -> int:
    """Write a case and run its steps in this process; the exit code of the first that fails."""
    from ldvae import cli

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tiny(seed).write_h5ad(Path(folder) / "x.h5ad")
    for command in commands(seed, folder):
        print("ldvae", *command, flush=True)
        if code := cli.main(command):
            return code
    return 0


def outcome(seed: int) -> str:
    """What qc and setup make of a case: done, refused, or how they died."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        child = os.fork()
        if child == 0:
            signal.alarm(SECONDS)
            file = os.open(log, os.O_WRONLY | os.O_CREAT)
            os.dup2(file, 1)
            os.dup2(file, 2)
            code = 70
            if seed % 4:  # figures take half of the time
                pl.qc_violins = pl.qc_scatter = lambda *_, save, **__: Path(save).touch()
            try:
                code = run_case(seed, folder)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said = log.read_text(errors="replace")
    if code in (0, 2) and "Traceback" not in said:
        return "refused" if code else "done"
    return f"seed {seed}: ends with {code}: {said[-600:]}"


def main(n: int, first: int = 0) -> None:
    """Run `n` cases from seed `first` on, and print how often each outcome came."""
    for seed in WARM_UP:
        with (
            tempfile.TemporaryDirectory() as folder,
            open(os.devnull, "w") as null,
            redirect_stderr(null),
            redirect_stdout(null),
        ):
            run_case(seed, folder)
    readers = []
    for worker in range(WORKERS):
        reader, writer = os.pipe()
        if os.fork() == 0:
            with os.fdopen(writer, "w") as file:
                for seed in range(first + worker, first + n, WORKERS):
                    file.write(repr(outcome(seed)) + "\n")
                    file.flush()
            os._exit(0)
        os.close(writer)
        readers.append(os.fdopen(reader))
    found: Counter[str] = Counter()
    for reader in readers:
        found.update(line.strip() for line in reader)
    for text, times in found.most_common():
        print(times, text.strip("'").encode().decode("unicode_escape") if "seed" in text else text.strip("'"))
    if found.total() < n or set(found) - {"'done'", "'refused'"}:
        raise SystemExit(1)


if __name__ == "__main__":
    main(*(int(value) for value in sys.argv[1:] or ["1000"]))
