"""Which predicted mask stands for which target of a MUSE question: the cost of a pair and the cheapest assignment."""

from __future__ import annotations

import numpy as np

POINTS = 12544


def draw_points(seed: int = 0) -> np.ndarray:
    """Return float32 [12544, 2] points (x, y), uniform in the unit square."""
    return np.random.default_rng(seed).random((POINTS, 2), np.float32)


def assign(cost: np.ndarray) -> list[tuple[int, int]]:
    """Return the one-to-one pairs (prediction, target) of least total cost [P, G], as many as the fewer of both."""
    from scipy.optimize import linear_sum_assignment  # here, since scipy takes longer to import than all else

    rows, columns = linear_sum_assignment(cost)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def pair_cost(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return mean binary cross entropy + Dice loss of every pair, float64 [P, G].

    Dice = 1 - (2 sum(s y) + 1) / (sum(s) + sum(y) + 1) with s = sigmoid(logits), over the N places sampled.

    Args:
        logits: [P, N].
        targets: [G, N] in [0, 1].
    """
    logits, targets = logits.astype(np.float64), targets.astype(np.float64)
    decay = np.exp(-np.abs(logits))
    softplus = np.maximum(logits, 0) + np.log1p(decay)
    chance = np.where(logits >= 0, 1, decay) / (1 + decay)
    # softplus(-x) y + softplus(x) (1 - y) = softplus(x) - x y
    entropy = softplus.sum(1)[:, None] - logits @ targets.T
    dice = 1 - (2 * chance @ targets.T + 1) / (chance.sum(1)[:, None] + targets.sum(1)[None] + 1)
    return entropy / logits.shape[1] + dice


def sample(masks: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Sample masks [K, H, W] at points (x, y) in the unit square, bilinear between pixel centres, 0 outside: [K, N]."""
    from scipy.ndimage import map_coordinates

    height, width = masks.shape[1:]
    places = np.stack([points[:, 1] * height - 0.5, points[:, 0] * width - 0.5])
    sampled = [map_coordinates(mask, places, order=1, mode="grid-constant", prefilter=False) for mask in masks]
    return np.array(sampled).reshape(len(masks), len(points))
