"""Checkpoints: a directory that appears by one rename, with tensors, JSON and a manifest of hashes; no pickle.

In a run's folder:
    checkpoints/step_00000500/  {model.safetensors, optimizer.safetensors, state.json, manifest.json}
    latest                      the name of the newest one, a hint; the directories themselves decide
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..utils import untrusted
from ..utils.errors import CheckpointError, LocapError
from ..utils.files import disk_errors, sync, write_json, write_text

FORMAT_VERSION = 1
FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class TrainingState:
    """Where a run stands; everything random is a function of these numbers and the seed."""

    step: int = 0  # optimiser steps done
    epoch: int = 0  # epoch of the next batch
    batch: int = 0  # its index in that epoch
    best: float | None = None
    seconds: float = 0.0


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict on the CPU, each shared tensor under its first name only."""
    tensors, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in seen and tensor.numel():
            continue
        seen.add(tensor.data_ptr())
        tensors[name] = tensor.detach().cpu().contiguous()
    return tensors


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the optimiser's tensors, named ``<key>/<parameter>``."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{key}/{names[id(parameter)]}": value.detach().cpu().contiguous()
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

    Args:
        run: the run's folder.
        keep: newest checkpoints kept; 0 keeps all.
    """

    def __init__(self, run: str | Path, keep: int = 2) -> None:
        self.run, self.keep = Path(run), keep
        self.root = self.run / "checkpoints"

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any], step: int) -> Path:
        """Write everything aside, then make it visible by one rename; older checkpoints go last.

        Raises:
            CheckpointError: the disk is full, or cannot be written to.
        """
        final = self.root / f"step_{step:08d}"
        if final.exists():
            return final
        temporary = self.root / f".tmp-{step}-{uuid.uuid4().hex[:8]}"
        try:
            with disk_errors("The checkpoint could not be written", final):
                temporary.mkdir(parents=True)
                save_file(model_tensors(model), temporary / "model.safetensors")
                save_file(optimizer_tensors(optimizer, model), temporary / "optimizer.safetensors")
                write_json(temporary / "state.json", {"format": FORMAT_VERSION, **state}, indent=1)
                _write_manifest(temporary)
                os.replace(temporary, final)
                sync(self.root)
                write_text(self.run / "latest", final.name + "\n")
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._prune()
        return final

    def newest(self) -> Path:
        """Return the newest intact checkpoint; a damaged one is set aside as ``....invalid`` and passed over.

        Raises:
            CheckpointError: there is none.
        """
        reasons = []
        for folder in sorted(self.root.glob("step_????????"), reverse=True):
            try:
                verify(folder)
                return folder
            except CheckpointError as err:
                reasons.append(str(err).splitlines()[0])
                _log.warning("%s Trying the checkpoint before it.", reasons[-1])
                set_aside(folder, "invalid")
        raise CheckpointError(
            "The run holds no usable checkpoint.",
            where=str(self.root),
            value="; ".join(reasons) or None,
            allowed="a folder with checkpoints/step_XXXXXXXX",
        )

    def go_back(self, folder: Path) -> None:
        """Set the checkpoints after ``folder`` aside as ``....abandoned``: the run goes on from there."""
        for newer in self.root.glob("step_????????"):
            if newer.name > folder.name:
                set_aside(newer, "abandoned")

    def _prune(self) -> None:
        """Delete old checkpoints, and what a killed process left half written."""
        old = sorted(self.root.glob("step_????????"))[: -self.keep] if self.keep else []
        for folder in (*old, *self.root.glob(".tmp-*")):
            shutil.rmtree(folder, ignore_errors=True)


def set_aside(folder: Path, why: str) -> None:
    """Rename a checkpoint so that it is kept but never found; an earlier one of the same name goes."""
    aside = folder.with_name(f"{folder.name}.{why}")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)


def verify(folder: Path) -> dict[str, Any]:
    """Check sizes and hashes against the manifest; returns the state.

    Raises:
        CheckpointError: a file is missing, truncated or changed.
    """
    for name, (size, digest) in _read_manifest(folder).items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise CheckpointError(f"The checkpoint {folder.name} is incomplete: {name}.", where=str(folder))
        if _sha256(path) != digest:
            raise CheckpointError(f"The checkpoint {folder.name} is damaged: {name}.", where=str(folder))
    return untrusted.read_json(folder / "state.json")


def _write_manifest(folder: Path) -> None:
    files = {}
    for name in FILES:
        sync(folder / name)
        files[name] = {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
    write_json(folder / "manifest.json", {"files": files}, indent=1)


def _read_manifest(folder: Path) -> dict[str, tuple[int, str]]:
    """Return file name -> (bytes, sha256) of every file that a checkpoint must have."""
    if not (folder / "manifest.json").is_file():
        raise CheckpointError(f"The checkpoint {folder.name} has no manifest.", where=str(folder))
    try:
        files = untrusted.read_json(folder / "manifest.json")["files"]
        return {name: (files[name]["bytes"], files[name]["sha256"]) for name in FILES}
    except (LocapError, KeyError, TypeError):
        raise CheckpointError(f"The checkpoint {folder.name} has a damaged manifest.", where=str(folder)) from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _digest(file)
    return digest.hexdigest()


def _digest(file) -> Any:
    """Hash a file piece by piece (Python 3.10)."""
    digest = hashlib.sha256()
    while piece := file.read(1 << 20):
        digest.update(piece)
    return digest
