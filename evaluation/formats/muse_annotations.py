"""The published files of MUSE: ``muse_val.json``, ``muse_test_less.json``, ``muse_test_many.json``.

A list of ``{"id", "height", "width", "questions": [text, …], "answers": [[target, …], …], "text_answers"}``; targets
have ``category_name``, usually ``rephrased_name``, ``bbox`` xywh and ``segmentation``. A target's phrase is
"(name [x0, y0, x1, y1])". Where polygons of a target overlap, each pixel counts once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...datasets.coco_geometry import read_box_xywh
from ...datasets.records import Record, Region, Turn
from ...utils.errors import DataError
from ...utils.untrusted import shown
from .form import Truth, TruthForm, first_item, get, objects
from .refcoco import read_object, read_size


def recognises(document: Any) -> bool:
    """Return whether the items are images with questions and lists of answers."""
    return first_item(document).keys() >= {"questions", "answers", "height"}


def read_truth(path: Path, document: Any, folder: Path | None) -> Truth:
    """Read ground truth, a conversation per question."""
    return [_record(item, where) for item, where in objects(document, shown(path))], []


def _record(item: dict[str, Any], where: str) -> Record:
    record = read_size(item, where)
    questions, answers = (get(item, key, (list,), where) for key in ("questions", "answers"))
    texts = item.get("text_answers") or [None] * len(questions)
    if not len(questions) == len(answers) == len(texts):
        raise DataError("Questions and answers differ in number.", where=where, value=(len(questions), len(answers)))
    for i, text in enumerate(texts):
        question = get({"questions": questions[i]}, "questions", (str,), where)
        found = [
            _target(body, record, place, len(record.regions) + k)
            for k, (body, place) in enumerate(objects(answers[i], f"{where}.answers[{i}]"), start=1)
        ]
        record.regions += found
        ids = tuple(region.id for region in found)
        record.conversations += ((Turn("user", question), Turn("assistant", text or "", ids)),)
    return record


def _target(body: dict[str, Any], record: Record, where: str, region_id: int) -> Region:
    name = get(body, "rephrased_name" if body.get("rephrased_name") else "category_name", (str,), where)
    box = read_box_xywh(body.get("bbox"), where)
    return Region(region_id, phrases=(f"({name} {list(box)})",), **read_object(body, record, where))


TRUTH = TruthForm("published annotations of MUSE", recognises, read_truth)
