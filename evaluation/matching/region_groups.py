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


def sides_of(region: Region, box: tuple[float, float, float, float]) -> tuple[float, float]:
    """Return width and height of the region's box: those that its file states, as long as they fit the corners."""
    x0, y0, x1, y1 = box
    if region.box_size and (x0 + region.box_size[0], y0 + region.box_size[1]) == (x1, y1):
        return region.box_size
    return x1 - x0, y1 - y0


def box_iou(first: np.ndarray, second: np.ndarray, *, extra: float = 0.0) -> np.ndarray:
    """Return the pairwise intersection over union [N, M] of boxes (x0, y0, x1, y1) [N, 4] and [M, 4].

    Boxes that share no area, empty and inverted ones included, have 0. The type is that of the boxes.

    Args:
        extra: added to every width and height; 1 where x1 and y1 are the last pixels of a box.
    """
    extra = first.dtype.type(extra)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2] + extra, axis=1) for boxes in (first, second)]
    return _iou(first, second, *areas, extra)


def sized_box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the same for boxes (x, y, width, height), whose areas are not taken from their corners.

    Each side is rounded in its own type, the rest in the wider of both.
    """
    corners = [np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1) for boxes in (first, second)]
    return _iou(*corners, *(np.prod(boxes[:, 2:], axis=1) for boxes in (first, second)))


def _iou(
    first: np.ndarray, second: np.ndarray, first_area: np.ndarray, second_area: np.ndarray, extra: float = 0.0
) -> np.ndarray:
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    sides = high - low + extra
    shared = np.where((sides > 0).all(-1), sides[..., 0] * sides[..., 1], sides.dtype.type(0))
    union = first_area[:, None] + second_area[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=(shared > 0) & (union > 0))


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
