"""The LinearSCVI tutorial of scvi-tools, from top to bottom, with the import line changed."""

import numpy as np
import pandas as pd
import pytest

# The tutorial downloads 10,000 PBMC; here are the 2,638 of the shared data. Its IPython magics are left out.
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::PendingDeprecationWarning", "ignore:.*n_jobs value"
)


@pytest.mark.slow
def test_the_tutorial_runs_with_the_import_line_changed(shared_data, tmp_path, monkeypatch, capsys):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import scanpy as sc

    import ldvae as scvi  # the line that is changed

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scvi.settings, "_seed", None)
    scvi.settings.seed = 0
    assert scvi.__version__
    sc.set_figure_params(figsize=(4, 4), frameon=False)

    # load data and select the top 1000 variable genes
    folder = shared_data / "pbmc3k_10x_mtx" / "filtered_gene_bc_matrices" / "hg19"
    adata = sc.read_10x_mtx(folder, cache=False)
    adata.layers["counts"] = adata.X.copy()
    sc.pp.normalize_total(adata, target_sum=10e4)
    sc.pp.log1p(adata)
    adata.raw = adata
    sc.pp.highly_variable_genes(adata, flavor="seurat_v3", layer="counts", n_top_genes=1000, subset=True)

    # create and fit the model
    scvi.model.LinearSCVI.setup_anndata(adata, layer="counts")
    model = scvi.model.LinearSCVI(adata, n_latent=10)
    model.train(max_epochs=250, plan_kwargs={"lr": 5e-3}, check_val_every_n_epoch=10)

    # inspect the convergence
    train_elbo = model.history["elbo_train"][1:]
    test_elbo = model.history["elbo_validation"]
    ax = train_elbo.plot()
    test_elbo.plot(ax=ax)
    assert (len(train_elbo), len(test_elbo)) == (249, 25)
    assert test_elbo["elbo_validation"].iloc[-1] < 0.8 * test_elbo["elbo_validation"].iloc[0]

    # extract and plot the latent dimensions
    latent = model.get_latent_representation()
    for i, z in enumerate(latent.T):
        adata.obs[f"Z_{i}"] = z
    plt.figure(figsize=(12, 8))
    for f in range(0, 9, 2):
        plt.subplot(2, 3, int(f / 2) + 1)
        plt.scatter(adata.obs[f"Z_{f}"], adata.obs[f"Z_{f + 1}"], marker=".", s=4, label="Cells")
        plt.xlabel(f"Z_{f}")
        plt.ylabel(f"Z_{f + 1}")
    plt.tight_layout()

    # the top genes of each dimension
    loadings = model.get_loadings()
    assert loadings.head().shape == (5, 10)
    for column in loadings:
        ordered = loadings[column].sort_values()
        print(
            column,
            "\t".join(f"{gene}, {ordered[gene]:.2}" for gene in [*ordered.head(5).index, *ordered.tail(5).index]),
        )
    assert len(capsys.readouterr().out.splitlines()) == 10

    # a UMAP colored by the dimensions
    adata.obsm["X_scVI"] = latent
    sc.pp.neighbors(adata, use_rep="X_scVI", n_neighbors=20)
    sc.tl.umap(adata, min_dist=0.3)
    sc.pl.umap(adata, color=[f"Z_{i}" for i in range(model.n_latent)], ncols=3, show=False)
    plt.close("all")

    types = pd.read_csv(folder.parents[1] / "cell_types_by_barcode.csv", index_col=0).iloc[:, 0]
    assert separation(latent, types.reindex(adata.obs_names).astype(str).to_numpy()) > 0.8


def separation(latent: np.ndarray, types: np.ndarray) -> float:
    """Share of cells whose nearest neighbor in the latent space is of their own type."""
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=2).fit(latent).kneighbors(latent, return_distance=False)[:, 1]
    return float((types[nearest] == types).mean())
