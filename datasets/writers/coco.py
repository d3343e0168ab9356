"""COCO-style JSON (`locap.datasets.readers.coco_instances` describes it). Masks are run lengths in COCO's text form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from ...utils.files import write_json
from ..records import Category, Record, Region
from .holds import Holds
from .naming import Naming, numbered_anew

HOLDS = Holds(
    record=frozenset({"captions"}),
    region=frozenset({"mask", "box_xyxy", "keypoints", "captions", "expressions", "score"}),
    needs=(("box_xyxy", "mask"),),
    boxes=True,
)


def write(path: Path, records: Iterable[Record], categories: Sequence[Category], naming: Naming) -> Path:
    """Write a COCO-style file."""
    images, annotations = [], []
    for record in records:
        captions = {"captions": list(record.captions)} if record.captions else {}
        images.append(image_entry(record, naming) | captions)
        annotations += [_annotation(region, record) for region in record.regions]
    if numbered_anew(annotations, "id"):
        naming.notes["ids of regions that were replaced by numbers, as they were not distinct"] += len(annotations)
    listed = [category_entry(category) for category in categories]
    return write_json(path, {"images": images, "annotations": annotations, "categories": listed})


def image_entry(record: Record, naming: Naming) -> dict[str, Any]:
    """Return an item of ``images``."""
    name = naming.image(record)
    return {"id": naming.image_id(record), "file_name": name, "height": record.height, "width": record.width}


def category_entry(category: Category) -> dict[str, Any]:
    """Return an item of ``categories``."""
    color = {"color": list(category.color)} if category.color else {}
    return {"id": category.id, "name": category.name, "isthing": int(category.is_thing), **color}


def box_xywh(region: Region) -> list[float | int]:
    """Return a box [x, y, width, height]; whole numbers as such."""
    x0, y0, x1, y1 = region.box_xyxy
    return [int(v) if float(v).is_integer() else v for v in (x0, y0, *(region.box_size or (x1 - x0, y1 - y0)))]


def _annotation(region: Region, record: Record) -> dict[str, Any]:
    area = region.area
    if area is None:
        width, height = box_xywh(region)[2:]
        area = width * height if region.mask is None else float(coco_mask.area(_as_bytes(region.mask)))
    body = {"id": region.id, "image_id": record.image_id, "bbox": box_xywh(region), "area": area}
    body |= {"iscrowd": int(region.is_crowd)}
    if region.category_id is not None:
        body["category_id"] = region.category_id
    if region.mask is not None:
        body["segmentation"] = dict(region.mask)
    for key, texts in (("caption", region.captions), ("expression", region.expressions)):
        if texts:
            body[key] = texts[0] if len(texts) == 1 else list(texts)
    if region.keypoints:
        body["keypoints"] = [value for point in region.keypoints for value in point]
        body["num_keypoints"] = sum(point[2] > 0 for point in region.keypoints)
    return body if region.score is None else body | {"score": region.score}


def _as_bytes(rle: Mapping[str, Any]) -> dict[str, Any]:
    counts = rle["counts"]
    return {"size": list(rle["size"]), "counts": counts.encode() if isinstance(counts, str) else counts}
