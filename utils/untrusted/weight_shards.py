"""Weights in several files, of which each holds parts of tensors: what several processes wrote of one model.

    model-00001-of-00004.safetensors, ..., model-00004-of-00004.safetensors

A header's ``DCP_SHARDING_INFO`` says where a part begins, as torch.distributed.checkpoint writes it; what it does not
name is whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .files import head_bytes, masquerade, require_file, shown

OFFSETS = "DCP_SHARDING_INFO"
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a tensor, along its first axis.

    Attributes:
        file: that holds it.
        offsets: index of its first element.
        shape: its own.
        dtype: the format's name of its number type.
    """

    file: Path
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str


def weight_files(folder: str | Path, name: str) -> list[Path]:
    """Return ``<name>.safetensors`` of a folder, or ``<name>-XXXXX-of-XXXXX.safetensors``, all of them, or none.

    Raises:
        CheckpointError: some of the files are missing, or those of two sets lie together.
    """
    whole = Path(folder) / f"{name}.safetensors"
    if whole.is_file():
        return [whole]
    found = {path.name: path for path in Path(folder).glob(f"{name}-*-of-*.safetensors")}
    matches = [match for match in map(_PART.fullmatch, found) if match and match[1] == name]
    if not matches:
        return []
    count = int(matches[0][3])
    wanted = [f"{name}-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]
    if {match[0] for match in matches} != set(wanted):
        missing = [each for each in wanted if each not in found]
        raise CheckpointError(
            "Files of the weights are missing." if missing else "The files of two sets of weights lie together.",
            where=shown(folder),
            value=", ".join(missing[:4]) or ", ".join(sorted(found.keys() - set(wanted))[:4]),
            allowed=f"{whole.name}, or every one of {name}-XXXXX-of-XXXXX.safetensors",
        )
    return [found[each] for each in wanted]


def tensor_parts(folder: str | Path, name: str) -> dict[str, list[Part]]:
    """Return where the parts of each tensor lie, in their order; headers alone are read.

    Raises:
        CheckpointError: files are missing or broken, or the parts do not make up whole tensors.
    """
    files = weight_files(folder, name)
    if not files:
        raise CheckpointError("There are no weights of this name.", where=shown(folder), value=name)
    parts: dict[str, list[Part]] = {}
    for file in files:
        for tensor, part in _parts_of(file):
            parts.setdefault(tensor, []).append(part)
    for tensor, own in parts.items():
        own.sort(key=lambda part: part.offsets)
        _require_whole(tensor, own)
    return parts


def load_tensor_parts(folder: str | Path, name: str) -> dict[str, Any]:
    """Return all tensors of a set of files, put together, on the CPU.

    Raises:
        CheckpointError: as `tensor_parts`.
    """
    import torch

    opened: dict[Path, Any] = {}
    tensors = {}
    for tensor, parts in tensor_parts(folder, name).items():
        pieces = []
        for part in parts:
            if part.file not in opened:
                opened[part.file] = open_safetensors(part.file)
            pieces.append(opened[part.file].get_tensor(tensor))
        tensors[tensor] = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return tensors


def open_safetensors(path: str | Path) -> Any:
    """Open a file of tensors, to read some of them; the library checks its header and its size.

    Raises:
        CheckpointError: it is missing or broken.
    """
    from safetensors import SafetensorError, safe_open

    size = require_file(path, error=CheckpointError, what="weights file")
    reason = masquerade(head_bytes(path))
    try:
        if reason is None:
            return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError, ValueError, RuntimeError) as err:
        reason = str(err)
    raise CheckpointError(
        f"The weights file is truncated or corrupt: {reason}.",
        where=shown(path),
        value=f"{size} bytes",
        fix="take an intact checkpoint, or copy the file again",
    )


def _parts_of(file: Path) -> Iterator[tuple[str, Part]]:
    content = open_safetensors(file)
    offsets = _offsets(content.metadata() or {}, file)
    for name in content.keys():  # noqa: SIM118 (no mapping)
        stored = content.get_slice(name)
        shape = tuple(stored.get_shape())
        begin = offsets.get(name, (0,) * len(shape))
        if len(begin) != len(shape):
            raise _broken(file, name, begin, f"{len(shape)} numbers")
        yield name, Part(file, begin, shape, stored.get_dtype())


def _offsets(metadata: dict[str, str], file: Path) -> dict[str, tuple[int, ...]]:
    """Return tensor -> index of its first element in the whole one, as the header says."""
    try:
        told = {name: entry["saved_offsets"] for name, entry in json.loads(metadata.get(OFFSETS, "{}")).items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _broken(file, OFFSETS, metadata[OFFSETS][:80], "names with saved_offsets") from None
    for name, numbers in told.items():
        if not isinstance(numbers, list) or any(type(n) is not int or n < 0 for n in numbers):
            raise _broken(file, name, numbers, "whole numbers from 0")
    return {name: tuple(numbers) for name, numbers in told.items()}


def _require_whole(name: str, parts: list[Part]) -> None:
    """Make sure that parts follow each other without gap or overlap, from the first element on."""
    first, end = parts[0], 0
    for part in parts:
        alike = part.dtype == first.dtype and len(part.shape) == len(first.shape) and part.shape[1:] == first.shape[1:]
        if not alike:
            raise _broken(part.file, name, f"{part.dtype} {part.shape}", f"parts like {first.dtype} {first.shape}")
        begin = (end, *(0 for _ in part.shape[1:])) if part.shape else ()
        if part.offsets != begin or (not part.shape and len(parts) > 1):
            raise _broken(part.file, name, part.offsets, f"{begin}, where the part before it ends")
        end += part.shape[0] if part.shape else 0


def _broken(file: Path, name: str, value: object, allowed: str) -> CheckpointError:
    return CheckpointError(
        "The parts of a tensor do not make up a whole.",
        where=f"{shown(file)}: {name}",
        value=value,
        allowed=allowed,
        fix="take an intact checkpoint, or copy its files again",
    )
