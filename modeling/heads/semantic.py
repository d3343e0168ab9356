"""Semantic inference.

Shapes: Q queries, K classes, H x W the output size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .masks import QueryMasks


def semantic_scores(class_logits: Tensor, masks: QueryMasks, chunk: int = 32) -> Tensor:
    """Return the sum over queries of class probability times mask probability, float32 (K, H, W).

    Args:
        class_logits: (Q, K + 1), the last column "no object", which is left out.
        masks: of the Q queries.
        chunk: masks held at the output size at once.
    """
    probabilities = class_logits.float().softmax(-1)[:, :-1]
    total: Tensor | float = 0.0
    for rows in torch.arange(len(probabilities), device=probabilities.device).split(chunk):
        inside = masks[rows].sigmoid()
        total = total + (probabilities[rows].t() @ inside.flatten(1)).float().unflatten(1, inside.shape[1:])
    return total
