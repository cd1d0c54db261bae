"""Choice of genes, registered columns and the split."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from packaging.version import Version
from scipy import sparse

from ldvae.config import SetupConfig
from ldvae.errors import InputError
from ldvae.io import read_table
from ldvae.steps.setup import most_variable, setup, split, spread

GENES = [f"G{i}" for i in range(300)]
FIELDS = {"batch_key": "", "labels_key": "", "categorical_covariate_keys": [], "continuous_covariate_keys": []}


@pytest.fixture
def filtered() -> AnnData:
    """200 cells of two types in two batches; the first 20 genes differ between the types."""
    rng = np.random.default_rng(0)
    rate = rng.lognormal(0, 1, 300) * np.ones((200, 1))
    is_b = np.arange(200) % 4 == 0
    rate[is_b, :20] *= 8
    obs = pd.DataFrame({"donor": np.repeat([101, 102], 100), "type": np.where(is_b, "B", "T"), "age": rng.random(200)})
    obs.index = [f"c{i}" for i in range(200)]
    return AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)), obs, pd.DataFrame(index=GENES))


def run(adata: AnnData, folder: Path, **options: object) -> tuple[AnnData, pd.DataFrame, dict]:
    (folder / "qc").mkdir(exist_ok=True)
    adata.write_h5ad(folder / "qc" / "filtered.h5ad")
    setup(results=folder, config=SetupConfig(**options))  # type: ignore[arg-type]
    genes = read_table(folder / "setup" / "genes.tsv", index="gene")
    summary = json.loads((folder / "setup" / "summary.json").read_text())
    return anndata.read_h5ad(folder / "setup" / "counts.h5ad"), genes, summary


def test_variable_genes_are_those_that_differ(filtered: AnnData, tmp_path: Path) -> None:
    counts, genes, summary = run(filtered, tmp_path, n_top_genes=20, keep_genes=["G299"])
    assert summary["method"] == "seurat_v3"
    assert len(set(counts.var_names) & set(GENES[:20])) >= 15
    assert "G299" in counts.var_names
    assert genes.loc["G299", "reason"] in ("kept", "variable")
    assert genes["chosen"].sum() == counts.n_vars == summary["n_vars"]
    assert list(genes.index) == GENES
    x = filtered.X.toarray().astype(np.float64)
    np.testing.assert_allclose(genes["mean"], x.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(genes["variance"], x.var(axis=0, ddof=1), rtol=1e-5)
    np.testing.assert_array_equal(counts.X.toarray(), filtered[counts.obs_names, counts.var_names].X.toarray())
    assert counts.X.dtype == np.float32


def test_the_ranking_is_that_of_scanpy(filtered: AnnData) -> None:
    import scanpy

    method, found = most_variable(filtered, None, 30)
    expected = scanpy.pp.highly_variable_genes(filtered, flavor="seurat_v3", n_top_genes=30, inplace=False)
    assert method == "seurat_v3"
    assert found["chosen"].tolist() == expected["highly_variable"].tolist()


@pytest.mark.parametrize("batch_key", [None, "condition"])
def test_the_numbers_are_those_of_scanpy_whatever_is_read_at_once(
    batch_key: str | None, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import scanpy

    monkeypatch.setattr("ldvae.io.chunks.ROWS", 500)
    adata = anndata.read_h5ad(shared_data / "kang2018_stim_ctrl.h5ad")
    method, found = most_variable(adata, batch_key, 1000)
    expected = scanpy.pp.highly_variable_genes(
        adata, flavor="seurat_v3", n_top_genes=1000, batch_key=batch_key, inplace=False
    )
    assert method == "seurat_v3"
    if batch_key is None or Version(version("scanpy")) < Version("1.12"):
        np.testing.assert_array_equal(found["chosen"], expected["highly_variable"])
        np.testing.assert_allclose(found["variance_norm"], expected["variances_norm"], rtol=1e-13)
    else:  # its moments of batches are rounded otherwise, and loess amplifies that (ldvae.steps.variable)
        assert (found["chosen"] == expected["highly_variable"]).mean() > 0.999
        np.testing.assert_allclose(found["variance_norm"], expected["variances_norm"], rtol=5e-3)


@pytest.mark.parametrize("error", [ImportError("no skmisc"), ValueError("b'reciprocal condition number 1e-15'")])
def test_without_loess_genes_are_ranked_by_pearson_residuals(
    error: Exception, filtered: AnnData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("ldvae.steps.setup.seurat_v3", fails)
    filtered.obs["donor"] = filtered.obs["donor"].astype(str).astype("category")
    for batch_key in (None, "donor"):
        method, found = most_variable(filtered, batch_key, 20)
        assert method == "pearson_residuals"
        assert found["chosen"].sum() == 20
        assert len(set(found.index[found["chosen"]]) & set(GENES[:20])) >= 15
    reason = "scikit-misc is not installed" if isinstance(error, ImportError) else "reciprocal condition number 1e-15"
    assert f"seurat_v3 cannot be used ({reason}); genes are ranked by their Pearson residuals instead." in caplog.text


def test_a_batch_of_one_cell_is_ranked_with_the_largest(filtered: AnnData, caplog: pytest.LogCaptureFixture) -> None:
    filtered.obs["donor"] = np.where(np.arange(200) == 7, "alone", "rest")
    method, found = most_variable(filtered, "donor", 20)
    assert method == "seurat_v3"
    assert "alone" in caplog.text
    np.testing.assert_array_equal(found["chosen"], most_variable(filtered, None, 20)[1]["chosen"])


def test_small_batches_are_ranked_as_one(filtered: AnnData) -> None:
    tiny = np.arange(200) < 30
    filtered.obs["donor"] = np.where(tiny, [f"d{i // 3}" for i in range(200)], "rest")
    pooled = most_variable(filtered, "donor", 20)[1]
    filtered.obs["donor"] = np.where(tiny, "small", "rest")
    np.testing.assert_array_equal(pooled["chosen"], most_variable(filtered, "donor", 20)[1]["chosen"])


def test_few_varying_genes_are_ranked_by_pearson_residuals(filtered: AnnData, caplog: pytest.LogCaptureFixture) -> None:
    filtered.X = sparse.csr_matrix(np.where(np.arange(300) < 3, filtered.X.toarray(), 1).astype(np.float32))
    assert most_variable(filtered, None, 5)[0] == "pearson_residuals"
    assert "only 3 genes vary" in caplog.text


@pytest.mark.parametrize("seed", range(30))
def test_tiny_odd_data_are_ranked_or_refused(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_obs, n_vars = rng.integers(1, 60), rng.integers(1, 60)
    counts = rng.poisson(rng.choice([0.01, 0.3, 3]), (n_obs, n_vars)) * rng.choice([1, 1000])
    batch = rng.integers(0, rng.integers(1, 12), n_obs).astype(str)
    obs = pd.DataFrame({"batch": batch}, index=[f"c{i}" for i in range(n_obs)])
    adata = AnnData(
        sparse.csr_matrix(counts.astype(np.float32)), obs, pd.DataFrame(index=[f"g{i}" for i in range(n_vars)])
    )
    n_top = int(rng.integers(1, n_vars + 1))
    with np.errstate(all="ignore"):
        found = most_variable(adata, "batch" if seed % 2 else None, n_top)[1]
    assert found["chosen"].sum() <= n_top


def test_genes_of_a_list_in_the_order_of_the_data(
    filtered: AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "genes.txt").write_text("G7\n\nG3\nabsent\nG7\n")
    path = str(tmp_path / "genes.txt")
    counts, genes, _ = run(filtered, tmp_path, genes="list", gene_list=path, keep_genes=["G3", "G100"])
    assert list(counts.var_names) == ["G3", "G7", "G100"]
    assert genes["reason"].dropna().to_dict() == {"G3": "list", "G7": "list", "G100": "kept"}
    assert "1 of 3 genes are not in the data: absent" in caplog.text


def test_a_list_of_no_gene_is_refused_as_such(filtered: AnnData, tmp_path: Path) -> None:
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(InputError, match=r"gene_list: .*none\.txt names no gene\."):
        run(filtered, tmp_path, genes="list", gene_list=str(tmp_path / "none.txt"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_genes": ["G1000"]}, r"keep_genes: G1000 not among the 300 genes .* Did you mean 'G100'"),
        ({"gene_list": "genes.txt"}, "`genes: all` reads no list; write `genes: list`, or leave it out"),
        ({"genes": "list"}, "needs the path of a file with one gene name per line"),
        ({"genes": "list", "gene_list": "/nowhere.txt"}, "gene_list: /nowhere.txt does not exist"),
        ({"batch_key": "doner"}, r"no obs column 'doner'\. Did you mean 'donor'"),
        ({"batch_key": "age"}, "'age' .batch_key. has 200 values for 200 cells, but groups are expected"),
        ({"size_factor_key": "type"}, "'type' .size_factor_key. must hold numbers, found 'B'"),
        ({"continuous_covariate_keys": ["endless"]}, "'endless' .* is infinite in 1 of 200 cells"),
        ({"size_factor_key": "below"}, "must be above zero, found -1"),
        ({"continuous_covariate_keys": ["partly"]}, "'partly' has no value for 199 of 200 cells"),
        ({"validation_size": 0.5, "test_size": 0.5}, "validation_size and test_size together are 1"),
        (
            {"validation_size": 0.001},
            "200 cells are too few to give 0.001 of them to the validation part. .* change setup.validation_size",
        ),
    ],
)
def test_what_cannot_be_set_up_says_why(
    options: dict[str, object], message: str, filtered: AnnData, tmp_path: Path
) -> None:
    filtered.obs["below"] = -1.0
    filtered.obs["endless"] = [np.inf, *[1.0] * 199]
    filtered.obs["partly"] = [1.0, *[np.nan] * 199]
    with pytest.raises(InputError, match=message):
        run(filtered, tmp_path, **({"genes": "all"} | options))


def test_registered_columns_are_text_categories_without_empty_groups(filtered: AnnData, tmp_path: Path) -> None:
    filtered.obs["type"] = pd.Categorical(filtered.obs["type"].where(filtered.obs["age"] > 0.1), ["B", "T", "unused"])
    n_missing = int(filtered.obs["type"].isna().sum())
    options = {"batch_key": "donor", "labels_key": "type", "continuous_covariate_keys": ["age"]}
    counts, _, summary = run(filtered, tmp_path, genes="all", **options)
    assert list(counts.obs["donor"].cat.categories) == ["101", "102"]
    assert list(counts.obs["type"].cat.categories) == ["B", "T", "unlabeled"]
    assert f"Labeled 'unlabeled', without a value of type: {n_missing} cells." in summary["warnings"]
    fields = counts.uns["ldvae_setup"]
    assert (fields["batch_key"], fields["labels_key"], fields["size_factor_key"]) == ("donor", "type", "")
    assert list(fields["continuous_covariate_keys"]) == ["age"]
    assert list(fields["categorical_covariate_keys"]) == []


def test_without_a_batch_key_it_is_the_one_of_qc(filtered: AnnData, tmp_path: Path) -> None:
    filtered.uns["ldvae_qc"] = {"batch_key": "donor"}
    counts, _, _ = run(filtered, tmp_path, genes="all")
    assert counts.uns["ldvae_setup"]["batch_key"] == "donor"
    counts, _, _ = run(filtered, tmp_path, genes="all", batch_key="type")
    assert counts.uns["ldvae_setup"]["batch_key"] == "type"


def test_other_than_counts_is_refused(filtered: AnnData, tmp_path: Path) -> None:
    filtered.X = filtered.X.log1p()
    with pytest.raises(InputError, match="X holds non-integer values"):
        run(filtered, tmp_path)


def test_cells_without_counts_in_the_chosen_genes_are_left_out(filtered: AnnData, tmp_path: Path) -> None:
    x = filtered.X.toarray()
    x[3, :5] = 0
    x[:3, :5] = 1
    filtered.X = sparse.csr_matrix(x)
    (tmp_path / "genes.txt").write_text("\n".join(GENES[:5]))
    counts, _, summary = run(filtered, tmp_path, genes="list", gene_list=str(tmp_path / "genes.txt"))
    assert "c3" not in counts.obs_names
    assert "Without counts in the chosen genes, and left out: 1 cell (c3)." in summary["warnings"]


def test_the_split_keeps_shares_overall_and_in_strata() -> None:
    labels = np.repeat(["a", "b", "c"], [700, 250, 53])
    obs = pd.DataFrame({"type": labels}, [f"c{i}" for i in range(len(labels))])
    parts = pd.Series(split(obs, FIELDS | {"labels_key": "type"}, SetupConfig()), index=obs.index)
    assert parts.value_counts().to_dict() == {"train": 802, "validation": 101, "test": 100}
    for _, of_label in parts.groupby(labels):
        for part, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
            assert abs((of_label == part).sum() - share * len(of_label)) <= 1.5


def test_the_split_follows_the_seed_alone() -> None:
    obs = pd.DataFrame(index=[f"c{i}" for i in range(500)])
    first, again, other = (list(split(obs, FIELDS, SetupConfig(seed=seed))) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    # Not every tenth cell in the order of the file, which may be sorted.
    positions = np.flatnonzero(np.array(first) == "test")
    assert len(set(np.diff(positions))) > 3


def test_no_held_out_cells_if_none_are_asked_for() -> None:
    obs = pd.DataFrame(index=[f"c{i}" for i in range(10)])
    assert set(split(obs, FIELDS, SetupConfig(validation_size=0, test_size=0))) == {"train"}


@pytest.mark.parametrize(("n", "share"), [(10, 0.1), (7, 0.5), (1000, 0.333), (3, 0.0), (0, 0.5)])
def test_spread_marks_the_share_evenly(n: int, share: float) -> None:
    mask = spread(n, share)
    assert mask.sum() == round(n * share)
    if mask.sum() > 1:
        gaps = np.diff(np.flatnonzero(mask))
        assert gaps.max() - gaps.min() <= 1
