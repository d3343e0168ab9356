"""Which prompts a record yields for a task, and what each prompt should bring forth.

Tasks
    trace     the image -> a narrative and where the pointer was at each of its words
    caption   the image -> a sentence
    region    a box or a point -> a sentence about it
    refer     an expression -> the box, and the mask, of what it refers to; its words are read, not learnt
    detect    the image -> all objects, each with a sentence (dense captioning)
    instruct  a question -> its answer; every turn of a talk stands alone

The instructions are those of PixelLLM's configurations (arXiv 2312.09237), spelling included.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ..utils.errors import UsageError, nearest
from .records import Narrative, Record, Region, TimedWord, box_of_mask, decode_mask

SHORT_CAPTION = (
    "A short image caption: ",
    "A short image description: ",
    "A photo of ",
    "An image that shows ",
    "Write a short description for the image. ",
    "Write a description for the photo. ",
    "Provide a description of what is presented in the photo. ",
    "Briefly describe the content of the image. ",
    "Can you briefly explain what you see in the image? ",
    "Could you use a few words to describe what you perceive in the photo? ",
    "Please provide a short depiction of the picture. ",
    "Using language, provide a short account of the image. ",
    "Use a few words to illustrate what is happening in the picture. ",
)
LONG_CAPTION = (
    "A long image caption: ",
    "A long image description: ",
    "Write a long description for the image. ",
    "Write a long description for the photo. ",
    "Provide a long description of what is presented in the photo. ",
    "Describe the content of the image in detail. ",
    "Can you in detail explain what you see in the image? ",
    "Could you use a few sentences to describe what you perceive in the photo? ",
    "Please provide a long depiction of the picture. ",
    "Using language, provide a long account of the image. ",
    "Use a few senetences to illustrate what is happening in the picture. ",
)
INSTRUCTIONS: Mapping[str, tuple[str, ...]] = {  # of training; "{}" stands for the expression or question
    "trace": LONG_CAPTION,
    "caption": SHORT_CAPTION,
    "region": ("an object of ",),
    "refer": ("where is {}",),
    "detect": ("an object of ",),
    "instruct": ("Question: {} Answer: ",),
}
EVAL_INSTRUCTIONS: Mapping[str, tuple[str, ...]] = {
    **INSTRUCTIONS,
    "trace": ("A long image caption: ",),
    "caption": ("A photo of ",),
}
TASKS = tuple(INSTRUCTIONS)

Box = tuple[float, float, float, float]
Pick = Callable[[Sequence], object]
_SIDES = re.compile(  # "right behind" is not a side, "the right behind" is
    r"\b(left|(?<=the )right|right(?!\s+(?:next to|in front|behind|above|below|under|beneath|beside)\b))"
    r"(?=most\b|hand\b|side\b|wards?\b|\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt before augmentation, pixels of the original image.

    Attributes:
        task: one of `TASKS`.
        context: the instruction.
        text: what is to be said; for ``refer`` the expression itself.
        box_xyxy: the box the prompt is about; None for the whole image.
        located: the prompt is ``box_xyxy`` (or a point in it) rather than the whole image.
        region: whose box and mask it is.
        narrative: whose words are to be placed.
        learns: whether it teaches text, place, mask.
    """

    task: str
    context: str
    text: str
    box_xyxy: Box | None = None
    located: bool = False
    region: Region | None = None
    narrative: Narrative | None = None
    learns: tuple[bool, bool, bool] = (True, False, False)

    def mirrored(self) -> Prompt:
        """Return the prompt with left and right exchanged in its words; its coordinates are left alone."""
        narrative = self.narrative
        if narrative is not None:
            words = tuple(TimedWord(mirror_words(word.text), word.start, word.end) for word in narrative.words)
            narrative = Narrative(mirror_words(narrative.caption), words, narrative.traces)
        context, text = mirror_words(self.context), mirror_words(self.text)
        return replace(self, context=context, text=text, narrative=narrative)

    def silent(self) -> Prompt:
        """Return the prompt as a mere box, which teaches nothing but a detector."""
        return replace(self, learns=(False, False, False))


def prompts_of(
    record: Record,
    task: str,
    generator: np.random.Generator | None = None,
    *,
    instructions: Mapping[str, Sequence[str]] = INSTRUCTIONS,
) -> list[Prompt]:
    """Return every prompt of a task that a record yields, in the record's order; none where it lacks what is needed.

    Args:
        record: crowd regions and regions without a box take no part.
        task: one of `TASKS`.
        generator: draws one of several captions and instructions; None takes the first.
        instructions: sentences per task.
    """
    check_tasks([task])

    def pick(items: Sequence):
        return items[0 if generator is None else int(generator.integers(len(items)))]

    return list(_YIELDS[task](record, pick, instructions[task]))


def asked(record: Record, task: str) -> Record:
    """Return the record with only those narratives or regions that `prompts_of` asks about, to score answers with.

    Of other tasks than ``trace`` and ``region`` everything stays. Crowds stay, which protocols leave out and count;
    captions of the image are not what ``region`` asks for.
    """
    prompts = prompts_of(record, task) if task in ("trace", "region") else []
    if task == "trace":
        return replace(record, narratives=tuple(prompt.narrative for prompt in prompts))
    if task == "region":
        known = {id(prompt.region) for prompt in prompts}
        kept = [region for region in record.regions if region.is_crowd or id(region) in known]
        return replace(record, regions=kept, captions=())
    return record


def offers(record: Record, task: str) -> bool:
    """Return whether a record yields prompts of a task."""
    return bool(prompts_of(record, task))


def check_tasks(tasks: Sequence[str], where: str = "tasks") -> None:
    """Raise UsageError unless all are `TASKS`."""
    for task in tasks:
        if task not in TASKS:
            close = nearest(str(task), TASKS)
            allowed = ", ".join(TASKS) + (f" (did you mean {close}?)" if close else "")
            raise UsageError("Unknown task.", where=where, value=task, allowed=allowed)


def mirror_words(text: str) -> str:
    """Exchange the words left and right (leftmost, right-hand, ...), keeping how they are capitalised."""
    return _SIDES.sub(_other_side, text)


def _other_side(match: re.Match[str]) -> str:
    side = match[0]
    other = "right" if side.lower() == "left" else "left"
    if side.isupper():
        return other.upper()
    return other.capitalize() if side[0].isupper() else other


def _trace(record: Record, pick: Pick, instructions: Sequence[str]) -> Iterator[Prompt]:
    told = [n for n in record.narratives if n.caption.strip() and sum(map(len, n.traces)) > 1]
    for narrative in told:
        learns = (True, bool(narrative.words), False)
        yield Prompt("trace", pick(instructions), narrative.caption, narrative=narrative, learns=learns)


def _caption(record: Record, pick: Pick, instructions: Sequence[str]) -> Iterator[Prompt]:
    for caption in record.captions:
        if caption.strip():
            yield Prompt("caption", pick(instructions), caption)


def _region(record: Record, pick: Pick, instructions: Sequence[str]) -> Iterator[Prompt]:
    yield from _described("region", record, pick, instructions)


def _detect(record: Record, pick: Pick, instructions: Sequence[str]) -> Iterator[Prompt]:
    yield from _described("detect", record, pick, instructions)


def _described(task: str, record: Record, pick: Pick, instructions: Sequence[str]) -> Iterator[Prompt]:
    for region, box in _placed(record):
        texts = [text for text in region.captions or region.phrases or region.expressions if text.strip()]
        if texts:
            yield Prompt(task, pick(instructions), pick(texts), box, located=True, region=region)


def _refer(record: Record, pick: Pick, instructions: Sequence[str]) -> Iterator[Prompt]:
    for region, box in _placed(record):
        learns = (False, True, region.mask is not None or record.id_map is not None)
        for expression in region.expressions:
            if expression.strip():
                context = pick(instructions).replace("{}", expression)
                yield Prompt("refer", context, expression, box, region=region, learns=learns)


def _instruct(record: Record, pick: Pick, instructions: Sequence[str]) -> Iterator[Prompt]:
    for talk in record.conversations:
        for question, answer in pairwise(talk):
            if question.role == "user" and answer.role == "assistant" and answer.text.strip():
                yield Prompt("instruct", pick(instructions).replace("{}", question.text), answer.text)


def _placed(record: Record) -> Iterator[tuple[Region, Box]]:
    for region in record.regions:
        box = region.box_xyxy
        if box is None and region.mask is not None:
            box = box_of_mask(decode_mask(region.mask))
        if box is not None and not region.is_crowd and box[2] > box[0] and box[3] > box[1]:
            yield region, box


_YIELDS: Mapping[str, Callable[[Record, Pick, Sequence[str]], Iterator[Prompt]]] = {
    "trace": _trace,
    "caption": _caption,
    "region": _region,
    "refer": _refer,
    "detect": _detect,
    "instruct": _instruct,
}
