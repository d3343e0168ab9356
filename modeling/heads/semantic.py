"""Semantic inference, and a dense semantic head as an auxiliary training signal.

Shapes: Q queries, K classes, H x W the output size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...datasets.batches import RegionTargets
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


class SemanticHead(nn.Module):
    """Classify every position of the mask features; used in training only.

    Args:
        dim: width of the mask features.
        class_weights: K factors, so that small things can count for more than wide stuff.
    """

    def __init__(self, dim: int, class_weights: Sequence[float]) -> None:
        super().__init__()
        self.classify = nn.Conv2d(dim, len(class_weights), 1)
        self.register_buffer("class_weights", torch.tensor(class_weights, dtype=torch.float32), persistent=False)

    def loss(self, mask_features: Tensor, targets: list[RegionTargets]) -> Tensor:
        """Return the weighted sum of cross-entropies over positions that are not void; mask_features: (B, C, h, w)."""
        logits = self.classify(mask_features)
        height, width = logits.shape[-2:]
        classes = torch.stack([semantic_map(t, height, width) for t in targets])
        return F.cross_entropy(logits.float(), classes, self.class_weights, ignore_index=-1, reduction="sum")

    def count(self, targets: list[RegionTargets]) -> float:
        """Return the sum of weights of all positions that `loss` sees in a batch."""
        total = 0.0
        for target in targets:
            cells = _cells(target)
            for segment, weight in zip(target.segment_ids, self.class_weights[target.labels].tolist(), strict=True):
                total += weight * int((cells == segment).sum())
        return total


def semantic_map(targets: RegionTargets, height: int, width: int) -> Tensor:
    """Return the class at the middle of each cell, int64 (height, width), -1 = void or padding."""
    ids = _cells(targets)
    ids = F.pad(ids, (0, width - ids.shape[1], 0, height - ids.shape[0]))
    classes = torch.full_like(ids, -1, dtype=torch.long)
    for label, segment in zip(targets.labels, targets.segment_ids, strict=True):
        classes = torch.where(ids == segment, label, classes)
    return classes


def _cells(targets: RegionTargets, stride: int = 4) -> Tensor:
    """Return the id in the middle of each stride x stride cell."""
    return targets.id_map[stride // 2 :: stride, stride // 2 :: stride]
