"""What several test modules share."""

import os
from pathlib import Path

import pytest

# Tests are many small things, run side by side: threads within one only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real data sets, which lies beside the clone; tests that need it skip themselves without it."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the shared data are not there ({folder})")
    return folder
