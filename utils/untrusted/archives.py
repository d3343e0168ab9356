"""Tar archives of strangers, read where they lie: a member is one seek and one read, nothing is ever extracted.

A member is named ``<path>.tar!<name>``, a text that stands wherever the path of a file may (`is_member`). An archive is
refused as a whole when any header of it is one that an honest archive of data has no need of; the checks are our own
because the standard library takes a damaged header for the end of the archive.
"""

from __future__ import annotations

import os
import re
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError
from .files import head_bytes, masquerade, require_file, shown

MAX_MEMBER_BYTES = 2**28
MAX_MEMBERS = 1_000_000
MAX_OPEN = 64  # archives that a thread holds open
MARK = ".tar!"  # ends the path of the archive in the name of a member
_BLOCK = 512
_MAX_EXTENSION_BYTES, _MAX_EXTENSIONS, _MAX_PADDING = 2**16, 4, 2**20
_GLOBAL, _LONG_NAME = b"g", tarfile.GNUTYPE_LONGNAME
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, _GLOBAL)
_COMPRESSED = ((b"\x1f\x8b", "gunzip"), (b"BZh", "bunzip2"), (b"\xfd7zXZ", "unxz"), (b"\x28\xb5\x2f\xfd", "unzstd"))


class _Entry(NamedTuple):
    """A member as its headers describe it; ``data`` and ``end`` count bytes of the archive."""

    name: str
    is_file: bool
    data: int
    size: int
    end: int


class ArchiveMember(str):
    """``<archive>!<name>``, with the place of the member's header in the archive, so that nothing is searched."""

    __slots__ = ("_known", "archive", "name", "start")

    def __new__(cls, archive: str, name: str, start: int) -> ArchiveMember:
        member = super().__new__(cls, f"{archive}!{name}")
        member.archive, member.name, member.start = archive, name, start
        member._known = None  # (state of the archive, what its headers then said)
        return member

    def __getnewargs__(self) -> tuple[str, str, int]:
        return self.archive, self.name, self.start


class _File:
    """An open archive. Reads name their place, so processes may share what was open when they were forked."""

    def __init__(self, path: str) -> None:
        require_file(path, what="archive")
        self.path, self._file = path, open(path, "rb", buffering=0)  # noqa: SIM115  (closed with the object)
        status = os.fstat(self._file.fileno())
        self.size, self.state = status.st_size, (status.st_ino, status.st_size, status.st_mtime_ns)

    def read(self, start: int, count: int) -> bytes:
        try:
            data = os.pread(self._file.fileno(), count, start)
        except OSError as err:
            raise self.refusal(f"The archive cannot be read: {err.strerror}", start) from None
        if len(data) < count:
            raise self.refusal("The archive is truncated", start + len(data), fix="fetch it again")
        return data

    def refusal(self, what: str, at: int, **more: object) -> DataError:
        return DataError(f"{what}.", where=f"{shown(self.path)}: byte {at}", **more)


class _Open(threading.local):
    """The archives that a thread read last."""

    def __init__(self) -> None:
        self.files: OrderedDict[str, _File] = OrderedDict()

    def get(self, path: str) -> _File:
        file = self.files.pop(path, None) or _File(path)
        self.files[path] = file
        while len(self.files) > MAX_OPEN:
            self.files.popitem(last=False)[1]._file.close()
        return file


_open = _Open()


def is_member(path: str | Path) -> bool:
    """Return whether a path names a member of an archive, ``<path>.tar!<name>``."""
    return isinstance(path, ArchiveMember) or MARK in str(path)


def scan_tar(path: str | Path) -> Iterator[tuple[str, int]]:
    """Yield (name, place of its header) of every file in an archive, which is checked from end to end.

    Raises:
        DataError: truncated (with the byte), compressed, not a tar archive; a link, device or sparse file; a name that
            is absolute, climbs with ``..`` or occurs twice; a member or their number too large; data after the end.
    """
    file, at, names = _File(str(path)), 0, set()
    _require_tar(file)
    while (entry := _entry(file, at)) is not None:
        if entry.is_file:
            if entry.name in names:
                raise file.refusal("A name occurs twice in the archive", at, value=entry.name)
            if len(names) >= MAX_MEMBERS:
                raise file.refusal("The archive has too many members", at, allowed=f"up to {MAX_MEMBERS}")
            names.add(entry.name)
            yield entry.name, at
        at = entry.end
    _require_padding(file, at)


def member_at(path: str | Path, start: int) -> ArchiveMember:
    """Return the member whose header lies at a place that `scan_tar` told.

    Raises:
        DataError: no file begins there (any more).
    """
    file = _open.get(str(path))
    entry = _entry(file, start)
    if entry is None or not entry.is_file:
        raise file.refusal("No member of the archive begins here; it was changed", start)
    member = ArchiveMember(file.path, entry.name, start)
    member._known = (file.state, entry)
    return member


def read_member(path: str, count: int | None = None) -> bytes:
    """Return the bytes of a member, or its first ``count``.

    Args:
        path: an `ArchiveMember`, or a text of that form, whose archive is then searched.

    Raises:
        DataError: as `scan_tar`; or there is no such member, or the archive was changed.
    """
    member = path if isinstance(path, ArchiveMember) else _find(str(path))
    file = _open.get(member.archive)
    known = member._known is not None and member._known[0] == file.state
    entry = member._known[1] if known else _entry(file, member.start)
    if entry is None or entry.name != member.name:
        raise file.refusal("The archive was changed while it was used", member.start, value=member.name)
    return file.read(entry.data, entry.size if count is None else min(count, entry.size))


def _find(path: str) -> ArchiveMember:
    archive, _, name = path.partition(MARK)
    archive += MARK[:-1]
    require_file(archive, what="archive")
    status = os.stat(archive)
    start = _places(archive, status.st_size, status.st_mtime_ns).get(name)
    if start is None:
        raise DataError("The archive has no such member.", where=shown(archive), value=name)
    return ArchiveMember(archive, name, start)


@lru_cache(maxsize=4)
def _places(archive: str, size: int, changed: int) -> dict[str, int]:
    return dict(scan_tar(archive))


def _entry(file: _File, start: int) -> _Entry | None:
    """Return the member that begins at ``start``, behind the headers that only extend its own; None at the end."""
    at, more = start, {}
    for _ in range(_MAX_EXTENSIONS + 1):
        if (header := _header(file, at)) is None:
            return None
        data = at + _BLOCK
        if header.type not in (*_PAX, _LONG_NAME):
            return _checked_entry(file, header, more, at)
        if not 0 <= header.size <= _MAX_EXTENSION_BYTES:
            raise file.refusal("A header of the archive is too large", at, value=header.size)
        text = file.read(data, header.size)
        found = {"path": _text(text.split(b"\0")[0])} if header.type == _LONG_NAME else _pax(file, at, text)
        if header.type == _GLOBAL and found.keys() & {"path", "size", "linkpath"}:
            raise file.refusal("A header names all members of the archive alike", at, value=sorted(found))
        more |= found if header.type != _GLOBAL else {}
        at = data + _padded(header.size)
    raise file.refusal("A member of the archive has too many headers", start)


def _header(file: _File, at: int) -> tarfile.TarInfo | None:
    if at >= file.size:
        raise file.refusal("The archive is truncated: its end is missing", file.size, fix="fetch it again")
    try:
        return tarfile.TarInfo.frombuf(file.read(at, _BLOCK), "utf-8", "surrogateescape")
    except tarfile.EOFHeaderError:
        return None
    except (tarfile.HeaderError, ValueError) as err:
        raise file.refusal(f"The archive is damaged: {err}", at, fix="fetch it again") from None


def _checked_entry(file: _File, header: tarfile.TarInfo, more: dict[str, str], at: int) -> _Entry:
    name, data = more.get("path", header.name), at + _BLOCK
    size = int(more["size"]) if "size" in more else header.size
    if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or "linkpath" in more:
        kinds = {tarfile.SYMTYPE: "a symbolic link", tarfile.LNKTYPE: "a hard link", tarfile.GNUTYPE_SPARSE: "sparse"}
        kind = kinds.get(header.type, f"of type {header.type!r}")
        raise file.refusal("A member of the archive is no plain file", at, value=f"{name}: {kind}")
    if any(key.startswith("GNU.sparse") for key in more):
        raise file.refusal("A member of the archive is no plain file", at, value=f"{name}: sparse")
    if not name or name[0] in "/\\" or re.match(r"[A-Za-z]:", name) or ".." in re.split(r"[\\/]", name) or "\0" in name:
        allowed = "a relative path without .."
        raise file.refusal("The name of a member leaves the archive", at, value=name, allowed=allowed)
    is_file = header.type != tarfile.DIRTYPE
    if not 0 <= size <= (MAX_MEMBER_BYTES if is_file else 0):
        allowed = f"up to {MAX_MEMBER_BYTES} bytes" if is_file else "a folder has no size"
        raise file.refusal("A member of the archive is too large", at, value=f"{name}: {size} bytes", allowed=allowed)
    if data + size > file.size:
        needed = f"{name} ends at byte {data + size}"
        raise file.refusal("The archive is truncated", file.size, value=needed, fix="fetch it again")
    return _Entry(name, is_file, data, size, data + _padded(size))


def _pax(file: _File, at: int, text: bytes) -> dict[str, str]:
    """Return the fields of an extended header, ``<length of the record> <key>=<value>\\n`` each."""
    found, start = {}, 0
    while start < len(text) and text[start]:
        digits = text[start:].partition(b" ")[0]
        length = int(digits) if digits.isdigit() and len(digits) < 9 else 0
        key, equals, value = text[start + len(digits) + 1 : start + length - 1].partition(b"=")
        if not key or not equals or text[start + length - 1 : start + length] != b"\n":
            raise file.refusal("The archive is damaged: bad extended header", at)
        if key == b"size" and not (value.isdigit() and len(value) < 19):
            raise file.refusal("The archive is damaged: bad size in an extended header", at, value=value)
        found[_text(key)] = _text(value)
        start += length
    return found


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _require_tar(file: _File) -> None:
    head = head_bytes(file.path)
    if reason := masquerade(head):
        raise file.refusal(f"The archive cannot be read: {reason}", 0)
    if tool := next((tool for magic, tool in _COMPRESSED if head.startswith(magic)), None):
        allowed = "a plain tar archive: members are read in any order"
        raise file.refusal("The archive is compressed", 0, allowed=allowed, fix=f"{tool} it first")


def _require_padding(file: _File, end: int) -> None:
    """Refuse what follows the end of the archive, which other readers would or would not see."""
    rest = file.size - end
    if rest > _MAX_PADDING or file.read(end, rest).strip(b"\0"):
        fix = "unpack both and pack them as one"
        raise file.refusal("Data follow the end of the archive; were two joined?", end, fix=fix)
