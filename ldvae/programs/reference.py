"""Programs in one file that others use without the data: loadings, what scoring needs, and where they come from."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ldvae.errors import InputError

from .across import loadings_of
from .projection import Frame, Projection, project

if TYPE_CHECKING:
    from anndata import AnnData

FORMAT = 1  # of the file; raised when an older ldvae could not read it
PARTS = ("model.npz", "loadings.tsv")  # whose hash is kept
DATED = (1980, 1, 1, 0, 0, 0)  # the same programs give the same bytes


class Reference(NamedTuple):
    """Programs that other cells can be scored on, without the cells that they were made from."""

    frame: Frame
    about: dict[str, Any]  # title, licence, labels of the programs, numbers of cells and genes, versions, …

    def project(
        self, adata: AnnData, *, layer: str | None = None, batch_key: str | None = None, adjust: bool = True
    ) -> Projection:
        """Score the cells of an AnnData.

        Parameters
        ----------
        adata
            Raw counts of all genes; genes are matched by their names, or by a column of var (symbols, identifiers).
        layer
            Where the counts are; none: X.
        batch_key
            Obs column of the experimental batch; none: one batch.
        adjust
            Let every gene have its own level in each batch, as far as no mixture of the programs could explain it.

        Examples
        --------
        Continues the example of `find_programs`.

        >>> reference = gp.Reference(gp.frame(programs, mean, truth.theta), {})
        >>> reference.project(truth.to_anndata()).scores.shape
        (300, 4)
        """
        if not hasattr(adata, "var_names"):
            raise InputError(
                f"adata must be an AnnData, found {type(adata).__name__}; `ldvae.programs.project` takes a matrix."
            )
        if layer is not None and layer not in adata.layers:
            names = [name for name in adata.layers if name is not None]  # X is among them since anndata 0.13
            raise InputError(f"No layer {layer!r}. There are: {', '.join(names) or 'none'}.")
        if batch_key is not None and batch_key not in adata.obs:
            raise InputError(f"No obs column {batch_key!r}. There are: {', '.join(map(str, adata.obs))}.")
        return project(
            self.frame,
            adata.X if layer is None else adata.layers[layer],
            list(adata.var_names),
            var=adata.var,
            cells=list(adata.obs_names),
            batch=None if batch_key is None else adata.obs[batch_key].to_numpy(),
            adjust=adjust,
        )


def write_reference(frame: Frame, path: str | Path, about: Mapping[str, Any] | None = None) -> Path:
    """Write programs into one file: loadings, what scoring other cells needs, and what is known of them.

    Parameters
    ----------
    frame
        From `frame`, `calibrate` or `meta_frame`.
    path
        Of the file, which ends in .zip.
    about
        What a user of the programs should know: title, licence, labels, …; anything that JSON holds.

    Returns
    -------
    Path
        Of the file.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> path = gp.write_reference(gp.frame(programs, mean, truth.theta), "programs.zip", {"licence": "CC-BY-4.0"})
    >>> gp.read_reference(path).about["licence"]
    'CC-BY-4.0'
    """
    model = io.BytesIO()
    # What compares datasets with each other stays with the data.
    scoring = frame._replace(directions=np.zeros((0, 0)), sampled=np.zeros((0, 0)))
    arrays = {name: np.asarray(value) for name, value in scoring._asdict().items() if np.size(value)}
    with zipfile.ZipFile(model, "w", zipfile.ZIP_DEFLATED) as file:  # as np.savez_compressed, but without the time
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, allow_pickle=False)
            file.writestr(zipfile.ZipInfo(f"{name}.npy", DATED), buffer.getvalue(), zipfile.ZIP_DEFLATED)
    table = loadings_of(frame).rename_axis("gene").to_csv(sep="\t", float_format="%.6g")
    parts = {"model.npz": model.getvalue(), "loadings.tsv": table.encode()}
    known = {
        "format": FORMAT,
        **(about or {}),
        "n_genes": len(frame.genes),
        "programs": frame.programs.tolist(),
        "sha256": _digest(parts),
    }
    parts["about.json"] = (json.dumps(known, indent=2, ensure_ascii=False) + "\n").encode()
    path = Path(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in parts.items():
            file.writestr(zipfile.ZipInfo(name, DATED), content, zipfile.ZIP_DEFLATED)
    return path


def read_reference(path: str | Path) -> Reference:
    """Read programs that `write_reference` or `ldvae pack` wrote.

    Parameters
    ----------
    path
        Of the file.

    Raises
    ------
    InputError
        If the file is of another kind, of a newer version, or damaged: its hash is compared.

    Examples
    --------
    Continues the example of `find_programs`.

    >>> path = gp.write_reference(gp.frame(programs, mean, truth.theta), "programs.zip")
    >>> gp.read_reference(path).frame.programs.tolist()
    ['P1', 'P2', 'P3', 'P4']
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as file:
            parts = {name: file.read(name) for name in PARTS}
            about = json.loads(file.read("about.json"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is not there (working directory {Path.cwd()}).") from error
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: holds no programs ({error}); expected a file that `ldvae pack` wrote. Download it again."
        ) from error
    if about.get("format", 0) > FORMAT:
        raise InputError(f"{path}: was written by a newer ldvae (format {about['format']}); upgrade ldvae to read it.")
    if about.get("sha256") != _digest(parts):
        raise InputError(f"{path}: is damaged or was edited: its hash is not the one that it names. Download it again.")
    with np.load(io.BytesIO(parts["model.npz"]), allow_pickle=False) as arrays:
        return Reference(Frame(**arrays), about)


def _digest(parts: Mapping[str, bytes]) -> str:
    return hashlib.sha256(b"".join(parts[name] for name in PARTS)).hexdigest()
