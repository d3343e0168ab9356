"""Are the files of a data set there, all of them, and do they fit together?

Without ``deep`` every annotation file is parsed and checked by its reader, which also looks for every image it names.
``deep`` opens the header of every image, compares its size with the record, decodes every panoptic PNG and compares
its segments, and compares checksums where there is a list of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.errors import DataError, LocapError
from ...utils.untrusted import iterate_json_lines, read_id_map, read_image_size, read_json
from ..readers import DATASETS, TEXT_DATASETS, open_dataset
from ..readers.own_files import place_of
from ..records import Record
from .catalogue import CATALOGUE, Part
from .checksums import differing

OK, MISSING, COUNT, BROKEN = "ok", "missing", "wrong count", "broken"
_SHOWN = 3
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of a part of a set.

    Attributes:
        what: the named data set, or the file or folder.
        status: one of `OK`, `MISSING`, `COUNT`, `BROKEN`.
        found, expected: number of items; None where not counted, or not published.
        where: absolute path, or those tried.
        fix: what mends it.
    """

    what: str
    status: str
    found: int | None = None
    expected: int | None = None
    where: str = ""
    fix: str = ""


def is_present(owner: str, root: Path) -> tuple[int, int]:
    """Return how many of a set's files and folders are there, and how many there should be; nothing is opened."""
    described = CATALOGUE[owner]
    there = [_find(part, root) is not None for part in described.parts]
    there += [_annotations_of(name, root) is not None for name in described.records]
    return sum(there), len(there)


def verify(
    owner: str, names: Sequence[str] | None, root: Path, *, deep: bool = False, sums: dict[str, str] | None = None
) -> Iterator[Finding]:
    """Yield what is found of a set.

    Args:
        owner: key of `CATALOGUE`.
        names: named data sets of it; None looks at everything.
        root: folder of the data sets.
        deep: open every image.
        sums: path below the root -> sha256, for ``deep``.
    """
    described = CATALOGUE[owner]
    command = f"python entry.py data download {owner}"
    fixes = {MISSING: command, COUNT: f"move it away, then {command}", BROKEN: f"move it away, then {command}"}
    for part in described.parts if names is None else ():
        found = _verify_part(part, root, deep, sums or {})
        yield replace(found, fix=fixes.get(found.status, ""))
    for name in described.records if names is None else names:
        found = _verify_records(name, described.records[name], root, deep, sums or {})
        yield replace(found, fix=fixes.get(found.status, ""))


def _find(part: Part, root: Path) -> Path | None:
    tried = (base / path for path in part.paths for base in (root / "coco", root))
    return next((path for path in tried if path.exists()), None)


def _annotations_of(name: str, root: Path) -> Path | None:
    """Return the first annotation file of a layout that is completely there."""
    layouts = TEXT_DATASETS[name].files if name in TEXT_DATASETS else ((DATASETS[name].annotations,),)
    for base in (root / "coco", root):
        for layout in layouts:
            if all((base / file).is_file() for file in layout):
                return base / layout[0]
    return None


def _verify_part(part: Part, root: Path, deep: bool, sums: dict[str, str]) -> Finding:
    what, path = part.paths[0], _find(part, root)
    if path is None:
        tried = " or ".join(str((base / file).absolute()) for file in part.paths for base in (root / "coco", root))
        return Finding(what, MISSING, None, part.count, f"tried {tried}")
    try:
        found, files = _count(part.items, path)
    except LocapError as err:
        return Finding(what, BROKEN, None, part.count, _one_line(err))
    status = OK if part.count in (None, found) else COUNT
    result = Finding(what, status, found, part.count, str(path.absolute()))
    if not deep:
        return result
    problems = _unreadable(files) + _changed(root, sums, files)
    return replace(result, status=BROKEN, where=_listed(problems)) if problems else result


def _count(items: str, path: Path) -> tuple[int, list[Path]]:
    if items == "files":
        files = [Path(entry.path) for entry in os.scandir(path) if entry.is_file() and not entry.name.startswith(".")]
        return len(files), sorted(files)
    if items == "lines":
        return sum(1 for _ in iterate_json_lines(path)), [path]
    document = read_json(path)
    value = document if items in ("list", "entries") else document.get(items) if isinstance(document, dict) else None
    kind = dict if items == "entries" else list
    if not isinstance(value, kind):
        raise DataError("The file holds something else.", where=str(path), allowed=items)
    return len(value), [path]


def _verify_records(name: str, expected: int | None, root: Path, deep: bool, sums: dict[str, str]) -> Finding:
    try:
        reader = open_dataset(name, root)
    except DataError as err:
        status = MISSING if _annotations_of(name, root) is None else BROKEN
        return Finding(name, status, None, expected, _one_line(err))
    found = len(reader) + len(getattr(reader, "dropped_images", ()))
    status = OK if expected in (None, found) else COUNT
    result = Finding(name, status, found, expected, str(_annotations_of(name, root).absolute()))
    return _opened(result, reader, root, sums) if deep else result


def verify_file(
    name: str, given: str | Path | None, root: Path, *, deep: bool = False, sums: dict[str, str] | None = None
) -> Finding:
    """Return what is found of a file of one's own, or a folder of LabelMe's files.

    Args:
        name: its path.
        given: folder of the data sets as training would know it, see `open_file`.
        root, deep, sums: as `verify`; paths of ``sums`` are below ``root``.
    """
    place = place_of(name, given)
    try:
        reader = open_dataset(name, given)
    except DataError as err:
        return Finding(name, BROKEN if place.exists() else MISSING, where=_one_line(err), fix=err.fix or "")
    result = Finding(name, OK, len(reader), where=str(place.absolute()))
    return _opened(result, reader, root, sums or {}) if deep else result


def _opened(result: Finding, reader: Any, root: Path, sums: dict[str, str]) -> Finding:
    """Return a finding after every image and id map of its records was opened, and compared with its checksum."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        checked = list(pool.map(lambda i: _check_record(reader, i), range(len(reader))))
    problems = [problem for found, _ in checked for problem in found]
    files = dict.fromkeys(Path(file) for _, used in checked for file in used)
    problems += _changed(root, sums, files)
    return replace(result, status=BROKEN, where=_listed(problems)) if problems else result


def _check_record(reader: Any, index: int) -> tuple[list[str], list[str]]:
    """Return what is wrong with a record's files, and which they are."""
    try:
        record: Record = reader[index]
    except LocapError as err:
        return [_one_line(err)], []
    files = [file for file in (record.image, record.id_map) if isinstance(file, str)]
    checks: tuple[Callable[[Record], str | None], ...] = (_wrong_size, _wrong_segments)
    problems = []
    for check in checks:
        try:
            problems.append(check(record))
        except LocapError as err:
            problems.append(_one_line(err))
    return [problem for problem in problems if problem], files


def _wrong_size(record: Record) -> str | None:
    height, width = read_image_size(record.image)
    if (record.height, record.width) in ((height, width), (width, height)):  # turned by EXIF: readers decide
        return None
    return f"{record.image}: {width} x {height} pixels, {record.width} x {record.height} in the annotations"


def _wrong_segments(record: Record) -> str | None:
    if not isinstance(record.id_map, str):
        return None
    ids = read_id_map(record.id_map)
    if ids.shape != (record.height, record.width):
        return f"{record.id_map}: {ids.shape[1]} x {ids.shape[0]} pixels, {record.width} x {record.height} expected"
    drawn, listed = set(np.unique(ids).tolist()) - {0}, {region.id for region in record.regions}
    if drawn == listed:
        return None
    lost, extra = sorted(listed - drawn)[:_SHOWN], sorted(drawn - listed)[:_SHOWN]
    return f"{record.id_map}: segments only in the JSON {lost}, only in the PNG {extra}"


def _unreadable(files: Sequence[Path]) -> list[str]:
    images = [path for path in files if path.suffix.lower() in IMAGE_ENDINGS]

    def problem(path: Path) -> str | None:
        try:
            read_image_size(path)
        except LocapError as err:
            return _one_line(err)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [text for text in pool.map(problem, images) if text]


def _changed(root: Path, sums: dict[str, str], files: Sequence[Path] | dict[Path, None]) -> list[str]:
    return [f"{path}: another checksum than in SHA256SUMS" for path in differing(root, sums, files)]


def _one_line(err: LocapError) -> str:
    return " ".join(filter(None, (err.what, err.where, err.value and f"({err.value})")))


def _listed(problems: Sequence[str]) -> str:
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return "; ".join(problems[:_SHOWN]) + more
