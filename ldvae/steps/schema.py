"""The JSON schema of config.yaml, and config.yaml itself with every option explained."""

from __future__ import annotations

import json

import yaml

from ldvae.config import commented_config
from ldvae.config import schema as config_schema


def schema(*, commented: bool = False) -> str:
    """Print the JSON schema of config.yaml (for editors and other tools), as YAML.

    Parameters
    ----------
    commented
        Print a config.yaml instead, with every option, its default and what it means.
    """
    if commented:
        return commented_config().rstrip()
    plain = json.loads(json.dumps(config_schema()))  # no anchors for what is repeated
    text = yaml.safe_dump(plain, sort_keys=False, width=120, allow_unicode=True).rstrip()
    return f"# Written by `make schema` from ldvae/config/options.py; edit there.\n{text}"
