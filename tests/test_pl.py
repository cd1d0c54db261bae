"""Figures: what is drawn is what the table says, and the same table gives the same bytes."""

import io
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.figure import Figure
from matplotlib.testing.compare import compare_images

from ldvae import InputError, pl
from ldvae.pl.style import STYLE, figure_of

RNG = np.random.default_rng(0)
SCORES = pd.DataFrame(RNG.normal(size=(60, 3)), columns=["P1", "P2", "P3"])
GROUPS = pd.Series(["B", "T", "NK"] * 20)
PLANE = RNG.normal(size=(60, 2))
LOADINGS = pd.DataFrame(RNG.normal(size=(40, 3)), columns=SCORES.columns, index=[f"G{i}" for i in range(40)])
CELLS = pd.DataFrame(
    {
        "total_counts": RNG.lognormal(7, 0.5, 60),
        "n_genes_by_counts": RNG.lognormal(6, 0.4, 60),
        "pct_counts_mt": RNG.uniform(0, 20, 60),
        "batch": ["a", "b"] * 30,
        "kept": [True] * 50 + [False] * 10,
    }
)
SETTINGS = pd.DataFrame(
    {
        "setting": ["k5", "k10"],
        "n_latent": [5, 10],
        "chosen": [False, True],
        "elbo_test_mean": [430.0, 426.0],
        "elbo_test_se": [1.0, 0.5],
        "stability_mean": [0.97, 0.95],
        "stability_min": [0.9, 0.8],
        "reproducible_rank": [5, 8],
    }
)
CURVE = pd.DataFrame({"setting": "k10", "rank": [1, 2, 3], "correlation": [0.99, 0.95, 0.3]})
CURVE = CURVE.assign(lower=CURVE["correlation"] - 0.05, upper=CURVE["correlation"])
HISTORY = pd.DataFrame({"epoch": range(20), "elbo_train": 9 - np.arange(20) / 9, "elbo_validation": np.full(20, 9.0)})
PPC = pd.DataFrame({"gene": LOADINGS.index})
for what in ("mean", "variance", "zeros"):
    PPC[f"observed_{what}"], PPC[f"predicted_{what}"] = RNG.uniform(0.1, 0.9, (2, 40))
DE = pd.DataFrame({"gene": LOADINGS.index, "lfc_mean": RNG.normal(size=40), "bayes_factor": RNG.normal(size=40)})
DE = DE.assign(delta=0.25, pseudobulk_lfc=DE["lfc_mean"] + 0.1, pseudobulk_padj=0.5)
DE["is_de_fdr_0.05"] = DE["bayes_factor"] > 1
DONORS = pd.DataFrame({"donor": ["d1", "d1", "d2", "d2"], "condition": ["ctrl", "stim"] * 2})
DONORS = DONORS.assign(program="P1", cell_type="B", mean=[-0.4, 1.9, -0.2, 2.2])
MEMBERS = pd.DataFrame({"dataset": ["a", "a", "b"], "program": ["P1", "P2", "P1"], "meta": ["M1", "M2", "M1"]})
MEMBERS = MEMBERS.assign(sign=[1, 1, -1])
ALIKE = pd.DataFrame([[1, 0.1, -0.9], [0.1, 1, 0], [-0.9, 0, 1]], ["a P1", "a P2", "b P1"], ["a P1", "a P2", "b P1"])
EFFECTS = DONORS.head(2).assign(reference="none", effect=[1.0, 2.0], lower=0.5, upper=2.5, padj=[0.2, 0.01])
METAS = pd.DataFrame(
    {"label": ["T cells", ""], "datasets": ["a, b", "a, b"], "shared": True, "top_positive": ["CD3D, IL7R", "IFIT1"]},
    index=["M1", "M2"],
)
PRESENCE = pd.DataFrame({"a": [0.9, 0.8], "b": [0.95, 0.7], "c": [0.1, 0.2]}, METAS.index)
OF_METAS = EFFECTS.assign(program=["M1", "M2"])

FIGURES = {
    "training": lambda **how: pl.training(HISTORY, **how),
    "kl": lambda **how: pl.kl([1.0, 3.0, 0.01], collapsed=1, **how),
    "selection": lambda **how: pl.selection(SETTINGS, **how),
    "selection_stability": lambda **how: pl.selection(SETTINGS, quantity="stability", **how),
    "rank": lambda **how: pl.rank(CURVE, kept=2, threshold=0.9, **how),
    "heatmap": lambda **how: pl.heatmap(SCORES.corr(), value="r", **how),
    "programs_heatmap": lambda **how: pl.programs_heatmap(LOADINGS, **how),
    "stability": lambda **how: pl.stability(SCORES.corr().abs(), **how),
    "loadings": lambda **how: pl.loadings(LOADINGS, "P1", **how),
    "scores": lambda **how: pl.scores(SCORES, "P1", basis=PLANE, **how),
    "cells": lambda **how: pl.cells(None, GROUPS, basis=PLANE, **how),
    "groups": lambda **how: pl.groups(SCORES, "P1", GROUPS, **how),
    "dotplot": lambda **how: pl.dotplot(SCORES, GROUPS, **how),
    "ppc": lambda **how: pl.ppc(PPC, **how),
    "volcano": lambda **how: pl.volcano(DE, **how),
    "agreement": lambda **how: pl.agreement(DE, **how),
    "qc_violins": lambda **how: pl.qc_violins(CELLS, "total_counts", **how),
    "qc_scatter": lambda **how: pl.qc_scatter(CELLS, **how),
    "donors": lambda **how: pl.donors(DONORS, "P1", **how),
    "similarity": lambda **how: pl.similarity(ALIKE, MEMBERS, **how),
    "network": lambda **how: pl.network(ALIKE, MEMBERS, **how),
    "effects": lambda **how: pl.effects(EFFECTS, **how),
    "meta_programs": lambda **how: pl.meta_programs(METAS, MEMBERS, PRESENCE, OF_METAS, **how),
}


def test_every_public_figure_is_tested():
    assert {name.removesuffix("_stability") if name == "selection_stability" else name for name in FIGURES} == (
        set(pl.__all__) - {"palette"}
    )


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_on_the_axes_given_and_saved_with_the_same_bytes(name, tmp_path):
    ax = Figure().subplots()
    assert FIGURES[name](ax=ax) is ax
    for file in ("a.svg", "b.svg"):
        FIGURES[name](save=tmp_path / file)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    from matplotlib import pyplot

    assert pyplot.get_fignums() == []


# Made by `python tests/test_pl.py` with the matplotlib of requirements.txt; another version sets text otherwise.
PICTURES = Path(__file__).parent / "pictures"
PINNED = re.search(r"^matplotlib==(.+)$", (Path(__file__).parents[1] / "requirements.txt").read_text(), re.M)[1]


def picture(name: str, path: Path) -> None:
    """Write a figure as a small PNG."""
    with mpl.rc_context({"savefig.dpi": 60}):
        axes = FIGURES[name](show=False)
        figure_of(axes).savefig(path, dpi=60, metadata={"Software": None})


@pytest.mark.skipif(mpl.__version__ != PINNED, reason=f"the pictures were made with matplotlib {PINNED}")
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_looks_as_its_picture(name, tmp_path):
    picture(name, tmp_path / "now.png")
    assert compare_images(str(PICTURES / f"{name}.png"), str(tmp_path / "now.png"), tol=4) is None


@pytest.mark.parametrize("name", ["loadings", "volcano", "dotplot", "scores"])
def test_a_figure_looks_the_same_alone_and_on_axes_given(name, tmp_path):
    """One drawing code: whoever gives the axes changes nothing of what is on them."""
    size = FIGURES[name](show=False).figure.get_size_inches()
    with mpl.rc_context(STYLE):
        ax = Figure(figsize=size, layout="constrained").subplots()
    FIGURES[name](ax=ax, save=tmp_path / "given.png")
    FIGURES[name](save=tmp_path / "alone.png")
    assert compare_images(str(tmp_path / "alone.png"), str(tmp_path / "given.png"), tol=2) is None


def test_points_lie_where_the_table_says():
    ax = FIGURES["ppc"](show=False)
    drawn = ax.collections[0].get_offsets()
    np.testing.assert_allclose(drawn, PPC[["observed_mean", "predicted_mean"]])
    up, down = [points.get_offsets()[:, 0] for points in FIGURES["loadings"](show=False).collections]
    np.testing.assert_allclose(up, LOADINGS["P1"].nlargest(15))
    np.testing.assert_allclose(down[::-1], LOADINGS["P1"].nsmallest(15))


def test_a_prediction_that_is_not_finite_is_drawn_on_the_edge_and_counted():
    table = PPC.assign(predicted_variance=[np.inf, np.nan, *PPC["predicted_variance"][2:]])
    ax = pl.ppc(table, "variance", show=False)
    assert ax.get_legend().get_texts()[0].get_text() == "not finite (2)"
    assert np.isfinite(ax.get_ylim()).all()


def test_an_infinite_bayes_factor_is_drawn_on_the_edge():
    table = DE.assign(bayes_factor=[np.inf, -np.inf, *DE["bayes_factor"][2:]])
    ax = pl.volcano(table, show=False)
    drawn = np.concatenate([points.get_offsets()[:, 1] for points in ax.collections])
    assert len(drawn) == len(table)
    assert np.isfinite(drawn).all()


def test_anndata_and_tables_give_the_same_figure():
    obs = pd.DataFrame({"type": GROUPS.to_numpy()}, index=GROUPS.index.astype(str))
    adata = AnnData(np.zeros((60, 40), np.float32), obs=obs, obsm={"X_programs": SCORES.to_numpy(), "X_umap": PLANE})
    pictures = []
    for draw in (
        lambda: pl.scores(adata, "P2", basis="umap", show=False),
        lambda: pl.scores(SCORES, "P2", basis=PLANE, show=False),
    ):
        buffer = io.BytesIO()
        draw().figure.savefig(buffer, metadata={"Software": None})
        pictures.append(buffer.getvalue())
    assert pictures[0] == pictures[1]
    assert [label.get_text() for label in pl.dotplot(adata, "type", show=False).get_xticklabels()] == ["B", "NK", "T"]


def test_a_grid_has_axes_for_every_program():
    axes = pl.scores(SCORES, basis=PLANE, ncols=2, show=False)
    assert [ax.get_title(loc="left") for ax in axes] == ["P1", "P2", "P3"]


def test_colors_of_many_levels_all_differ_visibly():
    rgb = np.array([mpl.colors.to_rgb(color) for color in pl.palette(40)])
    distances = np.linalg.norm(rgb[:, None] - rgb[None], axis=-1)[np.triu_indices(40, 1)]
    assert distances.min() > 0.1


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (
            lambda: pl.volcano(SCORES),
            r"the table has no column 'lfc_mean', 'bayes_factor' \(its columns: P1",
        ),
        (lambda: pl.loadings(LOADINGS, "P9"), "there is no program 'P9'; the table has P1, P2, P3"),
        (lambda: pl.scores(SCORES, "P9", basis=PLANE), "there is no program 'P9'"),
        (lambda: pl.scores(SCORES, basis="umap"), "there is no obsm 'umap'"),
        (lambda: pl.scores(SCORES, basis=PLANE, ax=Figure().subplots()), "one ax was given for 3 programs"),
        (lambda: pl.dotplot(SCORES, "type"), "'type' names a column of an AnnData"),
        (lambda: pl.training(HISTORY, quantity="kl_local"), "no 'kl_local'; it has elbo"),
        (lambda: pl.donors(DONORS, "P7"), "there is no program 'P7'; the table has P1"),
        (lambda: pl.programs_heatmap(LOADINGS, ["nope"]), "no gene 'nope'"),
    ],
)
def test_a_mistake_is_said_with_what_was_found(draw, words):
    with pytest.raises(InputError, match=words):
        draw()


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    for name in FIGURES:
        picture(name, PICTURES / f"{name}.png")


def test_metrics_that_are_the_same_in_all_cells_are_drawn_too():
    """One cell alone, or cells downsampled to one total, pass quality control with a figure."""
    cells = pd.DataFrame({"total_counts": [180.0] * 3, "n_genes_by_counts": [60] * 3, "kept": True})
    drawn = pl.qc_violins(cells, show=False)
    assert [ax.get_xlabel() for ax in drawn] == ["Total counts"]
    with pytest.raises(InputError, match="has none of the metrics"):
        pl.qc_violins(cells[["kept"]], show=False)
