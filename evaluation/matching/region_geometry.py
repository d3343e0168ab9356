"""A region's box and mask as COCO's tools take them, checked."""

from __future__ import annotations

from pycocotools import mask as coco_mask

from ...datasets.records import Record, Region, Rle, encode_mask
from ...utils.errors import DataError
from .masks import checked_mask
from .region_groups import sides_of

Box = tuple[float, float, float, float]  # x, y, width, height
LARGEST_SIDE = 1e5  # pixels; COCO's largest area is its square


def place(record: Record, region: Region, side: str) -> str:
    """Return where a region stands, for a message; ``side`` is what it is called there."""
    return f"image_id {record.image_id}, {side} {region.id}"


def region_box(record: Record, region: Region, side: str) -> Box | None:
    """Return (x, y, width, height): the region's box, else the tight box of its mask, or None when it has neither.

    Raises:
        DataError: the box is not finite, has a negative side or one that no image has, or the mask is malformed.
    """
    if region.box_xyxy is None:
        mask = region_mask(record, region, side)
        return None if mask is None else tuple(coco_mask.toBbox(mask).tolist())
    x0, y0, *_ = region.box_xyxy
    width, height = sides_of(region, region.box_xyxy)
    if 0 <= width < LARGEST_SIDE and 0 <= height < LARGEST_SIDE:  # false for all that is not finite
        return x0, y0, width, height
    raise DataError(
        "A box is not (x0, y0, x1, y1).",
        where=place(record, region, side),
        value=region.box_xyxy,
        allowed=f"four finite numbers, x0 <= x1, y0 <= y1, sides below {LARGEST_SIDE:g}",
    )


def region_mask(record: Record, region: Region, side: str) -> Rle | None:
    """Return the region's mask as COCO's compressed run lengths, or None when neither it nor its record has one.

    Raises:
        DataError: the run lengths are malformed or of another size than the image.
    """
    if region.mask is None:
        return None if record.id_map is None else encode_mask(record.read_mask(region))
    return checked_mask(region.mask, record.height, record.width, place(record, region, side))
