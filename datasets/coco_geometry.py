"""How COCO-like files write boxes and masks."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..utils.errors import DataError, LocapError
from ..utils.untrusted import polygons_to_rle
from .records import Rle, encode_mask

SUSPICIOUS_SHARE = 0.3
logger = logging.getLogger(__name__)


def read_segmentation(value: Any, height: int, width: int, where: str) -> Rle:
    """Return a segmentation as run-length encoding.

    Args:
        value: polygons [[x0, y0, …], …], none of them for an empty mask, or a run-length encoding of either kind, which
            is not looked into.
        height, width: of the image.
        where: the place, for messages.

    Raises:
        DataError: it is neither, or a polygon is malformed.
    """
    if isinstance(value, dict):
        return value
    if value == []:
        return encode_mask(np.zeros((height, width), bool))
    try:
        return polygons_to_rle(value, height, width)
    except LocapError as err:
        raise DataError(err.what, where=where, value=err.value, allowed=err.allowed) from None


def box_fields(x: float, y: float, width: float, height: float) -> dict[str, tuple[float, ...]]:
    """Return a region's ``box_xyxy``, and ``box_size`` where x + width - x rounds to another width."""
    corners = (float(x), float(y), float(x + width), float(y + height))
    exact = (corners[2] - corners[0], corners[3] - corners[1]) == (width, height)
    return {"box_xyxy": corners} if exact else {"box_xyxy": corners, "box_size": (float(width), float(height))}


def read_box_xywh(value: Any, where: str) -> tuple[float, float, float, float]:
    """Return a box [x, y, width, height] as (x0, y0, x1, y1); raises `DataError` unless it is four finite numbers."""
    if not isinstance(value, list) or len(value) != 4 or not all(_is_finite(side) for side in value):
        raise DataError("A box is not four finite numbers.", where=where, value=value, allowed="[x, y, width, height]")
    x, y, width, height = value
    return x, y, x + width, y + height


def watch_boxes(
    entries: Iterable[dict[str, Any]], boxes: Callable[[Mapping[str, Any]], Sequence[Sequence[float]]], where: str
) -> Iterator[dict[str, Any]]:
    """Pass entries on and warn at their end when many boxes leave their images, as corners read as sizes do.

    Args:
        entries: of images, each with its ``size`` (height, width).
        boxes: returns the boxes [x, y, width, height] of an entry.
        where: the file.
    """
    count = outside = 0
    for entry in entries:
        height, width = entry["size"]
        found = boxes(entry)
        count += len(found)
        outside += sum(box[0] + box[2] > width + 1 or box[1] + box[3] > height + 1 for box in found)
        yield entry
    if outside > SUSPICIOUS_SHARE * count:
        message = "%s: %d of %d boxes [x, y, width, height] leave their images; they look like corners [x0, y0, x1, y1]"
        logger.warning(message, where, outside, count)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
