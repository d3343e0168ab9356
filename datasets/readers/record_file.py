"""locap's own record files: one JSON object (`write_records`), or JSON lines with one record per line.

The first of the lines may be ``{"format": "locap-records/1", "categories": [...], "meta": {...}}``. Lines are read when
they are asked for, so a file may be larger than the memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.errors import DataError
from ...utils.untrusted import iterate_json_lines, parse_json, read_json, resolve_under, shown
from ..records import FORMAT, Category, Record, record_from_json, record_to_json, records_from_json
from .coco_instances import find_image
from .packed import OBJECT, OWN_FIX, ImageFinder, PackedReader

Folders = str | Path | Sequence[str | Path]


class _Records:
    """What both forms share: images and id maps are looked up, categories must be named.

    Attributes:
        unmasked: (image id, region id) of regions without a mask.
    """

    def _prepare(self, file: Path, images: Folders) -> None:
        self.annotations, self._file = file, shown(file)
        self._images = ImageFinder(images, self._file, OWN_FIX)
        self.image_folders = self._images.folders
        self.unmasked: list[tuple[int | str, int]] = []
        self._seen: set[int | str] = set()

    def _check(self, record: Record, known: set[int], where: str) -> str:
        """Return what `ImageFinder.path` needs of a record's image."""
        if record.image_id in self._seen:
            raise DataError("Two records have the same image_id.", where=where, value=record.image_id)
        self._seen.add(record.image_id)
        if record.image is None:
            raise DataError("The record has no image.", where=where, allowed='"image": a path relative to this file')
        for region in record.regions:
            if region.category_id not in (None, *known):
                place = f"{where}, region {region.id}"
                fix = "list it in the categories of the file"
                raise DataError("A region has an unknown category.", where=place, value=region.category_id, fix=fix)
            if region.mask is None and record.id_map is None and not region.is_crowd:
                self.unmasked.append((record.image_id, region.id))
        if any(region.logits is not None for region in record.regions):
            raise DataError("A record names files for soft masks.", where=where, allowed="masks")
        return find_image(self._images, record.image, where)

    def _resolved(self, record: Record, found: str) -> Record:
        record.image = self._images.path(found)
        if isinstance(record.id_map, str):
            record.id_map = str(resolve_under(self.annotations.parent, record.id_map))
        return record


class RecordFileReader(_Records, PackedReader):
    """Records of a record file.

    Args:
        annotations: the JSON file.
        images: folder or folders that the images' paths are relative to; id maps lie relative to the file.
        document: its content, when it is parsed already.

    Attributes:
        categories: those of the file; `OBJECT` where it has none.
    """

    def __init__(self, annotations: str | Path, images: Folders, document: Any = None) -> None:
        self._prepare(Path(annotations), images)
        document = read_json(annotations) if document is None else document
        records, categories, _ = records_from_json(document, where=self._file)
        self.categories = tuple(categories) or (OBJECT,)
        PackedReader.__init__(self, self._entries(records), self._file)
        self._images.require_found()

    def _entries(self, records: Sequence[Record]) -> Iterator[dict[str, Any]]:
        known = {category.id for category in self.categories}
        for index, record in enumerate(records):
            where = f"{self._file}: records[{index}] (image_id {record.image_id})"
            yield {"record": record_to_json(record), "image": self._check(record, known, where)}

    def _record(self, entry: dict[str, Any]) -> Record:
        return self._resolved(record_from_json(entry["record"], where=self._file), entry["image"])


class RecordLinesReader(_Records):
    """Records of JSON lines; of each line its place in the file is kept, and where its image is.

    Args:
        annotations: the file.
        images: as `RecordFileReader`.

    Attributes:
        categories: those of the first line; `OBJECT` where it has none.
    """

    def __init__(self, annotations: str | Path, images: Folders) -> None:
        self._prepare(Path(annotations), images)
        self.categories: tuple[Category, ...] = (OBJECT,)
        offsets, found = [], []
        for body, offset, number in iterate_json_lines(annotations):
            where = f"{self._file}: line {number}"
            if isinstance(body, dict) and "format" in body:
                self.categories = self._header(body, number, where)
                continue
            record = _parsed(body, where)
            offsets.append(offset)
            known = {category.id for category in self.categories}
            found.append(self._check(record, known, f"{where} (image_id {record.image_id})"))
        if not offsets:
            raise DataError("No image is left to read.", where=self._file)
        self._images.require_found()
        self._offsets, self._found = np.array(offsets), np.array(found, np.bytes_)

    def _header(self, body: dict[str, Any], number: int, where: str) -> tuple[Category, ...]:
        if number > 1:
            raise DataError("Only the first line may describe the file.", where=where, value=body["format"])
        return tuple(records_from_json({**body, "records": []}, where=where)[1]) or (OBJECT,)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Record:
        """Return one record; its image is a path.

        Raises:
            DataError: the file has been changed.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        with self.annotations.open("rb") as file:
            file.seek(self._offsets[index])
            line = file.readline()
        where = f"{self._file}: record {index % len(self)}"
        return self._resolved(_parsed(parse_json(line, where), where), self._found[index].decode())


def _parsed(body: Any, where: str) -> Record:
    if not isinstance(body, dict):
        raise DataError("A line is not a record.", where=where, value=body, allowed="a JSON object")
    return record_from_json(body, where=where)


def header(categories: Sequence[Category], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first line of a file of record lines."""
    listed = [{"id": c.id, "name": c.name, "is_thing": c.is_thing, "color": c.color} for c in categories]
    return {"format": FORMAT, "categories": listed, "meta": dict(meta)}


def lines_of(records: Iterable[Record], categories: Sequence[Category]) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of record lines, the header first."""
    yield header(categories, {})
    names = {category.id: category.name for category in categories}
    yield from (record_to_json(record, names) for record in records)
