"""Pieces of a picture: colours, text, region layers and numbered badges.

Sizes are (width, height) in pixels, as in Pillow; arrays are (height, width). An *owner map* is int32 (height, width):
0 where no region is drawn, else 1 + the index of the topmost region.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage

from ..datasets.records import Record, Region, box_of_mask, decode_mask
from .fonts import text_length

ImageLike = Image.Image | np.ndarray
Color = tuple[int, int, int]
SMALL_SIDE, ENLARGED_SIDE = 512, 640  # a picture with a shorter long side than the first is drawn at the second
WHITE, INK, MUTED, LETTERBOX = (255, 255, 255), (28, 30, 36), (112, 117, 128), (236, 237, 240)
MOST_LINES = 24  # of a text: 140 words of English at the list's width
TINT = 0.35  # share of the region's colour in its pixels
PALETTE: tuple[Color, ...] = (  # dark and light in turn, for those who cannot tell the hues apart
    (47, 111, 237),
    (255, 140, 26),
    (24, 128, 66),
    (23, 190, 207),
    (200, 36, 120),
    (242, 201, 30),
    (124, 77, 219),
    (255, 145, 190),
    (205, 32, 44),
    (120, 220, 170),
    (130, 78, 40),
    (158, 206, 43),
    (38, 60, 140),
    (250, 150, 120),
    (104, 104, 16),
    (188, 172, 250),
)
SHADES = (0.0, 0.45, -0.4, 0.25, -0.2)  # towards white when positive, towards black when negative


def region_color(index: int) -> Color:
    """Return the colour of the region at ``index`` (from 0): 16 distinct hues, then lighter and darker rounds."""
    turn, place = divmod(index, len(PALETTE))
    shade = SHADES[turn % len(SHADES)]
    target = 255 if shade > 0 else 0
    red, green, blue = (round(channel + (target - channel) * abs(shade)) for channel in PALETTE[place])
    return red, green, blue


def ink_on(color: Color) -> Color:
    """Return black or white, whichever is easier to read on ``color``."""
    red, green, blue = color
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 150 else WHITE


def as_picture(image: ImageLike) -> Image.Image:
    """Return a PIL image, or uint8 (height, width, 3) RGB pixels, as an RGB image."""
    return (image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image, np.uint8))).convert("RGB")


def fitted_picture(image: ImageLike, max_width: int, max_height: int) -> Image.Image:
    """Return the image as RGB, fitted into the limits; only small ones are enlarged."""
    picture = as_picture(image)
    longest = max(picture.size)
    enlarge = ENLARGED_SIDE / longest if longest < SMALL_SIDE else 1.0
    scale = min(enlarge, max_width / picture.width, max_height / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=2)


@functools.lru_cache(maxsize=32)
def load_font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which matplotlib ships (Latin, Greek, Cyrillic, Arabic and many symbols)."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def printable(text: object) -> str:
    """Return ``text`` on one line, without control characters and lone surrogates that no renderer accepts."""
    safe = str(text).encode("utf-8", "replace").decode("utf-8")
    kept = "".join(" " if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char for char in safe)
    return " ".join(kept.split())


def wrap_text(text: str, font: ImageFont.FreeTypeFont, width: float, max_lines: int = MOST_LINES) -> list[str]:
    """Break ``text`` into lines of at most ``width`` pixels; the rest after ``max_lines`` becomes an ellipsis."""
    lines: list[str] = []
    line = ""
    for word in printable(text).split():
        joined = f"{line} {word}" if line else word
        if text_length(joined, font) <= width:
            line = joined
            continue
        lines += [line] if line else []
        *full, line = _break_word(word, font, width)
        lines += full
        if len(lines) > max_lines:
            break
    lines += [line] if line else []
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], _cut(lines[max_lines - 1], font, width)]
    return lines


def _break_word(word: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Break a word that is wider than a line (an address, or a script without spaces) between characters."""
    if text_length(word, font) <= width:
        return [word]
    pieces, piece = [], ""
    for char in word[:4000]:
        if piece and text_length(piece + char, font) > width:
            pieces.append(piece)
            piece = ""
        piece += char
    return [*pieces, piece]


def shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Cut ``text`` to ``width`` pixels, ending in an ellipsis when something was cut."""
    return text if text_length(text, font) <= width else _cut(text, font, width)


def _cut(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """End ``text`` in an ellipsis within ``width`` pixels."""
    while text and text_length(text + "…", font) > width:
        text = text[:-1]
    return text.rstrip() + "…"


@dataclass(slots=True)
class Shapes:
    """What is drawn of a record's regions, in pixels of the picture.

    Attributes:
        owner: owner map of the regions with a mask; small regions lie on large ones.
        boxes: region index -> (x0, y0, x1, y1) of the regions that have a box and no mask.
        points: region index -> (x, y) points of the regions that have nothing else.
        hidden: region index -> (x, y) inside a mask that other masks cover entirely.
        frames: region index -> (x0, y0, x1, y1) of the regions that answer a phrase by a mask and a box.
        pins: region index -> (x, y) points that were asked about, of the regions that have more than those.
    """

    owner: np.ndarray
    boxes: dict[int, tuple[float, float, float, float]] = field(default_factory=dict)
    points: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    hidden: dict[int, tuple[int, int]] = field(default_factory=dict)
    frames: dict[int, tuple[float, float, float, float]] = field(default_factory=dict)
    pins: dict[int, list[tuple[float, float]]] = field(default_factory=dict)

    def moved(self, left: int, top: int, size: tuple[int, int]) -> Shapes:
        """Return the shapes on a larger ground of ``size``, ``left`` and ``top`` pixels from its corner."""
        height, width = self.owner.shape
        owner = np.zeros((size[1], size[0]), self.owner.dtype)
        owner[top : top + height, left : left + width] = self.owner
        boxes, frames = (
            {index: (x0 + left, y0 + top, x1 + left, y1 + top) for index, (x0, y0, x1, y1) in found.items()}
            for found in (self.boxes, self.frames)
        )
        points, pins = (
            {index: [(x + left, y + top) for x, y in places] for index, places in found.items()}
            for found in (self.points, self.pins)
        )
        hidden = {index: (x + left, y + top) for index, (x, y) in self.hidden.items()}
        return Shapes(owner, boxes, points, hidden, frames, pins)


def region_masks(record: Record) -> Iterator[np.ndarray | None]:
    """Yield each region's mask, bool (record.height, record.width), or None without one; the id map is read once."""
    ids = None if record.id_map is None else record.read_id_map()
    for region in record.regions:
        if region.mask is not None:
            yield decode_mask(region.mask)
        else:
            yield None if ids is None else ids == region.id


def rasterise(record: Record, size: tuple[int, int]) -> Shapes:
    """Bring a record's regions to the ``size`` of the picture."""
    scale_x, scale_y = size[0] / record.width, size[1] / record.height
    shapes = Shapes(np.zeros((size[1], size[0]), np.int32))
    masks: dict[int, np.ndarray] = {}
    for index, (region, mask) in enumerate(zip(record.regions, region_masks(record), strict=True)):
        masked = mask is not None and mask.any()
        if masked:
            masks[index] = resize_mask(mask, size)
        if region.box_xyxy is not None and (not masked or _is_phrase(region)):
            x0, y0, x1, y1 = region.box_xyxy
            boxes = shapes.frames if masked else shapes.boxes
            boxes[index] = (x0 * scale_x, y0 * scale_y, x1 * scale_x, y1 * scale_y)
        elif not masked and (points := _points_of(region)):
            shapes.points[index] = [(x * scale_x, y * scale_y) for x, y in points]
        if region.points and index not in shapes.points:
            shapes.pins[index] = [(x * scale_x, y * scale_y) for x, y in region.points]
    for index in sorted(masks, key=lambda index: -int(masks[index].sum())):
        shapes.owner[masks[index]] = index + 1
    visible = set(np.unique(shapes.owner).tolist())
    shapes.hidden = {index: _middle(mask) for index, mask in masks.items() if index + 1 not in visible}
    return shapes


def _is_phrase(region: Region) -> bool:
    """Whether a region answers where something is: then its box says as much as its mask."""
    return bool(region.expressions) and not region.captions


def _points_of(region: Region) -> list[tuple[float, float]]:
    return [*region.points, *((x, y) for x, y, visibility in region.keypoints if visibility)]


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a bool mask with smooth edges; what would vanish keeps one pixel."""
    height, width = mask.shape
    if (width, height) == size:
        return mask
    step = max(1, min(width // size[0], height // size[1]))  # a cheap first reduction of huge masks
    pixels = Image.fromarray(mask[::step, ::step].astype(np.uint8) * 255)
    enlarged = size[0] / width
    smooth = pixels.resize(size, Image.Resampling.BILINEAR)
    if enlarged >= 2:
        _smooth(smooth, 0.4 * enlarged)  # takes the stairs out of the outline
    resized = np.asarray(smooth) > 127
    if not resized.any() and enlarged >= 1:
        resized = np.asarray(pixels.resize(size, Image.Resampling.NEAREST)) > 127
    if not resized.any():
        x, y = _middle(mask)
        resized[min(size[1] - 1, y * size[1] // height), min(size[0] - 1, x * size[0] // width)] = True
    return resized


def _smooth(pixels: Image.Image, radius: float) -> None:
    """Blur around what is not 0, in place."""
    if box := pixels.getbbox():
        margin = round(5 * radius)
        near = (
            max(0, box[0] - margin),
            max(0, box[1] - margin),
            min(pixels.width, box[2] + margin),
            min(pixels.height, box[3] + margin),
        )
        pixels.paste(pixels.crop(near).filter(ImageFilter.GaussianBlur(radius)), near)


def _middle(mask: np.ndarray) -> tuple[int, int]:
    """Return the set pixel (x, y) closest to the middle of the mask's box."""
    x0, y0, x1, y1 = box_of_mask(mask)
    rows, columns = np.nonzero(mask)
    nearest = np.argmin((columns - (x0 + x1 - 1) / 2) ** 2 + (rows - (y0 + y1 - 1) / 2) ** 2)
    return int(columns[nearest]), int(rows[nearest])


def distance_to_edge(owner: np.ndarray) -> np.ndarray:
    """Return each pixel's distance, float (height, width), to the next pixel where the owner changes; 0 on it."""
    edge = np.zeros(owner.shape, bool)
    vertical, horizontal = owner[1:] != owner[:-1], owner[:, 1:] != owner[:, :-1]
    edge[1:] |= vertical
    edge[:-1] |= vertical
    edge[:, 1:] |= horizontal
    edge[:, :-1] |= horizontal
    if not edge.any():
        return np.full(owner.shape, float(sum(owner.shape)))
    return ndimage.distance_transform_edt(~edge)


def paint_shapes(
    picture: Image.Image, shapes: Shapes, distance: np.ndarray, line: int, tint: float = TINT
) -> Image.Image:
    """Tint the regions, outline them white around their colour, and draw boxes and points."""
    owner = shapes.owner
    count = int(owner.max(initial=0))
    colors = np.array([(0, 0, 0), *(region_color(index) for index in range(count))], np.float32)
    alpha = np.where(distance < line, 1.0, tint).astype(np.float32)
    alpha[owner == 0] = 0
    pixels = np.asarray(picture, np.float32)
    pixels = pixels + (colors[owner] - pixels) * alpha[..., None]
    pixels[(owner > 0) & (distance < line / 2)] = WHITE
    painted = Image.fromarray(pixels.round().astype(np.uint8))
    draw = ImageDraw.Draw(painted)
    for index, (x0, y0, x1, y1) in (*shapes.boxes.items(), *shapes.frames.items()):
        corners = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        draw.rectangle(corners, outline=WHITE, width=line + 3)
        inner = tuple(side + (1 if place < 2 else -1) for place, side in enumerate(corners))
        if inner[2] > inner[0] and inner[3] > inner[1]:
            draw.rectangle(inner, outline=region_color(index), width=line + 1)
    for index, points in (*shapes.points.items(), *shapes.pins.items()):
        for x, y in points:
            dot = (x - 2 * line, y - 2 * line, x + 2 * line, y + 2 * line)
            draw.ellipse(dot, fill=region_color(index), outline=WHITE, width=max(1, line // 2))
    return painted
