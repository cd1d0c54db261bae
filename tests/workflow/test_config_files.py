"""Which config a call of Snakemake uses, and that it reads the same values as `ldvae check`."""

import json
import re

import pytest
import yaml
from workplace import ROOT, Workplace, write_counts

from ldvae import cli


@pytest.fixture
def clone(tmp_path, stubs):
    """A folder with a config/config.yaml that names the dataset shipped, and a config of the user's own."""
    place = Workplace(tmp_path, {"datasets": {"mine": "mine.h5ad"}, "sweep": {"seeds": [0]}}, stubs)
    write_counts(tmp_path / "mine.h5ad")
    (tmp_path / "config.yaml").rename(tmp_path / "mine.yaml")
    (tmp_path / "config").mkdir()
    shipped = {"datasets": {"shipped": "demo:pbmc68k"}, "sweep": {"seeds": [0, 1]}, "train": {"lr": 0.02}}
    (tmp_path / "config" / "config.yaml").write_text(yaml.safe_dump(shipped))
    place.snakefile = ROOT / "workflow" / "Snakefile"  # adds no --configfile
    return place


def write(place, name, config):
    (place.folder / name).write_text(yaml.safe_dump(config))


def planned(place, *arguments):
    """The options and runs of each dataset that a call would make, from the files that the rule plan writes."""
    place.snakemake("--until", "plan", *arguments)
    folders = (place.folder / "results").iterdir()
    return {
        folder.name: json.loads((folder / "resolved.json").read_text())
        | {"seeds": [line.split("\t")[2] for line in (folder / "runs.tsv").read_text().splitlines()[1:]]}
        for folder in folders
    }


def test_without_arguments_config_yaml_is_used(clone):
    found = planned(clone)
    assert list(found) == ["shipped"]
    assert (found["shipped"]["seeds"], found["shipped"]["train"]["lr"]) == (["0", "1"], 0.02)


def test_a_config_file_takes_the_place_of_config_yaml(clone):
    found = planned(clone, "--configfile", "mine.yaml")
    assert list(found) == ["mine"]
    assert (found["mine"]["seeds"], found["mine"]["train"]["lr"]) == (["0"], 0.01)


@pytest.mark.thorough
def test_of_several_config_files_the_later_ones_win_key_by_key(clone):
    write(clone, "more.yaml", {"datasets": {"other": "demo:pbmc68k"}, "train": {"patience": 9}})
    write(clone, "last.yaml", {"train": {"lr": 0.005}, "sweep": {"seeds": [5, 6]}})
    found = planned(clone, "--configfile", "mine.yaml", "more.yaml", "last.yaml")
    assert sorted(found) == ["mine", "other"]
    assert {tuple(of["seeds"]) for of in found.values()} == {("5", "6")}
    assert {(of["train"]["lr"], of["train"]["patience"]) for of in found.values()} == {(0.005, 9)}


@pytest.mark.thorough
def test_values_on_the_command_line_win_over_files(clone):
    found = planned(clone, "--config", "train={lr: 1e-3, max_epochs: none}", "outdir=.")
    assert (list(found), found["shipped"]["train"]["lr"]) == (["shipped"], 1e-3)
    train = "train={lr: 5e-3, early_stopping: false}"
    found = planned(clone, "--configfile", "mine.yaml", "--config", train, "setup={n_top_genes: 12}")
    assert (found["mine"]["train"]["lr"], found["mine"]["train"]["early_stopping"]) == (0.005, False)
    assert found["mine"]["setup"]["n_top_genes"] == 12


def test_datasets_on_the_command_line_take_the_place_of_config_yaml(clone):
    found = planned(clone, "--config", "datasets={mine: mine.h5ad}")
    assert (list(found), found["mine"]["train"]["lr"]) == (["mine"], 0.01)


def test_a_config_file_without_datasets_is_told_not_run_with_the_demo(clone):
    write(clone, "part.yaml", {"train": {"lr": 0.005}})
    said = clone.snakemake("-n", "--configfile", "part.yaml", check=False)
    assert "datasets: expected at least one" in said
    assert "shipped" not in said


def test_a_mistake_in_the_default_config_file_is_told_with_its_line(clone):
    """Snakemake's own reader does not tell where it is, or ends in a traceback."""
    wrong = {
        b"datasets:\n\tmine: x.h5ad\n": "is not valid YAML: .*, line 2, column 1",
        b"datasets: {a: caf\xe9.h5ad}\n": "is not valid YAML: 'utf-8' codec can't decode byte 0xe9",
    }
    for content, message in wrong.items():
        (clone.folder / "config" / "config.yaml").write_bytes(content)
        said = clone.snakemake("-n", check=False)
        assert re.search(f"config/config.yaml: {message}", said)
        assert "Traceback" not in said
        assert len(said.splitlines()) < 10


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("sections", "accepted"),
    [
        ("train: {lr: 1e-3, max_epochs: none}\nqc: {n_mads: none, doublets: off}", True),
        ("de: {contrasts: [{column: stage, group1: 1, group2: yes}]}", True),
        ("train: {lr: fast}\nmodel: {n_latent: 0, gene_likelihood: nbb}", False),
        ("sweep: {grid: {n_latent: []}}", False),
    ],
)
def test_snakemake_and_ldvae_check_accept_and_refuse_the_same(clone, sections, accepted, capsys, monkeypatch):
    import anndata

    adata = anndata.read_h5ad(clone.folder / "mine.h5ad")
    adata.obs["stage"] = ["1", "True"] * 30
    adata.write_h5ad(clone.folder / "mine.h5ad")
    (clone.folder / "mine.yaml").write_text(f"datasets: {{mine: mine.h5ad}}\n{sections}\n")
    monkeypatch.chdir(clone.folder)
    assert cli.main(["check", "mine.yaml"]) == (0 if accepted else 2)
    told = capsys.readouterr()
    said = clone.snakemake("-n", "--configfile", "mine.yaml", check=accepted)
    if accepted:
        notes = [line.removeprefix("mine.yaml: ") for line in told.out.splitlines() if "YAML reads" in line]
        assert len(notes) == sections.count("group")
        assert all(note in said for note in notes)
    else:
        problems = told.err.partition(": ")[2].strip().splitlines()
        assert all(problem.lstrip("- ") in said for problem in problems[1:] or problems)
        assert len(said.splitlines()) < 20


@pytest.mark.thorough
def test_runs_of_an_older_version_are_not_trained_again_once_renamed(again, monkeypatch, capsys):
    from ldvae.config import expand_config

    for dataset in expand_config(again.config).datasets.values():
        for run in dataset.runs.values():
            folder = again.folder / "results" / dataset.name / "runs" / run.id
            old = f"k14-s{run.seed}-86afe3"
            metrics = {"run": old, "setting": "k14-86afe3", "seed": run.seed, "params": run.params}
            (folder / "metrics.json").write_text(json.dumps(metrics))
            folder.rename(folder.with_name(old))
    assert again.pending("--forcerun", "select")["train"] == 4
    assert "`ldvae migrate .`" in again.snakemake("-n")
    monkeypatch.chdir(again.folder)
    assert cli.main(["migrate"]) == 0
    assert "is now k14-s0-" in capsys.readouterr().out
    assert again.pending("--forcerun", "select")["train"] == 0
