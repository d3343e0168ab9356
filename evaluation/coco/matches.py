"""Which predictions COCO's evaluator matches to which true regions at IoU 0.5, over all areas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..results import ImageId
from .backends import CocoCurves, CocoImage

MATCH_IOU = 0.5
MATCH_COLUMNS = ("image_id", "category_id", "predicted_id", "score", "truth_id", "overlap", "ignored")


def match_rows(
    entries: Sequence[tuple[ImageId, Mapping[str, Any]]],
    images: Sequence[CocoImage],
    curves: CocoCurves,
    max_detections: int,
    *,
    class_agnostic: bool,
) -> list[tuple[Any, ...]]:
    """Return `MATCH_COLUMNS`: the predictions that count, best first, then the true regions that none found.

    ``ignored`` says that a row is no error: the prediction took a region that is not to be found, or the missed region
    is one. Images follow their order, categories their ids.
    """
    group = _together if class_agnostic else _by_category
    rows: list[tuple[Any, ...]] = []
    for index, ((image_id, entry), image) in enumerate(zip(entries, images, strict=True)):
        truth, predicted, found = group(image.truth), group(image.predicted), entry["predicted"]
        for category_id in sorted(truth.keys() | predicted.keys()):
            ranked = [found[p] for p in predicted.get(category_id, ())]
            if len(ranked) > 1:
                ranked.sort(key=lambda row: -row[2])
            if there := truth.get(category_id):
                annotations, facts = [image.truth[g] for g in there], [entry["truth"][g] for g in there]
                overlaps = curves.overlaps[index, category_id]
                rows += _matched_rows(image_id, annotations, facts, ranked[:max_detections], overlaps)
            else:
                rows += [(image_id, row[1], row[0], row[2], None, None, False) for row in ranked[:max_detections]]
    return rows


def _matched_rows(
    image_id: ImageId,
    annotations: Sequence[Mapping[str, Any]],
    truth: Sequence[Sequence[Any]],
    predicted: Sequence[Sequence[Any]],
    overlaps: Any,
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of one image and category; ``annotations`` are those of ``truth``."""
    ignored = [is_ignored(annotation) for annotation in annotations]
    taken = match(overlaps, ignored, [annotation["iscrowd"] for annotation in annotations], len(predicted))
    for place, (row, g) in enumerate(zip(predicted, taken, strict=True)):
        found = (None, None, False) if g < 0 else (truth[g][0], float(overlaps[place][g]), ignored[g])
        yield (image_id, row[1], row[0], row[2], *found)
    for g in sorted(set(range(len(truth))).difference(taken)):
        yield (image_id, truth[g][1], None, None, truth[g][0], None, ignored[g])


def is_ignored(annotation: Mapping[str, Any]) -> bool:
    """Return whether a true region is not to be found: a crowd, or one without labelled keypoints."""
    return bool(annotation["iscrowd"]) or annotation.get("num_keypoints") == 0


def match(
    overlaps: Any, ignored: Sequence[bool], crowd: Sequence[int], predicted: int, threshold: float = MATCH_IOU
) -> list[int]:
    """Return the index of the true region that each prediction takes, or -1, by COCO's rule.

    Best score first, a prediction takes the free region of highest overlap, of equal ones the last; regions that are
    not to be found come into question only when there is no other, and a crowd stays free.

    Args:
        overlaps: [predicted, truth], best-scored prediction first; empty when there is no truth.
        ignored, crowd: per true region.
        predicted: how many predictions there are.
        threshold: the least overlap of a match.
    """
    if not len(overlaps):
        return [-1] * predicted
    order = sorted(range(len(ignored)), key=lambda g: ignored[g])
    taken: list[int] = []
    used: set[int] = set()
    for row in overlaps.tolist():
        best, chosen = threshold, -1
        for g in order:
            if g in used and not crowd[g]:
                continue
            if chosen >= 0 and ignored[g] and not ignored[chosen]:
                break
            if row[g] >= best:
                best, chosen = row[g], g
        taken.append(chosen)
        used.add(chosen)
    return taken


def _by_category(bodies: Sequence[Mapping[str, Any]]) -> dict[int, list[int]]:
    """Return category id -> indices."""
    groups: dict[int, list[int]] = {}
    for index, body in enumerate(bodies):
        groups.setdefault(body["category_id"], []).append(index)
    return groups


def _together(bodies: Sequence[Mapping[str, Any]]) -> dict[int, list[int]]:
    """Return -1 -> all indices in the order of the categories."""
    return {-1: sorted(range(len(bodies)), key=lambda i: bodies[i]["category_id"])} if bodies else {}
