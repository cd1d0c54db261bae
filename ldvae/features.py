"""What the rows and columns of a matrix are: cells or genes, genes or other features, symbols or identifiers."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from ldvae.errors import InputError, suggestion
from ldvae.rows import spaced

logger = logging.getLogger(__name__)

# Identifiers of genes in the databases that count matrices come from.
IDENTIFIER = re.compile(
    r"(ENS[A-Z]{0,6}G\d{6,}(_[\w-]+)?|WBGene\d{8}|FBgn\d{7}|Y[A-P][LR]\d{3}[CW](-[A-Z])?|SP[ABC]+\d+[A-Z0-9]*\.\d+c?"
    r"|AT[1-5CM]G\d{5}|LOC_Os\d{2}g\d{5}|Os\d{2}g\d{7}|Zm\d{5}[a-z]{1,2}\d{6}|GRMZM\dG\d{6}|Solyc\d{2}g\d{6}"
    r"|Glyma\.?\d{2}G\d{5,6}|TraesCS\w+G\d{6}|HORVU\w+|Potri\.\w+|Medtr\w+|VIT_\w+|Soltu\.\w+|PGSC\w+|Nitab\w+"
    r"|Bra\d{6}|PF3D7_\d{7}|TGME49_\d+|PVX_\d+|Tb\d+\.\w+|DDB_G\d{7}|XB-GENE-\d+|ZDB-GENE-[\d-]+"
    r"|(MGI|RGD|HGNC|SGD):?S?\d+|LOC\d{5,}|AMEX\w+\d{6,}|Smp_\d{6}|HVUL\w+|Cre\d{2}\.g\d{6}|LG\w+\.g\d+)(\.\d+)*$",
    re.I,
)
# Symbols that hardly any data set lacks, as human, mouse, zebrafish, fly and worm spell them.
SYMBOL = re.compile(
    r"(MT[-.:](CO|ND|ATP|CYB|RNR|T[A-Z]|Nd|Cyt|lrRNA|srRNA)[\w-]*|M?RP[SL]P?\d+[AXLYa-z]?\d?|RP(SA|LP\d)|NDUF[ABCSV]\w+"
    r"|COX\d\w*|ATP[56]\w+|EIF\d\w*|EEF\d\w*|HSP[ABDEH9]\w+|SLC\d+A\d+\w?|ZNF\d+|ZFP\d+|TMEM\d+\w?|CCDC\d+\w?|KRT\d+"
    r"|COL\d+A\d+\w?|LINC\d{5}|MIR\d+\w*|CG\d{3,5}|CR\d{4,5}|Gm\d{3,5}|[\dA-Z]+Rik|HLA-[A-Z]\w*|H2-[A-Z]\w*|PSM[A-G]\d+\w?"
    r"|UBE2\w+|RAB\d+\w?|ARL\d+\w?|CDK\d+\w?|CXC[LR]\d+|CC[LR]\d+\w?|IL\d+\w*|TNF\w*|HIST\d\w+|H[1-4][-A-Z]\w+|SOX\d+"
    r"|(A[CLP]\d{6}|AB\d{6})\.\d+|C\d+orf\d+|FAM\d+\w+|KIAA\d{4}"
    r"|ACTB|B2M|GAPDH|MALAT1|TMSB4X|TMSB10|FTL1?|FTH1|TUBA1B|CD\d{1,3}[A-Z]?|PTPRC|LYZ\d?|NKG7|MS4A1|GNLY|ISG15|JUN|FOS"
    r"|[a-z]{3,4}-\d+(\.\d+)?|[YFTCKRBWMH]\w+\d+\.[a-z0-9]+"
    r"|(gene|g|feature|transcript)[_.-]?\d+)$",
    re.I,
)
BARCODE = re.compile(
    r"(^|[^A-Za-z])[ACGT]{8,}N*[ACGT]*([^A-Za-z]|$)"
    r"|^(cell|c|well|barcode|bc|spot|droplet|nucleus|cellid)s?[_.:-]?\d+([_.:-]|$)|[_.-]cell[_.-]?\d+$"
    r"|^\d{2}_\d{2}_\d{2}(__\w+)?$|^(SRR|ERR|DRR|GSM|SRX|SAM[NE]A?)\d{5,}|[_.-][A-P]\d{1,2}$"
    r"|^s_\d{3}um_\d+_\d+|^[0-9a-f]{8}-[0-9a-f]{4}-",
    re.I,
)
PEAK = re.compile(r"(chr)?(\d{1,2}|[XYMZW]|MT|(GL|KI)\d+\.\d|[234][LR])[:_-]\d{3,}-\d{3,}$", re.I)
ANTIBODY = re.compile(
    r"[_-]TotalSeq[_-]?[ABCD]?\d*$|^(ADT|HTO|AB|anti|prot|protein)[_-]|[_-](ADT|HTO|prot|protein)$|[.|_-]pAbO$"
    r"|^Hashtag[_ -]?\d+|[_ -]isotype([_ -]|$)",
    re.I,
)
SPIKE_IN = re.compile(r"ERCC-\d{5}$")
# Of htseq-count and STAR: reads that were not counted.
UNASSIGNED = re.compile(
    r"__(no_feature|ambiguous|too_low_aQual|not_aligned|alignment_not_unique)$"
    r"|N_(unmapped|multimapping|noFeature|ambiguous)$"
)

CELL_COLUMNS = {
    "barcode", "barcodes", "cell_type", "celltype", "cell_types", "cell_type_ontology_term_id", "donor", "donor_id",
    "sample", "sample_id", "batch", "condition", "orig.ident", "n_counts", "n_genes", "n_genes_by_counts",
    "total_counts", "pct_counts_mt", "percent_mito", "percent.mt", "ncount_rna", "nfeature_rna", "leiden",
    "louvain", "seurat_clusters", "doublet_score", "phase", "tissue", "cluster", "clusters", "bc_wells", "in_tissue",
}  # fmt: skip
GENE_COLUMNS = {
    "gene_id", "gene_ids", "gene_name", "gene_names", "gene_symbol", "gene_symbols", "symbol", "feature_name",
    "feature_types", "feature_type", "feature_biotype", "feature_reference", "genome", "highly_variable", "n_cells",
    "n_cells_by_counts", "dispersions", "dispersions_norm", "gene_short_name", "biotype", "gene_biotype",
    "chromosome", "ensembl_id", "variances_norm", "pct_dropout_by_counts", "mean_counts",
}  # fmt: skip
SYMBOL_COLUMNS = (
    "feature_name", "gene_symbols", "gene_symbol", "gene_names", "gene_name", "gene_short_name", "hgnc_symbol",
    "mgi_symbol", "symbol", "symbols", "symbolid", "genesymbol", "genename", "external_gene_name", "name",
)  # fmt: skip
TYPE_COLUMNS = ("feature_types", "feature_type", "modality", "feature_biotype")
GENE_TYPES = {"gene expression", "gene", "genes", "rna", "gex", "mrna", ""}
OTHER_TYPES = re.compile(
    r"antibody|capture|peak|crispr|guide|multiplex|hashtag|\badt\b|\bhto\b|^protein$|atac|accessib|custom|vdj|tag\b|spike"
    r"|chromatin|surface|abseq|sgrna|lipid|barcode",
    re.I,
)


SAY_WHICH = (
    "Say which it is: transpose: true for genes in rows, transpose: false for cells in rows (section qc; on the "
    "command line --transpose, --no-transpose)."
)


class Orientation(NamedTuple):
    """Whether rows are cells, and what speaks for it."""

    points: int  # above 0: rows are cells and columns genes; below 0: the reverse; 0: cannot be told
    sums: int  # the part of them that the sums gave
    evidence: list[str]


def orientation(obs: pd.DataFrame, var: pd.DataFrame, x: Any = None) -> Orientation:
    """Judge whether the rows of a matrix are cells and its columns genes, or the reverse.

    Parameters
    ----------
    obs, var
        What is known of the rows and of the columns, names in the index.
    x
        The matrix, shape (len(obs), len(var)), sparse or dense; without it, only names and annotation are judged.

    Returns
    -------
    Orientation
        Up to two points each from the names (identifiers and symbols of genes, barcodes), from the annotation (columns
        such as ``feature_types`` or ``donor``) and from the sums (see `spread_of_sums`).

    Examples
    --------
    >>> orientation(pd.DataFrame(index=["AAACATTGAGCTAC-1"]), pd.DataFrame(index=["MT-CO1"])).points
    2
    >>> orientation(pd.DataFrame(index=["FBgn0000001"]), pd.DataFrame(index=["s1"])).points
    -2
    """
    points, evidence = 0, []
    difference = gene_likeness(var.index) - gene_likeness(obs.index)
    if abs(difference) >= 0.02:
        points += 2 if difference > 0 else -2
        evidence.append(f"rows are called {shown(obs.index)}, columns {shown(var.index)}")
    elif numbered(obs.index) != numbered(var.index):
        points += 1 if numbered(obs.index) else -1
        evidence.append(f"rows are called {shown(obs.index)}, columns {shown(var.index)}")
    difference = (
        known(var, GENE_COLUMNS) + known(obs, CELL_COLUMNS) - known(obs, GENE_COLUMNS) - known(var, CELL_COLUMNS)
    )
    if difference:
        points += int(np.clip(difference, -2, 2))
        evidence.append(
            f"rows are annotated by {shown(obs.columns) or 'nothing'}, columns by {shown(var.columns) or 'nothing'}"
        )
    from_sums, reason = spread_of_sums(x)
    return Orientation(points + from_sums, from_sums, [*evidence, *([reason] if reason else [])])


def spread_of_sums(x: Any) -> tuple[int, str]:
    """What sums say of the orientation: totals of genes differ by more orders of magnitude than totals of cells.

    Parameters
    ----------
    x
        Counts, sparse or dense; none, or fewer than 20 rows or columns say nothing.

    Returns
    -------
    tuple
        Points from −2 to 2 (above 0: rows are cells), and the reason in words.
    """
    if x is None or min(x.shape) < 20:
        return 0, ""
    rows, columns = (np.asarray(abs(x).sum(axis=axis), dtype=float).ravel() for axis in (1, 0))
    spreads = [np.log(sums[np.isfinite(sums) & (sums > 0)]) for sums in (rows, columns)]
    if min(map(len, spreads)) < 20:
        return 0, ""
    difference = float(spreads[1].std() - spreads[0].std())
    if abs(difference) < 0.4:
        return 0, ""
    more, fewer = ("columns", "rows") if difference > 0 else ("rows", "columns")
    points = (2 if abs(difference) >= 0.8 else 1) * (1 if difference > 0 else -1)
    return points, f"sums of {more} differ more widely than sums of {fewer}, as totals of genes do"


def gene_likeness(names: Iterable[Any]) -> float:
    """How much names look like genes (positive) or like barcodes of cells (negative), from −1 to 1."""
    values = sample(names)
    genes = [bool(IDENTIFIER.match(name) or SYMBOL.match(name) or PEAK.match(name)) for name in values]
    cells = [bool(BARCODE.search(name)) for name in values]
    return float(np.mean(genes)) - float(np.mean(cells)) if values else 0.0


def numbered(names: Iterable[Any]) -> bool:
    """Whether names are numbers, or one word and a number (E1, E2, …), as people number cells, not genes."""
    values = sample(names)
    words = {re.sub(r"\d+$", "", name) for name in values}
    return len(values) > 1 and len(words) == 1 and all(name[-1:].isdigit() for name in values)


def sample(names: Iterable[Any], n: int = 5000) -> list[str]:
    """At most `n` of the names, evenly spread: enough to judge, and as quick for ten million cells."""
    index = pd.Index(names)
    return [str(name) for name in index[spaced(len(index), n)]]


def known(table: pd.DataFrame, names: set[str]) -> int:
    """How many columns of a table have one of the names."""
    return sum(str(column).lower() in names for column in table.columns)


def genes_in_rows(
    obs: pd.DataFrame,
    var: pd.DataFrame,
    x: Any,
    where: str,
    *,
    transpose: bool | None,
    prior: int,
    fixed: bool,
    can_turn: bool = True,
) -> bool:
    """Whether rows are genes, so that the matrix must be transposed.

    Parameters
    ----------
    obs, var, x
        Rows, columns and, unless only the header is read, the matrix.
    where
        The file, for messages.
    transpose
        What the user says; none: judge by the evidence.
    prior
        Points for rows that are cells (below 0: genes) from what else the file says, as the name of its first column.
    fixed
        The format says that rows are cells (h5ad, zarr, loom). Then it takes evidence to refuse it, and none suffices
        to swap them.
    can_turn
        Names come with their axes. Where they do not (one table is called genes, the other barcodes), what the user
        says has been heeded with the matrix, and contrary evidence means that the two tables are exchanged.

    Raises
    ------
    InputError
        If the evidence contradicts the format or does not suffice.
    """
    if transpose is not None:
        return transpose and can_turn
    found = orientation(obs, var, x)
    points = found.points + prior
    against = points <= -2 or (points < 0 and found.sums < 0)
    if points >= 2 or (fixed and not against):
        return False
    reasons = "; ".join(found.evidence) or f"rows are called {shown(obs.index)}, columns {shown(var.index)}"
    if not fixed and (points <= -2 or x is None):
        if x is not None:
            logger.info("%s: genes are in rows (%s).", where, reasons)
        return points < 0
    if not can_turn:
        raise InputError(
            f"{where}: genes and cells seem to be swapped: what is named as the cells looks like genes ({len(obs)} "
            f"cells, {len(var)} genes; {reasons}). If the file of the genes holds the barcodes, exchange the two "
            "files. If all is right, say so: transpose: false (section qc; on the command line --no-transpose)."
        )
    doubt = (
        "genes and cells seem to be swapped" if against and fixed else "cannot tell which are genes and which are cells"
    )
    raise InputError(
        f"{where}: {doubt} ({len(obs)} rows and {len(var)} columns; {reasons}). Expected cells in rows. {SAY_WHICH}"
    )


def wanted_features(var: pd.DataFrame, where: str, feature_types: Sequence[str] | None) -> np.ndarray:
    """A mask of the features that are genes, or of the types that are asked for; what is left out is logged.

    Parameters
    ----------
    var
        One row per feature. The type is in a column (`feature_types`, `feature_type`, `modality`, `feature_biotype`);
        without one, peaks (chr1:100-200), antibodies (CD3_TotalSeqB, ADT_CD3), spike-ins (ERCC-00002) and unassigned
        reads (__no_feature) are known by name.
    where
        The file, for messages.
    feature_types
        Types to keep, spelled as in the file; none: genes.
    """
    kinds = types_of_features(var)
    present = list(dict.fromkeys(kinds))
    if feature_types is not None:
        lower = {kind.lower(): kind for kind in present}
        absent = [kind for kind in feature_types if kind.lower() not in lower]
        if absent:
            raise InputError(
                f"{where}: has no features of type {absent[0]!r} (feature_types).{suggestion(absent[0], present)}"
            )
        keep = np.isin(kinds, [lower[kind.lower()] for kind in feature_types])
    else:
        # Where 10x's words are used, all else is something else; "gene" may stand beside ncRNA_gene and pseudogene.
        strict = any(kind.lower() == "gene expression" for kind in present)
        keep = np.isin(
            kinds,
            [k for k in present if (k.lower() in GENE_TYPES if strict else not OTHER_TYPES.search(k))],
        )
    if keep.all():
        return keep
    left = pd.Series(kinds[~keep]).value_counts()
    said = ", ".join(f"{n} of type {kind or 'gene'}" for kind, n in left.items())
    if not keep.any():
        raise InputError(
            f"{where}: holds no genes, only features {said}. ldvae models counts of genes; to model others, name their "
            f"type: feature_types: [{left.index[0]}] (section qc)."
        )
    logger.info("%s: %d features were left out: %s (feature_types chooses others).", where, (~keep).sum(), said)
    return keep


def types_of_features(var: pd.DataFrame) -> np.ndarray:
    """The type of each feature as text; "Gene Expression" for genes where only names tell."""
    for column in TYPE_COLUMNS:
        if column in var:
            kinds = var[column].astype(object).where(var[column].notna(), "").astype(str)
            present = set(kinds)
            if any(kind.lower() in GENE_TYPES or OTHER_TYPES.search(kind) for kind in present):
                return kinds.to_numpy(object)
            # Words such as protein_coding sort genes; they are no list of feature types.
    return np.array([type_by_name(str(name)) for name in var.index], dtype=object)


def type_by_name(name: str) -> str:
    """The type of a feature as its name tells it."""
    if PEAK.match(name):
        return "Peaks"
    if ANTIBODY.search(name):
        return "Antibody Capture"
    if UNASSIGNED.match(name):
        return "unassigned reads"
    return "Spike-in" if SPIKE_IN.match(name) else "Gene Expression"


def named_by_symbol(var: pd.DataFrame, where: str, column: str | None) -> pd.DataFrame:
    """A copy of var named by one of its columns; identifiers are replaced unasked by the symbols beside them.

    Parameters
    ----------
    var
        One row per gene. The names it had stay in a column `gene_ids`, unless there is one.
    where
        The file, for messages.
    column
        Column of the names; ``index``: the names as they are; none: a known column of symbols where the names are
        identifiers.
    """
    if column == "index" or (column == "gene_ids" and column not in var):
        return var
    if column is not None and column not in var:
        raise InputError(
            f"{where}: has no var column {column!r} for the gene names (gene_names)."
            f"{suggestion(column, [*var.columns, 'index'])}"
        )
    if column is None:
        column = symbols_beside(var)
        if column is None:
            return var
        logger.info(
            "%s: genes are called by var column %r, not by identifiers such as %s (gene_names: index keeps these).",
            where, column, var.index[0],
        )  # fmt: skip
    names = var[column].astype(object)
    missing = names.isna() | names.astype(str).str.strip().isin(["", "nan", "None", "<NA>"])
    if missing.any():
        logger.info("%s: %d genes without a %s keep the name they had.", where, missing.sum(), column)
    kept = var.index.astype(str)
    named = var if "gene_ids" in var else var.assign(gene_ids=kept)
    return named.set_axis(pd.Index(np.where(missing, kept, names.astype(str)), dtype=object))


def symbols_beside(var: pd.DataFrame) -> str | None:
    """The column of symbols of genes that are called by identifiers; none where they are not, or have none."""
    if share_of_identifiers(var.index) < 0.8:
        return None
    columns = {str(name).lower(): name for name in var.columns}
    for name in SYMBOL_COLUMNS:
        if name in columns and share_of_identifiers(var[columns[name]].dropna()) < 0.5:
            return str(columns[name])
    return None


def share_of_identifiers(names: Iterable[Any]) -> float:
    """Share of names that are identifiers of a database of genes."""
    values = sample(names)
    return float(np.mean([bool(IDENTIFIER.match(name)) for name in values])) if values else 1.0


def shown(names: Iterable[Any], n: int = 3) -> str:
    """The first few names."""
    return ", ".join(str(name) for name in islice(names, n))


def sum_of_splices(names: Sequence[str], x: sparse.csr_matrix) -> tuple[list[str], sparse.csr_matrix]:
    """Counts of genes from alevin-fry's spliced, unspliced (-U) and ambiguous (-A) ones: spliced and ambiguous.

    Parameters
    ----------
    names
        The genes, then all of them with -U, then all with -A.
    x
        Counts, shape (n_obs, 3 n_vars).

    References
    ----------
    He et al., Nat. Methods 19, 316 (2022), whose `loadFry(outputFormat="scRNA")` adds the same two.
    """
    n = len(names) // 3
    return list(names[:n]), (x[:, :n] + x[:, 2 * n :]).tocsr()


def is_split_by_splicing(names: Sequence[str]) -> bool:
    """Whether features are genes thrice: spliced, unspliced (-U) and ambiguous (-A)."""
    n, rest = divmod(len(names), 3)
    spliced = list(names[:n])
    return (
        n > 0
        and not rest
        and list(names[n : 2 * n]) == [f"{name}-U" for name in spliced]
        and list(names[2 * n :]) == [f"{name}-A" for name in spliced]
    )
