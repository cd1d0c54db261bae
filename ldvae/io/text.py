"""Text files, whatever their packing and encoding: tables of counts and of cells, lists of genes, gene sets."""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import re
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, cast

import numpy as np
import pandas as pd
from scipy import sparse

from ldvae.errors import InputError, counted
from ldvae.features import SYMBOL_COLUMNS, gene_likeness
from ldvae.io.content import first_bytes, refuse_no_counts
from ldvae.io.messages import reading
from ldvae.io.stored import Stored

logger = logging.getLogger(__name__)

# Two fields with a space between, quoted as R does, or an identifier and a name.
SPACED = re.compile(r'"[^"]*" "[^"]*"|(\d+|ENS\w*G\d+(\.\d+)?) \S+')
# Columns that tables with genes in rows have before their counts, such as those of featureCounts.
COLUMNS_OF_GENES = {
    *SYMBOL_COLUMNS, "gene", "gene_id", "geneid", "gene_ids", "ensembl", "ensembl_id", "ensembl_gene_id", "entrezid",
    "entrez_id", "description", "biotype", "gene_biotype", "gene_type", "feature_type", "feature_types", "chr",
    "chrom", "chromosome", "seqnames", "start", "end", "strand", "length", "width", "locus",
}  # fmt: skip


MISSING = ("", "NA", "N/A", "NaN", "nan", "<NA>")  # in tables of cells; None and null may be names of groups


def opened_bytes(path: Path) -> BinaryIO:
    """A file opened to be read, unpacked where its content is gzipped, whatever its name says."""
    _, packed = first_bytes(path)
    return cast(BinaryIO, gzip.open(path)) if packed else path.open("rb")


def opened_text(path: Path) -> IO[str]:
    """A text file opened to be read, unpacked where it is gzipped, without a byte order mark."""
    with opened_bytes(path) as file:
        wide = file.read(2) in (b"\xff\xfe", b"\xfe\xff")  # as Excel saves "Unicode text"
    return io.TextIOWrapper(opened_bytes(path), encoding="utf-16" if wide else "utf-8-sig", newline="")


def separator(path: Path) -> str:
    """The separator of a text table, from its first line."""
    if re.search(r"\.tsv(\.gz)?$", path.name):
        return "\t"
    with opened_text(path) as file:
        first = file.readline()
    return next((mark for mark in "\t,;" if mark in first), "," if path.name.endswith((".csv", ".csv.gz")) else "\t")


def read_names(path: Path) -> pd.DataFrame:
    """All fields of a small table as text, without taking any line for a header."""
    sep = separator(path)
    with opened_text(path) as file:
        first = list(islice(file, 2))
    if sep == "\t" and len(first) > 1 and "\t" not in first[1] and SPACED.fullmatch(first[1].strip("\r\n")):
        sep = " "
    quoted = all(line.startswith('"') and line.rstrip().endswith('"') for line in first)
    # 10x quotes nothing, and some names hold a quote; R quotes all.
    quoting = csv.QUOTE_MINIMAL if sep in ",; " or quoted else csv.QUOTE_NONE
    n_first, n_fields = (len(next(csv.reader([line], delimiter=sep), [])) for line in (first * 2)[:2])
    with opened_text(path) as file:
        table = pd.read_csv(
            file,
            sep=sep,
            header=None,
            names=range(max(n_first, n_fields)),
            index_col=False,
            dtype=str,
            keep_default_na=False,
            quoting=quoting,
        )
    if n_fields == n_first + 1:  # R leaves out the name of the first column
        table.iloc[0] = ["", *table.iloc[0, :-1]]
    return table


def headed(table: pd.DataFrame, n: int) -> pd.DataFrame | None:
    """A table of `n` rows, or of a header and `n` rows, which names the columns then; None if it has another length.

    A first column of running numbers, as R and pandas write it before the names, is left out.
    """
    if len(table) == n + 1:
        table = table[1:].reset_index(drop=True).set_axis(table.iloc[0].to_list(), axis=1)
    elif len(table) != n:
        return None
    if table.shape[1] < 2:
        return table
    numbers, names = table.iloc[:, 0], table.iloc[:, 1]
    running = numbers.iloc[0] in ("0", "1") and any(
        numbers.tolist() == list(map(str, range(start, start + n))) for start in (0, 1)
    )
    if running and names.nunique() > 0.8 * n and not names.str.fullmatch(r"[\d.]*").any():
        return table.iloc[:, 1:]
    return table


class Table(NamedTuple):
    """How a text table is laid out."""

    sep: str
    skipped: int  # lines of comments before the header
    header: list[str]  # names of the columns, the first one included
    corner: str  # name of the first column; empty if it has none
    width: int  # fields in a line; one more than the header where lines end with a separator
    n_annotations: int = 0  # columns after the first that describe its names: a second name, where the gene lies


def layout(path: Path) -> Table:
    """How a text table with names in its first row and column is laid out.

    R leaves out the name of the first column; some tools begin with lines of comments, or end each line by a separator.
    """
    with opened_text(path) as file:
        lines = list(islice(file, 200))

    def fields(line: str, mark: str) -> list[str]:
        return next(csv.reader([line.rstrip("\r\n")], delimiter=mark, skipinitialspace=mark == " "), [])

    def is_comment(i: int) -> bool:
        if lines[i].startswith("##") or not lines[i].strip(" #,;\t\r\n"):
            return True
        # A header may start with a #, too, but has as many fields as the lines below it.
        return lines[i].startswith("#") and i + 1 < len(lines) and not any(fitting(i))

    def fitting(i: int) -> dict[str, tuple[int, int]]:
        first, second = ([*lines[i : i + 2], "", ""])[:2]
        sizes = {mark: (len(fields(first, mark)), len(fields(second, mark))) for mark in "\t,; "}
        return {mark: (n, m) for mark, (n, m) in sizes.items() if m > 1 and m - n in (0, 1)}

    skipped = next((i for i in range(len(lines)) if not is_comment(i)), 0)
    first, second = ([*lines[skipped : skipped + 2], "", ""])[:2]
    sizes = fitting(skipped)
    sep = max(sizes or "\t,; ", key=lambda mark: (len(fields(first, mark)), len(fields(second, mark))))
    header, n_fields = fields(first, sep), len(fields(second, sep))
    if n_fields > len(header) + 1:
        raise InputError(
            f"{path}: its first row has {len(header)} fields, the line below {n_fields}. Expected as many names in the "
            "first row as there are columns (or one less, as R writes them)."
        )
    if sep in sizes and n_fields > len(header):
        header = ["", *header]
    width = len(header)
    if sep != " " and all(line.rstrip("\r\n").endswith(sep) for line in lines[skipped:]) and width > 2:
        header = header[:-1]
    described = [name.strip().lower() in COLUMNS_OF_GENES for name in header[1:-1]]
    return Table(sep, skipped, header, header[0] if header else "", width, [*described, False].index(False))


def rows_of(path: Path, table: Table, **options: Any) -> Iterator[pd.DataFrame]:
    """The lines of a text table below its header, in blocks; without options of pandas, text as it stands.

    A line that is too long is an error of pandas, unless columns are chosen (`usecols`): it must see them all.
    """
    options = {"dtype": str, "keep_default_na": False} | options
    with opened_text(path) as file:
        for block in pd.read_csv(
            file,
            sep=table.sep,
            header=None,
            names=range(table.width),
            index_col=False,
            skiprows=table.skipped + 1,
            skipinitialspace=table.sep == " ",
            chunksize=1000,
            **options,
        ):
            yield block.iloc[:, : len(table.header)]


def first_field(line: str, sep: str) -> str:
    """The first field of a line of a table, without quotes."""
    if line.startswith('"'):
        return next(csv.reader([line], delimiter=sep))[0]
    return line.split(sep, 1)[0].rstrip("\r\n")


def read_table_of_counts(path: Path) -> Stored:
    """A csv or tsv of counts with names in the first row and column; genes in columns or, as often, in rows."""
    table = layout(path)
    columns = table.header[1 + table.n_annotations :]
    if not columns:
        raise InputError(
            f"{path}: cannot be read as a table of counts: expected names in the first row and in the first column, "
            "and fields separated by tabs, commas, semicolons or spaces."
        )
    if len(set(columns)) < len(columns) and all(re.fullmatch(r"[\d.]+", name) for name in columns):
        raise InputError(f"{path}: the first row holds numbers; expected the names of the genes (or cells) there.")
    if table.n_annotations:
        blocks = [block.iloc[:, : 1 + table.n_annotations] for block in rows_of(path, table)]
        described = pd.concat([pd.DataFrame(columns=blocks[0].columns), *blocks]).set_index(0)
        described.columns = pd.Index([name.strip() for name in table.header[1 : 1 + table.n_annotations]])
        obs = typed(described)
    else:
        with opened_text(path) as file:
            for _ in range(table.skipped + 1):
                file.readline()
            rows = [first_field(line, table.sep) for line in file if line.strip()]
        obs = pd.DataFrame(index=pd.Index(rows, dtype=object))
    refuse_if_nameless(path, table.corner, list(obs.index), columns)
    prior = 2 * int(bool(re.match(r"cell|barcode|bc_|cb$|index$", table.corner, re.I)))
    prior -= 2 * int(bool(re.match(r"gene|symbol|feature|ensembl|ensg|transcript|hgnc|locus", table.corner, re.I)))
    prior -= 2 * bool(table.n_annotations)
    var = pd.DataFrame(index=pd.Index(columns, dtype=object))
    return Stored(obs, var, {"X": partial(load_table, path, table)}, prior=prior, fixed=False)


def refuse_if_nameless(path: Path, corner: str, rows: list[str], columns: list[str]) -> None:
    """Raise an InputError where a table lacks the names of its rows, so that its first column holds counts.

    Parameters
    ----------
    path
        The table, for the message.
    corner
        What stands above its first column.
    rows, columns
        Names as they are read.
    """
    numbers = all(re.fullmatch(r"\d+(\.0*)?", name) for name in rows[:1000])
    words = r"(cell|gene|barcode|well|spot|sample|feature|entrez|index)s?([ _.-]?(id|index|name|label|number)s?)?|.*id"
    if not (corner and rows and numbers) or re.fullmatch(words, corner.strip(), re.I):
        return
    genes, cells = gene_likeness([corner]), gene_likeness(columns)
    if len(set(rows)) < len(rows) or genes * cells > 0.2:
        raise InputError(
            f"{path}: lacks the names of its rows: the first column, called {corner!r}, holds numbers "
            f"({', '.join(rows[:3])}). Expected names of cells or genes there (pandas: to_csv(index=True)); if they "
            "are numbers, call the column cell."
        )


def decimal_of(path: Path, table: Table) -> str:
    """The mark before decimals: a comma where the first line of numbers has commas and its separator is another."""
    with opened_text(path) as file:
        line = next(islice(file, table.skipped + 1, None), "")
    fields = next(csv.reader([line.strip()], delimiter=table.sep), [])[1 + table.n_annotations :]
    numbers = [field for field in fields if re.fullmatch(r"\d+,\d+", field)]
    return "," if numbers and table.sep != "," and not any("." in field for field in fields) else "."


def load_table(path: Path, table: Table) -> sparse.csr_matrix:
    """The counts of a table as CSR, in its orientation."""
    blocks = []
    described = dict.fromkeys(range(table.n_annotations + 1), str)
    decimal = decimal_of(path, table)
    for block in rows_of(path, table, dtype=None, keep_default_na=True, converters=described, decimal=decimal):
        values = block.iloc[:, 1 + table.n_annotations :]
        text = values.columns[[kind.kind not in "iuf" for kind in values.dtypes]]
        if len(text):
            found = values[text[0]].dropna().astype(str)
            odd = found[pd.to_numeric(found, errors="coerce").isna()]
            example = odd.iloc[0] if len(odd) else found.iloc[0]
            raise InputError(
                f"{path}: column {table.header[text[0]]!r} holds text (e.g. {example!r}) where counts are expected. "
                + (
                    "Write numbers without marks between their digits."
                    if re.fullmatch(r"\d+([,.' ]\d+)+", example)
                    else "Keep annotations of cells in a table of their own (obs_table)."
                )
            )
        missing = values.isna().to_numpy()
        if missing.any():
            row, column = (int(at[0]) for at in np.nonzero(missing))
            raise InputError(
                f"{path}: the count of {block.iloc[row, 0]!r} in column {table.header[values.columns[column]]!r} is "
                "missing: the field is empty or NA, or its line is cut short. Fill it in (0 if nothing was counted), "
                "or leave out its row."
            )
        blocks.append(sparse.csr_matrix(values.to_numpy(np.float64)))
    if not blocks:
        raise InputError(f"{path}: holds a first row of names, but no counts below it.")
    return sparse.vstack(blocks, format="csr")


def read_annotation(path: Path) -> pd.DataFrame:
    """A table of cells: names in the first column and text as it stands; columns of numbers are numbers.

    Text is whatever does not look like a number, and numbers with zeros before them (donor 007).
    """
    refuse_no_counts(path)
    table = layout(path)
    values = pd.concat([pd.DataFrame(), *rows_of(path, table)])
    if values.empty:
        raise InputError(f"{path}: holds no cells below its first row.")
    values = values.set_index(0)
    values.columns = pd.Index([name.strip() for name in table.header[1:]])
    if table.sep == ";":  # where decimals may have commas
        for name in [name for name in values if is_decimal(values[name]).all()]:
            values[name] = values[name].str.replace(",", ".")
    return typed(values)


def is_decimal(column: pd.Series) -> pd.Series:
    """Which texts are numbers, with or without a decimal comma, or missing."""
    return column.isin(MISSING) | column.str.fullmatch(r"[+-]?\d+(,\d+)?")


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """Columns of text as numbers or booleans where all their values are such; empty and NA are missing.

    Examples
    --------
    >>> typed(pd.DataFrame({"age": ["20", "NA"], "donor": ["007", "12"], "dead": ["TRUE", "FALSE"]})).dtypes.to_dict()
    {'age': dtype('float64'), 'donor': dtype('O'), 'dead': dtype('bool')}
    """
    columns = []
    for position in range(table.shape[1]):
        column = table.iloc[:, position].astype(object)
        column = column.where(~column.isin(MISSING), np.nan)
        present = column.dropna().astype(str)
        if len(present) and not present.str.match(r"[+-]?0\d").any():
            numbers = pd.to_numeric(present, errors="coerce")
            if numbers.notna().all():
                column = pd.to_numeric(column)
            elif present.str.lower().isin(["true", "false"]).all() and len(present) == len(column):
                column = present.str.lower() == "true"
        columns.append(column)
    return pd.concat(columns, axis=1) if columns else table


def read_lines(path: Path) -> list[str]:
    """The lines of a small text file that are not blank; gzipped or not, with or without a byte order mark."""
    with reading(path, "text"):
        if first_bytes(path)[0]:
            refuse_no_counts(path)
        with opened_text(path) as file:
            return [line for line in file.read().splitlines() if line.strip()]


def unquoted(text: str) -> str:
    """A text without spaces and quotes around it.

    Examples
    --------
    >>> unquoted(' "CD3E" '), unquoted("5'")
    ('CD3E', "5'")
    """
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def read_gene_list(path: Path) -> list[str]:
    """The gene names of a file, one per line, each once."""
    return list(dict.fromkeys(unquoted(line) for line in read_lines(path)))


def read_gmt(path: Path) -> dict[str, list[str]]:
    """Gene sets by term, each gene once.

    Parameters
    ----------
    path
        GMT: a line holds the term, a description and the genes, separated by tabs; weights, as those of Enrichr
        (``CD3E,1.0``), and lines that begin with # are left out. Or JSON, as MSigDB has it.
    """
    lines = [line for line in read_lines(path) if not line.startswith("#")]
    if lines and lines[0].lstrip().startswith("{"):
        return sets_of_json(path, "\n".join(lines))
    rows = [[unquoted(field) for field in line.split("\t")] for line in lines]
    sets: dict[str, list[str]] = {}
    repeated: list[str] = []
    empty: list[str] = []
    for number, row in enumerate(rows, 1):
        if len(row) < 2 or max(map(len, rows)) < 3:
            raise InputError(
                f"{path}: line {number} has {len(row)} field{'s' * (len(row) > 1)}; expected a term, a description and "
                "at least one gene, separated by tabs. Give a GMT file."
            )
        genes = [re.sub(r",[+-]?[\d.]+(e[+-]?\d+)?$", "", gene, flags=re.I) for gene in row[2:]]
        (repeated if row[0] in sets else empty if not any(genes) else []).append(row[0])
        sets[row[0]] = list(dict.fromkeys([*sets.get(row[0], []), *filter(None, genes)]))
    if empty:
        logger.warning("%s: %s without a gene, such as %r.", path, counted(len(empty), "set"), empty[0])
    if repeated:
        message = "%s: %s in more than one line, such as %r; the genes of these lines are taken together."
        logger.warning(message, path, counted(len(repeated), "term"), repeated[0])
    return sets


def sets_of_json(path: Path, text: str) -> dict[str, list[str]]:
    """Gene sets of JSON: lists of genes by term, or what MSigDB writes, which has them as geneSymbols."""
    try:
        found = json.loads(text)
        sets = {term: entry["geneSymbols"] if isinstance(entry, dict) else entry for term, entry in found.items()}
        if not all(isinstance(genes, list) for genes in sets.values()):
            raise TypeError
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: is JSON, but of no gene sets; expected lists of genes by term, or `geneSymbols` of each term as "
            "MSigDB writes them. Or give a GMT file."
        ) from error
    return {term: list(dict.fromkeys(map(str, genes))) for term, genes in sets.items()}
