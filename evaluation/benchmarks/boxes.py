"""Boxes as detectors give them: COCO's classes, and Visual Genome's overlapping regions with short captions."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...datasets.categories import COCO_PANOPTIC
from ...datasets.records import Record, Region
from .sentences import rewrite_phrase, write_phrase

HEIGHT, WIDTH = 480, 640
CLASSES = tuple(category.id for category in COCO_PANOPTIC if category.is_thing)
TRUE_BOXES, DETECTIONS = 7, 100  # per image of COCO
TRUE_REGIONS, REGIONS = 40, 100  # per image of Visual Genome


def draw_coco(images: int, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a COCO data set of about 7 boxes per image, a few of them crowds, and 100 results per image."""
    rng = np.random.default_rng([seed, images])
    annotations, results = [], []
    for image_id in range(images):
        count = int(rng.poisson(TRUE_BOXES))
        true, classes = draw_boxes(rng, count), rng.choice(CLASSES, count)
        for box, category in zip(true, classes, strict=True):
            body = {"id": len(annotations) + 1, "image_id": image_id, "category_id": int(category)}
            crowd = int(rng.random() < 0.01)
            annotations.append(body | {"bbox": _xywh(box), "area": float(np.prod(_xywh(box)[2:])), "iscrowd": crowd})
        boxes, origin = draw_detections(rng, true, DETECTIONS)
        for box, index in zip(boxes, origin, strict=True):
            right = index >= 0 and rng.random() < 0.8
            category = int(classes[index]) if right else int(rng.choice(CLASSES))
            score = float(rng.beta(4, 2) if right else rng.beta(1, 6))
            results.append({"image_id": image_id, "category_id": category, "bbox": _xywh(box), "score": score})
    body = {"images": [{"id": i, "height": HEIGHT, "width": WIDTH} for i in range(images)]}
    return body | {"categories": [{"id": c} for c in CLASSES], "annotations": annotations}, results


def draw_captioned_boxes(images: int, seed: int = 0) -> list[tuple[Record, Record]]:
    """Return (truth, prediction) of about 40 regions and 100 detections per image, with captions of about 5 words."""
    return [_captioned(np.random.default_rng([seed, image_id]), image_id) for image_id in range(images)]


def _captioned(rng: np.random.Generator, image_id: int) -> tuple[Record, Record]:
    true = draw_boxes(rng, int(rng.poisson(TRUE_REGIONS)))
    again, origin = draw_detections(rng, true, len(true) // 4)  # some things are described more than once
    true = np.concatenate([true, again[origin >= 0]])
    texts = [write_phrase(rng) for _ in true]
    boxes, origin = draw_detections(rng, true, REGIONS)
    said = [rewrite_phrase(rng, texts[index]) if index >= 0 else write_phrase(rng) for index in origin]
    scores = [float(rng.beta(4, 2) if index >= 0 else rng.beta(2, 4)) for index in origin]
    truth = [
        Region(i, box_xyxy=tuple(box), captions=(text,))
        for i, (box, text) in enumerate(zip(true.tolist(), texts, strict=True))
    ]
    found = [
        Region(i, box_xyxy=tuple(box), captions=(text,), score=score)
        for i, (box, text, score) in enumerate(zip(boxes.tolist(), said, scores, strict=True))
    ]
    return Record(image_id, HEIGHT, WIDTH, regions=truth), Record(image_id, HEIGHT, WIDTH, regions=found)


def draw_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return float64 [count, 4], x0 y0 x1 y1, sides spread evenly over the orders of magnitude from 12 pixels up."""
    sides = np.exp(rng.uniform(np.log(12), np.log((0.8 * WIDTH, 0.8 * HEIGHT)), (count, 2)))
    corner = rng.random((count, 2)) * (np.array([WIDTH, HEIGHT]) - sides)
    return np.round(np.concatenate([corner, corner + sides], 1), 2)


def draw_detections(rng: np.random.Generator, true: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 [count, 4] and int64 [count]: true boxes moved a little, and their index; others at random, -1."""
    origin = rng.integers(0, len(true), count) if len(true) else np.zeros(count, np.int64)
    origin[rng.random(count) < (0.4 if len(true) else 2)] = -1
    boxes = draw_boxes(rng, count)
    near = true[origin[origin >= 0]]
    sides = np.tile(near[:, 2:] - near[:, :2], 2)
    moved = near + rng.normal(0, 1, near.shape) * sides * rng.choice([0.02, 0.08, 0.2], (len(near), 1))
    low, high = np.minimum(moved[:, :2], moved[:, 2:]), np.maximum(moved[:, :2], moved[:, 2:])
    boxes[origin >= 0] = np.round(np.concatenate([low, high + 1], 1), 2)
    return boxes, origin


def _xywh(box: np.ndarray) -> list[float]:
    return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]
