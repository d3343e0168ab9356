"""Pickles of arrays, such as the ``.pkl`` files of detectron2's model zoo. Nothing is imported.

What a pickle of arrays asks for by name is answered by stand-ins that keep what they are given; arrays are made of
that afterwards, once kind, shape and number of bytes agree.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .files import shown
from .pickles import PLAIN, check_extent, check_operations, known_operations

MAX_PROTOCOL = 4
_OPERATIONS = known_operations(
    PLAIN
    | {"GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "FRAME", "MEMOIZE"}
    | {"SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"}
)
_MAX_SIDES, _LONGEST = 32, 2**48  # of an array
_KIND = re.compile(r"[<>|=]?(?:[fiu][1248]|b1)")


class _Kind:
    """Stands in for a dtype."""

    __slots__ = ("name", "order")

    def __init__(self, name: str, *_: Any) -> None:
        self.name, self.order = name, "|"

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def dtype(self) -> np.dtype:
        name = self.name if self.name[:1] in "<>|=" else f"{self.order}{self.name}"
        if not _KIND.fullmatch(name):
            raise ValueError(f"arrays of {name!r} are no weights")
        return np.dtype(name)


class _Array:
    """Stands in for an array: (version, shape, kind, columns first, bytes), which are there after ``__setstate__``."""

    __slots__ = ("made", "state")

    def __init__(self) -> None:
        self.made: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        """Return the array, always the same, however often a file repeats it."""
        if self.made is None:
            self.made = self._make()
        return self.made

    def _make(self) -> np.ndarray:
        _, shape, kind, columns_first, data = self.state
        data = data.encode("latin1") if isinstance(data, str) else data  # of Python 2
        dtype = kind.dtype()
        if len(shape) > _MAX_SIDES or not all(0 <= side <= _LONGEST for side in shape):
            raise ValueError("an array has an impossible shape")
        if math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f"an array of {shape} {dtype} has {len(data)} bytes")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if columns_first else "C")


class _Callable:
    """Stands in for a function of the file. Without attributes, so that no file can leave anything behind in it."""

    __slots__ = ("_call",)

    def __init__(self, call: Any) -> None:
        object.__setattr__(self, "_call", call)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"it sets {name} of a function")

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)


def _reconstruct(kind: str, *_: Any) -> _Array:
    if kind != "ndarray":
        raise pickle.UnpicklingError("it makes something else than an array")
    return _Array()


def _scalar(kind: _Kind, data: bytes | str) -> _Array:
    made = _Array()
    made.state = (1, (), kind, False, data)
    return made


class _Budget:
    """What may still be made: all that a file makes once is no longer than the file itself."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, count: int) -> None:
        """Raise when a file makes something large over and over from the same bytes."""
        self.left -= count
        if self.left < 0:
            raise pickle.UnpicklingError("it would take far more memory than its size")


def _names(budget: _Budget) -> dict[tuple[str, str], Any]:
    """Return what stands in for each name that a pickle of arrays asks for."""

    def encode(text: str, encoding: str) -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"it encodes as {encoding!r}")
        budget.take(len(text))
        return text.encode("latin1")

    def ordered(items: list | tuple = ()) -> dict:
        if not isinstance(items, (list, tuple)):
            raise pickle.UnpicklingError("it makes a dictionary of something else than pairs")
        budget.take(len(items))
        return dict(items)

    def no_bytes() -> bytes:
        return b""

    return {
        ("numpy", "ndarray"): "ndarray",
        ("numpy", "dtype"): _Callable(_Kind),
        ("_codecs", "encode"): _Callable(encode),
        ("collections", "OrderedDict"): _Callable(ordered),
        **{(module, "bytes"): _Callable(no_bytes) for module in ("__builtin__", "builtins")},
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _Callable(_reconstruct) for core in ("core", "_core")},
        **{(f"numpy.{core}.multiarray", "scalar"): _Callable(_scalar) for core in ("core", "_core")},
    }


class _ArrayUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._names = _names(_Budget(len(data)))

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._names:
            raise DataError(
                "The pickle holds more than arrays and is not opened: it could run code.",
                value=f"{module}.{name}",
                allowed="arrays of numbers, and plain values",
                fix="ask its author for a .safetensors file",
            )
        return self._names[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it asks for an object outside of the file")


def read_array_pickle(path: str | Path) -> Any:
    """Read a pickle of plain values and arrays of numbers, protocol 0 to 4, such as ``{"model": {name: array}}``.

    Returns:
        The values, read-only arrays among them.

    Raises:
        DataError: malformed, of a later protocol, or it asks for anything else, which is named; nothing was executed.
    """
    data = Path(path).read_bytes()
    check_operations(data, path, _OPERATIONS, MAX_PROTOCOL)
    try:
        value = _ArrayUnpickler(data).load()
        check_extent(value, len(data), path)
        return _with_arrays(value, _Budget(len(data)))
    except DataError as err:
        raise DataError(err.what, where=shown(path), value=err.value, allowed=err.allowed, fix=err.fix) from None
    except Exception as err:  # a malformed pickle raises what it likes
        raise DataError(f"Malformed pickle: {err}.", where=shown(path)) from None


def _with_arrays(value: Any, budget: _Budget) -> Any:
    if isinstance(value, _Array):
        budget.take(0 if value.made is not None else len(value.state[4]))
        return value.array()
    if isinstance(value, dict):
        return {name: _with_arrays(item, budget) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_arrays(item, budget) for item in value]
    if isinstance(value, (str, bytes, int, float, bool, type(None))):
        return value
    raise ValueError("a value is neither plain nor an array")
