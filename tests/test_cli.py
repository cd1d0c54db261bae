"""The command line: flags read off the steps, exit codes, one clear line for the user's mistakes."""

import functools
import gzip
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import anndata
import numpy as np
import pytest
import yaml
from scipy import sparse

from ldvae import cli
from ldvae import results as layout
from ldvae.config import DeConfig, Options, ProgramsConfig, expand_config, load_config
from ldvae.config import flags as flags_of
from ldvae.steps import VERBS

ROOT = Path(__file__).parents[1]


def ldvae(*arguments, **settings):
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "ldvae.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **settings)


@pytest.fixture
def given(monkeypatch):
    """What a verb is called with: its own arguments, and the options that differ from the defaults."""

    def parse(verb, *arguments):
        received = {}
        step = importlib.import_module(f"ldvae.steps.{verb}")
        real = getattr(step, verb)

        @functools.wraps(real)
        def fake(**values):
            received.update(values)

        monkeypatch.setattr(step, verb, fake)
        monkeypatch.setattr(layout, "require_inputs", lambda *_: None)
        assert cli.main([verb, *map(str, arguments)]) == 0
        options = {name: value for name, value in received.items() if isinstance(value, Options)}
        own = {name: value for name, value in received.items() if name not in options}
        return own, {name: value.changed() for name, value in options.items()}

    return parse


# ---------------------------------------------------------------- flags


def test_parameters_and_options_become_flags_of_their_types(given):
    flags = ["--input", "a.h5ad", "b c.h5ad", "--names", "x", "y", "--min-genes", "7", "--doublets", "off"]
    flags += ["--n-mads", "none", "--max-pct-mt", "1e1", "--mt-genes", "A", "B"]
    own, options = given("qc", "--results", "some folder", *flags)
    own.pop("batch_key")
    assert own == {
        "results": Path("some folder"),
        "input": ["a.h5ad", "b c.h5ad"],
        "names": ["x", "y"],
        "labels_key": None,
        "threads": 1,
    }
    expected = {"min_genes": 7, "doublets": "off", "n_mads": None, "max_pct_mt": 10.0, "mt_genes": ["A", "B"]}
    assert options == {"config": expected}
    own, options = given("train", "--results", "r", "--no-use-batch-norm", "--n-latent", "4", "--lr", "1e-3")
    assert options == {"architecture": {"use_batch_norm": False, "n_latent": 4}, "config": {"lr": 0.001}}
    assert own["run"] is None


def test_what_the_plan_writes_as_flags_comes_back_as_the_options(given):
    contrasts = [{"column": "a", "group1": "1"}, {"column": "it's", "within": "b c"}]
    changed = DeConfig(contrasts=contrasts, delta=0.5, batch_correction=True, replicate_key="donor")
    assert given("de", "--results", "r", *flags_of(changed))[1] == {"config": changed.changed()}
    changed = ProgramsConfig(technical=[], variables=["a b", "c"], rank=3, intercept=False)
    assert given("programs", "--results", "r", *flags_of(changed))[1] == {"config": changed.changed()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--min-genes", "ten"], "--min-genes: expected a whole number, found 'ten'"),
        (["--min-counts", "0"], "--min-counts: expected at least 1, found 0"),
        (["--doublets", "c"], "--doublets: expected one of off, annotate, filter, found 'c'"),
        (["--min-gens", "3"], "unknown option: --min-gens. Did you mean --min-genes? See `ldvae qc --help`."),
    ],
)
def test_a_wrong_flag_is_the_users_mistake(arguments, message, capsys):
    assert cli.main(["qc", "--results", "r", "--input", "a.h5ad", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_every_wrong_option_is_told_at_once(capsys):
    assert cli.main(["qc", "--results", "r", "--input", "a", "--min-genes", "ten", "--min-counts", "0"]) == 2
    said = capsys.readouterr().err
    assert "--min-genes: " in said
    assert "--min-counts: " in said


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_help_text_for_each_flag(verb, capsys, monkeypatch):
    step = getattr(importlib.import_module(f"ldvae.steps.{verb}"), verb)
    assert step.__doc__.splitlines()[0] == VERBS[verb], "the overview says what the help of the verb says"
    monkeypatch.setenv("COLUMNS", "400")
    assert cli.main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Usage: ldvae {verb}" in shown
    flags = [flag.name for flag in cli.command_line()[verb].assemble_argument_collection() if flag.show]
    texts = {flag: re.search(rf"{flag}\b(.*)│", shown)[1] for flag in flags if flag.startswith("--")}
    words = {flag: re.sub(r"\b[A-Z]{3,}\b|\[.*", "", text) for flag, text in texts.items()}
    assert [flag for flag, text in words.items() if not re.search("[a-z]{3,}", text)] == []


def test_the_overview_names_every_verb_and_needs_no_torch(capsys):
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"^│ {verb} +\w", shown, re.MULTILINE) for verb in VERBS)
    code = (
        "import sys; from ldvae import cli; cli.main(['--help']); print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "scanpy", "pandas", "numpy"} & set(done.stdout.splitlines()[-1].split())


def test_of_a_flag_that_is_repeated_the_last_counts():
    arguments = ["select", "--results", "r", "--threshold", "0.8", "--threshold", "0.7"]
    _, bound, _ = cli.command_line().parse_args(arguments, exit_on_error=False, print_error=False)
    assert bound.arguments["config"].threshold == 0.7


# ---------------------------------------------------------------- exit codes and messages


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"ldvae {metadata.version('ldvae')}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "there is no verb 'trian'. Did you mean 'train'"),
        (["qc", "--input", "x.h5ad"], "--results requires an argument"),
        (["annotate", "--results", "gone"], "gone/qc/layers.h5ad is not there"),
        (["check", "gone.yaml"], "gone.yaml: cannot be read"),
        (["profile", "install", "lsf"], "lsf"),
        (["project", "--results", ".", "--name", "a/b", "--input", "x.h5ad"], "--name: a name is made of letters"),
        (["train", "--results", ".", "--run", "../run"], "--run: a name is made of letters"),
    ],
)
def test_the_users_mistake_is_one_line_and_exit_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert len(shown.splitlines()) == 1


def test_a_missing_input_is_named_with_the_verb_that_writes_it(tmp_path, capsys):
    assert cli.main(["setup", "--results", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "qc/filtered.h5ad is not there" in said
    assert "`ldvae qc` writes it" in said


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (PermissionError(13, "Permission denied", "x"), 2, "x: Permission denied."),
        (OSError(28, "No space left on device", "x"), 1, "x: No space left on device."),
        (MemoryError("2 GB"), 1, "out of memory (2 GB)"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_the_system_refuses_is_one_line(error, code, message, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    assert cli.main(["qc"]) == code
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


def test_our_own_mistake_shows_its_traceback_and_exits_with_1(monkeypatch, capfd):
    monkeypatch.setattr(cli, "_run", lambda *_: 1 / 0)
    assert cli.main(["qc"]) == 1
    shown = capfd.readouterr().err
    assert "please report it" in shown
    assert "ZeroDivisionError" in shown


def test_a_module_of_ours_that_is_missing_is_our_own_mistake(monkeypatch, capfd):
    def fail(*_):
        raise ModuleNotFoundError("No module named 'ldvae.typo'", name="ldvae.typo")

    monkeypatch.setattr(cli, "_run", fail)
    assert cli.main(["qc"]) == 1
    assert "please report it" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("a file", "results is not a folder, and the results are written there"),
        ("a link to a missing folder", "missing) does not exist, and the results are written there"),
        ("permission denied", "cannot be written by this user (permission denied)"),
        ("a read-only disk", "is on a read-only file system"),
    ],
)
@pytest.mark.parametrize("verb", ["setup", "simulate"])
def test_a_folder_that_cannot_be_written_is_one_message_before_any_work(
    verb, case, message, tmp_path, monkeypatch, capsys
):
    results = tmp_path / "results"
    if case == "a file":
        results.write_text("")
    elif case == "a link to a missing folder":
        results.symlink_to(tmp_path / "missing")
    else:
        results.mkdir()
    if case == "permission denied":  # which root has none of
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    elif case == "a read-only disk":
        state = os.statvfs(tmp_path)
        monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=state.f_flag | os.ST_RDONLY))
    flags = {"setup": ["--results", str(results / "kang")], "simulate": ["--output", str(results / "a" / "x.h5ad")]}
    assert cli.main([verb, *flags[verb]]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_nothing_given_shows_the_verbs_and_exits_with_2(capsys):
    assert cli.main([]) == 2
    assert "Usage: ldvae COMMAND" in capsys.readouterr().out


def test_a_mistake_of_the_user_is_told_again_at_once_in_the_same_run_of_a_workflow(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LDVAE_RUN", "first")
    results = tmp_path / "results"
    results.mkdir()
    command = ["qc", "--results", str(results), "--input", str(tmp_path / "counts.h5ad"), "--doublets", "off"]
    assert cli.main(command) == 2
    failure = json.loads((results / "failures" / "qc.json").read_text())
    assert failure["message"] in capsys.readouterr().err
    counts = anndata.AnnData(np.random.default_rng(0).poisson(2, (40, 30)).astype(np.float32))
    counts.obs["cell_type"] = "one"  # clusters are not sought, for which numba would compile ten seconds
    counts.var_names = [f"gene{i}" for i in range(30)]
    counts.obs_names = [f"cell{i}" for i in range(40)]
    counts.write_h5ad(tmp_path / "counts.h5ad")
    assert cli.main(command) == 2  # a further attempt of the same run
    assert capsys.readouterr().err.strip() == f"ldvae qc: {failure['message']}"
    monkeypatch.setenv("LDVAE_RUN", "second")
    assert cli.main(command) == 0
    assert not (results / "failures" / "qc.json").exists()


def test_nothing_is_written_where_no_results_are(tmp_path, capsys):
    assert cli.main(["setup", "--results", str(tmp_path / "typo")]) == 2
    assert not (tmp_path / "typo").exists()


# ---------------------------------------------------------------- stubs, versions, environment


def test_stubs_are_valid_files_of_every_kind_with_versions(tmp_path):
    out = tmp_path / "new folder" / "kang"
    for verb, *flags in (
        ["qc", "--input", "gone"],
        ["setup"],
        ["train", "--run", "one"],
        ["select"],
        ["de"],
        ["report"],
    ):
        arguments = [verb, "--stub", "--results", out, "--versions-yml", tmp_path / "versions.yml", *flags]
        assert cli.main([str(argument) for argument in arguments]) == 0
        assert all((out / path).exists() for path in layout.layout([verb], ["one"]))
    assert anndata.read_h5ad(out / "qc" / "filtered.h5ad").n_obs == 2
    assert gzip.decompress((out / "qc" / "cells.tsv.gz").read_bytes())
    assert json.loads((out / "qc" / "summary.json").read_text())["stub"].startswith("qc --results ")
    assert (out / "qc" / "violins.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "de" / "contrasts.tsv").exists()
    versions = yaml.safe_load((tmp_path / "versions.yml").read_text())
    assert versions["report"]["ldvae"] == metadata.version("ldvae")
    assert {"python", "torch", "scanpy"} <= set(versions["report"])


def test_caches_go_where_the_job_may_write(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR", "TRITON_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    cli._prepare_environment([])
    assert "NUMBA_CACHE_DIR" not in os.environ
    monkeypatch.setattr(os, "access", lambda *_: False)
    cli._prepare_environment([])
    folders = [Path(os.environ[name]) for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR", "TRITON_CACHE_DIR")]
    assert len(set(folders)) == 3
    assert all(home not in folder.parents for folder in folders)


def test_plan_prints_json_alone(tmp_path):
    done = ldvae("plan", ROOT / "config" / "config.yaml", "--tables", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    expected = expand_config(load_config(ROOT / "config" / "config.yaml")).datasets["pbmc68k"]
    assert [run["run"] for run in plan["datasets"][0]["runs"]] == list(expected.runs)
    assert (tmp_path / "pbmc68k" / "runs.tsv").read_text().count("\n") == len(expected.runs) + 1
    assert json.loads((tmp_path / "pbmc68k" / "resolved.json").read_text())["setup"]["genes"] == "all"


def test_profile_install_copies_a_profile_and_never_overwrites_one(tmp_path, capsys):
    folder = tmp_path / "snakemake" / "slurm"
    assert cli.main(["profile", "install", "slurm", "--folder", str(folder)]) == 0
    assert (folder / "config.v9+.yaml").read_text() == (ROOT / "slurm" / "config.v9+.yaml").read_text()
    assert cli.main(["profile", "install", "slurm", "--folder", str(folder)]) == 2
    assert "is there already" in capsys.readouterr().err


# ---------------------------------------------------------------- the step train


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """Counts as the step setup leaves them: 240 cells, 60 genes, two batches."""
    rng = np.random.default_rng(0)
    adata = anndata.AnnData(rng.poisson(1.0, (240, 60)).astype(np.float32))
    adata.obs["donor"] = ["a", "b"] * 120
    adata.obs["split"] = ["train"] * 192 + ["validation"] * 24 + ["test"] * 24
    adata.uns["ldvae_setup"] = {
        "batch_key": "donor",
        "labels_key": "",
        "size_factor_key": "",
        "categorical_covariate_keys": [],
        "continuous_covariate_keys": [],
    }
    path = tmp_path_factory.mktemp("train") / "counts.h5ad"
    adata.write_h5ad(path)
    return path


def train_flags(counts, folder, **options):
    (folder / "setup").mkdir(parents=True, exist_ok=True)
    shutil.copy(counts, folder / "setup" / "counts.h5ad")
    arguments = ["--results", folder, "--run", "one", "--checkpoint", folder / "checkpoint", "--device", "cpu"]
    arguments += ["--n-latent", 3]
    for name, value in options.items():
        arguments += [f"--{name.replace('_', '-')}", value]
    return [str(argument) for argument in arguments]


def test_train_writes_what_later_steps_read(registered, tmp_path):
    assert cli.main(["train", *train_flags(registered, tmp_path, seed=3, max_epochs=3)]) == 0
    metrics = json.loads((tmp_path / "runs" / "one" / "metrics.json").read_text())
    assert metrics["run"] == "one"
    assert re.fullmatch(r"k3-[0-9a-f]{6}", metrics["setting"])
    assert (metrics["n_train"], metrics["n_validation"], metrics["n_test"], metrics["epochs"]) == (192, 24, 24, 3)
    # importance sampling tightens the bound that the ELBO is
    assert -metrics["marginal_ll_test"] < metrics["elbo_test"]
    assert metrics["elbo_test"] == pytest.approx(metrics["reconstruction_test"] + metrics["kl_test"])
    factors = np.load(tmp_path / "runs" / "one" / "factors.npz", allow_pickle=False)
    assert factors["scores"].shape == (240, 3)
    assert factors["loadings"].shape == (60, 3)
    adata = anndata.read_h5ad(registered)
    np.testing.assert_allclose(factors["mean_expression"] * factors["mean_total"], adata.X.mean(axis=0), rtol=1e-6)
    assert not (tmp_path / "checkpoint").exists()


def test_the_predictive_check_has_the_observed_moments_of_the_held_out_cells(registered, tmp_path):
    import pandas as pd

    assert cli.main(["train", *train_flags(registered, tmp_path, max_epochs=2)]) == 0
    table = pd.read_csv(tmp_path / "runs" / "one" / "ppc.tsv", sep="\t")
    adata = anndata.read_h5ad(registered)
    held_out = adata[adata.obs["split"] != "train"]
    for batch, cells in (("all", held_out), ("b", held_out[held_out.obs["donor"] == "b"])):
        own = table[table["batch"] == batch]
        np.testing.assert_allclose(own["observed_mean"], cells.X.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(own["observed_variance"], cells.X.var(axis=0), rtol=1e-4)
        np.testing.assert_allclose(own["observed_zeros"], (cells.X == 0).mean(axis=0), rtol=1e-5)
        assert (own["n_cells"] == cells.n_obs).all()
    assert ((table["predicted_zeros"] >= 0) & (table["predicted_zeros"] <= 1)).all()
    assert (table["predicted_variance"] > 0).all()


def test_many_counts_stay_in_their_file(registered, tmp_path, monkeypatch):
    steps_train = importlib.import_module("ldvae.steps.train")
    adata = anndata.read_h5ad(registered)
    adata.X = sparse.csr_matrix(adata.X)
    adata.write_h5ad(tmp_path / "counts.h5ad")
    runs = []
    for folder, most in ((tmp_path / "memory", 10**9), (tmp_path / "file", 0)):
        monkeypatch.setattr(steps_train, "IN_MEMORY", most)
        assert steps_train.read_registered(tmp_path / "counts.h5ad")[0].isbacked == (most == 0)
        flags = train_flags(tmp_path / "counts.h5ad", folder, seed=1, max_epochs=5)
        assert cli.main(["train", *flags]) == 0
        factors = np.load(folder / "runs" / "one" / "factors.npz")
        runs.append(json.loads((folder / "runs" / "one" / "metrics.json").read_text()) | dict(factors))
    memory, file = runs
    assert file["elbo_test"] == pytest.approx(memory["elbo_test"], rel=0.01)  # the order of the cells differs
    np.testing.assert_array_equal(file["cells"], memory["cells"])
    np.testing.assert_allclose(file["mean_expression"], memory["mean_expression"])


@pytest.mark.thorough
def test_a_signal_stops_training_which_goes_on_to_the_same_bits(registered, tmp_path, capsys):
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    flags = train_flags(registered, stopped, max_epochs=20)
    command = [sys.executable, "-m", "ldvae.cli", "train", *flags, "--checkpoint-minutes", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("Checkpoint at epoch" in line for line in process.stderr)  # reads up to the first
        process.send_signal(signal.SIGUSR1)
        rest = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGUSR1, rest
    assert "a restart resumes from the checkpoint" in rest
    assert not (stopped / "runs" / "one" / "metrics.json").exists()
    assert cli.main(["train", *flags]) == 0
    assert "Resumed from epoch" in capsys.readouterr().err
    assert not (stopped / "checkpoint").exists()
    assert cli.main(["train", *train_flags(registered, undisturbed, max_epochs=20)]) == 0
    one, two = (np.load(folder / "runs" / "one" / "factors.npz") for folder in (undisturbed, stopped))
    assert all(np.array_equal(one[name], two[name]) for name in one.files)


def test_train_asked_for_a_gpu_where_there_is_none_fails_at_once(registered, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    flags = [flag if flag != "cpu" else "cuda" for flag in train_flags(registered, tmp_path)]
    assert cli.main(["train", *flags]) == 2
    said = capsys.readouterr().err
    assert "sees no GPU" in said
    assert "Traceback" not in said


def test_train_refuses_counts_that_setup_did_not_write(tmp_path, capsys):
    anndata.AnnData(np.ones((4, 3), dtype=np.float32)).write_h5ad(tmp_path / "counts.h5ad")
    assert cli.main(["train", *train_flags(tmp_path / "counts.h5ad", tmp_path)]) == 2
    assert "is not a file of `ldvae setup`" in capsys.readouterr().err


def test_check_reads_configs_and_files(tmp_path, capsys):
    anndata.AnnData(np.ones((4, 3), dtype=np.float32)).write_h5ad(tmp_path / "good.h5ad")
    anndata.AnnData(np.full((4, 3), 0.5, dtype=np.float32)).write_h5ad(tmp_path / "bad.h5ad")
    (tmp_path / "config.yaml").write_text(f"datasets: {{a: '{tmp_path}/good.h5ad', b: '{tmp_path}/bad.h5ad'}}")
    assert cli.main(["check", str(tmp_path / "good.h5ad")]) == 0
    assert "raw counts of 4 cells and 3 genes" in capsys.readouterr().out
    assert cli.main(["check", str(tmp_path / "config.yaml")]) == 2
    assert "datasets.b: " in capsys.readouterr().err
    assert cli.main(["check", "--quick", str(tmp_path / "config.yaml")]) == 0


def test_check_reads_a_file_with_the_options_that_say_how(tmp_path, capsys):
    genes, path = [f"ENSG{i:011d}" for i in range(4)], tmp_path / "x.h5ad"
    adata = anndata.AnnData(np.ones((3, 4), dtype=np.float32))
    adata.var_names, adata.obs_names = genes, ["AAACATTGAGCTAC-1", "AAACATTGATCAGC-1", "AAACCGTGCTTCCG-1"]
    adata.var["label"], adata.var["feature_types"] = list("abcd"), ["Peaks", *["Gene Expression"] * 3]
    adata.T.write_h5ad(path)
    (tmp_path / "cells.csv").write_text("cell,donor\nAAACATTGAGCTAC-1,d1\n")
    assert cli.main(["check", str(path)]) == 2
    assert "on the command line --transpose" in capsys.readouterr().err
    table = ["--obs-table", str(tmp_path / "cells.csv")]
    assert (
        cli.main(["check", str(path), "--transpose", "--feature-types", "Peaks", "--gene-names", "label", *table]) == 0
    )
    said = capsys.readouterr()
    assert "raw counts of 3 cells and 1 gene" in said.out
    assert "cells.csv: has no row for 2 of 3 cells" in said.err


def test_check_tells_mistakes_of_the_config_of_headers_and_of_counts_in_one_message(tmp_path, capsys):
    anndata.AnnData(np.full((4, 3), 0.5, dtype=np.float32)).write_h5ad(tmp_path / "bad.h5ad")
    (tmp_path / "table.csv").write_text("cell,g1,g2\nc1,1,2\nc2,3,4\n")  # has no header: its cells must be read
    (tmp_path / "config.yaml").write_text(
        f"datasets: {{a: '{tmp_path}/bad.h5ad', b: '{tmp_path}/gone.h5ad', c: '{tmp_path}/table.csv'}}\n"
        "setup: {n_top_gene: 3, batch_key: donor}\n"
    )
    assert cli.main(["check", str(tmp_path / "config.yaml")]) == 2
    told = capsys.readouterr().err
    for part in (
        "setup.n_top_gene: there is no such key. Did you mean 'n_top_genes'",
        "datasets.a.setup.batch_key: no obs column 'donor'",
        "datasets.a: ",
        "gone.h5ad is not there",
        "datasets.c.setup.batch_key: no obs column 'donor'",
    ):
        assert told.count(part) == 1, part


def test_check_says_each_warning_once_and_of_which_dataset(tmp_path, capsys):
    """Files are read for their headers and then for their counts, gene sets for problems and for notes."""
    (tmp_path / "sets.gmt").write_text("known\t\tCD3D\tNKG7\nother\t\tABC9\nother\t\tABC8\n")
    (tmp_path / "cells.csv").write_text("cell,donor\nAAAGCCTGGCTAAC-1,d1\n")
    (tmp_path / "config.yaml").write_text(
        "datasets: {a: {input: 'demo:pbmc68k'}}\n"
        f"qc: {{obs_table: '{tmp_path}/cells.csv'}}\nprograms: {{gene_sets: ['{tmp_path}/sets.gmt']}}\n"
    )
    assert cli.main(["check", str(tmp_path / "config.yaml")]) == 0
    said = capsys.readouterr()
    assert said.err.count("cells.csv: has no row for 699 of 700 cells.") == 1, said
    assert said.err.count("1 term in more than one line") == 1, said
    assert said.out.count("datasets.a.programs.gene_sets: 1 of 2 sets of") == 1, said
    assert "such as 'other'; nothing will be found of them." in said.out


def test_sigterm_leaves_no_temporary_file(tmp_path):
    code = f"""
import time
from ldvae import cli
from ldvae.io import atomic
def write(*_):
    with atomic(__import__("pathlib").Path({str(tmp_path / "table.tsv")!r})) as temporary:
        temporary.write_text("half")
        print("writing", flush=True)
        time.sleep(60)
cli._run = write
raise SystemExit(cli.main(["report"]))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        process.terminate()
    assert process.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_a_killed_worker_is_told_as_want_of_memory(monkeypatch, capsys):
    def broken(*_):
        raise BrokenProcessPool("A process in the process pool was terminated abruptly")

    monkeypatch.setattr(cli, "_run", broken)
    assert cli.main(["qc"]) == 1
    said = capsys.readouterr().err
    assert "one of its processes was killed, most likely for want of memory" in said
    assert "Traceback" not in said
