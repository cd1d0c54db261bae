"""Scores of other cells agree with those of the cells that the programs were made from."""

import numpy as np
import pandas as pd
import pytest
from made_fits import N_VARS
from scipy import sparse

from ldvae import programs as gp
from ldvae.errors import InputError


def test_scores_of_other_cells_follow_the_truth_on_the_scale_of_the_old_ones(mixed, found, counted):
    result = gp.project(gp.frame(found, mixed.mean, mixed.theta), counted.counts, list(counted.loadings.index))
    for name in found.scores:
        slope, start = np.polyfit(found.scores[name], result.scores[name], 1)
        assert 0.8 < slope < 1.2
        assert abs(start) < 0.2
        assert np.corrcoef(found.scores[name], result.scores[name])[0, 1] > 0.85
    assert result.missing == []
    np.testing.assert_allclose(result.covered, 1)


def test_scores_depend_neither_on_the_order_of_the_genes_nor_on_foreign_ones(mixed, found, counted):
    frame = gp.frame(found, mixed.mean, mixed.theta)
    genes = np.array(counted.loadings.index)
    straight = gp.project(frame, counted.counts[:200], genes)
    order = np.random.default_rng(0).permutation(N_VARS)
    more = sparse.hstack([counted.counts[:200][:, order], np.ones((200, 1))]).tocsr()
    other = gp.project(frame, more, [*genes[order], "foreign"])
    np.testing.assert_allclose(straight.scores, other.scores, atol=1e-6)


def test_genes_that_are_missing_are_named_and_what_they_cost_is_said(mixed, found, counted):
    genes = list(counted.loadings.index)
    result = gp.project(gp.frame(found, mixed.mean, mixed.theta), counted.counts[:200, 100:], genes[100:])
    assert result.missing == genes[:100]
    assert (result.covered < 1).all()
    assert (result.covered > 0.3).all()


@pytest.mark.thorough
@pytest.mark.thorough
def test_genes_that_a_new_batch_raises_disturb_the_scores_less_when_each_batch_has_its_own_levels(
    mixed, found, counted
):
    frame = gp.frame(found, mixed.mean, mixed.theta)
    genes = list(counted.loadings.index)
    rng = np.random.default_rng(0)
    raised = counted.counts[:600].toarray() * np.where(rng.random(N_VARS) < 0.05, 10, 1)
    new = sparse.csr_matrix(rng.poisson(raised).astype(np.float32))
    old = gp.project(frame, counted.counts[:600], genes).scores
    own, same = (gp.project(frame, new, genes, adjust=adjust).scores for adjust in (True, False))
    assert np.abs(own.mean() - old.mean()).mean() < 0.7 * np.abs(same.mean() - old.mean()).mean()
    assert own.corrwith(old).mean() > same.corrwith(old).mean() + 0.01


def test_a_cell_without_counts_scores_as_the_mean_cell(mixed, found, counted):
    empty = sparse.csr_matrix((1, N_VARS))
    result = gp.project(gp.frame(found, mixed.mean, mixed.theta), empty, list(counted.loadings.index), adjust=False)
    np.testing.assert_allclose(result.scores.iloc[0], found.scores.mean(), atol=0.05)


def test_data_without_any_gene_of_the_programs_are_refused(mixed, found):
    with pytest.raises(InputError, match="None of the 800 genes of the programs"):
        gp.project(gp.frame(found, mixed.mean, mixed.theta), sparse.csr_matrix((2, 2)), ["A", "B"])


def test_cells_of_a_type_that_the_programs_never_saw_are_outside_and_others_are_not(mixed, found, counted):
    genes = list(counted.loadings.index)
    frame = gp.calibrate(gp.frame(found, mixed.mean, mixed.theta), counted.counts[:500], genes)
    rng = np.random.default_rng(0)
    foreign = counted.counts[500:600].toarray()
    own_genes = rng.choice(N_VARS, 40, replace=False)
    foreign[:, own_genes] = rng.poisson(8 * foreign[:, own_genes] + 4)
    mixed_up = sparse.csr_matrix(np.vstack([foreign, counted.counts[600:].toarray()]))
    result = gp.project(frame, mixed_up, genes)
    assert result.outside[:100].mean() > 0.9
    assert result.outside[100:].mean() < 0.1
    assert result.misfit[:100].min() > np.median(result.misfit[100:])
    assert not gp.project(frame._replace(usual=np.array([])), mixed_up, genes).outside.any()


def test_the_error_of_a_score_is_how_far_it_moves_when_the_counts_are_drawn_again(mixed, found, counted):
    frame = gp.frame(found, mixed.mean, mixed.theta)
    genes = list(counted.loadings.index)
    cell = counted.counts[:1].toarray()
    rng = np.random.default_rng(0)
    start = gp.project(frame, sparse.csr_matrix(cell), genes, adjust=False)
    components = (start.scores.to_numpy() - frame.transform[0]) @ np.linalg.pinv(frame.transform[1:])
    rate = np.exp(frame.offset + components[0] @ frame.basis.T)
    rate *= cell.sum() / rate.sum()
    again = rng.poisson(rng.gamma(frame.theta, rate / frame.theta, (400, N_VARS)))
    spread = gp.project(frame, sparse.csr_matrix(again), genes, adjust=False).scores.std()
    # A prior pulls the scores together: the errors are those of the posterior, at least the spread of the estimate.
    ratio = spread / start.error.iloc[0]
    assert ratio.between(0.5, 1.2).all()
    few = gp.project(frame, sparse.csr_matrix(np.floor(cell / 4)), genes, adjust=False)
    assert (few.error.iloc[0] > start.error.iloc[0]).all()


def test_genes_are_matched_by_whichever_names_match_most(mixed, found, counted):
    frame = gp.frame(found, mixed.mean, mixed.theta)
    genes = np.array(counted.loadings.index)
    ids = np.array([f"ENSG{g:011d}" for g in range(N_VARS)])
    plain = gp.project(frame, counted.counts[:50], genes)
    assert plain.matched == "gene names with the names of the data"
    by_column = gp.project(frame, counted.counts[:50], ids, var=pd.DataFrame({"symbol": genes}, ids))
    assert by_column.matched == "gene names with their column symbol"
    versions = [f"{name}.{g % 7}" for g, name in enumerate(ids)]
    by_id = gp.project(frame._replace(ids=ids), counted.counts[:50], versions)
    assert by_id.matched == "gene identifiers with the names of the data"
    for other in (by_column, by_id):
        np.testing.assert_allclose(other.scores, plain.scores)
    with pytest.raises(InputError, match="differ by capital letters: are they of another species"):
        gp.project(frame, counted.counts[:50], [name.upper() for name in genes])
