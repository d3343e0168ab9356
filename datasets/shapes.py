"""The embedded data set: a procedural world of shapes, drawn while it is read. No files, no download.

Every scene holds 3 to 8 objects (6 shapes x 8 colours x 3 sizes x 4 textures) on one or two of six kinds of ground.
Objects may cover each other, yet most of each stays visible. A scene is a function of (seed, split, index), its layout
does not depend on the resolution, and its record carries every kind of truth: masks, boxes, keypoints, attributes,
captions, phrases, referring expressions, narratives with traces and conversations.

    >>> scenes = Shapes(6000, seed=0, split="train", image_size=128)
    >>> scenes[0].regions[0].captions
    ('a small red striped star is to the left of a blue heart', ...)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

import numpy as np
from scipy import ndimage

from ..utils.errors import DataError, nearest
from .records import Category, Narrative, Record, Region, TimedWord, Turn
from .shapes_world import language
from .shapes_world.draw import draw_scene
from .shapes_world.outlines import landmarks
from .shapes_world.reading import CaptionFacts, holds, read_caption
from .shapes_world.scene import GROUNDS, SHAPES, Scene, SceneObject, sample_scene

__all__ = ["CATEGORIES", "KEYPOINT_NAMES", "SPLITS", "CaptionFacts", "Shapes", "holds", "read_caption"]

SPLITS = ("train", "val", "test")
KEYPOINT_NAMES = ("centre", "top", "bottom", "left", "right")
MIN_SIDE = 32  # smaller pictures show no pattern
FIRST_GROUND = 101  # category id
_THING_COLORS = ((220, 60, 60), (60, 120, 220), (240, 200, 60), (80, 190, 100), (170, 90, 210), (240, 130, 190))
_GROUND_COLORS = ((88, 108, 66), (206, 188, 150), (92, 124, 146), (236, 240, 245), (142, 104, 92), (128, 98, 72))
CATEGORIES = tuple(
    [Category(k + 1, name, True, color) for k, (name, color) in enumerate(zip(SHAPES, _THING_COLORS, strict=True))]
    + [
        Category(FIRST_GROUND + k, name, False, color)
        for k, (name, color) in enumerate(zip(GROUNDS, _GROUND_COLORS, strict=True))
    ]
)
_CATEGORY_IDS = {category.name: category.id for category in CATEGORIES}


class Shapes:
    """The scenes of one split, a sequence of records.

    Things come first in ``Record.regions``, back to front; region ids count from 1 and equal the id map's values.
    Things carry the attributes shape, colour, size, texture, ground and, towards the nearest other object, relation,
    other_colour and other_shape; pieces of ground carry ground and place. Keypoints are `KEYPOINT_NAMES` along the
    shape's own axes with visibility 2 seen, 1 covered, 0 outside the picture.

    Args:
        num_scenes: length of the split.
        seed: two seeds share no scenes.
        split: one of `SPLITS`; two splits share no scenes.
        image_size: side of the square picture, or (height, width), pixels.

    Raises:
        DataError: an unknown split, no scenes or a picture size that is none.
    """

    categories: tuple[Category, ...] = CATEGORIES

    def __init__(
        self, num_scenes: int, seed: int = 0, split: str = "train", image_size: int | Sequence[int] = 128
    ) -> None:
        if split not in SPLITS:
            close = nearest(str(split), SPLITS)
            hint = ", ".join(SPLITS) + (f" (did you mean {close}?)" if close else "")
            raise DataError("Unknown split of the shapes data set.", where="split", value=split, allowed=hint)
        if num_scenes < 1:
            raise DataError("A data set needs scenes.", where="num_scenes", value=num_scenes, allowed="1 or more")
        size = tuple(image_size) if hasattr(image_size, "__len__") else (image_size, image_size)
        if len(size) != 2 or not all(isinstance(length, int) and length >= MIN_SIDE for length in size):
            allowed = f"a side or (height, width) in whole pixels, {MIN_SIDE} or more"
            raise DataError("No such picture size.", where="image_size", value=image_size, allowed=allowed)
        self.num_scenes, self.seed, self.split, self.image_size = num_scenes, seed, split, size

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> Record:
        """Draw scene ``index``; its image id is its index."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        index = int(index) % len(self)
        height, width = self.image_size
        rng, side = Random(f"shapes/{self.seed}/{self.split}/{index}"), min(height, width)  # noqa: S311 - drawings, no secrets
        scene = sample_scene(rng, width / side, height / side)
        image, ids = draw_scene(scene, height, width)
        return _record(rng, scene, image, ids, index)


def _record(rng: Random, scene: Scene, image: np.ndarray, ids: np.ndarray, image_id: int) -> Record:
    height, width = ids.shape
    side, things = min(height, width), len(scene.objects)
    regions = [_thing(rng, scene, k, ids) for k in range(things)]
    regions += [_ground(rng, scene, k, things + 1 + k) for k in range(len(scene.grounds))]
    for region, (box, area) in zip(regions, _boxes_and_areas(ids, len(regions)), strict=True):
        region.box_xyxy, region.area = box, area
    talks = [
        tuple(Turn(role, text, tuple(k + 1 for k in indices)) for role, text, indices in talk)
        for talk in language.conversations_of(rng, scene)
    ]
    return Record(
        image_id, height, width, image,
        regions=regions,
        id_map=ids,
        captions=language.image_captions_of(rng, scene),
        narratives=(_narrative(scene, side),),
        conversations=tuple(talks),
    )  # fmt: skip


def _thing(rng: Random, scene: Scene, index: int, ids: np.ndarray) -> Region:
    item = scene.objects[index]
    other = scene.objects[item.other]
    return Region(
        index + 1,
        _CATEGORY_IDS[item.shape],
        keypoints=_keypoints(item, index + 1, ids),
        captions=language.captions_of(rng, scene, index),
        phrases=language.phrases_of(rng, item),
        expressions=language.expressions_of(rng, scene, index),
        attributes={
            "shape": item.shape, "colour": item.colour, "size": item.size, "texture": item.texture,
            "relation": item.relation, "other_colour": other.colour, "other_shape": other.shape, "ground": item.ground,
        },
    )  # fmt: skip


def _ground(rng: Random, scene: Scene, index: int, region_id: int) -> Region:
    ground = scene.grounds[index]
    captions = language.ground_captions_of(rng, scene, index)
    attributes = {"ground": ground.kind, "place": ground.place}
    return Region(
        region_id, _CATEGORY_IDS[ground.kind], captions=captions, phrases=_ground_phrases(ground.kind, ground.place),
        expressions=(f"the {ground.kind}",), attributes=attributes,
    )  # fmt: skip


def _ground_phrases(kind: str, place: str) -> tuple[str, ...]:
    return (f"{place} {kind}", f"the {kind} ground")


def _keypoints(item: SceneObject, region_id: int, ids: np.ndarray) -> tuple[tuple[float, float, int], ...]:
    """Return `KEYPOINT_NAMES` as (x, y, visibility), pixels; (0, 0, 0) outside the picture."""
    height, width = ids.shape
    side, points = min(height, width), []
    cos, sin = math.cos(item.angle) * item.extent, math.sin(item.angle) * item.extent
    for u, v in landmarks(item.shape):
        x, y = (item.x + u * cos - v * sin) * side, (item.y + u * sin + v * cos) * side
        inside = 0 <= x < width and 0 <= y < height
        points.append((x, y, 2 if ids[int(y), int(x)] == region_id else 1) if inside else (0.0, 0.0, 0))
    return tuple(points)


def _boxes_and_areas(ids: np.ndarray, count: int) -> list[tuple[tuple[float, float, float, float], int]]:
    """Return the tight box of the visible pixels and their number for each of the ids 1 to ``count``."""
    areas = np.bincount(ids.ravel(), minlength=count + 1)[1:].tolist()
    spans = ndimage.find_objects(ids, count)
    return [
        ((float(s[1].start), float(s[0].start), float(s[1].stop), float(s[0].stop)) if s else (0.0,) * 4, area)
        for s, area in zip(spans, areas, strict=True)
    ]


def _narrative(scene: Scene, side: int) -> Narrative:
    """Say every object once, from left to right, while the pointer moves over it; one stroke an object."""
    words, traces, pace = [], [], language.WORD_SECONDS
    for clause, index in language.narrative_of(scene):
        start = len(words) * pace
        for word in clause.split():
            words.append(TimedWord(word, len(words) * pace, (len(words) + 1) * pace))
        if index is not None:
            stroke = language.stroke_over(scene.objects[index], start, len(words) * pace)
            traces.append(tuple((x * side, y * side, t) for x, y, t in stroke))
    return Narrative(" ".join(word.text for word in words), tuple(words), tuple(traces))
