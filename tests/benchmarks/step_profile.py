"""Where the time of one training step goes, part by part.

    python tests/benchmarks/step_profile.py [--data pbmc3k-2000] [--likelihood nb] [--batches 1] [--threads 2]

Prints the median time of every compiled loop, of drawing the noise, and of the step as a whole. Needs the data of
../shared/data.
"""

import argparse
import os
import statistics
import time
from collections import defaultdict

import numpy as np
import torch
from speed import DATA, cpu_name, read

from ldvae.config import ModelConfig
from ldvae.data import Counts, Covariates, DataShape, as_csr
from ldvae.kernels import cpu, fused_step, loops
from ldvae.module import LDVAE

BATCH_SIZE = 128
SIDE_BY_SIDE = {  # these are given to `spread`
    "first_layers", "decode", "likelihood", "decoder_gradient", "first_layers_step",
}  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="pbmc3k-2000", choices=["pbmc3k-2000", "pbmc3k", "kang"])
    parser.add_argument("--likelihood", default="nb", choices=["nb", "zinb", "poisson"])
    parser.add_argument("--batches", type=int, default=1, help="to which the cells are assigned at random")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    if not DATA.is_dir():
        print(f"The data are not there ({DATA}).")
        return
    torch.set_num_threads(arguments.threads)
    x = as_csr(read(arguments.data).X)
    n_obs, n_vars = x.shape
    none = torch.zeros(n_obs, 0)
    zeros = torch.zeros(n_obs, dtype=torch.int64)
    batch = torch.randint(arguments.batches, (n_obs,))
    library = torch.from_numpy(np.log(np.asarray(x.sum(axis=1))))
    counts = Counts(x, Covariates(batch, zeros, none.long(), none, library))
    prior = (value.expand(arguments.batches).clone() for value in (library.mean(), library.var()))
    shape = DataShape(n_vars, arguments.batches)
    module = LDVAE(ModelConfig(gene_likelihood=arguments.likelihood), shape, *prior).train()
    step = fused_step(module, torch.optim.Adam(module.parameters(), eps=0.01, weight_decay=1e-6))
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    times: dict[str, list[float]] = defaultdict(list)

    def timed(name, function):
        def call(*values):
            started = time.perf_counter()
            result = function(*values)
            times[name].append(time.perf_counter() - started)
            return result

        return call

    def train() -> None:
        rows = rng.permutation(n_obs)[:BATCH_SIZE]
        noise = timed("noise", module.draw_noise)(BATCH_SIZE, generator)
        timed("step", step.train)(counts, rows, noise, 1.0)

    train()  # compiles
    times.clear()
    for _ in range(arguments.steps):
        train()
    spread = cpu.spread
    cpu.spread = lambda function, n, *values: timed(function.__name__, spread)(function, n, *values)
    for name, function in vars(cpu).copy().items():
        if name in vars(loops) and hasattr(function, "py_func"):
            compiled = timed(name, function)
            compiled.__name__ = name
            setattr(cpu, name, compiled if name not in SIDE_BY_SIDE else function)
    whole = times.copy()
    times.clear()
    for _ in range(arguments.steps):
        train()
    print(f"{cpu_name()}, {arguments.threads} threads, load {os.getloadavg()[0]:.1f}")
    print(f"{arguments.data}, {n_vars:,} genes, {x.nnz / n_obs / n_vars:.1%} nonzero, ", end="")
    print(f"{arguments.likelihood}, {arguments.batches} batches\n")
    print("| part | median ms per step |\n|---|---|")
    for name in ("noise", "step"):
        print(f"| {name} | {1e3 * statistics.median(whole[name]):.3f} |")
    for name, values in sorted(times.items(), key=lambda item: -sum(item[1])):
        if name not in whole:
            calls = len(values) / arguments.steps
            print(f"| – {name} | {1e3 * calls * statistics.median(values):.3f} |")


if __name__ == "__main__":
    main()
