"""Tests of single genes on the counts themselves: rank sums with AUC, detection rates, fold changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from scipy import sparse, stats

from ldvae.methods import Sentence

SCALE = 1e4  # counts per ten thousand, as scanpy normalizes by default in its tutorials
FLOOR = 0.1  # added to both means, in counts per ten thousand, so that every fold change is finite
BLOCK = 1 << 22  # dense values ranked at a time: 32 MB


def rank_sum_test(
    counts: sparse.csr_matrix | sparse.csr_array,
    genes: Sequence[str],
    rows1: np.ndarray,
    rows2: np.ndarray,
) -> pd.DataFrame:
    """Compare each gene between two groups of cells by the Wilcoxon rank-sum test.

    Parameters
    ----------
    counts
        Raw counts of all measured genes, shape (n_obs, n_vars). Library sizes are their row sums.
    genes
        Gene names, length n_vars.
    rows1, rows2
        Row numbers of the cells of each group, none empty.

    Returns
    -------
    DataFrame
        Indexed by gene, in the order of `genes`. `auc`: probability that a cell of group 1 has more of the gene, as a
        share of its counts, than one of group 2, ties counted half. `wilcoxon_p`: two-sided, corrected for ties; 1 for
        genes without a count. `wilcoxon_padj`: false discovery rate (Benjamini and Hochberg). `log2fc`: log2 ratio of
        the mean counts per ten thousand, 0.1 added to both so that it is finite.
        `detected1`, `detected2`: shares of cells with at least one count.

    Notes
    -----
    Cells are the units of the test. Its p values rank the genes of this data set; they say nothing about how a gene
    varies between donors. Pseudobulks do.

    References
    ----------
    Wilcoxon, Biometrics Bulletin 1, 80 (1945); Mann and Whitney, Ann. Math. Stat. 18, 50 (1947).

    Examples
    --------
    >>> counts = sparse.csr_matrix([[5, 9], [6, 9], [7, 9], [0, 9], [0, 8], [1, 9]])
    >>> table = rank_sum_test(counts, ["CD8A", "ACTB"], np.arange(3), np.arange(3, 6))
    >>> float(table.loc["CD8A", "auc"]), round(float(table.loc["CD8A", "detected2"]), 2)
    (1.0, 0.33)
    """
    parts = [sparse.csr_array(counts[rows]).astype(np.float64) for rows in (rows1, rows2)]
    shares = []
    for part in parts:
        totals = np.maximum(np.asarray(part.sum(axis=1)).ravel(), 1)
        # float32: shares that are equal stay equal, though 3 / 300 and 1 / 100 differ in the last bit of float64
        shares.append(sparse.csc_array(sparse.diags_array(SCALE / totals) @ part).astype(np.float32))
    mean1, mean2 = (np.asarray(part.mean(axis=0, dtype=np.float64)).ravel() for part in shares)
    table = pd.DataFrame(
        {
            "auc": 0.5,
            "wilcoxon_p": 1.0,
            "wilcoxon_padj": 1.0,
            "log2fc": np.log2((mean1 + FLOOR) / (mean2 + FLOOR)),
            "detected1": np.diff(sparse.csc_array(parts[0]).indptr) / len(rows1),
            "detected2": np.diff(sparse.csc_array(parts[1]).indptr) / len(rows2),
        },
        index=pd.Index(genes, dtype=object),
    )
    expressed = np.flatnonzero(mean1 + mean2 > 0)
    if not len(expressed):
        return table
    step = max(1, BLOCK // (len(rows1) + len(rows2)))
    auc, p = [], []
    for start in range(0, len(expressed), step):
        block = expressed[start : start + step]
        # SciPy computes p in the type of the values: in float32 it would be zero below 1e-45.
        one, two = (part[:, block].toarray().astype(np.float64) for part in shares)
        test = stats.mannwhitneyu(one, two, axis=0, method="asymptotic", use_continuity=False)  # as scanpy
        auc.append(test.statistic / (len(rows1) * len(rows2)))
        p.append(test.pvalue)
    values = np.nan_to_num(np.concatenate(p), nan=1.0)  # all ties: no evidence
    table.iloc[expressed, table.columns.get_loc("auc")] = np.concatenate(auc)
    table.iloc[expressed, table.columns.get_loc("wilcoxon_p")] = values
    table.iloc[expressed, table.columns.get_loc("wilcoxon_padj")] = stats.false_discovery_control(values)
    return table


def telling(table: pd.DataFrame, n1: int, n2: int) -> pd.Series:
    """How well each gene tells two groups apart: the z of the rank-sum test times the absolute log2 fold change.

    By the AUC alone abundant genes that differ a little come before the markers of a type, and a gene that is seen in
    few cells, though in that type alone, far behind: its AUC cannot be high. z takes the ties at zero into account.

    Parameters
    ----------
    table
        From `rank_sum_test`.
    n1, n2
        Cells of each group.

    Returns
    -------
    Series
        Row by row, relative to the z of a gene without ties.

    Examples
    --------
    >>> counts = sparse.csr_matrix([[5, 9], [6, 9], [7, 9], [0, 9], [0, 8], [1, 9]])
    >>> telling(rank_sum_test(counts, ["CD8A", "ACTB"], np.arange(3), np.arange(3, 6)), 3, 3).idxmax()
    'CD8A'
    """
    zeros = (n1 * (1 - table["detected1"]) + n2 * (1 - table["detected2"])) / (n1 + n2)
    # All but the zeros are shares of a cell's total, hardly two of them alike.
    untied = np.sqrt(np.maximum(1 - zeros**3, 1e-12))
    return (table["auc"] - 0.5).abs() / untied * table["log2fc"].abs()


REFERENCES = {
    "mannwhitney": "Mann HB, Whitney DR. On a test of whether one of two random variables is stochastically larger "
    "than the other. Annals of Mathematical Statistics 18, 50–60 (1947).",
    "bh": "Benjamini Y, Hochberg Y. Controlling the false discovery rate: a practical and powerful approach to "
    "multiple testing. Journal of the Royal Statistical Society B 57, 289–300 (1995).",
}


def methods(fdr: float, min_auc: float) -> Iterator[Sentence]:
    """What the methods section says of the test, with its limits."""
    yield Sentence(
        "All measured genes were compared between groups of cells by the Wilcoxon rank-sum test of SciPy "
        "[@mannwhitney], on counts divided by the total of the cell. Genes were called with a p value below "
        f"{fdr:g}, adjusted by the method of Benjamini and Hochberg [@bh], and an AUC of at least {min_auc:g} or at "
        f"most {1 - min_auc:g}.",
        REFERENCES,
        ("scipy.stats",),
    )
