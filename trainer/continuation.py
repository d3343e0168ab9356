"""Is a resumed run still the same run? Its configuration beside the one it is resumed with."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ..modeling.schemas import MODEL_SCHEMAS
from ..utils.config import load_config
from ..utils.errors import CheckpointError, LocapError

# what says which sample comes when, and which model learns from it
IDENTITY = (
    *("SEED", "MODEL.NAME", "DATASETS.TRAIN", "DATASETS.WEIGHTS", "DATASETS.SAMPLES_PER_EPOCH"),
    *("COCO.TRAIN.BATCH_SIZE_TOTAL", "SHAPES.NUM_TRAIN", "SHAPES.SEED", "SHAPES.IMAGE_SIZE"),
)
EXPECTED = ("RESUME", "RESUME_FROM", "RESUME_CHANGES", "WEIGHT", "SAVE_DIR", "BASENAME", "DEVICE", "CUDA", "PORT")
BATCH = "COCO.TRAIN.BATCH_SIZE_TOTAL"
_log = logging.getLogger(__name__)


def check_continuation(cfg: Any, run: Path) -> None:
    """Compare the configuration with that of the run's folder; other differences than in `IDENTITY` are only told.

    Raises:
        CheckpointError: a key of `IDENTITY` has changed and is not in RESUME_CHANGES.
    """
    stored = run / "config.yaml"
    if not stored.is_file():
        return
    try:
        before = _flat(load_config([stored], model_schemas=MODEL_SCHEMAS))
    except LocapError as err:
        _log.warning("%s cannot be compared with this run's configuration: %s", stored, err)
        return
    now = _flat(cfg)
    changed = {
        key: (before[key], now[key])
        for key in before.keys() & now.keys()
        if before[key] != now[key] and not key.startswith(EXPECTED)
    }
    for key, (old, new) in sorted(changed.items()):
        if key.startswith(IDENTITY) and key not in cfg.RESUME_CHANGES:
            raise CheckpointError(
                "The run was started with another value, on which the order of its samples or its model hangs.",
                where=key,
                value=new,
                allowed=repr(old),
                fix=f"--overrides {key} {old}; or start a new run from its weights (WEIGHT True); or, if you know what "
                f"you do, RESUME_CHANGES [{key}]",
            )
    if changed:
        shown = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in sorted(changed.items()))
        _log.warning("this run goes on with other values: %s", shown)


def converted_position(state: Mapping[str, Any], batch_size: int) -> dict[str, Any]:
    """Return where a run stands after a change of the global batch: at the same sample, rounded down to a whole batch.

    Args:
        state: of the checkpoint.
        batch_size: the global batch from now on.
    """
    before = state.get("batch_size", batch_size)
    if before == batch_size:
        return dict(state)
    batch = state["batch"] * before // batch_size
    _log.warning(
        "the global batch was %d and is %d: %d batches of this epoch were %d samples, so the run goes on at batch %d",
        *(before, batch_size, state["batch"], state["batch"] * before, batch),
    )
    return {**state, "batch": batch}


def _flat(cfg: Any) -> dict[str, Any]:
    def walk(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in values.items():
            if isinstance(value, Mapping) and value:
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value

    return dict(walk(OmegaConf.to_container(cfg, resolve=True), ""))
