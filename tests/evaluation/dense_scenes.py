"""Random images with captioned boxes, for the tests of the protocols on boxes."""

from __future__ import annotations

import numpy as np

from locap.datasets.records import Record, Region
from locap.evaluation.dense_captioning import DenseCaptioning

WORDS = ("red", "blue", "dog", "cat", "sits", "on", "the", "big", "table", "near", "grass", "a")


def evaluate(images, variant="standard", **options):
    evaluator = DenseCaptioning((), variant=variant, image_order=[truth.image_id for truth, _ in images], **options)
    for truth, predicted in images:
        evaluator.update(truth, predicted)
    return evaluator.compute()


def breakdown(result):
    return {row[:2]: row[2] for row in result.tables["average_precision"].rows}


def detection(box, score=0.5, caption="a red dog", region_id=1):
    return Region(region_id, 1, box_xyxy=box, captions=(caption,), score=score)


def one_image(truth, predicted, height=100, width=100):
    return [(Record(1, height, width, regions=truth), Record(1, height, width, regions=predicted))]


def dense_images(count: int, seed: int = 0) -> list[tuple[Record, Record]]:
    """Truths whose boxes overlap in groups, and detections near them, some of nothing."""
    return [_image(np.random.default_rng([seed, index]), index) for index in range(count)]


def grid_image(captions: list[str], image_id: int = 1, side: int = 200) -> Record:
    """One image with a box per caption, none of which overlap."""
    columns = int(np.ceil(np.sqrt(max(len(captions), 1))))
    cell = side / columns
    regions = [
        Region(i + 1, 1, box_xyxy=_cell(i % columns * cell, i // columns * cell, cell), captions=(text,))
        for i, text in enumerate(captions)
    ]
    return Record(image_id, side, side, regions=regions)


def _cell(x: float, y: float, cell: float) -> tuple[float, float, float, float]:
    return (x + 1, y + 1, x + cell - 1, y + cell - 1)


def _image(rng: np.random.Generator, image_id: int) -> tuple[Record, Record]:
    height, width = (int(side) for side in rng.integers(60, 1000, 2))
    truth, predicted = Record(image_id, height, width), Record(image_id, height, width)
    for _ in range(int(rng.integers(1, 6))):
        box = _box(rng, height, width)
        for _ in range(int(rng.integers(1, 4))):
            truth.regions.append(_region(rng, len(truth.regions) + 1, _moved(rng, box, 0.03)))
        for _ in range(int(rng.integers(0, 3))):
            region = _region(rng, len(predicted.regions) + 1, _moved(rng, box, 0.1))
            region.captions = truth.regions[-1].captions if rng.random() < 0.5 else region.captions
            region.score = float(np.round(rng.random(), 1))
            predicted.regions.append(region)
    return truth, predicted


def _box(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    corner = rng.random(2) * 0.6
    far = corner + 0.1 + rng.random(2) * 0.3
    return np.concatenate([corner, far]) * [width, height, width, height]


def _moved(rng: np.random.Generator, box: np.ndarray, share: float) -> tuple[float, ...]:
    sides = np.tile(box[2:] - box[:2], 2)
    return tuple(float(side) for side in np.round(box + rng.normal(size=4) * share * sides))


def _region(rng: np.random.Generator, region_id: int, box: tuple[float, ...]) -> Region:
    return Region(region_id, 1, box_xyxy=box, captions=(" ".join(rng.choice(WORDS, 5)),))
