"""Dense captioning beside straightforward loops over thresholds, detections and groups of ground truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...datasets.records import Record
from ..dense_captioning import DenseCaptioning
from ..ranking.dense_average_precision import IOU_THRESHOLDS, METEOR_THRESHOLDS
from .boxes import draw_captioned_boxes
from .jar import LockStepMeteor
from .pairwise import Pairs, Scorer, compare_with_loops, loop_average_precision
from .report import Report

IMAGES = {"small": 20, "val": 5000}  # val: Visual Genome's test split
SAMPLE = 100
MERGE_IOU = 0.7
Box = tuple[float, float, float, float]


def dense_captioning(size: str, repeats: int) -> Report:
    """Compare the protocol with its definition in loops."""
    images = IMAGES[size]
    options = {"images": images, "sample": SAMPLE, "repeats": repeats}
    return compare_with_loops(
        "dense_captioning", lambda turn: draw_captioned_boxes(images, turn), protocol, loops, **options
    )


def protocol(pairs: Pairs) -> dict[str, float]:
    """Return the figures of the protocol."""
    evaluator = DenseCaptioning(())
    for truth, prediction in pairs:
        evaluator.update(truth, prediction)
    figures = evaluator.compute().figures
    return {name: figures[name] for name in ("map", "detection_map")}


@dataclass(slots=True)
class Scene:
    """One image: groups of true boxes as (mean box, captions), detections by falling score as (score, box, caption)."""

    groups: list[tuple[Box, list[str]]]
    detections: list[tuple[float, Box, str]]


def loops(pairs: Pairs, score: Scorer, process: LockStepMeteor) -> dict[str, float]:
    """Return the same figures from the protocol's definition, one threshold after the other."""
    scenes = [Scene(merge(truth), _detections(prediction)) for truth, prediction in pairs]
    values, detection = [], []
    for threshold in IOU_THRESHOLDS:
        detection.append(_average_precision(scenes, threshold, lambda *_: True))
        for least in METEOR_THRESHOLDS:
            values.append(_average_precision(scenes, threshold, lambda c, r, least=least: score(c, r) > least))
    return {"map": float(np.mean(values)), "detection_map": float(np.mean(detection))}


def merge(truth: Record) -> list[tuple[Box, list[str]]]:
    """Group true boxes that overlap by 0.7: again and again the box with most others around it and those others."""
    left, groups = list(truth.regions), []
    while left:
        near = [[other for other in left if iou(one.box_xyxy, other.box_xyxy) >= MERGE_IOU] for one in left]
        group = max(near, key=len)
        left = [region for region in left if not any(region is other for other in group)]
        mean = tuple(float(np.mean([region.box_xyxy[side] for region in group])) for side in range(4))
        groups.append((mean, [text for region in group for text in region.captions]))
    return groups


def _detections(prediction: Record) -> list[tuple[float, Box, str]]:
    return sorted((-region.score, region.box_xyxy, region.captions[0]) for region in prediction.regions)


def iou(first: Box, second: Box) -> float:
    """Return intersection over union."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / (sum(areas) - shared)


def _average_precision(
    scenes: Sequence[Scene], threshold: float, accept: Callable[[str, Sequence[str]], bool]
) -> float:
    records = []
    for index, scene in enumerate(scenes):
        free = set(range(len(scene.groups)))
        for place, (score, box, caption) in enumerate(scene.detections):
            near = [(-overlap, g) for g in free if (overlap := iou(scene.groups[g][0], box)) >= threshold]
            hit = False
            if near:
                g = min(near)[1]
                free.remove(g)
                hit = accept(caption, scene.groups[g][1])
            records.append((score, index, place, hit))
    return loop_average_precision((hit for *_, hit in sorted(records)), sum(len(scene.groups) for scene in scenes))
