"""Loading weights: strict, and with a report by part of the model when they don't fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...utils import untrusted
from ...utils.errors import CheckpointError

PREFIXES = ("module.", "model.", "_orig_mod.")
NESTED = ("model", "module", "state_dict", "model_state_dict")
_SHOWN = 6


@dataclass(slots=True)
class LoadReport:
    """What became of every tensor.

    Attributes:
        loaded: names that were filled.
        missing: names of the model that the file lacks.
        unexpected: names of the file that the model lacks.
        misshapen: name -> (shape in the file, shape in the model).
    """

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded"]
        for title, names in (("missing", self.missing), ("unexpected", self.unexpected)):
            if names:
                lines.append(f"{len(names)} {title}: {_by_part(names)}")
        if self.misshapen:
            shown = [f"{name} {a} -> {b}" for name, (a, b) in list(self.misshapen.items())[:_SHOWN]]
            lines.append(f"{len(self.misshapen)} of another shape (file -> model): {', '.join(shown)}")
        return "; ".join(lines)


def load_weights(model: nn.Module, path: str | Path, *, allow_missing: Sequence[str] = ()) -> LoadReport:
    """Fill a model from a weights file or a checkpoint folder.

    Args:
        model: the model.
        path: ``.safetensors``, ``.pt``, ``.pth`` or ``.bin``, flat or nested; or a folder with ``model.safetensors``,
            or a run folder, whose newest checkpoint is taken.
        allow_missing: beginnings of names that the file may lack.

    Raises:
        CheckpointError: the file cannot be read, or does not fit; the message groups the names by part.
    """
    file = find_weights(Path(path))
    tensors = strip_prefixes(flatten(untrusted.load_tensors(file), file), set(model.state_dict()))
    report, fitting = compare(model, tensors)
    intolerable = [name for name in report.missing if not name.startswith(tuple(allow_missing))]
    if not report.loaded or report.misshapen or report.unexpected or intolerable:
        raise CheckpointError(
            "The weights do not fit the model.",
            where=str(file),
            value=str(report),
            allowed="every tensor of the model, in its shape, and no other",
            fix="give the configuration that the weights were trained with (config.yaml of their run)",
        )
    _refuse_nan(fitting, file)
    model.load_state_dict(fitting, strict=False)
    return report


def find_weights(path: Path) -> Path:
    """Return the weights file that a path means.

    Raises:
        CheckpointError: there is none.
    """
    if path.is_dir():
        candidates = [path / "model.safetensors", path / "default" / "model_state_dict.pt"]
        candidates += sorted(path.glob("checkpoints/step_????????/model.safetensors"), reverse=True)
        path = next((candidate for candidate in candidates if candidate.is_file()), path)
    if not path.is_file():
        raise CheckpointError(
            "There are no weights.",
            where="RESUME_FROM",
            value=str(path),
            allowed="a .safetensors, .pt, .pth or .bin file, or a folder with model.safetensors",
        )
    return path


def flatten(content: Mapping[str, Any], file: Path) -> dict[str, Tensor]:
    """Return the tensors of a flat or nested checkpoint.

    Raises:
        CheckpointError: it holds no tensors.
    """
    for key in NESTED:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError("The file holds no weights.", where=str(file), value=f"keys {list(content)[:_SHOWN]}")
    return tensors


def strip_prefixes(tensors: Mapping[str, Tensor], known: set[str]) -> dict[str, Tensor]:
    """Take prefixes of wrappers (``module.``, ``model.``) off names that the model does not know."""

    def strip(name: str) -> str:
        short = name
        while short not in known and short.startswith(PREFIXES):
            short = short.split(".", 1)[1]
        return short if short in known else name

    return {strip(name): tensor for name, tensor in tensors.items()}


def compare(model: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[LoadReport, dict[str, Tensor]]:
    """Return the report and the tensors that fit; a shared tensor is present when any of its names is."""
    report, fitting = LoadReport(), {}
    own = model.state_dict()
    shared: dict[int, list[str]] = {}
    for name, tensor in own.items():
        shared.setdefault(tensor.data_ptr(), []).append(name)
    for name, tensor in tensors.items():
        if name not in own:
            report.unexpected.append(name)
        elif own[name].shape != tensor.shape:
            report.misshapen[name] = (tuple(tensor.shape), tuple(own[name].shape))
        else:
            report.loaded.append(name)
            fitting[name] = tensor
    report.missing = [
        name
        for name, tensor in own.items()
        if name not in tensors and not any(alias in tensors for alias in shared[tensor.data_ptr()])
    ]
    return report, fitting


def _refuse_nan(tensors: Mapping[str, Tensor], file: Path) -> None:
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise CheckpointError("The weights hold NaN or infinity.", where=str(file), value=", ".join(bad[:_SHOWN]))


def _by_part(names: Sequence[str]) -> str:
    """Return names counted by their first two components, with examples."""
    parts = Counter(".".join(name.split(".")[:2]) for name in names)
    shown = [f"{part} ({count})" for part, count in parts.most_common(_SHOWN)]
    return ", ".join(shown) + (", …" if len(parts) > _SHOWN else "")
