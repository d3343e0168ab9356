"""Protocol ``panoptic_captioning``: segments and their captions judged together (Pix2Cap).

Variant ``standard``
    * ``map``: mean average precision over mask IoU {.3, .4, .5, .6, .7} and METEOR {0, .05, .1, .15, .2, .25}. At each
      IoU threshold the predictions of an image, highest score first, each take the ground-truth segment of highest IoU
      that is still free and reaches the threshold, whatever its class. One that took a segment is a true positive if
      the METEOR of its caption against all captions of the segment is above the METEOR threshold. All predictions of
      the data set are ranked by score; every one without a segment is a false positive, unless more than half of it
      lies in void or in a crowd of its class. Crowds are never to be found. Precision is interpolated at 101 recalls.
    * ``detection_map``: the same over the five IoU thresholds without looking at captions.
    * ``meteor, cider, rouge_l, bleu_1 … bleu_4``: over the segments matched by the panoptic-quality rule (same class,
      IoU > 0.5) against all captions of the segment.
    * ``pq, sq, rq`` as in the protocol ``panoptic``.
    METEOR is version 1.5 on PTB tokens everywhere. Ground-truth segments without a caption are counted in
    ``truth_without_caption`` and have no part in ``map`` (neither they nor what took them) and in the text metrics.

Variant ``upstream``
    The published evaluation, number for number: `panoptic_captioning_upstream`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..datasets.records import Category, Record, Region
from ..utils.errors import DataError
from . import panoptic_captioning_upstream as upstream
from .captions import (
    CAPTION_METRICS,
    CaptionScores,
    TokenizedPairs,
    meteor_scores,
    score_tokens,
    tokenize_pairs,
    warm_up,
)
from .matching.assignment import NOTHING, take_best_free
from .matching.segments import Matching, Overlap, forgiven_predictions, match_segments, measure_overlap
from .panoptic import add_panoptic_quality, panoptic_entry
from .ranking.average_precision import average_precision
from .results import ImageEvaluator, ImageId, ProtocolResult, Table

IOU_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
METEOR_THRESHOLDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)
REGION_COLUMNS = (
    "image_id", "segment_id", "predicted_id", "score", "meteor", "cider", "rouge_l", "prediction", "references",
)  # fmt: skip


class PanopticCaptioning(ImageEvaluator):
    """mAP over IoU and METEOR, caption metrics of matched segments, and PQ."""

    protocol = "panoptic_captioning"
    variants = ("standard", "upstream")

    def compute(self) -> ProtocolResult:
        """Return the figures of the module's description; METEOR and ``map`` are missing where Java is."""
        result = ProtocolResult(self.protocol, self.variant, counts={"images": len(self._entries)})
        if self.variant == "upstream":
            upstream.compute(result, self._ordered(as_ground_truth=True), self.categories)
        else:
            compute_standard(result, self._ordered(), self.categories)
        return result

    def warm_up(self) -> None:
        """Start METEOR in the background."""
        if self.variant == "standard":
            warm_up()

    def _measure(self, record: Record, prediction: Record) -> dict[str, Any]:
        overlap = measure_overlap(record, prediction, self.categories)
        matching = match_segments(overlap)
        measure = upstream.measure if self.variant == "upstream" else measure_standard
        return {"panoptic": panoptic_entry(overlap, matching)} | measure(record, overlap, matching)


def measure_standard(record: Record, overlap: Overlap, matching: Matching) -> dict[str, Any]:
    """Return what the variant ``standard`` must remember of one image, as JSON values.

    Raises:
        DataError: a predicted score is not finite.
    """
    for region in overlap.predicted:
        if region.score is not None and not math.isfinite(region.score):
            where = f"image_id {record.image_id}, predicted segment {region.id}"
            raise DataError("A score is not a finite number.", where=where, value=region.score)
    found = [g for g, region in enumerate(overlap.truth) if not region.is_crowd]
    row = {g: index for index, g in enumerate(found)}
    near = np.argwhere(overlap.iou[found] >= min(IOU_THRESHOLDS))
    return {
        "truth": [
            [int(overlap.truth[g].id), [text for text in overlap.truth[g].captions if text.strip()]] for g in found
        ],
        "predicted": [
            [int(region.id), _score(region), region.captions[0] if region.captions else "", bool(forgiven)]
            for region, forgiven in zip(overlap.predicted, forgiven_predictions(overlap), strict=True)
        ],
        "near": [[int(g), int(p), float(overlap.iou[found[g], p])] for g, p in near],
        "matched": [[row[g], p] for g, p in matching.pairs],
    }


def _score(region: Region) -> float | None:
    return None if region.score is None else float(region.score)


@dataclass(frozen=True, slots=True)
class Ranking:
    """All N predictions of a data set, best first.

    Attributes:
        places: (position of the image, index of the prediction in it).
        taken: int64 [5, N], the segment each took at each IoU threshold, or `NOTHING`.
        forgiven: bool [N], no error when it took none.
    """

    places: list[tuple[int, int]]
    taken: np.ndarray
    forgiven: np.ndarray


def compute_standard(
    result: ProtocolResult, entries: Sequence[tuple[ImageId, Mapping[str, Any]]], categories: Mapping[int, Category]
) -> None:
    """Write the figures of the variant ``standard`` into ``result``."""
    images = [entry for _, entry in entries]
    add_panoptic_quality(result, (image["panoptic"] for image in images), categories)
    ranking = rank_predictions(images)
    pairs = caption_pairs(images, ranking)
    tokens = tokenize_pairs(*_texts(images, pairs))
    result.unavailable |= tokens.unavailable
    meteor, each = meteor_scores(tokens.candidates, tokens.references), None
    if isinstance(meteor, str):
        result.unavailable["map"] = meteor
    else:
        each = dict(zip(pairs, meteor.segments.tolist(), strict=True))
    _count(result, images)
    _add_average_precision(result, images, ranking, each)
    scores = _add_text_metrics(result, images, pairs, tokens)
    result.regions = _region_table(entries, pairs, each, scores)


def rank_predictions(images: Sequence[Mapping[str, Any]]) -> Ranking:
    """Rank all predictions by score (equal scores by image and segment) and let each take its segment."""
    keys, taken, forgiven = [], [], []
    for position, image in enumerate(images):
        taken.append(take_segments(image))
        for p, (segment_id, score, _, is_forgiven) in enumerate(image["predicted"]):
            keys.append((-(1.0 if score is None else score), position, segment_id, p))
            forgiven.append(is_forgiven)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    together = np.concatenate(taken, 1) if taken else np.zeros((len(IOU_THRESHOLDS), 0), np.int64)
    places = [(keys[i][1], keys[i][3]) for i in order]
    return Ranking(places, together[:, order], np.array(forgiven, bool)[order])


def take_segments(image: Mapping[str, Any]) -> np.ndarray:
    """Return, int64 [5, P], the free segment of highest IoU that each prediction takes at each IoU threshold."""
    predicted = image["predicted"]
    rank = sorted(
        range(len(predicted)), key=lambda p: (-(1.0 if predicted[p][1] is None else predicted[p][1]), predicted[p][0])
    )
    return take_best_free(image["near"], rank, IOU_THRESHOLDS)


def caption_pairs(images: Sequence[Mapping[str, Any]], ranking: Ranking) -> list[tuple[int, int, int]]:
    """Return every (image position, truth, prediction) whose captions are compared, in a fixed order."""
    pairs = {(position, g, p) for position, image in enumerate(images) for g, p in image["matched"]}
    for level in ranking.taken:
        pairs |= {(i, int(g), p) for (i, p), g in zip(ranking.places, level, strict=True) if g != NOTHING}
    return sorted((i, g, p) for i, g, p in pairs if images[i]["truth"][g][1])


def _texts(
    images: Sequence[Mapping[str, Any]], pairs: Sequence[tuple[int, int, int]]
) -> tuple[list[str], list[Sequence[str]]]:
    return [images[i]["predicted"][p][2] for i, _, p in pairs], [images[i]["truth"][g][1] for i, g, _ in pairs]


def _add_average_precision(
    result: ProtocolResult,
    images: Sequence[Mapping[str, Any]],
    ranking: Ranking,
    meteor: Mapping[tuple[int, int, int], float] | None,
) -> None:
    captioned = [[bool(texts) for _, texts in image["truth"]] for image in images]
    every, worded = sum(map(len, captioned)), sum(map(sum, captioned))
    rows, detection = [], []
    for threshold, level in zip(IOU_THRESHOLDS, ranking.taken, strict=True):
        hits = level != NOTHING
        counted = hits | ~ranking.forgiven
        detection.append(float(average_precision(hits[counted], every)))
        rows.append((threshold, None, detection[-1]))
        if meteor is None:
            continue
        keys = [(i, int(g), p) for (i, p), g in zip(ranking.places, level, strict=True)]
        counted &= np.array([g == NOTHING or captioned[i][g] for i, g, _ in keys], bool)
        scores = np.array([meteor.get(key, NOTHING) for key in keys], float)
        good = scores[None, counted] > np.array(METEOR_THRESHOLDS)[:, None]
        values = average_precision(good, worded)
        rows += [(threshold, m, float(value)) for m, value in zip(METEOR_THRESHOLDS, values, strict=True)]
    result.tables["average_precision"] = Table(("iou", "meteor", "average_precision"), rows)
    if every:
        result.figures["detection_map"] = math.fsum(detection) / len(detection)
    else:
        result.undefined["detection_map"] = "the ground truth has no segment"
    if meteor is not None and worded:
        values = [value for _, m, value in rows if m is not None]
        result.figures["map"] = math.fsum(values) / len(values)
    elif not worded:
        result.undefined["map"] = "no ground-truth segment has a caption"


def _add_text_metrics(
    result: ProtocolResult,
    images: Sequence[Mapping[str, Any]],
    pairs: Sequence[tuple[int, int, int]],
    tokens: TokenizedPairs,
) -> CaptionScores | None:
    """Score the captions of matched segments; with nothing matched every metric is 0."""
    matched = {(i, g, p) for i, image in enumerate(images) for g, p in image["matched"]}
    chosen = [index for index, pair in enumerate(pairs) if pair in matched]
    result.counts["captioned_matches"] = len(chosen)
    if not chosen:
        if any(texts for image in images for _, texts in image["truth"]):
            result.figures |= dict.fromkeys(CAPTION_METRICS, 0.0)
            result.notes.append("no captioned segment was matched: the caption metrics are 0")
        else:
            result.undefined |= dict.fromkeys(CAPTION_METRICS, "no ground-truth segment has a caption")
        return None
    scores = score_tokens([tokens.candidates[i] for i in chosen], [tokens.references[i] for i in chosen])
    result.figures |= {name: scores.corpus[name] for name in CAPTION_METRICS if name in scores.corpus}
    result.unavailable |= scores.unavailable
    return scores


def _count(result: ProtocolResult, images: Sequence[Mapping[str, Any]]) -> None:
    unscored = sum(score is None for image in images for _, score, _, _ in image["predicted"])
    result.counts |= {
        "truth": sum(len(image["truth"]) for image in images),
        "truth_without_caption": sum(not texts for image in images for _, texts in image["truth"]),
        "predicted": sum(len(image["predicted"]) for image in images),
        "predicted_without_caption": sum(not text.strip() for image in images for _, _, text, _ in image["predicted"]),
        "predicted_without_score": unscored,
    }
    if unscored:
        result.notes.append(
            f"{unscored} predicted segments carry no score and were ranked as 1.0, in the order of images"
        )


def _region_table(
    entries: Sequence[tuple[ImageId, Mapping[str, Any]]],
    pairs: Sequence[tuple[int, int, int]],
    meteor: Mapping[tuple[int, int, int], float] | None,
    scores: CaptionScores | None,
) -> Table:
    """Return one row per ground-truth segment: what was matched to it, and how well it was described."""
    match = {(i, g): p for i, (_, image) in enumerate(entries) for g, p in image["matched"]}
    chosen = [pair for pair in pairs if match.get(pair[:2]) == pair[2]]
    each = {pair: index for index, pair in enumerate(chosen)}
    rows = []
    for i, (image_id, image) in enumerate(entries):
        for g, (segment_id, texts) in enumerate(image["truth"]):
            p = match.get((i, g))
            predicted_id, score, caption, _ = image["predicted"][p] if p is not None else (None, None, None, None)
            index = each.get((i, g, p)) if p is not None else None
            values = [None, None] if index is None else [float(scores.segments[m][index]) for m in ("cider", "rouge_l")]
            pair_meteor = None if meteor is None or p is None else meteor.get((i, g, p))
            rows.append((image_id, segment_id, predicted_id, score, pair_meteor, *values, caption, " | ".join(texts)))
    return Table(REGION_COLUMNS, rows)
