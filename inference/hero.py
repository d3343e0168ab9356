"""The picture at the head of a page: a few images side by side, each with its regions and the sentences about them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from ..datasets.records import Category, Record
from ..utils.files import atomic_path
from .caption_list import ListStyle, compose, list_entries
from .drawing import WHITE, ImageLike
from .visualise import paint_regions

WIDTH, GAP = 1200, 24  # pixels
TINT = 0.1  # little, since the sentences speak of colours
STYLE = ListStyle(text=17, margin=8, gap=12, line=22, badge=13, column=200)
IMAGES, THINGS = 3, 4  # shown; in each, so that the columns have about one length


def hero_picture(items: Iterable[tuple[ImageLike, Record]], categories: Sequence[Category]) -> Image.Image:
    """Draw images in one row, each above the sentences about its things.

    Args:
        items: (image, regions) each; the first `IMAGES` with `THINGS` things are shown, or the first.
        categories: names for the regions' ``category_id``.

    Returns:
        An RGB image, `WIDTH` wide.
    """
    things = {category.id for category in categories if category.is_thing}
    shown = _chosen([(image, _only(record, things)) for image, record in items])
    width = (WIDTH - GAP * (len(shown) + 1)) // len(shown)
    columns = []
    for image, record in shown:
        picture, _ = paint_regions(image, record, width, width, tint=TINT)
        columns.append(compose(picture, list_entries(record, categories), "below", None, STYLE, width))
    hero = Image.new("RGB", (WIDTH, max(column.height for column in columns) + GAP), WHITE)
    for place, column in enumerate(columns):
        hero.paste(column, (GAP + place * (width + GAP) + (width - column.width) // 2, GAP))
    return hero


def _only(record: Record, things: set[int]) -> Record:
    return replace(record, regions=[region for region in record.regions if region.category_id in things])


def _chosen(items: list[tuple[ImageLike, Record]]) -> list[tuple[ImageLike, Record]]:
    fitting = [item for item in items if len(item[1].regions) == THINGS]
    return (fitting if len(fitting) >= IMAGES else items)[:IMAGES]


def write_small(picture: Image.Image, path: str | Path, colors: int = 256) -> Path:
    """Write a picture as a PNG of a palette: a third of the bytes, for pages and repositories."""
    reduced = picture.quantize(colors, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    with atomic_path(Path(path)) as temporary:
        reduced.save(temporary, "PNG", optimize=True)
    return Path(path)
