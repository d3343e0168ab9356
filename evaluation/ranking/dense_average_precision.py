"""Average precision over thresholds of IoU and METEOR, from the matches of all images of a data set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..captions import meteor_scores
from ..dense_captioning_upstream import Rules
from ..matching.assignment import NOTHING
from ..results import ImageId, ProtocolResult, Table
from .average_precision import average_precision

IOU_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
METEOR_THRESHOLDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)
COLUMNS = (
    "image_id", "region_id", "score", "iou", "matched", "meteor", "reference_count", "prediction", "references",
)  # fmt: skip


@dataclass(slots=True)
class Pooled:
    """The N detections and G groups of a data set.

    Attributes:
        groups: captions of each group.
        captions: of each detection, in the order of images, within an image best first.
        scores: float64 [N]; 1 where there is none.
        best: int64 [N], the group that a row per region shows, or `NOTHING`.
        taken: int64 [5, N], the group that each took at each IoU threshold, or `NOTHING`.
        wordless: bool [G + 1], the groups that have no part in ``map``; False at the end, for `NOTHING`.
    """

    groups: list[list[str]]
    captions: list[str]
    scores: np.ndarray
    best: np.ndarray
    taken: np.ndarray
    wordless: np.ndarray


def pool(entries: Sequence[Mapping[str, Any]], *, skip_wordless: bool) -> Pooled:
    """Put the images' entries together; group numbers become those of the data set."""
    groups = [texts for entry in entries for texts in entry["groups"]]
    starts = np.cumsum([0, *(len(entry["groups"]) for entry in entries)])[:-1]
    shift = np.repeat(starts, [len(entry["ids"]) for entry in entries])
    taken = [
        np.array([g for entry in entries for g in entry["taken"][level]], np.int64)
        for level in range(len(IOU_THRESHOLDS))
    ]
    columns = [np.array([g for entry in entries for g in entry["best"]], np.int64), *taken]
    best, *taken = [np.where(column == NOTHING, NOTHING, column + shift) for column in columns]
    scores = [1.0 if score is None else score for entry in entries for score in entry["scores"]]
    return Pooled(
        groups,
        [caption for entry in entries for caption in entry["captions"]],
        np.array(scores, np.float64),
        best,
        np.stack(taken),
        np.array([*(skip_wordless and not texts for texts in groups), False], bool),
    )


def add_average_precision(
    result: ProtocolResult, pooled: Pooled, rules: Rules | None, *, every: bool = False
) -> np.ndarray | None:
    """Write ``map``, ``detection_map`` and the breakdown into ``result``.

    Returns:
        float64 [N], the METEOR of each detection and the group in ``best``, NaN where it was not scored; None without
        Java.
    """
    curve = {} if rules is None else {"recall_points": rules.recall_points, "curve": rules.curve, "total": rules.total}
    order = np.argsort(-pooled.scores, kind="stable")
    scorer = _MeteorOfPairs(pooled, every=every)
    if scorer.unavailable:
        result.unavailable["map"] = scorer.unavailable
    worded = len(pooled.groups) - int(pooled.wordless.sum())
    rows: list[tuple[float, float | None, float]] = []
    for threshold, level in zip(IOU_THRESHOLDS, pooled.taken[:, order], strict=True):
        found = level != NOTHING
        rows.append((threshold, None, float(average_precision(found, len(pooled.groups), **curve))))
        if scorer.unavailable:
            continue
        counted = ~pooled.wordless[level]
        meteor = scorer.of(order[counted], level[counted])
        good = found[counted] & (meteor > np.array(METEOR_THRESHOLDS)[:, None])
        values = average_precision(good, worded, **curve)
        rows += [(threshold, m, float(value)) for m, value in zip(METEOR_THRESHOLDS, values, strict=True)]
    result.tables["average_precision"] = Table(("iou", "meteor", "average_precision"), rows)
    _add_means(result, rows, len(pooled.groups), worded)
    return None if scorer.unavailable else scorer.of(np.arange(len(pooled.best)), pooled.best)


def _add_means(
    result: ProtocolResult, rows: Sequence[tuple[float, float | None, float]], groups: int, worded: int
) -> None:
    for name, number, why, values in (
        ("detection_map", groups, "the ground truth has no region", [v for _, m, v in rows if m is None]),
        ("map", worded, "no ground-truth region has a caption", [v for _, m, v in rows if m is not None]),
    ):
        if not number:
            result.undefined[name] = why
        elif values:
            result.figures[name] = math.fsum(values) / len(values)


class _MeteorOfPairs:
    """METEOR of (detection, group): of every pair that may count, each once for all thresholds."""

    def __init__(self, pooled: Pooled, *, every: bool) -> None:
        self.width = len(pooled.groups) + 1
        levels = [*pooled.taken, pooled.best] if every else list(pooled.taken)
        detections = np.arange(len(pooled.captions))
        codes = [self._codes(detections, level)[~pooled.wordless[level] & (level != NOTHING)] for level in levels]
        self.codes = np.unique(np.concatenate(codes))
        pairs = [divmod(int(code), self.width) for code in self.codes]
        found = meteor_scores([pooled.captions[d] for d, _ in pairs], [pooled.groups[g] for _, g in pairs])
        self.unavailable = found if isinstance(found, str) else ""
        self.values = np.zeros(0) if isinstance(found, str) else found.segments

    def _codes(self, detections: np.ndarray, groups: np.ndarray) -> np.ndarray:
        return detections.astype(np.int64) * self.width + groups

    def of(self, detections: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Return the METEOR of each pair, NaN where it was not scored."""
        if not len(self.codes):
            return np.full(len(detections), np.nan)
        codes = self._codes(detections, groups)
        place = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        return np.where((self.codes[place] == codes) & (groups != NOTHING), self.values[place], np.nan)


def region_table(
    entries: Sequence[tuple[ImageId, Mapping[str, Any]]], pooled: Pooled, meteor: np.ndarray | None
) -> Table:
    """Return one row per detection: the group it took (at IoU 0.3 in ``standard``) or overlaps most."""
    joined = [" | ".join(texts) for texts in pooled.groups]
    scores = [None] * len(pooled.best) if meteor is None else [None if m != m else m for m in meteor.tolist()]
    rest = zip(pooled.best.tolist(), scores, pooled.captions, strict=True)
    rows = [
        (image_id, region_id, score, iou, good, value, *_references(pooled, joined, group, caption))
        for image_id, entry in entries
        for region_id, score, iou, good, (group, value, caption) in zip(
            entry["ids"], entry["scores"], entry["iou"], entry["good"], rest, strict=False
        )
    ]
    return Table(COLUMNS, rows)


def _references(pooled: Pooled, joined: Sequence[str], group: int, caption: str) -> tuple[int, str, str]:
    return (0, caption, "") if group == NOTHING else (len(pooled.groups[group]), caption, joined[group])
