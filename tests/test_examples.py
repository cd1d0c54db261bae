"""The examples in the docstrings: every public function has one, and all of them run."""

import doctest
import functools
import importlib
import inspect
import pkgutil
import re

import matplotlib.pyplot as plt
import pytest

import ldvae
from ldvae import LinearSCVI, pl, programs, simulate, sweep

MODULES = [module.name for module in pkgutil.walk_packages(ldvae.__path__, "ldvae.")]
# What a reader finds in the site's API: functions, and what carries methods.
PUBLIC = {
    **{f"programs.{name}": getattr(programs, name) for name in programs.__all__},
    **{f"pl.{name}": getattr(pl, name) for name in pl.__all__},
    **{f"LinearSCVI.{name}": method for name, method in inspect.getmembers(LinearSCVI, inspect.isroutine)},
    "LinearSCVI": LinearSCVI,
    "simulate.simulate": simulate.simulate,
    "fit_sweep": sweep.fit_sweep,
    "Sweep.get_programs": sweep.Sweep.get_programs,
    "Sweep.get_reference": sweep.Sweep.get_reference,
    "read_results": ldvae.read_results,
}
PUBLIC = {name: item for name, item in PUBLIC.items() if not name.split(".")[-1].startswith("_")}
PASTED = {f"{item.__module__}.{item.__qualname__}" for item in PUBLIC.values() if hasattr(item, "__qualname__")}
# Reads three files that scvi-tools wrote before 0.15; tests/test_storage.py runs it on such files.
WITHOUT = {"LinearSCVI.convert_legacy_save"}
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
CONTINUES = re.compile(r"Continues the example of `(\w+)`")


@functools.cache
def names_after(function: str) -> dict[str, object]:
    """What a reader has who pasted the example of a function: it runs once, however many examples continue it."""
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(PUBLIC[f"programs.{function}"]))
    start = doctest.DocTest(examples, {}, function, None, None, None)
    assert doctest.DocTestRunner(optionflags=OPTIONS).run(start, clear_globs=False).failed == 0
    return start.globs


def is_plain_result(item: object) -> bool:
    """Whether it is a named tuple or a class of results, which functions with examples return."""
    return inspect.isclass(item) and item is not LinearSCVI


@pytest.mark.parametrize("name", [name for name, item in PUBLIC.items() if not is_plain_result(item)])
def test_every_public_function_has_an_example(name):
    assert name in WITHOUT or ">>>" in (inspect.getdoc(PUBLIC[name]) or "")


@pytest.mark.thorough
@pytest.mark.parametrize("name", MODULES)
def test_examples_of_the_docstrings_hold(name, tmp_path, monkeypatch):
    found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name))
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    for i, test in enumerate(test for test in found if test.examples):
        (tmp_path / str(i)).mkdir()
        monkeypatch.chdir(tmp_path / str(i))  # some examples write files
        if test.name in PASTED:
            test.globs = {}  # what a reader has who pastes it: nothing of the module
        if start := CONTINUES.search(test.docstring):
            if first := PUBLIC.get(start[1]):  # a model, which examples change
                test.examples[:0] = doctest.DocTestParser().get_examples(inspect.getdoc(first))
            else:
                test.globs |= names_after(start[1])
        runner.run(test)
        plt.close("all")
    assert runner.failures == 0
