"""Programs of several datasets: which of them are the same program, and which belong to one dataset alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from ldvae.errors import InputError

from .consensus import TINY, gauge
from .projection import Frame

MIN_COMMON_GENES = 50  # below, a cosine between two programs says little


class MetaPrograms(NamedTuple):
    """Programs of several datasets, grouped."""

    members: pd.DataFrame  # one row per program: dataset, program, meta, sign, similarity, other, silhouette
    table: pd.DataFrame  # indexed by meta-program: n_datasets, datasets, similarity, silhouette, shared
    loadings: pd.DataFrame  # genes by meta-programs: mean over the datasets that have it
    lower: pd.DataFrame  # 95 % interval of that mean over datasets; missing with one dataset
    upper: pd.DataFrame
    similarity: pd.DataFrame  # cosines between all programs, rows and columns in the order of `members`
    genes: list[str]  # common to all datasets, on which programs are compared


def loadings_of(frame: Frame) -> pd.DataFrame:
    """Loadings of the programs of a frame: change of the log rate per standard deviation, genes by programs.

    Parameters
    ----------
    frame
        What `frame` gathers of the programs.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> table = gp.loadings_of(gp.frame(programs, mean, truth.theta))
    >>> bool(np.allclose(table, gp.gauge(programs.loadings, mean), atol=1e-6))
    True
    """
    return pd.DataFrame(frame.basis @ np.linalg.pinv(frame.joint[1:]).T, frame.genes, frame.programs)


def meta_programs(frames: Mapping[str, Frame], *, min_similarity: float = 0.5) -> MetaPrograms:
    """Group the programs of several datasets into meta-programs.

    Parameters
    ----------
    frames
        What `frame` gathers for each dataset, by its name; at least two.
    min_similarity
        Smallest mean cosine between the members of two groups at which they are merged, from 0 to 1.

    Returns
    -------
    MetaPrograms
        Meta-programs M1, M2, … in the order of how many datasets have them, then of their similarity. In `members`,
        `similarity` is a program's mean cosine to the other members (missing where it is alone), `other` its largest
        mean cosine to another meta-program, and `silhouette` the difference of the two over the larger distance.

    Raises
    ------
    InputError
        Where there are fewer than two datasets, or fewer than 50 genes common to all.

    Notes
    -----
    Programs are compared on the genes that all datasets modelled: loadings in gauge under the mean expression over
    datasets, weighted by the root of the mean information, so that rare genes count little and every dataset uses one
    yardstick. Groups are merged pair by pair, the most similar first (average linkage). Two programs of one dataset
    are never put together: they are different programs by construction. A program whose sign is reversed joins with a
    sign of -1. The result does not depend on the order of the datasets.

    References
    ----------
    Gavish et al., Nature 618, 598 (2023), and Andreatta and Carmona's GeneNMF cluster programs of samples likewise, by
    shared top genes and by cosines.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> frame = gp.frame(programs, mean, truth.theta)
    >>> meta = gp.meta_programs({"one": frame, "two": frame})  # of two datasets
    >>> meta.table["n_datasets"].tolist()
    [2, 2, 2, 2]
    """
    if len(frames) < 2:
        raise InputError(f"Comparing programs needs at least two datasets, found {len(frames)}. Name more of them.")
    genes = _common_genes(frames)
    at = {name: pd.Index(frame.genes).get_indexer(genes) for name, frame in frames.items()}
    share = np.mean([_shares(np.exp(frame.offset[at[name]])) for name, frame in frames.items()], axis=0)
    weight = np.sqrt(np.mean([frame.weight[at[name]] ** 2 for name, frame in frames.items()], axis=0))
    labels, columns = [], []
    for name, frame in frames.items():
        own = loadings_of(frame).loc[genes]
        labels += [(name, program) for program in own.columns]
        columns.append(np.asarray(gauge(own.to_numpy(), share)))
    loadings = np.hstack(columns)
    weighted = loadings * weight[:, None]
    length = np.maximum(np.linalg.norm(weighted, axis=0), TINY)
    cosines = (weighted / length).T @ (weighted / length)

    datasets = np.array([dataset for dataset, _ in labels])
    groups, signs = _merge(cosines, datasets, min_similarity)
    order = sorted(range(len(groups)), key=lambda k: (-len(groups[k]), -_cohesion(groups[k], cosines), groups[k][0]))
    groups = [groups[k] for k in order]
    names = [f"M{k + 1}" for k in range(len(groups))]

    members = _members(labels, groups, names, signs, cosines)
    # Scores have unit variance in their own dataset: a program of rare cells has short loadings where it is rare. The
    # mean is one of directions, given back the mean length.
    middle, lower, upper = {}, {}, {}
    for name, group in zip(names, groups, strict=True):
        unit = signs[group] * loadings[:, group] / length[group] * length[group].mean()
        middle[name] = unit.mean(axis=1)
        half = np.full(len(genes), np.nan)
        if len(group) > 1:
            half = stats.t.ppf(0.975, len(group) - 1) * unit.std(axis=1, ddof=1) / np.sqrt(len(group))
        lower[name], upper[name] = middle[name] - half, middle[name] + half
    index, programs = pd.Index(genes, name="gene"), pd.MultiIndex.from_tuples(labels, names=["dataset", "program"])
    return MetaPrograms(
        members=members,
        table=_table(members, names),
        loadings=pd.DataFrame(middle, index),
        lower=pd.DataFrame(lower, index),
        upper=pd.DataFrame(upper, index),
        similarity=pd.DataFrame(cosines, programs, programs),
        genes=[str(gene) for gene in genes],
    )


def _common_genes(frames: Mapping[str, Frame]) -> pd.Index:
    first, *others = (pd.Index(frame.genes) for frame in frames.values())
    common = first
    for other in others:
        common = common.intersection(other, sort=False)
    if len(common) < MIN_COMMON_GENES:
        names = "; ".join(f"{name}: {len(frame.genes)} such as {frame.genes[0]}" for name, frame in frames.items())
        raise InputError(
            f"Only {len(common)} genes are modelled in all {len(frames)} datasets ({names}); expected at least "
            f"{MIN_COMMON_GENES}. Use one naming of genes, and one list of genes for all datasets "
            "(setup: {genes: list}) or more variable genes (n_top_genes)."
        )
    return common


def _shares(values: np.ndarray) -> np.ndarray:
    return values / values.sum()


def _merge(cosines: np.ndarray, datasets: np.ndarray, least: float) -> tuple[list[np.ndarray], np.ndarray]:
    """Average linkage on absolute cosines, with at most one program of a dataset in a group; and signs, shape (n,)."""
    n = len(datasets)
    signs = np.ones(n)
    groups = [np.array([i]) for i in range(n)]
    mean = cosines.copy()  # between groups, members' signs applied
    apart = datasets[:, None] != datasets[None]
    while True:
        candidates = np.where(apart & ~np.eye(len(groups), dtype=bool), np.abs(mean), -1)
        i, j = sorted(int(place) for place in np.unravel_index(candidates.argmax(), candidates.shape))
        if i == j or candidates[i, j] < least:
            return groups, signs
        if mean[i, j] < 0:
            signs[groups[j]] *= -1
            mean[j], mean[:, j] = -mean[j], -mean[:, j]
        size = np.array([len(groups[i]), len(groups[j])])
        mean[i] = mean[:, i] = size @ mean[np.array([i, j])] / size.sum()
        apart[i] = apart[:, i] = apart[i] & apart[j]
        groups[i] = np.concatenate([groups[i], groups[j]])
        del groups[j]
        mean, apart = (np.delete(np.delete(table, j, axis=0), j, axis=1) for table in (mean, apart))


def _cohesion(group: np.ndarray, cosines: np.ndarray) -> float:
    if len(group) == 1:
        return 0.0
    return float(np.abs(cosines[np.ix_(group, group)])[np.triu_indices(len(group), 1)].mean())


def _members(
    labels: list[tuple[str, str]], groups: list[np.ndarray], names: list[str], signs: np.ndarray, cosines: np.ndarray
) -> pd.DataFrame:
    rows = []
    signed = cosines * np.outer(signs, signs)
    for name, group in zip(names, groups, strict=True):
        for i in group:
            own = signed[i, group[group != i]].mean() if len(group) > 1 else np.nan
            other = max((abs(signed[i, rest].mean()) for rest in groups if rest is not group), default=0.0)
            silhouette = (own - other) / max(1 - own, 1 - other) if len(group) > 1 else np.nan
            rows.append((*labels[i], name, int(signs[i]), own, other, silhouette))
    columns = ["dataset", "program", "meta", "sign", "similarity", "other", "silhouette"]
    return pd.DataFrame(rows, columns=columns)


def _table(members: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    grouped = members.groupby("meta", sort=False)
    table = pd.DataFrame(
        {
            "n_datasets": grouped["dataset"].nunique(),
            "datasets": grouped["dataset"].agg(", ".join),
            "similarity": grouped["similarity"].mean(),
            "silhouette": grouped["silhouette"].mean(),
        }
    ).loc[names]
    return table.assign(shared=table["n_datasets"] > 1).rename_axis("meta")
