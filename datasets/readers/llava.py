"""LLaVA-instruct: conversations about an image."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...utils.errors import DataError
from ...utils.untrusted import each_object, get, read_image_size, read_json, shown
from ..records import Record, Turn
from .packed import ImageFinder, PackedReader, coco_names

logger = logging.getLogger(__name__)
IMAGE_TOKEN = "<image>"  # noqa: S105 - no password
ROLES = {"human": "user", "gpt": "assistant"}


class LlavaReader(PackedReader):
    """Records with one conversation each: turns of user and assistant, in turn.

    ``<image>`` and the line break beside it are removed. Several entries may be about the same image, and ids need not
    be unique, as in the published mixtures. Sizes are those of the image files.

    Args:
        annotations: JSON list of ``{"id", "image", "conversations": [{"from": "human" | "gpt", "value"}]}``.
        images: folder or folders of the images, ``image`` lies below.

    Attributes:
        without_image: number of entries left out since they are text only.
    """

    def __init__(self, annotations: str | Path, images: str | Path | Sequence[str | Path]) -> None:
        self.annotations = Path(annotations)
        self.without_image = 0
        self._images = ImageFinder(images, shown(self.annotations))
        super().__init__(self._entries(), shown(self.annotations))
        self._images.require_found()
        if self.without_image:
            logger.info("%s: %d entries without an image are left out", shown(self.annotations), self.without_image)

    def _entries(self) -> Iterator[dict[str, Any]]:
        for body, where in each_object(read_json(self.annotations), shown(self.annotations)):
            if body.get("image") is None:
                self.without_image += 1
                continue
            turns = [_turn(item, i, place) for i, (item, place) in enumerate(each_object(body, where, "conversations"))]
            if not turns or len(turns) % 2:
                raise DataError("A conversation does not end with an answer.", where=where, value=f"{len(turns)} turns")
            found = self._images.find(coco_names(get(body, "image", (str,), where)))
            yield {"id": get(body, "id", (int, str), where), "image": found, "turns": turns}

    def _record(self, entry: dict[str, Any]) -> Record:
        image = self._images.path(entry["image"])
        turns = tuple(Turn(tuple(ROLES.values())[i % 2], text) for i, text in enumerate(entry["turns"]))
        return Record(entry["id"], *read_image_size(image), image, conversations=(turns,))


def _turn(body: Any, index: int, where: str) -> str:
    """Return the text of a turn; people and model must alternate."""
    role, expected = get(body, "from", (str,), where), tuple(ROLES)[index % 2]
    if role != expected:
        raise DataError("A turn is by the wrong side.", where=where, value=role, allowed=expected)
    text = get(body, "value", (str,), where)
    for token in (f"{IMAGE_TOKEN}\n", f"\n{IMAGE_TOKEN}", IMAGE_TOKEN):
        text = text.replace(token, "")
    return text
