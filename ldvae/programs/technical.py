"""Programs that follow a technical variable beyond what is known of the cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import scipy  # imports scipy.stats when it is first used: a second and 45 MB that a training need not have

from .associations import kind_of, phrase, strength, tests_of_levels, tests_of_number
from .find import SMALLEST_SHARE

# Share of the contribution below which a program is called weak.
WEAK_SHARE = 0.02


def technical_flags(
    scores: pd.DataFrame,
    obs: pd.DataFrame,
    share: pd.Series,
    *,
    technical: Sequence[str],
    variables: Sequence[str] | None = None,
    limit: float = 0.5,
) -> pd.Series:
    """Say which programs follow the experiment beyond what biology explains, and what they follow.

    Parameters
    ----------
    scores
        Cells by programs.
    obs
        What is known, indexed by cell; cells are matched by name.
    share
        Share of the contribution, indexed by program.
    technical
        Columns that describe the experiment; those that `obs` lacks are ignored.
    variables
        Columns of biology; by default all others with 2 to 50 levels and all numbers.
    limit
        Square root of the share of the variance from which a program is flagged; half of it where the share of the
        contribution is below 2 %, since the fits can make a weak program out of the sequencing depth that the encoder
        sees.

    Returns
    -------
    Series
        Indexed by program: "" or a reason. A program with less than 0.5 % of the contribution is flagged unless biology
        explains it.

    Notes
    -----
    One scale serves all variables: the share of the variance of the ranks of the scores (for a yes-or-no column also of
    the scores themselves, if that is more) that lies between the groups of a variable (tenths of the cells for a
    number), minus what chance gives (adjusted R²).
    Groups of fewer than 20 cells, or 1 % of the cells, are joined. A technical variable must explain its share *beyond*
    the biological variable that explains the program best: a T cell program that follows the ribosomal share because T
    cells do is innocent.
    A doublet call or any other yes-or-no column counts only where its cells score high, a number only where the scores
    rise or fall with it (Spearman's r above half the limit). A biological column with
    the same groups as a technical one cannot excuse it, nor be told from it, and the reason says so.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> flags = gp.technical_flags(programs.scores, truth.cells, programs.table["share"], technical=["batch"])
    >>> flags.tolist()  # no program follows the batch
    ['', '', '', '']
    """
    obs = obs.reindex(scores.index)
    others = variables if variables is not None else list(obs.columns)
    experiment = _all_groups(obs, [name for name in technical if name in obs])
    biology = _all_groups(obs, [name for name in others if name in obs and name not in technical])
    # A copy of a technical column under another name is no biology, and biology that the experiment copies is in doubt.
    copies = {
        name: [
            other for other, own in biology.items() if _same_groups(codes, own) or _same_number(obs[name], obs[other])
        ]
        for name, codes in experiment.items()
    }
    flags = pd.Series("", index=share.index)
    for program, weight in share.items():
        # Ranks are robust, but of a group of few cells they explain next to nothing, however high its scores.
        scales = [scipy.stats.rankdata(scores[program]), scores[program].to_numpy()]
        least = (limit / 2 if weight < WEAK_SHARE else limit) ** 2
        explained = [{name: _between(values, codes) for name, codes in biology.items()} for values in scales]
        reasons = []
        for name, codes in experiment.items():
            rivals = {other: groups for other, groups in biology.items() if other not in copies[name]}
            # Beyond yes and no, single cells with extreme scores would look like a relation.
            kinds = 2 if _yes_or_no(obs[name]) else 1
            beyond = max(
                _beyond(values, codes, rivals, own)
                for values, own in zip(scales[:kinds], explained[:kinds], strict=True)
            )
            if beyond >= least and _has_direction(scores[program], obs[name], np.sqrt(least) / 2):
                doubt = f", which cannot be told from {' or '.join(copies[name])}" if copies[name] else ""
                reasons.append((beyond, f"follows {_relation(scores[program], obs[name])}{doubt}"))
        weak = "weak, and " if weight < WEAK_SHARE else ""
        if reasons:
            flags[program] = weak + max(reasons)[1]
        elif weight < SMALLEST_SHARE and max(explained[0].values(), default=0.0) < (limit / 2) ** 2:
            flags[program] = f"very weak ({weight:.1%} of the contribution)"
    return flags


def _least_cells(n_obs: int) -> float:
    """Cells that a group needs before anything is said of it."""
    return max(20, 0.01 * n_obs)


def _all_groups(obs: pd.DataFrame, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The groups of each column that has any."""
    return {name: codes for name in names if (codes := _groups(obs[name])) is not None}


def _groups(values: pd.Series) -> np.ndarray | None:
    """Number of the group of each cell, -1 where nothing is known; None for what is constant or names single cells."""
    known = values.notna().to_numpy()
    kind = kind_of(values[known])
    if kind is None:
        return None
    codes = np.full(len(values), -1)
    if kind == "continuous":
        # Tenths by the number itself, so that equal numbers stay together.
        edges = np.unique(np.quantile(values[known].to_numpy(float), np.linspace(0.1, 0.9, 9)))
        codes[known] = np.searchsorted(edges, values[known].to_numpy(float), side="right")
    else:
        codes[known] = pd.factorize(values[known])[0]
    sizes = np.bincount(codes[known])
    small = np.flatnonzero((sizes > 0) & (sizes < _least_cells(int(known.sum()))))
    if len(small) > 1 and sizes[small].sum() >= _least_cells(int(known.sum())):
        codes[np.isin(codes, small)] = len(sizes)
    else:
        codes[np.isin(codes, small)] = -1
    return codes if len(np.unique(codes[codes >= 0])) > 1 else None


def _combined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Groups of cells that share both groups; where the second is not known, the first alone."""
    both = np.where(second >= 0, second + 1, 0) + (second.max() + 2) * first
    return np.where(first >= 0, np.unique(both, return_inverse=True)[1], -1)


def _same_groups(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two variables divide the cells alike, but for one cell in a hundred."""
    both = (first >= 0) & (second >= 0)
    if both.sum() < 0.5 * max((first >= 0).sum(), 1):
        return False
    table = pd.crosstab(first[both], second[both]).to_numpy()
    return bool(min(table.max(axis=0).sum(), table.max(axis=1).sum()) >= 0.99 * table.sum())


def _same_number(first: pd.Series, second: pd.Series) -> bool:
    """Whether two numbers measure the same (|Spearman's r| above 0.9), such as counts of all and of some genes."""
    if not all(pd.api.types.is_numeric_dtype(values) and values.nunique() > 20 for values in (first, second)):
        return False
    return bool(abs(first.corr(second, method="spearman")) > 0.9)


def _between(values: np.ndarray, codes: np.ndarray) -> float:
    """Share of the variance between groups of the cells whose group is known, minus what chance gives (adjusted R²)."""
    known = codes >= 0
    own, groups = values[known] - values[known].mean(), np.unique(codes[known], return_inverse=True)[1]
    sizes = np.bincount(groups)
    n_obs, total = len(own), float(np.square(own).sum())
    if total == 0 or n_obs <= len(sizes):
        return 0.0
    between = float((np.square(np.bincount(groups, own)) / sizes).sum()) / total
    return max(1 - (1 - between) * (n_obs - 1) / (n_obs - len(sizes)), 0.0)


def _beyond(
    values: np.ndarray, codes: np.ndarray, biology: Mapping[str, np.ndarray], explained: Mapping[str, float]
) -> float:
    """Share of the variance that a technical variable explains beyond the biological one that explains most."""
    own = _between(values, codes)
    if not biology:
        return own
    best = max(biology, key=lambda name: explained[name])
    return min(own, _between(values, _combined(biology[best], codes)) - explained[best])


def _yes_or_no(values: pd.Series) -> bool:
    """Whether a column says yes or no of each cell, such as a doublet call."""
    return pd.api.types.is_bool_dtype(values[values.notna()].infer_objects())


def _has_direction(scores: pd.Series, values: pd.Series, least_r: float) -> bool:
    """Whether the cells that a yes-or-no column marks score high, or scores rise or fall with a number.

    A program that is high where a number is neither low nor high follows some kind of cell, not the number.
    """
    known = values.notna().to_numpy()
    if kind_of(values[known]) == "continuous":
        return bool(abs(scores[known].corr(values[known].astype(float), method="spearman")) >= least_r)
    if not _yes_or_no(values):
        return True
    marked = values[known].astype(bool).to_numpy()
    own = scores.to_numpy()[known]
    return bool(own[marked].mean() > own[~marked].mean())


def _relation(scores: pd.Series, values: pd.Series) -> str:
    """How a score follows a column, in words: the closest level, or the correlation."""
    known = values.notna().to_numpy()
    table = scores[known].to_frame()
    ranks = scipy.stats.rankdata(table, axis=0)
    kind = kind_of(values[known])
    test = tests_of_number if kind == "continuous" else tests_of_levels
    rows = pd.concat(list(test(table, ranks, values[known]))).assign(variable=values.name, kind=kind)
    enough = rows["n_cells"] >= _least_cells(int(known.sum()))
    rows = rows[enough] if enough.any() else rows
    high = ~(rows["auc"] < 0.5)
    rows = rows[high] if high.any() else rows
    return phrase(rows.iloc[int(np.argmax(strength(rows).to_numpy()))])
