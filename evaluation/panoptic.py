"""Protocol ``panoptic``: panoptic, segmentation and recognition quality (Kirillov et al., CVPR 2019).

    PQ = sum of IoU over matches / (TP + FP/2 + FN/2) = SQ * RQ, per class, then averaged over the classes that occur.

The arithmetic is panopticapi's to the last integer, crowd and void rules included. So the area of a true segment is the
one its file states, and pixels of true segments that are not listed are neither void nor to be found; where a file does
not fit its id maps in one of these ways, a count and a note say so. Predictions that do not are refused.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..datasets.records import Category, Record
from .matching.segments import Matching, Overlap, match_segments, measure_overlap
from .results import ImageEvaluator, ProtocolResult, Table


@dataclass(slots=True)
class ClassCounts:
    """Matches of one class over a data set."""

    ious: list[float] = field(default_factory=list)
    false_positives: int = 0
    false_negatives: int = 0

    @property
    def occurs(self) -> bool:
        """Whether the class was ever there or predicted."""
        return bool(self.ious or self.false_positives or self.false_negatives)

    def quality(self) -> tuple[float, float, float]:
        """Return (PQ, SQ, RQ), zeros when the class does not occur."""
        if not self.occurs:
            return 0.0, 0.0, 0.0
        matches, total = len(self.ious), math.fsum(self.ious)  # fsum: the same sum in any order
        weight = matches + 0.5 * self.false_positives + 0.5 * self.false_negatives
        return total / weight, total / matches if matches else 0.0, matches / weight


class PanopticQuality(ImageEvaluator):
    """PQ, SQ and RQ: over all classes, things, stuff, and per class."""

    protocol = "panoptic"

    def compute(self) -> ProtocolResult:
        """Return figures ``pq, sq, rq`` and the same with ``_things`` and ``_stuff``."""
        entries = self._ordered()
        result = ProtocolResult(self.protocol, self.variant, counts={"images": len(entries)})
        add_panoptic_quality(result, (entry for _, entry in entries), self.categories)
        return result

    def _measure(self, record: Record, prediction: Record) -> dict[str, Any]:
        overlap = measure_overlap(record, prediction, self.categories)
        return panoptic_entry(overlap, match_segments(overlap))


def panoptic_entry(overlap: Overlap, matching: Matching) -> dict[str, Any]:
    """Return one image's matches as JSON-able lists of category ids."""
    return {
        "matched": [[int(overlap.truth[g].category_id), float(overlap.iou[g, p])] for g, p in matching.pairs],
        "missed": [int(overlap.truth[g].category_id) for g in matching.missed],
        "spurious": [int(overlap.predicted[p].category_id) for p in matching.spurious],
        "flaws": {name: number for name, number in overlap.flaws.items() if number},
    }


def count_classes(entries: Iterable[Mapping[str, Any]], categories: Mapping[int, Category]) -> dict[int, ClassCounts]:
    """Sum the images' entries per class."""
    counts = {category_id: ClassCounts() for category_id in categories}
    for entry in entries:
        for category_id, iou in entry["matched"]:
            counts[category_id].ious.append(iou)
        for category_id in entry["missed"]:
            counts[category_id].false_negatives += 1
        for category_id in entry["spurious"]:
            counts[category_id].false_positives += 1
    return counts


def add_panoptic_quality(
    result: ProtocolResult, entries: Iterable[Mapping[str, Any]], categories: Mapping[int, Category]
) -> dict[int, ClassCounts]:
    """Write PQ, SQ, RQ and the table per class into ``result``; returns the counts per class."""
    entries = list(entries)
    counts = count_classes(entries, categories)
    groups = {
        "": list(categories.values()),
        "_things": [category for category in categories.values() if category.is_thing],
        "_stuff": [category for category in categories.values() if not category.is_thing],
    }
    for suffix, group in groups.items():
        present = [counts[category.id].quality() for category in group if counts[category.id].occurs]
        result.counts[f"classes{suffix}"] = len(present)
        for place, name in enumerate(("pq", "sq", "rq")):
            if present:
                result.figures[name + suffix] = math.fsum(values[place] for values in present) / len(present)
            elif group:
                result.undefined[name + suffix] = "no segment of these classes, neither true nor predicted"
    result.counts |= {
        "matched": sum(len(c.ious) for c in counts.values()),
        "false_positives": sum(c.false_positives for c in counts.values()),
        "false_negatives": sum(c.false_negatives for c in counts.values()),
    }
    result.tables["classes"] = _class_table(counts, categories)
    _add_flaws(result, entries)
    return counts


def _add_flaws(result: ProtocolResult, entries: Iterable[Mapping[str, Any]]) -> None:
    """Say what is odd about the ground truth, if anything is."""
    flaws: Counter[str] = Counter()
    for entry in entries:
        flaws.update(entry["flaws"])
    result.counts |= dict(flaws)
    if number := flaws["truth_areas_differ"]:
        result.notes.append(f"{number} true segments state another area than they have pixels; the stated one counts")
    if number := flaws["truth_ids_unlisted"]:
        result.notes.append(
            f"{number} true segments are drawn but not listed; they are not to be found, and what covers them is wrong"
        )


def _class_table(counts: Mapping[int, ClassCounts], categories: Mapping[int, Category]) -> Table:
    rows = [
        (
            category.id,
            category.name,
            category.is_thing,
            *counts[category.id].quality(),
            len(counts[category.id].ious),
            counts[category.id].false_positives,
            counts[category.id].false_negatives,
        )
        for category in categories.values()
        if counts[category.id].occurs
    ]
    columns = ("category_id", "name", "is_thing", "pq", "sq", "rq", "matched", "false_positives", "false_negatives")
    return Table(columns, rows)
