"""The files of a checkpoint: written in pieces and hashed on the way, listed in a manifest, verified before use."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..utils import untrusted
from ..utils.errors import CheckpointError, LocapError
from ..utils.fault_points import reach
from ..utils.files import sync

PIECE_BYTES = 16 << 20
MANIFEST, STATE = "manifest.json", "state.json"
_MODEL_FILES = re.compile(r"(?:.*/)?(?:[^/]*-)?model(?:-[^/]*)?\.safetensors")
_STEP = re.compile(r"step_(\d{8})")
_DTYPES = {  # in the library's order, largest first, so that every tensor lies aligned
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_RANKS = {dtype: rank for rank, dtype in enumerate(_DTYPES)}


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What the manifest says of a file."""

    bytes: int
    sha256: str


def step_folder(root: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies."""
    return root / f"step_{step:08d}"


def step_folders(root: Path) -> list[Path]:
    """Return the checkpoints of a run that are not set aside, oldest first."""
    return sorted(path for path in root.glob("step_*") if _STEP.fullmatch(path.name))


def step_of(folder: Path) -> int | None:
    """Return the step that a checkpoint is named after; None for a folder with another name."""
    match = _STEP.fullmatch(folder.name)
    return int(match[1]) if match else None


def write_pieces(path: Path, chunks: Iterable[bytes | memoryview], piece_bytes: int = PIECE_BYTES) -> FileEntry:
    """Write a new file and flush it to disk; returns its size and hash, taken of what was written.

    Args:
        path: must not exist.
        chunks: its content in order.
        piece_bytes: most bytes written at once.

    Raises:
        OSError: the disk is full, or cannot be written to.
    """
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        for chunk in chunks:
            for start in range(0, len(chunk), piece_bytes):
                piece = chunk[start : start + piece_bytes]
                reach("checkpoint.write")
                file.write(piece)
                digest.update(piece)
                size += len(piece)
        reach("checkpoint.sync")
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(size, digest.hexdigest())


def write_tensor_file(path: Path, tensors: Mapping[str, Tensor], piece_bytes: int = PIECE_BYTES) -> FileEntry:
    """Write a safetensors file, the same bytes as the library's, with one tensor at a time brought to the CPU.

    Raises:
        CheckpointError: safetensors has no name for a tensor's type.
        OSError: the disk is full, or cannot be written to.
    """
    return write_pieces(path, _safetensors(tensors), piece_bytes)


def _safetensors(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a safetensors file: 8 bytes of header length, the header (JSON), the tensors."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise CheckpointError("A tensor of this type cannot be saved.", where=name, value=str(tensor.dtype))
    ordered = sorted(tensors, key=lambda name: (_RANKS[tensors[name].dtype], name))
    header, end = {}, 0
    for name in ordered:
        tensor, start = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in ordered:
        yield tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def tensor_bytes(files: Mapping[str, Mapping[str, Tensor]]) -> int:
    """Return how many bytes the tensors of several files take."""
    return sum(tensor.numel() * tensor.element_size() for tensors in files.values() for tensor in tensors.values())


def write_manifest(folder: Path, step: int, files: Mapping[str, FileEntry]) -> None:
    """List a checkpoint's files in it, and flush its folders to disk; the last thing before its rename."""
    reach("checkpoint.manifest")
    write_pieces(folder / MANIFEST, [_manifest_text(step, files).encode()])
    for inner in [path for path in folder.rglob("*") if path.is_dir()]:
        sync(inner)
    sync(folder)


def _manifest_text(step: int, files: Mapping[str, FileEntry]) -> str:
    """Return the only text that a manifest of these files may have; it ends with a hash of itself."""
    body = {"step": step, "files": {name: asdict(files[name]) for name in sorted(files)}}
    digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    return json.dumps(body | {"sha256": digest}, indent=1) + "\n"


def read_manifest(folder: Path) -> tuple[int, dict[str, FileEntry]]:
    """Return the step and the files of a checkpoint.

    Raises:
        CheckpointError: there is no manifest, or it is not as it was written.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"The checkpoint {folder.name} has no manifest.", where=str(folder))
    try:
        body = untrusted.read_json(path)
        step = body["step"]
        files = {name: FileEntry(entry["bytes"], entry["sha256"]) for name, entry in body["files"].items()}
        true = path.read_bytes() == _manifest_text(step, files).encode()
    except (LocapError, KeyError, TypeError, AttributeError, ValueError):
        true = False
    if not true or STATE not in files or not any(map(_MODEL_FILES.fullmatch, files)):
        raise CheckpointError(f"The checkpoint {folder.name} has a damaged manifest.", where=str(folder))
    return step, files


def verify(folder: Path) -> dict[str, Any]:
    """Check a checkpoint's files against its manifest, sizes first; returns the state.

    Raises:
        CheckpointError: a file is missing, truncated, changed or too many, or belongs to another step.
    """
    try:
        step, files = read_manifest(folder)
        if step_of(folder) not in (None, step):
            raise CheckpointError(f"The checkpoint {folder.name} holds that of step {step}.", where=str(folder))
        _check_sizes(folder, files)
        for name, entry in files.items():
            if hash_file(folder / name) != entry.sha256:
                raise CheckpointError(f"The checkpoint {folder.name} is damaged: {name}.", where=str(folder))
        return untrusted.read_json(folder / STATE)
    except OSError as err:
        reason = err.strerror or err
        raise CheckpointError(f"The checkpoint {folder.name} cannot be read: {reason}.", where=str(folder)) from err


def _check_sizes(folder: Path, files: Mapping[str, FileEntry]) -> None:
    for name, entry in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry.bytes:
            found = f"{path.stat().st_size} bytes" if path.is_file() else "no such file"
            raise CheckpointError(
                f"The checkpoint {folder.name} is incomplete: {name}.",
                where=str(folder),
                value=found,
                allowed=f"{entry.bytes} bytes",
            )
    for name in files_under(folder):
        if name not in files and name != MANIFEST and not Path(name).name.startswith("."):  # .nfs..., .DS_Store
            raise CheckpointError(f"The checkpoint {folder.name} has a file too many: {name}.", where=str(folder))


def files_under(folder: Path) -> list[str]:
    """Return the files in a folder and in those below it, named from there with slashes."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def is_intact(folder: Path) -> bool:
    """Return whether a checkpoint is there as it was written."""
    try:
        verify(folder)
    except CheckpointError:
        return False
    return True


def set_aside(folder: Path, why: str) -> None:
    """Rename a checkpoint so that it is kept but never found; an earlier one of the same name goes."""
    aside = folder.with_name(f"{folder.name}.{why}")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)


def hash_file(path: Path) -> str:
    """Return the sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
