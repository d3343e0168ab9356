"""Captioned boxes of Visual Genome: two forms of ground truth and two of results.

``vg_regions``
    GRiT's ``{train,test}.json``: ``images[]`` with id, height, width; ``annotations[]`` with id, image_id, bbox (x, y,
    width, height in original pixels), caption, optionally iscrowd.
``visual_genome``
    The published ``region_descriptions.json``, with ``image_data.json`` beside it (or in the folder given) for the
    sizes of the images.
``grit_results``
    A list of {image_id, bbox, object_descriptions, score, logit}, the bbox times 720 / longer side of the image; ranked
    by ``score``. ``grit_results_by_logit`` ranks by ``logit`` and must be asked for.
``vg_results``
    A list of {image_id, bbox, caption, score} in original pixels (PixelLLM).

Boxes become (x, y, x + width, y + height); what is odd about them is left to the protocol. Images without results get
an empty record.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...datasets.coco_geometry import box_fields
from ...datasets.records import Category, Record, Region
from ...utils.errors import DataError
from ...utils.untrusted import read_json, shown
from ..matching.frames import DENSECAP_SIDE
from ..results import ImageId, first_ids
from . import glamm_regions
from .form import PredictionForm, Truth, TruthForm, first_item, get

IMAGE_DATA = "image_data.json"
OBJECT = Category(1, "object")
Sizes = dict[ImageId, tuple[int, int]]


def recognises_regions(document: Any) -> bool:
    """Return whether the annotations are captioned boxes, not one per image under its id (`glamm_regions`)."""
    found = {"bbox", "caption"} <= first_item(document, "annotations").keys()
    return found and not glamm_regions.recognises(document)


def recognises_raw(document: Any) -> bool:
    """Return whether the document lists images with their regions' phrases."""
    return isinstance(document, list) and "phrase" in first_item(first_item(document), "regions")


def recognises_grit(document: Any) -> bool:
    """Return whether the results have GRiT's field of captions."""
    return isinstance(document, list) and {"bbox", "object_descriptions"} <= first_item(document).keys()


def recognises_results(document: Any) -> bool:
    """Return whether the results are captioned boxes."""
    return isinstance(document, list) and {"bbox", "caption"} <= first_item(document).keys()


def read_regions(path: Path, document: Any, folder: Path | None) -> Truth:
    """Read GRiT's form of ground truth.

    Raises:
        DataError: a field is missing or wrong, an id occurs twice, or an annotation is of an unlisted image.
    """
    records: dict[ImageId, Record] = {}
    for i, body in enumerate(get(document, "images", (list,), shown(path))):
        where = f"{shown(path)}: images[{i}]"
        image_id = get(body, "id", (int, str), where)
        if image_id in records:
            raise DataError("An image is listed twice.", where=where, value=image_id)
        records[image_id] = Record(image_id, *(get(body, side, (int,), where) for side in ("height", "width")))
    seen: set[int] = set()
    for i, body in enumerate(get(document, "annotations", (list,), shown(path))):
        where = f"{shown(path)}: annotations[{i}]"
        image_id = get(body, "image_id", (int, str), where)
        if image_id not in records:
            raise DataError("An annotation is of an image that the file does not list.", where=where, value=image_id)
        region = Region(
            id=_new_id(get(body, "id", (int,), where), seen, where),
            category_id=OBJECT.id,
            captions=_captions(body, "caption", where),
            is_crowd=bool(body.get("iscrowd", 0)),
            **read_box(body, where),
        )
        records[image_id].regions.append(region)
    return list(records.values()), [OBJECT]


def read_raw(path: Path, document: Any, folder: Path | None) -> Truth:
    """Read ``region_descriptions.json``; the sizes come from ``image_data.json`` in the folder, else beside it.

    Raises:
        DataError: a field is missing or wrong, an id occurs twice, or an image's size is unknown.
    """
    data = (folder or path.parent) / IMAGE_DATA
    sizes: Sizes = {}
    for i, body in enumerate(read_json(data)):
        where = f"{shown(data)}: [{i}]"
        image_id = get(body, "image_id" if "image_id" in body else "id", (int,), where)
        sizes[image_id] = (get(body, "height", (int,), where), get(body, "width", (int,), where))
    seen: set[int] = set()
    records = [_raw_record(body, sizes, seen, f"{shown(path)}: [{i}]", data) for i, body in enumerate(document)]
    return records, [OBJECT]


def _raw_record(body: Any, sizes: Sizes, seen: set[int], where: str, data: Path) -> Record:
    regions = get(body, "regions", (list,), where)
    named = body if "id" in body else regions[0] if regions else {}
    image_id = get(named, "id" if "id" in body else "image_id", (int,), where)
    if image_id not in sizes:
        raise DataError("The size of an image is not known.", where=where, value=image_id, fix=f"look in {shown(data)}")
    record = Record(image_id, *sizes[image_id])
    for i, region in enumerate(regions):
        place = f"{where}.regions[{i}]"
        x, y, width, height = (get(region, name, (int, float), place) for name in ("x", "y", "width", "height"))
        key = "region_id" if "region_id" in region else "id"
        record.regions.append(
            Region(
                id=_new_id(get(region, key, (int,), place), seen, place),
                category_id=OBJECT.id,
                captions=_captions(region, "phrase", place),
                **box_fields(x, y, width, height),
            )
        )
    return record


def read_results(path: Path, document: Any, truth: list[Record], folder: Path | None) -> list[Record]:
    """Read captioned boxes in original pixels."""
    return _read_list(path, document, truth, "caption", "score", lambda record: 1.0)


def read_grit(path: Path, document: Any, truth: list[Record], folder: Path | None) -> list[Record]:
    """Read GRiT's results, ranked by ``score``."""
    return _read_list(path, document, truth, "object_descriptions", "score", _grit_scale)


def read_grit_by_logit(path: Path, document: Any, truth: list[Record], folder: Path | None) -> list[Record]:
    """Read GRiT's results, ranked by ``logit``."""
    return _read_list(path, document, truth, "object_descriptions", "logit", _grit_scale)


def _grit_scale(record: Record) -> float:
    return DENSECAP_SIDE / max(record.height, record.width)


def _read_list(
    path: Path, document: Any, truth: list[Record], text: str, score: str, scale: Callable[[Record], float]
) -> list[Record]:
    """Read a list of captioned boxes; each box is divided by the image's scale.

    Raises:
        DataError: a field is missing or wrong, or an image is not in the ground truth.
    """
    records = {record.image_id: Record(record.image_id, record.height, record.width) for record in truth}
    if not isinstance(document, list):
        raise DataError("The results are not a list.", where=shown(path), allowed="a JSON list of captioned boxes")
    unknown: list[ImageId] = []
    for i, body in enumerate(document):
        where = f"{shown(path)}: [{i}]"
        image_id = get(body, "image_id", (int, str), where)
        if image_id not in records:
            unknown.append(image_id)
            continue
        record = records[image_id]
        region = Region(
            id=len(record.regions) + 1,
            category_id=OBJECT.id,
            captions=_captions(body, text, where),
            score=_finite(body, score, where) if body.get(score) is not None else None,
            **read_box(body, where, scale(record)),
        )
        record.regions.append(region)
    if unknown:
        raise DataError(
            f"{len(unknown)} result(s) are of images that are not in the ground truth.",
            where=shown(path),
            value=f"image ids {first_ids(list(dict.fromkeys(unknown)))}",
            allowed="image ids of the ground truth",
        )
    return list(records.values())


def read_box(body: Any, where: str, scale: float = 1.0) -> dict[str, tuple[float, ...]]:
    """Return ``bbox`` (x, y, width, height) divided by ``scale`` as a region's fields."""
    bbox = get(body, "bbox", (list,), where)
    if len(bbox) != 4 or not all(_is_number(side) for side in bbox):
        raise DataError('"bbox" is not four finite numbers.', where=where, value=bbox, allowed="[x, y, width, height]")
    return box_fields(*(side / scale for side in bbox))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _finite(body: Any, key: str, where: str) -> float:
    value = get(body, key, (int, float), where)
    if not math.isfinite(value):
        raise DataError(f'"{key}" is not a finite number.', where=where, value=value)
    return float(value)


def _captions(body: Any, key: str, where: str) -> tuple[str, ...]:
    return (get(body, key, (str,), where),) if body.get(key) is not None else ()


def _new_id(region_id: int, seen: set[int], where: str) -> int:
    if region_id in seen:
        raise DataError("A region id occurs twice.", where=where, value=region_id, allowed="one region per id")
    seen.add(region_id)
    return region_id


TRUTH = TruthForm("annotations with bbox and caption (GRiT's Visual Genome)", recognises_regions, read_regions)
RAW_TRUTH = TruthForm("region_descriptions.json of Visual Genome", recognises_raw, read_raw)
GRIT = PredictionForm("a list of bbox in the 720-pixel frame, object_descriptions, score", recognises_grit, read_grit)
GRIT_BY_LOGIT = PredictionForm("the same, ranked by logit; never chosen by itself", lambda _: False, read_grit_by_logit)
PREDICTIONS = PredictionForm("a list of bbox in original pixels, caption, score", recognises_results, read_results)
