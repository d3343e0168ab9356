"""Predictions and ground truth from files, anyone's.

Two forms are read: locap's own record file (`datasets.records.write_records`), and COCO panoptic results, a JSON whose
``annotations[]`` name a PNG of segment ids and list ``segments_info[]`` (``id``, ``category_id``, ``caption`` or
``description``, optionally ``score``), with the folder of PNGs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..datasets.records import FORMAT, Category, Record, Region, read_records
from ..utils.errors import DataError
from ..utils.untrusted import read_id_map, read_json, resolve_under, shown
from .results import ImageId, first_ids

CAPTION_KEYS = ("caption", "description")


def load_predictions(
    path: str | Path, ground_truth: Iterable[Record], png_folder: str | Path | None = None
) -> list[Record]:
    """Read stored predictions and check them against the images they must cover.

    Args:
        path: the result file.
        ground_truth: records of all images to be scored.
        png_folder: the PNGs of COCO panoptic results; the JSON's name without suffix, else its folder, if not given.

    Raises:
        DataError: the file is malformed, or `pair_predictions` refuses it.
    """
    ground_truth = list(ground_truth)
    if is_record_file(path):
        predictions = [_with_local_id_map(record, path) for record in read_records(path)[0]]
    else:
        sizes = {record.image_id: (record.height, record.width) for record in ground_truth}
        predictions, _ = read_panoptic(path, png_folder, sizes=sizes)
    pair_predictions(ground_truth, predictions, where=shown(path))
    return predictions


def load_ground_truth(path: str | Path, png_folder: str | Path | None = None) -> tuple[list[Record], list[Category]]:
    """Read ground truth without its images: a record file or a COCO panoptic JSON with its PNGs.

    Raises:
        DataError: the file is malformed or names no categories.
    """
    if is_record_file(path):
        records, categories, _ = read_records(path)
        records = [_with_local_id_map(record, path) for record in records]
    else:
        records, categories = read_panoptic(path, png_folder)
    if not categories:
        raise DataError("The ground truth lists no categories.", where=shown(path))
    return records, categories


def is_record_file(path: str | Path) -> bool:
    """Return whether a JSON file is locap's own record file."""
    document = read_json(path)
    return isinstance(document, dict) and document.get("format") == FORMAT


def pair_predictions(
    ground_truth: Iterable[Record], predictions: Iterable[Record], *, where: str = "predictions"
) -> dict[ImageId, Record]:
    """Return the prediction of each image.

    Raises:
        DataError: images are unknown, predicted twice or missing (with their number and first ids), or a prediction
            has a score that is not a finite number.
    """
    predictions = list(predictions)
    known = [record.image_id for record in ground_truth]
    given = Counter(record.image_id for record in predictions)
    problems = {
        "of the ground truth are listed twice": [i for i, n in Counter(known).items() if n > 1],
        "are predicted twice": [image_id for image_id, count in given.items() if count > 1],
        "are not in the ground truth": [image_id for image_id in given if image_id not in set(known)],
        "have no prediction": [image_id for image_id in known if image_id not in given],
    }
    for what, ids in problems.items():
        if ids:
            raise DataError(
                f"{len(ids)} image(s) {what}.",
                where=where,
                value=f"image ids {first_ids(ids)}",
                allowed="one prediction for every image of the ground truth",
            )
    for record in predictions:
        for region in (*record.regions, *(record.instances or ())):
            _check_values(region, f"{where}: image_id {record.image_id}, segment {region.id}")
    return {record.image_id: record for record in predictions}


def read_panoptic(
    path: str | Path, png_folder: str | Path | None = None, *, sizes: Mapping[ImageId, tuple[int, int]] | None = None
) -> tuple[list[Record], list[Category]]:
    """Read a COCO panoptic JSON and the paths of its PNGs.

    Args:
        path: the JSON; its lists ``images`` and ``categories`` may be absent.
        png_folder: where the PNGs lie; the JSON's name without suffix, else its folder, if not given.
        sizes: image id -> (height, width) for images the JSON does not list; read from the PNG if in neither.

    Raises:
        DataError: a field is missing or of the wrong type, or a file name leaves its folder.
    """
    path, document = Path(path), read_json(path)
    if not isinstance(document, dict) or not isinstance(document.get("annotations"), list):
        raise DataError(
            "Neither a record file nor COCO panoptic results.",
            where=shown(path),
            allowed=f'an object with "format": "{FORMAT}", or one with a list "annotations"',
        )
    beside = path.with_suffix("")
    folder = Path(png_folder) if png_folder is not None else beside if beside.is_dir() else path.parent
    known = dict(sizes or {})
    for i, image in enumerate(document.get("images") or ()):
        where = f"{shown(path)}: images[{i}]"
        known[_get(image, "id", (int, str), where)] = tuple(
            _get(image, side, (int,), where) for side in ("height", "width")
        )
    records = [
        _record(annotation, folder, known, f"{shown(path)}: annotations[{i}]")
        for i, annotation in enumerate(document["annotations"])
    ]
    categories = [
        Category(
            _get(body, "id", (int,), f"{shown(path)}: categories[{i}]"),
            str(body.get("name", body["id"])),
            bool(body.get("isthing", 1)),
        )
        for i, body in enumerate(document.get("categories") or ())
    ]
    return records, categories


def _record(annotation: Any, folder: Path, sizes: Mapping[ImageId, tuple[int, int]], where: str) -> Record:
    image_id = _get(annotation, "image_id", (int, str), where)
    png = resolve_under(folder, _get(annotation, "file_name", (str,), where))
    size = sizes.get(image_id) or read_id_map(png).shape
    segments = _get(annotation, "segments_info", (list,), where)
    regions = [_region(body, f"{where}.segments_info[{i}]") for i, body in enumerate(segments)]
    return Record(image_id, *size, regions=regions, id_map=str(png))


def _region(body: Any, where: str) -> Region:
    return Region(
        id=_get(body, "id", (int,), where),
        category_id=_get(body, "category_id", (int,), where),
        captions=tuple(_get(body, key, (str,), where) for key in CAPTION_KEYS if body.get(key) is not None),
        is_crowd=bool(body.get("iscrowd", 0)),
        area=_get(body, "area", (int, float), where) if "area" in body else None,
        score=_get(body, "score", (int, float), where) if body.get("score") is not None else None,
    )


def _get(body: Any, key: str, types: tuple[type, ...], where: str) -> Any:
    value = body.get(key) if isinstance(body, dict) else None
    if not isinstance(value, types) or isinstance(value, bool):
        names = " or ".join(kind.__name__ for kind in types)
        raise DataError(f'"{key}" is missing or of the wrong type.', where=where, value=value, allowed=names)
    return value


def _with_local_id_map(record: Record, path: str | Path) -> Record:
    """Return the record with its id map's path taken from the record file's folder, which it must not leave."""
    if isinstance(record.id_map, str):
        record.id_map = str(resolve_under(Path(path).parent, record.id_map))
    return record


def _check_values(region: Region, where: str) -> None:
    """Refuse what would turn into a wrong figure silently."""
    score: Any = region.score
    if score is not None and (not isinstance(score, (int, float)) or not math.isfinite(score)):
        raise DataError("A score is not a finite number.", where=where, value=score)
    if isinstance(region.captions, str) or not all(isinstance(text, str) for text in region.captions):
        raise DataError("Captions are not text.", where=where, value=region.captions)
