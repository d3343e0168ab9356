"""Protocol ``caption_attributes``: are the words of a caption true of the scene?

For scenes whose every region has known attributes (the embedded data set), each caption is judged attribute by
attribute. Three shares are reported per attribute:
    ``<attribute>``          of all thing segments of the ground truth, found or not, those rightly described; one that
                             was not found, or whose caption does not speak of the attribute, counts as wrong
    ``<attribute>_matched``  the same over the found segments only
    ``<attribute>_said``     of the found segments whose caption speaks of the attribute, those rightly described
A segment is found when a prediction of any class overlaps it with IoU > 0.5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..datasets.records import Category, Record, Region
from .matching.segments import MATCH_IOU, measure_overlap
from .results import ImageEvaluator, ImageId, ProtocolResult, Table

ATTRIBUTES = ("size", "colour", "texture", "shape", "relation")
Judge = Callable[[str, Region, Record], Mapping[str, bool | None]]


class CaptionAttributes(ImageEvaluator):
    """Accuracy of the attributes that captions state.

    Args:
        judge: (caption, ground-truth region, ground-truth record) -> attribute -> right, wrong, or None when the
            caption does not speak of it; for the embedded data set
            ``lambda text, region, record: holds(read_caption(text), region, record)``.
        attributes: the names that ``judge`` returns.
    """

    protocol = "caption_attributes"

    def __init__(
        self,
        categories: Sequence[Category],
        *,
        judge: Judge,
        attributes: Sequence[str] = ATTRIBUTES,
        variant: str = "standard",
        image_order: Sequence[ImageId] | None = None,
    ) -> None:
        super().__init__(categories, variant=variant, image_order=image_order)
        self.judge, self.attributes = judge, tuple(attributes)

    def compute(self) -> ProtocolResult:
        """Return the three shares per attribute, ``found`` (segments found) and ``all`` (every attribute right)."""
        verdicts = [row for _, entry in self._ordered() for row in entry]
        found = [row for row in verdicts if row is not None]
        result = ProtocolResult(self.protocol, self.variant)
        result.counts = {"images": len(self._entries), "segments": len(verdicts), "found": len(found)}
        if not verdicts:
            result.undefined["all"] = "no thing segment of the ground truth has attributes"
            return result
        result.figures["found"] = len(found) / len(verdicts)
        rows = []
        for place, name in enumerate(self.attributes):
            right = sum(row[place] is True for row in found)
            said = sum(row[place] is not None for row in found)
            result.figures[name] = right / len(verdicts)
            if found:
                result.figures[f"{name}_matched"] = right / len(found)
            if said:
                result.figures[f"{name}_said"] = right / said
            rows.append((name, right, said, len(found), len(verdicts)))
        result.figures["all"] = sum(all(value is True for value in row) for row in found) / len(verdicts)
        result.tables["attributes"] = Table(("attribute", "right", "said", "found", "segments"), rows)
        return result

    def _measure(self, record: Record, prediction: Record) -> list[list[bool | None] | None]:
        """Return per judged segment its verdicts in the order of ``attributes``, or None when it was not found."""
        overlap = measure_overlap(record, prediction, self.categories)
        entry = []
        for g, region in enumerate(overlap.truth):
            if region.is_crowd or not region.attributes or not self.categories[region.category_id].is_thing:
                continue
            matches = np.flatnonzero(overlap.iou[g] > MATCH_IOU)
            entry.append(self._judge(overlap.predicted[matches[0]], region, record) if len(matches) else None)
        return entry

    def _judge(self, predicted: Region, region: Region, record: Record) -> list[Any]:
        verdict = self.judge(predicted.captions[0] if predicted.captions else "", region, record)
        values = (verdict.get(name) for name in self.attributes)
        return [None if value is None else bool(value) for value in values]
