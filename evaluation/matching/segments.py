"""How the segments of a panoptic prediction overlap those of the ground truth, and which of them match.

One pass over the two id maps: pixels are grouped into runs in which neither map changes, and the joint histogram of the
runs gives every area, intersection, void and crowd overlap of the image as exact integers.
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass

import numpy as np

from ...datasets.records import Record, Region
from ...utils.errors import DataError
from ...utils.untrusted import rle_runs
from ..results import first_ids

VOID = 0
GREATEST_ID = 2**31 - 1
MATCH_IOU = 0.5  # a match needs more than this, so it is unique
FORGIVEN_SHARE = 0.5  # an unmatched prediction with more of its area in void or crowd is not an error


@dataclass(frozen=True, slots=True)
class Overlap:
    """The overlaps of G ground-truth and P predicted segments of one image.

    Attributes:
        truth, predicted: the segments, crowds among the truth included.
        intersection: int64 [G, P], shared pixels.
        iou: float64 [G, P], intersection over union; pixels without ground truth do not count in the union.
        predicted_area: int64 [P], pixels.
        void: int64 [P], pixels of a prediction that no ground truth covers.
        flaws: what is odd about the ground truth -> of how many segments; see `find_flaws`.
    """

    truth: list[Region]
    predicted: list[Region]
    intersection: np.ndarray
    iou: np.ndarray
    predicted_area: np.ndarray
    void: np.ndarray
    flaws: dict[str, int]


@dataclass(frozen=True, slots=True)
class Matching:
    """Panoptic matches: (index into truth, index into predicted), and what stayed alone."""

    pairs: list[tuple[int, int]]
    missed: list[int]  # indices into truth, crowds excepted
    spurious: list[int]  # indices into predicted, forgiven ones excepted


def measure_overlap(record: Record, prediction: Record, category_ids: Container[int]) -> Overlap:
    """Compare the segments of one image.

    The area of a ground-truth segment is the one its record states, else its pixels, as panopticapi counts.

    Raises:
        DataError: segment ids are not unique, masks overlap, a category is unknown, an area is no number of pixels, a
            predicted segment has no pixels, or predicted pixels belong to no listed segment.
    """
    where = f"image_id {record.image_id}"
    _check_regions(record.regions, category_ids, f"{where}, ground truth")
    _check_regions(prediction.regions, category_ids, f"{where}, prediction")
    truth_map, predicted_map = panoptic_ids(record, where), panoptic_ids(prediction, where)
    if truth_map.shape != predicted_map.shape:
        raise DataError(
            "The id maps of ground truth and prediction differ in size.",
            where=where,
            value=predicted_map.shape,
            allowed=str(truth_map.shape),
        )
    truth_ids, predicted_ids, joint = joint_histogram(truth_map, predicted_map)
    _check_listed(prediction.regions, predicted_ids, where)

    columns = _pick(joint, predicted_ids, prediction.regions, axis=1)
    intersection = _pick(columns, truth_ids, record.regions, axis=0)
    void = _pick(columns, truth_ids, [Region(id=VOID)], axis=0)[0]
    predicted_area = columns.sum(0)
    counted = _pick(joint, truth_ids, record.regions, axis=0).sum(1)
    truth_area = np.array(
        [n if r.area is None else _stated_area(r, where) for r, n in zip(record.regions, counted, strict=True)], float
    )
    union = predicted_area[None] + truth_area[:, None] - intersection - void[None]
    iou = np.divide(intersection, union, out=np.zeros(union.shape), where=(intersection > 0) & (union > 0))
    flaws = find_flaws(record.regions, truth_ids, counted, truth_area)
    return Overlap(record.regions, prediction.regions, intersection, iou, predicted_area, void, flaws)


def find_flaws(truth: list[Region], ids: np.ndarray, pixels: np.ndarray, areas: np.ndarray) -> dict[str, int]:
    """Count what panopticapi passes over in a ground truth and what changes its figures.

    Args:
        truth: the listed segments.
        ids: the ids in the id map.
        pixels: int64 [G], pixels of each listed segment.
        areas: float64 [G], the area that counts for each.

    Returns:
        ``truth_areas_differ``: segments whose stated area is not their number of pixels;
        ``truth_ids_unlisted``: ids in the map that are not listed, whose pixels are neither void nor to be found.
    """
    unlisted = {int(i) for i in ids} - {region.id for region in truth} - {VOID}
    return {"truth_areas_differ": int((areas != pixels).sum()), "truth_ids_unlisted": len(unlisted)}


def _stated_area(region: Region, where: str) -> float:
    if not (math.isfinite(region.area) and region.area >= 0):
        raise DataError("An area is no number of pixels.", where=f"{where}, segment {region.id}", value=region.area)
    return region.area


def joint_histogram(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count the pixels of each pair of ids in two id maps of one shape.

    Returns:
        The sorted ids of each map and the counts, int64 [ids of first, ids of second].
    """
    if first.flags.f_contiguous and second.flags.f_contiguous:
        first, second = first.T, second.T  # drawn from masks, down the columns; any common order of pixels will do
    first, second = first.ravel(), second.ravel()
    change = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    starts = np.concatenate(([0], np.flatnonzero(change) + 1)) if first.size else np.zeros(0, np.int64)
    lengths = np.diff(starts, append=first.size)
    first_ids_, rows = np.unique(first[starts], return_inverse=True)
    second_ids, columns = np.unique(second[starts], return_inverse=True)
    shape = (len(first_ids_), len(second_ids))
    flat = np.bincount(rows * shape[1] + columns, weights=lengths, minlength=shape[0] * shape[1])
    return first_ids_, second_ids, flat.astype(np.int64).reshape(shape)


def panoptic_ids(record: Record, where: str) -> np.ndarray:
    """Return the record's id map, drawn from its masks when it has none.

    Raises:
        DataError: masks overlap or differ in size from the image.
    """
    if record.id_map is not None:
        return record.read_id_map()
    shape, drawn = (record.height, record.width), []
    for region in record.regions:
        if region.mask is None:
            raise DataError("A segment has neither a mask nor an id map.", where=f"{where}, segment {region.id}")
        size, runs = rle_runs(region.mask)
        if size != shape:
            raise DataError(
                "A mask differs in size from its image.",
                where=f"{where}, segment {region.id}",
                value=size,
                allowed=str(shape),
            )
        drawn.append(runs)
    if not drawn:
        return np.zeros(shape, np.int32)
    return _draw([region.id for region in record.regions], drawn, where).reshape(shape, order="F")


def _draw(ids: list[int], drawn: list[np.ndarray], where: str) -> np.ndarray:
    """Return int32 [pixels] of masks given as alternating runs of 0 and 1 over all pixels; no mask is ever unpacked."""
    edges = [np.cumsum(runs) for runs in drawn]
    starts = np.concatenate([edge[:-1:2] for edge in edges])
    stops = np.concatenate([edge[1::2] for edge in edges])
    owner = np.repeat(np.arange(len(ids)), [len(edge) // 2 for edge in edges])
    order = np.argsort(starts, kind="stable")
    order = order[starts[order] < stops[order]]
    starts, stops, owner = starts[order], stops[order], owner[order]
    if (overlap := np.flatnonzero(starts[1:] < stops[:-1])).size:
        segment = np.maximum(owner[overlap], owner[overlap + 1]).min()
        raise DataError(
            "Masks overlap; a panoptic protocol needs each pixel in one segment at most.",
            where=f"{where}, segment {ids[segment]}",
        )
    cuts = np.append(np.stack([starts, stops], 1).ravel(), edges[0][-1])
    values = np.zeros(len(cuts), np.int32)
    values[1::2] = np.array(ids, np.int32)[owner]
    return np.repeat(values, np.diff(cuts, prepend=0))


def match_segments(overlap: Overlap) -> Matching:
    """Match segments by the panoptic-quality rule: same class, not a crowd, IoU > 0.5 (Kirillov et al. 2019)."""
    pairs = [
        (int(g), int(p))
        for g, p in np.argwhere(overlap.iou > MATCH_IOU)
        if not overlap.truth[g].is_crowd and overlap.truth[g].category_id == overlap.predicted[p].category_id
    ]
    found, used = {g for g, _ in pairs}, {p for _, p in pairs}
    missed = [g for g, region in enumerate(overlap.truth) if not region.is_crowd and g not in found]
    forgiven = forgiven_predictions(overlap)
    spurious = [p for p in range(len(overlap.predicted)) if p not in used and not forgiven[p]]
    return Matching(pairs, missed, spurious)


def forgiven_predictions(overlap: Overlap) -> np.ndarray:
    """Return, bool [P], which predictions are no error when unmatched.

    More than half of their area lies in void or in the crowd of their class; of several crowds of one class the last
    listed counts, as in panopticapi.
    """
    crowds = {region.category_id: g for g, region in enumerate(overlap.truth) if region.is_crowd}
    excused = overlap.void.copy()
    for p, region in enumerate(overlap.predicted):
        if region.category_id in crowds:
            excused[p] += overlap.intersection[crowds[region.category_id], p]
    return excused / np.maximum(overlap.predicted_area, 1) > FORGIVEN_SHARE


def _pick(counts: np.ndarray, ids: np.ndarray, regions: list[Region], axis: int) -> np.ndarray:
    """Return the rows or columns of ``counts`` that belong to ``regions``; zeros for a region without pixels."""
    wanted = np.array([region.id for region in regions], np.int64)
    place = np.searchsorted(ids, wanted)
    present = place < len(ids)
    present[present] = ids[place[present]] == wanted[present]
    picked = np.take(counts, np.where(present, place, 0), axis=axis) if len(ids) else counts
    return picked * (present[:, None] if axis == 0 else present[None])


def _check_regions(regions: list[Region], category_ids: Container[int], where: str) -> None:
    ids = [region.id for region in regions]
    wrong = sorted({i for i in ids if not VOID < i <= GREATEST_ID})
    if wrong or len(set(ids)) < len(ids):
        wrong = wrong or sorted({i for i in ids if ids.count(i) > 1})
        raise DataError(
            "Segment ids are not unique and above 0.",
            where=where,
            value=first_ids(wrong),
            allowed=f"1 to {GREATEST_ID}",
        )
    unknown = [region.id for region in regions if region.category_id not in category_ids]
    if unknown:
        category = next(region.category_id for region in regions if region.id == unknown[0])
        raise DataError(
            f"{len(unknown)} segment(s) of a category that the data set does not have.",
            where=f"{where}, segments {first_ids(unknown)}",
            value=category,
            allowed=f"category ids {first_ids(list(category_ids), 20)}" if hasattr(category_ids, "__iter__") else None,
        )


def _check_listed(regions: list[Region], ids: np.ndarray, where: str) -> None:
    listed, drawn = {region.id for region in regions}, {int(i) for i in ids} - {VOID}
    if drawn - listed:
        raise DataError(
            "The id map holds pixels of segments that are not listed.",
            where=f"{where}, prediction",
            value=first_ids(sorted(drawn - listed)),
        )
    if listed - drawn:
        raise DataError(
            "Listed segments have no pixels.", where=f"{where}, prediction", value=first_ids(sorted(listed - drawn))
        )
