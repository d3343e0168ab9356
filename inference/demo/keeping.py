"""What is kept for users, bounded: so many things, so many bytes, so long."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any


class Kept(MutableMapping[str, Any]):
    """A mapping that forgets what was used the longest time ago, as soon as there is too much; for several threads.

    Args:
        max_count: of things.
        max_bytes: of all together, see `size_of`; the newest stays, however large.
        seconds: after its last use, a thing is forgotten by the next `sweep`.
    """

    def __init__(self, max_count: int, max_bytes: int, seconds: float) -> None:
        self.max_count, self.max_bytes, self.seconds = max_count, max_bytes, seconds
        self._kept: OrderedDict[str, tuple[Any, int, float]] = OrderedDict()
        self._lock = threading.Lock()
        self._bytes = 0

    @property
    def bytes(self) -> int:
        """Of all that is kept."""
        return self._bytes

    def __getitem__(self, key: str) -> Any:
        with self._lock:
            value, size, _ = self._kept.pop(key)
            self._kept[key] = value, size, time.monotonic()
            return value

    def __setitem__(self, key: str, value: Any) -> None:
        size = size_of(value)
        with self._lock:
            self._forget(key)
            self._kept[key] = value, size, time.monotonic()
            self._bytes += size
            while len(self._kept) > 1 and (len(self._kept) > self.max_count or self._bytes > self.max_bytes):
                self._forget(next(iter(self._kept)))

    def __delitem__(self, key: str) -> None:
        with self._lock:
            if key not in self._kept:
                raise KeyError(key)
            self._forget(key)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._kept))

    def __len__(self) -> int:
        return len(self._kept)

    def sweep(self) -> None:
        """Forget what has not been used for long."""
        with self._lock:
            oldest = time.monotonic() - self.seconds
            for key in [key for key, (_, _, used) in self._kept.items() if used < oldest]:
                self._forget(key)

    def _forget(self, key: str) -> None:
        if key in self._kept:
            self._bytes -= self._kept.pop(key)[1]


def size_of(value: Any) -> int:
    """Return the bytes of the arrays, tensors and strings in a value, in containers and fields of dataclasses, too."""
    if isinstance(value, (bytes, bytearray, str)):
        return len(value)
    if hasattr(value, "nbytes"):
        return int(value.nbytes)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return sum(size_of(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, Mapping):
        return sum(map(size_of, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(size_of, value))
    return sum(map(size_of, vars(value).values())) if hasattr(value, "__dict__") and not callable(value) else 0


def sweep_folder(folder: Path, max_bytes: int, seconds: float, spared: Collection[str] = ()) -> set[str]:
    """Delete files that are older than so many seconds, then the oldest until the folder has few enough bytes.

    Args:
        folder: with folders in it; a link is deleted as such.
        max_bytes: of what stays.
        seconds: since a file was last changed.
        spared: files that stay whatever their age.

    Returns:
        What was deleted.
    """
    found = []
    for path in folder.rglob("*"):
        with suppress(OSError):  # somebody else deleted it
            status = path.lstat()
            if (path.is_symlink() or path.is_file()) and str(path) not in spared:
                found.append((status.st_mtime, status.st_size, path))
    total, deleted = sum(size for _, size, _ in found), set()
    for changed, size, path in sorted(found):
        if total <= max_bytes and changed >= time.time() - seconds:
            break
        with suppress(OSError):
            path.unlink()
            deleted.add(str(path))
            total -= size
            path.parent.rmdir()  # where it was the last one
    return deleted
