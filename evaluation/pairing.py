"""Which prediction belongs to which image, and what would turn into a wrong figure silently."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from ..datasets.records import Record, Region
from ..utils.errors import DataError
from .results import ImageId, first_ids


def pair_predictions(
    ground_truth: Iterable[Record], predictions: Iterable[Record], *, where: str = "predictions"
) -> dict[ImageId, Record]:
    """Return the prediction of each image.

    Raises:
        DataError: images are unknown, predicted twice or missing (with their number and first ids), or a prediction
            has a score or a box that is not finite.
    """
    predictions = list(predictions)
    known = [record.image_id for record in ground_truth]
    given = Counter(record.image_id for record in predictions)
    problems = {
        "of the ground truth are listed twice": [i for i, n in Counter(known).items() if n > 1],
        "are predicted twice": [image_id for image_id, count in given.items() if count > 1],
        "are not in the ground truth": [image_id for image_id in given if image_id not in set(known)],
        "have no prediction": [image_id for image_id in known if image_id not in given],
    }
    for what, ids in problems.items():
        if ids:
            raise DataError(
                f"{len(ids)} image(s) {what}.",
                where=where,
                value=f"image ids {first_ids(ids)}",
                allowed="one prediction for every image of the ground truth",
            )
    for record in predictions:
        for region in (*record.regions, *(record.instances or ())):
            if problem := _problem(region):
                what, value = problem
                raise DataError(what, where=f"{where}: image_id {record.image_id}, region {region.id}", value=value)
    return {record.image_id: record for record in predictions}


def _problem(region: Region) -> tuple[str, Any] | None:
    """Return what is wrong with a region's values, and the value."""
    score, box, captions = region.score, region.box_xyxy, region.captions
    if score is not None and not (isinstance(score, (int, float)) and math.isfinite(score)):
        return "A score is not a finite number.", score
    if box is not None and not all(map(math.isfinite, box)):
        return "A box is not four finite numbers.", box
    if captions and (isinstance(captions, str) or not all(isinstance(text, str) for text in captions)):
        return "Captions are not text.", captions
    return None
