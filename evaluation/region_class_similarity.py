"""Protocol ``region_class_similarity``: how near a region's text is to the name of its class (LVIS and PACO, Osprey).

Variant ``standard``
    * ``similarity``: cosine of the sentence embeddings (all-MiniLM-L6-v2) of the text and the class name.
    * ``semantic_iou``: words in both / words in either, in lower case, split at white space.
    Of a predicted text only what follows its first ":" counts; "." ":" "," become spaces. In a class name "_" and ":"
    become spaces. Both figures are means over regions, as fractions of 1 (papers print them times 100). An empty text
    scores 0 in both.

Variant ``osprey``
    The published program: of a text with several ":" what lies between the first two counts, and the embedding of an
    empty text is compared like any other.

A prediction answers the true region of the same id with its first caption. True regions without an answer score 0 and
are counted in ``unanswered``; crowds and regions without a category are left out and counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ..datasets.records import Category, Record, Region
from ..utils.errors import DataError, LocapError
from .encoders.sentence_encoder import MINILM, SentenceEncoder
from .matching.region_pairs import pair_by_id
from .results import ImageEvaluator, ImageId, ProtocolResult, Table

FIGURES = ("similarity", "semantic_iou")
REGION_COLUMNS = ("image_id", "region_id", "category", "text", *FIGURES, "prediction")
_TEXT_MARKS = str.maketrans(".:,", "   ")
_NAME_MARKS = str.maketrans("_:", "  ")


class RegionClassSimilarity(ImageEvaluator):
    """Similarity and word overlap of texts and class names.

    Args:
        categories, variant, image_order: as `ImageEvaluator`.
        encoder: folder or hub name of the sentence encoder.
    """

    protocol = "region_class_similarity"
    variants = ("standard", "osprey")
    options: ClassVar[Mapping[str, str]] = {"encoder": f"folder or hub name of the sentence encoder; default {MINILM}"}
    decisive = ("encoder",)

    def __init__(
        self,
        categories: Sequence[Category],
        *,
        encoder: str = MINILM,
        variant: str = "standard",
        image_order: Sequence[ImageId] | None = None,
    ) -> None:
        super().__init__(categories, variant=variant, image_order=image_order)
        self.encoder = encoder

    def compute(self) -> ProtocolResult:
        """Return both figures, a table per category and a row per region; without encoder ``semantic_iou`` alone."""
        entries = self._ordered()
        result = ProtocolResult(self.protocol, self.variant, counts=self._counts([entry for _, entry in entries]))
        items = [(image_id, *item) for image_id, entry in entries for item in entry["regions"]]
        if not items:
            result.undefined |= dict.fromkeys(FIGURES, "the ground truth has no region with a category")
            return result
        names = [class_name(self.categories[category_id].name) for _, _, category_id, _ in items]
        texts = [None if answer is None else answer_text(answer, self.variant) for *_, answer in items]
        columns = {"semantic_iou": [word_iou(text or "", name) for text, name in zip(texts, names, strict=True)]}
        try:
            columns["similarity"] = self._similarities(texts, names)
        except LocapError as err:
            result.unavailable["similarity"] = str(err)
        result.figures = {name: _mean(columns[name]) for name in FIGURES if name in columns}
        result.tables["categories"] = self._category_table(items, columns)
        shown = [columns.get(name, [None] * len(items)) for name in FIGURES]
        rows = zip(items, names, texts, *shown, strict=True)
        result.regions = Table(REGION_COLUMNS, [(i[0], i[1], name, text, s, o, i[3]) for i, name, text, s, o in rows])
        return result

    def _measure(self, record: Record, prediction: Record) -> dict[str, Any]:
        answers = pair_by_id(record, prediction)
        regions = [region for region in record.regions if not region.is_crowd and region.category_id is not None]
        unknown = [region for region in regions if region.category_id not in self.categories]
        if unknown:
            raise DataError(
                "A region is of a category that the data set does not have.",
                where=f"image_id {record.image_id}, region {unknown[0].id}",
                value=unknown[0].category_id,
            )
        return {
            "regions": [[region.id, region.category_id, _answer(answers.get(region.id))] for region in regions],
            "crowds": sum(region.is_crowd for region in record.regions),
            "without_category": sum(r.category_id is None and not r.is_crowd for r in record.regions),
        }

    def _counts(self, images: Sequence[Mapping[str, Any]]) -> dict[str, int]:
        answers = [answer for image in images for _, _, answer in image["regions"]]
        return {
            "images": len(images),
            "regions": len(answers),
            "unanswered": sum(answer is None for answer in answers),
            "empty": sum(answer is not None and not answer_text(answer, self.variant) for answer in answers),
            "crowds": sum(image["crowds"] for image in images),
            "without_category": sum(image["without_category"] for image in images),
        }

    def _similarities(self, texts: Sequence[str | None], names: Sequence[str]) -> list[float]:
        """Return the cosine of each text and name; each distinct text is embedded once."""
        scored = [text is not None and bool(text or self.variant == "osprey") for text in texts]
        distinct = sorted({text for text, is_scored in zip(texts, scored, strict=True) if is_scored} | set(names))
        embeddings = SentenceEncoder(self.encoder).encode(distinct)
        place = {text: index for index, text in enumerate(distinct)}
        return [
            float(np.clip(embeddings[place[text]] @ embeddings[place[name]], -1, 1)) if is_scored else 0.0
            for text, name, is_scored in zip(texts, names, scored, strict=True)
        ]

    def _category_table(self, items: Sequence[tuple[Any, ...]], columns: Mapping[str, Sequence[float]]) -> Table:
        members: dict[int, list[int]] = {}
        for index, (_, _, category_id, _) in enumerate(items):
            members.setdefault(category_id, []).append(index)
        rows = []
        for i, places in sorted(members.items()):
            means = (_mean([columns[name][p] for p in places]) if name in columns else None for name in FIGURES)
            rows.append((i, self.categories[i].name, len(places), *means))
        return Table(("category_id", "name", "regions", *FIGURES), rows)


def answer_text(answer: str, variant: str) -> str:
    """Return the words of a predicted text that count, between single spaces."""
    first, colon, rest = answer.strip().partition(":")
    text = (rest if variant == "standard" else rest.partition(":")[0]) if colon else first
    return " ".join(text.translate(_TEXT_MARKS).split())


def class_name(name: str) -> str:
    """Return a category's name as words."""
    return " ".join(name.translate(_NAME_MARKS).split())


def word_iou(first: str, second: str) -> float:
    """Return shared / all words in lower case; 0 where there are none."""
    a, b = set(first.lower().split()), set(second.lower().split())
    return len(a & b) / len(a | b) if a | b else 0.0


def _answer(region: Region | None) -> str | None:
    return None if region is None else region.captions[0] if region.captions else ""


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
