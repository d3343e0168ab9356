"""First stage: how much each cell is the centre of an object, and how far that object reaches (CenterNet2).

Shapes: B images, L cells of all levels, P proposals of an image.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image, nms

from .levels import NUM_LEVELS, Levels

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class ProposalMaps:
    """What the first stage says of each cell.

    Attributes:
        heat: (B, L) logits of being the centre of an object.
        reach: (B, L, 4) from the cell's middle to the object's left, top, right and bottom, in strides of the level.
    """

    heat: Tensor
    reach: Tensor


@dataclass(slots=True)
class Boxes:
    """Boxes of one image, best first.

    Attributes:
        xyxy: (P, 4) pixels of the canvas.
        scores: (P,) in [0, 1].
    """

    xyxy: Tensor
    scores: Tensor


class ProposalHead(nn.Module):
    """One tower of convolutions for all levels, and two predictions from it.

    Args:
        dim: channels.
        num_convs: of the tower.
        initial_reach: to each side, in strides, before training.
    """

    def __init__(self, *, dim: int = 256, num_convs: int = 4, initial_reach: float = 8.0) -> None:
        super().__init__()
        self.tower = nn.Sequential(*(_TowerLayer(dim) for _ in range(num_convs)))
        self.reach, self.heat = nn.Conv2d(dim, 4, 3, padding=1), nn.Conv2d(dim, 1, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(NUM_LEVELS))
        for conv in (*self.tower, self.reach, self.heat):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)
        nn.init.constant_(self.reach.bias, initial_reach)
        nn.init.constant_(self.heat.bias, -4.6)  # a sigmoid of 0.01

    def forward(self, pyramid: Sequence[Tensor]) -> ProposalMaps:
        """(B, dim, h, w) of each level -> predictions, float32."""
        heat, reach = [], []
        for level, scale in zip(pyramid, self.scales, strict=True):
            x = self.tower(level)
            heat.append(self.heat(x).flatten(1))
            reach.append(F.relu(self.reach(x) * scale).flatten(2).mT)
        return ProposalMaps(torch.cat(heat, 1).float(), torch.cat(reach, 1).float())


class _TowerLayer(nn.Conv2d):
    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 3, padding=1)
        # as published 32 groups of 8 channels; a group of one channel could not be normalised in a single cell
        self.norm = nn.GroupNorm(math.gcd(32, max(1, dim // 8)), dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(super().forward(x)))


def boxes_of_cells(reach: Tensor, levels: Levels) -> Tensor:
    """Turn reaches, (..., L, 4) in strides, into boxes: (..., L, 4) xyxy in pixels."""
    centres, strides = levels.centres(reach.device), levels.of_cells(levels.strides_xy(reach.device))
    return torch.cat((centres - reach[..., :2] * strides, centres + reach[..., 2:] * strides), -1)


@torch.no_grad()
def select_proposals(
    maps: ProposalMaps, levels: Levels, *, candidates: int, kept: int, nms_iou: float = 0.9
) -> list[Boxes]:
    """Return the best boxes of each image after suppression of near duplicates, cut at the canvas.

    Args:
        maps: of B images.
        levels: where their cells are.
        candidates: boxes considered, over all levels.
        kept: boxes returned at most.
        nms_iou: a box that overlaps a better one by more than this is dropped.
    """
    heat = maps.heat.sigmoid().nan_to_num(nan=-1.0)  # NaN would come first
    scores, cells = heat.topk(min(candidates, heat.shape[1]), dim=1)
    boxes = boxes_of_cells(maps.reach, levels).gather(1, cells[..., None].expand(-1, -1, 4))
    return [
        best_boxes(b, s, canvas=levels.canvas, nms_iou=nms_iou, kept=kept) for b, s in zip(boxes, scores, strict=True)
    ]


def best_boxes(boxes: Tensor, scores: Tensor, *, canvas: tuple[int, int], nms_iou: float, kept: int) -> Boxes:
    """Cut at the canvas, suppress, keep the best; boxes (N, 4) and scores (N,) in any order.

    What has no finite box or score is left out and counted in a warning: one NaN would suppress all others.
    """
    finite = boxes.isfinite().all(-1) & (scores >= 0)
    boxes, scores = boxes[finite], scores[finite]
    if lost := len(finite) - len(scores):
        _log.warning("%d of %d boxes are left out: their score or place is not finite", lost, len(finite))
    boxes = clip_boxes_to_image(boxes, canvas)
    chosen = nms(boxes, scores, nms_iou)[:kept]
    return Boxes(boxes[chosen], scores[chosen])
