"""Scenes to pixels: the picture and the id map, at any resolution."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from .outlines import Patch
from .scene import Ground, Scene, SceneObject

STRIPES = 8 / 128  # period, short sides: 8 pixels at 128
DOTS = 7.5 / 128  # period
CHECKERS = 5 / 128  # side of one field
SHADE = 0.3  # the dark half of a pattern, times the object's colour
EDGE, EDGE_SHADE = 0.0075, 0.45  # the outline separates objects of one colour
SPARE = 0.5  # by how much a tile of ground exceeds the picture, short sides


def draw_scene(scene: Scene, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene.

    Returns:
        The picture, uint8 (height, width, 3) RGB, and the id map, int32 (height, width): objects are 1, 2, ... back to
        front, grounds follow.
    """
    side, count = min(height, width), len(scene.objects)
    ids = np.full((height, width), count + 1, np.int32)
    canvas = _draw_ground(scene.grounds[0], height, width)
    if scene.border is not None:
        a, b, c = scene.border
        across = (np.arange(width, dtype=np.float32) + 0.5) * (a / side)
        down = (np.arange(height, dtype=np.float32) + 0.5) * (b / side)
        second = across + down[:, None] > c
        np.copyto(canvas, _draw_ground(scene.grounds[1], height, width), where=second)
        np.copyto(ids, np.int32(count + 2), where=second)
    for index, item in enumerate(scene.objects):
        patch = Patch(item.shape, item.x * side, item.y * side, item.extent * side, item.angle, height, width)
        inside = patch.depth > 0
        np.copyto(canvas[patch.window], _palette(item)[_tones(item, patch)], where=inside)
        np.copyto(ids[patch.window], np.int32(index + 1), where=inside)
    return np.ascontiguousarray(canvas.view(np.uint8).reshape(height, width, 4)[..., :3]), ids


def _palette(item: SceneObject) -> np.ndarray:
    """Return colour, dark half of the pattern and outline as packed pixels, uint32 (3,)."""
    factors = (1.0, SHADE, EDGE_SHADE)
    return np.array([[*(int(channel * factor) for channel in item.tint), 0] for factor in factors], np.uint8).view(
        np.uint32
    )[:, 0]


def _tones(item: SceneObject, patch: Patch) -> np.ndarray:
    """Return palette indices: 0 colour, 1 dark half of the pattern, 2 outline."""
    edge = patch.depth < EDGE / item.extent
    if item.texture == "plain":
        return edge * np.uint8(2)
    if item.texture == "striped":
        dark = _wave(patch.v, item.extent / STRIPES) < 0.25
    elif item.texture == "dotted":
        scale = item.extent / DOTS
        dark = _wave(patch.u, scale) ** 2 + _wave(patch.v, scale) ** 2 < 0.31**2
    else:
        scale = item.extent / CHECKERS
        dark = ((np.floor(patch.u * scale) + np.floor(patch.v * scale)).astype(np.int32) & 1).astype(bool)
    return np.where(edge, np.uint8(2), dark.astype(np.uint8))


def _wave(position: np.ndarray, scale: float) -> np.ndarray:
    """Return the distance to the nearest whole period, in periods: 0 to 0.5."""
    periods = position * scale
    return np.abs(periods - np.rint(periods))


def _draw_ground(ground: Ground, height: int, width: int) -> np.ndarray:
    """Cut the ground's part out of its tile: packed pixels, uint32 (height, width)."""
    tile = _tile(ground.kind, height, width)
    top, left = (int(shift * min(height, width) * SPARE) for shift in ground.shift)
    dimmed = np.multiply(tile[top : top + height, left : left + width], int(ground.brightness * 256), dtype=np.uint16)
    return (dimmed >> 8).astype(np.uint8).view(np.uint32)[..., 0]


@lru_cache(maxsize=32)
def _tile(kind: str, height: int, width: int) -> np.ndarray:
    """Return a piece of ground larger than the picture, uint8 (height + spare, width + spare, 4), RGB and 0."""
    side = min(height, width)
    spare = math.ceil(side * SPARE)
    x, y = (np.arange(width + spare) + 0.5) / side, (np.arange(height + spare) + 0.5) / side
    base, offset = _PATTERNS[kind](*np.meshgrid(x, y))
    tile = np.zeros((height + spare, width + spare, 4), np.uint8)
    tile[..., :3] = np.clip(np.asarray(base, np.float32) + offset[..., None], 0, 255)
    return tile


def _grain(x: np.ndarray, y: np.ndarray, columns: int, rows: int, seed: int) -> np.ndarray:
    """Return noise from -1 to 1, constant on cells of which columns x rows cover a short side square."""
    values = np.random.default_rng(seed).uniform(-1, 1, (256, 256))
    return values[(y * rows).astype(int) % 256, (x * columns).astype(int) % 256]


def _grass(x: np.ndarray, y: np.ndarray) -> tuple:
    return (92, 112, 70), 20 * _grain(x, y, 85, 27, 1) + 10 * _grain(x, y, 8, 8, 2)


def _sand(x: np.ndarray, y: np.ndarray) -> tuple:
    dunes = np.sin(2 * np.pi * (3.3 * y + 0.5 * np.sin(8.4 * x)))
    return (212, 194, 156), 9 * _grain(x, y, 107, 107, 3) + 5 * dunes


def _water(x: np.ndarray, y: np.ndarray) -> tuple:
    waves = np.sin(2 * np.pi * (9.3 * y + 0.35 * np.sin(2 * np.pi * 4 * x)))
    return (96, 130, 152), 16 * waves + 4 * _grain(x, y, 16, 64, 4)


def _snow(x: np.ndarray, y: np.ndarray) -> tuple:
    return (240, 244, 249), -26 * (_grain(x, y, 80, 80, 5) > 0.9) + 4 * _grain(x, y, 11, 11, 6)


def _brick(x: np.ndarray, y: np.ndarray) -> tuple:
    row = np.floor(y * 11)
    column = x * 5.5 + 0.5 * (row % 2)
    mortar = ((y * 11) % 1 < 0.16) | (column % 1 < 0.08)
    stone = 10 * _grain(column, row, 1, 1, 7) + 5 * _grain(x, y, 80, 80, 8)
    return (148, 108, 96), np.where(mortar, 58, stone)


def _wood(x: np.ndarray, y: np.ndarray) -> tuple:
    seam = (x * 5.3) % 1 < 0.06
    grain = 9 * np.sin(2 * np.pi * (27 * x + 0.8 * np.sin(8.4 * y))) + 9 * _grain(x * 5.3, y, 1, 0, 9)
    return (134, 103, 76), np.where(seam, -58, grain)


_PATTERNS = {"grass": _grass, "sand": _sand, "water": _water, "snow": _snow, "brick": _brick, "wood": _wood}
