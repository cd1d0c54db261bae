"""What a config expands to, for any workflow engine."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from ldvae import results as layout
from ldvae.config import describe, expand_checked, load_config

logger = logging.getLogger(__name__)


def plan(config_yaml: Path, *, tables: Path | None = None, made_elsewhere: bool = False) -> str:
    """Print the datasets, runs and flags that a config expands to, as JSON.

    Parameters
    ----------
    config_yaml
        The config, checked first as `ldvae check` does but for the counts themselves.
    tables
        Folder in which each dataset's runs.tsv (a row per run with all its parameters) and resolved.json (its options
        with every default) are written, in a folder of the dataset's name.
    made_elsewhere
        Missing files of counts are no mistake: another pipeline makes them.
    """
    expanded = expand_checked(load_config(config_yaml), made_elsewhere=made_elsewhere)
    for note in expanded.notes:
        logger.warning(note)
    if tables is not None:
        for name, dataset in expanded.datasets.items():
            layout.write_plan(dataset, tables / name)
    return json.dumps(describe(expanded), indent=2)
