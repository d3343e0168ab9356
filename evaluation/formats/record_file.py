"""locap's own record file (`locap.datasets.records`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...datasets.records import FORMAT, Record, records_from_json
from ...utils.untrusted import resolve_under, shown
from .form import PredictionForm, Truth, TruthForm, get


def recognises(document: Any) -> bool:
    """Return whether the document says so itself."""
    return _whole(document).get("format") == FORMAT


def _whole(document: Any) -> dict[str, Any]:
    """Return one object of JSON lines, the first of which says what the others are; other documents as they are."""
    if isinstance(document, list) and document and isinstance(document[0], dict) and "format" in document[0]:
        return {**document[0], "records": document[1:]}
    return document if isinstance(document, dict) else {}


def read_truth(path: Path, document: Any, folder: Path | None) -> Truth:
    """Read ground truth; paths of id maps and soft masks are taken from the folder, by default the file's."""
    records, categories, _ = records_from_json(_whole(document), where=shown(path))
    for record in records:
        _resolve_files(record, folder or path.parent)
    return records, categories


def read_predictions(path: Path, document: Any, truth: list[Record], folder: Path | None) -> list[Record]:
    """Read predictions."""
    return read_truth(path, document, folder)[0]


def read_meta(path: Path, document: Any) -> dict[str, Any]:
    """Return what was written beside the records: ``decoding`` (an object) and ``seed`` are looked at."""
    meta, where = _whole(document).get("meta", {}), f"{shown(path)}: meta"
    for name, kind in (("decoding", dict), ("seed", int)):
        if meta.get(name) is not None:
            get(meta, name, (kind,), where)
    return meta


def _resolve_files(record: Record, folder: Path) -> None:
    """Look up the record's files in the folder, which they must not leave."""
    if isinstance(record.id_map, str):
        record.id_map = str(resolve_under(folder, record.id_map))
    for region in record.regions:
        if region.logits is not None:
            region.logits = {**region.logits, "file": str(resolve_under(folder, region.logits.get("file")))}


TRUTH = TruthForm("a record file of locap", recognises, read_truth)
PREDICTIONS = PredictionForm("a record file of locap", recognises, read_predictions, read_meta)
