"""COCO panoptic files: a JSON whose ``annotations[]`` name a PNG of segment ids, and the folder of PNGs.

``segments_info[]`` lists ``id``, ``category_id``, ``caption`` or ``description`` (null or ``[]`` for none), optionally
``score``. Results need no ``images`` and no ``categories``; images may lack their size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from ...datasets.records import Category, Record, Region
from ...utils.errors import DataError
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
        png_folder: where the PNGs lie; see `find_folder` if not given.
        sizes: image id -> (height, width) for images whose size the JSON lacks; read from the PNG if in neither.

    Raises:
        DataError: a field is missing or of the wrong type, a file name leaves its folder, or the folder is not found.
    """
    folder = png_folder if png_folder is not None else find_folder(path)
    known = dict(sizes or {})
    for i, image in enumerate(document.get("images") or ()):
        where = f"{shown(path)}: images[{i}]"
        image_id = get(image, "id", (int, str), where)
        if any(image.get(side) is not None for side in ("height", "width")):
            known[image_id] = tuple(get(image, side, (int,), where) for side in ("height", "width"))
    records = [
        _record(annotation, folder, known, f"{shown(path)}: annotations[{i}]")
        for i, annotation in enumerate(document["annotations"])
    ]
    if png_folder is None and records and not Path(records[0].id_map).is_file():
        _raise_not_found(path, records[0].id_map)
    categories = [
        Category(
            get(body, "id", (int,), f"{shown(path)}: categories[{i}]"),
            str(body.get("name", body["id"])),
            bool(body.get("isthing", 1)),
        )
        for i, body in enumerate(document.get("categories") or ())
    ]
    return records, categories


def find_folder(path: Path) -> Path:
    """Return the folder of a JSON's PNGs.

    It has the JSON's name without suffix, as with COCO, or that name with ``panoptic`` in place of what stands before
    the last ``_``, as beside Pix2Cap's (``panoptic_gt`` for ``pix2cap_gt.json``); else it is the JSON's own.
    """
    names = (path.stem, f"panoptic_{path.stem.rpartition('_')[2]}")
    return next((path.parent / name for name in names if (path.parent / name).is_dir()), path.parent)


def _raise_not_found(path: Path, png: str) -> NoReturn:
    raise DataError(
        "The folder of the PNGs is not found.",
        where=shown(path),
        value=f"there is no {shown(png)}",
        allowed=f"a folder {shown(path.stem)} beside the JSON",
        fix="--ground-truth-folder FOLDER or --predictions-folder FOLDER says where they are",
    )


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
        captions=tuple(get(body, key, (str,), where) for key in CAPTION_KEYS if body.get(key) not in (None, [])),
        is_crowd=bool(body.get("iscrowd", 0)),
        area=get(body, "area", (int, float), where) if "area" in body else None,
        score=get(body, "score", (int, float), where) if body.get("score") is not None else None,
    )


TRUTH = TruthForm("COCO panoptic JSON", recognises, read_truth)
PREDICTIONS = PredictionForm("COCO panoptic results", recognises, read_predictions)
