"""Caption loss: next words with smoothed targets (GRiT)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def smoothed_caption_loss(logits: Tensor, words: Tensor, *, smoothing: float = 0.1) -> Tensor:
    """Sum over words of KL(smoothed target || prediction).

    The target gives the word 1 - smoothing and every other word smoothing / (V - 1). The divergence is computed in
    closed form: a cross-entropy whose library smoothing is scaled to this target, plus the target's constant entropy.

    Args:
        logits: (N, V).
        words: int64 (N,).
        smoothing: epsilon.

    Returns:
        A scalar, computed in float32.
    """
    others = logits.shape[-1] - 1
    cross_entropy = F.cross_entropy(
        logits.float(), words, label_smoothing=smoothing * (others + 1) / others, reduction="sum"
    )
    entropy = (1 - smoothing) * math.log(1 - smoothing) + smoothing * math.log(smoothing / others)
    return cross_entropy + len(words) * entropy
