"""Weights of strangers: tensors come in, code stays out."""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, DataError, LocapError
from .array_pickles import read_array_pickle
from .files import head_bytes, masquerade, require_file, shown

MAX_SAFETENSORS_HEADER = 100_000_000
MAX_EXPANSION = 100
PREFIXES = ("module.", "model.", "_orig_mod.", "optimizer.", "target.", "params.")
"""Of wrappers: DataParallel and DDP, trainers, torch.compile, Flax's states."""
NESTED = ("model", "module", "state_dict", "model_state_dict", "blobs")


def load_tensors(path: str | Path) -> dict[str, Any]:
    """Load weights to the CPU without executing anything in the file.

    Returns:
        Name -> tensor for ``.safetensors`` and ``.npz``; for ``.pt``, ``.pth``, ``.bin`` and the ``.pkl`` of
        detectron2's model zoo the dictionary that was saved, nested as it is (``{"model": {...}, "optimizer": ...}``).

    Raises:
        CheckpointError: missing, truncated, a Git LFS pointer or HTML, or a pickle that names anything but tensors
            and plain containers.
    """
    require_file(path, error=CheckpointError, what="weights file")
    head = head_bytes(path)
    if reason := masquerade(head):
        raise CheckpointError(
            f"The weights cannot be read: {reason}.", where=shown(path), fix="download the file again"
        )
    suffix = Path(path).suffix.lower()
    if suffix == ".safetensors":
        return _load_safetensors(path, head)
    if suffix in (".pt", ".pth", ".bin"):
        return _load_pickle(path, head)
    if suffix == ".npz":
        return _load_npz(path, head)
    if suffix == ".pkl":
        return _load_array_pickle(path)
    allowed = ".safetensors, .pt, .pth, .bin, .npz, .pkl of arrays"
    raise CheckpointError("This is not a known kind of weights file.", where=shown(path), allowed=allowed)


def load_flat_tensors(path: str | Path) -> dict[str, Any]:
    """Load the weights of a flat or nested checkpoint, name -> tensor; what else it holds is left out.

    Nested weights lie under ``model``, ``module`` (as in the resume files of X-Decoder's trainer), ``state_dict``,
    ``model_state_dict`` or ``blobs`` (Detectron).

    Raises:
        CheckpointError: as `load_tensors`; also when it holds no tensors, or far larger ones than the file is.
    """
    import torch

    content: Mapping[str, Any] = load_tensors(path)
    content = next((content[key] for key in NESTED if isinstance(content.get(key), Mapping)), content)
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise CheckpointError("The file holds no weights.", where=shown(path), value=f"keys {list(content)[:6]}")
    unpacked = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    _refuse_expansion(unpacked, path, "save each tensor as a copy: clone()")
    return tensors


def without_prefixes(name: str) -> str:
    """Return a tensor's name without the prefixes of wrappers."""
    while name.startswith(PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _load_safetensors(path: str | Path, head: bytes) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    size, header = Path(path).stat().st_size, int.from_bytes(head[:8], "little")
    if header > min(MAX_SAFETENSORS_HEADER, size - 8):
        raise _broken_weights(path, f"its header claims {header} bytes, the file has {size}")
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, RuntimeError) as err:
        raise _broken_weights(path, str(err)) from None


def _load_npz(path: str | Path, head: bytes) -> dict[str, Any]:
    import numpy as np

    if not head.startswith(b"PK\x03\x04"):
        raise _broken_weights(path, "it is no archive of arrays")
    try:
        _refuse_bomb(path)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: _array_tensor(arrays[name]) for name in arrays.files}
    except LocapError:
        raise
    except Exception as err:  # a corrupt archive surfaces as BadZipFile, zlib.error, ValueError, EOFError, KeyError, …
        if "allow_pickle" in str(err):
            raise _objects_refused(path) from None
        raise _broken_weights(path, str(err) or type(err).__name__) from None


def _load_array_pickle(path: str | Path) -> dict[str, Any]:
    try:
        loaded = read_array_pickle(path)
    except DataError as err:
        raise CheckpointError(err.what, where=err.where, value=err.value, allowed=err.allowed, fix=err.fix) from None
    if not isinstance(loaded, dict):
        kind = type(loaded).__name__
        raise CheckpointError("The weights file holds no dictionary of arrays.", where=shown(path), value=kind)
    return _with_tensors(loaded, {})


def _with_tensors(value: Any, made: dict[int, Any]) -> Any:
    """Return values with tensors in place of arrays; ``made`` has those that the file repeats."""
    import numpy as np

    if isinstance(value, dict):
        return {name: _with_tensors(item, made) for name, item in value.items()}
    if not isinstance(value, np.ndarray):
        return value
    if id(value) not in made:
        made[id(value)] = _array_tensor(value.astype(value.dtype.newbyteorder("="), order="C"))
    return made[id(value)]


def _objects_refused(path: str | Path) -> CheckpointError:
    return CheckpointError(
        "The weights file was refused: it holds Python objects, and loading those could execute code. Nothing was "
        "executed.",
        where=shown(path),
        allowed="arrays of numbers",
        fix="write each tensor as an array of its own: numpy.savez(path, **{name: numpy.asarray(tensor), …})",
    )


def _array_tensor(array: Any) -> Any:
    """Return an array's tensor; NumPy has no bfloat16 and stores it as two bytes without a meaning."""
    import torch

    if array.dtype.str == "|V2":
        return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(array)


def _refuse_bomb(path: str | Path) -> None:
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    _refuse_expansion(unpacked, path, "write it with numpy.savez, which does not compress")


def _refuse_expansion(unpacked: int, path: str | Path, fix: str) -> None:
    """Refuse to work on what is far larger than its file: compressed, or one number repeated by a stride of 0."""
    packed = Path(path).stat().st_size
    if unpacked > MAX_EXPANSION * packed:
        raise CheckpointError(
            "The weights file was refused: it would take far more memory than it has bytes.",
            where=shown(path),
            value=f"{packed} bytes for {unpacked}",
            allowed=f"at most {MAX_EXPANSION} times its size",
            fix=fix,
        )


def _load_pickle(path: str | Path, head: bytes) -> dict[str, Any]:
    import torch

    if not head.startswith((b"PK\x03\x04", b"\x80")):
        raise _broken_weights(path, "it is neither a PyTorch archive nor a pickle")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, which the outcome tells better
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as err:
        raise _refused_pickle(path, str(err)) from None
    except Exception as err:  # a corrupt archive surfaces as RuntimeError, EOFError, KeyError, UnicodeDecodeError, …
        raise _broken_weights(path, str(err) or type(err).__name__) from None
    if not isinstance(loaded, Mapping):
        kind = type(loaded).__name__
        raise CheckpointError("The weights file holds no dictionary of tensors.", where=shown(path), value=kind)
    return dict(loaded)


def _refused_pickle(path: str | Path, message: str) -> LocapError:
    """Tell a pickle that wants to run something from one that is merely broken."""
    found = re.search(r"GLOBAL (\w[\w.]*)", message)
    name = found[1] if found else _first_global(path)
    if name is None:
        return _broken_weights(path, message.rsplit("WeightsUnpickler error: ")[-1])
    return CheckpointError(
        f"The weights file was refused: it is a pickle that asks for {name}, and loading that could execute code. "
        "Nothing was executed.",
        where=shown(path),
        value=name,
        allowed="tensors, numbers, strings, lists and dictionaries",
        fix="ask its author for a .safetensors file, or for torch.save(model.state_dict(), …)",
    )


def _first_global(path: str | Path) -> str | None:
    """Return the first name a bare pickle would import, read from its opcodes without running them."""
    strings: list[str] = []
    try:
        with open(path, "rb") as file:
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name == "GLOBAL":
                    return argument.replace(" ", ".")
                if opcode.name == "STACK_GLOBAL":
                    return ".".join(strings[-2:])
                if isinstance(argument, str):
                    strings.append(argument)
    except Exception:  # no pickle, or a broken one
        return None
    return None


def _broken_weights(path: str | Path, reason: str) -> CheckpointError:
    size, first_sentence = Path(path).stat().st_size, re.split(r"\. |\n", reason.strip())[0].rstrip(".")
    return CheckpointError(
        f"The weights file is truncated or corrupt: {first_sentence or 'it is no checkpoint'}.",
        where=shown(path),
        value=f"{size} bytes",
        fix="download the file again and compare its size",
    )
