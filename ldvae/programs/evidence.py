"""What a program may mean: associations with what is known of the cells, technical variables, gene sets, labels."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import scipy  # imports scipy.stats when it is first used: a second and 45 MB that a training need not have

from ldvae.errors import InputError
from ldvae.methods import Sentence, listed

from .consensus import TINY
from .find import SIDES, SMALLEST_SHARE, Programs, gene_sets, top_genes

# Share of the contribution below which a program is called weak.
WEAK_SHARE = 0.02
# AUC of scores and genes from which a group of cells gives a program its name.
HEADLINE = 0.8
# Of the ten strongest genes of a program, those that a gene set must have to name it.
NAMING = 2
# Share of a gene set's modelled genes (of the members of the program, if they are fewer) that must be members.
NAMED_SHARE = 1 / 3
# Fewest cells of a group that is said to be high or low in a program, with their number where they are not many; and
# strength from which it is said.
FEWEST_CELLS, MANY_CELLS, FOLLOWS = 10, 20, 0.3
# Groups name a program together if their AUC is higher by this than that of any of them; AUCs as near are alike.
JOINT_GAIN, NEARLY = 0.03, 0.02

# Levels that say of cells that nothing is known of them.
NO_LABEL = re.compile(
    r"(?i)(un(known|assigned|labell?ed|classified|defined|annotated|identified)"
    r"|not (assigned|available|labell?ed|known)|ambiguous|doublets?|multiplets?|n/?a|nan|none|nd|)( cells?)?"
)


def is_no_label(level: str) -> bool:
    """Whether a level of a category says that nothing is known of its cells.

    Examples
    --------
    >>> from ldvae.programs.evidence import is_no_label
    >>> [is_no_label(name) for name in ("unlabeled", "Unknown_cells", "doublet", "negative", "NK cells")]
    [True, True, True, False, False]
    """
    return NO_LABEL.fullmatch(level.replace("_", " ").strip()) is not None


def associations(
    scores: pd.DataFrame, obs: pd.DataFrame, *, variables: Sequence[str] | None = None, technical: Sequence[str] = ()
) -> pd.DataFrame:
    """Test how the scores of each program relate to what is known of the cells.

    Parameters
    ----------
    scores
        Cells by programs, unit variance.
    obs
        What is known, indexed by cell; cells are matched by name.
    variables
        Columns to test; by default all categories of 2 to 50 levels and all numbers.
    technical
        Columns that describe the experiment, to be marked as such.

    Returns
    -------
    DataFrame
        Columns program, variable, kind, level, n_cells, effect, auc, p, padj, technical, explained. For each level of a
        category the mean score minus that of the other cells, the AUC and the p-value of Mann and Whitney; for a number
        Spearman's r. padj is Benjamini and Hochberg's over the table; explained is the share of the variance of the
        scores (for a number: of the ranks) that the variable, with all its levels, explains. Cells count as
        independent, which cells of one donor are not: read the effect, not the p-value.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> table = gp.associations(programs.scores, truth.cells)
    >>> table["variable"].unique().tolist()
    ['batch', 'identity']
    """
    obs = obs.reindex(scores.index)
    rows: list[pd.DataFrame] = []
    for variable in variables if variables is not None else obs.columns:
        values = obs[variable]
        known = values.notna().to_numpy()
        kind = _kind(values[known])
        if kind is None:
            continue
        table = scores[known]
        ranks = scipy.stats.rankdata(table, axis=0)
        test = _test_levels if kind == "categorical" else _test_number
        share = _explained(ranks if kind == "continuous" else table.to_numpy(), values[known], kind)
        rows += [
            part.assign(variable=variable, kind=kind, explained=share) for part in test(table, ranks, values[known])
        ]
    columns = [
        "program",
        "variable",
        "kind",
        "level",
        "n_cells",
        "effect",
        "auc",
        "p",
        "padj",
        "technical",
        "explained",
    ]
    if not rows:
        return pd.DataFrame(columns=columns)
    result = pd.concat(rows, ignore_index=True)
    result["padj"] = scipy.stats.false_discovery_control(result["p"])
    result["technical"] = result["variable"].isin(technical)
    order = {name: k for k, name in enumerate(scores.columns)}
    return result.sort_values("program", key=lambda names: names.map(order), kind="stable")[columns].reset_index(
        drop=True
    )


def strength(table: pd.DataFrame) -> pd.Series:
    """How close each association is, from 0 to 1.

    Parameters
    ----------
    table
        From `associations`.

    Returns
    -------
    Series
        Row by row: the absolute value of r of a number, and of 2 AUC - 1 of a level.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> table = gp.associations(programs.scores, truth.cells)
    >>> bool(gp.strength(table).between(0, 1).all())
    True
    """
    return (2 * table["auc"] - 1).where(table["kind"] == "categorical", table["effect"]).abs()


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
    kind = _kind(values[known])
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
    if _kind(values[known]) == "continuous":
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
    kind = _kind(values[known])
    test = _test_number if kind == "continuous" else _test_levels
    rows = pd.concat(list(test(table, ranks, values[known]))).assign(variable=values.name, kind=kind)
    enough = rows["n_cells"] >= _least_cells(int(known.sum()))
    rows = rows[enough] if enough.any() else rows
    high = ~(rows["auc"] < 0.5)
    rows = rows[high] if high.any() else rows
    return _phrase(rows.iloc[int(np.argmax(strength(rows).to_numpy()))])


def enrichment(programs: Programs, library: Mapping[str, Sequence[str]], name: str) -> pd.DataFrame:
    """Test the members of each side of each program against a library of gene sets (hypergeometric).

    Parameters
    ----------
    programs
        Their genes are the background.
    library
        Gene sets by term.
    name
        Name of the library.

    Returns
    -------
    DataFrame
        Columns program, side, term, library, overlap, n_term, odds_ratio, p, padj, genes: terms that share a gene with
        the side; padj is Benjamini and Hochberg's over the terms of one side.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> library = {"first program": gp.gene_sets(programs)["P1_positive"], "others": ["gene_1", "gene_2"]}
    >>> found = gp.enrichment(programs, library, "my sets")
    >>> found.iloc[0][["program", "side", "term"]].tolist()
    ['P1', 'positive', 'first program']
    """
    background = set(programs.loadings.index)
    terms = {term: background.intersection(genes) for term, genes in library.items()}
    terms = {term: genes for term, genes in terms.items() if genes}
    if not terms:
        raise InputError(
            f"{name}: none of its genes is among the {len(background)} genes of the programs (such as "
            f"{', '.join(programs.loadings.index[:3])}). Use gene sets with the same kind of names."
        )
    columns = ["program", "side", "term", "library", "overlap", "n_term", "odds_ratio", "p", "padj", "genes"]
    parts = []
    for label, members in gene_sets(programs).items():
        program, side = label.rsplit("_", 1)
        table = pd.DataFrame(
            {
                "term": list(terms),
                "overlap": [len(genes.intersection(members)) for genes in terms.values()],
                "n_term": [len(genes) for genes in terms.values()],
                "genes": [", ".join(gene for gene in members if gene in genes) for genes in terms.values()],
            }
        )
        both, n_term = table["overlap"], table["n_term"]
        table["p"] = scipy.stats.hypergeom.sf(both - 1, len(background), n_term, len(members))
        table["padj"] = scipy.stats.false_discovery_control(table["p"])
        neither = len(background) - n_term - len(members) + both
        with np.errstate(divide="ignore"):
            table["odds_ratio"] = both * neither / np.asarray((n_term - both) * (len(members) - both), float)
        table = table[both > 0].sort_values("p", kind="stable")
        parts.append(table.assign(program=program, side=side, library=name))
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def ranked_enrichment(
    effects: pd.DataFrame, library: Mapping[str, Sequence[str]], name: str, *, smallest: int = 5
) -> pd.DataFrame:
    """Test whether the genes of a set lie higher or lower in a program than all others, without any cutoff.

    Parameters
    ----------
    effects
        Genes by programs: a statistic of each measured gene, such as the z of `effects_on_all_genes`.
    library
        Gene sets by term.
    name
        Name of the library.
    smallest
        Fewest measured genes of a set.

    Returns
    -------
    DataFrame
        Columns program, term, library, n_term (measured genes of the set), t, p, padj; the surest first in each
        program. t is positive where the set is higher. padj is Benjamini and Hochberg's over programs and terms.

    Notes
    -----
    A linear model for each program and set, statistic = a + b membership, and the t of b: the univariate linear model
    (ulm) of decoupler. Genes of a set vary together, which the test does not know: its p values are too small, and the
    order says more than the threshold.

    References
    ----------
    Badia-i-Mompel et al., Bioinformatics Advances 2, vbac016 (2022).

    Examples
    --------
    >>> import pandas as pd
    >>> from ldvae.programs.evidence import ranked_enrichment
    >>> z = pd.DataFrame({"P1": [5.0, 6.0, 4.0, 0.1, -0.3, 0.2]}, index=["ISG15", "IFI6", "MX1", "ACTB", "CD3D", "LYZ"])
    >>> row = ranked_enrichment(z, {"INTERFERON": ["ISG15", "IFI6", "MX1"]}, "own", smallest=3).iloc[0]
    >>> row["term"], bool(row["t"] > 0), bool(row["p"] < 0.01)
    ('INTERFERON', True, True)
    """
    columns = ["program", "term", "library", "n_term", "t", "p", "padj"]
    member = pd.DataFrame({term: effects.index.isin(list(genes)) for term, genes in library.items()}, effects.index)
    sizes = member.sum()
    member = member.loc[:, (sizes >= smallest) & (sizes < len(effects))].astype(float)
    if member.empty or member.shape[1] == 0:
        return pd.DataFrame(columns=columns)
    standard = (member - member.mean()) / member.std(ddof=0)
    values = effects.fillna(0.0)
    values = (values - values.mean()) / values.std(ddof=0).clip(lower=TINY)
    r = (standard.T.to_numpy() @ values.to_numpy()) / len(effects)
    degrees = len(effects) - 2
    t = r * np.sqrt(degrees / np.maximum(1 - r**2, TINY))
    table = pd.DataFrame(t, member.columns, effects.columns).rename_axis(index="term", columns="program")
    table = table.stack().rename("t").reset_index()
    table["p"] = 2 * scipy.stats.t.sf(table["t"].abs(), degrees)
    table["padj"] = scipy.stats.false_discovery_control(table["p"])
    table["n_term"] = table["term"].map(member.sum()).astype(int)
    order = table["program"].map({program: k for k, program in enumerate(effects.columns)})
    table = table.assign(library=name, order=order).sort_values(["order", "p"], kind="stable", ignore_index=True)
    return table[columns]


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
    never the number of a cluster. Levels of a category name a program together where together they fit better than any
    of them (by 0.03), and a level that fits worse than another of its category (by 0.02) names nothing. Where no level
    does, it is the best enriched term (padj below 0.05) of which a third are members of the program (of a term larger
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
    biological = found[~found["technical"].astype(bool) & (found["padj"] < 0.05)]
    biological = biological[(biological["kind"] == "continuous") | ~biological["level"].astype(str).map(is_no_label)]
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
            best[program] = _phrase(_closest(high), MANY_CELLS)
        if len(low):
            opposite[program] = _phrase(_closest(low), MANY_CELLS)
    table.insert(0, "label", pd.Series(labels))
    flags = technical if technical is not None else pd.Series(dtype=object)
    table["technical"] = flags.reindex(table.index).fillna("")
    for side in SIDES:
        joined = strongest_genes[strongest_genes["side"] == side].groupby("program")["gene"].agg(", ".join)
        table[f"top_{side}"] = joined.reindex(table.index).fillna("")
    table["best_association"] = pd.Series(best, dtype=object).reindex(table.index).fillna("")
    table["opposite_association"] = pd.Series(opposite, dtype=object).reindex(table.index).fillna("")
    return table


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
    together where together they fit better than any of them, as T cells of all kinds do against monocytes.
    """
    rows = rows[(rows["kind"] == "categorical") & ~_is_number(rows["level"])]
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
                order = np.argsort(-sums[0] / sizes, kind="stable")
                together = _auc(sums[:, order].cumsum(axis=1), sizes[order].cumsum(), sizes.sum())[:, :-1].min(axis=0)
                enough = np.flatnonzero(together >= together.max() - NEARLY)
                n_joint = int(enough[0]) + 1
                if n_joint > 1 and together[n_joint - 1] >= fit.max() + JOINT_GAIN:
                    members = sorted(order[:n_joint], key=lambda code: -sizes[code])
                    name = listed([levels[code] for code in members], 3)
                    joined.append({"program": program, "level": name, "fit": together[n_joint - 1]})
        rows = rows.assign(fit=pd.concat(fits) if fits else pd.Series(dtype=float))
    best = rows.groupby(["program", "variable"])["fit"].transform("max")
    enough = rows["n_cells"] >= _cells_that_name(len(programs.scores))
    alone = rows[enough & (rows["fit"] >= best - NEARLY)]
    columns = ["program", "level", "fit"]
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


def _kind(values: pd.Series) -> str | None:
    """categorical or continuous; None for what is constant or names single cells."""
    levels = values.nunique()
    if levels < 2:
        return None
    if pd.api.types.is_float_dtype(values) or (pd.api.types.is_integer_dtype(values) and levels > 20):
        return "continuous"
    return "categorical" if levels <= 50 else None


def _test_levels(scores: pd.DataFrame, ranks: np.ndarray, values: pd.Series) -> Iterator[pd.DataFrame]:
    """Each level against the other cells; of True and False only True."""
    n_obs, total = len(scores), scores.to_numpy().sum(axis=0)
    levels = [True] if pd.api.types.is_bool_dtype(values) else sorted(values.unique(), key=str)
    for level in levels:
        inside = (values == level).to_numpy()
        n_in, n_out = inside.sum(), (~inside).sum()
        sums = scores.to_numpy()[inside].sum(axis=0)
        pairs = n_in * n_out
        wins = ranks[inside].sum(axis=0) - n_in * (n_in + 1) / 2
        z = (wins - pairs / 2) / np.sqrt(pairs * (n_obs + 1) / 12)
        yield pd.DataFrame(
            {
                "program": scores.columns,
                "level": str(level),
                "effect": sums / n_in - (total - sums) / n_out,
                "auc": wins / pairs,
                "p": 2 * scipy.stats.norm.sf(np.abs(z)),
                "n_cells": n_in,
            }
        )


def _explained(scores: np.ndarray, values: pd.Series, kind: str) -> np.ndarray:
    """Share of the variance of scores, or of ranks, that a variable explains, shape (n_programs,)."""
    centred = scores - scores.mean(axis=0)
    total = np.maximum(np.square(centred).sum(axis=0), TINY)
    if kind == "categorical":
        codes = pd.factorize(values)[0]
        sums = np.zeros((codes.max() + 1, scores.shape[1]))
        np.add.at(sums, codes, centred)
        return (np.square(sums) / np.bincount(codes)[:, None]).sum(axis=0) / total
    wanted = scipy.stats.rankdata(values.to_numpy(float))
    wanted = wanted - wanted.mean()
    return np.square(wanted @ centred) / np.square(wanted).sum() / total


def _test_number(scores: pd.DataFrame, ranks: np.ndarray, values: pd.Series) -> Iterator[pd.DataFrame]:
    """Spearman's correlation with the scores."""
    wanted = scipy.stats.rankdata(values.to_numpy(float))
    wanted = (wanted - wanted.mean()) / wanted.std()
    r = wanted @ (ranks - ranks.mean(axis=0)) / len(wanted) / np.maximum(ranks.std(axis=0), TINY)
    degrees = max(len(wanted) - 2, 1)
    t = r * np.sqrt(degrees / np.maximum(1 - r**2, TINY))
    p = 2 * scipy.stats.t.sf(np.abs(t), degrees)
    yield pd.DataFrame(
        {"program": scores.columns, "level": "", "effect": r, "auc": np.nan, "p": p, "n_cells": len(wanted)}
    )


def _phrase(row: pd.Series, few: float = 0) -> str:
    """An association in words, with the number of cells of a group that has fewer than `few`."""
    if row["kind"] == "categorical":
        n_cells = f", {int(row['n_cells'])} cells" if row["n_cells"] < few else ""
        return f"{row['variable']} = {row['level']} (AUC {row['auc']:.2f}{n_cells})"
    return f"{row['variable']} (r = {row['effect']:.2f})"


REFERENCES = {
    "ulm": "Badia-i-Mompel P, Vélez Santiago J, Braunger J, et al. decoupleR: ensemble of computational methods to "
    "infer biological activities from omics data. Bioinformatics Advances 2, vbac016 (2022). "
    "doi:10.1093/bioadv/vbac016",
    "bh": "Benjamini Y, Hochberg Y. Controlling the false discovery rate: a practical and powerful approach to "
    "multiple testing. Journal of the Royal Statistical Society B 57, 289–300 (1995).",
}


def methods(libraries: Sequence[str]) -> Iterator[Sentence]:
    """What the methods section says of gene sets and p values; `libraries` are the names of the gene sets."""
    if libraries:
        yield Sentence(
            f"The genes of the programs were tested for enrichment of the sets in {listed(libraries)} by the "
            "hypergeometric test of SciPy, and by ranks: the t of a linear model of the effects on all measured genes "
            "(z) on membership [@ulm].",
            REFERENCES,
            ("scipy.stats",),
        )
    yield Sentence("p values were adjusted by the method of Benjamini and Hochberg [@bh].", REFERENCES)
