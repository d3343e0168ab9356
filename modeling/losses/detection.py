"""Losses of the detector (CenterNet2, Zhou et al., 2021, with PixelLLM's constants).

Shapes: B images, G objects of an image, L cells of all levels, N regions of all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...utils.boxes import generalized_iou
from ..heads.detector.levels import Levels
from ..heads.detector.proposals import ProposalMaps
from ..heads.detector.rois import RoiOutputs, RoiSamples, encode_deltas

LEVEL_RANGES = ((0, 40), (32, 80), (64, 160), (128, 320), (256, 50000))  # half a diagonal, pixels
_OVERLAP = 0.8  # centres nearer than what keeps this IoU are nearly right
_LEAST_RADIUS2 = 16.0  # pixels^2


@dataclass(slots=True)
class CentreTargets:
    """What the first stage should say of one image.

    Attributes:
        heat: (L,) in [0, 1], exactly 1 at the centres of objects on their levels.
        reach: (L, 4) to the object's sides in strides of the level; zeros where no object is learned.
        regressed: bool (L,), where the reach is learned.
    """

    heat: Tensor
    reach: Tensor
    regressed: Tensor

    @property
    def counts(self) -> tuple[Tensor, Tensor]:
        """What the heat and the reach losses of this image add to their divisors: peaks and cells, at least 1."""
        return (self.heat == 1).sum().clamp(min=1), self.regressed.sum().clamp(min=1)


class CentreSums(NamedTuple):
    """Sums over images; to be divided by the sums of `CentreTargets.counts`.

    Attributes:
        heat: focal loss of the centres.
        reach: 1 - GIoU.
    """

    heat: Tensor
    reach: Tensor


class RoiSums(NamedTuple):
    """Sums over images of means over an image's regions; to be divided by the number of images that learn.

    Attributes:
        objects: cross-entropy of nothing and object.
        boxes: L1 of the deltas of objects over the number of samples wanted.
    """

    objects: Tensor
    boxes: Tensor


def centre_targets(
    boxes: Tensor, levels: Levels, *, ranges: Sequence[tuple[float, float]] = LEVEL_RANGES
) -> CentreTargets:
    """Draw the objects of one image.

    Every object is a Gaussian on all levels, around the cell that holds its centre; the level that its size belongs
    to has its peak, and in the 3 x 3 cells there the reach is learned where they lie inside the object. Of several
    objects the highest Gaussian counts, and the object that is nearest measured in radii.

    Args:
        boxes: (G, 4) xyxy pixels of the canvas; objects without area are ignored.
        levels: where the cells are.
        ranges: of half a diagonal, per level, both ends included.
    """
    boxes, real = boxes.float(), (boxes[:, 2:] > boxes[:, :2]).all(-1)
    cells = levels.centres(boxes.device)[:, None]  # L 1 2
    strides = levels.of_cells(levels.strides_xy(boxes.device))[:, None]
    if not len(boxes):
        return CentreTargets(
            cells.new_zeros(len(cells)), cells.new_zeros(len(cells), 4), cells.new_zeros(len(cells)) > 0
        )
    offset = (cells - _centre_cells(boxes, levels)).abs()  # L G 2
    low, high = levels.of_cells(boxes.new_tensor(ranges))[..., None].unbind(1)  # L 1
    half_diagonal = (boxes[:, 2:] - boxes[:, :2]).norm(dim=-1) / 2
    fits = real & (half_diagonal >= low) & (half_diagonal <= high)  # L G
    peak = fits & (offset < 0.5 * strides).all(-1)
    distance = torch.where(real, offset.square().sum(-1) / _radius2(boxes), torch.inf)
    heat = torch.where(peak, 1.0, torch.exp(-distance.clamp(min=1e-6))).amax(1)
    reach = torch.cat((cells - boxes[:, :2], boxes[:, 2:] - cells), -1)  # L G 4
    near = fits & (offset < 1.5 * strides).all(-1) & (reach > 0).all(-1)
    nearest, owner = torch.where(near, distance, torch.inf).min(1)
    regressed = nearest < torch.inf
    owned = reach.gather(1, owner[:, None, None].expand(-1, 1, 4))[:, 0] / strides[:, 0].repeat(1, 2)
    return CentreTargets(heat, torch.where(regressed[:, None], owned, 0.0), regressed)


def _centre_cells(boxes: Tensor, levels: Levels) -> Tensor:
    """Return the middle of the cell that holds each object's centre, on each level: (L, G, 2)."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    strides = levels.strides_xy(boxes.device)[:, None]  # levels 1 2
    last = boxes.new_tensor(levels.sizes).flip(-1)[:, None] - 1  # the last columns of an odd map are not pooled
    index = torch.minimum((centres / strides).floor().clamp(min=0), last)
    return levels.of_cells((index + 0.5) * strides)


def _radius2(boxes: Tensor) -> Tensor:
    """Return the squared radius of each object's Gaussian, (G,) pixels^2."""
    share = (1 - _OVERLAP) / (1 + _OVERLAP)
    return (share**2 * 2 * (boxes[:, 2:] - boxes[:, :2]).prod(-1)).clamp(min=_LEAST_RADIUS2)


def centre_losses(maps: ProposalMaps, targets: Sequence[CentreTargets], learns: Tensor) -> CentreSums:
    """Compare the first stage of B images with their targets; only those that ``learns`` (B,) says count."""
    heat, reach, regressed = (torch.stack([getattr(t, name) for t in targets]) for name in CentreTargets.__slots__)
    regressed = regressed & learns[:, None]
    found, wanted = (torch.where(regressed[..., None], x, 1.0).flatten(0, 1) for x in (maps.reach, reach))
    apart = 1 - generalized_iou(_around_zero(found), _around_zero(wanted))
    focal = torch.where(learns[:, None], heat_focal(maps.heat, heat), 0.0)
    return CentreSums(focal.sum(), torch.where(regressed.flatten(), apart, 0.0).sum())


def heat_focal(
    logits: Tensor,
    heat: Tensor,
    *,
    positive: float = 0.25,
    negative: float = 0.75,
    beta: float = 4.0,
    gamma: float = 2.0,
    clip: float = 1e-4,
) -> Tensor:
    """Return the penalty-reduced focal loss of each cell (Law and Deng, 2018); 1 in ``heat`` is a peak."""
    p = logits.float().sigmoid().clamp(clip, 1 - clip)
    at_peak = -positive * (1 - p) ** gamma * p.log()
    elsewhere = -negative * (1 - heat) ** beta * p**gamma * (1 - p).log()
    return torch.where(heat == 1, at_peak, elsewhere)


def roi_losses(
    outputs: RoiOutputs, samples: Sequence[RoiSamples], truth: Sequence[Tensor | None], *, num_samples: int
) -> RoiSums:
    """Compare the second stage with the objects.

    Args:
        outputs: of the sampled regions of all images, in their order.
        samples: of each image; one without samples adds nothing.
        truth: (G_i, 4) xyxy pixels of each image; None where there are no samples.
        num_samples: regions wanted per image; the boxes' divisor, however many there were.
    """
    counts = [len(s.xyxy) for s in samples]
    objects, boxes = outputs.logits[:0].sum(), outputs.deltas[:0].sum()
    stages = zip(samples, truth, outputs.logits.split(counts), outputs.deltas.split(counts), strict=True)
    for sample, real, logits, deltas in stages:
        if not len(sample.xyxy):
            continue
        valid = (sample.xyxy[:, 2:] > sample.xyxy[:, :2]).all(-1)
        each = F.cross_entropy(logits, sample.positive.long(), reduction="none")
        objects = objects + torch.where(valid, each, 0.0).sum() / valid.sum().clamp(min=1)
        if not len(real):
            continue
        learned = (sample.positive & valid)[:, None]
        unit = torch.arange(4, device=real.device, dtype=torch.float32)  # stands for boxes that have no deltas
        regions, objects_of = (torch.where(learned, x, unit) for x in (sample.xyxy, real[sample.objects]))
        apart = (deltas - encode_deltas(regions, objects_of)).abs()
        boxes = boxes + torch.where(learned, apart, 0.0).sum() / num_samples
    return RoiSums(objects, boxes)


def _around_zero(reach: Tensor) -> Tensor:
    """Reaches (N, 4) as boxes around the origin."""
    return torch.cat((-reach[:, :2], reach[:, 2:]), -1)
