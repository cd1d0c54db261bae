#!/usr/bin/env bash
# Install ldvae itself into the environment: the clone that the workflow runs from, else the release.
set -euo pipefail
if grep -qs '^name = "ldvae"' pyproject.toml; then
    python -m pip install --no-deps .
else
    python -m pip install --no-deps "ldvae==0.1.0"
fi
