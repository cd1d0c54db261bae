"""Differential expression from posterior samples: groups of cells, sampling, and the statistics of each gene."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch

from ldvae.errors import InputError, MissingKeyError, counted, other_type
from ldvae.module import LDVAE
from ldvae.posterior import (
    BATCH_SIZE,
    Cells,
    Source,
    device_of,
    importance_weights,
    numpy_generator,
    sample_cells,
    settle,
)
from ldvae.rows import Rows, rows_of

EPS = 1e-8  # keeps the log odds finite, as in scvi-tools
GENE_BLOCK = 16  # genes whose samples are compared together; 5,000 samples of them stay in the cache
IN_CACHE = 256  # samples decoded at once, whose proportions stay in the cache


@dataclass(frozen=True, kw_only=True)
class DeOptions:
    """How two groups are sampled and compared; the defaults are those of scvi-tools.

    Attributes
    ----------
    mode
        "vanilla": how likely is more expression in group 1; "change": how likely is a log fold change beyond `delta`.
    delta
        Smallest absolute log2 fold change that counts as a change; None: from the distribution over genes.
    n_samples_overall
        Posterior samples for each group.
    use_permutation, m_permutation
        Compare `m_permutation` random pairs of samples instead of sample i with sample i.
    change_fn
        Change between samples: a function of two arrays (n_samples, n_vars) and the pseudocount; None or "log-fold":
        log2 fold change.
    m1_domain_fn
        Function of the change, giving two masks (up, down), or one, of the samples that count; None: beyond `delta`.
    pseudocounts
        Added to the proportions before the logarithm; None: estimated from the genes that are not expressed.
    threshold_counts
        Mean count in a group below which a gene is not expressed there.
    test_mode
        "three": the more likely of up and down; "two": either.
    cred_interval_lvls
        Levels of credible intervals (highest density) of the log fold change.
    fdr_target
        Posterior expected false discovery rate of the genes flagged.
    batch_correction
        Decode both groups as if measured in the same batches, instead of each cell's own.
    batchid1, batchid2
        Categories of the batches to decode for, with `batch_correction`; None: all.
    weights
        "importance" favors samples that are likely for many cells of the group.
    importance
        Arguments of `importance_weights`.
    filter_outlier_cells
        Sample only cells that are no outliers in latent space.
    all_stats
        Add means, shares of nonzero counts and normalized means of the counts.
    """

    mode: Literal["vanilla", "change"] = "vanilla"
    delta: float | None = 0.25
    n_samples_overall: int = 5000
    use_permutation: bool = False
    m_permutation: int = 10_000
    change_fn: Callable[[np.ndarray, np.ndarray, float], np.ndarray] | Literal["log-fold"] | None = None
    m1_domain_fn: Callable[[np.ndarray], Any] | None = None
    pseudocounts: float | None = None
    threshold_counts: float = 0.01
    test_mode: Literal["two", "three"] = "three"
    cred_interval_lvls: Sequence[float] | None = None
    fdr_target: float = 0.05
    batch_correction: bool = False
    batchid1: Sequence[Any] | None = None
    batchid2: Sequence[Any] | None = None
    weights: Literal["uniform", "importance"] | None = "uniform"
    importance: Mapping[str, Any] = field(default_factory=dict)
    filter_outlier_cells: bool = False
    all_stats: bool = True

    def __post_init__(self) -> None:
        choices = {
            "mode": ("vanilla", "change"),
            "test_mode": ("two", "three"),
            "weights": (None, "uniform", "importance"),
        }
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                raise InputError(f"{name} {value!r} not recognized; it must be one of {', '.join(map(str, known))}.")
        if not self.batch_correction and (self.batchid1 is not None or self.batchid2 is not None):
            raise InputError("Inconsistent batch policy: batchid1 and batchid2 need batch_correction=True.")
        if self.importance and self.weights != "importance":
            raise InputError(
                f"importance_weighting_kwargs ({', '.join(self.importance)}) have no effect here; they need "
                "weights='importance'."
            )
        if self.n_samples_overall < 2:
            raise InputError(f"n_samples_overall is {self.n_samples_overall}; it must be at least 2.")
        for function, n, name in ((self.change_fn, 3, "change_fn"), (self.m1_domain_fn, 1, "m1_domain_fn")):
            if function is None or function == "log-fold":
                continue
            if not callable(function):
                raise InputError(f"{name} {function!r} not understood; give a function, or None.")
            if len(inspect.signature(function).parameters) != n:
                raise InputError(f"{name} should take exactly {n} parameter{'s' * (n > 1)}.")


class Comparison(NamedTuple):
    """Two groups of cells."""

    rows1: np.ndarray
    rows2: np.ndarray
    group1: Any = None  # names; None where the cells were given by indices
    group2: Any = None

    @property
    def name(self) -> str:
        """Its name in the table."""
        return f"{self.group1} vs {self.group2}"


# Groups of cells


def comparisons(
    obs: pd.DataFrame,
    groupby: str | None = None,
    group1: Any = None,
    group2: Any = None,
    idx1: Rows | None = None,
    idx2: Rows | None = None,
    subset_idx: Rows | None = None,
) -> list[Comparison]:
    """The groups to compare, from the arguments of scvi-tools.

    Parameters
    ----------
    obs
        Annotation of the cells.
    groupby
        Column with the groups.
    group1
        Group, or groups, to compare; none: each in turn.
    group2
        Group to compare with; none: all other cells.
    idx1, idx2
        Cells of the two groups instead: a mask, row numbers, or a query of `obs`. A cell in both belongs to group 2,
        with a warning.
    subset_idx
        Cells that groups may hold, given likewise; the others belong to no named group, but to the rest.

    Raises
    ------
    InputError
        If a group or column does not exist, a group has no cells, or both groups are the same.
    """
    if idx1 is None and idx2 is not None:
        raise InputError("idx2 is given without idx1: give the cells of both groups, or idx1 alone.")
    inside = np.ones(len(obs), dtype=bool) if subset_idx is None else rows_mask(subset_idx, obs, "subset_idx")
    if idx1 is not None:
        if named := [str(value) for value in (groupby, group1, group2) if value is not None]:
            warnings.warn(
                f"idx1 names the cells to compare; groupby, group1 and group2 ({', '.join(named)}) are not used.",
                UserWarning,
                stacklevel=4,
            )
        mask1 = rows_mask(idx1, obs, "idx1") & inside
        mask2 = ~mask1 if idx2 is None else rows_mask(idx2, obs, "idx2") & inside
        both = int((mask1 & mask2).sum())
        if both and not (mask1 & ~mask2).any():
            within = "" if inside.all() else " within subset_idx"
            raise InputError(
                f"idx1 and idx2 select the same cells{within} ({both}); give two groups that differ."
                if np.array_equal(mask1, mask2)
                else f"Every cell of idx1{within} ({both}) is in idx2 too, where it counts; give idx1 cells of its own."
            )
        mask1 = mask1 & ~mask2
        if mask1.all():
            raise InputError(f"idx1 selects all {len(obs)} cells; there is none left to compare them with. Give idx2.")
        for name, mask in (("idx1", mask1), ("idx2", mask2)):
            if not mask.any():
                raise InputError(
                    f"{name} selects none of the {len(obs)} cells"
                    f"{'' if inside.all() else ' within subset_idx'}; both groups need at least one of their own."
                )
        if both:
            warnings.warn(
                f"idx1 and idx2 share {counted(both, 'cell')}; shared cells count in the second group alone.",
                UserWarning,
                stacklevel=4,
            )
        return [Comparison(np.flatnonzero(mask1), np.flatnonzero(mask2))]
    if groupby is None:
        raise InputError("There is nothing to compare: give groupby, a column of adata.obs, or idx1.")
    if groupby not in obs:
        raise MissingKeyError(f"{groupby} not found in adata.obs. Its columns are: {', '.join(map(str, obs.columns))}.")
    column = obs[groupby]
    present = column.dropna().unique()
    if group1 is None and pd.api.types.is_float_dtype(column) and not np.all(np.asarray(present, dtype=float) % 1 == 0):
        raise InputError(
            f"obs[{groupby!r}] holds measurements ({len(present)} values in {len(obs)} cells), and no groups. Make "
            "groups of them, e.g. with pandas.cut, or name those to compare (group1)."
        )
    chosen = list(column.astype("category").cat.categories) if group1 is None else group1
    chosen = [chosen] if isinstance(chosen, str) or not isinstance(chosen, Iterable) else list(chosen)
    if group1 is None:
        chosen = [group for group in chosen if group in present and (group2 is None or group != group2)]
        if len(chosen) == 1 and group2 is None:
            raise InputError(
                f"Only a single group in obs[{groupby!r}]: {chosen[0]}. There is nothing to compare it with."
            )
    made = []
    for group in chosen:
        if listed := [name for name in (group, group2) if isinstance(name, list | np.ndarray | pd.Series | pd.Index)]:
            raise InputError(
                f"A group to compare is {listed[0]!r}; group1 takes one group or a list of them, each compared in "
                "turn, and group2 one. Give the cells of several groups together as idx1 and idx2."
            )
        if group2 is not None and group == group2:
            raise InputError(f"group1 and group2 are both {group!r} of obs[{groupby!r}]; give two groups that differ.")
        masks = [np.asarray(column == name) & inside for name in (group, group2)]
        if group2 is None:
            masks[1] = ~masks[0]
        for name, mask in zip((group, group2), masks, strict=True):
            if not mask.any():
                known = ", ".join(map(str, present[:20]))
                raise InputError(
                    f"Group {name!r} of obs[{groupby!r}] has no cells; there are {known}." + other_type(name, present)
                )
        rest = "Rest" if group2 is None else group2
        made.append(Comparison(np.flatnonzero(masks[0]), np.flatnonzero(masks[1]), group, rest))
    return made


def rows_mask(rows: Rows, obs: pd.DataFrame, name: str) -> np.ndarray:
    """Cells as a mask, from whatever `ldvae.rows.rows_of` takes."""
    mask = np.zeros(len(obs), dtype=bool)
    mask[rows_of(rows, obs, name)] = True
    return mask


# The table


def differential_expression(
    module: LDVAE,
    cells: Cells,
    source: Source | None,
    chosen: Sequence[Comparison],
    var_names: pd.Index,
    batch_categories: Sequence[Any],
    test: DeOptions,
    generator: torch.Generator,
    batch_size: int = BATCH_SIZE,
) -> pd.DataFrame:
    """Compare groups of cells gene by gene.

    Parameters
    ----------
    module
        Model.
    cells
        All cells, encoded.
    source
        Their counts; None where they are not at hand: then without statistics of the counts.
    chosen
        The comparisons, from `comparisons`.
    var_names
        Genes.
    batch_categories
        Names of the batches in the order of their codes.
    test
        How to compare.
    generator
        Of all that is drawn.
    batch_size
        Cells decoded together.

    Returns
    -------
    DataFrame
        A row for each gene, comparison after comparison, each sorted by `proba_de` (vanilla: `bayes_factor`).

    Notes
    -----
    Cells are drawn first, and only what was drawn is decoded: memory grows with samples × genes.
    """
    sampled = [tuple(without_outliers(cells, rows, test) for rows in (pair.rows1, pair.rows2)) for pair in chosen]
    statistics = CountStatistics(source, [rows for pair in [*chosen, *sampled] for rows in pair[:2]])
    tables = []
    for pair, (rows1, rows2) in zip(chosen, sampled, strict=True):
        draws = []
        for rows, names in ((rows1, test.batchid1), (rows2, test.batchid2)):
            batches = batches_of(names, batch_categories, test)
            draws.append(sample_scales(module, cells, source, rows, batches, test, generator, batch_size))
        silent = [
            unexpressed_genes(statistics, rows, drawn, cells, test.threshold_counts)
            for rows, drawn in zip((rows1, rows2), draws, strict=True)
        ]
        index1, index2 = pairs(draws[0].batch, draws[1].batch, test, numpy_generator(generator))
        columns = compare(draws[0].scale[:, index1], draws[1].scale[:, index2], test, *silent)
        if test.use_permutation:  # the means are those of all samples, not of the pairs that were drawn from them
            columns["scale1"], columns["scale2"] = (mean_scale(drawn.scale) for drawn in draws)
        if test.all_stats:
            columns |= statistics.columns(pair)
        table = pd.DataFrame(columns, index=var_names)
        order = "proba_de" if test.mode == "change" else "bayes_factor"
        table = table.sort_values(order, ascending=False, kind="stable")
        if test.mode == "change":
            table[f"is_de_fdr_{test.fdr_target}"] = expected_fdr(table["proba_de"].to_numpy()) <= test.fdr_target
        if pair.group1 is not None:
            table["comparison"], table["group1"], table["group2"] = pair.name, pair.group1, pair.group2
        tables.append(table)
    return pd.concat(tables)


def expected_fdr(proba_de: np.ndarray) -> np.ndarray:
    """Posterior expected false discovery rate of all genes up to each; `proba_de` sorted, the largest first."""
    return np.cumsum(1 - proba_de) / np.arange(1, len(proba_de) + 1)


# Sampling


class Scales(NamedTuple):
    """Posterior samples of a group."""

    scale: np.ndarray  # expected proportions, float32, (n_vars, n_samples)
    batch: np.ndarray  # code of the batch that each was decoded for; -1: the cell's own


def batches_of(names: Sequence[Any] | None, categories: Sequence[Any], test: DeOptions) -> Sequence[int | None]:
    """Codes of the batches to decode for, ascending; [None] without batch correction."""
    if not test.batch_correction:
        return [None]
    known = list(categories)
    if unknown := [name for name in names or () if name not in known]:
        raise InputError(
            f"{unknown[0]!r} is not a valid batch category; there are {', '.join(map(str, known))}."
            + other_type(unknown[0], known)
        )
    return sorted(known.index(name) for name in (known if names is None else names))


def without_outliers(cells: Cells, rows: np.ndarray, test: DeOptions) -> np.ndarray:
    """The cells of a group that are sampled; all, unless outliers are to be left out."""
    if not test.filter_outlier_cells:
        return rows
    from sklearn.covariance import EllipticEnvelope

    try:
        inlier = EllipticEnvelope(random_state=0).fit_predict(cells.q.z_mean[rows].numpy()) == 1
    except ValueError:
        warnings.warn("Could not properly estimate Cov!, using all samples", UserWarning, stacklevel=4)
        return rows
    return rows[inlier]


def sample_scales(
    module: LDVAE,
    cells: Cells,
    source: Source | None,
    rows: np.ndarray,
    batches: Sequence[int | None],
    test: DeOptions,
    generator: torch.Generator,
    batch_size: int = BATCH_SIZE,
) -> Scales:
    """Posterior samples of the cells `rows`, the same number for each batch, up to one."""
    sizes = [len(part) for part in np.array_split(np.arange(test.n_samples_overall), len(batches))]
    if min(sizes) < 2:
        warnings.warn("very small sample size, please consider increasing n_samples_overall", UserWarning, stacklevel=4)
        sizes = [max(size, 2) for size in sizes]
    drawn = []
    for batch, n in zip(batches, sizes, strict=True):
        if test.weights == "importance":
            if source is None:
                raise InputError("weights='importance' needs the counts, which minified data do not hold.")
            group = cells.take(rows)
            repeated = np.tile(np.arange(len(rows)), n // len(rows) + 1)
            candidates = settle(group.in_batch(batch).take(repeated), generator)
            weight = importance_weights(
                module, source, rows, group, candidates, generator, batch_size=batch_size, **test.importance
            )
            kept = candidates.take(torch.multinomial(weight, n, replacement=True, generator=generator))
        else:
            kept = sample_cells(cells, rows, n, generator).in_batch(batch)
        drawn.append(decode(module, kept))
    codes = [-1 if batch is None else batch for batch in batches]
    return Scales(drawn[0] if len(drawn) == 1 else np.concatenate(drawn, axis=1), np.repeat(codes, sizes))


@torch.inference_mode()
def decode(module: LDVAE, cells: Cells) -> np.ndarray:
    """Expected proportions at the posterior means of cells, gene by gene: float32, shape (n_vars, n_obs)."""
    settled = cells.to(device_of(module))
    u = module.decoder_input(module.latent(settled.q.z_mean), settled.covariates)
    weight, shift = module.decoder.folded()
    scale = weight.new_empty(len(weight), len(u))
    for start in range(0, len(u), IN_CACHE):
        part = slice(start, start + IN_CACHE)
        scale[:, part] = torch.addmm(shift[:, None], weight, u[part].T).softmax(dim=0)
    return scale.cpu().numpy()


def pairs(
    batch1: np.ndarray, batch2: np.ndarray, test: DeOptions, rng: np.random.Generator
) -> tuple[np.ndarray | slice, np.ndarray | slice]:
    """Which samples are compared with which, given the batch of each sample.

    Within each batch where both groups were decoded for the same ones, else without regard to batches.
    """
    both = set(batch1), set(batch2)
    if both[0] != both[1] and both[0] & both[1]:
        warnings.warn(
            "The batches of the two groups overlap in part; they are compared without regard to batches, and the batch "
            "correction is not trustworthy.",
            UserWarning,
            stacklevel=4,
        )
    if not test.use_permutation:
        n = min(len(batch1), len(batch2))
        return slice(n), slice(n)
    blocks = sorted(both[0]) if both[0] == both[1] else [None]
    drawn = []
    for batch in blocks:
        within = [np.arange(len(b)) if batch is None else np.flatnonzero(b == batch) for b in (batch1, batch2)]
        drawn.append([rng.choice(rows, test.m_permutation // len(blocks)) for rows in within])
    return np.concatenate([one for one, _ in drawn]), np.concatenate([two for _, two in drawn])


# Statistics


def compare(
    scale1: np.ndarray,
    scale2: np.ndarray,
    test: DeOptions,
    silent1: np.ndarray | None = None,
    silent2: np.ndarray | None = None,
) -> dict[str, Any]:
    """Columns of the table that are computed from paired posterior samples alone.

    Parameters
    ----------
    scale1, scale2
        Expected proportions, shape (n_vars, n_samples); sample i is compared with sample i.
    test
        How to compare.
    silent1, silent2
        Masks of the genes that are not expressed in each group, shape (n_vars,), for the pseudocount.

    Returns
    -------
    dict
        In scvi-tools' order of columns; scale1 and scale2 are the means of what is given.
    """
    means = {"scale1": mean_scale(scale1), "scale2": mean_scale(scale2)}
    if test.mode == "vanilla":
        proba_m1 = np.mean(scale1 > scale2, axis=1)
        proba_m2 = 1.0 - proba_m1
        odds = np.log(proba_m1 + EPS) - np.log(proba_m2 + EPS)
        return {"proba_m1": proba_m1, "proba_m2": proba_m2, "bayes_factor": odds, **means}
    pseudocounts = test.pseudocounts
    if pseudocounts is None:
        pseudocounts = estimate_pseudocounts(scale1, scale2, silent1, silent2)
    delta = test.delta
    if callable(test.change_fn) or test.m1_domain_fn is not None or delta is None:
        change_fn = test.change_fn if callable(test.change_fn) else log_fold_change
        change = change_fn(scale1.T, scale2.T, pseudocounts)
        delta = estimate_delta(change.mean(axis=0)) if delta is None else delta
        up, down = counting_samples(change, delta, test.m1_domain_fn)
        proba_up, proba_down = up.mean(axis=0), down.mean(axis=0)
        described = describe(change_fn(scale1.T, scale2.T, 1e-3 * pseudocounts).T, test.cred_interval_lvls)
    else:
        proba_up, proba_down, described = log_fold_changes(scale1, scale2, pseudocounts, delta, test.cred_interval_lvls)
    proba_de = proba_up + proba_down if test.test_mode == "two" else np.maximum(proba_up, proba_down)
    return {
        "proba_de": proba_de,
        "proba_not_de": 1.0 - proba_de,
        "bayes_factor": np.log(proba_de + EPS) - np.log(1.0 - proba_de + EPS),
        **means,
        "pseudocounts": pseudocounts,
        "delta": delta,
        **{f"lfc_{name}": values for name, values in described.items()},
    }


def mean_scale(scale: np.ndarray) -> np.ndarray:
    """Mean over samples, summed in double precision, float32, shape (n_vars,)."""
    return scale.mean(axis=1, dtype=np.float64).astype(np.float32)


def log_fold_change(scale1: np.ndarray, scale2: np.ndarray, pseudocounts: float) -> np.ndarray:
    """log2 fold change, float64, same shape as the scales."""
    return np.log2(scale1.astype(np.float64) + pseudocounts) - np.log2(scale2.astype(np.float64) + pseudocounts)


def counting_samples(change: np.ndarray, delta: float, domain: Callable[[np.ndarray], Any] | None) -> Any:
    """Masks of the samples that count as up and as down."""
    if domain is None:
        return change >= delta, change < -delta
    masks = domain(change)
    if isinstance(masks, tuple):
        return masks
    return masks, np.zeros_like(masks)


def log_fold_changes(
    scale1: np.ndarray, scale2: np.ndarray, pseudocounts: float, delta: float, levels: Sequence[float] | None
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Shares of samples that are up and down by `delta`, and the distribution of the log fold change.

    The distribution is that with a thousandth of the pseudocount, as in scvi-tools, so that it is not shrunk. What
    counts as a change is decided on the ratio, not on its logarithm.
    """
    up_from, down_from = 2.0**delta, 2.0**-delta
    n_vars, n_samples = scale1.shape

    def compare_genes(genes: range) -> list[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
        memory = np.empty((4, GENE_BLOCK, n_samples))  # stays in the cache from block to block
        parts = []
        for start in genes:
            rows = slice(start, min(start + GENE_BLOCK, n_vars))
            one, two, ratio, other = memory[:, : rows.stop - start]
            one[:], two[:] = scale1[rows], scale2[rows]
            np.divide(np.add(one, pseudocounts, out=ratio), np.add(two, pseudocounts, out=other), out=ratio)
            up, down = (np.count_nonzero(mask, axis=1) / n_samples for mask in (ratio >= up_from, ratio < down_from))
            one += 1e-3 * pseudocounts
            two += 1e-3 * pseudocounts
            np.divide(one, two, out=ratio)
            parts.append((up, down, describe(np.log2(ratio, out=ratio), levels)))
        return parts

    n_threads = torch.get_num_threads()
    shares = [range(i * GENE_BLOCK, n_vars, n_threads * GENE_BLOCK) for i in range(n_threads)]
    with ThreadPoolExecutor(n_threads) as threads:
        done = list(threads.map(compare_genes, shares))
    parts = [done[i % n_threads][i // n_threads] for i in range(-(-n_vars // GENE_BLOCK))]
    described = {name: np.concatenate([part[2][name] for part in parts]) for name in parts[0][2]}
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]), described


def describe(samples: np.ndarray, levels: Sequence[float] | None) -> dict[str, np.ndarray]:
    """Mean, median, standard deviation, extremes and credible intervals of samples, shape (n_vars, n_samples)."""
    described = {
        "mean": samples.mean(axis=1),
        "median": median(samples),
        "std": samples.std(axis=1),
        "min": samples.min(axis=1),
        "max": samples.max(axis=1),
    }
    if levels is None or len(levels) == 0:
        return described
    ordered = np.sort(samples, axis=1)
    for level in levels:
        low, high = credible_interval(ordered, level)
        name = str(level)[:5]
        described |= {f"confidence_interval_{name}_min": low, f"confidence_interval_{name}_max": high}
    return described


def median(samples: np.ndarray) -> np.ndarray:
    """Median of each row; numpy's own selects twice for an even number of samples."""
    half = samples.shape[1] // 2
    ordered = np.partition(samples, half, axis=1)
    if samples.shape[1] % 2:
        return ordered[:, half]
    return (ordered[:, :half].max(axis=1) + ordered[:, half]) / 2


def credible_interval(ordered: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Narrowest interval that holds `level` of the samples, from ordered samples of shape (n_vars, n_samples)."""
    n_samples = ordered.shape[1]
    inside = int(np.floor(level * n_samples))
    if not 0 <= inside < n_samples:
        raise InputError(f"A credible interval of level {level:g} does not exist; levels must be from 0 to below 1.")
    first = (ordered[:, inside:] - ordered[:, : n_samples - inside]).argmin(axis=1)
    rows = np.arange(len(ordered))
    return ordered[rows, first], ordered[rows, first + inside]


def estimate_pseudocounts(
    scale1: np.ndarray, scale2: np.ndarray, silent1: np.ndarray | None, silent2: np.ndarray | None
) -> float:
    """Pseudocount that keeps genes which are not expressed from changing.

    The 0.9 quantile, over the genes silent in a group, of their largest sampled proportion there; the larger one of
    the two groups, divided by the number of genes.
    """
    largest = [1e-10]
    for scale, silent in ((scale1, silent1), (scale2, silent2)):
        if silent is not None and silent.any():
            largest.append(float(np.quantile(scale[silent].max(axis=1), q=0.9)))
    return max(1e-10, max(largest) / len(scale1))


def estimate_delta(lfc_means: np.ndarray) -> float:
    """Threshold from the mean change of all genes: 0.6 times the mean distance of the outer two of three clusters."""
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(n_components=3, random_state=0).fit(lfc_means[:, None])
    centres = np.sort(mixture.means_[:, 0])
    return max(0.1, 0.6 * float(np.abs(centres[[0, -1]]).mean()))


# Counts


def unexpressed_genes(
    statistics: CountStatistics, rows: np.ndarray, drawn: Scales, cells: Cells, threshold: float
) -> np.ndarray:
    """Genes whose mean count in the group is below the threshold; without counts, their expected mean."""
    if statistics.known:
        return statistics.mean(rows) < threshold
    return drawn.scale.mean(axis=1) * float(cells.covariates.library[rows].exp().mean()) < threshold


class CountStatistics:
    """Sums of the counts of groups of cells, all from one pass over their counts.

    Parameters
    ----------
    source
        Counts; None: nothing is known.
    groups
        Rows of each group that will be asked for.
    """

    def __init__(self, source: Source | None, groups: Sequence[np.ndarray]) -> None:
        self.known = source is not None
        if source is None:
            return
        n_obs = len(source)
        distinct = {group_key(rows): rows for rows in groups}
        self.n = {key: len(rows) for key, rows in distinct.items()}
        members = np.unique(np.concatenate(list(distinct.values())))
        # Of a large group the few others are summed: one against the rest costs no more than the groups themselves.
        large = {key for key, n in self.n.items() if 2 * n > len(members)}
        # Groups without a common cell share a layer: the number, within it, of each cell's group; 0 for none.
        layers: list[tuple[np.ndarray, list[int]]] = []
        for key, rows in distinct.items():
            summed = np.setdiff1d(members, rows) if key in large else rows
            layer = next((layer for layer in layers if not layer[0][summed].any()), None)
            if layer is None:
                layer = np.zeros(n_obs, dtype=np.int64), []
                layers.append(layer)
            number, keys = layer
            keys.append(key)
            number[summed] = len(keys)
        sums = [np.zeros((3, len(keys) + 1, source.n_vars)) for _, keys in layers]
        start = 0
        for counts, chosen in source.minibatches(members, 4096):
            own, x = members[start : start + len(chosen)], counts.x[chosen]
            entries = np.diff(x.indptr)
            weight = np.repeat(1e4 / np.maximum(np.asarray(x.sum(axis=1)).ravel(), 1), entries) * x.data
            for (number, keys), of_layer in zip(layers, sums, strict=True):
                bins = np.repeat(number[own] * source.n_vars, entries) + x.indices
                size = (len(keys) + 1) * source.n_vars
                for i, weights in enumerate((x.data, x.data != 0, weight)):
                    of_layer[i] += np.bincount(bins, weights, size).reshape(-1, source.n_vars)
            start += len(chosen)
        everyone = sums[0].sum(axis=1)
        self.sums = {
            key: everyone - of_layer[:, i] if key in large else of_layer[:, i]
            for (_, keys), of_layer in zip(layers, sums, strict=True)
            for i, key in enumerate(keys, start=1)
        }

    def mean(self, rows: np.ndarray) -> np.ndarray:
        """Mean count of each gene over the cells, shape (n_vars,)."""
        key = group_key(rows)
        return self.sums[key][0] / self.n[key]

    def columns(self, pair: Comparison) -> dict[str, np.ndarray]:
        """The statistics of two groups as the table names them; none where the counts are not known."""
        if not self.known:
            return {}
        columns = {}
        for i, (name, dtype) in enumerate(
            (("raw_mean", "float32"), ("non_zeros_proportion", "float64"), ("raw_normalized_mean", "float32"))
        ):
            for group, rows in ((1, pair.rows1), (2, pair.rows2)):
                key = group_key(rows)
                columns[f"{name}{group}"] = (self.sums[key][i] / self.n[key]).astype(dtype)
        return columns


def group_key(rows: np.ndarray) -> int:
    """Key of a group of cells."""
    return hash(rows.tobytes())
