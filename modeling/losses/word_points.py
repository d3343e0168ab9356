"""Loss of the locations of words, in pixels (PixelLLM, Xu et al., 2023).

Shapes: R texts, T tokens, K points per token.
"""

from __future__ import annotations

import torch
from torch import Tensor


def located(targets: Tensor, learns: Tensor) -> Tensor:
    """Select the tokens to learn from: those asked for that are somewhere; their number is what the sum counts.

    Args:
        targets: (R, T, K, 2) pixels; a token whose target is zero throughout is nowhere.
        learns: bool (R, T).

    Returns:
        bool (R, T).
    """
    return learns & (targets != 0).flatten(2).any(-1)


def word_points_l1(points: Tensor, targets: Tensor, learns: Tensor, *, squared: bool = False) -> Tensor:
    """Sum over located tokens of the mean absolute difference of their coordinates, in pixels.

    Args:
        points: predictions, (R, T, K, 2) pixels.
        targets: (R, T, K, 2) pixels.
        learns: bool (R, T), see `located`.
        squared: squared differences instead.

    Returns:
        Scalar, float32, to be divided by the number of located tokens, or 1.
    """
    learned = located(targets, learns)[..., None, None]
    difference = torch.where(learned, points.float() - targets.float(), 0.0)
    each = difference.square() if squared else difference.abs()
    return each.sum() / targets[0, 0].numel() if targets.numel() else each.sum()
