"""The results folder: each verb finds in it what it needs, and reads nothing else."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from anndata.io import read_h5ad

import ldvae.data.present
from ldvae import LinearSCVI, cli, results
from ldvae.results import FILES, File, inputs, outputs
from ldvae.steps import VERBS

# What each verb is given besides --results, in the order of the workflow.
FLAGS = {
    "qc": ["--input", "counts.h5ad", "--batch-key", "batch"],
    "setup": ["--batch-key", "batch", "--genes", "all"],
    "train": ["--seed", "0", "--n-latent", "2", "--max-epochs", "2", "--device", "cpu"],
    "select": [],
    "programs": [],
    "annotate": ["--normalized-layer", "--n-neighbors", "5"],
    "de": ["--contrasts", '[{"column": "identity"}, {"column": "leiden"}]', "--n-samples", "100"],
    "project": ["--name", "other", "--input", "counts.h5ad"],
    "report": [],
}
# How often the model checks that entries are counts: once for all cells.
CHECKS = {"train": 1, "annotate": 1, "de": 1}
# The same for verbs that read the results of several datasets.
FLAGS_OF_ALL = {"across": ["--datasets", "one", "two"], "index": []}


def copied(files: list[File], source: Path, target: Path) -> None:
    """Copy files, those of runs and projections for each, with what a folder declares."""
    for file in files:
        for path in source.glob(file.path.format(run="*", projection="*")):
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, place, dirs_exist_ok=True)
            else:
                shutil.copy(path, place)


def written(folder: Path) -> set[Path]:
    """Files of a results folder; of those of a declared folder, the folder alone."""
    folders = [path for file in FILES if file.is_folder for path in folder.glob(file.path.format(run="*"))]
    files = {path for path in folder.rglob("*") if path.is_file() and not set(path.parents) & set(folders)}
    return files | set(folders)


def test_every_verb_that_has_files_is_tried():
    tried = FLAGS.keys() | FLAGS_OF_ALL.keys()
    assert {file.writer for file in FILES} - {"plan"} == tried  # what `plan` prints, the rules write
    assert {verb for file in FILES for verb in file.readers} <= tried <= VERBS.keys()


@pytest.mark.thorough
@pytest.mark.usefixtures("undrawn")
def test_each_verb_reads_what_it_declares_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    simulated = ["--n-obs", "150", "--n-vars", "90", "--n-up", "15", "--n-down", "5"]
    assert cli.main(["simulate", "--output", "counts.h5ad", *simulated]) == 0
    made = tmp_path / "made"
    at, asked = File.at, set()

    def noted(file: File, folder: Path, **names: str) -> Path:
        asked.add(file)
        return at(file, folder, **names)

    checks, verify = [], ldvae.data.present.verify_counts

    def counted(*arguments: object) -> None:
        checks.append(1)
        verify(*arguments)

    monkeypatch.setattr("ldvae.posterior.BATCH_SIZE", 4)
    monkeypatch.setattr(File, "at", noted)
    monkeypatch.setattr(ldvae.data.present, "verify_counts", counted)
    for verb, flags in FLAGS.items():
        # A run reads no other run.
        for number in range(2 if verb == "train" else 1):
            folder = tmp_path / f"{verb}-{number}" / "kang"
            folder.mkdir(parents=True)
            copied(inputs(verb), made, folder)
            before = written(folder)
            asked.clear()
            checks.clear()
            more = ["--seed", str(number)] if verb == "train" else []
            assert cli.main([verb, "--results", str(folder), *flags, *more]) == 0, verb
            assert {file.path for file in asked} == {file.path for file in [*inputs(verb), *outputs(verb)]}, verb
            assert len(checks) == CHECKS.get(verb, 0), verb
            names = {"run": "".join(results.runs_of(folder)) if verb == "train" else "", "projection": "other"}
            expected = {file.path.format(**names) for file in outputs(verb)}
            assert {str(path.relative_to(folder)) for path in written(folder) - before} == expected, verb
            copied(outputs(verb), folder, made)
    assert len(results.runs_of(made)) == 2
    best = results.MODEL.at(made, run=results.BEST.read(made)["run"])
    expected = LinearSCVI.load(best, read_h5ad(results.COUNTS.at(made)))
    layer = read_h5ad(results.ANNOTATED.at(made)).layers["ldvae_normalized"]  # written 128 cells at a time
    np.testing.assert_allclose(layer, expected.get_normalized_expression(give_mean=True), rtol=1e-5)
    together = tmp_path / "together"
    for verb, flags in FLAGS_OF_ALL.items():
        folder = tmp_path / verb
        for name in ("one", "two"):
            copied(inputs(verb), made, folder / name)
        copied(inputs(verb), together, folder)
        asked.clear()
        assert cli.main([verb, "--results", str(folder), *flags]) == 0, verb
        assert {file.path for file in asked} == {file.path for file in [*inputs(verb), *outputs(verb)]}, verb
        copied(outputs(verb), folder, together)
