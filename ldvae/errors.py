"""The exceptions that mean the input is at fault, not the program; and phrases for their messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from numbers import Real


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


def other_type(name: object, known: Iterable[object]) -> str:
    """The end of a message where a category was given as another type: as text for a number, say; else nothing.

    Examples
    --------
    >>> other_type("2", [0, 1, 2])
    " Found '2' (text); there is 2 (a number)."
    >>> other_type("3", [0, 1, 2])
    ''
    """
    for value in known:
        if kind(value) != kind(name) and str(name) in (str(value), f"{value:g}" if kind(value) == "a number" else ""):
            value = value.item() if hasattr(value, "item") else value
            return f" Found {name!r} ({kind(name)}); there is {value!r} ({kind(value)})."
    return ""


def kind(value: object) -> str:
    """What a category is, in a word or two."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, Real) and type(value).__name__ not in ("bool", "bool_"):
        return "a number"
    return type(value).__name__


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def counted(n: int, noun: str) -> str:
    """A number with its noun: "1 program", "2,000 programs"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def listed(items: Iterable[object], most: int = 8) -> str:
    """Items as a phrase: "a, b and c", cut after `most`."""
    names = [str(item) for item in items]
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
