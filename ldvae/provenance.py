"""Which code a result comes from: the versions of packages, and the commit where ldvae runs from a clone."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = ("ldvae", "workflow", "Snakefile", "main.nf", "nextflow.config")


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

    An archive that git made of a commit names it too; whether its files were changed since is not known. What lies
    outside of the package and the workflow, such as config/ and docs/, is no code of a result.

    Parameters
    ----------
    root
        Folder above the package.
    """
    # Installed into an environment that lies in somebody's repository, the code is not of that repository.
    if not (root / ".git").exists():
        archive = root / ".git_archival.txt"
        found = re.match(r"commit: ([0-9a-f]{40})$", archive.read_text(), re.M) if archive.exists() else None
        return found[1] if found else ""
    # Jobs side by side must not wait for each other's lock of the index.
    git = ["git", "--no-optional-locks", "-C", str(root)]
    status = ["status", "--porcelain", "--untracked-files=no", "--", *CODE]
    try:
        head, changed = (
            subprocess.run([*git, *command], capture_output=True, text=True, timeout=30, check=True).stdout.strip()
            for command in (["rev-parse", "HEAD"], status)
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{head}-dirty" if changed else head
