"""The picture at the head of a page: a few images side by side, each with its regions and the sentences about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..datasets.records import Category, Record
from ..utils.files import atomic_path
from .caption_list import ListStyle, compose, list_entries
from .drawing import WHITE, ImageLike
from .visualise import paint_regions

WIDTH, GAP = 1200, 24  # pixels
STYLE = ListStyle(text=17, margin=8, gap=12, line=22, badge=13, column=200)
SENTENCES = 4  # under each image


def hero_picture(items: Sequence[tuple[ImageLike, Record]], categories: Sequence[Category]) -> Image.Image:
    """Draw the images in one row, each above its first sentences.

    Args:
        items: (image, regions) each.
        categories: names for the regions' ``category_id``.

    Returns:
        An RGB image, `WIDTH` wide.
    """
    width = (WIDTH - GAP * (len(items) + 1)) // len(items)
    columns = []
    for image, record in items:
        picture, _ = paint_regions(image, record, width, width)
        columns.append(compose(picture, list_entries(record, categories)[:SENTENCES], "below", None, STYLE, width))
    hero = Image.new("RGB", (WIDTH, max(column.height for column in columns) + GAP), WHITE)
    for place, column in enumerate(columns):
        hero.paste(column, (GAP + place * (width + GAP) + (width - column.width) // 2, GAP))
    return hero


def write_small(picture: Image.Image, path: str | Path, colors: int = 256) -> Path:
    """Write a picture as a PNG of a palette: a third of the bytes, for pages and repositories."""
    with atomic_path(Path(path)) as temporary:
        picture.quantize(colors, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            temporary, "PNG", optimize=True
        )
    return Path(path)
