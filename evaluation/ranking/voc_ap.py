"""PASCAL VOC's average precision at IoU 0.5: variants ``voc`` and ``voc07`` of the protocol ``detection``.

Per class, all predictions are ranked by score. Each looks at the true box of its image and class that it overlaps most:
at IoU >= 0.5 it is a true positive if it is the first to reach that box and false otherwise; ``difficult`` boxes
(``Region.is_crowd``) are never to be found and excuse what reaches them. ``voc`` (since 2010) takes the area under the
precision, made to fall monotonically, over the recall; ``voc07`` the mean of the highest precision at the recalls
0, 0.1 … 1 or more. ``ap_50`` is the mean over the classes that have a box to find.

A VOC annotation counts pixels from 1 and includes xmax and ymax: its box here is (xmin - 1, ymin - 1, xmax, ymax),
whose IoU without "+1" is the devkit's with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ...datasets.records import Category
from ..results import ProtocolResult, Table
from .average_precision import average_precision

IOU = 0.5
ELEVEN_RECALLS = np.arange(0.0, 1.1, 0.1)  # as the devkit adds them up: the fourth is just above 0.3


def add_voc_figures(
    result: ProtocolResult,
    images: Sequence[Mapping[str, Any]],
    categories: Mapping[int, Category],
    *,
    eleven_points: bool,
) -> None:
    """Write ``ap_50`` and the table per category into ``result``.

    Args:
        result: of the protocol ``detection``.
        images: its entries, in the order in which predictions of equal score are ranked.
        categories: those that count.
        eleven_points: the definition of 2007.
    """
    rows = []
    for category in categories.values():
        hits, positives = rank_category(images, category.id)
        value = None
        if positives:
            value = (
                float(average_precision(hits, positives, ELEVEN_RECALLS)) if eleven_points else area(hits, positives)
            )
        rows.append((category.id, category.name, value, positives, len(hits)))
    result.tables["categories"] = Table(("category_id", "name", "ap_50", "truth", "ranked"), rows)
    values = [row[2] for row in rows if row[2] is not None]
    if values:
        result.figures["ap_50"] = math.fsum(values) / len(values)
    else:
        result.undefined["ap_50"] = "the ground truth has no box to find"


def rank_category(images: Sequence[Mapping[str, Any]], category_id: int) -> tuple[np.ndarray, int]:
    """Return whether each prediction of a class that is not excused is right, best score first, and what is to find."""
    scored: list[tuple[float, bool]] = []
    positives = 0
    for image in images:
        truth = [row for row in image["truth"] if row[1] == category_id]
        predicted = sorted((row for row in image["predicted"] if row[1] == category_id), key=lambda row: -row[2])
        positives += sum(not row[2] for row in truth)
        scored += _judge(truth, predicted)
    scored.sort(key=lambda item: -item[0])
    return np.array([hit for _, hit in scored], bool), positives


def area(hits: np.ndarray, positives: int) -> float:
    """Return the area under the monotonically falling precision over the recall."""
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    return math.fsum(falling[hits].tolist()) / positives


def _judge(truth: Sequence[Sequence[Any]], predicted: Sequence[Sequence[Any]]) -> list[tuple[float, bool]]:
    """Return (score, is right) of the predictions of one image and class that are not excused."""
    if not truth:
        return [(row[2], False) for row in predicted]
    boxes = [np.array([row[-1] for row in rows], np.float64).reshape(-1, 4) for rows in (predicted, truth)]
    overlaps = np.asarray(coco_mask.iou(*boxes, [0] * len(truth))).reshape(len(predicted), len(truth))
    found: set[int] = set()
    judged = []
    for row, overlap in zip(predicted, overlaps, strict=True):
        best = int(overlap.argmax())
        reached = overlap[best] >= IOU
        if reached and truth[best][2]:
            continue
        judged.append((row[2], bool(reached and best not in found)))
        if reached:
            found.add(best)
    return judged
