"""Programs of several datasets: shared ones join, private ones stay apart, whatever the order and the signs."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import sparse

from ldvae.errors import InputError
from ldvae.programs import Frame, compare_across, meta_frame, meta_programs, project


def make_frames(n_datasets=4, n_shared=3, noise=0.3, seed=0, flip=False, n_genes=400):
    """Frames whose first programs are the same in all datasets up to noise, and whose last is one's own."""
    rng = np.random.default_rng(seed)
    genes = np.array([f"gene_{g}" for g in range(n_genes)])
    shared = rng.normal(size=(n_genes, n_shared)) * (rng.random((n_genes, n_shared)) < 0.15)
    frames = {}
    for d in range(n_datasets):
        private = rng.normal(size=(n_genes, 1)) * (rng.random((n_genes, 1)) < 0.15)
        basis = np.hstack([shared, private])
        basis = basis + noise * rng.normal(size=basis.shape) * basis.std(axis=0)
        if flip and d % 2:
            basis[:, 0] *= -1
        order = rng.permutation(basis.shape[1])
        names = np.array([f"P{k + 1}" for k in range(len(order))])
        frames[f"d{d}"] = Frame(
            genes=genes,
            programs=names,
            basis=basis[:, order],
            transform=np.vstack([np.zeros(len(order)), np.eye(len(order))]),
            joint=np.vstack([np.zeros(len(order)), np.eye(len(order))]),
            offset=np.full(n_genes, -np.log(n_genes)),
            theta=np.full(n_genes, 5.0),
            weight=np.ones(n_genes),
        )
    return frames, shared


def make_joint_frames(n_datasets=5, n_cells=400, noise=0.3, seed=0, n_genes=400):
    """Frames of fits of cells that are each of one type, A, B or neither.

    The first dataset has settled the contrast of A and B alone, the last lacks B; each but the first has a private
    program. All fits span what their cells have.
    """
    rng = np.random.default_rng(seed)
    genes = np.array([f"gene_{g}" for g in range(n_genes)])

    def program():
        return rng.normal(1.2, 0.4, n_genes) * (rng.random(n_genes) < 0.1)

    types, activity = np.column_stack([program(), program()]), program()
    types = types / np.linalg.norm(types, axis=0) * np.linalg.norm(types)
    frames = {}
    for d in range(n_datasets):
        kind = rng.choice(3, n_cells, p=[0.4, 0.3, 0.3] if d < n_datasets - 1 else [0.6, 0.4, 0])
        own = np.column_stack([types, activity, program()])
        if d == n_datasets - 1:
            own[:, 1] = 0
        scores = np.column_stack([kind == 1, kind == 2, rng.random(n_cells), rng.random(n_cells)]).astype(float)
        own = own + noise * rng.normal(size=own.shape) * own.std(axis=0)
        scores -= scores.mean(axis=0)
        u, size, v = np.linalg.svd(scores @ own.T, full_matrices=False)
        rank = int((size > 1e-6 * size[0]).sum())
        directions, sampled = v[:rank].T * size[:rank] / np.sqrt(n_cells), u[:, :rank] * np.sqrt(n_cells)
        basis = own[:, np.any(own, axis=0)]
        if d == 0:
            basis = np.column_stack([own[:, 0] - own[:, 1], own[:, 2]])
        k = basis.shape[1]
        frames[f"d{d}"] = Frame(
            genes=genes,
            programs=np.array([f"P{i + 1}" for i in range(k)]),
            basis=basis,
            transform=np.vstack([np.zeros(k), np.eye(k)]),
            joint=np.vstack([np.zeros(k), np.eye(k)]),
            offset=np.full(n_genes, -np.log(n_genes)),
            theta=np.full(n_genes, 5.0),
            weight=np.ones(n_genes),
            directions=directions,
            sampled=sampled,
        )
    return frames, types


def test_a_dataset_that_confounds_two_types_has_both_where_its_fits_contain_them():
    frames, types = make_joint_frames()
    found = meta_programs(frames)
    shared = found.table[found.table["shared"]]
    cosines = np.abs(np.corrcoef(found.loadings[shared.index].T, types.T)[: len(shared), len(shared) :])
    a, b = shared.index[cosines.argmax(axis=0)]
    assert cosines.max(axis=0).min() > 0.9
    assert shared.at[a, "datasets"] == "d0, d1, d2, d3, d4"
    assert shared.at[b, "datasets"] == "d0, d1, d2, d3"  # the last lacks it
    assert shared.at[a, "n_programs"] == 4  # the first has no program of its own for it
    assert found.presence.at[b, "d4"] < 0.4
    # The contrast of the first is no member of either, and no third program of several datasets.
    contrast = found.members.query("dataset == 'd0' and program == 'P1'")["meta"].item()
    assert found.table.at[contrast, "n_datasets"] == 1
    assert len(shared) == 3
    # Without what the fits span, only programs can be compared.
    alone = {
        name: frame._replace(directions=np.zeros((0, 0)), sampled=np.zeros((0, 0))) for name, frame in frames.items()
    }
    assert "d0, d1, d2, d3, d4" not in set(meta_programs(alone).table["datasets"][1:])


def test_what_is_common_does_not_depend_on_genes_that_a_dataset_leaves_out():
    frames, _ = make_joint_frames()
    for d in (1, 3):
        frame = frames[f"d{d}"]
        kept = np.arange(len(frame.genes)) % 4 != d
        columns = ("genes", "basis", "offset", "theta", "weight", "directions")
        frames[f"d{d}"] = frame._replace(**{name: getattr(frame, name)[kept] for name in columns})
    found = meta_programs(frames)
    assert sorted(found.table.loc[found.table["shared"], "n_datasets"]) == [4, 5, 5]
    assert found.loadings.loc[:, found.table["shared"]].notna().all(axis=None)


def test_shared_programs_join_and_private_ones_stay_alone():
    frames, shared = make_frames()
    found = meta_programs(frames)
    assert found.table["n_datasets"].tolist() == [4, 4, 4, 1, 1, 1, 1]
    assert found.table["shared"].sum() == 3
    centered = shared - shared.mean(axis=0)
    cosines = np.corrcoef(found.loadings.iloc[:, :3].T, centered.T)[:3, 3:]
    assert np.sort(np.abs(cosines).max(axis=1)).min() > 0.95


def test_the_order_of_the_datasets_does_not_matter():
    frames, _ = make_frames()
    one = meta_programs(frames).members.set_index(["dataset", "program"])["meta"]
    two = meta_programs(dict(reversed(frames.items()))).members.set_index(["dataset", "program"])["meta"]
    pairs = pd.concat([one, two.reindex(one.index)], axis=1, keys=["one", "two"])
    assert len(pairs.drop_duplicates()) == pairs["one"].nunique() == pairs["two"].nunique()


def test_a_reversed_program_joins_with_its_sign():
    frames, _ = make_frames(flip=True)
    found = meta_programs(frames)
    assert found.table["n_datasets"].tolist()[:3] == [4, 4, 4]
    signs = found.members.groupby("meta")["sign"].agg(lambda s: abs(s.sum()))
    assert sorted(signs[["M1", "M2", "M3"]]) == [0, 4, 4]


def test_two_programs_of_one_dataset_never_join():
    frames, _ = make_frames(noise=0.0)
    first = frames["d0"]
    frames["d0"] = first._replace(basis=np.repeat(first.basis[:, :1], 4, axis=1))
    members = meta_programs(frames, min_similarity=0.1).members
    assert not members.duplicated(["dataset", "meta"]).any()


def test_the_interval_covers_the_mean_of_noisy_datasets_and_is_missing_for_one():
    found = meta_programs(make_frames(n_datasets=6)[0])
    assert (found.lower["M1"] <= found.loadings["M1"]).all()
    assert (found.upper["M1"] >= found.loadings["M1"]).all()
    assert found.lower.iloc[:, -1].isna().all()


def test_too_few_common_genes_are_refused_with_both_namings():
    frames, _ = make_frames(n_datasets=2)
    other = frames["d1"]
    frames["d1"] = other._replace(genes=np.array([f"ENSG{g:011d}" for g in range(len(other.genes))]))
    with pytest.raises(InputError, match=r"Only 0 genes .*d1 \(400 such as ENSG.*n_top_genes"):
        meta_programs(frames)


def test_one_dataset_is_refused():
    frames, _ = make_frames(n_datasets=1)
    with pytest.raises(InputError, match="at least two datasets, found 1"):
        meta_programs(frames)


def test_genes_that_one_dataset_lacks_do_not_count_for_its_pairs_alone():
    frames, _ = make_frames(n_datasets=3, noise=0.1)
    whole = meta_programs(frames)
    first = frames["d0"]
    kept = np.arange(len(first.genes)) < 150
    columns = {name: getattr(first, name)[kept] for name in ("genes", "basis", "offset", "theta", "weight")}
    found = meta_programs(frames | {"d0": first._replace(**columns)})
    assert found.table["n_datasets"].tolist() == [3, 3, 3, 1, 1, 1]
    assert set(found.genes) == set(frames["d1"].genes)
    apart = [("d1", "P1"), ("d2", "P1")]
    assert np.allclose(found.similarity.loc[apart[0], apart[1]], whole.similarity.loc[apart[0], apart[1]])
    # The interval is over the datasets that model the gene.
    assert found.lower["M1"].notna().all()


def test_cells_are_scored_on_meta_programs_as_they_were_made():
    frames, shared = make_frames(n_datasets=3, noise=0.1)
    found = meta_programs(frames)
    model = meta_frame(found, frames, ["M1", "M2", "M3"])
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(300, 3))
    rate = np.exp(truth @ (shared * 1.0).T)
    counts = rng.poisson(3000 * rate / rate.sum(axis=1, keepdims=True))
    scores = project(model, sparse.csr_matrix(counts), list(model.genes)).scores
    likeness = np.abs(np.corrcoef(scores.T, truth.T)[:3, 3:])
    assert likeness.max(axis=1).min() > 0.9


def test_conditions_in_several_datasets_are_compared_within_them():
    rng = np.random.default_rng(0)
    rows = []
    for d, level in enumerate((0.0, 5.0, -5.0)):
        for donor in range(6):
            condition = ("ctrl", "stim")[donor % 2]
            mean = level + (condition == "stim") + rng.normal(0, 0.1)
            rows.append(("all cells", condition, f"d{d}: {donor}", 50, "M1", mean, mean / 10))
    columns = ["cell_type", "condition", "donor", "n_cells", "program", "mean", "high"]
    means = pd.DataFrame(rows, columns=columns)
    (row,) = compare_across(means, {name: name[:2] for name in means["donor"]}).to_dict("records")
    assert row["design"] == "within datasets"
    assert row["n_donors"] == 18
    fit = smf.ols("mean ~ condition + dataset", means.assign(dataset=means["donor"].str[:2])).fit()
    assert row["effect"] == pytest.approx(fit.params["condition[T.stim]"])
    assert row["p"] == pytest.approx(fit.pvalues["condition[T.stim]"])
    assert [row["lower"], row["upper"]] == pytest.approx(fit.conf_int().loc["condition[T.stim]"].tolist())
