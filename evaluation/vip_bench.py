"""Protocol ``vip_bench``: a judge grades free answers to questions about marked regions (ViP-Bench).

Every item is graded from 0 to 1 by a language model that sees question, reference and answer, never the image. The
prompt is a table of worked examples with the columns question, ground truth, prediction and correctness, a blank line
and the item's row, left open after the last ``|``; in a reference ``<AND>`` asks for all parts and ``<OR>`` for any,
and both get spaces around. The judge answers at temperature 0 in at most 3 tokens. The first word is the score if it is
a number in [0, 1]; otherwise the row is sent again with a line asking for the digit, up to five tries in all at the
temperatures 0, 0, 0.5, 1, 1.5; then the score is 0 and the item counted in ``unparsable``.

``runs=N`` grades everything N times (the benchmark's authors: 5); equal requests of different runs are asked anew.

Figures, as fractions: ``total`` and one per capability, means over runs of the mean over items, an item counting in
each of its capabilities; ``std``, the standard deviation of the runs' totals, with several runs. The tables
``capabilities`` and ``capability_combinations`` are in percent and rounded as in the published evaluation.

Variants
    ``standard``     line ends and ``|`` of an answer become spaces, so it cannot add rows to the table; the question is
                     that of the split in every try.
    ``upstream``     answers go in as they are, and repeated tries quote the question of the metadata (with ``<obj>``).
    ``containment``  no judge: 1 if the reference's words are in the answer (`judges.containment`), else 0.

The examples are locap's own wording. The published ones can be given: ``prompt_file=FILE``, used exactly as it is.
``judge_file`` replays answers kept by an earlier run (``.jsonl``), or a published grade file,
``{id: {"model": […], "content": […], "score": […]}}``, whose scores are taken as they are, in its order.

Representation: an item is a region whose id is the number of ``v1_<number>``; its question is the expression, the
reference its captions (several count as ``<OR>``), and its attributes are ``capability`` ("rec,lang"), ``split``
("bbox" or "human") and ``object_question``, the metadata's wording. A prediction is a region of the same id with one
caption; an empty one is graded like any other and counted in ``empty_answers``. A missing one is an error.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from ..datasets.records import Category, Record, Region
from ..utils.errors import DataError, MissingDependencyError, UsageError
from .judges import JudgedEvaluator, Reply, Request, containment_score, one_text
from .results import ImageId, ProtocolResult, Table
from .vip_bench_tables import Grade, GradedItem, capability_table, combination_table, write_published_files

RELEASED_ITEMS = 303
RELEASED = {"rec": 240, "ocr": 89, "know": 59, "math": 31, "rel": 28, "lang": 16}  # items per capability
TEMPERATURES = (0.0, 0.0, 0.5, 1.0, 1.5)
MAX_TOKENS = 3
MAX_RUNS = 100
RESERVED = frozenset(("total", "std", "runs", "items", "unparsable"))  # no names of capabilities
ASK_AGAIN = "\nThe correctness score, as a digit: "
PROMPT = """\
You grade answers of AI models. Each row of the table holds a question about a part of an image, the ground truth, a \
model's prediction and the correctness of that prediction: a number from 0.0 (entirely wrong) to 1.0 (entirely right) \
in steps of 0.1. Where the ground truth joins parts with <AND>, only a prediction with all parts is entirely right; \
where it joins them with <OR>, one part is enough. Fill in the missing correctness of the last row and write nothing \
else.

Question | Ground truth | Prediction | Correctness
--- | --- | --- | ---
Which values of x solve the equation in the red box? | -1 <AND> -5 | x = 3 | 0.0
Which values of x solve the equation in the red box? | -1 <AND> -5 | x = -1 | 0.5
Which values of x solve the equation in the red box? | -1 <AND> -5 | x = -5 | 0.5
Which values of x solve the equation in the red box? | -1 <AND> -5 | x = -5 or 5 | 0.5
Which values of x solve the equation in the red box? | -1 <AND> -5 | x = -5 or x = -1 | 1.0
What is funny about the picture in the blue box? | It jokes about two names that mislead: Iceland is mostly green and \
Greenland mostly covered by ice, which is why the person finds it hard to trust anyone. | It is about Iceland and \
Greenland, which are not as icy and as green as they are called. | 0.4
What is funny about the picture in the blue box? | It jokes about two names that mislead: Iceland is mostly green and \
Greenland mostly covered by ice, which is why the person finds it hard to trust anyone. | Iceland is green while \
Greenland lies under ice, so both names promise the opposite of what is there. The person blames such misleading names \
for being unable to trust. | 1.0
"""
REGION_COLUMNS = ("item", "capability", "score", "scores", "question", "reference", "answer")


@dataclass(frozen=True, slots=True)
class Item:
    """A question with its answer."""

    id: int
    split: str
    question: str
    object_question: str
    reference: str
    capabilities: tuple[str, ...]
    answer: str

    @property
    def key(self) -> str:
        """Its name in the files of the benchmark."""
        return f"v1_{self.id}"


class VipBench(JudgedEvaluator):
    """Mean grade of all items and of each capability.

    Args:
        runs: how often everything is graded; default: 1, or all that a grade file has.
        export: folder for the three files of the published evaluation.
        model_name: whose answers these are: a label of the tables, and the beginning of the exported files' names.
        others: as `JudgedEvaluator`.
    """

    protocol = "vip_bench"
    variants = ("standard", "upstream", "containment")
    options: ClassVar[Mapping[str, str]] = {
        **JudgedEvaluator.options,
        "runs": "how often everything is graded; default: 1",
        "export": "folder for grade JSON and score CSVs in the published layouts",
        "model_name": "of the answers' author, for tables and exported files; default: predictions",
    }
    decisive = ("runs",)

    def __init__(
        self,
        categories: Sequence[Category],
        *,
        variant: str = "standard",
        image_order: Sequence[ImageId] | None = None,
        runs: str | int | None = None,
        export: str | None = None,
        model_name: str = "predictions",
        **options: Any,
    ) -> None:
        if variant == "containment" and (options or runs is not None):
            value = ", ".join([*options, *(["runs"] if runs is not None else [])])
            raise UsageError("The variant containment has no judge.", value=value, allowed="export, model_name")
        super().__init__(categories, variant=variant, image_order=image_order, **options)
        self.runs = None if runs is None else _whole(runs)
        self.export, self.model_name = export, model_name

    def compute(self) -> ProtocolResult:
        """Grade all items, then return the figures of the module's description.

        Raises:
            MissingDependencyError: the judge cannot be asked, or a replayed file lacks answers.
            DataError: items of both splits, or one item twice; a grade file of other items.
        """
        items = _items(entry for _, rows in self._ordered() for entry in rows)
        result = ProtocolResult(self.protocol, self.variant, counts={"items": len(items)})
        if not items:
            result.undefined["total"] = "there are no items"
            return result
        graded = self._grade(items)
        judges = {grade.model for item in graded for grade in item.grades}
        split = [items[0].split] if items[0].split else []
        if self.variant == "containment":
            result.variant = ", ".join(["containment", *split])
            result.notes.append("scored by comparing words, without a judge: not a ViP-Bench score")
        else:
            self._label(result, split, judges)
        _add_figures(result, items, graded, self.model_name)
        if self.export is not None:
            self._export(result, graded, *(split or ["all"]), " + ".join(sorted(judges)))
        return result

    def _measure(self, record: Record, prediction: Record) -> list[list[Any]]:
        answers = one_text(record, prediction, "question")
        return [_entry(region, answers[region.id], f"image_id {record.image_id}") for region in record.regions]

    def _asks(self) -> bool:
        return self.variant != "containment"

    def _grade(self, items: Sequence[Item]) -> list[GradedItem]:
        if self.published is not None:
            return _published_grades(self.published, items, self.runs, self.published_path)
        if self.judge is None:
            scores = [containment_score(item.reference, item.answer) for item in items]
            grades = [[Grade("containment", str(score), score)] for score in scores]
        else:
            runs = self.runs or 1
            tasks = [(item, run) for item in items for run in range(runs)]
            flat = self.judge.map(lambda task: self._ask(*task), tasks, "questions")
            grades = [flat[i : i + runs] for i in range(0, len(flat), runs)]
        return [GradedItem(i.key, i.capabilities, tuple(g)) for i, g in zip(items, grades, strict=True)]

    def _ask(self, item: Item, run: int) -> Grade:
        """Return one grade of one item."""
        reply = Reply("", "")
        for attempt, temperature in enumerate(TEMPERATURES):
            reply = self.judge.ask(Request(self._text(item, again=attempt > 0), MAX_TOKENS, temperature, run))
            score = parse_score(reply.content)
            if score is not None:
                return Grade(reply.model, reply.content.split()[0], score)
        return Grade(reply.model, reply.content, 0.0, parsed=False)

    def _text(self, item: Item, *, again: bool) -> str:
        question, answer = item.question, item.answer
        if self.variant == "standard":
            answer = " ".join(re.split(r"[|\s]+", answer)).strip()
        elif again:
            question = item.object_question
        reference = item.reference.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        row = " | ".join([question, reference, answer, ""])
        return f"{PROMPT if self.prompt is None else self.prompt}\n{row}{ASK_AGAIN if again else ''}"

    def _export(self, result: ProtocolResult, graded: Sequence[GradedItem], split: str, judge: str) -> None:
        tables = result.tables["capabilities"], result.tables["capability_combinations"]
        try:
            paths = write_published_files(
                self.export, graded, tables, name=self.model_name, split=split, judge=judge[:100]
            )
            result.notes.append(f"exported: {', '.join(path.name for path in paths)}")
        except OSError as err:  # the grades are worth more than their copy
            what = f"The files could not be written: {err.strerror}."
            result.unavailable["export"] = str(MissingDependencyError(what, where=self.export))


def parse_score(content: str) -> float | None:
    """Return the first word as a number in [0, 1], or None if it is none."""
    word = next(iter(content.split()), "")
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", word, re.ASCII):
        return None
    score = float(word)
    return score if 0.0 <= score <= 1.0 else None


def _entry(region: Region, answer: str, where: str) -> list[Any]:
    """Return the fields of an `Item` as JSON values."""
    capabilities = sorted({name.strip() for name in region.attributes.get("capability", "").split(",")})
    named = all(name and "_" not in name and name not in RESERVED for name in capabilities)
    if len(region.expressions) != 1 or not region.captions or not named:
        raise DataError(
            "The ground truth is no ViP-Bench item.",
            where=f"{where}, region {region.id}",
            allowed='a region with one expression (the question), captions (the reference) and "capability"',
        )
    question = region.expressions[0]
    object_question = region.attributes.get("object_question", question)
    split = region.attributes.get("split", "")
    return [region.id, split, question, object_question, "<OR>".join(region.captions), capabilities, answer]


def _items(entries: Any) -> list[Item]:
    """Return the items by number."""
    items = sorted((Item(*row[:5], tuple(row[5]), row[6]) for row in entries), key=lambda item: item.id)
    twice = [item.key for item, following in pairwise(items) if item.id == following.id]
    splits = sorted({item.split for item in items})
    if twice or len(splits) > 1:
        what = "An item occurs twice." if twice else "The items are of several splits."
        raise DataError(what, where="ground truth", value=twice[:5] or splits, allowed="each item of one split once")
    return items


def _add_figures(result: ProtocolResult, items: Sequence[Item], graded: Sequence[GradedItem], name: str) -> None:
    scores = {item.key: [grade.score for grade in item.grades] for item in graded}
    runs = len(graded[0].grades)
    result.counts |= {
        "runs": runs,
        "unparsable": sum(not grade.parsed for item in graded for grade in item.grades),
        "empty_answers": sum(not item.answer.strip() for item in items),
    }
    counts = Counter(name for item in items for name in item.capabilities)
    result.figures["total"] = _mean([scores[item.key] for item in items])
    for group in sorted(counts, key=lambda group: (-counts[group], group)):
        result.figures[group] = _mean([scores[item.key] for item in items if group in item.capabilities])
        result.counts[group] = counts[group]
    if runs > 1:
        totals = [math.fsum(scores[item.key][run] for item in items) / len(items) for run in range(runs)]
        result.figures["std"] = math.sqrt(math.fsum((t - math.fsum(totals) / runs) ** 2 for t in totals) / runs)
    if (len(items), counts) != (RELEASED_ITEMS, RELEASED):
        result.notes.append(f"not the {RELEASED_ITEMS} items of the released ViP-Bench")
    result.tables["capabilities"] = capability_table(graded, name)
    result.tables["capability_combinations"] = combination_table(graded, name)
    result.regions = Table(REGION_COLUMNS, [_row(item, scores[item.key]) for item in items])


def _mean(scores: Sequence[Sequence[float]]) -> float:
    return math.fsum(value for row in scores for value in row) / sum(map(len, scores))


def _row(item: Item, scores: Sequence[float]) -> tuple[Any, ...]:
    names, grades = "_".join(item.capabilities), " ".join(map(str, scores))
    return item.key, names, _mean([scores]), grades, item.question, item.reference, item.answer


def _published_grades(document: Any, items: Sequence[Item], runs: int | None, where: str) -> list[GradedItem]:
    """Return a grade file's grades in its order.

    Raises:
        MissingDependencyError: it lacks items or runs (how many is said).
        DataError: it holds other items, or what is no grade.
    """
    known = {item.key: item for item in items}
    unknown = [key for key in document if key not in known]
    if unknown:
        raise DataError(f"{len(unknown)} grades are of no item of the ground truth.", where=where, value=unknown[:5])
    graded = {key: _published_grade(body, f"{where}: {key}") for key, body in document.items()}
    wanted = runs or max(map(len, graded.values()))
    missing = [key for key in known if len(graded.get(key, ())) < wanted]
    if missing:
        raise MissingDependencyError(
            f"The judge file lacks grades of {len(missing)} of {len(items)} questions.",
            where=where,
            value=", ".join(missing[:5]),
            allowed=f"{wanted} grade(s) of each",
        )
    return [GradedItem(key, known[key].capabilities, grades[:wanted]) for key, grades in graded.items()]


def _published_grade(body: Any, where: str) -> tuple[Grade, ...]:
    columns = [body.get(name) if isinstance(body, dict) else None for name in ("model", "content", "score")]
    if not all(isinstance(column, list) for column in columns) or len(set(map(len, columns))) != 1:
        allowed = '{"model": […], "content": […], "score": […]} of one length'
        raise DataError("Not the grades of an item.", where=where, value=body, allowed=allowed)
    for model, content, score in zip(*columns, strict=True):
        is_number = isinstance(score, (int, float)) and not isinstance(score, bool)
        if not is_number or not 0 <= score <= 1 or not isinstance(model, str) or not isinstance(content, str):
            raise DataError("Not a grade.", where=where, value=[model, content, score], allowed="a score in [0, 1]")
    return tuple(Grade(m, c, float(s), s == parse_score(c) or s > 0) for m, c, s in zip(*columns, strict=True))


def _whole(runs: str | int) -> int:
    text = str(runs)
    if not re.fullmatch(r"\d{1,4}", text, re.ASCII) or not 1 <= int(text) <= MAX_RUNS:
        raise UsageError("runs is no number of runs.", value=runs, allowed=f"1 to {MAX_RUNS}")
    return int(text)
