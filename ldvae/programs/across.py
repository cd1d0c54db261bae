"""Programs of several datasets: which of them are the same program, and which belong to one dataset alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy  # imports scipy.stats when it is first used: a second and 45 MB that a training need not have

from ldvae.errors import InputError

from .common import Space, common_programs, spaces_of
from .consensus import TINY, gauge, unit_columns
from .donors import LEAST_DONORS, compare_conditions, with_adjusted_p
from .projection import Frame

MIN_COMMON_GENES = 50  # below, a cosine between two programs says little
SIMILAR = 0.5  # least mean cosine between groups that are merged
MOSTLY = 0.75  # least cosine of a member with a meta-program of all datasets; with half of it something else: 0.71
SECOND = 0.7  # share of the larger part of a program from which it is a contrast of two meta-programs
PRESENT = 0.6  # least cosine of a meta-program with what the fits of a dataset span


class MetaPrograms(NamedTuple):
    """Programs of several datasets, grouped."""

    members: pd.DataFrame  # one row per program: dataset, program, meta, sign, similarity, other, silhouette
    table: pd.DataFrame  # indexed by meta-program: n_datasets, datasets, n_programs, similarity, silhouette, shared
    loadings: pd.DataFrame  # genes by meta-programs: mean over the datasets that have it; missing: none models the gene
    lower: pd.DataFrame  # 95 % interval of that mean over datasets; missing with one dataset
    upper: pd.DataFrame
    weighted: pd.DataFrame  # loadings × root of the information, by which genes are ranked
    similarity: pd.DataFrame  # cosines between all programs, datasets in the order given
    genes: list[str]  # modeled in at least half of the datasets
    presence: pd.DataFrame  # meta-programs by datasets: cosine with what the fits of the dataset span, from 0 to 1


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


def meta_programs(
    frames: Mapping[str, Frame], *, min_similarity: float = SIMILAR, min_presence: float = PRESENT
) -> MetaPrograms:
    """Group the programs of several datasets into meta-programs, and say which datasets have each.

    Parameters
    ----------
    frames
        What `frame` gathers for each dataset, by its name; at least two.
    min_similarity
        Smallest cosine at which a program of a dataset is one of a meta-program, and smallest mean cosine between
        the members of two groups at which they are merged, from 0 to 1.
    min_presence
        Smallest cosine of a meta-program with what the fits of a dataset span at which the dataset has it, from 0 to 1.

    Returns
    -------
    MetaPrograms
        Meta-programs M1, M2, … in the order of how many datasets have them, then of their similarity. In `members`,
        `similarity` is a program's mean cosine to the other members (missing where it is alone), `other` its largest
        mean cosine to another meta-program, and `silhouette` the difference of the two over the larger distance. A
        dataset can have a meta-program without a program of its own that shows it: `datasets` of the table names all
        that have it, `n_programs` counts those with a program of their own.

    Raises
    ------
    InputError
        Where there are fewer than two datasets, or fewer than 50 genes common to two of them.

    Notes
    -----
    First, what the fits of all datasets span is compared, beyond the programs that each settles alone: the directions
    in which several datasets agree are kept and rotated to simple structure on the cells of all of them
    (`common_programs`). One that is a program of its own in two datasets or more is a meta-program, and any dataset
    whose fits contain it has it: that a sample has few cells of a type, or too few fits to settle a direction, does not
    take the program from it.

    The programs that are left are compared pair by pair, on the genes that both their datasets model: loadings in gauge
    under the mean expression of the two, weighted by the root of the mean information. Groups are merged, the most
    similar first (average linkage). Two programs of one dataset are never put together: they are different
    programs by construction. A program whose sign is reversed joins with a sign of -1. The result does not depend on
    the order of the datasets.

    References
    ----------
    Gavish et al., Nature 618, 598 (2023), and Andreatta and Carmona's GeneNMF cluster programs of samples by
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
    lengths = [
        np.linalg.norm(gauge(table.to_numpy(), np.exp(frame.offset)) * frame.weight[:, None], axis=0)
        for frame, table in zip(frames.values(), plain.values(), strict=True)
    ]
    length = np.maximum(np.concatenate(lengths), TINY)
    spaces, weight = spaces_of(frames, plain, genes)
    groups = _grouped(spaces, cosines, min_similarity)
    has = [np.array([one.like(group.direction) for one in spaces]) for group in groups]
    present = [
        (values >= min_presence) | group.owners if group.joint else group.owners
        for group, values in zip(groups, has, strict=True)
    ]

    def rank(k: int) -> tuple[float, float, int]:
        return (-present[k].sum(), -_cohesion(groups[k].members, cosines), int(groups[k].members[0]))

    order = sorted(range(len(groups)), key=rank)
    groups, has, present = [groups[k] for k in order], [has[k] for k in order], [present[k] for k in order]
    names = [f"M{k + 1}" for k in range(len(groups))]
    signs = np.ones(len(labels))
    for group in groups:
        signs[group.members] = group.signs
    members = _members(labels, [group.members for group in groups], names, signs, cosines)
    # Scores have unit variance in their own dataset: a program of rare cells has short loadings where it is rare. The
    # mean is one of directions, given back the mean length.
    middle, lower, upper = {}, {}, {}
    for name, group, datasets in zip(names, groups, present, strict=True):
        scale = np.divide(length[group.members].mean(), weight, out=np.zeros_like(weight), where=weight > 0)
        versions = [
            (one.version(group.direction) if group.joint else np.where(one.here, own, np.nan)) * scale
            for one, own, has_it in zip(spaces, group.own, datasets, strict=True)
            if has_it
        ]
        unit = pd.DataFrame(np.array(versions).T)
        n = unit.notna().sum(axis=1).to_numpy()
        middle[name] = unit.mean(axis=1).to_numpy()
        spread = unit.std(axis=1, ddof=1).to_numpy() / np.sqrt(np.maximum(n, 1))  # missing for one dataset
        half = scipy.stats.t.ppf(0.975, np.maximum(n - 1, 1)) * spread
        lower[name], upper[name] = middle[name] - half, middle[name] + half
    index, programs = pd.Index(genes, name="gene"), pd.MultiIndex.from_tuples(labels, names=["dataset", "program"])
    return MetaPrograms(
        members=members,
        table=_table(members, names, list(frames), present),
        loadings=pd.DataFrame(middle, index),
        lower=pd.DataFrame(lower, index),
        upper=pd.DataFrame(upper, index),
        weighted=pd.DataFrame(middle, index).mul(weight, axis=0),
        similarity=pd.DataFrame(cosines, programs, programs),
        genes=[str(gene) for gene in genes],
        presence=pd.DataFrame(has, pd.Index(names, name="meta"), list(frames)),
    )


class _Group(NamedTuple):
    """Programs that are one meta-program."""

    members: np.ndarray  # positions among all programs
    signs: np.ndarray  # 1 or -1 for each member
    direction: np.ndarray  # weighted loadings of unit length, shape (n_genes,)
    own: np.ndarray  # the same of the member of each dataset, zero where there is none; shape (n_datasets, n_genes)
    owners: np.ndarray  # datasets with a member, shape (n_datasets,)
    joint: bool  # the direction was found on all datasets together


def _grouped(spaces: Sequence[Space], cosines: np.ndarray, least: float) -> list[_Group]:
    """Meta-programs: those found on all datasets together, then linkage of the programs that are left."""
    dataset = np.repeat(np.arange(len(spaces)), [one.programs.shape[1] for one in spaces])
    every = unit_columns(np.hstack([one.programs for one in spaces]))

    def group(members: np.ndarray, signs: np.ndarray, direction: np.ndarray | None) -> _Group:
        own = np.zeros((len(spaces), len(every)))
        own[dataset[members]] = (every[:, members] * signs).T
        mean = own.sum(axis=0) / np.maximum(sum(one.here for one in spaces), 1) if direction is None else direction
        unit = mean / max(float(np.linalg.norm(mean)), TINY)
        owners = np.isin(np.arange(len(spaces)), dataset[members])
        return _Group(members, signs, unit, own, owners, direction is not None)

    groups = []
    common = common_programs(spaces)
    alike: dict[int, list[tuple[int, float, bool]]] = {}
    start = 0
    for one in spaces:
        here = np.array([_unit(one.programs[:, k]) for k in range(one.programs.shape[1])])
        there = np.array([_unit(np.where(one.here, direction, 0)) for direction in common.T]).reshape(-1, len(every))
        cosine = here @ there.T
        for row, column in zip(*scipy.optimize.linear_sum_assignment(-np.abs(cosine)), strict=True):
            if abs(cosine[row, column]) >= least:
                parts = np.sort(np.abs(np.linalg.lstsq(there.T, here[row], rcond=None)[0]))[::-1]
                mostly = abs(cosine[row, column]) >= MOSTLY and (len(parts) < 2 or parts[1] < SECOND * parts[0])
                alike.setdefault(int(column), []).append(
                    (start + int(row), float(np.sign(cosine[row, column])), mostly)
                )
        start += len(here)
    left, kept = np.ones(len(dataset), dtype=bool), []
    for column, found in sorted(alike.items()):
        # A program that is something else for the greater part stays one of its own: a contrast of two cell types, say.
        chosen = [(member, sign) for member, sign, mostly in found if mostly]
        if len(found) > 1 and chosen:
            members = np.array([member for member, _ in chosen])
            groups.append(group(members, np.array([sign for _, sign in chosen]), common[:, column]))
            left[members] = False
            kept.append(column)
    rest = np.flatnonzero(left)
    if len(rest):
        between = cosines[np.ix_(rest, rest)]
        if kept:  # what is left of them beside the meta-programs, so that contrasts with one of these are not alike
            between = _beside(spaces, common[:, kept], every, dataset)[np.ix_(rest, rest)]
        linked, signs = _merge(between, dataset[rest], least)
        groups += [group(rest[own], signs[own], None) for own in linked]
    return groups


def _beside(spaces: Sequence[Space], common: np.ndarray, programs: np.ndarray, dataset: np.ndarray) -> np.ndarray:
    """Cosines between programs without their parts in common directions, on the genes that both datasets model."""
    here = np.array([one.here for one in spaces])[dataset].T
    left = np.zeros_like(programs)
    for d, one in enumerate(spaces):
        known, own = common[one.here], dataset == d
        table = programs[np.ix_(one.here, own)]
        left[np.ix_(one.here, own)] = table - known @ np.linalg.lstsq(known, table, rcond=None)[0]
    lengths = np.sqrt(np.square(left).T @ here)
    return left.T @ left / np.maximum(lengths * lengths.T, TINY)


def _unit(values: np.ndarray) -> np.ndarray:
    return values / max(float(np.linalg.norm(values)), TINY)


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
                    f"Only {len(at_a)} genes are modeled in both {first} ({len(a.genes)} genes such as {a.genes[0]}) "
                    f"and {second} ({len(b.genes)} such as {b.genes[0]}); expected at least {MIN_COMMON_GENES}. Use "
                    "one naming of genes, and one list of genes for all datasets (setup: {genes: list}), more variable "
                    "genes (n_top_genes), or leave one of the two out."
                )
            share = _shares(np.exp(a.offset[at_a])) + _shares(np.exp(b.offset[at_b]))
            weight = np.sqrt((a.weight[at_a] ** 2 + b.weight[at_b] ** 2) / 2)[:, None]
            one, two = (
                np.asarray(gauge(loadings[name][at], share)) * weight for name, at in ((first, at_a), (second, at_b))
            )
            blocks[first, second] = unit_columns(one).T @ unit_columns(two)
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


def _table(members: pd.DataFrame, names: list[str], datasets: list[str], present: list[np.ndarray]) -> pd.DataFrame:
    grouped = members.groupby("meta", sort=False)
    having = [[name for name, has in zip(datasets, row, strict=True) if has] for row in present]
    table = pd.DataFrame(
        {
            "n_datasets": pd.Series(map(len, having), names),
            "datasets": pd.Series(map(", ".join, having), names),
            "n_programs": grouped["dataset"].nunique(),
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
    """Compare conditions on meta-programs with donors as replicates, the datasets as fixed effects where needed.

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
            centered = own[value] - own.groupby("dataset")[value].transform("mean")
            contrast = second - second.groupby(own["dataset"]).transform("mean")
            effect = float(contrast @ centered / (contrast @ contrast))
            left, df = centered - effect * contrast, len(own) - n_datasets - 1
            error = float(np.sqrt(left @ left / df / (contrast @ contrast)))
            half = float(scipy.stats.t.ppf(0.975, df)) * error
            found[value] = (
                effect,
                effect - half,
                effect + half,
                float(2 * scipy.stats.t.sf(abs(effect) / max(error, TINY), df)),
            )
        result.loc[row, ["effect", "lower", "upper", "p"]] = found["mean"]
        result.loc[row, ["high_effect", "high_p"]] = [found["high"][0], found["high"][3]]
        result.loc[row, "n_donors"], result.loc[row, "design"] = n_donors, "within datasets"
    return with_adjusted_p(result).sort_values("p", ignore_index=True)
