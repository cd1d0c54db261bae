"""Where the time of one training step goes, part by part.

    python tests/benchmarks/step_profile.py [--data pbmc3k-2000] [--likelihood nb] [--batches 1] [--threads 2]

Prints the median time of each phase of the compiled step, of the rest of the step, and of drawing the noise. Needs the
data of tests/shared_data.py.
"""

import argparse
import os
import time

import numpy as np
import torch
from speed import cpu_name, read

from ldvae.backends.cpu import threads
from ldvae.backends.cpu.backend import CpuBackend
from ldvae.config import ModelConfig
from ldvae.data import Counts, Covariates, DataShape, as_csr
from ldvae.module import LDVAE

BATCH_SIZE = 128


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="pbmc3k-2000", choices=["pbmc3k-2000", "pbmc3k", "kang"])
    parser.add_argument("--likelihood", default="nb", choices=["nb", "zinb", "poisson"])
    parser.add_argument("--batches", type=int, default=1, help="to which the cells are assigned at random")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
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
    step = CpuBackend(module, torch.optim.Adam(module.parameters(), eps=0.01, weight_decay=1e-6))
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    names = ("noise", "before the phases", *threads.PHASES, "after the phases")
    seconds = []
    for _ in range(arguments.steps + 1):  # the first one compiles
        rows = rng.permutation(n_obs)[:BATCH_SIZE]
        started = time.perf_counter()
        noise = module.draw_noise(BATCH_SIZE, generator)
        drawn = time.perf_counter()
        begin = threads.clock()
        step.train(counts, rows, noise, 1.0)
        end = threads.clock()
        done = time.perf_counter()
        team = step.team
        cycles = np.diff([begin, threads.phase_begin(team), *threads.phase_ends(team), end])
        seconds.append([drawn - started, *(cycles * ((done - drawn) / (end - begin)))])
    medians = 1e3 * np.median(seconds[1:], axis=0)
    print(f"{cpu_name()}, {arguments.threads} threads, load {os.getloadavg()[0]:.1f}")
    print(f"{arguments.data}, {n_vars:,} genes, {x.nnz / n_obs / n_vars:.1%} nonzero, ", end="")
    print(f"{arguments.likelihood}, {arguments.batches} batches\n")
    print("| part | median ms per step |\n|---|---|")
    for name, value in zip(names, medians, strict=True):
        print(f"| {name} | {value:.3f} |")
    print(f"| step, without the noise | {1e3 * np.median([sum(parts[1:]) for parts in seconds[1:]]):.3f} |")


if __name__ == "__main__":
    main()
