"""Paths, text and JSON of strangers."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError, LocapError, nearest

MAX_TEXT_BYTES = 2**31
MAX_LINE_BYTES = 2**26


def shown(path: str | Path) -> str:
    """Return a path fit for a message: control and undecodable characters escaped."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def require_file(path: str | Path, *, error: type[LocapError] = DataError, what: str = "file") -> int:
    """Return the size of a regular file in bytes, or raise ``error`` naming the nearest existing sibling."""
    path = Path(path)
    try:
        if path.is_dir():
            raise error(f"This {what} is a directory.", where=shown(path))
        size = path.stat().st_size
        with path.open("rb"):
            return size
    except FileNotFoundError:
        raise error(f"The {what} does not exist.", where=shown(path.absolute()), fix=_near(path)) from None
    except (OSError, ValueError) as err:  # ValueError: NUL in the name
        raise error(
            f"The {what} cannot be opened: {getattr(err, 'strerror', None) or err}.", where=shown(path)
        ) from None


def _near(path: Path) -> str:
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    if folder != path.parent:
        return f"the folder {shown(path.parent)} is missing too; {shown(folder)} is the nearest that exists"
    match = nearest(path.name, (entry.name for entry in folder.iterdir()))
    return f"did you mean {shown(folder / match)}?" if match else f"look in {shown(folder)}"


def masquerade(head: bytes) -> str | None:
    """Say what a file's first bytes show it to be when it is not the real thing."""
    start = head.lstrip()[:64].lower()
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the file itself (run `git lfs pull`)"
    if start.startswith((b"<!doctype html", b"<html")):
        return "this is an HTML page, perhaps a login or error page saved by a download"
    return None


def head_bytes(path: str | Path, count: int = 256) -> bytes:
    with open(path, "rb") as file:
        return file.read(count)


def resolve_under(root: str | Path, name: str) -> Path:
    """Return ``root / name``, for a name found inside a data file.

    Raises:
        DataError: the name is absolute, climbs with ``..``, holds a NUL or leaves ``root`` through a symbolic link.
    """
    allowed = f"a relative path inside {shown(root)}"
    if not isinstance(name, str) or not name or "\0" in name:
        raise DataError("This is not a file name.", where=shown(root), value=name, allowed=allowed)
    parts = re.split(r"[\\/]", name)
    if name[0] in "/\\" or re.match(r"[A-Za-z]:", name) or ".." in parts:
        raise DataError("A file name in the data leaves its folder.", where=shown(root), value=name, allowed=allowed)
    base = Path(root).resolve()
    if not (base / name).resolve().is_relative_to(base):
        raise DataError(
            "A symbolic link leads out of the data folder.",
            where=shown(Path(root) / name),
            allowed=allowed,
            fix="copy the file there, or link the whole folder instead of the file",
        )
    return Path(root) / name


def read_text(path: str | Path, max_bytes: int = MAX_TEXT_BYTES, *, error: type[LocapError] = DataError) -> str:
    """Read UTF-8 text.

    Raises:
        LocapError: as ``error``; missing, too large, not UTF-8 (with line and column), a Git LFS pointer or HTML.
    """
    size = require_file(path, error=error)
    if size > max_bytes:
        raise error(
            "The file is too large.", where=shown(path), value=f"{size} bytes", allowed=f"up to {max_bytes} bytes"
        )
    data = Path(path).read_bytes()
    if reason := masquerade(data[:256]):
        raise error(f"The file cannot be read: {reason}.", where=shown(path))
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise error("The file is UTF-16.", where=shown(path), allowed="UTF-8", fix="iconv -f utf-16 -t utf-8")
    if data.startswith(b"\xef\xbb\xbf"):
        raise error("The file starts with a byte-order mark.", where=shown(path), fix="save it as UTF-8 without BOM")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as err:
        place = _place(path, data[: err.start].decode("utf-8", "replace"))
        fix = "if the file is Latin-1: iconv -f latin1 -t utf-8"
        raise error("The file is not UTF-8.", where=place, value=data[err.start : err.start + 1], fix=fix) from None


def _place(path: str | Path, text_before: str) -> str:
    """Return file:line:column of the character after ``text_before``."""
    return f"{shown(path)}:{text_before.count(chr(10)) + 1}:{len(text_before) - text_before.rfind(chr(10))}"


class _NotStrict(ValueError):
    """JSON that the standard module would accept: NaN, infinity, a duplicate key."""

    def __init__(self, what: str, pattern: str) -> None:
        super().__init__(what)
        self.pattern = pattern  # finds the place in the text, string literals skipped


def read_json(path: str | Path, *, max_bytes: int = MAX_TEXT_BYTES) -> Any:
    """Read strict JSON: UTF-8, no NaN or infinity, no duplicate keys.

    Raises:
        DataError: names the file and, where it can be told, line and column.
    """
    return _parse(read_text(path, max_bytes), path)


def read_json_lines(path: str | Path, *, max_bytes: int = MAX_TEXT_BYTES) -> list[Any]:
    """Read strict JSON, one value per line; empty lines are left out. Raises as `read_json`."""
    lines = read_text(path, max_bytes).split("\n")
    return [_parse(line, f"{path}: line {number}") for number, line in enumerate(lines, start=1) if line.strip()]


def iterate_json_lines(path: str | Path, *, max_line: int = MAX_LINE_BYTES) -> Iterator[tuple[Any, int, int]]:
    """Yield (value, offset of its line in bytes, number of the line from 1); the file is never held as a whole.

    Raises:
        DataError: missing, a line longer than ``max_line`` bytes, not UTF-8, or as `read_json`.
    """
    require_file(path)
    if reason := masquerade(head_bytes(path)):
        raise DataError(f"The file cannot be read: {reason}.", where=shown(path))
    offset = 0
    with open(path, "rb") as file:
        for number in itertools.count(1):
            line = file.readline(max_line + 1)
            if not line:
                return
            where = f"{shown(path)}: line {number}"
            if len(line) > max_line:
                raise DataError("A line is too long.", where=where, allowed=f"up to {max_line} bytes")
            if line.strip():
                yield parse_json(line, where), offset, number
            offset += len(line)


def parse_json(data: bytes, where: str) -> Any:
    """Parse strict JSON as `read_json` does; messages name ``where``."""
    try:
        return _parse(data.decode("utf-8"), where)
    except UnicodeDecodeError as err:
        value = data[err.start : err.start + 1]
        raise DataError("The line is not UTF-8.", where=f"{where}:{err.start + 1}", value=value) from None


def _parse(text: str, path: str | Path) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_constant, parse_float=_finite)
    except json.JSONDecodeError as err:
        ended = (
            "; the file ends too early (truncated?)"
            if err.pos >= len(text.rstrip()) - 1 or "Unterminated" in err.msg
            else ""
        )
        raise DataError(f"Malformed JSON: {err.msg}{ended}.", where=_place(path, text[: err.pos])) from None
    except _NotStrict as err:
        found = next(
            (m for m in re.finditer(rf'"(?:[^"\\]|\\.)*"\s*:|"(?:[^"\\]|\\.)*"|{err.pattern}', text) if m.lastgroup),
            None,
        )
        where = _place(path, text[: found.start()]) if found else shown(path)
        raise DataError(f"Malformed JSON: {err}.", where=where) from None
    except RecursionError:
        raise DataError("Malformed JSON: nested too deeply.", where=shown(path)) from None
    except ValueError as err:  # a number of thousands of digits
        raise DataError(f"Malformed JSON: {err}.", where=shown(path)) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _NotStrict(f"the key {twice!r} occurs twice in one object", r"(?P<place>(?!))")
    return body


def _constant(text: str) -> float:
    raise _NotStrict(f"{text} is not a JSON number", rf"(?P<place>{text})")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _NotStrict(f"the number {text} is too large", rf"(?P<place>{re.escape(text)})")
    return value
