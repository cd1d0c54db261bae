"""Tables behind docs/benchmarks.md: against the truth, other fits, other cells, cNMF; time for a million cells.

python tests/benchmarks/programs.py scenarios --draws 5 --seeds 6 [--cnmf cnmf]
python tests/benchmarks/programs.py kang ../shared/data/kang2018_stim_ctrl.h5ad --seeds 20
python tests/benchmarks/programs.py rotations --first 420 --draws 1 --seeds 3 [--cnmf cnmf --drvi python]
python tests/benchmarks/programs.py rotations --data ../shared/data --seeds 5 [--cnmf cnmf]
python tests/benchmarks/programs.py settings --data ../shared/data
python tests/benchmarks/programs.py halves --data ../shared/data --seeds 20 --half 5
python tests/benchmarks/programs.py choices --data ../shared/data --seeds 20 --sizes 5 6 8 10
python tests/benchmarks/programs.py abundant --data ../shared/data
python tests/benchmarks/programs.py regimes ../shared/data/kang2018_stim_ctrl.h5ad
python tests/benchmarks/programs.py transfer ../shared/data
python tests/benchmarks/programs.py scaling --cells 1000000
python tests/benchmarks/programs.py figure docs/programs.svg
python tests/benchmarks/programs.py contradiction docs/contradiction.svg

Fits are kept in --cache and used again. --cnmf names the command of a cNMF installed elsewhere (pip install cnmf).
"""

from __future__ import annotations

import argparse
import resource
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scanpy as sc
import torch
from anndata import AnnData, read_h5ad
from scipy.optimize import linear_sum_assignment, nnls
from scipy.special import softmax, xlogy
from scipy.stats import rankdata

from ldvae import fit_sweep
from ldvae import programs as gp
from ldvae.config import FitConfig, ModelConfig, RotationConfig, SetupConfig, SweepConfig, TrainConfig
from ldvae.data import split_cells
from ldvae.demo import pbmc68k
from ldvae.model import LinearSCVI
from ldvae.posterior import elbo_terms
from ldvae.programs.find import SETTLED
from ldvae.simulate import simulate
from ldvae.steps.train import evaluate

SCENARIOS = ("mixed", "gauss", "additive", "dominant", "trajectory")
REAL = ("kang2018_stim_ctrl", "pbmc3k", "demo")
INTERFERON = ("IFIT1", "TNFSF10", "ISG15", "RSAD2", "IFIT2", "CXCL10", "IFITM3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "ldvae-benchmark")
    verbs = parser.add_subparsers(dest="verb", required=True)
    scenarios = verbs.add_parser("scenarios")
    scenarios.add_argument("--scenario", choices=SCENARIOS, nargs="*", default=SCENARIOS)
    scenarios.add_argument("--first", type=int, default=0)
    scenarios.add_argument("--draws", type=int, default=5)
    scenarios.add_argument("--seeds", type=int, default=6)
    scenarios.add_argument("--factors", type=int, default=12)
    scenarios.add_argument("--epochs", type=int)
    scenarios.add_argument("--cnmf")
    kang = verbs.add_parser("kang")
    kang.add_argument("counts", type=Path)
    kang.add_argument("--seeds", type=int, default=20)
    kang.add_argument("--factors", type=int, default=14)
    kang.add_argument("--epochs", type=int)
    kang.add_argument("--cnmf")
    rotations = verbs.add_parser("rotations")
    rotations.add_argument("--scenario", choices=SCENARIOS, nargs="*", default=SCENARIOS)
    rotations.add_argument("--first", type=int, default=400)
    rotations.add_argument("--draws", type=int, default=1)
    rotations.add_argument("--data", type=Path)
    rotations.add_argument("--names", choices=REAL, nargs="*", default=REAL)
    rotations.add_argument("--seeds", type=int, default=3)
    rotations.add_argument("--rank", type=int, help="directions, which one seed cannot tell")
    rotations.add_argument("--factors", type=int, help="of each fit: by default 12 in scenarios, 14 in data")
    rotations.add_argument("--cnmf")
    rotations.add_argument("--drvi", help="command of a python that has DRVI (drvi-py)")
    settings = verbs.add_parser("settings")
    settings.add_argument("--data", type=Path, required=True)
    settings.add_argument("--names", choices=REAL, nargs="*", default=REAL)
    settings.add_argument("--factors", type=int, nargs="*", default=[10, 14, 20])
    settings.add_argument("--seeds", type=int, nargs="*", default=[3, 5, 8])
    halves = verbs.add_parser("halves")
    halves.add_argument("--data", type=Path, required=True)
    halves.add_argument("--names", nargs="*", default=REAL[:2], help="data, or scenarios with their draw: mixed-420")
    halves.add_argument("--factors", type=int, default=14)
    halves.add_argument("--seeds", type=int, default=20)
    halves.add_argument("--half", type=int, default=5, help="fits in each of the two sets")
    halves.add_argument("--splits", type=int, default=6)
    halves.add_argument("--warm", type=float, help="start from a fit of this share of the cells")
    halves.add_argument("--rotations", choices=("joint", "clean", "parts"), nargs="*", default=["clean"])
    choices = verbs.add_parser("choices")
    choices.add_argument("--data", type=Path, required=True)
    choices.add_argument("--names", choices=REAL, nargs="*", default=REAL[:1])
    choices.add_argument("--seeds", type=int, default=20)
    choices.add_argument("--sizes", type=int, nargs="*", default=[3, 5, 6, 8, 10])
    choices.add_argument("--times", type=int, default=20)
    abundant = verbs.add_parser("abundant")
    abundant.add_argument("--data", type=Path, required=True)
    abundant.add_argument("--names", choices=REAL, nargs="*", default=REAL[:2])
    abundant.add_argument("--factors", type=int, default=10)
    abundant.add_argument("--seed", type=int, default=1)
    regimes = verbs.add_parser("regimes")
    regimes.add_argument("counts", type=Path)
    regimes.add_argument("--seeds", type=int, default=3)
    regimes.add_argument("--factors", type=int, default=10)
    transfer = verbs.add_parser("transfer")
    transfer.add_argument("data", type=Path)
    transfer.add_argument("--seeds", type=int, default=6)
    transfer.add_argument("--factors", type=int, default=14)
    scaling = verbs.add_parser("scaling")
    scaling.add_argument("--cells", type=int, default=1_000_000)
    figure = verbs.add_parser("figure")
    figure.add_argument("path", type=Path)
    figure.add_argument("--epochs", type=int)
    contradiction = verbs.add_parser("contradiction")
    contradiction.add_argument("path", type=Path)
    arguments = vars(parser.parse_args())
    run = {
        "scenarios": run_scenarios,
        "kang": run_kang,
        "rotations": run_rotations,
        "settings": run_settings,
        "halves": run_halves,
        "choices": run_choices,
        "abundant": run_abundant,
        "regimes": run_regimes,
        "transfer": run_transfer,
        "scaling": run_scaling,
        "figure": draw_figure,
        "contradiction": draw_contradiction,
    }
    run[arguments.pop("verb")](**arguments)


class Fits:
    """Fits of one dataset from several seeds, from the cache where it has them."""

    def __init__(
        self,
        adata: AnnData,
        name: str,
        cache: Path,
        seeds: int,
        factors: int,
        epochs: int | None,
        warm: float | None = None,
    ) -> None:
        self.adata = adata
        name += f"-warm{warm:g}" if warm else ""
        train = TrainConfig() if epochs is None else TrainConfig(max_epochs=epochs)
        self.arrays = []
        for seed in range(seeds):
            path = cache / f"{name}-k{factors}-e{epochs or 'default'}-s{seed}.npz"
            if not path.exists():
                started, cpu = time.perf_counter(), time.process_time()
                if warm:
                    model = warm_started(adata, seed, factors, train, warm)
                else:
                    fits = fit_sweep(adata, SweepConfig(seeds=[seed]), model=ModelConfig(n_latent=factors), train=train)
                    model = next(iter(fits.models.values()))
                seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
                found = evaluate(model, split_cells(adata.n_obs, 0.8, 0.1))
                theta = model.get_likelihood_parameters(indices=[0])["dispersions"]
                path.parent.mkdir(parents=True, exist_ok=True)
                np.savez(
                    path,
                    scores=model.get_latent_representation(),
                    loadings=model.get_loadings(),
                    theta=np.ravel(theta),
                    elbo=found["elbo_fitted"],
                    elbo_se=found["elbo_fitted_se"],
                    elbo_test=found["elbo_test"],
                    seconds=seconds,
                    cpu=cpu,
                )
            with np.load(path) as file:
                self.arrays.append(dict(file))
        self.mean = np.asarray(adata.X.mean(axis=0)).ravel()

    def find(self, which: Sequence[int] | np.ndarray | None = None, **options: object) -> gp.Programs:
        """Programs of all fits, or of some, without the outliers; options of `RotationConfig`."""
        chosen = [self.arrays[i] for i in (which if which is not None else range(len(self.arrays)))]
        bad = gp.outliers([fit["elbo"] for fit in chosen], [fit["elbo_se"] for fit in chosen])
        kept = [fit for fit, out in zip(chosen, bad, strict=True) if not out]
        return gp.find_programs(
            [fit["scores"] for fit in kept],
            [fit["loadings"] for fit in kept],
            mean=self.mean,
            theta=np.stack([fit["theta"] for fit in kept]),
            cells=list(self.adata.obs_names),
            genes=list(self.adata.var_names),
            config=RotationConfig(**options),
        )

    def weighted(self, loadings: np.ndarray) -> np.ndarray:
        """Any loadings in gauge, times the root of the information."""
        theta = np.stack([fit["theta"] for fit in self.arrays])
        return np.asarray(gp.gauge(loadings, self.mean)) * gp.information(self.mean, theta)[:, None]

    @property
    def seconds(self) -> float:
        """Time of all trainings."""
        return float(sum(fit["seconds"] for fit in self.arrays))

    def cpu(self, n_fits: int | None = None) -> float:
        """CPU time of the first trainings, or all; nan where the cache does not have it."""
        return float(sum(fit.get("cpu", np.nan) for fit in self.arrays[:n_fits]))


def warm_started(adata: AnnData, seed: int, factors: int, train: TrainConfig, share: float) -> LinearSCVI:
    """A fit of a random share of the cells for all epochs, continued with all cells for that share of the epochs."""
    split = split_cells(adata.n_obs, 0.8, 0.1)
    some = np.random.default_rng(seed).permutation(split.train)[: round(share * len(split.train))]
    model, config = LinearSCVI(adata, n_latent=factors, seed=seed), train.fit_config(len(split.train))
    model.fit(split._replace(train=np.sort(some)), config, seed=seed)
    rest = train.model_copy(update={"max_epochs": round(share * config.max_epochs), "kl_warmup": 0.0})
    model.fit(split, rest.fit_config(len(split.train)), seed=seed)
    return model


def children_cpu() -> float:
    """CPU time of all finished child processes, s."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def matched(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cosines of columns after the best assignment, the columns of the second, and their signs."""
    first, second = (np.asarray(table, float) / np.linalg.norm(table, axis=0) for table in (first, second))
    products = first.T @ second
    rows, columns = linear_sum_assignment(-np.abs(products))
    return np.abs(products[rows, columns]), columns, np.sign(products[rows, columns])


def run_scenarios(
    cache: Path,
    scenario: list[str],
    first: int,
    draws: int,
    seeds: int,
    factors: int,
    epochs: int | None,
    cnmf: str | None,
) -> None:
    """Cosines of the loadings and correlations of the scores with the truth, for each scenario and draw."""
    rows = []
    for name in scenario:
        for draw in range(first, first + draws):
            made = simulate(name, seed=draw)
            adata = made.to_anndata()
            LinearSCVI.setup_anndata(adata, batch_key="batch")
            fits = Fits(adata, f"{name}-{draw}", cache, seeds, factors, epochs)
            truth, scores = fits.weighted(made.loadings.to_numpy()), made.scores.to_numpy()
            raw = np.concatenate([matched(truth, fits.weighted(fit["loadings"]))[0] for fit in fits.arrays])
            rows.append(
                {"scenario": name, "draw": draw, "method": "raw factors"} | summary(raw) | {"seconds": fits.seconds}
            )
            started = time.perf_counter()
            found = fits.find()
            cosine, column, sign = matched(truth, found.weighted)
            r = [np.corrcoef(scores[:, k], found.scores.iloc[:, c])[0, 1] for k, c in enumerate(column)] * sign
            depth = pd.DataFrame({"total_counts": np.asarray(made.counts.sum(axis=1)).ravel()}, adata.obs_names)
            flags = gp.technical_flags(found.scores, depth, found.table["share"], technical=["total_counts"])
            rows.append(
                {"scenario": name, "draw": draw, "method": "ldvae programs"}
                | summary(cosine)
                | {
                    "r_mean": r.mean(),
                    "r_min": r.min(),
                    "signs": int((sign > 0).sum()),
                    "rank": found.rank,
                    "programs": found.scores.shape[1],
                    "technical": int((flags != "").sum()),
                    "seconds": fits.seconds + time.perf_counter() - started,
                }
            )
            if cnmf:
                rows.append({"scenario": name, "draw": draw} | against_cnmf(cnmf, adata, fits, truth, scores))
            print(pd.DataFrame(rows[-3:]).round(3).to_string(index=False), flush=True)
    table = pd.DataFrame(rows)
    print(table.groupby(["scenario", "method"]).agg({"mean": "mean", "worst": "min", "seconds": "mean"}).round(3))


def summary(cosine: np.ndarray) -> dict[str, float]:
    """Mean and worst cosine, and the share above 0.95."""
    return {"mean": cosine.mean(), "worst": cosine.min(), "above_0.95": (cosine > 0.95).mean()}


class Spectra(NamedTuple):
    """What cNMF found at one k."""

    usages: np.ndarray  # of the cells it was fitted to, rows sum to 1, (n_obs, k)
    score: np.ndarray  # z-scores of the genes, (n_vars, k)
    tpm: np.ndarray  # profiles in transcripts per million, (n_vars, k)


def run_cnmf(command: str, adata: AnnData, ks: Sequence[int], n_iter: int, seed: int) -> dict[int, Spectra]:
    """Consensus NMF of all the genes given; the k at which its filter leaves too few spectra are missing."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "counts.h5ad"
        AnnData(X=adata.X, obs=adata.obs[[]], var=adata.var[[]]).write_h5ad(path)
        options = ["--output-dir", folder, "--name", "run"]
        prepare = ["-c", path, "-k", *ks, "--n-iter", n_iter, "--seed", seed, "--numgenes", adata.n_vars]
        for step in (["prepare", *options, *prepare], ["factorize", *options], ["combine", *options]):
            subprocess.run([command, *map(str, step)], check=True, capture_output=True)
        for k in ks:
            given = ["consensus", *options, "-k", str(k), "--local-density-threshold", "0.1"]
            if subprocess.run([command, *given], capture_output=True).returncode:
                continue
            usages, score, tpm = (
                pd.read_csv(Path(folder) / f"run/run.{name}.txt", sep="\t", index_col=0)
                for name in (
                    f"usages.k_{k}.dt_0_1.consensus",
                    f"gene_spectra_score.k_{k}.dt_0_1",
                    f"gene_spectra_tpm.k_{k}.dt_0_1",
                )
            )
            usages = usages.div(usages.sum(axis=1), axis=0).loc[adata.obs_names]
            by_gene = [table.T.reindex(adata.var_names).fillna(0).to_numpy() for table in (score, tpm)]
            found[k] = Spectra(usages.to_numpy(), *by_gene)
    return found


def relative(fits: Fits, tpm: np.ndarray) -> np.ndarray:
    """Profiles as log fold changes against their mean, in gauge, times the root of the information."""
    log = np.log(tpm + tpm.mean() * 1e-3)
    return fits.weighted(log - log.mean(axis=1, keepdims=True))


def against_cnmf(command: str, adata: AnnData, fits: Fits, truth: np.ndarray, scores: np.ndarray) -> dict[str, object]:
    """cNMF's best: of k from 7 to 10 and of its outputs, the one closest to the truth."""
    started = children_cpu()
    best: dict[str, object] = {"mean": -1.0}
    for k, spectra in run_cnmf(command, adata, [7, 8, 9, 10], 20, 0).items():
        for found in (spectra.score, relative(fits, spectra.tpm)):
            cosine, column, sign = matched(truth, found)
            if cosine.mean() > best["mean"]:
                r = [np.corrcoef(scores[:, i], spectra.usages[:, c])[0, 1] for i, c in enumerate(column)] * sign
                best = summary(cosine) | {"k": k, "r_mean": np.mean(r), "r_min": np.min(r)}
    return best | {"method": "cNMF at its best", "seconds": children_cpu() - started}


# Run by a python that has DRVI: counts.h5ad, factors, result.npz.
DRVI = """
import sys
import numpy as np
from anndata import read_h5ad
from drvi.model import DRVI
adata = read_h5ad(sys.argv[1])
adata.layers["counts"] = adata.X.copy()
keys = [key for key in ("batch",) if key in adata.obs]
DRVI.setup_anndata(adata, layer="counts", categorical_covariate_keys=keys or None, is_count_data=True)
model = DRVI(adata, n_latent=int(sys.argv[2]))
model.train(max_epochs=100, early_stopping=False, plan_kwargs={"n_epochs_kl_warmup": 100})
z = model.get_latent_representation()
batch = adata.obs["batch"].astype("category").cat.codes.to_numpy()[:, None] if keys else None
log = model.decode_latent_samples(z, cat_values=batch)
design = np.hstack([np.ones((len(z), 1)), z])
linear = np.linalg.lstsq(design, log, rcond=None)[0][1:].T
ends = []
for k in range(z.shape[1]):
    for end in (np.quantile(z[:, k], 0.99), np.quantile(z[:, k], 0.01)):
        moved = np.repeat(z.mean(axis=0, keepdims=True), 2, axis=0)
        moved[1, k] = end
        low, high = model.decode_latent_samples(moved, cat_values=None if batch is None else batch[:2] * 0)
        ends.append(high - low)
np.savez(sys.argv[3], scores=z, linear=linear, ends=np.stack(ends, axis=1))
"""


def run_drvi(command: str, adata: AnnData, factors: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Scores and loadings of DRVI (100 epochs, one seed), read out in two ways.

    By the regression of its log means on its factors; and by moving one factor at a time from the mean to either end,
    which makes two programs of each.
    """
    with tempfile.TemporaryDirectory() as folder:
        counts, result = Path(folder) / "counts.h5ad", Path(folder) / "result.npz"
        obs = adata.obs[[key for key in ("batch",) if key in adata.obs]]
        AnnData(X=adata.X, obs=obs, var=adata.var[[]]).write_h5ad(counts)
        script = [*shlex.split(command), "-c", DRVI, str(counts), str(factors), str(result)]
        subprocess.run(script, check=True, capture_output=True)
        with np.load(result) as found:
            scores, linear, ends = found["scores"], found["linear"], found["ends"]
    sides = np.repeat(scores, 2, axis=1) * np.tile([1.0, -1.0], scores.shape[1])
    return {"regression": (scores, linear), "both ends": (sides, ends)}


def variable_genes(counts: Path, config: SetupConfig) -> AnnData:
    """Counts after the workflow's choice of genes."""
    from ldvae import results as layout
    from ldvae.steps.setup import setup

    with tempfile.TemporaryDirectory() as folder:
        filtered = layout.FILTERED.at(Path(folder))
        filtered.parent.mkdir(parents=True)
        shutil.copy(counts, filtered)
        setup(results=Path(folder), config=config)
        return read_h5ad(layout.COUNTS.at(Path(folder)))


def run_kang(cache: Path, counts: Path, seeds: int, factors: int, epochs: int | None, cnmf: str | None) -> None:
    """Agreement of programs from two disjoint sets of seeds, and what the programs are."""
    adata = variable_genes(counts, SetupConfig())
    LinearSCVI.setup_anndata(adata)
    fits = Fits(adata, counts.stem, cache, seeds, factors, epochs)
    raw = [
        matched(fits.weighted(a["loadings"]), fits.weighted(b["loadings"]))[0]
        for a, b in zip(fits.arrays[::2], fits.arrays[1::2], strict=True)
    ]
    print("raw factors, seed against seed:", describe(np.concatenate(raw)))
    rng = np.random.default_rng(0)
    for _ in range(6):
        order = rng.permutation(seeds)
        halves = [fits.find(order[: seeds // 2]), fits.find(order[seeds // 2 :])]
        cosine, _, _ = matched(halves[0].weighted, halves[1].weighted)
        print(f"two sets of {seeds // 2} seeds, ranks {halves[0].rank} and {halves[1].rank}:", describe(cosine))
    found = fits.find()
    related = gp.associations(found.scores, adata.obs)
    table = gp.describe(found, related, obs=adata.obs)
    for name in table.index:
        genes = set(table.loc[name, "top_positive"].split(", ")) & set(INTERFERON)
        print(f"{name:4} {table.loc[name, 'share']:.3f} {table.loc[name, 'label']:45} ", end="")
        print(f"{table.loc[name, 'best_association']:45} interferon genes in the top ten: {len(genes)}")
    if cnmf:
        beside_cnmf(cnmf, adata, fits)


def beside_cnmf(command: str, adata: AnnData, fits: Fits) -> None:
    """Both from two disjoint sets of half the seeds, fitted to the training cells; both score held-out cells.

    Half of the counts of a held-out cell, drawn at random, give its scores; the Poisson deviance of the other half is
    the held-out error. One percent of the mean profile is mixed into both predictions, as a profile of NMF may be 0.
    """
    split = split_cells(adata.n_obs, 0.8, 0.1, seed=0)  # as the fits were trained on
    train, test = adata[split.train].copy(), adata[split.test].copy()
    half, mean = len(fits.arrays) // 2, np.ravel(train.X.mean(axis=0))
    seen, held = test.X.copy(), test.X.copy()
    seen.data = np.random.default_rng(0).binomial(test.X.data.astype(int), 0.5).astype(float)
    held.data = test.X.data - seen.data
    dense, base = held.toarray(), mean / mean.sum()

    def error(share: np.ndarray) -> float:
        rate = dense.sum(axis=1, keepdims=True) * (0.99 * share / share.sum(axis=1, keepdims=True) + 0.01 * base)
        return float(2 * (xlogy(dense, dense / rate) - dense + rate).sum(axis=1).mean())

    print(f"the mean profile: held-out error {error(np.tile(base, (len(dense), 1))):.1f}")
    started, sets = time.perf_counter(), []
    for chosen in (range(half), range(half, 2 * half)):
        arrays = [fits.arrays[i] for i in chosen]
        tables = [[fit["scores"][split.train] for fit in arrays], [fit["loadings"] for fit in arrays]]
        theta = np.stack([fit["theta"] for fit in arrays])
        found = gp.find_programs(*tables, mean=mean, theta=theta, genes=list(adata.var_names))
        sets.append(found)
    seconds = (fits.seconds + time.perf_counter() - started) / 2
    frame = gp.frame(found, mean, theta)
    scores = gp.project(frame, seen, list(adata.var_names), adjust=False).scores.to_numpy()
    log = frame.offset + (scores - frame.transform[0]) @ np.linalg.pinv(frame.transform[1:]) @ frame.basis.T
    cosine, _, _ = matched(sets[0].weighted, found.weighted)
    print(f"ldvae, {half} seeds: {found.scores.shape[1]} programs, {describe(cosine)}, ", end="")
    print(f"held-out error {error(softmax(log, axis=1)):.1f}, {seconds:.0f} s")
    for k in (8, 11, 14):
        started = time.perf_counter()
        runs = [run_cnmf(command, train, [k], half, seed).get(k) for seed in (0, 1)]
        seconds = (time.perf_counter() - started) / 2
        if None in runs:
            print(f"cNMF, k = {k}: its filter leaves too few spectra")
            continue
        cosine, _, _ = matched(runs[0].score, runs[1].score)
        profiles = runs[1].tpm / runs[1].tpm.sum(axis=0)
        usages = np.stack([nnls(profiles, cell)[0] for cell in seen.toarray()])
        ours, _, _ = matched(found.weighted, relative(fits, runs[1].tpm))
        print(
            f"cNMF, k = {k}, {half} runs: {describe(cosine)}, held-out error {error(usages @ profiles.T):.1f}, ", end=""
        )
        print(f"{seconds:.0f} s; with ours: {describe(ours)}", flush=True)


def real_data(name: str, data: Path) -> AnnData:
    """Counts of the modeled genes; obs has `type` (missing: not known) and, in Kang, `condition`."""
    if name == "kang2018_stim_ctrl":
        adata = variable_genes(data / "kang2018_stim_ctrl.h5ad", SetupConfig())
        kind = adata.obs["cell_type"].astype(object).where(adata.obs["cell_type"] != "unlabeled")
    else:
        with tempfile.TemporaryDirectory() as folder:
            raw = read_pbmc3k(data) if name == "pbmc3k" else pbmc68k()
            raw.write_h5ad(Path(folder) / "raw.h5ad")
            adata = variable_genes(Path(folder) / "raw.h5ad", SetupConfig())
        kind = adata.obs["cell_type" if name == "pbmc3k" else "bulk_labels"].astype(object)
    adata.obs["type"] = kind
    return adata


def read_pbmc3k(data: Path) -> AnnData:
    """All genes that three cells or more have, and the cell types."""
    pbmc = sc.read_10x_mtx(data / "pbmc3k_10x_mtx" / "filtered_gene_bc_matrices" / "hg19")
    pbmc.var_names_make_unique()
    types = pd.read_csv(data / "pbmc3k_10x_mtx" / "cell_types_by_barcode.csv", index_col=0).iloc[:, 0]
    pbmc.obs["cell_type"] = types.reindex(pbmc.obs_names).astype(str).astype("category")
    sc.pp.filter_genes(pbmc, min_cells=3)
    return pbmc


def auc(scores: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each column for some of the cells, shape (n_columns,)."""
    n = inside.sum()
    return (rankdata(scores, axis=0)[inside].sum(axis=0) - n * (n + 1) / 2) / (n * (len(inside) - n))


def against_labels(adata: AnnData, scores: np.ndarray, weighted: np.ndarray) -> dict[str, float]:
    """AUC of each cell type on a program of its own, mean; of stimulation, and its program's interferon genes."""
    known = adata.obs["type"].notna().to_numpy()
    kinds = adata.obs["type"][known]
    table = np.array(
        [auc(scores[known], (kinds == name).to_numpy()) for name, n in kinds.value_counts().items() if n > 19]
    )
    result = {"types": table[linear_sum_assignment(-table)].mean()}
    if "condition" in adata.obs:
        stimulated = auc(scores, (adata.obs["condition"] == "stim").to_numpy())
        top = adata.var_names[np.argsort(-weighted[:, stimulated.argmax()])[:10]]
        result |= {"interferon": stimulated.max(), "of 7 genes": len(set(top) & set(INTERFERON))}
    return result


def against_truth(
    truth: np.ndarray, true_scores: np.ndarray, scores: np.ndarray, weighted: np.ndarray
) -> dict[str, float]:
    """Cosines of the loadings and correlations of the scores with the truth, mean and worst."""
    cosine, column, sign = matched(truth, weighted)
    r = [np.corrcoef(true_scores[:, k], scores[:, c])[0, 1] for k, c in enumerate(column)] * sign
    return {"cosine": cosine.mean(), "worst": cosine.min(), "r": r.mean(), "worst r": r.min()}


def run_rotations(
    cache: Path,
    scenario: list[str],
    first: int,
    draws: int,
    data: Path | None,
    names: list[str],
    seeds: int,
    rank: int | None,
    factors: int | None,
    cnmf: str | None,
    drvi: str | None,
) -> None:
    """The rotations, and scores before and after they are turned, against the truth or against cell types."""
    rows = []
    given = [f"{name}-{draw}" for name in scenario for draw in range(first, first + draws)] if data is None else names
    for name in given:
        if data is None:
            made = simulate(name.rsplit("-", 1)[0], seed=int(name.rsplit("-", 1)[1]))
            adata, width = made.to_anndata(), factors or 12
            LinearSCVI.setup_anndata(adata, batch_key="batch")
        else:
            adata, width = real_data(name, data), factors or 14
            LinearSCVI.setup_anndata(adata)
        fits = Fits(adata, name, cache, seeds, width, None)

        def compared(scores: np.ndarray, weighted: np.ndarray) -> dict[str, float]:
            if data is not None:
                return against_labels(adata, scores, weighted)  # noqa: B023
            truth = fits.weighted(made.loadings.to_numpy())  # noqa: B023
            return against_truth(truth, made.scores.to_numpy(), scores, weighted)  # noqa: B023

        for rotation in ("joint", "clean", "parts"):
            started = time.process_time()
            found = fits.find(rotation=rotation, rank=rank)
            seconds = time.process_time() - started
            weighted, agreement = found.weighted.to_numpy(), found.table["agreement"]
            # The components of the contribution, from the scores as they are shown.
            components = (found.scores.to_numpy() - found.transform[0]) @ np.linalg.pinv(found.transform[1:])
            before = found.joint[0] + components @ found.joint[1:]
            for method, scores in ((rotation, before), (f"{rotation}, scores turned", found.scores.to_numpy())):
                row = {"data": name, "method": method, "programs": len(agreement), "below .5": (agreement < 0.5).sum()}
                row |= {"agreement": agreement.min(), "settled": (found.table["settled"] >= SETTLED).mean()}
                rows.append(row | compared(scores, weighted) | {"CPU s": seconds + fits.cpu()})
        if drvi:
            started = children_cpu()
            found_by_way = run_drvi(drvi, adata, rank or 8)
            seconds = children_cpu() - started
            for way, (scores, loadings) in found_by_way.items():
                row = {"data": name, "method": f"DRVI, {way}", "programs": scores.shape[1]}
                rows.append(row | compared(scores, fits.weighted(loadings)) | {"CPU s": seconds})
        if cnmf:
            started, found_by_k = children_cpu(), run_cnmf(cnmf, adata, [8, 9, 11] if data else [8, 9], 20, 0)
            seconds = children_cpu() - started
            for k, spectra in found_by_k.items():
                row = {"data": name, "method": f"cNMF, k = {k}", "programs": k}
                rows.append(row | compared(spectra.usages, relative(fits, spectra.tpm)) | {"CPU s": seconds})
        table = pd.DataFrame(rows)
        print(table[table["data"] == name].round(3).to_string(index=False), flush=True)


def run_settings(cache: Path, data: Path, names: list[str], factors: list[int], seeds: list[int]) -> None:
    """Programs found and settled, and the time of the fits, by factors and seeds."""
    rows: list[dict[str, object]] = []
    for name in names:
        adata = real_data(name, data)
        LinearSCVI.setup_anndata(adata)
        for n_factors in factors:
            fits = Fits(adata, name, cache, max(seeds), n_factors, None)
            for n_seeds in seeds:
                started = time.process_time()
                found = fits.find(range(n_seeds))
                seconds = time.process_time() - started
                rows.append(
                    {
                        "data": name,
                        "factors": n_factors,
                        "seeds": n_seeds,
                        "directions": found.rank,
                        "programs": len(found.table),
                        "settled": (found.table["settled"] >= SETTLED).sum(),
                        "agreement < .5": (found.table["agreement"] < 0.5).sum(),
                        "ELBO": np.mean([fit["elbo_test"] for fit in fits.arrays[:n_seeds]]),
                        "CPU s of fits": fits.cpu(n_seeds),
                        "of programs": seconds,
                    }
                )
                rows[-1] |= against_labels(adata, found.scores.to_numpy(), found.weighted.to_numpy())
        table = pd.DataFrame(rows)
        print(table[table["data"] == name].round(2).to_string(index=False), flush=True)


def run_halves(
    cache: Path,
    data: Path,
    names: list[str],
    factors: int,
    seeds: int,
    half: int,
    splits: int,
    rotations: list[str],
    warm: float | None,
) -> None:
    """Programs of one set of fits against those of another: loadings, members, and what `settled` had foretold."""
    for name in names:
        if name in REAL:
            adata = real_data(name, data)
            LinearSCVI.setup_anndata(adata)
        else:
            scenario, draw = name.rsplit("-", 1)
            adata = simulate(scenario, seed=int(draw)).to_anndata()
            LinearSCVI.setup_anndata(adata, batch_key="batch")
        fits = Fits(adata, name, cache, seeds, factors, None, warm)
        elbo = np.mean([fit["elbo_test"] for fit in fits.arrays])
        print(f"{name}: {fits.cpu() / seeds:.1f} s of CPU time for a fit, ELBO of test cells {elbo:.1f}")
        for rotation in rotations:
            rng, tables, ranks, forecasts = np.random.default_rng(0), [], [], []
            for _ in range(splits):
                order = rng.permutation(seeds)
                sets = [fits.find(of, rotation=rotation) for of in (order[:half], order[half : 2 * half])]
                ranks += [found.rank for found in sets]
                tables.append(compare_programs(*sets))
                forecasts += [forecast(*sets), forecast(*sets[::-1])]
            table, foretold = pd.concat(tables), pd.concat(forecasts)
            settled, large = table[table["settled"]], table[table["share"] >= 0.05]
            fine = (table["cosine"] > 0.9) | ~table["settled"]
            print(f"{name}, {half} against {half} of {seeds}, {splits} choices, {rotation}: ", end="")
            print(f"directions {min(ranks)} to {max(ranks)}, means ", end="")
            print(" ".join(f"{found['cosine'].mean():.3f}" for found in tables))
            print(f"  all: {describe(table['cosine'].to_numpy())}; above 0.9 or not settled {fine.mean():.0%}")
            print(f"  {len(settled) / len(table):.0%} settled: {describe(settled['cosine'].to_numpy())}")
            print(f"  members, Jaccard: settled {settled['jaccard'].mean():.2f}, ", end="")
            print(f"above 5 % {large['jaccard'].mean():.2f}, worst {large['jaccard'].min():.2f}; ", end="")
            print(f"of programs above 5 % {large['members'].min()} to {large['members'].max()} members", flush=True)
            again, said = foretold["cosine"] > 0.9, foretold["settled"] >= SETTLED
            print(
                f"  what one set says of the other: {len(foretold)} programs, {(~again).sum()} not found again; ",
                end="",
            )
            print(f"of {said.sum()} settled {again[said].mean():.1%} found again, of {(~said).sum()} others ", end="")
            print(f"{again[~said].mean():.0%}; settled says {foretold['settled'].mean():.2f}, found {again.mean():.2f}")
            worst = table[table["cosine"] < 0.9][["cosine", "share", "settled", "settled_1", "settled_2", "agreement"]]
            if len(worst):
                print(worst.round(3).to_string(index=False), flush=True)


def forecast(first: gp.Programs, second: gp.Programs) -> pd.DataFrame:
    """Each program of the first: settled, and the cosine with whatever in the second is most like it."""
    cosine = np.abs(cosine_matrix(first.weighted.to_numpy(), second.weighted.to_numpy())).max(axis=1)
    return pd.DataFrame({"settled": first.table["settled"].to_numpy(), "cosine": cosine})


def run_choices(cache: Path, data: Path, names: list[str], seeds: int, sizes: list[int], times: int) -> None:
    """The number of directions and programs that random choices of the fits read off."""
    for name in names:
        adata = real_data(name, data)
        LinearSCVI.setup_anndata(adata)
        fits = Fits(adata, name, cache, seeds, 14, None)
        weighted = [fits.weighted(fit["loadings"]) for fit in fits.arrays]
        for size in sizes:
            rng, ranks = np.random.default_rng(0), []
            for _ in range(times):
                chosen = rng.permutation(seeds)[:size]
                scores = [fits.arrays[i]["scores"] for i in chosen]
                ranks.append(gp.reproducible_rank(scores, [weighted[i] for i in chosen]).rank)
            counts = pd.Series(ranks).value_counts().sort_index()
            print(f"{name}, {size} of {seeds} fits, {times} choices: ", end="")
            print(", ".join(f"{rank} directions {n} times" for rank, n in counts.items()), flush=True)


def compare_programs(first: gp.Programs, second: gp.Programs) -> pd.DataFrame:
    """Each program of the first beside its match: cosine, settled in both, share, members and their Jaccard."""
    cosine = cosine_matrix(first.weighted.to_numpy(), second.weighted.to_numpy())
    rows = []
    for k, c in zip(*linear_sum_assignment(-np.abs(cosine)), strict=True):
        own, other = first.members.iloc[:, k], second.members.iloc[:, c] * np.sign(cosine[k, c])
        rows.append(
            {
                "cosine": abs(cosine[k, c]),
                "settled_1": first.table["settled"].iloc[k],
                "settled_2": second.table["settled"].iloc[c],
                "settled": min(first.table["settled"].iloc[k], second.table["settled"].iloc[c]) >= SETTLED,
                "agreement": first.table["agreement"].iloc[k],
                "share": first.table["share"].iloc[k],
                "members": int((own != 0).sum()),
                "jaccard": ((own == other) & (own != 0)).sum() / max(((own != 0) | (other != 0)).sum(), 1),
            }
        )
    return pd.DataFrame(rows)


def cosine_matrix(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosines of all columns of one table with all of another."""
    return (first / np.linalg.norm(first, axis=0)).T @ (second / np.linalg.norm(second, axis=0))


def describe(cosine: np.ndarray) -> str:
    """Mean cosine and share above 0.9."""
    return f"mean {cosine.mean():.3f}, {(cosine > 0.9).mean():.0%} above 0.9, worst {cosine.min():.3f}"


def run_abundant(cache: Path, data: Path, names: list[str], factors: int, seed: int) -> None:
    """Of the 50 most abundant genes those predicted more than 5 % off their mean, on held-out and on trained cells.

    Surely: also by more than two standard errors of that mean. Mean profile: what the trained cells' own mean would
    predict for the held-out cells. Weighted: sums over cells in which a cell counts 1 / (1 + mean / theta), as it does
    for the intercept of a gene in the negative binomial likelihood.
    """
    for name in names:
        adata = real_data(name, data)
        LinearSCVI.setup_anndata(adata)
        fits = fit_sweep(adata, SweepConfig(seeds=[seed]), model=ModelConfig(n_latent=factors))
        model = next(iter(fits.models.values()))
        theta = np.ravel(model.get_likelihood_parameters(indices=[0])["dispersions"])
        split = split_cells(adata.n_obs, 0.8, 0.1, seed=0)  # as `fit_sweep` splits them
        top = np.argsort(-np.ravel(adata.X.mean(axis=0)))[:50]
        profile = np.ravel(adata.X[split.train].sum(axis=0))[top] / adata.X[split.train].sum()
        for part, cells in (("held-out", split.test), ("trained", split.train)):
            counts = adata.X[cells].toarray()
            expected = profile * counts.sum() / len(cells)
            counts, predicted = counts[:, top], np.zeros((len(cells), len(top)))
            for draw in range(10):
                one = model.get_normalized_expression(
                    indices=cells, library_size="latent", return_numpy=True, seed=draw
                )
                predicted += np.asarray(one, float)[:, top] / 10
            weight, mean = 1 / (1 + predicted / theta[top]), counts.mean(axis=0)
            error = counts.std(axis=0, ddof=1) / np.sqrt(len(cells))
            ratios = {
                "model": predicted.mean(axis=0) / mean,
                "mean profile": expected / mean,
                "model, weighted": (predicted * weight).sum(axis=0) / (counts * weight).sum(axis=0),
            }
            print(
                f"{name}, {len(cells)} {part} cells, standard error {np.median(error / mean):.1%} of a mean: ", end=""
            )
            for what, ratio in ratios.items():
                off = np.abs(ratio - 1) > 0.05
                print(f"{what} {off.sum()} off", end="")
                if "weighted" not in what:
                    print(f" ({(off & (np.abs(ratio - 1) * mean > 2 * error)).sum()} surely)", end="")
                print(f", median ratio {np.median(ratio):.3f}; ", end="")
            print()
            ratio, weighted = ratios["model"], ratios["model, weighted"]
            for g in np.argsort(-np.abs(np.log(ratio)))[:8]:
                most = np.sort(counts[:, g])[-max(1, len(cells) // 100) :].sum() / counts[:, g].sum()
                print(
                    f"  {adata.var_names[top[g]]:10} ratio {ratio[g]:.2f}, weighted {weighted[g]:.2f}, theta ", end=""
                )
                print(f"{theta[top[g]]:.2f}, share of its counts in 1 % of the cells {most:.2f}", flush=True)


def run_regimes(cache: Path, counts: Path, seeds: int, factors: int) -> None:
    """Held-out ELBO and time of the reference's way to train and of the workflow's, by the same kernels."""
    adata = variable_genes(counts, SetupConfig())
    LinearSCVI.setup_anndata(adata)
    split = split_cells(adata.n_obs, 0.8, 0.1, seed=0)
    ways = {
        "scvi-tools: lr 1e-3, warm-up 400": FitConfig(),
        "scvi-tools: lr 5e-3, warm-up 400": FitConfig(lr=5e-3),
        "scvi-tools: lr 5e-3, warm-up 400, 100 epochs": FitConfig(lr=5e-3, max_epochs=100),
    }
    for epochs in (40, 80, None):
        name = f"workflow, {epochs} epochs" if epochs else "workflow, its default"
        ways[name] = TrainConfig(max_epochs=epochs).fit_config(len(split.train))
    for lr in (1e-2, 2e-2):
        started = TrainConfig(lr=lr, start_at_mean=True)
        ways[f"workflow, lr {lr:g}, start at mean"] = started.fit_config(len(split.train))
    rows = []
    for name, config in ways.items():
        for seed in range(seeds):
            model = LinearSCVI(adata, n_latent=factors, seed=seed)
            done = model.fit(split, config, seed=seed)
            noise = torch.Generator().manual_seed(0)
            terms = elbo_terms(model.module, model.source, split.test, noise)
            elbo, kl = float(terms.loss().double().mean()), float(terms.kl_z.double().mean())
            rows.append({"training": name, "epochs": done.epochs, "seconds": done.seconds, "ELBO": elbo, "KL": kl})
    table = pd.DataFrame(rows).groupby("training", sort=False)
    print(f"{adata.n_obs} x {adata.n_vars}, {factors} factors, {seeds} seeds; nats per cell on {len(split.test)} cells")
    print(table.agg(["mean", "min", "max"]).round(1).to_string())


def run_transfer(cache: Path, data: Path, seeds: int, factors: int) -> None:
    """Cells of pbmc3k scored by the programs of kang2018_ctrl_8donors: each cell type on the program of its own."""
    adata = variable_genes(data / "kang2018_ctrl_8donors.h5ad", SetupConfig(genes="all", batch_key="batch"))
    LinearSCVI.setup_anndata(adata, batch_key="batch")
    fits = fit_sweep(adata, SweepConfig(seeds=list(range(seeds))), model=ModelConfig(n_latent=factors))
    found = fits.get_programs()
    pbmc = read_pbmc3k(data)
    types = pbmc.obs["cell_type"]
    model = next(iter(fits.models.values()))
    frame = gp.frame(found, np.ravel(adata.X.mean(axis=0)), model.get_likelihood_parameters(indices=[0])["dispersions"])
    scored = gp.project(frame, pbmc.X, list(pbmc.var_names), cells=list(pbmc.obs_names))
    print(f"{len(scored.missing)} of {adata.n_vars} genes are missing in pbmc3k")
    rows = []
    for name in sorted(set(types) & set(adata.obs["cell_type"])):
        own = gp.associations(found.scores, adata.obs[["cell_type"]]).query("level == @name").set_index("program")
        program = own["auc"].idxmax()
        means = scored.scores[program].groupby(types.loc[pbmc.obs_names]).mean().sort_values(ascending=False)
        other = gp.associations(scored.scores[[program]], types.to_frame("cell_type")).query("level == @name")
        rows.append(
            {
                "cell type": name,
                "program": program,
                "share covered": scored.covered[program],
                "AUC in kang": own["auc"].max(),
                "AUC in pbmc3k": other["auc"].iloc[0],
                "highest mean score in pbmc3k": means.index[0],
                "next": means.index[1],
            }
        )
    print(pd.DataFrame(rows).round(3).to_string(index=False))


def run_scaling(cache: Path, cells: int) -> None:
    """Time and memory of the programs of 10 made-up fits of 20 factors and 2,000 genes."""
    rng = np.random.default_rng(0)
    n_genes, n_factors, shared = 2000, 20, 15
    loadings = np.where(rng.random((n_genes, shared)) < 0.05, rng.normal(1, 0.3, (n_genes, shared)), 0)
    scores, tables = [np.empty((cells, n_factors), np.float32) for _ in range(10)], []
    mixes = [rng.normal(size=(n_factors, n_factors)).astype(np.float32) for _ in scores]
    for start in range(0, cells, 10_000):
        rows = slice(start, start + 10_000)
        own = len(scores[0][rows])
        common = (rng.random((own, shared), np.float32) < 0.2) * rng.random((own, shared), np.float32) * 2
        for table, mix in zip(scores, mixes, strict=True):
            noise = 0.1 * rng.standard_normal((own, n_factors), np.float32)
            table[rows] = np.hstack([common, 5 * noise[:, shared:]]) @ mix + noise @ mix
    for mix in mixes:
        noise = 0.02 * rng.normal(size=(n_genes, n_factors))
        tables.append((np.hstack([loadings, noise[:, shared:]]) + noise) @ np.linalg.inv(mix).T)
    started, cpu = time.perf_counter(), time.process_time()
    found = gp.find_programs(scores, tables, mean=rng.gamma(0.5, 1, n_genes), theta=np.full(n_genes, 5.0))
    print(f"{cells:,} cells × {n_genes:,} genes × 10 seeds of {n_factors} factors: {found.scores.shape[1]} programs")
    print(f"{time.perf_counter() - started:.1f} s ({time.process_time() - cpu:.1f} s of CPU time), ", end="")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB with the fits")


def draw_figure(cache: Path, path: Path, epochs: int | None) -> None:
    """Cosines to the truth of the factors of each fit and of the programs of all, in the mixed scenario."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    made = simulate("mixed", seed=0)
    adata = made.to_anndata()
    LinearSCVI.setup_anndata(adata, batch_key="batch")
    fits = Fits(adata, "mixed-0", cache, 6, 12, epochs)
    truth = fits.weighted(made.loadings.to_numpy())
    found = fits.find()
    panels = [(f"factors of fit {s + 1}", fits.weighted(fits.arrays[s]["loadings"])) for s in range(2)]
    panels.append(("programs of 6 fits", found.weighted.to_numpy()))
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    widths = [table.shape[1] for _, table in panels]
    for axes, (title, table) in zip(figure.subplots(1, 3, sharey=True, width_ratios=widths), panels, strict=True):
        _, column, _ = matched(truth, table)
        rest = [k for k in range(table.shape[1]) if k not in column]
        order = [*column, *rest]
        cosines = (truth / np.linalg.norm(truth, axis=0)).T @ (table / np.linalg.norm(table, axis=0))[:, order]
        image = axes.imshow(cosines, cmap="RdBu_r", vmin=-1, vmax=1)
        names = [f"P{k + 1}" if title.startswith("programs") else f"Z{k}" for k in order]
        axes.set_xticks(range(len(order)), names, fontsize=7)
        axes.set_title(title, fontsize=10)
        for k, value in enumerate(np.diag(cosines)):
            color = "white" if abs(value) > 0.6 else "black"
            axes.text(k, k, f"{abs(value):.2f}".lstrip("0"), ha="center", va="center", fontsize=6, color=color)
    figure.axes[0].set_yticks(range(8), [name.replace("_", " ") for name in made.loadings], fontsize=8)
    figure.colorbar(image, ax=figure.axes, label="cosine of the loadings", shrink=0.7)
    with rc_context({"svg.hashsalt": "ldvae", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})


def draw_contradiction(cache: Path, path: Path) -> None:
    """A small program beside a dominant one, without and with clean loadings: its score against its genes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    made = simulate("trajectory", seed=400)
    adata = made.to_anndata()
    LinearSCVI.setup_anndata(adata, batch_key="batch")
    fits = Fits(adata, "trajectory-400", cache, 2, 12, None)
    truth = fits.weighted(made.loadings.to_numpy())
    share = np.sqrt(made.counts.toarray() / made.counts.sum(axis=1).A1[:, None] * 1e4)
    shown = np.random.default_rng(0).choice(adata.n_obs, 500, replace=False)
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    program = None
    for axes, rotation in zip(figure.subplots(1, 2), ("joint", "clean"), strict=True):
        found = fits.find(rotation=rotation, rank=8)
        _, column, sign = matched(truth, found.weighted)
        agreement = found.table["agreement"].to_numpy()[column]
        program = int(agreement.argmin()) if program is None else program  # the same true program in both
        components = (found.scores.to_numpy() - found.transform[0]) @ np.linalg.pinv(found.transform[1:])
        score = sign[program] * (found.joint[0] + components @ found.joint[1:])[:, column[program]]
        heaviest = np.argsort(-sign[program] * found.weighted.to_numpy()[:, column[program]])[:30]
        own = int((np.abs(made.loadings.iloc[heaviest, program]) > 0).sum())
        on = made.scores.to_numpy()[:, program] > 0.5
        for cells, label, color in ((~on, "other cells", "0.6"), (on, made.scores.columns[program], "C3")):
            rows = shown[cells[shown]]
            axes.scatter(
                score[rows], share[rows][:, heaviest].mean(axis=1), s=6, color=color, label=label.replace("_", " ")
            )
        title = {"joint": "before: rotation alone", "clean": "after: clean loadings"}[rotation]
        axes.set_title(f"{title}\nagreement {agreement[program]:.2f}; {own} of 30 genes are its own", fontsize=10)
        axes.set_xlabel("score of the program")
    figure.axes[0].set_ylabel("mean expression of its 30\nheaviest genes (square root)")
    figure.axes[0].legend(fontsize=8)
    with rc_context({"svg.hashsalt": "ldvae", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
