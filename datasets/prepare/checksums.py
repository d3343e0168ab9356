"""``SHA256SUMS`` in the folder of the data sets: what no decoder notices, a flipped byte in a picture, a checksum does.

The file is that of ``sha256sum``, so ``sha256sum -c SHA256SUMS`` reads it too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ...utils.errors import DataError
from ...utils.files import write_text
from ...utils.untrusted import read_text, shown
from .fetch import Advance, file_digest

NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_LEFT_OUT = ("downloads",)


def read_checksums(root: Path) -> dict[str, str]:
    """Return path below the root -> sha256; empty when there is no list.

    Raises:
        DataError: a line is none of such a list.
    """
    path, sums = root / NAME, {}
    if not path.is_file():
        return sums
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            allowed = "64 hexadecimal digits, two spaces, a path"
            raise DataError(
                "This is no line of checksums.", where=f"{shown(path)}:{number}", value=line, allowed=allowed
            )
        sums[match[2]] = match[1]
    return sums


def write_checksums(root: Path, advance: Advance = lambda count: None) -> tuple[Path, int]:
    """Write the list of every file below the root, ``downloads`` and hidden ones aside; returns it and their number."""
    files = sorted(path.relative_to(root).as_posix() for path in _files(root))
    files = [name for name in files if "\n" not in name and "\r" not in name and name != NAME]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sums = list(pool.map(lambda name: _counted(root / name, advance), files))
    lines = (f"{digest}  {name}\n" for digest, name in zip(sums, files, strict=True))
    return write_text(root / NAME, "".join(lines)), len(files)


def differing(root: Path, sums: dict[str, str], paths: Iterable[Path]) -> Iterator[Path]:
    """Yield those of some files whose checksum is another than in the list."""
    listed = {}
    for path in paths:
        name = os.path.relpath(path, root)
        if name in sums:
            listed[path] = sums[name]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(file_digest, listed)
        yield from (path for path, digest in zip(listed, found, strict=True) if digest != listed[path])


def _counted(path: Path, advance: Advance) -> str:
    digest = file_digest(path)
    advance(1)
    return digest


def _files(root: Path) -> Iterator[Path]:
    """Yield files; folders may be links to other disks, each is entered once."""
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        seen.add(os.path.realpath(folder))
        folders[:] = [
            name
            for name in sorted(folders)
            if not name.startswith(".")
            and not (name in _LEFT_OUT and folder == str(root))
            and os.path.realpath(os.path.join(folder, name)) not in seen
        ]
        yield from (Path(folder) / name for name in names if not name.startswith("."))
