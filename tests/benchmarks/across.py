"""Programs of several datasets against the truth, other methods, and real donors; the numbers are in docs/programs.md.

python tests/benchmarks/across.py cohorts --draws 5 [--cnmf cnmf]
python tests/benchmarks/across.py kang ../shared/data/kang2018_stim_ctrl.h5ad --seeds 3
python tests/benchmarks/across.py outside ../shared/data [--starcat]

A cohort has 8 samples; 6 programs are shared (3 identities, 3 activities) and each sample has 2 of its own. Samples
differ in composition, in the level of every gene (batch effects) and in depth; each shared identity is missing from a
quarter of the samples. --cnmf names the command of a cNMF installed elsewhere (pip install cnmf); --starcat needs
starCAT beside ldvae (pip install starcatpy).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from programs import run_cnmf
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import roc_auc_score, silhouette_score

from ldvae import fit_sweep
from ldvae import programs as gp
from ldvae.config import ModelConfig, SweepConfig, TrainConfig
from ldvae.io import read_input
from ldvae.model import LinearSCVI

N_SAMPLES, N_SHARED, N_PRIVATE, N_GENES = 8, 6, 2, 600
CELLS_OF_EACH = 100  # cells of each sample on which contributions are averaged
FOUND = 0.5  # cosine with the truth from which a program counts as found in its sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    cohorts = verbs.add_parser("cohorts")
    cohorts.add_argument("--first", type=int, default=0)
    cohorts.add_argument("--draws", type=int, default=5)
    cohorts.add_argument("--seeds", type=int, default=2)
    cohorts.add_argument("--cells", type=int, default=700)
    cohorts.add_argument("--epochs", type=int, default=120)
    cohorts.add_argument("--cnmf")
    cohorts.add_argument("--rows", type=Path, help="add the rows to those of this file (tsv), and summarise all")
    kang = verbs.add_parser("kang")
    kang.add_argument("counts", type=Path)
    kang.add_argument("--seeds", type=int, default=2)
    kang.add_argument("--epochs", type=int, default=200)
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
    found = fits.get_programs()
    theta = [np.ravel(m.get_likelihood_parameters(indices=[0])["dispersions"]) for m in fits.models.values()]
    return Fitted(found, gp.frame(found, np.ravel(adata.X.mean(axis=0)), np.stack(theta)))


Table = tuple[np.ndarray, list[tuple[str, str]]]  # weighted loadings, genes by programs; (dataset, program) of each


def run_cohorts(
    first: int, draws: int, seeds: int, cells: int, epochs: int, cnmf: str | None, rows: Path | None
) -> None:
    """Share of the shared programs that are put together, and of the private ones that stay alone, by method."""
    found_rows = pd.read_csv(rows, sep="\t").to_dict("records") if rows and rows.exists() else []
    for draw in range(first, first + draws):
        samples = cohort(draw, cells)
        started = time.perf_counter()
        fits = {name: fitted(sample.adata, seeds, epochs) for name, sample in samples.items()}
        seconds = time.perf_counter() - started
        frames = {name: fit.frame for name, fit in fits.items()}
        weight = np.sqrt(np.mean([frame.weight**2 for frame in frames.values()], axis=0))
        truth = {name: sample.truth.mul(weight, axis=0) for name, sample in samples.items()}
        own = table_of({name: gp.loadings_of(frame).mul(weight, axis=0) for name, frame in frames.items()})
        found = gp.meta_programs(frames).members
        groups = {
            "ldvae, linkage": dict(
                zip(zip(found["dataset"], found["program"], strict=True), found["meta"], strict=True)
            )
        }
        groups["ldvae, silhouette"] = by_silhouette(own)
        groups["ldvae, consensus"] = by_consensus(samples, fits, own, weight)
        for method, assigned in groups.items():
            found_rows.append({"draw": draw, "method": method, "seconds": seconds} | judged(own, truth, assigned))
        if cnmf:
            started = time.perf_counter()
            spectra = {}
            for name, sample in samples.items():
                k = sample.truth.shape[1] + 1  # one more: the cells without an identity
                spectrum = run_cnmf(cnmf, sample.adata, [k], 20, 0).get(k)
                if spectrum is not None:
                    names = [f"N{i + 1}" for i in range(spectrum.score.shape[1])]
                    spectra[name] = pd.DataFrame(spectrum.score, sample.adata.var_names, names)
            seconds, other = time.perf_counter() - started, table_of(spectra)
            plain = {name: samples[name].truth for name in spectra}
            for method, assigned in (("linkage", by_linkage(other)), ("silhouette", by_silhouette(other))):
                row = {"draw": draw, "method": f"cNMF, {method}", "seconds": seconds}
                found_rows.append(row | judged(other, plain, assigned))
        print(pd.DataFrame([r for r in found_rows if r["draw"] == draw]).round(3).to_string(index=False), flush=True)
    if rows:
        pd.DataFrame(found_rows).to_csv(rows, sep="\t", index=False)
    print(pd.DataFrame(found_rows).drop(columns="draw").groupby("method").agg(["mean", "min"]).round(3).to_string())


def table_of(tables: Mapping[str, pd.DataFrame]) -> Table:
    """Programs of all datasets side by side."""
    labels = [(name, str(program)) for name, table in tables.items() for program in table]
    return np.hstack([table.to_numpy() - table.to_numpy().mean(axis=0) for table in tables.values()]), labels


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


def by_consensus(
    samples: Mapping[str, Sample], fits: Mapping[str, Fitted], own: Table, weight: np.ndarray
) -> dict[tuple[str, str], str]:
    """Contributions of all datasets to all cells, averaged and rotated; programs that resemble a result join it."""
    counts = sparse.vstack([sample.adata.X[:CELLS_OF_EACH] for sample in samples.values()]).tocsr()
    genes = list(next(iter(samples.values())).adata.var_names)
    batch = np.repeat(list(samples), CELLS_OF_EACH)
    scores, loadings = [], []
    for fit in fits.values():
        scores.append(gp.project(fit.frame, counts, genes, batch=batch).scores.to_numpy())
        loadings.append(gp.loadings_of(fit.frame).to_numpy() * weight[:, None])
    rank = max(gp.reproducible_rank(scores, loadings).rank or 1, 1)
    found = gp.orient(gp.rotate(gp.consensus(scores, loadings, rank), rank)).loadings
    found = found / np.linalg.norm(found, axis=0)
    unit = own[0] / np.linalg.norm(own[0], axis=0)
    assigned = {label: f"{label[0]} {label[1]}" for label in own[1]}
    for name in fits:
        at = [i for i, label in enumerate(own[1]) if label[0] == name]
        likeness = np.abs(unit[:, at].T @ found)
        for row, column in zip(*linear_sum_assignment(-likeness), strict=True):
            if likeness[row, column] >= FOUND:
                assigned[own[1][at[row]]] = f"consensus {column}"
    return assigned


def judged(
    table: Table, truth: Mapping[str, pd.DataFrame], groups: Mapping[tuple[str, str], object]
) -> dict[str, float]:
    """Shares of the true programs of all samples.

    `resolved`: found in its own sample, cosine above 0.5. `shared`: resolved and in one group with most of the other
    samples' versions. `private`: of the resolved private ones, those whose group has no other sample. `mixed`: groups
    of several samples with more than one true program.
    """
    loadings, labels = table
    unit = loadings / np.maximum(np.linalg.norm(loadings, axis=0), 1e-12)
    of: dict[str, list[object]] = {}
    identity, n_shared, n_private, n_true = {}, 0, 0, 0
    for name, programs in truth.items():
        at = [i for i, label in enumerate(labels) if label[0] == name]
        target = programs.to_numpy() - programs.to_numpy().mean(axis=0)
        likeness = np.abs((target / np.linalg.norm(target, axis=0)).T @ unit[:, at])
        n_true += programs.shape[1]
        n_shared += sum(program.startswith("S") for program in programs)
        for row, column in zip(*linear_sum_assignment(-likeness), strict=True):
            if likeness[row, column] >= FOUND:
                identity[labels[at[column]]] = str(programs.columns[row])
                of.setdefault(str(programs.columns[row]), []).append(groups[labels[at[column]]])
    members = pd.Series({label: groups[label] for label in labels})
    datasets = pd.Series([label[0] for label in labels], members.index).groupby(members.to_numpy()).nunique()
    together = sum(max(map(found.count, found)) for name, found in of.items() if name.startswith("S"))
    private = [found[0] for name, found in of.items() if not name.startswith("S")]
    n_private = len(private)
    true = pd.Series(identity).groupby([groups[label] for label in identity]).nunique()
    return {
        "resolved": len(identity) / n_true,
        "shared": together / n_shared,
        "private": sum(datasets[group] == 1 for group in private) / max(n_private, 1),
        "mixed": int((true > 1).sum()),
        "groups": int((datasets > 1).sum()),
    }


INTERFERON = ("IFIT1", "TNFSF10", "ISG15", "RSAD2", "IFIT2", "CXCL10", "IFITM3")


def run_kang(counts: Path, seeds: int, epochs: int) -> None:
    """Eight donors as eight datasets: which donors have the interferon program and those of the cell types."""
    donor, kind = "donor", "cell_type"
    whole = read_input([counts])
    fits, datasets = {}, {}
    for name in sorted(set(whole.obs[donor].astype(str)) - {"doublet_or_unknown"}):
        own = whole[(whole.obs[donor].astype(str) == name).to_numpy()].copy()
        sc.pp.filter_genes(own, min_cells=3)
        sc.pp.highly_variable_genes(own, flavor="seurat_v3", n_top_genes=2000)
        datasets[name] = own[:, own.var["highly_variable"]].copy()
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
        own = set(found.members.loc[found.members["meta"] == meta, "dataset"])
        line = (
            f"{meta:4} in {len(own)} donors, similarity {found.table.at[meta, 'similarity']:.2f}: {' '.join(top[:6])}"
        )
        best = max((auc(table[meta], known[kind] == level), level) for level in kinds)
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
    """Kang's programs on pbmc3k: which cells are outside, and how well programs tell types, beside starCAT."""
    kang = read_input([data / "kang2018_stim_ctrl.h5ad"])
    sc.pp.filter_genes(kang, min_cells=3)
    sc.pp.highly_variable_genes(kang, flavor="seurat_v3", n_top_genes=2000)
    kang = kang[:, kang.var["highly_variable"]].copy()
    found, frame = fitted(kang, seeds, epochs, 14)
    frame = gp.calibrate(frame, kang.X[:: max(1, kang.n_obs // 500)], list(kang.var_names))
    folder = data / "pbmc3k_10x_mtx"
    other = sc.read_10x_mtx(folder / "filtered_gene_bc_matrices" / "hg19")
    other.var_names_make_unique()
    types = pd.read_csv(folder / "cell_types_by_barcode.csv", index_col=0).iloc[:, 0].reindex(other.obs_names)
    types = types.astype(str).to_numpy()
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.permutation(np.flatnonzero(types == kind))[:60] for kind in np.unique(types)])
    other, types = other[rows].copy(), types[rows]
    made = gp.project(frame, other.X, list(other.var_names))
    scores = {"project": (found.scores, made.scores)}
    if starcat:
        from starcat.starcat import starCAT

        with tempfile.TemporaryDirectory() as temporary:
            path = f"{temporary}/reference.tsv"
            gp.split_sides(found).to_csv(path, sep="\t")
            usages = [starCAT(reference=path).fit_transform(one.copy())[0] for one in (kang, other)]
        scores["starCAT"] = tuple(usages)
    known = kang.obs["cell_type"].astype(str).to_numpy()
    table = pd.DataFrame({"n": pd.Series(types).value_counts()})
    table["outside"] = made.outside.groupby(types).mean()
    for method, (own, new) in scores.items():
        for kind in table.index.intersection(np.unique(known)):
            value, best, sign = max((auc(s * own[name], known == kind), str(name), s) for name in own for s in (1, -1))
            table.loc[kind, f"{method}, Kang"] = value
            table.loc[kind, f"{method}, pbmc3k"] = auc(sign * new[best], types == kind)
    print(table.round(3).to_string())
    print(table.mean(numeric_only=True).round(3).to_string())


def auc(scores: pd.Series, inside: pd.Series | np.ndarray) -> float:
    """Probability that a cell inside scores higher than one outside."""
    return float(roc_auc_score(np.asarray(inside, bool), scores))


if __name__ == "__main__":
    main()
