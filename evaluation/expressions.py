"""Expressions that each point at one thing, and the answers to them: what ``referring`` and ``reason_seg`` share.

Every region of the ground truth is one expression, its id is the expression's; the region of the prediction with the
same id answers it. Answers to unknown expressions, a second answer to one, inverted boxes and masks of another size
than the image are errors. Unanswered expressions are wrong and counted; so is an answer without a mask (a box) where
the ground truth has one, as long as any answer has. Boxes may stick out of the image, they are not clipped. The pixels
of an expression's ``ignore`` are in no intersection and no union.

Where the ground truth says in ``attributes["split"]`` to which split an expression belongs, every figure is also given
per split.
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..datasets.records import Record, Region, Rle
from ..utils.errors import DataError
from .matching.mask_scores import MaskPair, published_scores
from .matching.masks import box_of, checked_mask, mask_overlap
from .results import ImageEvaluator, ImageId, ProtocolResult, Table, first_ids

Box = tuple[float, float, float, float]
SPLIT = "split"
HELD = {"box": "has_box", "mask": "has_mask", "mask_box": "has_mask"}  # what is judged -> what the answer needs
REGION_COLUMNS = (
    "image_id", "expression_id", "split", "expression", "answered", "box_iou", "intersection", "union", "mask_iou",
    "mask_box_iou",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one expression.

    Attributes:
        id, text, split: the expression's; "" where there is no text, no split.
        answered, has_box, has_mask: whether there is an answer, and what it holds.
        box: intersection and union of the boxes, square pixels; None when the ground truth has no box.
        mask: intersection and union of the masks, pixels; None when the ground truth has no mask.
        mask_box: intersection and union of the tight box of the answer's mask and the true box; None as for ``box``.
    """

    id: int
    text: str
    split: str
    answered: bool
    has_box: bool
    has_mask: bool
    box: tuple[float, float] | None
    mask: tuple[int, int] | None
    mask_box: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How a variant divides: IoU = I / (U + epsilon), and ``empty_iou`` when both masks are empty."""

    box_epsilon: float = 0.0
    mask_epsilon: float = 0.0
    empty_iou: float = 1.0

    def box_iou(self, overlap: tuple[float, float]) -> float:
        """Return the IoU of two boxes, 0 when neither has an area."""
        return overlap[0] / (overlap[1] + self.box_epsilon) if overlap[1] else 0.0

    def mask_iou(self, outcome: Outcome) -> float:
        """Return the IoU of the masks, 0 when there is none to judge."""
        if not outcome.has_mask:
            return 0.0
        intersection, union = outcome.mask
        return intersection / (union + self.mask_epsilon) if union else self.empty_iou


EXACT = Arithmetic()
PUBLISHED = Arithmetic(mask_epsilon=1e-5)  # of PixelLM


@dataclass(slots=True)
class Scores:
    """Figures of some expressions, and why others have no value."""

    figures: dict[str, float] = dataclasses.field(default_factory=dict)
    undefined: dict[str, str] = dataclasses.field(default_factory=dict)


class ExpressionEvaluator(ImageEvaluator):
    """A protocol that judges expressions one by one."""

    arithmetic: ClassVar[Mapping[str, Arithmetic]]  # variant -> how it divides

    def compute(self) -> ProtocolResult:
        """Return the figures of the protocol's description, a table per split, and a row per expression."""
        images = [
            (image_id, [_outcome(body) for body in entry]) for image_id, entry in self._ordered(as_ground_truth=True)
        ]
        scores = self._score([outcomes for _, outcomes in images])
        result = ProtocolResult(self.protocol, self.variant, figures=scores.figures, undefined=scores.undefined)
        result.counts = {"images": len(images), **count_outcomes([o for _, outcomes in images for o in outcomes])}
        self._add_splits(result, [outcomes for _, outcomes in images])
        result.regions = self._region_table(images)
        return result

    @abstractmethod
    def _score(self, images: Sequence[Sequence[Outcome]]) -> Scores:
        """Return the figures over the expressions of images in the order of the ground truth."""

    def _measure(self, record: Record, prediction: Record) -> list[dict[str, Any]]:
        return [dataclasses.asdict(outcome) for outcome in measure_answers(record, prediction)]

    def _add_splits(self, result: ProtocolResult, images: Sequence[Sequence[Outcome]]) -> None:
        splits = sorted({outcome.split for outcomes in images for outcome in outcomes} - {""})
        figures = [*result.figures, *result.undefined]
        rows = []
        for split in splits:
            chosen = [[outcome for outcome in outcomes if outcome.split == split] for outcomes in images]
            scores = self._score(chosen).figures
            rows.append((split, sum(map(len, chosen)), *(scores.get(name) for name in figures)))
        if rows:
            result.tables["splits"] = Table((SPLIT, "expressions", *figures), rows)

    def _region_table(self, images: Sequence[tuple[ImageId, Sequence[Outcome]]]) -> Table:
        divide = self.arithmetic[self.variant]
        rows = [
            (
                image_id,
                outcome.id,
                outcome.split,
                outcome.text,
                outcome.answered,
                None if outcome.box is None else divide.box_iou(outcome.box),
                *(outcome.mask or (None, None)),
                None if outcome.mask is None else divide.mask_iou(outcome),
                None if outcome.mask_box is None else divide.box_iou(outcome.mask_box),
            )
            for image_id, outcomes in images
            for outcome in outcomes
        ]
        return Table(REGION_COLUMNS, rows)


def _outcome(body: Mapping[str, Any]) -> Outcome:
    pairs = {name: body[name] and tuple(body[name]) for name in ("box", "mask", "mask_box")}
    return Outcome(**{**body, **pairs})


def count_outcomes(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Return how many expressions there are, and how many answers lack what."""
    answered = [outcome for outcome in outcomes if outcome.answered]
    return {
        "expressions": len(outcomes),
        "unanswered": len(outcomes) - len(answered),
        "answers_without_box": sum(o.box is not None and not o.has_box for o in answered),
        "answers_without_mask": sum(o.mask is not None and not o.has_mask for o in answered),
    }


def score_masks(outcomes: Sequence[Outcome], divide: Arithmetic) -> Scores:
    """Return ``ciou`` and ``giou`` over all expressions alike."""
    scores, found = Scores(), judged(outcomes, "mask")
    if isinstance(found, str):
        scores.undefined |= dict.fromkeys(("ciou", "giou"), found)
        return scores
    union = sum(outcome.mask[1] for outcome in found) + len(found) * divide.mask_epsilon
    if union:
        scores.figures["ciou"] = sum(outcome.mask[0] for outcome in found) / union
    else:
        scores.undefined["ciou"] = "no mask has a pixel"
    scores.figures["giou"] = math.fsum(map(divide.mask_iou, found)) / len(found)
    return scores


def score_published(images: Sequence[Sequence[Outcome]]) -> Scores:
    """Return ``ciou`` and ``giou`` in the arithmetic of the published PixelLM evaluation."""
    outcomes = [outcome for image in images for outcome in image]
    found = judged(outcomes, "mask")
    if isinstance(found, str):
        return Scores(undefined=dict.fromkeys(("ciou", "giou"), found))
    pairs = [[MaskPair(o.mask[:1], o.mask[1:], o.has_mask) for o in image if o.mask is not None] for image in images]
    published = published_scores([(image, len(image)) for image in pairs if image])
    return Scores({"ciou": float(published.ciou[0]), "giou": float(published.giou[0])})


def judged(outcomes: Sequence[Outcome], what: str) -> list[Outcome] | str:
    """Return the expressions whose ``box``, ``mask`` or ``mask_box`` can be judged; or why none can."""
    found = [outcome for outcome in outcomes if getattr(outcome, what) is not None]
    if not found:
        return f"no expression has a true {what.removeprefix('mask_')}" if outcomes else "there are no expressions"
    answers = [outcome for outcome in outcomes if outcome.answered]
    if answers and not any(getattr(outcome, HELD[what]) for outcome in answers):
        return f"no answer has a {what.removesuffix('_box')}"
    return found


def measure_answers(record: Record, prediction: Record) -> list[Outcome]:
    """Return the outcome of every expression of an image, in the order of the ground truth.

    Raises:
        DataError: an expression or an answer occurs twice, an answer is to no expression, a box is inverted, or a mask
            is malformed or of another size than the image.
    """
    where = f"image_id {record.image_id}"
    require_unique(record.regions, f"{where}, ground truth")
    require_unique(prediction.regions, f"{where}, prediction")
    answers = {region.id: region for region in prediction.regions}
    unknown = sorted(answers.keys() - {region.id for region in record.regions})
    if unknown:
        raise DataError(
            f"{len(unknown)} answer(s) are to no expression of their image.", where=where, value=first_ids(unknown)
        )
    masks = _Masks(record.height, record.width)
    return [_outcome_of(region, answers.get(region.id), masks, where) for region in record.regions]


def require_unique(regions: Sequence[Region], where: str) -> None:
    """Raise `DataError` unless the regions' ids are unique."""
    seen: set[int] = set()
    twice = [region.id for region in regions if region.id in seen or seen.add(region.id)]
    if twice:
        raise DataError("Ids occur twice in one image.", where=where, value=first_ids(sorted(set(twice))))


def _outcome_of(truth: Region, answer: Region | None, masks: _Masks, where: str) -> Outcome:
    where = f"{where}, expression {truth.id}"
    true_box, box = (None if r is None else _checked_box(r.box_xyxy, where) for r in (truth, answer))
    true_mask, ignore = masks.check(truth.mask, where), masks.check(truth.ignore, where)
    mask = masks.check(answer.mask, where) if answer is not None else None
    mask_box = None if mask is None else box_of(mask)
    return Outcome(
        truth.id,
        truth.expressions[0] if truth.expressions else "",
        str(truth.attributes.get(SPLIT, "")),
        answered=answer is not None,
        has_box=box is not None,
        has_mask=mask is not None,
        box=None if true_box is None else box_overlap(true_box, box),
        mask=None if true_mask is None else mask_overlap(true_mask, mask, ignore),
        mask_box=None if true_box is None else box_overlap(true_box, mask_box),
    )


def _checked_box(box: Box | None, where: str) -> Box | None:
    if box is not None and not (box[0] <= box[2] and box[1] <= box[3]):  # also refuses NaN
        raise DataError("A box is inverted.", where=where, value=box, allowed="x0 <= x1 and y0 <= y1")
    return box


class _Masks:
    """Checks the masks of one image, each once, however many expressions share it."""

    def __init__(self, height: int, width: int) -> None:
        self.size = [height, width]
        self.checked: dict[int, tuple[Rle, Rle]] = {}

    def check(self, mask: Rle | None, where: str) -> Rle | None:
        """Return the mask as pycocotools takes it."""
        if mask is None:
            return None
        if id(mask) not in self.checked:
            self.checked[id(mask)] = mask, checked_mask(mask, *self.size, where)  # the mask is held: its id stays its
        return self.checked[id(mask)][1]


def box_overlap(truth: Box, box: Box | None) -> tuple[float, float]:
    """Return intersection and union of two xyxy boxes, square pixels; no box has no area."""
    area = (truth[2] - truth[0]) * (truth[3] - truth[1])
    if box is None:
        return 0.0, area
    shared_width = max(min(truth[2], box[2]) - max(truth[0], box[0]), 0.0)
    shared = shared_width * max(min(truth[3], box[3]) - max(truth[1], box[1]), 0.0)
    return shared, (box[2] - box[0]) * (box[3] - box[1]) + area - shared
