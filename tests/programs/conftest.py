"""Made-up fits of the mixed scenario, their programs, and counts to score."""

import pytest
from made_fits import N_VARS, make_fits

from ldvae.simulate import simulate


@pytest.fixture(scope="module")
def mixed():
    return make_fits("mixed")


@pytest.fixture(scope="module")
def found(mixed):
    return mixed.find()


@pytest.fixture(scope="module")
def counted(mixed):
    return simulate("mixed", n_obs=1200, n_vars=N_VARS, n_up=60, n_down=15, seed=0)
