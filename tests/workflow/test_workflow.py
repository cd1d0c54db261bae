"""The wiring of the workflow: what it makes, what it makes again, and what it refuses; steps are stubs."""

import json
import os
import re
import shutil
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from downloads import served
from workplace import LOADED, ROOT, Loaded, Workplace, write_module

from ldvae import results as layout

pytestmark = pytest.mark.thorough

AFTER_TRAINING = ("select", "programs", "annotate", "report")


def only(pending: Counter[str]) -> set[str]:
    return {name for name in pending if ":" not in name}


def files_of(dataset: str, runs: list[str], contrasts: bool) -> set[str]:
    """Files of the results of one dataset."""
    verbs = ["plan", "qc", "setup", "train", "select", "programs", "annotate", *(["de"] * contrasts), "report"]
    files = layout.layout(verbs, runs)
    return {f"results/{dataset}/{name}" for name in files}


# ---------------------------------------------------------------- what is made


def test_every_file_of_the_results_layout_is_made(finished):
    files = finished.files()
    runs = sorted({Path(name).parts[3] for name in files if name.startswith("results/a/runs/")})
    assert len(runs) == 2
    expected = files_of("a", runs, contrasts=True) | files_of("b", runs, contrasts=False)
    expected |= {
        "results/index.html",
        *(f"results/b/project/other/{name}" for name in ("scores.tsv.gz", "summary.json")),
    }
    assert expected - files == set()
    steps = {Path(name).parts[1] for name in files if name.startswith("logs/")}
    assert {"qc", "setup", "train", "select", "programs", "annotate", "de", "report", "index"} <= steps
    assert f"benchmarks/train/a/{runs[0]}.tsv" in files
    assert {Path(name).parts[0] for name in files} == {"config.yaml", "results", "logs", "benchmarks"}


def test_the_run_table_is_that_of_the_config(finished):
    lines = (finished.folder / "results/a/runs.tsv").read_text().splitlines()
    assert [line.split("\t")[2] for line in lines] == ["seed", "0", "1"]
    resolved = json.loads((finished.folder / "results/a/resolved.json").read_text())
    assert resolved["de"]["contrasts"][0]["column"] == "condition"


def test_printed_commands_are_short_enough_to_paste(again):
    said = again.snakemake("-n", "--printshellcmds", "--forceall")
    commands = re.findall(r"^Shell command: (.*(?:\n +.*)*)", said, re.M)
    assert any(command.startswith("cp ") for command in commands)
    assert max(len(line) for command in commands for line in command.splitlines()) < 400


# ---------------------------------------------------------------- what is made again


def test_a_second_call_does_nothing(again):
    assert again.pending() == Counter()


def test_a_comment_or_another_order_of_keys_reruns_nothing(again):
    reordered = {key: again.config[key] for key in reversed(again.config)}
    again.write("# a comment\n" + yaml.safe_dump(reordered, sort_keys=False))
    assert again.pending() == Counter()


def test_a_value_that_is_the_default_reruns_nothing(again):
    again.config["train"] = {"lr": 0.01}
    again.write()
    assert again.pending() == Counter()


def test_a_changed_de_value_reruns_de_and_the_report(again):
    again.config["de"] = {"delta": 0.5}
    again.write()
    pending = again.pending()
    assert only(pending) == {"plan", "de", "report", "index"}
    assert pending["de"] == pending["de:a"] == 1


def test_a_new_seed_trains_that_run_alone_and_what_depends_on_it(again):
    again.config["sweep"]["seeds"] = [0, 1, 2]
    again.write()
    pending = again.pending()
    assert pending["train:a"] == pending["train:b"] == 1
    assert all(pending[f"{rule}:{dataset}"] == 1 for rule in AFTER_TRAINING for dataset in "ab")
    assert only(pending) == {"plan", "train", *AFTER_TRAINING, "project", "de", "index"}


def test_a_new_value_of_a_grid_trains_the_new_runs_alone(again):
    again.config["datasets"]["a"]["sweep"] = {"grid": {"n_latent": [14, 12]}}
    again.write()
    pending = again.pending()
    assert pending["train:a"] == 2  # two seeds
    assert pending["train:b"] == pending["qc"] == pending["setup"] == 0


def test_a_qc_threshold_of_one_dataset_leaves_the_other_alone(again):
    again.config["datasets"]["a"]["qc"] = {"min_genes": 5}
    again.write()
    pending = again.pending()
    assert {name for name in pending if name.endswith(":b")} == set()
    assert pending["qc:a"] == pending["setup:a"] == 1
    assert pending["train:a"] == 2


def test_changed_counts_rerun_their_dataset_and_touched_ones_do_not(again):
    filtered = again.folder / "results/a/qc/filtered.h5ad"
    os.utime(filtered)
    assert again.pending() == Counter()
    with filtered.open("ab") as file:
        file.write(b"changed")
    pending = again.pending()
    assert pending["setup:a"] == 1
    assert {name for name in pending if name.endswith(":b")} == set()


def test_datasets_in_another_order_make_the_index_anew_alone(again):
    again.config["datasets"] = dict(reversed(again.config["datasets"].items()))
    again.write()
    assert only(again.pending()) == {"index"}


def test_compute_options_rerun_nothing(again):
    again.config["compute"] = {"max_mem_mb": 100_000, "max_runtime": 100}
    again.write()
    assert again.pending() == Counter()


def test_a_config_edited_while_a_run_goes_on_is_not_read_by_its_later_jobs(tmp_path, config, stubs):
    """The step select edits the file and then starts a job as a cluster does: Snakemake in a process of its own."""
    config = {"datasets": {"a": config["datasets"]["a"]}, "sweep": {"seeds": [0]}}
    edited = {**config, "setup": {"n_top_genes": 77}, "de": {"delta": 0.5}}
    (tmp_path / "edited.yaml").write_text(yaml.safe_dump(edited))
    job = "--mode subprocess --target-jobs setup:dataset=a --allowed-rules setup --force --nolock --cores 1"
    hook = f"cp edited.yaml config.yaml; '{sys.executable}' -m snakemake -s '{ROOT}/Snakefile' --configfile config.yaml"
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "ldvae"
    script.write_text(
        '#!/bin/sh\necho "$@" >>calls.txt\n'
        f'[ "$1" != select ] || {{ {hook} {job} >child.txt 2>&1; }} || exit 9\n'
        f'exec "{shutil.which("ldvae", path=stubs["PATH"])}" "$@"\n'
    )
    script.chmod(0o755)
    place = Workplace(tmp_path, config, stubs | {"PATH": f"{script.parent}{os.pathsep}{stubs['PATH']}"})
    place.snakemake()
    calls = (tmp_path / "calls.txt").read_text().splitlines()
    assert sum(call.startswith("setup ") for call in calls) == 2
    assert not [call for call in calls if "--n-top-genes" in call or "--delta" in call]
    assert json.loads((tmp_path / "results/a/resolved.json").read_text())["de"]["delta"] == 0.25
    assert {"plan", "setup", "de"} <= set(place.pending())  # the edit is the next run's


# ---------------------------------------------------------------- resources


def test_qc_asks_for_less_where_a_large_input_is_read_in_parts(tmp_path, config, stubs, counts):
    asked = {}
    for megabytes in (10, 2000):
        large = tmp_path / f"{megabytes}.h5ad"
        shutil.copy(counts, large)
        os.truncate(large, megabytes * 2**20)  # HDF5 does not mind what follows
        dataset = {**config["datasets"]["a"], "input": str(large)}
        said = Workplace(tmp_path / str(megabytes), {**config, "datasets": {"a": dataset}}, stubs).snakemake("-n")
        block = next(block for block in said.split("\nrule ") if block.startswith("qc:"))
        asked[megabytes] = [int(re.search(rf"{what}=(\d+)", block)[1]) for what in ("mem_mb", "runtime")]
    assert 4000 < asked[10][0] < 4300
    assert 20 <= asked[10][1] < 30
    assert 15_900 < asked[2000][0] < 16_200  # 12000 + 2 x, where 4000 + 20 x would be 44,000
    assert 430 < asked[2000][1] < 460  # 240 + x / 10, where 20 + x / 2 would be 1,068


def test_training_alone_asks_for_a_gpu_unless_told_to_use_the_cpu(tmp_path, config, stubs):
    said = Workplace(tmp_path, config, stubs).snakemake("-n")
    blocks = said.split("\nrule ")
    gpus = {block.split(":")[0]: block for block in blocks if "gpu=1" in block}
    assert set(gpus) == {"train"}
    assert {block.split("dataset=")[1][0] for block in blocks if "gpu=1" in block} == {"b"}


@pytest.mark.parametrize("profile", ["slurm", "workstation"])
def test_the_profiles_are_found_from_a_clone(profile):
    code, said = LOADED.call(["-n", "--quiet", "--profile", profile], ROOT, dict(os.environ))
    assert code == 0, said


# ---------------------------------------------------------------- what is refused


def test_all_mistakes_are_told_before_the_first_job(tmp_path, config, stubs):
    config = yaml.safe_load(yaml.safe_dump(config))
    config["datasets"]["a"]["setup"] = {"batch_key": "doner"}
    config["datasets"]["c"] = {"input": "gone.h5ad"}
    place = Workplace(tmp_path, config, stubs)
    said = place.snakemake(check=False)
    assert "no obs column 'doner'. Did you mean 'donor'" in said
    assert "gone.h5ad is not there" in said
    assert "Traceback" not in said
    config["trian"] = {"lr": 1}
    place.write()
    assert "trian: there is no such key. Did you mean 'train'" in place.snakemake(check=False)
    assert place.files() == {"config.yaml"}


def test_a_dataset_that_fails_for_the_users_reason_is_tried_once_and_told_on_the_index(tmp_path, config):
    """Quality control runs for real; what comes after it is of no interest."""
    config = {"datasets": {"a": {**config["datasets"]["a"], "qc": {"min_genes": 9999, "n_mads": None}}}}
    place = Workplace(tmp_path, config, dict(os.environ))
    said = place.snakemake("--retries", "2", "--keep-going", check=False)
    assert said.count("min_genes = 9999") >= 1
    log = (tmp_path / "logs/qc/a.log").read_text()
    assert "min_genes = 9999" in log
    assert log.count("INFO ldvae qc on") == 1  # tried once, whatever the retries
    page = (tmp_path / "results/index.html").read_text()
    assert "Not finished" in page
    assert "min_genes = 9999" in page


# ---------------------------------------------------------------- where it runs


def test_two_runs_at_once_into_two_output_folders(tmp_path, config, stubs):
    places = []
    for name in ("one", "two"):
        place = Workplace(
            tmp_path, {**config, "outdir": f"{name}/out", "datasets": {"a": config["datasets"]["a"]}}, stubs
        )
        (tmp_path / "config.yaml").rename(tmp_path / f"{name}.yaml")
        places.append((place, name))
    places[1][0].loaded = Loaded()
    # Snakemake's run that ends first removes the locks of both, and the other may fail on that.
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda item: item[0].snakemake("--nolock", "--configfile", f"{item[1]}.yaml"), places))
    for name in ("one", "two"):
        assert (tmp_path / name / "out" / "results" / "index.html").exists()
        assert (tmp_path / name / "out" / "logs" / "train").is_dir()


def test_as_a_module_of_another_workflow_with_an_output_folder_of_its_own(tmp_path, counts, stubs):
    place = Workplace(tmp_path, {}, stubs)
    place.snakefile = write_module(tmp_path, ROOT / "workflow" / "Snakefile", counts)
    place.snakemake()
    assert {Path(name).parts[0] for name in place.files()} == {
        "Snakefile", "config.yaml", "summary.txt", "prepared", "programs",
    }  # fmt: skip
    assert place.pending() == Counter()


def test_counts_come_from_a_url(tmp_path, counts, stubs):
    with served(counts) as address:
        url = f"{address}/{counts.name.replace(' ', '%20')}"
        place = Workplace(tmp_path, {"datasets": {"web": url}, "sweep": {"seeds": [0]}}, stubs)
        place.snakemake("results/web/setup/counts.h5ad")
    assert (tmp_path / "results/web/qc/filtered.h5ad").exists()
    # Offline, what is made of it is used; what is not made yet is not.
    assert "cannot be reached" in place.snakemake("-n", "results/web/setup/counts.h5ad")
    assert only(place.pending("results/web/select/best.json")) == {"train", "select"}
    (tmp_path / "results/web/qc/filtered.h5ad").unlink()
    place.snakemake("-n", "results/web/setup/counts.h5ad", check=False)


def test_results_that_were_made_with_other_options_are_made_again_without_snakemakes_records(again):
    summary = again.folder / "results/a/qc/summary.json"
    summary.write_text(json.dumps({"settings": {"min_genes": 200, "n_mads": 8.0}}))
    shutil.rmtree(again.folder / ".snakemake")
    pending = again.pending()
    assert pending["qc:a"] == pending["setup:a"] == pending["report:a"] == 1
    assert not pending["qc:b"]
    assert "a: made with other options, files or runs than those of the config: qc.\n" in again.snakemake("-n")
    again.config["datasets"]["a"]["qc"] = {"min_genes": 200}
    again.write()
    assert not again.pending()["qc:a"]


def test_an_index_of_other_datasets_is_made_again_without_snakemakes_records(again):
    shutil.rmtree(again.folder / ".snakemake")
    record = again.folder / "results" / layout.INDEX_RECORD.path
    record.write_text(json.dumps({"datasets": ["a", "b"], "across": False}))
    assert not again.pending()
    for others in (["b", "a"], ["a", "b", "gone"]):
        record.write_text(json.dumps({"datasets": others, "across": False}))
        assert only(again.pending()) == {"index"}


# ---------------------------------------------------------------- form


def test_snakemakes_own_report_holds_the_figures_with_captions_under_their_sections(again):
    again.snakemake("--report", "report.html")
    page = (again.folder / "report.html").read_text()
    results, categories = (
        json.loads(re.search(rf"^\s*var {name} = (\{{.*\}});?$", page, re.M)[1]) for name in ("results", "categories")
    )
    assert set(categories) == {"a", "b", "all datasets"}
    sections = {name: {Path(path).name for path in paths} for name, paths in categories["a"].items()}
    assert sections == {
        "0 report": {"report.html"},
        "1 quality control": {"violins.png", "scatter.png"},
        "2 training": {"training_elbo.svg"},
        "4 programs": {"umap.svg", "top_genes.tsv", "programs.tsv"},
        "5 fit": {"fit_mean.svg"},
    }
    assert all(result["labels"].keys() == {"content"} for name, result in results.items() if "/a/" in name)
    assert "dotted line is where it stopped" in results["results/a/figures/training_elbo.svg"]["caption"]
    assert all(len(result["caption"]) > 30 and result["data_uri"] for result in results.values())
