"""Another value of every option of the config, and the steps that run again for it, under both engines.

Each option is changed in a dataset of its own, so that one finished run and another one show all of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd

from ldvae.config import SECTIONS, expand_config

AFTER_TRAINING = ["select", "programs", "annotate", "de", "report"]
RERUN = {
    "qc": ["qc", "setup", "train", *AFTER_TRAINING],
    "setup": ["setup", "train", *AFTER_TRAINING],
    "model": ["train", *AFTER_TRAINING],
    "train": ["train", *AFTER_TRAINING],
    "sweep": ["train", *AFTER_TRAINING],
    "select": AFTER_TRAINING,
    "programs": ["programs", "annotate", "report"],
    "annotate": ["annotate", "report"],
    "de": ["de", "report"],
    "report": ["report"],
}
EXCEPT = {
    "programs.n_top": ["programs", "report"],  # lists of genes, which the report alone reads
    "setup.batch_key": RERUN["qc"],  # doublets are looked for in each batch
    "setup.labels_key": RERUN["qc"],  # kept and removed cells are counted by label
    "sweep.seeds": RERUN["sweep"],
    # Documented in docs/cluster.md: other commands train again, from the checkpoints that packs keep.
    "compute.runs_per_job": RERUN["train"],
}
CHANGED = {
    "qc": {
        "layer": "counts", "genome": "mm10", "transpose": False, "feature_types": ["Gene Expression"],
        "gene_names": "symbol", "obs_table": "obs.tsv", "subset_key": "donor", "subset": ["d1"], "species": "mouse",
        "mt_genes": ["0"], "ribo_genes": ["1"], "hb_genes": ["2"], "min_counts": 2, "max_counts": 10**6, "min_genes": 1,
        "max_genes": 10**5, "max_pct_mt": 90, "max_pct_ribo": 90, "max_pct_hb": 90, "n_mads": 9, "doublets": "off",
        "expected_doublet_rate": 0.06, "min_cells": 4, "seed": 1,
    },
    "setup": {
        "genes": "all", "n_top_genes": 20, "gene_list": "genes.txt", "keep_genes": ["3"], "batch_key": "donor",
        "labels_key": "condition", "categorical_covariate_keys": ["condition"], "continuous_covariate_keys": ["size"],
        "size_factor_key": "size", "stratify_by": "condition", "validation_size": 0.2, "test_size": 0.2, "seed": 1,
    },
    "model": {
        "n_latent": 5, "n_hidden": 64, "n_layers": 2, "dropout_rate": 0.2, "gene_likelihood": "zinb",
        "dispersion": "gene-cell", "use_observed_lib_size": True, "latent_distribution": "ln", "use_batch_norm": False,
        "bias": True, "log_variational": False,
    },
    "train": {
        "max_epochs": 7, "batch_size": 64, "lr": 0.005, "beta2": 0.999, "eps": 0.02, "weight_decay": 0.0,
        "schedule": "constant", "kl_warmup": 0.5, "start_at_mean": True, "early_stopping": False, "patience": 9,
        "min_delta": 0.1,
    },
    "sweep": {"seeds": [0, 1], "grid": {"n_latent": [10, 12]}, "points": [{"n_latent": 12}]},
    "select": {
        "rule": "elbo", "setting": "", "threshold": 0.8, "n_splits": 10, "outlier_mads": 4, "seed": 1,
    },
    "programs": {
        "rank": 3, "rotation": "joint", "intercept": False, "baseline": "mean", "balance": 0.5, "power": 3,
        "n_starts": 10, "seed": 1, "n_top": 20, "variables": ["donor"], "technical": ["total_counts"],
        "technical_r": 0.6, "replicate_key": "donor", "condition_key": "condition", "gene_sets": ["sets.gmt"],
    },
    "annotate": {
        "n_neighbors": 10, "min_dist": 0.4, "resolution": 0.5, "normalized_layer": True, "max_cells": 5000,
        "seed": 1,
    },
    "de": {
        "contrasts": [{"column": "donor"}], "replicate_key": "donor", "delta": 0.5, "fdr": 0.1, "min_cells": 5,
        "batch_correction": True, "n_samples": 100, "seed": 1,
    },
    "report": {
        "groupby": ["donor"], "n_genes": 10, "n_cells": 1000, "n_genes_searchable": 1000, "n_genes_mapped": 500,
        "n_de_rows": 1000,
    },
    "compute": {
        "device": "cuda", "threads": 2, "processes": 2, "runs_per_job": 2, "checkpoint_minutes": 1,
        "max_mem_mb": 10_000, "max_runtime": 100,
    },
}  # fmt: skip
# Options that make no sense alone.
WITH = {
    "qc.subset": {"subset_key": "donor"},
    "qc.subset_key": {"subset": ["d1", "d2"]},
    "setup.genes": {},
    "setup.gene_list": {"genes": "list"},
    "programs.replicate_key": {"condition_key": "condition"},
    "programs.condition_key": {"replicate_key": "donor"},
}


def dataset(section: str, option: str) -> str:
    """Name of the dataset in which an option is changed."""
    return f"{section}.{option}"


NAMES = [dataset(section, option) for section, options in CHANGED.items() for option in options]


def write_config(folder: Path) -> dict[str, Any]:
    """Write the files that the options name; a config with a dataset for each option, all with the defaults."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"donor": ["d1", "d2"] * 30, "condition": ["stim"] * 30 + ["ctrl"] * 30, "size": 1.5})
    obs.index = [f"cell{i}" for i in range(60)]
    adata = anndata.AnnData(rng.poisson(1.0, (60, 30)).astype(np.float32), obs=obs)
    adata.var["symbol"] = adata.var_names
    adata.layers["counts"] = adata.X
    adata.write_h5ad(folder / "counts.h5ad")
    (folder / "obs.tsv").write_text("cell\tkind\n" + "".join(f"cell{i}\tx\n" for i in range(60)))
    (folder / "genes.txt").write_text("0\n1\n")
    (folder / "sets.gmt").write_text("set\tx\t0\t1\n")
    one = {"input": "counts.h5ad", "de": {"contrasts": [{"column": "condition"}]}}
    return {"datasets": dict.fromkeys(NAMES, one), "sweep": {"seeds": [0]}}


def changed(config: dict[str, Any]) -> dict[str, Any]:
    """The config with another value of each option, in the dataset of that option."""
    plan = expand_config(config)
    config = json.loads(json.dumps(config))  # nothing shared
    for section, options in CHANGED.items():
        for option, value in options.items():
            name = dataset(section, option)
            if name == "select.setting":
                value = next(iter(plan.datasets[name].runs.values())).setting
            of_section = config["datasets"][name].setdefault(section, {})
            of_section |= {**WITH.get(name, {}), option: value}
    return config


def not_in_the_matrix() -> dict[str, set[str]]:
    """Options without another value, by section."""
    missing = {section: set(cls.model_fields) - set(CHANGED[section]) for section, cls in SECTIONS.items()}
    return {section: options for section, options in missing.items() if options}


def differences(expected: dict[str, set[str]], seen: dict[str, set[str]]) -> dict[str, dict[str, list[str]]]:
    """Steps that should run again and do not, and those that do and should not, by the dataset of the option."""
    return {
        name: {"missing": sorted(steps - seen.get(name, set())), "superfluous": sorted(seen.get(name, set()) - steps)}
        for name, steps in expected.items()
        if steps != seen.get(name, set())
    }
