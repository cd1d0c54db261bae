"""Speed and memory beside scvi-tools: the same work on the same data, one after the other.

    python tests/benchmarks/speed.py [--repeats 5] [--threads 2] [--only TEXT] [--python PYTHON]

Prints a table: median and range of both, and their ratio. Each measurement is a process of its own, the two packages
taking turns, so that both meet the same load. scvi-tools 1.4.2 runs in an environment of its own, which is made in
.venv-scvi if PYTHON (one that has it) is not given. Needs the data of ../shared/data.

Training is timed over whole epochs with validation after each, after a first epoch that is not counted; memory is the
peak of the process. "first epoch" is timed from the import of the package on, kernels compiled and cached. The ratio of
the CPU times is the one to read where the machine was not idle (with one thread: threads that wait may count).
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
REFERENCE = "scvi-tools==1.4.2"

# name: what is measured, data set, likelihood, epochs
TASKS = {
    "train, pbmc3k, 2,000 genes": ("train", "pbmc3k-2000", "nb", 12),
    "train, pbmc3k, all genes": ("train", "pbmc3k", "nb", 5),
    "train, pbmc3k, 2,000 genes, zinb": ("train", "pbmc3k-2000", "zinb", 8),
    "train, pbmc3k, 2,000 genes, poisson": ("train", "pbmc3k-2000", "poisson", 8),
    "train, kang, 8 batches": ("train", "kang", "nb", 3),
    "get_latent_representation": ("get_latent_representation", "pbmc3k-2000", "nb", 1),
    "get_normalized_expression": ("get_normalized_expression", "pbmc3k-2000", "nb", 1),
    "get_elbo": ("get_elbo", "pbmc3k-2000", "nb", 1),
    "differential_expression, kang, 8 types": ("differential_expression", "kang", "nb", 1),
    "first epoch, pbmc3k, 2,000 genes": ("first epoch", "pbmc3k-2000", "nb", 1),
}


def read(name: str):
    """A data set as AnnData; the 2,000 genes are the most variable ones by scanpy's default."""
    import anndata
    import scanpy as sc

    if name == "kang":
        return anndata.read_h5ad(DATA / "kang2018_ctrl_8donors.h5ad")
    adata = sc.read_10x_mtx(DATA / "pbmc3k_10x_mtx" / "filtered_gene_bc_matrices" / "hg19")
    adata.var_names_make_unique()
    sc.pp.filter_genes(adata, min_cells=3)
    if name == "pbmc3k-2000":
        normalised = sc.pp.log1p(sc.pp.normalize_total(adata, target_sum=1e4, copy=True), copy=True)
        sc.pp.highly_variable_genes(normalised, n_top_genes=2000)
        adata = adata[:, normalised.var["highly_variable"].to_numpy()].copy()
    return adata


def work(package: str, task: str, threads: int) -> dict[str, float]:
    """Do a task with one package; seconds (per epoch, for training) and peak memory in MB."""
    kind, data, likelihood, epochs = TASKS[task]
    adata = read(data)
    began = time.perf_counter()
    if package == "ldvae":
        from ldvae import LinearSCVI
    else:
        from scvi.model import LinearSCVI
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    batch = {"batch_key": "batch"} if data == "kang" else {}
    LinearSCVI.setup_anndata(adata, **batch)
    model = LinearSCVI(adata, gene_likelihood=likelihood)

    def train(n: int) -> None:
        model.train(
            n,
            accelerator="cpu",
            train_size=0.9,
            check_val_every_n_epoch=1,
            enable_progress_bar=False,
            early_stopping=False,
        )

    train(1)
    if kind == "first epoch":
        seconds, cpu = time.perf_counter() - began, time.process_time()
    else:
        started, cpu_started = time.perf_counter(), time.process_time()
        if kind == "train":
            train(epochs)
        elif kind == "differential_expression":
            column = next(c for c in ("cell_type", "celltype", "cell", "ident") if c in adata.obs)
            model.differential_expression(groupby=column, mode="change", silent=True)
        else:
            getattr(model, kind)()
        seconds, cpu = (time.perf_counter() - started) / epochs, (time.process_time() - cpu_started) / epochs
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "CPU": cpu, "MB": peak / 1024}


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


def measure(python: Path, package: str, task: str, threads: int) -> dict[str, float]:
    """A task in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    command = [python, __file__, "--work", package, task, "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{package}, {task}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="tasks whose name contains this")
    parser.add_argument("--python", type=Path, help="Python that has scvi-tools")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(work(*arguments.work, arguments.threads)))
        return
    if not DATA.is_dir():
        print(f"The data are not there ({DATA}).")
        return
    pythons = {"scvi": arguments.python or reference_python(), "ldvae": Path(sys.executable)}
    print(f"{time.strftime('%Y-%m-%d')}, {cpu_name()}, {arguments.threads} threads of {os.cpu_count()} cores")
    print(
        f"load {os.getloadavg()[0]:.1f}, {arguments.repeats} repeats, Python {platform.python_version()}, {REFERENCE}"
    )
    print("\n| work | scvi-tools | ldvae | times faster | times less CPU | memory of scvi-tools | of ldvae | load |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for task in TASKS:
        if arguments.only not in task:
            continue
        measure(pythons["ldvae"], "ldvae", task, arguments.threads)  # kernels compiled
        runs = {package: [] for package in pythons}
        for _ in range(arguments.repeats):
            for package, python in pythons.items():
                runs[package].append(measure(python, package, task, arguments.threads))
        seconds = {package: [run["seconds"] for run in values] for package, values in runs.items()}
        middle = {package: statistics.median(values) for package, values in seconds.items()}
        spread = {p: f"{middle[p]:.3g} s ({min(v):.3g}–{max(v):.3g})" for p, v in seconds.items()}
        cpu = {package: statistics.median(run["CPU"] for run in values) for package, values in runs.items()}
        memory = {package: statistics.median(run["MB"] for run in values) for package, values in runs.items()}
        print(
            f"| {task} | {spread['scvi']} | {spread['ldvae']} | {middle['scvi'] / middle['ldvae']:.1f} "
            f"| {cpu['scvi'] / cpu['ldvae']:.1f} "
            f"| {memory['scvi']:.0f} MB | {memory['ldvae']:.0f} MB | {os.getloadavg()[0]:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
