"""locap's own record files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ...utils.files import atomic_path
from ..readers.record_file import lines_of
from ..records import Category, Record, write_records
from .holds import OF_RECORD, OF_REGION, Holds
from .naming import Naming

HOLDS = Holds(record=frozenset(OF_RECORD), region=frozenset(OF_REGION) - {"logits"})


def write(path: Path, records: Iterable[Record], categories: Sequence[Category], naming: Naming) -> Path:
    """Write one JSON object."""
    return write_records(path, list(_named(records, naming)), categories)


def write_lines(path: Path, records: Iterable[Record], categories: Sequence[Category], naming: Naming) -> Path:
    """Write a line per record, after one with the categories; only one record is in memory."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for body in lines_of(_named(records, naming), categories):
            file.write(json.dumps(body, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def _named(records: Iterable[Record], naming: Naming) -> Iterator[Record]:
    return (replace(record, image=naming.image(record)) for record in records)
