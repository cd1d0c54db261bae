"""The JSON schema of config.yaml."""

from __future__ import annotations

import json

import yaml

from ldvae.config import schema as config_schema


def schema() -> str:
    """Print the JSON schema of config.yaml (for editors and other tools), as YAML."""
    plain = json.loads(json.dumps(config_schema()))  # no anchors for what is repeated
    text = yaml.safe_dump(plain, sort_keys=False, width=120).rstrip()
    return f"# Written by `make schema` from ldvae/config.py; edit there.\n{text}"
