"""Run the workflow as its users do, in a folder of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import yaml

from ldvae import results as layout

ROOT = Path(__file__).parents[2]
# Another version of Snakemake, in an environment that may lack ldvae.
PYTHON = os.environ.get("SNAKEMAKE_PYTHON", sys.executable)


class Workplace:
    """A folder with a config, in which the workflow runs."""

    def __init__(self, folder: Path, config: dict[str, Any], environment: dict[str, str]) -> None:
        self.folder, self.config, self.environment = folder, config, environment
        self.snakefile = ROOT / "Snakefile"
        folder.mkdir(parents=True, exist_ok=True)
        self.write()

    def write(self, text: str | None = None) -> None:
        """Write the config as it stands now, or a text instead."""
        (self.folder / "config.yaml").write_text(text or yaml.safe_dump(self.config, sort_keys=False))

    def snakemake(self, *arguments: str, check: bool = True) -> str:
        """Call snakemake in the folder; what it said."""
        command = [PYTHON, "-m", "snakemake", "-s", str(self.snakefile), "--cores", "2", *arguments]
        if "--configfile" not in arguments and self.snakefile.parent == ROOT:
            command += ["--configfile", "config.yaml"]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=1800, check=False
        )
        said = done.stdout + done.stderr
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}\n{said[-6000:]}")
        assert check or done.returncode, said[-6000:]
        return said

    def pending(self, *arguments: str) -> Counter[str]:
        """How often each rule would run now, and of which dataset: {"train": 2, "train:a": 2, …}."""
        said = self.snakemake("-n", *arguments)
        rules: Counter[str] = Counter()
        for block in re.split(r"\n(?=(?:local)?rule )", said)[1:]:
            rule = re.match(r"(?:local)?rule ([\w.-]+):", block)[1]
            dataset = re.search(r"wildcards: .*?dataset=([\w.-]+)", block)
            rules[rule] += 1
            if dataset:
                rules[f"{rule}:{dataset[1]}"] += 1
        return Counter({name: n for name, n in rules.items() if name != "default"})

    def files(self) -> set[str]:
        """All files below the folder but Snakemake's own."""
        paths = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        return {str(path) for path in paths if path.parts[0] != ".snakemake"}


QUICK = """#!/bin/bash
# ldvae, with stubs for the files that a verb writes.
verb=$1
while [ $# -gt 0 ]; do
    case $1 in
        --results) results=$2 ;;
        --run | --name) name=$2 ;;
    esac
    shift
done
while IFS= read -r file; do
    file=$results/${{file//@NAME@/$name}}
    mkdir -p "${{file%/*}}"
    echo "{{}}" > "$file"
done < "{folder}/$verb.txt"
"""


def quick_stubs(folder: Path) -> dict[str, str]:
    """An environment in which `ldvae` is a script of the shell that writes stubs; `ldvae --stub` starts Python."""
    folder.mkdir(exist_ok=True)
    for verb in {file.writer for file in layout.FILES}:
        paths = [path.format(projection="@NAME@") for path in layout.layout([verb], ["@NAME@"])]
        (folder / f"{verb}.txt").write_text("".join(f"{path}\n" for path in paths))
    (folder / "ldvae").write_text(QUICK.format(folder=folder))
    (folder / "ldvae").chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def write_counts(path: Path) -> Path:
    """Counts of 60 cells by 30 genes with the columns donor and condition."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"donor": ["d1", "d2"] * 30, "condition": ["stim"] * 30 + ["ctrl"] * 30})
    obs.index = [f"cell{i}" for i in range(60)]
    path.parent.mkdir(parents=True, exist_ok=True)
    anndata.AnnData(rng.poisson(1.0, (60, 30)).astype(np.float32), obs=obs).write_h5ad(path)
    return path
