"""Interpolated average precision of a ranked list, for many conditions at once."""

from __future__ import annotations

import numpy as np

RECALL_POINTS = np.arange(0, 1.01, 0.01)  # 101 points


def average_precision(hits: np.ndarray, positives: int, recall_points: np.ndarray = RECALL_POINTS) -> np.ndarray:
    """Return the mean over ``recall_points`` of the highest precision at that recall or more, 0 where never reached.

    Args:
        hits: bool [..., N], whether each record is a true positive, best record first.
        positives: how many true positives there could be.
        recall_points: ascending, in [0, 1].

    Returns:
        float64 [...]; zeros when there are no positives or no records.
    """
    hits = np.asarray(hits, bool)
    flat = hits.reshape(-1, hits.shape[-1]) if hits.size else np.zeros((int(np.prod(hits.shape[:-1])), 0), bool)
    values = [_one_curve(row, positives, recall_points) for row in flat]
    return np.array(values, np.float64).reshape(hits.shape[:-1])


def _one_curve(hits: np.ndarray, positives: int, recall_points: np.ndarray) -> float:
    if not positives or not len(hits):
        return 0.0
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    best_onwards = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(found / positives, recall_points, side="left")
    reached = np.append(best_onwards, 0.0)[first]
    return float(reached.mean())
