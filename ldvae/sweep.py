"""Fits of one dataset over a grid of options and several seeds, from Python."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from ldvae import posterior
from ldvae.config import ModelConfig, ProgramsConfig, SweepConfig, TrainConfig, expand_sweep
from ldvae.data import Split, split_cells
from ldvae.devices import pick_device
from ldvae.errors import InputError
from ldvae.model import LinearSCVI
from ldvae.programs import Programs, Reference, outliers

logger = logging.getLogger(__name__)


class Sweep(NamedTuple):
    """Fits of one dataset and how they compare."""

    runs: (
        pd.DataFrame
    )  # indexed by run: setting, seed, options, epochs, seconds, elbo_train, elbo_validation, elbo_test, …
    models: dict[str, LinearSCVI]  # trained, by run

    def get_programs(self, setting: str | None = None, config: ProgramsConfig | None = None) -> Programs:
        """Gene programs that the fits of one setting share; fits that lost a program are left out.

        Parameters
        ----------
        setting
            Id of a setting, such as k10-3fa9c1; none: the only one.
        config
            As for `LinearSCVI.get_programs`.

        Examples
        --------
        Continues the example of `fit_sweep`.

        >>> programs = fits.get_programs()
        >>> programs.table["n_runs"].unique().tolist()
        [2]
        """
        first, *others = self._kept(setting)
        return first.get_programs(*others, config=config)

    def get_reference(self, setting: str | None = None, config: ProgramsConfig | None = None) -> Reference:
        """The programs of one setting with all that scoring other cells needs; see `LinearSCVI.get_reference`.

        Parameters
        ----------
        setting, config
            As for `get_programs`.

        Examples
        --------
        Continues the example of `fit_sweep`.

        >>> fits.get_reference().project(adata[:20]).scores.shape[0]
        20
        """
        first, *others = self._kept(setting)
        return first.get_reference(*others, config=config)

    def _kept(self, setting: str | None) -> list[LinearSCVI]:
        """Fits of a setting without those that lost a program."""
        settings = list(self.runs["setting"].unique())
        if setting is None and len(settings) > 1:
            raise InputError(f"The sweep has {len(settings)} settings: {', '.join(settings)}. Name one.")
        if setting is not None and setting not in settings:
            raise InputError(
                f"There is no setting {setting!r}; the sweep has {', '.join(settings)}. Name one of these."
            )
        own = self.runs[self.runs["setting"] == (setting or settings[0])]
        out = outliers(own["elbo_fitted"], own["elbo_fitted_se"])
        for run in own.index[out]:
            logger.warning("%s is left out: its ELBO is far from that of the other fits.", run)
        return [self.models[run] for run in own.index[~out]]


def fit_sweep(
    adata: AnnData,
    config: SweepConfig | None = None,
    *,
    model: ModelConfig | None = None,
    train: TrainConfig | None = None,
    split: Split | None = None,
    accelerator: str = "auto",
) -> Sweep:
    """Fit every setting of a grid from every seed, all to the same cells.

    Parameters
    ----------
    adata
        Set up with `LinearSCVI.setup_anndata`; read once for all fits.
    config
        Seeds, grid and points (`ldvae.config.SweepConfig`), as in the workflow's config.
    model, train
        Options that are not swept; none: the workflow's defaults.
    split
        Rows to train, validate and test on; none: a random tenth to validate on and a random tenth to test on.
    accelerator
        "auto", "cpu" or "gpu".

    Returns
    -------
    Sweep
        With negative ELBO in nats per cell; run ids are those of the workflow.

    Examples
    --------
    >>> import ldvae
    >>> from ldvae.config import SweepConfig, TrainConfig
    >>> from ldvae.simulate import simulate
    >>> adata = simulate(n_obs=200, n_vars=100).to_anndata()
    >>> ldvae.LinearSCVI.setup_anndata(adata)
    >>> grid = SweepConfig(seeds=[0, 1], grid={"n_latent": [3]})
    >>> fits = ldvae.fit_sweep(adata, grid, train=TrainConfig(max_epochs=2))
    >>> fits.runs[["seed", "n_latent", "epochs"]].to_numpy().tolist()
    [[0, 3, 2], [1, 3, 2]]
    """
    runs = expand_sweep(model or ModelConfig(), train or TrainConfig(), config or SweepConfig())
    split = split or split_cells(adata.n_obs, 0.8, 0.1, seed=0)
    rows, models = [], {}
    for run in runs.values():
        fitted = LinearSCVI(adata, **dict(run.model), seed=run.seed)
        fitted.module.to(pick_device(accelerator))
        done = fitted.fit(split, run.train.fit_config(len(split.train)), seed=run.seed)
        row = {"run": run.id, "setting": run.setting, "seed": run.seed, **run.params}
        row |= {"epochs": done.epochs, "seconds": done.seconds}
        seen = []
        for part, cells in zip(Split._fields, split, strict=True):
            # The same noise for all fits, so that they differ by what they learned.
            noise = torch.Generator().manual_seed(0)
            terms = posterior.elbo_terms(fitted.module, fitted.source, cells, noise) if len(cells) else None
            loss = terms.loss().double().numpy(force=True) if terms else np.array([np.nan])
            row[f"elbo_{part}"] = float(loss.mean())
            if part != "test" and terms:
                seen.append(loss)
        both = np.concatenate(seen)
        row |= {"elbo_fitted": float(both.mean()), "elbo_fitted_se": float(both.std() / len(both) ** 0.5)}
        logger.info("%s: ELBO %.2f nats per cell in validation", run.id, row["elbo_validation"])
        rows.append(row)
        models[run.id] = fitted
    return Sweep(pd.DataFrame(rows).set_index("run"), models)
