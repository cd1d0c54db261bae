"""Programs are found where they are, the same from whatever axes, and nothing is claimed that cannot be known."""

import numpy as np
import pandas as pd
import pytest
from made_fits import N_VARS, Fits, cosines, make_fits, weighted_truth

from ldvae import programs as gp
from ldvae.errors import InputError
from ldvae.programs.find import _doubts


@pytest.mark.parametrize("scenario", ["mixed", "gauss", "additive"])
def test_programs_are_found_with_their_sign_and_number_where_raw_factors_are_not(scenario):
    fits = make_fits(scenario, seed=1)
    programs = fits.find()
    truth = weighted_truth(fits)
    cosine, column = cosines(truth, programs.weighted)
    assert programs.scores.shape[1] == 8
    assert cosine.mean() > 0.95
    assert cosine.min() > 0.9  # positive: the sign is right too
    r = [np.corrcoef(fits.true_scores.iloc[:, k], programs.scores.iloc[:, c])[0, 1] for k, c in enumerate(column)]
    assert min(r) > 0.85
    raw = [np.abs(cosines(truth, own)[0]).mean() for own in fits.weighted]
    assert max(raw) < 0.8


@pytest.mark.thorough
def test_effects_count_from_the_cells_without_a_program_only_where_there_are_such():
    assert not make_fits("mixed").find().intercept
    assert not make_fits("gauss").find().intercept
    assert make_fits("additive").find().intercept
    assert make_fits("mixed").find(baseline="mean").scores.shape[1] == 9


def changed(fits, rng):
    """The same fits with permuted, flipped, rotated, rescaled and shifted factors, in another order."""
    scores, loadings = [], []
    for z, w in zip(fits.scores, fits.loadings, strict=True):
        k = z.shape[1]
        turn = np.linalg.qr(rng.normal(size=(k, k)))[0] @ np.diag(rng.choice([-1, 1], k) * rng.uniform(0.2, 5, k))
        turn = turn[:, rng.permutation(k)]
        scores.append(z.astype(float) @ turn + rng.normal(size=k))
        loadings.append(w @ np.linalg.inv(turn).T + rng.normal(size=(1, k)))
    order = rng.permutation(len(scores))
    return fits._replace(scores=[scores[i] for i in order], loadings=[loadings[i] for i in order])


@pytest.mark.thorough
@pytest.mark.parametrize("scenario", ["mixed", "gauss", "additive"])
def test_programs_do_not_depend_on_the_axes_of_the_fits(scenario):
    fits = make_fits(scenario)
    programs, other = fits.find(), changed(fits, np.random.default_rng(5)).find()
    for name in ("loadings", "weighted", "scores", "lower", "upper"):
        first, second = getattr(programs, name), getattr(other, name)
        np.testing.assert_allclose(first, second, atol=1e-6 * np.abs(first).to_numpy().max(), err_msg=name)
    np.testing.assert_allclose(programs.table["stability"], other.table["stability"], atol=1e-6)


def test_programs_do_not_depend_on_the_order_of_cells_and_genes(mixed, found):
    rng = np.random.default_rng(0)
    cells, genes = rng.permutation(len(mixed.scores[0])), rng.permutation(len(mixed.mean))
    other = Fits(
        [z[cells] for z in mixed.scores],
        [w[genes] for w in mixed.loadings],
        mixed.mean[genes],
        mixed.theta[genes],
        mixed.true_scores.iloc[cells],
        mixed.true_loadings.iloc[genes],
    ).find()
    np.testing.assert_allclose(other.scores.loc[found.scores.index], found.scores, atol=1e-5)
    np.testing.assert_allclose(other.loadings.loc[found.loadings.index], found.loadings, atol=1e-5)


def test_with_one_fit_the_programs_come_with_what_cannot_be_known():
    fits = make_fits(n_fits=1, noise=0.02)
    programs = fits.find()
    assert "Fit at least three seeds" in programs.warnings[0]
    assert programs.scores.shape[1] == 8
    assert cosines(weighted_truth(fits), programs.weighted)[0].min() > 0.9
    assert programs.lower.isna().all(axis=None)
    assert programs.table["stability"].isna().all()
    assert programs.correlations.empty


def test_two_fits_are_enough_for_a_rank_and_intervals():
    programs = make_fits(n_fits=2).find()
    assert programs.rank == 8
    assert programs.lower.notna().all(axis=None)
    assert programs.warnings == []


def test_the_threshold_is_that_of_all_that_counts_as_found(mixed):
    strict, mild = (
        gp.find_programs(mixed.scores, mixed.loadings, mean=mixed.mean, theta=mixed.theta, rank=8, threshold=threshold)
        for threshold in (0.9999, 0.5)
    )
    for found, threshold in ((strict, 0.9999), (mild, 0.5)):
        assert (found.table["n_runs_found"] == (found.cosines > threshold).sum(axis=1)).all()
    assert (strict.table["settled"] < mild.table["settled"]).all()
    strictest = gp.find_programs(mixed.scores, mixed.loadings, mean=mixed.mean, theta=mixed.theta, threshold=0.9999)
    assert strictest.rank < 8


def test_more_genes_than_cells_are_no_hindrance():
    programs = make_fits(n_obs=150, noise=0.05).find()
    assert programs.scores.shape == (150, 8)


def test_one_factor_is_one_program():
    rng = np.random.default_rng(0)
    scores, loadings = rng.exponential(size=(200, 1)), rng.normal(size=(50, 1)) ** 3
    programs = gp.find_programs([scores, -scores], [loadings, -loadings], mean=np.full(50, 1.0))
    assert programs.scores.shape == (200, 1)
    assert abs(np.corrcoef(programs.scores.iloc[:, 0], scores[:, 0])[0, 1]) > 1 - 1e-9
    assert "there may be more programs than factors" in programs.warnings[0]


def test_collapsed_factors_are_called_so():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="All factors are collapsed"):
        gp.find_programs([1e-4 * rng.normal(size=(100, 5))] * 2, [rng.normal(size=(40, 5))] * 2, mean=np.ones(40))


def test_partly_collapsed_factors_are_left_out():
    fits = make_fits()
    loadings = [np.hstack([w, np.random.default_rng(0).normal(size=(N_VARS, 3))]) for w in fits.loadings]
    scores = [np.hstack([z, np.zeros((len(z), 3), z.dtype)]) for z in fits.scores]
    np.testing.assert_allclose(
        fits._replace(scores=scores, loadings=loadings).find().scores, fits.find().scores, atol=1e-5
    )


def test_a_gene_without_counts_has_no_loading_and_disturbs_nothing(mixed, found):
    loadings = [np.vstack([w, np.full((1, w.shape[1]), 50.0)]) for w in mixed.loadings]
    other = gp.find_programs(
        mixed.scores, loadings, mean=np.append(mixed.mean, 0), theta=np.append(mixed.theta, 1), rank=found.rank
    )
    assert (other.loadings.iloc[-1] == 0).all()
    np.testing.assert_allclose(other.scores, found.scores, atol=1e-6)


def test_tables_of_a_pca_will_do():
    rng = np.random.default_rng(0)
    cells, genes = [f"c{i}" for i in range(300)], [f"g{i}" for i in range(60)]
    on = (rng.random((300, 3)) < 0.3) * rng.uniform(0.5, 1.5, (300, 3))
    weights = np.kron(np.eye(6), np.ones((10, 1)))[:, :3]
    x = on @ weights.T + 0.1 * rng.normal(size=(300, 60))
    u, d, vt = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    scores, loadings = pd.DataFrame(u[:, :3] * d[:3], cells), pd.DataFrame(vt[:3].T, genes)
    programs = gp.find_programs([scores], [loadings], mean=np.ones(60))
    assert list(programs.loadings.index) == genes
    assert list(programs.scores.index) == cells
    assert cosines(gp.gauge(weights, np.ones(60)), programs.weighted)[0].min() > 0.98


def test_means_of_another_number_of_genes_are_refused(mixed):
    with pytest.raises(InputError, match="found 3 values for 800 genes"):
        gp.find_programs(mixed.scores, mixed.loadings, mean=np.ones(3))


def test_genes_are_ranked_by_loading_times_information(found):
    top = gp.top_genes(found, 5)
    first = top[(top["program"] == "P1") & (top["side"] == "positive")]
    assert list(first["gene"]) == list(found.weighted["P1"].nlargest(5).index)
    assert list(first["rank"]) == [1, 2, 3, 4, 5]
    last = top[(top["program"] == "P1") & (top["side"] == "negative")]
    assert list(last["gene"]) == list(found.weighted["P1"].nsmallest(5).index)


def test_the_two_sides_without_negative_numbers_add_up_to_the_program(found):
    sides = gp.split_sides(found)
    assert (sides >= 0).all(axis=None)
    np.testing.assert_allclose(sides.loc["P2_pos"] - sides.loc["P2_neg"], found.weighted["P2"])


def test_a_program_of_one_fit_only_is_not_settled_and_those_of_all_are():
    fits = make_fits(n_fits=5)
    programs = fits.find()
    assert (programs.table["settled"] == 1).all()
    rng = np.random.default_rng(0)
    own = np.where(rng.random(N_VARS) < 0.1, rng.exponential(1.5, N_VARS), 0)[:, None]
    z = np.hstack([fits.scores[0], 3 * (rng.random((len(fits.scores[0]), 1)) < 0.2)])
    other = fits._replace(
        scores=[z, *fits.scores[1:]], loadings=[np.hstack([fits.loadings[0], own]), *fits.loadings[1:]]
    )
    programs = other.find(rank=9)
    assert (programs.table["settled"] < 0.9).sum() == 1
    unsettled = programs.table["settled"].idxmin()
    assert any(warning.startswith(f"{unsettled}: fewer than 90%") for warning in programs.warnings)


@pytest.mark.thorough
def test_settled_foretells_what_another_set_of_as_many_fits_finds():
    fits = make_fits(n_fits=12)
    rng, own = np.random.default_rng(0), []
    length = np.linalg.norm(fits.true_loadings.iloc[:, 1] * gp.information(fits.mean, fits.theta))
    for _ in range(12):  # each fit has the cells of one program, and genes of its own beside the shared ones
        genes = rng.normal(size=(N_VARS, 1)) / gp.information(fits.mean, fits.theta)[:, None]
        own.append(genes * length / np.sqrt(N_VARS))
    cells = fits.true_scores.to_numpy()[:, [1]]
    scores = [np.hstack([table, cells]) for table in fits.scores]
    loadings = [np.hstack([table, genes]) for table, genes in zip(fits.loadings, own, strict=True)]
    first, second = (
        fits._replace(scores=scores[half], loadings=loadings[half]).find(rank=8) for half in (slice(6), slice(6, 12))
    )
    found = np.abs(cosines(first.weighted, second.weighted)[0]) > 0.9
    assert found.sum() == 7
    # A half of the fits is a part of them, and has the cosine of 0.93 with their mean.
    np.testing.assert_array_equal(first.table["settled"] >= 0.9, found)


def test_no_program_that_contradicts_its_genes_comes_without_a_warning():
    # One dominant identity, and small activities that are as frequent in it as elsewhere but share none of its genes.
    rng = np.random.default_rng(0)
    z = np.c_[rng.random(1500) < 0.5, rng.random((1500, 2)) < 0.2].astype(float)
    w = np.zeros((N_VARS, 3))
    w[:400, 0], w[400:430, 1], w[430:460, 2] = 3, 1, 1
    # Fits in which the activities lower the genes of the identity a little.
    w[:400, 1:] = -0.4
    fits = [z + 0.02 * rng.normal(size=z.shape) for _ in range(3)]
    programs = gp.find_programs(fits, [w] * 3, mean=np.ones(N_VARS))
    contradicting = programs.table.index[programs.table["agreement"] < 0.5]
    assert len(contradicting)
    assert any(", ".join(contradicting) in warning for warning in programs.warnings)


def test_doubts_of_one_and_of_several_programs_are_grammatical():
    table = pd.DataFrame({"agreement": [0.9, 0.4, 0.3], "settled": [1.0, 0.5, 0.5]}, ["P1", "P2", "P3"])
    contradicting, unsettled = _doubts(table)
    assert contradicting.startswith("P2, P3: the cells' scores and the programs' own genes")
    assert "agree on them, so other seeds may not find them" in unsettled
    contradicting, unsettled = _doubts(table.drop("P3"))
    assert contradicting.startswith("P2: the cells' scores and the program's own genes")
    assert "agree on it, so other seeds may not find it" in unsettled
