"""What the protocols that score one caption against several share: the figures of COCO-caption over a set of items.

Both sides become PTB tokens; then METEOR 1.5 and BLEU-1 … 4 from the pooled statistics of all items, CIDEr-D and
ROUGE-L as means, CIDEr with the document frequencies of these items' references. So CIDEr of two sets of items is not
comparable, and of a single item it is 0. On request SPICE, and METEOR as NLTK has it, each with an optional download.

An item without a caption in the ground truth is counted (``truth_without_caption``) and left out. A blank caption is
one, as in COCO-caption; ``truth_without_word`` counts items whose captions have neither letter nor digit, and where all
captions of a file are blank, nothing is scored. A candidate that is missing or blank (``predicted_without_caption``)
scores 0, and so does one without a letter or digit (``predicted_without_word``), unless the ground truth has the same
signs: "?!" is one token, single signs are dropped. Only ROUGE-L, as in COCO-caption, is 1 where neither the candidate
nor one of its references has a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..datasets.records import Category
from ..utils.errors import DataError, UsageError
from .captions import CAPTION_METRICS, EXTRA_METRICS, CaptionScores, score_tokens, tokenize_pairs, warm_up
from .results import ImageEvaluator, ImageId, ProtocolResult, Table

TABLE_METRICS = (*CAPTION_METRICS, *EXTRA_METRICS)


@dataclass(frozen=True, slots=True)
class CaptionItem:
    """A caption to score.

    Attributes:
        ids: what names it, e.g. the image's id and the region's.
        candidate: the predicted caption, "" for none.
        references: the captions of the ground truth.
    """

    ids: tuple[ImageId, ...]
    candidate: str
    references: Sequence[str]


class CaptionEvaluator(ImageEvaluator):
    """A protocol of caption metrics.

    Args:
        categories, variant, image_order: as `ImageEvaluator`.
        spice, nltk_meteor: whether to compute these too; a command line gives "true" or "false".
    """

    options: ClassVar[Mapping[str, str]] = {
        "spice": "true: SPICE too, which needs an optional download",
        "nltk_meteor": "true: METEOR as NLTK computes it too, which needs an optional download",
    }

    def __init__(
        self,
        categories: Sequence[Category],
        *,
        variant: str = "standard",
        image_order: Sequence[ImageId] | None = None,
        spice: bool | str = False,
        nltk_meteor: bool | str = False,
    ) -> None:
        super().__init__(categories, variant=variant, image_order=image_order)
        wanted = {"spice": spice, "nltk_meteor": nltk_meteor}
        self.extra = tuple(name for name in EXTRA_METRICS if _read_switch(name, wanted[name]))

    def warm_up(self) -> None:
        """Start METEOR in the background."""
        warm_up()


def _read_switch(name: str, value: bool | str) -> bool:
    known = {"true": True, "false": False}
    if isinstance(value, bool) or value in known:
        return known.get(value, value)
    raise UsageError(f"The option {name} is neither true nor false.", value=value, allowed="true, false")


def require_texts(texts: Any, where: str) -> list[str]:
    """Return captions as a list.

    Raises:
        DataError: they are not a sequence of texts.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise DataError("Captions are not a list of texts.", where=where, value=texts)
    return list(texts)


def _has_word(text: str) -> bool:
    return any(character.isalnum() for character in text)


def add_caption_figures(
    result: ProtocolResult, items: Sequence[CaptionItem], id_columns: Sequence[str], extra: Sequence[str] = ()
) -> None:
    """Write figures, counts and the row per item into ``result``.

    Args:
        result: the result to complete.
        items: all items in a fixed order.
        id_columns: names of the columns of `CaptionItem.ids`.
        extra: further metrics, of ``EXTRA_METRICS``.
    """
    scored = [item for item in items if item.references]
    tokens = tokenize_pairs([item.candidate for item in scored], [item.references for item in scored])
    blank = sum(not item.candidate.strip() for item in scored)
    result.counts |= {
        "captions": len(scored),
        "truth_without_caption": len(items) - len(scored),
        "predicted_without_caption": blank,
        "predicted_without_word": sum(not _has_word(text) for text in tokens.candidates) - blank,
        "truth_without_word": sum(not any(map(_has_word, group)) for group in tokens.references),
    }
    if not any(text.strip() for item in scored for text in item.references):
        result.undefined |= dict.fromkeys((*CAPTION_METRICS, *extra), "the ground truth has no caption")
        return
    scores = score_tokens(tokens.candidates, tokens.references, extra=extra)
    result.figures |= {name: float(scores.corpus[name]) for name in TABLE_METRICS if name in scores.corpus}
    result.unavailable |= scores.unavailable | tokens.unavailable
    if len(scored) == 1:
        result.notes.append("CIDEr of a single item is 0: every word occurs in all of its documents")
    result.regions = _item_table(scored, scores, id_columns)


def _item_table(items: Sequence[CaptionItem], scores: CaptionScores, id_columns: Sequence[str]) -> Table:
    names = [name for name in TABLE_METRICS if name in scores.segments]
    columns = [scores.segments[name].tolist() for name in names]
    rows = [
        (*item.ids, *values, item.candidate, " | ".join(item.references))
        for item, values in zip(items, zip(*columns, strict=True), strict=True)
    ]
    return Table((*id_columns, *names, "prediction", "references"), rows)
