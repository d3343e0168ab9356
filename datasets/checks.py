"""Does a record agree with its files? Asked whenever the files of a sample are read."""

from __future__ import annotations

import numpy as np

from ..utils import untrusted
from ..utils.errors import DataError
from ..utils.id_maps import measure_segments
from .records import Record


def read_checked_image(record: Record) -> np.ndarray:
    """Return the record's pixels, uint8 (height, width, 3) RGB.

    Raises:
        DataError: unreadable, or of another size than the record says.
    """
    image = record.read_image()
    if image.shape[:2] != (record.height, record.width):
        raise DataError(
            "The image does not have the size its annotation says.",
            where=_place(record, record.image),
            value=f"{image.shape[1]} x {image.shape[0]} (width x height)",
            allowed=f"{record.width} x {record.height}",
            fix="the image was replaced or resized: fetch the original again",
        )
    return image


def read_checked_id_map(record: Record) -> np.ndarray:
    """Return the record's id map, int32 (height, width); one read from a file must hold exactly the record's regions.

    Raises:
        DataError: unreadable, of another size, with ids that no region has, or without pixels of a region.
    """
    ids = record.read_id_map()
    if ids.shape != (record.height, record.width):
        raise DataError(
            "The panoptic segmentation does not have the size its annotation says.",
            where=_place(record, record.id_map),
            value=f"{ids.shape[1]} x {ids.shape[0]} (width x height)",
            allowed=f"{record.width} x {record.height}",
        )
    if isinstance(record.id_map, str):
        _check_ids(record, ids)
    return ids


def _check_ids(record: Record, ids: np.ndarray) -> None:
    drawn = set(measure_segments(ids).ids.tolist()) - {0}
    listed = {region.id for region in record.regions}
    if drawn == listed:
        return
    unlisted, undrawn = sorted(drawn - listed), sorted(listed - drawn)
    parts = []
    if unlisted:
        parts.append(f"{len(unlisted)} ids in the PNG but not in the JSON: {_some(unlisted)}")
    if undrawn:
        parts.append(f"{len(undrawn)} segments in the JSON without a pixel in the PNG: {_some(undrawn)}")
    raise DataError(
        "The panoptic PNG and its JSON disagree.",
        where=_place(record, record.id_map),
        value="; ".join(parts),
        allowed="the same ids in both (0 is void)",
        fix="take the PNG folder and the JSON from the same release of the data set",
    )


def _some(ids: list[int]) -> str:
    return ", ".join(str(i) for i in ids[:5]) + (", …" if len(ids) > 5 else "")


def _place(record: Record, source: object) -> str:
    path = f" ({untrusted.shown(source)})" if isinstance(source, str) else ""
    return f"image {record.image_id}{path}"
