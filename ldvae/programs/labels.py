"""What a program is called: by the groups of cells and the gene sets that fit it, and by its strongest genes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import scipy  # imports scipy.stats when it is first used: a second and 45 MB that a training need not have

from ldvae.errors import listed

from .associations import is_no_label, phrase, strength
from .find import SIDES, Programs, gene_sets, top_genes

# AUC of scores and genes from which a group of cells gives a program its name.
HEADLINE = 0.8
# Of the ten strongest genes of a program, those that a gene set must have to name it.
NAMING = 2
# Share of a gene set's modeled genes (of the members of the program, if they are fewer) that must be members.
NAMED_SHARE = 1 / 3
# Fewest cells of a group that is said to be high or low in a program, with their number where they are not many; and
# strength from which it is said.
FEWEST_CELLS, MANY_CELLS, FOLLOWS = 10, 20, 0.3
# Groups name a program together if their AUC is higher by this than that of any of them; AUCs as near are alike.
JOINT_GAIN, NEARLY = 0.03, 0.02
# Share of the cells above which groups together are nearly all cells, which names nothing.
NEARLY_ALL = 0.9


def describe(
    programs: Programs,
    found: pd.DataFrame,
    enriched: pd.DataFrame | None = None,
    *,
    obs: pd.DataFrame | None = None,
    technical: pd.Series | None = None,
) -> pd.DataFrame:
    """Put in one table what is known of each program.

    Parameters
    ----------
    programs
        From `find_programs`.
    found
        From `associations`.
    enriched
        From `enrichment`, if there were gene sets.
    obs
        What was tested for association; given, a level names a program only if the program's genes are high in its
        cells too.
    technical
        From `technical_flags`; not given: no flags.

    Returns
    -------
    DataFrame
        `programs.table` with label, technical, top_positive, top_negative, best_association (the level or number that
        the scores follow most closely, their high side) and opposite_association (the level in which they are lowest).

    Notes
    -----
    The label is a headline and the first three genes, or the genes alone. The headline is a level of a category of at
    least 20 cells or 1 % of the cells (and 10), in which score and genes are both high (the smaller AUC above 0.8),
    never the number of a cluster. Levels of a category name a program together where each of them is high (AUC of the
    score above 0.5, mean above zero), together they fit better than any of them (by 0.03), and they are at most 90 % of
    the cells. A level that fits worse than another of its category (by 0.02) names nothing. Where no level does, it is
    the best enriched term (padj below 0.05) of which a third are members of the program (of a term larger
    than the program: that is a third of the members), two of them among its ten strongest genes. A headline belongs to
    the one program that it fits best; another takes its next, or none.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> table = gp.describe(programs, gp.associations(programs.scores, truth.cells), obs=truth.cells)
    >>> table.index.tolist()
    ['P1', 'P2', 'P3', 'P4']
    >>> "label" in table
    True
    """
    strongest_genes = top_genes(programs, 10)
    table = programs.table.copy()
    biological = _biological(found)
    headlines: dict[str, str] = {}
    for row in _groups_that_name(programs, biological, obs).itertuples():
        if row.program not in headlines and row.level not in headlines.values():
            headlines[row.program] = row.level
    biological = biological[(biological["kind"] == "continuous") | (biological["n_cells"] >= FEWEST_CELLS)]
    biological = biological.assign(strength=strength(biological))
    positive = strongest_genes[strongest_genes["side"] == "positive"]
    ten = {program: list(own["gene"]) for program, own in positive.groupby("program")}
    for program, term in _sets_that_name(programs, enriched, ten):
        if program not in headlines and term not in headlines.values():
            headlines[program] = term
    labels, best, opposite = {}, {}, {}
    for program in table.index:
        shown = ", ".join(ten.get(program, [])[:3])
        labels[program] = f"{headlines[program]}: {shown}" if program in headlines else shown
        own = biological[(biological["program"] == program) & (biological["strength"] >= FOLLOWS)]
        high, low = own[~(own["auc"] < 0.5)], own[own["auc"] < 0.5]
        if len(high):
            best[program] = phrase(_closest(high), MANY_CELLS)
        if len(low):
            opposite[program] = phrase(_closest(low), MANY_CELLS)
    table.insert(0, "label", pd.Series(labels))
    flags = technical if technical is not None else pd.Series(dtype=object)
    table["technical"] = flags.reindex(table.index).fillna("")
    for side in SIDES:
        joined = strongest_genes[strongest_genes["side"] == side].groupby("program")["gene"].agg(", ".join)
        table[f"top_{side}"] = joined.reindex(table.index).fillna("")
    table["best_association"] = pd.Series(best, dtype=object).reindex(table.index).fillna("")
    table["opposite_association"] = pd.Series(opposite, dtype=object).reindex(table.index).fillna("")
    return table


def naming_columns(programs: Programs, found: pd.DataFrame, obs: pd.DataFrame) -> list[str]:
    """Columns of obs with three levels or more of which one, or several together, fit a program well enough to name it.

    Parameters
    ----------
    programs, found, obs
        As for `describe`.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> from ldvae.programs.labels import naming_columns
    >>> naming_columns(programs, gp.associations(programs.scores, truth.cells), truth.cells)
    ['identity']
    """
    named = _groups_that_name(programs, _biological(found), obs)["variable"].unique()
    return [str(name) for name in obs if name in named and obs[name].nunique() > 2]


def _biological(found: pd.DataFrame) -> pd.DataFrame:
    """Significant associations with columns that are not technical, but for levels of which nothing is known."""
    rows = found[~found["technical"].astype(bool) & (found["padj"] < 0.05)]
    return rows[(rows["kind"] == "continuous") | ~rows["level"].astype(str).map(is_no_label).astype(bool)]


def _cells_that_name(n_obs: int) -> float:
    """Cells that a group needs to name a program: 20, or 1 % of the cells, but never fewer than 10."""
    return max(FEWEST_CELLS, min(MANY_CELLS, 0.01 * n_obs))


def _closest(rows: pd.DataFrame) -> pd.Series:
    """The closest association; a cluster, of which a number says nothing, only where no other is about as close."""
    named = rows[~_is_number(rows["level"]) & (rows["strength"] >= 0.9 * rows["strength"].max())]
    rows = named if len(named) else rows
    return rows.loc[rows["strength"].idxmax()]


def _is_number(levels: pd.Series) -> pd.Series:
    """Whether levels are bare numbers, as those of clusters are."""
    return levels.astype(str).str.isnumeric()


def _groups_that_name(programs: Programs, rows: pd.DataFrame, obs: pd.DataFrame | None) -> pd.DataFrame:
    """Groups of cells in which score and genes of a program are high: program, level and fit, the best first.

    A group too small to name a program keeps a worse group of its variable from doing so. Several groups name it
    together where together they fit better than any of them, as T cells of all kinds do against monocytes. Each of them
    must be high itself: a program that one small group lacks fits all others together, but is low in most of them.
    """
    rows = rows[(rows["kind"] == "categorical") & ~_is_number(rows["level"])]
    n_least = _cells_that_name(len(programs.scores))
    if obs is None:
        rows = rows.assign(fit=rows["auc"])
        joined: list[dict[str, object]] = []
    else:
        decoded, obs = _decoded(programs), obs.reindex(programs.scores.index)
        fits, joined = [], []
        for variable, own in rows.groupby("variable", sort=False):
            known = ~np.array([is_no_label(str(level)) for level in obs[variable]])  # "nan" is none, too
            codes, levels = pd.factorize(obs[variable][known].astype(str))
            sizes = np.bincount(codes)
            for program in own["program"].unique():
                ranks = [scipy.stats.rankdata(part[program].to_numpy()[known]) for part in (programs.scores, decoded)]
                sums = np.stack([np.bincount(codes, own_ranks) for own_ranks in ranks])
                fit = pd.Series(_auc(sums, sizes, sizes.sum()).min(axis=0), levels)
                one = own[own["program"] == program]
                fits.append(pd.Series(fit.loc[one["level"]].to_numpy(), one.index))
                if _is_number(pd.Series(levels)).any() or len(levels) < 3:
                    continue
                means = np.bincount(codes, programs.scores[program].to_numpy()[known]) / sizes
                high = (_auc(sums[0], sizes, sizes.sum()) > 0.5) & (means > 0)
                order = np.argsort(-sums[0] / sizes, kind="stable")
                order = order[np.logical_and.accumulate(high[order])]
                if len(order) < 2:
                    continue
                n_cells = sizes[order].cumsum()
                together = _auc(sums[:, order].cumsum(axis=1), n_cells, sizes.sum()).min(axis=0)
                last = int(np.flatnonzero(together >= together.max() - NEARLY)[0])
                better = last > 0 and together[last] >= fit.max() + JOINT_GAIN
                if better and n_least <= n_cells[last] <= NEARLY_ALL * sizes.sum():
                    members = sorted(order[: last + 1], key=lambda code: -sizes[code])
                    name = listed([levels[code] for code in members], 3)
                    joined.append({"program": program, "variable": variable, "level": name, "fit": together[last]})
        rows = rows.assign(fit=pd.concat(fits) if fits else pd.Series(dtype=float))
    best = rows.groupby(["program", "variable"])["fit"].transform("max")
    enough = rows["n_cells"] >= n_least
    alone = rows[enough & (rows["fit"] >= best - NEARLY)]
    columns = ["program", "variable", "level", "fit"]
    both = pd.DataFrame([*alone[columns].to_dict("records"), *joined], columns=columns)
    return both[both["fit"] > HEADLINE].sort_values("fit", ascending=False, kind="stable")


def _auc(sums: np.ndarray, sizes: np.ndarray, n: int) -> np.ndarray:
    """AUC of groups against all other cells from their sums of ranks."""
    return (sums - sizes * (sizes + 1) / 2) / np.maximum(sizes * (n - sizes), 1)


def _sets_that_name(
    programs: Programs, enriched: pd.DataFrame | None, strongest: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, str]]:
    """Programs and the gene sets that may name them, the surest first."""
    if enriched is None or not len(enriched):
        return
    members = gene_sets(programs)
    terms = enriched[(enriched["side"] == "positive") & (enriched["padj"] < 0.05)].sort_values("p", kind="stable")
    # A set names the program that has most of it, or none: B cells' HLA genes are those of dendritic cells too.
    for row in terms.drop_duplicates("term").itertuples():
        shared = set(strongest[row.program]).intersection(str(row.genes).split(", "))
        smaller = min(row.n_term, len(members[f"{row.program}_positive"]))
        if len(shared) >= NAMING and row.overlap >= max(NAMED_SHARE * smaller, NAMING):
            yield row.program, row.term


def _decoded(programs: Programs) -> pd.DataFrame:
    """Expression of each program's 30 heaviest positive genes as the model has it, cells by programs."""
    components = (programs.scores.to_numpy() - programs.transform[0]) @ np.linalg.pinv(programs.transform[1:])
    weight = programs.weighted.to_numpy().clip(min=0)
    if len(weight) > 30:
        weight = np.where(weight >= np.sort(weight, axis=0)[-30], weight, 0)
    basis = programs.weighted.to_numpy() @ programs.joint[1:].T
    return pd.DataFrame(components @ (basis.T @ weight), programs.scores.index, programs.scores.columns)
