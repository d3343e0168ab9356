"""One-to-one assignment of ranked predictions to what they should find."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

NOTHING = -1


def take_best_free(
    near: Iterable[tuple[int, int, float]], rank: Sequence[int], thresholds: Sequence[float]
) -> np.ndarray:
    """Let each prediction, best first, take the free truth of highest IoU that reaches the threshold.

    Args:
        near: (truth, prediction, IoU) of every pair that may match at some threshold; of equal IoU the first truth goes
            first.
        rank: the P predictions, best first.
        thresholds: each is an assignment of its own.

    Returns:
        int64 [thresholds, P], the truth that each prediction took, or `NOTHING`.
    """
    choices: dict[int, list[tuple[float, int]]] = {}
    for truth, prediction, iou in near:
        choices.setdefault(prediction, []).append((-iou, truth))
    ranked = [(p, sorted(choices[p])) for p in rank if p in choices]
    taken = np.full((len(thresholds), len(rank)), NOTHING, np.int64)
    for level, threshold in enumerate(thresholds):
        used: set[int] = set()
        for p, options in ranked:
            choice = next((t for iou, t in options if -iou >= threshold and t not in used), None)
            if choice is not None:
                used.add(choice)
                taken[level, p] = choice
    return taken
