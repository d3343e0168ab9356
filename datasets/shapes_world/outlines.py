"""The six outlines as lookup tables: how deep inside its shape does a point lie?

Coordinates are the shape's own: origin at its centre, y down, the unit is its extent (about its larger side).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

REACH = 1.1  # the tables cover [-REACH, REACH] on both axes: any rotated patch fits
CELLS = 512


def _star() -> list[tuple[float, float]]:
    radii, step = (0.56, 0.3), math.pi / 5
    return [(radii[i % 2] * math.sin(i * step), -radii[i % 2] * math.cos(i * step)) for i in range(10)]


def _heart() -> list[tuple[float, float]]:
    angles = [2 * math.pi * i / 96 for i in range(96)]
    height = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in angles]
    return [(math.sin(t) ** 3 * 0.52, -(y + 1.5) / 31) for t, y in zip(angles, height, strict=True)]


def _circle() -> list[tuple[float, float]]:
    angles = [2 * math.pi * i / 96 for i in range(96)]
    return [(0.5 * math.sin(t), -0.5 * math.cos(t)) for t in angles]


def _cross() -> list[tuple[float, float]]:
    arm, half = 0.51, 0.2
    corner = [(-half, -arm), (half, -arm), (half, -half)]
    points = []
    for _ in range(4):  # a quarter turn at a time
        points += corner
        corner = [(-y, x) for x, y in corner]
    return points


@lru_cache(maxsize=1)
def _polygons() -> dict[str, list[tuple[float, float]]]:
    return {
        "circle": _circle(),
        "square": [(-0.44, -0.44), (0.44, -0.44), (0.44, 0.44), (-0.44, 0.44)],
        "triangle": [(0.0, -0.6), (0.54, 0.36), (-0.54, 0.36)],
        "star": _star(),
        "cross": _cross(),
        "heart": _heart(),
    }


@lru_cache(maxsize=16)
def depth_table(shape: str) -> np.ndarray:
    """Return the depth inside the outline, float32 (CELLS, CELLS) in extents; 0 outside."""
    canvas = Image.new("1", (CELLS, CELLS))
    scale = CELLS / (2 * REACH)
    ImageDraw.Draw(canvas).polygon([((x + REACH) * scale, (y + REACH) * scale) for x, y in _polygons()[shape]], fill=1)
    return (ndimage.distance_transform_edt(np.asarray(canvas)) / scale).astype(np.float32)


@lru_cache(maxsize=16)
def radius_of(shape: str) -> float:
    """Return the distance of the farthest outline point from the centre in extents."""
    return max(math.hypot(x, y) for x, y in _polygons()[shape])


@lru_cache(maxsize=16)
def area_of(shape: str) -> float:
    """Return the area of the outline in squared extents."""
    return float((depth_table(shape) > 0).mean() * (2 * REACH) ** 2)


@lru_cache(maxsize=16)
def landmarks(shape: str) -> tuple[tuple[float, float], ...]:
    """Return five points of the shape: its centre and where its own axes leave it (top, bottom, left, right)."""
    inside = depth_table(shape) > 0
    middle, cell = CELLS // 2, 2 * REACH / CELLS
    column, row = np.flatnonzero(inside[:, middle]), np.flatnonzero(inside[middle])
    up, down, left, right = ((k - middle) * cell * 0.97 for k in (column[0], column[-1], row[0], row[-1]))
    return ((0.0, 0.0), (0.0, float(up)), (0.0, float(down)), (float(left), 0.0), (float(right), 0.0))


class Patch:
    """The pixels around one placed shape.

    Args:
        shape: name of the outline.
        x, y, extent: centre and size in pixels.
        angle: rotation, radians.
        height, width: size of the image that clips the patch.

    Attributes:
        window: (rows, columns) slices of the image.
        u, v: own coordinates of the window's pixel centres in extents, float32.
        depth: depth inside the outline in extents, 0 outside.
    """

    __slots__ = ("depth", "u", "v", "window")

    def __init__(self, shape: str, x: float, y: float, extent: float, angle: float, height: int, width: int) -> None:
        reach = radius_of(shape) * extent
        left, right = max(0, int(x - reach)), min(width, int(x + reach) + 1)
        top, bottom = max(0, int(y - reach)), min(height, int(y + reach) + 1)
        self.window = (slice(top, bottom), slice(left, right))
        across = (np.arange(left, right, dtype=np.float32) + (0.5 - x)) / extent
        down = ((np.arange(top, bottom, dtype=np.float32) + (0.5 - y)) / extent)[:, None]
        cos, sin = math.cos(angle), math.sin(angle)
        self.u = across * cos + down * sin
        self.v = down * cos - across * sin
        scale, middle = np.float32(CELLS / (2 * REACH)), np.float32(CELLS / 2)
        cells = (self.v * scale + middle).astype(np.intp) * CELLS
        cells += (self.u * scale + middle).astype(np.intp)
        self.depth = depth_table(shape).take(cells, mode="clip")
