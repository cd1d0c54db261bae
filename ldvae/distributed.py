"""The processes that share a training, as `torchrun` starts them: which one this is, and what they tell each other."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

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

    Where the caller has initialised torch's process group already, that one is used.
    """
    if not dist.is_available():
        return ALONE
    if not dist.is_initialized():
        if not dist.is_torchelastic_launched() or os.environ.get("WORLD_SIZE", "1") == "1":
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


def local_rank() -> int:
    """Number of this process among those that `torchrun` started on this machine: that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0)) if dist.is_available() and dist.is_torchelastic_launched() else 0
