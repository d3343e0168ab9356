"""Boxes of one image: their overlaps, and ground-truth boxes of one thing merged into groups.

Annotators describe the same thing several times, each with a box of their own. Johnson et al. (CVPR 2016) merge them:
while boxes are left, the one that most others overlap by the threshold is taken with these others as one group.
"""

from __future__ import annotations

import math

import numpy as np

from ...datasets.records import Record, Region, box_of_mask
from ...utils.errors import DataError

MERGE_IOU = 0.7


def box_iou(first: np.ndarray, second: np.ndarray, *, extra: float = 0.0) -> np.ndarray:
    """Return the pairwise intersection over union [N, M] of boxes (x0, y0, x1, y1) [N, 4] and [M, 4].

    Boxes that share no area, empty and inverted ones included, have 0. The type is that of the boxes.

    Args:
        extra: added to every width and height; 1 where x1 and y1 are the last pixels of a box.
    """
    extra = first.dtype.type(extra)
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    sides = high - low + extra
    shared = np.where((sides > 0).all(-1), sides[..., 0] * sides[..., 1], first.dtype.type(0))
    union = _areas(first, extra)[:, None] + _areas(second, extra)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=(shared > 0) & (union > 0))


def _areas(boxes: np.ndarray, extra: np.floating) -> np.ndarray:
    sides = boxes[:, 2:] - boxes[:, :2] + extra
    return sides[:, 0] * sides[:, 1]


def merge_groups(iou: np.ndarray, threshold: float = MERGE_IOU) -> list[np.ndarray]:
    """Group N boxes by their pairwise IoU [N, N]; returns the members' indices per group, ascending.

    The box with most neighbours (IoU >= threshold, itself included where the diagonal is 1) goes first, the first of
    several; a box without any neighbour, such as an empty one whose diagonal is 0, is in no group.
    """
    near, groups = iou >= iou.dtype.type(threshold), []
    while near.size and (counts := near.sum(1)).any():
        members = np.flatnonzero(near[counts.argmax()])
        groups.append(members)
        near[members] = near[:, members] = False
    return groups


def region_box(record: Record, region: Region, where: str) -> tuple[float, float, float, float]:
    """Return the region's box, or that of its mask.

    Raises:
        DataError: it has neither, or the box is not finite.
    """
    if region.box_xyxy is not None:
        if not all(math.isfinite(side) for side in region.box_xyxy):
            raise DataError("A box is not four finite numbers.", where=where, value=region.box_xyxy)
        return region.box_xyxy
    if region.mask is None and record.id_map is None:
        raise DataError("A region has neither a box nor a mask.", where=where)
    return box_of_mask(record.read_mask(region))
