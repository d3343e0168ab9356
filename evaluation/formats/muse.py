"""Answers to questions of MUSE with soft masks, each beside its targets: one file is both ground truth and predictions.

A list of ``{"image", "height", "width", "questions": [{"question", "targets": [{"name_and_box", "mask"}, …],
"predictions", "generated_text"}, …]}``. ``predictions`` is a list of run-length encodings, or how many of the image's
soft masks are the question's: these are stacked from top to bottom, in the order of the questions, in an 8-bit grey PNG
(logit = (value - 128) / 8) that is called as the image and lies in the folder ``logits`` beside the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...datasets.records import Record, Region, Turn
from ...utils.errors import DataError
from ...utils.untrusted import resolve_under, shown
from .form import PredictionForm, Truth, TruthForm, first_item, get, objects
from .refcoco import read_size


def recognises(document: Any) -> bool:
    """Return whether the items are images with questions."""
    return first_item(document).keys() >= {"image", "questions"}


def read_truth(path: Path, document: Any, folder: Path | None) -> Truth:
    """Read the questions and their targets."""
    records = []
    for record, _, questions in _images(path, document):
        for body, where in questions:
            found = [_target(target, place) for target, place in objects(body, where, "targets")]
            _add_question(record, get(body, "question", (str,), where), "", found)
        records.append(record)
    return records, []


def read_predictions(path: Path, document: Any, truth: list[Record], folder: Path | None) -> list[Record]:
    """Read the answers; the folder is that of the soft masks."""
    folder = folder if folder is not None else path.parent / "logits"
    records = []
    for record, item, questions in _images(path, document):
        soft = sum(body["predictions"] for body, _ in questions if type(body.get("predictions")) is int)
        file = str(resolve_under(folder, item["image"])) if soft else ""
        stack = ({"file": file, "index": i, "count": soft} for i in range(soft))
        for body, where in questions:
            text = get(body, "generated_text", (str,), where) if "generated_text" in body else ""
            _add_question(record, get(body, "question", (str,), where), text, _predicted(body, stack, where))
        records.append(record)
    return records


def _images(path: Path, document: Any) -> list[tuple[Record, dict[str, Any], list[tuple[dict[str, Any], str]]]]:
    """Return each image's empty record, its item, and its questions with their places."""
    return [
        (read_size(item, where, ("image",)), item, objects(item, where, "questions"))
        for item, where in objects(document, shown(path))
    ]


def _add_question(record: Record, question: str, answer: str, regions: list[Region]) -> None:
    """Add a question; its regions get the next ids of the image, from 1."""
    first = len(record.regions) + 1
    for region_id, region in enumerate(regions, start=first):
        region.id = region_id
    record.regions += regions
    ids = tuple(range(first, first + len(regions)))
    record.conversations += ((Turn("user", question), Turn("assistant", answer, ids)),)


def _target(body: dict[str, Any], where: str) -> Region:
    return Region(phrases=(get(body, "name_and_box", (str,), where),), mask=get(body, "mask", (dict,), where))


def _predicted(body: dict[str, Any], stack: Iterator[dict[str, Any]], where: str) -> list[Region]:
    """Return the predicted masks of a question; soft ones are the next of the image's stack."""
    predictions = get(body, "predictions", (int, list), where)
    if isinstance(predictions, list):
        return [Region(mask=mask) for mask, _ in objects(body, where, "predictions")]
    if predictions < 0:
        raise DataError("A question has a negative number of masks.", where=where, value=predictions)
    return [Region(logits=next(stack)) for _ in range(predictions)]


TRUTH = TruthForm("questions of MUSE with targets", recognises, read_truth)
PREDICTIONS = PredictionForm("answers to MUSE with soft masks", recognises, read_predictions)
