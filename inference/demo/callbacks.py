"""What happens behind the page: plain functions, without a browser and without gradio."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ...datasets.records import Region, box_of_mask, decode_mask
from ...utils.errors import DataError, UsageError
from ..captioner import Seen
from ..results import Result
from ..visualise import draw_record
from .questions import ask_of_painting, checked_asks
from .service import Service
from .uploads import decode_file, painted

SHOWN_SIDE = 1280  # pixels of the picture in the browser; the system gets the original
MARK = (255, 64, 96)
MODES = {"Box": "box", "Point": "point", "Brush": "mask", "Phrase": "text", "Everything": ""}  # label: kind of question
HINTS = {
    "Box": "Click two opposite corners of a box.",
    "Point": "Click on what you want described.",
    "Brush": "Paint over what you want described, then press **Caption**.",
    "Phrase": "Write what you look for, then press **Caption**.",
    "Everything": "Press **Caption**: everything the system finds is described.",
}
HEADERS = ["#", "what", "score", "box", "caption"]


@dataclass(frozen=True, slots=True)
class Desk:
    """What one user has before them, and nobody else.

    Attributes:
        seen: the encoded image.
        shown: its picture in the browser, uint8 (height, width, 3) RGB, perhaps smaller.
        corner: the first corner of a box, pixels of ``shown``.
    """

    seen: Seen
    shown: np.ndarray
    corner: tuple[float, float] | None = None

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the original per pixel of ``shown``, along x and y."""
        height, width = self.shown.shape[:2]
        return self.seen.record.width / width, self.seen.record.height / height


@dataclass(frozen=True, slots=True)
class Answer:
    """What the page shows: a picture (None: the one before), the captions, and a row per region (`HEADERS`)."""

    picture: Image.Image | None
    text: str
    rows: list[list[str]]


class Callbacks:
    """The page's functions about one service."""

    def __init__(self, service: Service, examples: Sequence[np.ndarray] = ()) -> None:
        self.service, self.examples = service, examples

    @property
    def modes(self) -> list[str]:
        """The modes that the system takes."""
        return [mode for mode, kind in MODES.items() if not kind or kind in self.service.takes]

    def open_file(self, path: str | Path | None) -> Desk | None:
        """Take an uploaded image."""
        return self._open(lambda: decode_file(path)) if path else None

    def open_example(self, index: int) -> Desk:
        """Take one of the examples."""
        return self._open(lambda: self.examples[index])

    def click(self, desk: Desk | None, mode: str, x: float, y: float) -> tuple[Desk, str]:
        """Take a click at a pixel of the shown picture.

        Returns:
            The desk, and the place in pixels of the original: "x y", "x0 y0 x1 y1", or "" where a corner is missing.
        """
        desk = _opened(desk)
        along_x, along_y = desk.scale
        if mode == "Point":
            return desk, _written((x + 0.5) * along_x, (y + 0.5) * along_y)
        if mode != "Box":
            return desk, ""
        if desk.corner is None:
            return replace(desk, corner=(x, y)), ""
        (x0, x1), (y0, y1) = sorted((desk.corner[0], x)), sorted((desk.corner[1], y))
        place = _written(x0 * along_x, y0 * along_y, (x1 + 1) * along_x, (y1 + 1) * along_y)
        return replace(desk, corner=None), place

    def marked(self, desk: Desk, mode: str, place: str) -> Image.Image:
        """Return the shown picture with the corner, box or point that was chosen."""
        picture = Image.fromarray(desk.shown)
        draw, line = ImageDraw.Draw(picture), max(1, round(max(picture.size) / 250))
        along_x, along_y = desk.scale
        numbers = _numbers(place) if place else []
        if mode == "Box" and len(numbers) == 4:
            x0, y0, x1, y1 = (number / (along_y if row % 2 else along_x) for row, number in enumerate(numbers))
            draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1) - 1, max(y0, y1) - 1), outline=MARK, width=2 * line)
        spot = desk.corner
        if mode == "Point" and len(numbers) == 2:
            spot = numbers[0] / along_x, numbers[1] / along_y
        if spot is not None:
            _dot(draw, spot, 3 * line)
        return picture

    def answer(
        self,
        desk: Desk | None,
        mode: str,
        *,
        place: str = "",
        layers: Sequence[Any] = (),
        phrase: str = "",
        question: str | None = None,
    ) -> Iterator[Answer]:
        """Yield the answer, as it grows where the system writes word by word.

        Args:
            desk: the user's image.
            mode: one of `modes`.
            place: of a box or a point, as `click` returns it.
            layers: what was painted: files or bytes of images with an alpha channel.
            phrase: what to look for.
            question: the user's own words; None asks in the system's.
        """
        desk = _opened(desk)
        given = self._given(desk, mode, place, layers, phrase)
        asks = checked_asks(given, desk.seen.record.height, desk.seen.record.width, question)
        with closing(self.service.stream(desk.seen, asks)) as results:
            for result in results:
                yield Answer(None, text_of(result), rows_of(result))
        picture = draw_record(result.pixels, result.record, result.categories, panel="none")
        yield Answer(picture, text_of(result), rows_of(result))

    def _open(self, decode: Any) -> Desk:
        seen = self.service.see(decode)
        picture = Image.fromarray(seen.record.read_image())
        picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        return Desk(seen, np.asarray(picture))

    def _given(self, desk: Desk, mode: str, place: str, layers: Sequence[Any], phrase: str) -> list[tuple[str, Any]]:
        if mode not in self.modes:
            raise UsageError("There is no such mode.", value=mode, allowed=", ".join(self.modes))
        kind = MODES[mode]
        if kind == "text":
            return [(kind, line) for line in phrase.splitlines() if line.strip()] or [(kind, phrase)]
        if kind == "mask":
            return [ask_of_painting(_painting(layers, desk.seen.record.height, desk.seen.record.width))]
        if kind and not place.strip():
            raise UsageError("Nothing is chosen yet.", allowed="two corners of a box, or a point: click on the image")
        return [(kind, _numbers(place))] if kind else []


def text_of(result: Result) -> str:
    """Return the captions, numbered where there are several; a narrative comes first."""
    lines = [narrative.caption for narrative in result.record.narratives]
    captions = [
        caption or _located(region) for caption, region in zip(result.captions, result.record.regions, strict=True)
    ]
    if len(captions) == 1 and not lines:
        return captions[0]
    return "\n".join(lines + [f"{number}. {caption}" for number, caption in enumerate(captions, 1)]) or "Nothing found."


def rows_of(result: Result) -> list[list[str]]:
    """Return a row of `HEADERS` per region."""
    names = {category.id: category.name for category in result.categories}
    rows = []
    for number, (region, caption) in enumerate(zip(result.record.regions, result.captions, strict=True), 1):
        name = names.get(region.category_id) or " ".join(region.expressions)
        score = "" if region.score is None else f"{region.score:.2f}"
        rows.append([str(number), name, score, _corners(region), caption])
    return rows


def _located(region: Region) -> str:
    corners = _corners(region)
    return f"found at {corners}" if corners else "not found"


def _corners(region: Region) -> str:
    if region.box_xyxy is None and region.mask is None:
        return " ".join(f"{x:.0f} {y:.0f}" for x, y in region.points)
    return " ".join(f"{side:.0f}" for side in box_of(region))


def box_of(region: Region) -> tuple[float, ...]:
    """Return a region's box, or its mask's."""
    return region.box_xyxy or box_of_mask(decode_mask(region.mask))


def _opened(desk: Desk | None) -> Desk:
    if desk is None:
        raise UsageError("There is no image yet, or no longer.", allowed="upload one, or choose an example")
    return desk


def _written(*numbers: float) -> str:
    return " ".join(f"{number:.6g}" for number in numbers)


def _numbers(place: str) -> list[float]:
    try:
        return [float(word) for word in place.replace(",", " ").split()[:8]]
    except ValueError:
        raise UsageError("Not a place in an image.", value=place, allowed="x y, or x0 y0 x1 y1: pixels") from None


def _painting(layers: Sequence[Any], height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    for layer in layers:
        found = Image.fromarray(painted(layer))
        if abs(found.width * height - found.height * width) > 2 * max(height, width):
            raise DataError("The painting is not of the image's shape.", allowed=f"{width} x {height}")
        mask |= np.asarray(found.resize((width, height), Image.Resampling.NEAREST))
    return mask


def _dot(draw: ImageDraw.ImageDraw, spot: tuple[float, float], radius: float) -> None:
    x, y = spot
    corners = (x - radius, y - radius, x + radius, y + radius)
    draw.ellipse(corners, fill=MARK, outline=(255, 255, 255), width=max(1, round(radius / 3)))
