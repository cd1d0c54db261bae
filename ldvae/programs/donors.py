"""Programs between conditions with donors as replicates: one mean per donor, never one per cell."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import scipy  # imports scipy.stats when it is first used: a second and 45 MB that a training need not have

from ldvae.errors import counted, listed
from ldvae.methods import Sentence

from .associations import is_no_label

# Fewest cells from which a donor has a mean in a cell type, and fewest donors in a comparison.
LEAST_CELLS, LEAST_DONORS = 10, 3
# The one cell type where none are given.
ALL_CELLS = "all cells"
# Share of all cells that counts as high in a program.
HIGH = 0.1


# Words that say of cells that they are of no one donor, and words that may stand beside them.
NO_DONOR = re.compile(
    r"(?i)\b(unknown|unassigned|unlabell?ed|undetermined|doublets?|multiplets?|ambiguous|ambient|negative|nan|none|na|n/a)\b"
)
BESIDE = re.compile(r"(?i)\b(or|and|cells?|donors?|samples?|patients?|mouse|mice)\b")


def known_donors(replicates: pd.Series) -> pd.Series:
    """Replicate of each cell, missing where its name says that the cells are of no one donor.

    Parameters
    ----------
    replicates
        Replicate of each cell.

    Examples
    --------
    >>> import pandas as pd
    >>> from ldvae.programs.donors import known_donors
    >>> known_donors(pd.Series(["101", "doublet_or_unknown", "NA", "NA_12878"])).tolist()
    ['101', nan, nan, 'NA_12878']
    """
    names = replicates.astype(str)
    words = {name: name.replace("_", " ") for name in names.unique()}
    rest = {name: BESIDE.sub("", NO_DONOR.sub("", text)) for name, text in words.items()}
    out = [name for name, text in words.items() if NO_DONOR.search(text) and not re.search(r"\w", rest[name])]
    return replicates.astype(object).where(~names.isin(out))


def doubtful_replicates(replicates: pd.Series, key: str) -> list[str]:
    """Say which replicates are left out, and which may have to be, for their names are not those of donors.

    Parameters
    ----------
    replicates
        Replicate of each cell.
    key
        Name of the column, for the messages.

    Examples
    --------
    >>> import pandas as pd
    >>> from ldvae.programs.donors import doubtful_replicates
    >>> doubtful_replicates(pd.Series(["101", "doublet_or_unknown", "101"]), "donor")[0]
    "donor 'doublet_or_unknown' (1 cell) is not the name of a donor: tests with donors leave these cells out."
    """
    counts, known = replicates.dropna().astype(str).value_counts(), set(known_donors(replicates).dropna().astype(str))
    told = []
    for name, n in counts.items():
        cells = f"{key} {name!r} ({counted(n, 'cell')})"
        if name not in known:
            told.append(f"{cells} is not the name of a donor: tests with donors leave these cells out.")
        elif NO_DONOR.search(str(name).replace("_", " ")):
            told.append(
                f"{cells} reads like cells of no one donor, but is tested as a donor of its own. If it is none, leave "
                "these cells without a value in this column, so that no test of donors counts them."
            )
    return told


def donor_means(
    scores: pd.DataFrame, obs: pd.DataFrame, *, donor: str, condition: str, cell_type: str | None = None
) -> pd.DataFrame:
    """Average the scores of the cells of each donor, condition and cell type.

    Parameters
    ----------
    scores
        Cells by programs.
    obs
        What is known, indexed by cell; cells are matched by name, those without donor (see `known_donors`) or condition
        are left out.
    donor, condition, cell_type
        Columns of `obs`; without cell types all cells are of the type "all cells". Cells whose type says that nothing
        is known of them (`unlabeled`, `unknown`, ...) are left out.

    Returns
    -------
    DataFrame
        Columns cell_type, condition, donor, n_cells, program, mean, high: the share of these cells among the highest
        tenth of all cells. Groups of fewer than 10 cells are left out.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> obs = truth.cells.assign(donor=[f"D{i % 6}" for i in range(300)])
    >>> obs["condition"] = obs["donor"].isin(["D0", "D1", "D2"]).map({True: "treated", False: "control"})
    >>> means = gp.donor_means(programs.scores, obs, donor="donor", condition="condition")
    >>> len(means), means["n_cells"].unique().tolist()  # six donors by four programs
    (24, [50])
    """
    keys = _keys(obs.reindex(scores.index), donor, condition, cell_type)
    known = keys.notna().all(axis=1).to_numpy()
    keys = keys[known].astype(str)
    columns = list(keys)
    groups = scores[known].groupby([keys[name] for name in columns], observed=True)
    mean = groups.mean()
    above = (scores > scores.quantile(1 - HIGH)).astype(float)[known]
    high = above.groupby([keys[name] for name in columns], observed=True).mean()
    sizes = groups.size()
    enough = sizes.index[sizes >= LEAST_CELLS]
    parts = []
    for program in scores.columns:
        table = pd.DataFrame({"n_cells": sizes, "mean": mean[program], "high": high[program]}).loc[enough].reset_index()
        parts.append(table.assign(program=program))
    return pd.concat(parts, ignore_index=True)[[*columns, "n_cells", "program", "mean", "high"]]


def _keys(obs: pd.DataFrame, donor: str, condition: str, cell_type: str | None) -> pd.DataFrame:
    """Cell type, condition and donor of each cell, missing where nothing is known of it."""
    kinds = pd.Series(ALL_CELLS, obs.index)
    if cell_type is not None:
        kinds = obs[cell_type].astype(object)
        kinds = kinds.where(~kinds.astype(str).map(is_no_label).astype(bool))
    return pd.DataFrame({"cell_type": kinds, "condition": obs[condition], "donor": known_donors(obs[donor])}, obs.index)


def left_out(
    obs: pd.DataFrame, tested: pd.DataFrame, *, donor: str, condition: str, cell_type: str | None = None
) -> list[str]:
    """Say which conditions, cell types and donors a comparison of conditions leaves out, and why.

    Parameters
    ----------
    obs, donor, condition, cell_type
        As for `donor_means`.
    tested
        From `compare_conditions`; nothing is said where it has no rows.

    Examples
    --------
    >>> import pandas as pd
    >>> from ldvae.programs.donors import left_out
    >>> obs = pd.DataFrame({"donor": list("abcd"), "condition": "ctrl"}).loc[[0, 1, 2, 3] * 10]
    >>> obs = pd.concat([obs, obs[obs["donor"] != "d"].assign(condition="stim")], ignore_index=True)
    >>> tested = pd.DataFrame({"cell_type": ["all cells"], "condition": "stim", "reference": "ctrl", "paired": True})
    >>> left_out(obs, tested, donor="donor", condition="condition")
    ['Donor d has no stim cells: paired tests leave it out.']
    """
    if tested.empty:
        return []
    keys = _keys(obs, donor, condition, cell_type)
    seen = keys[["condition", "donor"]].dropna().astype(str).groupby("condition")["donor"].agg(set)  # of any type
    keys = keys.dropna().astype(str)
    why = f"a test needs {LEAST_DONORS} donors with at least {LEAST_CELLS} cells in each condition."
    columns = ["condition", "reference"]
    pairs = [(second, first) for first, second in combinations(sorted(keys["condition"].unique()), 2)]
    of_kind = {kind: set(own[columns].itertuples(index=False, name=None)) for kind, own in tested.groupby("cell_type")}
    nowhere = [pair for pair in pairs if not any(pair in own for own in of_kind.values())]
    told = []
    if nowhere:
        told.append(f"Programs were not compared for {listed(map(_against, nowhere))}: {why}")
    kinds_of: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for kind in sorted(keys["cell_type"].unique()):
        missing = tuple(pair for pair in pairs if pair not in nowhere and pair not in of_kind.get(kind, set()))
        kinds_of.setdefault(missing, []).append(kind)
    for missing, kinds in kinds_of.items():
        if missing:
            where = f" for {listed(map(_against, missing))}" if len(pairs) > 1 else ""
            told.append(f"Programs were not compared in {listed(kinds, 12)}{where}: {why}")
    sizes = keys.groupby(list(keys)).size()
    enough = sizes[sizes >= LEAST_CELLS].reset_index().groupby("condition")["donor"].agg(set)
    lacking: dict[tuple[str, str], set[str]] = {}
    for pair in tested.loc[tested["paired"].astype(bool), columns].drop_duplicates().itertuples(index=False, name=None):
        for own, other in (pair, pair[::-1]):
            for name in sorted(enough[other] - enough[own]):
                few = f"fewer than {LEAST_CELLS}" if name in seen[own] else "no"
                lacking.setdefault((few, own), set()).add(name)
    for (few, own), names in lacking.items():
        subject, them = (
            (f"Donor {min(names)} has", "it") if len(names) == 1 else (f"Donors {listed(sorted(names))} have", "them")
        )
        any_type = " of any one type" if few != "no" and cell_type is not None else ""
        told.append(f"{subject} {few} {own} cells{any_type}: paired tests leave {them} out.")
    return told


def _against(pair: tuple[str, str]) -> str:
    return f"{pair[0]} against {pair[1]}"


def compare_conditions(means: pd.DataFrame) -> pd.DataFrame:
    """Compare the conditions of each program and cell type, with donors as replicates.

    Parameters
    ----------
    means
        From `donor_means`.

    Returns
    -------
    DataFrame
        Columns program, cell_type, condition, reference, paired, n_donors, effect, lower, upper, p, padj, high_effect,
        high_p, high_padj. The effect is the mean over donors of the condition minus that of the reference (the first
        by name), in standard deviations of the score, with its 95 % interval; high_effect the same for the share of
        high cells. padj is Benjamini and Hochberg's over all programs, cell types and pairs of conditions. Comparisons
        with fewer than three donors (pairs, or in either condition) are left out.

    Notes
    -----
    Donors that were seen in both conditions are compared with themselves (paired t) where there are three of them;
    otherwise Welch's t between donors. The test takes the donors as a sample; the number of cells only makes
    the mean of each more precise.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> obs = truth.cells.assign(donor=[f"D{i % 6}" for i in range(300)])
    >>> obs["condition"] = obs["donor"].isin(["D0", "D1", "D2"]).map({True: "treated", False: "control"})
    >>> means = gp.donor_means(programs.scores, obs, donor="donor", condition="condition")
    >>> table = gp.compare_conditions(means)
    >>> table[["condition", "reference", "paired"]].drop_duplicates().to_numpy().tolist()
    [['treated', 'control', False]]
    """
    of_mean, of_share = ["effect", "lower", "upper", "p"], ["high_effect", None, None, "high_p"]
    columns = ["program", "cell_type", "condition", "reference", "paired", "n_donors", *of_mean]
    keys = pd.MultiIndex.from_frame(means[["program", "cell_type"]].drop_duplicates())
    wide = {
        value: means.pivot(index=["program", "cell_type"], columns=["condition", "donor"], values=value).reindex(keys)
        for value in ("mean", "high")
    }
    donors = sorted(means["donor"].unique())
    parts = []
    for reference, condition in combinations(sorted(means["condition"].unique()), 2):
        first, second = (
            {value: table[name].reindex(columns=donors).to_numpy(float) for value, table in wide.items()}
            for name in (reference, condition)
        )
        known = [~np.isnan(side["mean"]) for side in (first, second)]
        paired = (known[0] & known[1]).sum(axis=1) >= LEAST_DONORS
        used = np.stack([np.where(paired[:, None], known[0] & known[1], own) for own in known], axis=1)
        enough = used.sum(axis=2).min(axis=1) >= LEAST_DONORS
        # Rows with the same donors are tested at once: thousands of calls of scipy take minutes.
        for pattern in np.unique(used[enough], axis=0):
            rows = np.flatnonzero((used == pattern).all(axis=(1, 2)))
            own = keys[rows].to_frame(index=False)
            own = own.assign(condition=condition, reference=reference, paired=paired[rows])
            own["n_donors"] = int(pattern.any(axis=0).sum())
            for value, names in (("mean", of_mean), ("high", of_share)):
                sides = (first[value][rows][:, pattern[0]], second[value][rows][:, pattern[1]])
                for name, numbers in zip(names, _test(*sides, paired=bool(paired[rows[0]])), strict=True):
                    if name is not None:
                        own[name] = numbers
            parts.append(own)
    columns = [*columns, "high_effect", "high_p"]
    result = pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)
    result = with_adjusted_p(result)
    columns = [*columns[:-2], "padj", "high_effect", "high_p", "high_padj"]
    return result[columns].sort_values("p", kind="stable", ignore_index=True)


def with_adjusted_p(result: pd.DataFrame) -> pd.DataFrame:
    """Comparisons with padj and high_padj: Benjamini and Hochberg's over all rows."""
    for p, adjusted in (("p", "padj"), ("high_p", "high_padj")):
        result[adjusted] = scipy.stats.false_discovery_control(result[p]) if len(result) else pd.Series(dtype=float)
    return result


def _test(first: np.ndarray, second: np.ndarray, *, paired: bool) -> tuple[np.ndarray, ...]:
    """Difference second minus first of the donors' means, shape (n_rows, n_donors); its 95 % interval, and p."""
    difference = second.mean(axis=1) - first.mean(axis=1)
    spread = (second - first).std(axis=1) if paired else first.std(axis=1) + second.std(axis=1)
    with warnings.catch_warnings():  # of scipy, where the donors of one condition are alike; Welch's test takes that
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        warnings.filterwarnings("ignore", "invalid value|divide by zero", RuntimeWarning)
        if paired:
            test = scipy.stats.ttest_rel(second, first, axis=1)
        else:
            test = scipy.stats.ttest_ind(second, first, axis=1, equal_var=False)
        interval = test.confidence_interval()
    alike = spread < 1e-12  # no donor differs from another: nothing can be tested
    lower, upper = (np.where(alike, np.nan, end) for end in (interval.low, interval.high))
    return difference, lower, upper, np.where(alike, 1.0, test.pvalue)


def methods(settings: Mapping[str, Any]) -> Sentence:
    """What the methods section says of the comparison of conditions, with the options that ran."""
    return Sentence(
        f"Programs were compared between levels of {settings['condition_key']} with {settings['replicate_key']} as "
        f"replicates: scores were averaged over the cells (at least {LEAST_CELLS}) of each replicate, condition and "
        f"cell "
        "type, and compared by a paired t test where three replicates were in both conditions, otherwise by Welch's t "
        f"test (SciPy), with at least {LEAST_DONORS} replicates; p values were adjusted over all programs, cell types "
        "and conditions.",
        tools=("scipy.stats",),
    )
