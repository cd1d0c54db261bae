"""Speed and memory beside scvi-tools: the same work on the same data, one after the other.

    python tests/benchmarks/speed.py [--repeats 5] [--threads 2] [--only NAME] [--python PYTHON]

Prints a table: median and range of both, and their ratio. Each measurement is a process of its own, the two packages
taking turns, so that both meet the same load. scvi-tools 1.4.2 runs in an environment of its own, which is made in
.venv-scvi if PYTHON (one that has it) is not given. Needs the data of tests/shared_data.py.

The data are h5ad files that anndata reads: neither package is charged with the memory of scanpy. Training is timed
over whole epochs with validation after each, after a first epoch that is not counted. Memory is the peak of the process
so far; in brackets what the process has for itself after the work, without the files of libraries that it maps. "import
to first epoch" is with kernels compiled and cached. The ratio of the CPU times is the one to read where the machine was
not idle (with one thread: threads that wait may count).
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from shared_data import fetch

ROOT = Path(__file__).parents[2]
REFERENCE = "scvi-tools==1.4.2"


class Case(NamedTuple):
    """What one process measures, one thing after the other."""

    data: str
    likelihood: str
    epochs: int
    methods: tuple[str, ...] = ()  # called after the training


INFERENCE = ("get_latent_representation", "get_normalized_expression", "get_elbo")
CASES = {
    "pbmc3k, 2,000 genes": Case("pbmc3k-2000", "nb", 12, INFERENCE),
    "pbmc3k, all genes": Case("pbmc3k", "nb", 5),
    "pbmc3k, 2,000 genes, zinb": Case("pbmc3k-2000", "zinb", 8),
    "pbmc3k, 2,000 genes, poisson": Case("pbmc3k-2000", "poisson", 8),
    "kang, 8 batches": Case("kang", "nb", 3, (*INFERENCE, "differential_expression")),
}


def read(name: str):
    """A data set as AnnData; the 2,000 genes are the most variable ones by scanpy's default."""
    import anndata
    import scanpy as sc

    if name == "kang":
        return anndata.read_h5ad(fetch("kang2018_ctrl_8donors.h5ad"))
    adata = sc.read_10x_mtx(fetch("pbmc3k_10x_mtx") / "filtered_gene_bc_matrices" / "hg19")
    adata.var_names_make_unique()
    sc.pp.filter_genes(adata, min_cells=3)
    if name == "pbmc3k-2000":
        normalized = sc.pp.log1p(sc.pp.normalize_total(adata, target_sum=1e4, copy=True), copy=True)
        sc.pp.highly_variable_genes(normalized, n_top_genes=2000)
        adata = adata[:, normalized.var["highly_variable"].to_numpy()].copy()
    return adata


def private_mb() -> float:
    """Memory that this process alone has, without files that it maps, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def work(package: str, name: str, threads: int, folder: Path) -> dict[str, dict[str, float]]:
    """Do a case with one package; seconds (per epoch, for training) and peak memory in MB of each part."""
    import anndata

    case = CASES[name]
    adata = anndata.read_h5ad(folder / f"{case.data}.h5ad")
    parts: dict[str, dict[str, float]] = {}

    def measure(part: str, do: Callable[[], object], times: int = 1) -> None:
        started, cpu_started = time.perf_counter(), time.process_time()
        do()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu_started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        parts[part] = {"seconds": seconds / times, "CPU": cpu / times, "MB": peak, "private MB": private_mb()}

    def first_epoch() -> None:
        if package == "ldvae":
            from ldvae import LinearSCVI
        else:
            from scvi.model import LinearSCVI
        import torch

        nonlocal model
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        LinearSCVI.setup_anndata(adata, **({"batch_key": "batch"} if case.data == "kang" else {}))
        model = LinearSCVI(adata, gene_likelihood=case.likelihood)
        train(1)

    def train(n: int) -> None:
        model.train(
            n,
            accelerator="cpu",
            train_size=0.9,
            check_val_every_n_epoch=1,
            enable_progress_bar=False,
            early_stopping=False,
        )

    model = None
    measure("import to first epoch", first_epoch)
    measure("training", lambda: train(case.epochs), case.epochs)
    for method in case.methods:
        options = {}
        if method == "differential_expression":
            options = {"groupby": "cell_type", "mode": "change", "silent": True}
        call = partial(getattr(model, method), **options)
        times = 1 if method == "differential_expression" else 5
        measure(method, lambda call=call, times=times: [call() for _ in range(times)], times)
    return parts


def reference_python() -> Path:
    """Python of an environment with scvi-tools, which is made if it is not there."""
    folder = ROOT / ".venv-scvi"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        torch = subprocess.run(
            [sys.executable, "-c", "import torch; print(torch.__version__.split('+')[0])"],
            capture_output=True,
            text=True,
        ).stdout.strip()
        subprocess.run([python, "-m", "pip", "install", "-q", REFERENCE, "scanpy", f"torch=={torch}"], check=True)
        (folder / "complete").touch()
    return python


def cpu_name() -> str:
    """What the kernel calls the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def measure(python: Path, package: str, name: str, threads: int, folder: Path) -> dict[str, dict[str, float]]:
    """A case in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    command = [python, __file__, "--work", package, name, str(folder), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{package}, {name}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--python", type=Path, help="Python that has scvi-tools")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        package, name, folder = arguments.work
        print(json.dumps(work(package, name, arguments.threads, Path(folder))))
        return
    pythons = {"scvi": arguments.python or reference_python(), "ldvae": Path(sys.executable)}
    print(f"{time.strftime('%Y-%m-%d')}, {cpu_name()}, {arguments.threads} threads of {os.cpu_count()} cores")
    print(
        f"load {os.getloadavg()[0]:.1f}, {arguments.repeats} repeats, Python {platform.python_version()}, {REFERENCE}"
    )
    print("\n| work | scvi-tools | ldvae | times faster | times less CPU | MB (private), scvi-tools | ldvae | load |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in (name for name in CASES if arguments.only in name):
            file = folder / f"{CASES[name].data}.h5ad"
            if not file.exists():
                read(CASES[name].data).write_h5ad(file)
            measure(pythons["ldvae"], "ldvae", name, arguments.threads, folder)  # kernels compiled
            runs = {package: [] for package in pythons}
            for _ in range(arguments.repeats):
                for package, python in pythons.items():
                    runs[package].append(measure(python, package, name, arguments.threads, folder))
            for part in runs["ldvae"][0]:
                print(f"| {part}, {name} {row(part, runs)} | {os.getloadavg()[0]:.1f} |", flush=True)


def row(part: str, runs: dict[str, list[dict[str, dict[str, float]]]]) -> str:
    """Medians of a part, with the range of the times, and their ratios."""
    values = {package: {unit: [run[part][unit] for run in of] for unit in of[0][part]} for package, of in runs.items()}
    middle = {package: {unit: statistics.median(of) for unit, of in units.items()} for package, units in values.items()}
    times = [
        f"{middle[package]['seconds']:.3g} s ({min(of['seconds']):.3g}–{max(of['seconds']):.3g})"
        for package, of in values.items()
    ]
    ratios = [f"{middle['scvi'][unit] / middle['ldvae'][unit]:.1f}" for unit in ("seconds", "CPU")]
    memory = [f"{middle[package]['MB']:.0f} ({middle[package]['private MB']:.0f}) MB" for package in values]
    return "| " + " | ".join(times + ratios + memory)


if __name__ == "__main__":
    main()
