"""Pickles of plain values: lists, dicts, texts and numbers. Nothing is imported and nothing is called."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

from ..errors import DataError
from .files import masquerade, require_file, shown

MAX_PICKLE_BYTES = 2**29
MAX_PROTOCOL = 2
# every operation of protocols 0 to 2 that makes or fills a plain value, or remembers one
_PLAIN = {
    *("MARK", "STOP", "PROTO", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET"),
    *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE"),
    *("LIST", "EMPTY_LIST", "APPEND", "APPENDS", "DICT", "EMPTY_DICT", "SETITEM", "SETITEMS"),
    *("TUPLE", "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
}
_REMEMBER = ("PUT", "BINPUT", "LONG_BINPUT")


class _PlainUnpickler(pickle.Unpickler):
    """Refuses to import: the operations that would ask for it have been refused before; this is the second lock."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it asks for an object outside of the file")


def read_plain_pickle(path: str | Path, *, max_bytes: int = MAX_PICKLE_BYTES) -> Any:
    """Read a pickle of lists, tuples, dicts, str, int, float, bool and None, protocol 0 to 2.

    Every operation of the file is looked at before any is carried out; what is left could be JSON.

    Raises:
        DataError: missing, too large, truncated, of a later protocol, or holding anything else, which is named; or
            values that hold themselves, or each other so often that walking over them never ends.
    """
    size = require_file(path)
    if size > max_bytes:
        raise DataError(
            "The file is too large.", where=shown(path), value=f"{size} bytes", allowed=f"up to {max_bytes} bytes"
        )
    data = Path(path).read_bytes()
    if reason := masquerade(data[:256]):
        raise DataError(f"The file cannot be read: {reason}.", where=shown(path))
    _check_operations(data, path)
    try:
        value = _PlainUnpickler(io.BytesIO(data), encoding="utf-8").load()
    except Exception as err:  # a malformed pickle raises what it likes
        raise DataError(f"Malformed pickle: {err}.", where=shown(path)) from None
    _check_extent(value, len(data), path)
    return value


def _check_operations(data: bytes, path: str | Path) -> None:
    try:
        for operation, argument, position in pickletools.genops(data):
            where = f"{shown(path)}: byte {position}"
            if operation.name not in _PLAIN:
                raise DataError(
                    "The pickle holds more than plain values and is not opened: it could run code.",
                    where=where,
                    value=f"{operation.name} {argument if argument is not None else ''}".strip(),
                    allowed="lists, tuples, dicts, texts and numbers, pickled with protocol 2 or lower",
                )
            if operation.name == "PROTO" and argument > MAX_PROTOCOL:
                raise DataError("The pickle's protocol is too new.", where=where, value=argument, allowed="0 to 2")
            if operation.name in _REMEMBER and not 0 <= argument <= len(data):  # memory is taken up to that index
                raise DataError("Malformed pickle: an impossible index.", where=where, value=argument)
    except DataError:
        raise
    except Exception as err:  # truncated, or a number of thousands of digits
        raise DataError(f"Malformed pickle: {err}.", where=shown(path)) from None


def _check_extent(value: Any, most: int, path: str | Path) -> None:
    """Refuse values that are larger, once written out, than a file of this size can spell."""
    stack, seen = [value], 0
    while stack:
        item = stack.pop()
        seen += 1
        if seen > most:
            raise DataError("The pickle's values hold themselves or each other over and over.", where=shown(path))
        if isinstance(item, dict):
            stack.extend(item.keys())
            stack.extend(item.values())
        elif isinstance(item, (list, tuple)):
            stack.extend(item)
