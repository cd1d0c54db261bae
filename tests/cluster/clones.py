"""Clones of the repository in which `snakemake --profile slurm` runs."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml

SITE = {  # what a user of this cluster writes into profiles/default/config.yaml, and nothing else
    "slurm-status-command": "squeue",
    "slurm-init-seconds-before-status-checks": 4,
    "seconds-between-status-checks": 2,
    "default-resources": ["slurm_partition=cpu", "mem_mb=1000", "runtime=20"],
    "set-resources": {"train": {"slurm_partition": "gpu"}},
}
LONG = {"max_epochs": 6000, "batch_size": 16, "early_stopping": False}  # a minute on an idle CPU


class Project:
    """A clone in which `snakemake --profile slurm` runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder.with_suffix(".log")

    def configure(self, **sections: object) -> None:
        """Write the config; sections as in config.yaml."""
        (self.folder / "config/config.yaml").write_text(yaml.safe_dump(sections))

    def site(self, **settings: object) -> None:
        """Write the site file; None takes a setting out."""
        path = self.folder / "profiles/default/config.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump({key: value for key, value in (SITE | settings).items() if value is not None}))

    def ask(self, step: str, **resources: list[float]) -> None:
        """Change what the jobs of a step ask for."""
        path = self.folder / "workflow/resources.yaml"
        table = yaml.safe_load(path.read_text())
        table[step] |= resources
        path.write_text(yaml.safe_dump(table))

    def start(self, *arguments: str, seconds: int = 1800) -> subprocess.Popen[str]:
        """Start snakemake; its messages go to a file beside the clone."""
        environment = os.environ | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "OMP_NUM_THREADS": "1",
        }
        command = ["timeout", str(seconds), "snakemake", *arguments]
        with self.log.open("w") as log:
            return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log, text=True)

    def run(self, *arguments: str, seconds: int = 1800, expect: int = 0) -> str:
        """Run snakemake to its end; its messages."""
        process = self.start(*arguments, seconds=seconds)
        process.wait()
        log = self.log.read_text()
        assert process.returncode == expect, log[-5000:]
        return log

    def jobs(self) -> list[dict[str, str]]:
        """Slurm's records of all jobs of this clone, in the order of submission."""
        text = subprocess.run(["scontrol", "-o", "show", "job"], capture_output=True, text=True, check=True).stdout
        records = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in text.splitlines()]
        mine = [record for record in records if record.get("WorkDir") == str(self.folder)]
        return sorted(mine, key=lambda record: int(record["JobId"]))

    def train_jobs(self) -> list[dict[str, str]]:
        """Slurm's records of the training jobs."""
        return [job for job in self.jobs() if job["Comment"].startswith("rule_train")]

    def train_log(self) -> str:
        """Log of the only training."""
        logs = list((self.folder / "logs/train").glob("*/*.log"))
        return logs[0].read_text() if logs else ""

    def bits(self) -> dict[str, bytes]:
        """Loadings and scores of all runs, and their models."""
        found = {}
        for path in sorted(self.folder.glob("results/*/runs/*/factors.npz")):
            with np.load(path) as arrays:
                found |= {f"{path.parent.name}/{name}": arrays[name].tobytes() for name in ("loadings", "scores")}
            found[f"{path.parent.name}/model"] = (path.parent / "model/model.safetensors").read_bytes()
        return found


def until(condition: Callable[[], object], seconds: float = 900) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def small(train: dict[str, object] = LONG, **sections: object) -> dict[str, object]:
    """Config of one small dataset that is trained once, for a minute."""
    return {
        "datasets": {"tiny": {"input": "counts.h5ad"}},
        "qc": {"doublets": "off", "n_mads": None},
        "setup": {"genes": "all"},
        "sweep": {"seeds": [0]},
        "train": train,
    } | sections


def targets(project: Project, name: str = "metrics.json") -> list[str]:
    """A file of every run of the small dataset."""
    plan = subprocess.run(
        [Path(sys.executable).parent / "ldvae", "plan", "config/config.yaml"],
        cwd=project.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    runs = [run["run"] for run in json.loads(plan.stdout)["datasets"][0]["runs"]]
    return [f"results/tiny/runs/{run}/{name}" for run in runs]


def copy(project: Project, folder: Path) -> Project:
    """A copy of a clone, with all that Snakemake knows about its files."""
    shutil.copytree(project.folder, folder, symlinks=True)
    return Project(folder)
