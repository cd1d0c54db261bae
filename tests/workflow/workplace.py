"""Run the workflow as its users do, in a folder of its own."""

from __future__ import annotations

import atexit
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import yaml
from cyclopts import CycloptsError

from ldvae import cli
from ldvae import results as layout

ROOT = Path(__file__).parents[2]
# Another version of Snakemake, in an environment that may lack ldvae.
PYTHON = os.environ.get("SNAKEMAKE_PYTHON", sys.executable)


class Loaded:
    """A process that has imported Snakemake and forks for each call: the import takes longer than most of the calls."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.one_at_a_time = threading.Lock()

    def call(self, arguments: list[str], folder: Path, environment: dict[str, str]) -> tuple[int, str]:
        """Call snakemake; its exit code, and what it said."""
        with self.one_at_a_time, tempfile.TemporaryDirectory() as said:
            if self.process is None:
                command = [PYTHON, Path(__file__).with_name("loaded.py")]
                self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                atexit.register(self.process.communicate)
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            print(json.dumps([arguments, str(folder), environment, said]), file=self.process.stdin, flush=True)
            code = int(self.process.stdout.readline())
            return code, "".join((Path(said) / name).read_text() for name in ("stdout", "stderr"))


LOADED = Loaded()


class Workplace:
    """A folder with a config, in which the workflow runs."""

    def __init__(self, folder: Path, config: dict[str, Any], environment: dict[str, str]) -> None:
        self.folder, self.config, self.environment = folder, config, environment
        self.snakefile = ROOT / "Snakefile"
        self.loaded = LOADED
        folder.mkdir(parents=True, exist_ok=True)
        self.write()

    def write(self, text: str | None = None) -> None:
        """Write the config as it stands now, or a text instead."""
        (self.folder / "config.yaml").write_text(text or yaml.safe_dump(self.config, sort_keys=False))

    def snakemake(self, *arguments: str, check: bool = True) -> str:
        """Call snakemake in the folder; what it said."""
        command = ["-s", str(self.snakefile), "--cores", "2", *arguments]
        if "--configfile" not in arguments and self.snakefile.parent == ROOT:
            command += ["--configfile", "config.yaml"]
        code, said = self.loaded.call(command, self.folder, self.environment)
        if check and code:
            raise AssertionError(f"snakemake {shlex.join(command)}\n{said[-6000:]}")
        assert check or code, said[-6000:]
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


MODULE = """
module ldvae:
    snakefile:
        "{origin}"
    config:
        {config}

use rule * from ldvae as mine_*
"""
# A rule that makes the counts, and one that reads what the module makes of them.
AROUND = """
rule all:
    input:
        "summary.txt",

rule prepare:
    output:
        "prepared/counts.h5ad",
    shell:
        "mkdir -p prepared && cp '{counts}' {{output}}"
{module}
rule summary:
    input:
        "programs/results/mine/programs/programs.tsv",
        "programs/results/mine/report.html",
        "programs/results/index.html",
    output:
        "summary.txt",
    shell:
        "wc -l {{input}} >{{output}}; echo $LDVAE_SOURCE >>{{output}}"

onstart:
    ldvae.onstart()

onsuccess:
    ldvae.onsuccess()

onerror:
    ldvae.onerror()
"""


def write_module(folder: Path, origin: str | Path, counts: Path | None = None) -> Path:
    """Write the Snakefile of a workflow that uses this one, with the prefix mine_.

    Its config is that of the workflow around it; with `counts`, that of one dataset which a rule there makes of them.
    """
    config = '{"outdir": "programs", "datasets": {"mine": "prepared/counts.h5ad"}, "sweep": {"seeds": [0]}}'
    text = MODULE.format(origin=origin, config=config if counts else "config")
    snakefile = folder / "Snakefile"
    snakefile.write_text(AROUND.format(counts=counts, module=text) if counts else text)
    return snakefile


QUICK = """#!/bin/bash
# ldvae, with stubs for the files that a verb writes; the call is noted.
printf '%s\\0' "$@" > "{folder}/calls/$$-$RANDOM"
verb=$1
[ "$verb" != index ] || echo "10:00:00 INFO Finished: 1 dataset." >&2
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
    (folder / "calls").mkdir(parents=True)
    for verb in {file.writer for file in layout.FILES}:
        paths = [path.format(projection="@NAME@") for path in layout.layout([verb], ["@NAME@"])]
        (folder / f"{verb}.txt").write_text("".join(f"{path}\n" for path in paths))
    (folder / "ldvae").write_text(QUICK.format(folder=folder))
    (folder / "ldvae").chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "STUBS": str(folder)}


def refused_calls(stubs: dict[str, str]) -> Iterator[str]:
    """What `ldvae` itself would refuse of the calls since the last look at them: verbs, flags and their values."""
    app = cli.command_line()
    for noted in (Path(stubs["STUBS"]) / "calls").iterdir():
        arguments = noted.read_text().split("\0")[:-1]
        noted.unlink()
        try:
            app.parse_args(arguments, exit_on_error=False, print_error=False)
        except CycloptsError as error:
            yield f"ldvae {shlex.join(arguments)}: {error}"


def write_counts(path: Path) -> Path:
    """Counts of 60 cells by 30 genes with the columns donor and condition."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"donor": ["d1", "d2"] * 30, "condition": ["stim"] * 30 + ["ctrl"] * 30})
    obs.index = [f"cell{i}" for i in range(60)]
    path.parent.mkdir(parents=True, exist_ok=True)
    anndata.AnnData(rng.poisson(1.0, (60, 30)).astype(np.float32), obs=obs).write_h5ad(path)
    return path
