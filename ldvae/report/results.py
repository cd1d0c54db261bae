"""What a report is made of: the tables of one dataset, as the steps wrote them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from ldvae.methods import Methods


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of one dataset as plain tables; columns are named as in the files they come from.

    What the workflow did not make is an empty table, an empty mapping or None. Tables of the names that `ldvae.results`
    gives them are read by these names.
    """

    dataset: str
    #: qc/summary.json and qc/cells.tsv.gz (one row per cell before the filter).
    qc: dict[str, Any]
    qc_cells: pd.DataFrame
    setup: dict[str, Any]
    #: metrics.json and history.csv of each run, by run id.
    metrics: dict[str, dict[str, Any]]
    histories: dict[str, pd.DataFrame]
    #: ppc.tsv of the best run: posterior predictive checks, one row per gene and batch.
    fit: pd.DataFrame
    runs: pd.DataFrame
    settings: pd.DataFrame
    correlations: pd.DataFrame
    best: dict[str, Any]
    #: One row per program, indexed by its name; the other tables of the programs are long.
    programs: pd.DataFrame
    top_genes: pd.DataFrame
    consensus: pd.DataFrame
    stability: pd.DataFrame
    associations: pd.DataFrame
    enrichment: pd.DataFrame
    programs_summary: dict[str, Any]
    ranked_sets: pd.DataFrame = field(default_factory=pd.DataFrame)
    #: programs/donors.tsv, donor_means.tsv and all_genes.tsv.gz.
    donors: pd.DataFrame = field(default_factory=pd.DataFrame)
    donor_means: pd.DataFrame = field(default_factory=pd.DataFrame)
    all_genes: pd.DataFrame = field(default_factory=pd.DataFrame)
    #: Of all cells: annotation columns, program scores (n_obs, n_programs) and UMAP coordinates (n_obs, 2).
    obs: pd.DataFrame
    scores: pd.DataFrame
    umap: np.ndarray | None
    #: Genes by which the map can be colored: log(1 + counts per 10,000) of the cells drawn (`drawn_cells`), by name.
    expression: pd.DataFrame = field(default_factory=pd.DataFrame)
    #: Colors of the levels of a categorical column where the annotated file holds them (scanpy's `{column}_colors`).
    colors: dict[str, list[str]] = field(default_factory=dict)
    contrasts: pd.DataFrame
    #: de/summary.json.
    de_summary: dict[str, Any] = field(default_factory=dict)
    #: Of each contrast, by its name: the model's table, and that of all measured genes where there is one.
    de: dict[str, pd.DataFrame]
    de_all_genes: dict[str, pd.DataFrame] = field(default_factory=dict)
    resolved: dict[str, Any]
    #: What the steps say that they did.
    methods: Methods = field(default_factory=lambda: Methods([], []))
    #: Versions of Python and the packages that the steps wrote down, and the commits.
    versions: dict[str, str] = field(default_factory=dict)
    #: Path of the figures' folder from the page.
    figures: str
    #: Wall times of the jobs of each step, in seconds.
    seconds: dict[str, list[float]]

    @property
    def fields(self) -> dict[str, Any]:
        """The obs columns that the model knows: batch_key, labels_key and so on; "" for none."""
        return self.setup.get("fields", {})

    @property
    def chosen_runs(self) -> list[str]:
        """The runs that the programs were made from."""
        return [run for run in self.best["runs"] if run in self.metrics]

    @property
    def best_metrics(self) -> dict[str, Any]:
        """Metrics of the best single run."""
        return self.metrics[self.best["run"]]
