"""ViP-Bench as released, and answers to it.

Ground truth: ``vip-bench-meta-data.json``, ``{"v1_0": {"image", "question", "answer", "capability": […]}}``, with the
folder of a split (``bbox`` or ``human``; default: ``bbox`` beside the file), whose ``questions.jsonl`` holds
``question_id`` and ``text`` and whose ``images/`` holds the pictures. Questions without metadata are left out. Every
item becomes a record of its own, its image id ``v1_<number>``; a picture that is not there leaves its size 0 x 0.

Predictions: ``{"v1_<number>": "answer"}``, or JSON lines with ``question_id``, ``text`` and ``prompt`` or
``answer_id``. An unanswered item is an error.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...datasets.records import Record, Region
from ...utils.errors import DataError
from ...utils.untrusted import read_image_size, read_json_lines, resolve_under, shown
from .form import PredictionForm, Truth, TruthForm, answers_to_records, first_item, get

SPLITS = ("bbox", "human")
QUESTIONS = "questions.jsonl"
_KEY = re.compile(r"v1_(0|[1-9]\d{0,8})", re.ASCII)


def recognises_truth(document: Any) -> bool:
    """Return whether the first item has an answer and capabilities."""
    first = next(iter(document.values()), None) if isinstance(document, dict) else None
    return isinstance(first, dict) and {"answer", "capability"} <= first.keys()


def recognises_predictions(document: Any) -> bool:
    """Return whether the first item is an answer."""
    if isinstance(document, dict):
        return bool(_KEY.fullmatch(next(iter(document), ""))) and isinstance(next(iter(document.values())), str)
    keys = first_item(document).keys()
    return {"question_id", "text"} <= keys and bool({"prompt", "answer_id"} & keys)


def read_truth(path: Path, document: Any, folder: Path | None) -> Truth:
    """Read the metadata and the split's questions.

    Raises:
        DataError: the folder is of no split, a field is missing or of the wrong type, or an item has no question.
    """
    folder = path.parent / SPLITS[0] if folder is None else folder
    split = folder.resolve().name
    if split not in SPLITS:
        raise DataError("The folder is of no split.", where=shown(folder), value=split, allowed=" or ".join(SPLITS))
    if not isinstance(document, dict):
        raise DataError("The file holds no items.", where=shown(path), allowed='{"v1_0": {…}, …}')
    file = folder / QUESTIONS
    questions = _texts(read_json_lines(file), shown(file))
    numbers = {_number(key, shown(path)): key for key in document}
    missing = [key for number, key in numbers.items() if number not in questions]
    if missing:
        raise DataError(f"{len(missing)} item(s) have no question.", where=shown(file), value=missing[:5])
    return [
        _record(number, document[key], questions[number], folder, f"{shown(path)}: {key}")
        for number, key in numbers.items()
    ], []


def read_predictions(path: Path, document: Any, truth: list[Record], folder: Path | None) -> list[Record]:
    """Read answers in either form.

    Raises:
        DataError: an answer is of no item, given twice or no text.
    """
    if isinstance(document, dict):
        place = shown(path)
        answers = {_number(key, place): get(document, key, (str,), f"{place}: {key}") for key in document}
    else:
        answers = _texts(document, shown(path))
    return answers_to_records(answers, truth, shown(path))


def _record(number: int, body: Any, question: str, folder: Path, where: str) -> Record:
    capabilities = get(body, "capability", (list,), where)
    if not capabilities or not all(isinstance(name, str) and name and "," not in name for name in capabilities):
        raise DataError('"capability" is no list of names.', where=where, value=capabilities)
    answer = get(body, "answer", (str,), where)
    if not re.sub("<AND>|<OR>", "", answer).strip():
        raise DataError("The reference is empty.", where=where, value=answer)
    image = resolve_under(folder / "images", get(body, "image", (str,), where))
    height, width = read_image_size(image) if image.exists() else (0, 0)
    attributes = {
        "capability": ",".join(capabilities),
        "split": folder.resolve().name,
        "object_question": get(body, "question", (str,), where),
    }
    region = Region(id=number, expressions=(question,), captions=(answer,), attributes=attributes)
    return Record(f"v1_{number}", height, width, str(image) if height else None, [region])


def _texts(lines: Any, place: str) -> dict[int, str]:
    """Return the ``text`` of each ``question_id``."""
    texts: dict[int, str] = {}
    for index, line in enumerate(lines if isinstance(lines, list) else ()):
        where = f"{place}: item {index}"
        number = _number(get(line, "question_id", (int, str), where), where)
        if number in texts:
            raise DataError("A question occurs twice.", where=where, value=f"v1_{number}")
        texts[number] = get(line, "text", (str,), where)
    return texts


def _number(key: int | str, where: str) -> int:
    """Return the number of an item named 7, "7" or "v1_7"."""
    found = _KEY.fullmatch(key if str(key).startswith("v1_") else f"v1_{key}")
    if found is None:
        raise DataError("Not the name of an item.", where=where, value=key, allowed="v1_<number>")
    return int(found[1])


TRUTH = TruthForm("ViP-Bench metadata", recognises_truth, read_truth)
PREDICTIONS = PredictionForm("answers to ViP-Bench", recognises_predictions, read_predictions)
