"""What readers share: entries of an annotation file kept as bytes, and images looked up in listings of folders."""

from __future__ import annotations

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.errors import DataError
from ...utils.untrusted import resolve_under, shown
from ..records import Category, Record

FIX = "download and unpack the data set completely, or point DETECTRON2_DATASETS to the folder that holds it"
OWN_FIX = (
    "put the images beside the file or in images/ there, or name their folder: DATASETS.ROOT; data convert: --images"
)
OBJECT = Category(1, "object")  # the one class of data sets whose regions have texts instead


class PackedReader(ABC):
    """Entries, one per record, serialised into one byte array; records are built when they are asked for.

    Loader workers share the array; a list of dictionaries would be copied page by page as reference counts change.

    Args:
        entries: JSON-able objects; consumed one by one.
        where: the file, for messages.
    """

    categories: tuple[Category, ...] = (OBJECT,)

    def __init__(self, entries: Iterable[Mapping[str, Any]], where: str) -> None:
        packed, ends = bytearray(), []
        for entry in entries:
            packed += json.dumps(entry, separators=(",", ":")).encode()
            ends.append(len(packed))
        if not ends:
            raise DataError("No image is left to read.", where=where)
        self._packed, self._ends = np.frombuffer(packed, np.uint8), np.array(ends)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Record:
        """Return one record; its image is a path."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = self._ends[index - 1] if index else 0
        return self._record(json.loads(self._packed[start : self._ends[index]].tobytes()))

    @abstractmethod
    def _record(self, entry: dict[str, Any]) -> Record:
        """Return the record of a packed entry."""


class ImageFinder:
    """Finds the images that a file names, below one or several folders.

    A folder is listed once, which is far cheaper than asking for each file.

    Args:
        folders: searched in this order.
        where: the file that names the images, for messages.
        fix: what mends it when images are missing.
    """

    def __init__(self, folders: str | Path | Sequence[str | Path], where: str, fix: str = FIX) -> None:
        self.folders = [Path(f) for f in ([folders] if isinstance(folders, (str, Path)) else folders)]
        self.where, self.fix = where, fix
        self._missing: list[str] = []
        self._listings: dict[str, frozenset[str]] = {}
        self._asked = 0
        if not any(folder.is_dir() for folder in self.folders):
            tried = ", ".join(shown(folder.absolute()) for folder in self.folders)
            raise DataError("The folder of the images does not exist.", where=tried, fix=fix)

    def find(self, names: Sequence[str]) -> str:
        """Return what `path` needs of the first name that exists; "" if none does, see `require_found`."""
        self._asked += 1
        for number, folder in enumerate(self.folders):
            for name in names:
                parent, slash, base = name.rpartition("/")
                if base in self._listing(folder, parent or slash):
                    return f"{number}/{name}"
        self._missing.append(names[0])
        return ""

    def require_found(self) -> None:
        """Forget the listings, and raise `DataError` when any image was not found."""
        self._listings.clear()
        if self._missing:
            raise DataError(
                f"{len(self._missing)} of {self._asked} images named by the file are not there.",
                where=f"{' or '.join(shown(folder) for folder in self.folders)} (from {self.where})",
                value=", ".join(self._missing[:3]) + (", …" if len(self._missing) > 3 else ""),
                fix=self.fix,
            )

    def path(self, found: str) -> str:
        """Return the path of an image.

        Raises:
            DataError: the name leaves its folder.
        """
        number, _, name = found.partition("/")
        return str(resolve_under(self.folders[int(number)], name))

    def _listing(self, folder: Path, parent: str) -> frozenset[str]:
        path = resolve_under(folder, parent) if parent else folder
        if str(path) not in self._listings:
            self._listings[str(path)] = frozenset(os.listdir(path)) if path.is_dir() else frozenset()
        return self._listings[str(path)]


def coco_names(name: str, folder: str = "") -> tuple[str, ...]:
    """Return the paths below a COCO folder that an image may have, likeliest first.

    Args:
        name: as an annotation has it: ``COCO_val2014_000000000042.jpg``, also with the ``_<number>`` that REFER adds,
            or ``000000000042.jpg``, with folders or without.
        folder: where the annotation says it is, if it does.
    """
    base = name.rpartition("/")[2]
    match = re.fullmatch(r"(?:COCO_(train|val|test)(\d{4})_)?(\d{12})(?:_\d+)?\.jpg", base)
    if match is None:
        return (name, *([f"{folder}/{base}"] if folder else []))
    split, year, number = match.groups()
    old = (f"{split}{year}/COCO_{split}{year}_{number}.jpg",) if split else ()
    new = tuple(f"{part}2017/{number}.jpg" for part in (("val", "train") if split == "val" else ("train", "val")))
    stated = (name, f"{folder}/{base}") if folder else (name,)
    return tuple(dict.fromkeys((*stated, *old, *new, f"{number}.jpg")))
