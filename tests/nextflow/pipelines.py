"""Pipelines that a real Nextflow runs."""

import csv
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ldvae import results as layout

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

QUICK = r"""#!/bin/bash
# ldvae, as it is called, with stubs for results; a test may put something before it. Those in JSON tell the command.
set -e
export PATH="{bin}:$PATH"
{hook}
verb=$1
case $verb in plan | simulate | help | --*) exec ldvae "$@" ;; esac
said=${{*//\"/}}
while [ $# -gt 0 ]; do
    case $1 in
        --results) results=$2 ;;
        --run | --name) name=$2 ;;
        --versions-yml) printf '"%s":\n    ldvae: "0"\n' "$LDVAE_PROCESS" > "$2" ;;
    esac
    shift
done
while IFS= read -r file; do
    file=$results/${{file//@NAME@/$name}}
    mkdir -p "${{file%/*}}"
    case $file in *.json) echo "{{\"stub\": \"$said\"}}" > "$file" ;; *) echo stub > "$file" ;; esac
done < "{folder}/$verb.txt"
"""

# What the index over all datasets needs of a report.
REPORTED = """
        if [ $1 = report ]; then
            echo '{"n_obs_before": 5, "n_obs_after": 4, "n_vars": 3, "setting": "k10", "reason": "", "n_programs": 0,
                "programs": [], "warnings": [], "runs": [], "dataset": "'$3'"}' > "$3/report.json"
            touch "$3/report.html" versions.yml
            mkdir "$3/figures"
            exit
        fi
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
        """Put stubs in the place of the steps, after what the lines of shell in `hook` do.

        Not `ldvae --stub`, which imports for a second what it does not use.
        """
        folder = self.folder / "quick"
        folder.mkdir(exist_ok=True)
        for verb in {file.writer for file in layout.FILES}:
            paths = [path.format(projection="@NAME@") for path in layout.layout([verb], ["@NAME@"])]
            (folder / f"{verb}.txt").write_text("".join(f"{path}\n" for path in paths))
        (folder / "ldvae").write_text(QUICK.format(bin=BIN, hook=hook, folder=folder))
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
