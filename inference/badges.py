"""Numbered badges: one inside each region, none over another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .drawing import WHITE, Color, Shapes, ink_on, load_font, region_color

SMALLEST_RADIUS = 5


@dataclass(frozen=True, slots=True)
class Badge:
    """Where the number of a region stands; ``anchor`` is the point of the region that it speaks for."""

    index: int
    center: tuple[int, int]
    anchor: tuple[int, int]


def place_badges(shapes: Shapes, distance: np.ndarray, radius: int) -> tuple[list[Badge], int]:
    """Choose a place for every region's badge.

    A badge stands on the point of its region that is farthest from the region's edge and free of other badges, else on
    the free point of the picture closest to it. When there is no room for all, all badges shrink.

    Args:
        shapes: what is drawn.
        distance: of each pixel to the next edge (`distance_to_edge`).
        radius: of the badges, pixels, where there is room.

    Returns:
        The badges by region index, and their radius. Where not even the smallest badges have room, some are left out.
    """
    height, width = distance.shape
    rows, columns = np.ogrid[:height, :width]
    border = np.minimum(np.minimum(rows + 1, height - rows), np.minimum(columns + 1, width - columns))
    depth = np.minimum(distance + 1, border)
    while True:
        badges = _try_places(shapes, depth, border >= min(radius + 1, (min(height, width) + 1) // 2), radius)
        if badges.complete or radius <= SMALLEST_RADIUS:
            return sorted(badges.placed, key=lambda badge: badge.index), radius
        radius = max(SMALLEST_RADIUS, round(radius * 0.8))


@dataclass(slots=True)
class _Attempt:
    placed: list[Badge]
    complete: bool


def _try_places(shapes: Shapes, depth: np.ndarray, free: np.ndarray, radius: int) -> _Attempt:
    """Place the badges of the smallest regions first, since those have the least choice."""
    attempt = _Attempt([], True)
    free = free.copy()
    for index, anchor, candidates in _anchors(shapes, depth, radius):
        center = _free_place(anchor, candidates, depth, free)
        if center is None:
            attempt.complete = False
            continue
        _block(free, center, 2 * radius + 2)
        attempt.placed.append(Badge(index, center, anchor))
    return attempt


def _anchors(shapes: Shapes, depth: np.ndarray, radius: int) -> list[tuple[int, tuple[int, int], np.ndarray]]:
    """Return (region index, most interior point, flat indices of its pixels), smallest region first."""
    height, width = depth.shape
    order = np.argsort(shapes.owner, axis=None, kind="stable")
    owners, starts = np.unique(shapes.owner.ravel()[order], return_index=True)
    found = []
    for owner, pixels in zip(owners.tolist(), np.split(order, starts[1:]), strict=True):
        if owner:
            y, x = divmod(int(pixels[np.argmax(depth.ravel()[pixels])]), width)
            found.append((owner - 1, (x, y), pixels))
    found.sort(key=lambda item: len(item[2]))
    corners = {index: (min(x0, x1) + radius, min(y0, y1) + radius) for index, (x0, y0, x1, y1) in shapes.boxes.items()}
    single = corners | shapes.hidden | {index: points[0] for index, points in shapes.points.items()}
    for index, (x, y) in single.items():
        inside = int(np.clip(x, 0, width - 1)), int(np.clip(y, 0, height - 1))
        found.append((index, inside, np.empty(0, np.int64)))
    return found


def _free_place(
    anchor: tuple[int, int], candidates: np.ndarray, depth: np.ndarray, free: np.ndarray
) -> tuple[int, int] | None:
    """Return the free pixel deepest in the region, else the one closest to the anchor, else None."""
    x, y = anchor
    if free[y, x]:
        return anchor
    width = free.shape[1]
    inside = candidates[free.ravel()[candidates]]
    if len(inside):
        row, column = divmod(int(inside[np.argmax(depth.ravel()[inside])]), width)
        return column, row
    rows, columns = np.nonzero(free)
    if not len(rows):
        return None
    nearest = np.argmin((columns - x) ** 2 + (rows - y) ** 2)
    return int(columns[nearest]), int(rows[nearest])


def _block(free: np.ndarray, center: tuple[int, int], radius: int) -> None:
    """Clear the open disc of ``radius`` around ``center``."""
    x, y = center
    top, left = max(0, y - radius), max(0, x - radius)
    window = free[top : y + radius + 1, left : x + radius + 1]
    rows, columns = np.ogrid[top : top + window.shape[0], left : left + window.shape[1]]
    window[(columns - x) ** 2 + (rows - y) ** 2 < radius**2] = False


def paint_badges(picture: Image.Image, badges: list[Badge], radius: int) -> None:
    """Draw the badges; one that had to move away from its region is tied to it by a line."""
    draw = ImageDraw.Draw(picture)
    for badge in badges:
        if np.hypot(badge.center[0] - badge.anchor[0], badge.center[1] - badge.anchor[1]) > radius:
            draw.line((badge.center, badge.anchor), fill=WHITE, width=3)
            draw.line((badge.center, badge.anchor), fill=region_color(badge.index), width=1)
    for badge in badges:
        paint_badge(picture, badge.center, radius, badge.index + 1, region_color(badge.index))


def paint_badge(picture: Image.Image, center: tuple[int, int], radius: int, number: int, color: Color) -> None:
    """Draw a number in a disc of ``radius`` pixels, drawn larger and reduced so that its rim is smooth."""
    zoom = 4
    side = (2 * radius + 1) * zoom
    disc = Image.new("RGBA", (side, side), (255, 255, 255, 0))
    draw = ImageDraw.Draw(disc)
    draw.ellipse((0, 0, side - 1, side - 1), fill=(*WHITE, 255))
    draw.ellipse((zoom, zoom, side - 1 - zoom, side - 1 - zoom), fill=(*color, 255))
    size = round(side * {1: 0.62, 2: 0.54}.get(len(str(number)), 0.4))
    draw.text((side / 2, side / 2), str(number), font=load_font(size, bold=True), fill=ink_on(color), anchor="mm")
    disc = disc.resize((2 * radius + 1, 2 * radius + 1), Image.Resampling.LANCZOS)
    picture.paste(disc, (center[0] - radius, center[1] - radius), disc)
