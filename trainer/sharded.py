"""Checkpoints of models that processes share: each writes its shards, any number of processes reads them again.

    model-00001-of-00004.safetensors, optimizer-00001-of-00004.safetensors, ...

A file holds the rank's pieces of tensors under their names; its header says where each piece begins, in the form of
torch.distributed.checkpoint's HuggingFaceStorageReader, which reads these files too. Its writer is not used: it plans
with collectives while it writes, and packs what it sends in pickles.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..utils import untrusted
from ..utils.errors import CheckpointError
from ..utils.untrusted.weight_shards import OFFSETS
from .parallel import is_shard


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a tensor, on the host, and the index of its first element."""

    tensor: Tensor
    offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Staged:
    """What one rank writes: file -> name -> piece."""

    files: Mapping[str, Mapping[str, Piece]]
    ranks: int


def staged(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    average: Mapping[str, Tensor] | None = None,
) -> Staged:
    """Copy this rank's pieces to the host; training may go on while they are written. No communication.

    Args:
        model, optimizer: whose tensors are kept.
        average: of the weights, by name.
    """
    rank, ranks = _here()
    tensors = {"model": _own_state(model)}
    if optimizer is not None:
        tensors["optimizer"] = _optimizer_state(model, optimizer)
    if average is not None:
        tensors["ema"] = dict(average)
    return Staged({file: dict(_pieces(named, rank)) for file, named in tensors.items()}, ranks)


def write(staged: Staged, folder: str | Path, rank: int) -> list[Path]:
    """Write one rank's files into an existing folder; may run in a thread. Nothing is renamed or flushed here."""
    paths = []
    for file, pieces in staged.files.items():
        path = Path(folder) / f"{file}-{rank + 1:05d}-of-{staged.ranks:05d}.safetensors"
        where = {name: {"saved_offsets": list(piece.offsets)} for name, piece in pieces.items()}
        save_file({name: piece.tensor for name, piece in pieces.items()}, path, {OFFSETS: json.dumps(where)})
        paths.append(path)
    return paths


def restore(
    folder: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    average: Mapping[str, Tensor] | None = None,
) -> None:
    """Fill a model, its average and an optimiser, sharded or not, from shards of any number of ranks, or whole tensors.

    Every rank reads only what it needs. No communication.

    Raises:
        CheckpointError: a file is missing or broken, or the tensors are not those of the model.
    """
    with torch.no_grad():
        _fill(_Source(Path(folder), "model"), _own_state(model), "model")
        if average is not None:
            _fill(_Source(Path(folder), "ema"), average, "average")
        if optimizer is not None:
            _restore_optimizer(_Source(Path(folder), "optimizer"), model, optimizer)
    if hasattr(model, "class_texts"):
        model.class_texts.forget()


def full_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all of the model's tensors, whole, on the host of every rank; all ranks must call it.

    A tensor that several names share comes under its first name only. What was whole on the host is no copy.
    """
    return {
        name: (tensor.full_tensor() if is_shard(tensor) else tensor).detach().cpu().contiguous()
        for name, tensor in _own_state(model).items()
    }


def _here() -> tuple[int, int]:
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _own_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict's own tensors, not copies, each once."""
    tensors, seen = {}, set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor
    return tensors


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's tensors as ``<key>/<parameter>``, in the order of the model's parameters."""
    return {
        f"{key}/{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def _pieces(tensors: Mapping[str, Tensor], rank: int) -> Iterator[tuple[str, Piece]]:
    """Yield what this rank is to write: its shards, of the first copy; what is whole is rank 0's."""
    for name, tensor in tensors.items():
        if is_shard(tensor):
            axes = enumerate(tensor.placements)
            copy = any(tensor.device_mesh.get_local_rank(axis) for axis, way in axes if way.is_replicate())
            offsets, local = _offsets(tensor), tensor.to_local()
            if copy or (not local.numel() and tensor.numel()) or (not tensor.numel() and rank):
                continue
        elif rank == 0:
            offsets, local = (0,) * tensor.ndim, tensor
        else:
            continue
        yield name, Piece(local.detach().to("cpu", copy=True).contiguous(), offsets)


def _offsets(tensor: Tensor) -> tuple[int, ...]:
    """Return where this rank's part of a tensor begins."""
    if not is_shard(tensor):
        return (0,) * tensor.ndim
    return tuple(tensor.__create_chunk_list__()[0].offsets)  # the protocol of torch.distributed.checkpoint


def _restore_optimizer(source: _Source, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    learning = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    parameters = {name: p for name, p in model.named_parameters() if id(p) in learning}
    for full in source.names:
        key, _, name = full.partition("/")
        if name not in parameters:
            raise CheckpointError("The checkpoint's optimiser belongs to another model.", where=name)
        parameter = parameters[name]
        if key == "step":  # a number that every parameter has for itself
            value = source.empty(full, parameter.device)
        else:
            value = torch.empty_like(parameter, requires_grad=False)
        source.fill(full, value)
        optimizer.state[parameter][key] = value


def _fill(source: _Source, tensors: Mapping[str, Tensor], what: str) -> None:
    _same_names(tensors, source, what)
    for name, tensor in tensors.items():
        source.fill(name, tensor)


def _same_names(wanted: Mapping[str, Tensor], source: _Source, what: str) -> None:
    missing, unexpected = sorted(wanted.keys() - source.names), sorted(source.names - wanted.keys())
    if missing or unexpected:
        raise CheckpointError(
            f"The checkpoint's {what} is another one.",
            where=str(source.folder),
            value=f"missing: {', '.join(missing[:4]) or 'none'}; unexpected: {', '.join(unexpected[:4]) or 'none'}",
            allowed="every tensor of the model, and no other",
        )


class _Source:
    """The tensors of a checkpoint, wherever their parts lie.

    Args:
        folder: holds ``<file>.safetensors`` or ``<file>-XXXXX-of-XXXXX.safetensors``.
        file: which.
    """

    def __init__(self, folder: Path, file: str) -> None:
        self.folder, self.parts = folder, untrusted.tensor_parts(folder, file)
        self._opened: dict[Path, Any] = {}

    @property
    def names(self) -> set[str]:
        return set(self.parts)

    def empty(self, name: str, device: torch.device) -> Tensor:
        """Return a tensor like one that is stored whole."""
        return torch.empty_like(self._open(self.parts[name][0].file).get_tensor(name), device=device)

    def fill(self, name: str, tensor: Tensor) -> None:
        """Copy into a tensor, or into this rank's part of it, which is one along the first axis."""
        local, begin = (tensor.to_local() if is_shard(tensor) else tensor), _offsets(tensor)
        parts = self.parts[name]
        stored = (sum(part.shape[0] for part in parts), *parts[0].shape[1:]) if parts[0].shape else ()
        if stored != tuple(tensor.shape):
            raise self._misfit(name, stored, tuple(tensor.shape))
        for part in parts:
            file = self._open(part.file)
            if not local.ndim:
                self._copy(name, local, file.get_tensor(name))
                continue
            low = max(begin[0], part.offsets[0])
            high = min(begin[0] + local.shape[0], part.offsets[0] + part.shape[0])
            if low < high:
                content = file.get_slice(name)[low - part.offsets[0] : high - part.offsets[0]]
                self._copy(name, local[low - begin[0] : high - begin[0]], content)

    def _copy(self, name: str, ours: Tensor, theirs: Tensor) -> None:
        if ours.dtype != theirs.dtype:
            raise self._misfit(name, theirs.dtype, ours.dtype)
        ours.copy_(theirs)

    def _open(self, path: Path) -> Any:
        if path not in self._opened:
            self._opened[path] = untrusted.open_safetensors(path)
        return self._opened[path]

    def _misfit(self, name: str, found: object, wanted: object) -> CheckpointError:
        return CheckpointError(
            "A tensor of the checkpoint does not fit.", where=f"{self.folder}: {name}", value=found, allowed=str(wanted)
        )
