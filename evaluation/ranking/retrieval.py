"""Which of an image's regions a text is nearest to, by tf-idf of tokens; and what a rank is worth when scores tie."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DIGITS = 9  # scores that agree so far are equal: the last bits depend on the order of additions


@dataclass(frozen=True, slots=True)
class Rank:
    """Where a text's own region stands among the regions.

    Attributes:
        candidates: how many regions there are.
        better: how many score above the own one.
        tied: how many score like it, itself included.
    """

    candidates: int
    better: int
    tied: int

    def recall(self, k: int) -> float:
        """Return the chance that the own region is among the first k when ties are broken at random."""
        return min(max((k - self.better) / self.tied, 0.0), 1.0)

    def reciprocal(self) -> float:
        """Return the expected 1 / rank when ties are broken at random."""
        return math.fsum(1 / (self.better + place) for place in range(1, self.tied + 1)) / self.tied


def rank_own(scores: np.ndarray, own: int) -> Rank:
    """Return the rank of candidate ``own`` among float [candidates]."""
    rounded = np.round(scores, DIGITS)
    return Rank(len(rounded), int((rounded > rounded[own]).sum()), int((rounded == rounded[own]).sum()))


class TokenRetrieval:
    """Cosines of tf-idf vectors.

    A token weighs its count times 1 + ln((1 + N) / (1 + n)), where n of the N regions have it in any of their captions.
    Tokens that no caption has weigh nothing.

    Args:
        regions: per region its captions, as tokens between spaces.
    """

    def __init__(self, regions: Sequence[Sequence[str]]) -> None:
        having = Counter(token for captions in regions for token in set(" ".join(captions).split()))
        self._column = {token: index for index, token in enumerate(sorted(having))}
        counts = np.array([having[token] for token in self._column], np.float64)
        self._weight = 1 + np.log((1 + len(regions)) / (1 + counts))
        self._starts = np.cumsum([0, *map(len, regions)])
        self._captions = self._vectors([caption for captions in regions for caption in captions])

    def scores(self, texts: Sequence[str], first: int, last: int) -> np.ndarray:
        """Return, float64 [texts, last - first], the cosine of each text and the nearest caption of each region."""
        starts = self._starts[first : last + 1]
        captions = self._captions[starts[0] : starts[-1]]
        cosines = (self._vectors(texts) @ captions.T).toarray()
        return np.maximum.reduceat(cosines, starts[:-1] - starts[0], axis=1)

    def _vectors(self, texts: Sequence[str]) -> Any:
        """Return unit rows, sparse [texts, tokens], zeros for a text without a known token."""
        from scipy import sparse  # 0.2 s of every start otherwise

        rows, columns, values = [], [], []
        for row, text in enumerate(texts):
            counts = {self._column[token]: n for token, n in Counter(text.split()).items() if token in self._column}
            places = sorted(counts)
            weights = np.array([counts[place] * self._weight[place] for place in places], np.float64)
            rows += [row] * len(places)
            columns += places
            values += (weights / np.linalg.norm(weights)).tolist() if places else []
        return sparse.csr_array((values, (rows, columns)), shape=(len(texts), len(self._column)))
