"""COCO panoptic files: a JSON whose ``annotations[]`` name a PNG of segment ids, and the folder of PNGs.

``segments_info[]`` lists ``id``, ``category_id``, ``caption`` or ``description``, optionally ``score``. Results need no
``images`` and no ``categories``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...datasets.records import Category, Record, Region
from ...utils.untrusted import read_id_map, resolve_under, shown
from ..results import ImageId
from .form import PredictionForm, Truth, TruthForm, first_item, get

CAPTION_KEYS = ("caption", "description")


def recognises(document: Any) -> bool:
    """Return whether the annotations list segments."""
    return bool({"segments_info", "file_name"} & first_item(document, "annotations").keys())


def read_truth(path: Path, document: Any, folder: Path | None) -> Truth:
    """Read ground truth and the paths of its PNGs."""
    return read_panoptic(path, document, folder)


def read_predictions(path: Path, document: Any, truth: list[Record], folder: Path | None) -> list[Record]:
    """Read predictions; sizes come from the ground truth where the document lists no images."""
    sizes = {record.image_id: (record.height, record.width) for record in truth}
    return read_panoptic(path, document, folder, sizes=sizes)[0]


def read_panoptic(
    path: Path,
    document: Any,
    png_folder: Path | None = None,
    *,
    sizes: Mapping[ImageId, tuple[int, int]] | None = None,
) -> Truth:
    """Read a COCO panoptic JSON and the paths of its PNGs.

    Args:
        path: the JSON's.
        document: what it holds; its lists ``images`` and ``categories`` may be absent.
        png_folder: where the PNGs lie; the JSON's name without suffix, else its folder, if not given.
        sizes: image id -> (height, width) for images the JSON does not list; read from the PNG if in neither.

    Raises:
        DataError: a field is missing or of the wrong type, or a file name leaves its folder.
    """
    beside = path.with_suffix("")
    folder = png_folder if png_folder is not None else beside if beside.is_dir() else path.parent
    known = dict(sizes or {})
    for i, image in enumerate(document.get("images") or ()):
        where = f"{shown(path)}: images[{i}]"
        known[get(image, "id", (int, str), where)] = tuple(
            get(image, side, (int,), where) for side in ("height", "width")
        )
    records = [
        _record(annotation, folder, known, f"{shown(path)}: annotations[{i}]")
        for i, annotation in enumerate(document["annotations"])
    ]
    categories = [
        Category(
            get(body, "id", (int,), f"{shown(path)}: categories[{i}]"),
            str(body.get("name", body["id"])),
            bool(body.get("isthing", 1)),
        )
        for i, body in enumerate(document.get("categories") or ())
    ]
    return records, categories


def _record(annotation: Any, folder: Path, sizes: Mapping[ImageId, tuple[int, int]], where: str) -> Record:
    image_id = get(annotation, "image_id", (int, str), where)
    png = resolve_under(folder, get(annotation, "file_name", (str,), where))
    size = sizes.get(image_id) or read_id_map(png).shape
    segments = get(annotation, "segments_info", (list,), where)
    regions = [_region(body, f"{where}.segments_info[{i}]") for i, body in enumerate(segments)]
    return Record(image_id, *size, regions=regions, id_map=str(png))


def _region(body: Any, where: str) -> Region:
    return Region(
        id=get(body, "id", (int,), where),
        category_id=get(body, "category_id", (int,), where),
        captions=tuple(get(body, key, (str,), where) for key in CAPTION_KEYS if body.get(key) is not None),
        is_crowd=bool(body.get("iscrowd", 0)),
        area=get(body, "area", (int, float), where) if "area" in body else None,
        score=get(body, "score", (int, float), where) if body.get("score") is not None else None,
    )


TRUTH = TruthForm("COCO panoptic JSON", recognises, read_truth)
PREDICTIONS = PredictionForm("COCO panoptic results", recognises, read_predictions)
