#!/usr/bin/env bash
# Install ldvae itself into the environment: the very version that the workflow is of. The workflow says where it is from.
set -euo pipefail
if [ -n "${LDVAE_SOURCE:-}" ]; then
    python -m pip install --no-deps "$LDVAE_SOURCE"
elif grep -qs '^name = "ldvae"' pyproject.toml; then
    python -m pip install --no-deps .
else
    version=$(ldvae --version | cut -d' ' -f2) || true
    python -m pip install --no-deps "ldvae${version:+==$version}"
fi
