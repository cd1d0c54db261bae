"""Programs in one file, for those who have other cells and not these data."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pandas as pd

from ldvae import results as layout
from ldvae.errors import InputError
from ldvae.io import atomic
from ldvae.programs import write_reference
from ldvae.provenance import versions
from ldvae.steps.programs import read_model

logger = logging.getLogger(__name__)


def pack(*, results: Path, output: Path, title: str = "", licence: str = "", note: str = "") -> None:
    """Write the programs of a dataset, or meta-programs, into one file that is used without the data.

    Parameters
    ----------
    results
        Folder of the results of a dataset, such as results/kang; or of all datasets, for what `ldvae across` wrote.
    output
        The file, such as programs.zip, for `ldvae project --programs` and `ldvae.programs.read_reference`.
    title
        What the programs are of; not given: the name of the folder.
    licence
        Under which others may use them, such as CC-BY-4.0.
    note
        Anything else that a user should know, such as where the paper is.
    """
    if output.suffix != ".zip":
        raise InputError(f"--output: expected a name that ends in .zip, found {output}.")
    about: dict[str, Any] = {"title": title or results.absolute().name, "licence": licence, "note": note}
    if layout.PROGRAMS_MODEL.at(results).exists():
        source, table = layout.PROGRAMS_MODEL, layout.PROGRAMS.read_table(results)
        about["n_obs"] = layout.PROGRAMS_SUMMARY.read(results)["n_obs"]
    elif layout.META_MODEL.at(results).exists():
        source, table = layout.META_MODEL, layout.META_PROGRAMS.read_table(results)
        about |= {key: layout.ACROSS_SUMMARY.read(results)[key] for key in ("datasets", "n_obs")}
    else:
        raise InputError(
            f"{results} holds neither {layout.PROGRAMS_MODEL.path} (which `ldvae programs` writes) nor "
            f"{layout.META_MODEL.path} (which `ldvae across` writes). Give another --results."
        )
    frame = read_model(source.at(results))
    about["labels"] = {name: text_of(table, name, "label") for name in frame.programs.tolist()}
    about["top_genes"] = {name: text_of(table, name, "top_positive") for name in frame.programs.tolist()}
    about["versions"] = versions(("ldvae",))
    with atomic(output) as temporary:
        write_reference(frame, temporary, about)
    if not licence:
        logger.warning("No licence is named (--licence): others cannot know whether they may use the programs.")
    logger.info("%s: %d programs of %d genes.", output, len(frame.programs), len(frame.genes))


def text_of(table: pd.DataFrame, program: str, column: str) -> str:
    """What a table says of a program, as text."""
    value = table[column].get(program, "") if column in table else ""
    return "" if pd.isna(value) else str(value)
