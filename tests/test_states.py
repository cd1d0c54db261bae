"""Whatever is done to a model's data, and in whatever order: a cell's numbers are that cell's, or there is an error."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from anndata import AnnData
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scipy import sparse

from ldvae import InputError, LinearSCVI
from ldvae.data import Covariates

N_OBS, N_VARS = 60, 12
GENES = [f"gene{i}" for i in range(N_VARS)]
LANES = ("a", "b")
GONE, WITH_COUNTS = "latent_posterior_parameters", "latent_posterior_parameters_with_counts"


def random_counts(random: np.random.Generator, n_obs: int) -> np.ndarray:
    return random.poisson(random.uniform(1, 6, (n_obs, 1)), (n_obs, N_VARS)).astype(np.float32)


class ModelAndItsData(RuleBasedStateMachine):
    """A model whose data are changed under it; what it should say is computed from the counts by plain torch."""

    @initialize(
        seed=st.integers(0, 2**16),
        storage=st.sampled_from([sparse.csr_matrix, sparse.csc_matrix, np.asarray, sparse.csr_array]),
        layer=st.sampled_from([None, "counts"]),
        observed=st.booleans(),
        integer=st.booleans(),
    )
    def set_up_and_train(self, seed, storage, layer, observed, integer):
        self.random, self.layer = np.random.default_rng(seed), layer
        self.store = lambda x: storage(x.astype(np.int64) if integer and not (x % 1).any() else x)
        counts = self.store(random_counts(self.random, N_OBS))
        adata = AnnData(counts) if layer is None else AnnData(counts * 0, layers={layer: counts})
        adata.obs_names, adata.var_names = [f"cell{i}" for i in range(N_OBS)], GENES
        adata.obs["lane"] = self.random.choice(LANES, N_OBS)
        adata.obs["n"] = np.arange(N_OBS)
        LinearSCVI.setup_anndata(adata, batch_key="lane", layer=layer)
        self.model = LinearSCVI(adata, n_hidden=8, n_latent=2, use_observed_lib_size=observed, seed=seed)
        self.model.train(1, enable_progress_bar=False)
        self.trained = set(adata.obs_names[self.model.train_indices])
        self.minified: dict[str, np.ndarray] = {}  # counts of each cell when they were taken away
        self.calls = 0

    # ---------------------------------------------------------------- what is done

    @property
    def adata(self) -> AnnData:
        return self.model.adata

    @property
    def gone(self) -> bool:
        return self.model.minified_data_type == GONE

    def matrix(self):
        return self.adata.X if self.layer is None else self.adata.layers[self.layer]

    def replace(self, x: np.ndarray) -> None:
        if self.layer is None:
            self.adata.X = self.store(x)
        else:
            self.adata.layers[self.layer] = self.store(x)

    def dense(self) -> np.ndarray:
        x = self.matrix()
        return np.asarray(x.toarray() if sparse.issparse(x) else x, dtype=np.float32)

    @rule(keep=st.lists(st.booleans(), min_size=N_OBS, max_size=N_OBS))
    def subset_in_place(self, keep):
        rows = np.flatnonzero(keep[: self.adata.n_obs])
        if len(rows) > 5:
            self.adata._inplace_subset_obs(rows)

    @rule()
    def reorder_cells(self):
        self.adata._inplace_subset_obs(self.random.permutation(self.adata.n_obs))

    @precondition(lambda self: not self.gone)
    @rule()
    def replace_the_counts(self):
        self.replace(random_counts(self.random, self.adata.n_obs))

    @precondition(lambda self: not self.gone)
    @rule()
    def change_one_count(self):
        row, gene = self.random.integers(self.adata.n_obs), self.random.integers(N_VARS)
        x = self.matrix()
        if sparse.issparse(x):
            x.data[self.random.integers(len(x.data))] += 1
        else:
            x[row, gene] += 1

    @precondition(lambda self: not self.gone)
    @rule(in_place=st.booleans())
    def normalize(self, in_place):
        x = self.matrix()
        values = x.data if sparse.issparse(x) else x
        if in_place and values.dtype.kind == "f":
            values[:] = np.log1p(values)
        else:
            self.replace(np.log1p(self.dense()))

    @precondition(lambda self: not self.gone)
    @rule()
    def back_to_counts(self):
        self.replace(np.rint(self.dense()))

    @rule()
    def reorder_genes(self):
        self.adata._inplace_subset_var(np.arange(N_VARS)[::-1])

    @rule(lanes=st.sampled_from(["swap", "new"]))
    def change_lanes(self, lanes):
        self.adata.obs["lane"] = np.where(self.adata.obs["lane"] == "a", "b", "a")
        if lanes == "new":
            self.adata.obs.loc[self.adata.obs_names[0], "lane"] = "c"

    @rule(kind=st.sampled_from([GONE, WITH_COUNTS]))
    def minify(self, kind):
        if self.model.minified_data_type is not None or not self.valid():
            with pytest.raises(InputError):
                self.model.minify_adata(kind)
            return
        self.minified = dict(zip(self.adata.obs_names, self.dense(), strict=True))
        self.model.minify_adata(kind)

    @rule()
    def train(self):
        if self.gone or not self.valid():
            with pytest.raises(InputError):
                self.model.train(1, enable_progress_bar=False)
        else:
            self.model.train(1, enable_progress_bar=False)
            self.trained = set(self.adata.obs_names[self.model.train_indices])

    @rule(with_data=st.booleans())
    def save_and_load(self, with_data):
        with tempfile.TemporaryDirectory() as folder:
            self.model.save(Path(folder) / "model", save_anndata=with_data)
            data = {} if with_data else {"adata": self.adata}
            if self.gone or self.valid():
                self.model = LinearSCVI.load(Path(folder) / "model", **data)
            else:
                with pytest.raises(InputError):
                    LinearSCVI.load(Path(folder) / "model", **data)

    # ---------------------------------------------------------------- what it must say

    def valid(self) -> bool:
        genes, lanes = list(self.adata.var_names) == GENES, set(self.adata.obs["lane"]) <= set(LANES)
        return genes and lanes and (self.gone or bool((self.dense() % 1 == 0).all() and self.dense().any()))

    def expected(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Latent means and expected counts, from the counts of the cells now, or when they were taken away."""
        names = self.adata.obs_names[rows]
        x = np.stack([self.minified[name] for name in names]) if self.gone else self.dense()[rows]
        module = self.model.module
        lanes = torch.tensor([LANES.index(lane) for lane in self.adata.obs["lane"].iloc[rows]])
        n = len(rows)
        total = torch.from_numpy(np.log(np.maximum(x.sum(axis=1), 1)))[:, None]
        zeros = torch.zeros(n, dtype=torch.int64)
        covariates = Covariates(lanes, zeros, torch.zeros(n, 0, dtype=torch.int64), torch.zeros(n, 0), total)
        with torch.inference_mode():
            q = module.encode(torch.from_numpy(x))
            library = total if q.l_mean is None else q.l_mean + q.l_var / 2
            rate = module.generative(module.latent(q.z_mean), library, covariates).px_rate
        return q.z_mean.numpy(), rate.numpy()

    def ways_to_name(self, rows: np.ndarray) -> list:
        """The same cells, ascending, as a mask, numbers, names and a query."""
        mask = np.isin(np.arange(self.adata.n_obs), rows)
        numbers = self.adata.obs["n"].iloc[rows].tolist()
        return [mask, mask.tolist(), rows, rows - self.adata.n_obs, list(self.adata.obs_names[rows]), f"n in {numbers}"]

    @invariant()
    def a_cells_numbers_are_its_own(self):
        if not hasattr(self, "model"):
            return
        self.calls += 1
        rows = np.sort(self.random.choice(self.adata.n_obs, min(5, self.adata.n_obs), replace=False))
        ways = self.ways_to_name(rows)
        given = ways[self.calls % len(ways)]

        def ask():
            expression = self.model.get_normalized_expression(indices=given, give_mean=True, library_size="latent")
            return self.model.get_latent_representation(indices=given), expression

        if not self.valid():
            with pytest.raises(InputError):
                ask()
            return
        latent, expression = ask()
        z, rate = self.expected(rows)
        np.testing.assert_allclose(latent, z, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(expression, rate, rtol=1e-3, atol=1e-4)
        assert list(expression.index) == list(self.adata.obs_names[rows])
        assert set(self.adata.obs_names[self.model.train_indices]) == self.trained & set(self.adata.obs_names)


TestModelAndItsData = pytest.mark.filterwarnings(
    "ignore::scipy.sparse.SparseEfficiencyWarning",
    "ignore:.*have no counts in",
    "ignore:The total counts",
    "ignore:.*fewer than 3 cells",
    "ignore:Transforming to str index",
)(pytest.mark.thorough(ModelAndItsData.TestCase))
TestModelAndItsData.settings = settings(
    max_examples=20, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
