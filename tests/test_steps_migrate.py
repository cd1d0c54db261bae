"""Runs of an older version are found by what they were trained with, and renamed with all that bears their name."""

import hashlib
import json
import os

import pytest

from ldvae.config import TRAINING_VERSION, ModelConfig, Run, TrainConfig, expand_checked
from ldvae.errors import InputError
from ldvae.steps.migrate import migrate

FORMER = TrainConfig(beta2=0.999)  # what the first version trained with, without an option for it


def former_params(run):
    return {name: value for name, value in run.params.items() if name != "beta2"}


def old_ids(run):
    """Ids as they were: hashed over all options that there were."""
    digest = hashlib.sha256(json.dumps(former_params(run), sort_keys=True).encode()).hexdigest()[:6]
    return f"k{run.model.n_latent}-s{run.seed}-{digest}", f"k{run.model.n_latent}-{digest}"


def write_run(outdir, run, **changed):
    old, setting = old_ids(run)
    folder = outdir / "results" / "a" / "runs" / old
    (folder / "model").mkdir(parents=True)
    (folder / "fit.tsv").write_text("gene\n")
    metrics = {"run": old, "setting": setting, "seed": run.seed, "params": former_params(run), "epochs": 7} | changed
    (folder / "metrics.json").write_text(json.dumps(metrics))
    os.utime(folder / "metrics.json", (1000, 1000))
    for place, name in (("logs/train/a", f"{old}.log"), ("benchmarks/train/a", f"{old}.tsv"), ("checkpoints/a", old)):
        (outdir / place).mkdir(parents=True, exist_ok=True)
        (outdir / place / name).write_text("")
    return folder


def test_a_finished_run_gets_its_new_id_everywhere(tmp_path):
    run = Run(ModelConfig(n_latent=12), TrainConfig(lr=0.02, beta2=0.999), 3)
    folder = write_run(tmp_path, run)
    assert run.id in migrate(tmp_path)
    assert not folder.exists()
    new = folder.with_name(run.id)
    metrics = json.loads((new / "metrics.json").read_text())
    assert (metrics["run"], metrics["setting"], metrics["epochs"]) == (run.id, run.setting, 7)
    assert (new / "metrics.json").stat().st_mtime > 1000  # the steps after the training are repeated
    assert (new / "model").is_dir()
    assert (new / "ppc.tsv").exists()
    for name in (f"logs/train/a/{run.id}.log", f"benchmarks/train/a/{run.id}.tsv", f"checkpoints/a/{run.id}"):
        assert (tmp_path / name).exists()
    assert migrate(tmp_path) == "All runs have the ids of this version."


def test_the_id_of_the_version_before_is_recognized():
    assert old_ids(Run(ModelConfig(), FORMER, 0))[0] == "k10-s0-86afe3"


def test_an_option_that_the_old_version_lacked_has_its_default(tmp_path):
    run = Run(ModelConfig(), FORMER, 0)
    params = {key: value for key, value in former_params(run).items() if key != "start_at_mean"}
    folder = write_run(tmp_path, run, params=params)
    migrate(tmp_path)
    assert folder.with_name(run.id).exists()


@pytest.mark.parametrize(
    "changed", [{"training_version": TRAINING_VERSION + 1}, {"params": {"n_latent": 10, "gone": 1}}, {"seed": None}]
)
def test_a_run_that_would_now_end_otherwise_is_left(tmp_path, changed):
    folder = write_run(tmp_path, Run(ModelConfig(), FORMER, 0), **changed)
    migrate(tmp_path)
    assert folder.exists()


def test_a_renaming_that_was_interrupted_is_finished(tmp_path):
    run = Run(ModelConfig(), FORMER, 0)
    folder = write_run(tmp_path, run)
    metrics = json.loads((folder / "metrics.json").read_text()) | {"run": run.id, "setting": run.setting}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    migrate(tmp_path)
    assert folder.with_name(run.id).exists()


def test_a_run_that_is_there_under_both_ids_is_left_and_told(tmp_path):
    run = Run(ModelConfig(), FORMER, 0)
    folder = write_run(tmp_path, run)
    folder.with_name(run.id).mkdir()
    assert f"{folder} is left as it is" in migrate(tmp_path)
    assert folder.exists()


def test_a_run_of_the_former_default_is_not_taken_for_one_of_todays(tmp_path):
    write_run(tmp_path, Run(ModelConfig(), FORMER, 0))
    migrate(tmp_path)
    assert not (tmp_path / "results" / "a" / "runs" / Run(ModelConfig(), TrainConfig(), 0).id).exists()


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(InputError, match="results is not there; give the folder that holds results/"):
        migrate(tmp_path)


def test_a_plan_says_that_runs_of_an_older_version_are_there(tmp_path):
    run = Run(ModelConfig(), FORMER, 0)
    write_run(tmp_path, run)
    config = {
        "datasets": {"a": str(tmp_path / "later.h5ad")},
        "outdir": str(tmp_path),
        "sweep": {"seeds": [0, 1]},
        "train": {"beta2": 0.999},
    }
    (note,) = expand_checked(config, made_elsewhere=True).notes
    assert "To keep the results, name the number: `model: {n_latent: 10}`" in note
    config["model"] = {"n_latent": 10}
    (note,) = expand_checked(config, made_elsewhere=True).notes
    assert "holds 1 of the runs" in note
    assert f"ldvae migrate {tmp_path}" in note
    migrate(tmp_path)
    assert expand_checked(config, made_elsewhere=True).notes == []
