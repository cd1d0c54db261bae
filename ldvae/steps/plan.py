"""What a config expands to, for any workflow engine."""

from __future__ import annotations

import json
from pathlib import Path

from ldvae.config import check_data, describe, expand, load_config


def plan(config_yaml: Path) -> str:
    """Print the datasets, runs and flags that a config expands to, as JSON.

    Parameters
    ----------
    config_yaml
        The config, checked first as `ldvae check` does but for the counts themselves.
    """
    expanded = expand(load_config(config_yaml))
    check_data(expanded)
    return json.dumps(describe(expanded), indent=2)
