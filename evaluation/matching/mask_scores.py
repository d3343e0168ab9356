"""gIoU and cIoU of masks in the arithmetic of the published PixelLM evaluation, which LISA's has been too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class MaskPair:
    """A prediction beside its target, in pixels that count.

    Attributes:
        intersection, union: pixels of each of the C classes judged.
        answered: whether there was a prediction; the IoU of a missing one is 0 even where both masks are empty.
    """

    intersection: tuple[int, ...]
    union: tuple[int, ...]
    answered: bool = True


@dataclass(frozen=True, slots=True)
class PublishedScores:
    """What PixelLM's evaluation reports for each of the C classes.

    Attributes:
        giou, ciou: float32 [C].
        per_image: float32 [C] each, the image's sum of IoU over its weight.
    """

    giou: np.ndarray
    ciou: np.ndarray
    per_image: list[np.ndarray]


def published_scores(images: Sequence[tuple[Sequence[MaskPair], int]]) -> PublishedScores:
    """Return gIoU and cIoU as PixelLM's ``validate`` and ``ar_validate`` compute them, sums in float32 included.

    IoU = I / (U + 1e-5), plus 1 where U = 0; gIoU = sum of IoU / (sum of weights + 1e-5); cIoU = sum of I /
    (sum of U + 1e-10). The sums run over the pairs of an image, then over the images, in the order given.

    Args:
        images: the pairs of each image, at least one, and its weight, the number of masks that its mean is over.
    """
    total = [np.float32(0)] * 3
    per_image = []
    for pairs, weight in images:
        summed = _sum_image(pairs)
        per_image.append(summed[2] / np.float32(weight))
        summed[2] = per_image[-1] * np.float32(weight)  # the published meter multiplies the mean again
        total = [old + new for old, new in zip(total, summed, strict=True)]
    weights = sum(weight for _, weight in images)
    giou = total[2] / np.float32(float(np.float32(weights)) + 1e-5)
    return PublishedScores(giou, total[0] / (total[1] + np.float32(1e-10)), per_image)


def _sum_image(pairs: Sequence[MaskPair]) -> list[np.ndarray]:
    """Return the sums of intersections, unions and IoU of one image, float32 [C] each."""
    intersection = np.array([pair.intersection for pair in pairs], np.float32)
    union = np.array([pair.union for pair in pairs], np.float32)
    each = intersection / (union + np.float32(1e-5))
    each += (union == 0) & np.array([pair.answered for pair in pairs])[:, None]
    return [np.add.accumulate(values, dtype=np.float32)[-1] for values in (intersection, union, each)]
