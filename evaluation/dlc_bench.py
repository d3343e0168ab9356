"""Protocol ``dlc_bench``: a judge answers multiple-choice questions from a region's description (DLC-Bench).

The judge first says whether the description is of an object of the region's class (yes or no), then answers every
question of the region, each in a prompt of its own that holds the description, the question and the lettered choices;
temperature 0, at most 300 tokens. A choice is worth what the data set says: for positive questions -1 (wrong), 0 (not
mentioned), 0.5 (in part) or 1, for negative ones -1 (hallucinated), 0 or 1. If the class was not recognised, every
score is capped at 0. An answer that names no choice is worth 0 and counted in ``unparsable``; to the question about the
class it counts as no.

Figures, in [-1, 1]: ``positive`` and ``negative``, means over regions of the mean over a region's questions of that
kind (regions without such questions are left out), and ``average``, the mean of the two.

Reading an answer (`parse_choice`), without case: a choice in full, with or without its letter, or the letter alone;
else the only choice whose text occurs in the answer; else a letter and a full stop at the beginning; else of several
choices that occur the one whose first occurrence is last, the longest where several begin there; else the longest
choice that contains the answer; else a letter alone on the first line.

Variants
    ``text``        the judge sees the description only (the published evaluation, with Llama-3.1-8B-Instruct).
    ``with_image``  the judge also sees the image with the region outlined in red, at most 1024 pixels a side. Scores
                    are much higher (about 0.1) and never compared with those of ``text``.

The prompts are locap's own wording; ``prompt_file`` replaces that of the questions by a text with ``{pred_caption}``
and ``{question_text_str}``, as the published one has. ``judge_file`` replays answers kept by an earlier run
(``.jsonl``) or the published evaluation's ``…_eval.json``, ``{id: {"pred": …, "response": [class, question, …]}}``;
since that file does not name its judge, ``judge=NAME`` must.

Representation: a region with an id, the class as its only phrase, and `Question`s of kind ``positive`` or ``negative``
whose scores are in [-1, 1]; for ``with_image`` also a mask, and the record's image is a path. A prediction is a region
of the same id with one caption; an empty one is judged like any other and counted in ``empty_descriptions``; a missing
one, or one that begins with ``Error:`` (the mark of a failed request), is an error.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from PIL import Image

from ..datasets.records import Category, Question, Record, Region, decode_mask
from ..utils.errors import DataError, MissingDependencyError, UsageError
from ..utils.untrusted import read_image
from .judges import JudgedEvaluator, Reply, Request, one_text
from .results import ImageId, ProtocolResult, Table

MAX_TOKENS = 300
MAX_SIDE = 1024  # of an image shown to the judge, pixels
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
KINDS = ("positive", "negative")
CLASS_QUESTION = (
    "Could the described object be of this kind, or of a similar one: {name}? The words need not be the same."
)
PROMPT = """\
Below is a description of an object in an image, and a multiple-choice question about the object. Choose the answer \
that fits the description best, even if its words differ. Write only that answer, without reasons and without \
the question.

Description:
{pred_caption}

Question:
{question_text_str}
"""
PLACEHOLDERS = ("{pred_caption}", "{question_text_str}")
REGION_COLUMNS = ("region", "class", "recognised", "positive", "negative", "description")


@dataclass(frozen=True, slots=True)
class Item:
    """A region with its description; image and mask only where the judge sees them."""

    id: int
    name: str
    description: str
    questions: tuple[Question, ...]
    image: str | None = None
    mask: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """A region's mean scores, None where it has no questions of that kind."""

    recognised: bool
    positive: float | None
    negative: float | None
    unparsable: int


class DlcBench(JudgedEvaluator):
    """Positive, negative and average score of descriptions; arguments as `JudgedEvaluator`."""

    protocol = "dlc_bench"
    variants = ("text", "with_image")

    def __init__(
        self,
        categories: Sequence[Category],
        *,
        variant: str = "text",
        image_order: Sequence[ImageId] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(categories, variant=variant, image_order=image_order, **options)
        missing = [name for name in PLACEHOLDERS if self.prompt is not None and name not in self.prompt]
        if missing:
            raise UsageError("The prompt lacks a place.", where=options["prompt_file"], allowed=" and ".join(missing))
        if self.published is not None and not self.published_judge:
            raise UsageError("A published results file does not name its judge.", fix="--option judge=NAME")

    def compute(self) -> ProtocolResult:
        """Ask about all regions, then return the figures of the module's description.

        Raises:
            MissingDependencyError: the judge cannot be asked, or a replayed file lacks answers.
            DataError: one region twice; a results file of other descriptions.
        """
        items = _items(entry for _, rows in self._ordered() for entry in rows)
        result = ProtocolResult(self.protocol, self.variant, counts={"regions": len(items)})
        if not items:
            result.undefined["average"] = "there are no regions"
            return result
        if self.published is not None:
            replies = _published_replies(self.published, items, self.published_judge, self.published_path)
        else:
            replies = self.judge.map(self._ask, items, "descriptions")
        self._label(result, (), (reply.model for row in replies for reply in row))
        scores = [score_region(i.questions, [r.content for r in row]) for i, row in zip(items, replies, strict=True)]
        _add_figures(result, items, scores)
        return result

    def _measure(self, record: Record, prediction: Record) -> list[list[Any]]:
        texts = one_text(record, prediction, "region")
        return [self._entry(record, region, texts[region.id]) for region in record.regions]

    def _entry(self, record: Record, region: Region, description: str) -> list[Any]:
        """Return the fields of an `Item` as JSON values."""
        where = f"image_id {record.image_id}, region {region.id}"
        _check(region, description, where)
        questions = [[q.text, [list(choice) for choice in q.choices], q.kind] for q in region.questions]
        entry = [region.id, region.phrases[0], description, questions]
        if self.variant != "with_image":
            return entry
        if not isinstance(record.image, str) or region.mask is None:
            allowed = "an image file and a mask for every region, or the variant text"
            raise DataError(
                "The judge is to see the region, but its image or mask is missing.", where=where, allowed=allowed
            )
        return [*entry, record.image, dict(region.mask)]

    def _ask(self, item: Item) -> list[Reply]:
        image = None if item.image is None else outlined_image(item.image, item.mask)
        return [self.judge.ask(Request(text, MAX_TOKENS, image=image)) for text in self._texts(item)]

    def _texts(self, item: Item) -> list[str]:
        """Return the prompts of a region: about its class, then its questions."""
        prompt = PROMPT if self.prompt is None else self.prompt
        recognition = Question(CLASS_QUESTION.format(name=item.name), (("Yes", 1.0), ("No", 0.0)))
        before, after = prompt.split(PLACEHOLDERS[1], 1)  # a description may hold the name of the other place
        before, after = (part.replace(PLACEHOLDERS[0], item.description) for part in (before, after))
        return [before + _written(question) + after for question in (recognition, *item.questions)]


def score_region(questions: Sequence[Question], answers: Sequence[str]) -> Score:
    """Score one region's answers: the first is about its class, then one per question."""
    class_choice = parse_choice(answers[0], ("Yes", "No"))
    picked = [
        parse_choice(answer, [text for text, _ in question.choices])
        for question, answer in zip(questions, answers[1:], strict=True)
    ]
    scores: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for question, index in zip(questions, picked, strict=True):
        score = 0.0 if index is None else question.choices[index][1]
        scores[question.kind].append(score if class_choice == 0 else min(0.0, score))
    means = (math.fsum(values) / len(values) if values else None for values in scores.values())
    return Score(class_choice == 0, *means, unparsable=[class_choice, *picked].count(None))


def parse_choice(answer: str, choices: Sequence[str]) -> int | None:
    """Return which choice an answer names, by the rules of the module's description, or None."""
    answer = answer.strip().lower()
    if not answer:
        return None
    texts = [choice.strip().lower() for choice in choices]
    letters = LETTERS.lower()[: len(texts)]
    for index, text in enumerate(texts):
        if answer in (text, letters[index], f"{letters[index]}. {text}"):
            return index
    found = [(answer.index(text), len(text), index) for index, text in enumerate(texts) if text in answer]
    if len(found) == 1:
        return found[0][2]
    if answer[0] in letters and answer[1:2] == ".":
        return letters.index(answer[0])
    if found:
        return max(found, key=lambda place: place[:2])[2]
    containing = [(len(text), index) for index, text in enumerate(texts) if answer in text]
    if containing:
        return max(containing, key=lambda place: place[0])[1]
    return letters.index(answer[0]) if answer[0] in letters and answer[1:2] == "\n" else None


def outlined_image(path: str, mask: Any) -> bytes:
    """Return the image as a PNG file, at most `MAX_SIDE` pixels a side, with the mask's outline in red."""
    from scipy import ndimage  # not when the command starts

    region = decode_mask(mask)
    pixels = read_image(path, expected_size=region.shape).copy()
    if pixels.shape[:2] != region.shape:
        value = f"image {pixels.shape[:2]}, mask {region.shape}"
        raise DataError("The mask has another size than its image.", where=path, value=value)
    width = max(1, round(max(region.shape) / 256))
    edge = ndimage.binary_dilation(region, iterations=width) & ~ndimage.binary_erosion(region, iterations=width)
    pixels[edge] = (255, 0, 0)
    image = Image.fromarray(pixels)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _written(question: Question) -> str:
    lines = [f"{letter}. {text}" for letter, (text, _) in zip(LETTERS, question.choices, strict=False)]
    return "\n".join([question.text, *lines])


def _check(region: Region, description: str, where: str) -> None:
    kinds = {question.kind for question in region.questions}
    counts = [len(question.choices) for question in region.questions]
    blank = any(not text.strip() for question in region.questions for text, _ in question.choices)
    in_order = bool(kinds) and kinds <= set(KINDS) and 1 <= min(counts) <= max(counts) <= len(LETTERS)
    if len(region.phrases) != 1 or not in_order or blank:
        allowed = "one phrase (the class) and positive or negative questions of 1 to 26 choices, none blank"
        raise DataError("The region has no questions of DLC-Bench.", where=where, allowed=allowed)
    wrong = [score for question in region.questions for _, score in question.choices if not -1 <= score <= 1]
    if wrong:
        raise DataError("A choice is worth too much or too little.", where=where, value=wrong[0], allowed="-1 to 1")
    if description.startswith("Error:"):
        raise DataError("A description is the message of a failed request.", where=where, value=description[:80])


def _items(entries: Any) -> list[Item]:
    """Return the items by id."""
    items = [
        Item(
            number,
            name,
            text,
            tuple(Question(q, tuple((c, s) for c, s in cs), kind) for q, cs, kind in questions),
            *rest,
        )
        for number, name, text, questions, *rest in entries
    ]
    items.sort(key=lambda item: item.id)
    twice = [item.id for item, following in pairwise(items) if item.id == following.id]
    if twice:
        raise DataError("A region occurs twice.", where="ground truth", value=twice[:5], allowed="each id once")
    return items


def _add_figures(result: ProtocolResult, items: Sequence[Item], scores: Sequence[Score]) -> None:
    result.counts |= {
        "positive_questions": sum(q.kind == "positive" for item in items for q in item.questions),
        "negative_questions": sum(q.kind == "negative" for item in items for q in item.questions),
        "recognised": sum(score.recognised for score in scores),
        "without_negative_questions": sum(score.negative is None for score in scores),
        "unparsable": sum(score.unparsable for score in scores),
        "empty_descriptions": sum(not item.description.strip() for item in items),
    }
    for kind in KINDS:
        values = [getattr(score, kind) for score in scores if getattr(score, kind) is not None]
        if values:
            result.figures[kind] = math.fsum(values) / len(values)
        else:
            result.undefined[kind] = result.undefined["average"] = f"there are no {kind} questions"
    if len(result.figures) == len(KINDS):
        result.figures["average"] = (result.figures["positive"] + result.figures["negative"]) / 2
    rows = [
        (item.id, item.name, score.recognised, score.positive, score.negative, item.description)
        for item, score in zip(items, scores, strict=True)
    ]
    result.regions = Table(REGION_COLUMNS, rows)


def _published_replies(document: Any, items: Sequence[Item], judge: str, where: str) -> list[list[Reply]]:
    """Return the responses of a published results file.

    Raises:
        MissingDependencyError: it lacks regions (how many is said).
        DataError: it judged other descriptions, or lacks responses to questions.
    """
    missing = [str(item.id) for item in items if str(item.id) not in document]
    if missing:
        what = f"The judge file lacks answers about {len(missing)} of {len(items)} descriptions."
        raise MissingDependencyError(what, where=where, value=", ".join(missing[:5]))
    bodies = {item.id: document[str(item.id)] for item in items}
    for number, body in bodies.items():
        texts = body.get("response") if isinstance(body, dict) else None
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError('"response" is missing or no list of texts.', where=f"{where}: {number}", value=texts)
    other = [i.id for i in items if bodies[i.id].get("pred") != i.description]
    short = [i.id for i in items if len(bodies[i.id]["response"]) != 1 + len(i.questions)]
    if other or short:
        what = "descriptions are not those that were judged" if other else "regions have another number of questions"
        raise DataError(f"{len(other or short)} {what}.", where=where, value=(other or short)[:5])
    return [[Reply(text, judge) for text in bodies[item.id]["response"]] for item in items]
