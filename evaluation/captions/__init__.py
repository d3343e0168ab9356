"""The caption metrics of the field on raw strings: METEOR, CIDEr-D, ROUGE-L, BLEU-1..4, on request SPICE."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ...utils.errors import MissingDependencyError
from . import ngram
from .meteor import MeteorScores, shared_meteor
from .nltk_meteor import nltk_meteor_scores
from .ptb import tokenize
from .spice import spice_scores

NGRAM_METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider")
CAPTION_METRICS = ("meteor", *NGRAM_METRICS)
EXTRA_METRICS = ("spice", "nltk_meteor")  # on request: they need an optional download


@dataclass(slots=True)
class CaptionScores:
    """Scores of N candidates.

    Attributes:
        corpus: metric -> score of the whole set (METEOR and BLEU from pooled statistics, the others the mean).
        segments: metric -> float64 [N].
        unavailable: metric -> what the machine lacks for it; ``ptb_tokenizer`` when the tokens are only approximate.
    """

    corpus: dict[str, float] = field(default_factory=dict)
    segments: dict[str, np.ndarray] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenizedPairs:
    """Candidates and their references as PTB tokens between spaces."""

    candidates: list[str]
    references: list[list[str]]
    unavailable: dict[str, str]  # "ptb_tokenizer" -> why the tokens are only approximate


def warm_up() -> None:
    """Start METEOR in the background, if the machine has Java."""
    with contextlib.suppress(MissingDependencyError):
        shared_meteor().warm_up()


def tokenize_pairs(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> TokenizedPairs:
    """Tokenise both sides in one call of the PTB tokeniser."""
    done = tokenize([*candidates, *(text for group in references for text in group)])
    rest = iter(done.captions[len(candidates) :])
    groups = [[next(rest) for _ in group] for group in references]
    return TokenizedPairs(
        done.captions[: len(candidates)], groups, {"ptb_tokenizer": done.warning} if done.warning else {}
    )


def meteor_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> MeteorScores | str:
    """Return METEOR scores of tokenised captions, or a sentence saying why there are none."""
    try:
        return shared_meteor().score(candidates, references)
    except MissingDependencyError as err:
        return f"METEOR not computed: {err}"


def score_tokens(
    candidates: Sequence[str], references: Sequence[Sequence[str]], *, extra: Sequence[str] = ()
) -> CaptionScores:
    """Score tokenised captions; every candidate needs at least one reference. Empty sets score 0.

    Args:
        candidates, references: tokens between spaces.
        extra: which of `EXTRA_METRICS` to add.
    """
    scores = CaptionScores()
    meteor = meteor_scores(candidates, references)
    if isinstance(meteor, str):
        scores.unavailable["meteor"] = meteor
    else:
        scores.corpus["meteor"], scores.segments["meteor"] = meteor.corpus, meteor.segments
    corpus = ngram.build_corpus(candidates, references)
    pooled, each = ngram.bleu(corpus)
    for order in range(ngram.ORDERS):
        name = f"bleu_{order + 1}"
        scores.corpus[name], scores.segments[name] = float(pooled[order]), each[:, order]
    for name, metric in (("rouge_l", ngram.rouge_l), ("cider", ngram.cider_d)):
        scores.corpus[name], scores.segments[name] = metric(corpus)
    for name in extra:
        try:
            scores.corpus[name], scores.segments[name] = _score_extra(name, candidates, references)
        except MissingDependencyError as err:
            scores.unavailable[name] = str(err)
    return scores


def _score_extra(name: str, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, np.ndarray]:
    if name == "spice":
        scores = spice_scores(candidates, references)
        return scores.corpus, scores.segments
    segments = nltk_meteor_scores(candidates, references)
    return float(segments.mean()) if len(segments) else 0.0, segments


def score_captions(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Score raw captions by the COCO protocol: PTB tokens of both sides, then every metric.

    Without Java the result lacks METEOR and the other metrics rest on the built-in tokeniser; ``unavailable`` says so.

    Args:
        candidates: N captions.
        references: N groups of one or more captions.
    """
    pairs = tokenize_pairs(candidates, references)
    scores = score_tokens(pairs.candidates, pairs.references)
    scores.unavailable |= pairs.unavailable
    return scores
