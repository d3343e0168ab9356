"""What is in a scene and how its objects relate; no pixels yet.

Lengths are in short sides of the picture, the origin is its upper left corner, y points down. A scene therefore looks
the same at every resolution of one aspect ratio.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

import numpy as np

from .outlines import Patch, area_of

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
COLOURS = {
    "red": (226, 24, 30),
    "orange": (250, 132, 8),
    "yellow": (255, 238, 44),
    "green": (34, 178, 54),
    "cyan": (30, 216, 226),
    "blue": (44, 80, 245),
    "purple": (158, 50, 214),
    "pink": (255, 140, 206),
}
SIZES = {"small": (0.165, 0.18), "medium": (0.245, 0.265), "large": (0.355, 0.385)}
TEXTURES = ("plain", "striped", "dotted", "checkered")
GROUNDS = ("grass", "sand", "water", "snow", "brick", "wood")
RELATIONS = ("left of", "right of", "above", "below", "in front of", "behind")
PLACES = ("whole", "left", "right", "upper", "lower")

COUNTS = (3, 8)
GRID = 72  # cells per short side on which visibility is judged, whatever the resolution of the picture
MIN_VISIBLE = {"small": 0.7, "medium": 0.58, "large": 0.55}
ON_TOP = 0.2  # share of objects meant to lie partly on another one
COVERS = 0.12  # "in front of": covers at least this share of the smaller of the two
TILT = 0.26  # largest rotation, radians

T = TypeVar("T")


@dataclass(slots=True)
class SceneObject:
    """One object; scenes list them back to front."""

    shape: str
    colour: str
    size: str
    texture: str
    extent: float
    angle: float
    tint: tuple[int, int, int]
    x: float = 0.0
    y: float = 0.0
    ground: str = ""
    relation: str = ""
    other: int = 0  # index of the object that ``relation`` refers to: the nearest one


@dataclass(slots=True)
class Ground:
    """One piece of ground: its kind, where it lies and which part of its pattern shows."""

    kind: str
    place: str
    shift: tuple[float, float]
    brightness: float


@dataclass(slots=True)
class Scene:
    """A world of ``width`` x ``height`` short sides; the second ground lies where ax + by > c, border = (a, b, c)."""

    width: float
    height: float
    grounds: tuple[Ground, ...]
    border: tuple[float, float, float] | None
    objects: list[SceneObject]


def pick(rng: Random, options: Sequence[T]) -> T:
    """Return one option, uniformly; needs only ``Random.random``, whose stream Python guarantees."""
    return options[int(rng.random() * len(options))]


def between(rng: Random, low: float, high: float) -> float:
    """Return a number from [low, high)."""
    return low + (high - low) * rng.random()


def sample_scene(rng: Random, width: float, height: float) -> Scene:
    """Draw a scene: grounds, then attributes independent of each other, then places."""
    grounds, border = _sample_grounds(rng, width, height)
    objects = _place(rng, _sample_objects(rng), width, height)
    scene = Scene(width, height, grounds, border, objects)
    for item in objects:
        item.ground = ground_at(scene, item.x, item.y).kind
    return scene


def ground_at(scene: Scene, x: float, y: float) -> Ground:
    """Return the ground under a point."""
    if scene.border is None:
        return scene.grounds[0]
    a, b, c = scene.border
    return scene.grounds[int(a * x + b * y > c)]


def _sample_grounds(rng: Random, width: float, height: float) -> tuple[tuple[Ground, ...], tuple | None]:
    first = int(rng.random() * len(GROUNDS))
    second = (first + 1 + int(rng.random() * (len(GROUNDS) - 1))) % len(GROUNDS)

    def ground(kind: int, place: str) -> Ground:
        return Ground(GROUNDS[kind], place, (rng.random(), rng.random()), between(rng, 0.88, 1.0))

    if rng.random() < 0.4:
        return (ground(first, "whole"),), None
    sideways = rng.random() < 0.5
    slant = pick(rng, (0.0, 1.0)) * between(rng, -0.5, 0.5)  # radians away from the axis
    a, b = (math.cos(slant), math.sin(slant)) if sideways else (math.sin(slant), math.cos(slant))
    middle = a * width / 2 + b * height / 2
    border = (a, b, middle + between(rng, -0.15, 0.15) * (width if sideways else height))
    places = ("left", "right") if sideways else ("upper", "lower")
    return (ground(first, places[0]), ground(second, places[1])), border


def _sample_objects(rng: Random) -> list[SceneObject]:
    count, looks = COUNTS[0] + int(rng.random() * (COUNTS[1] - COUNTS[0] + 1)), []
    while len(looks) < count:
        look = (pick(rng, SHAPES), pick(rng, tuple(COLOURS)), pick(rng, tuple(SIZES)), pick(rng, TEXTURES))
        if look not in looks:  # two identical objects could not be told apart by words
            looks.append(look)
    return [_sample_object(rng, *look) for look in looks]


def _sample_object(rng: Random, shape: str, colour: str, size: str, texture: str) -> SceneObject:
    angle = 0.0 if shape == "circle" else between(rng, -TILT, TILT)
    tint = tuple(min(255, max(0, round(channel + between(rng, -9, 9)))) for channel in COLOURS[colour])
    return SceneObject(shape, colour, size, texture, between(rng, *SIZES[size]), angle, tint)


def _place(rng: Random, objects: list[SceneObject], width: float, height: float) -> list[SceneObject]:
    """Give every object a place where it and those below it stay visible, then relate each to its nearest."""
    for attempt in itertools.count():
        board = _Board(width, height)
        placed = [item for item in objects if board.add(rng, item)]
        if len(placed) == len(objects) or (attempt >= 20 and len(placed) >= COUNTS[0]):
            break  # after so many attempts the scene goes on without those that found no place
    objects = placed
    for index, item in enumerate(objects):
        item.other = min(
            (k for k in range(len(objects)) if k != index),
            key=lambda k: math.hypot(objects[k].x - item.x, objects[k].y - item.y),
        )
        item.relation = _relation(index, item.other, objects, board.covered)
    return objects


def _relation(index: int, other: int, objects: Sequence[SceneObject], covered: dict[tuple[int, int], float]) -> str:
    """Return the canonical relation of one object to another."""
    me, you = objects[index], objects[other]
    dx, dy = me.x - you.x, me.y - you.y
    close = math.hypot(dx, dy) < 0.5 * (me.extent + you.extent)
    if close and covered.get((min(index, other), max(index, other)), 0.0) >= COVERS:
        return "in front of" if index > other else "behind"
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


class _Board:
    """Places objects one after another, each in front of the earlier ones."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.owner = np.full((round(height * GRID), round(width * GRID)), -1, np.int8)
        self.placed: list[SceneObject] = []
        self.visible: list[float] = []  # cells
        self.covered: dict[tuple[int, int], float] = {}

    def add(self, rng: Random, item: SceneObject, tries: int = 40) -> bool:
        """Find a place and take it; False when none of ``tries`` is good."""
        margin = 0.44 * item.extent  # a corner may be cut off by the picture's border
        on_top = bool(self.placed) and rng.random() < ON_TOP
        for attempt in range(tries):
            x, y = self._propose(rng, item, on_top)
            if not (margin <= x <= self.width - margin and margin <= y <= self.height - margin):
                continue
            apart = 0.27 if on_top or attempt > tries // 2 else 0.52  # centres, times the sum of the extents
            free = all(math.hypot(x - it.x, y - it.y) > apart * (it.extent + item.extent) for it in self.placed)
            if free and self._take(item, x, y):
                return True
        return False

    def _propose(self, rng: Random, item: SceneObject, on_top: bool) -> tuple[float, float]:
        if not on_top:
            return rng.random() * self.width, rng.random() * self.height
        below, angle = pick(rng, self.placed), between(rng, 0, 2 * math.pi)
        distance = between(rng, 0.28, 0.42) * (below.extent + item.extent)
        return below.x + distance * math.cos(angle), below.y + distance * math.sin(angle)

    def _take(self, item: SceneObject, x: float, y: float) -> bool:
        patch = Patch(item.shape, x * GRID, y * GRID, item.extent * GRID, item.angle, *self.owner.shape)
        inside = patch.depth > 0
        window = self.owner[patch.window]
        hidden = np.bincount(window[inside] + 1, minlength=len(self.placed) + 1)[1:]
        if any(
            it.colour == item.colour or left - gone < MIN_VISIBLE[it.size] * area_of(it.shape) * (it.extent * GRID) ** 2
            for it, left, gone in zip(self.placed, self.visible, hidden, strict=True)
            if gone
        ):
            return False
        index, cells = len(self.placed), int(inside.sum())
        for k in np.flatnonzero(hidden):
            self.visible[k] -= hidden[k]
            full = min(area_of(it.shape) * it.extent**2 for it in (item, self.placed[k])) * GRID**2
            self.covered[int(k), index] = hidden[k] / full
        window[inside] = index
        item.x, item.y = x, y
        self.placed.append(item)
        self.visible.append(cells)
        return True
