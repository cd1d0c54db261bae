"""What a program may mean: associations with what is known of the cells, technical variables, gene sets, labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import scipy  # imports scipy.stats when it is first used: a second and 45 MB that a training need not have

from ldvae.errors import InputError

from .consensus import TINY
from .find import SIDES, SMALLEST_SHARE, Programs, gene_sets, top_genes

# Share of the contribution below which a program is called weak.
WEAK_SHARE = 0.02


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
        Columns program, variable, kind, level, effect, auc, p, padj, technical, explained. For each level of a category
        the mean score minus that of the other cells, the AUC and the p-value of Mann and Whitney; for a number
        Spearman's r. padj is Benjamini and Hochberg's over the table; explained is the share of the variance of the
        scores (for a number: of the ranks) that the variable, with all its levels, explains. Cells count as
        independent, which cells of one donor are not: read the effect, not the p-value.
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
    columns = ["program", "variable", "kind", "level", "effect", "auc", "p", "padj", "technical", "explained"]
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
    """How close each association is, from 0 to 1: |r| of a number, |2 AUC - 1| of a level."""
    return (2 * table["auc"] - 1).where(table["kind"] == "categorical", table["effect"]).abs()


def technical_flags(table: pd.DataFrame, share: pd.Series, *, limit: float = 0.5) -> pd.Series:
    """Say which programs follow the experiment and not the biology, and what they follow.

    Parameters
    ----------
    table
        From `associations`.
    share
        Share of the contribution, indexed by program.
    limit
        Strength from which a program is flagged; half of it where the share is below 2 %, since the fits can make a
        weak program out of the sequencing depth that the encoder sees.

    Returns
    -------
    Series
        Indexed by program: "" or a reason. A program that some biological variable explains better is not flagged; one
        with less than 0.5 % of the contribution is, unless biology explains it.
    """
    flags = pd.Series("", index=share.index)
    table = table.assign(strength=strength(table))
    for program, weight in share.items():
        own = table[table["program"] == program]
        technical, other = own[own["technical"].astype(bool)], own[~own["technical"].astype(bool)]
        biology = np.sqrt(other["explained"].max()) if len(other) else 0
        least = limit / 2 if weight < WEAK_SHARE else limit
        if len(technical) and technical["strength"].max() > max(least, biology):
            first = technical.loc[technical["strength"].idxmax()]
            flags[program] = ("weak, and " if weight < WEAK_SHARE else "") + f"follows {_phrase(first)}"
        elif weight < SMALLEST_SHARE and biology < limit / 2:
            flags[program] = f"very weak ({weight:.1%} of the contribution)"
    return flags


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


def describe(
    programs: Programs, found: pd.DataFrame, enriched: pd.DataFrame | None = None, *, limit: float = 0.5
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
    limit
        As for `technical_flags`.

    Returns
    -------
    DataFrame
        `programs.table` with label, technical, top_positive, top_negative and best_association. The label is the best
        enriched term (padj below 0.05) or the best separated level (AUC above 0.9), if any, and the first three genes.
    """
    listed = top_genes(programs, 10)
    table = programs.table.copy()
    names, best = {}, {}
    biological = found[~found["technical"].astype(bool) & (found["padj"] < 0.05)]
    biological = biological.assign(strength=strength(biological))
    for program in table.index:
        own = biological[biological["program"] == program]
        genes = listed.loc[(listed["program"] == program) & (listed["side"] == "positive"), "gene"]
        label = ", ".join(genes[:3])
        if len(own):
            # Of two levels the one that is high says the same as the one that is low, and reads better.
            raised = own[~(own["auc"] < 0.5)]
            strongest = (raised if len(raised) else own)["strength"].idxmax()
            best[program] = _phrase(own.loc[strongest])
            numbered = own["level"].astype(str).str.isnumeric()  # the number of a cluster names nothing
            upper = own[(own["auc"] > 0.9) & ~numbered]
            if len(upper):
                label = f"{upper.loc[upper['auc'].idxmax(), 'level']}: {label}"
        if enriched is not None and len(enriched):
            terms = enriched[
                (enriched["program"] == program) & (enriched["side"] == "positive") & (enriched["padj"] < 0.05)
            ]
            if len(terms):
                label = f"{terms.loc[terms['p'].idxmin(), 'term']}: {', '.join(genes[:3])}"
        names[program] = label
    table.insert(0, "label", pd.Series(names))
    table["technical"] = technical_flags(found, table["share"], limit=limit)
    for side in SIDES:
        joined = listed[listed["side"] == side].groupby("program")["gene"].agg(", ".join)
        table[f"top_{side}"] = joined.reindex(table.index).fillna("")
    table["best_association"] = pd.Series(best, dtype=object).reindex(table.index).fillna("")
    return table


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
    yield pd.DataFrame({"program": scores.columns, "level": "", "effect": r, "auc": np.nan, "p": p})


def _phrase(row: pd.Series) -> str:
    if row["kind"] == "categorical":
        return f"{row['variable']} = {row['level']} (AUC {row['auc']:.2f})"
    return f"{row['variable']} (r = {row['effect']:.2f})"
