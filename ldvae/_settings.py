"""Settings of the library for this process: `ldvae.settings`."""

from __future__ import annotations

import logging
import operator
import secrets
from typing import Any

from ldvae.errors import InputError

logger = logging.getLogger(__name__)

# Settings of scvi-tools that change no number: accepted, and said to do nothing.
NO_EFFECT = (
    "dl_num_workers",
    "dl_persistent_workers",
    "jax_preallocate_gpu_memory",
    "logging_dir",
    "progress_bar_style",
    "warnings_stacklevel",
)


class Settings:
    """Settings for this process.

    Examples
    --------
    >>> import ldvae
    >>> ldvae.settings.seed = 0  # every model that is given no seed of its own has this one
    >>> ldvae.settings.seed
    0
    >>> ldvae.settings.seed = None  # each draws a fresh one again
    >>> ldvae.settings.num_threads = 2  # of the CPU
    """

    def __init__(self) -> None:
        self._seed: int | None = None

    @property
    def seed(self) -> int | None:
        """Seed of every model that is given none.

        None, as at the start: what `torch.manual_seed` was last given; where it was never called, each model draws a
        fresh seed, logs it, and saves it with its weights.
        """
        return self._seed

    @seed.setter
    def seed(self, value: int | None) -> None:
        if value is None:
            self._seed = None
            return
        try:
            seed = operator.index(value)
        except TypeError:
            seed = -1
        if isinstance(value, bool) or not 0 <= seed < 2**32:
            raise InputError(f"settings.seed is {value!r}; it must be a whole number from 0 to {2**32 - 1}, or None.")
        self._seed = seed

    @property
    def num_threads(self) -> int:
        """Threads on a CPU: those of PyTorch."""
        import torch

        return torch.get_num_threads()

    @num_threads.setter
    def num_threads(self, value: int) -> None:
        import torch

        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"settings.num_threads is {value!r}; it must be a whole number of at least 1.")
        torch.set_num_threads(value)

    @property
    def verbosity(self) -> int:
        """Level of the messages of ldvae, as `logging` has it."""
        return logging.getLogger("ldvae").getEffectiveLevel()

    @verbosity.setter
    def verbosity(self, value: int | str) -> None:
        try:
            logging.getLogger("ldvae").setLevel(value)
        except (TypeError, ValueError) as error:
            raise InputError(f"settings.verbosity is {value!r}; it must be a level of logging: {error}.") from error

    def __setattr__(self, name: str, value: Any) -> None:
        if name in NO_EFFECT:
            logger.warning("settings.%s: accepted as in scvi-tools, without effect in ldvae.", name)
        elif name == "batch_size":
            raise InputError("There is no settings.batch_size; give batch_size to `train`, and to the methods.")
        elif name != "_seed" and not isinstance(getattr(type(self), name, None), property):
            raise InputError(f"There is no settings.{name}; there are seed, num_threads and verbosity.")
        else:
            super().__setattr__(name, value)


settings = Settings()


def default_seed(untouched: int) -> int | None:
    """Seed of a model that is given none: that of the settings, or torch's; None if nobody has set either.

    Parameters
    ----------
    untouched
        `torch.initial_seed()` when `LinearSCVI` was imported. torch draws it at random from 64 bits (53 on some
        systems), so that one below 2**32 was given to `torch.manual_seed` before.
    """
    import torch

    if settings.seed is not None:
        return settings.seed
    seed = torch.initial_seed()
    return seed % 2**32 if seed != untouched or seed < 2**32 else None  # NumPy takes none above


def fresh_seed() -> int:
    """A seed that nobody has chosen, below 2**32, which numpy accepts too."""
    return secrets.randbits(32)
