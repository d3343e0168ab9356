"""Pictures of a record: numbered, coloured regions and their captions, beside the truth if wanted.

The number and the colour of a region follow its place in ``record.regions``, so they agree between the picture, the
list, the table and the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from ..datasets.records import Category, Record, box_of_mask
from .badges import paint_badges, place_badges
from .caption_list import ListStyle, Panel, compose, list_entries
from .drawing import (
    LETTERBOX,
    TINT,
    WHITE,
    Color,
    ImageLike,
    Shapes,
    as_picture,
    distance_to_edge,
    fitted_picture,
    ink_on,
    paint_shapes,
    printable,
    rasterise,
    region_color,
    region_masks,
)
from .narratives import draw_narrative, place_words

STACK_GAP = 12
PICTURE_SHARE = 0.625  # of the width, when the list stands at the right
WIDEST_BESIDE = 2.4  # width / height from which a list at the right would leave too little for the picture


def draw_record(
    image: ImageLike | None,
    record: Record,
    categories: Sequence[Category],
    *,
    panel: Panel = "right",
    title: str | None = None,
    max_width: int = 1024,
) -> Image.Image:
    """Draw the regions over the image, and a numbered list of categories, scores and captions; then each narrative.

    Regions with a mask are tinted and outlined, regions with only a box get its frame, with only points dots. Every
    narrative has a picture of its own below (`draw_narrative`); where there are no regions, it alone is drawn. Small
    images are enlarged.

    Args:
        image: PIL image or uint8 (height, width, 3) RGB; None reads the record's own.
        record: truth or prediction; its height and width are the frame of masks, boxes and paths.
        categories: names for the regions' ``category_id``.
        panel: where the list stands. ``right`` becomes ``below`` for very wide images; a long list flows on below.
        title: one line above.
        max_width: of the result, pixels. The text grows with it: 15 px at 1024.

    Returns:
        An RGB image, at most ``max_width`` wide.
    """
    image = as_picture(record.read_image() if image is None else image)
    if panel == "right" and image.width > WIDEST_BESIDE * image.height:
        panel = "below"
    picture_width = round(max_width * (PICTURE_SHARE if panel == "right" else 1))
    parts = []
    if record.regions or not record.narratives:
        parts.append(_draw_regions(image, record, categories, panel, title, max_width, picture_width))
    for narrative in record.narratives:
        parts.append(
            draw_narrative(
                image,
                narrative,
                (record.height, record.width),
                panel=panel,
                title=None if parts else title,
                max_width=max_width,
                picture_width=picture_width,
            )
        )
    return _stacked(parts)


def _draw_regions(
    image: Image.Image,
    record: Record,
    categories: Sequence[Category],
    panel: Panel,
    title: str | None,
    max_width: int,
    picture_width: int,
) -> Image.Image:
    picture, _ = paint_regions(image, record, picture_width, max_width)
    if panel == "none" and title is None:
        return picture
    style = ListStyle.for_width(max_width)
    entries = [] if panel == "none" else list_entries(record, categories)
    return compose(picture, entries, panel, title, style, max_width)


def _stacked(parts: Sequence[Image.Image]) -> Image.Image:
    """Set pictures under each other, with a gap."""
    height = sum(part.height + STACK_GAP for part in parts) - STACK_GAP
    stack = Image.new("RGB", (max(part.width for part in parts), height), WHITE)
    top = 0
    for part in parts:
        stack.paste(part, (0, top))
        top += part.height + STACK_GAP
    return stack


def paint_regions(
    image: ImageLike, record: Record, max_width: int, max_height: int, *, tint: float = TINT
) -> tuple[Image.Image, Shapes]:
    """Draw the regions and their badges over the image.

    A sliver of an image is set on a grey ground that has room for badges. ``tint`` is the share of a region's colour
    in its pixels.

    Returns:
        The picture, and the shapes in its pixels.
    """
    picture = fitted_picture(image, max_width, max_height)
    longest = max(picture.size)
    radius = int(np.clip(round((picture.width * picture.height) ** 0.5 / 50), 10, 18))
    shapes = rasterise(record, picture.size)
    distance = distance_to_edge(shapes.owner)
    painted = paint_shapes(picture, shapes, distance, line=max(2, round(longest / 400)), tint=tint)
    ground = max(painted.width, 6 * radius), max(painted.height, 6 * radius)
    if ground != painted.size:
        left, top = (ground[0] - painted.width) // 2, (ground[1] - painted.height) // 2
        shapes = shapes.moved(left, top, ground)
        distance = distance_to_edge(shapes.owner)
        canvas = Image.new("RGB", ground, LETTERBOX)
        canvas.paste(painted, (left, top))
        painted = canvas
    badges, radius = place_badges(shapes, distance, radius)
    paint_badges(painted, badges, radius)
    return painted, shapes


def comparison_grid(
    items: Sequence[tuple[ImageLike | None, Record, Record]],
    categories: Sequence[Category],
    columns: int = 1,
    *,
    pair_width: int = 1024,
) -> Image.Image:
    """Draw pairs of pictures, the truth at the left and the prediction at the right, captions beneath each.

    Narratives are drawn where both sides have some.

    Args:
        items: (image or None, truth, prediction) each.
        categories: names for the regions' ``category_id``.
        columns: pairs per row.
        pair_width: pixels.

    Returns:
        An RGB image, ``columns * pair_width`` wide.
    """
    columns = max(1, min(columns, len(items)))
    pairs = [_pair(image, truth, prediction, categories, pair_width) for image, truth, prediction in items]
    rows = [pairs[start : start + columns] for start in range(0, len(pairs), columns)]
    heights = [max(pair.height for pair in row) for row in rows]
    grid = Image.new("RGB", (columns * pair_width, max(1, sum(heights))), WHITE)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for place, pair in enumerate(row):
            grid.paste(pair, (place * pair_width, top))
        top += height
    return grid


def _pair(
    image: ImageLike | None, truth: Record, prediction: Record, categories: Sequence[Category], width: int
) -> Image.Image:
    image = truth.read_image() if image is None else image
    half = (width - 8) // 2
    if not (truth.narratives and prediction.narratives):
        truth, prediction = (replace(record, narratives=()) for record in (truth, prediction))
    sides = [
        draw_record(image, record, categories, panel="below", title=f"{label} · {truth.image_id}", max_width=half)
        for label, record in (("truth", truth), ("prediction", prediction))
    ]
    pair = Image.new("RGB", (width, max(side.height for side in sides) + 8), WHITE)
    for place, side in enumerate(sides):
        pair.paste(side, (place * (half + 8) + (half - side.width) // 2, 0))
    return pair


def print_record(record: Record, categories: Sequence[Category], console: Console, prompts: Sequence[str] = ()) -> None:
    """Print the regions as a table (`print_regions`), and every narrative in the colours of its picture."""
    if record.regions or not record.narratives:
        print_regions(record, categories, console, prompts)
    for narrative in record.narratives:
        words = place_words(narrative, (1.0, 1.0), (record.width, record.height))
        styled = ((f" {word.text} ", _on(word.color) if word.point else "") for word in words)
        console.print(Text("narrative", "italic"))
        console.print(Text.assemble(*styled))


def print_regions(
    record: Record, categories: Sequence[Category], console: Console, prompts: Sequence[str] = ()
) -> None:
    """Print the regions as a table: number, category, score, box (x0 y0 x1 y1, pixels) and caption.

    With ``prompts``, one per region, these stand in place of the category.
    """
    table = Table(title=f"{len(record.regions)} regions", title_justify="left")
    for name, justify in (
        ("#", "right"),
        ("prompt" if prompts else "category", "left"),
        ("score", "right"),
        ("box", "right"),
        ("caption", "left"),
    ):
        table.add_column(name, justify=justify, overflow="fold")
    for entry, box in zip(list_entries(record, categories), region_boxes(record), strict=True):
        corners = " ".join(f"{side:.0f}" for side in box) if box else ""
        name = printable(prompts[entry.index]) if prompts else entry.name
        caption = entry.caption if not prompts or record.regions[entry.index].captions else ""  # not the phrase again
        # Text, not str: a caption may hold square brackets, which are markup to rich
        texts = (Text(part) for part in (name, entry.score, corners, caption))
        table.add_row(Text(f" {entry.index + 1} ", _on(region_color(entry.index))), *texts)
    console.print(table)


def _on(color: Color) -> Style:
    return Style(color="rgb({},{},{})".format(*ink_on(color)), bgcolor="rgb({},{},{})".format(*color))


def region_boxes(record: Record) -> list[tuple[float, float, float, float] | None]:
    """Return each region's box (x0, y0, x1, y1), from its mask where it has none itself; None without geometry."""
    return [
        region.box_xyxy or (box_of_mask(mask) if mask is not None else None)
        for region, mask in zip(record.regions, region_masks(record), strict=True)
    ]
