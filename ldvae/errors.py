"""The one exception that means: the input is at fault, not the program."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The user's data, config or arguments cannot be used as they are.

    The message says what is wrong, what was found, what was expected and what to do; each argument is one mistake. The
    command line prints it without a traceback and exits with code 2.

    Examples
    --------
    >>> print(InputError("n_latent: expected at least 1, found 0.", "lr: expected a number, found 'ten'."))
    2 problems:
    - n_latent: expected at least 1, found 0.
    - lr: expected a number, found 'ten'.
    """

    def __str__(self) -> str:
        if len(self.args) < 2:
            return super().__str__()
        return "\n- ".join([f"{len(self.args)} problems:", *map(str, self.args)])


class MissingKeyError(InputError, KeyError):
    """A column or key does not exist; also a KeyError, which scvi-tools raises."""

    __str__ = Exception.__str__  # that of KeyError shows the message in quotes


class UntrainedError(InputError, RuntimeError):
    """The model is not trained; also a RuntimeError, which scvi-tools raises."""


def suggestion(name: str, options: Iterable[object]) -> str:
    """The nearest valid name as the end of a message: " Did you mean 'donor'?", or the names there are.

    Examples
    --------
    >>> suggestion("doner", ["donor", "cell_type"])
    " Did you mean 'donor'? There are: donor, cell_type."
    """
    names = [str(option) for option in options]
    near = difflib.get_close_matches(name, names, n=1)
    listed = ", ".join(names[:20]) + (", …" if len(names) > 20 else "") if names else "none"
    return (f" Did you mean {near[0]!r}?" if near else "") + f" There are: {listed}."


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
