"""Protocol ``dense_captioning``: boxes and their captions judged together, as on Visual Genome (Johnson et al. 2016).

Figures of every variant
    * ``map``: mean average precision over box IoU {.3, .4, .5, .6, .7} and METEOR {0, .05, .1, .15, .2, .25}; a caption
      must score *above* the METEOR threshold. METEOR is version 1.5 with its own normalisation of raw captions, against
      all captions of the group of ground-truth boxes.
    * ``detection_map``: the same over the five IoU thresholds without looking at captions.

Variant ``standard``
    * Boxes are compared in original pixels; IoU is the plain one. Boxes that leave the image are used as they are.
    * Ground-truth boxes are merged at IoU 0.7 (`region_groups`): the group's box is the mean, its captions are all of
      its members'. Crowds, and boxes that are empty or inverted, are left out.
    * At each IoU threshold the detections of an image, highest score first, each take the group of highest IoU that is
      still free and reaches the threshold. All detections of the data set are ranked by score; one without a group is
      a false positive, and so is one whose box is empty or inverted. Precision is interpolated at 101 recalls.
    * Groups without a caption have no part in ``map`` (neither they nor what took them). A detection without a caption
      has METEOR 0.
    * Equal scores: in the order of image ids, boxes and captions, so that the order of the file does not matter.
    Extra detections of a box cannot raise a figure unless groups overlap by the threshold; then one may take the other
    group.

Variants ``densecap``, ``densecap_float``, ``pixelllm``, ``soloist97``
    Published evaluators, number for number: `dense_captioning_upstream`.

Regions without a box have that of their mask. Detections without a score rank as 1. All of this is in ``counts``; a
note says when the predictions look like boxes of another frame (`frames`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..datasets.records import Category, Record, Region
from ..utils.errors import DataError, UsageError
from . import dense_captioning_upstream as upstream
from .captions import warm_up
from .matching.assignment import NOTHING, take_best_free
from .matching.frames import count_frames, frame_notes
from .matching.region_groups import box_iou, merge_groups, region_box, sides_of
from .ranking.dense_average_precision import IOU_THRESHOLDS, add_average_precision, pool, region_table
from .results import ImageEvaluator, ImageId, ProtocolResult

METEOR_OF = ("matches", "all")


class DenseCaptioning(ImageEvaluator):
    """mAP over IoU and METEOR of captioned boxes.

    Args:
        meteor: ``matches`` scores the captions that can become true positives; ``all`` also those of every other
            detection that overlaps a group, for the rows per region. The figures are the same.
    """

    protocol = "dense_captioning"
    variants = ("standard", *upstream.RULES)
    options: ClassVar[Mapping[str, str]] = {"meteor": "matches (default) or all: whose METEOR the rows per region show"}

    def __init__(
        self,
        categories: Sequence[Category],
        *,
        variant: str = "standard",
        image_order: Sequence[ImageId] | None = None,
        meteor: str = "matches",
    ) -> None:
        super().__init__(categories, variant=variant, image_order=image_order)
        if meteor not in METEOR_OF:
            raise UsageError("There is no such choice of captions.", value=meteor, allowed=", ".join(METEOR_OF))
        self.every_meteor = meteor == "all"
        if variant == "pixelllm" and image_order is not None:
            self.image_order = upstream.set_order(image_order)

    def warm_up(self) -> None:
        """Start METEOR in the background."""
        warm_up()

    def compute(self) -> ProtocolResult:
        """Return the figures of the module's description; ``map`` is missing where Java is."""
        entries = self._ordered(as_ground_truth=self.variant != "standard")
        result = ProtocolResult(self.protocol, self.variant, counts={"images": len(entries)})
        pooled = pool([entry for _, entry in entries], skip_wordless=self.variant == "standard")
        meteor = add_average_precision(result, pooled, upstream.RULES.get(self.variant), every=self.every_meteor)
        _add_counts(result, [entry["counts"] for _, entry in entries], len(pooled.groups))
        result.regions = region_table(entries, pooled, meteor)
        return result

    def _measure(self, record: Record, prediction: Record) -> dict[str, Any]:
        where = f"image_id {record.image_id}"
        truth, counts = read_truth(record, self.variant, f"{where}, ground truth")
        detections, more = read_detections(prediction, self.variant, f"{where}, prediction")
        counts["images_without_detections"] = int(not detections.ids)
        counts |= more | count_frames(truth.boxes, detections.boxes, record.height, record.width)
        rules = upstream.RULES.get(self.variant)
        if rules is None:
            entry = match_standard(truth, detections)
        elif rules.densecap_text and not truth.captions:
            counts |= {"images_left_out": 1, "predicted_left_out": len(detections.ids)}
            detections = Detections([], [], [], np.zeros((0, 4)), np.zeros((0, 2)))
            entry = match_standard(truth, detections)
        else:
            captions = [texts[0] for texts in truth.captions]
            size = (record.height, record.width)
            boxes = [np.concatenate([side.boxes[:, :2], side.sides], 1) for side in (truth, detections)]
            found = upstream.match(rules, boxes[0], captions, boxes[1], detections.captions, size)
            entry = upstream.entry_of(found, IOU_THRESHOLDS)
        return entry | {"ids": detections.ids, "scores": detections.scores, "counts": counts}


@dataclass(slots=True)
class TrueRegions:
    """The T regions of one image that a variant counts.

    Attributes:
        boxes, sides: float64 [T, 4] and [T, 2] (width, height), original pixels.
        captions: what is said about each; exactly one text in the published variants.
    """

    boxes: np.ndarray
    sides: np.ndarray
    captions: list[list[str]]


@dataclass(slots=True)
class Detections:
    """The P detections of one image, best score first.

    Attributes:
        ids, captions: of each.
        scores: None where there is none.
        boxes, sides: float64 [P, 4] and [P, 2] (width, height), original pixels.
    """

    ids: list[int]
    scores: list[float | None]
    captions: list[str]
    boxes: np.ndarray
    sides: np.ndarray


def read_truth(record: Record, variant: str, where: str) -> tuple[TrueRegions, dict[str, int]]:
    """Return what a variant counts of one image's ground truth, and the counts of what it leaves out.

    Raises:
        DataError: a region has no finite box.
    """
    counts: Counter[str] = Counter(truth=len(record.regions))
    boxes, sides, captions = [], [], []
    for region in record.regions:
        box = region_box(record, region, f"{where}, region {region.id}")
        flaw = "truth_crowds" if region.is_crowd and variant != "pixelllm" else _flaw(box, variant)
        if flaw:
            counts[flaw] += 1
            continue
        counts["truth_without_caption"] += not any(text.strip() for text in region.captions)
        kept = _captions(region, variant)
        if variant != "standard":
            counts["truth_over_15_words"] += max(len(region.captions), 1) - len(kept)
        together = [kept] if variant == "standard" else [[text] for text in kept]
        boxes += [box] * len(together)
        sides += [sides_of(region, box)] * len(together)
        captions += together
    return TrueRegions(_rows(boxes, 4), _rows(sides, 2), captions), dict(counts)


def _rows(values: Sequence[Sequence[float]], width: int) -> np.ndarray:
    return np.array(values, np.float64).reshape(-1, width)


def _flaw(box: Sequence[float], variant: str) -> str | None:
    width, height = box[2] - box[0], box[3] - box[1]
    if width < 0 or height < 0:
        return "truth_boxes_inverted"
    return "truth_boxes_empty" if variant == "standard" and not (width and height) else None


def _captions(region: Region, variant: str) -> list[str]:
    """Return the texts of a region as a variant reads them."""
    if variant == "standard":
        return [text for text in region.captions if text.strip()]
    texts = region.captions or ("",)
    if not upstream.RULES[variant].densecap_text:
        return [text.replace("\n", "") for text in texts]
    return [text for text in map(upstream.clean_caption, texts) if upstream.is_kept(text)]


def read_detections(prediction: Record, variant: str, where: str) -> tuple[Detections, dict[str, int]]:
    """Return one image's detections, best first, and the counts of what is odd about them.

    Raises:
        DataError: a score is not finite, or a region has no finite box.
    """
    for region in prediction.regions:
        if region.score is not None and not math.isfinite(region.score):
            place = f"{where}, region {region.id}"
            raise DataError("A score is not a finite number.", where=place, value=region.score)
    rows = [
        (
            -(1.0 if region.score is None else float(region.score)),
            tuple(map(float, region_box(prediction, region, f"{where}, region {region.id}"))),
            region.captions[0] if region.captions else "",
            region,
        )
        for region in prediction.regions
    ]
    rows.sort(key=lambda row: row[:3] if variant == "standard" else row[0])
    boxes = _rows([row[1] for row in rows], 4)
    sides = _rows([sides_of(row[3], row[1]) for row in rows], 2)
    counts = {
        "predicted": len(rows),
        "predicted_without_caption": sum(not row[2].strip() for row in rows),
        "predicted_without_score": sum(row[3].score is None for row in rows),
        "predicted_boxes_empty": int((boxes[:, 2:] <= boxes[:, :2]).any(1).sum()),
    }
    scores = [None if row[3].score is None else float(row[3].score) for row in rows]
    return Detections([row[3].id for row in rows], scores, [row[2] for row in rows], boxes, sides), counts


def match_standard(truth: TrueRegions, detections: Detections) -> dict[str, Any]:
    """Match one image as the variant ``standard`` does; returns JSON values."""
    members = merge_groups(box_iou(truth.boxes, truth.boxes))
    merged = np.array([truth.boxes[group].mean(0) for group in members]).reshape(-1, 4)
    iou = box_iou(merged, detections.boxes)
    near = [(int(g), int(p), float(iou[g, p])) for g, p in np.argwhere(iou >= min(IOU_THRESHOLDS))]
    taken = take_best_free(near, range(iou.shape[1]), IOU_THRESHOLDS)
    highest = iou.argmax(0) if len(iou) else np.full(iou.shape[1], NOTHING)
    shown = np.where(taken[0] != NOTHING, taken[0], highest)
    value = iou[shown, np.arange(len(shown))] if len(iou) else np.zeros(len(shown))
    return {
        "groups": [[text for index in group for text in truth.captions[index]] for group in members],
        "captions": detections.captions,
        "best": np.where(value > 0, shown, NOTHING).tolist(),
        "iou": value.tolist(),
        "good": (taken[0] != NOTHING).tolist(),
        "taken": taken.tolist(),
    }


def _add_counts(result: ProtocolResult, counts: Sequence[Mapping[str, int]], groups: int) -> None:
    """Sum the images' counts and say what they mean."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    result.counts |= {"groups": groups} | {name: value for name, value in total.items() if not _is_detail(name)}
    result.notes += frame_notes(total, total["predicted"])
    if unscored := total["predicted_without_score"]:
        result.notes.append(f"{unscored} detections carry no score and were ranked as 1.0")
    if result.variant not in ("standard", "pixelllm") and (bare := total["images_without_detections"]):
        result.notes.append(
            f"{bare} images have no detection: their groups were missed; the published evaluator does not run on them"
        )
    if left := total["images_left_out"]:
        result.notes.append(
            f"{left} images without a usable ground-truth region, and their {total['predicted_left_out']} detections, "
            "were left out: the published evaluator does not run on them"
        )


def _is_detail(name: str) -> bool:
    return name.endswith(("_large", "_720"))
