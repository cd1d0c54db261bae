"""Made-up fits of the mixed scenario, their programs, and counts to score."""

import copy

import pytest
from made_fits import N_VARS, make_fits

from ldvae.simulate import simulate


@pytest.fixture(scope="session")
def made():
    """What all files of this folder start from, made once."""
    mixed = make_fits("mixed")
    return {
        "mixed": mixed,
        "found": mixed.find(),
        "counted": simulate("mixed", n_obs=1200, n_vars=N_VARS, n_up=60, n_down=15, seed=0),
    }


@pytest.fixture(scope="module")
def mixed(made):
    return copy.deepcopy(made["mixed"])


@pytest.fixture(scope="module")
def found(made):
    return copy.deepcopy(made["found"])


@pytest.fixture(scope="module")
def counted(made):
    return copy.deepcopy(made["counted"])
