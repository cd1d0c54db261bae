"""Processes that share a cache of compiled code compile one at a time."""

import os
import subprocess
import sys
import threading
import time

from ldvae.backends.compiling import LOCK, WAITING, compile_alone, lock

SCRIPT = """
import sys, time
from pathlib import Path
import numba
from ldvae.backends.compiling import compile_alone

@numba.njit(cache=True)
def total(x):
    return x.sum() + (x * x).mean()

compile_alone(total)
compile_alone(total)  # once is enough
import numpy as np
Path(sys.argv[1]).touch()
while not Path(sys.argv[2]).exists():  # both start to compile at the same moment
    time.sleep(0.001)
total(np.ones(3))
print(len(total.stats.cache_hits), len(total.stats.cache_misses))
"""


def test_of_two_processes_on_an_empty_cache_one_compiles_and_the_other_loads(tmp_path):
    script = tmp_path / "total.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    ready = [tmp_path / name for name in ("one", "two")]
    commands = [[sys.executable, str(script), str(own), str(other)] for own, other in (ready, ready[::-1])]
    processes = [subprocess.Popen(c, env=environment, stdout=subprocess.PIPE, text=True) for c in commands]
    said = sorted(process.communicate(timeout=300)[0].split() for process in processes)
    assert said == [["0", "1"], ["1", "0"]]


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
