"""Which groups are compared, how contrasts are called, and that known changes are found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse
from threadpoolctl import threadpool_info, threadpool_limits

from ldvae.config import DeConfig
from ldvae.errors import InputError
from ldvae.io import read_table
from ldvae.model import LinearSCVI
from ldvae.programs import doubtful_replicates, known_donors
from ldvae.steps.de import (
    confirmed_first,
    de,
    distinct_names,
    find_contrasts,
    pseudobulk,
    sum_by_replicate,
    why_no_count,
    why_none,
)

GENES = [f"G{i}" for i in range(40)]
UP = GENES[:5]  # fourfold in stim, in both types


@pytest.fixture(scope="module")
def counts() -> AnnData:
    """240 cells: two types and a few without one, stim and ctrl of the same four donors."""
    rng = np.random.default_rng(0)
    n = 240
    obs = pd.DataFrame(
        {
            "type": pd.Categorical(np.where(np.arange(n) % 20 == 0, None, np.where(np.arange(n) % 3 == 0, "B/c", "T"))),
            "condition": np.where(np.arange(n) < 120, "stim", "ctrl"),
            "donor": np.arange(n) % 4,
            "rare": np.where(np.arange(n) < 3, "few", "many"),
        },
        [f"c{i}" for i in range(n)],
    )
    rate = rng.lognormal(1.5, 0.5, 40) * np.ones((n, 1)) * rng.lognormal(0, 0.2, (n, 1))
    rate[np.ix_(obs["condition"] == "stim", np.arange(5))] *= 4
    rate[np.ix_(obs["type"] == "B/c", np.arange(5, 10))] *= 5
    return AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)), obs, pd.DataFrame(index=GENES))


def contrasts_of(counts: AnnData, *entries: dict[str, str], **options: object) -> list[str]:
    return [c.name for c in find_contrasts(counts.obs, DeConfig(contrasts=list(entries), **options))]  # type: ignore[arg-type]


def test_entries_expand_to_contrasts(counts: AnnData) -> None:
    assert contrasts_of(counts, {"column": "type"}) == ["B/c vs rest", "T vs rest"]
    assert contrasts_of(counts, {"column": "type", "group2": "T"}) == ["B/c vs T"]
    assert contrasts_of(counts, {"column": "condition", "group1": "stim"}) == ["stim vs rest"]
    within = {"column": "condition", "group1": "stim", "group2": "ctrl", "within": "type"}
    assert contrasts_of(counts, within) == ["stim vs ctrl in B/c", "stim vs ctrl in T"]


def test_a_comparison_named_twice_is_made_once(counts: AnnData) -> None:
    twice = [{"column": "type"}, {"column": "type", "group1": "T"}, {"column": "type"}]
    assert contrasts_of(counts, *twice) == ["B/c vs rest", "T vs rest"]


def test_a_column_without_a_value_is_told(counts: AnnData, caplog: pytest.LogCaptureFixture) -> None:
    obs = counts.obs.assign(empty=pd.Series(np.nan, counts.obs_names, dtype=object))
    with pytest.raises(InputError, match="obs column 'empty' has no value in any cell"):
        find_contrasts(obs, DeConfig(contrasts=[{"column": "empty"}]))
    entries = [{"column": "type", "within": "empty"}, {"column": "type"}]
    assert [c.name for c in find_contrasts(obs, DeConfig(contrasts=entries))] == ["B/c vs rest", "T vs rest"]
    assert "obs column 'empty' has no value in any cell. The comparison is skipped." in caplog.text


def test_counts_of_another_quality_control_are_refused(tables: tuple[pd.DataFrame, Path], tmp_path: Path) -> None:
    results = shutil.copytree(tables[1].parent, tmp_path / "r")
    anndata.read_h5ad(results / "qc" / "filtered.h5ad")[:200].copy().write_h5ad(results / "qc" / "filtered.h5ad")
    with pytest.raises(
        InputError, match=r"filtered\.h5ad: lacks 41 of the 240 cells that are asked of it, e\.g\. c199"
    ):
        de(results=results, config=DeConfig(contrasts=[{"column": "type"}], n_samples=100))


def test_groups_that_yaml_reads_otherwise_are_found(counts: AnnData) -> None:
    counts.obs["cured"] = np.where(np.arange(counts.n_obs) % 2, "yes", "no")
    assert contrasts_of(counts, {"column": "cured", "group1": True, "group2": False}) == ["yes vs no"]  # type: ignore[dict-item]
    assert contrasts_of(counts, {"column": "donor", "group1": 1.0}) == ["1 vs rest"]  # type: ignore[dict-item]


def test_cells_without_a_value_are_in_no_group(counts: AnnData) -> None:
    (first, _) = find_contrasts(counts.obs, DeConfig(contrasts=[{"column": "type"}]))
    types = counts.obs["type"].to_numpy()
    assert set(types[first.rows1]) == {"B/c"}
    assert set(types[first.rows2]) == {"T"}
    assert len(first.rows1) + len(first.rows2) == counts.obs["type"].notna().sum()


def test_cells_of_unknown_type_are_no_group_and_not_in_the_rest(
    counts: AnnData, caplog: pytest.LogCaptureFixture
) -> None:
    """923 unlabeled T cells of Kang stood among those that CD4 T cells were compared with."""
    kinds = np.where(np.arange(counts.n_obs) % 4 == 0, "unlabeled", np.where(np.arange(counts.n_obs) % 2, "B", "T"))
    obs = counts.obs.assign(kind=pd.Categorical(kinds))
    found = find_contrasts(obs, DeConfig(contrasts=[{"column": "kind"}]))
    assert [contrast.name for contrast in found] == ["B vs rest", "T vs rest"]
    assert set(kinds[found[0].rows2]) == {"T"}
    n_unknown = (kinds == "unlabeled").sum()
    told = f"kind: 'unlabeled' says nothing about a cell. In no group, and not in the rest: {n_unknown} cells."
    assert told in caplog.text
    (named,) = find_contrasts(obs, DeConfig(contrasts=[{"column": "kind", "group1": "unlabeled"}]))
    assert set(kinds[named.rows2]) == {"B", "T"}
    within = {"column": "condition", "group1": "stim", "group2": "ctrl", "within": "kind"}
    inside = find_contrasts(obs, DeConfig(contrasts=[within]))
    assert [contrast.name for contrast in inside] == ["stim vs ctrl in B", "stim vs ctrl in T"]
    assert "Left out, as groups are not compared there: 60 cells." in caplog.text


def test_numbers_are_groups_by_their_text(counts: AnnData) -> None:
    (pair,) = find_contrasts(counts.obs, DeConfig(contrasts=[{"column": "donor", "group1": "1", "group2": "3"}]))
    assert set(counts.obs["donor"].iloc[pair.rows1]) == {1}
    assert set(counts.obs["donor"].iloc[pair.rows2]) == {3}


def test_small_groups_are_skipped_with_a_warning(counts: AnnData, caplog: pytest.LogCaptureFixture) -> None:
    assert contrasts_of(counts, {"column": "rare"}) == []
    assert "few vs rest is skipped: it has 3 and 237 cells, fewer than min_cells = 10." in caplog.text
    assert contrasts_of(counts, {"column": "rare"}, min_cells=3) == ["few vs rest", "many vs rest"]


def test_a_group_that_quality_control_removed_does_not_stop_the_other_comparisons(
    counts: AnnData, caplog: pytest.LogCaptureFixture
) -> None:
    entries = [{"column": "condition", "group1": "lost"}, {"column": "condition", "group1": "stim"}]
    (found,) = find_contrasts(counts.obs, DeConfig(contrasts=entries))
    assert found.name == "stim vs rest"
    assert "no group 'lost' in 'condition'" in caplog.text
    assert "The comparison is skipped." in caplog.text


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "There is nothing to compare; name contrasts"),
        ([{"columm": "type"}], r"columm: there is no such key\. Did you mean 'column'"),
        ([{"group1": "B"}], "names no column"),
        ([{"column": "tipe"}], r"no obs column 'tipe'\. Did you mean 'type'"),
        ([{"column": "condition", "group1": "stimm"}], r"no group 'stimm' in 'condition'\. Did you mean 'stim'"),
        ([{"column": "condition", "group2": "control"}], "no group 'control' in 'condition'"),
        ([{"column": "condition", "within": "tipe"}], "no obs column 'tipe'"),
        ([{"column": "condition", "group1": "stim", "group2": "stim"}], "compares a group with itself"),
        ([{"column": "others"}], "'others' has a group called 'rest', which here means all others; rename it"),
    ],
)
def test_contrasts_that_cannot_be_are_refused(entries: list[dict[str, str]], message: str, counts: AnnData) -> None:
    with pytest.raises(InputError, match=message):
        find_contrasts(counts.obs.assign(others="rest"), DeConfig(contrasts=entries))


def test_replicates_that_are_the_groups_compared_are_refused(tmp_path: Path) -> None:
    config = DeConfig(contrasts=[{"column": "type"}, {"column": "condition"}], replicate_key="condition")
    with pytest.raises(InputError, match=r"replicate_key and contrasts\[1\]\.column both name 'condition'; name two"):
        de(results=tmp_path, config=config)


def test_names_are_distinct_and_safe_as_files(counts: AnnData) -> None:
    obs = counts.obs.assign(kind=counts.obs["type"], odd=np.where(counts.obs["donor"] > 1, "../a b", "../A_B"))
    entries = [{"column": "type"}, {"column": "kind"}, {"column": "odd"}]
    names, stems = distinct_names(find_contrasts(obs, DeConfig(contrasts=entries)))
    assert names == [
        "B/c vs rest",
        "T vs rest",
        "kind: B/c vs rest",
        "kind: T vs rest",
        "../A_B vs rest",
        "../a b vs rest",
    ]
    assert stems == ["B_c_vs_rest", "T_vs_rest", "kind_B_c_vs_rest", "kind_T_vs_rest", "A_B_vs_rest", "a_b_vs_rest-2"]


@pytest.fixture(scope="module")
def tables(counts: AnnData, tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Path]:
    """contrasts.tsv and the folder of the step, with a model of a few epochs."""
    folder = tmp_path_factory.mktemp("de")
    counts = counts.copy()
    counts.obs["rare"] = ["few"] * 3 + ["many"] * (counts.n_obs - 3)
    counts.uns["ldvae_setup"] = {"batch_key": "", "categorical_covariate_keys": ["rare", "type"]}
    (folder / "setup").mkdir()
    (folder / "select").mkdir()
    counts.write_h5ad(folder / "setup" / "counts.h5ad")
    # Of what was measured, one gene was not chosen for the model, and one cell had no counts in the chosen genes.
    measured = sparse.hstack(
        [counts.X, sparse.csr_matrix((counts.obs["condition"] == "stim").to_numpy(np.float32)[:, None])]
    )
    measured = sparse.vstack([np.eye(1, 41, 40, dtype=np.float32), measured], format="csr")
    names = pd.DataFrame(index=["lost", *counts.obs_names])
    (folder / "qc").mkdir()
    AnnData(measured, names, pd.DataFrame(index=[*GENES, "not_modeled"])).write_h5ad(folder / "qc" / "filtered.h5ad")
    adata = counts.copy()
    LinearSCVI.setup_anndata(adata)
    model = LinearSCVI(adata, n_latent=3, n_hidden=32, seed=0)
    model.train(max_epochs=60, batch_size=32, plan_kwargs={"lr": 1e-2}, accelerator="cpu")
    model.save(folder / "runs" / "run" / "model")
    (folder / "select" / "best.json").write_text(json.dumps({"run": "run"}))
    entries = [{"column": "condition", "group1": "stim", "group2": "ctrl", "within": "type"}, {"column": "type"}]
    entries.append({"column": "rare", "group1": "few"})
    de(
        results=folder,
        config=DeConfig(contrasts=entries, replicate_key="donor", min_cells=5, n_samples=1000),
    )
    return read_table(folder / "de" / "contrasts.tsv"), folder / "de"


def test_each_contrast_has_its_files_and_numbers(tables: tuple[pd.DataFrame, Path]) -> None:
    contrasts, folder = tables
    assert contrasts["contrast"].tolist() == ["stim vs ctrl in B/c", "stim vs ctrl in T", "B/c vs rest", "T vs rest"]
    assert contrasts["within"].fillna("").tolist() == ["B/c", "T", "", ""]
    assert {path.name for path in folder.iterdir()} == {
        "contrasts.tsv",
        "summary.json",
        *contrasts["file"],
        *contrasts["file_all_genes"],
        *(file.replace(".tsv.gz", ".png") for file in contrasts["file"]),
    }
    told = json.loads((folder / "summary.json").read_text())["warnings"]
    assert len(told) == 3
    assert told[0].startswith("few vs rest is skipped: it has 3 and ")
    assert told[1].startswith("de.contrasts[1]: the model corrects for 'type', which removes the effect of 'type'")
    assert told[2].startswith("de.contrasts[2]: the model corrects for 'rare'")
    for _, row in contrasts.iterrows():
        table = read_table(folder / row["file"], index="gene")
        assert sorted(table.index) == sorted(GENES)
        assert table["is_de_fdr_0.05"].sum() == row["n_de"]
        assert table["proba_de"].is_monotonic_decreasing
        assert set(table["comparison"]) == {row["contrast"]}
        assert row["pseudobulk"]
        assert table["pseudobulk_padj"].between(0, 1).all()


def test_known_changes_are_found_with_their_direction(tables: tuple[pd.DataFrame, Path]) -> None:
    contrasts, folder = tables
    for file, expected in zip(contrasts["file"], (UP, UP, GENES[5:10], GENES[5:10]), strict=True):
        table = read_table(folder / file, index="gene")
        sign = -1 if file.startswith("T_vs") else 1
        assert set(table.index[:5]) == set(expected)
        assert (sign * table.loc[expected, "lfc_median"] > 0.5).all()
        assert (sign * table.loc[expected, "pseudobulk_lfc"] > 1).all()
        assert (table.loc[expected, "pseudobulk_padj"] < 1e-3).all()


def test_all_measured_genes_are_ranked_and_what_both_find_is_counted(tables: tuple[pd.DataFrame, Path]) -> None:
    contrasts, folder = tables
    for _, row in contrasts.iterrows():
        ranked = read_table(folder / row["file_all_genes"], index="gene")
        table = read_table(folder / row["file"], index="gene")
        assert sorted(ranked.index) == sorted([*GENES, "not_modeled"])
        assert ranked["called"].sum() == row["n_ranked"]
        assert table["both"].sum() == row["n_both"] >= 5
        assert row["n_both"] <= min(row["n_de"], row["n_pseudobulk"])
        assert (ranked["pseudobulk_padj"] < 0.05).sum() == row["n_pseudobulk"]
        first = (ranked["pseudobulk_padj"] < 0.05) & ranked["called"]
        assert first.iloc[: first.sum()].all(), "what both tests call comes first"
    stim = read_table(folder / contrasts["file_all_genes"][0], index="gene")
    assert "not_modeled" in stim.index[:6]
    assert stim.loc["not_modeled", ["auc", "detected1", "detected2"]].tolist() == [1, 1, 0]
    assert stim.loc["not_modeled", "pseudobulk_lfc"] > 1, "pseudobulks know the genes that the model does not"


def test_genes_that_cells_and_donors_agree_on_come_first_in_the_order_of_the_markers() -> None:
    """Not by the p values of pseudobulks: of abundant genes they are smallest, and of rare ones there are none."""
    columns = ["auc", "wilcoxon_padj", "pseudobulk_lfc", "pseudobulk_p", "pseudobulk_padj"]
    genes = {
        "one_donor": [0.95, 1e-50, 5, np.nan, np.nan],  # Cook's distance: one pseudobulk is an outlier
        "varies": [0.9, 1e-40, 1.5, 0.3, 0.5],
        "FCER1A": [0.56, 1e-30, np.nan, np.nan, np.nan],  # too few counts for pseudobulks
        "CCR7": [0.76, 1e-30, 0.7, 1e-6, 1e-5],
        "opposite": [0.7, 1e-20, -1, 1e-6, 1e-5],
        "RPS6": [0.7, 1e-20, 0.4, 1e-16, 1e-14],
        "rarer": [0.52, 1e-3, np.nan, np.nan, np.nan],
        "by_chance": [0.51, 0.4, 0.4, 1e-4, 1e-3],
    }
    ranked = pd.DataFrame.from_dict(genes, orient="index", columns=columns)
    found = confirmed_first(ranked, DeConfig())
    first = ["FCER1A", "CCR7", "RPS6"]
    assert list(found.index) == [*first, *(name for name in genes if name not in first)]
    nothing = ranked.assign(pseudobulk_padj=ranked["pseudobulk_padj"] + 0.5)
    assert list(confirmed_first(nothing, DeConfig()).index) == list(genes), "as without replicates"


def test_no_call_has_its_reason() -> None:
    table = pd.DataFrame({"is_de_fdr_0.05": [False, False], "proba_de": [0.7, 0.4]}, index=["IL7R", "ACTB"])
    assert "the likeliest change is that of IL7R, with a probability of 0.70" in why_none(table, DeConfig())
    assert why_none(table.assign(**{"is_de_fdr_0.05": True}), DeConfig()) == ""


def test_pseudobulk_pairs_donors_that_are_on_both_sides(counts: AnnData) -> None:
    """A donor effect that swamps the change is taken out where the donors are the same."""
    adata = counts.copy()
    x = adata.X.toarray()
    donor = adata.obs["donor"].to_numpy()
    x[:, 10] = (x[:, 10] + 1) * np.array([1, 20, 80, 300])[donor] * np.where(adata.obs["condition"] == "stim", 2, 1)
    adata.X = sparse.csr_matrix(x.astype(np.float32))
    config = DeConfig(contrasts=[{"column": "condition", "group1": "stim", "group2": "ctrl"}])
    (pair,) = find_contrasts(adata.obs, config)

    def test(replicates: np.ndarray) -> pd.DataFrame:
        keys = [adata.obs["condition"]]
        table, reason = pseudobulk(
            sum_by_replicate(adata, np.arange(adata.n_obs), replicates.astype(object), keys), pair, config
        )
        assert reason == ""
        assert table is not None
        return table

    paired = test(donor.astype(str))
    apart = test((donor + 4 * (adata.obs["condition"] == "stim")).to_numpy(str))
    assert paired.loc["G10", "pseudobulk_p"] < 0.01 < apart.loc["G10", "pseudobulk_p"]


def test_with_many_pairs_donors_are_not_in_the_design(counts: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 120 pairs DESeq2 took ten times as long, and called what does not differ."""
    config = DeConfig(contrasts=[{"column": "condition", "group1": "stim", "group2": "ctrl"}])
    (pair,) = find_contrasts(counts.obs, config)
    donors = counts.obs["donor"].astype(str).to_numpy(object)
    bulks = sum_by_replicate(counts, np.arange(counts.n_obs), donors, [counts.obs["condition"]])
    designs = []

    def takes(sums: pd.DataFrame, samples: pd.DataFrame, design: str, _: int) -> pd.DataFrame:
        designs.append((design, len(samples)))
        return pd.DataFrame(index=sums.columns)

    monkeypatch.setattr("ldvae.steps.de.deseq2", takes)
    pseudobulk(bulks, pair, config)
    monkeypatch.setattr("ldvae.steps.de.MOST_PAIRS", 3)
    pseudobulk(bulks, pair, config)
    assert designs == [("~replicate + side", 8), ("~side", 8)]


def test_sums_by_replicate_are_those_of_the_cells_and_cells_without_one_are_left_out(counts: AnnData) -> None:
    config = DeConfig(contrasts=[{"column": "condition", "group1": "stim", "group2": "ctrl", "within": "type"}])
    pair = find_contrasts(counts.obs, config)[1]
    donors = counts.obs["donor"].astype(str).to_numpy(object, copy=True)
    donors[:30] = None
    bulks = sum_by_replicate(counts, np.arange(counts.n_obs), donors, [counts.obs["condition"], counts.obs["type"]])
    for donor in "0123":
        cells = pair.rows1[donors[pair.rows1] == donor]
        assert len(cells)
        assert (bulks.part[:30] == -1).all()
        expected = np.asarray(counts.X[cells].sum(axis=0)).ravel()
        np.testing.assert_array_equal(bulks.sums[np.unique(bulks.part[cells])].sum(axis=0), expected)


def test_pseudobulks_are_fitted_on_one_thread_of_blas(counts: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads took four times the CPU time of one: the matrices of 50 donors are small."""
    from pydeseq2.default_inference import DefaultInference

    used = set()
    fit = DefaultInference.alpha_mle

    def alpha_mle(*args: object, **kwargs: object) -> object:
        used.update(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return fit(*args, **kwargs)

    monkeypatch.setattr(DefaultInference, "alpha_mle", alpha_mle)
    config = DeConfig(contrasts=[{"column": "condition", "group1": "stim"}], replicate_key="donor")
    (pair,) = find_contrasts(counts.obs, config)
    bulks = sum_by_replicate(counts, np.arange(counts.n_obs), counts.obs["donor"].to_numpy(), [counts.obs["condition"]])
    with threadpool_limits(2):
        assert pseudobulk(bulks, pair, config)[0] is not None
    assert used == {1}


@pytest.mark.thorough
def test_pseudobulks_are_the_same_in_two_processes(counts: AnnData) -> None:
    config = DeConfig(contrasts=[{"column": "condition", "group1": "stim"}], replicate_key="donor")
    (pair,) = find_contrasts(counts.obs, config)
    bulks = sum_by_replicate(counts, np.arange(counts.n_obs), counts.obs["donor"].to_numpy(), [counts.obs["condition"]])
    one, two = (pseudobulk(bulks, pair, config, threads)[0] for threads in (1, 2))
    assert one is not None
    pd.testing.assert_frame_equal(one, two)


def test_without_two_replicates_there_is_no_pseudobulk(counts: AnnData, caplog: pytest.LogCaptureFixture) -> None:
    config = DeConfig(contrasts=[{"column": "condition", "group1": "stim", "group2": "ctrl"}])
    (pair,) = find_contrasts(counts.obs, config)
    replicates = counts.obs["condition"].to_numpy(object)
    bulks = sum_by_replicate(counts, np.arange(counts.n_obs), replicates, [counts.obs["condition"]])
    table, reason = pseudobulk(bulks, pair, config)
    assert table is None
    assert "no pseudobulk test, with 1 and 1 replicates of at least 10 cells; it needs 2." in reason
    assert reason in caplog.text


def test_tests_of_the_counts_say_why_they_call_no_gene() -> None:
    ranked = pd.DataFrame({"called": [False] * 2, "auc": [0.55, 0.47], "wilcoxon_padj": [0.01, 0.2]}, ["IL7R", "ACTB"])
    assert "1 of 2 have an adjusted p below 0.05, but the largest AUC is that of IL7R, 0.55" in why_no_count(
        ranked, DeConfig()
    )
    assert "smallest adjusted p is that of ACTB, 0.2" in why_no_count(ranked.iloc[1:], DeConfig())
    bulk = ranked.assign(called=True, pseudobulk_padj=[0.4, np.nan])
    assert "The pseudobulk test calls no gene: the smallest adjusted p is that of IL7R, 0.4." in why_no_count(
        bulk, DeConfig()
    )
    assert why_no_count(bulk.assign(pseudobulk_padj=0.01), DeConfig()) == ""


def test_replicates_that_are_no_donors_are_named() -> None:
    names = pd.Series(["101", "doublet_or_unknown", "Nathan", "NA", "Unna", "unassigned-2"])
    told = " ".join(doubtful_replicates(names, "donor"))
    assert [name for name in names if repr(name) in told] == ["doublet_or_unknown", "NA", "unassigned-2"]
    assert "donor 'unassigned-2' (1 cell) reads like" in told
    assert known_donors(names).dropna().tolist() == ["101", "Nathan", "Unna", "unassigned-2"]
