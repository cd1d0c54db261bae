"""Matrix Market files and the tables of genes and cells beside them."""

from __future__ import annotations

import codecs
import io
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from ldvae.errors import InputError
from ldvae.features import SAY_WHICH, SYMBOL_COLUMNS, is_split_by_splicing, spread_of_sums, sum_of_splices
from ldvae.io.by_rows import READ_AT_ONCE, ByEntries, Entries
from ldvae.io.content import GZIP, refuse_no_counts
from ldvae.io.stored import Stored
from ldvae.io.text import headed, opened_bytes, read_names, typed

logger = logging.getLogger(__name__)

GENES_TABLES = ("features", "genes", "var", "var_names", "gene_names", "all_genes", "gene_metadata")
CELLS_TABLES = ("barcodes", "cells", "obs", "obs_names", "cell_names", "cell_metadata", "metadata")


def read_mtx(matrix: Path, transpose: bool | None) -> Stored:
    """A Matrix Market file with the tables of genes and cells beside it, as 10x, STARsolo, kallisto and others write.

    Parameters
    ----------
    matrix
        The .mtx file.
    transpose
        Whether its rows are genes; only a square matrix leaves it open.
    """
    from scipy.io import mminfo, mmread

    genes_file, cells_file, *symbols_file = tables = tables_of(matrix)
    for file in (matrix, *tables):
        refuse_no_counts(file)
    n_rows, n_columns, n_entries, layout, field, symmetry = mminfo(mtx_source(matrix))
    if field == "pattern":
        raise InputError(f"{matrix}: holds a pattern, that is, where counts are, not which. Start from the raw counts.")
    var, obs = read_names(genes_file), read_names(cells_file)
    fits = {
        in_rows: tuple(headed(table, n) for table, n in ((var, n_genes), (obs, n_cells)))
        for in_rows, (n_genes, n_cells) in {True: (n_rows, n_columns), False: (n_columns, n_rows)}.items()
    }
    fits = {in_rows: tables for in_rows, tables in fits.items() if tables[0] is not None and tables[1] is not None}
    if not fits:
        raise InputError(
            f"{matrix}: is {n_rows} by {n_columns}, but {genes_file.name} names {len(var)} genes and {cells_file.name} "
            f"{len(obs)} cells. One of the three files is cut short, or belongs to another sample."
        )
    square = n_rows == n_columns
    # As those that have genes in rows call their files; kallisto, alevin and Parse have cells in rows.
    usual = genes_file.name.startswith(("features", "genes.tsv")) or "matrix" in matrix.name.removeprefix(
        "count_matrix"
    )
    in_rows = next(iter(fits)) if not square else usual if transpose is None else transpose
    genes, cells = (table for table in fits[in_rows] if table is not None)
    genes = named_features(genes)
    if symbols_file and genes.shape[1] == 1:
        symbols = headed(read_names(symbols_file[0]), len(genes))
        if symbols is not None:
            genes = pd.DataFrame({"gene_ids": genes.index, "gene_name": symbols.iloc[:, 0].to_numpy()}, genes.index)
    splices = is_split_by_splicing(genes.index)
    names = genes.index

    def load() -> sparse.csr_matrix:
        x = sparse.csr_matrix(mmread(mtx_source(matrix)))
        x = x.T.tocsr() if in_rows else x
        if square and transpose is None and spread_of_sums(x)[0] < 0:
            raise InputError(
                f"{matrix}: has as many rows as columns ({n_rows}), and cannot tell which are genes: files called so "
                f"have {'genes' if in_rows else 'cells'} in rows, but sums of what would be the cells differ more "
                f"widely than sums of the genes. {SAY_WHICH}"
            )
        return sum_of_splices(names, x)[1] if splices else x

    if splices:
        logger.info("%s: spliced and ambiguous counts of each gene are added; unspliced ones are left out.", matrix)
        genes = genes.iloc[: len(genes) // 3]
    on_disk = {}
    plain = layout == "coordinate" and symmetry == "general" and field in ("integer", "unsigned-integer", "real")
    if plain and (not square or transpose is not None):  # otherwise all sums are needed
        dtype = np.dtype(np.float64 if field == "real" else np.int64)

        def pieces() -> Iterator[Entries]:
            found = entries_of_mtx(matrix, n_entries, dtype)
            for rows, columns, values in found if not in_rows else ((j, i, values) for i, j, values in found):
                if splices:
                    counted = columns // len(genes) != 1  # spliced and ambiguous ones
                    rows, columns, values = rows[counted], columns[counted] % len(genes), values[counted]
                yield rows, columns, values

        on_disk["X"] = ByEntries((len(cells), len(genes)), n_entries, dtype, pieces)
    return Stored(typed(cells.set_index(cells.columns[0])), genes, {"X": load}, can_turn=False, on_disk=on_disk)


def entries_of_mtx(matrix: Path, n_entries: int, dtype: np.dtype[Any]) -> Iterator[Entries]:
    """The entries of a Matrix Market file of coordinates as they stand: rows, columns (both from 0), values."""
    with opened_bytes(matrix) as file:
        for line in file:
            if line.strip() and not line.removeprefix(codecs.BOM_UTF8).startswith(b"%"):
                break  # the sizes
        n_read = 0
        if n_entries:
            lines = pd.read_csv(
                file,
                sep=r"\s+",
                header=None,
                names=["row", "column", "value"],
                dtype={"row": np.int64, "column": np.int64, "value": dtype},
                chunksize=READ_AT_ONCE,
                na_filter=False,
            )
            for piece in lines:
                n_read += len(piece)
                yield piece["row"].to_numpy() - 1, piece["column"].to_numpy() - 1, piece["value"].to_numpy()
    if n_read != n_entries:
        raise ValueError(f"it has {n_read} of the {n_entries} entries that its header announces")


def mtx_source(matrix: Path) -> Path | io.BytesIO:
    """A Matrix Market file for scipy, which unpacks by the name; in memory where the content is not what scipy expects.

    That is, where the content disagrees with the name, or begins with a byte order mark.
    """
    with matrix.open("rb") as file:
        packed = file.read(2) == GZIP
    with opened_bytes(matrix) as file:
        start = file.read(3)
        if packed == matrix.name.endswith(".gz") and start != codecs.BOM_UTF8:
            return matrix
        # An open file will not do: scipy's reader seeks from its end, and an error there ends the process.
        return io.BytesIO(start.removeprefix(codecs.BOM_UTF8) + file.read())


def tables_of(matrix: Path) -> list[Path]:
    """The tables of genes and cells of a Matrix Market file, and one of the genes' symbols where there is a third."""
    base = re.sub(r"(^|[._-])matrix$", "", re.sub(r"\.mtx(\.gz)?$", "", matrix.name))
    alevin = base == "quants_mat"
    genes = table_beside(matrix, base, ("cols",) if alevin else GENES_TABLES)
    cells = table_beside(matrix, base, ("rows",) if alevin else CELLS_TABLES)
    symbols = find_beside(matrix, base, ("genes.names",))  # of kallisto
    return [genes, cells, *([symbols] if symbols else [])]


def table_beside(matrix: Path, base: str, names: Sequence[str]) -> Path:
    """The table in the folder of `matrix` called by one of `names`, best with the same prefix as the matrix."""
    found = find_beside(matrix, base, names)
    if found is None:
        raise InputError(
            f"{matrix}: has no table of {'genes' if set(names) & {'genes', 'cols'} else 'cells'} beside it; expected "
            f"{' or '.join(f'{name}.tsv' for name in names[:2])} (also .csv, .txt, .gz) in {matrix.parent}."
        )
    return found


def find_beside(matrix: Path, base: str, names: Sequence[str]) -> Path | None:
    """As `table_beside`, or none."""
    words = re.split(r"(?<=[._-])", base)
    prefixes = ["".join(words[:n]) for n in range(len(words), -1, -1)]  # S1_count_, S1_, nothing
    others = sorted(other.name for other in matrix.parent.iterdir())
    for prefix in prefixes:
        start = rf"{re.escape(prefix.rstrip('._-'))}[._-]?" if prefix else ""
        for name in names:
            for other in others:
                if re.fullmatch(rf"{start}{re.escape(name)}\.(tsv|csv|txt)(\.gz)?", other):
                    return matrix.parent / other
    return None


def named_features(table: pd.DataFrame) -> pd.DataFrame:
    """Features by name, from a table with a header, or as 10x writes them: identifier, name, type."""
    if not isinstance(table.columns[0], str):  # no header
        if table.shape[1] == 2 and (table[1] == "Gene Expression").any():
            table = table.rename(columns={1: "feature_types"})
        usual = ["gene_ids", "name", "feature_types", *map(str, range(3, table.shape[1]))]
        table = table.rename(columns=dict(zip(range(table.shape[1]), usual, strict=False)))
        names = "name" if "name" in table else "gene_ids"
    else:
        table = table.rename(columns={"gene_id": "gene_ids"})
        symbols = {str(column).lower(): column for column in table.columns}
        names = next((symbols[name] for name in SYMBOL_COLUMNS if name in symbols), table.columns[0])
    if names != table.columns[0]:  # a gene without a symbol
        table[names] = table[names].where(table[names].str.strip() != "", table.iloc[:, 0])
    ids = table.columns[0] if names != table.columns[0] else None
    table = table.set_index(names, drop=ids is not None)
    return table.rename(columns={ids: "gene_ids"}) if ids is not None else table
