"""A real Nextflow."""

import os
import shutil
from pathlib import Path

import pytest
from pipelines import Pipeline


@pytest.fixture(scope="session")
def engine() -> Path:
    """The command nextflow: the one on the PATH, else the jars of Maven Central."""
    found = shutil.which("nextflow")
    needed = ["java"] if (Path.home() / ".cache" / "ldvae-nextflow").is_dir() else ["java", "mvn"]
    if found is None and not all(map(shutil.which, needed)):
        message = "needs nextflow, or Java 17 and Maven"
        pytest.fail(message) if "CI" in os.environ else pytest.skip(message)
    return Path(found or Path(__file__).with_name("nextflow"))


@pytest.fixture
def pipeline(tmp_path, engine) -> Pipeline:
    """An empty folder to launch from, whose name has a space."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    return Pipeline(folder, engine)
