"""Checkpoints: a directory that appears by one rename, with tensors, JSON and a manifest of hashes; no pickle.

In a run's folder:
    checkpoints/step_00000500/  {model.safetensors, optimizer.safetensors, state.json, manifest.json}
    checkpoints/best.json       the figures that tell which checkpoints are the best
    latest                      the name of the newest one, a hint; the directories themselves decide
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import HashStore, Store

from ..utils.errors import CheckpointError
from ..utils.fault_points import reach
from .checkpoint_best import BestFigures
from .checkpoint_commit import commit, prune, put_aside
from .checkpoint_files import (
    PIECE_BYTES,
    STATE,
    FileEntry,
    set_aside,
    step_folder,
    step_folders,
    step_of,
    tensor_bytes,
    verify,
    write_pieces,
    write_tensor_file,
)
from .checkpoint_shards import Meeting, follow, gather, presiding
from .checkpoint_staging import Staging
from .checkpoint_writer import Writer
from .distributed import World

FORMAT_VERSION = 1
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class TrainingState:
    """Where a run stands; everything random is a function of these numbers and the seed."""

    step: int = 0  # optimiser steps done
    epoch: int = 0  # epoch of the next batch
    batch: int = 0  # its index in that epoch
    seconds: float = 0.0


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict where it is, each shared tensor under its first name only."""
    tensors, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in seen and tensor.numel():
            continue
        seen.add(tensor.data_ptr())
        tensors[name] = tensor.detach().contiguous()
    return tensors


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the optimiser's tensors where they are, named ``<key>/<parameter>``."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{key}/{names[id(parameter)]}": value.detach().contiguous()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Fill the optimiser's state from `optimizer_tensors`' names.

    Raises:
        CheckpointError: a tensor belongs to no trained parameter or has another shape.
    """
    parameters = dict(model.named_parameters())
    for full, value in tensors.items():
        key, name = full.split("/", 1)
        parameter = parameters.get(name)
        if parameter is None or not parameter.requires_grad:
            raise CheckpointError("The checkpoint's optimiser belongs to another model.", where=name)
        if value.ndim and value.shape != parameter.shape:
            raise CheckpointError(
                "The checkpoint's optimiser belongs to another model.",
                where=name,
                value=tuple(value.shape),
                allowed=str(tuple(parameter.shape)),
            )
        device = "cpu" if key == "step" and not _on_device(optimizer) else parameter.device
        optimizer.state[parameter][key] = value.clone().to(device)


def _on_device(optimizer: torch.optim.Optimizer) -> bool:
    return any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)


class CheckpointFolder:
    """The checkpoints of one run.

    A checkpoint that the disk refuses costs a warning, and what was saved before stays; the third in a row is an error,
    and so is the last one when `wait` asks for it.

    Args:
        run: the run's folder.
        keep: newest checkpoints kept; 0 keeps all.
        keep_best: of those with the best figures, how many are kept besides, see `note_figure`.
        write_ahead: write in a thread; `save` returns when the tensors have been copied.
        piece_bytes: most bytes written at once.
    """

    def __init__(
        self,
        run: str | Path,
        keep: int = 2,
        keep_best: int = 0,
        write_ahead: bool = False,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        self.run, self.keep, self.keep_best, self.piece_bytes = Path(run), keep, keep_best, piece_bytes
        self.root = self.run / "checkpoints"
        self._figures = BestFigures(self.root / "best.json")
        self._writer, self._staging = Writer(write_ahead), Staging()
        self._meetings = self._last_bytes = 0

    def save(self, files: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], step: int) -> Path:
        """Write a checkpoint aside, then make it visible by one rename; older ones go last.

        A valid checkpoint of this step is left as it is, a damaged one set aside.

        Args:
            files: file name -> tensors; ``model.safetensors`` is one of them.
            state: what else the run needs, for ``state.json``.
            step: optimiser steps done.

        Returns:
            Where the checkpoint is, or with ``write_ahead`` will be.

        Raises:
            CheckpointError: the disk has refused three checkpoints in a row (exit code 5), or the thread has failed.
        """
        self._writer.ready()
        reach("checkpoint.begin")
        text, needed = _state_bytes(state), tensor_bytes(files)
        if self._writer.ahead:
            files = self._staging.copy(files)
        reach("checkpoint.staged")
        final = step_folder(self.root, step)
        self._writer.start(lambda: self._commit(step, lambda folder: self._write(folder, files, text), needed), final)
        return final

    def save_shards(
        self,
        write_my_files: Callable[[Path], None],
        state: Mapping[str, Any],
        step: int,
        world: World,
        store: Store | None,
        limit_seconds: float = 1800,
    ) -> Path:
        """As `save`, called on every rank, each of which writes files of its own.

        Args:
            write_my_files: writes this rank's files, of names that no other rank uses, into the folder it is given,
                without collectives; with ``write_ahead`` in a thread, so from copies.
            state: rank 0's counts.
            step: optimiser steps done.
            world: this process among its peers.
            store: shared by all ranks; None where there is one.
            limit_seconds: how long the slowest rank may write.

        Raises:
            CheckpointError: as `save`, on every rank.
        """
        self._writer.ready()
        reach("checkpoint.begin")
        self._meetings += 1  # the same step may be saved again
        prefix = f"checkpoint/{step}.{self._meetings}"
        meeting = Meeting(store or HashStore(), prefix, world.rank, world.size, limit_seconds)
        text, final = _state_bytes(state), step_folder(self.root, step)
        reach("checkpoint.staged")
        if world.is_main:
            self._writer.start(lambda: self._lead(meeting, write_my_files, text, step), final)
        else:
            self._writer.start(lambda: follow(meeting, write_my_files), final)
        return final

    def wait(self) -> None:
        """Return when what is under way is on disk.

        Raises:
            CheckpointError: the last checkpoint could not be written.
        """
        self._writer.wait()

    def newest(self, strict: bool = False) -> Path:
        """Return the newest intact checkpoint; damaged ones after it are set aside as ``....invalid``.

        Args:
            strict: refuse to go on from any but the very newest.

        Raises:
            CheckpointError: there is none; the message says why of each.
        """
        self._writer.join()
        damaged: list[tuple[Path, str]] = []
        for folder in reversed(step_folders(self.root)):
            try:
                verify(folder)
            except CheckpointError as err:
                if strict:
                    raise
                damaged.append((folder, err.what))
                continue
            for other, reason in damaged:
                _log.warning("%s It is set aside as %s.invalid, and %s is used.", reason, other.name, folder.name)
                put_aside(other, other.with_name(f"{other.name}.invalid"))
            return folder
        reasons = [f"{folder.name}: {reason}" for folder, reason in damaged]
        reasons += [f"{path.name}: set aside before" for path in sorted(self.root.glob("step_*.invalid"), reverse=True)]
        raise CheckpointError(
            "\n           ".join(["The run holds no usable checkpoint.", *reasons]),
            where=str(self.root),
            allowed="a folder with checkpoints/step_XXXXXXXX",
            fix="bring an intact one back, or start a new run without RESUME",
        )

    def go_back(self, folder: Path) -> None:
        """Set the checkpoints after ``folder`` aside as ``....abandoned``: the run goes on from there."""
        self._writer.join()
        for newer in step_folders(self.root):
            if newer.name > folder.name:
                set_aside(newer, "abandoned")
        if (step := step_of(folder)) is not None:
            self._figures.forget_after(step)

    def note_figure(self, step: int, value: float, higher_is_better: bool = True) -> None:
        """Remember a step's figure in ``checkpoints/best.json``; the ``keep_best`` best checkpoints are not deleted.

        On rank 0 alone.
        """
        self._figures.note(step, value, higher_is_better)

    def best(self) -> Path | None:
        """Return the checkpoint with the best figure, of those that are there."""
        return next(iter(self._best(1)), None)

    def _best(self, count: int) -> list[Path]:
        steps = [step for folder in step_folders(self.root) if (step := step_of(folder)) is not None]
        return [step_folder(self.root, step) for step in self._figures.best(steps, count)]

    def _commit(self, step: int, write: Callable[[Path], Mapping[str, FileEntry]], needed: int) -> None:
        """Make what is written the checkpoint of a step; only then delete what is no longer kept."""
        self._last_bytes = commit(self.root, step, write, needed) or self._last_bytes
        prune(self.root, self.keep, self._best(self.keep_best))
        reach("checkpoint.end")

    def _write(self, folder: Path, files: Mapping[str, Mapping[str, Tensor]], state: bytes) -> dict[str, FileEntry]:
        entries = {name: write_tensor_file(folder / name, files[name], self.piece_bytes) for name in files}
        return entries | {STATE: write_pieces(folder / STATE, [state], self.piece_bytes)}

    def _lead(self, meeting: Meeting, write_my_files: Callable[[Path], None], state: bytes, step: int) -> None:
        """Do rank 0's part of `save_shards`."""

        def write(folder: Path) -> dict[str, FileEntry]:
            entries = gather(meeting, folder, write_my_files)
            return entries | {STATE: write_pieces(folder / STATE, [state], self.piece_bytes)}

        with presiding(meeting):
            self._commit(step, write, self._last_bytes)


def _state_bytes(state: Mapping[str, Any]) -> bytes:
    body = {"format": FORMAT_VERSION, **state}
    return (json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
