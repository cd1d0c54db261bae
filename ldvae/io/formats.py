"""Which format an input is of, which reader reads it, and which files that reader reads."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

from ldvae.errors import InputError, suggestion
from ldvae.io.content import HDF5, first_bytes, refuse_no_counts
from ldvae.io.hdf5 import read_anndata, read_hdf5
from ldvae.io.messages import first_names, reading
from ldvae.io.mtx import read_mtx, tables_of
from ldvae.io.stored import Stored, in_memory
from ldvae.io.text import read_table_of_counts
from ldvae.io.write import sha256

logger = logging.getLogger(__name__)

FORMATS = (
    "h5ad, h5mu, zarr, loom, 10x h5 (.h5), a folder with matrix.mtx, an .mtx with its tables beside it, csv or tsv "
    "(.gz), or demo:pbmc68k"
)


READABLE = r"\.(h5ad|h5mu|loom|h5|zarr|((csv|tsv|txt)(\.gz)?))$"


def opened_input(path: str | Path, genome: str | None, transpose: bool | None) -> tuple[str, Stored]:
    """The name of the format of a file or folder, and what it holds."""
    kind, reader = find_reader(str(path), genome, transpose)
    with reading(path, kind):
        return kind, reader()


def find_reader(path: str, genome: str | None, transpose: bool | None) -> tuple[str, Callable[[], Stored]]:
    """The name of the format of `path`, and a function that reads it."""
    if path.startswith("demo:"):
        from ldvae import demo

        if path != "demo:pbmc68k":
            raise InputError(f"There is no {path!r}.{suggestion(path, ['demo:pbmc68k'])}")
        return "the demo", lambda: in_memory(demo.pbmc68k())
    if re.match(r"[a-z][a-z0-9+]+:/", path):
        raise InputError(
            f"{path}: is a URL, which only the workflow fetches, before any step. Download it and name the file."
        )
    file = existing(Path(path))
    if file.is_dir():
        if is_zarr(file):
            return "zarr", lambda: read_anndata(file)
        matrix = find_matrix(file, genome)
        return "Matrix Market", lambda: read_mtx(matrix, transpose)
    name = file.name.lower().removesuffix(".gz")
    start, packed = first_bytes(file)
    if start.startswith(HDF5):
        if packed:
            raise InputError(f"{path}: is gzipped. Unpack it (gunzip) and name the unpacked file.")
        kind = {".h5ad": "h5ad", ".loom": "loom"}.get(Path(name).suffix, "HDF5")
        return kind, lambda: read_hdf5(file, genome)
    refuse_no_counts(file)
    if name.endswith(".mtx"):
        return "Matrix Market", lambda: read_mtx(file, transpose)
    if name.endswith((".csv", ".tsv", ".txt", ".tab")):
        return "a table of counts", lambda: read_table_of_counts(file)
    if name.endswith((".h5ad", ".h5mu", ".loom", ".h5", ".hdf5", ".h5seurat")):
        text = all(byte >= 32 or byte in b"\t\r\n" for byte in start)
        raise InputError(
            f"{path}: cannot be read as {Path(name).suffix[1:]}: is no HDF5 file"
            + (f", but text, which begins with {start[:30].decode(errors='replace')!r}. " if text else ". ")
            + ("If it is a table of counts, call it .csv or .tsv." if text else "Copy or download it again.")
        )
    hints = {
        ".rds": " Convert the R object to h5ad first (zellkonverter, or schard for reading back).",
        ".rdata": " Convert the R object to h5ad first (zellkonverter).",
        ".st": " This is the long table of BD Rhapsody: name its MolsPerCell.csv or MEX folder instead.",
        ".xlsx": " Save the sheet as csv first.",
        **dict.fromkeys((".tar", ".tgz", ".zip", ".bz2", ".xz", ".zst", ".7z"), " Unpack it first."),
    }
    raise InputError(f"{path}: is of no format that can be read: {FORMATS}.{hints.get(Path(name).suffix, '')}")


def existing(file: Path) -> Path:
    """The path, if there is something; else an InputError with the name beside it that is probably meant."""
    if file.is_symlink() and not file.exists():
        raise InputError(f"{file}: is a link to {file.readlink()}, which does not exist.")
    if not file.exists():
        siblings = [other.name for other in file.parent.iterdir()] if file.parent.is_dir() else []
        where = f"In {file.parent}:{suggestion(file.name, sorted(siblings))}" if siblings else "Nor does its folder."
        raise InputError(f"{file}: does not exist. {where}")
    return file


def is_zarr(folder: Path) -> bool:
    """Whether a folder is a zarr store."""
    return any((folder / name).exists() for name in (".zgroup", ".zattrs", "zarr.json"))


def samples_of(path: str | Path) -> dict[str, str | Path]:
    """The matrices of a folder that holds those of several samples, by sample; else the path alone, called \"\".

    GEO has the files of all samples in one folder, each with the sample before its name.
    """
    folder = Path(path)
    if folder.is_dir() and not is_zarr(folder):
        found = matrices_in(folder)
        samples = [re.sub(r"[._-]?matrix\.mtx(\.gz)?$", "", matrix.name) for matrix in found]
        if len(found) > 1 and all(samples) and len(set(samples)) == len(found):
            logger.info("%s: has the matrices of %d samples: %s.", path, len(found), first_names(samples))
            return dict(zip(samples, found, strict=True))
    return {"": path}


def matrices_in(folder: Path) -> list[Path]:
    """The Matrix Market files of a folder itself that are called matrix.mtx, with or without a prefix."""
    found = sorted(p for p in folder.iterdir() if re.fullmatch(r"(.+[._-])?matrix\.mtx(\.gz)?", p.name))
    return [p for p in found if "filtered" in p.name and "unfiltered" not in p.name] or found


def find_matrix(folder: Path, genome: str | None) -> Path:
    """The Matrix Market file of a folder, or of the one folder inside it that has one."""
    found = matrices_in(folder)
    if not found:
        found = sorted(folder.glob("*.mtx")) + sorted(folder.glob("*.mtx.gz"))
    if not found:
        found = sorted(p for p in folder.rglob("*.mtx*") if p.name.endswith((".mtx", ".mtx.gz")))
    if genome is not None and len(found) > 1:
        found = [p for p in found if p.parent.name == genome]
    # Cell Ranger and STARsolo write raw and filtered matrices side by side; the raw one is mostly empty droplets.
    filtered = [
        p for p in found if any(re.search(r"(^|[^n])filtered", part) for part in p.relative_to(folder).parent.parts)
    ]
    found = filtered or found
    # STARsolo writes its other counts beside matrix.mtx.
    found = [p for p in found if p.name in ("matrix.mtx", "matrix.mtx.gz")] or found
    if len(found) > 1:
        names = first_names([str(p.relative_to(folder)) for p in found])
        raise InputError(
            f"{folder}: holds {len(found)} matrices ({names}); name one of them, list them as several inputs, or "
            "choose a genome (genome=...)."
        )
    if not found:
        inside = first_names(sorted(p.name for p in folder.iterdir())) or "nothing"
        hint = ""
        if list(folder.rglob("quants_mat.gz")):
            hint = " Salmon alevin writes one with --dumpMtx, alevin-fry with --use-mtx."
        elif packed := sorted(folder.rglob("*.mtx.*")):
            hint = f" Unpack {packed[0].name}; only gzip is read as it is."
        elif readable := sorted(p.name for p in folder.iterdir() if re.search(READABLE, p.name)):
            files = [str(folder / name) for name in readable]
            hint = f" Name the file: {files[0]}" if len(files) == 1 else f" List its files: input: [{', '.join(files)}]"
            hint += "."
        raise InputError(f"{folder}: holds no matrix.mtx(.gz) and is not a zarr store; found {inside}.{hint}")
    return found[0]


def files_of(path: str | Path, genome: str | None = None) -> list[Path]:
    """All files that reading an input reads: the file, a matrix with its tables, or every file of a zarr store.

    Parameters
    ----------
    path
        An input of any format; nothing is returned for ``demo:pbmc68k`` and URLs.
    genome
        As for `read_input`.
    """
    if re.match(r"[a-z][a-z0-9+]+:", str(path)):
        return []
    file = existing(Path(path))
    if file.is_dir() and is_zarr(file):
        return sorted(p for p in file.rglob("*") if p.is_file())
    if not file.is_dir() and not file.name.endswith((".mtx", ".mtx.gz")):
        return [file]
    samples = [Path(part) for part in samples_of(file).values()]
    matrices = [find_matrix(part, genome) if part.is_dir() else part for part in samples]
    return [found for matrix in matrices for found in (matrix, *tables_of(matrix))]


def sha256_of_input(path: str, genome: str | None = None) -> str:
    """Hexadecimal SHA-256 of what reading an input reads: a file, or the names and hashes of its files; empty for none.

    Parameters
    ----------
    path, genome
        As for `files_of`.
    """
    files = files_of(path, genome)
    if len(files) == 1:
        return sha256(files[0])
    lines = "".join(f"{sha256(file)}  {os.path.relpath(file, path)}\n" for file in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest() if files else ""
