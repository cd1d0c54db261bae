"""Programs of several datasets against the truth, other methods, and real donors; numbers: docs/benchmarks.md.

python tests/benchmarks/across.py cohorts --first 10 --draws 5 [--cnmf /path/to/bin/python]
python tests/benchmarks/across.py kang ../shared/data/kang2018_stim_ctrl.h5ad --seeds 3
python tests/benchmarks/across.py outside ../shared/data [--starcat]

A cohort has 8 samples; 6 programs are shared (3 identities, 3 activities) and each sample has 2 of its own. Samples
differ in composition, in the level of every gene (batch effects) and in depth; each shared identity is missing from a
quarter of the samples. --cnmf names the Python of an environment with cNMF (pip install cnmf); --starcat needs
starCAT beside ldvae (pip install starcatpy).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import roc_auc_score, silhouette_score

from ldvae import fit_sweep
from ldvae import programs as gp
from ldvae.config import ModelConfig, SweepConfig, TrainConfig
from ldvae.io import read_input
from ldvae.model import LinearSCVI
from ldvae.steps.setup import most_variable

N_SAMPLES, N_SHARED, N_PRIVATE, N_GENES = 8, 6, 2, 600
FOUND = 0.5  # cosine with the truth from which a program counts as found in its sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    cohorts = verbs.add_parser("cohorts")
    cohorts.add_argument("--first", type=int, default=0)
    cohorts.add_argument("--draws", type=int, default=5)
    cohorts.add_argument("--seeds", type=int, default=len(SweepConfig().seeds))
    cohorts.add_argument("--cells", type=int, default=700)
    cohorts.add_argument("--epochs", type=int, help="not given: those of the workflow")
    cohorts.add_argument("--cnmf", help="Python of an environment with cnmf")
    cohorts.add_argument("--only", choices=["ldvae", "cnmf"], help="one of the two alone; rows of the other are kept")
    cohorts.add_argument("--rows", type=Path, help="add the rows to those of this file (tsv), and summarise all")
    kang = verbs.add_parser("kang")
    kang.add_argument("counts", type=Path)
    kang.add_argument("--seeds", type=int, default=2)
    kang.add_argument("--epochs", type=int, default=200)
    kang.add_argument("--genes", type=int, default=2000)
    kang.add_argument("--cells", type=int, help="most cells of a donor; not given: all")
    outside = verbs.add_parser("outside")
    outside.add_argument("data", type=Path)
    outside.add_argument("--seeds", type=int, default=5)
    outside.add_argument("--epochs", type=int)
    outside.add_argument("--starcat", action="store_true")
    arguments = vars(parser.parse_args())
    {"cohorts": run_cohorts, "kang": run_kang, "outside": run_outside}[arguments.pop("verb")](**arguments)


class Sample(NamedTuple):
    """Counts of one sample, and the programs that its cells have."""

    adata: AnnData
    truth: pd.DataFrame  # genes by programs; shared ones S1, …, own ones such as d3:1


def cohort(seed: int, n_cells: int) -> dict[str, Sample]:
    """Samples with shared and private programs, by name."""
    rng = np.random.default_rng(seed)
    genes = [f"gene_{g}" for g in range(N_GENES)]
    base = np.minimum(rng.exponential(1.1, N_GENES), 5.5)
    theta = rng.lognormal(np.log(5), 0.5, N_GENES)

    def program() -> np.ndarray:
        effect = np.zeros(N_GENES)
        chosen = rng.choice(N_GENES, 55, replace=False)
        effect[chosen] = np.maximum(rng.normal(1.2, 0.4, 55), 0.3) * np.where(np.arange(55) < 42, 1, -1)
        return effect

    shared = {f"S{k + 1}": program() for k in range(N_SHARED)}
    identities = list(shared)[: N_SHARED // 2]
    lacking = {name: set(rng.choice(N_SAMPLES, N_SAMPLES // 4, replace=False)) for name in identities}
    samples = {}
    for d in range(N_SAMPLES):
        kinds = [name for name in identities if d not in lacking[name]]
        own = {f"d{d}:{k + 1}": program() for k in range(N_PRIVATE)}  # one identity, one activity
        n = int(n_cells * rng.uniform(0.7, 1.3))
        kinds = [*kinds, f"d{d}:1"]
        # A type has 8 % of the cells or more; the rest has none.
        share = 0.08 + (0.85 - 0.08 * len(kinds)) * rng.dirichlet(np.full(len(kinds), 2.0))
        identity = rng.choice(len(kinds) + 1, size=n, p=[*share, 1 - share.sum()])
        scores = {name: (identity == k).astype(float) for k, name in enumerate(kinds)}
        for name in [*list(shared)[N_SHARED // 2 :], f"d{d}:2"]:
            scores[name] = (rng.random(n) < rng.uniform(0.15, 0.45)) * rng.uniform(0.5, 1.5, n)
        truth = pd.DataFrame({name: (shared | own)[name] for name in scores}, genes)
        log = base + rng.normal(0, 0.3, N_GENES) + pd.DataFrame(scores).to_numpy() @ truth.to_numpy().T
        rate = np.exp(log - log.max(axis=1, keepdims=True))
        rate /= rate.sum(axis=1, keepdims=True)
        total = rng.lognormal(np.log(rng.uniform(1200, 3000)), 0.4, n)
        counts = rng.poisson(rng.gamma(theta, rate * total[:, None] / theta)).astype(np.float32)
        adata = AnnData(sparse.csr_matrix(counts), obs=pd.DataFrame(index=[f"d{d}_{i}" for i in range(n)]))
        adata.var_names = genes
        samples[f"d{d}"] = Sample(adata, truth)
    return samples


class Fitted(NamedTuple):
    """Programs of one dataset, and what scoring other cells needs."""

    programs: gp.Programs
    frame: gp.Frame


def fitted(adata: AnnData, seeds: int, epochs: int | None, factors: int = 12) -> Fitted:
    """Programs of a dataset from several seeds."""
    LinearSCVI.setup_anndata(adata)
    fits = fit_sweep(
        adata,
        SweepConfig(seeds=list(range(seeds))),
        model=ModelConfig(n_latent=factors),
        train=TrainConfig(max_epochs=epochs),
    )
    return Fitted(fits.get_programs(), fits.get_reference().frame)


Table = tuple[np.ndarray, list[tuple[str, str]]]  # weighted loadings, genes by programs; (dataset, program) of each


def run_cohorts(
    first: int,
    draws: int,
    seeds: int,
    cells: int,
    epochs: int | None,
    cnmf: str | None,
    only: str | None,
    rows: Path | None,
) -> None:
    """Shared programs found in the samples that have them, and private ones that stay alone, by method."""
    found_rows = pd.read_csv(rows, sep="\t").to_dict("records") if rows and rows.exists() else []
    for draw in range(first, first + draws):
        samples = cohort(draw, cells)
        if only != "cnmf":
            found_rows += judged_ldvae(draw, samples, seeds, epochs)
        if cnmf and only != "ldvae":
            found_rows += judged_cnmf(draw, samples, cnmf)
        print(pd.DataFrame([r for r in found_rows if r["draw"] == draw]).round(3).to_string(index=False), flush=True)
        if rows:
            pd.DataFrame(found_rows).to_csv(rows, sep="\t", index=False)
    print(pd.DataFrame(found_rows).drop(columns="draw").groupby("method").agg(["mean", "min"]).round(3).to_string())


def judged_ldvae(draw: int, samples: Mapping[str, Sample], seeds: int, epochs: int | None) -> list[dict[str, object]]:
    """Programs of each sample, put together by ldvae and by the two clusterings."""
    started = time.perf_counter()
    frames = {name: fitted(sample.adata, seeds, epochs).frame for name, sample in samples.items()}
    found = gp.meta_programs(frames)
    seconds = time.perf_counter() - started
    weight = np.sqrt(np.mean([frame.weight**2 for frame in frames.values()], axis=0))
    mean = np.mean([np.exp(frame.offset) for frame in frames.values()], axis=0)
    truth = {name: gp.gauge(sample.truth, mean).mul(weight, axis=0) for name, sample in samples.items()}
    loadings = {name: gp.gauge(gp.loadings_of(frame), mean) for name, frame in frames.items()}
    own = table_of({name: table.mul(weight, axis=0) for name, table in loadings.items()})
    across = {
        str(meta): Group(found.weighted[meta].to_numpy(), set(row["datasets"].split(", ")))
        for meta, row in found.table.iterrows()
    }
    groups = {
        "ldvae across": across,
        "ldvae, linkage": grouped(own, by_linkage(own)),
        "ldvae, silhouette": grouped(own, by_silhouette(own)),
    }
    return [
        {"draw": draw, "method": method, "seconds": seconds} | judged(own, truth, assigned)
        for method, assigned in groups.items()
    ]


CNMF = """
import json, sys
from cnmf import cNMF
folder, n_genes, ks = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
for name, k in ks.items():
    run = cNMF(output_dir=folder, name=name)
    run.prepare(f"{folder}/{name}.h5ad", components=[k], n_iter=20, seed=0, num_highvar_genes=n_genes)
    run.factorize()
    run.combine()
    try:
        run.consensus(k, density_threshold=0.1, show_clustering=False)
    except Exception as error:  # its filter left too few spectra
        print(name, error)
"""


def judged_cnmf(draw: int, samples: Mapping[str, Sample], python: str) -> list[dict[str, object]]:
    """Programs of cNMF, of as many components as each sample truly has and one, put together by two clusterings."""
    started, spectra = time.perf_counter(), {}
    # One more than the programs: the cells without an identity.
    ks = {name: sample.truth.shape[1] + 1 for name, sample in samples.items()}
    with tempfile.TemporaryDirectory() as folder:
        for name, sample in samples.items():
            sample.adata.write_h5ad(f"{folder}/{name}.h5ad")
        call = [python, "-W", "ignore", "-c", CNMF, folder, str(N_GENES), json.dumps(ks)]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        subprocess.run(call, check=True, capture_output=True, env=environment)
        for name, sample in samples.items():
            path = Path(folder) / f"{name}/{name}.gene_spectra_score.k_{ks[name]}.dt_0_1.txt"
            if path.exists():
                score = pd.read_csv(path, sep="\t", index_col=0).T.reindex(sample.adata.var_names).fillna(0)
                spectra[name] = score - score.mean()
    seconds, table = time.perf_counter() - started, table_of(spectra)
    truth = {name: sample.truth - sample.truth.mean() for name, sample in samples.items()}
    return [
        {"draw": draw, "method": f"cNMF, {method}", "seconds": seconds} | judged(table, truth, grouped(table, labels))
        for method, labels in (("linkage", by_linkage(table)), ("silhouette", by_silhouette(table)))
    ]


def table_of(tables: Mapping[str, pd.DataFrame]) -> Table:
    """Programs of all datasets side by side."""
    labels = [(name, str(program)) for name, table in tables.items() for program in table]
    return np.hstack([table.to_numpy() for table in tables.values()]), labels


def cosines_of(loadings: np.ndarray) -> np.ndarray:
    unit = loadings / np.maximum(np.linalg.norm(loadings, axis=0), 1e-12)
    return unit.T @ unit


def by_linkage(table: Table) -> dict[tuple[str, str], int]:
    """The linkage of ldvae on any programs."""
    from ldvae.programs.across import _merge

    groups, _ = _merge(cosines_of(table[0]), np.array([dataset for dataset, _ in table[1]]), 0.5)
    return {table[1][i]: k for k, group in enumerate(groups) for i in group}


def by_silhouette(table: Table) -> dict[tuple[str, str], int]:
    """Average linkage cut where the mean silhouette is largest, as programs of samples are clustered in papers."""
    distance = np.clip(1 - np.abs(cosines_of(table[0])), 0, None)
    np.fill_diagonal(distance, 0)
    best = (-1.0, np.arange(len(distance)))
    for k in range(2, len(distance)):
        labels = AgglomerativeClustering(k, metric="precomputed", linkage="average").fit_predict(distance)
        best = max(best, (silhouette_score(distance, labels, metric="precomputed"), labels), key=lambda pair: pair[0])
    return dict(zip(table[1], best[1].tolist(), strict=True))


class Group(NamedTuple):
    """Programs that a method calls one."""

    direction: np.ndarray  # weighted loadings, any sign and length, shape (n_genes,)
    datasets: set[str]  # that have it


def grouped(table: Table, assigned: Mapping[tuple[str, str], object]) -> dict[object, Group]:
    """Groups of programs, their directions being what the members have in common."""
    unit = unit_of(table[0])
    groups = {}
    for group in dict.fromkeys(assigned.values()):
        at = [i for i, label in enumerate(table[1]) if assigned[label] == group]
        direction = np.linalg.svd(unit[:, at], full_matrices=False)[0][:, 0]
        groups[group] = Group(direction, {table[1][i][0] for i in at})
    return groups


def unit_of(loadings: np.ndarray) -> np.ndarray:
    return loadings / np.maximum(np.linalg.norm(loadings, axis=0), 1e-12)


def judged(table: Table, truth: Mapping[str, pd.DataFrame], groups: Mapping[object, Group]) -> dict[str, float]:
    """Shares of the true programs of all samples.

    `resolved`: a program of its own sample resembles it, cosine above 0.5. Each true program has one group at most,
    the groups and the true programs being matched by their cosines, above 0.5. `shared`: of the shared programs of all
    samples, those whose group has the sample. `wrong`: of the samples that groups of several claim, those that lack the
    program. `private`: of the private programs with a group, those whose group has no other sample. `cosine`: mean
    cosine of the shared programs with their groups.
    """
    loadings, labels = table
    own = unit_of(loadings)
    resolved = n_true = 0
    true = pd.concat(list(truth.values()), axis=1)
    true = true.loc[:, ~true.columns.duplicated()]
    owners = {name: {sample for sample, programs in truth.items() if name in programs} for name in true}
    for name, programs in truth.items():
        at = [i for i, label in enumerate(labels) if label[0] == name]
        likeness = np.abs(unit_of(programs.to_numpy()).T @ own[:, at])
        row, column = linear_sum_assignment(-likeness)
        resolved, n_true = resolved + int((likeness[row, column] >= FOUND).sum()), n_true + programs.shape[1]
    names = list(groups)
    likeness = np.abs(unit_of(true.to_numpy()).T @ unit_of(np.array([groups[name].direction for name in names]).T))
    of = {
        str(true.columns[row]): (names[column], float(likeness[row, column]))
        for row, column in zip(*linear_sum_assignment(-likeness), strict=True)
        if likeness[row, column] >= FOUND
    }
    shared = {name: own for name, own in owners.items() if name.startswith("S")}
    together = sum(len(groups[of[name][0]].datasets & own) for name, own in shared.items() if name in of)
    meaning = {group: name for name, (group, _) in of.items()}
    claimed = {name: group.datasets for name, group in groups.items() if len(group.datasets) > 1}
    wrong = sum(len(samples - owners.get(meaning.get(name, ""), set())) for name, samples in claimed.items())
    private = [name for name in of if not name.startswith("S")]
    return {
        "resolved": resolved / n_true,
        "shared": together / sum(map(len, shared.values())),
        "wrong": wrong / max(sum(map(len, claimed.values())), 1),
        "private": sum(len(groups[of[name][0]].datasets) == 1 for name in private) / max(len(private), 1),
        "private_found": len(private) / (len(true.columns) - len(shared)),
        "cosine": float(np.mean([of[name][1] if name in of else 0.0 for name in shared])),
        "groups": len(claimed),
    }


INTERFERON = ("IFIT1", "TNFSF10", "ISG15", "RSAD2", "IFIT2", "CXCL10", "IFITM3")


def variable(adata: AnnData, n_top_genes: int) -> AnnData:
    """Counts of the variable genes as the workflow chooses them, which survives small donors."""
    sc.pp.filter_genes(adata, min_cells=3)
    return adata[:, most_variable(adata, None, n_top_genes)[1]["chosen"].to_numpy()].copy()


def run_kang(counts: Path, seeds: int, epochs: int, genes: int, cells: int | None) -> None:
    """Eight donors as eight datasets: which donors have the interferon program and those of the cell types."""
    donor, kind = "donor", "cell_type"
    whole = read_input([counts])
    if cells:
        order = pd.Series(np.random.default_rng(0).permutation(whole.n_obs), whole.obs_names)
        rank = order.groupby(whole.obs[donor].astype(str)).rank()
        whole = whole[(rank <= cells).to_numpy()].copy()
    fits, datasets = {}, {}
    for name in sorted(set(whole.obs[donor].astype(str)) - {"doublet_or_unknown"}):
        own = whole[(whole.obs[donor].astype(str) == name).to_numpy()].copy()
        datasets[name] = variable(own, genes)
        fits[name] = fitted(datasets[name], seeds, epochs)
        print(name, own.n_obs, "cells,", fits[name].programs.rank, "directions", flush=True)
    frames = {name: fit.frame for name, fit in fits.items()}
    found = gp.meta_programs(frames)
    shared = [str(meta) for meta in found.table.index[found.table["shared"]]]
    model = gp.meta_frame(found, frames, shared)
    scores, obs = [], []
    for name in datasets:
        own = whole[(whole.obs[donor].astype(str) == name).to_numpy()]
        made = gp.project(model, own.X, list(own.var_names), cells=list(own.obs_names))
        scores.append(made.scores)
        obs.append(own.obs.assign(dataset=name))
    table, known = pd.concat(scores), pd.concat(obs)
    kinds = [str(level) for level in known[kind].unique() if level != "unlabeled"]
    stim = (known["condition"] == "stim").to_numpy()
    print(f"{len(found.members)} programs; {len(shared)} meta-programs in two donors or more")
    for meta in shared:
        top = list(found.weighted[meta].nlargest(10).index)
        own = set(found.table.at[meta, "datasets"].split(", "))
        line = (
            f"{meta:4} in {len(own)} donors, similarity {found.table.at[meta, 'similarity']:.2f}: {' '.join(top[:6])}"
        )
        best = max((auc(table[meta], known[kind] == level), level) for level in kinds)
        absent = [name for name in datasets if name not in own]
        line += f"; not in {', '.join(f'{d} ({found.presence.at[meta, d]:.2f})' for d in absent)}" if absent else ""
        print(f"{line}; {best[1]} AUC {best[0]:.3f}; stimulated AUC {auc(table[meta], stim):.3f}", end="")
        if len(set(top) & set(INTERFERON)) > 2:
            each = [auc(table.loc[rows, meta], stim[rows]) for rows in (known["dataset"] == d for d in datasets)]
            print(
                f"; {len(set(top) & set(INTERFERON))} interferon genes in ten; AUC of each donor {np.round(each, 3)}",
                end="",
            )
        print()
        # Donors that have 20 cells or more of the type that the meta-program marks, and not the program.
        if best[0] > 0.9:
            cells = known.loc[known[kind] == best[1], "dataset"].value_counts()
            absent = [f"{d} ({n} cells)" for d, n in cells.items() if n >= 20 and d not in own]
            print(f"     {best[1]}: donors with 20 cells and no program: {', '.join(absent) or 'none'}")
    means = gp.donor_means(table, known.assign(donor=known["dataset"]), donor="donor", condition="condition")
    print(gp.compare_across(means, {d: d for d in datasets}).head(5).round(4).to_string())


def run_outside(data: Path, seeds: int, epochs: int | None, starcat: bool) -> None:
    """Programs of one dataset on the cells of another: which cells are outside, and how well programs tell types."""
    kang = read_input([data / "kang2018_stim_ctrl.h5ad"])
    for name, (reference, other, types) in {
        "Kang, pbmc3k": (kang.copy(), *pbmc3k(data / "pbmc3k_10x_mtx")),
        "four donors of Kang, the other four": half_and_half(kang),
    }.items():
        print(f"{name}: {reference.n_obs} and {other.n_obs} cells", flush=True)
        compare_projections(variable(reference, 2000), other, types, seeds, epochs, starcat)


def pbmc3k(folder: Path) -> tuple[AnnData, np.ndarray]:
    """Cells of pbmc3k, 60 of a type at most, and their types."""
    other = sc.read_10x_mtx(folder / "filtered_gene_bc_matrices" / "hg19")
    other.var_names_make_unique()
    types = pd.read_csv(folder / "cell_types_by_barcode.csv", index_col=0).iloc[:, 0].reindex(other.obs_names)
    types = types.astype(str).to_numpy()
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.permutation(np.flatnonzero(types == kind))[:60] for kind in np.unique(types)])
    return other[rows].copy(), types[rows]


def half_and_half(kang: AnnData) -> tuple[AnnData, AnnData, np.ndarray]:
    """Every second donor of Kang without its megakaryocytes, the cells of the others, and their types."""
    donor, kind = kang.obs["donor"].astype(str), kang.obs["cell_type"].astype(str)
    known = sorted(set(donor) - {"doublet_or_unknown"})
    labeled = (kind != "unlabeled").to_numpy()
    own = donor.isin(known[::2]).to_numpy() & labeled & ~kind.str.contains("egakaryo").to_numpy()
    rest = donor.isin(known[1::2]).to_numpy() & labeled
    return kang[own].copy(), kang[rest].copy(), kind[rest].to_numpy()


def compare_projections(
    reference: AnnData, other: AnnData, types: np.ndarray, seeds: int, epochs: int | None, starcat: bool
) -> None:
    """Print the share of cells outside by type, and the AUC of the program that tells each type best."""
    found, frame = fitted(reference, seeds, epochs, 14)
    made = gp.project(frame, other.X, list(other.var_names))
    scores = {"project": (found.scores, made.scores)}
    if starcat:
        from starcat.starcat import starCAT

        with tempfile.TemporaryDirectory() as temporary:
            path = f"{temporary}/reference.tsv"
            gp.split_sides(found).to_csv(path, sep="\t")
            usages = [starCAT(reference=path).fit_transform(one.copy())[0] for one in (reference, other)]
        scores["starCAT"] = tuple(usages)
    known = reference.obs["cell_type"].astype(str).to_numpy()
    table = pd.DataFrame({"n": pd.Series(types).value_counts()})
    table["outside"] = made.outside.groupby(types).mean()
    for method, (own, new) in scores.items():
        for kind in table.index.intersection(np.unique(known)):
            value, best, sign = max((auc(s * own[name], known == kind), str(name), s) for name in own for s in (1, -1))
            table.loc[kind, f"{method}, reference"] = value
            table.loc[kind, f"{method}, new cells"] = auc(sign * new[best], types == kind)
    print(table.round(3).to_string())
    print(table.mean(numeric_only=True).round(3).to_string(), flush=True)


def auc(scores: pd.Series, inside: pd.Series | np.ndarray) -> float:
    """Probability that a cell inside scores higher than one outside."""
    return float(roc_auc_score(np.asarray(inside, bool), scores))


if __name__ == "__main__":
    main()
