"""The examples in the docstrings."""

import doctest
import importlib
import pkgutil

import pytest

import ldvae

MODULES = [module.name for module in pkgutil.walk_packages(ldvae.__path__, "ldvae.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_the_docstrings_hold(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
