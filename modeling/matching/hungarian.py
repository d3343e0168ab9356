"""Bipartite matching of queries and targets (DETR, equation 1; costs of Mask2Former).

Shapes: Q queries, n targets of one image, P points, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ...utils.errors import NumericError


@dataclass(frozen=True, slots=True)
class MatchingCosts:
    """Coefficients of the three terms."""

    class_weight: float
    mask_weight: float
    dice_weight: float

    def __call__(self, class_logits: Tensor, mask_logits: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
        """Return the cost of giving each query each target.

        Args:
            class_logits: (Q, K + 1).
            mask_logits: (Q, P), sampled at points that all masks of the image share.
            labels: int64 (n,).
            masks: float (n, P), in [0, 1].

        Returns:
            float32 (Q, n).
        """
        with torch.autocast(mask_logits.device.type, enabled=False):
            x, y = mask_logits.float(), masks.float()
            class_cost = -class_logits.float().softmax(-1)[:, labels]
            mask_cost = (F.softplus(x).sum(-1, keepdim=True) - x @ y.t()) / x.shape[-1]
            return self.mask_weight * mask_cost + self.class_weight * class_cost + self.dice_weight * _dice(x, y)


def _dice(x: Tensor, y: Tensor) -> Tensor:
    p = x.sigmoid()
    return 1 - (2 * p @ y.t() + 1) / (p.sum(-1, keepdim=True) + y.sum(-1) + 1)


def assign(costs: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Solve one assignment per image.

    Args:
        costs: a (Q, n) matrix per image.

    Returns:
        Per image, the matched queries in ascending order and their targets, int64 (min(Q, n),) each.

    Raises:
        NumericError: a cost is not finite.
    """
    matches = []
    for cost in costs:
        matrix = cost.detach().cpu().numpy()
        try:
            pair = linear_sum_assignment(matrix)
        except ValueError as err:
            raise NumericError("The matching cost is not finite.", allowed="finite costs") from err
        matches.append(tuple(torch.from_numpy(index).to(cost.device) for index in pair))
    return matches


@torch.no_grad()
def best_overlap(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """Return for each target the query whose mask overlaps it most, int64 (n,).

    The published Pix2Cap gives captions to queries this way, apart from the assignment; several targets may share a
    query. A target that vanishes at the masks' size goes to the first query with an empty mask, as there.

    Args:
        mask_logits: (Q, h, w).
        masks: float (n, H, W).
    """
    if not len(masks):
        return torch.zeros(0, dtype=torch.long, device=masks.device)
    small = F.interpolate(masks[None], size=mask_logits.shape[-2:], mode="bilinear", align_corners=False)[0]
    wanted, found = (small > 0).flatten(1).float(), (mask_logits > 0).flatten(1).float()
    shared = wanted @ found.t()  # n Q
    union = wanted.sum(1, keepdim=True) + found.sum(1) - shared
    return (shared / union).nan_to_num(nan=2.0).argmax(1)
