"""Finished runs of an older version under the ids of this one."""

from __future__ import annotations

import json
from pathlib import Path

from ldvae.config import renamed_runs
from ldvae.errors import InputError
from ldvae.io import write_json


def migrate(outdir: Path = Path(".")) -> str:
    """Rename the finished runs of an older version to the ids of this version: they are not trained again.

    What a run was trained with stands in its metrics.json. Runs are left as they are if a training with the same
    options now ends in other numbers. Logs, benchmarks and checkpoints of a run are renamed with it.

    Parameters
    ----------
    outdir
        Folder that holds results/, as `outdir` of the config.
    """
    if not (outdir / "results").is_dir():
        raise InputError(f"{outdir / 'results'} is not there; give the folder that holds results/ (`outdir`).")
    lines = []
    for folder in sorted((outdir / "results").glob("*/runs")):
        dataset = folder.parent.name
        for old, run in renamed_runs(folder).items():
            if (folder / run.id).exists():
                lines.append(f"{folder / old} is left as it is: there is a {run.id} as well.")
                continue
            metrics = folder / old / "metrics.json"
            # It is new from now on, so that the steps that name runs in their results are repeated.
            write_json(json.loads(metrics.read_text()) | {"run": run.id, "setting": run.setting}, metrics)
            if (table := folder / old / "fit.tsv").exists():  # as ppc.tsv was called
                table.rename(table.with_name("ppc.tsv"))
            (folder / old).rename(folder / run.id)
            for place in ("logs/train", "benchmarks/train", "checkpoints"):
                for path in (outdir / place / dataset).glob(f"{old}*"):
                    path.rename(path.with_name(path.name.replace(old, run.id)))
            lines.append(f"{folder / old} is now {run.id}.")
    return "\n".join(lines) or "All runs have the ids of this version."
