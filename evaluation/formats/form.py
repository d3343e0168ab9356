"""What a form of files is, and the helpers all forms share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ...datasets.records import Category, Record, Region
from ...utils.errors import DataError
from ...utils.untrusted.fields import get, objects

__all__ = ["PredictionForm", "Truth", "TruthForm", "answers_to_records", "first_item", "get", "objects"]

Truth: TypeAlias = tuple[list[Record], list[Category]]


@dataclass(frozen=True, slots=True)
class TruthForm:
    """A form in which ground truth is stored.

    Attributes:
        what: the form in a few words, for messages.
        recognises: whether a parsed document is of this form; looks at a few keys only.
        read: (path, document, folder or None) -> records and categories; the folder holds files the document names.
    """

    what: str
    recognises: Callable[[Any], bool]
    read: Callable[[Path, Any, Path | None], Truth]


@dataclass(frozen=True, slots=True)
class PredictionForm:
    """A form in which predictions are stored.

    Attributes:
        what, recognises: as in `TruthForm`.
        read: (path, document, ground truth, folder or None) -> one record for every image with predictions. A form
            that lists results rather than images adds an empty record for every image of the ground truth it lacks.
        read_meta: (path, document) -> what the file says about how the predictions were made; most forms say nothing.
    """

    what: str
    recognises: Callable[[Any], bool]
    read: Callable[[Path, Any, list[Record], Path | None], list[Record]]
    read_meta: Callable[[Path, Any], dict[str, Any]] = lambda path, document: {}


def first_item(document: Any, key: str | None = None) -> dict[str, Any]:
    """Return the first object of a list, or of the list under ``key``; {} where there is none."""
    items = document.get(key) if key is not None and isinstance(document, dict) else document
    return items[0] if isinstance(items, list) and items and isinstance(items[0], dict) else {}


def answers_to_records(answers: Mapping[int, str], truth: list[Record], where: str) -> list[Record]:
    """Return predictions from one text per region id, for ground truth whose ids are unique over all images.

    Raises:
        DataError: an id is of no region of the ground truth.
    """
    known = {region.id for record in truth for region in record.regions}
    unknown = sorted(answers.keys() - known)
    if unknown:
        raise DataError(
            f"{len(unknown)} prediction(s) are of no region of the ground truth.", where=where, value=unknown[:5]
        )
    records = []
    for record in truth:
        given = [Region(id=r.id, captions=(answers[r.id],)) for r in record.regions if r.id in answers]
        if given or not record.regions:
            records.append(Record(record.image_id, record.height, record.width, regions=given))
    return records
