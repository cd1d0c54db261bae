"""Training in several processes: two of them, started by torchrun, end where one does."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import two_processes
from anndata import read_h5ad
from safetensors.torch import load_file

from ldvae.backends import unsupported
from ldvae.config import ModelConfig
from ldvae.data import DataShape, read_counts, register, registered
from ldvae.distributed import ALONE, Processes, join, placement
from ldvae.errors import InputError
from ldvae.module import LDVAE


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """The folder in which two processes have written how their trainings ended."""
    folder = tmp_path_factory.mktemp("together")
    two_processes.write_counts(folder / "counts.h5ad")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, two_processes.__file__, folder],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


@pytest.mark.thorough
@pytest.mark.parametrize("case", two_processes.CASES)
def test_two_processes_end_where_one_does(together, case):
    module, done = two_processes.train(together / "counts.h5ad", case)
    first, second = (load_file(together / f"{case}.{rank}.safetensors") for rank in (0, 1))
    for name, alone in module.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(
            first[name], alone, rtol=2e-3, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    histories = [pd.read_csv(together / f"{case}.{rank}.csv", index_col="epoch") for rank in (0, 1)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    pd.testing.assert_frame_equal(histories[0], done.history, rtol=1e-5)


@pytest.mark.thorough
def test_a_stop_in_one_process_stops_both_and_they_resume_together(together):
    """A step after a stop is in the same bits, the first alone writes the checkpoint and is told of the epochs."""
    said = [(together / f"said.{rank}.txt").read_text().splitlines() for rank in (0, 1)]
    assert [lines[:2] for lines in said] == [
        ["interrupted", "told of epochs [2, 3]"],
        ["interrupted", "told of epochs []"],
    ]
    assert (together / "checkpoint.0").exists()
    assert not (together / "checkpoint.1").exists()
    for rank in (0, 1):
        for name, value in load_file(together / f"nb.{rank}.safetensors").items():
            assert torch.equal(load_file(together / f"resumed.{rank}.safetensors")[name], value), name
    assert (together / "resumed.0.csv").read_text() == (together / "nb.0.csv").read_text()


@pytest.mark.thorough
def test_processes_that_train_something_else_are_refused(together):
    said = (together / "said.1.txt").read_text().splitlines()[2]
    assert said.startswith("Process 1 has other data, another split, other options or another seed than process 0.")


@pytest.mark.thorough
def test_a_model_without_a_seed_takes_that_of_the_first_process(together):
    said = [(together / f"said.{rank}.txt").read_text().splitlines()[3] for rank in (0, 1)]
    assert said[0] == said[1]
    first, second = (load_file(together / f"model.{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (together / "model.0.csv").read_text() == (together / "model.1.csv").read_text()


@pytest.mark.thorough
def test_a_part_of_each_minibatch_is_read_from_disk(together):
    """The minibatches are those of one process; each of three parts has some cells of them, and no cell is in two."""
    adata = read_h5ad(together / "counts.h5ad", backed="r")
    register(adata)
    source = read_counts(adata, registered(adata))
    rows = np.arange(0, 1200, 3)
    for order in (None, 7):

        def read(part, order=order):
            return list(source.minibatches(rows, 50, order if order is None else np.random.default_rng(order), part))

        parts = [read((rank, 3)) for rank in range(3)]
        for (whole, all_rows), *shares in zip(read((0, 1)), *parts, strict=True):
            assert (np.sum([own >= 0 for _, own in shares], axis=0) == 1).all()
            for counts, own in shares:
                mine = own >= 0
                assert (counts.x[own[mine]] != whole.x[all_rows[mine]]).nnz == 0


def test_backends_say_that_they_train_in_one_process():
    module = LDVAE(ModelConfig(n_latent=2, n_hidden=4), DataShape(6))
    assert unsupported(module) is None
    assert unsupported(module, processes=Processes(1, 4)) == "the compiled step trains in one process, not in 4"
    cuda = pytest.importorskip("ldvae.backends.cuda")
    assert "not in 4" in cuda.CudaBackend.unsupported(module, processes=Processes(1, 4))


def test_a_process_that_torchrun_did_not_start_is_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert join() == ALONE
    assert not ALONE.any(False)
    assert ALONE.any(True)


@pytest.mark.thorough
def test_processes_import_no_file_of_the_working_folder(tmp_path):
    """As the command ldvae does not: `random.py` of a user, or the ldvae of a clone beside an installed one."""
    (tmp_path / "this.py").write_text("raise SystemExit(3)\n")
    start = "import sys; from ldvae.distributed import launch; sys.exit(launch(1, 'this', []))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", start], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Beautiful is better than ugly" in done.stdout


def test_each_task_of_slurm_starts_its_share_of_the_processes():
    step = {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": "0",
        "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
    }
    first, second = (placement(8, step | {"SLURM_PROCID": rank}) for rank in "01")
    assert first["nproc_per_node"] == second["nproc_per_node"] == 4
    assert first["rdzv_endpoint"] == second["rdzv_endpoint"]
    assert first["rdzv_endpoint"].startswith("10.0.0.1:")
    assert (first["rdzv_configs"], second["rdzv_configs"]) == ({"is_host": True}, {"is_host": False})
    with pytest.raises(InputError, match="3 processes cannot be shared evenly by 2 tasks"):
        placement(3, step | {"SLURM_PROCID": "0"})
