"""Gene sets: over-representation among the members of a program, and ranks of all measured genes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import scipy  # imports scipy.stats when it is first used: a second and 45 MB that a training need not have

from ldvae.errors import InputError, listed
from ldvae.methods import Sentence

from .consensus import TINY
from .find import Programs, gene_sets


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
    if not any(library.values()):
        raise InputError(f"{name}: names no gene.")
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
    >>> from ldvae.programs.enrichment import ranked_enrichment
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
