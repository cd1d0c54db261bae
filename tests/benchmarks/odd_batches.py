"""What a batch whose totals hardly vary does to the fit of the other cells: one cell alone, or one total for all.

    python tests/benchmarks/odd_batches.py [kang simulated downsampled] [--seeds 0 1 2] [--epochs 100]

kang: the control lane of Kang et al. 2018 (8 donors), one cell of which becomes a donor of its own. simulated: 2,000
cells in 4 batches, one cell of which becomes a batch. downsampled: the same, a fifth of the cells downsampled to one
total, as a batch of their own.

Each is fitted without the odd batch, with it, and with it under the prior variance of scvi-tools, that of the batch's
own cells (not below 1e-8). ELBO (negative, nats per cell, mean of 5 draws) and the genes called between the two largest
cell types (mode "change", FDR 0.05) are those of the other cells, the same in all three.
"""

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData, read_h5ad
from scipy import sparse

sys.path.insert(0, str(Path(__file__).parents[1]))

from shared_data import fetch

from ldvae import LinearSCVI
from ldvae.simulate import simulate

WAYS = ("without", "with", "own variance")


def main() -> None:
    """Print each fit, then the means over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=(*CASES, []), default=list(CASES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=100)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for case in arguments.cases:
        adata, odd, groups = CASES[case]()
        for seed in arguments.seeds:
            for way in WAYS:
                elbo, called = fitted(adata, odd, groups, way, seed, arguments.epochs)
                rows.append({"case": case, "way": way, "seed": seed, "ELBO": elbo, "genes called": called})
                print(rows[-1], flush=True)
    fits = pd.DataFrame(rows).groupby(["case", "way"], sort=False)
    means = fits[["ELBO", "genes called"]].mean().round(1)
    means["least"], means["most"] = fits["ELBO"].min().round(1), fits["ELBO"].max().round(1)
    without = means["ELBO"].xs("without", level="way")
    means["difference, %"] = (100 * (means["ELBO"].div(without, level="case") - 1)).round(2)
    print(means.to_string())


def fitted(adata: AnnData, odd: np.ndarray, groups: pd.Series, way: str, seed: int, epochs: int) -> tuple[float, int]:
    """Negative ELBO of the cells that are not in the odd batch, and the number of genes called between two groups."""
    data = adata[~odd].copy() if way == "without" else adata.copy()
    others = np.ones(data.n_obs, bool) if way == "without" else ~odd
    if way != "without":
        data.obs["batch"] = np.where(odd, "odd", data.obs["batch"].astype(str))
    LinearSCVI.setup_anndata(data, batch_key="batch")
    model = LinearSCVI(data, seed=seed)
    if way == "own variance":
        totals = np.log(np.asarray(data.X.sum(axis=1)).ravel())[odd]
        code = model.get_state_registry("batch")["categorical_mapping"].tolist().index("odd")
        model.module.library_log_vars[code] = max(float(totals.var()), 1e-8)
    model.train(epochs, accelerator="cpu", plan_kwargs={"lr": 5e-3}, enable_progress_bar=False)
    elbo = np.mean([-float(model.get_elbo(indices=others, seed=draw)) for draw in range(5)])
    labels = groups[data.obs_names].to_numpy()
    first, second = groups.value_counts().index[:2]
    table = model.differential_expression(
        idx1=others & (labels == first), idx2=others & (labels == second), mode="change", silent=True
    )
    return float(elbo), int(table["is_de_fdr_0.05"].sum())


def one_cell(adata: AnnData, groups: str) -> tuple[AnnData, np.ndarray, pd.Series]:
    """One cell as a batch of its own."""
    return adata, np.arange(adata.n_obs) == 5, adata.obs[groups].astype(str)


def kang() -> tuple[AnnData, np.ndarray, pd.Series]:
    """The control lane of Kang et al. 2018."""
    adata = read_h5ad(fetch("kang2018_ctrl_8donors.h5ad"))
    adata.obs["batch"] = adata.obs["donor"].astype(str)
    return one_cell(adata, "cell_type")


def simulated() -> tuple[AnnData, np.ndarray, pd.Series]:
    """Simulated cells in four batches."""
    return one_cell(simulate(n_obs=2000, n_vars=400, n_batch=4, seed=1).to_anndata(), "identity")


def downsampled() -> tuple[AnnData, np.ndarray, pd.Series]:
    """The same, with a fifth of the cells downsampled to the least total of all."""
    adata = simulate(n_obs=2000, n_vars=400, n_batch=4, seed=1).to_anndata()
    odd = np.arange(adata.n_obs) % 5 == 0
    random, counts = np.random.default_rng(0), adata.X.toarray()
    least = int(counts.sum(axis=1).min())
    for cell in np.flatnonzero(odd):
        counts[cell] = random.multivariate_hypergeometric(counts[cell].astype(int), least)
    adata.X = sparse.csr_matrix(counts)
    return adata, odd, adata.obs["identity"].astype(str)


CASES = {"kang": kang, "simulated": simulated, "downsampled": downsampled}

if __name__ == "__main__":
    main()
