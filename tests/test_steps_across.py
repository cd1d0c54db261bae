"""`ldvae across`: what datasets share, from the files of the steps before; the page; and its place in the config."""

import json
import shutil
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from scipy import sparse

from ldvae import programs as gp
from ldvae import results as layout
from ldvae.cli import main
from ldvae.config import AcrossConfig, describe, expand_checked, expand_config
from ldvae.errors import InputError
from ldvae.io import write_table
from ldvae.report.across import Compared, contrasts_in_words, doubts, findings
from ldvae.steps.across import across, contrasts
from ldvae.steps.index import index
from ldvae.steps.programs import write_model

N_GENES, N_CELLS = 300, 120
SHARED = ("T cells", "interferon")


def write_datasets(root, n_datasets=4, seed=0):
    """Results of datasets with two shared programs, the second higher in half of the cells, and one of each's own."""
    rng = np.random.default_rng(seed)
    genes = np.array([f"GENE{g}" for g in range(N_GENES)])
    base = np.log(rng.dirichlet(np.full(N_GENES, 2.0)))

    def program():
        return rng.normal(1.0, 0.3, N_GENES) * (rng.random(N_GENES) < 0.12)

    shared = np.column_stack([program(), program()])
    for d in range(n_datasets):
        basis = np.column_stack([shared, program()])
        scores = rng.normal(size=(N_CELLS, 3))
        stimulated = np.arange(N_CELLS) % 2 == 1
        scores[:, 1] += np.where(stimulated, 1.0, -1.0) + rng.normal(0, 0.2)
        rate = np.exp(base + rng.normal(0, 0.2, N_GENES) + scores @ basis.T)
        counts = rng.poisson(2000 * rate / rate.sum(axis=1, keepdims=True)).astype(np.float32)
        obs = pd.DataFrame({"stim": np.where(stimulated, "yes", "no")}, index=[f"cell{i}" for i in range(N_CELLS)])
        adata = ad.AnnData(sparse.csr_matrix(counts), obs=obs, uns={"ldvae_qc": {"batch_key": ""}})
        adata.var_names = genes
        results = root / f"d{d}"
        layout.FILTERED.at(results).parent.mkdir(parents=True)
        adata.write_h5ad(layout.FILTERED.at(results))
        known = rng.random(N_GENES) < 0.9  # each dataset models genes of its own choice
        frame = gp.Frame(
            genes=genes[known],
            programs=np.array(["P1", "P2", "P3"]),
            basis=(basis + rng.normal(0, 0.05, basis.shape))[known],
            transform=np.vstack([np.zeros(3), np.eye(3)]),
            joint=np.vstack([np.zeros(3), np.eye(3)]),
            offset=base[known],
            theta=np.full(known.sum(), 20.0),
            weight=gp.information(np.exp(base[known]) * 2000),
        )
        write_model(frame, layout.PROGRAMS_MODEL.at(results))
        table = pd.DataFrame({"label": [*SHARED, ""]}, index=pd.Index(["P1", "P2", "P3"], name="program"))
        for column in ("technical", "top_positive", "top_negative", "best_association"):
            table[column] = ""
        write_table(table, layout.PROGRAMS.at(results), index="program")
    return shared, [f"d{d}" for d in range(n_datasets)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    shared, names = write_datasets(root)
    across(results=root, datasets=names, config=AcrossConfig(condition_key="stim"))
    return root, shared


def test_presence_is_told_by_dataset_and_doubted_where_one_program_alone_shows_it(finished):
    root, _ = finished
    presence = layout.META_PRESENCE.read_table(root)
    table = layout.META_PROGRAMS.read_table(root)
    assert list(presence.columns) == ["d0", "d1", "d2", "d3"]
    assert (presence[table["shared"]] > 0.6).all(axis=None)
    assert (table["n_programs"] == table["n_datasets"]).all()  # these frames know no more than their programs
    doubted = {"silhouette": [0.9], "n_programs": [1], "n_datasets": [3], "label": ["B cells"], "shared": [True]}
    compared = Compared(
        n_obs={},
        table=pd.DataFrame(doubted, ["M1"]),
        **dict.fromkeys(("members", "loadings", "presence", "similarity", "donors", "donor_means"), pd.DataFrame()),
        settings={},
        versions={},
    )
    assert doubts(compared) == [
        "M1 B cells: one dataset alone has a program of its own for it; the fits of the others contain it. It may be a "
        "mixture. Fit more seeds before you rely on it."
    ]


def test_shared_and_private_programs_are_told_apart(finished):
    root, shared = finished
    table = layout.META_PROGRAMS.read_table(root)
    assert table["n_datasets"].tolist() == [4, 4, 1, 1, 1, 1]
    assert set(table["label"][:2]) == set(SHARED)
    long = layout.META_LOADINGS.read_table(root)
    wide = long.pivot(index="gene", columns="meta", values="loading")
    genes = [int(name.removeprefix("GENE")) for name in wide.index]
    cosines = np.corrcoef(np.nan_to_num(wide[["M1", "M2"]].to_numpy().T), shared[genes].T)[:2, 2:]
    assert np.sort(cosines.max(axis=1)).min() > 0.9
    assert (long["lower"].isna() | (long["lower"] <= long["loading"])).all()


def test_every_cell_is_scored_on_the_shared_programs_and_those_of_its_dataset(finished):
    root, _ = finished
    scores = layout.META_SCORES.read_table(root)
    assert len(scores) == 4 * N_CELLS
    table = layout.META_PROGRAMS.read_table(root)
    assert scores[list(table.index[:2])].notna().all().all()
    for meta in table.index[2:]:
        own = scores["dataset"] == table.at[meta, "datasets"]
        assert scores[meta].notna().equals(own)


def test_a_condition_is_compared_with_the_datasets_as_donors(finished):
    root, _ = finished
    table = layout.META_PROGRAMS.read_table(root)
    meta = table.index[table["label"] == "interferon"][0]
    first = layout.META_DONORS.read_table(root).iloc[0]
    assert (first["program"], first["condition"], first["design"], first["n_donors"]) == (meta, "yes", "paired", 4)
    assert first["effect"] > 1
    assert first["lower"] < first["effect"] < first["upper"]


def test_the_page_says_the_findings_first_and_needs_no_network(finished):
    root, _ = finished
    page = BeautifulSoup(layout.ACROSS_PAGE.at(root).read_text(), "html.parser")
    lines = [item.get_text() for item in page.find(id="summary").find_all("li")]
    assert lines[0].startswith(
        "The 4 datasets have 12 programs. 2 meta-programs are in two datasets or more, 2 of them"
    )
    assert any("interferon is higher in yes than in no" in line for line in lines)
    for name in ("presence", "network", "similarity", "effects"):
        assert page.find(id=f"fig-{name}")
        assert (layout.ACROSS_FIGURES.at(root) / f"{name}.svg").exists()
    for link in page.find_all("a", href=True):
        if link["href"].startswith("#"):
            assert page.find(id=link["href"][1:]), link
        elif not link["href"].startswith("../"):
            assert (layout.ACROSS_PAGE.at(root).parent / link["href"]).exists(), link


@pytest.mark.parametrize(("n_shared", "n_own", "words"), [(1, 2, "1 meta-program is"), (2, 1, "1 program is in one")])
def test_one_of_a_kind_is_said_in_the_singular(n_shared, n_own, words):
    names = [f"M{k + 1}" for k in range(n_shared + n_own)]
    has = ["a, b"] * n_shared + ["a"] * n_own
    table = pd.DataFrame({"datasets": has, "n_datasets": [len(each.split(", ")) for each in has]}, names)
    table = table.assign(shared=table["n_datasets"] > 1, label="")
    members = pd.DataFrame({"dataset": "a", "program": names, "meta": names, "label": ""})
    compared = SimpleNamespace(
        n_obs={"a": 9, "b": 9}, shared=table[table["shared"]], table=table, members=members, title=str
    )
    assert words in findings(compared)[0]


def test_a_dataset_without_a_condition_is_named():
    obs = pd.DataFrame(
        {"dataset": np.repeat(list("abcd"), 40), "stim": ["no", "yes"] * 80}, [str(i) for i in range(160)]
    )
    obs.loc[obs["dataset"] == "d", "stim"] = "no"
    scores = pd.DataFrame({"M1": np.random.default_rng(0).normal(size=160)}, obs.index)
    *_, left = contrasts(scores, obs, ["M1"], AcrossConfig(condition_key="stim"))
    assert left == ["Donor d has no yes cells: paired tests leave it out."]


def test_effects_beyond_those_told_and_cell_types_that_were_tested_are_said():
    row = {"program": "M1", "cell_type": "B cells", "condition": "b", "reference": "a", "effect": 1.0, "lower": 0.5}
    row |= {"upper": 1.5, "n_donors": 5, "design": "paired", "padj": 0.01}
    said = contrasts_in_words(SimpleNamespace(donors=pd.DataFrame([row] * 9), title=str))
    assert said[-1].startswith("1 more difference has an adjusted p")
    said = contrasts_in_words(SimpleNamespace(donors=pd.DataFrame([row | {"padj": 0.5}]), title=str))
    assert said == [
        "No meta-program differs between conditions at an adjusted p below 0.05 in B cells, the only cell type tested."
    ]


def test_the_index_leads_to_the_page_or_says_why_not(finished, tmp_path):
    root, _ = finished
    index(results=root, datasets=[])
    page = layout.INDEX.at(root).read_text()
    assert 'href="across/across.html"' in page
    assert "The 4 datasets have 12 programs" in page
    index(results=root, datasets=[], across=False)
    assert "across.html" not in layout.INDEX.at(root).read_text()
    write_datasets(tmp_path, 2)
    assert main(["across", "--results", str(tmp_path), "--datasets", "d0", "d5"]) == 2
    index(results=tmp_path, datasets=[])
    assert "has no results of &#39;d5&#39;" in layout.INDEX.at(tmp_path).read_text()


def test_gene_sets_and_summary_are_those_of_the_tables(finished):
    root, _ = finished
    sets = dict(line.split("\t")[::2][:2] for line in layout.META_GMT.at(root).read_text().splitlines())
    assert {"M1_positive", "M2_positive"} <= set(sets)
    summary = layout.ACROSS_SUMMARY.read(root)
    assert (summary["n_programs"], summary["n_shared"], summary["datasets"]) == (12, 2, ["d0", "d1", "d2", "d3"])


def test_stubs_are_written_for_every_file(tmp_path):
    command = ["across", "--stub", "--results", str(tmp_path), "--datasets", "a", "b"]
    assert main(command) == 0
    for file in layout.outputs("across"):
        assert file.at(tmp_path).exists(), file.path
    assert "--datasets a b" in json.loads(layout.ACROSS_SUMMARY.at(tmp_path).read_text())["stub"]


def test_cells_without_a_donor_are_left_out_as_elsewhere(finished, tmp_path, caplog):
    root, names = finished[0], ["d0", "d1", "d2"]
    for name in names:
        shutil.copytree(root / name, tmp_path / name)
        if name == "d2":
            continue  # without the column
        adata = ad.read_h5ad(layout.FILTERED.at(tmp_path / name))
        donor = np.array([f"p{i // 2 % 4}" for i in range(N_CELLS)], object)
        donor[:6], donor[6:12] = None, "unassigned"
        adata.obs["donor"] = donor
        adata.write_h5ad(layout.FILTERED.at(tmp_path / name))
    across(results=tmp_path, datasets=names, config=AcrossConfig(condition_key="stim", replicate_key="donor"))
    means = layout.META_DONOR_MEANS.read_table(tmp_path)
    assert set(means["donor"]) == {f"{name}: p{i}" for name in names[:2] for i in range(4)}
    assert (means["dataset"] == means["donor"].str.split(":").str[0]).all()
    assert "d2 has no obs column 'donor': conditions are compared without its cells." in caplog.text
    assert "d0: donor 'unassigned' (6 cells) is not the name of a donor" in caplog.text


def test_a_condition_that_the_models_correct_for_is_told(finished, tmp_path):
    for name in ("d0", "d1"):
        shutil.copytree(finished[0] / name, tmp_path / name)
        adata = ad.read_h5ad(layout.FILTERED.at(tmp_path / name))
        adata.uns["ldvae_qc"] = {"batch_key": "stim" if name == "d1" else ""}
        adata.write_h5ad(layout.FILTERED.at(tmp_path / name))
    across(results=tmp_path, datasets=["d0", "d1"], config=AcrossConfig(condition_key="stim"))
    (told,) = [line for line in layout.ACROSS_SUMMARY.read(tmp_path)["warnings"] if "which removes" in line]
    assert told.startswith("across.condition_key in d1: the model corrects for 'stim'")
    assert "across.condition_key in d1: the model corrects for" in layout.ACROSS_PAGE.at(tmp_path).read_text()


def test_mistakes_are_told(finished, monkeypatch):
    root, _ = finished
    with pytest.raises(InputError, match="expected two datasets or more, found d0"):
        across(results=root, datasets=["d0"])
    with pytest.raises(InputError, match="no obs column 'stimulus' in the datasets"):
        across(results=root, datasets=["d0", "d1"], config=AcrossConfig(condition_key="stimulus"))
    monkeypatch.setattr("ldvae.steps.across.score_cells", None)  # before any cell is scored
    with pytest.raises(InputError, match="no obs column 'person' in the datasets"):
        across(results=root, datasets=["d0", "d1"], config=AcrossConfig(replicate_key="person"))
    with pytest.raises(InputError, match="across: condition_key and cell_type_key both name 'stim'; name two columns"):
        across(results=root, datasets=["d0", "d1"], config=AcrossConfig(condition_key="stim", cell_type_key="stim"))


# ---------------------------------------------------------------- the config


@pytest.fixture
def split(tmp_path):
    obs = pd.DataFrame({"patient": np.repeat(["a", "b", "c"], 100), "stim": np.tile(["yes", "no"], 150)})
    obs.index = [f"cell{i}" for i in range(300)]
    adata = ad.AnnData(sparse.csr_matrix(np.ones((300, 5), np.float32)), obs=obs)
    adata.write_h5ad(tmp_path / "all.h5ad")
    return str(tmp_path / "all.h5ad")


def test_datasets_of_a_split_are_compared_unless_the_config_says_otherwise(split):
    datasets = {"t": {"input": split, "split_by": "patient"}, "other": split}
    plan = expand_checked({"datasets": datasets})
    assert plan.across.datasets == ["t-a", "t-b", "t-c"]
    assert describe(plan)["across"] == {"datasets": ["t-a", "t-b", "t-c"], "flags": ""}
    assert expand_checked({"datasets": datasets, "across": {"compare": []}}).across is None
    both = expand_checked({"datasets": datasets, "across": {"compare": ["other", "t"]}})
    assert both.across.datasets == ["other", "t-a", "t-b", "t-c"]
    everything = expand_checked({"datasets": datasets, "across": {"compare": ["all"], "condition_key": "stim"}})
    assert everything.across.datasets == ["t-a", "t-b", "t-c", "other"]
    assert describe(everything)["across"]["flags"] == "--condition-key stim"


def test_datasets_without_a_split_are_compared_when_they_are_named():
    datasets = {"a": "x.h5ad", "b": "y.h5ad"}
    assert expand_config({"datasets": datasets}).across is None
    assert expand_config({"datasets": datasets, "across": {"compare": ["all"]}}).across.datasets == ["a", "b"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"compare": ["a", "bb"]}, "across.compare: no dataset 'bb'. Did you mean 'b'?"),
        ({"compare": ["a"]}, "across.compare: expected two datasets or more, found a alone"),
        ({"min_similarity": 2}, "across.min_similarity: expected at most 1, found 2"),
        ({"n_latent": 2}, "across.n_latent: there is no such key here. It belongs to model"),
    ],
)
def test_mistakes_in_the_section_are_told(section, message):
    with pytest.raises(InputError) as caught:
        expand_config({"datasets": {"a": "x.h5ad", "b": "y.h5ad"}, "across": section})
    assert message in str(caught.value)


def test_a_dataset_cannot_have_the_name_of_the_comparison():
    with pytest.raises(InputError, match=r"datasets\.across: results/across holds the comparison"):
        expand_config({"datasets": {"across": "x.h5ad", "b": "y.h5ad"}, "across": {"compare": ["all"]}})


def test_a_column_that_a_dataset_lacks_is_told_before_the_run(split):
    config = {"datasets": {"t": {"input": split, "split_by": "patient"}}, "across": {"condition_key": "stimm"}}
    with pytest.raises(InputError, match=r"across\.condition_key: no obs column 'stimm'. Did you mean 'stim'"):
        expand_checked(config)
