"""The folder a run writes to."""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import os
from pathlib import Path
from typing import Any

from omegaconf import read_write

from ..utils.errors import CheckpointError
from .checkpoint_files import step_folders
from .distributed import on_main

_log = logging.getLogger(__name__)


def make_run_folder(cfg: Any) -> Path:
    """Return SAVE_DIR/<name>/run_<k> with the first free k, made by rank 0; a resumed run goes on in its own folder.

    Raises:
        CheckpointError: the folder cannot be made, or RESUME_FROM is not a run.
    """
    if cfg.RESUME:
        return Path(on_main(lambda: str(resumed_run(cfg.RESUME_FROM))))
    return Path(on_main(lambda: str(_first_free(Path(cfg.SAVE_DIR) / cfg.BASENAME))))


def continued(cfg: Any) -> Any:
    """Return the configuration with the run that RESUME means: without RESUME_FROM the newest unfinished of its name.

    Where there is none, RESUME is off and a new run starts: one command starts a run and goes on with it, however often
    it is stopped. A run is finished when its ``model.safetensors`` is there.
    """
    if cfg.RESUME_FROM and not (cfg.RESUME or cfg.WEIGHT):  # the original, too, does not use it then
        way = "WEIGHT True starts from its weights, RESUME True goes on with its run"
        _log.warning("RESUME_FROM %s is not used: %s", cfg.RESUME_FROM, way)
    if not cfg.RESUME or cfg.RESUME_FROM:
        return cfg
    found = on_main(lambda: str(_newest_unfinished(Path(cfg.SAVE_DIR) / cfg.BASENAME) or ""))
    changed = copy.deepcopy(cfg)
    with read_write(changed):
        changed.RESUME, changed.RESUME_FROM = bool(found), found
    _log.info("going on with %s" if found else "there is no unfinished run to go on with: a new one starts%s", found)
    return changed


def _newest_unfinished(parent: Path) -> Path | None:
    runs = [run for run in parent.glob("run_*") if step_folders(run / "checkpoints")]
    unfinished = [run for run in runs if not (run / "model.safetensors").exists() and run.name[4:].isdecimal()]
    return max(unfinished, key=lambda run: int(run.name[4:]), default=None)


def resumed_run(path: str) -> Path:
    """Return the run folder of RESUME_FROM: itself, or the run that a checkpoint folder belongs to.

    Raises:
        CheckpointError: it is neither.
    """
    given = Path(path)
    for folder in (given, given.parent.parent):
        if path and (folder / "checkpoints").is_dir():
            return folder
    raise CheckpointError(
        "There is no run to go on with.",
        where="RESUME_FROM",
        value=path,
        allowed="a run folder (it holds checkpoints/)",
        fix="--overrides RESUME_FROM <run folder>; to start from weights alone use WEIGHT True",
    )


def writable(parent: Path) -> Path:
    """Return a folder that can be made and written to.

    Raises:
        CheckpointError: it can't.
    """
    nearest = next(folder for folder in (parent, *parent.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        reason = "is not a folder" if not nearest.is_dir() else "cannot be written to"
        raise CheckpointError(
            f"The run's folder cannot be made: {nearest} {reason}.",
            where="SAVE_DIR",
            value=str(parent),
            allowed="a folder that can be written to",
            fix="--overrides SAVE_DIR <folder>",
        )
    return parent


def _first_free(parent: Path) -> Path:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            folder = parent / f"run_{number}"
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as err:
        raise CheckpointError(
            f"The run's folder cannot be made: {err.strerror or err}.",
            where="SAVE_DIR",
            value=str(parent),
            allowed="a folder that can be written to",
        ) from None
