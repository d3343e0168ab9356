"""Which predicted region answers which true region of an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from ...datasets.records import Record, Region
from ...utils.errors import DataError
from ..results import first_ids
from .region_geometry import region_box, region_mask

MATCH_IOU = 0.5  # a match needs more


def pair_by_id(record: Record, prediction: Record) -> dict[int, Region]:
    """Return true region id -> predicted region, for predictions made from the true regions as prompts.

    Raises:
        DataError: an id occurs twice, or a prediction answers a region that the ground truth does not have.
    """
    for regions, side in ((record.regions, "ground truth"), (prediction.regions, "prediction")):
        twice = [i for i, count in Counter(region.id for region in regions).items() if count > 1]
        if twice:
            where = f"image_id {record.image_id}, {side}"
            raise DataError("Region ids occur twice in an image.", where=where, value=first_ids(twice))
    known = {region.id for region in record.regions}
    unknown = [region.id for region in prediction.regions if region.id not in known]
    if unknown:
        raise DataError(
            f"{len(unknown)} prediction(s) are of regions that the ground truth does not have.",
            where=f"image_id {record.image_id}",
            value=f"region ids {first_ids(unknown)}",
            allowed=f"region ids {first_ids(list(known), 20)}" if known else "none",
        )
    return {region.id: region for region in prediction.regions}


def answers_prompts(record: Record, prediction: Record) -> bool:
    """Return whether every prediction has the id of a true region, and that region's geometry if any."""
    known = {region.id: region for region in record.regions}
    return prediction.id_map is None and all(
        region.id in known and _is_prompt(region, known[region.id]) for region in prediction.regions
    )


def _is_prompt(region: Region, truth: Region) -> bool:
    return region.box_xyxy in (None, truth.box_xyxy) and region.mask in (None, truth.mask)


def pair_by_overlap(record: Record, prediction: Record, truth: Sequence[Region]) -> list[tuple[int, int]]:
    """Return (index into ``truth``, index of the predicted region) of the regions that overlap with IoU > 0.5.

    Predictions of highest score first (without score: 1; equal ones by id), each takes the free true region that it
    overlaps most, whatever the classes. Masks are compared where both sides have one, else boxes.

    Raises:
        DataError: a region has no geometry, or a malformed one.
    """
    overlaps = region_overlaps(record, truth, prediction, prediction.regions)
    order = sorted(range(len(prediction.regions)), key=lambda p: _rank(prediction.regions[p]))
    free, pairs = np.ones(len(truth), bool), []
    for p in order:
        column = np.where(free, overlaps[:, p], 0.0)
        if len(truth) and column.max() > MATCH_IOU:
            g = int(column.argmax())
            free[g] = False
            pairs.append((g, p))
    return sorted(pairs)


def _rank(region: Region) -> tuple[float, int]:
    return (-(1.0 if region.score is None else region.score), region.id)


def region_overlaps(
    record: Record, truth: Sequence[Region], prediction: Record, predicted: Sequence[Region]
) -> np.ndarray:
    """Return the IoU of regions, float64 [truth, predicted]."""
    if not truth or not predicted:
        return np.zeros((len(truth), len(predicted)))
    sides = ((record, truth, "region"), (prediction, predicted, "prediction"))
    shapes = [[region_mask(owner, region, side) for region in regions] for owner, regions, side in sides]
    if any(mask is None for masks in shapes for mask in masks):
        boxes = [[region_box(owner, region, side) for region in regions] for owner, regions, side in sides]
        if any(box is None for group in boxes for box in group):
            raise DataError("A region has neither box nor mask.", where=f"image_id {record.image_id}")
        shapes = [np.array(group, np.float64) for group in boxes]
    return np.asarray(coco_mask.iou(*shapes, [0] * len(predicted)), np.float64).reshape(len(truth), len(predicted))
