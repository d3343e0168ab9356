"""COCO's curves as named figures and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..results import ProtocolResult, Table
from .backends import CocoCurves

ALL = 0  # index of the area "all"


@dataclass(frozen=True, slots=True)
class Summary:
    """A figure: the mean of a curve's defined values at one or all thresholds, one area, one number of detections."""

    name: str
    curve: str  # "precision" or "recall"
    area: int = ALL  # index
    detections: int = -1  # index
    iou: float | None = None  # None: all thresholds

    def read(self, curves: CocoCurves, category: int | slice = slice(None)) -> float | None:
        """Return the figure over all categories or the one at an index; None when nothing is defined."""
        values = getattr(curves, self.curve)
        if self.iou is not None:
            values = values[np.isclose(curves.iou_thresholds, self.iou)]
        values = values[..., category, self.area, self.detections]
        values = values[values > -1]
        return float(np.mean(values)) if values.size else None


PRECISIONS = (
    Summary("ap", "precision"),
    Summary("ap_50", "precision", iou=0.5),
    Summary("ap_75", "precision", iou=0.75),
)
RECALLS = tuple(Summary(summary.name.replace("ap", "ar"), "recall", iou=summary.iou) for summary in PRECISIONS)


def detection_summaries(areas: Sequence[str], max_detections: Sequence[int]) -> list[Summary]:
    """Return COCO's twelve figures of boxes and masks, in its order."""
    by_detections = [Summary(f"ar_{n}", "recall", detections=index) for index, n in enumerate(max_detections)]
    return [*PRECISIONS, *_by_area("ap", areas), *by_detections, *_by_area("ar", areas)]


def keypoint_summaries(areas: Sequence[str]) -> list[Summary]:
    """Return COCO's ten figures of keypoints, in its order."""
    return [*PRECISIONS, *_by_area("ap", areas), *RECALLS, *_by_area("ar", areas)]


def _by_area(name: str, areas: Sequence[str]) -> list[Summary]:
    curve = {"ap": "precision", "ar": "recall"}[name]
    return [Summary(f"{name}_{area}", curve, index) for index, area in enumerate(areas) if index != ALL]


def add_figures(result: ProtocolResult, summaries: Sequence[Summary], curves: CocoCurves) -> None:
    """Write the figures into ``result``, those that COCO gives as -1 as undefined."""
    for summary in summaries:
        value = summary.read(curves)
        if value is None:
            result.undefined[summary.name] = "the ground truth has no such region (COCO's tools print -1)"
        else:
            result.figures[summary.name] = value


def add_tables(
    result: ProtocolResult,
    curves: CocoCurves,
    names: Mapping[int, str],
    areas: Sequence[str],
    max_detections: Sequence[int],
) -> None:
    """Write three tables: figures per category, the mean precision and the highest recall per threshold.

    Args:
        result: written into.
        curves: of K categories, A areas and M numbers of detections.
        names: [K] category id -> name.
        areas, max_detections: [A] and [M].
    """
    summaries = (*PRECISIONS, RECALLS[0])
    rows = [(i, name, *(s.read(curves, k) for s in summaries)) for k, (i, name) in enumerate(names.items())]
    result.tables["categories"] = Table(("category_id", "name", *(s.name for s in summaries)), rows)
    means = np.where((curves.precision > -1).all(1), curves.precision.mean(1), -1.0)
    columns = ("category_id", "area", "max_detections", *(f"iou_{t:.2f}" for t in curves.iou_thresholds))
    for name, values in (("precision", means), ("recall", curves.recall)):
        rows = [
            (i, area, n, *(None if value < 0 else value for value in values[:, k, a, m].tolist()))
            for k, i in enumerate(names)
            for a, area in enumerate(areas)
            for m, n in enumerate(max_detections)
        ]
        result.tables[name] = Table(columns, rows)
