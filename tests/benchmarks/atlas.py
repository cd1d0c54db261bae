"""The workflow on an atlas: time and memory of each step by the number of cells, beside scanpy's own pipeline.

    python tests/benchmarks/atlas.py make 100000 --folder FOLDER      # writes FOLDER/atlas-100000.h5ad
    python tests/benchmarks/atlas.py run 10000 30000 100000 --folder FOLDER [--threads 2] [--only qc setup]
    python tests/benchmarks/atlas.py table --folder FOLDER [--figure docs/atlas.svg]

The atlas is simulated from pbmc3k: cells of 50 donors by 15,000 genes. A cell is the sum of two cells of the same type,
of which the depth of its donor and of the cell leave a share, gene by gene in a proportion of the donor's own; half of
the donors are stimulated, which lowers 200 genes in each type; four cells in a hundred are doublets of two types. The
numbers depend on nothing but the seed. It is written 10,000 cells at a time.

Each verb of the workflow is a process of its own, and so is scanpy's pipeline, whose memory is that of the process so
far. Of a process and its children together are measured: wall time, CPU time, and the peaks of RSS and PSS (which
counts a page that several processes share only once), looked up once a second. Results are kept in
FOLDER/atlas.tsv, so that sizes can be added. Needs the data of tests/shared_data.py.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from scipy import sparse

sys.path.insert(0, str(Path(__file__).parents[1]))

from shared_data import fetch

SEED, N_GENES, N_DONORS, CHUNK = 0, 15_000, 50, 10_000
DOUBLETS = 0.04
EPOCHS = 3  # of each training: the time of an epoch is linear in cells, their number is another question
N_TRAININGS = 2
COLUMNS = ["cells", "step", "wall_s", "cpu_s", "rss_mb", "pss_mb", "threads", "load", "date"]


# The atlas


def make(n_obs: int, path: Path) -> None:
    """Write an atlas of `n_obs` cells; a few hundred MB of memory whatever their number."""
    folder = fetch("pbmc3k_10x_mtx")
    matrix = folder / "filtered_gene_bc_matrices" / "hg19"
    import scanpy

    pbmc = scanpy.read_10x_mtx(matrix)
    pbmc.var_names_make_unique()
    types = pd.read_csv(folder / "cell_types_by_barcode.csv", index_col=0).iloc[:, 0]
    pbmc = pbmc[pbmc.obs_names.isin(types.index)]
    label = pd.Categorical(types.reindex(pbmc.obs_names))
    genes = np.sort(np.argsort(-np.asarray(pbmc.X.getnnz(axis=0)), kind="stable")[:N_GENES])
    source = sparse.csr_matrix(pbmc.X[:, genes])
    rng = np.random.default_rng(SEED)
    share_of_type = np.bincount(label.codes) / len(label)
    composition = rng.dirichlet(30 * share_of_type, N_DONORS)
    depth = rng.uniform(0.4, 0.7, N_DONORS)
    donor_effect = np.exp(-np.abs(rng.normal(0, 0.2, (N_DONORS, len(genes)))))
    stimulated = np.arange(N_DONORS) % 2 == 1
    response = np.ones((len(label.categories), len(genes)))
    for row in response:
        row[rng.choice(len(genes), 200, replace=False)] = 0.3
    members = [np.flatnonzero(label.codes == i) for i in range(len(label.categories))]
    donor = np.arange(n_obs) * N_DONORS // n_obs  # donor after donor, as atlases are put together

    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (n_obs, len(genes))})
        for name, dtype in (("data", np.float32), ("indices", np.int32)):
            group.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(1 << 18,))
        indptr = [np.zeros(1, np.int64)]
        kinds, doublets = [], []
        for start in range(0, n_obs, CHUNK):
            rng = np.random.default_rng([SEED, n_obs, start])
            own = donor[start : start + CHUNK]
            cumulated = composition.cumsum(axis=1)[own]
            first = np.minimum((rng.random(len(own))[:, None] > cumulated).sum(axis=1), len(members) - 1)
            second = np.minimum((rng.random(len(own))[:, None] > cumulated).sum(axis=1), len(members) - 1)
            is_doublet = (rng.random(len(own)) < DOUBLETS) & (first != second)
            kind = np.where(is_doublet, second, first)
            pick = [[members[t][rng.integers(len(members[t]))] for t in chosen] for chosen in (first, kind)]
            x = (source[pick[0]] + source[pick[1]]).tocsr()
            cell = np.repeat(np.arange(len(own)), np.diff(x.indptr))
            left = depth[own] * rng.lognormal(-0.05, 0.3, len(own)) * np.where(is_doublet, 1.6, 1)
            p = left[cell] * donor_effect[own[cell], x.indices]
            p *= np.where(stimulated[own[cell]], response[first[cell], x.indices], 1)
            x.data = rng.binomial(x.data.astype(np.int64), np.minimum(p, 1)).astype(np.float32)
            x.eliminate_zeros()
            x.sort_indices()
            end = int(indptr[-1][-1])
            for name in ("data", "indices"):
                group[name].resize((end + x.nnz,))
                group[name][end:] = getattr(x, name)
            indptr.append(end + x.indptr[1:].astype(np.int64))
            kinds.append(first)
            doublets.append(is_doublet)
        group["indptr"] = np.concatenate(indptr)
        obs = pd.DataFrame(
            {
                "donor": pd.Categorical([f"D{i:02d}" for i in donor]),
                "condition": pd.Categorical(np.where(stimulated[donor], "stim", "ctrl")),
                "cell_type": pd.Categorical(np.asarray(label.categories)[np.concatenate(kinds)]),
                "simulated_doublet": np.concatenate(doublets),
            },
            index=[f"cell{i}" for i in range(n_obs)],
        )
        anndata.io.write_elem(file, "obs", obs)
        anndata.io.write_elem(file, "var", pd.DataFrame(index=pbmc.var_names[genes]))
        for name in ("obsm", "varm", "obsp", "varp", "layers", "uns"):
            anndata.io.write_elem(file, name, {})
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})


# Measuring


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    for process in found:
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text().split()]
            except OSError:
                continue  # the thread has ended
    return found


def memory(pid: int) -> tuple[float, float]:
    """RSS and PSS of a process and its descendants together, in MB."""
    total = {"Rss": 0.0, "Pss": 0.0}
    for process in tree(pid):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # it has ended
        for line in lines:
            name, _, rest = line.partition(":")
            if name in total:
                total[name] += int(rest.split()[0]) / 1024
    return total["Rss"], total["Pss"]


def measured(command: list[str], log: Path, threads: int) -> dict[str, float]:
    """Run a command to its end; wall and CPU time in s, peaks of memory in MB."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, str(threads))
    started, peaks = time.perf_counter(), (0.0, 0.0)
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            peaks = tuple(map(max, peaks, memory(process.pid)))
            time.sleep(1)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text()[-3000:]}")
    return {
        "wall_s": time.perf_counter() - started,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "rss_mb": max(peaks[0], usage.ru_maxrss / 1024),
        "pss_mb": peaks[1],
    }


def scanpys(path: Path, threads: int, out: Path, doublets: bool) -> None:
    """scanpy's own pipeline in this process; a line of JSON for each step, with the peak of RSS so far."""
    import resource

    import scanpy

    scanpy.settings.n_jobs = threads
    adata = None

    def step(name: str, function) -> None:
        before, cpu = time.perf_counter(), time.process_time()
        function()
        row = {
            "step": name,
            "wall_s": time.perf_counter() - before,
            "cpu_s": time.process_time() - cpu,
            "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def qc() -> None:
        nonlocal adata
        adata = scanpy.read_h5ad(path)
        x = adata.X  # scipy cannot work on indices of two types
        wide = np.int32 if x.nnz < 2**31 else np.int64
        x.indptr, x.indices = x.indptr.astype(wide), x.indices.astype(wide)
        adata.var["mt"] = adata.var_names.str.startswith("MT-")
        scanpy.pp.calculate_qc_metrics(adata, qc_vars=["mt"], percent_top=None, log1p=False, inplace=True)
        scanpy.pp.filter_cells(adata, min_genes=1)
        scanpy.pp.filter_genes(adata, min_cells=3)

    def variable() -> None:
        try:
            scanpy.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=2000, batch_key="donor")
        except ValueError as error:  # loess, in a small donor
            print(f"seurat_v3 of each donor: {error}; of all cells together instead")
            scanpy.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=2000)

    def components() -> None:
        scanpy.pp.normalize_total(adata)
        scanpy.pp.log1p(adata)
        scanpy.pp.pca(adata, n_comps=50, mask_var="highly_variable")

    step("scanpy: read and qc", qc)
    if doublets:
        step("scanpy: doublets", lambda: scanpy.pp.scrublet(adata, batch_key="donor", verbose=False))
    step("scanpy: seurat_v3", variable)
    step("scanpy: normalize and PCA", components)
    step("scanpy: neighbors", lambda: scanpy.pp.neighbors(adata, n_neighbors=15))


def commands(atlas: Path, results: Path, threads: int, doublets: bool, replicates: bool) -> dict[str, list[str]]:
    """Each verb of the workflow, as a person would call it."""
    contrasts = json.dumps([{"column": "condition", "group1": "stim", "within": "cell_type"}, {"column": "cell_type"}])
    options: dict[str, list[str]] = {
        "qc": ["--input", str(atlas), "--batch-key", "donor", "--labels-key", "cell_type", "--threads", str(threads)],
        "setup": ["--batch-key", "donor", "--labels-key", "cell_type"],
        **{
            f"train {i}": ["--seed", str(i), "--max-epochs", str(EPOCHS), "--threads", str(threads)]
            for i in range(N_TRAININGS)
        },
        "select": [],
        "programs": [],
        "annotate": [],
        "de": ["--contrasts", contrasts, "--replicate-key", "donor"],
        "report": [],
    }
    if not doublets:
        options = {"qc without doublets": [*options.pop("qc"), "--doublets", "off"], **options}
    if not replicates:
        options = {f"{step} without replicates" if step == "de" else step: of for step, of in options.items()}
        options["de without replicates"] = ["--contrasts", contrasts]
    start = [sys.executable, "-c", "from ldvae.cli import main; import sys; sys.exit(main())"]
    return {step: [*start, step.split()[0], "--results", str(results), *flags] for step, flags in options.items()}


def run(
    n_obs: int, folder: Path, threads: int, only: list[str] | None, doublets: bool = True, replicates: bool = True
) -> None:
    """Measure every step on one atlas, and add the rows to the table."""
    atlas, results = folder / f"atlas-{n_obs}.h5ad", folder / f"results-{n_obs}"
    if not atlas.exists():  # in a process of its own: the peak of this one would count as that of those it starts
        subprocess.run([sys.executable, __file__, "make", str(n_obs), "--folder", str(folder)], check=True)
    for step, command in commands(atlas, results, threads, doublets, replicates).items():
        if only and step.split()[0] not in only:
            continue
        record(folder, n_obs, step, measured(command, folder / f"{n_obs}-{step}.log", threads), threads)
    if not only or "scanpy" in only:
        out = folder / f"scanpy-{n_obs}.jsonl"
        out.unlink(missing_ok=True)
        command = [sys.executable, __file__, "scanpy", str(n_obs), "--folder", str(folder), "--threads", str(threads)]
        command += [] if doublets else ["--no-doublets"]
        whole = measured(command, folder / f"{n_obs}-scanpy.log", threads)
        for line in out.read_text().splitlines():
            row = json.loads(line)
            record(folder, n_obs, row.pop("step"), row | {"pss_mb": np.nan}, threads)
        record(folder, n_obs, "scanpy: all" if doublets else "scanpy: all without doublets", whole, threads)


def record(folder: Path, n_obs: int, step: str, found: dict[str, float], threads: int) -> None:
    """Add a row to the table of the folder, in place of an earlier one of the same step and size."""
    path = folder / "atlas.tsv"
    known = pd.read_csv(path, sep="\t") if path.exists() else pd.DataFrame(columns=COLUMNS)
    known = known[(known["cells"] != n_obs) | (known["step"] != step)]
    row = {"cells": n_obs, "step": step, **{name: round(value, 1) for name, value in found.items()}}
    row |= {"threads": threads, "load": round(os.getloadavg()[0], 1), "date": time.strftime("%Y-%m-%d %H:%M")}
    rows = [*known.to_dict("records"), row]
    pd.DataFrame(rows, columns=COLUMNS).to_csv(path, sep="\t", index=False)
    print("\t".join(str(row.get(name, "")) for name in COLUMNS), flush=True)


# What is shown


def slope(cells: pd.Series, values: pd.Series) -> float:
    """Slope of the logarithms between the two largest sizes: 1 is linear."""
    order = np.argsort(cells.to_numpy())[-2:]
    ends, found = np.log(cells.to_numpy()[order]), np.log(values.to_numpy()[order])
    return float((found[1] - found[0]) / (ends[1] - ends[0])) if len(order) == 2 else np.nan


def table(folder: Path) -> None:
    """Print what was measured as Markdown: a row for each step, CPU time and peak memory by size."""
    found = pd.read_csv(folder / "atlas.tsv", sep="\t")
    sizes = sorted(found["cells"].unique())
    print(f"| step | {' | '.join(f'{n:,} cells' for n in sizes)} | slope of CPU time | slope of memory |")
    print("|---|" + "---|" * (len(sizes) + 2))
    for step, own in found.groupby("step", sort=False):
        own = own.set_index("cells")
        cells = []
        for n in sizes:
            if n not in own.index:
                cells.append("")
                continue
            row = own.loc[n]
            private = "" if np.isnan(row["pss_mb"]) else f" ({row['pss_mb']:,.0f})"
            cells.append(f"{row['cpu_s']:,.0f} s, {row['rss_mb']:,.0f}{private} MB")
        slopes = [slope(own.index.to_series(), own[name]) for name in ("cpu_s", "rss_mb")]
        ends = ["" if np.isnan(value) else f"{value:.2f}" for value in slopes]
        print(f"| {step} | {' | '.join(cells)} | {' | '.join(ends)} |")


def figure(folder: Path, path: Path) -> None:
    """Draw time and memory against cells, log-log, each step a line with its slope between the two largest sizes."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    plt.rcParams["svg.hashsalt"] = "atlas"
    found = pd.read_csv(folder / "atlas.tsv", sep="\t")
    found = found[~found["step"].str.startswith("scanpy") | (found["step"] == "scanpy: all")]
    # The first training may have compiled its code.
    found = found[found["step"] != "train 0"].replace({"step": {"train 1": f"train ({EPOCHS} epochs)"}})
    drawing, axes = plt.subplots(1, 2, figsize=(10, 5), layout="constrained")
    for ax, name, label in (
        (axes[0], "cpu_s", "CPU time (s)"),
        (axes[1], "rss_mb", "peak memory, RSS (MB)"),
    ):
        for i, (step, own) in enumerate(found.groupby("step", sort=False)):
            own = own.sort_values("cells")
            text = f"{step} ({slope(own['cells'], own[name]):.2f})" if len(own) > 1 else str(step)
            style = {"color": "black", "linestyle": "--"} if str(step).startswith("scanpy") else {"color": f"C{i}"}
            ax.plot(own["cells"], own[name], marker="o", markersize=3, label=text, **style)
        ax.set(xscale="log", yscale="log", xlabel="cells", ylabel=label)
        for axis, subs in ((ax.xaxis, (1,)), (ax.yaxis, (1, 2, 5))):
            axis.set_major_locator(LogLocator(subs=subs))
            axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axis.set_minor_locator(NullLocator())
        ax.legend(
            frameon=False, fontsize=8, title="slope between the largest sizes", title_fontsize=8, ncols=2,
            loc="upper center", bbox_to_anchor=(0.5, -0.16),
        )  # fmt: skip
        ax.spines[["top", "right"]].set_visible(False)
    axes[1].axhline(4096, color="grey", linewidth=0.8, linestyle=":")
    axes[1].annotate("4 GB", (0.02, 4096), xycoords=("axes fraction", "data"), color="grey", fontsize=8, va="bottom")
    drawing.savefig(path, metadata={"Date": None})


def main() -> None:
    """Make, measure or show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "run", "table", "scanpy"])
    parser.add_argument("cells", type=int, nargs="*", default=[])
    parser.add_argument("--folder", type=Path, required=True, help="of the atlases, their results and the table")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="verbs to measure, or scanpy")
    parser.add_argument(
        "--no-doublets", action="store_true", help="leave out doublets, the longest part of qc and of scanpy"
    )
    parser.add_argument("--no-replicates", action="store_true", help="leave out pseudobulks, the longest part of de")
    parser.add_argument("--figure", type=Path, help="where `table` draws the figure")
    parser.add_argument("--remove", action="store_true", help="remove the results of a size once it is measured")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for n_obs in arguments.cells:
        path = arguments.folder / f"atlas-{n_obs}.h5ad"
        if arguments.what == "make":
            started = time.perf_counter()
            make(n_obs, path)
            print(f"{path}: {time.perf_counter() - started:.0f} s, {path.stat().st_size / 1e6:.0f} MB")
        elif arguments.what == "scanpy":
            out = arguments.folder / f"scanpy-{n_obs}.jsonl"
            scanpys(path, arguments.threads, out, not arguments.no_doublets)
        elif arguments.what == "run":
            parts = {"doublets": not arguments.no_doublets, "replicates": not arguments.no_replicates}
            run(n_obs, arguments.folder, arguments.threads, arguments.only, **parts)
            if arguments.remove:
                shutil.rmtree(arguments.folder / f"results-{n_obs}", ignore_errors=True)
    if arguments.what == "table":
        table(arguments.folder)
        if arguments.figure:
            figure(arguments.folder, arguments.figure)


if __name__ == "__main__":
    main()
