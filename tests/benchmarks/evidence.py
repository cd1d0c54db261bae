"""What is said of programs, against simulations and permutations: technical flags, differences between donors.

    python tests/benchmarks/evidence.py technical
    python tests/benchmarks/evidence.py donors results/kang
    python tests/benchmarks/evidence.py markers ../shared/data
    python tests/benchmarks/evidence.py pairs

The first simulates programs that follow the experiment and programs that only seem to, and counts the flags. The second
takes the means of a dataset's donors, exchanges the conditions within donors in all ways, and counts the p values below
0.05. The third looks for the known markers of blood cells among those of their types, each against the rest. The fourth
compares simulated pseudobulks of many donors with the donors in the design of DESeq2, and without them.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from time import process_time

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import read_h5ad
from scipy import sparse

from ldvae import results as layout
from ldvae.markers import rank_sum_test, telling
from ldvae.programs import compare_conditions, technical_flags
from ldvae.programs.associations import is_no_label
from ldvae.programs.donors import DOUBTFUL
from ldvae.steps.de import deseq2

TECHNICAL = ["total_counts", "pct_counts_mt", "pct_counts_ribo", "predicted_doublet", "batch"]


def cells(rng: np.random.Generator, n_obs: int) -> pd.DataFrame:
    """Cells of six types and two conditions in three batches, with quality metrics that depend on the type."""
    obs = pd.DataFrame(index=[f"c{i}" for i in range(n_obs)])
    kind = rng.choice(6, n_obs, p=[0.3, 0.25, 0.2, 0.12, 0.1, 0.03])
    obs["cell_type"] = pd.Categorical([f"type {k}" for k in kind])
    obs["condition"] = rng.choice(["ctrl", "stim"], n_obs)
    obs["batch"] = rng.choice(["a", "b", "c"], n_obs)
    obs["total_counts"] = np.round(rng.lognormal(8 + rng.normal(0, 0.3, 6)[kind], 0.4))
    obs["pct_counts_mt"] = rng.gamma(4, 1 + rng.uniform(0, 0.5, 6)[kind])
    obs["pct_counts_ribo"] = rng.normal(25 + rng.normal(0, 6, 6)[kind], 4)  # T cells have twice that of monocytes
    obs["predicted_doublet"] = rng.random(n_obs) < 0.04
    return obs


def standard(values: np.ndarray) -> np.ndarray:
    """Values with zero mean and unit variance."""
    return (values - values.mean()) / values.std()


def simulated(rng: np.random.Generator, obs: pd.DataFrame) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Scores of innocent programs, and of programs that follow the experiment, by kind."""
    kind, n = obs["cell_type"].cat.codes.to_numpy(), len(obs)

    def noise(share: float = 0.6) -> np.ndarray:
        return rng.normal(0, share, n)

    stim = (obs["condition"] == "stim").to_numpy(float)
    types = rng.normal(0, 1, 6)
    innocent = {
        "identity": standard((kind == rng.integers(5)) + noise(0.3)),
        "several types": standard(types[kind] + noise()),
        "type that follows the ribosomal share": standard(
            obs.groupby("cell_type", observed=True)["pct_counts_ribo"].transform("mean").to_numpy() / 6 + noise(0.5)
        ),
        "rare type": standard((kind == 5) + noise(0.15)),
        "condition": standard(stim + noise(0.4)),
        "condition in one type": standard(stim * (kind == 0) + noise(0.3)),
        "activity in a tenth of the cells": standard((rng.random(n) < 0.1) + noise(0.2)),
        "gradient": standard(rng.normal(size=n)),
    }
    log_depth, batch = np.log(obs["total_counts"]), pd.factorize(obs["batch"])[0]
    depth = standard(log_depth.to_numpy())
    within = log_depth - log_depth.groupby(obs["cell_type"], observed=True).transform("mean")
    technical = {
        "depth": standard(standard(within.to_numpy()) + noise()),
        "depth, partly a type": standard(depth + 0.7 * types[kind] + noise(0.4)),
        "batch": standard((batch == rng.integers(3)) + noise(0.25)),
        "mitochondrial share": standard(standard(obs["pct_counts_mt"].to_numpy()) + noise()),
        "doublets": standard(3 * obs["predicted_doublet"].to_numpy(float) + noise(0.3)),
    }
    return innocent, technical


def technical(n_draws: int, n_obs: int) -> None:
    """Print the share of flagged programs of each kind."""
    flagged: dict[tuple[str, str], list[bool]] = {}
    for draw in range(n_draws):
        rng = np.random.default_rng(400 + draw)
        obs = cells(rng, n_obs)
        for truth, programs in zip(("innocent", "technical"), simulated(rng, obs), strict=True):
            scores = pd.DataFrame(programs, index=obs.index)
            share = pd.Series(0.08, scores.columns)
            for name, reason in technical_flags(scores, obs, share, technical=TECHNICAL).items():
                flagged.setdefault((truth, str(name)), []).append(bool(reason))
    for truth in ("innocent", "technical"):
        own = {name: values for (group, name), values in flagged.items() if group == truth}
        print(f"{truth}: {np.mean(list(own.values())):.3f} flagged ({n_draws} draws of {n_obs:,} cells)")
        for name, values in own.items():
            print(f"  {name:40s} {np.mean(values):.3f}")


def donors(results: Path) -> None:
    """Print the share of p values below 0.05 under all exchanges of conditions within donors, and what is found."""
    means = layout.DONOR_MEANS.read_table(results)
    doubtful = [name for name in means["donor"].unique() if DOUBTFUL.search(str(name).replace("_", " "))]
    means = means[~means["donor"].isin(doubtful)]
    names = sorted(means["donor"].unique())
    first, second = sorted(means["condition"].unique())[:2]
    means = means[means["condition"].isin([first, second])]
    other = means["condition"].map({first: second, second: first})
    # An exchange and its mirror image give the same p: the first donor stays. As they were is the truth, not chance.
    exchanges = [(False, *rest) for rest in product([False, True], repeat=len(names) - 1) if any(rest)]
    swapped = []
    for number, exchange in enumerate(exchanges):  # each exchange has programs of its own: all are tested at once
        swap = means["donor"].map(dict(zip(names, exchange, strict=True))).astype(bool)
        condition = other.where(swap, means["condition"])
        swapped.append(means.assign(condition=condition, program=means["program"] + f"/{number}"))
    tests = compare_conditions(pd.concat(swapped, ignore_index=True))
    kind, p = tests["cell_type"], tests["p"]
    per_exchange = (p < 0.05).groupby(tests["program"].str.split("/").str[1]).mean()
    print(
        f"{len(exchanges)} exchanges of {first} and {second} within {len(names)} donors"
        f"{f' (without {doubtful})' if doubtful else ''}, {len(p):,} tests: {(p < 0.05).mean():.4f} of p below 0.05 "
        f"(tenth to ninetieth percentile over exchanges {per_exchange.quantile(0.1):.3f} to "
        f"{per_exchange.quantile(0.9):.3f}), {(p < 0.01).mean():.4f} below 0.01"
    )
    print((p < 0.05).groupby(kind).agg(["mean", "size"]).round(4).to_string())
    table = compare_conditions(means)
    found = table.assign(found=table["padj"] < 0.05).groupby("program", sort=False)["found"].agg(["sum", "size"])
    print("As it was, cell types with a difference (adjusted p below 0.05) and cell types tested, by program:")
    print(found.to_string())
    strongest = table[table["program"] == found["sum"].idxmax()]
    columns = ["program", "cell_type", "n_donors", "paired", "effect", "lower", "upper", "p", "padj"]
    print(strongest[columns].to_string(index=False, float_format=lambda value: f"{value:.3g}"))


# Types that each gene is known to mark; in both datasets FCGR3A+ monocytes and NK cells share FCGR3A.
MARKERS = {
    "IL7R": ["CD4 T cells"],
    "CCR7": ["CD4 T cells"],
    "CD8A": ["CD8 T cells"],
    "NKG7": ["NK cells"],
    "GNLY": ["NK cells"],
    "MS4A1": ["B cells"],
    "CD14": ["CD14+ Monocytes"],
    "FCGR3A": ["FCGR3A+ Monocytes"],
    "FCER1A": ["Dendritic cells"],
    "PPBP": ["Megakaryocytes"],
}


def markers(data: Path) -> None:
    """Print the rank of each known marker among the genes that are higher in its type than in all other cells."""
    pbmc = sc.read_10x_mtx(data / "pbmc3k_10x_mtx" / "filtered_gene_bc_matrices" / "hg19")
    types = pd.read_csv(data / "pbmc3k_10x_mtx" / "cell_types_by_barcode.csv", index_col=0).iloc[:, 0]
    pbmc.obs["cell_type"] = types.reindex(pbmc.obs_names).astype(str)
    kang = read_h5ad(data / "kang2018_stim_ctrl.h5ad")
    for name, adata in {"pbmc3k": pbmc, "kang": kang}.items():
        counts = sparse.csr_matrix(adata.X)
        kinds = adata.obs["cell_type"].astype(str)
        known = ~kinds.map(is_no_label).to_numpy(bool)  # as `ldvae de` has it
        tables = {}
        rows = []
        for gene, wanted in MARKERS.items():
            if gene not in adata.var_names:
                rows.append({"gene": gene, "type": "not measured"})
                continue
            for kind in wanted:
                inside = np.flatnonzero((kinds == kind).to_numpy())
                if kind not in tables:
                    outside = np.setdiff1d(np.flatnonzero(known), inside)
                    table = rank_sum_test(counts, list(adata.var_names), inside, outside)
                    order = telling(table, len(inside), len(outside)).where(table["auc"] > 0.5, -1)
                    tables[kind] = table.loc[order.sort_values(ascending=False, kind="stable").index]
                table = tables[kind]
                own = table.loc[gene]
                row = {"gene": gene, "type": kind, "cells": len(inside), "rank": table.index.get_loc(gene) + 1}
                row |= {f"rank by {k}": int((table[k] > own[k]).sum()) + 1 for k in ("auc", "log2fc")}
                rows.append(row | {k: own[k] for k in ("auc", "log2fc", "detected1", "detected2")})
        print(name)
        print(pd.DataFrame(rows).round(2).to_string(index=False), flush=True)


def pairs(numbers: list[int], n_vars: int = 600, changed: int = 60) -> None:
    """A tenth of the genes differ by 0.5 (log2), donors by a third of a gene; one side is a third as deep."""
    for n in numbers:
        rng = np.random.default_rng(0)
        mean, truth = rng.lognormal(2, 1.5, n_vars), np.zeros(n_vars)
        truth[:changed] = rng.choice([-0.5, 0.5], changed)
        donor = rng.lognormal(0, 0.3, (n, n_vars))
        samples = pd.DataFrame(
            [(side, f"d{i}") for side in ("one", "two") for i in range(n)], columns=["side", "replicate"]
        )
        rates = []
        for depth, change in ((-1, truth), (0, 0 * truth)):
            rates.append(mean * donor * rng.lognormal(depth, 0.4, (n, 1)) * 2**change)
        counts = pd.DataFrame(rng.poisson(rng.gamma(1 / 0.08, np.vstack(rates) * 0.08)), index=samples.index.map(str))
        counts.columns = [f"G{j}" for j in range(n_vars)]
        for design in ("~replicate + side", "~side"):
            start = process_time()
            table = deseq2(counts, samples.set_axis(counts.index), design)
            took = process_time() - start
            without, found = (
                (table["pseudobulk_p"][changed:] < 0.05).mean(),
                (table["pseudobulk_padj"][:changed] < 0.05).sum(),
            )
            print(
                f"{n} pairs, {design}: {took:.1f} CPU s; null p below 0.05: {without:.3f}; {found} of {changed} found"
            )


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("technical")
    one.add_argument("--draws", type=int, default=100)
    one.add_argument("--cells", type=int, default=2000)
    two = commands.add_parser("donors")
    two.add_argument("results", type=Path)
    three = commands.add_parser("markers")
    three.add_argument("data", type=Path)
    four = commands.add_parser("pairs")
    four.add_argument("numbers", type=int, nargs="*", default=[8, 50, 120])
    arguments = parser.parse_args()
    if arguments.command == "technical":
        technical(arguments.draws, arguments.cells)
    elif arguments.command == "donors":
        donors(arguments.results)
    elif arguments.command == "pairs":
        pairs(arguments.numbers)
    else:
        markers(arguments.data)


if __name__ == "__main__":
    main()
