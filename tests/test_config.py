"""A config expands to the same runs whatever its order, and all its mistakes are found at once."""

import gzip
import json
import re
import sys
import tomllib
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import yaml
from matrix_market import write_matrix

from ldvae.config import (
    SECTIONS,
    TRAINING_VERSION,
    DeConfig,
    ModelConfig,
    QcConfig,
    Run,
    SweepConfig,
    TrainConfig,
    commented_config,
    describe,
    expand_checked,
    expand_config,
    flags,
    load_config,
    read_header,
    resolved,
    runs_table,
    schema,
)
from ldvae.config.checks import find_problems
from ldvae.config.inputs import input_files, staged_input
from ldvae.errors import InputError
from ldvae.likelihoods import LIKELIHOODS

ROOT = Path(__file__).parents[1]


def runs_of(**sections):
    plan = expand_config({"datasets": {"a": {"input": "counts.h5ad"}}, **sections})
    return plan.datasets["a"].runs


@pytest.fixture
def counts(tmp_path):
    obs = pd.DataFrame(
        {
            "donor": pd.Categorical(["d1", "d2"] * 3, categories=["d1", "d2", "never"]),
            "condition": ["stim", "ctrl"] * 3,
            "age": np.arange(6.0),
        },
        index=[f"c{i}" for i in range(6)],
    )
    adata = anndata.AnnData(np.ones((6, 4), dtype=np.float32), obs=obs, layers={"counts": np.ones((6, 4))})
    adata.write_h5ad(tmp_path / "counts.h5ad")
    return tmp_path / "counts.h5ad"


# ---------------------------------------------------------------- runs


def test_a_grid_and_points_make_every_setting_once_from_every_seed():
    sweep = {
        "seeds": [0, 1],
        "grid": {"n_latent": [5, 10], "lr": [0.01]},
        "points": [{"n_latent": 5}, {"n_hidden": 64}],
    }
    runs = runs_of(sweep=sweep)
    assert len(runs) == 6  # (5, 0.01) is also a point: 0.01 is the default
    assert {(run.model.n_latent, run.model.n_hidden, run.seed) for run in runs.values()} == {
        (k, h, s) for k, h in [(5, 128), (10, 128), (14, 64)] for s in (0, 1)
    }


def test_runs_of_one_setting_share_its_hash_and_differ_in_the_seed():
    runs = list(runs_of(sweep={"seeds": [0, 7]}).values())
    assert runs[0].setting == runs[1].setting
    assert [run.id for run in runs] == [runs[0].setting.replace("-", f"-s{seed}-", 1) for seed in (0, 7)]


def test_a_new_value_adds_runs_and_renames_none():
    before = runs_of(sweep={"seeds": [0, 1], "grid": {"n_latent": [10]}})
    after = runs_of(sweep={"seeds": [0, 1, 2], "grid": {"n_latent": [8, 10]}})
    assert set(before) < set(after)
    assert len(after) == 6


def test_a_run_id_depends_on_values_not_on_how_they_are_written():
    assert set(runs_of(train={"lr": "1e-2"})) == set(runs_of(train={"lr": 0.01})) == set(runs_of())
    assert set(runs_of(train={"lr": 0.02})) != set(runs_of())


def test_points_are_added_to_the_default_setting():
    runs = runs_of(sweep={"seeds": [0], "points": [{"n_latent": 12}]}, train={"lr": 0.02})
    assert [(run.model.n_latent, run.train.lr) for run in runs.values()] == [(14, 0.02), (12, 0.02)]


def test_an_option_that_is_added_renames_no_run(monkeypatch):
    class LaterConfig(TrainConfig):
        momentum: float = 0.9

    before = Run(ModelConfig(n_latent=12), TrainConfig(lr=0.02), 3)
    assert before._replace(train=LaterConfig(lr=0.02)).id == before.id
    assert before._replace(train=LaterConfig(lr=0.02, momentum=0.8)).id != before.id
    known = before.id
    monkeypatch.setattr("ldvae.config.plan.TRAINING_VERSION", TRAINING_VERSION + 1)
    assert before.id != known


DEFAULTS_OF_VERSION = {  # of TRAINING_VERSION: a run's id says nothing of values that are the default
    2: {
        "n_latent": 10,
        "n_hidden": 128,
        "n_layers": 1,
        "dropout_rate": 0.1,
        "gene_likelihood": "nb",
        "dispersion": "gene",
        "use_observed_lib_size": False,
        "latent_distribution": "normal",
        "use_batch_norm": True,
        "bias": False,
        "log_variational": True,
        "max_epochs": None,
        "batch_size": 128,
        "lr": 0.01,
        "beta2": 0.99,
        "eps": 0.01,
        "weight_decay": 1e-6,
        "schedule": "cosine",
        "kl_warmup": 0.25,
        "start_at_mean": False,
        "early_stopping": True,
        "patience": 45,
        "min_delta": 0.0,
    }
}


def test_a_changed_default_raises_the_training_version():
    now = Run(ModelConfig(), TrainConfig(), 0).params
    recorded = DEFAULTS_OF_VERSION[TRAINING_VERSION]
    assert {name: now.get(name) for name in recorded} == recorded, "raise TRAINING_VERSION and record its defaults"
    assert Run(ModelConfig(), TrainConfig(), 0).id == "k10-s0-4a1779"


def test_the_default_number_of_factors_is_in_the_ids_and_the_flags_of_runs():
    """The default was 10: runs of either number keep their ids, and Snakemake, which compares flags, repeats none."""
    unnamed, named, former = (runs_of(model=model) for model in ({}, {"n_latent": 14}, {"n_latent": 10}))
    assert unnamed == named
    for runs, factors in ((named, 14), (former, 10)):
        assert runs == {run.id: run for run in (Run(ModelConfig(n_latent=factors), TrainConfig(), s) for s in range(5))}
    assert [flags(run.model) for run in (unnamed | former).values()] == [["--n-latent", "14"]] * 5 + [[]] * 5


def test_results_of_the_former_default_are_not_left_behind_in_silence(tmp_path):
    def told(outdir: Path, **model) -> list[str]:
        plan, problems = find_problems(
            {"outdir": str(outdir), "datasets": {"a": "demo:pbmc68k"}, "sweep": {"seeds": [0]}, "model": model}
        )
        assert not problems
        return [note for note in plan.notes if "was the default" in note]

    for name, factors in (("former", 10), ("now", 14)):
        run = Run(ModelConfig(n_latent=factors), TrainConfig(), 0)
        (tmp_path / name / "results" / "a" / "runs" / run.id).mkdir(parents=True)
    [note] = told(tmp_path / "former")
    assert "`model: {n_latent: 10}`" in note
    assert not told(tmp_path / "former", n_latent=14)
    assert not told(tmp_path / "former", n_latent=10)
    assert not told(tmp_path / "former", n_hidden=64)
    assert not told(tmp_path / "now")
    assert not told(tmp_path / "none")


@pytest.mark.parametrize("section", [name for name in SECTIONS if name not in ("model", "train", "sweep")])
def test_options_of_other_steps_do_not_change_run_ids(section):
    number, value = next((name, value) for name, value in SECTIONS[section]() if type(value) in (int, float))
    assert set(runs_of(**{section: {number: value / 2 if isinstance(value, float) else value + 1}})) == set(runs_of())


def test_model_and_training_options_have_different_names():
    assert not ModelConfig.model_fields.keys() & TrainConfig.model_fields.keys()


def test_a_dataset_overrides_single_options_of_any_section():
    config = {
        "datasets": {"a": {"input": "x.h5ad", "model": {"n_latent": 20}}, "b": "y.h5ad"},
        "model": {"n_latent": 5, "n_hidden": 64},
    }
    plan = expand_config(config)
    assert (plan.datasets["a"].model.n_latent, plan.datasets["a"].model.n_hidden) == (20, 64)
    assert plan.datasets["b"].model.n_latent == 5


def test_several_inputs_are_named_after_their_files_or_by_the_config():
    plan = expand_config({"datasets": {"a": ["x/one.h5ad", "x/two.csv.gz"], "b": {"input": {"d1": "p", "d2": "q"}}}})
    assert plan.datasets["a"].inputs == {"one": "x/one.h5ad", "two": "x/two.csv.gz"}
    assert plan.datasets["b"].inputs == {"d1": "p", "d2": "q"}


@pytest.mark.parametrize("given", [["demo:pbmc68k", "x.h5ad"], {"a": "demo:pbmc68k", "b": "demo:pbmc68k"}])
def test_the_embedded_data_stand_alone(given):
    assert len(expand_config({"datasets": {"a": ["demo:pbmc68k"]}}).datasets["a"].inputs) == 1
    with pytest.raises(InputError, match="cannot be one of several inputs"):
        expand_config({"datasets": {"a": {"input": given}}})


def test_how_jobs_run_is_no_part_of_the_options_of_the_results():
    (dataset,) = expand_config({"datasets": {"a": "x.h5ad"}, "compute": {"threads": 4}}).datasets.values()
    assert list(resolved(dataset)) == [section for section in SECTIONS if section != "compute"]


def test_other_cells_are_projected_by_path_or_with_options():
    project = {"b": "b.h5ad", "c": {"input": ["x.h5ad", "y.h5ad"], "batch_key": "donor"}}
    projections = expand_config({"datasets": {"a": {"input": "x.h5ad", "project": project}}}).datasets["a"].projections
    assert projections["b"].inputs == {"": "b.h5ad"}
    assert projections["c"].inputs == {"x": "x.h5ad", "y": "y.h5ad"}
    assert flags(projections["c"].project) == ["--batch-key", "donor"]


@pytest.mark.parametrize(
    ("project", "message"),
    [
        ("b.h5ad", "project: expected `name: path`"),
        ({"b": {}}, "project.b.input: expected a path"),
        (
            {"b": {"input": "b.h5ad", "batch": "donor"}},
            "project.b.batch: there is no such key. Did you mean 'batch_key'",
        ),
    ],
)
def test_a_projection_that_cannot_be_is_refused(project, message):
    with pytest.raises(InputError, match=re.escape(message)):
        expand_config({"datasets": {"a": {"input": "x.h5ad", "project": project}}})


def test_the_table_of_runs_has_a_row_for_each_run_and_a_column_for_each_parameter(tmp_path):
    plan = expand_config({"datasets": {"a": "x.h5ad"}, "sweep": {"seeds": [3, 4]}})
    (tmp_path / "runs.tsv").write_text(runs_table(plan.datasets["a"]))
    table = pd.read_csv(tmp_path / "runs.tsv", sep="\t")
    assert list(table["run"]) == list(plan.datasets["a"].runs)
    names = [*ModelConfig.model_fields, *TrainConfig.model_fields]
    assert list(table.columns) == ["run", "setting", "seed", *names]


def test_a_plan_is_plain_json():
    plan = expand_config({"datasets": {"a": "x.h5ad"}, "de": {"contrasts": [{"column": "cell type"}]}})
    assert json.loads(json.dumps(describe(plan)))["datasets"][0]["dataset"] == "a"


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("cls", "name", "value", "expected"),
    [
        (TrainConfig, "lr", "1e-3", 1e-3),
        (TrainConfig, "lr", 3, 3.0),
        (TrainConfig, "max_epochs", "4", 4),
        (TrainConfig, "max_epochs", "none", None),
        (TrainConfig, "max_epochs", "~", None),
        (TrainConfig, "batch_size", "1e2", 100),
        (ModelConfig, "n_latent", 7.0, 7),
        (ModelConfig, "n_latent", np.int64(7), 7),
        (ModelConfig, "dropout_rate", np.float32(0.5), 0.5),
        (ModelConfig, "bias", "true", True),
        (QcConfig, "layer", 5, "5"),
        (QcConfig, "n_mads", "NULL", None),
        (QcConfig, "doublets", False, "off"),
        (QcConfig, "mt_genes", ["MT-1", 2], ["MT-1", "2"]),
        (DeConfig, "contrasts", None, []),
        (DeConfig, "contrasts", [{"column": 1, "group1": True}], [{"column": "1", "group1": "True"}]),
        (SweepConfig, "seeds", ["1", 2.0], [1, 2]),
        (SweepConfig, "grid", {"lr": ["1e-3"], "n_latent": ["5"]}, {"lr": [1e-3], "n_latent": [5]}),
        (
            SweepConfig,
            "points",
            [{"schedule": "cosine", "batch_size": 64.0}],
            [{"schedule": "cosine", "batch_size": 64}],
        ),
    ],
)
def test_values_become_what_the_option_is(cls, name, value, expected):
    found = getattr(cls(**{name: value}), name)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("cls", "name", "value", "message"),
    [
        (ModelConfig, "n_latent", "ten", "n_latent: expected a whole number, found 'ten'."),
        (ModelConfig, "n_latent", 1.5, "n_latent: expected a whole number, found 1.5."),
        (ModelConfig, "n_latent", True, "n_latent: expected a whole number, found True."),
        (ModelConfig, "n_latent", None, "n_latent: expected a whole number, found None."),
        (TrainConfig, "lr", float("nan"), "lr: expected a number, found nan."),
        (TrainConfig, "lr", "inf", "lr: expected a number, found inf."),
        (TrainConfig, "patience", 0, "patience: expected at least 1, found 0."),
        (ModelConfig, "dropout_rate", 1, "dropout_rate: expected less than 1, found 1."),
        (ModelConfig, "bias", "maybe", "bias: expected true or false, found 'maybe'."),
        (ModelConfig, "bias", 1, "bias: expected true or false, found 1."),
        (
            ModelConfig,
            "gene_likelihood",
            "nbb",
            f"gene_likelihood: expected one of {', '.join(LIKELIHOODS)}, found 'nbb'.",
        ),
        (QcConfig, "mt_genes", "MT-1", "mt_genes: expected a list, found 'MT-1'."),
        (QcConfig, "layer", [1], "layer: expected text, found [1]."),
        (SweepConfig, "seeds", [], "seeds: expected at least 1 value, found []."),
        (SweepConfig, "seeds", None, "seeds: expected at least 1 value, found []."),
        (SweepConfig, "seeds", [0, -1], "seeds[1]: expected at least 0, found -1."),
        (SweepConfig, "grid", {"lr": []}, "grid.lr: expected at least 1 value, found []."),
        (SweepConfig, "grid", {"lr": [0]}, "grid.lr: expected more than 0, found 0"),
        (SweepConfig, "points", [{"n_mads": 3}], "points.n_mads: there is no such key here. It belongs to qc."),
        (DeConfig, "contrasts", [{"group1": "a"}], "contrasts[0]: {'group1': 'a'} names no column."),
    ],
)
def test_a_wrong_value_is_refused_with_what_was_expected(cls, name, value, message):
    with pytest.raises(InputError, match=re.escape(message)):
        cls(**{name: value})


@pytest.mark.parametrize("section", SECTIONS)
def test_flags_are_empty_for_the_defaults(section):
    assert flags(SECTIONS[section]()) == []


def test_flags_name_what_differs():
    options = ModelConfig(n_latent=20, use_batch_norm=False, gene_likelihood="zinb")
    assert flags(options) == ["--n-latent", "20", "--gene-likelihood", "zinb", "--no-use-batch-norm"]


def test_what_yaml_makes_of_a_group_without_quotes_is_said():
    contrasts = [{"column": "stage", "group1": 7, "group2": "yes"}, {"column": "on", "group1": True}]
    plan = expand_config({"datasets": {"a": "x.h5ad", "b": "y.h5ad"}, "de": {"contrasts": contrasts}})
    assert plan.datasets["a"].de.contrasts[1]["group1"] == "True"
    assert [note.split(": ", 1)[0] for note in plan.notes] == ["de.contrasts[0].group1", "de.contrasts[1].group1"]
    assert "YAML reads it as True, taken as the group 'True'" in plan.notes[1]


# ---------------------------------------------------------------- mistakes


def test_all_mistakes_of_a_config_are_in_one_message_with_the_nearest_names():
    config = {
        "datasets": {"a": {"input": "x.h5ad", "qc": {"min_gene": 3}, "batch_key": "d"}, "b/c": {"inptu": "y"}},
        "moddel": {},
        "train": {"lr": -1, "schedule": "cosin"},
        "sweep": {"grid": {"n_latnet": [3]}},
        "de": {"contrasts": [{"colum": "cell_type"}]},
    }
    with pytest.raises(InputError) as caught:
        expand_config(config)
    message = str(caught.value)
    for part in (
        "moddel: there is no such key. Did you mean 'model'",
        "datasets.a.qc.min_gene: there is no such key. Did you mean 'min_genes'",
        "datasets.a.batch_key: there is no such key here. It belongs to setup.",
        "datasets.b/c: a dataset's name",
        "datasets.b/c.inptu: there is no such key. Did you mean 'input'",
        "datasets.b/c.input: expected a path",
        "train.lr: expected more than 0, found -1",
        "train.schedule: expected one of constant, cosine, plateau, found 'cosin'",
        "de.contrasts[0].colum: there is no such key. Did you mean 'column'",
        "de.contrasts[0]: {'colum': 'cell_type'} names no column",
        "sweep.grid.n_latnet: there is no such key. Did you mean 'n_latent'",
    ):
        assert part in message
    assert message.count("train.lr") == 1  # once, not once for each dataset


@pytest.mark.parametrize("config", [{}, {"datasets": None}, {"datasets": {}}, {"datasets": ["a"]}])
def test_a_config_without_datasets_says_how_to_name_one(config):
    with pytest.raises(InputError, match="datasets: expected at least one"):
        expand_config(config)


def test_an_empty_section_means_the_defaults():
    assert set(runs_of(model=None, qc=None)) == set(runs_of())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("- a", "holds list"),
        ("", "is empty; expected the keys"),
        ("datasets:\n  no: x.h5ad\n", "YAML does not read the name no in line 2 as text; put it in quotes"),
        ("datasets:\n  a: {}\n  b: {}\n  a: {}\n", "a occurs twice in one mapping, in lines 2 and 4"),
    ],
)
def test_a_config_file_that_is_none_is_refused(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_config(tmp_path / "config.yaml")


def test_names_that_the_data_do_not_have_are_found_with_the_nearest_ones(counts):
    config = {
        "datasets": {"a": {"input": str(counts)}, "gone": str(counts.with_name("gone.h5ad"))},
        "qc": {"layer": "count", "obs_table": None},
        "setup": {"batch_key": "doner", "continuous_covariate_keys": ["age", "agee"]},
        "de": {
            "replicate_key": "donor",
            "contrasts": [
                {"column": "condition", "group1": "stin", "group2": "ctrl", "within": "cel_type"},
                {"column": "leiden"},
                {"column": "donor", "group1": "never"},
            ],
        },
    }
    with pytest.raises(InputError) as caught:
        expand_checked(config)
    message = str(caught.value)
    for part in (
        "a.qc.layer: no layer 'count' in ",
        "Did you mean 'counts'",
        "a.setup.batch_key: no obs column 'doner'. Did you mean 'donor'",
        "a.setup.continuous_covariate_keys: no obs column 'agee'. Did you mean 'age'",
        "a.de.contrasts[0]: no group 'stin' in 'condition'. Did you mean 'stim'",
        "a.de.contrasts[0]: no obs column 'cel_type'",
        "a.de.contrasts[2]: no group 'never' in 'donor'",
        "a.de: replicate_key and contrasts[2].column both name 'donor'",
        "gone.h5ad is not there",
    ):
        assert part in message
    assert message.count("\n- ") == 9


@pytest.fixture
def odd(tmp_path):
    """Columns as they come: with missing and infinite values, numbers as groups, text as numbers."""
    n = 40
    obs = pd.DataFrame(
        {
            "donor": ["d1", "d2", None, "d1"] * 10,
            "response": [0.0, 1.0, np.nan, 1.0] * 10,
            "level": pd.Categorical([1.0, 2.0] * 20),
            "score": np.linspace(0, 1, n),
            "age": [np.inf, 30.0] * 20,
            "dose": ["low", "high"] * 20,
            "factor": [0.0, 1.0] * 20,
            "only": ["a"] * n,
            "kind": ["rest", "b"] * 20,
            "cured": ["yes", "no"] * 20,
        },
        index=[f"c{i}" for i in range(n)],
    )
    adata = anndata.AnnData(np.ones((n, 30), dtype=np.float32), obs=obs)
    adata.var_names = [f"GENE{i}" for i in range(30)]
    adata.write_h5ad(tmp_path / "odd.h5ad")
    (tmp_path / "mouse.gmt").write_text("set\t\tGene1\tGene2\n")
    (tmp_path / "fits.gmt").write_text("\ufeffset\t\tGENE1\tGene2\n")
    (tmp_path / "short.gmt").write_text("set\tGENE1\n")
    (tmp_path / "empty.gmt").touch()
    (tmp_path / "genes.txt").write_text("Gene1\nGene2\n")
    (tmp_path / "one_line.txt").write_text("GENE1,GENE2\n")
    (tmp_path / "page.gmt").write_text("<!DOCTYPE html>\n")
    (tmp_path / "sets.json").write_text('{"set": 3}')
    return tmp_path


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"setup": {"batch_key": "donor"}}, "setup.batch_key: obs column 'donor' has no value for 10 of 40 cells"),
        ({"setup": {"stratify_by": "donor"}}, "setup.stratify_by: obs column 'donor' has no value for 10"),
        ({"setup": {"categorical_covariate_keys": ["donor"]}}, "categorical_covariate_keys: obs column 'donor' has no"),
        ({"setup": {"continuous_covariate_keys": ["response"]}}, "covariate_keys: obs column 'response' has no value"),
        ({"setup": {"continuous_covariate_keys": ["dose"]}}, "obs column 'dose' must hold numbers, found 'low'"),
        ({"setup": {"continuous_covariate_keys": ["age"]}}, "obs column 'age' is infinite in 20 of 40 cells"),
        ({"setup": {"size_factor_key": "factor"}}, "size_factor_key: obs column 'factor' must be above zero, found 0"),
        ({"setup": {"labels_key": "score"}}, "setup.labels_key: obs column 'score' has 40 values for 40 cells"),
        ({"setup": {"keep_genes": ["GENE3", "Gene4"]}}, "setup.keep_genes: 'Gene4' not among the 30 genes"),
        ({"setup": {"genes": "list", "gene_list": "genes.txt"}}, "gene_list: none of the 2 genes of genes.txt"),
        ({"setup": {"genes": "list"}}, "setup.gene_list: `genes: list` needs the path of a file"),
        ({"setup": {"gene_list": "genes.txt"}}, "setup.gene_list: `genes: seurat_v3` reads no list"),
        (
            {"setup": {"validation_size": 0.6, "test_size": 0.5}},
            "validation_size and test_size together are 1.1",
        ),
        ({"programs": {"gene_sets": ["mouse.gmt"]}}, "gene_sets: none of the 2 genes of mouse.gmt (such as 'Gene1'"),
        ({"programs": {"gene_sets": ["empty.gmt"]}}, "programs.gene_sets: empty.gmt names no gene."),
        (
            {"de": {"contrasts": [{"column": "cured", "group1": "yes", "group2": True}]}},
            "compares a group with itself",
        ),
        ({"programs": {"gene_sets": ["short.gmt"]}}, "programs.gene_sets: short.gmt: line 1 has 2 fields"),
        ({"programs": {"variables": ["sex"]}}, "programs.variables: no obs column 'sex'"),
        ({"programs": {"variables": ["leiden"]}}, "programs.variables: no obs column 'leiden'"),  # made after programs
        ({"report": {"groupby": ["doner"]}}, "report.groupby: no obs column 'doner'. Did you mean 'donor'"),
        ({"de": {"contrasts": [{"column": "response", "group1": "yes"}]}}, "no group 'yes' in 'response'"),
        (
            {"de": {"contrasts": [{"column": "response", "group1": "2"}]}},
            "no group '2' in 'response'. There are: 0, 1",
        ),
        (
            {"de": {"contrasts": [{"column": "score"}]}},
            "contrasts[0]: obs column 'score' has 40 values for 40",
        ),
        ({"de": {"contrasts": [{"column": "dose", "within": "score"}]}}, "obs column 'score' has 40 values"),
        ({"de": {"contrasts": [{"column": "only"}]}}, "obs column 'only' has 1 group; there is nothing to compare"),
        ({"de": {"contrasts": [{"column": "kind"}]}}, "'kind' has a group called 'rest'"),
        (
            {"de": {"contrasts": [{"column": "dose", "group1": "low", "group2": "low"}]}},
            "de.contrasts[0]: {'column': 'dose', 'group1': 'low', 'group2': 'low'} compares a group with itself",
        ),
        ({"de": {"contrasts": [{"column": "dose", "within": "dose"}]}}, "'dose' is compared within itself"),
        ({"de": {"contrasts": [{"column": "total_counts"}]}}, "'total_counts' is a measure of quality control"),
        ({"de": {"contrasts": [{"column": "file"}]}}, "no obs column 'file'"),  # of several files alone
        (
            {"qc": {"doublets": False}, "de": {"contrasts": [{"column": "predicted_doublet"}]}},
            "no obs column 'predicted",
        ),
        ({"setup": {"batch_key": "total_counts"}}, "setup.batch_key: 'total_counts' is a measure of quality control"),
        ({"setup": {"batch_key": True}}, "found True. YAML does not read yes, no, on, off, null and dates as text"),
        ({"setup": {"keep_genes": [False]}}, "keep_genes[0]: expected text, found False. YAML does not read yes, no"),
        ({"setup": {"keep_genes": "GENE3"}}, "keep_genes: expected a list, found 'GENE3'. Write [GENE3]."),
        ({"setup": {"keep_genes": ["gene3"]}}, "'gene3' not among the 30 genes, such as .* Did you mean 'GENE3'?"),
        ({"setup": {"categorical_covariate_keys": ["dose", "dose"]}}, "setup: obs column 'dose' is named twice"),
        ({"setup": {"batch_key": "dose", "categorical_covariate_keys": ["dose"]}}, "_keys, batch_key); name it once"),
        ({"setup": {"continuous_covariate_keys": ["level"]}}, "'level' holds categories (such as 1.0), not numbers"),
        ({"setup": {"genes": "list", "gene_list": "gene.txt"}}, "gene.txt is not there .* Did you mean 'genes.txt'?"),
        ({"setup": {"genes": "list", "gene_list": "one_line.txt"}}, "'GENE1,GENE2') is in .* Write one name per line."),
        ({"qc": {"min_genes": 9, "max_genes": 5}}, "qc: min_genes (9) is above max_genes (5)"),
        ({"qc": {"subset": ["d1"]}}, "qc.subset: names levels, but qc.subset_key names no obs column"),
        ({"qc": {"obs_table": "."}}, "qc.obs_table: . is a folder; name a file."),
        ({"qc": {"obs_table": "empty.gmt"}}, "empty.gmt: is empty"),
        ({"qc": {"obs_table": "https://host/x.csv"}}, "is a URL, which is fetched for `input` alone"),
        ({"datasets": {"a": "~/odd.h5ad"}}, "Paths are taken as they stand: ~, $ and * are not expanded."),
        ({"datasets": {False: "odd.h5ad"}}, "datasets.False: YAML reads this name as False; put it in quotes"),
        ({"outdir": "odd.h5ad"}, "outdir: expected the path of a folder, found 'odd.h5ad' (a file)"),
        ({"outdir": ["a"]}, "outdir: expected the path of a folder, found ['a']"),
        ({"programs": {"gene_sets": ["mouse.gmt"]}}, "But for capital letters, 2 names would agree"),
        ({"programs": {"gene_sets": ["page.gmt"]}}, "page.gmt: is a web page"),
        ({"programs": {"gene_sets": ["sets.json"]}}, "sets.json: is JSON, but of no gene sets"),
        ({"programs": {"replicate_key": "dose", "condition_key": "dose"}}, "both name 'dose'; name two columns"),
        (
            {"de": {"replicate_key": "dose", "contrasts": [{"column": "level"}, {"column": "dose"}]}},
            "a.de: replicate_key and contrasts[1].column both name 'dose'; name two columns.",
        ),
        (
            {
                "datasets": {"a": "odd.h5ad", "b": "odd.h5ad"},
                "across": {"compare": ["all"], "condition_key": "dose", "cell_type_key": "dose"},
            },
            "across: condition_key and cell_type_key both name 'dose'; name two columns.",
        ),
        ({"programs": {"replicate_key": "dose", "condition_key": "only"}}, "'only' has 1 value; there is nothing to"),
        ({"programs": {"replicate_key": "dose", "condition_key": "score"}}, "'score' has 40 values for 40 cells"),
    ],
)
def test_what_the_data_cannot_do_is_told_before_the_first_job(odd, monkeypatch, sections, message):
    monkeypatch.chdir(odd)
    with pytest.raises(InputError) as caught:
        expand_checked({"datasets": {"a": "odd.h5ad"}, **sections})
    first, _, last = message.partition(" .* ")
    assert first in str(caught.value)
    assert last in str(caught.value)
    assert "problems in" not in str(caught.value)


def test_groups_that_are_too_small_are_told_before_the_first_job(odd, monkeypatch):
    monkeypatch.chdir(odd)
    contrasts = [{"column": "donor"}, {"column": "dose", "within": "level"}, {"column": "dose", "group1": "low"}]
    sections = {"setup": {"batch_key": "kind"}, "de": {"contrasts": contrasts, "min_cells": 15}}
    adata = anndata.read_h5ad("odd.h5ad")
    adata.obs["kind"] = ["a"] * 30 + ["b"] * 3 + ["c"] * 7
    adata.write_h5ad("odd.h5ad")
    plan = expand_checked({"datasets": {"a": "odd.h5ad"}, **sections, "programs": {"condition_key": "dose"}})
    assert plan.notes == [
        "datasets.a.setup.batch_key: 2 of 3 batches in 'kind' have fewer than 20 cells (c: 7, b: 3); variable genes "
        "are ranked in them together.",
        "datasets.a.de.contrasts[0]: 2 of 2 comparisons will be skipped, for one side has fewer than 15 cells "
        "(de.min_cells): d1 vs rest (20 and 10 cells), d2 vs rest (10 and 20 cells).",
        "datasets.a.de.contrasts[1]: 4 of 4 comparisons will be skipped, for one side has fewer than 15 cells "
        "(de.min_cells): high vs rest in 1 (0 and 20 cells), low vs rest in 1 (20 and 0 cells), high vs rest in 2 (20 "
        "and 0 cells), low vs rest in 2 (0 and 20 cells).",
        "datasets.a.programs: replicate_key and condition_key go together; with one of them nothing is compared.",
    ]


def test_columns_that_the_model_corrects_for_are_told_where_they_are_compared(odd, monkeypatch):
    monkeypatch.chdir(odd)
    sections = {
        "setup": {"batch_key": "dose", "categorical_covariate_keys": ["cured"]},
        "de": {"contrasts": [{"column": "dose"}, {"column": "level", "within": "dose"}]},
        "programs": {"replicate_key": "kind", "condition_key": "dose"},
        "across": {"compare": ["all"], "condition_key": "cured"},
    }
    plan = expand_checked({"datasets": {"a": "odd.h5ad", "b": "odd.h5ad"}, **sections})
    told = [note.partition(", which removes")[0] for note in plan.notes if "which removes" in note]
    assert told == [
        f"datasets.{name}.{text}"
        for name in "ab"
        for text in (
            "de.contrasts[0], programs.condition_key: the model corrects for 'dose'",
            "across.condition_key: the model corrects for 'cured'",
        )
    ]
    (odd / "more.h5ad").write_bytes((odd / "odd.h5ad").read_bytes())
    several = {"input": {"low": "odd.h5ad", "high": "more.h5ad"}}  # each file is a batch
    plan = expand_checked({"datasets": {"a": several}, "de": {"contrasts": [{"column": "file"}]}})
    assert any("de.contrasts[0]: the model corrects for 'file'" in note for note in plan.notes)


def test_a_setting_that_is_not_of_the_sweep_is_refused_with_those_that_are():
    sweep = {"seeds": [0], "grid": {"n_latent": [8, 10]}}
    settings = [run.setting for run in runs_of(sweep=sweep).values()]
    assert expand_config({"datasets": {"a": "x.h5ad"}, "sweep": sweep, "select": {"setting": settings[1]}})
    near = settings[1][:-1] + "x"
    with pytest.raises(InputError) as caught:
        expand_config({"datasets": {"a": "x.h5ad"}, "sweep": sweep, "select": {"setting": near}})
    assert str(caught.value) == (
        f"datasets.a.select.setting: no setting {near!r}. Did you mean {settings[1]!r}? There are: "
        f"{', '.join(settings)}."
    )
    with pytest.raises(InputError, match=r"^model\.n_latnt: there is no such key"):  # settings are not known
        expand_config({"datasets": {"a": "x.h5ad"}, "model": {"n_latnt": 9}, "select": {"setting": "k9-aaaaaa"}})


def test_a_column_with_a_slash_is_found_under_either_spelling(odd, monkeypatch):
    monkeypatch.chdir(odd)
    (odd / "cells.tsv").write_text("cell\tcell/type\n" + "".join(f"c{i}\t{'ab'[i % 2]}\n" for i in range(40)))
    for name in ("cell/type", "cell_type"):
        sections = {"setup": {"batch_key": name}, "de": {"contrasts": [{"column": "dose", "within": name}]}}
        plan = expand_checked({"datasets": {"a": "odd.h5ad"}, "qc": {"obs_table": "cells.tsv"}, **sections})
        assert plan.datasets["a"].setup.batch_key == "cell_type"
        assert plan.datasets["a"].de.contrasts == [{"column": "dose", "within": "cell_type"}]


def test_files_of_genes_that_are_no_text_are_told_before_the_first_job(odd, monkeypatch):
    monkeypatch.chdir(odd)
    (odd / "bad.gmt").write_bytes(b"set\t\tG\xe9ne\n")
    sections = {"programs": {"gene_sets": ["bad.gmt"]}, "setup": {"genes": "list", "gene_list": "bad.gmt"}}
    with pytest.raises(InputError) as caught:
        expand_checked({"datasets": {"a": "odd.h5ad"}, **sections})
    message = str(caught.value)
    assert "setup.gene_list: bad.gmt: cannot be read as text: is not text in UTF-8" in message
    assert "programs.gene_sets: bad.gmt: cannot be read as text" in message
    (odd / "packed.gmt").write_bytes(gzip.compress((odd / "fits.gmt").read_bytes()))
    expand_checked({"datasets": {"a": "odd.h5ad"}, "programs": {"gene_sets": ["packed.gmt"]}})


def test_what_the_data_can_do_passes(odd, monkeypatch):
    monkeypatch.chdir(odd)
    contrasts = [
        {"column": "response", "group1": 1},  # of 0, 1 and missing
        {"column": "response", "group1": "0", "group2": "1"},
        {"column": "level", "group1": 2, "within": "dose"},
        {"column": "leiden", "group1": "0"},
        {"column": "cured", "group1": True, "group2": False},  # yes and no without quotes
        {"column": "level", "group1": 1.0},
    ]
    sections = {
        "setup": {"labels_key": "donor", "batch_key": "level", "keep_genes": ["GENE3"]},
        "programs": {"gene_sets": ["fits.gmt"], "variables": ["split", "age"]},
        "report": {"groupby": ["leiden", "dose"]},
        "de": {"contrasts": contrasts, "replicate_key": "dose"},
    }
    expand_checked({"datasets": {"a": "odd.h5ad"}, **sections})


def test_a_config_that_fits_its_data_passes(counts):
    config = {
        "datasets": {"a": {"input": str(counts)}},
        "qc": {"layer": "counts"},
        "setup": {"batch_key": "donor", "labels_key": "condition"},
        "programs": {"variables": ["total_counts"]},  # added by qc
        "de": {"contrasts": [{"column": "condition", "group1": "stim"}, {"column": "leiden"}]},
    }
    expand_checked(config)


def test_a_missing_file_and_a_url_that_cannot_be_fetched_are_told_with_what_may_be_meant(counts):
    near = str(counts.with_name(counts.name.replace("c", "k")))
    with pytest.raises(InputError) as caught:
        expand_checked({"datasets": {"a": near, "b": "ftp://x.org/y.h5ad", "c": "https://x.org/y.h5ad"}})
    message = str(caught.value)
    assert f"{near} is not there" in message
    assert f"Did you mean {str(counts)!r}?" in message
    assert "ftp://x.org/y.h5ad: cannot be fetched; only http and https can" in message
    assert "datasets.c" not in message


def test_missing_files_are_no_mistake_when_another_workflow_makes_them(tmp_path):
    config = {"datasets": {"a": str(tmp_path / "later.h5ad")}}
    expand_checked(config, made_elsewhere=True)
    with pytest.raises(InputError, match="is not there"):
        expand_checked(config)


def test_an_hdf5_file_is_known_by_its_content(counts):
    without_suffix = counts.rename(counts.with_name("34464122"))  # as figshare's addresses end
    expand_checked({"datasets": {"a": str(without_suffix)}, "setup": {"batch_key": "donor"}})


def test_a_file_that_is_no_hdf5_is_named(tmp_path):
    (tmp_path / "counts.h5ad").write_text("not HDF5")
    with pytest.raises(InputError, match=r"counts\.h5ad: cannot be read as h5ad"):
        expand_checked({"datasets": {"a": str(tmp_path / "counts.h5ad")}})


def test_headers_of_old_formats_are_read(shared_data):
    for name, column in (
        ("bad/kang_lognormalized_not_counts_legacy.h5ad", "nowhere"),
        ("kang2018_stim_ctrl.h5ad", "x"),
    ):
        config = {"datasets": {"a": str(shared_data / name)}, "setup": {"batch_key": column}}
        with pytest.raises(InputError, match=f"setup.batch_key: no obs column {column!r}.*There are: .*condition"):
            expand_checked(config)
    config = {"datasets": {"a": str(shared_data / "kang2018_stim_ctrl.h5ad")}}
    header = read_header(expand_config(config).datasets["a"])
    assert header is not None
    assert set(header.obs["condition"]) == {"stim", "ctrl"}


# ---------------------------------------------------------------- files of the repository


def test_the_schema_in_the_repository_is_that_of_the_options():
    stored = yaml.safe_load((ROOT / "workflow" / "schemas" / "config.schema.yaml").read_text())
    assert stored == json.loads(json.dumps(schema())), "run `make schema`"


def test_the_schema_accepts_the_config_and_refuses_unknown_keys():
    jsonschema = pytest.importorskip("jsonschema")
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    jsonschema.validate(config, schema())
    for place in (config, config["model"], config["datasets"]["pbmc68k"]):
        place["unknown"] = 1
        with pytest.raises(jsonschema.ValidationError, match="unknown"):
            jsonschema.validate(config, schema())
        del place["unknown"]


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"lr": "1e-3", "max_epochs": "none", "early_stopping": "false"}},
        {"qc": {"n_mads": "none", "max_pct_mt": "~", "doublets": False, "layer": 1, "mt_genes": None}},
        {"setup": {"keep_genes": None, "n_top_genes": "2e3", "validation_size": 0, "batch_key": "NULL"}, "qc": None},
        {"de": {"contrasts": [{"column": 1, "group1": True, "group2": 2.5}]}},
        {"sweep": {"seeds": ["0", 1.0], "grid": {"lr": ["1e-3"], "max_epochs": [None, 5]}, "points": [{"bias": "on"}]}},
        {"outdir": None, "datasets": {"a": ["x.h5ad", "y.h5ad"], "b": {"input": {"s": "z"}, "project": None}}},
    ],
)
def test_the_schema_accepts_what_the_config_reads(sections):
    jsonschema = pytest.importorskip("jsonschema")
    config = {"datasets": {"a": "x.h5ad"}} | sections
    expand_config(config)
    jsonschema.validate(config, schema())


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"lr": "fast"}},
        {"train": {"lr": 0}},
        {"train": {"early_stopping": 1}},
        {"model": {"gene_likelihood": "gamma"}},
        {"model": {"n_latent": None}},
        {"setup": {"keep_genes": "CD4"}},
        {"de": {"contrasts": [{"group1": "a"}]}},
        {"de": {"contrasts": [{"column": "a", "grup1": "a"}]}},
        {"sweep": {"grid": {"min_genes": [1]}}},
        {"sweep": {"grid": {"n_latent": []}}},
        {"sweep": {"seeds": [-1]}},
        {"datasets": {"a": {}}},
    ],
)
def test_the_schema_refuses_what_the_config_refuses(sections):
    jsonschema = pytest.importorskip("jsonschema")
    config = {"datasets": {"a": "x.h5ad"}} | sections
    with pytest.raises(InputError):
        expand_config(config)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config, schema())


def test_the_config_in_the_repository_has_every_option_with_its_default_and_its_help_text():
    stored = (ROOT / "config" / "config.yaml").read_text()
    assert stored == commented_config(), "run `make schema`"
    config = yaml.safe_load(stored)
    assert list(config) == ["outdir", "datasets", *SECTIONS, "across"]
    assert {section: config[section] for section in SECTIONS} == {name: dict(cls()) for name, cls in SECTIONS.items()}
    assert all(field.description for cls in SECTIONS.values() for field in cls.model_fields.values())


@pytest.mark.parametrize("name", ["ldvae", "ldvae-cuda"])
def test_the_conda_environments_pin_the_versions_of_requirements_txt(name):
    pinned = dict(
        line.split("==")
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if "==" in line and line[0] != "#"
    )
    environment = yaml.safe_load((ROOT / "envs" / f"{name}.yaml").read_text())
    lines = next(part["pip"] for part in environment["dependencies"] if isinstance(part, dict))
    pip = dict(line.split("==") for line in lines if not line.startswith("-"))
    assert {package: pinned.get(package) for package in pip} == pip
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]} <= set(pip)
    assert "ldvae" in (ROOT / "envs" / f"{name}.post-deploy.sh").read_text()


# ---------------------------------------------------------------- files of the inputs


def test_an_input_is_all_its_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_matrix(Path("ten x"))
    array = Path("stored.zarr/X/c/0")
    array.parent.mkdir(parents=True)
    for path in (Path("stored.zarr/zarr.json"), array):
        path.write_text("{}")
    inside = ["matrix.mtx", "features.tsv.gz", "barcodes.tsv.gz"]
    paths = ["ten x/matrix.mtx", "ten x", "ten x/", "https://example.org/x.h5ad", "not there.mtx", "demo:pbmc68k"]
    assert [input_files(path) for path in paths] == [
        *([f"ten x/{name}" for name in inside] for _ in range(3)),
        ["https://example.org/x.h5ad"],
        ["not there.mtx"],
        [],
    ]
    assert staged_input("ten x/matrix.mtx")["files"] == {name: f"ten x/{name}" for name in inside}
    assert staged_input("ten x/")["name"] == "ten x"
    assert staged_input("ten x")["files"] == {f"ten x/{name}": f"ten x/{name}" for name in inside}

    before = staged_input("stored.zarr")
    assert (before["name"], before["files"]) == ("stored.zarr", {"stored.zarr": "stored.zarr"})
    array.write_text("{ }")
    assert staged_input("stored.zarr")["contents"] != before["contents"]


def test_without_the_readers_every_file_beside_a_matrix_counts(tmp_path, monkeypatch):
    """Snakemake may run in an environment of its own."""
    monkeypatch.setitem(sys.modules, "ldvae.io", None)
    matrix = write_matrix(tmp_path / "ten x")
    assert len(input_files(str(matrix))) == len(input_files(str(matrix.parent))) == 3
    (tmp_path / "x.h5ad").write_text("")
    assert input_files(str(tmp_path / "x.h5ad")) == [str(tmp_path / "x.h5ad")]
