"""Run the workflow as its users do; with stubs in place of the steps where only its wiring is looked at."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from workplace import Workplace, quick_stubs, refused_calls, write_counts


@pytest.fixture(scope="session")
def counts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of counts, in a folder with a space in its name."""
    return write_counts(tmp_path_factory.mktemp("data") / "my counts.h5ad")


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which `ldvae` writes stubs."""
    return quick_stubs(tmp_path_factory.mktemp("stubs") / "bin")


@pytest.fixture(autouse=True)
def calls_are_understood(request: pytest.FixtureRequest) -> Iterator[None]:
    """Stubs take any call; the command line must take it too."""
    stubs = request.getfixturevalue("stubs") if "stubs" in request.fixturenames else None
    yield
    if stubs is not None:
        assert list(refused_calls(stubs)) == []


@pytest.fixture(scope="session")
def config(counts: Path) -> dict[str, Any]:
    """Two datasets with a sweep over seeds."""
    return {
        "datasets": {
            "a": {"input": str(counts), "de": {"contrasts": [{"column": "condition"}]}, "compute": {"device": "cpu"}},
            "b": {"input": "demo:pbmc68k", "project": {"other": str(counts)}},
        },
        "setup": {"genes": "all"},
        "sweep": {"seeds": [0, 1]},
    }


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, config: dict[str, Any], stubs: dict[str, str]) -> Workplace:
    """A finished run of the two datasets, made of stubs; in a folder with a space in its name."""
    place = Workplace(tmp_path_factory.mktemp("work") / "my results", config, stubs)
    place.snakemake()
    return place


@pytest.fixture
def again(finished: Workplace, tmp_path: Path) -> Workplace:
    """A copy of the finished run, to change."""
    folder = tmp_path / "my results"
    shutil.copytree(finished.folder, folder)
    return Workplace(folder, yaml.safe_load(yaml.safe_dump(finished.config)), finished.environment)
