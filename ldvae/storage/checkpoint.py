"""Checkpoints of torch are read without executing their pickle.

A pickle can call the functions of this module alone: what it asks for is described by placeholders, which plain values,
arrays and tables are then made from.
"""

from __future__ import annotations

import datetime
import pickle
import uuid
import zipfile
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import partial
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ldvae.errors import InputError


class Described:
    """Placeholder for an object of a pickle, with the arguments it would have been made from."""

    args: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *args: Any) -> Described:
        described = super().__new__(cls)
        described.args = args
        return described

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class ArrayDescription(Described):
    """A numpy array as its pickle gives it: version, shape, dtype, Fortran order, values."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return array_of(self)


def array_of(described: Described) -> np.ndarray:
    _, shape, dtype, fortran, values = described.state
    dtype = dtype.numpy_dtype()
    if dtype.hasobject:
        array = np.empty(len(values), dtype=object)
        for i, value in enumerate(values):  # a slice would make a table of tuples
            array[i] = value
    else:
        array = np.frombuffer(values, dtype=dtype).copy()
    return array.reshape(shape, order="F" if fortran else "C")


class _DtypeDescription(Described):
    """A numpy dtype: its code, and the state that holds its byte order."""

    def numpy_dtype(self) -> np.dtype:
        code = str(self.args[0])
        if code in ("M8", "m8") and self.state:
            unit, count = self.state[-1][1][:2]
            code = f"{code}[{int(count)}{unit.decode() if isinstance(unit, bytes) else unit}]"
        elif code[0] not in "biufcOSU":
            raise pickle.UnpicklingError(f"array of dtype {code!r}")
        dtype = np.dtype(code)
        return dtype.newbyteorder(">") if self.state and self.state[1] == ">" else dtype


class _Value(Described, ABC):
    """A date, a duration, a number or an interval: made from plain values by `plain`, and by nothing in the pickle."""

    @abstractmethod
    def plain(self) -> Any:
        """The value."""


class _IntervalDescription(_Value):
    def plain(self) -> pd.Interval:
        return pd.Interval(*self.args)


class _PeriodDescription(_Value):
    def plain(self) -> pd.Period:
        _, freq, ordinal = self.args
        return pd.Period(ordinal=int(ordinal), freq=freq)


class _OffsetDescription(_Value):
    """A frequency of periods, such as MonthEnd."""

    def plain(self) -> Any:
        return getattr(pd.offsets, type(self).__name__)(*self.args)


_RESOLUTIONS = {7: "s", 8: "ms", 9: "us", 10: "ns"}  # of pandas, by the numbers in its pickles


class _TimestampDescription(_Value):
    def plain(self) -> pd.Timestamp:
        value, _, zone, resolution = self.args
        utc = pd.Timestamp(np.array(value, dtype=f"M8[{_RESOLUTIONS[resolution]}]")[()])
        return utc.tz_localize("UTC").tz_convert(zone) if zone else utc


class _TimedeltaDescription(_Value):
    def plain(self) -> pd.Timedelta:
        value, resolution = self.args
        return pd.Timedelta(np.array(value, dtype=f"m8[{_RESOLUTIONS[resolution]}]")[()])


class _ZoneDescription(_Value):
    """A time zone of pytz, by its name."""

    def plain(self) -> str:
        return str(self.args[0]) if self.args else "UTC"


class _DateDescription(_Value):
    """Of the module datetime, whose pickles give the fields as bytes."""

    def plain(self) -> Any:
        return getattr(datetime, type(self).__name__)(*self.args)


class _DecimalDescription(_Value):
    def plain(self) -> Decimal:
        return Decimal(*self.args)


class _FractionDescription(_Value):
    def plain(self) -> Fraction:
        return Fraction(*self.args)


class _ComplexDescription(_Value):
    def plain(self) -> complex:
        return complex(*self.args)


class _UUIDDescription(_Value):
    def plain(self) -> uuid.UUID:
        return uuid.UUID(int=self.state["int"])


def _scalar(dtype: _DtypeDescription, value: bytes) -> Any:
    return np.frombuffer(value, dtype=dtype.numpy_dtype())[0].item()


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


def _mapping(*_factory: Any) -> dict[Any, Any]:
    return OrderedDict()  # not a dict: a state_dict comes with an attribute, and needs a place for it


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if prod(size) > storage.numel() or min((offset, *size, *stride)) < 0:
        raise pickle.UnpicklingError("a tensor larger than its storage")
    return torch.as_strided(storage, size, stride, offset).clone()


_SAFE: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _mapping,
    ("collections", "defaultdict"): _mapping,
    ("builtins", "dict"): _mapping,
    ("builtins", "bytes"): _no_bytes,
    ("builtins", "slice"): Described,
    ("_codecs", "encode"): _latin1,
    ("numpy", "dtype"): _DtypeDescription,
    ("numpy", "ndarray"): Described,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("pandas._libs.interval", "Interval"): _IntervalDescription,
    ("pandas._libs.tslibs.period", "Period"): _PeriodDescription,
    ("pandas._libs.tslibs.timestamps", "_unpickle_timestamp"): _TimestampDescription,
    ("pandas._libs.tslibs.timedeltas", "_timedelta_unpickle"): _TimedeltaDescription,
    ("pytz", "_p"): _ZoneDescription,
    ("pytz", "_UTC"): _ZoneDescription,
    ("decimal", "Decimal"): _DecimalDescription,
    ("fractions", "Fraction"): _FractionDescription,
    ("builtins", "complex"): _ComplexDescription,
    ("uuid", "UUID"): _UUIDDescription,
    ("uuid", "SafeUUID"): Described,
    **{("datetime", name): _DateDescription for name in ("date", "datetime", "time", "timedelta", "timezone")},
    **{
        ("pandas._libs.tslibs.offsets", name): _OffsetDescription
        for name in (
            *("Nano", "Micro", "Milli", "Second", "Minute", "Hour", "Day", "Week", "BusinessDay"),
            *("MonthEnd", "MonthBegin", "QuarterEnd", "QuarterBegin", "YearEnd", "YearBegin"),
        )
    },
}


for _numpy in ("numpy.core", "numpy._core"):
    _SAFE[_numpy + ".multiarray", "_reconstruct"] = ArrayDescription
    _SAFE[_numpy + ".multiarray", "scalar"] = _scalar


_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


class RestrictedUnpickler(pickle.Unpickler):
    """Reads arrays, tensors and plain containers; tables are described, and everything else is refused by name."""

    def __init__(self, file: IO[bytes], read_storage: Callable[[str], bytes] | None = None) -> None:
        super().__init__(file, encoding="latin1")
        self._read_storage = read_storage
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module
        if module == "torch" and name in _STORAGES:
            return name
        safe = _SAFE.get((module, name))
        if safe is None and module.split(".")[0] in ("pandas", "pyarrow"):
            safe = Described
        if safe is None:
            raise pickle.UnpicklingError(f"{module}.{name}")
        # A fresh object each time: the pickle may set attributes on what it is given, and shall reach nothing of ours.
        return type(name, (safe,), {}) if isinstance(safe, type) else partial(safe)

    def persistent_load(self, identifier: Any) -> Tensor:
        kind, storage_type, key, *_ = identifier
        if kind != "storage" or self._read_storage is None or storage_type not in _STORAGES:
            raise pickle.UnpicklingError(f"storage {identifier!r}")
        if key not in self._storages:
            content = bytearray(self._read_storage(key))
            dtype = _STORAGES[storage_type]
            self._storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self._storages[key]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a file written by `torch.save`, if it holds nothing but tensors, arrays, tables and containers.

    Raises
    ------
    InputError
        If it is another file, or its pickle names anything that is not on the list.
    """
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not a checkpoint of torch 1.6 or later (not a zip archive).")
    with zipfile.ZipFile(path) as archive:
        roots = [name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise InputError(f"{path} is not a checkpoint of torch: expected one data.pkl in it, found {len(roots)}.")
        root = roots[0]
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise InputError(f"{path} was written on a big-endian machine; ldvae reads little-endian checkpoints.")
        with archive.open(f"{root}data.pkl") as file:
            return read_pickle(path, RestrictedUnpickler(file, lambda key: archive.read(f"{root}data/{key}")))


def read_pickle(path: Path, unpickler: RestrictedUnpickler) -> dict[str, Any]:
    try:
        content = plain_value(unpickler.load())
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} was refused: its pickle holds {error}, which no model of scvi-tools needs and which may run code. "
            "Nothing of it was executed. Load it only if you know its origin: in scvi-tools itself, to save it again."
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError, EOFError, IndexError, RuntimeError) as error:
        raise InputError(f"{path} is damaged, or not a checkpoint of scvi-tools: {error}.") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path} is not a checkpoint of scvi-tools: it holds a {type(content).__name__}, not a dictionary."
        )
    return content


def plain_value(value: Any) -> Any:
    """Arrays made from their descriptions, everywhere inside containers and described objects."""
    if isinstance(value, ArrayDescription):
        value.state = plain_value(value.state)
        return array_of(value)
    if isinstance(value, dict):
        return {plain_value(key): plain_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain_value(item) for item in value)
    if isinstance(value, Described):
        value.args, value.state = plain_value(value.args), plain_value(value.state)
    return value.plain() if isinstance(value, _Value) else value
