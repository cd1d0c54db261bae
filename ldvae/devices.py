"""The device that a model is on: found by looking, or named by the caller."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ldvae.arguments import ACCELERATORS, scalar
from ldvae.distributed import local_rank
from ldvae.errors import InputError


def pick_device(accelerator: str = "auto", devices: int | str | Sequence[int] = "auto") -> torch.device:
    """The device that Lightning's arguments stand for, found by looking.

    Parameters
    ----------
    accelerator
        "auto" (a GPU if there is one), "cpu", "gpu", "cuda", or one GPU by its number: "cuda:0".
    devices
        "auto", 1, or a list with the number of a GPU.
    """
    if isinstance(accelerator, str) and accelerator.startswith("cuda:") and devices == "auto":
        return device_named(accelerator)
    if not isinstance(accelerator, str) or accelerator not in ACCELERATORS:
        raise InputError(f"accelerator is {accelerator!r}; it must be auto, cpu, gpu or cuda.")
    given = [scalar(value) for value in devices] if isinstance(devices, (list, tuple, range)) else scalar(devices)
    if (isinstance(given, list) and len(given) > 1) or (type(given) is int and given > 1):
        raise InputError(f"devices is {given!r}; a model is trained on one device.")
    one = given in ("auto", "1", "-1") if isinstance(given, str) else type(given) is int and given in (1, -1)
    index = given[0] if isinstance(given, list) and len(given) == 1 else None
    if not one and not (type(index) is int and index >= 0):
        raise InputError(f"devices is {given!r}; it must be 'auto', 1, or a list with the number of one GPU: [0].")
    if index is not None and accelerator != "cpu":
        return device_named(index)
    return device_named(accelerator)


def device_named(device: int | str | torch.device) -> torch.device:
    """The device of a name: "auto", "cpu", "gpu", "cuda", "cuda:0", or the number of a GPU; it must be there."""
    device = scalar(device)
    if isinstance(device, torch.device):
        device = str(device)
    index = device if type(device) is int else None
    if isinstance(device, str) and device.removeprefix("cuda:").isdigit():
        index = int(device.removeprefix("cuda:"))
    if index is None and device not in ACCELERATORS:
        raise InputError(f"device is {device!r}; it must be auto, cpu, gpu, cuda, cuda:0, or the number of a GPU.")
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError(
            f"The device {device!r} is asked for, but torch {torch.__version__} sees no GPU (CUDA_VISIBLE_DEVICES, "
            "driver, or a CPU build of torch). Use 'cpu', or run where a GPU is visible."
        )
    index = local_rank() if index is None else index
    if not 0 <= index < torch.cuda.device_count():
        raise InputError(
            f"The device {device!r} is asked for, but there are {torch.cuda.device_count()} GPUs, from 0 on."
        )
    return torch.device("cuda", index)
