"""Programs in one file: others score cells as we do, and a damaged file is refused."""

import json
import zipfile

import numpy as np
import pandas as pd
import pytest

from ldvae import programs as gp
from ldvae import results as layout
from ldvae.cli import main
from ldvae.errors import InputError
from ldvae.io import write_table
from ldvae.steps.programs import write_model


@pytest.fixture
def frame(mixed, found, counted):
    frame = gp.frame(found, mixed.mean, mixed.theta)
    return gp.calibrate(frame, counted.counts[:200], list(counted.loadings.index))


def test_a_file_gives_the_scores_of_what_was_written(frame, counted, tmp_path):
    path = gp.write_reference(frame, tmp_path / "a.zip", {"licence": "CC0", "labels": {"P1": "T cells"}})
    reference = gp.read_reference(path)
    genes = list(counted.loadings.index)
    expected = gp.project(frame, counted.counts[:50], genes)
    found = reference.project(counted.to_anndata()[:50])
    np.testing.assert_allclose(found.scores, expected.scores)
    pd.testing.assert_series_equal(found.outside, expected.outside, check_index=False)
    assert reference.about["licence"] == "CC0"
    assert reference.about["programs"] == list(frame.programs)
    with pytest.raises(InputError, match=r"No obs column 'lane'\. There are: batch"):
        reference.project(counted.to_anndata(), batch_key="lane")
    with pytest.raises(InputError, match="adata must be an AnnData, found csr_matrix"):
        reference.project(counted.counts)
    with pytest.raises(InputError, match=r"No layer 'raw'\. There are: none"):
        reference.project(counted.to_anndata(), layer="raw")


def test_the_same_programs_give_the_same_bytes(frame, tmp_path):
    for name in ("a.zip", "b.zip"):
        gp.write_reference(frame, tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_files_that_are_no_programs_or_were_edited_are_refused(frame, tmp_path):
    path = gp.write_reference(frame, tmp_path / "a.zip")
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    assert parts["loadings.tsv"].startswith(b"gene\tP1\t")
    edited = parts | {"loadings.tsv": parts["loadings.tsv"][:-2]}
    newer = parts | {"about.json": json.dumps(json.loads(parts["about.json"]) | {"format": 99}).encode()}
    missing = {"about.json": parts["about.json"]}
    for content, message in ((edited, "is damaged or was edited"), (newer, "newer ldvae"), (missing, "no programs")):
        with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
            for name, data in content.items():
                file.writestr(name, data)
        with pytest.raises(InputError, match=message):
            gp.read_reference(tmp_path / "other.zip")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(InputError, match=r"text\.zip: holds no programs"):
        gp.read_reference(tmp_path / "text.zip")
    with pytest.raises(InputError, match="is not there"):
        gp.read_reference(tmp_path / "nowhere.zip")


def test_packed_programs_score_cells_without_the_results_they_came_from(frame, counted, tmp_path):
    results = tmp_path / "results" / "kang"
    write_model(frame, layout.PROGRAMS_MODEL.at(results))
    table = pd.DataFrame({"label": "T cells", "top_positive": "A, B"}, pd.Index(frame.programs, name="program"))
    for column in ("technical", "top_negative", "best_association"):
        table[column] = ""
    write_table(table, layout.PROGRAMS.at(results), index="program")
    layout.PROGRAMS_SUMMARY.at(results).write_text(json.dumps({"n_obs": 1200}))
    packed = tmp_path / "kang.zip"
    command = ["pack", "--results", str(results), "--output", str(packed), "--licence", "CC-BY-4.0"]
    assert main(command) == 0
    about = gp.read_reference(packed).about
    assert (about["title"], about["n_obs"], about["labels"]["P1"]) == ("kang", 1200, "T cells")

    adata = counted.to_anndata()[:60]
    adata.var = pd.DataFrame({"gene_ids": [f"ENSG{g:011d}" for g in range(adata.n_vars)]}, adata.var_names)
    del adata.obsm["X_programs"], adata.varm["program_loadings"]
    adata.write_h5ad(tmp_path / "new.h5ad")
    elsewhere = tmp_path / "elsewhere"
    assert main(["project", "--results", str(elsewhere), "--name", "new", "--input", str(tmp_path / "new.h5ad")]) == 2
    command = ["project", "--results", str(elsewhere), "--name", "new", "--input", str(tmp_path / "new.h5ad")]
    assert main([*command, "--programs", str(packed)]) == 0
    scores = layout.PROJECTED_SCORES.read_table(elsewhere, projection="new")
    expected = gp.project(frame, adata.X, list(adata.var_names)).scores
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-3)
    cells = layout.PROJECTED_CELLS.read_table(elsewhere, projection="new")
    assert list(cells)[:3] == ["misfit", "outside", "error_P1"]
    summary = layout.PROJECTED_SUMMARY.read(elsewhere, projection="new")
    assert summary["programs"]["licence"] == "CC-BY-4.0"
    assert summary["n_outside"] == cells["outside"].sum()


def test_folders_without_programs_and_other_names_are_told(tmp_path, capsys):
    assert main(["pack", "--results", str(tmp_path), "--output", str(tmp_path / "a.zip")]) == 2
    assert "holds neither programs/model.npz (which `ldvae programs` writes)" in capsys.readouterr().err
    assert main(["pack", "--results", str(tmp_path), "--output", str(tmp_path / "a.tar")]) == 2
    assert "expected a name that ends in .zip" in capsys.readouterr().err
