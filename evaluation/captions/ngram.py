"""BLEU-1..4, ROUGE-L and CIDEr-D over whole corpora, equal to pycocoevalcap to rounding.

Sentences are tokens between spaces. Every n-gram of the corpus gets an integer id and each metric is a few array
operations on the sparse table (sentence, n-gram id, count), instead of dictionaries of tuples per sentence.

As in pycocoevalcap, ROUGE-L splits at every single space and at nothing else: an empty sentence is one empty token,
equal to that of another empty sentence, and a number such as "2 1/2", which the PTB tokeniser writes with a no-break
space, is one token, while it is two for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ORDERS = 4
ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0
CIDER_SCALE = 10.0
_TINY, _SMALL = 1e-15, 1e-9  # pycocoevalcap's guards against division by zero


@dataclass(frozen=True, slots=True)
class CountTable:
    """The n-grams of one order: parallel int64 arrays, ordered by sentence."""

    sentence: np.ndarray
    gram: np.ndarray
    count: np.ndarray
    size: int  # number of distinct n-grams

    def part(self, start: int, stop: int) -> CountTable:
        """Return the sentences ``start`` to ``stop``, renumbered from 0."""
        low, high = np.searchsorted(self.sentence, (start, stop))
        return CountTable(self.sentence[low:high] - start, self.gram[low:high], self.count[low:high], self.size)


@dataclass(frozen=True, slots=True)
class Corpus:
    """N candidates, each with its references.

    Attributes:
        candidate_tables, reference_tables: one `CountTable` per order 1 … 4.
        candidate_lengths: int64 [N], tokens.
        reference_lengths: int64 [R], tokens.
        owner: int64 [R], the candidate each reference belongs to, ascending.
        candidates, references: the ids of the tokens between single spaces, for ROUGE-L.
    """

    candidate_tables: list[CountTable]
    reference_tables: list[CountTable]
    candidate_lengths: np.ndarray
    reference_lengths: np.ndarray
    owner: np.ndarray
    candidates: list[list[int]]
    references: list[list[int]]

    def __len__(self) -> int:
        return len(self.candidates)


def build_corpus(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Corpus:
    """Count the n-grams of tokenised candidates and references; every candidate needs at least one reference."""
    if not all(references) or len(candidates) != len(references):
        raise ValueError("every candidate needs at least one reference")
    owner = np.repeat(np.arange(len(candidates)), [len(group) for group in references])
    texts = [*candidates, *(text for group in references for text in group)]
    sentences = [text.split() for text in texts]
    lengths = np.array([len(words) for words in sentences], np.int64)
    vocabulary: dict[str, int] = {}
    tokens = np.array([vocabulary.setdefault(w, len(vocabulary)) for words in sentences for w in words], np.int64)
    tables, n, total = _count_ngrams(tokens, lengths), len(candidates), len(sentences)
    spaced = [[vocabulary.setdefault(word, len(vocabulary)) for word in text.split(" ")] for text in texts]
    return Corpus(
        candidate_tables=[table.part(0, n) for table in tables],
        reference_tables=[table.part(n, total) for table in tables],
        candidate_lengths=lengths[:n],
        reference_lengths=lengths[n:],
        owner=owner,
        candidates=spaced[:n],
        references=spaced[n:],
    )


def _count_ngrams(tokens: np.ndarray, lengths: np.ndarray) -> list[CountTable]:
    """Return the table of each order for sentences stored one after the other."""
    sentence = np.repeat(np.arange(len(lengths)), lengths)
    tables, grams, size = [], tokens, int(tokens.max(initial=-1)) + 1
    vocabulary = max(size, 1)
    for order in range(1, ORDERS + 1):
        if order > 1:  # an n-gram is the (n-1)-gram at its start and one more token of the same sentence
            inside = sentence[order - 1 :] == sentence[: len(sentence) - order + 1]
            joined = np.where(inside, grams[: len(inside)] * vocabulary + tokens[order - 1 :], -1)
            known, grams = np.unique(joined, return_inverse=True)
            size, owner, ids = len(known), sentence[: len(inside)][inside], grams[inside]
        else:
            owner, ids = sentence, grams
        keys, counts = np.unique(owner * max(size, 1) + ids, return_counts=True)
        tables.append(CountTable(keys // max(size, 1), keys % max(size, 1), counts, size))
    return tables


def bleu(corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
    """Return BLEU-1..4 (Papineni et al. 2002) with the closest reference length.

    Returns:
        float64 [4] from the pooled counts, and float64 [N, 4] per candidate.
    """
    lengths = corpus.candidate_lengths
    guesses = np.maximum(0, lengths[:, None] - np.arange(ORDERS)[None])
    pairs = zip(corpus.candidate_tables, corpus.reference_tables, strict=True)
    correct = np.stack([_clipped_matches(c, r, corpus) for c, r in pairs], 1)
    closest = _closest_lengths(corpus)
    pooled = _bleu_from_counts(
        correct.sum(0)[None], guesses.sum(0)[None], lengths.sum(keepdims=True), closest.sum(keepdims=True)
    )
    return pooled[0], _bleu_from_counts(correct, guesses, lengths, closest)


def _clipped_matches(candidates: CountTable, references: CountTable, corpus: Corpus) -> np.ndarray:
    """Return, int64 [N], the candidate's n-grams found in a reference, each at most as often as there."""
    keys = corpus.owner[references.sentence] * references.size + references.gram
    order = np.argsort(keys, kind="stable")
    known, starts = np.unique(keys[order], return_index=True)
    most = np.maximum.reduceat(references.count[order], starts) if len(starts) else np.zeros(0, np.int64)
    allowed = _look_up(candidates.sentence * candidates.size + candidates.gram, known, most)
    matched = np.minimum(candidates.count, allowed)
    return np.bincount(candidates.sentence, weights=matched, minlength=len(corpus)).astype(np.int64)


def _closest_lengths(corpus: Corpus) -> np.ndarray:
    """Return, int64 [N], the reference length nearest to the candidate's; the shorter of two equally near ones."""
    away = np.abs(corpus.reference_lengths - corpus.candidate_lengths[corpus.owner])
    order = np.lexsort((corpus.reference_lengths, away, corpus.owner))
    first = np.searchsorted(corpus.owner[order], np.arange(len(corpus)))
    return corpus.reference_lengths[order][first]


def _bleu_from_counts(correct: np.ndarray, guesses: np.ndarray, lengths: np.ndarray, closest: np.ndarray) -> np.ndarray:
    precision = np.cumprod((correct + _TINY) / (guesses + _SMALL), 1)
    scores = precision ** (1 / np.arange(1, ORDERS + 1))
    ratio = (lengths + _TINY) / (closest + _SMALL)
    return scores * np.exp(np.minimum(0, 1 - 1 / ratio))[:, None]


def cider_d(corpus: Corpus) -> tuple[float, np.ndarray]:
    """Return CIDEr-D (Vedantam et al. 2015) with the references themselves as the corpus of document frequencies.

    Counts are clipped, lengths penalised by a Gaussian of sigma 6 on the number of bigrams, n = 1 … 4, times 10.

    Returns:
        The mean, and float64 [N] per candidate; a corpus of one item scores 0, since every frequency is then certain.
    """
    if not len(corpus):
        return 0.0, np.zeros(0)
    owner, log_items = corpus.owner, np.log(float(len(corpus)))
    similarity = np.zeros(len(owner))
    for candidates, references in zip(corpus.candidate_tables, corpus.reference_tables, strict=True):
        similarity += _tf_idf_cosine(candidates, references, owner, log_items)
    bigrams = np.maximum(0, corpus.candidate_lengths - 1)[owner] - np.maximum(0, corpus.reference_lengths - 1)
    similarity *= np.exp(-(bigrams.astype(float) ** 2) / (2 * CIDER_SIGMA**2)) / ORDERS
    per_item = np.bincount(owner, weights=similarity, minlength=len(corpus)) / np.bincount(owner, minlength=len(corpus))
    return float(per_item.mean() * CIDER_SCALE), per_item * CIDER_SCALE


def _tf_idf_cosine(candidates: CountTable, references: CountTable, owner: np.ndarray, log_items: float) -> np.ndarray:
    """Return, float64 [R], each reference's clipped cosine with its candidate for one order of n-grams."""
    size = max(candidates.size, 1)
    reference_keys = owner[references.sentence] * size + references.gram
    documents = np.bincount(np.unique(reference_keys) % size, minlength=size)
    weight = log_items - np.log(np.maximum(1.0, documents))
    theirs = references.count * weight[references.gram]
    ours = candidates.count * weight[candidates.gram]
    shared = _look_up(reference_keys, candidates.sentence * size + candidates.gram, ours)
    dot = np.bincount(references.sentence, weights=np.minimum(shared, theirs) * theirs, minlength=len(owner))
    their_norm = np.sqrt(np.bincount(references.sentence, weights=theirs**2, minlength=len(owner)))
    our_norm = np.sqrt(np.bincount(candidates.sentence, weights=ours**2, minlength=int(owner[-1]) + 1))
    scale = our_norm[owner] * their_norm
    return np.divide(dot, scale, out=np.zeros(len(owner)), where=scale > 0)


def _look_up(wanted: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the value of each wanted key, 0 where it is absent; ``keys`` are ascending."""
    if not len(keys):
        return np.zeros(len(wanted), values.dtype)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)


def rouge_l(corpus: Corpus) -> tuple[float, np.ndarray]:
    """Return ROUGE-L (Lin 2004), beta 1.2, from the best precision and the best recall over the references.

    Returns:
        The mean, and float64 [N] per candidate; an empty candidate matches an empty reference, and nothing else.
    """
    if not len(corpus):
        return 0.0, np.zeros(0)
    ours, theirs = [corpus.candidates[i] for i in corpus.owner], corpus.references
    common = np.array([common_subsequence(r, c) for r, c in zip(theirs, ours, strict=True)], float)
    precision, recall = np.zeros(len(corpus)), np.zeros(len(corpus))
    np.maximum.at(precision, corpus.owner, common / [len(tokens) for tokens in ours])
    np.maximum.at(recall, corpus.owner, common / [len(tokens) for tokens in theirs])
    weight = ROUGE_BETA**2
    below = recall + weight * precision
    scores = np.divide((1 + weight) * precision * recall, below, out=np.zeros(len(corpus)), where=below > 0)
    return float(scores.mean()), scores


def common_subsequence(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the longest common subsequence (bit-parallel; Hyyrö 2004), one step per token."""
    places: dict[int, int] = {}
    for position, token in enumerate(first):
        places[token] = places.get(token, 0) | 1 << position
    everything = (1 << len(first)) - 1
    row = everything
    for token in second:
        matched = row & places.get(token, 0)
        row = ((row + matched) | (row - matched)) & everything
    return len(first) - row.bit_count()
