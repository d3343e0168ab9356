"""DLC-Bench as released, and descriptions for it.

Ground truth: ``qa.json``, ``{id: [{"question", "choices": [[text, score], …], "type": "positive" | "negative"}]}``; in
its folder (or the one given) ``class_names.json``, ``{id: name}``, and, for a judge that sees the region, COCO's
``annotations.json``, whose annotation ids are those of ``qa.json``, with the images in ``images`` there or one folder
up. Ids are whole numbers, written as text in JSON. Every region becomes a record of its own, its image id the region's
id; without ``annotations.json`` it has neither image nor mask and its size is 0 x 0. Questions of the type
``recognition`` are left out: the protocol asks its own.

Predictions: ``{id: "description"}``. A region without one is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...datasets.records import Question, Record, Region, encode_mask
from ...utils.errors import DataError
from ...utils.untrusted import decode_rle, polygons_to_mask, read_json, resolve_under, shown
from .form import PredictionForm, Truth, TruthForm, answers_to_records, get

_ID = re.compile(r"0|[1-9]\d{0,17}", re.ASCII)


def recognises_truth(document: Any) -> bool:
    """Return whether the first item lists questions with choices."""
    first = next(iter(document.values()), None) if isinstance(document, dict) else None
    return isinstance(first, list) and bool(first) and isinstance(first[0], dict) and "choices" in first[0]


def recognises_predictions(document: Any) -> bool:
    """Return whether the first item is a text under a number."""
    if not isinstance(document, dict) or not document:
        return False
    return bool(_ID.fullmatch(next(iter(document)))) and isinstance(next(iter(document.values())), str)


def read_truth(path: Path, document: Any, folder: Path | None) -> Truth:
    """Read questions and classes, and image and mask where there are annotations.

    Raises:
        DataError: a field is missing or of the wrong type, or a region lacks its class or annotation.
    """
    folder = folder or path.parent
    names = read_json(folder / "class_names.json")
    if not isinstance(document, dict) or not isinstance(names, dict):
        raise DataError("Questions and class names are objects by region id.", where=shown(path))
    pictures = _pictures(folder / "annotations.json", folder)
    records = []
    for key in document:
        where = f"{shown(path)}: {key}"
        region = Region(
            id=_number(key, where),
            phrases=(get(names, key, (str,), f"{shown(folder / 'class_names.json')}: {key}"),),
            questions=_questions(get(document, key, (list,), where), where),
        )
        height, width, image = 0, 0, None
        if pictures is not None:
            height, width, image, region.mask = _picture(pictures, region.id, shown(folder / "annotations.json"))
        records.append(Record(region.id, height, width, image, [region]))
    return records, []


def read_predictions(path: Path, document: Any, truth: list[Record], folder: Path | None) -> list[Record]:
    """Read descriptions.

    Raises:
        DataError: a description is of no region, or no text.
    """
    if not isinstance(document, dict):
        raise DataError("The file holds no descriptions.", where=shown(path), allowed='{"region id": "description"}')
    place = shown(path)
    texts = {_number(key, place): get(document, key, (str,), f"{place}: {key}") for key in document}
    return answers_to_records(texts, truth, place)


def _questions(bodies: list[Any], where: str) -> tuple[Question, ...]:
    questions = []
    for index, body in enumerate(bodies):
        place = f"{where}[{index}]"
        kind = get(body, "type", (str,), place)
        if kind != "recognition":
            choices = tuple(_choice(choice, place) for choice in get(body, "choices", (list,), place))
            questions.append(Question(get(body, "question", (str,), place), choices, kind))
    return tuple(questions)


def _choice(choice: Any, where: str) -> tuple[str, float]:
    text, score = choice if isinstance(choice, list) and len(choice) == 2 else (None, None)
    if not isinstance(text, str) or not isinstance(score, (int, float)) or isinstance(score, bool):
        raise DataError("A choice is not [text, score].", where=where, value=choice)
    return text, float(score)


def _pictures(path: Path, folder: Path) -> dict[int, tuple[Any, Any, Path]] | None:
    """Return annotation id -> (annotation, its image's entry, folder of images); None where there is no file."""
    if not path.exists():
        return None
    document = read_json(path)
    inside = folder / "images"
    images_folder = inside if inside.is_dir() else folder.parent / "images"
    lists = [get(document, name, (list,), shown(path)) for name in ("images", "annotations")]
    by_id = [{get(body, "id", (int,), shown(path)): body for body in bodies} for bodies in lists]
    images, annotations = by_id
    return {
        number: (body, images.get(get(body, "image_id", (int,), shown(path))), images_folder)
        for number, body in annotations.items()
    }


def _picture(pictures: Mapping[int, Any], number: int, where: str) -> tuple[int, int, str, Any]:
    """Return height, width, path and mask of a region."""
    annotation, image, folder = pictures.get(number) or (None, None, None)
    if image is None:
        raise DataError("A region has no annotation, or that has no image.", where=where, value=number)
    place = f"{where}: annotation {number}"
    height, width = (get(image, side, (int,), place) for side in ("height", "width"))
    segmentation = get(annotation, "segmentation", (list, dict), place)
    try:
        polygons = isinstance(segmentation, list)
        mask = polygons_to_mask(segmentation, height, width) if polygons else decode_rle(segmentation)
    except DataError as err:
        raise DataError(err.what, where=place, value=err.value, allowed=err.allowed) from None
    if mask.shape != (height, width):
        raise DataError("The mask has another size than its image.", where=place, value=mask.shape)
    path = resolve_under(folder, get(image, "file_name", (str,), place))
    return height, width, str(path), encode_mask(mask)


def _number(key: str, where: str) -> int:
    if not _ID.fullmatch(key):
        raise DataError("Not the id of a region.", where=where, value=key, allowed="a whole number")
    return int(key)


TRUTH = TruthForm("DLC-Bench questions (qa.json)", recognises_truth, read_truth)
PREDICTIONS = PredictionForm("descriptions by region id", recognises_predictions, read_predictions)
