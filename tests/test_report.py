"""The report: its numbers are those of the tables, and a name from the data never becomes markup."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import yaml
from results_folder import NASTY, World, draw_nothing, write_results

from ldvae import pl
from ldvae import results as layout
from ldvae.config import ReportConfig
from ldvae.errors import InputError
from ldvae.report import figures, prose
from ldvae.report.drawing import Drawing, inline
from ldvae.report.index import render_index
from ldvae.report.page import as_column, duration, number
from ldvae.report.sections import making
from ldvae.steps.index import index
from ldvae.steps.report import report

SMALL = World(
    n_obs=300, n_vars=120, n_latents=(4, 5), n_programs=2, labels=("B cells", "NK cells", "T cells"), donors=True
)
NOTHING = {"labels": (), "conditions": (), "batches": (), "donors": False, "n_contrasts": 0, "extras": False}
BARE = replace(SMALL, n_seeds=1, n_latents=(5,), **NOTHING)


class Page(HTMLParser):
    """What a browser would make of the page: elements by id, links, texts of tables, data blocks."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.data: dict[str, Any] = {}
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self._script: str | None = None
        self.feed(self.source)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if tag == "a":
            self.links.append(str(values["href"]))
        self._script = values.get("id") if tag == "script" and values.get("type") == "application/json" else None

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self._script:
            self.data[self._script] = json.loads(data)
            self._script = None
        elif self.lasttag not in ("script", "style"):
            self.texts.append(data)


def make(root: Path, world: World, config: ReportConfig | None = None) -> tuple[Page, dict[str, Any]]:
    arguments = write_results(root, world)
    report(results=arguments["results"], benchmarks=arguments.get("benchmarks"), config=config or ReportConfig())
    return Page(arguments["output"]), arguments


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, dict[str, Any]]:
    return make(tmp_path_factory.mktemp("report"), SMALL)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, dict[str, Any]]:
    """Counts alone, and one run: no batch, no labels, no contrasts."""
    return make(tmp_path_factory.mktemp("bare"), BARE)


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, dict[str, Any]]:
    """More cells and genes than are shown, and groups named by the config; without figures."""
    config = ReportConfig(n_cells=150, n_de_rows=100, groupby=["leiden", "cell_type"])
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        return make(tmp_path_factory.mktemp("cut"), SMALL, config)


def assert_same(block: list[Any], column: pd.Series) -> None:
    """A column in the page holds the numbers of its table, to the five digits that are kept."""
    found = np.array([np.nan if value is None else value for value in block], dtype=float)
    np.testing.assert_allclose(found, column.to_numpy(dtype=float), rtol=6e-5, atol=0)


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t")


def test_every_table_and_figure_of_programs_shows_the_numbers_of_its_file(small: tuple[Page, dict[str, Any]]) -> None:
    blocks, paths = small[0].data["blocks"], small[1]
    consensus = read(paths["consensus"]).pivot(index="gene", columns="program", values="loading")
    for program in consensus:
        assert_same(blocks["genes"][program], consensus.loc[blocks["genes"]["gene"], program])
    programs = read(paths["programs"])
    assert blocks["programs"]["program"] == list(programs["program"])
    for column in ("share", "stability", "n_runs_found"):
        assert_same(blocks["programs"][column], programs[column])
    top = read(paths["top_genes"])
    for program in programs["program"]:
        shown = blocks[f"program_{program}_genes"]
        for side in ("positive", "negative"):
            expected = top[(top["program"] == program) & (top["side"] == side) & (top["rank"] <= 15)]
            expected = expected.set_index("gene").loc[
                [g for g, s in zip(shown["gene"], shown["side"], strict=True) if s == side]
            ]
            assert len(expected) == min(15, (top["program"].eq(program) & top["side"].eq(side)).sum())
            for column in ("loading", "lower", "upper"):
                values = [v for v, s in zip(shown[column], shown["side"], strict=True) if s == side]
                assert_same(values, expected[column])
        associations = read(paths["associations"]).query("program == @program")
        found = pd.DataFrame(blocks[f"associations-{program}"]).set_index(["variable", "level"])
        expected = associations.fillna({"level": ""}).set_index(["variable", "level"]).loc[found.index]
        for column in ("effect", "auc", "padj"):
            assert_same(list(found[column].astype(object).where(found[column].notna(), None)), expected[column])


def test_heatmaps_show_means_correlations_and_cosines_of_the_tables(small: tuple[Page, dict[str, Any]]) -> None:
    blocks, paths = small[0].data["blocks"], small[1]
    folder = paths["programs"].parent
    scores = pd.read_csv(folder / "scores.tsv.gz", sep="\t", index_col=0)
    import anndata

    labels = anndata.read_h5ad(paths["annotated"]).obs["cell_type"]

    def matrix(name: str) -> pd.DataFrame:
        block = pd.DataFrame(blocks[name])
        return block.assign(program=block["row"].str.split().str[0]).pivot(
            index="program", columns="column", values="value"
        )

    means = scores.groupby(labels.to_numpy()).mean().T
    np.testing.assert_allclose(matrix("programs_by_cell_type"), means, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(matrix("programs_correlation"), scores.corr(), rtol=1e-3, atol=1e-4)
    cosines = read(paths["stability"]).pivot(index="program", columns="run", values="cosine")
    np.testing.assert_allclose(matrix("programs_stability"), cosines, rtol=6e-5)
    loadings = pd.read_csv(folder / "loadings.tsv", sep="\t", index_col=0)
    shown = matrix("programs_genes")
    np.testing.assert_allclose(shown, loadings.loc[shown.columns].T, rtol=6e-5)


def test_training_choice_fit_and_contrasts_show_the_numbers_of_their_files(small: tuple[Page, dict[str, Any]]) -> None:
    blocks, paths = small[0].data["blocks"], small[1]
    best = json.loads(paths["best"].read_text())
    at = [path.parent.name for path in paths["metrics"]].index(best["run"])
    history = pd.read_csv(paths["histories"][at])
    for quantity in ("elbo", "reconstruction_loss", "kl_local"):
        for split in ("train", "validation"):
            assert_same(blocks[f"training-{quantity}"][split], history[f"{quantity}_{split}"])
    metrics = json.loads(paths["metrics"][at].read_text())
    assert_same(blocks["kl"]["kl"], pd.Series(sorted(metrics["kl_per_factor"], reverse=True)))

    settings, runs = read(paths["select_settings"]), read(paths["select_runs"])
    assert blocks["settings"]["setting"] == list(settings["setting"])
    for column in ("elbo_test_mean", "elbo_test_se", "stability_mean", "reproducible_rank"):
        assert_same(blocks["settings"][column], settings[column])
    assert_same(blocks["choice-elbo_test"]["elbo_test_mean"], settings["elbo_test_mean"])
    for column in ("elbo_test", "marginal_ll_test", "wall_s", "cells_per_s", "peak_memory_mb"):
        assert_same(blocks["runs"][column], runs[column])
    correlations = read(paths["select_correlations"]).query("setting == @best['setting']")
    assert_same(blocks["correlations"]["correlation"], correlations["correlation"])

    fit = read(paths["fit"][at]).query("batch == 'all'").set_index("gene").loc[blocks["fit"]["gene"]]
    for quantity in ("mean", "variance", "zeros"):
        assert_same(blocks["fit"][f"observed_{quantity}"], fit[f"observed_{quantity}"])
        assert_same(blocks["fit"][f"predicted_{quantity}"], fit[f"predicted_{quantity}"])
    off = np.abs(np.array(blocks["fit"]["zeros_difference"]))
    assert (np.diff(off) <= 0).all(), "the worst genes come first"

    for position, path in enumerate(paths["de"], start=1):
        shown = blocks[f"de-{position}"]
        table = read(path).set_index("gene").loc[shown["gene"]]
        assert len(table) == SMALL.n_vars
        for column in ("lfc_mean", "proba_de", "bayes_factor", "non_zeros_proportion1"):
            assert_same(shown[column], table[column])
    assert_same(
        blocks["de-1"]["pseudobulk_lfc"],
        read(paths["de"][0]).set_index("gene").loc[blocks["de-1"]["gene"], "pseudobulk_lfc"],
    )


def test_the_figure_of_pseudobulks_colors_the_genes_called_at_the_rate_of_the_contrast() -> None:
    table = pd.DataFrame({"lfc_mean": [2.0, 1.0, 0.0], "pseudobulk_lfc": [2.0, 1.0, 0.0]})
    table = table.assign(pseudobulk_padj=[0.001, 0.03, 0.9], gene=["A", "B", "C"], **{"is_de_fdr_0.01": True})
    drawing = figures.model_against_pseudobulk("one", table, 0.01, "de-1")
    for ax in (drawing.figure.axes[0], pl.agreement(table, show=False)):
        assert [len(points.get_offsets()) for points in ax.collections] == [2, 1]
    assert "adjusted p below 0.01" in drawing.caption


def test_the_map_holds_the_coordinates_groups_and_scores_of_the_annotated_cells(
    small: tuple[Page, dict[str, Any]],
) -> None:
    import base64

    import anndata

    data = small[0].data["cells"]
    adata = anndata.read_h5ad(small[1]["annotated"])
    assert data["cells"] == list(adata.obs_names)
    x, y = (np.frombuffer(base64.b64decode(data[axis]), "<u2").astype(float) for axis in "xy")
    for found, expected in ((x, adata.obsm["X_umap"][:, 0]), (y, adata.obsm["X_umap"][:, 1])):
        assert np.corrcoef(found, expected)[0, 1] > 0.999999
    by_name = {variable["name"]: variable for variable in data["variables"]}
    codes = np.frombuffer(base64.b64decode(by_name["cell_type"]["values"]), np.uint8)
    levels = np.array(by_name["cell_type"]["levels"])
    assert (levels[codes] == adata.obs["cell_type"].astype(str).to_numpy()).all()
    program = next(variable for variable in data["variables"] if variable.get("program") == "P1")
    steps = np.frombuffer(base64.b64decode(program["values"]), np.uint8) / 254
    scores = adata.obsm["X_programs"][:, 0].clip(program["low"], program["high"])
    np.testing.assert_allclose(
        program["low"] + steps * (program["high"] - program["low"]),
        scores,
        atol=(program["high"] - program["low"]) / 500,
    )


def test_points_to_hover_lie_where_the_figure_draws_them() -> None:
    drawing = figures.kl_per_factor([3.0, 1.0, 0.001], 1, "run")
    rendered = drawing.render()
    [target] = rendered.targets
    root = ElementTree.fromstring(rendered.element)
    _, _, width, height = (float(value) for value in root.attrib["viewBox"].split())
    left, top, right, bottom = target["box"]
    block = drawing.blocks["kl"]
    low, high = target["ylim"]
    tallest = (bottom - (block["kl"].iloc[0] - low) / (high - low) * (bottom - top)) * height
    bars = [
        e.attrib["d"] for e in root.iter("{http://www.w3.org/2000/svg}path") if "0072b2" in e.attrib.get("style", "")
    ]
    tops = [min(float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", path)) for path in bars]
    assert min(tops) == pytest.approx(tallest, abs=0.1)
    assert 0 < left < right < 1
    assert width > height


def test_links_lead_to_sections_and_files_that_exist(small: tuple[Page, dict[str, Any]]) -> None:
    page, paths = small
    assert len(page.ids) == len(set(page.ids))
    folder = paths["output"].parent
    declared = {file.path for file in layout.FILES}  # which the workflow makes, though this made-up folder lacks some
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids, link
        else:
            assert link in declared or (folder / link).exists(), link
    tables = {file.path for file in layout.FILES if file.writer == "programs" and ".tsv" in file.path}
    assert tables <= set(page.links)
    assert {path.stem for path in paths["figures"].iterdir()} == {
        i.removeprefix("fig-") for i in page.ids if i.startswith("fig-")
    }


def test_the_page_tells_every_step_in_a_few_words() -> None:
    assert tuple(making.STEPS) == layout.DATASET_VERBS
    assert max(map(len, making.STEPS.values())) < 30  # the steps stand side by side


def test_the_page_asks_no_network_for_anything(small: tuple[Page, dict[str, Any]]) -> None:
    for tag, name, value in small[0].attributes:
        if name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            assert value is not None
            assert not re.match(r"(?i)\s*(https?:|//|file:|ftp:)", value), (tag, name, value)
    assert "default-src 'none'" in small[0].source
    assert not re.search(r"@import|url\((?!#)", small[0].source.split("</style>")[0])


@pytest.mark.thorough
def test_names_from_the_data_never_become_markup(small: tuple[Page, dict[str, Any]], tmp_path: Path) -> None:
    plain = small[0]
    page, paths = make(tmp_path, replace(SMALL, nasty=True))
    tags = ("script", "img", "b", "iframe")
    assert [page.tags.count(tag) for tag in tags] == [plain.tags.count(tag) for tag in tags]
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    for name in NASTY:
        assert name in page.data["blocks"]["genes"]["gene"]
        assert " ".join(name.split()) in page.text
    for path in paths["figures"].iterdir():
        root = ElementTree.parse(path).getroot()
        assert not [e for e in root.iter() if e.tag.split("}")[-1] in ("script", "img", "b", "foreignObject")]


@pytest.mark.thorough
@pytest.mark.parametrize(
    "change",
    [
        {"batches": (), "n_programs": 1, "n_contrasts": 1},
        {"labels": tuple(f"cell type {i}" for i in range(40)), "n_obs": 800, "n_contrasts": 1},
        {"n_obs": 40, "labels": ("only",), "n_contrasts": 0},
    ],
    ids=["no batch and one program", "40 cell types", "few cells of one kind"],
)
def test_datasets_of_every_kind_have_a_report(tmp_path: Path, change: dict[str, Any]) -> None:
    world = replace(SMALL, **change)
    page, _ = make(tmp_path, world)
    assert_whole(page, contrasts=bool(world.n_contrasts))
    assert ("The largest" in page.text) == (world.n_programs > 1)
    if len(world.labels) == 40:
        assert {f"cell type {i}" for i in range(40)} <= set(page.data["blocks"]["programs_by_cell_type"]["column"])


@pytest.mark.thorough
def test_counts_alone_and_one_run_have_a_report_that_says_what_is_not_known(bare: tuple[Page, dict[str, Any]]) -> None:
    page = bare[0]
    assert_whole(page, contrasts=False)
    assert "which cannot show whether other seeds find them" in page.text
    assert "One run: no intervals." in page.text
    assert "stability not known" in page.text
    assert not re.search(r"[Ss]tability 0\.\d", page.text)
    assert "Found in runs" not in page.text
    assert "programs_stability" not in page.data["blocks"]


def assert_whole(page: Page, *, contrasts: bool) -> None:
    assert {"summary", "qc", "training", "choice", "programs", "fit", "making"} <= set(page.ids)
    assert ("de" in page.ids) == contrasts
    assert "nan" not in re.sub(r"[^a-z ]", " ", page.text.lower()).split()
    assert not [link for link in page.links if link.startswith("#") and link[1:] not in page.ids]
    assert not re.findall(
        r"(?<![\d.,])1 (?:(?:meta-)?programs|genes|cells|runs|contrasts|directions|factors) (?!of)", page.text
    )


@pytest.mark.usefixtures("undrawn")
def test_without_resolved_config_and_wall_times_the_rest_is_shown(tmp_path: Path) -> None:
    page, _ = make(tmp_path, replace(SMALL, extras=False, n_contrasts=0))
    assert {"programs", "making"} <= set(page.ids)
    assert "de" not in page.ids
    assert "Snakemake" not in page.text


def test_more_cells_than_are_drawn_are_sampled_and_the_page_says_so(
    cut: tuple[Page, dict[str, Any]], small: tuple[Page, dict[str, Any]]
) -> None:
    page = cut[0]
    assert "Drawn: 150 of 300 cells, taken at random." in page.text
    assert len(page.data["cells"]["cells"]) == 150
    means = [one[0].data["blocks"]["programs_by_cell_type"] for one in (cut, small)]
    assert means[0] == means[1], "means are over all cells"


def test_rows_of_contrasts_are_cut_by_rank_and_the_page_says_so(cut: tuple[Page, dict[str, Any]]) -> None:
    page, paths = cut
    assert "The 50 genes with the largest Bayes factors, of 120." in page.text
    table = read(paths["de"][0]).nlargest(50, "bayes_factor")
    assert set(page.data["blocks"]["de-1"]["gene"]) == set(table["gene"])


def test_sentences_have_no_double_punctuation(cut: tuple[Page, dict[str, Any]]) -> None:
    """The note of a table that was cut said "those that replicates confirm first,, of 4,805"."""
    assert "that separate the groups best (those that replicates confirm first), of" in cut[0].text
    assert not re.search(r",\s*,|,\s*\.|[^.]\.\.[^.]", cut[0].text)


def test_the_groups_of_the_config_come_first(cut: tuple[Page, dict[str, Any]]) -> None:
    names = [variable["name"] for variable in cut[0].data["cells"]["variables"] if variable["kind"] == "categorical"]
    assert names == ["leiden", "cell_type"]


@pytest.mark.thorough
def test_a_group_that_is_no_column_is_refused(small: tuple[Page, dict[str, Any]]) -> None:
    with pytest.raises(
        InputError, match=r"^groupby: no obs column 'cell_typ'\. Did you mean 'cell_type'\? There are: "
    ):
        report(results=small[1]["results"], config=ReportConfig(groupby=["cell_typ"]))


def test_the_same_results_give_the_same_page(bare: tuple[Page, dict[str, Any]], tmp_path: Path) -> None:
    again, _ = make(tmp_path, BARE)
    assert again.source == bare[0].source


@pytest.mark.usefixtures("undrawn")
def test_warnings_say_in_plain_words_what_is_wrong(tmp_path: Path) -> None:
    arguments = write_results(tmp_path, replace(SMALL, n_programs=5))

    def change(path: Path, **values: Any) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    for path in arguments["metrics"]:
        change(path, converged=False, stopped_early=False, collapsed=3)
    qc = json.loads(arguments["qc_summary"].read_text())
    told = ["no gene starts with MT-", f"{qc['inputs'][0]['path']}: 2 gene names occur more than once"]
    doublets = {"mode": "annotate", "n_predicted": 32}
    change(arguments["qc_summary"], n_obs_after=120, warnings=told, doublets=doublets)
    summary = arguments["contrasts"].with_name("summary.json")
    summary.write_text(json.dumps({"warnings": ["stim vs ctrl in rare cells is skipped: it has 0 and 6 cells."]}))
    change(arguments["best"], outliers=["k5-s9-3fa9c5"], threshold=0.97)
    fit = [read(path) for path in arguments["fit"]]
    for path, table in zip(arguments["fit"], fit, strict=True):
        table["predicted_zeros"] = table["observed_zeros"] * 0.5
        table.loc[table["gene"] == table["gene"][3], "observed_mean"] = 1e4
        table.to_csv(path, sep="\t", index=False)
    contrasts = read(arguments["contrasts"]).assign(n1=7, pseudobulk=False)
    contrasts.to_csv(arguments["contrasts"], sep="\t", index=False)
    programs = read(arguments["programs"])
    programs.loc[0, "technical"] = "separates batch donor1 (AUC 0.9)"
    programs.to_csv(arguments["programs"], sep="\t", index=False)
    report(results=arguments["results"], config=ReportConfig())
    warnings = " ".join(json.loads(arguments["summary"].read_text())["warnings"])
    for words in (
        "Only 120 cells passed quality control",
        "Quality control removed 62% of the cells",
        "No gene starts with MT-.",
        "32 predicted doublets (10.2% of the cells, more than the 5.0% expected)",
        f"{Path(qc['inputs'][0]['path']).name}: 2 gene names occur more than once.",
        "Stim vs ctrl in rare cells is skipped: it has 0 and 6 cells.",
        "Training stopped before it converged in 3 of 3 runs (after 40 epochs)",
        "3 of 5 factors collapsed",
        "fit worse than the others: k5-s9-3fa9c5",
        "All 5 directions of the model reproduce",
        "Not the same from seed to seed (mean cosine below 0.97): P1",
        "P1 may be technical: separates batch donor1 (AUC 0.9).",
        "misses the share of zeros",
        f"by more than twofold: {fit[0]['gene'][3]} (",
        "fewer than 20 cells in a group: contrast1 and contrast2",
        "No contrast has a pseudobulk check",
    ):
        assert words in warnings, words


@pytest.mark.parametrize(
    ("params", "epochs", "words"),
    [
        ({"beta2": 0.999}, 90, "beta2 0.99 (train: beta2) or a start at the mean profile"),
        ({"beta2": 0.99}, 160, "More epochs"),
        ({"beta2": 0.99}, 90, ""),
        ({"beta2": 0.999, "start_at_mean": True}, 90, ""),
    ],
)
def test_what_is_said_to_help_was_not_done_already(params: dict[str, Any], epochs: int, words: str) -> None:
    """Kang's page advised a start at the mean, which changes nothing at the default beta2."""
    results = SimpleNamespace(resolved={}, best_metrics={"params": params, "epochs": epochs, "max_epochs": 160})
    told = prose._what_helps(results)  # type: ignore[arg-type]
    assert words in told if words else told == ""


def test_few_doublets_are_no_warning(small: tuple[Page, dict[str, Any]]) -> None:
    summary = json.loads(small[1]["qc_summary"].read_text())
    assert 0 < summary["doublets"]["n_predicted"] < 0.05 * summary["n_obs_before"]
    assert "predicted doublets" not in " ".join(json.loads(small[1]["summary"].read_text())["warnings"])


@pytest.mark.usefixtures("undrawn")
def test_cells_are_shown_by_what_tells_them_apart_best(tmp_path: Path) -> None:
    arguments = write_results(tmp_path, SMALL)
    setup = json.loads(arguments["setup_summary"].read_text())
    setup["fields"]["labels_key"] = ""
    arguments["setup_summary"].write_text(json.dumps(setup))
    associations = read(arguments["associations"])
    assert associations["variable"][0] == "condition"
    report(results=arguments["results"], config=ReportConfig())
    assert Page(arguments["output"]).text.index("Programs by cell_type") < (
        Page(arguments["output"]).text.index("Programs by condition")
    )


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("pearson_residuals", "120 most variable genes were chosen by their Pearson residuals ["),
        ("list", "120 genes of a given list were used"),
        ("all", "All 120 genes were used"),
    ],
)
def test_the_methods_say_how_genes_were_chosen(tmp_path: Path, method: str, words: str) -> None:
    arguments = write_results(tmp_path, SMALL)
    setup = json.loads(arguments["setup_summary"].read_text()) | {"method": method}
    arguments["setup_summary"].write_text(json.dumps(setup))
    report(results=arguments["results"], config=ReportConfig())
    assert words in Page(arguments["output"]).text


@pytest.mark.usefixtures("undrawn")
def test_a_p_value_below_what_a_number_can_hold_is_not_shown_as_zero(tmp_path: Path) -> None:
    arguments = write_results(tmp_path, replace(SMALL, donors=False))
    associations = read(arguments["associations"]).assign(padj=0.0)
    associations.to_csv(arguments["associations"], sep="\t", index=False)
    report(results=arguments["results"], config=ReportConfig())
    assert "<1e-300" in Page(arguments["output"]).text


@pytest.mark.thorough
def test_the_methods_state_what_this_run_did(
    small: tuple[Page, dict[str, Any]], bare: tuple[Page, dict[str, Any]]
) -> None:
    text = small[0].text
    for words in (
        "Raw counts of 315 cells and 5,000 genes were analyzed with ldvae 0.1.0 (commit 3fa9c13fa9)",
        "Code: commit 3fa9c13fa9",
        "at least 200 detected genes and at most 20 % mitochondrial counts; 300 cells and 4,200 genes passed",
        "Doublets were predicted with Scrublet [3] in each batch and marked but kept",
        "The 120 most variable genes were chosen by the method of Seurat v3",
        "240 for training, 30 for validation, 30 for testing",
        "with 5 factors and a negative binomial likelihood (encoder: one hidden layer of 128 units)",
        "and batch as the batch covariate was fitted with Adam",
        "2 settings were compared over 6 runs.",
        "averaged over 3 runs with different seeds, cut to rank 2",
        "the posterior of run k5-s0-3fa9c5 gave the probability of a log2 fold change beyond 0.25 [",
        "compared between levels of condition with donor as replicates",
        "in 2 contrasts; genes were called at an expected false discovery rate of 5%.",
        "PyDESeq2",
        "The steps were run by Snakemake",
    ):
        assert words in text, words
    assert "GSEApy" not in text
    other = bare[0]
    for words in (
        "batch covariate",
        "averaged over",
        "settings were compared",
        "Differential expression",
        "PyDESeq2",
        "Love MI",
    ):
        assert words not in other.text.split("Methods")[-1].split("Inputs")[0], words


def test_citations_are_numbered_as_the_references_stand(small: tuple[Page, dict[str, Any]]) -> None:
    source = small[0].source
    methods = source[source.index('id="methods-text"') : source.index("data-copy")]
    cited = [int(n) for group in re.findall(r"\[([\d, ]+)\]", methods) for n in group.split(",")]
    n = methods.count("<li>")
    assert list(dict.fromkeys(cited)) == list(range(1, n + 1))


@pytest.mark.usefixtures("undrawn")
def test_the_index_leads_to_the_reports_and_lists_all_runs(tmp_path: Path) -> None:
    for name in ("kang", "pbmc <3k>"):
        make(tmp_path, replace(BARE, name=name))
    index(results=tmp_path)
    page = Page(tmp_path / "index.html")
    reports = [link for link in page.links if link.endswith("report.html")]
    assert list(dict.fromkeys(reports)) == ["kang/report.html", "pbmc%20%3C3k%3E/report.html"]
    assert page.data["blocks"]["all-runs"]["dataset"] == ["kang", "pbmc <3k>"]
    assert "Read with care" in page.text


def test_a_missing_table_of_a_contrast_is_named(tmp_path: Path) -> None:
    arguments = write_results(tmp_path, SMALL)
    arguments["de"][1].unlink()
    with pytest.raises(InputError, match=r"contrast2.tsv.gz is not there, but .*contrasts.tsv lists it"):
        report(results=arguments["results"], config=ReportConfig())


def test_a_best_run_that_was_not_compared_is_an_error(tmp_path: Path) -> None:
    arguments = write_results(tmp_path, SMALL)
    read(arguments["select_runs"])[:2].to_csv(arguments["select_runs"], sep="\t", index=False)
    with pytest.raises(InputError, match=r"the best run 'k5-s0-3fa9c5' is not in .*runs\.tsv"):
        report(results=arguments["results"], config=ReportConfig())


@pytest.mark.usefixtures("undrawn")
def test_contrasts_of_an_older_config_are_not_shown(tmp_path: Path) -> None:
    arguments = write_results(tmp_path, SMALL)
    resolved = json.loads(arguments["resolved"].read_text()) | {"de": {"contrasts": []}}
    arguments["resolved"].write_text(json.dumps(resolved))
    report(results=arguments["results"], config=ReportConfig())
    assert "de" not in Page(arguments["output"]).ids


@pytest.mark.usefixtures("undrawn")
def test_the_index_says_first_what_is_not_finished_and_why(tmp_path: Path) -> None:
    make(tmp_path, replace(BARE, name="kang"))
    failed = layout.failure_file(tmp_path / "broken", "qc")
    failed.parent.mkdir(parents=True)
    failed.write_text(json.dumps({"verb": "qc", "message": "min_genes = 9999 removes <all> cells", "code": 2}))
    index(results=tmp_path, datasets=["kang", "broken", "waiting"])
    page = Page(tmp_path / "index.html")
    assert "min_genes = 9999 removes <all> cells" in page.text
    assert page.text.index("2 of 3 datasets are not finished") < page.text.index("waiting") < page.text.index("kang")
    assert {link for link in page.links if link.endswith("report.html")} == {"kang/report.html"}
    block = page.data["blocks"]["datasets"]
    assert block["dataset"] == ["broken", "waiting", "kang"], "what failed comes first"
    assert block["state"] == ["failed in qc", "not finished", "finished"]
    said = layout.SUMMARY.at(tmp_path).read_text()
    assert said.startswith("Finished: 1 of 3 datasets.")
    assert "broken: not finished.\n  ldvae qc: min_genes = 9999 removes <all> cells" in said
    assert f"open {tmp_path}/index.html" in said


@pytest.mark.usefixtures("undrawn")
def test_the_index_writes_tables_for_multiqc(tmp_path: Path) -> None:
    for name in ("kang", "pbmc"):
        make(tmp_path, replace(BARE, name=name))
    index(results=tmp_path)
    tables = {}
    for file in (layout.MULTIQC_QC, layout.MULTIQC_PROGRAMS):
        lines = file.at(tmp_path).read_text().splitlines()
        settings = yaml.safe_load("\n".join(line.removeprefix("# ") for line in lines if line.startswith("#")))
        assert settings["plot_type"] == "table"
        tables[settings["id"]] = [line.split("\t") for line in lines if not line.startswith("#")]
    assert [row[0] for row in tables["ldvae_qc"]] == ["Dataset", "kang", "pbmc"]
    assert [row[0] for row in tables["ldvae_programs"]][:2] == ["Program", "kang P1"]
    assert all(len(row) == len(table[0]) for table in tables.values() for row in table)
    assert layout.INDEX_RECORD.read(tmp_path) == {"datasets": ["kang", "pbmc"], "across": False}


@pytest.mark.parametrize(
    ("section", "options", "message"),
    [
        ("de", {"delta": 0.5, "contrasts": [{"column": "cell_type"}]}, "de.delta: the results were made with 0.25"),
        ("qc", {"min_genes": 300}, "qc.min_genes: the results were made with 200, the config says 300"),
        ("sweep", {"seeds": [0]}, "run k10-s0-[0-9a-f]{6} of the config was not compared with the others"),
    ],
)
def test_results_that_were_made_with_other_options_are_an_error(
    tmp_path: Path, section: str, options: dict[str, Any], message: str
) -> None:
    arguments = write_results(tmp_path, SMALL)
    resolved = json.loads(arguments["resolved"].read_text()) | {section: options}
    arguments["resolved"].write_text(json.dumps(resolved))
    with pytest.raises(InputError, match=f"not those of the config.*\n- {message}"):
        report(results=arguments["results"], config=ReportConfig())
    assert not arguments["output"].exists()


def test_a_file_that_is_missing_is_named_with_the_verb_that_writes_it(tmp_path: Path) -> None:
    arguments = write_results(tmp_path, SMALL)
    arguments["histories"][2].unlink()
    with pytest.raises(InputError, match=r"history\.csv is not there .*`ldvae train` writes it"):
        report(results=arguments["results"], config=ReportConfig())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "∞"),
        (-1e308, "-∞"),
        (True, "yes"),
        ("a", "a"),
        (0.0, "0"),
        (1.0, "1.00"),
        (-0.45678, "-0.457"),
        (12.345, "12.3"),
        (414.5678, "414.57"),
        (6140.72, "6,140.7"),
        (1234567.0, "1,234,567"),
        (0.000123, "1.2e-4"),
    ],
)
def test_numbers_are_written_for_reading(value: Any, text: str) -> None:
    assert number(value) == text


def test_numbers_are_rounded_once() -> None:
    """2.155043 was 2.16 in the findings and 2.15 in the table, which rounded it to 2.155 first."""
    values = pd.Series([2.155043, 12345.67, 123456.0, 0.000125003, np.nan, np.inf])
    assert [number(value) for value in as_column(values)] == ["2.16", "12,345.7", "123,456", "1.3e-4", "–", "∞"]
    many = pd.Series(np.random.default_rng(0).lognormal(0, 5, 20_000))
    assert [number(value) for value in as_column(many)] == [number(value) for value in many]
    assert as_column(pd.Series([2.151234])) == [2.1512]  # no more digits than are needed


def test_counts_have_no_decimals() -> None:
    assert number(1234.0, whole=True) == "1,234"


@pytest.mark.parametrize(("seconds", "text"), [(3.21, "3.2 s"), (42, "42 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_times_are_written_for_reading(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_colors_of_few_levels_differ_for_color_blind_readers() -> None:
    """Distances between any two of the first colors stay visible in simulated deuteranopia (Machado et al., 2009)."""
    deuteranopia = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])
    from matplotlib.colors import to_rgb

    rgb = np.array([to_rgb(color) for color in pl.palette(6)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = (linear @ deuteranopia.T).clip(0, 1) ** (1 / 2.2)
    distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[np.triu_indices(6, 1)]
    assert distances.min() > 0.15


def test_colors_given_by_the_annotated_file_are_kept() -> None:
    assert pl.palette(2, ["red", "#00ff00", "blue"]) == ["#ff0000", "#00ff00"]
    assert pl.palette(2, ["red", "not a color"]) == pl.palette(2)
    assert len(set(pl.palette(40))) == 40


def test_figures_on_one_page_do_not_share_ids() -> None:
    drawing = figures.kl_per_factor([3.0, 1.0], 1, "run")
    document = drawing.render().document
    elements = [inline(document, prefix=name, label=name, width=100) for name in ("a", "b")]
    ids = [set(re.findall(r' id="([^"]+)"', element)) for element in elements]
    assert ids[0]
    assert not ids[0] & ids[1]
    for element, own in zip(elements, ids, strict=True):
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', element)) <= own


def test_a_figure_follows_the_theme_in_the_page_and_is_plain_in_its_file() -> None:
    rendered = figures.kl_per_factor([3.0, 1.0], 0, "run").render()
    assert "var(--ink)" in rendered.element
    assert "var(" not in rendered.document
    assert "font-family" not in rendered.element


def test_a_figure_is_named_for_screen_readers() -> None:
    drawing: Drawing = figures.kl_per_factor([3.0, 1.0], 0, "run <1>")
    root = ElementTree.fromstring(drawing.render().element)
    assert root.attrib["role"] == "img"
    assert (
        root.attrib["aria-label"]
        == "KL per factor. Information of each factor of run run <1> about a cell. None collapsed."
    )


def test_every_table_of_a_contrast_says_which_genes_are_called(small: tuple[Page, dict[str, Any]]) -> None:
    page, paths = small
    table = read(paths["de"][0]).set_index("gene")["is_de_fdr_0.05"]
    block = page.data["blocks"]["de-1"]
    assert dict(zip(block["gene"], block["is_de_fdr_0.05"], strict=True)) == table.loc[block["gene"]].to_dict()


@pytest.mark.thorough
def test_predictions_that_are_not_finite_are_a_warning_and_the_page_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch, but="fit")
    arguments = write_results(tmp_path, SMALL)
    for path in arguments["fit"]:
        table = read(path)
        table.loc[table["gene"] == table["gene"][3], "predicted_variance"] = np.inf
        table.to_csv(path, sep="\t", index=False)
    report(results=arguments["results"], config=ReportConfig())
    text = Page(arguments["output"]).text
    assert "The predicted variance is not finite in 1 of 120 genes" in text


@pytest.mark.parametrize(
    ("said", "other"),
    [
        ("cell_type = CD14+ Monocytes (AUC 0.13)", "CD14+ Monocytes"),
        ("louvain = 2 (AUC 0.08)", "those with louvain = 2"),
        ("donor = 1 (AUC 0.35)", ""),
        ("", ""),
    ],
)
def test_a_program_that_is_low_in_some_cells_is_said_to_stand_against_them(said, other):
    assert prose.other_side(pd.Series({"opposite_association": said})) == other


def test_the_end_of_a_run_says_what_was_found_and_what_to_open(small: tuple[Page, dict[str, Any]]) -> None:
    summary = json.loads(small[1]["summary"].read_text())
    text = prose.end_of_run([summary], "results/index.html")
    assert text.startswith("Finished: 1 dataset.")
    assert "  - 2 programs in 300 cells. The largest, P1 (B cells), has 50% of the contribution." in text
    assert text.endswith("Next: open results/index.html in a browser.")
    assert len(text.splitlines()) < 24
    for title in ("Found:", "Not found:", "Read with care:"):
        assert title in text
    shown = small[0].text
    for one in summary["found"] + summary["not_found"] + summary["warnings"]:
        assert one in shown, "the page says the same as the terminal"


def test_the_findings_name_the_strongest_difference_between_conditions_and_what_did_not_differ(
    small: tuple[Page, dict[str, Any]],
) -> None:
    summary = json.loads(small[1]["summary"].read_text())
    row = read(small[1]["donors"]).sort_values("p").iloc[0]
    assert (
        f"P1 (B cells) is higher in stim than in ctrl in B cells, of 3 cell types tested: by {row['effect']:.2f} SD "
        f"(95% interval {row['lower']:.2f} to {row['upper']:.2f}; adjusted p 0.0001, 5 donors as replicates)."
    ) in summary["found"]
    told = " ".join(summary["not_found"])
    assert (
        "With donors as replicates, no difference between conditions was found for P2 (NK cells) in any of the 3 cell "
        "types tested (B cells, NK cells and T cells)." in told
    )


def of_conditions(rows: list[tuple[str, str, float, float]]) -> prose.Findings:
    """What is said of comparisons of two conditions: program, cell type, effect, adjusted p."""
    table = pd.DataFrame(rows, columns=["program", "cell_type", "effect", "padj"])
    table = table.assign(condition="stim", reference="ctrl", n_donors=5, p=table["padj"])
    table = table.assign(lower=table["effect"] - 0.1, upper=table["effect"] + 0.1)
    programs = pd.DataFrame({"label": ""}, table["program"].unique())
    results: Any = SimpleNamespace(donors=table, programs=programs)
    return prose._found_conditions(results)


def test_the_cell_types_that_were_tested_are_said() -> None:
    """P2 was said to be lower in stim, where CD4 T cells alone had been tested; and P8 to be higher, without the
    monocytes in which it is lower."""
    one = of_conditions([("P2", "CD4 T cells", -1.0, 0.01), ("P4", "CD4 T cells", 0.1, 0.9)])
    only = "in CD4 T cells, the only cell type tested"
    assert one.found[0].text.startswith(f"P2 is lower in stim than in ctrl {only}: by 1.00 SD")
    assert one.not_found[0].text.endswith(f"no difference between conditions was found for P4 {only}.")
    none = of_conditions([("P4", "CD4 T cells", 0.1, 0.9)]).not_found[0].text
    assert none.startswith(f"No program differs between conditions with donors as replicates {only}: the smallest")
    whole = of_conditions([("P2", "all cells", -1.0, 0.01)])
    assert whole.found[0].text.startswith("P2 is lower in stim than in ctrl: by 1.00 SD")
    both = [("P8", "B", 1.3, 0.005), ("P8", "T", 1.2, 0.001), ("P8", "NK", 0.1, 0.9), ("P8", "Mono", -0.76, 0.043)]
    text = of_conditions(both).found[0].text
    assert text.startswith("P8 is higher in stim than in ctrl in 2 of 4 cell types tested, most in B: by 1.30 SD")
    assert text.endswith("5 donors as replicates). It is lower in Mono (by 0.76 SD; adjusted p 0.043).")
    every = of_conditions([(f"P{k}", kind, 9.0 - k, 0.01) for k in range(8) for kind in "AB"]).found
    assert every[0].text.startswith("P0 is higher in stim than in ctrl in all 2 cell types tested, most in A")
    assert every[-1].text == "2 more programs differ less."
    assert (
        of_conditions([(f"P{k}", "A", 9.0 - k, 0.01) for k in range(7)]).found[-1].text
        == "1 more program differs less."
    )


def test_what_a_comparison_leaves_out_is_told_on_the_page(tmp_path: Path) -> None:
    arguments = write_results(tmp_path, SMALL)
    summary = json.loads(arguments["programs_summary"].read_text())
    text = "Donor 107 has no stim cells: paired tests leave it out."
    arguments["programs_summary"].write_text(json.dumps(summary | {"left_out": [text]}))
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        report(results=arguments["results"], config=ReportConfig())
    page = Page(arguments["output"])
    assert page.text.count(text) == 2, "in the section, and in what to read with care"
    assert text in json.loads(arguments["summary"].read_text())["warnings"]


def test_donors_are_shown_as_points_and_in_a_table(small: tuple[Page, dict[str, Any]]) -> None:
    page, paths = small
    table, means = read(paths["donors"]), read(paths["donor_means"])
    assert "conditions" in page.ids
    block = page.data["blocks"]["donors"]
    for column in ("effect", "lower", "upper", "padj"):
        assert_same(block[column], table.sort_values("p", kind="stable")[column])
    for program in ("P1", "P2"):
        own = means[means["program"] == program]
        assert_same(page.data["blocks"][f"program_{program}_donors"]["mean"], own["mean"])
        assert f"fig-program_{program}_donors" in page.ids
    assert "Adjusted p" not in page.source[page.source.index('id="table-associations-P1"') :].split("</table>")[0]


@pytest.mark.thorough
def test_without_replicates_the_page_says_that_only_effects_can_be_read(bare: tuple[Page, dict[str, Any]]) -> None:
    assert "conditions" not in bare[0].ids
    assert "Without them, read effects only." in bare[0].text


def test_scores_that_contradict_their_genes_and_unsettled_programs_carry_their_warning(
    small: tuple[Page, dict[str, Any]],
) -> None:
    source = small[0].source
    first, second = (
        source[source.index(f'<article id="program-{name}"') :].split("</article>")[0] for name in ("P1", "P2")
    )
    assert "Not settled" in first
    assert "Not settled" not in second
    assert "Scores and genes disagreed (agreement 0.400, below 0.5)" in second
    assert "disagreed" not in first


def test_the_search_knows_the_effects_on_all_measured_genes(small: tuple[Page, dict[str, Any]]) -> None:
    import base64

    measured = small[0].data["measured"]
    table = read(small[1]["all_genes"]).set_index(["program", "gene"])
    assert "UNMODELLED3" in measured["gene"]
    for program in ("P1", "P2"):
        for column, step in (("effect", 2000), ("z", 100)):
            found = np.frombuffer(base64.b64decode(measured[column][program]), "<i2") / step
            expected = table.loc[program].loc[measured["gene"], column]
            np.testing.assert_allclose(found, expected, atol=0.51 / step)


def test_a_contrast_shows_the_counts_beside_the_model_and_what_both_find(small: tuple[Page, dict[str, Any]]) -> None:
    page, paths = small
    for position, path in enumerate(paths["de"], start=1):
        block = page.data["blocks"][f"counts-{position}"]
        assert "UNMODELLED0" in block["gene"]
        table = read(path).set_index("gene")
        both = set(table.index[table["both"]])
        panel = page.source[page.source.index(f'id="contrast-de-{position}"') :].split("</details>")[0]
        listed = panel[panel.index('class="both"') :].split("</div>")[0]
        names = re.findall(r'data-gene="([^"]+)"', listed)
        assert set(names) == both
        expected = read(path.with_name(path.name.replace(".tsv", ".all_genes.tsv"))).set_index("gene")
        order = list(expected.index)
        assert list(block["gene"]) == order[: len(block["gene"])], "in the order of the file"
        up = [name for name in order if name in both and table.loc[name, "lfc_mean"] > 0]
        assert names == up + [name for name in order if name in both - set(up)]
        for column in ("auc", "wilcoxon_padj", "detected1"):
            assert_same(block[column], expected.loc[block["gene"], column])


@pytest.mark.usefixtures("undrawn")
def test_a_type_that_lost_more_than_a_third_is_marked(tmp_path: Path) -> None:
    arguments = write_results(tmp_path, SMALL)
    qc = json.loads(arguments["qc_summary"].read_text())
    qc |= {"types": "cell_type", "per_type": {"T": {"before": 90, "after": 80}, "Mk": {"before": 15, "after": 4}}}
    arguments["qc_summary"].write_text(json.dumps(qc))
    report(results=arguments["results"], config=ReportConfig())
    block = Page(arguments["output"]).data["blocks"]["qc-types"]
    assert dict(zip(block["type"], block["note"], strict=True)) == {"Mk": "lost more than a third", "T": ""}


def test_an_infinite_odds_ratio_is_shown(small: tuple[Page, dict[str, Any]]) -> None:
    table = read(small[1]["enrichment"]).query("program == 'P1'")
    assert np.isinf(table["odds_ratio"]).sum() == 1
    assert "∞" in small[0].source[small[0].source.index('id="table-enrichment-P1"') :].split("</table>")[0]


def test_the_index_of_twenty_datasets_is_a_table_with_what_failed_first() -> None:
    program = {"program": "P1", "label": "T cells: CD3D, IL7R, TRAC", "share": 0.4, "top_positive": "CD3D, IL7R"}
    summary = {"n_obs_before": 900, "n_obs_after": 800, "n_vars": 500, "setting": "k10", "n_programs": 3}
    summary |= {
        "programs": [program],
        "warnings": ["Few cells."],
        "found": ["3 programs."],
        "not_found": [],
        "runs": [],
    }
    summaries = [summary | {"dataset": f"sample {i}", "report": f"sample {i}/report.html"} for i in range(18)]
    unfinished = [
        {"dataset": "broken", "failures": [{"verb": "qc", "message": "min_genes removes all cells"}]},
        {"dataset": "waiting", "failures": []},
    ]
    html = render_index(summaries, unfinished)
    block = json.loads(re.search(r'id="blocks">(.*?)</script>', html)[1])["datasets"]  # type: ignore[index]
    assert block["dataset"][:3] == ["broken", "waiting", "sample 0"]
    assert block["state"][:3] == ["failed in qc", "not finished", "finished"]
    assert len(block["dataset"]) == 20
    assert block["dataset_href"][2] == "sample%200/report.html"
    assert "data-search" in html
    assert "<details open>" not in html, "twenty datasets are folded"


@pytest.mark.usefixtures("undrawn")
def test_a_batch_that_is_the_condition_is_told(small: tuple[Page, dict[str, Any]], tmp_path: Path) -> None:
    words = "The batch (batch) divides the cells as condition does"
    assert words not in small[0].text
    arguments = write_results(tmp_path, SMALL)
    import anndata

    adata = anndata.read_h5ad(arguments["annotated"])
    adata.obs["condition"] = adata.obs["batch"].map({"donor1": "ctrl", "donor2": "stim"}).astype("category")
    adata.write_h5ad(arguments["annotated"])
    report(results=arguments["results"], config=ReportConfig())
    assert words in Page(arguments["output"]).text
