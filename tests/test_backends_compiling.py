"""Processes that share a cache of compiled code compile one at a time."""

import os
import subprocess
import sys
import threading
import time

import pytest

from ldvae.backends.compiling import LOCK, WAITING, compile_alone, lock

SCRIPT = """
import os, sys, time
from pathlib import Path
import numba
import numpy as np
from ldvae.backends.compiling import compile_alone

@numba.njit(cache=True)
def total(x):
    return x.sum() + (x * x).mean()

compile_alone(total)
compile_alone(total)  # once is enough
one, two = map(Path, sys.argv[1:])
if other := os.fork():
    one, two = two, one
one.touch()
while not two.exists():  # both start to compile at the same moment
    time.sleep(0.001)
total(np.ones(3))
if other:
    os.wait()
print(len(total.stats.cache_hits), len(total.stats.cache_misses))
"""


@pytest.mark.thorough
def test_of_two_processes_on_an_empty_cache_one_compiles_and_the_other_loads(tmp_path):
    script = tmp_path / "total.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    ready = [tmp_path / name for name in ("one", "two")]
    command = [sys.executable, script, *ready]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=300, check=True)
    assert sorted(done.stdout.splitlines()) == ["0 1", "1 0"]


def test_a_lock_is_waited_for_shared_by_readers_and_given_up_after_a_while(tmp_path, caplog):
    caplog.set_level("INFO")
    entered = []

    def enter(name, **options):
        with lock(tmp_path, **options):
            entered.append(name)

    with lock(tmp_path, shared=True):
        enter("reader", shared=True)
        enter("impatient", shared=False, wait_s=0.1)
        waiting = threading.Thread(target=enter, args=["writer"], kwargs={"shared": False})
        waiting.start()
        time.sleep(0.3)
        assert entered == ["reader", "impatient"]
        assert WAITING.is_set()
    waiting.join(timeout=10)
    assert not WAITING.is_set()
    assert [line.split(". ")[1] for line in caplog.messages] == [
        "This one waits for it, 0 s at most.", "This one compiles the code itself.",
        "This one waits for it, 600 s at most.",
    ]  # fmt: skip
    assert entered == ["reader", "impatient", "writer"]


def test_a_folder_that_cannot_be_written_is_no_hindrance(tmp_path):
    (tmp_path / LOCK).mkdir()
    with lock(tmp_path, shared=False):
        pass


def test_a_function_without_a_cache_is_left_as_it_is():
    class Function:
        stats = None

        def compile(self, signature):
            return signature

    function = Function()
    compile_alone(function)
    assert function.compile(1) == 1
    assert "compile" not in vars(function)
