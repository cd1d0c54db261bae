"""What several test modules share."""

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

# Tests run side by side in several processes (pytest-xdist), which share the cores: one thread each. The linear
# algebra of numpy reads it when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import settings
from scipy import sparse
from shared_data import MissingDataError, fetch

if pd.__version__ < "3":
    # As in pandas 3: what a table gives out as an array is not to be written to.
    pd.options.mode.copy_on_write = True

settings.register_profile("ldvae", deadline=None)  # a busy machine is no fault
settings.load_profile("ldvae")

# Files that take longest come first: workers then end at about the same time. In a fresh clone the first compiles the
# kernels, while the next ones, which need none, run beside it.
SLOWEST = ("test_model", "test_browser", "test_workflow", "test_report", "test_changes", "test_steps_qc", "test_chunks")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files by how long they take."""
    place = {f"{name}.py": i for i, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(autouse=True)
def environment_of_each_test() -> Iterator[None]:
    """What a test, or the code that it calls, sets in the environment ends with it, such as the folder of a cache."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real data sets; tests that need it skip themselves where it is not there."""
    try:
        return fetch()
    except MissingDataError as error:
        pytest.skip(str(error))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of reports stay empty: drawing them is most of the work, and not what such a test looks at."""
    from results_folder import draw_nothing

    draw_nothing(monkeypatch)


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder of what scvi-tools computed once; see make_reference.py there."""
    return Path(__file__).parent / "reference"


@pytest.fixture
def reference_adata(reference: Path) -> AnnData:
    """The counts behind it: 200 cells in three batches, of two labels, and 60 genes; not set up."""
    data = np.load(reference / "counts.npz")
    obs = pd.DataFrame({"batch": data["batch"], "label": data["label"]}, index=data["cells"])
    counts = sparse.csr_matrix(data["counts"].astype(np.float32))
    return AnnData(counts, obs=obs, var=pd.DataFrame(index=data["genes"]))
