"""The results folder as Python reads it."""

import anndata as ad
import pandas as pd
import pytest
from results_folder import World, write_results

import ldvae
from ldvae.errors import InputError
from ldvae.results import FILES, NAMED


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    write_results(root, World(n_obs=60, n_seeds=2, n_latents=(4,), n_contrasts=1))
    return root / "demo"


def test_every_file_that_is_there_is_read_by_its_name(folder):
    results = ldvae.read_results(folder)
    assert {"loadings", "programs", "scores", "annotated", "de", "history", "best"} & set(results.files.index)
    for name in results.files.index:
        assert getattr(results, name) is not None


def test_tables_are_indexed_and_typed_as_their_entry_says(folder):
    results = ldvae.read_results(folder)
    assert results.programs.index.name == "program"
    assert isinstance(results.annotated, ad.AnnData)
    assert isinstance(results.best, dict)
    assert "contrasts" in results.de
    assert all(isinstance(table, pd.DataFrame) for table in results.de.values())


def test_files_of_runs_are_by_the_name_of_the_run(folder):
    results = ldvae.read_results(folder)
    assert list(results.history) == list(results.metrics)
    assert all("elbo_train" in table for table in results.history.values())


def test_figures_take_the_tables_as_they_are_read(folder):
    results = ldvae.read_results(folder)
    ax = ldvae.pl.loadings(results.top_genes, "P1", show=False)
    assert ax.get_yticklabels()


def test_what_is_not_there_names_the_verb_that_writes_it(folder, tmp_path):
    (tmp_path / "kang" / "qc").mkdir(parents=True)
    (tmp_path / "kang" / "qc" / "summary.json").write_text("{}")
    with pytest.raises(InputError, match=r"loadings.tsv is not there; `ldvae programs` writes it"):
        _ = ldvae.read_results(tmp_path / "kang").loadings


def test_a_misspelt_name_is_an_attribute_error_with_the_likely_one(folder):
    with pytest.raises(AttributeError, match="did you mean loadings"):
        _ = ldvae.read_results(folder).loading


def test_the_folder_above_names_the_datasets_in_it(folder):
    with pytest.raises(InputError, match=r"holds those of demo\. Name one"):
        ldvae.read_results(folder.parent)


def test_every_file_has_a_name():
    assert len(NAMED) == len(FILES)
    assert not any(hasattr(ldvae.results.ResultsFolder, name) for name in NAMED)
