"""A sweep from Python is the same fits as one by one, and gives what they share."""

import numpy as np
import pytest

from ldvae import InputError, LinearSCVI, fit_sweep
from ldvae.config import ModelConfig, SweepConfig, TrainConfig
from ldvae.data import split_cells
from ldvae.simulate import simulate


@pytest.fixture(scope="module")
def adata():
    sizes = {"n_obs": 2500, "n_vars": 150, "n_identity": 2, "n_activity": 1, "n_up": 40, "n_down": 10}
    adata = simulate("gauss", **sizes, n_batch=1, mean_total=600, seed=0).to_anndata()
    LinearSCVI.setup_anndata(adata)
    return adata


@pytest.fixture(scope="module")
def fits(adata):
    return fit_sweep(
        adata, SweepConfig(seeds=[0, 1, 2]), model=ModelConfig(n_latent=5), train=TrainConfig(max_epochs=80)
    )


def test_a_sweep_fits_every_setting_from_every_seed(adata):
    grid = {"n_latent": [2, 3], "gene_likelihood": ["poisson"]}
    fits = fit_sweep(adata, SweepConfig(seeds=[0, 1], grid=grid), train=TrainConfig(max_epochs=1))
    assert list(zip(fits.runs["n_latent"], fits.runs["seed"], strict=True)) == [(2, 0), (2, 1), (3, 0), (3, 1)]
    assert set(fits.runs["gene_likelihood"]) == {"poisson"}
    assert [model.n_latent for model in fits.models.values()] == [2, 2, 3, 3]
    assert fits.runs[["elbo_train", "elbo_validation", "elbo_test"]].notna().all(axis=None)
    with pytest.raises(InputError, match="The sweep has 2 settings"):
        fits.get_programs()
    with pytest.raises(InputError, match="There is no setting 'k9'"):
        fits.get_programs("k9")


@pytest.mark.thorough
def test_a_fit_of_a_sweep_is_the_fit_made_alone(adata, fits):
    alone = LinearSCVI(adata, n_latent=5, seed=1)
    split = split_cells(adata.n_obs, 0.8, 0.1, seed=0)
    alone.fit(split, TrainConfig(max_epochs=80).fit_config(len(split.train)), seed=1)
    run = fits.runs.index[fits.runs["seed"] == 1][0]
    np.testing.assert_array_equal(fits.models[run].get_loadings(), alone.get_loadings())


@pytest.mark.thorough
def test_the_programs_that_fits_share_are_the_simulated_ones(adata, fits):
    programs = fits.get_programs()
    truth = adata.obsm["X_programs"]
    assert programs.rank == 3
    best = np.abs(np.corrcoef(truth.T, programs.scores.T)[:3, 3:]).max(axis=1)
    assert (best > 0.8).all()  # 0.83 to 0.96 in nine sweeps (three draws, three sets of seeds); it differs by processor
    assert list(programs.scores.index) == list(adata.obs_names)
    assert list(programs.loadings.index) == list(adata.var_names)
    assert (programs.table["n_runs_found"] >= 2).all()


@pytest.mark.thorough
def test_a_reference_scores_other_cells_by_names_or_identifiers(adata, fits):
    named = adata.copy()
    named.var["gene_ids"] = [f"ENSG{g:011d}" for g in range(adata.n_vars)]
    models = list(fits.models.values())
    models[0].adata = named
    try:
        reference = models[0].get_reference(*models[1:])
    finally:
        models[0].adata = adata
    programs = fits.get_programs()
    other = named[::-1, 140::-1].copy()  # in another order, and without nine genes
    other.var_names = [f"{name}.3" for name in other.var["gene_ids"]]
    found = reference.project(other)
    assert found.matched == "gene identifiers with the names of the data"
    assert len(found.missing) == 9
    for name in programs.scores:
        assert abs(np.corrcoef(found.scores[name][::-1], programs.scores[name])[0, 1]) > 0.9
    assert found.outside.mean() < 0.03
    assert reference.frame.directions.shape == (adata.n_vars, 5)
    assert fits.get_reference().frame.usual.shape == (101,)


@pytest.mark.thorough
def test_a_single_model_gives_programs_and_says_what_they_lack(fits):
    programs = next(iter(fits.models.values())).get_programs()
    assert "Fit at least three seeds" in programs.warnings[0]
    assert programs.lower.isna().all(axis=None)


def test_an_unknown_option_is_refused_before_anything_is_trained(adata):
    with pytest.raises(InputError, match="nlatent"):
        fit_sweep(adata, SweepConfig(grid={"nlatent": [2]}))
