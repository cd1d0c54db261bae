"""What a file is by its first bytes, whatever its name says."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

from ldvae.errors import InputError

GZIP = b"\x1f\x8b"
HDF5 = b"\x89HDF\r\n\x1a\n"
# Beginnings of files that are no counts, in words, each with what to do.
NO_COUNTS = {
    rb"\s*<(!doctype|html|\?xml|head)": "is a web page, such as a server sends for an address that is gone or needs a "
    "login. Open it in a browser to see what it says, and download the file again",
    rb"version https://git-lfs": "is a pointer of Git LFS in place of the file. Get the file with `git lfs pull`",
    rb"PK\x03\x04": "is a zip archive, or a sheet of Excel. Unpack it, or save the sheet as csv",
    rb"\xd0\xcf\x11\xe0": "is a sheet of Excel. Save it as csv",
    rb"PAR1|ARROW1": "is a table of Parquet or Arrow. Write it as csv, or as h5ad",
    rb"BZh\d|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf": "is packed; only gzip is read as it is. Unpack it",
    rb"RDX\d\n|RDA\d\n|X\n\x00\x00\x00": "is a file of R. Convert it to h5ad first (zellkonverter)",
    rb"(?s).{257}ustar": "is a tar archive. Unpack it",
    rb"\x80[\x02-\x05]": "is a pickle of Python, which can run any code when it is read. Write the data as h5ad",
    rb"\x93NUMPY": "is an array of NumPy, without names of cells and genes. Write the data as h5ad, with the names",
}


def first_bytes(path: Path) -> tuple[bytes, bool]:
    """The first bytes of a file, unpacked if it is gzipped, and whether it is."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start.startswith(GZIP):
        return start, False
    try:
        with gzip.open(path) as unpacked:
            return unpacked.read(512), True
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path}: is gzipped, but cut short or damaged ({error}). Copy or download it again."
        ) from error


def refuse_no_counts(path: Path) -> None:
    """Raise an InputError for a file that is empty, or of which the first bytes tell that no reader takes it."""
    start, packed = first_bytes(path)
    if not start:
        raise InputError(f"{path}: is empty{' once it is unpacked' * packed}. Copy or download it again.")
    for pattern, said in NO_COUNTS.items():
        if re.match(pattern, start, re.I if pattern.startswith(rb"\s") else 0):
            raise InputError(f"{path}: {said}.")
