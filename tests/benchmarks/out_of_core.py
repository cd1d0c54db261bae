"""Training from a file on disk beside training from memory, by the number of cells.

    python tests/benchmarks/out_of_core.py [--cells 10000 100000 1000000] [--folder FOLDER] [--threads 2]
    python tests/benchmarks/out_of_core.py --share results/NAME/setup/counts.h5ad [--threads 2]

Simulates cells from a model fitted to pbmc3k (2,000 genes), writes them to an h5ad, and trains for some epochs on the
same file, in memory and backed, each in a process of its own. Prints cells per second, over whole epochs with a
validation set of 2,000 cells, and the peak memory of the process. Needs the data of tests/shared_data.py.

`--share` says which share of the CPU time of an epoch from a file goes into reading it: the most that several runs
could save by taking the same minibatches from one reader.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata
import h5py
import numpy as np
import torch
from scipy import sparse
from speed import cpu_name, read

from ldvae import LinearSCVI

CHUNK = 10_000  # cells simulated at once
VALIDATION = 2_000


def simulate(n_obs: int, path: Path) -> None:
    """Write cells drawn from a fitted model: of a cell's posterior, then of the negative binomial."""
    adata = read("pbmc3k-2000")
    LinearSCVI.setup_anndata(adata)
    model = LinearSCVI(adata)
    model.train(30, plan_kwargs={"lr": 1e-2, "n_epochs_kl_warmup": 10}, enable_progress_bar=False)
    rng = np.random.default_rng(0)
    parameters = model.get_likelihood_parameters()
    mean, theta = parameters["mean"], parameters["dispersions"][0]
    first = adata[:1].copy()
    first.X = sparse.csr_matrix(first.shape, dtype=np.float32)
    first.write_h5ad(path)
    with h5py.File(path, "a") as file:
        del file["X"], file["obs"]
        group = file.create_group("X")
        group.attrs.update(
            {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (n_obs, mean.shape[1])}
        )
        for name, dtype in (("data", np.float32), ("indices", np.int32)):
            group.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(1 << 18,))
        indptr = [np.zeros(1, np.int64)]
        for start in range(0, n_obs, CHUNK):
            mu = mean[rng.integers(len(mean), size=min(CHUNK, n_obs - start))]
            x = sparse.csr_matrix(rng.poisson(rng.standard_gamma(theta, mu.shape) * (mu / theta)).astype(np.float32))
            end = int(indptr[-1][-1])
            for name in ("data", "indices"):
                group[name].resize((end + x.nnz,))
                group[name][end:] = getattr(x, name)
            indptr.append(end + x.indptr[1:].astype(np.int64))
        group["indptr"] = np.concatenate(indptr)
        anndata.io.write_elem(file, "obs", anndata.AnnData(shape=(n_obs, 1)).obs)


def work(path: str, how: str, epochs: int, threads: int) -> dict[str, float]:
    """Train from memory or from the file; cells per second and peak memory in MB."""
    torch.set_num_threads(threads)
    adata = anndata.read_h5ad(path, backed="r" if how == "backed" else None)
    LinearSCVI.setup_anndata(adata)
    model = LinearSCVI(adata)
    order = np.random.default_rng(0).permutation(adata.n_obs)
    split = {"external_indexing": [np.sort(order[VALIDATION:]), np.sort(order[:VALIDATION]), np.array([], int)]}
    started = time.perf_counter()
    model.train(epochs, datasplitter_kwargs=split, check_val_every_n_epoch=1, enable_progress_bar=False)
    seconds = time.perf_counter() - started
    rate = epochs * (adata.n_obs - VALIDATION) / seconds
    return {"cells_per_s": rate, "MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def share(path: Path, epochs: int, threads: int) -> None:
    """Print the CPU time of an epoch from a file, and of reading its minibatches alone."""
    torch.set_num_threads(threads)
    adata = anndata.read_h5ad(path, backed="r")
    LinearSCVI.setup_anndata(adata)
    model = LinearSCVI(adata)
    rows = np.sort(np.random.default_rng(0).permutation(adata.n_obs)[VALIDATION:])
    split = {"external_indexing": [rows, np.array([], int), np.array([], int)]}
    model.train(1, datasplitter_kwargs=split, enable_progress_bar=False)  # reads the file for the first time, compiles
    print(
        f"{time.strftime('%Y-%m-%d')}, {cpu_name()}, {threads} threads, {adata.n_obs:,} cells, {adata.n_vars:,} genes"
    )
    print("\n| epoch | CPU s | of that reading alone | share |\n|---|---|---|---|")
    for epoch in range(epochs):
        before = time.process_time()
        model.train(1, datasplitter_kwargs=split, enable_progress_bar=False)
        whole, before = time.process_time() - before, time.process_time()
        for counts, _ in model.source.minibatches(rows, 128, np.random.default_rng(epoch)):
            assert len(counts.log1p) == len(counts.genes)  # once for each buffer of cells
        alone = time.process_time() - before
        print(f"| {epoch + 1} | {whole:.2f} | {alone:.2f} | {alone / whole:.1%} |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where the simulated files are kept; a temporary one if not given")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--share", type=Path, help="a file of counts; measures what reading takes of an epoch")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        path, how, epochs = arguments.work
        print(json.dumps(work(path, how, int(epochs), arguments.threads)))
        return
    if arguments.share:
        share(arguments.share, arguments.repeats, arguments.threads)
        return
    print(f"{time.strftime('%Y-%m-%d')}, {cpu_name()}, {arguments.threads} threads, 2,000 genes")
    print("\n| cells | how | cells per second | share of in memory | peak memory | load |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        for n_obs in arguments.cells:
            path = folder / f"{n_obs}.h5ad"
            if not path.exists():
                simulate(n_obs, path)
            epochs = max(1, 100_000 // n_obs)
            command = [sys.executable, __file__, "--threads", str(arguments.threads), "--work", path]
            runs: dict[str, list[dict[str, float]]] = {"in memory": [], "backed": []}
            for _ in range(arguments.repeats):
                for how, results in runs.items():
                    done = subprocess.run([*command, how, str(epochs)], capture_output=True, text=True, check=True)
                    results.append(json.loads(done.stdout.splitlines()[-1]))
            rates = {how: statistics.median(run["cells_per_s"] for run in results) for how, results in runs.items()}
            for how, results in runs.items():
                every = [run["cells_per_s"] for run in results]
                print(
                    f"| {n_obs:,} | {how} | {rates[how]:,.0f} ({min(every):,.0f}–{max(every):,.0f}) "
                    f"| {rates[how] / rates['in memory']:.2f} | {max(run['MB'] for run in results):,.0f} MB "
                    f"| {os.getloadavg()[0]:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
