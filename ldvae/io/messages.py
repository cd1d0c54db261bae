"""What is said about files: failures of readers as errors in words, lists of names, collected warnings."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from ldvae.errors import InputError, first_line

NAMES_SHOWN = 20


@contextmanager
def reading(path: str | Path, kind: str) -> Iterator[None]:
    """Turn whatever a reader stumbles over into an InputError, and silence what it warns of."""
    try:
        with warnings.catch_warnings():  # old formats and repeated names; what matters of it is said elsewhere
            warnings.simplefilter("ignore")
            yield
    except (InputError, MemoryError):
        raise
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: cannot be read as {kind}: is not text in UTF-8 (byte {error.object[error.start]:#04x} at "
            f"{error.start}). If it is a text file, save it as UTF-8 (iconv -f LATIN1 -t UTF-8); if it is a sheet of "
            "Excel or an archive, save it as csv or unpack it."
        ) from error
    except Exception as error:  # it lies in the file; the chained error keeps the details
        raise InputError(
            f"{path}: cannot be read as {kind}: {first_line(error).rstrip('.')}. The file may be damaged or "
            "cut short (copy it again), or of another format than its name says."
        ) from error


def first_names(names: Sequence[str] | pd.Index, n: int = NAMES_SHOWN) -> str:
    """The first `n` names, and how many more there are."""
    more = len(names) - n
    return ", ".join(map(str, names[:n])) + (f" and {more} more" if more > 0 else "")


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect what the modules of `ldvae` log as warnings inside the block, for the summary of a step."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Collector(level=logging.WARNING)
    logging.getLogger("ldvae").addHandler(handler)
    try:
        yield messages
    finally:
        logging.getLogger("ldvae").removeHandler(handler)
