"""The folder a run writes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..utils.errors import CheckpointError
from .distributed import World, broadcast_text


def make_run_folder(cfg: Any, world: World) -> Path:
    """Return SAVE_DIR/<name>/run_<k> with the first free k, made by rank 0; a resumed run goes on in its own folder.

    Raises:
        CheckpointError: the folder cannot be made, or RESUME_FROM is not a run.
    """
    error = folder = None
    if world.is_main:
        try:
            folder = str(resumed_run(cfg.RESUME_FROM) if cfg.RESUME else _first_free(Path(cfg.SAVE_DIR) / cfg.BASENAME))
        except (CheckpointError, OSError) as err:
            error = err
    folder = broadcast_text(folder)
    if isinstance(error, CheckpointError):
        raise error
    if not folder:
        raise CheckpointError(
            f"The run's folder cannot be made: {error or 'rank 0 failed'}.",
            where="SAVE_DIR",
            value=cfg.SAVE_DIR,
            allowed="a folder that can be written to",
        )
    return Path(folder)


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


def _first_free(parent: Path) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = parent / f"run_{number}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
