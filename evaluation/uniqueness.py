"""Protocol ``uniqueness``: does a predicted caption find its own region among the regions of the image?

Every predicted caption is a query, the captioned true regions of its image are the candidates. They are ranked by the
cosine of tf-idf vectors over PTB tokens between the query and the nearest of a region's captions (`retrieval`; document
frequencies over the candidates of all images), so no model is needed. ``recall_1`` and ``recall_5`` are the shares of
queries whose own region is among the first one and five, ``mrr`` the mean of 1 / rank. Regions of equal score share
their places fairly: the figures are what random order among them gives on average, so an empty caption scores like
chance. ``chance_recall_1``, ``chance_recall_5`` and ``chance_mrr`` are what random ranking would give.
``coverage`` is the share of candidates that have a query.

Pairing (option ``pairing``)
    ``id``   a prediction belongs to the true region of the same id, as when true regions were the prompts
    ``iou``  by overlap above 0.5, greedily by score, whatever the class (`region_pairs.pair_by_overlap`)
    ``auto`` per image: ``id`` when all its predictions have ids of true regions and no geometry of their own, else
             ``iou``. The default.

What is left out, and counted: crowds; true regions without a caption (``truth_without_caption``); predictions that
belong to none of the candidates (``unpaired``); images with fewer than two candidates (``images_left_out``).

With the option ``clip`` a CLIP model ranks the image's pieces inside the candidates' boxes for each query:
``clip_recall_1``, ``clip_recall_5`` and ``clip_mrr``, against the same chance. It needs the images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ..datasets.records import Category, Record, Region
from ..utils.errors import DataError, LocapError
from .captions import ptb
from .encoders.clip_scorer import ClipScorer
from .matching.region_geometry import region_box
from .matching.region_pairs import answers_prompts, pair_by_id, pair_by_overlap
from .option_values import one_of
from .ranking.retrieval import Rank, TokenRetrieval, rank_own
from .results import ImageEvaluator, ImageId, ProtocolResult, Table

PAIRINGS = ("auto", "id", "iou")
FIGURES: dict[str, Callable[[Rank], float]] = {
    "recall_1": lambda rank: rank.recall(1),
    "recall_5": lambda rank: rank.recall(5),
    "mrr": Rank.reciprocal,
}
REGION_COLUMNS = (
    "image_id", "region_id", "predicted_id", "candidates", "better", "tied", "recall_1", "recall_5", "mrr", "caption",
)  # fmt: skip


class Uniqueness(ImageEvaluator):
    """Retrieval of regions by their predicted captions.

    Args:
        categories, variant, image_order: as `ImageEvaluator`.
        pairing: one of `PAIRINGS`.
        clip: folder or hub name of a CLIP model that ranks as well.
    """

    protocol = "uniqueness"
    options: ClassVar[Mapping[str, str]] = {
        "pairing": f"{', '.join(PAIRINGS)}: how predictions find their true regions; default {PAIRINGS[0]}",
        "clip": "folder or hub name of a CLIP model that ranks the regions' pieces of the image as well",
    }
    decisive = ("pairing", "clip")

    def __init__(
        self,
        categories: Sequence[Category],
        *,
        pairing: str = PAIRINGS[0],
        clip: str | None = None,
        variant: str = "standard",
        image_order: Sequence[ImageId] | None = None,
    ) -> None:
        super().__init__(categories, variant=variant, image_order=image_order)
        self.pairing, self.clip = one_of("pairing", pairing, PAIRINGS), clip
        self._scorer: ClipScorer | str | None = None  # loaded at the first image, or why it cannot be

    def compute(self) -> ProtocolResult:
        """Return the figures of the module's description and a row per query."""
        entries = self._ordered()
        counted = [(image_id, entry) for image_id, entry in entries if len(entry["candidates"]) > 1]
        result = ProtocolResult(self.protocol, self.variant, counts=_counts([entry for _, entry in entries]))
        queries = [query for _, entry in counted for query in entry["queries"]]
        names = [f"{kind}{name}" for kind in ("", "chance_", "clip_" if self.clip else "") for name in FIGURES]
        if not queries:
            result.undefined |= dict.fromkeys(
                names, "no predicted caption belongs to an image with two or more captioned regions"
            )
            return result
        images = [entry for _, entry in counted]
        ranks, warning = rank_by_tokens(images)
        if warning:
            result.unavailable["ptb_tokenizer"] = warning
        result.figures = _means(ranks, "") | _means(
            [Rank(rank.candidates, 0, rank.candidates) for rank in ranks], "chance_"
        )
        result.figures["coverage"] = len(queries) / sum(len(image["candidates"]) for image in images)
        if self.clip:
            _add_clip(result, images)
        rows = (
            (image_id, entry["candidates"][g][0], *rest) for image_id, entry in counted for g, *rest in entry["queries"]
        )
        result.regions = Table(REGION_COLUMNS, [_row(row, rank) for row, rank in zip(rows, ranks, strict=True)])
        return result

    def _measure(self, record: Record, prediction: Record) -> dict[str, Any]:
        truth = [region for region in record.regions if not region.is_crowd]
        chosen = self._pairs(record, prediction, truth)
        captioned = [g for g, region in enumerate(truth) if _captions(region)]
        place = {g: index for index, g in enumerate(captioned)}
        queries = [
            [place[g], region.id, region.captions[0] if region.captions else ""] for g, region in chosen if g in place
        ]
        entry = {
            "candidates": [[truth[g].id, _captions(truth[g])] for g in captioned],
            "queries": queries,
            "predicted": len(prediction.regions),
            "crowds": len(record.regions) - len(truth),
            "without_caption": len(truth) - len(captioned),
        }
        if self.clip and queries and len(captioned) > 1:
            entry["clip"] = self._clip_scores(record, [truth[g] for g in captioned], [text for *_, text in queries])
        return entry

    def _pairs(self, record: Record, prediction: Record, truth: Sequence[Region]) -> list[tuple[int, Region]]:
        """Return (index into ``truth``, predicted region), in the order of the truth."""
        by_id = self.pairing == "id" or (self.pairing == "auto" and answers_prompts(record, prediction))
        if by_id:
            answers = pair_by_id(record, prediction)
            return [(g, answers[region.id]) for g, region in enumerate(truth) if region.id in answers]
        return [(g, prediction.regions[p]) for g, p in pair_by_overlap(record, prediction, truth)]

    def _clip_scores(self, record: Record, candidates: Sequence[Region], texts: Sequence[str]) -> Any:
        """Return scores [texts][candidates], or why there are none."""
        if self._scorer is None:
            try:
                self._scorer = ClipScorer(self.clip)
            except LocapError as err:
                self._scorer = str(err)
        if isinstance(self._scorer, str):
            return self._scorer
        try:
            image = record.read_image()
        except DataError as err:
            return f"CLIP needs the images: {err}"
        boxes = [region_box(record, region, "region") for region in candidates]
        if any(box is None for box in boxes):
            return f"CLIP needs boxes or masks of the true regions, image_id {record.image_id} has regions without"
        return self._scorer.scores(image, boxes, texts).tolist()


def rank_by_tokens(images: Sequence[Mapping[str, Any]]) -> tuple[list[Rank], str | None]:
    """Return the rank of every query's own region, and why the tokens are only approximate if they are."""
    captions = [text for image in images for _, texts in image["candidates"] for text in texts]
    done = ptb.tokenize([*captions, *(text for image in images for *_, text in image["queries"])])
    tokens = iter(done.captions)
    regions = [[next(tokens) for _ in texts] for image in images for _, texts in image["candidates"]]
    retrieval, ranks, first = TokenRetrieval(regions), [], 0
    for image in images:
        last = first + len(image["candidates"])
        texts = [next(tokens) for _ in image["queries"]]
        scores = retrieval.scores(texts, first, last) if texts else ()
        ranks += [rank_own(row, own) for row, (own, *_) in zip(scores, image["queries"], strict=True)]
        first = last
    return ranks, done.warning


def _add_clip(result: ProtocolResult, images: Sequence[Mapping[str, Any]]) -> None:
    """Write the CLIP figures into ``result``: over all queries or not at all."""
    found = [(image["clip"], image["queries"]) for image in images if image["queries"]]
    missing = [scores for scores, _ in found if isinstance(scores, str)]
    if missing:
        result.unavailable |= {f"clip_{name}": missing[0] for name in FIGURES}
        return
    ranks = [
        rank_own(np.array(row), own)
        for scores, queries in found
        for row, (own, *_) in zip(scores, queries, strict=True)
    ]
    result.figures |= _means(ranks, "clip_")


def _means(ranks: Sequence[Rank], prefix: str) -> dict[str, float]:
    return {prefix + name: math.fsum(map(value, ranks)) / len(ranks) for name, value in FIGURES.items()}


def _counts(images: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    counted = [image for image in images if len(image["candidates"]) > 1]
    return {
        "images": len(images),
        "images_left_out": len(images) - len(counted),
        "candidates": sum(len(image["candidates"]) for image in counted),
        "queries": sum(len(image["queries"]) for image in counted),
        "empty_queries": sum(not text.strip() for image in counted for *_, text in image["queries"]),
        "unpaired": sum(image["predicted"] - len(image["queries"]) for image in images),
        "truth_without_caption": sum(image["without_caption"] for image in images),
        "crowds": sum(image["crowds"] for image in images),
    }


def _captions(region: Region) -> list[str]:
    return [text for text in region.captions if text.strip()]


def _row(query: Sequence[Any], rank: Rank) -> tuple[Any, ...]:
    image_id, region_id, predicted_id, caption = query
    values = (value(rank) for value in FIGURES.values())
    return (image_id, region_id, predicted_id, rank.candidates, rank.better, rank.tied, *values, caption)
