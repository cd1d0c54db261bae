"""Steps in containers that a real Podman runs. They see the task's folder and what is declared as input, nothing else.

The image is empty but for the folders of the host's system, Python and this clone, which are bound into it: its own
contents (containers/) take minutes to make, and are not what could go wrong here.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from matrix_market import write_matrix
from pipelines import ROOT

from ldvae import results as layout

pytestmark = pytest.mark.nextflow

CONTAINERS = """
[containers]
netns = "host"
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
STORAGE = """
[storage]
driver = "vfs"
graphroot = "{folder}/images"
runroot = "{folder}/running"
"""
IMAGE = "localhost/ldvae:cpu"


@pytest.fixture(scope="session")
def podman(tmp_path_factory) -> dict[str, str]:
    """The environment of a Podman that runs here, with an image of the name that the processes give."""
    if shutil.which("podman") is None or shutil.which("runc") is None:
        pytest.skip("needs podman and runc, which this machine lacks (apt-get install podman runc)")
    folder = tmp_path_factory.mktemp("podman")
    (folder / "containers.conf").write_text(CONTAINERS)
    (folder / "storage.conf").write_text(STORAGE.format(folder=folder))
    settings = {
        "CONTAINERS_CONF": str(folder / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
    }
    (folder / "empty" / "tmp").mkdir(parents=True)
    subprocess.run(["tar", "-C", folder / "empty", "-cf", folder / "empty.tar", "."], check=True)
    for command in (["import", folder / "empty.tar", IMAGE], ["run", "--rm", *bound(), IMAGE, "/usr/bin/true"]):
        done = subprocess.run(
            ["podman", *command], env=os.environ | settings, capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"podman does not run here: {done.stderr.strip()[-500:]}")
    return settings


def bound(*others: Path) -> list[str]:
    """Arguments that show a container the system, this Python and this clone."""
    system = [Path(name) for name in ("/usr", "/bin", "/lib", "/lib64", "/etc", "/sbin") if Path(name).exists()]
    needed = [*system, Path(sys.prefix), Path(sys.base_prefix), ROOT, *others]
    folders = [path for path in dict.fromkeys(needed) if path == Path("/usr") or not path.is_relative_to("/usr")]
    return [argument for path in folders for argument in ("-v", f"{path}:{path}:ro")]


def test_steps_in_containers_see_what_they_need_and_the_results_are_those_of_the_host(pipeline, podman, tmp_path):
    """The config, a folder of Cell Ranger, a linked file and lists that the config names; checkpoints come out, too."""
    outside = tmp_path / "data"
    write_matrix(outside / "ten x", value=2)
    (outside / "genes.txt").write_text("".join(f"GENE{i}\n" for i in range(20)))
    (outside / "sets.gmt").write_text("set\t\tGENE1\tGENE2\n")
    subprocess.run(
        ["ldvae", "simulate", "--output", outside / "real.h5ad", "--n-obs", "60", "--n-vars", "100"], check=True
    )
    (pipeline.folder / "linked.h5ad").symlink_to(outside / "real.h5ad")
    (pipeline.folder / "conf").mkdir()
    pipeline.configure(
        "conf/config.yaml",
        datasets={
            "a": {
                "input": str(outside / "ten x"),
                "setup": {"genes": "list", "gene_list": str(outside / "genes.txt")},
                "programs": {"gene_sets": [str(outside / "sets.gmt")]},
            },
            "b": {"input": "linked.h5ad", "setup": {"genes": "all"}},
        },
        qc={"doublets": "off", "n_mads": None},
        sweep={"seeds": [0]},
    )
    # Real steps as far as their files come from outside; every file that a command names is there.
    pipeline.quick(
        """
        before=
        for word in "$@"; do
            case $word in *.gmt | *.txt) test -s "$word" ;; esac
            if [ "$before" = --checkpoint ]; then mkdir -p "$word" && echo kept > "$word/checkpoint"; fi
            before=$word
        done
        case $1 in qc | setup) exec ldvae "$@" ;; esac
        """
    )
    quick = pipeline.folder / "quick"
    options = [*bound(), "-v", f"'{quick}:{quick}:ro'", "-e", f"'PATH={quick}:{os.environ['PATH']}'"]
    options += ["-e", f"PYTHONPATH={os.environ.get('PYTHONPATH', ROOT)}"]
    pipeline.site = f'podman.runOptions = "{" ".join(options)}"\n'
    pipeline.environment |= podman
    done = pipeline.run("--config", "conf/config.yaml", "-profile", "podman")
    assert done.code == 0, done.text
    command = (Path(next(row["workdir"] for row in done.trace if ":QC" in row["process"])) / ".command.run").read_text()
    assert "podman run" in command
    assert IMAGE in command
    results = pipeline.folder / "results"
    assert layout.SETUP_SUMMARY.read(results / "a")["n_vars"] == 20
    assert layout.QC_SUMMARY.read(results / "b")["n_obs_before"] == 60
    assert (results / "index.html").exists()
    assert len(list((pipeline.folder / "work" / "checkpoints").glob("*/*/*/checkpoint"))) == 2
