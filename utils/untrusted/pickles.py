"""Pickles of plain values: lists, dicts, texts and numbers. Nothing is imported and nothing is called."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError
from .files import masquerade, require_file, shown

MAX_PICKLE_BYTES = 2**29
MAX_PROTOCOL = 2
# every operation of protocols 0 to 2 that makes or fills a plain value, or remembers one
PLAIN = {
    *("MARK", "STOP", "PROTO", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET"),
    *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE"),
    *("LIST", "EMPTY_LIST", "APPEND", "APPENDS", "DICT", "EMPTY_DICT", "SETITEM", "SETITEMS"),
    *("TUPLE", "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
}


def known_operations(names: Collection[str]) -> dict[int, int]:
    """Return code -> bytes its argument takes, negative where the argument says so itself."""
    return {ord(known.code): known.arg.n if known.arg else 0 for known in pickletools.opcodes if known.name in names}


_OPERATIONS = known_operations(PLAIN)
_REMEMBER = {code[0] for code in (pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT)}
_NAMES_TWO_LINES = (pickle.GLOBAL[0],)
_STOP, _PROTO = pickle.STOP[0], pickle.PROTO[0]


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
    check_operations(data, path, _OPERATIONS, MAX_PROTOCOL)
    try:
        value = _PlainUnpickler(io.BytesIO(data), encoding="utf-8").load()
    except Exception as err:  # a malformed pickle raises what it likes
        raise DataError(f"Malformed pickle: {err}.", where=shown(path)) from None
    check_extent(value, len(data), path)
    return value


def check_operations(data: bytes, path: str | Path, operations: Mapping[int, int], protocol: int) -> None:
    """Walk over all operations up to the end mark, without carrying any out.

    Raises:
        DataError: one is not among ``operations`` (see `known_operations`), the file ends before its mark, or says
            that it follows a later protocol.
    """
    position = 0
    while True:
        code = data[position] if position < len(data) else None
        if code not in operations:
            _refuse(code, f"{shown(path)}: byte {position}", protocol)
        start = position + 1
        length = operations[code]
        position = start + (length if length >= 0 else _length(data, start, length))
        if code in _NAMES_TWO_LINES:
            position += _length(data, position, length)
        if position > len(data):
            _refuse(None, f"{shown(path)}: byte {start - 1}", protocol)
        if code in _REMEMBER:
            _check_index(code, data[start:position], len(data), f"{shown(path)}: byte {start - 1}")
        elif code == _PROTO and data[start] > protocol:
            where = f"{shown(path)}: byte {start}"
            raise DataError(
                "The pickle's protocol is too new.", where=where, value=data[start], allowed=f"0 to {protocol}"
            )
        elif code == _STOP:
            return


def _refuse(code: int | None, where: str, protocol: int) -> None:
    if code is None:
        raise DataError("Malformed pickle: the file ends too early.", where=where)
    known = pickletools.code2op.get(chr(code))
    if known is None:
        raise DataError("Malformed pickle: this is no operation.", where=where, value=bytes([code]))
    raise DataError(
        "The pickle holds more than plain values and is not opened: it could run code.",
        where=where,
        value=known.name,
        allowed=f"lists, tuples, dicts, texts and numbers, pickled with protocol {protocol} or lower",
    )


def _length(data: bytes, start: int, kind: int) -> int:
    """Return how many bytes an argument of variable length takes; past the end of the file where it does not end."""
    if kind == pickletools.UP_TO_NEWLINE:
        end = data.find(b"\n", start)
        return end + 1 - start if end >= 0 else len(data)
    size = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT8U: 8}.get(kind, 4)
    return size + int.from_bytes(data[start : start + size], "little")


def _check_index(code: int, argument: bytes, most: int, where: str) -> None:
    """Refuse to remember a value under an index that a file of this size does not need: memory is taken up to it."""
    text = code == ord(pickle.PUT)
    if text and not argument.strip().isdigit():
        raise DataError("Malformed pickle: an index is no number.", where=where, value=argument[:20])
    index = int(argument[:20]) if text else int.from_bytes(argument, "little")
    if index > most:
        raise DataError("Malformed pickle: an impossible index.", where=where, value=index)


def check_extent(value: Any, most: int, path: str | Path) -> None:
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
