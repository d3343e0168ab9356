"""What was computed once and can be computed again: tensors in a folder that users may move or empty at any time.

The folder is `cache_folder`.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from .errors import LocapError
from .files import atomic_path
from .folders import cache_folder
from .untrusted import load_tensors, shown

KEPT_FILES = 8  # per kind; the ones used least recently leave
_log = logging.getLogger(__name__)


def digest(*parts: str | Tensor | Iterable[Tensor]) -> str:
    """Return the SHA-256 of texts and of tensors' types, shapes and bytes."""
    found = hashlib.sha256()
    for part in parts:
        for piece in [part] if isinstance(part, (str, Tensor)) else part:
            if isinstance(piece, str):
                found.update(f"{len(piece)} {piece}".encode("utf-8", "replace"))
            else:
                found.update(f"{piece.dtype} {tuple(piece.shape)}".encode())
                found.update(_bytes(piece))
    return found.hexdigest()


def cached_tensor(kind: str, key: str, shape: tuple[int, ...] | None, compute: Callable[[], Tensor]) -> Tensor:
    """Return the stored tensor, or compute and store it.

    Several processes may do this at once: a file appears whole or not at all. A file that cannot be read, is damaged or
    cannot be written costs a line in the log and the time to compute, nothing else.

    Args:
        kind: subfolder.
        key: a `digest` of everything that the tensor depends on.
        shape: its shape; None: any, which only the file can tell.
        compute: makes it.

    Returns:
        The tensor, on the CPU when it was stored.
    """
    path = cache_folder() / kind / f"{key[:40]}.safetensors"
    if (stored := _read(path, shape)) is not None:
        return stored
    value = compute()
    _write(path, value)
    return value


def _read(path: Path, shape: tuple[int, ...] | None) -> Tensor | None:
    try:
        if not path.is_file():
            return None
        stored = load_tensors(path)
        value = stored["value"]
        if shape not in (None, tuple(value.shape)) or digest(value) != _text(stored["sha256"]):
            raise ValueError("its content is not what was written")
        os.utime(path)
    except (LocapError, OSError, KeyError, TypeError, ValueError, AttributeError) as err:
        reason = err.what if isinstance(err, LocapError) else str(err)
        _log.warning("the cache file %s is of no use and is made anew: %s", shown(path), reason.splitlines()[0])
        return None
    return value


def _write(path: Path, value: Tensor) -> None:
    from safetensors.torch import save_file

    value = value.detach().cpu().contiguous()
    try:
        with atomic_path(path) as temporary:
            save_file({"value": value, "sha256": torch.tensor(list(digest(value).encode()))}, temporary)
        _prune(path.parent)
    except OSError as err:
        _log.warning("nothing is cached in %s: %s", shown(path.parent), err)


def _prune(folder: Path) -> None:
    """Delete all but the files used last; others may be doing the same, and hidden files are still being written."""
    found = []
    for path in folder.glob("[!.]*.safetensors"):
        with suppress(FileNotFoundError):
            found.append((path.stat().st_mtime, path))
    for _, path in sorted(found, reverse=True)[KEPT_FILES:]:
        path.unlink(missing_ok=True)


def _bytes(tensor: Tensor) -> memoryview:
    # a copy: memory that numpy has seen can no longer be freed by those who share a model among processes
    return memoryview(tensor.detach().to("cpu", copy=True).contiguous().flatten().view(torch.uint8).numpy())


def _text(codes: Tensor) -> str:
    return bytes(codes.tolist()).decode("ascii")
