"""The vision part of a system as one file of `torch.export`, which is compared with the system before it is kept.

The file is read without locap: ``torch.export.load(path).module()(images, sizes)``. Inputs are uint8 (B, 3, H, W) and
int64 (B, 2), the height and width of each image; its ``locap.json`` says H, W and what is fixed.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__
from ..utils.errors import CheckpointError, UsageError
from ..utils.files import atomic_path, disk_errors
from .systems import find_system
from .vision import VisionPart

FORMAT, ABOUT = "locap-vision/1", "locap.json"
TOLERANCE = 1e-5  # largest difference, as a share of the largest number of an output
MAX_BATCH = 1024
Inputs = list[tuple[Tensor, Tensor]]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExportedVision:
    """What was written.

    Attributes:
        path: of the file.
        height, width: of its input, pixels.
        any_batch: whether it takes any number of images; else one.
        differences: output -> largest absolute difference between the file and the system.
    """

    path: Path
    height: int
    width: int
    any_batch: bool
    differences: dict[str, float]


def export_vision(cfg: Any, model: nn.Module, path: str | Path, *, tolerance: float = TOLERANCE) -> ExportedVision:
    """Write the vision part of a system, on the CPU, in float32.

    Args:
        cfg: the configuration of the system.
        model: in evaluation mode; it is not changed.
        path: a ``.pt2``.
        tolerance: see `TOLERANCE`.

    Raises:
        UsageError: the system's vision part is not exported, or the file has another ending.
        CheckpointError: the file does not compute what the system does, or cannot be written.
    """
    path, vision = Path(path), find_system(cfg.MODEL.NAME).vision
    if vision is None:
        raise UsageError("The vision part of this system is not exported.", where="MODEL.NAME", value=cfg.MODEL.NAME)
    if path.suffix != ".pt2":
        raise UsageError("torch.export writes .pt2 files.", value=str(path), fix=f"--output {path.with_suffix('.pt2')}")
    model = copy.deepcopy(model).cpu().float().eval()
    part = vision(cfg, model)
    inputs = [example(count, (part.height, part.width), seed=count) for count in (2, 1, 3)]
    program, any_batch = _traced(part.module, inputs)
    about = _about(cfg, part, any_batch)
    with disk_errors("The vision part could not be written", path), atomic_path(path) as temporary:
        torch.export.save(program, temporary, extra_files={ABOUT: json.dumps(about)})
        compared = inputs if any_batch else inputs[1:2]
        differences = compare(temporary, part, compared, tolerance)
    return ExportedVision(path, part.height, part.width, any_batch, differences)


def example(count: int, size: tuple[int, int], *, seed: int) -> tuple[Tensor, Tensor]:
    """Return noise images of several sizes, all but the first smaller than the input, and these sizes."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)
    sizes = torch.tensor([[max(size[0] - 7 * k, 1), max(size[1] - 5 * k, 1)] for k in range(count)])
    return images, sizes


@torch.no_grad()
def compare(path: Path, part: VisionPart, inputs: Inputs, tolerance: float) -> dict[str, float]:
    """Return output -> largest absolute difference between what a file and the system compute.

    Raises:
        CheckpointError: one is beyond the tolerance.
    """
    loaded = torch.export.load(path).module()
    differences: dict[str, float] = {}
    for given in inputs:
        images, sizes = given
        cut = [image[:, :height, :width] for image, (height, width) in zip(images, sizes.tolist(), strict=True)]
        expected, found = part.system(cut), loaded(*given)
        for name, value in expected.items():
            gap = float((found[name] - value).abs().max())
            if not gap <= tolerance * max(float(value.abs().max()), 1.0):
                raise CheckpointError(
                    "The exported vision part does not compute what the system does; it is not kept.",
                    where=f"{name}, {len(images)} images",
                    value=gap,
                    allowed=f"at most {tolerance} of the largest number",
                )
            differences[name] = max(gap, differences.get(name, 0.0))
    return differences


@torch.no_grad()
def _traced(module: nn.Module, inputs: Inputs) -> tuple[Any, bool]:
    """Return the program, for any number of images where that can be had, else for one."""
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    shapes = {"images": {0: batch}, "sizes": {0: batch}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own parts
        try:
            return torch.export.export(module, inputs[0], dynamic_shapes=shapes, strict=False), True
        except Exception as err:  # torch has no one kind for what it cannot generalise
            _log.info("the number of images is fixed: %s", str(err).strip().splitlines()[0])
            return torch.export.export(module, inputs[1], strict=False), False


def _about(cfg: Any, part: VisionPart, any_batch: bool) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": __version__,
        "torch": torch.__version__,
        "system": cfg.MODEL.NAME,
        "images": ["1 or more" if any_batch else 1, 3, part.height, part.width],
        "fixed": ["height", "width", *([] if any_batch else ["number of images"])],
        "type": "uint8, RGB, each image in the upper left corner, at the size that the system reads it",
        "sizes": "int64, height and width of each image",
    }
