"""A made-up results folder of one dataset, with the files and columns that the workflow's steps write."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Names that would become markup, end a script or confuse a CSS selector if they were not escaped.
NASTY = [
    "</script><script>alert(1)</script>",
    "A<b>&B</b>",
    "\"quoted\" 'gene'",
    "$x_1$ \\frac",
    "<img src=x onerror=alert(2)>",
]


@dataclass(frozen=True, kw_only=True)
class World:
    """Size and peculiarities of a made-up dataset."""

    name: str = "demo"
    n_obs: int = 700
    n_vars: int = 300
    batches: tuple[str, ...] = ("donor1", "donor2")
    labels: tuple[str, ...] = ("B cells", "CD4 T cells", "NK cells", "Monocytes")
    conditions: tuple[str, ...] = ("ctrl", "stim")
    n_latents: tuple[int, ...] = (6, 8, 10)
    n_seeds: int = 3
    n_programs: int = 6
    n_contrasts: int = 2
    donors: bool = False
    nasty: bool = False
    extras: bool = True
    seed: int = 0


class Undrawn:
    """In place of `ldvae.pl`: functions that draw nothing, on axes that they share."""

    def __init__(self) -> None:
        from matplotlib.figure import Figure

        self.axes = Figure().subplots()

    def __getattr__(self, name: str) -> Callable[..., Axes]:
        return lambda *_, ax=None, **__: ax or self.axes


def draw_nothing(patch: pytest.MonkeyPatch, *, but: str = "") -> None:
    """Leave figures of reports empty, but those whose name starts so: drawing them is most of the work."""
    from ldvae.report import figures
    from ldvae.report.drawing import Drawing, Rendered, _target

    empty, render = '<svg xmlns="http://www.w3.org/2000/svg"/>', Drawing.render

    def rendered(drawing: Drawing) -> Rendered:
        if but and drawing.name.startswith(but):
            return render(drawing)
        return Rendered(empty, empty, [_target(one) for one in drawing.hover])

    patch.setattr(Drawing, "render", rendered)
    if not but:
        patch.setattr(figures, "pl", Undrawn())


def write_results(root: Path, world: World) -> dict[str, object]:
    """Write the folder `root`/{world.name}; the folder, as `results`, and the paths in it that tests look at."""
    rng = np.random.default_rng(world.seed)
    folder = root / world.name
    genes = [f"GENE{i}" for i in range(world.n_vars)]
    labels = list(world.labels)
    if world.nasty:
        genes[: len(NASTY)] = NASTY
        labels[: min(len(labels), len(NASTY))] = NASTY[: len(labels)]
    obs = _cells(rng, world, labels)
    arguments: dict[str, object] = {"results": folder}
    arguments |= _write_qc(folder, rng, world, obs)
    arguments |= _write_setup(folder, world)
    arguments |= _write_runs(folder, rng, world, genes)
    scores = _scores(rng, obs, world)
    arguments |= _write_programs(folder, rng, world, genes, obs, scores)
    arguments |= _write_annotated(folder, rng, world, obs, scores)
    counts = np.random.default_rng(world.seed).poisson(1.0, (len(obs), len(genes))).astype(np.float32)
    measured = ad.AnnData(sparse.csr_matrix(counts), obs[[]], pd.DataFrame(index=genes))
    measured.write_h5ad(folder / "qc" / "filtered.h5ad")
    if world.n_contrasts:
        arguments |= _write_de(folder, rng, world, genes, labels)
    if world.extras:
        arguments |= _write_extras(folder, world)
    output = {"output": folder / "report.html", "summary": folder / "report.json", "figures": folder / "figures"}
    return arguments | output


def _cells(rng: np.random.Generator, world: World, labels: list[str]) -> pd.DataFrame:
    n = world.n_obs
    obs = pd.DataFrame(index=pd.Index([f"cell{i}" for i in range(n)], name="cell"))
    if world.batches:
        obs["batch"] = rng.choice(list(world.batches), n)
    if labels:
        obs["cell_type"] = rng.choice(labels, n)
    if world.conditions:
        obs["condition"] = rng.choice(list(world.conditions), n)
    obs["total_counts"] = np.round(rng.lognormal(8, 0.5, n))
    obs["n_genes_by_counts"] = np.round(rng.lognormal(7, 0.3, n)).astype(int)
    obs["pct_counts_mt"] = rng.beta(2, 40, n) * 100
    obs["doublet_score"] = rng.beta(1, 20, n)
    return obs


def _write_qc(folder: Path, rng: np.random.Generator, world: World, obs: pd.DataFrame) -> dict[str, object]:
    metrics = ["total_counts", "n_genes_by_counts", "pct_counts_mt", "doublet_score"]
    kept = obs[metrics].assign(batch=obs.get("batch", "all"), kept=True, reason="")
    removed = kept.sample(max(5, len(kept) // 20), random_state=1).copy()
    removed.index = [f"removed{i}" for i in range(len(removed))]
    half = len(removed) // 2
    removed["n_genes_by_counts"] = [*([50] * half), *removed["n_genes_by_counts"][half:]]
    removed["pct_counts_mt"] = [*removed["pct_counts_mt"][:half], *([35.0] * (len(removed) - half))]
    removed["kept"] = False
    removed["reason"] = ["n_genes_by_counts < 200"] * half + ["pct_counts_mt > 20"] * (len(removed) - half)
    cells = pd.concat([kept, removed]).rename_axis("cell")
    cells["predicted_doublet"] = cells["doublet_score"] > 0.2
    cells = cells[["batch", *metrics, "predicted_doublet", "kept", "reason"]]
    names = sorted(cells["batch"].unique())
    summary = {
        "dataset": world.name,
        "inputs": [{"path": "raw/counts.h5ad", "sha256": "ab" * 32, "n_obs": len(cells), "n_vars": 5000}],
        "batch_key": "batch" if world.batches else "",
        "n_obs_before": len(cells),
        "n_obs_after": len(kept),
        "n_vars_before": 5000,
        "n_vars_after": 4200,
        "removed": {"n_genes_by_counts < 200": half, "pct_counts_mt > 20": len(removed) - half},
        "thresholds": {
            "n_genes_by_counts": {name: {"lower": 200, "upper": None} for name in names},
            "pct_counts_mt": {name: {"lower": None, "upper": 20} for name in names},
        },
        "per_batch": {
            name: {"before": int((cells["batch"] == name).sum()), "after": int((kept["batch"] == name).sum())}
            for name in names
        },
        "doublets": {"mode": "annotate", "n_predicted": int(cells["predicted_doublet"].sum())},
        "warnings": [],
        "settings": {"min_genes": 200, "max_pct_mt": 20},
    }
    paths = {"qc_summary": folder / "qc" / "summary.json", "qc_cells": folder / "qc" / "cells.tsv.gz"}
    _json(paths["qc_summary"], summary)
    _table(paths["qc_cells"], cells)
    return dict(paths)


def _write_setup(folder: Path, world: World) -> dict[str, object]:
    n = world.n_obs
    summary = {
        "n_obs": n,
        "n_vars": world.n_vars,
        "n_train": round(0.8 * n),
        "n_validation": round(0.1 * n),
        "n_test": n - round(0.8 * n) - round(0.1 * n),
        "method": "seurat_v3",
        "warnings": [],
        "settings": {"n_top_genes": world.n_vars, "method": "seurat_v3"},
        "fields": {
            "batch_key": "batch" if world.batches else "",
            "labels_key": "cell_type" if world.labels else "",
        },
    }
    path = folder / "setup" / "summary.json"
    _json(path, summary)
    return {"setup_summary": path}


def _write_runs(folder: Path, rng: np.random.Generator, world: World, genes: list[str]) -> dict[str, object]:
    rows, paths = [], {"metrics": [], "histories": [], "fit": []}
    for n_latent in world.n_latents:
        for seed in range(world.n_seeds):
            setting, run = f"k{n_latent}-3fa9c{n_latent}", f"k{n_latent}-s{seed}-3fa9c{n_latent}"
            history = _history(rng, n_latent)
            kl = np.sort(rng.gamma(2, 1, n_latent))[::-1]
            kl[-1] = 0.001
            last = history.iloc[-1]
            metrics = {
                "run": run,
                "setting": setting,
                "seed": seed,
                "params": {"n_latent": n_latent, "gene_likelihood": "nb", "n_hidden": 128, "n_layers": 1, "lr": 0.01},
                "n_train": round(0.8 * world.n_obs),
                "n_validation": round(0.1 * world.n_obs),
                "n_test": round(0.1 * world.n_obs),
                "epochs": len(history),
                "max_epochs": 60,
                "stopped_early": True,
                "converged": True,
                "elbo_train": last["elbo_train"],
                "elbo_validation": last["elbo_validation"],
                "elbo_test": last["elbo_validation"] + rng.normal(0, 0.3),
                "reconstruction_test": last["reconstruction_loss_validation"],
                "kl_test": float(kl.sum()),
                "marginal_ll_test": -last["elbo_validation"] + 1.5,
                "kl_per_factor": [float(value) for value in kl],
                "collapsed": 1,
                "wall_s": float(rng.uniform(20, 30)),
                "cells_per_s": float(rng.uniform(8e3, 9e3)),
                "peak_memory_mb": 812.5,
                "device": "cpu",
                "threads": 2,
                "versions": {
                    "python": "3.11.2",
                    "torch": "2.13.0",
                    "ldvae": "0.1.0",
                    "anndata": "0.12.3",
                    "commit": "3fa9c1" * 6 + "3fa9",
                },
                "host": "node1",
                "date": "2026-01-02",
            }
            place = folder / "runs" / run
            _json(place / "metrics.json", metrics)
            history.to_csv(place / "history.csv", index=False)
            _table(place / "ppc.tsv", _fit(rng, world, genes), index=False)
            for key, name in (("metrics", "metrics.json"), ("histories", "history.csv"), ("fit", "ppc.tsv")):
                paths[key].append(place / name)
            rows.append(metrics | {"n_latent": n_latent, "outlier": False})
    columns = "run setting seed n_latent elbo_train elbo_validation elbo_test reconstruction_test marginal_ll_test"
    columns += " collapsed epochs stopped_early wall_s cells_per_s peak_memory_mb device outlier"
    runs = pd.DataFrame(rows)[columns.split()]
    chosen = f"k{world.n_latents[-1]}-3fa9c{world.n_latents[-1]}"
    settings, correlations = _choice(rng, runs, chosen, world)
    ids = list(runs.loc[runs["setting"] == chosen, "run"])
    best = {
        "setting": chosen,
        "runs": ids,
        "outliers": [],
        "run": ids[0],
        "n_latent": world.n_latents[-1],
        "reproducible_rank": world.n_programs,
        "threshold": 0.9,
        "rule": "elbo-rank-factors",
        "reason": "Of the settings whose held-out ELBO is within one standard error of the best, it has the largest "
        "reproducible rank.",
    }
    select = {name: folder / "select" / f"{name}.tsv" for name in ("runs", "settings", "correlations")}
    for name, table in (("runs", runs), ("settings", settings), ("correlations", correlations)):
        _table(select[name], table, index=False)
    _json(folder / "select" / "best.json", best)
    return paths | {f"select_{name}": path for name, path in select.items()} | {"best": folder / "select" / "best.json"}


def _history(rng: np.random.Generator, n_latent: int) -> pd.DataFrame:
    epochs = np.arange(40)
    reconstruction = 400 + 90 * np.exp(-epochs / 8) - n_latent / 10 + rng.normal(0, 0.2, len(epochs))
    kl = 12 * (1 - np.exp(-epochs / 5))
    history = pd.DataFrame({"epoch": epochs})
    for split, worse in (("train", 0.0), ("validation", 3.0)):
        history[f"reconstruction_loss_{split}"] = reconstruction + worse
        history[f"kl_local_{split}"] = kl
        history[f"elbo_{split}"] = reconstruction + worse + kl
    history["kl_weight"] = np.minimum(epochs / 15, 1)
    history["lr"] = 0.01
    return history


def _fit(rng: np.random.Generator, world: World, genes: list[str]) -> pd.DataFrame:
    tables = []
    for batch in ("all", *world.batches):
        mean = rng.lognormal(-1.5, 1.2, len(genes))
        variance = mean + mean**2 / 2
        zeros = (1 + mean / 2) ** -2.0
        tables.append(
            pd.DataFrame(
                {
                    "gene": genes,
                    "batch": batch,
                    "n_cells": world.n_obs // 5,
                    "observed_mean": mean,
                    "predicted_mean": mean * rng.lognormal(0, 0.05, len(genes)),
                    "observed_variance": variance,
                    "predicted_variance": variance * rng.lognormal(0, 0.15, len(genes)),
                    "observed_zeros": zeros,
                    "predicted_zeros": np.clip(zeros + rng.normal(0, 0.02, len(genes)), 0, 1),
                }
            )
        )
    return pd.concat(tables)


def _choice(
    rng: np.random.Generator, runs: pd.DataFrame, chosen: str, world: World
) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows, curves = [], []
    for setting, group in runs.groupby("setting", sort=False):
        row = {"setting": setting, "n_latent": group["n_latent"].iloc[0], "n_runs": len(group)}
        for column in ("elbo_test", "marginal_ll_test", "reconstruction_test"):
            row[f"{column}_mean"] = group[column].mean()
            row[f"{column}_se"] = group[column].sem() if len(group) > 1 else np.nan
        one = len(group) == 1
        row |= {
            "reproducible_rank": np.nan if one else world.n_programs,
            "stability_mean": np.nan if one else rng.uniform(0.9, 0.99),
            "stability_min": np.nan if one else rng.uniform(0.7, 0.9),
            "collapsed_mean": group["collapsed"].mean(),
            "wall_s_mean": group["wall_s"].mean(),
            "chosen": setting == chosen,
        }
        rows.append(row)
        if not one:
            for rank in range(1, row["n_latent"] + 1):
                value = 0.99 if rank <= world.n_programs else max(0.02, 0.7 - 0.3 * (rank - world.n_programs))
                curve = {"setting": setting, "rank": rank, "correlation": value}
                curves.append(curve | {"lower": max(0, value - 0.03), "upper": min(1, value + 0.005)})
    columns = ["setting", "rank", "correlation", "lower", "upper"]
    return pd.DataFrame(rows), pd.DataFrame(curves, columns=columns)


def _scores(rng: np.random.Generator, obs: pd.DataFrame, world: World) -> np.ndarray:
    scores = rng.normal(0, 0.7, (len(obs), world.n_programs))
    if "cell_type" in obs:
        codes = obs["cell_type"].astype("category").cat.codes.to_numpy()
        for k in range(world.n_programs):
            scores[:, k] += 2.5 * (codes % world.n_programs == k)
    return scores.astype(np.float32)


def _write_programs(
    folder: Path, rng: np.random.Generator, world: World, genes: list[str], obs: pd.DataFrame, scores: np.ndarray
) -> dict[str, object]:
    names = [f"P{k + 1}" for k in range(world.n_programs)]
    runs = [f"k{world.n_latents[-1]}-s{seed}-3fa9c{world.n_latents[-1]}" for seed in range(world.n_seeds)]
    long, top, associations, enrichment, programs, stability = [], [], [], [], [], []
    for k, name in enumerate(names):
        loading = rng.normal(0, 0.05, len(genes))
        loading[k * 20 : k * 20 + 15] += rng.uniform(0.5, 2, min(15, len(genes[k * 20 : k * 20 + 15])))
        loading[k * 20 + 15 : k * 20 + 20] -= rng.uniform(0.3, 1, len(genes[k * 20 + 15 : k * 20 + 20]))
        width = rng.uniform(0.02, 0.2, len(genes))
        if world.n_seeds == 1:
            width = np.full(len(genes), np.nan)
        table = pd.DataFrame({"program": name, "gene": genes, "loading": loading})
        table = table.assign(lower=loading - width, upper=loading + width, weighted=loading * 0.6)
        long.append(table)
        ordered = table.sort_values("weighted", ascending=False)
        for side, block in (("positive", ordered.head(25)), ("negative", ordered[::-1].head(12))):
            block = block.assign(side=side, rank=range(1, len(block) + 1))
            top.append(block[["program", "side", "rank", "gene", "loading", "lower", "upper", "weighted"]])
        for variable, explained in (("condition", 0.1), ("cell_type", 0.5), ("batch", 0.01)):
            for level in sorted(set(obs.get(variable, []))):
                inside = (obs[variable] == level).to_numpy()
                effect = float(scores[inside, k].mean() - scores[~inside, k].mean()) if not inside.all() else 0.0
                row = {"program": name, "variable": variable, "kind": "categorical", "level": level, "effect": effect}
                row |= {"auc": 0.5 + effect / 8, "p": 10 ** -abs(effect * 20), "padj": 10 ** -abs(effect * 18)}
                associations.append(row | {"technical": variable == "batch", "explained": explained})
        r = float(np.corrcoef(obs["total_counts"], scores[:, k])[0, 1])
        row = {"program": name, "variable": "total_counts", "kind": "continuous", "level": "", "effect": r}
        associations.append(row | {"auc": np.nan, "p": 0.4, "padj": 0.5, "technical": True, "explained": r**2})
        for rank, term in enumerate(["HALLMARK_INTERFERON_ALPHA_RESPONSE", "GOBP_T_CELL <ACTIVATION>"]):
            row = {"program": name, "side": "positive", "term": term, "library": "hallmark.gmt", "overlap": 8 - rank}
            row |= {
                "n_term": 97,
                "odds_ratio": 12.5 if rank else np.inf,
                "p": 1e-6,
                "padj": 1e-4,
                "genes": ", ".join(genes[:8]),
            }
            enrichment.append(row)
        cosines = rng.uniform(0.93, 0.99, len(runs)) if k else rng.uniform(0.6, 0.95, len(runs))
        stability += [{"program": name, "run": run, "cosine": c} for run, c in zip(runs, cosines, strict=True)]
        programs.append(
            {
                "program": name,
                "label": (world.labels[k] if k < len(world.labels) else genes[k * 20]),
                "share": 0.5**k / 2,
                "agreement": 0.4 if k == 1 else 0.9 + 0.01 * k,
                "settled": np.nan if world.n_seeds == 1 else 1.0 if k else 0.6,
                "stability": cosines.mean(),
                "stability_min": cosines.min(),
                "n_runs": len(runs),
                "n_runs_found": int((cosines > 0.9).sum()),
                "n_genes_positive": 15,
                "n_genes_negative": 5,
                "technical": "follows total_counts (r = 0.71)" if k == len(names) - 1 else "",
                "top_positive": ", ".join(ordered["gene"].head(10)),
                "top_negative": ", ".join(ordered["gene"][::-1].head(10)),
                "best_association": "cell_type: NK cells (AUC 0.97)" if world.labels else "",
            }
        )
    place = folder / "programs"
    consensus = pd.concat(long)
    columns = ["program", "side", "term", "library", "overlap", "n_term", "odds_ratio", "p", "padj", "genes"]
    tables = {
        "programs": pd.DataFrame(programs),
        "top_genes": pd.concat(top),
        "consensus": consensus,
        "stability": pd.DataFrame(stability),
        "associations": pd.DataFrame(associations),
        "enrichment": pd.DataFrame(enrichment if world.extras else [], columns=columns),
    }
    for name, table in tables.items():
        _table(place / f"{name}.tsv", table, index=False)
    measured = [*genes, *(f"UNMODELLED{i}" for i in range(5))]
    own = np.random.default_rng(world.seed + 1)
    effects = own.normal(0, 0.2, (len(names), len(measured)))
    all_genes = pd.DataFrame(
        {
            "program": np.repeat(names, len(measured)),
            "gene": np.tile(np.array(measured, dtype=object), len(names)),
            "effect": effects.ravel(),
            "se": 0.05,
            "z": effects.ravel() / 0.05,
        }
    )
    _table(place / "all_genes.tsv.gz", all_genes, index=False)
    means, donors = _donors(own, world, names)
    _table(place / "donor_means.tsv", means, index=False)
    _table(place / "donors.tsv", donors, index=False)
    terms = ["HALLMARK_INTERFERON_ALPHA_RESPONSE", "GOBP_T_CELL <ACTIVATION>"] if world.extras else []
    ranked = [
        {
            "program": name,
            "term": term,
            "library": "hallmark.gmt",
            "n_term": 97,
            "t": 9.5 - 12 * k,
            "p": 1e-9,
            "padj": 1e-8,
        }
        for name in names
        for k, term in enumerate(terms)
    ]
    sets = ["program", "term", "library", "n_term", "t", "p", "padj"]
    _table(place / "ranked_sets.tsv", pd.DataFrame(ranked, columns=sets), index=False)
    for name in ("loading", "weighted"):
        wide = consensus.pivot(index="gene", columns="program", values=name).reindex(index=genes, columns=names)
        _table(place / ("loadings.tsv" if name == "loading" else "weighted.tsv"), wide)
    _table(place / "scores.tsv.gz", pd.DataFrame(scores, index=obs.index, columns=names))
    (place / "programs.gmt").write_text("".join(f"{name}\t\t{genes[0]}\n" for name in names))
    _table(place / "starcat.tsv", pd.DataFrame(np.ones((1, len(genes))), index=["P1_pos"], columns=genes))
    summary = {
        "rank": world.n_programs,
        "n_programs": world.n_programs,
        "runs": runs,
        "outliers": [],
        "n_obs": world.n_obs,
        "intercept": False,
        "warnings": [],
        "settings": {"balance": 1.0, "power": 2.0}
        | ({"replicate_key": "donor", "condition_key": "condition"} if world.donors else {}),
    }
    _json(place / "summary.json", summary)
    paths = {name: place / f"{name}.tsv" for name in (*tables, "donors", "donor_means", "ranked_sets")}
    return paths | {"programs_summary": place / "summary.json", "all_genes": place / "all_genes.tsv.gz"}


def _donors(rng: np.random.Generator, world: World, names: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means of five donors in both conditions, and their comparison: the first program changes in the first type."""
    columns = ["cell_type", "condition", "donor", "n_cells", "program", "mean", "high"]
    more = ["program", "cell_type", "condition", "reference", "paired", "n_donors", "effect", "lower", "upper", "p"]
    more += ["padj", "high_effect", "high_p", "high_padj"]
    if not world.donors:
        return pd.DataFrame(columns=columns), pd.DataFrame(columns=more)
    means, tests = [], []
    for program in names:
        for kind in world.labels:
            change = 2.0 if (program, kind) == (names[0], world.labels[0]) else 0.0
            shifts = rng.normal(change, 0.2, 5)
            for donor, shift in enumerate(shifts):
                for condition, value in (("ctrl", 0.0), ("stim", shift)):
                    row = {"cell_type": kind, "condition": condition, "donor": f"d{donor}", "n_cells": 20 + donor}
                    means.append(row | {"program": program, "mean": value, "high": 0.1})
            effect, p = float(shifts.mean()), 1e-4 if change else 0.5
            row = {"program": program, "cell_type": kind, "condition": "stim", "reference": "ctrl", "paired": True}
            row |= {"n_donors": 5, "effect": effect, "lower": effect - 0.2, "upper": effect + 0.2, "p": p, "padj": p}
            tests.append(row | {"high_effect": 0.1, "high_p": p, "high_padj": p})
    return pd.DataFrame(means, columns=columns), pd.DataFrame(tests, columns=more)


def _write_annotated(
    folder: Path, rng: np.random.Generator, world: World, obs: pd.DataFrame, scores: np.ndarray
) -> dict[str, object]:
    obs = obs.assign(leiden=pd.Categorical((np.abs(scores).argmax(axis=1)).astype(str)))
    for column in ("batch", "cell_type", "condition"):
        if column in obs:
            obs[column] = obs[column].astype("category")
    angle = 2 * np.pi * scores.argmax(axis=1) / world.n_programs
    center = np.stack([np.cos(angle), np.sin(angle)], axis=1) * 6
    adata = ad.AnnData(obs=obs)
    adata.obsm["X_umap"] = (center + rng.normal(0, 1, center.shape)).astype(np.float32)
    adata.obsm["X_programs"] = scores
    path = folder / "annotated.h5ad"
    path.parent.mkdir(parents=True, exist_ok=True)
    adata.write_h5ad(path)
    return {"annotated": path}


def _write_de(
    folder: Path, rng: np.random.Generator, world: World, genes: list[str], labels: list[str]
) -> dict[str, object]:
    rows, files = [], []
    for i in range(world.n_contrasts):
        name = f"contrast{i + 1}"
        effect = rng.normal(0, 0.4, len(genes)) + np.where(
            rng.random(len(genes)) < 0.1, rng.normal(0, 2, len(genes)), 0
        )
        proba = 1 / (1 + np.exp(-6 * (np.abs(effect) - 0.6)))
        proba = np.clip(proba, 1e-6, 1 - 1e-6)
        level = labels[i % len(labels)] if labels else str(i)
        table = pd.DataFrame({"gene": genes, "proba_de": proba, "proba_not_de": 1 - proba})
        table["bayes_factor"] = np.log(proba) - np.log(1 - proba)
        for column in ("scale1", "scale2", "raw_mean1", "raw_mean2", "raw_normalized_mean1", "raw_normalized_mean2"):
            table[column] = rng.lognormal(-4, 1, len(genes))
        table["non_zeros_proportion1"], table["non_zeros_proportion2"] = rng.random((2, len(genes)))
        table = table.assign(pseudocounts=1e-6, delta=0.25, lfc_mean=effect, lfc_median=effect, lfc_std=0.3)
        table = table.assign(lfc_min=effect - 1, lfc_max=effect + 1)
        table["is_de_fdr_0.05"] = proba > 0.95
        table = table.assign(comparison=f"{level} vs rest", group1=level, group2="rest")
        if i == 0:
            table["pseudobulk_lfc"] = effect + rng.normal(0, 0.3, len(genes))
            table["pseudobulk_p"] = np.exp(-np.abs(effect) * 4)
            table["pseudobulk_padj"] = np.minimum(1, table["pseudobulk_p"] * 5)
        table["auc"] = 0.5 + 0.4 * np.tanh(effect)
        table["wilcoxon_padj"] = np.exp(-np.abs(effect) * 9)
        table["detected1"], table["detected2"] = table["non_zeros_proportion1"], table["non_zeros_proportion2"]
        ranked = table[["gene", "auc", "wilcoxon_padj", "detected1", "detected2"]].assign(log2fc=effect)
        if i == 0:
            ranked = ranked.assign(pseudobulk_lfc=table["pseudobulk_lfc"], pseudobulk_padj=table["pseudobulk_padj"])
        ranked["called"] = (ranked["wilcoxon_padj"] < 0.05) & ((ranked["auc"] - 0.5).abs() >= 0.1)
        first = ranked["pseudobulk_padj"] < 0.05 if i == 0 else ranked["called"]
        table["both"] = table["is_de_fdr_0.05"] & first
        more = ranked.head(3).assign(gene=[f"UNMODELLED{k}" for k in range(3)], auc=[0.99, 0.02, 0.5])
        all_file = folder / "de" / f"{name}.all_genes.tsv.gz"
        _table(all_file, pd.concat([ranked, more]), index=False)
        path = folder / "de" / f"{name}.tsv.gz"
        _table(path, table.sort_values("proba_de", ascending=False), index=False)
        files.append(path)
        row = {
            "contrast": name,
            "file": path.name,
            "group1": level,
            "group2": "rest",
            "within": "",
            "column": "cell_type",
        }
        row |= {"n1": 200, "n2": 500, "pseudobulk": i == 0, "n_de": int(table["is_de_fdr_0.05"].sum())}
        row |= {"file_all_genes": all_file.name, "n_ranked": int(ranked["called"].sum())}
        row |= {"n_pseudobulk": int(first.sum()) if i == 0 else None, "n_both": int(table["both"].sum())}
        row |= {"reason": "" if table["both"].any() else "The groups overlap."}
        rows.append(row)
    _table(folder / "de" / "contrasts.tsv", pd.DataFrame(rows), index=False)
    _json(folder / "de" / "summary.json", {"warnings": [], "settings": {"delta": 0.25, "fdr": 0.05}})
    return {"contrasts": folder / "de" / "contrasts.tsv", "de": files}


def _write_extras(folder: Path, world: World) -> dict[str, object]:
    resolved = folder / "resolved.json"
    _json(resolved, {"qc": {"min_genes": 200}, "model": {"n_latent": 10}, "train": {"lr": 0.01}})
    for step, seconds in (("qc", 12.5), ("setup", 3.2), ("programs", 8.0), ("annotate", 20.1)):
        path = folder.parent / "benchmarks" / step / f"{world.name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"s\th:m:s\tmax_rss\n{seconds}\t0:00:{int(seconds):02d}\t310.5\n")
    return {"resolved": resolved, "benchmarks": folder.parent / "benchmarks"}


def _json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _table(path: Path, table: pd.DataFrame, *, index: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, sep="\t", index=index)
