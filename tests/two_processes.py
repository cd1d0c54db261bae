"""What test_distributed.py trains; under torchrun, in each of its processes."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData, read_h5ad
from safetensors.torch import save_file
from scipy import sparse

from ldvae.backends import PlainBackend
from ldvae.config import FitConfig, ModelConfig
from ldvae.data import Split, library_prior, read_counts, register, registered, split_cells
from ldvae.distributed import join
from ldvae.errors import InputError
from ldvae.model import LinearSCVI
from ldvae.module import LDVAE
from ldvae.train import Checkpoint, Fit, Interrupted, fit, seeded

SMALL = {"n_latent": 3, "n_hidden": 8}
CONFIG = FitConfig(max_epochs=3, batch_size=40, lr=5e-3, n_epochs_kl_warmup=2, schedule="plateau", lr_patience=0)
SPLIT = split_cells(1200, 0.135, 0.02)  # 162 cells to train on: five minibatches, the last of two cells
ONE_LEFT = SPLIT._replace(train=SPLIT.train[:121])  # the last minibatch is one cell: a process has none
EARLY = replace(CONFIG, early_stopping=True, early_stopping_patience=2, early_stopping_min_delta=100, max_epochs=8)
CASES: dict[str, tuple[dict, FitConfig, Split]] = {
    "nb": (SMALL, CONFIG, SPLIT),
    "early stopping": (SMALL, EARLY, ONE_LEFT),
    "zinb, two layers, clipped": (
        SMALL | {"n_layers": 2, "gene_likelihood": "zinb", "dispersion": "gene-batch"},
        replace(CONFIG, gradient_clip_val=0.5, optimizer="AdamW"),
        SPLIT,
    ),
    "no batch norm": (SMALL | {"use_batch_norm": False, "bias": True}, CONFIG, SPLIT),
    "on disk": (SMALL, replace(CONFIG, start_at_mean=True), SPLIT),
}


def write_counts(path: Path) -> None:
    """Counts of 1,200 cells in two batches."""
    random = np.random.default_rng(0)
    rate = random.gamma(1, 1, (1200, 1)) * np.exp(random.normal(size=(1200, 3)) @ random.normal(0, 0.7, (3, 40)))
    adata = AnnData(sparse.csr_matrix(random.poisson(rate + 0.2).astype(np.float32)))
    adata.obs["batch"] = random.choice(["a", "b"], 1200)
    adata.write_h5ad(path)


def train(path: Path, case: str, *, seed: int = 1, **options: object) -> tuple[LDVAE, Fit]:
    """One case in plain torch."""
    architecture, config, split = CASES[case]
    adata = read_h5ad(path, backed="r" if case == "on disk" else None)
    register(adata, batch_key="batch")
    registry = registered(adata)
    counts = read_counts(adata, registry)
    with seeded(join().rank):  # other initial weights in each process, of which the first's are taken
        module = LDVAE(ModelConfig(**architecture), registry.shape, *library_prior(counts, 2))
    return module, fit(module, counts, split, config, seed=seed, make_backend=PlainBackend, **options)


def main(folder: Path) -> None:
    """Train all cases together with the other process; write how they ended, and what was said."""
    processes = join()

    def keep(name: str, module: LDVAE, history: pd.DataFrame) -> None:
        tensors = {key: value.contiguous() for key, value in module.state_dict().items()}
        save_file(tensors, folder / f"{name}.{processes.rank}.safetensors")
        history.to_csv(folder / f"{name}.{processes.rank}.csv")

    for case in CASES:
        module, done = train(folder / "counts.h5ad", case)
        keep(case, module, done.history)
    saved, asked = Checkpoint(folder / f"checkpoint.{processes.rank}"), iter(range(100))
    said = []
    try:
        train(folder / "counts.h5ad", "nb", checkpoint=saved, stop=lambda: processes.rank == 1 and next(asked) == 7)
    except Interrupted:
        said.append("interrupted")
    reported: list[int] = []
    module, done = train(
        folder / "counts.h5ad", "nb", checkpoint=saved, on_epoch=lambda one: reported.append(one.epoch)
    )
    keep("resumed", module, done.history)
    said.append(f"told of epochs {reported}")
    try:
        train(folder / "counts.h5ad", "nb", seed=processes.rank)
    except InputError as error:
        said.append(str(error))
    adata = read_h5ad(folder / "counts.h5ad")
    LinearSCVI.setup_anndata(adata, batch_key="batch")
    model = LinearSCVI(adata, **SMALL)  # whose seed each process draws for itself
    model.train(max_epochs=1, enable_progress_bar=False)
    keep("model", model.module, model.history["elbo_train"])
    said.append(f"seed {model.seed}")
    (folder / f"said.{processes.rank}.txt").write_text("\n".join(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
