"""The report in a real browser: Debian's chromium, headless and offline; skipped where it is not installed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from results_folder import NASTY, World, write_results

from ldvae.config import ReportConfig
from ldvae.steps.index import index
from ldvae.steps.report import report

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed"),
]

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
PHONE, DESKTOP = 390, 1400
WORLD = World(n_obs=400, n_vars=120, n_latents=(5, 6), n_programs=3, nasty=True, donors=True)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("results")
    arguments = write_results(root, WORLD)
    report(results=arguments["results"], config=ReportConfig())
    index(results=root)
    return arguments | {"index": root / "index.html"}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


class Tab:
    """One page, with everything it complained about and asked for."""

    def __init__(self, browser: Any, path: Path, width: int = DESKTOP, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, offline=True, **options)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.fixture(scope="module")
def page(browser: Any, results: dict[str, Any]) -> Iterator[Any]:
    with Tab(browser, results["output"]) as page:
        yield page


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["output", "index"])
def test_it_loads_without_complaint_request_or_overflow(
    browser: Any, results: dict[str, Any], name: str, scheme: str, width: int
) -> None:
    tab = Tab(browser, results[name], width, color_scheme=scheme)
    with tab as page:
        page.wait_for_timeout(200)
        page.mouse.wheel(0, 5000)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.complaints == []
        assert [url for url in tab.requests if not url.startswith("data:")] == [results[name].as_uri()]


@pytest.mark.parametrize(("width", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")])
@pytest.mark.parametrize("name", ["output", "index"])
def test_axe_finds_no_serious_fault(browser: Any, results: dict[str, Any], name: str, width: int, scheme: str) -> None:
    with Tab(browser, results[name], width, color_scheme=scheme, bypass_csp=True) as page:
        page.evaluate("for (const folded of document.querySelectorAll('details')) folded.open = true")
        found = axe.Axe().run(page).response["violations"]
        serious = [
            (fault["id"], [node["html"][:200] for node in fault["nodes"][:3]])
            for fault in found
            if fault["impact"] in ("serious", "critical")
        ]
        assert serious == []


def test_a_click_on_a_head_sorts_the_runs(page: Any, results: dict[str, Any]) -> None:
    table = page.locator("#table-runs")
    runs = pd.read_csv(results["select_runs"], sep="\t")
    head = table.get_by_role("button", name="Test ELBO")
    for ascending in (False, True):
        head.click()
        shown = table.locator("tbody tr td:first-child").all_inner_texts()
        assert shown == list(runs.sort_values("elbo_test", ascending=ascending)["run"])
        assert head.locator("..").get_attribute("aria-sort") == ("ascending" if ascending else "descending")


def test_search_keeps_the_matching_genes_of_a_contrast(page: Any) -> None:
    table = page.locator("#table-de-1")
    box = table.get_by_label("Search")
    box.fill("gene11")
    genes = table.locator("tbody td:first-child").all_inner_texts()
    assert sorted(genes) == sorted(f"GENE{i}" for i in (11, *range(110, 120)))
    box.fill("no such gene")
    assert table.locator("tbody tr").count() == 0
    assert "nothing found" in table.inner_text()
    box.fill("")
    assert table.locator("tbody tr").count() == 15
    table.get_by_role("button", name="Next").click()
    assert "16–30 of 120" in table.inner_text()


def test_pointing_at_a_gene_shows_its_numbers(page: Any, results: dict[str, Any]) -> None:
    plot = page.locator("#fig-fit_mean .plot")
    plot.scroll_into_view_if_needed()
    [target] = json.loads(plot.get_attribute("data-targets"))
    gene = json.loads(page.locator("#blocks").text_content())["fit"]
    row = gene["gene"].index("GENE50")
    box = plot.locator("svg").bounding_box()
    shares = []
    for values, limits in ((gene["observed_mean"], target["xlim"]), (gene["predicted_mean"], target["ylim"])):
        low, high = pd.Series(limits).apply("log")
        shares.append((pd.Series([values[row]]).apply("log")[0] - low) / (high - low))
    left, top, right, bottom = target["box"]
    x = box["x"] + box["width"] * (left + shares[0] * (right - left))
    y = box["y"] + box["height"] * (bottom - shares[1] * (bottom - top))
    page.mouse.move(x, y)
    tip = page.locator("#tip").inner_text()
    assert tip.splitlines()[0] == "GENE50"
    at = [path.parent.name for path in results["metrics"]].index(json.loads(results["best"].read_text())["run"])
    fit = pd.read_csv(results["fit"][at], sep="\t").query("batch == 'all' and gene == 'GENE50'").iloc[0]
    for words in (f"observed {fit.observed_mean:#.3g}", f"predicted {fit.predicted_mean:#.3g}"):
        assert words in tip
    page.mouse.move(1, 1)
    assert page.locator("#tip").is_hidden()


def test_the_arrow_keys_read_the_points_aloud(page: Any) -> None:
    plot = page.locator("#fig-kl_per_factor .plot")
    plot.focus()
    page.keyboard.press("ArrowRight")
    first = page.locator("#announce").inner_text()
    page.keyboard.press("ArrowRight")
    second = page.locator("#announce").inner_text()
    assert first.startswith("Z_0, KL ")
    assert second.startswith("Z_1, KL ")
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()


def test_the_map_takes_the_color_that_is_chosen(page: Any) -> None:
    canvas, select = page.locator("#map canvas"), page.locator("#map-color")
    pixels = """node => {
        const { data } = node.getContext("2d").getImageData(0, 0, node.width, node.height);
        return data.reduce((hash, value) => (hash * 31 + value) | 0, 0);
    }"""
    seen = set()
    for name in ("cell_type", "P2", "Total counts"):
        select.select_option(
            label=next(text for text in select.locator("option").all_inner_texts() if text.startswith(name))
        )
        assert f"colored by {name}" in page.locator("#map-title").inner_text()
        seen.add(canvas.evaluate(pixels))
    assert len(seen) == 3
    select.select_option(label="cell_type")
    level = page.locator("#map .legend button").nth(1)
    before = canvas.evaluate(pixels)
    level.click()
    assert level.get_attribute("aria-pressed") == "true"
    assert canvas.evaluate(pixels) != before
    level.click()
    box = canvas.bounding_box()
    for step in range(40):
        page.mouse.move(box["x"] + box["width"] * step / 40, box["y"] + box["height"] / 2)
        if page.locator("#tip").is_visible():
            break
    assert "cell_type" in page.locator("#tip").inner_text()


def test_the_map_takes_the_color_of_a_measured_gene(page: Any, results: dict[str, Any]) -> None:
    from anndata import read_h5ad

    counts = read_h5ad(results["results"] / "qc/filtered.h5ad")
    wanted, title = page.locator("#map-gene"), page.locator("#map-title")
    names = page.locator("#map-genes option").evaluate_all("options => options.map(o => o.value)")
    assert set(names) <= set(counts.var_names)
    share = counts.X.toarray() / counts.X.sum(axis=1)
    gene = names[len(names) // 2]
    wanted.fill(gene)
    wanted.press("Enter")
    sync_api.expect(title).to_contain_text(gene)
    highest = float(np.log1p(1e4 * np.max(share[:, counts.var_names.get_loc(gene)])))
    shown = page.locator("#map .legend span").last.inner_text()
    assert float(shown) == pytest.approx(highest, abs=0.011)
    wanted.fill("NO-SUCH-GENE")
    wanted.press("Enter")
    assert gene in title.inner_text()
    assert "not among" in wanted.evaluate("node => node.validationMessage")


def test_a_gene_leads_to_its_effects_in_all_programs(page: Any, results: dict[str, Any]) -> None:
    page.locator("#program-P2 a.gene").first.click()
    gene = page.locator("#program-P2 a.gene").first.inner_text()
    assert page.locator("#gene-result h4").inner_text() == gene
    measured = pd.read_csv(results["all_genes"], sep="\t").pivot(index="program", columns="gene", values="effect")
    loadings = pd.read_csv(results["programs"].parent / "loadings.tsv", sep="\t", index_col=0).loc[gene]
    rows = [row.split("\t") for row in page.locator("#gene-result table").first.locator("tbody tr").all_inner_texts()]
    assert [row[0] for row in rows] == list(measured[gene].abs().sort_values(ascending=False).index)
    for program, effect, _, loading, _ in rows:
        assert float(effect) == pytest.approx(measured.at[program, gene], abs=6e-4)
        assert float(loading) == pytest.approx(loadings[program], rel=6e-3)
    page.locator("#gene-input").fill("unmodelled3")
    page.keyboard.press("Enter")
    told = page.locator("#gene-result").inner_text()
    assert told.startswith("UNMODELLED3")
    assert "not among the genes of the model" in told
    assert "Loading" not in told
    assert (
        page.locator("#gene-result").get_by_role("link", name="NCBI Gene").get_attribute("href").endswith("UNMODELLED3")
    )
    page.locator("#gene-input").fill("unheard of")
    page.keyboard.press("Enter")
    assert "unheard of is not among the genes" in page.locator("#gene-result").inner_text()


STOPS = """() => [...document.querySelectorAll("a[href], button, select, input, summary, [tabindex]")].filter(
    (node) => node.tabIndex >= 0 && !node.disabled && node.getClientRects().length && node.checkVisibility()).length"""


@pytest.mark.usefixtures("undrawn")
def test_the_tab_key_crosses_a_page_of_twelve_programs_in_less_than_a_hundred_steps(
    browser: Any, tmp_path: Path
) -> None:
    world = replace(WORLD, nasty=False, n_programs=12, n_vars=300, n_latents=(14,), n_contrasts=6)
    arguments = write_results(tmp_path, world)
    report(results=arguments["results"], config=ReportConfig())
    with Tab(browser, arguments["output"]) as page:
        assert page.evaluate(STOPS) < 100


def test_the_arrows_go_on_inside_a_group(page: Any) -> None:
    links = page.locator("#program-P1 p.genes a.gene")
    links.nth(0).focus()
    page.keyboard.press("ArrowRight")
    assert links.nth(1).evaluate("node => node === document.activeElement && node.tabIndex === 0")
    assert links.nth(0).get_attribute("tabindex") == "-1"
    region = page.locator("#table-donors .scroll")
    region.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "Copy"
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.closest('#table-donors') !== null")
    page.keyboard.press("Escape")
    assert region.evaluate("node => node === document.activeElement")


def test_tables_and_figures_can_be_saved_from_the_page_alone(
    page: Any, results: dict[str, Any], tmp_path: Path
) -> None:
    with page.expect_download() as download:
        page.locator("#table-donors").get_by_role("button", name="Save as CSV").click()
    path = tmp_path / "donors.csv"
    download.value.save_as(path)
    saved, table = pd.read_csv(path), pd.read_csv(results["donors"], sep="\t").sort_values("p", kind="stable")
    assert list(saved["Cell type"]) == list(table["cell_type"])
    assert saved["Difference (SD)"].to_list() == pytest.approx(table["effect"].to_list(), rel=1e-4)
    for kind, start in (("SVG", b"<svg"), ("PNG", b"\x89PNG")):
        with page.expect_download() as download:
            page.locator("#fig-fit_mean").get_by_role("button", name=f"Save as {kind}").click()
        path = tmp_path / f"figure.{kind}"
        download.value.save_as(path)
        content = path.read_bytes()
        assert content.startswith(start)
        assert b"var(--" not in content
        assert download.value.suggested_filename == f"demo_fit_mean.{kind.lower()}"


def test_a_word_is_explained_where_it_stands(page: Any) -> None:
    page.locator("#programs .term", has_text="stability").hover()
    assert "Mean cosine between a program and its versions in single fits" in page.locator("#tip").inner_text()
    page.mouse.move(1, 1)
    assert page.locator("#tip").is_hidden()


def test_controls_fit_a_phone(browser: Any, results: dict[str, Any]) -> None:
    with Tab(browser, results["output"], PHONE) as page:
        ends = page.locator("select, input").evaluate_all("nodes => nodes.map((n) => n.getBoundingClientRect().right)")
        assert ends
        assert max(ends) <= PHONE


def test_nothing_leaves_the_paper(browser: Any, results: dict[str, Any]) -> None:
    """At the width of an A4 page, what is printed is no wider than the page."""
    with Tab(browser, results["output"], 673) as page:
        page.emulate_media(media="print")
        wide = page.evaluate(
            """() => [...document.querySelectorAll("main table, main svg, main pre, main aside, main p")]
                .filter((node) => node.getClientRects().length && node.getBoundingClientRect().right > innerWidth + 1)
                .map((node) => node.tagName)"""
        )
        assert wide == []


def test_links_lead_where_they_say(page: Any) -> None:
    for link in page.locator("nav.toc a").all():
        link.click()
        target = link.get_attribute("href")
        title = page.locator(target).get_by_role("heading").first
        words = " ".join(link.inner_text().split())
        assert words in " ".join(title.inner_text().split())
        assert 0 <= title.bounding_box()["y"] < 900
        page.wait_for_timeout(60)
        assert page.locator("nav.toc a[aria-current]").count() == 1
    page.locator("#table-programs").get_by_role("link", name="P3", exact=True).click()
    assert page.url.endswith("#program-P3")
    second = page.locator("details.contrast").nth(1)
    assert second.get_attribute("open") is None
    page.evaluate("location.hash = '#contrast-de-2'")
    sync_api.expect(second).to_have_attribute("open", "")


def test_without_scripts_figures_and_first_rows_are_there(browser: Any, results: dict[str, Any]) -> None:
    with Tab(browser, results["output"], java_script_enabled=False) as plain:
        assert plain.locator("#fig-umap svg").is_visible()
        assert plain.locator("#map .live").is_hidden()
        assert "With scripts switched on" in plain.locator("#genes").inner_text()
        assert plain.locator("#fig-program_P1_genes svg").is_visible()
        with Tab(browser, results["output"]) as scripted:
            for name in ("settings", "programs", "de-1", "counts-1", "donors", "fit", "qc-removed"):
                rows = plain.locator(f"#table-{name} tbody tr").all_inner_texts()
                assert rows
                assert scripted.locator(f"#table-{name} tbody tr").all_inner_texts() == rows


def test_names_from_the_data_stay_text_in_what_scripts_make(page: Any) -> None:
    options = page.locator("#gene-list option")
    assert set(NASTY) <= set(options.evaluate_all("nodes => nodes.map(node => node.value)"))
    page.locator("#gene-input").fill(NASTY[0])
    page.keyboard.press("Enter")
    assert page.locator("#gene-result h4").inner_text() == NASTY[0]
    assert page.locator("#gene-result script, .legend img, .table tbody script, .table tbody img").count() == 0
    page.locator("#map select").dispatch_event("change")  # other tests may have colored the map by a gene
    assert NASTY[0] in page.locator("#map .legend").inner_text()


def test_the_theme_can_be_turned(browser: Any, results: dict[str, Any]) -> None:
    with Tab(browser, results["output"], color_scheme="light") as page:
        color = "getComputedStyle(document.body).backgroundColor"
        before = page.evaluate(color)
        page.get_by_role("button", name="Dark").click()
        assert page.evaluate(color) != before
        page.get_by_role("button", name="Light").click()
        assert page.evaluate(color) == before


def test_on_paper_it_is_light_whole_and_without_controls(browser: Any, results: dict[str, Any]) -> None:
    with Tab(browser, results["output"], color_scheme="dark") as page:
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.locator("nav.toc").is_hidden()
        assert page.locator("#fig-umap svg").is_visible()
        assert page.locator("#map .live").is_hidden()
        assert len(page.pdf()) > 50_000


def test_a_dataset_of_40_cell_types_fits_a_phone(browser: Any, tmp_path: Path) -> None:
    labels = tuple(f"a cell type with a long name, number {i}" for i in range(40))
    arguments = write_results(tmp_path, replace(WORLD, nasty=False, labels=labels, n_obs=800, n_programs=2))
    report(results=arguments["results"], config=ReportConfig())
    tab = Tab(browser, arguments["output"], PHONE)
    with tab as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE
        assert page.locator("#map .legend button").count() == 40
        assert tab.complaints == []
