"""The questions of MUSE in a record, and the pairs of predictions and targets that an answer makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..datasets.records import Record, Region, Turn, read_logits
from ..utils.errors import DataError
from .expressions import require_unique
from .matching.masks import dense_mask
from .matching.muse_matching import assign, pair_cost, sample
from .results import first_ids

BINARY_LOGIT = 10.0  # of a mask that is not soft
NO_TARGET = "(None [])"
PROMPT_END = "ASSISTANT:"
REMOVED = ("<im_patch>", "\n", "  ", "<unk>")  # by the published evaluation, before a judge reads the answer


@dataclass(frozen=True, slots=True)
class Question:
    """One conversation: what was asked, the text of the answer, and its regions in the order of the text."""

    text: str
    answer: str
    regions: list[Region]


@dataclass(frozen=True, slots=True)
class Pair:
    """A prediction beside a target; None stands for an empty mask.

    Attributes:
        predicted_id, target_id: of the regions.
        phrase: of the target; "" where there is none.
        intersection, union: pixels of background and foreground.
    """

    predicted_id: int | None
    target_id: int | None
    phrase: str
    intersection: tuple[int, int]
    union: tuple[int, int]

    @property
    def matched(self) -> bool:
        """Whether both are there."""
        return self.predicted_id is not None and self.target_id is not None


def paired_questions(record: Record, prediction: Record) -> list[tuple[Question, Question]]:
    """Return each question of the ground truth with that of the prediction.

    Raises:
        DataError: ids occur twice or are unknown, a prediction belongs to no question, the numbers of questions differ,
            or an answer is to another question.
    """
    where = f"image_id {record.image_id}"
    asked = questions_of(record, f"{where}, ground truth")
    answered = questions_of(prediction, f"{where}, prediction")
    if len(asked) != len(answered):
        raise DataError(
            "The numbers of questions differ.", where=where, value=f"{len(answered)} answered", allowed=str(len(asked))
        )
    used = {region.id for question in answered for region in question.regions}
    loose = sorted({region.id for region in prediction.regions} - used)
    if loose:
        raise DataError(f"{len(loose)} predicted mask(s) answer no question.", where=where, value=first_ids(loose))
    for index, (question, answer) in enumerate(zip(asked, answered, strict=True)):
        if answer.text and _plain(question.text) not in _plain(answer.text):
            raise DataError(
                "An answer is to another question.",
                where=f"{where}, question {index}",
                value=answer.text,
                allowed=question.text,
            )
    return list(zip(asked, answered, strict=True))


def _plain(text: str) -> str:
    return " ".join(text.split())


def questions_of(record: Record, where: str) -> list[Question]:
    """Return the conversations of a record with their regions; raises `DataError` for unknown and repeated ids."""
    require_unique(record.regions, where)
    regions = {region.id: region for region in record.regions}
    return [_question(turns, regions, f"{where}, question {i}") for i, turns in enumerate(record.conversations)]


def _question(turns: Sequence[Turn], regions: Mapping[int, Region], where: str) -> Question:
    ids = [region_id for turn in turns if turn.role != "user" for region_id in turn.region_ids]
    wrong = [i for i in ids if type(i) is not int or i not in regions or ids.count(i) > 1]
    if wrong:
        raise DataError("An answer names regions that are unknown, or one twice.", where=where, value=wrong[:5])
    texts = [" ".join(turn.text for turn in turns if (turn.role == "user") is asks) for asks in (True, False)]
    return Question(texts[0], texts[1], [regions[i] for i in ids])


class ImageMasks:
    """The masks of one image's questions, each decoded once.

    Attributes:
        targets: id -> bool (height, width).
        logits: id -> float32 (height, width).
    """

    def __init__(self, record: Record, questions: Sequence[tuple[Question, Question]]) -> None:
        self.size = (record.height, record.width)
        where = f"image_id {record.image_id}"
        targets = {region.id: region for question, _ in questions for region in question.regions}
        predicted = {region.id: region for _, answer in questions for region in answer.regions}
        self.targets = {i: self._dense(region, f"{where}, target {i}") for i, region in targets.items()}
        soft = [region for region in predicted.values() if region.logits is not None]
        self.logits = dict(zip((r.id for r in soft), read_logits(soft, *self.size), strict=True))
        for i, region in predicted.items():
            if i not in self.logits:
                mask = self._dense(region, f"{where}, predicted mask {i}")
                self.logits[i] = np.where(mask, np.float32(BINARY_LOGIT), np.float32(-BINARY_LOGIT))

    def _dense(self, region: Region, where: str) -> np.ndarray:
        if region.mask is None:
            raise DataError("A region has no mask.", where=where)
        if region.ignore is not None:
            raise DataError("A region has pixels to ignore, which this protocol does not know.", where=where)
        return dense_mask(region.mask, *self.size, where)

    def stacks(self, question: Question, answer: Question) -> tuple[np.ndarray, np.ndarray]:
        """Return the logits of the predictions, float32 [P, H, W], and the targets, bool [G, H, W]."""
        return (
            np.array([self.logits[region.id] for region in answer.regions], np.float32).reshape(-1, *self.size),
            np.array([self.targets[region.id] for region in question.regions], bool).reshape(-1, *self.size),
        )


def match(logits: np.ndarray, targets: np.ndarray, points: np.ndarray | None) -> list[tuple[int, int]]:
    """Return the pairs (prediction, target) of least cost, at the points or, without any, over all pixels."""
    if not len(logits) or not len(targets):
        return []
    if points is not None:
        cost = pair_cost(sample(logits, points), sample(targets.astype(np.float32), points))
        return assign(cost.astype(np.float32))  # as published: which of two identical masks is taken depends on it
    return assign(pair_cost(logits.reshape(len(logits), -1), targets.reshape(len(targets), -1)))


def make_pairs(
    question: Question, answer: Question, masks: ImageMasks, points: np.ndarray | None, *, raw_spurious: bool
) -> list[Pair]:
    """Return the matched pairs, then the missed targets, then the spurious predictions.

    Args:
        question, answer, masks: of the image.
        points: where the cost is taken; everywhere without any.
        raw_spurious: count a spurious prediction's logits as the published evaluation does.
    """
    logits, targets = masks.stacks(question, answer)
    matched = match(logits, targets, points)
    missed = [g for g in range(len(targets)) if g not in {g for _, g in matched}]
    spurious = [p for p in range(len(logits)) if p not in {p for p, _ in matched}]
    predicted, empty = logits > 0, np.zeros(masks.size, bool)
    found = [(p, g, *areas(predicted[p], targets[g])) for p, g in matched]
    found += [(None, g, *areas(empty, targets[g])) for g in missed]
    found += [(p, None, *(raw_areas(logits[p]) if raw_spurious else areas(predicted[p], empty))) for p in spurious]
    return [
        Pair(
            None if p is None else answer.regions[p].id,
            None if g is None else question.regions[g].id,
            "" if g is None else phrase_of(question.regions[g]),
            intersection,
            union,
        )
        for p, g, intersection, union in found
    ]


def areas(predicted: np.ndarray, target: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return intersection and union of two bool masks, pixels of background and foreground each."""
    shared, united = int(np.count_nonzero(predicted & target)), int(np.count_nonzero(predicted | target))
    return (target.size - united, shared), (target.size - shared, united)


def raw_areas(logits: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the same for logits and an empty target as a histogram of 2 bins over [0, 1] counts them.

    Logits of exactly 0 are the intersection of the backgrounds; those outside [0, 1] are in neither bin.
    """
    zeros = int(np.count_nonzero(logits == 0))
    low, high = (int(np.count_nonzero((a <= logits) & below)) for a, below in ((0, logits < 0.5), (0.5, logits <= 1)))
    return (zeros, 0), (low + logits.size - zeros, high)


def phrase_of(target: Region) -> str:
    """Return what names the target in a substituted answer."""
    return next((texts[0] for texts in (target.phrases, target.expressions, target.captions) if texts), "")


def substitute(answer: Question, pairs: Sequence[Pair], seg_token: str) -> str:
    """Return the answer with its n-th token replaced by the phrase of the n-th mask's target, as a judge reads it."""
    text = answer.answer
    for removed in REMOVED:
        text = text.replace(removed, "")
    phrases = {pair.predicted_id: pair.phrase for pair in pairs if pair.matched}
    names = (phrases.get(region.id, NO_TARGET) for region in answer.regions)
    first, *rest = text.split(seg_token)
    return (first + "".join(next(names, NO_TARGET) + part for part in rest)).rsplit(PROMPT_END, 1)[-1]


def pair_from_json(body: Sequence[Any]) -> Pair:
    """Return a pair from the values of ``dataclasses.astuple``."""
    return Pair(*body[:3], tuple(body[3]), tuple(body[4]))
