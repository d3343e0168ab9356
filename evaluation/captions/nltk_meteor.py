"""METEOR as NLTK computes it (Lavie and Agarwal 2007): another measure than METEOR 1.5, under a name of its own.

Words match exactly, then by Porter stem, then when the reference's stem is a WordNet synonym of the candidate's; each
stage goes from the last word of the candidate to the first and takes the last free word of the reference.

    F = P R / (0.9 P + 0.1 R),   score = (1 - 0.5 (chunks / matches)^3) F,   the best over the references

WordNet is an optional download: see `wordnet`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence, Set

import numpy as np

from .wordnet import WordNet, shared_wordnet

ALPHA, BETA, GAMMA = 0.9, 3.0, 0.5
Words = list[tuple[int, str]]  # place in the sentence, word


def nltk_meteor_scores(
    candidates: Sequence[str], references: Sequence[Sequence[str]], wordnet: WordNet | None = None
) -> np.ndarray:
    """Return, float64 [N], the scores of captions whose tokens stand between spaces.

    Raises:
        MissingDependencyError: WordNet is missing.
    """
    synonyms = (wordnet or shared_wordnet()).synonyms
    pairs = zip(candidates, references, strict=True)
    return np.array([max((_score(ours, text, synonyms) for text in theirs), default=0.0) for ours, theirs in pairs])


def _score(candidate: str, reference: str, synonyms: Callable[[str], Set[str]]) -> float:
    ours, theirs = (list(enumerate(text.lower().split())) for text in (candidate, reference))
    lengths = len(ours), len(theirs)
    matches = _take_matches(ours, theirs, lambda word: {word})
    ours, theirs = ([(place, _stem(word)) for place, word in side] for side in (ours, theirs))
    matches += _take_matches(ours, theirs, lambda stem: {stem})
    matches += _take_matches(ours, theirs, lambda stem: synonyms(stem) | {stem})
    if not matches:
        return 0.0
    precision, recall = (len(matches) / length for length in lengths)
    mean = (precision * recall) / (ALPHA * precision + (1 - ALPHA) * recall)
    return (1 - GAMMA * (_count_chunks(sorted(matches)) / len(matches)) ** BETA) * mean


def _take_matches(ours: Words, theirs: Words, equals: Callable[[str], Set[str]]) -> list[tuple[int, int]]:
    """Match the words of two sides one to one and remove them from both."""
    matches = []
    for index in range(len(ours) - 1, -1, -1):
        accepted = equals(ours[index][1])
        found = next((other for other in range(len(theirs) - 1, -1, -1) if theirs[other][1] in accepted), None)
        if found is not None:
            matches.append((ours.pop(index)[0], theirs.pop(found)[0]))
    return matches


def _count_chunks(matches: Sequence[tuple[int, int]]) -> int:
    """Return in how many runs of adjacent words, in the same order on both sides, the matches lie."""
    following = itertools.pairwise(matches)
    return 1 + sum((after[0] - before[0], after[1] - before[1]) != (1, 1) for before, after in following)


@functools.lru_cache(maxsize=65536)
def _stem(word: str) -> str:
    return _stemmer().stem(word)


@functools.cache
def _stemmer():
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()
