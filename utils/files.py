"""Files that are either the old one or the new one, never half of either."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import CheckpointError
from .fault_points import reach

_log = logging.getLogger(__name__)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is flushed to disk and renamed over it, else removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        reach("file.write")
        yield temporary
        reach("file.sync")
        sync(temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        reach("file.rename")
        os.replace(temporary, path)
        reach("file.renamed")
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | Path, value: Any, *, indent: int | None = None) -> Path:
    """Write JSON atomically; NaN and infinity are refused, since other readers cannot read them."""
    return write_text(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: str | Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> Path:
    """Write name -> tensor atomically, as safetensors, or as a flat dictionary by `torch.save` where the name says so.

    locap's own checkpoints are safetensors. ``.pt`` and ``.pth`` are for other code to read, which knows nothing else.
    Tensors that share memory do so in a ``.pt`` as well; safetensors has no such thing and stores both. ``metadata``
    goes into the header of safetensors.

    Raises:
        CheckpointError: the disk is full, or cannot be written to; or the name has another ending.
    """
    from safetensors.torch import save_file

    path = Path(path)
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        allowed = ".safetensors, .pt, .pth"
        raise CheckpointError("Weights are not written to such a file.", where=str(path), allowed=allowed)
    with disk_errors("The weights could not be written", path), atomic_path(path) as temporary:
        if path.suffix == ".safetensors":
            save_file(_without_sharing(tensors), temporary, dict(metadata) if metadata else None)
        else:
            _torch_save(dict(tensors), temporary)
    return path


def _torch_save(tensors: Mapping[str, Any], path: Path) -> None:
    import torch

    try:
        with path.open("wb") as file:
            torch.save(tensors, file)
    except RuntimeError as err:  # closing the archive of a full disk hides why it could not be written
        raise (err.__context__ if isinstance(err.__context__, OSError) else err) from None


def _without_sharing(tensors: Mapping[str, Any]) -> dict[str, Any]:
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if storage in seen else tensor.contiguous()
        seen.add(storage)
    return result


@contextmanager
def survived(path: Path) -> Iterator[None]:
    """Warn where a file cannot be written that nothing depends on, a log say."""
    try:
        yield
    except OSError as err:
        _log.warning("%s cannot be written: %s. The rest goes on.", path, err.strerror or err)


@contextmanager
def disk_errors(what: str, path: Path) -> Iterator[None]:
    """Say what could not be written, and why.

    Raises:
        CheckpointError: in place of what the operating system or safetensors raised.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as err:
        reason = getattr(err, "strerror", None) or err
        fix = "free disk space; what was saved before is intact"
        raise CheckpointError(f"{what}: {reason}.", where=str(path), fix=fix) from err
