"""Id maps: int (height, width), every pixel holds the id of the segment it belongs to."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

PADDING_ID = 256**3 - 1  # of padded id maps: white in a panoptic PNG, never a segment


class Segments(NamedTuple):
    """What an id map holds, by ascending id."""

    ids: np.ndarray  # (n,)
    areas: np.ndarray  # int64 (n,), pixels
    boxes_xyxy: np.ndarray  # int64 (n, 4), tight, x1 and y1 exclusive


def measure_segments(id_map: np.ndarray) -> Segments:
    """Return the ids, areas and boxes of an id map in one pass over its horizontal runs."""
    change = np.ones(id_map.shape, bool)
    np.not_equal(id_map[:, 1:], id_map[:, :-1], out=change[:, 1:])
    rows, starts = np.nonzero(change)  # every row begins a run
    ends = np.append(starts[1:], 0)
    ends[ends == 0] = id_map.shape[1]
    ids, segment = np.unique(id_map[rows, starts], return_inverse=True)
    areas = np.bincount(segment, ends - starts, minlength=len(ids)).astype(np.int64)
    boxes = np.empty((len(ids), 4), np.int64)
    boxes[:, :2], boxes[:, 2:] = np.iinfo(np.int64).max, 0
    for column, (best, values) in enumerate(
        ((np.minimum, starts), (np.minimum, rows), (np.maximum, ends), (np.maximum, rows + 1))
    ):
        best.at(boxes[:, column], segment, values)
    return Segments(ids, areas, boxes)
