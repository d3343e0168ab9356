"""Panoptic truths and predictions that resemble COCO's: 480 x 640 pixels, about 14 segments with ragged outlines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ...datasets.categories import COCO_PANOPTIC
from ...datasets.records import Record, Region, encode_mask
from .sentences import rewrite_caption, write_caption

HEIGHT, WIDTH, SEGMENTS = 480, 640, 14
DISTINCT = 60  # outlines drawn; larger sets use them again, with other classes and captions
IDS = 256**3 - 1


def draw_scenes(count: int, *, captions: bool = False, seed: int = 0) -> list[tuple[Record, Record]]:
    """Return (truth, prediction) pairs with id maps in memory.

    Args:
        count: images.
        captions: whether segments get a caption of about twenty words.
        seed: of everything drawn; outlines do not depend on it.
    """
    outlines = [draw_outlines(np.random.default_rng(index)) for index in range(min(count, DISTINCT))]
    return [_describe(index, *outlines[index % DISTINCT], [seed, index], captions) for index in range(count)]


def draw_outlines(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return two id maps, int32: where the highest of some smooth random fields changes, a segment ends.

    Edges are ragged by one to two pixels, as those of COCO's stuff; void lines run between a few segments.
    """
    fields = np.stack([_smooth(rng, (5, 6)) + 0.1 * _smooth(rng, (24, 32)) for _ in range(SEGMENTS)])
    fields += rng.normal(0, 0.25, (SEGMENTS, 1, 1))
    ragged = np.stack([_smooth(rng, (160, 213)) for _ in range(SEGMENTS)])
    truth = _ids(rng, (fields + 0.01 * ragged).argmax(0), 0.03)
    off = np.stack([_smooth(rng, (12, 16)) for _ in range(SEGMENTS)]) * rng.choice(
        [0.05, 0.1, 0.3, 0.6], (SEGMENTS, 1, 1)
    )
    return truth, _ids(rng, (fields + off).argmax(0), 0.01)


def _smooth(rng: np.random.Generator, cells: tuple[int, int]) -> np.ndarray:
    noise = Image.fromarray(rng.normal(size=cells).astype(np.float32))
    return np.asarray(noise.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def _ids(rng: np.random.Generator, labels: np.ndarray, void: float) -> np.ndarray:
    """Return the labels as segment ids of three bytes, a share of the picture void."""
    ids = rng.choice(IDS, SEGMENTS, replace=False).astype(np.int32) + 1
    hole = _smooth(rng, (12, 16))
    return np.where(hole < np.quantile(hole, void), 0, ids[labels]).astype(np.int32)


def _describe(
    image_id: int, truth: np.ndarray, predicted: np.ndarray, seed: list[int], captions: bool
) -> tuple[Record, Record]:
    rng = np.random.default_rng(seed)
    true_regions = [_truth(rng, int(i), truth, captions) for i in np.unique(truth) if i]
    regions = [_prediction(rng, int(i), predicted, truth, true_regions, captions) for i in np.unique(predicted) if i]
    shape = {"height": HEIGHT, "width": WIDTH}
    return Record(image_id, **shape, regions=true_regions, id_map=truth), Record(
        image_id, **shape, regions=regions, id_map=predicted
    )


def _truth(rng: np.random.Generator, segment: int, ids: np.ndarray, captions: bool) -> Region:
    category = COCO_PANOPTIC[int(rng.integers(len(COCO_PANOPTIC)))]
    return Region(
        segment,
        category.id,
        captions=(write_caption(rng),) if captions else (),
        is_crowd=category.is_thing and rng.random() < 0.03,
        area=int(np.count_nonzero(ids == segment)),
    )


def _prediction(
    rng: np.random.Generator, segment: int, ids: np.ndarray, truth: np.ndarray, regions: list[Region], captions: bool
) -> Region:
    """Return a predicted segment, most often of the class of the true one below it."""
    below = np.bincount(np.searchsorted([region.id for region in regions], truth[(ids == segment) & (truth > 0)]))
    near = regions[int(below.argmax())] if len(below) else regions[0]
    other = COCO_PANOPTIC[int(rng.integers(len(COCO_PANOPTIC)))].id
    return Region(
        segment,
        near.category_id if rng.random() < 0.85 else other,
        captions=(rewrite_caption(rng, near.captions[0]),) if captions else (),
        score=float(rng.random()),
    )


def write_id_map(path: Path, ids: np.ndarray) -> str:
    """Write a panoptic PNG: id = R + 256 G + 65536 B."""
    Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)).save(path)
    return str(path)


def with_masks(record: Record) -> Record:
    """Return the record with a run-length encoding per region in place of the id map, as record files store it."""
    regions = [replace(region, mask=encode_mask(record.id_map == region.id)) for region in record.regions]
    return replace(record, regions=regions, id_map=None)
