#!/usr/bin/env bash
# Install ldvae itself into the environment: the clone that the workflow runs from, else the release that runs it.
set -euo pipefail
if grep -qs '^name = "ldvae"' pyproject.toml; then
    python -m pip install --no-deps .
else
    version=$(ldvae --version | cut -d' ' -f2) || true
    python -m pip install --no-deps "ldvae${version:+==$version}"
fi
