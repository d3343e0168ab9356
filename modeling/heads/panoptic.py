"""Panoptic inference (MaskFormer, section 3.4, with X-Decoder's thresholds).

Shapes: Q queries, k kept ones, K classes, H x W the output size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class PanopticSegment:
    """One segment: its id in the map, class index, score and the query it came from."""

    id: int
    label: int
    score: float
    query: int


@dataclass(slots=True)
class PanopticMap:
    """Attributes:
    ids: int32 (H, W), 0 = no segment.
    segments: ids 1, 2, ... in the order of their queries.
    """

    ids: Tensor
    segments: list[PanopticSegment]


@dataclass(frozen=True, slots=True)
class PanopticThresholds:
    """A query is kept when its class score exceeds ``score``, a segment when at least ``overlap`` of it is visible."""

    score: float
    overlap: float


def keep_queries(class_logits: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return (indices, scores, labels) of the queries that see an object; class_logits: (Q, K + 1)."""
    scores, labels = class_logits.float().softmax(-1).max(-1)
    kept = ((labels != class_logits.shape[-1] - 1) & (scores > threshold)).nonzero()[:, 0]
    return kept, scores[kept], labels[kept]


def panoptic_map(
    mask_logits: Tensor, queries: Tensor, scores: Tensor, labels: Tensor, is_thing: Sequence[bool], overlap: float
) -> PanopticMap:
    """Give every pixel to its strongest query and drop queries that lost too much.

    Args:
        mask_logits: (k, H, W) of the kept queries.
        queries, scores, labels: (k,) each, in query order.
        is_thing: per class; segments of one stuff class become one, under the first one's id.
        overlap: a segment is dropped when less than this share of its mask is its own.
    """
    ids = torch.zeros(mask_logits.shape[-2:], dtype=torch.int32, device=mask_logits.device)
    if not len(queries):
        return PanopticMap(ids, [])
    masks = mask_logits.sigmoid()
    owner = (scores[:, None, None] * masks).argmax(0)
    area, whole, visible = _areas(owner, masks >= 0.5)
    segments: list[PanopticSegment] = []
    new_id = torch.zeros(len(queries), dtype=torch.int32)
    stuff_ids: dict[int, int] = {}
    rows = zip(queries.tolist(), scores.tolist(), labels.tolist(), area, whole, visible, strict=True)
    for index, (query, score, label, owned, full, shared) in enumerate(rows):
        if not (owned and full and shared) or owned / full < overlap:
            continue
        if label in stuff_ids:
            new_id[index] = stuff_ids[label]
            continue
        segments.append(PanopticSegment(len(segments) + 1, label, score, query))
        new_id[index] = segments[-1].id
        if not is_thing[label]:
            stuff_ids[label] = segments[-1].id
    solid = masks.gather(0, owner[None])[0] >= 0.5
    ids = torch.where(solid, new_id.to(owner.device)[owner], ids)
    return PanopticMap(ids, segments)


def _areas(owner: Tensor, solid: Tensor) -> tuple[list[int], list[int], list[int]]:
    """Return per query: pixels owned, pixels of the mask, pixels of the mask that are owned."""
    count = len(solid)
    owned = owner.flatten().bincount(minlength=count)
    owned_and_solid = owner[solid.gather(0, owner[None])[0]].bincount(minlength=count)
    return owned.tolist(), solid.sum((1, 2)).tolist(), owned_and_solid.tolist()
