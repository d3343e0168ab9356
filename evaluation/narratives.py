"""Words of a narrative with the points the pointer passed while they were spoken, and which words correspond."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..datasets.records import Narrative
from ..utils.errors import DataError


@dataclass(frozen=True, slots=True)
class LocatedWord:
    """A word and its points (x, y) [N, 2] in pixels; without points it has no location."""

    text: str
    points: np.ndarray


def located_words(narrative: Narrative, where: str) -> list[LocatedWord]:
    """Return the words with their points.

    An utterance of several words is split at spaces; each word has the utterance's points. Those are the points of the
    path with start <= t < end; of an utterance of no duration those with t = start. Where there is none, the position
    in the middle of the utterance, interpolated between the points before and after, is the only one; before the path's
    beginning and after its end a word has no location. If there are as many strokes as utterances and every stroke lies
    within the time of its own, the strokes are the points, ends included.

    Raises:
        DataError: a time or coordinate is not finite, or an utterance ends before it starts.
    """
    check_narrative(narrative, where)
    if _one_stroke_each(narrative):
        points = [np.array(stroke, np.float64).reshape(-1, 3)[:, :2] for stroke in narrative.traces]
    else:
        path = sorted_path(narrative)
        points = [_points_between(path, word.start, word.end) for word in narrative.words]
    return [
        LocatedWord(text, found)
        for word, found in zip(narrative.words, points, strict=True)
        for text in word.text.split()
    ]


def check_narrative(narrative: Narrative, where: str) -> None:
    """Raise `DataError` for a time or coordinate that is not finite, or an utterance that ends before it starts."""
    for index, word in enumerate(narrative.words):
        if not (math.isfinite(word.start) and math.isfinite(word.end) and word.start <= word.end):
            raise DataError(
                "A word has no valid time.",
                where=f"{where}, word {index}",
                value=f"{word.text!r}: {word.start} to {word.end}",
                allowed="finite seconds, start <= end",
            )
    for index, stroke in enumerate(narrative.traces):
        bad = [point for point in stroke if not all(map(math.isfinite, point))]
        if bad:
            raise DataError("A point of a trace is not finite.", where=f"{where}, stroke {index}", value=bad[0])


def sorted_path(narrative: Narrative) -> np.ndarray:
    """Return all points (x, y, t), float64 [N, 3], in the order of time."""
    path = np.array([point for stroke in narrative.traces for point in stroke], np.float64).reshape(-1, 3)
    return path[np.argsort(path[:, 2], kind="stable")]


def _one_stroke_each(narrative: Narrative) -> bool:
    return len(narrative.traces) == len(narrative.words) and all(
        word.start <= t <= word.end
        for word, stroke in zip(narrative.words, narrative.traces, strict=True)
        for _, _, t in stroke
    )


def _points_between(path: np.ndarray, start: float, end: float) -> np.ndarray:
    times = path[:, 2]
    inside = (times == start) if start == end else (times >= start) & (times < end)
    middle = (start + end) / 2
    if inside.any() or not len(path) or not times[0] <= middle <= times[-1]:
        return path[inside, :2]
    return np.array([[np.interp(middle, times, path[:, axis]) for axis in (0, 1)]])


def normal_form(word: str) -> str:
    """Return a word in lower case without what is neither letter nor digit; "" for pure punctuation."""
    return "".join(character for character in word.casefold() if character.isalnum())


def align_words(truth: Sequence[str], predicted: Sequence[str]) -> list[tuple[int, int]]:
    """Return the pairs (index into truth, index into predicted) of a longest common subsequence, ascending.

    Equal texts are aligned word by word. Of several subsequences of one length the one whose words stand earliest is
    taken.
    """
    lengths = _suffix_lengths(truth, predicted)
    pairs, i, j = [], 0, 0
    while i < len(truth) and j < len(predicted):
        if truth[i] == predicted[j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif lengths[i + 1, j] >= lengths[i, j + 1]:
            i += 1
        else:
            j += 1
    return pairs


def _suffix_lengths(truth: Sequence[str], predicted: Sequence[str]) -> np.ndarray:
    """Return, int64 [T + 1, P + 1], the length of a longest common subsequence of the words from each place on."""
    lengths = np.zeros((len(truth) + 1, len(predicted) + 1), np.int64)
    words = np.array(predicted, object)
    for i in range(len(truth) - 1, -1, -1):
        row = np.maximum(lengths[i + 1, :-1], lengths[i + 1, 1:] + (words == truth[i]))
        lengths[i, :-1] = np.maximum.accumulate(row[::-1])[::-1]
    return lengths
