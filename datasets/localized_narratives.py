"""The published layout of Localized Narratives: what training and scoring both read.

A line is ``{"dataset_id", "image_id", "caption", "timed_caption", "traces"}``; coordinates are fractions of the image's
sides and may lie slightly outside. It holds no size of the image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..utils.untrusted import each_object, get, resolve_under
from .records import Narrative, TimedWord


def image_id_of(body: Any, where: str) -> int | str:
    """Return the id of a line's image; one of digits is a number."""
    image_id = get(body, "image_id", (int, str), where)
    return int(image_id) if str(image_id).isdecimal() else image_id


def image_names(body: Any, where: str) -> tuple[str, ...]:
    """Return the paths a line's image may have below the folder: ``<id, 12 digits>.jpg`` for COCO, else ``<id>.jpg``,
    there or in a folder named like the part of ``dataset_id`` after ``mscoco_``."""
    image_id = image_id_of(body, where)
    name = f"{image_id:012d}.jpg" if isinstance(image_id, int) else f"{image_id}.jpg"
    split = str(body.get("dataset_id", "")).removeprefix("mscoco_")
    return (name, f"{split}/{name}") if split else (name,)


def find_image(folder: Path, body: Any, where: str) -> Path:
    """Return the path of a line's image; the first possible one if none exists."""
    candidates = [resolve_under(folder, name) for name in image_names(body, where)]
    return next((path for path in candidates if path.is_file()), candidates[0])


def read_narrative(body: Any, height: int, width: int, where: str) -> Narrative:
    """Return a line's narrative, in pixels of an image of the given size.

    Raises:
        DataError: a field is missing or wrong; the message names the place.
    """
    number = (int, float)
    words = tuple(
        TimedWord(
            get(item, "utterance", (str,), place),
            float(get(item, "start_time", number, place)),
            float(get(item, "end_time", number, place)),
        )
        for item, place in each_object(body, where, "timed_caption")
    )
    traces = tuple(
        tuple(
            (
                get(point, "x", number, place) * width,
                get(point, "y", number, place) * height,
                float(get(point, "t", number, place)),
            )
            for point, place in each_object(stroke, f"{where}: traces[{i}]")
        )
        for i, stroke in enumerate(get(body, "traces", (list,), where))
    )
    return Narrative(get(body, "caption", (str,), where), words, traces)
