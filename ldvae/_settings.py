"""Settings of the library for this process: `ldvae.settings`."""

from __future__ import annotations

import operator
import secrets

from ldvae.errors import InputError


class Settings:
    """Settings for this process.

    Examples
    --------
    >>> import ldvae
    >>> ldvae.settings.seed = 0  # every model that is given no seed of its own has this one
    >>> ldvae.settings.seed
    0
    >>> ldvae.settings.seed = None  # each draws a fresh one again
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
