"""A picture of a narrative: the pointer's path over the image, and beside it the words in the colours of the path.

The colour follows the words from the first (blue) to the last (red). Where there is room, a word also stands at its
place in the image, with the number that it has in the text.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from ..datasets.records import Narrative
from ..datasets.transforms.word_places import aligned_words, utterance_places
from .caption_list import ListStyle, Panel, beside_width, heading_picture
from .drawing import MUTED, WHITE, Color, ImageLike, fitted_picture, ink_on, load_font, printable
from .fonts import draw_text, text_length

Point = tuple[float, float]
Corners = tuple[float, float, float, float]
ZOOM = 2  # paths are drawn larger and reduced, so that they are smooth
MOST_WORDS, MOST_LABELS = 400, 24
LABELLED = 4  # letters of the shortest word that stands in the image: most shorter ones are not about a thing
NO_PLACE = {"there", "this", "that", "these", "those", "then", "with", "which", "where", "have", "been", "some", "also"}
NEAR = 40  # pixels between places that count as one
PUNCTUATION = ".,;:!?()[]{}\"'"


@dataclass(frozen=True, slots=True)
class PlacedWord:
    """A word of the caption; ``point`` is where the pointer was meanwhile, pixels of the picture, None: nowhere.

    ``time`` is in seconds, ``number`` that of its label in the picture.
    """

    text: str
    color: Color
    point: Point | None = None
    time: float | None = None
    number: int | None = None


def draw_narrative(
    image: ImageLike,
    narrative: Narrative,
    frame: tuple[int, int],
    *,
    panel: Panel = "right",
    title: str | None = None,
    max_width: int = 1024,
    picture_width: int = 640,
) -> Image.Image:
    """Draw a narrative.

    Args:
        image: PIL image or uint8 (height, width, 3) RGB.
        narrative: what is told, in pixels of a frame.
        frame: (height, width) of it.
        panel: where the text stands, if anywhere; one that would be much higher than the picture flows on below.
        title: one line above.
        max_width: of the result, pixels.
        picture_width: of the picture at most.

    Returns:
        An RGB image, at most ``max_width`` wide.
    """
    picture = fitted_picture(image, picture_width, max_width)
    scale = picture.width / frame[1], picture.height / frame[0]
    style = ListStyle.for_width(max_width)
    words = place_words(narrative, scale, picture.size)
    labels = place_labels(words, picture.size, style)
    numbers = {word: number + 1 for number, word in enumerate(sorted(labels))}
    words = [replace(word, number=numbers.get(index)) for index, word in enumerate(words)]
    picture = paint_path(picture, list(_strokes(narrative, scale)), words)
    paint_labels(picture, words, labels, style)
    if panel == "none" and title is None:
        return picture
    return _with_text(picture, [] if panel == "none" else words, panel, title, style, max_width)


def path_color(share: float) -> Color:
    """Return the colour at ``share`` (0 to 1) of the way from the first word to the last."""
    return _colors()[int(np.clip(round(share * 255), 0, 255))]


@functools.lru_cache(maxsize=1)
def _colors() -> tuple[Color, ...]:
    """256 colours; the darkest ends of the map are left out."""
    values = matplotlib.colormaps["turbo"](np.linspace(0.07, 0.94, 256))[:, :3] * 255
    return tuple((int(red), int(green), int(blue)) for red, green, blue in values.round())


def place_words(narrative: Narrative, scale: Point, size: tuple[int, int]) -> list[PlacedWord]:
    """Return the caption's words with colours, and with places where the narrative tells them.

    Args:
        narrative: its words may be utterances of several words.
        scale: (x, y), from its pixels to those of the picture.
        size: (width, height) of the picture; places outside are moved to its border.
    """
    texts = printable(narrative.caption).split()[:MOST_WORDS]
    colors = [path_color(index / max(1, len(texts) - 1)) for index in range(len(texts))]
    centers = _centers(narrative)
    if not len(centers):
        return [PlacedWord(text, color) for text, color in zip(texts, colors, strict=True)]
    points = (centers * scale).clip(0, np.array(size) - 1.0).tolist()
    times = [(word.start + word.end) / 2 for word in narrative.words]
    chosen = aligned_words(texts, [word.text for word in narrative.words])
    return [
        PlacedWord(text, color) if index < 0 else PlacedWord(text, color, tuple(points[index]), times[index])
        for text, color, index in zip(texts, colors, chosen, strict=True)
    ]


def _centers(narrative: Narrative) -> np.ndarray:
    """Return where the pointer was at each timed word, (K, 2): the mean of the points while it was spoken.

    Where there was none, the path between its neighbours counts; no rows without words or path.
    """
    _, centers = utterance_places(narrative, extrapolate=False)
    if not len(centers):
        return centers
    points = np.array(sorted((point for stroke in narrative.traces for point in stroke), key=lambda point: point[2]))
    spans = np.array([(word.start, word.end) for word in narrative.words])
    first = np.searchsorted(points[:, 2], spans[:, 0], "left")
    last = np.searchsorted(points[:, 2], spans[:, 1], "right")
    for k, (start, stop) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        if stop > start:
            centers[k] = points[start:stop, :2].mean(0)
    return centers


def _strokes(narrative: Narrative, scale: Point) -> Iterator[np.ndarray]:
    """Yield the strokes (n, 3) of x, y in pixels of the picture and seconds, in the order of time."""
    strokes = [np.array(stroke, float).reshape(-1, 3) for stroke in narrative.traces if len(stroke)]
    for stroke in sorted(strokes, key=lambda stroke: stroke[0, 2]):
        yield stroke * (*scale, 1.0)


def paint_path(picture: Image.Image, strokes: Sequence[np.ndarray], words: Sequence[PlacedWord]) -> Image.Image:
    """Draw the strokes, thin lines from each to the next, and a dot at each word.

    Args:
        picture: RGB.
        strokes: (n, 3) each: x, y in its pixels and seconds.
        words: they give the path its colours.
    """
    width, height = picture.size
    line = max(2, round(max(picture.size) / 220))
    layer = Image.new("RGBA", (width * ZOOM, height * ZOOM), (*WHITE, 0))
    draw = ImageDraw.Draw(layer)
    links = [np.stack([one[-1], other[0]]) for one, other in pairwise(strokes)]
    for part, thickness in ((links, line / 2), (strokes, line)):
        segments = [segment for points in part for segment in _segments(points, words, (width, height))]
        for casing in (2.0, 0.0):
            for start, end, color in segments:
                _line(draw, start, end, thickness + casing, WHITE if casing else color)
    for word in words:
        if word.point is not None:
            _dot(draw, word.point, 1.1 * line, WHITE)
            _dot(draw, word.point, 0.8 * line, word.color)
    layer = layer.resize(picture.size, Image.Resampling.BOX)
    painted = picture.copy()
    painted.paste(layer, (0, 0), layer)
    return painted


def _segments(
    points: np.ndarray, words: Sequence[PlacedWord], size: tuple[int, int]
) -> Iterator[tuple[Point, Point, Color]]:
    """Yield (start, end, colour) along a stroke; what lies outside the picture is moved to its border."""
    places = points[:, :2].clip(0, np.array(size) - 1.0).tolist()
    shares = _shares(points[:, 2], words)
    for k, (start, end) in enumerate(pairwise(places)):
        yield tuple(start), tuple(end), path_color((shares[k] + shares[k + 1]) / 2)


def path_pieces(
    narrative: Narrative, words: Sequence[PlacedWord], scale: Point, size: tuple[int, int]
) -> Iterator[tuple[Color, list[Point]]]:
    """Yield the pointer's path as pieces of one colour: the colour, and points in pixels of a picture of ``size``."""
    for points in _strokes(narrative, scale):
        for color, group in groupby(_segments(points, words, size), key=lambda segment: segment[2]):
            segments = list(group)
            yield color, [segments[0][0], *(end for _, end, _ in segments)]


def _shares(times: np.ndarray, words: Sequence[PlacedWord]) -> np.ndarray:
    """Return how far the words have come at each time, 0 to 1."""
    known = sorted((word.time, index) for index, word in enumerate(words) if word.time is not None)
    if not known:
        return (times - times.min()) / max(float(np.ptp(times)), 1e-9)
    moments, places = np.array(known).T
    return np.interp(times, moments, places / max(1, len(words) - 1))


def _line(draw: ImageDraw.ImageDraw, start: Point, end: Point, thickness: float, color: Color) -> None:
    """Draw a line with round ends, so that the pieces of a path join."""
    corners = [(x * ZOOM, y * ZOOM) for x, y in (start, end)]
    draw.line(corners, fill=(*color, 255), width=max(1, round(thickness * ZOOM)))
    _dot(draw, end, thickness / 2, color)


def _dot(draw: ImageDraw.ImageDraw, point: Point, radius: float, color: Color) -> None:
    x, y = point[0] * ZOOM, point[1] * ZOOM
    radius *= ZOOM
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(*color, 255))


def place_labels(words: Sequence[PlacedWord], size: tuple[int, int], style: ListStyle) -> dict[int, Corners]:
    """Return word index -> corners of its label in the picture: longer words first, none over another or outside.

    A word that is said twice at one place stands there once.
    """
    font = load_font(style.text - 3)
    order = [k for k, word in enumerate(words) if word.point and _is_labelled(_bare(word.text))]
    taken: dict[int, Corners] = {}
    for index in sorted(order, key=lambda k: -len(words[k].text)):
        if any(_same(words[index], words[other]) for other in taken):
            continue
        width = text_length(f"88 {_bare(words[index].text)}", font) + 8
        for corners in _label_places(words[index].point, width, style.text + 3):
            inside = min(corners[:2]) >= 0 and corners[2] < size[0] and corners[3] < size[1]
            if inside and not any(_overlap(corners, other) for other in taken.values()):
                taken[index] = corners
                break
        if len(taken) == MOST_LABELS:
            break
    return taken


def _same(one: PlacedWord, other: PlacedWord) -> bool:
    near = abs(one.point[0] - other.point[0]) + abs(one.point[1] - other.point[1]) < NEAR
    return near and _bare(one.text).lower() == _bare(other.text).lower()


def _is_labelled(word: str) -> bool:
    return sum(map(str.isalnum, word)) >= LABELLED and word.lower() not in NO_PLACE


def _label_places(point: Point, width: float, height: float) -> Iterator[Corners]:
    """Yield places around a point: above, below, right, left, then the same a little further away."""
    x, y = point
    for gap in (7, 7 + height):
        for left, top in (
            (x - width / 2, y - gap - height),
            (x - width / 2, y + gap),
            (x + gap, y - height / 2),
            (x - gap - width, y - height / 2),
        ):
            yield left, top, left + width, top + height


def _overlap(one: Corners, other: Corners) -> bool:
    apart = one[2] + 2 < other[0] or other[2] + 2 < one[0] or one[3] + 2 < other[1] or other[3] + 2 < one[1]
    return not apart


def _bare(text: str) -> str:
    """Return a word without the punctuation around it."""
    return text.strip(PUNCTUATION) or text


def paint_labels(
    picture: Image.Image, words: Sequence[PlacedWord], labels: dict[int, Corners], style: ListStyle
) -> None:
    """Draw the labels, each tied to its place."""
    draw = ImageDraw.Draw(picture)
    font, small = load_font(style.text - 3), load_font(style.text - 5)
    for index, (x0, y0, x1, y1) in labels.items():
        x, y = words[index].point
        draw.line((x, y, float(np.clip(x, x0, x1)), float(np.clip(y, y0, y1))), fill=words[index].color, width=2)
    for index, (x0, y0, x1, y1) in labels.items():
        word, middle = words[index], (y0 + y1) / 2
        ink, number = ink_on(word.color), f"{word.number} "
        margin = (x1 - x0 - small.getlength(number) - text_length(_bare(word.text), font)) / 2 - 4
        x0, x1 = x0 + margin, x1 - margin  # room was kept for two digits
        draw.rounded_rectangle((x0, y0, x1, y1), radius=4, fill=word.color, outline=WHITE)
        draw.text((x0 + 4, middle), number, font=small, fill=ink, anchor="lm")
        draw_text(draw, (x1 - 4, middle), _bare(word.text), font=font, fill=ink, anchor="rm")


def _with_text(
    picture: Image.Image,
    words: Sequence[PlacedWord],
    panel: Panel,
    title: str | None,
    style: ListStyle,
    max_width: int,
) -> Image.Image:
    """Set title, picture and coloured text on one canvas."""
    beside, width = beside_width(picture, panel, style, max_width)
    room = width - picture.width
    if beside and _lay_out(words, room, style)[1] > 1.25 * picture.height:
        beside = 0
    chips, height = _lay_out(words, room if beside else width, style)
    heading = heading_picture(title, width, style)
    top, bottom = heading.height, max(picture.height, height) if beside else picture.height + height
    canvas = Image.new("RGB", (width, top + bottom), WHITE)
    canvas.paste(heading, (0, 0))
    canvas.paste(picture, (0 if panel == "right" else (width - picture.width) // 2, top))
    corner = (picture.width, top) if beside else (0, top + picture.height)
    for word, left, line in chips:
        _paint_chip(ImageDraw.Draw(canvas), word, (corner[0] + left, corner[1] + line), style)
    return canvas


def _lay_out(
    words: Sequence[PlacedWord], width: int, style: ListStyle
) -> tuple[list[tuple[PlacedWord, float, float]], int]:
    """Break the words into lines: (word, x, y) each, and the height of all; nothing takes no room."""
    x, y, step = float(style.margin), float(style.margin), round(1.7 * style.text)
    chips = []
    for word in words:
        length = _chip_width(word, style)
        if x > style.margin and x + length > width - style.margin:
            x, y = float(style.margin), y + step
        chips.append((word, x, y))
        x += length + 2
    return chips, round(y) + step + style.margin if chips else 0


def _chip_width(word: PlacedWord, style: ListStyle) -> float:
    number = "" if word.number is None else f"{word.number} "
    return text_length(word.text, load_font(style.text)) + load_font(style.text - 4).getlength(number) + 6


def _paint_chip(draw: ImageDraw.ImageDraw, word: PlacedWord, corner: Point, style: ListStyle) -> None:
    """Draw a word of the text on its colour, the number of its label before it; one without a place in grey."""
    x, y = corner
    middle = y + 0.7 * style.text
    if word.point is not None:
        box = (x, y - 2, x + _chip_width(word, style), y + 1.45 * style.text)
        draw.rounded_rectangle(box, radius=4, fill=word.color)
    ink = MUTED if word.point is None else ink_on(word.color)
    x += 3
    if word.number is not None:
        number, small = f"{word.number} ", load_font(style.text - 4)
        draw.text((x, middle), number, font=small, fill=ink, anchor="lm")
        x += small.getlength(number)
    draw_text(draw, (x, middle), word.text, font=load_font(style.text), fill=ink, anchor="lm")
