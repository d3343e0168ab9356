"""Names and numbers of images in a file that is written."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...utils.errors import DataError
from ...utils.untrusted.archives import is_member
from ..records import Record


class Naming:
    """How images are called.

    Args:
        folders: what images' paths are relative to, the first that holds them; an image elsewhere has its bare name.
        numbers: image ids become numbers, where they are texts.
        copied: images are copied, so that those in archives and in memory have names too.

    Attributes:
        notes: what was changed, and how often.
    """

    def __init__(self, folders: Sequence[Path], *, numbers: bool = False, copied: bool = False) -> None:
        self.folders, self.notes = [Path(os.path.abspath(folder)) for folder in folders], Counter[str]()
        self._numbers: dict[int | str, int] | None = {} if numbers else None
        self._copied = copied
        self._owners: dict[str, str] = {}

    def image(self, record: Record) -> str:
        """Return the name of a record's image, with forward slashes.

        Raises:
            DataError: the image lies in an archive, or is no file; or another image has this name.
        """
        name = self._name(record)
        owner = os.path.abspath(record.image) if isinstance(record.image, str) else f"of image {record.image_id!r}"
        if (other := self._owners.setdefault(name, owner)) != owner:
            raise DataError(
                "Two images would have the same name.",
                where=f"image {record.image_id}",
                value=f"{name}: {other} and {owner}",
                fix="name the folder that holds both with --images, or rename one",
            )
        return name

    def _name(self, record: Record) -> str:
        if record.image is None:
            raise DataError("The record has no image.", where=f"image {record.image_id}")
        if not isinstance(record.image, str) or is_member(record.image):
            if self._copied:
                return f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', str(record.image_id))}.png"
            raise DataError(
                "The image is not a file of its own.",
                where=f"image {record.image_id}",
                value=record.image if isinstance(record.image, str) else "pixels in memory",
                fix="--copy-images",
            )
        path = Path(os.path.abspath(record.image))
        folder = next((folder for folder in self.folders if path.is_relative_to(folder)), path.parent)
        return path.relative_to(folder).as_posix()

    def image_id(self, record: Record) -> int | str:
        """Return a record's id: its own, or the number that takes its place."""
        if self._numbers is None or (isinstance(record.image_id, int) and not self._numbers):
            return record.image_id
        if record.image_id not in self._numbers:
            if isinstance(record.image_id, int):
                raise DataError("Image ids are texts and numbers.", value=record.image_id, allowed="one kind")
            self.notes["image ids that are texts, and were replaced by numbers"] += 1
        return self._numbers.setdefault(record.image_id, len(self._numbers) + 1)


def numbered_anew(items: Sequence[dict[str, Any]], key: str) -> bool:
    """Number items from 1 where their ids repeat; returns whether they do."""
    if len({item[key] for item in items}) == len(items):
        return False
    for number, item in enumerate(items, start=1):
        item[key] = number
    return True
