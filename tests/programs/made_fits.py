"""Made-up fits that share the span of known programs, and how to compare programs with the truth."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize

from ldvae import programs as gp
from ldvae.config import ProgramsConfig
from ldvae.simulate import simulate

N_VARS = 800


class Fits(NamedTuple):
    """Made-up fits that share the span of known programs, and the truth."""

    scores: list
    loadings: list
    mean: np.ndarray
    theta: np.ndarray  # (n_vars,)
    true_scores: pd.DataFrame
    true_loadings: pd.DataFrame

    @property
    def weighted(self):
        weight = gp.information(self.mean, self.theta)[:, None]
        return [gp.gauge(loadings, self.mean) * weight for loadings in self.loadings]

    def find(self, **options):
        return gp.find_programs(
            self.scores,
            self.loadings,
            mean=self.mean,
            theta=self.theta,
            cells=list(self.true_scores.index),
            genes=list(self.true_loadings.index),
            config=ProgramsConfig(**options),
        )


def make_fits(scenario="mixed", n_fits=4, n_extra=3, noise=0.1, n_obs=1200, seed=0):
    """Each fit: an arbitrary rotation of the true factors and of a few weak ones of its own."""
    made = simulate(scenario, n_obs=n_obs, n_vars=N_VARS, n_up=60, n_down=15, seed=seed)
    rng = np.random.default_rng(seed)
    truth, weights = made.scores.to_numpy(), made.loadings.to_numpy()
    if scenario == "additive":  # its shares of identities and activities, with effects on the log scale
        weights = 3 * simulate("gauss", n_obs=1, n_vars=N_VARS, n_up=60, n_down=15, seed=seed).loadings.to_numpy()
        weights = weights - weights @ made.scores.mean(axis=0).to_numpy()[:, None]
    scores, loadings = [], []
    for _ in range(n_fits):
        own_scores = rng.normal(size=(n_obs, n_extra))
        own_loadings = rng.normal(size=(N_VARS, n_extra)) * 0.02
        z, w = np.hstack([truth, own_scores]), np.hstack([weights, own_loadings])
        mix = rng.normal(size=(z.shape[1], z.shape[1]))
        z = (z + noise * rng.normal(size=z.shape)) @ mix
        w = (w + noise / 3 * rng.normal(size=w.shape)) @ np.linalg.inv(mix).T
        scores.append(z.astype(np.float32))
        loadings.append(w + rng.normal(size=(1, w.shape[1])))
    mean = made.mean_expression.to_numpy() * 2000
    names = made.loadings.index, made.loadings.columns
    return Fits(scores, loadings, mean, made.theta.to_numpy(), made.scores, pd.DataFrame(weights, *names))


def cosines(first, second):
    """Signed cosines between the columns of two tables after the best assignment, and the columns of the second."""
    first, second = (np.asarray(table) / np.linalg.norm(table, axis=0) for table in (first, second))
    products = first.T @ second
    rows, columns = optimize.linear_sum_assignment(-np.abs(products))
    return products[rows, columns], columns


def weighted_truth(fits):
    weight = gp.information(fits.mean, fits.theta)
    return np.asarray(gp.gauge(fits.true_loadings.to_numpy(), fits.mean)) * weight[:, None]
