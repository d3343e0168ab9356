"""A captioning protocol beside straightforward loops that ask METEOR for one pair at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ...datasets.records import Record
from .jar import LockStepMeteor
from .measuring import Way, measure_in_turn
from .report import Report, same_figures

GOAL = 10.0
TOLERANCE = 1e-9  # sums in another order
Pairs = Sequence[tuple[Record, Record]]
Scorer = Callable[[str, Sequence[str]], float]
Loops = Callable[[Pairs, Scorer, LockStepMeteor], dict[str, float]]


def compare_with_loops(
    command: str,
    draw: Callable[[int], Pairs],
    protocol: Callable[[Pairs], dict[str, float]],
    loops: Loops,
    *,
    images: int,
    sample: int,
    repeats: int,
) -> Report:
    """Measure a protocol and its loops, which ask METEOR per pair and threshold, or at least once per pair.

    Args:
        command: of the report.
        draw: turn -> (truth, prediction) of every image.
        protocol: (truth, prediction) pairs -> figures.
        loops: the same from pairs, a scorer of one pair, and its process.
        images: how many are drawn.
        sample: how many of them the slow ways do at most; their times are multiplied.
        repeats: timed turns.
    """
    lock_step, share, calls = LockStepMeteor(), min(sample, images) / images, {}

    def slow(name: str, remember: bool) -> Way:
        def run(pairs: Pairs) -> dict[str, float]:
            before, scorer = lock_step.calls, remembered(lock_step.score) if remember else lock_step.score
            figures = loops(pairs[:sample], scorer, lock_step)
            calls[f"calls of {name}"] = lock_step.calls - before
            return figures

        return Way(name, run, share)

    ways = [slow("one METEOR call per pair and threshold", False), slow("one METEOR call per pair", True)]
    ways += [Way("ours", lambda pairs: protocol(pairs[:sample]), share)]
    ways += [Way("ours, all images", protocol)] if share < 1 else []
    try:
        found, figures = measure_in_turn(ways, draw, repeats=repeats)
    finally:
        lock_step.close()
    facts: dict[str, Any] = {"same figures": same_figures([turn[:3] for turn in figures], TOLERANCE)}
    facts |= {"figures": figures[-1][2], "images of all ways but the last": min(sample, images)} | calls
    return Report(command, images, "images", found[2:], found[:2], facts, GOAL)


def remembered(score: Scorer) -> Scorer:
    """Return a scorer that asks only once for each pair."""
    known: dict[tuple[str, ...], float] = {}

    def look_up(candidate: str, references: Sequence[str]) -> float:
        key = (candidate, *references)
        if key not in known:
            known[key] = score(candidate, references)
        return known[key]

    return look_up


def loop_average_precision(hits: Iterable[bool], positives: int) -> float:
    """Return the mean over 101 recalls of the highest precision at that recall or more; the best record comes first."""
    found, points = 0, []
    for rank, hit in enumerate(hits, 1):
        found += hit
        points.append((found / positives, found / rank))
    recall, precision = np.array(points).T
    return float(np.mean([precision[recall >= t].max(initial=0.0) for t in np.arange(0, 1.01, 0.01)]))
