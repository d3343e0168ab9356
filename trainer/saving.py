"""What of a run goes into a checkpoint, and back."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn

from ..modeling.checkpoints.loader import load_weights
from ..utils import untrusted
from ..utils.files import write_text
from . import sharded
from .checkpoint import CheckpointFolder, model_tensors, optimizer_tensors, restore_optimizer
from .checkpoint_files import STATE, verify
from .continuation import check_continuation, converted_position
from .distributed import World, on_main, shared_store
from .loop import TrainingLoop

MODEL, AVERAGE = "model.safetensors", "ema.safetensors"
_log = logging.getLogger(__name__)


class Saver:
    """Saves a run and goes on with it.

    Args:
        folder: of the run.
        model: the system.
        loop: what trains it.
        cfg: the resolved configuration.
        world: this process among its peers.
    """

    def __init__(self, folder: Path, model: nn.Module, loop: TrainingLoop, cfg: Any, world: World) -> None:
        self.folder, self.model, self.loop, self.cfg, self.world = folder, model, loop, cfg, world
        self.checkpoints = CheckpointFolder(
            folder, cfg.KEEP_CHECKPOINTS, keep_best=cfg.KEEP_BEST, write_ahead=cfg.ASYNC_CHECKPOINTS
        )
        self._saved_at = -1

    def save(self) -> None:
        """Write a checkpoint, once per step; it may still be under way when this returns."""
        step = self.loop.state.step
        if self._saved_at == step:
            return
        self._saved_at = step
        state = self.loop.state_dict() | {"batch_size": self.cfg.COCO.TRAIN.BATCH_SIZE_TOTAL}
        if self.loop.replicas.sharded:
            pieces = sharded.staged(self.model, self.loop.optimizer, self._average())
            rank = self.world.rank
            write = lambda folder: sharded.write(pieces, folder, rank)  # noqa: E731
            self.checkpoints.save_shards(write, state, step, self.world, shared_store())
        elif self.world.is_main:
            self.checkpoints.save(self._tensors(), state, step)

    def _tensors(self) -> dict[str, dict[str, Any]]:
        tensors = {
            MODEL: model_tensors(self.model),
            "optimizer.safetensors": optimizer_tensors(self.loop.optimizer, self.model),
        }
        if self.loop.average is not None:
            tensors[AVERAGE] = self.loop.average.average
        return tensors

    def _average(self) -> dict[str, Any] | None:
        return None if self.loop.average is None else self.loop.average.average

    def wait(self) -> None:
        """Return when everything is on disk."""
        self.checkpoints.wait()

    def note_figure(self, value: float, *, higher_is_better: bool) -> None:
        """Say how good the weights of this step are, so that the best are kept."""
        if self.world.is_main and self.cfg.KEEP_BEST:
            self.checkpoints.note_figure(self.loop.state.step, value, higher_is_better=higher_is_better)

    def resume(self) -> None:
        """Go on from the checkpoint that RESUME_FROM names, or the newest of the run that it names."""
        folder = Path(on_main(lambda: str(self._starting_point())))
        state = untrusted.read_json(folder / STATE)  # rank 0 has verified the files
        _log.info("going on from %s", folder)
        self._restore(folder)
        self.loop.load_state_dict(converted_position(state, self.cfg.COCO.TRAIN.BATCH_SIZE_TOTAL))
        self._saved_at = self.loop.state.step

    def _restore(self, folder: Path) -> None:
        """Fill model, optimiser and average, however many processes wrote the checkpoint, and however many read it."""
        model, optimizer = self.model, self.loop.optimizer
        average = self._average() if untrusted.weight_files(folder, "ema") else None
        if self.loop.replicas.sharded or not (folder / MODEL).is_file():
            sharded.restore(folder, model, optimizer, average)
        else:
            load_weights(model, folder / MODEL)
            restore_optimizer(optimizer, model, untrusted.load_tensors(folder / "optimizer.safetensors"))
            if average is not None:
                self.loop.average.load(untrusted.load_tensors(folder / AVERAGE))
        if average is None and self.loop.average is not None:
            self.loop.average.restart()

    def _starting_point(self) -> Path:
        check_continuation(self.cfg, self.folder)
        given = Path(self.cfg.RESUME_FROM)
        if given == self.folder:
            given = self.checkpoints.newest()
        else:
            verify(given)
            self.checkpoints.go_back(given)
        write_text(self.folder / "latest", given.name + "\n")  # a killed process may not have come to it
        return given
