"""A Slurm on this machine, and clones of the repository to run on it."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData
from clones import Project, copy, small, targets
from scipy import sparse

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="session")
def slurm():
    """A Slurm that runs; what was not running before is ended afterwards."""
    missing = pytest.fail if "CI" in os.environ else pytest.skip
    if os.geteuid() != 0 or not (shutil.which("sbatch") or shutil.which("apt-get")):
        missing("needs root, and Slurm or apt-get")
    up = subprocess.run([HERE / "slurm-up"], timeout=600, capture_output=True, text=True)
    if "apt-get failed" in up.stderr:
        missing(f"Slurm cannot be installed here: {up.stderr[-300:]}")
    assert up.returncode == 0, up.stdout + up.stderr
    yield
    if "already up" not in up.stdout:
        subprocess.run([HERE / "slurm-down"], check=True, timeout=120)


@pytest.fixture(scope="session")
def clone(tmp_path_factory) -> Callable[[], Project]:
    """Make a fresh clone with the site file added."""

    def make() -> Project:
        folder = tmp_path_factory.mktemp("clone") / "ldvae"
        subprocess.run(["git", "clone", "-q", ROOT, folder], check=True)
        project = Project(folder)
        project.site()
        return project

    return make


@pytest.fixture(scope="session")
def prepared(clone) -> Project:
    """A clone with the small dataset ready to be trained."""
    project = clone()
    random = np.random.default_rng(0)
    rate = np.exp(random.normal(size=(300, 3)) @ random.normal(0, 0.7, (3, 120)))
    AnnData(sparse.csr_matrix(random.poisson(rate).astype(np.float32))).write_h5ad(project.folder / "counts.h5ad")
    project.configure(**small())
    project.run("--cores", "1", "results/tiny/setup/counts.h5ad")
    return project


@pytest.fixture
def ready(prepared, tmp_path) -> Project:
    """A copy of the prepared clone."""
    return copy(prepared, tmp_path / "ldvae")


@pytest.fixture(scope="session")
def undisturbed(prepared, tmp_path_factory) -> dict[str, bytes]:
    """What the long training ends in when nothing happens to it."""
    project = copy(prepared, tmp_path_factory.mktemp("undisturbed") / "ldvae")
    project.run("--cores", "1", *targets(project))
    return project.bits()
