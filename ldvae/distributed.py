"""The processes that share a training: starting them, which one this is, and what they tell each other."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ldvae.errors import InputError

Value = TypeVar("Value")


class Processes(NamedTuple):
    """Rank and number of the processes that train one model together; all methods do nothing for one alone."""

    rank: int = 0
    world_size: int = 1

    @property
    def are_several(self) -> bool:
        """Whether there is more than one."""
        return self.world_size > 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files and reports progress."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes; differentiable: what any of them makes of the sum counts for the values of all."""
        return Sum.apply(values) if self.are_several else values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return bool(self.sum(torch.tensor(float(flag))) > 0)

    def agreed(self, asked: Callable[[], bool] | None) -> Callable[[], bool] | None:
        """A question that all processes ask at once, answered yes if it is yes for any of them."""
        return asked if asked is None or not self.are_several else lambda: self.any(asked())

    def of_first(self, value: Value) -> Value:
        """The value that the first process has; anything that can be pickled."""
        values = [value]
        if self.are_several:
            dist.broadcast_object_list(values)
        return values[0]

    def of_all(self, value: Value) -> list[Value]:
        """The values that the processes have, by rank."""
        values = [value] * self.world_size
        if self.are_several:
            dist.all_gather_object(values, value)
        return values


ALONE = Processes()


class Sum(torch.autograd.Function):
    """Sum of a tensor over all processes. Its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """The sum."""
        total = values.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Gradient w.r.t. the values of this process."""
        return Sum.forward(ctx, gradient)


def join() -> Processes:
    """Join the processes that `torchrun` started; one that it did not start is alone.

    Where the caller has initialized torch's process group already, that one is used.
    """
    if not dist.is_available():
        return ALONE
    if not dist.is_initialized():
        if not started_by_torchrun() or os.environ["WORLD_SIZE"] == "1":
            return ALONE
        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank())
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(leave)
    return Processes(dist.get_rank(), dist.get_world_size())


def leave() -> None:
    """End the process group, as NCCL wants it before the process ends."""
    if dist.is_initialized():
        dist.destroy_process_group()


def started_by_torchrun() -> bool:
    """Whether torch's launcher has started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def local_rank() -> int:
    """Number of this process among those that `torchrun` started on this machine: that of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if started_by_torchrun() else 0


def local_world_size() -> int:
    """Number of processes that `torchrun` started on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if started_by_torchrun() else 1


def launch(n_processes: int, module: str, arguments: Sequence[str]) -> int:
    """Run `python -m module` in several processes that train together, as `torchrun` does; the exit code.

    It is 0 if all ended well, that of the first process that failed, or 128 + the number of the signal that ended them:
    SIGTERM, SIGINT and SIGUSR1 are passed on to all.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    def receive(number: int, _: object) -> None:
        raise SignalException("told to stop", signal.Signals(number))

    signal.signal(signal.SIGUSR1, receive)  # the launcher itself sees to the others
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    options = placement(n_processes, os.environ)
    # As here: what `python -m` started seeks modules in the working folder first, and the command `ldvae` does not.
    path = [] if Path(sys.argv[0]).name == "__main__.py" else ["-P"]
    try:
        with tempfile.TemporaryDirectory(prefix="ldvae-") as folder:  # torch would leave one of its own
            config = LaunchConfig(**options, logs_specs=DefaultLogsSpecs(log_dir=folder))
            elastic_launch(config, sys.executable)(*path, "-m", module, *arguments)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code >= 0 else 128 - code
    except SignalException as stopped:
        return 128 + stopped.sigval
    return 0


def placement(n_processes: int, environ: Mapping[str, str]) -> dict[str, Any]:
    """Where processes run, and how they find each other, as options of torch's launcher.

    All of them run here, unless Slurm's `srun` started this command as one of several tasks: then each task starts its
    share, and they meet at the node that `srun` was called on.

    Examples
    --------
    >>> options = placement(4, {})
    >>> options["nproc_per_node"], options["max_nodes"], options["rdzv_endpoint"]
    (4, 1, 'localhost:0')
    """
    n_tasks = int(environ.get("SLURM_STEP_NUM_TASKS", 1))
    if n_processes % n_tasks:
        raise InputError(f"{n_processes} processes cannot be shared evenly by {n_tasks} tasks of Slurm.")
    common = {"nproc_per_node": n_processes // n_tasks, "min_nodes": n_tasks, "max_nodes": n_tasks, "max_restarts": 0}
    if n_tasks == 1:
        return common | {"run_id": str(os.getpid()), "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    job, step = int(environ["SLURM_JOB_ID"]), int(environ["SLURM_STEP_ID"])
    host, is_host = environ["SLURM_LAUNCH_NODE_IPADDR"], environ["SLURM_PROCID"] == "0"
    return common | {
        "run_id": f"{job}.{step}",
        "rdzv_backend": "c10d",
        "rdzv_endpoint": f"{host}:{20_000 + (97 * job + step) % 10_000}",
        "rdzv_configs": {"is_host": is_host},
        "local_addr": host if is_host else None,
    }
