"""Loading weights: strict, and with a report by part of the model when they don't fit."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from ...utils import untrusted
from ...utils.errors import CheckpointError
from .adapter import Translation, to_ours
from .key_table import Layout

MODEL, AVERAGE = "model", "ema"  # names of files in a checkpoint
_SHOWN = 6
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class LoadReport:
    """What became of every tensor.

    Attributes:
        layout: the foreign layout of the file, None for our own.
        loaded: names that were filled.
        missing: names of the model that the file lacks.
        unexpected: names of the file that the model lacks.
        misshapen: name -> (shape in the file, shape in the model).
        ignored: names of the file that belong to parts which the system does not have, known by name.
        inert: names of the file that no code reads, known by name.
    """

    layout: str | None = None
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    inert: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        origin = f" from the layout of {self.layout}" if self.layout else ""
        lines = [f"{len(self.loaded)} tensors loaded{origin}"]
        for title, names in (("missing", self.missing), ("unexpected", self.unexpected)):
            if names:
                lines.append(f"{len(names)} {title}: {_by_part(names)}")
        if self.misshapen:
            shown = [f"{name} {a} -> {b}" for name, (a, b) in list(self.misshapen.items())[:_SHOWN]]
            more = ", …" if len(self.misshapen) > _SHOWN else ""
            lines.append(f"{len(self.misshapen)} of another shape (file -> model): {', '.join(shown)}{more}")
        for title, names in (("of other parts ignored", self.ignored), ("that nothing reads ignored", self.inert)):
            if names:
                lines.append(f"{len(names)} {title}: {_by_part(names)}")
        return "; ".join(lines)


def load_weights(
    model: nn.Module, path: str | Path, *, allow_missing: Sequence[str] = (), partial: bool = False
) -> LoadReport:
    """Fill a model from a weights file or a checkpoint folder, and log the report.

    Names are the model's own or those of a foreign layout that it lists as ``layouts`` (a sequence of
    `key_table.Layout`); which of them is told from the names in the file.

    Args:
        model: the model.
        path: ``.safetensors``, ``.pt``, ``.pth``, ``.bin``, ``.npz`` or ``.pkl``, flat or nested; or a folder, see
            `find_weights`. Of a folder that holds a moving average of the weights too (``ema.safetensors``, as the
            checkpoints of a run with EMA_DECAY do) the average is taken, which is what the run evaluates and exports;
            the weights themselves are had by naming the file.
        allow_missing: beginnings of names that the file may lack; they keep their values, and a warning says so.
        partial: a file whose layout holds some parts only (`key_table.Layout.parts`) is enough.

    Raises:
        CheckpointError: the file cannot be read, or does not fit; the message groups the names by part.
    """
    file = find_weights(Path(path))
    own = model.state_dict()
    found = to_ours(read_weights(Path(path)), getattr(model, "layouts", ()), own.__contains__)
    _ignore_absent_parts(found, own)
    report, fitting = compare(model, found.tensors)
    if found.layout is not None:
        report.layout, report.ignored, report.inert = found.layout.name, found.ignored, list(found.inert)
    brought = found.layout.parts if partial and found.layout is not None else ()
    wanted = [name for name in report.missing if not brought or name.startswith(brought)]
    intolerable = [name for name in wanted if not name.startswith(tuple(allow_missing))]
    if not report.loaded or report.misshapen or report.unexpected or intolerable:
        raise _misfit(file, report, intolerable, found.layout)
    _refuse_bad_values(fitting, file)
    model.load_state_dict(fitting, strict=False)
    if report.missing:
        _log.warning("weights %s: %s. What is missing keeps its starting values.", file, report)
    else:
        _log.info("weights %s: %s", file, report)
    return report


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of the file or folder that a path means, named as stored, for `load_weights`.

    Raises:
        CheckpointError: there are none, or they cannot be read.
    """
    found = find_weights(path)
    folder = found if found.is_dir() else found.parent
    tensors = untrusted.load_tensor_parts(folder, MODEL) if found.is_dir() else untrusted.load_flat_tensors(found)
    if path.is_dir() and untrusted.weight_files(folder, AVERAGE):
        _log.info("taking the moving average of the weights in %s", folder)
        tensors |= untrusted.load_tensor_parts(folder, AVERAGE)
    return tensors


def _ignore_absent_parts(found: Translation, own: Mapping[str, Tensor]) -> None:
    """Leave out what a layout of a few parts brings for a part that the model is without."""
    parts = () if found.layout is None else found.layout.parts
    absent = tuple(part for part in parts if not any(name.startswith(part) for name in own))
    found.ignored += [name for name in found.tensors if name.startswith(absent)]
    found.tensors = {name: tensor for name, tensor in found.tensors.items() if not name.startswith(absent)}


def _misfit(file: Path, report: LoadReport, missing: Sequence[str], layout: Layout | None) -> CheckpointError:
    fixes = ["give the configuration that the weights were trained with (config.yaml of their run)"]
    if layout is not None:
        fixes += [text for part, text in layout.advice.items() if any(name.startswith(part) for name in missing)]
    return CheckpointError(
        "The weights do not fit the model.",
        where=str(file),
        value=str(report),
        allowed="every tensor of the model, in its shape, and no other",
        fix="; ".join(fixes),
    )


def find_weights(path: Path) -> Path:
    """Return the weights file that a path means, or the folder that holds them in parts.

    A folder is one with ``model.safetensors`` or with all of ``model-XXXXX-of-XXXXX.safetensors``, as processes that
    share a model write them; a run folder, whose newest checkpoint is taken where the run has not ended; or a folder
    that X-Decoder's trainer wrote.

    Raises:
        CheckpointError: there is none.
    """
    found = next(_weights_in(path), None) if path.is_dir() else path
    if found is None or not found.exists():
        raise CheckpointError(
            "There are no weights.",
            where="RESUME_FROM",
            value=str(path),
            allowed="a .safetensors, .pt, .pth, .bin, .npz or .pkl file, or a folder with model.safetensors",
        )
    return found


def _weights_in(folder: Path) -> Iterator[Path]:
    """Yield what `find_weights` may return of a folder, the best first."""
    for place in (folder, *sorted(folder.glob("checkpoints/step_????????"), reverse=True)):
        files = untrusted.weight_files(place, MODEL)
        if files:
            yield files[0] if len(files) == 1 else place
    candidates = [folder / "default" / name for name in ("model_state_dict.pt", "module_training_states.pt")]
    candidates += sorted(folder.glob("????????/default/model_state_dict.pt"), reverse=True)
    yield from filter(Path.is_file, candidates)


def compare(model: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[LoadReport, dict[str, Tensor]]:
    """Return the report and the tensors that fit; a shared tensor is present when any of its names is.

    Raises:
        CheckpointError: two names of one tensor of the model hold different values.
    """
    report, fitting = LoadReport(), {}
    own = model.state_dict(keep_vars=True)
    shared: dict[int, list[str]] = {}
    for name, tensor in own.items():
        shared.setdefault(id(tensor), []).append(name)
    for name, tensor in tensors.items():
        if name not in own:
            report.unexpected.append(name)
        elif own[name].shape != tensor.shape:
            report.misshapen[name] = (tuple(tensor.shape), tuple(own[name].shape))
        else:
            report.loaded.append(name)
            fitting[name] = tensor
    for names in shared.values():
        present = [name for name in names if name in tensors]
        if not present:
            report.missing += names
        _refuse_differing([name for name in present if name in fitting], fitting)
    return report, fitting


def _refuse_differing(names: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    """Refuse two values for one tensor of the model: one would be lost."""
    for first, other in pairwise(names):
        a, b = tensors[first], tensors[other]
        if a is not b and a.data_ptr() != b.data_ptr() and not torch.equal(a, b):
            raise CheckpointError("Two names of one shared tensor hold different values.", value=f"{first}, {other}")


def _refuse_bad_values(tensors: Mapping[str, Tensor], file: Path) -> None:
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise CheckpointError("The weights hold NaN or infinity.", where=str(file), value=", ".join(bad[:_SHOWN]))


def _by_part(names: Sequence[str]) -> str:
    """Return names counted by the part they belong to, up to two components; one alone is shown whole."""
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(".".join(name.split(".")[:-1][:2]) or name, []).append(name)
    counted = sorted(parts.items(), key=lambda item: -len(item[1]))
    shown = [f"{part} ({len(members)})" if len(members) > 1 else members[0] for part, members in counted[:_SHOWN]]
    return ", ".join(shown) + (", …" if len(parts) > _SHOWN else "")
