"""Programs of several datasets: which of them are the same program, and which belong to one dataset alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from ldvae.errors import InputError

from .consensus import TINY, gauge
from .donors import LEAST_DONORS, compare_conditions, with_adjusted_p
from .projection import Frame

MIN_COMMON_GENES = 50  # below, a cosine between two programs says little
SIMILAR = 0.5  # least mean cosine between groups that are merged


class MetaPrograms(NamedTuple):
    """Programs of several datasets, grouped."""

    members: pd.DataFrame  # one row per program: dataset, program, meta, sign, similarity, other, silhouette
    table: pd.DataFrame  # indexed by meta-program: n_datasets, datasets, similarity, silhouette, shared
    loadings: pd.DataFrame  # genes by meta-programs: mean over the datasets that have it; missing: none models the gene
    lower: pd.DataFrame  # 95 % interval of that mean over datasets; missing with one dataset
    upper: pd.DataFrame
    weighted: pd.DataFrame  # loadings × root of the information, by which genes are ranked
    similarity: pd.DataFrame  # cosines between all programs, datasets in the order given
    genes: list[str]  # modelled in at least half of the datasets


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


def meta_programs(frames: Mapping[str, Frame], *, min_similarity: float = SIMILAR) -> MetaPrograms:
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
        Where there are fewer than two datasets, or fewer than 50 genes common to two of them.

    Notes
    -----
    Two programs are compared on the genes that both their datasets model, so that the genes do not run out with the
    number of datasets: loadings in gauge under the mean expression of the two, weighted by the root of the mean
    information, so that rare genes count little and both datasets use one yardstick. Groups are merged pair by pair,
    the most similar first (average linkage). Two programs of one dataset are never put together: they are different
    programs by construction. A program whose sign is reversed joins with a sign of -1. The result does not depend on
    the order of the datasets.

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
    labels = [(name, str(program)) for name, frame in frames.items() for program in frame.programs]
    plain = {name: loadings_of(frame) for name, frame in frames.items()}
    cosines = _cosines(frames, {name: table.to_numpy() for name, table in plain.items()})
    own, weights = {}, {}
    for name, frame in frames.items():
        table = pd.DataFrame(gauge(plain[name].to_numpy(), np.exp(frame.offset)), plain[name].index)
        own[name] = table.reindex(genes).to_numpy(), np.linalg.norm(table.mul(frame.weight, axis=0), axis=0)
        weights[name] = pd.Series(frame.weight, frame.genes).reindex(genes)
    loadings = np.hstack([table for table, _ in own.values()])
    length = np.maximum(np.concatenate([lengths for _, lengths in own.values()]), TINY)
    weight = np.sqrt((pd.DataFrame(weights) ** 2).mean(axis=1).to_numpy())

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
        unit = pd.DataFrame(signs[group] * loadings[:, group] / length[group] * length[group].mean())
        n = unit.notna().sum(axis=1).to_numpy()
        middle[name] = unit.mean(axis=1).to_numpy()
        spread = unit.std(axis=1, ddof=1).to_numpy() / np.sqrt(np.maximum(n, 1))  # missing for one dataset
        half = stats.t.ppf(0.975, np.maximum(n - 1, 1)) * spread
        lower[name], upper[name] = middle[name] - half, middle[name] + half
    index, programs = pd.Index(genes, name="gene"), pd.MultiIndex.from_tuples(labels, names=["dataset", "program"])
    return MetaPrograms(
        members=members,
        table=_table(members, names),
        loadings=pd.DataFrame(middle, index),
        lower=pd.DataFrame(lower, index),
        upper=pd.DataFrame(upper, index),
        weighted=pd.DataFrame(middle, index).mul(weight, axis=0),
        similarity=pd.DataFrame(cosines, programs, programs),
        genes=[str(gene) for gene in genes],
    )


def _common_genes(frames: Mapping[str, Frame]) -> pd.Index:
    """Genes that at least half of the datasets model, and two, in the order of the first that has them."""
    counts = pd.Series(1, np.concatenate([frame.genes for frame in frames.values()])).groupby(level=0, sort=False).sum()
    return counts.index[counts >= max(2, len(frames) / 2)]


def _cosines(frames: Mapping[str, Frame], loadings: Mapping[str, np.ndarray]) -> np.ndarray:
    """Cosines between all programs, those of two datasets on the genes that both model."""
    names = list(frames)
    blocks = {}
    for i, first in enumerate(names):
        for second in names[i:]:
            a, b = frames[first], frames[second]
            _, at_a, at_b = np.intersect1d(a.genes, b.genes, return_indices=True)
            if len(at_a) < MIN_COMMON_GENES:
                raise InputError(
                    f"Only {len(at_a)} genes are modelled in both {first} ({len(a.genes)} genes such as {a.genes[0]}) "
                    f"and {second} ({len(b.genes)} such as {b.genes[0]}); expected at least {MIN_COMMON_GENES}. Use "
                    "one naming of genes, and one list of genes for all datasets (setup: {genes: list}), more variable "
                    "genes (n_top_genes), or leave one of the two out."
                )
            share = _shares(np.exp(a.offset[at_a])) + _shares(np.exp(b.offset[at_b]))
            weight = np.sqrt((a.weight[at_a] ** 2 + b.weight[at_b] ** 2) / 2)[:, None]
            one, two = (
                np.asarray(gauge(loadings[name][at], share)) * weight for name, at in ((first, at_a), (second, at_b))
            )
            unit = [table / np.maximum(np.linalg.norm(table, axis=0), TINY) for table in (one, two)]
            blocks[first, second] = unit[0].T @ unit[1]
            blocks[second, first] = blocks[first, second].T
    return np.block([[blocks[first, second] for second in names] for first in names])


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


def meta_frame(found: MetaPrograms, frames: Mapping[str, Frame], metas: Sequence[str]) -> Frame:
    """Gather what scoring cells on meta-programs needs.

    Parameters
    ----------
    found
        From `meta_programs`.
    frames
        As given there.
    metas
        Names of the meta-programs.

    Returns
    -------
    Frame
        For `project`. A score of 0 is the mean cell of the datasets, a unit is a standard deviation of the scores in
        the datasets that have the program.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> frames = dict.fromkeys(["one", "two"], gp.frame(programs, mean, truth.theta))
    >>> reference = gp.meta_frame(gp.meta_programs(frames), frames, ["M1"])
    >>> gp.project(reference, truth.counts, list(truth.loadings.index)).scores.shape
    (300, 1)
    """
    genes = pd.Index(found.genes)
    offset, dispersion, weight = (np.full((len(frames), len(genes)), np.nan) for _ in range(3))
    for d, frame in enumerate(frames.values()):
        position = genes.get_indexer(pd.Index(frame.genes))
        here = position >= 0
        # Each dataset's shares are of its own genes.
        offset[d, position[here]] = frame.offset[here] - np.logaddexp.reduce(frame.offset[here])
        dispersion[d, position[here]] = 1 / frame.theta[here]
        weight[d, position[here]] = frame.weight[here] ** 2
    level = np.nanmean(offset, axis=0)
    n = len(metas)
    with np.errstate(divide="ignore"):
        theta = 1 / np.nanmean(dispersion, axis=0)
    return Frame(
        genes=np.asarray(found.genes, dtype=np.str_),
        programs=np.asarray(metas, dtype=np.str_),
        basis=found.loadings[list(metas)].fillna(0).to_numpy(),
        transform=np.vstack([np.zeros(n), np.eye(n)]),
        joint=np.vstack([np.zeros(n), np.eye(n)]),
        offset=level - np.logaddexp.reduce(level),
        theta=theta,
        weight=np.sqrt(np.nanmean(weight, axis=0)),
    )


def compare_across(means: pd.DataFrame, dataset: Mapping[str, str]) -> pd.DataFrame:
    """Compare conditions on meta-programs with donors as units, the datasets as fixed effects where that is needed.

    Parameters
    ----------
    means
        From `donor_means`, of the cells of all datasets.
    dataset
        Dataset of each donor, by the donor's name; the name of a donor belongs to one dataset.

    Returns
    -------
    DataFrame
        As `compare_conditions` returns it, with a column `design`: ``paired`` (donors seen in both conditions are
        compared with themselves), ``within datasets`` (two datasets or more have donors of both conditions, and each
        dataset has a level of its own) or ``between donors``.

    Notes
    -----
    ``within datasets`` is ordinary least squares of the donor means on the condition and the dataset. Datasets with one
    condition alone do not count there: their level explains their donors.

    Examples
    --------
    >>> import pandas as pd
    >>> from ldvae import programs as gp
    >>> means = pd.DataFrame({"donor": [f"d{i}" for i in range(8)], "condition": ["ctrl", "stim"] * 4})
    >>> means["mean"] = [0.1, 1.0, -0.1, 1.2, 5.1, 6.0, 4.9, 6.1]
    >>> means = means.assign(program="M1", cell_type="all cells", n_cells=50, high=0.1)
    >>> table = gp.compare_across(means, {f"d{i}": "one" if i < 4 else "two" for i in range(8)})
    >>> table.loc[0, "design"], round(float(table.loc[0, "effect"]), 1)
    ('within datasets', 1.1)
    """
    result = compare_conditions(means)
    result["design"] = np.where(result["paired"], "paired", "between donors")
    of = means["donor"].map(dict(dataset))
    for row in result.index[~result["paired"].astype(bool)]:
        program, kind, condition, reference = result.loc[row, ["program", "cell_type", "condition", "reference"]]
        own = means[(means["program"] == program) & (means["cell_type"] == kind)]
        own = own[own["condition"].isin([condition, reference])].assign(dataset=of)
        both = own.groupby("dataset")["condition"].nunique()
        own = own[own["dataset"].isin(both.index[both == 2])]
        n_datasets, n_donors = own["dataset"].nunique(), own["donor"].nunique()
        if n_datasets < 2 or n_donors - n_datasets - 1 < LEAST_DONORS - 1:
            continue
        second = (own["condition"] == condition).astype(float)
        found = {}
        for value in ("mean", "high"):
            centred = own[value] - own.groupby("dataset")[value].transform("mean")
            contrast = second - second.groupby(own["dataset"]).transform("mean")
            effect = float(contrast @ centred / (contrast @ contrast))
            left, df = centred - effect * contrast, len(own) - n_datasets - 1
            error = float(np.sqrt(left @ left / df / (contrast @ contrast)))
            half = float(stats.t.ppf(0.975, df)) * error
            found[value] = (
                effect,
                effect - half,
                effect + half,
                float(2 * stats.t.sf(abs(effect) / max(error, TINY), df)),
            )
        result.loc[row, ["effect", "lower", "upper", "p"]] = found["mean"]
        result.loc[row, ["high_effect", "high_p"]] = [found["high"][0], found["high"][3]]
        result.loc[row, "n_donors"], result.loc[row, "design"] = n_donors, "within datasets"
    return with_adjusted_p(result).sort_values("p", ignore_index=True)
