"""From what a prompted system says to records.

Shapes: R answers, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ...datasets.batches import PromptTargets
from ...datasets.records import Narrative, Record, Region, TimedWord, Turn, encode_mask
from ...utils.boxes import rescale_boxes
from ...utils.tokenizers import LanguageTokenizer
from ..text_decoders.generation import GeneratedText
from .sam_masks import masks_to_image

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class PlacedWord:
    """A word and its points (x, y), pixels of the canvas."""

    text: str
    points: tuple[tuple[float, float], ...]


@dataclass(slots=True)
class Answers:
    """Answers to the prompts of one or several images, those of the first image first; what was not asked for is None.

    Attributes:
        counts: answers of each image.
        texts, text_scores: words, and their mean log-probability.
        words: of each text with their places.
        boxes: (R, 4) pixels of the canvas.
        masks: (R, h, w) logits over the canvas.
        scores: (R,), of boxes and masks.
    """

    counts: list[int]
    texts: list[str] | None = None
    text_scores: list[float] | None = None
    words: list[list[PlacedWord]] | None = None
    boxes: Tensor | None = None
    masks: Tensor | None = None
    scores: Tensor | None = None

    @classmethod
    def of_texts(
        cls,
        found: GeneratedText,
        counts: Sequence[int],
        tokenizer: LanguageTokenizer,
        points: Tensor | None = None,
        *,
        by_piece: bool = False,
    ) -> Answers:
        """Make answers of texts.

        Args:
            found: tokens, begin first.
            counts: answers of each image.
            tokenizer: of the tokens.
            points: (R, T, 2, 2), corners of the places of the tokens, pixels of the canvas.
            by_piece: every token is a word at its two corners; else a word is at the middle of its pieces' box.
        """
        rows = [row[1:] for row in found.tokens.tolist()]
        texts = [tokenizer.decode(row) for row in rows]
        answers = cls(list(counts), texts, found.scores.tolist())
        if points is not None:
            place = _pieces if by_piece else _words
            pairs = zip(rows, points[:, 1:].float().cpu(), strict=True)
            answers.words = [place(_until(row, tokenizer.end_id), at, tokenizer) for row, at in pairs]
        return answers

    def split(self) -> list[Answers]:
        """Return the answers of each image."""
        ends = torch.tensor([0, *self.counts]).cumsum(0).tolist()
        return [self._part(slice(a, b)) for a, b in pairwise(ends)]

    def _part(self, at: slice) -> Answers:
        parts = [getattr(self, name) for name in ("texts", "text_scores", "words", "boxes", "masks", "scores")]
        return Answers([at.stop - at.start], *(None if part is None else part[at] for part in parts))


def _until(tokens: list[int], end_id: int) -> list[int]:
    return tokens[: tokens.index(end_id)] if end_id in tokens else tokens


def _pieces(tokens: list[int], points: Tensor, tokenizer: LanguageTokenizer) -> list[PlacedWord]:
    return [
        PlacedWord(tokenizer.decode([token]), tuple(tuple(p) for p in at.tolist()))
        for token, at in zip(tokens, points, strict=False)
    ]


def _words(tokens: list[int], points: Tensor, tokenizer: LanguageTokenizer) -> list[PlacedWord]:
    """Group pieces into words: a piece belongs to the last word of the text up to it.

    An apostrophe looks like a word until what follows joins it to the word before: no piece belongs behind a later one.
    """
    words = tokenizer.decode(tokens).split()
    last = [len(tokenizer.decode(tokens[: k + 1]).split()) - 1 for k in range(len(tokens))]
    owners = list(accumulate(reversed(last), min))[::-1]
    placed = []
    for index, word in enumerate(words):
        own = points[[k for k, owner in enumerate(owners) if owner == index]].flatten(0, 1)
        if len(own):
            middle = (own.amin(0) + own.amax(0)) / 2
            placed.append(PlacedWord(word, (tuple(middle.tolist()),)))
    return placed


def answer_records(record: Record, target: PromptTargets, answers: Answers, *, canvas: Size) -> None:
    """Put an image's answers into its record, in pixels of the original image.

    ``region``, ``refer`` and ``detect`` become regions, in the order of the prompts (of what was detected, the best
    first) and with the ids of what was asked about; ``trace`` narratives, in which word i is spoken from second i to
    i + 1 and its places are one stroke; ``caption`` captions; ``instruct`` conversations.

    Args:
        record: of the image, at its original size.
        target: its prompts.
        answers: one per prompt, or per detected box.
        canvas: (height, width), what masks cover.
    """
    if target.task == "trace":
        words = answers.words or [[] for _ in answers.texts]
        pairs = zip(answers.texts, words, strict=True)
        record.narratives += tuple(_narrative(text, placed, target.size, record) for text, placed in pairs)
    elif target.task == "caption":
        record.captions += tuple(answers.texts)
    elif target.task == "instruct":
        pairs = zip(target.contexts, answers.texts, strict=True)
        record.conversations += tuple((Turn("user", asked), Turn("assistant", said)) for asked, said in pairs)
    else:
        record.regions += _regions(record, target, answers, canvas)


def _narrative(text: str, words: Sequence[PlacedWord], size: Size, record: Record) -> Narrative:
    scale_x, scale_y = record.width / size[1], record.height / size[0]
    timed = tuple(TimedWord(word.text, float(i), i + 1.0) for i, word in enumerate(words))
    strokes = tuple(tuple((x * scale_x, y * scale_y, i + 0.5) for x, y in word.points) for i, word in enumerate(words))
    return Narrative(text, timed, strokes)


def _regions(record: Record, target: PromptTargets, answers: Answers, canvas: Size) -> list[Region]:
    original = (record.height, record.width)
    count = answers.counts[0]
    found = target.task == "detect"
    regions = [Region(index + 1 if found else target.region_ids[index]) for index in range(count)]
    boxes = answers.boxes if answers.boxes is not None else target.boxes_xyxy
    for region, box in zip(regions, rescale_boxes(boxes, target.size, original).tolist(), strict=True):
        region.box_xyxy = tuple(box) if any(box) else None
    if answers.masks is not None:
        masks = masks_to_image(answers.masks, canvas=canvas, size=target.size, original=original).cpu().numpy()
        for region, mask in zip(regions, masks, strict=True):
            region.mask, region.area = encode_mask(mask), int(mask.sum())
    if answers.scores is not None:
        for region, score in zip(regions, answers.scores.tolist(), strict=True):
            region.score = score
    if answers.texts is not None:
        for region, text, score in zip(regions, answers.texts, answers.text_scores, strict=True):
            region.captions, region.caption_score = (text,), score
    return regions
