"""Localized Narratives: JSON lines of spoken descriptions with the pointer's path, all of an image in one record."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...utils.errors import DataError
from ...utils.untrusted import iterate_json_lines, parse_json, read_image_size, shown
from ..localized_narratives import image_id_of, image_names, read_narrative
from ..records import Narrative, Record
from .packed import ImageFinder, PackedReader, coco_names

logger = logging.getLogger(__name__)


class LocalizedNarrativesReader(PackedReader):
    """Records with ``narratives``: words with times, strokes in pixels, points off the image kept as they are.

    Every line is checked once, when the reader is made; after that only its place in the file is remembered, and the
    narratives are parsed again for each record. Of points of one narrative with the same time the first is kept, so
    that time is strictly monotonic once sorted. A narrative is left out when it has a blank caption, no utterance, an
    utterance that ends before it starts, or fewer than two points left; an image when none of its narratives is left.

    Args:
        annotations: JSON-lines files.
        images: folder or folders of the images, which are looked for in it and in ``train2017`` and ``val2017`` below.

    Attributes:
        skipped: (image id, why) of each narrative left out.
    """

    def __init__(
        self, annotations: str | Path | Sequence[str | Path], images: str | Path | Sequence[str | Path]
    ) -> None:
        files = [annotations] if isinstance(annotations, (str, Path)) else annotations
        self.files = [Path(file) for file in files]
        self.skipped: list[tuple[int | str, str]] = []
        where = ", ".join(shown(file) for file in self.files)
        self._images = ImageFinder(images, where)
        super().__init__(list(self._entries()), where)
        self._images.require_found()
        if self.skipped:
            image_id, why = self.skipped[0]
            message = "%s: %d narratives are left out (first: image %s, %s)"
            logger.warning(message, where, len(self.skipped), image_id, why)

    def _entries(self) -> Iterator[dict[str, Any]]:
        """Yield an entry per image, in the order in which images first occur: where its lines are."""
        lines: dict[int | str, dict[str, Any]] = {}
        for number, file in enumerate(self.files):
            for body, offset, line in iterate_json_lines(file):
                where = f"{shown(file)}: line {line}"
                image_id = image_id_of(body, where)
                if why := unusable(without_repeated_times(read_narrative(body, 1, 1, where))):
                    self.skipped.append((image_id, why))
                    continue
                if image_id not in lines:
                    names = image_names(body, where)
                    found = self._images.find((*names, *coco_names(names[0])))
                    lines[image_id] = {"id": image_id, "image": found, "lines": []}
                lines[image_id]["lines"].append((number, offset, line))
        yield from lines.values()

    def _record(self, entry: dict[str, Any]) -> Record:
        image = self._images.path(entry["image"])
        height, width = read_image_size(image)
        narratives = tuple(self._narrative(*place, height, width) for place in entry["lines"])
        return Record(entry["id"], height, width, image, narratives=narratives)

    def _narrative(self, number: int, offset: int, line: int, height: int, width: int) -> Narrative:
        file = self.files[number]
        where = f"{shown(file)}: line {line}"
        try:
            with file.open("rb") as opened:
                opened.seek(offset)
                data = opened.readline()
        except OSError as err:
            raise DataError(f"The file cannot be opened any more: {err.strerror}.", where=where) from None
        return without_repeated_times(read_narrative(parse_json(data, where), height, width, where))


def without_repeated_times(narrative: Narrative) -> Narrative:
    """Return the narrative with the first of all points that have the same time; strokes left empty are dropped."""
    seen: set[float] = set()
    strokes = (tuple(p for p in stroke if not (p[2] in seen or seen.add(p[2]))) for stroke in narrative.traces)
    return Narrative(narrative.caption, narrative.words, tuple(stroke for stroke in strokes if stroke))


def unusable(narrative: Narrative) -> str | None:
    """Return why nothing can be learned from a narrative, or None."""
    if not narrative.caption.strip():
        return "the caption is blank"
    if not any(word.text.strip() for word in narrative.words):
        return "there is no utterance"
    if any(word.end < word.start for word in narrative.words):
        return "an utterance ends before it starts"
    if sum(map(len, narrative.traces)) < 2:
        return "the trace has fewer than two points"
    return None
