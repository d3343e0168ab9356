"""Protocol ``referring``: is the thing found that an expression refers to (RefCOCO, RefCOCO+, RefCOCOg).

How expressions and answers meet is told in `expressions`. A threshold t asks for IoU > t, not for equality.

Variant ``standard``
    * ``box_precision@0.5``: share of expressions whose box has IoU > 0.5.
    * ``ciou``: sum of intersections over sum of unions of the masks, over all expressions.
    * ``giou``: mean IoU of the masks per expression (also called mIoU).
    * ``precision@0.5 … precision@0.9``: share of expressions whose mask has IoU > 0.5, 0.6, 0.7, 0.8, 0.9.
    * ``mask_box_precision@0.5``: share of expressions for which the tight box of the predicted mask (x1, y1 exclusive)
      and the annotated box have IoU > 0.5.
    IoU is exact. An empty mask for an empty target has IoU 1 and adds nothing to ``ciou``; two boxes without area
    have IoU 0. An expression whose id is 0 counts like any other.

Variant ``pixelllm``
    The published RefCocoEvaluator of PixelLLM (scenic), number for number: ``box_precision@0.5`` is its
    box_Precision@1, ``precision@0.5`` its seg_AP, ``mask_box_precision@0.5`` its seg_box_Precision@1. IoU is
    I / (U + 1e-6) of boxes, I / (U + 1e-5) of masks, cIoU is mean I / (mean U + 1e-5). Expressions that were not
    answered have no part in any mean and are counted. The published program never writes an answer to an id that is
    not above 0, but scores those that a file has; so does this, and counts them (``answered_not_above_zero``).

Variant ``pixellm``
    ``giou`` and ``ciou`` of the published ``validate`` of PixelLM (also LISA's), float32 sums included
    (`mask_scores.published_scores`); an unanswered expression is an empty mask whose IoU is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from .expressions import (
    EXACT,
    PUBLISHED,
    Arithmetic,
    ExpressionEvaluator,
    Outcome,
    Scores,
    judged,
    score_masks,
    score_published,
)
from .results import ProtocolResult

BOX_THRESHOLD = 0.5
MASK_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
PIXELLLM = Arithmetic(box_epsilon=1e-6, mask_epsilon=1e-5, empty_iou=0.0)


class ReferringExpressions(ExpressionEvaluator):
    """Boxes and masks of referring expressions."""

    protocol = "referring"
    variants = ("standard", "pixelllm", "pixellm")
    arithmetic: ClassVar[Mapping[str, Arithmetic]] = {
        "standard": EXACT,
        "pixelllm": PIXELLLM,
        "pixellm": PUBLISHED,
    }

    def compute(self) -> ProtocolResult:
        """Return the figures of the module's description."""
        result = super().compute()
        if self.variant == "pixelllm":
            expression, answered = map(result.regions.columns.index, ("expression_id", "answered"))
            low = sum(row[expression] <= 0 and row[answered] for row in result.regions.rows)
            result.counts["answered_not_above_zero"] = low
            if result.counts["unanswered"]:
                result.notes.append("unanswered expressions have no part in these means, as in the published code")
        return result

    def _score(self, images: Sequence[Sequence[Outcome]]) -> Scores:
        if self.variant == "pixellm":
            return score_published(images)
        outcomes = [outcome for image in images for outcome in image]
        if self.variant == "pixelllm":
            kept = [outcome for outcome in outcomes if outcome.answered]
            return score_exactly(kept, PIXELLLM, MASK_THRESHOLDS[:1])
        return score_exactly(outcomes, EXACT, MASK_THRESHOLDS)


def score_exactly(outcomes: Sequence[Outcome], divide: Arithmetic, thresholds: Sequence[float]) -> Scores:
    """Return the figures of boxes and masks over all expressions alike."""
    scores = score_masks(outcomes, divide)
    boxes, masks = judged(outcomes, "box"), judged(outcomes, "mask")
    both = masks if isinstance(masks, str) else judged(masks, "mask_box")
    _add_precision(scores, "box_precision", boxes, lambda outcome: divide.box_iou(outcome.box), [BOX_THRESHOLD])
    _add_precision(scores, "precision", masks, divide.mask_iou, thresholds)
    _add_precision(
        scores, "mask_box_precision", both, lambda outcome: divide.box_iou(outcome.mask_box), [BOX_THRESHOLD]
    )
    return scores


def _add_precision(
    scores: Scores,
    name: str,
    found: list[Outcome] | str,
    iou: Callable[[Outcome], float],
    thresholds: Sequence[float],
) -> None:
    """Write the share of expressions above each threshold, or why there is none."""
    names = [f"{name}@{threshold}" for threshold in thresholds]
    if isinstance(found, str):
        scores.undefined |= dict.fromkeys(names, found)
        return
    ious = [iou(outcome) for outcome in found]
    for figure, threshold in zip(names, thresholds, strict=True):
        scores.figures[figure] = sum(value > threshold for value in ious) / len(ious)
