"""Localized Narratives: JSON lines of ``{"dataset_id", "image_id", "caption", "timed_caption", "traces"}``.

Coordinates are fractions of the image's sides; predictions are lines of the same layout. The lines hold no sizes, so
ground truth needs the folder of the images: ``<image_id, 12 digits>.jpg`` for COCO, else ``<image_id>.jpg``, there or
in a folder named like the part of ``dataset_id`` after ``mscoco_``. Ids of digits become numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...datasets.records import Narrative, Record, TimedWord
from ...utils.errors import DataError
from ...utils.untrusted import read_image_size, resolve_under, shown
from ..results import ImageId, first_ids
from .form import PredictionForm, Truth, TruthForm, first_item, get, objects

Sizes = dict[ImageId, tuple[int, int]]


def recognises(document: Any) -> bool:
    """Return whether the lines have utterances with times and a pointer's path."""
    return isinstance(document, list) and {"timed_caption", "traces"} <= first_item(document).keys()


def read_truth(path: Path, document: Any, folder: Path | None) -> Truth:
    """Read all narratives, joined by image; sizes are those of the images in the folder.

    Raises:
        DataError: a field is missing or wrong, no folder is given, or an image is not in it.
    """
    if folder is None:
        raise DataError(
            "Localized Narratives do not say how large their images are.",
            where=shown(path),
            fix="name the folder of the images: --ground-truth-folder",
        )
    lines = objects(document, shown(path))
    sizes = {_image_id(body, where): _size(folder, body, where) for body, where in lines}
    return _records(lines, sizes), []


def read_predictions(path: Path, document: Any, truth: list[Record], folder: Path | None) -> list[Record]:
    """Read predicted narratives; images without one get an empty record.

    Raises:
        DataError: a field is missing or wrong, or an image is not in the ground truth.
    """
    lines = objects(document, shown(path))
    sizes = {record.image_id: (record.height, record.width) for record in truth}
    unknown = {_image_id(body, where) for body, where in lines} - sizes.keys()
    if unknown:
        raise DataError(
            f"{len(unknown)} image(s) are not in the ground truth.", where=shown(path), value=first_ids([*unknown])
        )
    return _records(lines, sizes)


def _records(lines: list[tuple[dict[str, Any], str]], sizes: Sizes) -> list[Record]:
    records = {image_id: Record(image_id, *size) for image_id, size in sizes.items()}
    for body, where in lines:
        record = records[_image_id(body, where)]
        record.narratives += (_narrative(body, record, where),)
    return list(records.values())


def _narrative(body: dict[str, Any], record: Record, where: str) -> Narrative:
    number = (int, float)
    words = tuple(
        TimedWord(
            get(item, "utterance", (str,), place),
            float(get(item, "start_time", number, place)),
            float(get(item, "end_time", number, place)),
        )
        for item, place in objects(body, where, "timed_caption")
    )
    strokes = get(body, "traces", (list,), where)
    traces = tuple(
        tuple(
            (
                get(point, "x", number, place) * record.width,
                get(point, "y", number, place) * record.height,
                float(get(point, "t", number, place)),
            )
            for point, place in objects(stroke, f"{where}: traces[{i}]")
        )
        for i, stroke in enumerate(strokes)
    )
    return Narrative(get(body, "caption", (str,), where), words, traces)


def _image_id(body: dict[str, Any], where: str) -> ImageId:
    image_id = get(body, "image_id", (int, str), where)
    return int(image_id) if str(image_id).isdecimal() else image_id


def _size(folder: Path, body: dict[str, Any], where: str) -> tuple[int, int]:
    image_id = _image_id(body, where)
    name = f"{image_id:012d}.jpg" if isinstance(image_id, int) else f"{image_id}.jpg"
    split = str(body.get("dataset_id", "")).removeprefix("mscoco_")
    candidates = [resolve_under(folder, name), *([resolve_under(folder, f"{split}/{name}")] if split else [])]
    return read_image_size(next((path for path in candidates if path.is_file()), candidates[0]))


TRUTH = TruthForm("Localized Narratives, with the folder of their images", recognises, read_truth)
PREDICTIONS = PredictionForm("narratives in the layout of Localized Narratives", recognises, read_predictions)
