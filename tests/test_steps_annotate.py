"""The annotated file: everything in it, aligned by name, and readable by the tools that follow."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from ldvae.config import AnnotateConfig
from ldvae.errors import InputError
from ldvae.io import write_table
from ldvae.steps.annotate import add_embedding, annotate

CELLS = [f"c{i}" for i in range(90)]
GENES = [f"G{i}" for i in range(30)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Files of a run whose latent space has three clouds of 30 cells, and of two programs in shuffled order."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"type": pd.Categorical(np.repeat(["a", "b", "c"], 30)), "split": "train"}, CELLS)
    counts = AnnData(sparse.csr_matrix(rng.poisson(2, (90, 30)).astype(np.float32)), obs, pd.DataFrame(index=GENES))
    counts.uns["ldvae_setup"] = {"batch_key": "", "categorical_covariate_keys": []}
    counts.write_h5ad(folder / "counts.h5ad")
    scores = (rng.normal(size=(90, 3)) + 12 * np.eye(3)[np.repeat([0, 1, 2], 30)]).astype(np.float32)
    for run in ("k3-s0-aaaaaa", "k3-s1-aaaaaa"):
        (folder / run).mkdir()
        arrays = {"scores": scores, "loadings": rng.normal(size=(30, 3)), "cells": CELLS, "genes": GENES}
        np.savez(folder / run / "factors.npz", **arrays)
        scores = scores + 100
    loadings = pd.DataFrame(rng.normal(size=(30, 2)), GENES, ["P1", "P2"]).sample(frac=1, random_state=1)
    programs = pd.DataFrame(rng.normal(size=(90, 2)), CELLS, ["P1", "P2"]).sample(frac=1, random_state=1)
    write_table(loadings, folder / "loadings.tsv", index="gene")
    write_table(programs, folder / "scores.tsv.gz", index="cell")
    (folder / "best.json").write_text(json.dumps({"run": "k3-s0-aaaaaa"}))
    return {
        "counts": folder / "counts.h5ad",
        "best": folder / "best.json",
        "runs": [folder / "k3-s1-aaaaaa", folder / "k3-s0-aaaaaa"],
        "loadings": folder / "loadings.tsv",
        "scores": folder / "scores.tsv.gz",
    }


@pytest.fixture(scope="module")
def annotated(inputs: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> AnnData:
    path = tmp_path_factory.mktemp("out") / "annotated.h5ad"
    annotate(**inputs, annotated=path, config=AnnotateConfig(resolution=0.5))  # type: ignore[arg-type]
    return anndata.read_h5ad(path)


def test_factors_of_the_best_run_and_programs_are_aligned_by_name(
    annotated: AnnData, inputs: dict[str, object]
) -> None:
    with np.load(inputs["runs"][1] / "factors.npz") as run:  # type: ignore[index]
        np.testing.assert_array_equal(annotated.obsm["X_ldvae"], run["scores"])
        np.testing.assert_array_equal(annotated.varm["LDVAE_loadings"], run["loadings"])
    np.testing.assert_array_equal(annotated.obs[["Z_0", "Z_1", "Z_2"]], annotated.obsm["X_ldvae"])
    programs = pd.read_csv(inputs["scores"], sep="\t", index_col=0).loc[CELLS]  # type: ignore[call-overload]
    np.testing.assert_allclose(annotated.obsm["X_programs"], programs, rtol=1e-6)
    np.testing.assert_allclose(annotated.obs["P2"], programs["P2"], rtol=1e-6)
    loadings = pd.read_csv(inputs["loadings"], sep="\t", index_col=0).loc[GENES]  # type: ignore[call-overload]
    pd.testing.assert_frame_equal(annotated.varm["program_loadings"], loadings, check_names=False)
    assert annotated.uns["ldvae"]["run"] == "k3-s0-aaaaaa"
    assert list(annotated.uns["ldvae"]["programs"]) == ["P1", "P2"]


def test_clusters_are_the_clouds(annotated: AnnData) -> None:
    pairs = pd.crosstab(annotated.obs["type"], annotated.obs["leiden"])
    assert ((pairs > 0).sum(axis=0) == 1).all()


def test_expression_is_log_normalised_and_counts_are_kept(annotated: AnnData, inputs: dict[str, object]) -> None:
    counts = anndata.read_h5ad(inputs["counts"])  # type: ignore[arg-type]
    np.testing.assert_array_equal(annotated.layers["counts"].toarray(), counts.X.toarray())
    per_cell = np.expm1(annotated.X.toarray()).sum(axis=1)
    np.testing.assert_allclose(per_cell, np.median(counts.X.toarray().sum(axis=1)), rtol=1e-4)


def test_cellxgene_finds_what_it_requires(annotated: AnnData) -> None:
    """Embeddings are finite arrays called X_…, names are unique text, and obs has only numbers and categories."""
    assert annotated.obs_names.is_unique
    assert annotated.var_names.is_unique
    for name, embedding in annotated.obsm.items():
        assert name.startswith("X_")
        assert isinstance(embedding, np.ndarray)
        assert embedding.shape[1] >= 2
        assert np.isfinite(embedding).all()
    for column in annotated.obs:
        assert annotated.obs[column].dtype.kind in "biuf" or isinstance(
            annotated.obs[column].dtype, pd.CategoricalDtype
        )


def test_scanpy_goes_on_from_the_file(annotated: AnnData) -> None:
    import scanpy

    scanpy.tl.leiden(
        annotated, resolution=0.5, flavor="igraph", n_iterations=2, directed=False, random_state=0, key_added="again"
    )
    assert annotated.obs["again"].tolist() == annotated.obs["leiden"].tolist()
    table = scanpy.get.obs_df(annotated, ["leiden", "P1", "G3"])
    np.testing.assert_array_equal(table["G3"], annotated.X.toarray()[:, 3])


def test_files_of_another_run_are_refused(inputs: dict[str, object], tmp_path: Path) -> None:
    other = anndata.read_h5ad(inputs["counts"])[:50].copy()  # type: ignore[arg-type]
    other.write_h5ad(tmp_path / "counts.h5ad")
    (tmp_path / "best.json").write_text(json.dumps({"run": "k4-s0-bbbbbb"}))
    loadings = pd.read_csv(inputs["loadings"], sep="\t", index_col=0)  # type: ignore[call-overload]
    write_table(loadings[1:], tmp_path / "loadings.tsv", index="gene")
    wrong = {
        "its 90 cells are not the 50 of the counts file": {"counts": tmp_path / "counts.h5ad"},
        "names run k4-s0-bbbbbb as the best, whose folder is not given": {"best": tmp_path / "best.json"},
        "lacks 1 of the 30 names in the counts": {"loadings": tmp_path / "loadings.tsv"},
    }
    for message, change in wrong.items():
        with pytest.raises(InputError, match=message):
            annotate(**inputs | change, annotated=tmp_path / "out.h5ad", config=AnnotateConfig())  # type: ignore[arg-type]
    assert not (tmp_path / "out.h5ad").exists()


def test_many_cells_whose_neighbours_are_approximate() -> None:
    """From 8,192 cells on, scanpy leaves the neighbours to pynndescent."""
    rng = np.random.default_rng(0)
    cloud = rng.integers(0, 4, 8_400)
    adata = AnnData(np.zeros((len(cloud), 1), np.float32))
    adata.obsm["X_ldvae"] = (10 * np.eye(4)[cloud] + rng.normal(size=(len(cloud), 4))).astype(np.float32)
    add_embedding(adata, AnnotateConfig(resolution=0.1))
    assert pd.crosstab(adata.obs["leiden"], cloud).max().sum() > 0.99 * len(cloud)
    assert adata.obsm["X_umap"].shape == (len(cloud), 2)
