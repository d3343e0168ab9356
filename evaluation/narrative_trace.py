"""Protocol ``narrative_trace``: does each word of a description point at the right place (Localized Narratives).

The i-th predicted narrative of an image is compared with the i-th true one; further ones are an error, missing ones are
counted. Words and their points are read by `narratives.located_words` on both sides.

Variant ``standard``
    * Words are compared in lower case without punctuation; pure punctuation is left out. Words of equal texts (forced
      by a teacher) correspond one to one, those of free descriptions by a longest common subsequence.
    * Error of a corresponding pair that both have a location: for each predicted point the smallest distance to a true
      point, averaged over the predicted points. The figures are means over all pairs of the data set:
      ``point_l1``: distance (\\|dx\\| / width + \\|dy\\| / height) / 2, as a fraction of the image's sides.
      ``euclidean_error``: distance as a fraction of the image's diagonal.
    * ``coverage``: the share of true words with a location that such a pair exists for. Errors of two models compare
      only at similar coverage.

Variant ``upstream`` (PixelLLM's evaluator in scenic)
    * The words of the prediction are the tokens of the true caption, in order, without special ones; every one needs a
      point. Texts are not compared.
    * True points of an utterance: the pointer at 16 evenly spaced times from its start to its end, interpolated, beyond
      the path extrapolated; then the upper left and lower right corner of their bounding box, clipped to the image and
      rounded (half to even). An utterance without text, or whose mean position has a coordinate of 0.00001 image sides
      or less, is left out. A narrative of fewer than two points, or without any utterance left, is left out.
    * Token i of T stands at 1/K + i/T (1 - 1/K) and takes the utterance k of K whose k/K is nearest.
    * ``point_l1``: per token as above; tokens whose true coordinates are all 0 are left out; the mean over the tokens
      of an image, then over images. The original rounds in the pixels of its resized input, here it is those of the
      image. An image without a counted token has error 0, as there; they are counted in ``images_without_token``.

Perfect predictions have error 0. Images without a true narrative are counted and left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..datasets.records import Narrative, Record
from ..utils.errors import DataError
from .narratives import align_words, check_narrative, located_words, normal_form, sorted_path
from .results import ImageEvaluator, ProtocolResult, Table

SAMPLES = 16
LEAST_COORDINATE = 1e-5
COLUMNS = ("image_id", "narrative", "words", "pairs", "point_l1", "euclidean_error")


class NarrativeTrace(ImageEvaluator):
    """Distance between the points of corresponding words."""

    protocol = "narrative_trace"
    variants = ("standard", "upstream")

    def compute(self) -> ProtocolResult:
        """Return the figures of the module's description."""
        entries = self._ordered()
        result = ProtocolResult(self.protocol, self.variant, counts={"images": len(entries)})
        counts: Counter[str] = Counter()
        for _, entry in entries:
            counts.update(entry["counts"])
        result.counts |= dict(counts)
        if self.variant == "upstream":
            _add_upstream(result, [entry for _, entry in entries])
        else:
            _add_standard(result, [row for _, entry in entries for row in entry["narratives"]], counts)
        result.regions = Table(
            COLUMNS, [(image_id, *_means(row)) for image_id, entry in entries for row in entry["narratives"]]
        )
        return result

    def _measure(self, record: Record, prediction: Record) -> dict[str, Any]:
        where = f"image_id {record.image_id}"
        if len(prediction.narratives) > len(record.narratives) > 0:
            raise DataError(
                "More narratives are predicted than there are.",
                where=where,
                value=len(prediction.narratives),
                allowed=f"up to {len(record.narratives)}, in the order of the ground truth",
            )
        counts = Counter(
            images_without_narrative=int(not record.narratives),
            narratives=len(record.narratives),
            narratives_without_prediction=max(len(record.narratives) - len(prediction.narratives), 0),
        )
        measure = measure_upstream if self.variant == "upstream" else measure_standard
        rows = []
        for index, truth in enumerate(record.narratives):
            predicted = prediction.narratives[index] if index < len(prediction.narratives) else None
            place = f"{where}, narrative {index}"
            row, more = measure(truth, predicted, (record.width, record.height), place)
            counts.update(more)
            rows.append({"index": index} | row)
        return {"narratives": rows, "counts": dict(counts)}


def measure_standard(
    truth: Narrative, predicted: Narrative | None, size: tuple[int, int], where: str
) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the errors of the corresponding words of one narrative as JSON values, and counts.

    Args:
        truth, predicted: the narratives.
        size: (width, height) of the image.
        where: for messages.
    """
    true_words = _real_words(located_words(truth, f"{where}, ground truth"))
    words = _real_words(located_words(predicted, f"{where}, prediction")) if predicted is not None else []
    pairs = align_words([text for text, _ in true_words], [text for text, _ in words])
    both = [(true_words[t][1], words[p][1]) for t, p in pairs]
    near = [(a, b) for a, b in both if len(a) and len(b)]
    row = {
        "words": sum(len(points) > 0 for _, points in true_words),
        "point_l1": [nearest_l1(a, b, size) for a, b in near],
        "euclidean": [nearest_euclidean(a, b, size) for a, b in near],
    }
    counts = {
        "words": len(true_words),
        "words_without_location": sum(not len(points) for _, points in true_words),
        "words_not_predicted": len(true_words) - len(pairs),
        "predicted_words_not_true": len(words) - len(pairs),
        "predicted_without_location": sum(len(a) > 0 and not len(b) for a, b in both),
        "pairs": len(near),
    }
    return row, counts


def _real_words(words: list[Any]) -> list[tuple[str, np.ndarray]]:
    forms = [(normal_form(word.text), word.points) for word in words]
    return [(text, points) for text, points in forms if text]


def nearest_l1(truth: np.ndarray, predicted: np.ndarray, size: tuple[int, int]) -> float:
    """Return the mean over predicted points [P, 2] of the least mean of |dx| / width, |dy| / height to truth [T, 2]."""
    return _nearest(np.abs(predicted[:, None] / size - truth[None] / size).mean(-1))


def nearest_euclidean(truth: np.ndarray, predicted: np.ndarray, size: tuple[int, int]) -> float:
    """Return the mean over predicted points [P, 2] of the least distance to truth [T, 2], per image diagonal."""
    return _nearest(np.linalg.norm(predicted[:, None] - truth[None], axis=-1) / math.hypot(*size))


def _nearest(distances: np.ndarray) -> float:
    nearest = distances.min(1).tolist()
    return math.fsum(nearest) / len(nearest)


def measure_upstream(
    truth: Narrative, predicted: Narrative | None, size: tuple[int, int], where: str
) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the errors of the tokens of one narrative as JSON values, and counts; arguments as `measure_standard`.

    Raises:
        DataError: the narrative has no prediction, or a token of it has no point.
    """
    check_narrative(truth, f"{where}, ground truth")
    boxes = utterance_boxes(truth, size)
    if not len(boxes):
        return {"words": 0, "point_l1": [], "left_out": True}, {"narratives_left_out": 1}
    if predicted is None:
        raise DataError("A narrative has no prediction.", where=where, allowed="variant standard counts them")
    tokens = located_words(predicted, f"{where}, prediction")
    bare = [index for index, word in enumerate(tokens) if not len(word.points)]
    if bare:
        place, text = f"{where}, prediction, word {bare[0]}", tokens[bare[0]].text
        raise DataError("A predicted word has no point.", where=place, value=text, fix="variant standard counts them")
    targets = boxes[token_utterances(len(tokens), len(boxes))]
    errors = [
        nearest_l1(target, word.points, size) for target, word in zip(targets, tokens, strict=True) if target.max() > 0
    ]
    return {"words": len(tokens), "point_l1": errors}, {"words": len(tokens), "pairs": len(errors)}


def utterance_boxes(narrative: Narrative, size: tuple[int, int]) -> np.ndarray:
    """Return the two corners of each usable utterance's box, float64 [K, 2, 2], whole pixels."""
    path, boxes = sorted_path(narrative), []
    if len(path) < 2:
        return np.zeros((0, 2, 2))
    for word in narrative.words:
        times = np.linspace(word.start, word.end, SAMPLES)
        points = np.stack([_interpolate(times, path[:, 2], path[:, axis]) for axis in (0, 1)], 1) / size
        if word.text.strip() and (_centre(points, times) > LEAST_COORDINATE).all():
            corners = np.clip(np.stack([points.min(0), points.max(0)]), 0.0, 1.0)
            boxes.append(np.round(corners * size))
    return np.array(boxes, np.float64).reshape(-1, 2, 2)


def _centre(points: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the mean position over the time, by the trapezoid rule."""
    length = times[-1] - times[0]
    if length < 1e-5:
        return points.mean(0)
    return ((points[1:] + points[:-1]) / 2 * np.diff(times)[:, None]).sum(0) / length


def _interpolate(at: np.ndarray, times: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the piecewise linear function at some times, continued beyond its ends; of equal times the last counts."""
    last = np.append(times[1:] != times[:-1], True)
    times, values = times[last], values[last]
    if len(times) < 2:
        return np.full(len(at), values[0])
    left = np.clip(np.searchsorted(times, at, side="left") - 1, 0, len(times) - 2)
    slope = (values[left + 1] - values[left]) / (times[left + 1] - times[left])
    return values[left] + slope * (at - times[left])


def token_utterances(tokens: int, utterances: int) -> np.ndarray:
    """Return the utterance, int64 [tokens], that stands proportionally nearest to each token; the first of several."""
    first = 1 / utterances
    places = first + np.arange(1, tokens + 1) / max(tokens, 1) * (1 - first)
    return ((places[:, None] - np.arange(1, utterances + 1) / utterances) ** 2).argmin(1)


def _add_standard(result: ProtocolResult, rows: list[Mapping[str, Any]], counts: Mapping[str, int]) -> None:
    located = sum(row["words"] for row in rows)
    for name, key in (("point_l1", "point_l1"), ("euclidean_error", "euclidean")):
        errors = [error for row in rows for error in row[key]]
        if errors:
            result.figures[name] = math.fsum(errors) / len(errors)
        else:
            result.undefined[name] = "no word of the ground truth with a location corresponds to a predicted one"
    if located:
        result.figures["coverage"] = counts["pairs"] / located
    else:
        result.undefined["coverage"] = "no word of the ground truth has a location"


def _add_upstream(result: ProtocolResult, entries: list[Mapping[str, Any]]) -> None:
    usable = [[row for row in entry["narratives"] if not row.get("left_out")] for entry in entries]
    images = [[error for row in rows for error in row["point_l1"]] for rows in usable if rows]
    result.counts["images_without_token"] = sum(not errors for errors in images)
    if images:
        result.figures["point_l1"] = math.fsum(math.fsum(e) / (len(e) + 1e-8) for e in images) / len(images)
    else:
        result.undefined["point_l1"] = "no image has a usable narrative"


def _means(row: Mapping[str, Any]) -> tuple[Any, ...]:
    errors = [row["point_l1"], row.get("euclidean", [])]
    means = [math.fsum(values) / len(values) if values else None for values in errors]
    return (row["index"], row["words"], len(errors[0]), *means)
