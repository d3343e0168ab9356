"""The numbered list beside or below a picture: categories, scores and wrapped captions in columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from ..datasets.records import Category, Record, Region
from .badges import paint_badge
from .drawing import INK, MUTED, WHITE, load_font, printable, region_color, shorten, wrap_text
from .fonts import draw_text, text_length

Panel = Literal["right", "below", "none"]
COLUMN_WIDTH = 320  # least width of a column, pixels at a total of 1024


def category_name(region: Region, categories: Sequence[Category] | Mapping[int, str]) -> str:
    """Return the name of the region's category, its id when it has no name, nothing when it has no category."""
    if region.category_id is None:
        return ""
    names = categories if isinstance(categories, Mapping) else {category.id: category.name for category in categories}
    return printable(names.get(region.category_id, f"category {region.category_id}"))


def region_caption(region: Region) -> str:
    """Return the text to show for a region: its first caption, else its first phrase or expression, else nothing."""
    return next((printable(text) for text in (*region.captions, *region.phrases, *region.expressions) if text), "")


@dataclass(frozen=True, slots=True)
class Entry:
    """One item of the list."""

    index: int
    name: str
    score: str
    caption: str


def list_entries(record: Record, categories: Sequence[Category]) -> list[Entry]:
    names = {category.id: category.name for category in categories}
    return [
        Entry(index, category_name(region, names), format_score(region.score), region_caption(region))
        for index, region in enumerate(record.regions)
    ]


def format_score(score: float | None) -> str:
    """Return a score with two decimals, nothing for None."""
    return "" if score is None else f"{score:.2f}"


@dataclass(frozen=True, slots=True)
class ListStyle:
    """Sizes of the list, pixels."""

    text: int
    margin: int
    gap: int
    line: int
    badge: int
    column: int

    @classmethod
    def for_width(cls, max_width: int) -> ListStyle:
        scale = min(3.0, max(1.0, max_width / 1024))
        text = round(15 * scale)
        return cls(
            text,
            round(16 * scale),
            round(11 * scale),
            round(text * 1.3),
            round(11 * scale),
            round(COLUMN_WIDTH * scale),
        )


@dataclass(slots=True)
class _Column:
    """Items that stand under each other."""

    x: int
    y: int
    width: int
    entries: list[Entry]

    def bottom(self, style: ListStyle) -> int:
        return self.y + max(_height(self.entries, self.width, style), 2 * style.margin + style.line)


def compose(
    picture: Image.Image, entries: list[Entry], panel: Panel, title: str | None, style: ListStyle, max_width: int
) -> Image.Image:
    """Set title, picture and list on one canvas."""
    _, width = beside_width(picture, panel, style, max_width)
    heading = heading_picture(title, width, style)
    top = heading.height
    columns, bottom = [], top + picture.height
    if panel == "right":
        own, entries = _split_beside(entries, picture.height, width - picture.width, style)
        columns.append(_Column(picture.width, top, width - picture.width, own))
        bottom = max(bottom, columns[0].bottom(style))
    if entries or panel == "below":
        columns += _columns_below(entries, bottom, width, style)
    canvas = Image.new("RGB", (width, max([bottom, *(column.bottom(style) for column in columns)])), WHITE)
    canvas.paste(heading, (0, 0))
    canvas.paste(picture, (0 if panel == "right" else (width - picture.width) // 2, top))
    for column in columns:
        _paint_column(canvas, column, style)
    return canvas


def beside_width(picture: Image.Image, panel: Panel, style: ListStyle, max_width: int) -> tuple[int, int]:
    """Return the width of what stands at the right of a picture (0: nothing does), and of both."""
    beside = int(np.clip(max_width - picture.width, style.column, 1.6 * style.column)) if panel == "right" else 0
    return beside, min(max_width, max(picture.width + beside, round(1.6 * style.column)))


def heading_picture(title: str | None, width: int, style: ListStyle) -> Image.Image:
    """Return the title on white, at most two lines; no row of pixels without one."""
    bold = load_font(style.text + 1, bold=True)
    lines = wrap_text(title, bold, width - 2 * style.margin, max_lines=2) if title else []
    picture = Image.new("RGB", (width, len(lines) * style.line + (style.margin if lines else 0)), WHITE)
    for row, line in enumerate(lines):
        place = style.margin, style.margin // 2 + row * style.line
        draw_text(ImageDraw.Draw(picture), place, line, font=bold, fill=INK)
    return picture


def _split_beside(entries: list[Entry], height: int, width: int, style: ListStyle) -> tuple[list[Entry], list[Entry]]:
    """Split the list into what stands beside the picture and what flows on below; a little overhang is no reason to."""
    if _height(entries, width, style) <= 1.25 * height:
        return entries, []
    count = 0
    while count < len(entries) and _height(entries[: count + 1], width, style) <= height:
        count += 1
    return entries[:count], entries[count:]


def _columns_below(entries: list[Entry], top: int, width: int, style: ListStyle) -> list[_Column]:
    """Break a list into columns of about one height, over the full width."""
    count = max(1, min(width // style.column, len(entries)))
    column_width = width // count
    heights = [_entry_height(entry, column_width, style) for entry in entries]
    limit = max([math.ceil(sum(heights) / count), *heights])
    while len(groups := _grouped(entries, heights, limit)) > count:
        limit += style.line
    column_width = width // len(groups)
    return [_Column(place * column_width, top, column_width, group) for place, group in enumerate(groups)]


def _grouped(entries: list[Entry], heights: list[int], limit: int) -> list[list[Entry]]:
    """Fill one group after the other up to ``limit``."""
    groups: list[list[Entry]] = [[]]
    used = 0
    for entry, height in zip(entries, heights, strict=True):
        if groups[-1] and used + height > limit:
            groups.append([])
            used = 0
        groups[-1].append(entry)
        used += height
    return groups


def _lines(entry: Entry, width: int, style: ListStyle) -> list[str]:
    return wrap_text(entry.caption, load_font(style.text), width - 2 * style.margin - 3 * style.badge)


def _entry_height(entry: Entry, width: int, style: ListStyle) -> int:
    head = bool(entry.name or entry.score)
    return max(2 * style.badge, (head + len(_lines(entry, width, style))) * style.line) + style.gap


def _height(entries: list[Entry], width: int, style: ListStyle) -> int:
    return sum(_entry_height(entry, width, style) for entry in entries) + 2 * style.margin


def _paint_column(canvas: Image.Image, column: _Column, style: ListStyle) -> None:
    draw = ImageDraw.Draw(canvas)
    y = column.y + style.margin
    if not column.entries:
        draw.text((column.x + style.margin, y), "no regions", font=load_font(style.text), fill=MUTED)
    for entry in column.entries:
        _paint_entry(canvas, draw, entry, (column.x + style.margin, y), column.width, style)
        y += _entry_height(entry, column.width, style)


def _paint_entry(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, entry: Entry, corner: tuple[int, int], width: int, style: ListStyle
) -> None:
    """Draw badge, category and score, and the caption under them."""
    x, y = corner
    paint_badge(canvas, (x + style.badge, y + style.badge - 1), style.badge, entry.index + 1, region_color(entry.index))
    x += 3 * style.badge
    if entry.name or entry.score:
        bold, small = load_font(style.text, bold=True), load_font(style.text - 2)
        room = width - 2 * style.margin - 3 * style.badge - small.getlength(f"  {entry.score}")
        name = shorten(entry.name, bold, room)
        draw_text(draw, (x, y), name, font=bold, fill=INK)
        draw.text((x + (text_length(f"{name} ", bold) if name else 0), y + 2), entry.score, font=small, fill=MUTED)
        y += style.line
    for line in _lines(entry, width, style):
        draw_text(draw, (x, y), line, font=load_font(style.text), fill=INK)
        y += style.line
