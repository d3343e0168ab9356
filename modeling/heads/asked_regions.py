"""Which object query a region of the user's own is about, for systems that learnt without prompts.

A query stands for what a box, a point, a mask or a phrase means when its own mask fits best. Masks are compared on a
grid over the image, at most `GRID` cells a side, with what was asked drawn into it with soft edges.

Shapes: Q object queries, K classes, h x w the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...datasets.records import Category, Region, box_of_mask, decode_mask, encode_mask
from .masks import Frame
from .results import Captions, with_caption
from .seen_images import SeenImage

GRID = 256
LEAST_OVERLAP = 0.01  # below it nothing was found


@dataclass(frozen=True, slots=True)
class Choice:
    """A query, how well its mask fits what was asked (0 to 1), and for a phrase how likely it is meant."""

    query: int
    overlap: float
    score: float | None = None

    @property
    def described(self) -> int | None:
        """The query if it is to be described, as phrases are not."""
        return self.query if self.score is None else None


class QueryChooser:
    """Finds the queries of one image that questions are about.

    A query that sees no object counts less: of two masks that fit alike, the one with the likelier class is taken.

    Args:
        seen: the image.
    """

    def __init__(self, seen: SeenImage) -> None:
        self.frame = seen.frame
        self.soft = _on_grid(seen.objects.masks(), seen.frame).sigmoid()
        self.likely = 1 - seen.object_logits.softmax(-1)[:, -1]  # Q, that there is an object
        self.boxes = _tight_boxes(self.soft > 0.5)

    def __call__(self, region: Region) -> Choice | None:
        """Return the query of a region with a mask, a box or a point; None where there is none."""
        if region.mask is not None:
            fits = self._mask_overlaps(_shrunk(decode_mask(region.mask), self.soft))
        elif region.box_xyxy is not None:
            fits = self._box_overlaps(self._scaled(region.box_xyxy))
        else:
            fits = self._covers(self._scaled(region.points[0]))
        best = int((fits * self.likely).argmax())
        return Choice(best, float(fits[best])) if fits[best] > LEAST_OVERLAP else None

    def _scaled(self, corners: Sequence[float]) -> Tensor:
        """Bring points, x and y in turn, from the output to the grid."""
        (height, width), (h, w) = self.frame.output, self.soft.shape[-2:]
        factors = self.soft.new_tensor((w / width, h / height)).repeat(len(corners) // 2)
        return self.soft.new_tensor(corners) * factors

    def _mask_overlaps(self, asked: Tensor) -> Tensor:
        """Return intersection over union, (Q,), with a soft mask (h, w)."""
        shared = torch.minimum(self.soft, asked).sum((1, 2))
        return shared / (self.soft.sum((1, 2)) + asked.sum() - shared).clamp(min=1e-6)

    def _box_overlaps(self, box: Tensor) -> Tensor:
        """Return the mean of two fits, (Q,): of the box with a mask's own box, and of its area with the mask."""
        h, w = self.soft.shape[-2:]
        low, high = torch.maximum(self.boxes[:, :2], box[:2]), torch.minimum(self.boxes[:, 2:], box[2:])
        shared = (high - low).clamp(min=0).prod(1)
        areas = (self.boxes[:, 2:] - self.boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
        filled = _covered(box[1::2], h)[:, None] * _covered(box[0::2], w)
        return (shared / (areas - shared).clamp(min=1e-6) + self._mask_overlaps(filled)) / 2

    def _covers(self, point: Tensor) -> Tensor:
        """Return how sure each mask is of the cell under a point, (Q,)."""
        h, w = self.soft.shape[-2:]
        x, y = point.long().tolist()
        return self.soft[:, min(y, h - 1), min(x, w - 1)]

    def locate(self, logits: Tensor) -> list[Choice]:
        """Return the query of each phrase, among those with a mask.

        Args:
            logits: (Q, N + 1), likeness to N phrases and to the background, times the classifier's scale.
        """
        scores = (logits[:, :-1] - logits[:, -1:]).sigmoid()
        empty = (self.boxes == 0).all(1)
        best = logits[:, :-1].masked_fill(empty[:, None], float("-inf")).argmax(0).tolist()
        return [Choice(query, 1.0, float(scores[query, column])) for column, query in enumerate(best)]


def choose_queries(
    seen: SeenImage, regions: Sequence[Region], likeness: Callable[[list[str]], Tensor]
) -> list[Choice | None]:
    """Return the query of each region of an image; None where nothing fits.

    Args:
        seen: the image.
        regions: with an expression, a mask, a box or a point, pixels of the output.
        likeness: expressions -> logits, see `QueryChooser.locate`.
    """
    if not regions:
        return []
    choose = QueryChooser(seen)
    phrases = [region.expressions[0] for region in regions if region.expressions]
    found = iter(choose.locate(likeness(phrases)) if phrases else ())
    return [next(found) if region.expressions else choose(region) for region in regions]


def found_regions(
    seen: SeenImage,
    asked: Sequence[Region],
    choices: Sequence[Choice | None],
    categories: Sequence[Category],
    captions: Captions,
) -> list[Region]:
    """Return what the queries see; of a region without one, what was asked."""
    return [
        region if choice is None else _region_of(choice, seen, categories, captions)
        for region, choice in zip(asked, choices, strict=True)
    ]


def _region_of(choice: Choice, seen: SeenImage, categories: Sequence[Category], captions: Captions) -> Region:
    """Return mask, box, area, category, score and, of what was no phrase, the overlap and the caption."""
    mask = (seen.masks[choice.query : choice.query + 1][0] > 0).cpu().numpy()
    label = int(seen.object_logits[choice.query, :-1].argmax())
    likely = seen.object_logits[choice.query].softmax(-1)[label]
    region = Region(
        category_id=categories[label].id,
        mask=encode_mask(mask),
        box_xyxy=box_of_mask(mask) if mask.any() else None,
        area=int(mask.sum()),
        score=float(likely) if choice.score is None else choice.score,
    )
    if choice.score is not None:
        return region
    region.attributes = {"overlap": f"{choice.overlap:.2f}"}
    return with_caption(region, captions.get(choice.query))


def _on_grid(logits: Tensor, frame: Frame) -> Tensor:
    """Bring mask logits (Q, h', w') of the padded image to the grid over the image, float32."""
    scale = min(1.0, GRID / max(frame.image))
    (padded_h, padded_w), (h, w) = (
        [max(1, round(side * scale)) for side in size] for size in (frame.padded, frame.image)
    )
    grid = F.interpolate(logits[None].float(), (padded_h, padded_w), mode="bilinear", align_corners=False)
    return grid[0, :, :h, :w]


def _shrunk(mask: np.ndarray, like: Tensor) -> Tensor:
    """Return what part of every cell a bool mask (H, W) covers, float32 (h, w)."""
    pixels = torch.from_numpy(mask).to(like)
    return F.interpolate(pixels[None, None], like.shape[-2:], mode="area")[0, 0]


def _covered(ends: Tensor, cells: int) -> Tensor:
    """Return what part of each of the cells (0, 1), (1, 2), ... the interval ``ends`` covers."""
    starts = torch.arange(cells, device=ends.device)
    return (torch.minimum(starts + 1, ends[1]) - torch.maximum(starts, ends[0])).clamp(min=0)


def _tight_boxes(masks: Tensor) -> Tensor:
    """Return the tight boxes of bool masks (Q, h, w), float32 (Q, 4) xyxy; zeros of empty ones."""
    ends = []
    for axis in (1, 2):  # columns, then rows
        hit = masks.any(axis)
        first, last = hit.int().argmax(1), hit.shape[1] - hit.flip(1).int().argmax(1)
        ends.append((first, torch.where(hit.any(1), last, 0)))
    (x0, x1), (y0, y1) = ends
    return torch.stack((x0, y0, x1, y1), 1).float()
