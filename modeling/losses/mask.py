"""Mask losses at points, summed over masks (Mask2Former, equation 3).

Shapes: N masks, P points.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def mask_bce(logits: Tensor, masks: Tensor) -> Tensor:
    """Sum over masks of the mean binary cross-entropy; logits, masks: (N, P)."""
    return F.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean(1).sum()


def mask_dice(logits: Tensor, masks: Tensor) -> Tensor:
    """Sum over masks of 1 - (2 |p y| + 1) / (|p| + |y| + 1); logits, masks: (N, P)."""
    p = logits.sigmoid()
    return (1 - (2 * (p * masks).sum(1) + 1) / (p.sum(1) + masks.sum(1) + 1)).sum()
