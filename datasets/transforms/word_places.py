"""Where a narrator pointed at each word: from timed words and the pointer's path to one box per token.

Localized Narratives (Pont-Tuset et al., arXiv 1912.03098) as PixelLLM (arXiv 2312.09237) uses them: an utterance is
placed at the box around 16 samples of the path while it was spoken, and a token takes the place of one utterance.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from itertools import accumulate

import numpy as np

from ...utils.errors import UsageError
from ..records import Narrative

ALIGNMENTS = ("aligned", "proportional")
_SAMPLES = 16
_NOWHERE = -1
_NOT_WORDS = re.compile(r"[\W_]+")


def word_boxes(
    narrative: Narrative,
    *,
    height: int,
    width: int,
    num_tokens: int,
    token_words: Sequence[int],
    alignment: str = "aligned",
) -> np.ndarray:
    """Return float64 (num_tokens, 4), the box (x0, y0, x1, y1) of each token in pixels of the image; zeros: nowhere.

    Args:
        narrative: its words may be utterances of several words.
        height, width: of the image; boxes are clipped to it.
        num_tokens: word pieces of the caption, without begin, end and padding.
        token_words: num_tokens indices into ``narrative.caption.split()``, the word that each token belongs to.
        alignment: "aligned" finds each word of the caption among the spoken ones; where the pointer was before and
            after its path, it stays at the end. "proportional" is what PixelLLM was trained with: the i-th token takes
            the i-th part of the utterances whatever they say, the path is continued along its last stretch, and boxes
            are rounded to whole pixels.
    """
    check_alignment(alignment)
    published = alignment == "proportional"
    boxes, centers = utterance_places(narrative, extrapolate=published)
    boxes = boxes.clip(0, (width, height) * 2)
    spoken = np.array([bool(word.text.strip()) for word in narrative.words], bool)
    if published:
        valid = spoken & (centers > 1e-5 * np.array([width, height])).all(-1)
        chosen, boxes = proportional_words(num_tokens, valid), np.round(boxes)
    else:
        of_words = aligned_words(narrative.caption.split(), [word.text for word in narrative.words])
        chosen = np.array([of_words[word] for word in token_words], int)
    return np.where((chosen != _NOWHERE)[:, None], boxes[chosen], 0.0) if len(boxes) else np.zeros((num_tokens, 4))


def check_alignment(alignment: str, where: str = "alignment") -> None:
    """Raise UsageError unless it is one of `ALIGNMENTS`."""
    if alignment not in ALIGNMENTS:
        raise UsageError("Unknown alignment.", where=where, value=alignment, allowed=", ".join(ALIGNMENTS))


def utterance_places(narrative: Narrative, *, extrapolate: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return where the pointer was during each of K timed words: boxes (K, 4) and mean positions (K, 2), pixels.

    Args:
        narrative: points at the same time count once, the first of them.
        extrapolate: continue the path along its first and last stretch where a word was spoken before or after it,
            instead of holding its ends.
    """
    if not narrative.words or not any(narrative.traces):
        return np.zeros((0, 4)), np.zeros((0, 2))
    points = np.array([point for stroke in narrative.traces for point in stroke], float).reshape(-1, 3)
    points = points[np.argsort(points[:, 2], kind="stable")]
    points = points[np.unique(points[:, 2], return_index=True)[1]]
    spans = np.array([(word.start, word.end) for word in narrative.words], float)
    times = np.linspace(spans[:, 0], spans[:, 1], _SAMPLES, axis=1)  # (K, 16)
    path = np.stack([_follow(times, points[:, 2], points[:, axis], extrapolate) for axis in (0, 1)], -1)
    return np.concatenate([path.min(1), path.max(1)], -1), _means(path, times)


def _follow(times: np.ndarray, known: np.ndarray, values: np.ndarray, extrapolate: bool) -> np.ndarray:
    followed = np.interp(times, known, values)
    if extrapolate and len(known) > 1:
        for outside, first, second in ((times < known[0], 0, 1), (times > known[-1], -1, -2)):
            slope = (values[second] - values[first]) / (known[second] - known[first])
            followed = np.where(outside, values[first] + (times - known[first]) * slope, followed)
    return followed


def _means(path: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the mean over time (K, 2) by the trapezoid rule; over the samples where no time passes."""
    steps = np.diff(times, axis=1)[..., None]
    duration = times[:, -1:] - times[:, :1]
    areas = ((path[:, 1:] + path[:, :-1]) / 2 * steps).sum(1)
    return np.where(duration < 1e-5, path.mean(1), areas / np.maximum(duration, 1e-5))


def proportional_words(num_tokens: int, valid: Sequence[bool] | np.ndarray) -> np.ndarray:
    """Return int (num_tokens,), the utterance of each token by its position alone; -1 without a valid utterance."""
    valid = np.asarray(valid, bool)
    count = int(valid.sum())
    if not count:
        return np.full(num_tokens, _NOWHERE)
    places = np.where(valid, np.cumsum(valid) / np.float32(count), -1).astype(np.float32)
    share = np.arange(1, num_tokens + 1, dtype=np.float32) / np.float32(max(num_tokens, 1))
    first = np.float32(1 / count)
    wanted = first + share * (1 - first)
    return np.argmin((wanted[:, None] - places[None]) ** 2, axis=1)


def aligned_words(words: Sequence[str], utterances: Sequence[str]) -> list[int]:
    """Return, for each word of a caption, the index of the utterance that says it.

    Words are compared without case and punctuation, in order. A run of words that was spoken otherwise shares the
    utterances in its stead; a word that was not spoken takes the utterance before it, or else the one after it; -1
    where nothing was spoken.
    """
    spoken = [(_plain(word), index) for index, text in enumerate(utterances) for word in text.split() if _plain(word)]
    written = [_plain(word) for word in words]
    chosen = [_NOWHERE] * len(words)
    matcher = SequenceMatcher(None, written, [word for word, _ in spoken], autojunk=False)
    for kind, start, stop, other, other_stop in matcher.get_opcodes():
        if kind in ("equal", "replace"):
            for k in range(start, stop):
                chosen[k] = spoken[other + (k - start) * (other_stop - other) // (stop - start)][1]
    return _filled(chosen)


def _filled(chosen: Sequence[int]) -> list[int]:
    last = next((index for index in chosen if index != _NOWHERE), _NOWHERE)
    filled = []
    for index in chosen:
        last = last if index == _NOWHERE else index
        filled.append(last)
    return filled


def _plain(word: str) -> str:
    return _NOT_WORDS.sub("", word).lower()


class WordCounter:
    """How many word pieces each word of a text has; words seen before are remembered.

    Args:
        count_pieces: the number of word pieces of a text, special tokens left out.
    """

    _MOST = 65_536  # words to remember

    def __init__(self, count_pieces: Callable[[str], int]) -> None:
        self.count_pieces = count_pieces
        self._known: dict[str, int] = {}

    def words_of_tokens(self, text: str) -> list[int]:
        """Return, for each word piece of a text, the index of its word in ``text.split()``."""
        words = text.split()
        total, counts = self.count_pieces(" ".join(words)), [self._count(word) for word in words]
        ends = list(accumulate(counts))
        if ends and ends[-1] != total:  # cut off, or pieces depend on what is before them
            ends = [self.count_pieces(" ".join(words[:k])) for k in range(1, len(words) + 1)]
        return [k for k, (start, end) in enumerate(zip([0, *ends], ends, strict=False)) for _ in range(start, end)]

    def _count(self, word: str) -> int:
        if word not in self._known:
            if len(self._known) >= self._MOST:
                self._known.clear()
            self._known[word] = self.count_pieces(word)
        return self._known[word]
