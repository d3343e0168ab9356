"""RefCOCO, RefCOCO+ and RefCOCOg as scenic's PixelLLM stores them.

Ground truth is a COCO file whose annotations are objects: ``bbox`` xywh, a list ``refexp_id``, optionally the parallel
list ``refexp_sent`` or ``refexp_raw`` and a ``segmentation``. Results are a list of ``{"id": refexp id, "image_id",
"bbox", "segmentation"}``, of which box or segmentation may be left out. An image or annotation may name its
``dataset_name`` and ``split``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...datasets.coco_geometry import read_box_xywh, read_segmentation
from ...datasets.records import Record, Region
from ...utils.errors import DataError
from ...utils.untrusted import shown
from ..expressions import SPLIT
from ..results import first_ids
from .form import PredictionForm, Truth, TruthForm, first_item, get, objects

TEXT_KEYS = ("refexp_sent", "refexp_raw", "refexp")
SPLIT_KEYS = ("dataset_name", SPLIT)
OTHERS = frozenset({"category_id", "caption"})  # of detections and captions


def recognises_truth(document: Any) -> bool:
    """Return whether the annotations list expressions."""
    return isinstance(document, dict) and isinstance(first_item(document, "annotations").get("refexp_id"), list)


def recognises_predictions(document: Any) -> bool:
    """Return whether the results have ids and a place, and no class and no caption."""
    keys = first_item(document).keys()
    return keys >= {"id", "image_id"} and bool(keys & {"bbox", "segmentation"}) and not keys & OTHERS


def read_truth(path: Path, document: Any, folder: Path | None) -> Truth:
    """Read ground truth, a region per expression."""
    records = {}
    for image, where in objects(document, shown(path), "images"):
        record = read_size(image, where)
        records[record.image_id] = (record, image)
    for annotation, where in objects(document, shown(path), "annotations"):
        image_id = get(annotation, "image_id", (int, str), where)
        if image_id not in records:
            raise DataError("An annotation is of an image that is not listed.", where=where, value=image_id)
        record, image = records[image_id]
        record.regions += _expressions(annotation, image, record, where)
    found = [record for record, _ in records.values()]
    require_unique_expressions(found, path)
    return found, []


def read_size(image: Any, where: str, id_keys: Iterable[str] = ("id",)) -> Record:
    """Return the empty record of an item of ``images``; its id is under the first of the keys that it has."""
    key = next((key for key in id_keys if isinstance(image, dict) and key in image), "id")
    return Record(
        get(image, key, (int, str), where), *(get(image, side, (int,), where) for side in ("height", "width"))
    )


def _expressions(annotation: Any, image: Mapping[str, Any], record: Record, where: str) -> list[Region]:
    """Return one region per expression of an object."""
    texts = next((annotation[key] for key in TEXT_KEYS if isinstance(annotation.get(key), list)), [])
    ids = get(annotation, "refexp_id", (list,), where)
    if texts and len(texts) != len(ids):
        raise DataError("An object's expressions and their ids differ in number.", where=where, value=len(texts))
    shape = read_object(annotation, record, where)
    split = split_of(annotation, image)
    return [
        Region(
            get({"refexp_id": refexp_id}, "refexp_id", (int,), where),
            expressions=tuple(str(text) for text in texts[i : i + 1]),
            attributes=split,
            **shape,
        )
        for i, refexp_id in enumerate(ids)
    ]


def read_object(body: Mapping[str, Any], record: Record, where: str) -> dict[str, Any]:
    """Return ``box_xyxy`` and ``mask`` of an annotation or a result, as far as it has them."""
    shape: dict[str, Any] = {}
    if body.get("bbox") is not None:
        shape["box_xyxy"] = read_box_xywh(body["bbox"], where)
    if body.get("segmentation") is not None:
        shape["mask"] = read_segmentation(body["segmentation"], record.height, record.width, where)
    return shape


def split_of(*bodies: Mapping[str, Any]) -> dict[str, str]:
    """Return the attribute that names data set and split, from the first of the objects that says so."""
    parts = [next((body[key] for body in bodies if isinstance(body.get(key), str)), "") for key in SPLIT_KEYS]
    name = " ".join(filter(None, parts))
    return {SPLIT: name} if name else {}


def require_unique_expressions(records: Iterable[Record], path: Path) -> None:
    """Raise `DataError` when an expression's id occurs twice in the file."""
    seen: set[int] = set()
    twice = {r.id for record in records for r in record.regions if r.id in seen or seen.add(r.id)}
    if twice:
        raise DataError("Ids of expressions occur twice.", where=shown(path), value=first_ids(sorted(twice)))


def read_predictions(path: Path, document: Any, truth: list[Record], folder: Path | None) -> list[Record]:
    """Read answers; an image without any has an empty record."""
    records = {record.image_id: Record(record.image_id, record.height, record.width) for record in truth}
    for body, where in objects(document, shown(path)):
        image_id = get(body, "image_id", (int, str), where)
        record = records.setdefault(image_id, Record(image_id, 1, 1))  # an unknown image is refused by its id later
        record.regions.append(Region(get(body, "id", (int,), where), **read_object(body, record, where)))
    return list(records.values())


TRUTH = TruthForm("RefCOCO objects with expression ids", recognises_truth, read_truth)
PREDICTIONS = PredictionForm("boxes and masks by expression id", recognises_predictions, read_predictions)
