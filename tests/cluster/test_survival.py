"""`ldvae train` when it is killed, when disks are full or read-only, and when it runs twice: no cluster needed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import kill_train
import psutil
import pytest

LDVAE = Path(sys.executable).parent / "ldvae"


@pytest.fixture(scope="module")
def counts(tmp_path_factory) -> Path:
    """Small counts as `ldvae setup` leaves them."""
    path = tmp_path_factory.mktemp("results") / "setup" / "counts.h5ad"
    kill_train.write_counts(path)
    return path


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 300 kB; mounting it takes root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder]).returncode:
        pytest.skip("cannot mount a disk here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def read_only(folder: Path) -> None:
    """Make the small disk read-only, for root too."""
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)


def start(counts: Path, run: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start `ldvae train` with its outputs in a folder."""
    return subprocess.Popen(
        [LDVAE, *kill_train.command(counts, run), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def train(counts: Path, run: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Run `ldvae train` to its end; exit code and messages."""
    process = start(counts, run, *arguments, **environment)
    _, messages = process.communicate(timeout=900)
    return process.returncode, messages


def kill_often(folder: Path, kills: int, *arguments: str) -> dict[str, object]:
    """Summary of `kill_train.py`."""
    command = [sys.executable, kill_train.__file__, folder, "--kills", str(kills), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_killed_at_random_moments_it_ends_in_the_same_bits(tmp_path):
    assert kill_often(tmp_path, 6)["finished_in_the_same_bits"] > 0


@pytest.mark.cluster
def test_killed_a_hundred_times_it_ends_in_the_same_bits(tmp_path):
    summary = kill_often(tmp_path, 100)
    print(f"\n{summary}")
    assert summary["resumed"] > 10


@pytest.mark.cluster  # each attempt imports everything anew
def test_killed_and_started_as_new_processes_it_ends_in_the_same_bits(tmp_path):
    summary = kill_often(tmp_path, 20, "--new-processes", "--epochs", "600")
    print(f"\n{summary}")
    assert summary["finished_in_the_same_bits"] > 0


def stop(counts: Path, run: Path, how: signal.Signals, processes: int) -> float:
    """Stop a long training by a signal; the seconds of CPU until its checkpoint is written.

    Of CPU, since how long a busy machine lets it wait for that is not its doing.
    """
    long = ["--max-epochs", "100000", "--no-early-stopping", "--checkpoint-minutes", "60"]
    long += ["--processes", str(processes), "--device", "cpu"]
    with start(counts, run, *long) as process:
        assert any(" epoch " in line for line in process.stderr)
        sent = cpu_seconds(process)
        process.send_signal(how)
        assert any("Checkpoint at epoch" in line for line in process.stderr)
        used = cpu_seconds(process) - sent
        process.stderr.read()
    assert process.wait() == 128 + how
    return used


def cpu_seconds(process: subprocess.Popen[str]) -> float:
    times = psutil.Process(process.pid).cpu_times()
    return times.user + times.system


@pytest.mark.parametrize(
    ("how", "processes"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 1), (signal.SIGINT, 1), (signal.SIGUSR1, 2)]
)
def test_a_signal_writes_the_checkpoint_within_ten_seconds_and_asks_to_be_run_again(counts, tmp_path, how, processes):
    assert stop(counts, tmp_path, how, processes) < 10
    assert (tmp_path / "checkpoint" / "checkpoint").exists()
    assert not (tmp_path / "metrics.json").exists()


def test_a_torn_checkpoint_is_set_aside_and_training_starts_over(counts, tmp_path):
    code, messages = train(counts, tmp_path / "alone")
    assert code == 0, messages
    assert train(counts, tmp_path / "torn", "--keep-checkpoint")[0] == 0
    checkpoint = tmp_path / "torn" / "checkpoint" / "checkpoint"
    os.truncate(checkpoint, checkpoint.stat().st_size - 1000)
    code, messages = train(counts, tmp_path / "torn", "--keep-checkpoint")
    assert code == 0
    assert f"Cannot resume from {checkpoint}" in messages
    assert "Resumed" not in messages
    assert len(list(checkpoint.parent.glob("checkpoint.refused-*"))) == 1
    assert kill_train.contents(tmp_path / "torn") == kill_train.contents(tmp_path / "alone")


@pytest.mark.cluster  # half a minute of compiling
def test_an_attempt_that_compiles_the_kernels_and_one_that_finds_them_compiled_give_the_same_bits(counts, tmp_path):
    for run in ("first", "second"):
        assert train(counts, tmp_path / run, NUMBA_CACHE_DIR=str(tmp_path / "cache"))[0] == 0
    assert kill_train.contents(tmp_path / "first") == kill_train.contents(tmp_path / "second")


def test_two_that_train_the_same_run_by_accident_do_not_harm_each_other(counts, tmp_path):
    code, messages = train(counts, tmp_path / "alone")
    assert code == 0, messages
    twins = [start(counts, tmp_path / "twins") for _ in range(2)]
    messages = [process.communicate(timeout=900)[1] for process in twins]
    assert [process.returncode for process in twins] == [0, 0], messages
    assert kill_train.contents(tmp_path / "twins") == kill_train.contents(tmp_path / "alone")


def test_a_full_disk_is_one_message_and_what_was_there_stays(counts, small_disk):
    run = small_disk / "run"
    run.mkdir()
    (run / "metrics.json").write_text("of an earlier run")
    (small_disk / "filling").write_bytes(bytes(250_000))
    code, messages = train(counts, run, "--max-epochs", "3")
    assert code == 1
    assert "No space left on device" in messages.splitlines()[-1]
    assert "Traceback" not in messages
    assert (run / "metrics.json").read_text() == "of an earlier run"
    assert [path.name for path in run.iterdir() if path.is_file()] == ["metrics.json"]


def test_a_disk_that_fills_up_with_the_checkpoint_does_not_stop_the_training(counts, small_disk, tmp_path):
    (small_disk / "filling").write_bytes(bytes(290_000))
    code, messages = train(counts, tmp_path, "--checkpoint", str(small_disk / "checkpoint"))
    assert code == 0
    assert "Could not write the checkpoint" in messages
    assert (tmp_path / "metrics.json").exists()


def test_a_read_only_output_folder_is_one_message_before_the_training(counts, small_disk):
    (small_disk / "run").mkdir()  # the results folder links to it
    read_only(small_disk)
    code, messages = train(counts, small_disk / "run")
    assert code == 2
    assert "read-only file system" in messages
    assert str(small_disk / "run") in messages
    assert len(messages.splitlines()) == 1
    assert "epoch" not in messages.replace("max_epochs", "")


def test_a_read_only_home_is_no_hindrance(counts, small_disk, tmp_path):
    read_only(small_disk)
    environment = {"HOME": str(small_disk), "XDG_CACHE_HOME": "", "XDG_CONFIG_HOME": ""}
    code, messages = train(counts, tmp_path, **environment)
    assert code == 0
    assert not [line for line in messages.splitlines() if str(small_disk) in line]


@pytest.mark.parametrize("damage", ["truncated", "no permission"])
def test_an_unreadable_input_is_one_message(counts, tmp_path, damage):
    broken = tmp_path / "setup" / "counts.h5ad"
    broken.parent.mkdir()
    shutil.copy(counts, broken)
    if damage == "truncated":
        os.truncate(broken, broken.stat().st_size // 2)
    elif os.geteuid() == 0:
        pytest.skip("root may read everything")
    else:
        broken.chmod(0)
    code, messages = train(broken, tmp_path / "run")
    assert code == 2
    assert str(broken) in messages.splitlines()[-1]
    assert "Traceback" not in messages
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())
