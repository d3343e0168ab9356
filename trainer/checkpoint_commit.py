"""How a checkpoint appears: written aside, flushed, listed, renamed; never half of one, never none in place of an old.

.tmp-<step>-<uuid>/ -> its files, flushed -> manifest -> folder flushed -> rename -> parent flushed -> `latest`
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from safetensors import SafetensorError

from ..utils.errors import CheckpointError
from ..utils.fault_points import reach
from ..utils.files import sync, write_text
from .checkpoint_files import FileEntry, is_intact, set_aside, step_folder, step_folders, write_manifest

SPARE = 1.1  # of a checkpoint's size must be free
_log = logging.getLogger(__name__)


class DiskError(CheckpointError):
    """A checkpoint could not be written: the disk is full, or refuses."""

    exit_code = 5


def commit(root: Path, step: int, write: Callable[[Path], Mapping[str, FileEntry]], needed: int) -> int:
    """Have files written and make them the checkpoint of a step; a valid one of that step is left as it is.

    Args:
        root: the run's ``checkpoints``.
        step: optimiser steps done.
        write: writes and flushes files in the folder it is given; returns what it wrote.
        needed: bytes, as far as known.

    Returns:
        The bytes written.

    Raises:
        OSError: the disk is full, or cannot be written to; nothing but what was there before remains.
    """
    final = step_folder(root, step)
    if final.exists() and is_intact(final):
        return 0
    root.mkdir(parents=True, exist_ok=True)
    _check_space(root, needed)
    temporary = root / f".tmp-{step}-{uuid.uuid4().hex[:8]}"
    try:
        temporary.mkdir()
        files = write(temporary)
        write_manifest(temporary, step, files)
        if final.exists():
            set_aside(final, "invalid")
        reach("checkpoint.rename")
        os.replace(temporary, final)
        reach("checkpoint.renamed")
        sync(root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _name_latest(final)
    return sum(entry.bytes for entry in files.values())


def _check_space(root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if free < SPARE * needed:
        raise OSError(f"{SPARE * needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free")


def _name_latest(final: Path) -> None:
    """Write `latest`, a hint for people and scripts, which no checkpoint depends on."""
    reach("checkpoint.latest")
    try:
        write_text(final.parent.parent / "latest", final.name + "\n")
    except OSError as err:
        _log.warning("The checkpoint %s is saved, but `latest` is not: %s.", final.name, err.strerror or err)


def prune(root: Path, keep: int, spared: Collection[Path] = ()) -> None:
    """Delete all but the newest checkpoints and the spared, and what a killed process left half written.

    A checkpoint loses its name before its files, so that no part of one is ever found.

    Args:
        root: the run's ``checkpoints``.
        keep: newest checkpoints that stay; 0 keeps all.
        spared: others that stay.
    """
    for folder in step_folders(root)[:-keep] if keep else []:
        if folder not in spared:
            reach("checkpoint.prune")
            put_aside(folder, root / f".tmp-old-{folder.name}")
    for folder in root.glob(".tmp-*"):
        shutil.rmtree(folder, ignore_errors=True)


def put_aside(folder: Path, aside: Path) -> None:
    """Rename a checkpoint, or say that it cannot be done."""
    try:
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    except OSError as err:
        _log.warning("%s cannot be renamed: %s.", folder, err.strerror or err)


def disk_reason(err: BaseException) -> str | None:
    """Return why the disk refused; None for an error that is not the disk's."""
    if isinstance(err, OSError):
        return err.strerror or str(err)
    if isinstance(err, SafetensorError):
        return str(err)
    inner = [failure[0] for failure in getattr(err, "failures", {}).values()]  # of torch.distributed.checkpoint
    inner += [err.__cause__] if err.__cause__ is not None else []
    return next(filter(None, map(disk_reason, inner)), None)
