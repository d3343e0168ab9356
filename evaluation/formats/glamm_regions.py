"""GLaMM's file of Visual Genome region captions: one region per image record, under the record's id.

``{"images": [{"id", "file_name", "height", "width"}], "annotations": [{"id", "image_id", "bbox", "caption"}]}`` with
``id == image_id`` and boxes as (x, y, width, height). Such files are told from other region captions by these ids.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...datasets.records import Record, Region
from ...utils.errors import DataError
from ...utils.untrusted import shown
from ..results import ImageId
from .form import Truth, TruthForm, get


def recognises(document: Any) -> bool:
    """Return whether every image has one annotation and the first are boxes with a caption under their image's id."""
    lists = [document.get(key) for key in ("images", "annotations")] if isinstance(document, dict) else []
    if not lists or not all(isinstance(items, list) for items in lists) or len(lists[0]) != len(lists[1]):
        return False
    first = lists[1][:2]
    return bool(first) and all(
        isinstance(item, dict) and {"id", "bbox", "caption"} <= item.keys() and item["id"] == item.get("image_id")
        for item in first
    )


def read_truth(path: Path, document: Any, folder: Path | None) -> Truth:
    """Read one record with one region per annotation.

    Raises:
        DataError: a field is missing or of the wrong type, a box is not finite, an image is not listed, or an
            annotation has another id than its image.
    """
    sizes = {}
    for i, body in enumerate(get(document, "images", (list,), shown(path))):
        where = f"{shown(path)}: images[{i}]"
        sizes[get(body, "id", (int,), where)] = tuple(get(body, side, (int,), where) for side in ("height", "width"))
    annotations = document["annotations"]
    return [_record(body, sizes, f"{shown(path)}: annotations[{i}]") for i, body in enumerate(annotations)], []


def _record(body: Any, sizes: Mapping[ImageId, tuple[int, int]], where: str) -> Record:
    image_id = get(body, "image_id", (int,), where)
    if get(body, "id", (int,), where) != image_id:
        raise DataError(
            "The annotation has another id than its image, so this is not a file of one region per image.",
            where=where,
            value=f"id {body['id']}, image_id {image_id}",
            fix="name the form of the file: --ground-truth-form",
        )
    if image_id not in sizes:
        raise DataError("The annotation's image is not listed.", where=where, value=image_id)
    box = get(body, "bbox", (list,), where)
    if len(box) != 4 or not all(isinstance(side, (int, float)) and math.isfinite(side) for side in box):
        raise DataError("A box is not four finite numbers.", where=where, value=box)
    x, y, width, height = map(float, box)
    region = Region(image_id, box_xyxy=(x, y, x + width, y + height), captions=(get(body, "caption", (str,), where),))
    return Record(image_id, *sizes[image_id], regions=[region])


TRUTH = TruthForm("GLaMM's region captions, one region per image", recognises, read_truth)
