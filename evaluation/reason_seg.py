"""Protocol ``reason_seg``: the mask that an implicit question asks for (ReasonSeg), with pixels to ignore.

How questions and answers meet is told in `expressions`; a question is an expression there.

Variant ``standard``
    * ``giou``: mean IoU per question. * ``ciou``: sum of intersections over sum of unions.
    IoU is exact; an empty mask for an empty target has IoU 1 and adds nothing to ``ciou``.

Variant ``upstream``
    Both as the published ``validate`` of PixelLM and LISA computes them, float32 sums included
    (`mask_scores.published_scores`); an unanswered question is an empty mask whose IoU is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from .expressions import (
    EXACT,
    PUBLISHED,
    Arithmetic,
    ExpressionEvaluator,
    Outcome,
    Scores,
    score_masks,
    score_published,
)


class ReasoningSegmentation(ExpressionEvaluator):
    """gIoU and cIoU of one mask per question."""

    protocol = "reason_seg"
    variants = ("standard", "upstream")
    arithmetic: ClassVar[Mapping[str, Arithmetic]] = {"standard": EXACT, "upstream": PUBLISHED}

    def _score(self, images: Sequence[Sequence[Outcome]]) -> Scores:
        if self.variant == "upstream":
            return score_published(images)
        return score_masks([outcome for image in images for outcome in image], EXACT)
