"""Which code a result comes from: the versions of packages, and the commit where ldvae runs from a clone."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]


def versions(packages: Sequence[str]) -> dict[str, str]:
    """The versions of Python and of those packages that are installed; with the commit, if there is one."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | ({"commit": known} if (known := commit()) else {})


def commit(root: Path = ROOT) -> str:
    """The commit of the clone that the code lies in, with -dirty if it was changed since; empty where there is none.

    Parameters
    ----------
    root
        Folder above the package.
    """
    # Installed into an environment that lies in somebody's repository, the code is not of that repository.
    if not (root / ".git").exists():
        return ""
    # Jobs side by side must not wait for each other's lock of the index.
    command = ["git", "--no-optional-locks", "-C", str(root)]
    command += ["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
