"""The files of a dataset's inputs, for the engines: those that a step reads besides the path that the config names."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from ldvae.errors import InputError


def input_files(path: str, genome: str | None = None) -> list[str]:
    """All files of an input: itself, a matrix with its tables, or those in a folder.

    Parameters
    ----------
    path
        As the config names it. The embedded demo has no file; a URL is itself; what is not there yet stands for itself.
    genome
        As for `ldvae.io.read_input`.
    """
    if path.startswith("demo:"):
        return []
    if "://" in path or not Path(path).exists():
        return [path]
    try:
        from ldvae.io import files_of

        return [str(file) for file in files_of(path, genome)]
    except InputError:
        return [path]  # the check of the config tells it
    except ModuleNotFoundError:  # Snakemake, in an environment of its own
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        if folder != Path(path) and not path.endswith((".mtx", ".mtx.gz")):
            return [path]
        return [str(file) for file in sorted(folder.rglob("*")) if file.is_file()]


def staged_input(path: str, genome: str | None = None) -> dict[str, Any]:
    """What an engine that hands over files by name needs to know of an input.

    Returns
    -------
    dict
        name: of the input, in whatever folder; files: paths by their names in that folder; contents: a hash of names,
        sizes and times of the files in a folder that is handed over whole, else empty.

    Examples
    --------
    >>> staged_input("https://example.org/counts.h5ad")
    {'name': 'counts.h5ad', 'files': {'counts.h5ad': 'https://example.org/counts.h5ad'}, 'contents': ''}
    """
    files, name = input_files(path, genome), os.path.basename(path.rstrip("/"))
    if not Path(path).is_dir():
        return {"name": name, "files": {os.path.basename(file): file for file in files}, "contents": ""}
    inside = {os.path.join(name, os.path.relpath(file, path)): file for file in files}
    if any(file.endswith((".mtx", ".mtx.gz")) for file in files):
        return {"name": name, "files": inside, "contents": ""}
    # A zarr store: too many files to hand them over one by one.
    stamps = [(within, os.stat(file).st_size, os.stat(file).st_mtime_ns) for within, file in inside.items()]
    digest = hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]
    return {"name": name, "files": {name: path}, "contents": digest}
