"""Localized Narratives: JSON lines of ``{"dataset_id", "image_id", "caption", "timed_caption", "traces"}``.

Coordinates are fractions of the image's sides; predictions are lines of the same layout. The lines hold no sizes, so
ground truth needs the folder of the images: ``<image_id, 12 digits>.jpg`` for COCO, else ``<image_id>.jpg``, there or
in a folder named like the part of ``dataset_id`` after ``mscoco_``. Ids of digits become numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...datasets.localized_narratives import find_image, image_id_of, read_narrative
from ...datasets.records import Record
from ...utils.errors import DataError
from ...utils.untrusted import read_image_size, shown
from ..results import ImageId, first_ids
from .form import PredictionForm, Truth, TruthForm, first_item, objects

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
    sizes = {image_id_of(body, where): read_image_size(find_image(folder, body, where)) for body, where in lines}
    return _records(lines, sizes), []


def read_predictions(path: Path, document: Any, truth: list[Record], folder: Path | None) -> list[Record]:
    """Read predicted narratives; images without one get an empty record.

    Raises:
        DataError: a field is missing or wrong, or an image is not in the ground truth.
    """
    lines = objects(document, shown(path))
    sizes = {record.image_id: (record.height, record.width) for record in truth}
    unknown = {image_id_of(body, where) for body, where in lines} - sizes.keys()
    if unknown:
        raise DataError(
            f"{len(unknown)} image(s) are not in the ground truth.", where=shown(path), value=first_ids([*unknown])
        )
    return _records(lines, sizes)


def _records(lines: list[tuple[dict[str, Any], str]], sizes: Sizes) -> list[Record]:
    records = {image_id: Record(image_id, *size) for image_id, size in sizes.items()}
    for body, where in lines:
        record = records[image_id_of(body, where)]
        record.narratives += (read_narrative(body, record.height, record.width, where),)
    return list(records.values())


TRUTH = TruthForm("Localized Narratives, with the folder of their images", recognises, read_truth)
PREDICTIONS = PredictionForm("narratives in the layout of Localized Narratives", recognises, read_predictions)
