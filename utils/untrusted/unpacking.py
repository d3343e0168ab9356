"""Zip archives of strangers, unpacked into a folder that did not exist before.

The whole directory of an archive is checked before anything is written; what comes out becomes visible by one rename.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import DataError, MissingDependencyError
from ..fault_points import reach
from ..files import sync
from .files import head_bytes, masquerade, require_file, shown

MAX_MEMBERS = 1_000_000
MAX_RATIO = 200  # unpacked to packed bytes, of a member of more than `_SMALL` bytes
_SMALL = 2**20
_CHUNK = 2**20
AGAIN = "delete it and download it again"


def zip_members(path: str | Path) -> list[zipfile.ZipInfo]:
    """Return the files of a zip archive, whose whole directory is checked first.

    Raises:
        DataError: no zip archive, or truncated; a member is encrypted, a link or device; its name is absolute, climbs
            with ``..`` or occurs twice, capitals aside; too many members; one that grows more than `MAX_RATIO` fold.
    """
    require_file(path, what="archive")
    if reason := masquerade(head_bytes(path)):
        raise DataError(f"The archive cannot be read: {reason}.", where=shown(path), fix=AGAIN)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as err:
        raise DataError(f"The archive is damaged or no zip file: {err}.", where=shown(path), fix=AGAIN) from None
    if len(members) > MAX_MEMBERS:
        raise DataError("The archive has too many members.", where=shown(path), allowed=f"up to {MAX_MEMBERS}")
    seen: set[str] = set()
    for member in members:
        _check(member, seen, path)
    unpacked = sum(member.file_size for member in members)
    if unpacked > 64 * _SMALL and unpacked > MAX_RATIO * Path(path).stat().st_size:
        raise DataError(
            f"The archive grows more than {MAX_RATIO} fold.", where=shown(path), value=f"{unpacked:,} bytes"
        )
    return [member for member in members if not member.is_dir()]


def _check(member: zipfile.ZipInfo, seen: set[str], path: str | Path) -> None:
    name, kind = member.filename, stat.S_IFMT(member.external_attr >> 16)
    ratio = member.file_size / max(member.compress_size, 1)
    leaves = not name or name[0] in "/\\" or re.match(r"[A-Za-z]:", name) or ".." in re.split(r"[\\/]", name)
    folded = name.rstrip("/").casefold()
    reasons = (
        (leaves, "The name of a member leaves the archive"),
        (member.flag_bits & 1, "A member of the archive is encrypted"),
        (kind not in (0, stat.S_IFREG, stat.S_IFDIR), "A member of the archive is no plain file"),
        (folded in seen, "A name occurs twice in the archive, capitals aside"),
        (member.file_size > _SMALL and ratio > MAX_RATIO, f"A member of the archive grows more than {MAX_RATIO} fold"),
    )
    for wrong, what in reasons:
        if wrong:
            raise DataError(f"{what}.", where=shown(path), value=name)
    seen.add(folded)


def chosen(members: Sequence[zipfile.ZipInfo], wanted: str, path: str | Path) -> dict[str, zipfile.ZipInfo]:
    """Return name below the target -> member.

    Args:
        members: of `zip_members`.
        wanted: a folder of the archive, a file of it, or ``*/name``: the one file of that name, wherever it lies.
        path: of the archive, for messages.

    Raises:
        DataError: the archive has no such member, or several.
    """
    if wanted.startswith("*/"):
        found = [member for member in members if member.filename.rpartition("/")[2] == wanted[2:]]
        if len(found) == 1:
            return {"": found[0]}
    else:
        below = {m.filename[len(wanted) :].lstrip("/"): m for m in members if f"{m.filename}/".startswith(f"{wanted}/")}
        if below:
            return below
    tops = ", ".join(sorted({member.filename.partition("/")[0] for member in members})[:8])
    raise DataError("The archive lacks what it should hold.", where=shown(path), value=wanted, allowed=f"it has {tops}")


def free_bytes(folder: Path) -> int:
    """Return the free disk space where a folder is or will be."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_space(folder: Path, count: int, what: str) -> None:
    """Raise `MissingDependencyError` when the disk of a folder, which need not exist yet, has too little room."""
    if count > (free := free_bytes(folder)):
        raise MissingDependencyError(
            f"There is not enough disk space for {what}.",
            where=shown(folder.absolute()),
            value=f"{count:,} bytes are needed, {free:,} are free",
            fix="free space there, or choose a folder on another disk with --root",
        )


def unpack(path: str | Path, wanted: str, target: Path, advance: Callable[[int], None] = lambda count: None) -> Path:
    """Write a folder or file of a zip archive to ``target``, which is either not there or there completely.

    Args:
        path: the archive.
        wanted: as `chosen` reads it; ``a.zip!b`` is ``b`` of the archive ``a.zip`` inside.
        target: what it becomes; nothing is written when it exists.
        advance: told the bytes written.

    Raises:
        DataError: as `zip_members` and `chosen`, or a member is damaged.
        MissingDependencyError: not enough disk space.
    """
    if target.exists():
        return target
    outer, mark, inner = wanted.partition("!")
    if not mark:
        return _unpack(path, wanted, target, advance)
    nested = target.with_name(f".{target.name}.zip")
    nested.unlink(missing_ok=True)  # left by a process that was killed
    try:
        return _unpack(_unpack(path, outer, nested, advance), inner, target, advance)
    finally:
        nested.unlink(missing_ok=True)


def _unpack(path: str | Path, wanted: str, target: Path, advance: Callable[[int], None]) -> Path:
    files = chosen(zip_members(path), wanted, path)
    require_space(target.parent, sum(member.file_size for member in files.values()), f"what is in {shown(path)}")
    temporary = target.with_name(f".{target.name}.unpacking")
    _remove(temporary)  # left by a process that was killed
    try:
        with zipfile.ZipFile(path) as archive:
            for name, member in files.items():
                reach("archive.member")
                _write(archive, member, temporary / name if name else temporary, advance)
        reach("archive.rename")
        sync(temporary)
        os.rename(temporary, target)
        sync(target.parent)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as err:
        raise DataError(f"The archive is damaged: {err}.", where=shown(path), fix=AGAIN) from None
    except OSError as err:
        raise MissingDependencyError(
            f"The archive could not be unpacked: {err.strerror or err}.", where=shown(target), fix="free disk space"
        ) from err
    finally:
        _remove(temporary)
    return target


def _write(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, advance: Callable[[int], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as packed, path.open("xb") as file:
        while data := packed.read(_CHUNK):
            file.write(data)
            advance(len(data))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
