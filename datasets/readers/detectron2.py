"""Any data set of detectron2's DatasetCatalog, as records."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...utils.errors import DataError, UsageError, nearest
from ...utils.untrusted import compressed_rle, read_image_size
from ..coco_geometry import read_segmentation
from ..detectron2_classes import Classes, library
from ..detectron2_structures import texts_of
from ..records import Category, Record, Region, encode_mask
from .packed import FIX, PackedReader

PREFIX = "detectron2."  # of names in DATASETS.TRAIN and DATASETS.TEST, where a colon would end the name of a task
XYXY_ABS, XYWH_ABS = 0, 1  # detectron2's BoxMode


class CatalogReader(PackedReader):
    """Records of an entry of the DatasetCatalog, whether detectron2's own or registered by the user.

    Panoptic entries (``pan_seg_file_name``, ``segments_info``) give id maps; others (``annotations``) boxes, masks and
    keypoints. Captions are taken from ``captions``, ``caption``, ``description`` or ``object_description`` of an
    annotation or a segment.

    Args:
        name: in the catalog, with or without ``detectron2.`` before it.

    Raises:
        UsageError: the catalog has no such entry.
        DataError: its function fails, or what it returns cannot be read.
        MissingDependencyError: detectron2 is not installed.
    """

    def __init__(self, name: str) -> None:
        name = name.removeprefix(PREFIX)
        items, self.classes = _load(name)
        self.categories = self.classes.categories
        where = f"{PREFIX}{name}"
        super().__init__((entry_of(item, f"{where}[{i}]") for i, item in enumerate(items)), where)

    def _record(self, entry: dict[str, Any]) -> Record:
        return record_of_entry(entry, self.classes)


def catalog_categories(name: str) -> tuple[Category, ...]:
    """Return the classes of an entry of the catalog; raises as `CatalogReader`."""
    return _load(name.removeprefix(PREFIX))[1].categories


def _load(name: str) -> tuple[Sequence[Mapping[str, Any]], Classes]:
    """Call what is registered; some functions fill in the metadata only then."""
    data = library("data")
    if name not in data.DatasetCatalog:
        close = nearest(name, data.DatasetCatalog.keys())
        raise UsageError(
            "detectron2's DatasetCatalog has no such data set.",
            value=name,
            allowed="what is registered before, in this process",
            fix=f"did you mean {PREFIX}{close}?" if close else "register it with DatasetCatalog.register",
        )
    try:
        items = data.DatasetCatalog.get(name)
    except (OSError, AssertionError, KeyError, ValueError) as err:
        reason = f"{type(err).__name__}: {err}"
        raise DataError("A data set of the catalog cannot be read.", where=name, value=reason, fix=FIX) from None
    return items, Classes.of_metadata(data.MetadataCatalog.get(name))


def entry_of(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return one of detectron2's dictionaries as plain JSON values, checked.

    Raises:
        DataError: a field is missing or of a kind that records do not have.
    """
    panoptic = item.get("segments_info") is not None and item.get("pan_seg_file_name")
    if not panoptic and "annotations" not in item and "sem_seg_file_name" in item:
        raise DataError("Semantic maps without segments are not read.", where=where, allowed="annotations, or panoptic")
    try:
        size = [int(item["height"]), int(item["width"])] if "height" in item else None
        annotated = item["segments_info"] if panoptic else item.get("annotations", ())
        make = _segment if panoptic else _annotation
        return {
            "image": os.fspath(item["file_name"]),
            "image_id": _id(item.get("image_id", item["file_name"])),
            "size": size,
            "id_map": os.fspath(item["pan_seg_file_name"]) if panoptic else None,
            "captions": texts_of(item, where),
            "regions": [make(body, f"{where}, region {i}", i) for i, body in enumerate(annotated)],
        }
    except KeyError as err:
        raise DataError(f"A data set of the catalog lacks the field {err}.", where=where) from None


def _id(value: Any) -> int | str:
    return value if isinstance(value, str) else int(value)


def _segment(body: Mapping[str, Any], where: str, row: int) -> dict[str, Any]:
    box = body.get("bbox")
    return {
        "id": int(body["id"]),
        "class": int(body["category_id"]),
        "thing": body.get("isthing"),
        "box": None if box is None else _corners(box, XYWH_ABS, where),
        "crowd": bool(body.get("iscrowd", 0)),
        "area": body.get("area"),
        "captions": texts_of(body, where),
    }


def _annotation(body: Mapping[str, Any], where: str, row: int) -> dict[str, Any]:
    mask = body.get("segmentation")
    return {
        "id": row + 1,
        "class": int(body["category_id"]),
        "thing": None,
        "box": _corners(body["bbox"], int(body["bbox_mode"]), where),
        "mask": None if mask is None else _plain_mask(mask),
        "crowd": bool(body.get("iscrowd", 0)),
        "area": body.get("area"),
        "keypoints": np.asarray(body.get("keypoints") or (), float).reshape(-1, 3).tolist(),
        "captions": texts_of(body, where),
    }


def _corners(box: Any, mode: int, where: str) -> list[float]:
    sides = np.asarray(box, float).ravel()
    if mode not in (XYXY_ABS, XYWH_ABS) or len(sides) != 4 or not np.isfinite(sides).all():
        allowed = "four finite numbers, BoxMode.XYXY_ABS or XYWH_ABS"
        raise DataError("A box cannot be read.", where=where, value=f"{box}, mode {mode}", allowed=allowed)
    if mode == XYWH_ABS:
        sides[2:] += sides[:2]
    return sides.tolist()


def _plain_mask(mask: Any) -> Any:
    """Return polygons as lists, a run-length encoding with text, a bool array as such an encoding."""
    if isinstance(mask, np.ndarray):
        return encode_mask(mask.astype(bool))
    if isinstance(mask, Mapping):
        return compressed_rle(mask)
    return [np.asarray(polygon, float).ravel().tolist() for polygon in mask]


def record_of_entry(entry: Mapping[str, Any], classes: Classes) -> Record:
    """Return the record of what `entry_of` made; an image without a stated size is asked for its own."""
    height, width = entry["size"] or read_image_size(entry["image"])
    where = f"image {entry['image_id']}"
    return Record(
        entry["image_id"],
        height,
        width,
        entry["image"],
        [_region(body, classes, (height, width), where) for body in entry["regions"]],
        entry["id_map"],
        captions=tuple(entry["captions"]),
    )


def _region(body: Mapping[str, Any], classes: Classes, size: tuple[int, int], where: str) -> Region:
    where = f"{where}, region {body['id']}"
    mask = body.get("mask")
    return Region(
        id=body["id"],
        category_id=classes.id_of(body["class"], body["thing"], where),
        box_xyxy=None if body["box"] is None else tuple(body["box"]),
        mask=None if mask is None else read_segmentation(mask, *size, where),
        is_crowd=body["crowd"],
        area=body["area"],
        keypoints=tuple((x, y, int(visible)) for x, y, visible in body.get("keypoints", ())),
        captions=tuple(body["captions"]),
    )
