"""The steps select, programs, project and simulate read what runs wrote and write the tables of the results."""

import copy
import json
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from ldvae.config import ProgramsConfig, ProjectConfig, SelectConfig, SimulateConfig
from ldvae.errors import InputError
from ldvae.io import read_table
from ldvae.simulate import simulate as draw
from ldvae.steps import programs as programs_step
from ldvae.steps.programs import programs
from ldvae.steps.project import project
from ldvae.steps.select import compare_fits, find, read_factors, read_programs, select
from ldvae.steps.simulate import simulate

# (n_latent, ELBO, its spread over seeds): 8 factors fit worst, 10 and 12 alike.
SETTINGS = {"k8-aaaaaa": (8, 425.0), "k10-bbbbbb": (10, 420.0), "k12-cccccc": (12, 419.9)}


def write_run(folder, made, n_latent, seed, elbo, setting, rng, **metrics):
    """A run as the step train leaves it: the true programs, as far as there is room, on arbitrary axes."""
    shared = min(n_latent, 8)
    z = np.hstack([made.scores.to_numpy()[:, :shared], rng.normal(size=(len(made.scores), n_latent - shared))])
    w = np.hstack([made.loadings.to_numpy()[:, :shared], 0.02 * rng.normal(size=(400, n_latent - shared))])
    mix = rng.normal(size=(n_latent, n_latent))
    path = folder / setting.replace("-", f"-s{seed}-")
    path.mkdir(parents=True)
    np.savez(
        path / "factors.npz",
        scores=((z + 0.1 * rng.normal(size=z.shape)) @ mix).astype(np.float32),
        loadings=(w + 0.03 * rng.normal(size=w.shape)) @ np.linalg.inv(mix).T,
        theta=made.theta,
        mean_expression=made.mean_expression,
        mean_total=2000.0,
        offset=np.log(made.mean_expression),
        cells=np.array(made.scores.index, dtype=np.str_),
        genes=np.array(made.loadings.index, dtype=np.str_),
    )
    written = {
        "run": path.name,
        "setting": setting,
        "seed": seed,
        "params": {"n_latent": n_latent, "lr": 0.01},
        "elbo_train": elbo - 5,
        "elbo_validation": elbo,
        "elbo_test": elbo + 0.1,
        "elbo_fitted": elbo - 4.5,
        "elbo_fitted_se": 2.0,
        "reconstruction_test": elbo - 10,
        "marginal_ll_test": -elbo + 2,
        "collapsed": 0,
        "epochs": 100,
        "stopped_early": False,
        "wall_s": 10.0,
        "cells_per_s": 1e4,
        "peak_memory_mb": 500.0,
        "device": "cpu",
    }
    (path / "metrics.json").write_text(json.dumps(written | metrics))
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Counts, run folders and the tables of select and programs of one made-up dataset."""
    root = tmp_path_factory.mktemp("results")
    made = draw("mixed", n_obs=500, n_vars=400, n_up=40, n_down=10, seed=0)
    adata = made.to_anndata()
    adata.obs["total_counts"] = np.asarray(made.counts.sum(axis=1)).ravel()
    adata.obs["donor"] = [f"D{i % 4}" for i in range(500)]
    adata.obs["condition"] = np.where(np.arange(500) % 8 < 4, "ctrl", "stim")
    adata.uns["ldvae_setup"] = {"batch_key": "batch"}
    (root / "setup").mkdir()
    adata.write_h5ad(root / "setup" / "counts.h5ad")
    # Measured, but not modeled: a gene of the first program; and a cell that setup left out.
    own = np.random.default_rng(1).poisson(2 * np.exp(made.scores.to_numpy()[:, 0]))
    measured = ad.AnnData(
        sparse.vstack([sparse.hstack([made.counts, own[:, None]]), np.ones((1, 401))], format="csr").astype(np.float32),
        pd.DataFrame(index=[*made.scores.index, "left_out"]),
        pd.DataFrame(index=[*made.loadings.index, "own"]),
    )
    (root / "qc").mkdir()
    measured[::-1].write_h5ad(root / "qc" / "filtered.h5ad")
    rng = np.random.default_rng(0)
    runs = []
    for setting, (n_latent, elbo) in SETTINGS.items():
        for seed in range(5):
            worse = 60 if (setting, seed) == ("k10-bbbbbb", 3) else 0
            value = elbo + worse + 0.2 * (seed - 2)
            runs.append(write_run(root / "runs", made, n_latent, seed, value, setting, rng))
    select(results=root, config=SelectConfig())
    members = [f"gene_{i}" for i in np.flatnonzero(made.loadings["identity_0"] > 0)]
    (root / "sets.gmt").write_text("\t".join(["TERM_0", "", *members]) + "\n")
    programs(
        results=root,
        config=ProgramsConfig(gene_sets=[str(root / "sets.gmt")], replicate_key="donor", condition_key="condition"),
    )
    return root, runs, made


def test_a_gene_that_was_not_modeled_has_its_effect(dataset):
    table = read_table(dataset[0] / "programs" / "all_genes.tsv.gz")
    assert table.groupby("program").size().unique().tolist() == [401]
    scores = read_table(dataset[0] / "programs" / "scores.tsv.gz", index="cell")
    with_own = scores.corrwith(dataset[2].scores["identity_0"].set_axis(scores.index)).idxmax()
    ranked = table[table["program"] == with_own]
    assert ranked["z"].abs().is_monotonic_decreasing
    assert ranked.loc[ranked["gene"] == "own", "z"].item() > 5


@pytest.fixture
def again(dataset, tmp_path):
    """The runs alone of that dataset, in a folder of their own."""
    shutil.copytree(dataset[0] / "runs", tmp_path / "again" / "runs")
    return tmp_path / "again"


@pytest.fixture(scope="module")
def compared():
    """Comparisons of fits, by runs and options: they do not depend on the rule, nor on what cells were held out."""
    return {}


@pytest.fixture
def compared_once(compared, monkeypatch):
    """The fits of a setting are compared once for all tests that look at the choice alone."""

    def once(factors, config):
        asked = *factors.runs, config.threshold, config.n_splits, config.seed
        if asked not in compared:
            compared[asked] = compare_fits(factors, config)
        return copy.deepcopy(compared[asked])

    monkeypatch.setattr("ldvae.steps.select.compare_fits", once)


def test_select_leaves_out_the_bad_fit_and_takes_the_fewest_factors_of_the_equally_good(dataset):
    root, _, _ = dataset
    best = json.loads((root / "select" / "best.json").read_text())
    assert best["setting"] == "k10-bbbbbb"
    assert best["outliers"] == ["k10-s3-bbbbbb"]
    assert best["runs"] == [f"k10-s{seed}-bbbbbb" for seed in (0, 1, 2, 4)]
    assert best["run"] == "k10-s0-bbbbbb"
    assert best["reproducible_rank"] == 8
    assert "within 2.10 nats of the best" in best["reason"]
    runs = read_table(root / "select" / "runs.tsv")
    assert len(runs) == 15
    assert runs.loc[runs["outlier"], "run"].tolist() == ["k10-s3-bbbbbb"]


def test_select_compares_settings_by_the_fits_it_keeps(dataset):
    settings = read_table(dataset[0] / "select" / "settings.tsv", index="setting")
    kept = 420.1 + 0.2 * (np.array([0, 1, 2, 4]) - 2)
    row = settings.loc["k10-bbbbbb"]
    np.testing.assert_allclose([row["elbo_test_mean"], row["elbo_test_se"]], [kept.mean(), kept.std(ddof=1) / 2])
    assert settings["chosen"].tolist() == [False, True, False]
    assert settings["reproducible_rank"].tolist() == [8, 8, 8]
    assert (settings["stability_mean"] > 0.95).all()
    correlations = read_table(dataset[0] / "select" / "correlations.tsv")
    assert correlations.groupby("setting")["rank"].max().to_dict() == {name: k for name, (k, _) in SETTINGS.items()}


@pytest.mark.thorough
@pytest.mark.usefixtures("compared_once")
def test_without_held_out_cells_settings_are_compared_by_the_training_cells(again):
    for path in (again / "runs").glob("*/metrics.json"):
        metrics = json.loads(path.read_text())
        path.write_text(json.dumps(metrics | {"elbo_test": None, "elbo_validation": None}))
    select(results=again, config=SelectConfig(rule="elbo"))
    assert "training ELBO" in json.loads((again / "select" / "best.json").read_text())["reason"]
    assert (again / "select" / "error.svg").exists()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({"rule": "elbo"}, "k12-cccccc"),
        ({"rule": "marginal_ll"}, "k12-cccccc"),
        ({"rule": "rank"}, "k8-aaaaaa"),
        ({"setting": "k12-cccccc"}, "k12-cccccc"),
    ],
)
@pytest.mark.usefixtures("compared_once")
def test_select_follows_the_rule_or_the_hand(again, options, chosen):
    select(results=again, config=SelectConfig(**options))
    assert json.loads((again / "select" / "best.json").read_text())["setting"] == chosen


def test_select_of_one_fit_says_that_no_rank_is_known(again):
    select(results=again, runs=["k8-s0-aaaaaa"], config=SelectConfig())
    best = json.loads((again / "select" / "best.json").read_text())
    assert best["reproducible_rank"] is None
    assert best["runs"] == ["k8-s0-aaaaaa"]
    assert len(read_table(again / "select" / "correlations.tsv")) == 0


@pytest.mark.thorough
def test_select_writes_the_same_figures_again(dataset, again):
    select(results=again, config=SelectConfig())
    for name in ("error.svg", "correlations.svg"):
        assert (again / "select" / name).read_bytes() == (dataset[0] / "select" / name).read_bytes()


def test_select_refuses_an_unknown_setting_and_runs_of_other_cells(again):
    with pytest.raises(InputError, match=r"'k9-dddddd' is not in the sweep\..* There are: k8-aaaaaa, k10-bbbbbb"):
        select(results=again, config=SelectConfig(setting="k9-dddddd"))
    other = draw("mixed", n_obs=100, n_vars=400, n_up=40, n_down=10, seed=1)
    write_run(again / "runs", other, 8, 9, 421.0, "k8-aaaaaa", np.random.default_rng(0))
    with pytest.raises(InputError, match="the cells of run k8-s9-aaaaaa differ"):
        select(results=again, config=SelectConfig())
    with pytest.raises(InputError, match="given twice"):
        select(results=again, runs=["k8-s0-aaaaaa"] * 2, config=SelectConfig())
    with pytest.raises(InputError, match=r"k9-s0-eeeeee/metrics\.json is not there .*`ldvae train` writes it"):
        select(results=again, runs=["k9-s0-eeeeee"], config=SelectConfig())
    with pytest.raises(InputError, match="holds no finished run to compare"):
        select(results=again / "empty", config=SelectConfig())


def test_programs_tables_agree_with_each_other(dataset):
    folder = dataset[0] / "programs"
    table = read_table(folder / "programs.tsv", index="program")
    loadings = read_table(folder / "loadings.tsv", index="gene")
    scores = read_table(folder / "scores.tsv.gz", index="cell")
    consensus = read_table(folder / "consensus.tsv")
    summary = json.loads((folder / "summary.json").read_text())
    assert list(table.index) == list(loadings.columns) == list(scores.columns)
    assert summary["n_programs"] == len(table) == 8
    assert summary["runs"] == [f"k10-s{seed}-bbbbbb" for seed in (0, 1, 2, 4)]
    assert summary["outliers"] == ["k10-s3-bbbbbb"]
    pivot = consensus.pivot(index="gene", columns="program", values="loading").loc[loadings.index, loadings.columns]
    np.testing.assert_allclose(pivot, loadings)
    assert set(read_table(folder / "stability.tsv")["run"]) == set(summary["runs"])
    assert (table["stability_min"] <= table["stability"]).all()
    assert (table["n_runs_found"] == 4).all()
    gmt = {line.split("\t")[0]: line.split("\t")[2:] for line in (folder / "programs.gmt").read_text().splitlines()}
    assert len(gmt["P1_positive"]) == table.loc["P1", "n_genes_positive"]
    assert gmt["P1_positive"][0] == table.loc["P1", "top_positive"].split(", ")[0]
    starcat = pd.read_csv(folder / "starcat.tsv", sep="\t", index_col=0)
    assert (starcat >= 0).all(axis=None)
    assert list(starcat.index[:2]) == ["P1_pos", "P1_neg"]


def test_programs_are_tested_against_gene_sets_and_named_after_their_cells(dataset):
    folder = dataset[0] / "programs"
    enrichment = read_table(folder / "enrichment.tsv")
    first = enrichment.sort_values("p").iloc[0]
    assert first["term"] == "TERM_0"
    assert first["library"] == "sets"
    table = read_table(folder / "programs.tsv", index="program")
    row = table.loc[first["program"]]
    assert row["label"].startswith("identity_0: gene_")  # a group of cells that fits this well goes before a term
    assert row["best_association"].startswith("identity = identity_0")
    associations = read_table(folder / "associations.tsv")
    assert set(associations.loc[associations["technical"], "variable"]) == {"batch", "total_counts"}


def test_columns_that_name_programs_count_as_cell_types(dataset, tmp_path, monkeypatch):
    """A program named after cell types of the column `louvain` was said to be of no known types."""
    follows = pd.Series("follows total_counts (r = 0.60)", [f"P{k}" for k in range(1, 30)])
    monkeypatch.setattr(programs_step, "technical_flags", lambda scores, *_, **__: follows[scores.columns])
    monkeypatch.setattr(programs_step, "FEW_GENES", 0)
    for variables, told in ((["identity"], False), (["condition"], True)):
        root = shutil.copytree(dataset[0], tmp_path / variables[0])
        programs(results=root, config=ProgramsConfig(variables=variables))
        flags = read_table(root / "programs" / "programs.tsv", index="program")["technical"]
        assert flags.str.contains("no cell types are known").all() == told


def test_conditions_are_compared_by_the_means_of_donors(dataset):
    folder = dataset[0] / "programs"
    means, compared = read_table(folder / "donor_means.tsv"), read_table(folder / "donors.tsv")
    assert (means.groupby("program").size() == 8).all()
    assert (means.groupby("program")["n_cells"].sum() == 500).all()
    assert (compared["n_donors"] == 4).all()
    assert compared["paired"].all()
    row = compared.iloc[0]
    own = means[means["program"] == row["program"]].pivot(index="donor", columns="condition", values="mean")
    np.testing.assert_allclose(row["effect"], (own["stim"] - own["ctrl"]).mean(), rtol=1e-4)


def test_donors_without_a_condition_are_named(dataset, tmp_path, caplog):
    root = shutil.copytree(dataset[0], tmp_path / "again")
    counts = ad.read_h5ad(root / "setup" / "counts.h5ad")
    counts.obs["condition"] = counts.obs["condition"].mask(counts.obs["donor"] == "D3", "ctrl")
    counts.write_h5ad(root / "setup" / "counts.h5ad")
    programs(results=root, config=ProgramsConfig(replicate_key="donor", condition_key="condition"))
    text = "Donor D3 has no stim cells: paired tests leave it out."
    assert json.loads((root / "programs" / "summary.json").read_text())["left_out"] == [text]
    assert text in caplog.text


def test_a_condition_that_the_model_corrects_for_is_told(dataset, tmp_path, caplog):
    root = shutil.copytree(dataset[0], tmp_path / "again")
    programs(results=root, config=ProgramsConfig(replicate_key="donor", condition_key="batch"))
    text = "programs.condition_key: the model corrects for 'batch', which removes the effect of 'batch'"
    assert text in caplog.text
    assert any(
        said.startswith(text) for said in json.loads((root / "programs" / "summary.json").read_text())["warnings"]
    )
    with pytest.raises(InputError, match="replicate_key and condition_key both name 'donor'; name two columns"):
        programs(results=root, config=ProgramsConfig(replicate_key="donor", condition_key="donor"))


def test_columns_that_are_not_there_are_refused_by_their_option(dataset):
    with pytest.raises(InputError) as caught:
        programs(results=dataset[0], config=ProgramsConfig(variables=["dooner"], condition_key="stim"))
    assert [line.partition(" There are")[0] for line in caught.value.args] == [
        "variables: no obs column 'dooner'. Did you mean 'donor'?",
        "condition_key: no obs column 'stim'.",
    ]


def test_projected_scores_are_those_of_the_programs(dataset):
    root, _, _ = dataset
    project(
        results=root,
        name="same",
        input=[str(root / "setup" / "counts.h5ad")],
        config=ProjectConfig(batch_key="batch"),
    )
    old = read_table(root / "programs" / "scores.tsv.gz", index="cell")
    new = read_table(root / "project" / "same" / "scores.tsv.gz", index="cell")
    assert list(new.index) == list(old.index)
    assert new.corrwith(old).min() > 0.85
    summary = json.loads((root / "project" / "same" / "summary.json").read_text())
    assert summary["n_found"] == 400
    assert summary["missing"] == []


def test_projection_says_which_genes_it_lacks(dataset, tmp_path):
    root, _, made = dataset
    made.to_anndata()[:50, 300:].write_h5ad(tmp_path / "few.h5ad")
    project(
        results=root,
        name="few",
        input=[str(tmp_path / "few.h5ad")],
        config=ProjectConfig(),
    )
    summary = json.loads((root / "project" / "few" / "summary.json").read_text())
    assert summary["missing"] == [f"gene_{g}" for g in range(300)]
    assert summary["n_found"] == 100
    assert any("its scores are uncertain" in warning for warning in summary["warnings"])


def test_projection_needs_a_finished_folder_and_a_known_gene_column(dataset, tmp_path):
    counts = [str(dataset[0] / "setup" / "counts.h5ad")]
    with pytest.raises(InputError, match=r"model\.npz is not there .*`ldvae programs` writes it"):
        project(results=tmp_path, name="other", input=counts, config=ProjectConfig())
    with pytest.raises(InputError, match="no var column 'symbol'"):
        project(results=dataset[0], name="other", input=counts, config=ProjectConfig(gene_column="symbol"))


def test_programs_are_found_once_for_the_default_rotation(dataset, tmp_path, monkeypatch):
    best = json.loads((dataset[0] / "select" / "best.json").read_text())
    anew = find(read_factors(dataset[0], best["runs"]), best["reproducible_rank"], best["threshold"])
    kept = read_programs(dataset[0] / "select" / "programs.npz")
    for name, value in vars(anew).items():
        if name == "correlations":  # of no rank, which was known
            assert len(getattr(kept, name)) == len(value) == 0
        elif isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(getattr(kept, name), value, check_exact=True, check_names=name != "cosines")
            strides = getattr(kept, name).to_numpy().strides  # by which the order of later sums, so their bits
            assert name == "table" or strides == value.to_numpy().strides
        else:
            np.testing.assert_array_equal(getattr(kept, name), value)

    class SearchedError(Exception):
        pass

    def search(*_):
        raise SearchedError

    root = shutil.copytree(dataset[0], tmp_path / "results")
    monkeypatch.setattr(programs_step, "find", search)
    programs(results=root, config=ProgramsConfig(n_top=5, technical=[]))
    with pytest.raises(SearchedError):
        programs(results=root, config=ProgramsConfig(n_starts=3))


def test_programs_refuse_missing_runs_and_files_that_are_no_gene_sets(dataset, tmp_path):
    root = shutil.copytree(dataset[0], tmp_path / "results")
    (tmp_path / "bad.gmt").write_text("TERM GENE1 GENE2\n")
    with pytest.raises(InputError, match="line 1 has 1 field; expected a term, a description and at least one gene"):
        programs(results=root, config=ProgramsConfig(gene_sets=[str(tmp_path / "bad.gmt")]))
    shutil.rmtree(root / "runs" / "k10-s0-bbbbbb")
    with pytest.raises(InputError, match=r"k10-s0-bbbbbb/factors\.npz is not there .*`ldvae train` writes it"):
        programs(results=root, config=ProgramsConfig())


def test_programs_refuse_counts_of_other_cells(dataset, tmp_path):
    results = shutil.copytree(dataset[0], tmp_path / "r")
    path = results / "setup" / "counts.h5ad"
    ad.read_h5ad(path)[7:].copy().write_h5ad(path)
    with pytest.raises(InputError, match=r"counts\.h5ad: lacks 7 of the 500 cells"):
        programs(results=results)


def test_the_step_simulate_writes_counts_with_their_truth(tmp_path):
    config = SimulateConfig(n_obs=40, n_vars=120, seed=3)
    simulate(output=tmp_path / "made.h5ad", config=config)
    adata = ad.read_h5ad(tmp_path / "made.h5ad")
    assert adata.shape == (40, 120)
    assert adata.obsm["X_programs"].shape == (40, 8)
    assert adata.uns["simulation"]["scenario"] == "mixed"
    assert (draw(n_obs=40, n_vars=120, seed=3).counts != adata.X).nnz == 0
