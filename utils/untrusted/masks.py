"""Run-length encodings and polygons of strangers: pycocotools crashes on hostile ones, so they are checked first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ..errors import DataError
from .images import MAX_PIXELS

MAX_POLYGON_POINTS = 100_000


def decode_rle(rle: Mapping[str, Any], *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a COCO run-length encoding, compressed (str, bytes) or not (list of ints), to bool (height, width).

    Raises:
        DataError: as `rle_runs`.
    """
    return _filled(*rle_runs(rle, max_pixels=max_pixels))


def rle_runs(rle: Mapping[str, Any], *, max_pixels: int = MAX_PIXELS) -> tuple[tuple[int, int], np.ndarray]:
    """Return ((height, width), run lengths int64) of a COCO run-length encoding: down the columns, first a run of 0.

    Raises:
        DataError: the size is not two positive ints, or the runs are negative or do not add up to it.
    """
    if not isinstance(rle, Mapping) or not {"size", "counts"} <= rle.keys():
        raise DataError("Not a run-length encoding.", value=rle, allowed='{"size": [height, width], "counts": …}')
    height, width = _checked_size(rle["size"], max_pixels)
    runs = _runs(rle["counts"])
    if (runs < 0).any() or (runs > height * width).any() or int(runs.sum()) != height * width:
        raise DataError(
            "The runs of a run-length encoding do not fill its size.",
            value=f"sum {int(runs.sum())}, smallest {int(runs.min(initial=0))}",
            allowed=f"runs >= 0 that add up to {height} x {width} = {height * width}",
        )
    return (height, width), runs


def _checked_size(size: Any, max_pixels: int) -> tuple[int, int]:
    whole = isinstance(size, (list, tuple)) and len(size) == 2 and all(_is_whole(side) and side > 0 for side in size)
    if not whole or size[0] * size[1] > max_pixels:
        raise DataError(
            "A mask has an impossible size.", value=size, allowed=f"[height, width], up to {max_pixels} pixels"
        )
    return int(size[0]), int(size[1])


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _runs(counts: Any) -> np.ndarray:
    """Return the run lengths, int64."""
    if isinstance(counts, str):
        counts = counts.encode("utf-8", "replace")
    if isinstance(counts, bytes):
        return _uncompressed(counts)
    if isinstance(counts, (list, tuple)) and all(_is_whole(run) and abs(run) < 2**40 for run in counts):
        return np.array(counts, np.int64)
    raise DataError(
        "The runs of a run-length encoding are neither text nor whole numbers.", value=type(counts).__name__
    )


def _uncompressed(counts: bytes) -> np.ndarray:
    """Decode COCO's text form: groups of 5 bits from character 48 on, bit 5 = more follow, signed, then differences
    to the run before last."""
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    last = (codes & 32) == 0
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not last[-1]:
        raise DataError("The text of a run-length encoding is malformed.", value=counts[:40])
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > 6:
        raise DataError("The text of a run-length encoding is malformed.", value=counts[:40])
    shift = 5 * (np.arange(len(codes)) - np.repeat(starts, ends - starts + 1))
    runs = np.add.reduceat((codes & 31) << shift, starts)
    runs -= np.where(codes[ends] & 16, 1 << (5 * (ends - starts + 1)), 0)
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    return runs


def polygons_to_mask(polygons: Sequence[Sequence[float]], height: int, width: int) -> np.ndarray:
    """Fill COCO polygons [[x0, y0, x1, y1, …], …], absolute pixels, to bool (height, width).

    Raises:
        DataError: no polygon, fewer than 3 points, an odd number of values, NaN or infinity, too many points.
    """
    return coco_mask.decode(_merged_polygons(polygons, height, width)).astype(bool)


def polygons_to_rle(polygons: Sequence[Sequence[float]], height: int, width: int) -> dict[str, Any]:
    """Fill COCO polygons as `polygons_to_mask`, to a compressed run-length encoding; no pixel is drawn."""
    return _as_text(_merged_polygons(polygons, height, width))


def compressed_rle(rle: Mapping[str, Any], *, max_pixels: int = MAX_PIXELS) -> dict[str, Any]:
    """Return a run-length encoding in COCO's text form, fit for pycocotools: checked, without empty runs.

    Raises:
        DataError: as `rle_runs`.
    """
    size, runs = rle_runs(rle, max_pixels=max_pixels)
    if (runs[1:] == 0).any():  # they make its merging stop early
        return _as_text(coco_mask.encode(np.asfortranarray(_filled(size, runs), np.uint8)))
    if isinstance(rle["counts"], (str, bytes)):
        return _as_text({"size": size, "counts": rle["counts"]})
    return _as_text(coco_mask.frPyObjects({"size": list(size), "counts": runs.tolist()}, *size))


def _filled(size: tuple[int, int], runs: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size, order="F")


def _merged_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> Mapping[str, Any]:
    _checked_size((height, width), MAX_PIXELS)
    if not isinstance(polygons, (list, tuple)) or not polygons:
        raise DataError("A region has no polygon.", value=polygons, allowed="a list of [x0, y0, x1, y1, …]")
    points = sum(len(polygon) for polygon in polygons if hasattr(polygon, "__len__"))
    if points > 2 * MAX_POLYGON_POINTS:
        raise DataError(
            "A region's polygons have too many points.", value=points // 2, allowed=f"up to {MAX_POLYGON_POINTS}"
        )
    flat = [_checked_polygon(polygon, height, width) for polygon in polygons]
    return coco_mask.merge(coco_mask.frPyObjects(flat, height, width))


def _as_text(rle: Mapping[str, Any]) -> dict[str, Any]:
    counts = rle["counts"]
    return {
        "size": [int(side) for side in rle["size"]],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }


def _checked_polygon(polygon: Sequence[float], height: int, width: int) -> list[float]:
    try:
        flat = np.asarray(polygon, np.float64)
    except (TypeError, ValueError, OverflowError):
        flat = np.empty(0)
    if flat.ndim != 1 or len(flat) < 6 or len(flat) % 2 or not np.isfinite(flat).all():
        raise DataError(
            "A polygon is malformed.",
            value=f"{str(polygon)[:80]}",
            allowed="an even number of finite values, 3 points or more: [x0, y0, x1, y1, x2, y2, …]",
        )
    points = flat.reshape(-1, 2).clip([-width, -height], [2 * width, 2 * height])  # far points crash pycocotools
    return points.ravel().tolist()
