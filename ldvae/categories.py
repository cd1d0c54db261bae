"""Values of categories (batches, labels) as plain JSON and back: whatever a model can be trained on."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd

from ldvae.errors import InputError


def _timestamp(value: pd.Timestamp) -> list[Any]:
    zone = None if value.tz is None else str(value.tz)
    utc = value if zone is None else value.tz_convert("UTC").tz_localize(None)
    return [utc.isoformat(), value.unit, zone]


def _to_timestamp(utc: str, unit: str, zone: str | None) -> pd.Timestamp:
    value = pd.Timestamp(utc).as_unit(unit)
    return value if zone is None else value.tz_localize("UTC").tz_convert(zone)


def _timedelta(value: pd.Timedelta) -> list[Any]:
    return [int(value.to_timedelta64().astype(np.int64)), value.unit]


# Type, its name in JSON, to a list of plain values, and back. The first that fits: a Timestamp is a datetime is a date.
KINDS: list[tuple[type, str, Callable[[Any], list[Any]], Callable[..., Any]]] = [
    (
        pd.Interval,
        "interval",
        lambda value: [encoded(value.left), encoded(value.right), value.closed],
        lambda left, right, closed: pd.Interval(decoded(left), decoded(right), closed),
    ),
    (pd.Timestamp, "timestamp", _timestamp, _to_timestamp),
    (pd.Timedelta, "timedelta", _timedelta, lambda n, unit: pd.Timedelta(np.timedelta64(n, unit))),
    (
        pd.Period,
        "period",
        lambda value: [int(value.ordinal), value.freqstr],
        lambda n, freq: pd.Period(ordinal=n, freq=freq),
    ),
    (datetime.datetime, "datetime", lambda value: [value.isoformat()], datetime.datetime.fromisoformat),
    (datetime.date, "date", lambda value: [value.isoformat()], datetime.date.fromisoformat),
    (datetime.time, "time", lambda value: [value.isoformat()], datetime.time.fromisoformat),
    (
        datetime.timedelta,
        "duration",
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda days, seconds, microseconds: datetime.timedelta(days, seconds, microseconds),
    ),
    (Decimal, "decimal", lambda value: [str(value)], Decimal),
    (Fraction, "fraction", lambda value: [str(value)], Fraction),
    (complex, "complex", lambda value: [value.real, value.imag], complex),
    (bytes, "bytes", lambda value: [value.hex()], bytes.fromhex),
    (UUID, "uuid", lambda value: [str(value)], UUID),
    (tuple, "tuple", lambda value: [encoded(part) for part in value], lambda *parts: tuple(map(decoded, parts))),
]


def is_plain(value: Any) -> bool:
    """Whether JSON and h5ad hold a value as it is."""
    return type(value) in (str, bool, int, float)


def encoded(value: Any) -> Any:
    """A value as JSON holds it: text, numbers and booleans as they are, others as {kind: [...]}.

    Raises
    ------
    InputError
        If it is of a type that cannot be brought back.
    """
    if isinstance(value, np.datetime64):
        value = pd.Timestamp(value)
    elif isinstance(value, np.timedelta64):
        value = pd.Timedelta(value)
    elif isinstance(value, np.generic):
        value = value.item()
    if is_plain(value):
        return value
    if isinstance(value, str):
        return str(value)
    for kind, name, to_list, _ in KINDS:
        if isinstance(value, kind):
            return {name: to_list(value)}
    raise InputError(
        f"categories hold {value!r}, of type {type(value).__name__}, which a saved model cannot hold; convert the "
        "column to text (astype(str))."
    )


def decoded(value: Any) -> Any:
    """Inverse of `encoded`."""
    if not isinstance(value, dict):
        return value
    ((name, parts),) = value.items()
    for _, known, _, from_list in KINDS:
        if name == known:
            return from_list(*parts)
    raise InputError(f"The saved model holds a category of unknown kind {name!r}; it may be of a newer ldvae.")


def as_saved(value: Any) -> Any:
    """A value as it comes back from a saved model: NumPy's scalars as Python's or pandas' own."""
    return decoded(encoded(value))


def as_text(categories: Sequence[Any]) -> dict[str, Any]:
    """Categories by their text, for files that hold no others; empty where a file holds them as they are.

    It does for values of one plain type. Where two have the same text (1 and "1"), the text is as in Python's code.
    """
    plain = [value.item() if isinstance(value, np.generic) else value for value in categories]
    as_they_are = all(map(is_plain, plain)) and len(set(map(type, plain))) == 1
    as_they_are = as_they_are and not any(type(v) is int and not -(2**63) <= v < 2**64 for v in plain)
    if as_they_are:
        return {}
    for text in (str, repr):
        by_text = {text(as_saved(value)): value for value in categories}
        if len(by_text) == len(categories):
            return by_text
    return {}
