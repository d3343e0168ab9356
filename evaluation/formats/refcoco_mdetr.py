"""RefCOCO, RefCOCO+ and RefCOCOg as MDETR stores them: every expression is an item of ``images`` of its own.

Items have the expression as ``caption``, the image's id as ``original_id`` or ``original_img_id``, optionally
``refexp_id``, ``dataset_name`` and ``split``; one annotation each has ``bbox`` xywh and optionally a ``segmentation``.
An expression's id is its ``refexp_id``, else its annotation's. Results are those of the form ``refcoco``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...datasets.records import Record, Region
from ...utils.errors import DataError
from ...utils.untrusted import shown
from ..results import ImageId
from .form import Truth, TruthForm, first_item, get, objects
from .refcoco import read_object, read_size, require_unique_expressions, split_of

IMAGE_KEYS = ("original_id", "original_img_id")


def recognises(document: Any) -> bool:
    """Return whether the images are expressions."""
    keys = first_item(document, "images").keys() if isinstance(document, dict) else frozenset()
    return "caption" in keys and bool(keys & set(IMAGE_KEYS))


def read_truth(path: Path, document: Any, folder: Path | None) -> Truth:
    """Read ground truth, a record per image and a region per expression."""
    annotations = _by_expression(document, path)
    records: dict[ImageId, Record] = {}
    for item, where in objects(document, shown(path), "images"):
        empty = read_size(item, where, IMAGE_KEYS)
        record = records.setdefault(empty.image_id, empty)
        annotation = annotations.get(get(item, "id", (int, str), where))
        if annotation is None:
            raise DataError("An expression has no annotation.", where=where, value=item["id"])
        record.regions.append(_region(item, annotation, record, where))
    require_unique_expressions(records.values(), path)
    return list(records.values()), []


def _by_expression(document: Any, path: Path) -> dict[ImageId, Any]:
    """Return the annotation of each expression."""
    annotations: dict[ImageId, Any] = {}
    for annotation, where in objects(document, shown(path), "annotations"):
        key = get(annotation, "image_id", (int, str), where)
        if key in annotations:
            raise DataError("An expression has two annotations.", where=where, value=key)
        annotations[key] = annotation
    return annotations


def _region(item: Any, annotation: Any, record: Record, where: str) -> Region:
    key, body = ("refexp_id", item) if "refexp_id" in item else ("id", annotation)
    return Region(
        get(body, key, (int,), where),
        expressions=(get(item, "caption", (str,), where),),
        attributes=split_of(item),
        **read_object(annotation, record, where),
    )


TRUTH = TruthForm("RefCOCO in MDETR's layout", recognises, read_truth)
