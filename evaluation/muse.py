"""Protocol ``muse``: several masks in answer to one question (MUSE, the benchmark of PixelLM).

A question is a conversation: its user turn asks; its assistant turn answers and names, in ``region_ids``, the targets
in the ground truth and the predicted masks in the prediction, in the order of the text. The n-th question of an image
meets the n-th of its prediction, whose user turn must contain it or be empty. A predicted mask is soft
(``Region.logits``) or binary (``Region.mask``, taken as logits of +-10). Images without targets and predictions are
counted (``images_without_masks``) and have no part in the figures.

Per question, predictions and targets are matched one to one at the least total of binary cross entropy and Dice loss.
What is left over is paired with an empty mask: a missed target, a spurious prediction.

Variant ``standard``
    The loss is taken over all pixels. ``giou``: mean over the pairs of the IoU of the thresholded masks (logit > 0), 0
    for every missed target and every spurious prediction, 1 for a matched pair without a pixel. ``ciou``: sum of
    intersections over sum of unions, a spurious prediction's pixels included. Exact arithmetic.

Variant ``upstream``
    The published ``ar_validate``, number for number. The loss is taken at 12544 random points, always the same here. A
    spurious prediction enters the histogram as raw logits, of which only those in [0.5, 1] count as its pixels. A pair
    without a pixel has IoU 1, missed and spurious ones included. ``giou`` divides an image's sum by the larger of its
    numbers of predictions and targets, not by its pairs. Sums are float32 (`mask_scores.published_scores`).

Variant ``fixed``
    The same with spurious predictions thresholded like the others.

The rows per region are the pairs, with what a judge of the texts needs: question, answer with every ``seg_token``
replaced by the phrase of the matched target or by "(None [])", and that phrase.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..datasets.records import Category, Record
from ..utils.errors import UsageError
from .matching.mask_scores import MaskPair, published_scores
from .matching.muse_matching import draw_points
from .muse_questions import ImageMasks, Pair, make_pairs, pair_from_json, paired_questions, substitute
from .results import ImageEvaluator, ImageId, ProtocolResult, Table

SEG_TOKEN = "[SEG]"  # noqa: S105 - no password
REGION_COLUMNS = (
    "image_id", "question_index", "predicted_id", "target_id", "intersection", "union", "background_intersection",
    "background_union", "target", "question", "answer",
)  # fmt: skip


class MuseQuestions(ImageEvaluator):
    """gIoU and cIoU of several masks per question."""

    protocol = "muse"
    variants = ("standard", "upstream", "fixed")
    options: ClassVar[Mapping[str, str]] = {"seg_token": f"what stands for one mask in an answer; default {SEG_TOKEN}"}
    decisive = ("seg_token",)

    def __init__(
        self,
        categories: Sequence[Category],
        *,
        variant: str = "standard",
        image_order: Sequence[ImageId] | None = None,
        seg_token: str = SEG_TOKEN,
    ) -> None:
        super().__init__(categories, variant=variant, image_order=image_order)
        if not seg_token:
            raise UsageError("The option seg_token is empty.", value=seg_token, allowed=f"such as {SEG_TOKEN}")
        self.seg_token = seg_token
        self.points = None if variant == "standard" else draw_points()

    def compute(self) -> ProtocolResult:
        """Return ``giou`` and ``ciou``, a table of the images, and a row per pair."""
        entries = self._ordered(as_ground_truth=True)
        images = [(image_id, [pair for pairs in _pairs(entry) for pair in pairs]) for image_id, entry in entries]
        judged = [(image_id, pairs) for image_id, pairs in images if pairs]
        result = ProtocolResult(self.protocol, self.variant, counts=_counts(entries, images))
        if not judged:
            result.undefined |= dict.fromkeys(("giou", "ciou"), "there is neither a target nor a prediction")
        elif self.variant == "standard":
            add_exact_scores(result, judged)
        else:
            add_published_scores(result, judged)
        result.regions = _region_table(entries)
        return result

    def _measure(self, record: Record, prediction: Record) -> list[dict[str, Any]]:
        questions = paired_questions(record, prediction)
        masks = ImageMasks(record, questions)
        entry = []
        for question, answer in questions:
            pairs = make_pairs(question, answer, masks, self.points, raw_spurious=self.variant == "upstream")
            text = substitute(answer, pairs, self.seg_token)
            entry.append({"question": question.text, "answer": text, "pairs": [dataclasses.astuple(p) for p in pairs]})
        return entry


def _pairs(entry: Sequence[Mapping[str, Any]]) -> list[list[Pair]]:
    """Return the pairs of each question of an image."""
    return [[pair_from_json(body) for body in question["pairs"]] for question in entry]


def add_exact_scores(result: ProtocolResult, images: Sequence[tuple[ImageId, Sequence[Pair]]]) -> None:
    """Write the figures of the variant ``standard`` and the mean IoU of each image."""
    ious = {image_id: [_iou(pair) for pair in pairs] for image_id, pairs in images}
    every = [iou for found in ious.values() for iou in found]
    union = sum(pair.union[1] for _, pairs in images for pair in pairs)
    result.figures["giou"] = math.fsum(every) / len(every)
    if union:
        result.figures["ciou"] = sum(pair.intersection[1] for _, pairs in images for pair in pairs) / union
    else:
        result.undefined["ciou"] = "no mask has a pixel"
    rows = [(image_id, math.fsum(found) / len(found), len(found)) for image_id, found in ious.items()]
    result.tables["images"] = Table(("image_id", "iou", "masks"), rows)


def _iou(pair: Pair) -> float:
    if not pair.matched:
        return 0.0
    return pair.intersection[1] / pair.union[1] if pair.union[1] else 1.0


def add_published_scores(result: ProtocolResult, images: Sequence[tuple[ImageId, Sequence[Pair]]]) -> None:
    """Write the figures of the variants ``upstream`` and ``fixed`` and the mean IoU of each image."""
    weights = [_larger_side(pairs) for _, pairs in images]
    areas = [[MaskPair(pair.intersection, pair.union) for pair in pairs] for _, pairs in images]
    scores = published_scores(list(zip(areas, weights, strict=True)))
    result.figures |= {"giou": float(scores.giou[1]), "ciou": float(scores.ciou[1])}
    rows = [
        (image_id, *means.tolist(), weight)
        for (image_id, _), means, weight in zip(images, scores.per_image, weights, strict=True)
    ]
    result.tables["images"] = Table(("image_id", "background_iou", "iou", "masks"), rows)


def _larger_side(pairs: Sequence[Pair]) -> int:
    """Return the larger of the numbers of predictions and targets."""
    return max(sum(p.predicted_id is not None for p in pairs), sum(p.target_id is not None for p in pairs))


def _counts(
    entries: Sequence[tuple[ImageId, Sequence[Any]]], images: Sequence[tuple[ImageId, Sequence[Pair]]]
) -> dict[str, int]:
    pairs = [pair for _, found in images for pair in found]
    return {
        "images": len(images),
        "images_without_masks": sum(not found for _, found in images),
        "questions": sum(len(entry) for _, entry in entries),
        "matched": sum(pair.matched for pair in pairs),
        "missed": sum(pair.predicted_id is None for pair in pairs),
        "spurious": sum(pair.target_id is None for pair in pairs),
    }


def _region_table(entries: Sequence[tuple[ImageId, Sequence[Mapping[str, Any]]]]) -> Table:
    rows = [
        (
            image_id,
            index,
            pair.predicted_id,
            pair.target_id,
            pair.intersection[1],
            pair.union[1],
            pair.intersection[0],
            pair.union[0],
            pair.phrase,
            question["question"],
            question["answer"],
        )
        for image_id, entry in entries
        for index, (question, pairs) in enumerate(zip(entry, _pairs(entry), strict=True))
        for pair in pairs
    ]
    return Table(REGION_COLUMNS, rows)
