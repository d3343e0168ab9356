"""Second stage: is a proposal an object, and where exactly (Fast R-CNN on a pyramid).

Shapes: N regions of all images, S sampled regions of an image, G objects of an image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou, roi_align

from ....utils.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from .levels import NUM_LEVELS, Levels

DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
_LARGEST_GROWTH = math.log(1000 / 16)


@dataclass(slots=True)
class RoiOutputs:
    """What the second stage says of regions.

    Attributes:
        logits: (N, 2) nothing, object.
        deltas: (N, 4) change of the box, see `decode_deltas`.
    """

    logits: Tensor
    deltas: Tensor


@dataclass(slots=True)
class RoiSamples:
    """Regions of one image to learn from, objects first.

    Attributes:
        xyxy: (S, 4) pixels.
        objects: int64 (S,), the object that each overlaps most; 0 where the image has none.
        positive: bool (S,), whether it overlaps it enough.
    """

    xyxy: Tensor
    objects: Tensor
    positive: Tensor

    @classmethod
    def none(cls, device: torch.device | str = "cpu") -> RoiSamples:
        """Return no regions."""
        rows = torch.zeros(0, dtype=torch.int64, device=device)
        return cls(torch.zeros(0, 4, device=device), rows, rows.bool())

    def stand_ins(self, objects: Tensor, boxes: Tensor) -> Tensor:
        """Return for each of some objects, int64 (N,), the first region that is it, else its own box, (N, 4)."""
        total = len(self.xyxy)
        if not total:
            return boxes
        rows = torch.arange(max(total, len(boxes)), device=boxes.device)
        same = self.positive & (self.objects == objects[:, None])  # N S
        first = torch.where(same, rows[:total], total).amin(1)
        return torch.cat((self.xyxy, boxes))[torch.where(first < total, first, total + rows[: len(boxes)])]


class RoiHead(nn.Module):
    """RoIAlign, two linear layers, and two predictions.

    Args:
        dim: channels of the pyramid.
        hidden_dim: of the linear layers.
        pooled: cells of a region, each way.
    """

    def __init__(self, *, dim: int = 256, hidden_dim: int = 1024, pooled: int = 7) -> None:
        super().__init__()
        self.pooled = pooled
        self.fc1, self.fc2 = nn.Linear(dim * pooled**2, hidden_dim), nn.Linear(hidden_dim, hidden_dim)
        self.logits, self.deltas = nn.Linear(hidden_dim, 2), nn.Linear(hidden_dim, 4)
        for layer, std in ((self.logits, 0.01), (self.deltas, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, pyramid: Sequence[Tensor], levels: Levels, boxes: Sequence[Tensor]) -> RoiOutputs:
        """Boxes, (N_i, 4) pixels of each image; N is their sum, in that order."""
        x = roi_features(pyramid, levels, boxes, pooled=self.pooled).flatten(1)
        x = F.relu(self.fc2(F.relu(self.fc1(x))))
        return RoiOutputs(self.logits(x).float(), self.deltas(x).float())


def roi_features(pyramid: Sequence[Tensor], levels: Levels, boxes: Sequence[Tensor], *, pooled: int) -> Tensor:
    """Sample each box from the level that fits its size: (N, dim, pooled, pooled).

    Two samples per cell and direction, cell centres at half coordinates. Beyond the map is zero, as published:
    torchvision repeats the border, so the maps get one of zeros.
    """
    every = torch.cat(list(boxes)).float()
    image = torch.repeat_interleave(
        torch.arange(len(boxes), device=every.device),
        torch.tensor([len(b) for b in boxes], device=every.device),
        output_size=len(every),
    )
    level_of = level_of_boxes(every)
    order = level_of.argsort(stable=True)
    counts = (level_of[:, None] == torch.arange(NUM_LEVELS, device=every.device)).sum(0).tolist()  # the host waits
    out = pyramid[0].new_zeros(len(every), pyramid[0].shape[1], pooled, pooled, dtype=every.dtype)
    each = zip(pyramid, levels.strides_xy(every.device), order.split(counts), strict=True)
    for features, stride, chosen in each:
        rois = torch.cat((image[chosen, None].float(), every[chosen] / stride.repeat(2) + 1), 1)
        sampled = roi_align(F.pad(features.float(), (1, 1, 1, 1)), rois, pooled, sampling_ratio=2, aligned=True)
        out = out.index_copy(0, chosen, sampled)
    return out


def level_of_boxes(boxes: Tensor) -> Tensor:
    """Return the index of the level for each box, (N, 4) -> int64 (N,): 224 pixels of p4 (Lin et al., 2017)."""
    side = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1).sqrt()
    return (4 + torch.log2(side / 224 + 1e-8)).floor().clamp(3, 2 + NUM_LEVELS).long() - 3


def encode_deltas(boxes: Tensor, targets: Tensor) -> Tensor:
    """Return what `decode_deltas` needs to turn boxes into targets; (N, 4) xyxy each, no box empty."""
    (centre, size), (target, target_size) = (x.split(2, -1) for x in map(xyxy_to_cxcywh, (boxes, targets)))
    deltas = torch.cat(((target - centre) / size, (target_size / size).log()), -1)
    return deltas * deltas.new_tensor(DELTA_WEIGHTS)


def decode_deltas(boxes: Tensor, deltas: Tensor) -> Tensor:
    """Move centres by shares of the size and grow sides by exponents; (N, 4) xyxy pixels."""
    centre, size = xyxy_to_cxcywh(boxes).split(2, -1)
    move, grow = (deltas / deltas.new_tensor(DELTA_WEIGHTS)).split(2, -1)
    return cxcywh_to_xyxy(torch.cat((centre + move * size, size * grow.clamp(max=_LARGEST_GROWTH).exp()), -1))


@torch.no_grad()
def sample_rois(
    proposals: Tensor,
    truth: Tensor,
    *,
    seed: int,
    num_samples: int = 512,
    positive_share: float = 0.25,
    iou: float = 0.6,
) -> RoiSamples:
    """Choose regions of one image to learn from, among its proposals and its objects themselves, at random.

    Args:
        proposals: (P, 4) xyxy pixels.
        truth: (G, 4) objects; empty ones (no area) are nothing.
        seed: of this image; the choice depends on nothing else.
        num_samples: S at most.
        positive_share: at most so many of S are objects.
        iou: least overlap of an object.
    """
    real = (truth[:, 2:] > truth[:, :2]).all(-1)
    candidates = torch.cat((proposals, truth[real]))
    overlap = box_iou(candidates, truth).nan_to_num(0)  # two empty boxes: 0 / 0
    best, objects = (
        overlap.max(1) if len(truth) else (overlap.new_zeros(len(candidates)), real.new_zeros(len(candidates)))
    )
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed)).to(candidates.device)
    positive = best[order] >= iou
    positives = order[positive][: int(num_samples * positive_share)]
    chosen = torch.cat((positives, order[~positive][: num_samples - len(positives)]))
    is_object = torch.arange(len(chosen), device=chosen.device) < len(positives)
    return RoiSamples(candidates[chosen], objects[chosen], is_object)
