"""Captions in COCO's form: annotations that name an image and a caption, and results as a list of the same.

Ground truth: ``{"images": [{"id", "height", "width"}], "annotations": [{"image_id", "caption"}]}``. Images may lack
their size, which is then 0 x 0, and the list of images may be absent. Results: ``[{"image_id", "caption"}]``, once per
image. Images for which the ground truth has no caption need no result.

The same list holds the captions of given regions, for ground truth whose regions have texts: ``{"id", "caption"}``
names a region by an id that is unique in the ground truth, with ``image_id`` by its id in that image; ``image_id``
alone names the only region of that image, unless the ground truth has captions of whole images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...datasets.records import Record, Region
from ...utils.errors import DataError
from ...utils.untrusted import shown
from ..results import ImageId
from .form import PredictionForm, Truth, TruthForm, first_item, get

# keys of an item that says more than whose caption it is
OTHER_FORMS = {
    *("bbox", "box", "boxes", "category_id", "file_name", "keypoints", "mask", "segmentation", "segments_info"),
    *("answer", "expression", "expressions", "question", "sentences", "timed_caption", "traces"),
}


def recognises_truth(document: Any) -> bool:
    """Return whether the annotations are captions without a place."""
    return isinstance(document, dict) and _is_caption(first_item(document, "annotations"), ("image_id",))


def recognises_predictions(document: Any) -> bool:
    """Return whether the document is a list of captions without a place."""
    item = first_item(document)
    return isinstance(document, list) and (_is_caption(item, ("image_id",)) or _is_caption(item, ("id",)))


def _is_caption(item: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    return {"caption", *names} <= item.keys() and not OTHER_FORMS & item.keys()


def read_truth(path: Path, document: Any, folder: Path | None) -> Truth:
    """Read the captions of each image."""
    images = document.get("images")
    listed = [_size(body, f"{shown(path)}: images[{i}]") for i, body in enumerate(_list(images, path, "images"))]
    captions: defaultdict[ImageId, list[str]] = defaultdict(list)
    known = {image_id for image_id, _, _ in listed}
    for i, body in enumerate(_list(document["annotations"], path, "annotations")):
        where = f"{shown(path)}: annotations[{i}]"
        image_id = get(body, "image_id", (int, str), where)
        if images is not None and image_id not in known:
            raise DataError("The caption's image is not listed.", where=where, value=image_id)
        captions[image_id].append(get(body, "caption", (str,), where))
    sizes = listed if images is not None else [(image_id, 0, 0) for image_id in captions]
    return [Record(*size, captions=tuple(captions.get(size[0], ()))) for size in sizes], []


def _list(value: Any, path: Path, name: str) -> list[Any]:
    if value is None or isinstance(value, list):
        return value or []
    raise DataError(f'"{name}" is not a list.', where=shown(path), value=type(value).__name__)


def _size(body: Any, where: str) -> tuple[ImageId, int, int]:
    sides = (get(body, side, (int,), where) if body.get(side) is not None else 0 for side in ("height", "width"))
    return get(body, "id", (int, str), where), *sides


def read_predictions(path: Path, document: Any, truth: list[Record], folder: Path | None) -> list[Record]:
    """Read a caption per image, or per region if the ground truth has regions.

    Raises:
        DataError: an item lacks a field, or names no image or region of the ground truth, or none unmistakably.
    """
    if _is_of_regions(document, truth):
        return _read_regions(path, document, truth)
    known = {record.image_id: record for record in truth}
    records = []
    for i, body in enumerate(document):
        where = f"{shown(path)}: item {i}"
        image_id = get(body, "image_id" if isinstance(body, dict) and "image_id" in body else "id", (int, str), where)
        caption = get(body, "caption", (str,), where)
        size = (known[image_id].height, known[image_id].width) if image_id in known else (0, 0)
        records.append(Record(image_id, *size, captions=(caption,)))
    given = {record.image_id for record in records}
    needless = (record for record in truth if record.image_id not in given and not record.captions)
    return records + [Record(record.image_id, record.height, record.width) for record in needless]


def _is_of_regions(document: Any, truth: list[Record]) -> bool:
    """Return whether the results are of regions: the truth's regions have texts, and only they or ids are named."""
    worded = any(region.captions or region.expressions for record in truth for region in record.regions)
    return worded and ("id" in first_item(document) or not any(record.captions for record in truth))


def _read_regions(path: Path, document: Any, truth: list[Record]) -> list[Record]:
    records = {record.image_id: Record(record.image_id, record.height, record.width) for record in truth}
    places: defaultdict[ImageId, list[ImageId]] = defaultdict(list)  # region -> its images
    regions = {record.image_id: [region.id for region in record.regions] for record in truth}
    for image_id, ids in regions.items():
        for region_id in ids:
            places[region_id].append(image_id)
    for i, body in enumerate(document):
        where = f"{shown(path)}: item {i}"
        image_id, region_id = _find_region(body, regions, places, where)
        records[image_id].regions.append(Region(region_id, captions=(get(body, "caption", (str,), where),)))
    return list(records.values())


def _find_region(
    body: Any, regions: Mapping[ImageId, list[ImageId]], places: Mapping[ImageId, list[ImageId]], where: str
) -> tuple[ImageId, ImageId]:
    if isinstance(body, dict) and "image_id" in body:
        image_id = get(body, "image_id", (int, str), where)
        if image_id not in regions:
            raise DataError("The caption's image is not in the ground truth.", where=where, value=image_id)
        if "id" in body:
            return image_id, get(body, "id", (int,), where)
        if len(regions[image_id]) == 1:
            return image_id, regions[image_id][0]
        value = f"image_id {image_id}, which has {len(regions[image_id])} regions"
        raise DataError("It is not said which region this caption is of.", where=where, value=value, allowed='"id"')
    region_id = get(body, "id", (int,), where)
    if len(places.get(region_id, ())) == 1:
        return places[region_id][0], region_id
    found = len(places.get(region_id, ()))
    value = f"id {region_id}, in {found} images of the ground truth"
    raise DataError("The caption's region is not found by its id.", where=where, value=value, allowed="one image")


TRUTH = TruthForm("COCO captions JSON", recognises_truth, read_truth)
PREDICTIONS = PredictionForm("captions as [{image_id or id, caption}]", recognises_predictions, read_predictions)
