"""Areas of masks, from their run lengths."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
from pycocotools import mask as coco_mask

from ...datasets.records import Rle, decode_mask
from ...utils.errors import DataError, LocapError
from ...utils.untrusted import compressed_rle


def checked_mask(mask: Rle, height: int, width: int, where: str) -> Rle:
    """Return the mask as pycocotools takes it.

    Raises:
        DataError: it is malformed, or of another size than the image.
    """
    _require_size(mask, [height, width], where)
    with _placed(where):
        return compressed_rle(mask)


def dense_mask(mask: Rle, height: int, width: int, where: str) -> np.ndarray:
    """Return the mask as bool (height, width); raises as `checked_mask`."""
    _require_size(mask, [height, width], where)
    with _placed(where):
        return decode_mask(mask)


def _require_size(mask: Rle, size: list[int], where: str) -> None:
    found = mask.get("size")
    if found not in (size, tuple(size)):
        raise DataError("A mask differs in size from its image.", where=where, value=found, allowed=str(size))


@contextlib.contextmanager
def _placed(where: str) -> Iterator[None]:
    """Say where the mask is when it is refused."""
    try:
        yield
    except LocapError as err:
        raise DataError(err.what, where=where, value=err.value, allowed=err.allowed) from None


def box_of(mask: Rle) -> tuple[float, float, float, float]:
    """Return the tight box (x0, y0, x1, y1), x1 and y1 exclusive, of a checked mask; zeros when it is empty."""
    x, y, width, height = coco_mask.toBbox(mask).tolist()
    return x, y, x + width, y + height


def mask_overlap(truth: Rle, mask: Rle | None, ignore: Rle | None) -> tuple[int, int]:
    """Return intersection and union, pixels, of checked masks; no mask has no pixel, ``ignore`` is in neither."""
    area = _counted_area([truth], ignore)
    if mask is None:
        return 0, area
    shared = _counted_area([truth, mask], ignore)
    return shared, area + _counted_area([mask], ignore) - shared


def _counted_area(masks: list[Rle], ignore: Rle | None) -> int:
    """Return the pixels in all of the masks that are not to be ignored."""
    inside = coco_mask.merge(masks, intersect=True) if len(masks) > 1 else masks[0]
    area = int(coco_mask.area(inside))
    return area if ignore is None else area - int(coco_mask.area(coco_mask.merge([inside, ignore], intersect=True)))
