"""The evaluators of dense captioning that published figures come from, number for number.

All three merge ground-truth boxes at IoU 0.7, let every detection of an image, highest score first, ask for the one
group that it overlaps most, and call it good if no detection before it asked for that group, however small the overlap.
It is a true positive if it is good, its IoU reaches the threshold and METEOR is above the other. Precision is
interpolated at 100 recalls 0 … 0.99. They differ in this:

``densecap``
    Johnson et al., the Lua code on Torch; GRiT and most papers report it.
    * Captions of the ground truth: ½ — ™ ¢ ç û é ° è … are replaced by ASCII, lower case, no ASCII punctuation; regions
      of more than 15 words are left out, and so are images without any other region, with their detections: that code
      does not run on them.
    * Boxes stand in the frame whose longer side is 720. Ground truth is rounded there, coordinates counted from 1, and
      clamped to it: x, y to [1, 719], width and height to 720 - x, 720 - y. All are held in float32. IoU counts the
      pixel at the far edge: widths are x1 - x0 + 1.
    * A detection that overlaps no group asks for the last one (a negative index), which is then taken.
    * The recalls are those of adding 0.01 a hundred times.
    ``densecap_float``: the same with curves in float32, as the training script ran it (its own figures vary in the
    fourth digit).
``soloist97``
    A PyTorch port. Ground truth as above but original pixels; IoU without the additional pixel; a detection without
    overlap asks for none; curves in float32.
``pixelllm``
    Scenic's evaluator. Original pixels, captions as they are, nothing left out, crowds included. Boxes are merged in
    float32, as (x, y, width, height). A good detection whose group has an empty caption counts as described perfectly.
    Float32 curves.

Equal scores stay in the order of the file; in ``pixelllm``, those of different images in the order of a Python set of
the image ids (the sorting of the others is not stable). A ground-truth box that is inverted is left out and counted
(the originals stop or count nonsense); an empty one is kept where the original keeps it, in a group that hardly any box
can reach. Boxes that leave the image are used as they are, except for the clamping above. Groups of an image without
detections are missed ones; ``densecap`` and ``soloist97`` do not run on such an image.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .matching.frames import DENSECAP_SIDE
from .matching.region_groups import box_iou, merge_groups, sized_box_iou
from .ranking.average_precision import ADDED_POINTS, HUNDRED_POINTS
from .results import ImageId

MAX_WORDS = 15
NO_GROUP = -1
EMPTY = "EMPTY"  # both sides of a pair whose ground truth has an empty caption, so that METEOR is 1
_REPLACED = str.maketrans(
    {"½": "half", "—": "-", "™": "", "¢": "cent", "ç": "c", "û": "u", "é": "e", "°": " degree", "è": "e", "…": ""}
)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class Rules:
    """What tells the published evaluators apart.

    Attributes:
        densecap_text: captions of the ground truth are cleaned and long ones left out.
        densecap_frame: boxes stand in the 720-pixel frame and IoU counts the far pixel.
        sized_boxes: boxes are (x, y, width, height) throughout, and merged in float32.
        last_group: a detection without overlap takes the last group.
        empty_matches: a good detection of a group with an empty caption is described perfectly.
        recall_points, curve, total: as in `average_precision`.
    """

    densecap_text: bool
    densecap_frame: bool
    sized_boxes: bool
    last_group: bool
    empty_matches: bool
    recall_points: np.ndarray
    curve: type[np.floating]
    total: type[np.floating]


# the recall points that torch.arange(0, 1, 0.01) holds: blocks of eight steps from a rounded start, the rest one by one
_STEPS = np.arange(100)
_TORCH_POINTS = np.where(
    _STEPS < 96, (_STEPS // 8 * 8 * 0.01).astype(np.float32).astype(np.float64) + _STEPS % 8 * 0.01, _STEPS * 0.01
)

RULES = {
    "densecap": Rules(True, True, False, True, False, ADDED_POINTS, np.float64, np.float64),
    "densecap_float": Rules(True, True, False, True, False, ADDED_POINTS, np.float32, np.float64),
    "pixelllm": Rules(False, False, True, False, True, HUNDRED_POINTS, np.float32, np.float32),
    "soloist97": Rules(True, False, False, False, False, _TORCH_POINTS, np.float32, np.float64),
}


@dataclass(slots=True)
class Matches:
    """What the detections of one image matched.

    Attributes:
        groups: the captions of each group of the ground truth.
        best: int64 [P], the group that each detection asked for, or `NO_GROUP`; in the order of the detections.
        iou: float64 [P], its overlap with it.
        good: bool [P], whether it was the first to ask.
        captions: what the detections say.
    """

    groups: list[list[str]]
    best: np.ndarray
    iou: np.ndarray
    good: np.ndarray
    captions: list[str]


def clean_caption(caption: str) -> str:
    """Return a caption as densecap's preparation leaves it: lower-case words without punctuation."""
    return " ".join(caption.translate(_REPLACED).lower().translate(_PUNCTUATION).split())


def is_kept(caption: str) -> bool:
    """Return whether densecap's preparation keeps a cleaned caption."""
    return len(caption.split()) <= MAX_WORDS


def frame_truth(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return ground-truth boxes (x, y, width, height) [N, 4] as (xc, yc, width, height) in densecap's frame, from 1."""
    scale = DENSECAP_SIDE / max(height, width)
    corner = np.clip(_round(scale * (boxes[:, :2] - 1) + 1), 1, DENSECAP_SIDE - 1)
    sides = np.minimum(_round(scale * boxes[:, 2:]), DENSECAP_SIDE - corner)
    return np.concatenate([corner + np.floor(sides / 2), sides], 1)


def frame_predictions(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return predicted boxes (x, y, width, height) [N, 4] as (xc, yc, width, height) in densecap's frame, from 1."""
    scale = DENSECAP_SIDE / max(height, width)
    sides = scale * boxes[:, 2:]
    return np.concatenate([scale * boxes[:, :2] + 1 + (sides - 1) / 2, sides], 1)


def box_ends(framed: np.ndarray) -> np.ndarray:
    """Return boxes (xc, yc, width, height) [N, 4] as first and last pixel, computed in float32, held in float64."""
    framed = framed.astype(np.float32)
    half = (framed[:, 2:] - np.float32(1)) / np.float32(2)
    return np.concatenate([framed[:, :2] - half, framed[:, :2] + half], 1).astype(np.float64)


def _round(values: np.ndarray) -> np.ndarray:
    """Round half away from zero."""
    whole = np.trunc(values)
    return whole + np.sign(values) * (np.abs(values - whole) >= 0.5)


def set_order(image_ids: Sequence[ImageId]) -> list[ImageId]:
    """Return the ids in the order in which Python walks a set of them; texts, whose order changes, as they are."""
    return list(set(image_ids)) if all(isinstance(image_id, int) for image_id in image_ids) else list(image_ids)


def match(
    rules: Rules,
    truth: np.ndarray,
    references: Sequence[str],
    predicted: np.ndarray,
    captions: Sequence[str],
    size: tuple[int, int],
) -> Matches:
    """Match the detections of one image, best score first.

    Args:
        rules: of the variant.
        truth: float64 [T, 4], the regions that `rules` keeps, (x, y, width, height) in original pixels.
        references: their captions, already as `rules` wants them.
        predicted: float64 [P, 4], the same of the detections, sorted by score.
        captions: what the detections say.
        size: (height, width) of the image.
    """
    if rules.densecap_frame:
        truth, predicted = box_ends(frame_truth(truth, *size)), box_ends(frame_predictions(predicted, *size))
    elif not rules.sized_boxes:
        truth, predicted = (np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], 1) for b in (truth, predicted))
    members, merged = _merge(rules, truth)
    best, value = _best(_iou(rules, predicted, merged))
    asked = np.where(best == NO_GROUP, len(members) - 1, best) if rules.last_group else best
    good = np.zeros(len(asked), bool)
    good[np.unique(asked, return_index=True)[1]] = True
    good &= asked != NO_GROUP
    groups = [[references[index] for index in group] for group in members]
    return _describe_empty(rules, Matches(groups, best, value, good, list(captions)))


def _iou(rules: Rules, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    if rules.sized_boxes:
        return sized_box_iou(first, second)
    return box_iou(first, second, extra=1.0 if rules.densecap_frame else 0.0)


def _merge(rules: Rules, truth: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the members of each group and the groups' boxes [G, 4]."""
    boxes = truth.astype(np.float32) if rules.sized_boxes else truth
    iou = _iou(rules, boxes, boxes)
    if rules.densecap_frame:
        np.fill_diagonal(iou, 1.0)  # so an empty box is a group too
    members = merge_groups(iou)
    if not members:
        return members, np.zeros((0, 4))
    merged = np.stack([boxes[group].mean(0) for group in members])
    return members, merged.astype(np.float32).astype(np.float64) if rules.densecap_frame else merged


def _best(iou: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the column of the highest IoU above 0 in each row, or `NO_GROUP`, and that IoU."""
    if not iou.shape[1]:
        return np.full(len(iou), NO_GROUP), np.zeros(len(iou))
    best = iou.argmax(1)
    value = iou[np.arange(len(iou)), best]
    return np.where(value > 0, best, NO_GROUP), value


def _describe_empty(rules: Rules, matches: Matches) -> Matches:
    for d in np.flatnonzero(matches.good) if rules.empty_matches else ():
        if "" in matches.groups[matches.best[d]]:
            matches.groups[matches.best[d]], matches.captions[d] = [EMPTY], EMPTY
    return matches


def entry_of(matches: Matches, thresholds: Sequence[float]) -> dict[str, Any]:
    """Return matches as the JSON values that the protocol remembers."""
    taken = [np.where(matches.good & (matches.iou >= t), matches.best, NO_GROUP) for t in thresholds]
    return {
        "groups": matches.groups,
        "captions": matches.captions,
        "best": matches.best.tolist(),
        "iou": matches.iou.tolist(),
        "good": matches.good.tolist(),
        "taken": [level.tolist() for level in taken],
    }
