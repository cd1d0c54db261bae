"""Validation ELBO of ldvae beside scvi-tools': the same cells, genes, split, schedule; several seeds.

    python tests/benchmarks/quality.py [COUNTS.h5ad] --reference PYTHON

PYTHON is the interpreter of an environment that holds scvi-tools 1.4.2 (`pip install "scvi-tools==1.4.2"`); without it
only ldvae is measured. The 2,000 most variable genes (Seurat v3), no batch key, 10 factors, lr 5e-3, 100 epochs with
KL warm-up over 400 as in the reference. ELBO and its parts are means over the held-out cells in nats per cell, of 5
draws after the training, lower is better; "lead genes" counts how many of seven interferon genes are among the ten
strongest on one side of one factor.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from anndata import AnnData, read_h5ad

sys.path.insert(0, str(Path(__file__).parents[1]))

from shared_data import fetch

EPOCHS, LR, N_LATENT, N_DRAWS = 100, 5e-3, 10, 5
INTERFERON = {"ISG15", "IFIT1", "IFIT2", "RSAD2", "IFITM3", "TNFSF10", "CXCL10"}


def main() -> None:
    """Choose genes and splits once, fit with each tool and seed, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", type=Path, nargs="?")
    parser.add_argument("--reference", help="Python interpreter with scvi-tools")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--fit", choices=("ldvae", "scvi"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.counts = arguments.counts or fetch("kang2018_stim_ctrl.h5ad")
    if arguments.fit:
        fit = fit_ldvae if arguments.fit == "ldvae" else fit_scvi
        print(json.dumps(fit(read_h5ad(arguments.counts), arguments.seeds[0], arguments.epochs)))
        return

    interpreters = {"ldvae": sys.executable} | ({"scvi": arguments.reference} if arguments.reference else {})
    print("tool   seed  ELBO validation  reconstruction     KL  lead genes  training s", flush=True)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        chosen = Path(folder) / "chosen.h5ad"
        choose_genes(read_h5ad(arguments.counts)).write_h5ad(chosen)
        for seed in arguments.seeds:
            for tool, python in interpreters.items():
                command = [python, __file__, str(chosen), "--fit", tool]
                command += ["--seeds", str(seed), "--epochs", str(arguments.epochs)]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                result = json.loads(output.splitlines()[-1])
                found.setdefault(tool, []).append(result["elbo"])
                elbo, reconstruction = result["elbo"], result["reconstruction"]
                columns = f"{elbo:16.2f} {reconstruction:15.2f} {elbo - reconstruction:6.2f} {result['lead_genes']:11d}"
                print(f"{tool:6s} {seed:4d} {columns} {result['seconds']:11.1f}", flush=True)
    if len(found) == 2:
        difference = 100 * (np.array(found["ldvae"]) / np.array(found["scvi"]) - 1)
        each = ", ".join(f"{value:+.2f} %" for value in difference)
        print(f"ldvae against scvi-tools: {each} (mean {difference.mean():+.2f} %)")


def choose_genes(adata: AnnData) -> AnnData:
    """The 2,000 most variable genes as the workflow chooses them."""
    from ldvae.steps.setup import most_variable

    _, table = most_variable(adata, None, 2000)
    return adata[:, table["chosen"].to_numpy()].copy()


def split(n_obs: int, seed: int) -> list[np.ndarray]:
    """The same cells to train and to validate on for both tools: nine tenths and one."""
    order = np.random.default_rng(seed).permutation(n_obs)
    return [order[n_obs // 10 :], order[: n_obs // 10]]


def fit_ldvae(adata: AnnData, seed: int, epochs: int) -> dict[str, float]:
    """Fit with ldvae."""
    from ldvae import LinearSCVI

    LinearSCVI.setup_anndata(adata)
    model = LinearSCVI(adata, n_latent=N_LATENT, seed=seed)
    return fit(model, adata, seed, epochs)


def fit_scvi(adata: AnnData, seed: int, epochs: int) -> dict[str, float]:
    """Fit with scvi-tools."""
    import scvi

    scvi.settings.seed = seed
    scvi.model.LinearSCVI.setup_anndata(adata)
    return fit(scvi.model.LinearSCVI(adata, n_latent=N_LATENT), adata, seed, epochs)


def fit(model, adata: AnnData, seed: int, epochs: int) -> dict[str, float]:  # type: ignore[no-untyped-def]
    """Train, then evaluate the held-out cells; both classes have the same methods."""
    train, validation = split(adata.n_obs, seed)
    started = time.perf_counter()
    model.train(
        epochs,
        accelerator="cpu",
        datasplitter_kwargs={"external_indexing": [train, validation]},
        plan_kwargs={"lr": LR},
        enable_progress_bar=False,
    )
    seconds = time.perf_counter() - started
    draws = [evaluate(model, validation, seed) for seed in range(N_DRAWS)]
    elbo, reconstruction = np.mean(draws, axis=0)
    return {
        "elbo": elbo,
        "reconstruction": reconstruction,
        "lead_genes": lead_genes(model, adata),
        "seconds": seconds,
    }


def evaluate(model, cells: np.ndarray, seed: int) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """Negative ELBO and reconstruction error with one draw; ldvae draws by seed, the reference goes on drawing."""
    by_seed = {"seed": seed} if type(model).__module__.startswith("ldvae") else {}
    error = model.get_reconstruction_error(indices=cells, **by_seed)["reconstruction_loss"]
    return -float(model.get_elbo(indices=cells, **by_seed)), float(error)


def lead_genes(model, adata: AnnData) -> int:  # type: ignore[no-untyped-def]
    """Most interferon genes among the ten strongest on one side of a factor, by loading times root of information."""
    mean = np.asarray(model.get_normalized_expression(n_samples=1, library_size=1)).mean(axis=0)
    mean = mean * float(adata.X.sum(axis=1).mean())
    state = model.module.state_dict()
    theta = np.exp(state["log_theta" if "log_theta" in state else "px_r"].numpy())
    weighted = model.get_loadings().mul(np.sqrt(mean * theta / (mean + theta)), axis=0)
    sides = [of.nlargest(10).index for name in weighted for of in (weighted[name], -weighted[name])]
    return max(len(INTERFERON & set(side)) for side in sides)


if __name__ == "__main__":
    main()
