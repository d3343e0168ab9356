"""COCO instances and keypoints: annotation files, and result lists as the COCO tools read them.

Ground truth: ``images[]``, ``categories[]`` and ``annotations[]`` with ``id``, ``image_id``, ``category_id``, ``bbox``
(x, y, width, height), ``segmentation`` (polygons or run-length encoding), ``area``, ``iscrowd`` and, for keypoints,
``keypoints`` (x, y, visibility, …) with ``num_keypoints``. Region ids are annotation ids. Categories may lack their
name. Images may lack their size, which is then 0 x 0, and their masks are not read.

Predictions: a list of results with ``image_id``, ``category_id``, ``score`` and any of ``bbox``, ``segmentation`` and
``keypoints``; the empty list says that nothing was found. The id of a region is the place of its result in the list,
from 1. Images without results get empty records.

Boxes keep their numbers: where x + width - x rounds to another width, ``Region.box_size`` holds the file's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...datasets.coco_geometry import box_fields
from ...datasets.records import Category, Record, Region, Rle
from ...utils.errors import DataError
from ...utils.untrusted import compressed_rle, polygons_to_rle, resolve_under, shown
from ..results import ImageId
from .form import PredictionForm, Truth, TruthForm, first_item, get

LARGEST = 1e12  # of any number of a file; beyond it sums lose whole pixels
GEOMETRY = frozenset({"bbox", "segmentation", "keypoints"})
TEXTS = frozenset({"caption", "description", "object_descriptions", "expressions", "refexp_id", "segments_info"})


def recognises_truth(document: Any) -> bool:
    """Return whether the annotations are boxes, masks or keypoints of categories, without text."""
    if not isinstance(document, dict) or not first_item(document, "categories"):
        return False
    if TEXTS & first_item(document, "images").keys():
        return False
    return document.get("annotations") == [] or _is_plain(first_item(document, "annotations"))


def recognises_predictions(document: Any) -> bool:
    """Return whether the document is a list of boxes, masks or keypoints of categories, without text."""
    return document == [] or (isinstance(document, list) and _is_plain(first_item(document)))


def _is_plain(item: Mapping[str, Any]) -> bool:
    return {"image_id", "category_id"} <= item.keys() and bool(GEOMETRY & item.keys()) and not TEXTS & item.keys()


def read_truth(path: Path, document: Any, folder: Path | None) -> Truth:
    """Read ground truth; ``Record.image`` is set when the folder of the images is given.

    Raises:
        DataError: a field is missing, of the wrong type or impossible; an id occurs twice; an annotation is of an image
            or category that the file does not list.
    """
    name = shown(path)
    categories = [
        _category(body, f"{name}: categories[{i}]") for i, body in enumerate(get(document, "categories", (list,), name))
    ]
    records: dict[ImageId, Record] = {}
    for i, body in enumerate(get(document, "images", (list,), name)):
        record = _image(body, folder, f"{name}: images[{i}]")
        _require_new(record.image_id, records, f"{name}: images[{i}]")
        records[record.image_id] = record
    known, ids = {category.id for category in categories}, set()
    for i, body in enumerate(get(document, "annotations", (list,), name)):
        where = f"{name}: annotations[{i}]"
        record = _record_of(body, records, where)
        region = _annotation(body, record, where)
        _require_new(region.id, ids, where)
        if region.category_id not in known:
            raise DataError(
                "The annotation is of a category that the file does not list.", where=where, value=region.category_id
            )
        ids.add(region.id)
        record.regions.append(region)
    return list(records.values()), categories


def read_predictions(path: Path, document: Any, truth: list[Record], folder: Path | None) -> list[Record]:
    """Read results; one record per image of the ground truth.

    Raises:
        DataError: a field is missing, of the wrong type or impossible, or a result is of an unknown image.
    """
    records = {record.image_id: Record(record.image_id, record.height, record.width) for record in truth}
    for i, body in enumerate(document):
        where = f"{shown(path)}: [{i}]"
        record = _record_of(body, records, where)
        region = Region(
            id=i + 1,
            category_id=get(body, "category_id", (int,), where),
            score=_finite(body, "score", where),
            **_geometry(body, record, where),
        )
        if not GEOMETRY & body.keys():
            raise DataError("A result has no geometry.", where=where, allowed=", ".join(sorted(GEOMETRY)))
        record.regions.append(region)
    return list(records.values())


def _category(body: Any, where: str) -> Category:
    category_id = get(body, "id", (int,), where)
    return Category(category_id, get(body, "name", (str,), where) if "name" in body else str(category_id))


def _image(body: Any, folder: Path | None, where: str) -> Record:
    image_id = get(body, "id", (int, str), where)
    sized = any(body.get(side) is not None for side in ("height", "width"))
    height, width = (get(body, side, (int,), where) for side in ("height", "width")) if sized else (0, 0)
    if sized and min(height, width) < 1:
        raise DataError("An image has no pixels.", where=where, value=f"height {height}, width {width}")
    image = None if folder is None else str(resolve_under(folder, get(body, "file_name", (str,), where)))
    return Record(image_id, height, width, image=image)


def _annotation(body: Any, record: Record, where: str) -> Region:
    region = Region(
        id=get(body, "id", (int,), where),
        category_id=get(body, "category_id", (int,), where),
        is_crowd=bool(get(body, "iscrowd", (int, bool), where)) if "iscrowd" in body else False,
        area=_finite(body, "area", where, least=0) if body.get("area") is not None else None,
        **_geometry(body, record, where),
    )
    labelled = sum(visibility > 0 for _, _, visibility in region.keypoints)
    if bool(body.get("num_keypoints", labelled)) != bool(labelled):
        raise DataError(
            "num_keypoints and the visibilities differ on whether a keypoint is labelled.",
            where=where,
            value=body["num_keypoints"],
            allowed=f"{labelled}, the number of visibilities above 0",
        )
    return region


def _geometry(body: Mapping[str, Any], record: Record, where: str) -> dict[str, Any]:
    """Return the fields of a region for what the file gives of bbox, segmentation and keypoints."""
    fields: dict[str, Any] = {}
    if body.get("bbox") not in (None, []):
        fields |= _box(get(body, "bbox", (list,), where), where)
    if body.get("segmentation") and record.height:
        fields["mask"] = _mask(body["segmentation"], record, where)
    if body.get("keypoints") is not None:
        fields["keypoints"] = _keypoints(get(body, "keypoints", (list,), where), where)
    return fields


def _box(values: list[Any], where: str) -> dict[str, Any]:
    if len(values) != 4 or not all(map(_is_finite, values)) or min(values[2:]) < 0:
        raise DataError(
            "A box is not (x, y, width, height).", where=where, value=values, allowed="four finite numbers, sides >= 0"
        )
    return box_fields(*map(float, values))


def _mask(segmentation: Any, record: Record, where: str) -> Rle:
    try:
        if not isinstance(segmentation, dict):
            return polygons_to_rle(segmentation, record.height, record.width)
        if segmentation.get("size") != [record.height, record.width]:
            raise DataError(
                "A run-length encoding has another size than its image.",
                value=segmentation.get("size"),
                allowed=f"[height {record.height}, width {record.width}]",
            )
        return compressed_rle(segmentation)
    except DataError as err:
        raise DataError(err.what, where=where, value=err.value, allowed=err.allowed) from None


def _keypoints(values: list[Any], where: str) -> tuple[tuple[float, float, int], ...]:
    if len(values) % 3 or not all(map(_is_finite, values)):
        raise DataError(
            "Keypoints are not (x, y, visibility, …).",
            where=where,
            value=values,
            allowed="finite numbers, three a point",
        )
    return tuple(zip(values[0::3], values[1::3], values[2::3], strict=True))


def _record_of(body: Any, records: Mapping[ImageId, Record], where: str) -> Record:
    image_id = get(body, "image_id", (int, str), where)
    if image_id not in records:
        raise DataError("The ground truth has no such image.", where=where, value=image_id)
    return records[image_id]


def _require_new(item_id: ImageId, known: Any, where: str) -> None:
    if item_id in known:
        raise DataError("An id occurs twice.", where=where, value=item_id, allowed="each id once")


def _finite(body: Any, key: str, where: str, least: float = -math.inf) -> float:
    value = get(body, key, (int, float), where)
    if not _is_finite(value) or value < least:
        raise DataError(
            f'"{key}" is impossible.',
            where=where,
            value=value,
            allowed="a finite number" + (f" >= {least}" if least > -math.inf else ""),
        )
    return value


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


TRUTH = TruthForm("COCO instances or keypoints JSON", recognises_truth, read_truth)
PREDICTIONS = PredictionForm(
    "a list of COCO detection, mask or keypoint results", recognises_predictions, read_predictions
)
