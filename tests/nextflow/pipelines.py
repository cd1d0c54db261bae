"""Pipelines that a real Nextflow runs."""

import csv
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

SMALL = {
    "datasets": {
        name: {"input": "demo:pbmc68k", "setup": {"genes": "all"}, "de": {"contrasts": [{"column": "bulk_labels"}]}}
        for name in ("one", "two")
    },
    "sweep": {"seeds": [0, 1]},
    "train": {"max_epochs": 3},
}  # two datasets with two runs each

QUICK = """#!/bin/bash
# ldvae, as it is called, with stubs for results; a test may put something before it.
set -e
export PATH="{bin}:$PATH"
{hook}
if [ "$1" != plan ]; then set -- "$@" --stub; fi
exec ldvae "$@"
"""


@dataclass
class Finished:
    """A pipeline that ran."""

    code: int
    text: str
    trace: list[dict[str, str]]

    def ran(self, status: str = "COMPLETED") -> Counter[str]:
        """How many tasks of each process have a status, but for PLAN, which always runs."""
        names = (row["process"].split(":")[-1] for row in self.trace if row["status"] == status)
        return Counter(name for name in names if name != "PLAN")


@dataclass
class Pipeline:
    """A folder from which pipelines are launched."""

    folder: Path
    engine: Path
    environment: dict[str, str] = field(default_factory=dict)
    site: str = ""  # settings of nextflow.config

    def configure(self, name: str = "config.yaml", **sections) -> Path:
        """Write a config."""
        path = self.folder / name
        path.write_text(yaml.safe_dump(sections, sort_keys=False))
        return path

    def quick(self, hook: str = "") -> None:
        """Put stubs in the place of the steps, after what the lines of shell in `hook` do."""
        folder = self.folder / "quick"
        folder.mkdir(exist_ok=True)
        (folder / "ldvae").write_text(QUICK.format(bin=BIN, hook=hook))
        (folder / "ldvae").chmod(0o755)
        self.environment["PATH"] = f"{folder}:{os.environ['PATH']}"

    def run(self, *arguments: str | Path, script: Path = ROOT, timeout: int = 1800) -> Finished:
        """Run a pipeline and read its trace."""
        trace = self.folder / "trace.tsv"
        trace.unlink(missing_ok=True)
        (self.folder / "trace.config").write_text(
            "trace.fields = 'process,tag,status,exit,attempt,memory,time,native_id,workdir'\ntrace.raw = true\n"
            + self.site
        )
        home = Path(os.environ.get("NXF_HOME", self.folder / "nextflow-home"))
        environment = {"PATH": f"{BIN}:{os.environ['PATH']}", "NXF_HOME": str(home), "NXF_ANSI_LOG": "false"}
        done = subprocess.run(
            [self.engine, "-c", "trace.config", "run", script, "-with-trace", trace, *arguments],
            cwd=self.folder,
            env=os.environ | environment | self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        lines = trace.read_text().splitlines() if trace.exists() else []
        return Finished(done.returncode, done.stdout + done.stderr, list(csv.DictReader(lines, delimiter="\t")))
