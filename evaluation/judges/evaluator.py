"""What the protocols with a judge have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from ...datasets.records import Category, Record, Region
from ...utils.errors import DataError, UsageError
from ...utils.untrusted import read_json, read_text, shown
from ..results import ImageEvaluator, ImageId, ProtocolResult
from .judge import JUDGE_OPTIONS, Judge, open_judge

MAX_PROMPT_BYTES = 2**20


class JudgedEvaluator(ImageEvaluator):
    """A protocol that asks a judge once, in `compute`; until then it only remembers questions and answers.

    ``variant`` of the result names the judge (as the answers do) and the prompt if it is not locap's own, so that
    figures of different judges never stand under one name.

    Args:
        categories, variant, image_order: as `ImageEvaluator`.
        prompt_file: a prompt in place of locap's own.
        judge_file: answers of `Judge` as JSON lines (``.jsonl``), or the published evaluation's own results (JSON).
        options: the other options of `JUDGE_OPTIONS`.

    Raises:
        UsageError: no judge, or a malformed option.
        DataError: a file of answers or a prompt is malformed.
    """

    options: ClassVar[Mapping[str, str]] = {"prompt_file": "prompt in place of locap's own", **JUDGE_OPTIONS}

    def __init__(
        self,
        categories: Sequence[Category],
        *,
        variant: str = "standard",
        image_order: Sequence[ImageId] | None = None,
        prompt_file: str | None = None,
        judge_file: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(categories, variant=variant, image_order=image_order)
        self.prompt = None if prompt_file is None else read_text(prompt_file, MAX_PROMPT_BYTES)
        self.published: Mapping[str, Any] | None = None
        self.published_path = shown(judge_file or "")
        self.published_judge: str | None = None
        self.judge: Judge | None = None
        if judge_file is not None and Path(judge_file).suffix != ".jsonl":
            self.published = self._read_published(judge_file)
            self.published_judge = options.pop("judge", None)
            if options:
                value = ", ".join(options)
                raise UsageError(
                    "judge_file replays stored answers and asks nobody.", value=value, allowed="judge=NAME"
                )
        elif self._asks():
            self.judge = open_judge(judge_file=judge_file, **options)

    def update(self, record: Record, prediction: Record) -> None:
        """Remember the questions and answers of one image; an image of unknown size (0 x 0) takes any prediction."""
        if not (record.height or record.width):
            prediction = replace(prediction, height=0, width=0)
        super().update(record, prediction)

    def _asks(self) -> bool:
        """Return whether the variant has a judge."""
        return True

    def _read_published(self, path: str) -> Mapping[str, Any]:
        document = read_json(path)
        if not isinstance(document, dict) or not document:
            raise DataError(
                "The judge file holds no answers.",
                where=shown(path),
                allowed="JSON lines of answers (.jsonl), or the results of the published evaluation (.json)",
            )
        return document

    def _label(self, result: ProtocolResult, parts: Iterable[str], judges: Iterable[str]) -> None:
        """Put what tells figures apart into the result's variant, and what a reader must know into its notes."""
        names = sorted(set(judges))
        label = [self.variant, *parts, f"judge {' + '.join(names) or 'unknown'}"]
        if self.published is not None:
            label.append("published prompt")
            result.notes.append(f"graded elsewhere, replayed from {self.published_path}")
        elif self.prompt is not None:
            label.append(f"prompt {hashlib.sha256(self.prompt.encode()).hexdigest()[:8]}")
        elif self.judge is not None:
            result.notes.append("asked with locap's own prompt; a published prompt can be given: prompt_file=FILE")
        if self.judge is not None and names != [self.judge.name]:
            result.notes.append(f"the judge was asked for as {self.judge.name}")
        if len(names) > 1:
            result.notes.append("several models answered under one name; the figures mix them")
        result.variant = ", ".join(label)
        result.notes.append("figures of different judges or prompts cannot be compared")


def one_text(record: Record, prediction: Record, what: str) -> dict[int, str]:
    """Return region id -> the predicted text of every region of the record.

    Raises:
        DataError: a region has no text, several, or two predictions; or a prediction is of no region of the record.
    """
    where = f"image_id {record.image_id}"
    texts: dict[int, str] = {}
    known = {region.id for region in record.regions}
    if len(known) < len(record.regions):
        raise DataError(f"Two {what}s of the ground truth have one id.", where=where, value=sorted(known))
    for region in prediction.regions:
        if problem := _problem(region, known, texts):
            raise DataError(f"A prediction {problem}.", where=f"{where}, region {region.id}", value=region.captions)
        texts[region.id] = region.captions[0]
    missing = sorted(known - texts.keys())
    if missing:
        raise DataError(
            f"{len(missing)} {what}(s) have no prediction.", where=where, value=missing[:5], allowed="a text for each"
        )
    return texts


def _problem(region: Region, known: Container[int], texts: Container[int]) -> str | None:
    if region.id not in known:
        return "is of no region of the ground truth"
    if region.id in texts:
        return "is given twice"
    return None if len(region.captions) == 1 else "is not one text"
