"""Masks that answer expressions, each beside its target: one file is both ground truth and predictions.

A list of ``{"image_id", "height", "width", "expressions": [{"sentence", "prediction", "target", "ignore"}, …]}``; the
masks are run-length encodings, ``ignore`` (pixels without a verdict) and ``prediction`` (none was given) may be null,
``sentence`` may be left out. An expression's id is its place in the image, from 1; an image may name its
``dataset_name`` and ``split``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...datasets.records import Record, Region, Rle
from ...utils.untrusted import shown
from .form import PredictionForm, Truth, TruthForm, first_item, get, objects
from .refcoco import read_size, split_of


def recognises(document: Any) -> bool:
    """Return whether the items list expressions with masks."""
    item = first_item(document)
    found = item.get("expressions") == [] or {"prediction", "target"} & first_item(item, "expressions").keys()
    return "image_id" in item and bool(found)


def read_truth(path: Path, document: Any, folder: Path | None) -> Truth:
    """Read the targets."""
    records = []
    for record, item, expressions in _images(path, document):
        record.regions = [
            Region(
                i,
                mask=_mask(body, "target", where),
                ignore=_mask(body, "ignore", where) if body.get("ignore") is not None else None,
                expressions=(get(body, "sentence", (str,), where),) if body.get("sentence") is not None else (),
                attributes=split_of(item),
            )
            for i, (body, where) in enumerate(expressions, start=1)
        ]
        records.append(record)
    return records, []


def read_predictions(path: Path, document: Any, truth: list[Record], folder: Path | None) -> list[Record]:
    """Read the predictions."""
    records = []
    for record, _, expressions in _images(path, document):
        record.regions = [
            Region(i, mask=_mask(body, "prediction", where))
            for i, (body, where) in enumerate(expressions, start=1)
            if body.get("prediction") is not None
        ]
        records.append(record)
    return records


def _images(path: Path, document: Any) -> list[tuple[Record, dict[str, Any], list[tuple[Any, str]]]]:
    """Return each image's empty record, its item, and its expressions with their places."""
    return [
        (read_size(item, where, ("image_id",)), item, objects(item, where, "expressions"))
        for item, where in objects(document, shown(path))
    ]


def _mask(body: Any, key: str, where: str) -> Rle:
    return get(body, key, (dict,), where)


TRUTH = TruthForm("expressions with target masks", recognises, read_truth)
PREDICTIONS = PredictionForm("expressions with predicted masks", recognises, read_predictions)
