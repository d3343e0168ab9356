"""Interpolated average precision of a ranked list, for many conditions at once."""

from __future__ import annotations

import numpy as np

RECALL_POINTS = np.arange(0, 1.01, 0.01)  # 101 points
HUNDRED_POINTS = np.arange(100) / 100  # 0, 0.01 … 0.99
ADDED_POINTS = np.cumsum([0.0, *[0.01] * 99])  # the same by repeated addition, up to 0.9900000000000007


def average_precision(
    hits: np.ndarray,
    positives: int,
    recall_points: np.ndarray = RECALL_POINTS,
    *,
    curve: type[np.floating] = np.float64,
    total: type[np.floating] = np.float64,
) -> np.ndarray:
    """Return the mean over ``recall_points`` of the highest precision at that recall or more, 0 where never reached.

    Args:
        hits: bool [..., N], whether each record is a true positive, best record first.
        positives: how many true positives there could be.
        recall_points: ascending, in [0, 1].
        curve: the type that precision, recall and the recall points are held in.
        total: the type they are added up in; in float32 one after another, as the published loops do.

    Returns:
        float64 [...]; zeros when there are no positives or no records.
    """
    hits = np.asarray(hits, bool)
    flat = hits.reshape(-1, hits.shape[-1]) if hits.size else np.zeros((int(np.prod(hits.shape[:-1])), 0), bool)
    points = np.asarray(recall_points).astype(curve)
    values = [_mean(_one_curve(row, positives, points), total) for row in flat]
    return np.array(values, np.float64).reshape(hits.shape[:-1])


def _one_curve(hits: np.ndarray, positives: int, points: np.ndarray) -> np.ndarray:
    """Return the interpolated precision at each point, in the points' type."""
    if not positives or not len(hits):
        return np.zeros(len(points), points.dtype)
    found = np.cumsum(hits).astype(points.dtype)
    precision = found / np.arange(1, len(hits) + 1, dtype=points.dtype)
    best_onwards = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(found / points.dtype.type(positives), points, side="left")
    return np.append(best_onwards, points.dtype.type(0))[first]


def _mean(values: np.ndarray, total: type[np.floating]) -> float:
    if total is np.float32:
        return float(np.add.accumulate(values, dtype=np.float32)[-1] / np.float32(len(values)))
    return float(values.astype(total).mean())
