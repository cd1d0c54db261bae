"""What steps write: tables and JSON, under a temporary name until they are complete."""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

LEFT_AFTER_S = 24 * 3600  # without a change; no writer rests so long


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, for a file or a folder, and give it that name when the block succeeds.

    A killed process leaves nothing that looks finished, and of two that write the same path the last one wins. What one
    left that was killed more than a day ago is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".????????-{glob.escape(path.name)}"):
        with suppress(FileNotFoundError):  # its writer has just finished
            if left.stat().st_mtime < time.time() - LEFT_AFTER_S:
                remove(left)
    # The name ends as the final one does: many writers choose the format by the suffix.
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():  # a folder cannot be renamed onto another
            old = path.with_name(f".{uuid.uuid4().hex[:8]}-old-{path.name}")
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that it holds, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text(text: str, path: Path) -> None:
    """Write a text as it stands."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_svgs(documents: Mapping[str, str], folder: Path) -> None:
    """Write figures into a folder that holds nothing else, each under its name."""
    with atomic(folder) as temporary:
        temporary.mkdir()
        for name, document in documents.items():
            (temporary / f"{name}.svg").write_text(document, encoding="utf-8")


def write_table(table: pd.DataFrame, path: Path, *, index: str | None = None) -> None:
    """Write a tab-separated table, gzipped if the name ends in .gz; the same table gives the same bytes.

    Parameters
    ----------
    table
        Without a meaningful index, unless `index` names it.
    path
        File to write.
    index
        Write the index as first column, under this name.
    """
    text = table.to_csv(sep="\t", index=index is not None, index_label=index, float_format="%.7g").encode()
    with atomic(path) as temporary:
        # Neither time nor name of the temporary file in the header of the gzip file.
        temporary.write_bytes(gzip.compress(text, compresslevel=6, mtime=0) if path.suffix == ".gz" else text)


def read_table(path: Path, *, index: str | None = None, text: Sequence[str] = ()) -> pd.DataFrame:
    """Read a table of `write_table`; a gene called NA stays text, only empty fields are missing.

    Parameters
    ----------
    path
        File to read.
    index
        Column of names to make the index.
    text
        Columns to keep as text, in which an empty field is an empty text; those that the table lacks are ignored.
    """
    header = pd.read_csv(path, sep="\t", nrows=0).columns
    kinds = {name: str for name in (*text, index) if name in header}
    missing = {name: [""] for name in header if name not in kinds}
    table = pd.read_csv(path, sep="\t", keep_default_na=False, na_values=missing, dtype=kinds)
    return table if index is None else table.set_index(index)


def write_json(value: Any, path: Path) -> None:
    """Write plain values, numpy's and paths included, as JSON; what is not finite becomes null."""
    write_text(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)


def plain(value: Any) -> Any:
    """A value as JSON can hold it.

    Examples
    --------
    >>> plain({"a": np.float32(0.5), "b": [np.nan, Path("x")], 3: np.arange(2)})
    {'a': 0.5, 'b': [None, 'x'], '3': [0, 1]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
