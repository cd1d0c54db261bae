"""Both engines write the same results, bit for bit: what differs is only when, where and how fast they ran."""

import gzip
import json
import os
import subprocess
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from pipelines import BIN, ROOT, Pipeline

pytestmark = pytest.mark.nextflow

MEASURED = ["wall_s", "wall_s_mean", "cells_per_s", "peak_memory_mb", "peak_gpu_memory_mb", "host", "date"]
NAMES = ["uuid", "run_name"]  # drawn anew for every model, as scvi-tools does
TABLES = ("*.tsv", "*.tsv.gz", "*.csv", "*.gmt", "*.json", "*.npz", "*.h5ad", "*.safetensors")
TIMES = ("resolved.json", "report.json")  # written by the engine, and what the report says of times


def contents(path: Path) -> object:
    """What a file holds, but for what is measured."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()}
    if path.name in ("metrics.json", "model.json"):
        left_out = (*MEASURED, *NAMES)
        return json.loads(path.read_text(), object_pairs_hook=lambda pairs: [p for p in pairs if p[0] not in left_out])
    if path.parts[-2:] == ("qc", "summary.json"):
        summary = json.loads(path.read_text())
        return summary | {"inputs": [{**file, "path": Path(file["path"]).name} for file in summary["inputs"]]}
    if path.parent.name == "select" and path.name in ("runs.tsv", "settings.tsv"):
        return pd.read_csv(path, sep="\t", dtype=str).drop(columns=MEASURED, errors="ignore").to_csv()
    if path.suffix == ".h5ad":
        adata = anndata.io.read_h5ad(path)
        arrays = {**adata.obsm, **adata.varm, **adata.layers, "X": adata.X}
        dense = {name: array.toarray() if hasattr(array, "toarray") else array for name, array in arrays.items()}
        tables = {"obs": adata.obs.to_csv(), "var": adata.var.to_csv()}
        return tables | {name: np.asarray(array).tobytes() for name, array in dense.items()}
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def assert_both_engines_agree(pipeline: Pipeline, config: Path) -> None:
    """Run a config under Nextflow and Snakemake, and compare the tables, models and annotated cells that they write."""
    done = pipeline.run("--config", config)
    assert done.code == 0, done.text
    command = [BIN / "snakemake", "--snakefile", ROOT / "Snakefile", "--configfile", config, "--cores", "1"]
    folder = pipeline.folder / "snakemake"
    folder.mkdir()
    for table in pipeline.folder.glob("*.h5ad"):
        (folder / table.name).symlink_to(table)
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    other = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert other.returncode == 0, other.stderr

    ours, theirs = pipeline.folder / "results", folder / "results"
    files = [path.relative_to(theirs) for pattern in TABLES for path in theirs.glob(f"*/**/{pattern}")]
    assert len(files) > 30
    differing = [
        str(path) for path in files if path.name not in TIMES and contents(ours / path) != contents(theirs / path)
    ]
    assert not differing
    assert len(list(ours.glob("*/report.html"))) == len(list(theirs.glob("*/report.html"))) > 0


def test_the_demo_is_the_same_under_both_engines(pipeline):
    """The demo as it is configured, but for shorter training from fewer seeds."""
    config = pipeline.configure(
        datasets={
            "pbmc68k": {
                "input": "demo:pbmc68k",
                "setup": {"genes": "all", "stratify_by": "bulk_labels"},
                "de": {"contrasts": [{"column": "bulk_labels"}]},
            }
        },
        sweep={"seeds": [0, 1]},
        train={"max_epochs": 10},
    )
    assert_both_engines_agree(pipeline, config)


def test_two_datasets_with_a_sweep_and_their_comparison_are_the_same_under_both_engines(pipeline):
    for seed, name in enumerate(("first", "second")):
        command = [BIN / "ldvae", "simulate", "--output", pipeline.folder / f"{name}.h5ad", "--seed", str(seed)]
        subprocess.run([*command, "--n-obs", "300", "--n-vars", "200"], check=True)
    config = pipeline.configure(
        datasets={
            "one": {
                "input": ["first.h5ad", "second.h5ad"],
                "sweep": {"grid": {"n_latent": [4, 6]}},
                "de": {"contrasts": [{"column": "leiden"}]},
            },
            "two": {"input": "second.h5ad", "setup": {"batch_key": "batch"}},
        },
        setup={"genes": "all"},
        sweep={"seeds": [0, 1, 2]},
        train={"max_epochs": 20},
        across={"compare": ["all"]},
    )
    assert_both_engines_agree(pipeline, config)
