"""The annotated file: everything in it, aligned by name, and readable by the tools that follow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
from anndata import AnnData
from scipy import sparse

from ldvae.config import AnnotateConfig
from ldvae.errors import InputError
from ldvae.io import write_table
from ldvae.neighbors import add_neighbors
from ldvae.steps.annotate import add_embedding, annotate, methods, placed

CELLS = [f"c{i}" for i in range(90)]
GENES = [f"G{i}" for i in range(30)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder of a run whose latent space has three clouds of 30 cells, and of two shuffled programs."""
    folder = tmp_path_factory.mktemp("inputs")
    for name in ("qc", "setup", "programs", "select"):
        (folder / name).mkdir()
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"type": pd.Categorical(np.repeat(["a", "b", "c"], 30)), "split": "train"}, CELLS)
    counts = AnnData(sparse.csr_matrix(rng.poisson(2, (90, 30)).astype(np.float32)), obs, pd.DataFrame(index=GENES))
    counts.uns["ldvae_setup"] = {"batch_key": "", "categorical_covariate_keys": []}
    counts.write_h5ad(folder / "setup" / "counts.h5ad")
    others = AnnData(obs=pd.DataFrame(index=["lost", *CELLS[::-1]]), var=pd.DataFrame(index=["G99", *GENES]))
    others.layers["counts"] = rng.normal(size=(91, 31))  # called as one of ours
    others.obsp["kin"] = sparse.csr_matrix(rng.random((91, 91)))
    others.write_h5ad(folder / "qc" / "layers.h5ad")
    scores = (rng.normal(size=(90, 3)) + 12 * np.eye(3)[np.repeat([0, 1, 2], 30)]).astype(np.float32)
    for run in ("k3-s0-aaaaaa", "k3-s1-aaaaaa"):
        (folder / "runs" / run).mkdir(parents=True)
        arrays = {"scores": scores, "loadings": rng.normal(size=(30, 3)), "cells": CELLS, "genes": GENES}
        np.savez(folder / "runs" / run / "factors.npz", **arrays)
        scores = scores + 100
    loadings = pd.DataFrame(rng.normal(size=(30, 2)), GENES, ["P1", "P2"]).sample(frac=1, random_state=1)
    programs = pd.DataFrame(rng.normal(size=(90, 2)), CELLS, ["P1", "P2"]).sample(frac=1, random_state=1)
    write_table(loadings, folder / "programs" / "loadings.tsv", index="gene")
    write_table(programs, folder / "programs" / "scores.tsv.gz", index="cell")
    (folder / "select" / "best.json").write_text(json.dumps({"run": "k3-s0-aaaaaa"}))
    return folder


@pytest.fixture(scope="module")
def annotated(inputs: Path) -> AnnData:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ldvae.io.chunks.ROWS", 20)  # cells in memory at once
        annotate(results=inputs, config=AnnotateConfig(resolution=0.5))
    return anndata.read_h5ad(inputs / "annotated.h5ad")


@pytest.mark.thorough
def test_factors_of_the_best_run_and_programs_are_aligned_by_name(annotated: AnnData, inputs: Path) -> None:
    with np.load(inputs / "runs" / "k3-s0-aaaaaa" / "factors.npz") as run:
        np.testing.assert_array_equal(annotated.obsm["X_ldvae"], run["scores"])
        np.testing.assert_array_equal(annotated.varm["LDVAE_loadings"], run["loadings"])
    np.testing.assert_array_equal(annotated.obs[["Z_0", "Z_1", "Z_2"]], annotated.obsm["X_ldvae"])
    programs = pd.read_csv(inputs / "programs" / "scores.tsv.gz", sep="\t", index_col=0).loc[CELLS]
    np.testing.assert_allclose(annotated.obsm["X_programs"], programs, rtol=1e-6)
    np.testing.assert_allclose(annotated.obs["P2"], programs["P2"], rtol=1e-6)
    loadings = pd.read_csv(inputs / "programs" / "loadings.tsv", sep="\t", index_col=0).loc[GENES]
    pd.testing.assert_frame_equal(annotated.varm["program_loadings"], loadings, check_names=False)
    assert annotated.uns["ldvae"]["run"] == "k3-s0-aaaaaa"
    assert list(annotated.uns["ldvae"]["programs"]) == ["P1", "P2"]


@pytest.mark.thorough
def test_more_neighbors_than_cells_in_the_sample_are_all_of_them(inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(inputs, tmp_path / "r")
    config = AnnotateConfig(n_neighbors=80).model_copy(update={"max_cells": 60})
    annotate(results=tmp_path / "r", config=config)
    assert np.isfinite(anndata.read_h5ad(tmp_path / "r" / "annotated.h5ad").obsm["X_umap"]).all()


def test_of_many_cells_a_sample_is_embedded_and_the_others_are_placed_in_it(inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(inputs, tmp_path / "r")
    config = AnnotateConfig(resolution=0.5, n_neighbors=10).model_copy(update={"max_cells": 60})
    annotate(results=tmp_path / "r", config=config)
    adata = anndata.read_h5ad(tmp_path / "r" / "annotated.h5ad")
    rows = adata.uns["ldvae"]["embedded"]
    assert len(set(rows)) == 60
    pairs = pd.crosstab(adata.obs["type"], adata.obs["leiden"])
    assert ((pairs > 0).sum(axis=0) == 1).all()
    others = np.setdiff1d(np.arange(90), rows)
    for cloud in "abc":
        own = adata.obs["type"].to_numpy() == cloud
        sampled, placed = (adata.obsm["X_umap"][own & np.isin(np.arange(90), part)] for part in (rows, others))
        assert (placed >= sampled.min(axis=0)).all()
        assert (placed <= sampled.max(axis=0)).all()
    assert "neighbors" not in adata.uns
    assert "connectivities" not in adata.obsp
    (sentence,) = methods(config.model_dump(), True, 90)
    assert "both are of a random sample of 60 cells" in sentence.text
    (sentence,) = methods(config.model_dump(), True, 60)
    assert "sample" not in sentence.text


@pytest.mark.thorough
def test_clusters_are_the_clouds(annotated: AnnData) -> None:
    pairs = pd.crosstab(annotated.obs["type"], annotated.obs["leiden"])
    assert ((pairs > 0).sum(axis=0) == 1).all()


@pytest.mark.thorough
def test_expression_is_log_normalized_and_counts_are_kept(annotated: AnnData, inputs: Path) -> None:
    counts = anndata.read_h5ad(inputs / "setup" / "counts.h5ad")
    np.testing.assert_array_equal(annotated.layers["counts_ldvae"].toarray(), counts.X.toarray())
    scanpy.pp.normalize_total(counts)  # of all cells at once, where annotate goes through them
    scanpy.pp.log1p(counts)
    np.testing.assert_array_equal(annotated.X.toarray(), counts.X.toarray())
    assert annotated.uns["log1p"] == counts.uns["log1p"]


@pytest.mark.thorough
def test_layers_of_the_input_are_there_again(annotated: AnnData, inputs: Path) -> None:
    others = anndata.read_h5ad(inputs / "qc" / "layers.h5ad")[CELLS, GENES]
    np.testing.assert_array_equal(annotated.layers["counts"], others.layers["counts"])
    np.testing.assert_array_equal(annotated.obsp["kin"].toarray(), others.obsp["kin"].toarray())


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_scanpy_goes_on_from_the_file(annotated: AnnData) -> None:
    import scanpy

    scanpy.tl.leiden(
        annotated, resolution=0.5, flavor="igraph", n_iterations=2, directed=False, random_state=0, key_added="again"
    )
    assert annotated.obs["again"].tolist() == annotated.obs["leiden"].tolist()
    table = scanpy.get.obs_df(annotated, ["leiden", "P1", "G3"])
    np.testing.assert_array_equal(table["G3"], annotated.X.toarray()[:, 3])


def test_files_of_another_run_are_refused(inputs: Path, tmp_path: Path) -> None:
    def fewer_cells(folder: Path) -> None:
        anndata.read_h5ad(inputs / "setup" / "counts.h5ad")[:50].copy().write_h5ad(folder / "setup" / "counts.h5ad")

    def another_run(folder: Path) -> None:
        (folder / "select" / "best.json").write_text(json.dumps({"run": "k4-s0-bbbbbb"}))

    def fewer_genes(folder: Path) -> None:
        loadings = pd.read_csv(inputs / "programs" / "loadings.tsv", sep="\t", index_col=0)
        write_table(loadings[1:], folder / "programs" / "loadings.tsv", index="gene")

    def other_layers(folder: Path) -> None:
        anndata.read_h5ad(inputs / "qc" / "layers.h5ad")[5:].copy().write_h5ad(folder / "qc" / "layers.h5ad")

    wrong = {
        "its 90 cells are not the 50 of the counts file": fewer_cells,
        r"k4-s0-bbbbbb/factors\.npz is not there .*`ldvae train` writes it": another_run,
        "lacks 1 of the 30 names in the counts": fewer_genes,
        r"layers\.h5ad: lacks 4 of the 90 cells": other_layers,
    }
    for number, (message, change) in enumerate(wrong.items()):
        folder = shutil.copytree(inputs, tmp_path / str(number))
        (folder / "annotated.h5ad").unlink(missing_ok=True)
        change(folder)
        with pytest.raises(InputError, match=message):
            annotate(results=folder, config=AnnotateConfig())
        assert not (folder / "annotated.h5ad").exists()


@pytest.mark.slow
def test_many_cells_whose_neighbors_are_approximate(tmp_path: Path) -> None:
    """From 8,192 cells on, scanpy leaves the neighbors to pynndescent."""
    rng = np.random.default_rng(0)
    cloud = rng.integers(0, 4, 8_400)
    adata = AnnData(np.zeros((len(cloud), 1), np.float32))
    adata.obsm["X_ldvae"] = (10 * np.eye(4)[cloud] + rng.normal(size=(len(cloud), 4))).astype(np.float32)
    add_embedding(adata, AnnotateConfig(resolution=0.1))
    assert pd.crosstab(adata.obs["leiden"], cloud).max().sum() > 0.99 * len(cloud)
    assert adata.obsm["X_umap"].shape == (len(cloud), 2)
    adata.write_h5ad(tmp_path / "written.h5ad")
    # Cells placed among these get the cluster of their cloud, and a position inside it.
    more = np.concatenate([adata.obsm["X_ldvae"], adata.obsm["X_ldvae"] + 0.01])
    clusters = adata.obs["leiden"].cat.codes
    onto, into = placed(more, np.arange(8_400), adata.obsm["X_umap"], clusters, AnnotateConfig())
    assert (into[8_400:] == clusters).mean() > 0.99
    assert np.median(np.linalg.norm(onto[8_400:] - onto[:8_400], axis=1)) < 0.1 * onto.std()


@pytest.mark.slow  # half a minute in which numba compiles pynndescent
def test_the_search_is_scanpys_own_whatever_kind_of_array_pynndescent_returns(monkeypatch) -> None:
    from pynndescent import PyNNDescentTransformer

    monkeypatch.setattr("ldvae.neighbors.APPROXIMATE_FROM", 0)
    rng = np.random.default_rng(0)
    adata = AnnData(np.zeros((600, 1), np.float32), obsm={"X_ldvae": rng.normal(size=(600, 4)).astype(np.float32)})
    usual = adata.copy()
    own = PyNNDescentTransformer.fit_transform
    monkeypatch.setattr(
        PyNNDescentTransformer, "fit_transform", lambda self, X, y=None: sparse.csr_array(own(self, X, y))
    )
    add_neighbors(adata, 15, seed=0, use_rep="X_ldvae")
    monkeypatch.undo()
    # scanpy itself takes matrices alone.
    monkeypatch.setattr(
        PyNNDescentTransformer, "fit_transform", lambda self, X, y=None: sparse.csr_matrix(own(self, X, y))
    )
    transformer = PyNNDescentTransformer(
        n_neighbors=15, metric="euclidean", metric_kwds={}, random_state=0, n_trees=6, n_iters=9
    )
    scanpy.pp.neighbors(usual, n_neighbors=15, use_rep="X_ldvae", random_state=0, transformer=transformer)
    assert (adata.obsp["distances"] != usual.obsp["distances"]).nnz == 0
    assert (adata.obsp["connectivities"] != usual.obsp["connectivities"]).nnz == 0


@pytest.mark.thorough
def test_what_the_user_brought_stays_beside_what_is_added(inputs: Path, annotated: AnnData, tmp_path: Path) -> None:
    shutil.copytree(inputs, tmp_path / "r")
    path = tmp_path / "r" / "setup" / "counts.h5ad"
    counts = anndata.read_h5ad(path)
    rng = np.random.default_rng(1)
    for name in ("leiden", "P1", "Z_0"):
        counts.obs[name] = pd.Categorical(rng.permutation(np.repeat(["x", "y", "z"], 30)))
    for name in ("X_umap", "X_ldvae", "X_programs", "spatial"):
        counts.obsm[name] = rng.random((90, 2))
    counts.varm["program_loadings"] = rng.random((30, 2))
    counts.uns |= {"leiden": {"params": "mine"}, "leiden_colors": np.array(["#000000"] * 3), "umap": {"a": 1}}
    counts.write_h5ad(path)
    others = anndata.read_h5ad(tmp_path / "r" / "qc" / "layers.h5ad")
    others.obsp["connectivities"] = sparse.csr_matrix(np.eye(91))  # as scanpy calls neighbors; so do we
    others.uns["neighbors"] = {"connectivities_key": "connectivities", "params": {"n_neighbors": 3}}
    others.write_h5ad(tmp_path / "r" / "qc" / "layers.h5ad")
    annotate(results=tmp_path / "r", config=AnnotateConfig(resolution=0.5))
    found = anndata.read_h5ad(tmp_path / "r" / "annotated.h5ad")
    for name in ("leiden", "P1", "Z_0"):
        assert found.obs[name].tolist() == counts.obs[name].tolist()
    for name in ("X_umap", "X_ldvae", "X_programs", "spatial"):
        np.testing.assert_array_equal(found.obsm[name], counts.obsm[name])
    np.testing.assert_array_equal(found.varm["program_loadings"], counts.varm["program_loadings"])
    assert found.uns["leiden"]["params"] == "mine"
    np.testing.assert_array_equal(found.obsp["connectivities"].toarray(), np.eye(90))
    assert found.uns["neighbors"]["params"]["n_neighbors"] == 3
    assert "neighbors_ldvae_connectivities" in found.obsp
    assert found.uns["umap"]["a"] == 1
    assert found.obs["leiden_ldvae"].tolist() == annotated.obs["leiden"].tolist()
    np.testing.assert_array_equal(found.obsm["X_umap_ldvae"], annotated.obsm["X_umap"])
    np.testing.assert_array_equal(found.obs["P1_ldvae"], annotated.obs["P1"])
