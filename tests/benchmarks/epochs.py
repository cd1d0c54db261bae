"""Held-out ELBO by the CPU time of a training: how many epochs, in which minibatches, and from which start.

    python tests/benchmarks/epochs.py results/NAME/setup/counts.h5ad [--epochs 20 40 80 160] [--batch-size 128 512]
        [--start both] [--schedule cosine] [--seeds 0] [--threads 1] [--table TABLE.tsv]

Each training is the workflow's (`ldvae train`) with all its other defaults, one after the other in one process, on the
split of the file; a first one of one epoch compiles. CPU time is that of the fit, validation included; one thread, so
that none waits for another. ELBO is that of the test cells, negative, in nats per cell: lower is better. Rows are added
to TABLE as they come, and those that it has already are not fitted again. Atlases are made by `atlas.py`.
"""

import argparse
import time
from itertools import product
from pathlib import Path

import pandas as pd
import torch

from ldvae import LinearSCVI
from ldvae.config import ModelConfig, TrainConfig
from ldvae.steps.train import evaluate, read_registered

SETTINGS = ["cells", "epochs", "batch_size", "schedule", "start_at_mean", "seed"]


def main() -> None:
    """Fit with each setting, and print and keep a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", type=Path)
    parser.add_argument("--epochs", type=int, nargs="+", default=[20, 40, 80, 160])
    parser.add_argument("--batch-size", type=int, nargs="+", default=[128, 256, 512, 1024])
    parser.add_argument("--start", choices=["equal", "mean", "both"], default="equal", help="of the decoder")
    parser.add_argument("--schedule", nargs="+", choices=["constant", "cosine", "plateau"], default=["cosine"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    adata, registry, split = read_registered(arguments.counts)

    def fit(seed: int, **options: object) -> tuple[float, float]:
        """CPU time and negative ELBO of the test cells."""
        linear = LinearSCVI(adata, **dict(ModelConfig()), registry=registry, seed=seed)
        config = TrainConfig(early_stopping=False, **options).fit_config(len(split.train))
        started = time.process_time()
        linear.fit(split, config, seed=seed)
        return time.process_time() - started, float(evaluate(linear, split)["elbo_test"])

    for batch_size in arguments.batch_size:
        fit(0, max_epochs=1, batch_size=batch_size)
    known = pd.DataFrame(columns=SETTINGS)
    if arguments.table and arguments.table.exists():
        known = pd.read_csv(arguments.table, sep="\t")
    rows = known.to_dict("records")
    done = {tuple(row[name] for name in SETTINGS) for row in rows}
    starts = {"equal": [False], "mean": [True], "both": [False, True]}[arguments.start]
    print(*SETTINGS, "cpu_s", "elbo", sep="\t", flush=True)
    for seed, epochs, batch_size, schedule, start in product(
        arguments.seeds, arguments.epochs, arguments.batch_size, arguments.schedule, starts
    ):
        setting = (len(split.train), epochs, batch_size, schedule, start, seed)
        if setting in done:
            continue
        cpu, elbo = fit(seed, max_epochs=epochs, batch_size=batch_size, schedule=schedule, start_at_mean=start)
        rows.append(dict(zip(SETTINGS, setting, strict=True)) | {"cpu_s": round(cpu, 1), "elbo": round(elbo, 3)})
        print(*rows[-1].values(), sep="\t", flush=True)
        if arguments.table:
            pd.DataFrame(rows).to_csv(arguments.table, sep="\t", index=False)


if __name__ == "__main__":
    main()
