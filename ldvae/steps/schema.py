"""The JSON schema of config.yaml."""

from __future__ import annotations

import yaml

from ldvae.config import schema as config_schema


def schema() -> str:
    """Print the JSON schema of config.yaml (for editors and other tools), as YAML."""
    text = yaml.safe_dump(config_schema(), sort_keys=False, width=120).rstrip()
    return f"# Written by `make schema` from ldvae/config.py; edit there.\n{text}"
