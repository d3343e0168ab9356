"""Bipartite matching of queries and targets (DETR, equation 1; costs of Mask2Former).

Shapes: Q queries, n targets of one image, P points, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
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
        terms = self.terms(class_logits, mask_logits, labels, masks)
        return terms["mask"] + terms["class"] + terms["dice"]

    def terms(self, class_logits: Tensor, mask_logits: Tensor, labels: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms of the cost, by name."""
        with torch.autocast(mask_logits.device.type, enabled=False):
            x, y = mask_logits.float(), masks.float()
            class_cost = -class_logits.float().softmax(-1)[:, labels]
            mask_cost = (F.softplus(x).sum(-1, keepdim=True) - x @ y.t()) / x.shape[-1]
            return {
                "mask": self.mask_weight * mask_cost,
                "class": self.class_weight * class_cost,
                "dice": self.dice_weight * _dice(x, y),
            }


def _dice(x: Tensor, y: Tensor) -> Tensor:
    p = x.sigmoid()
    return 1 - (2 * p @ y.t() + 1) / (p.sum(-1, keepdim=True) + y.sum(-1) + 1)


class Match(NamedTuple):
    """Who is matched with whom in one image; M pairs, M = min(Q, n).

    Attributes:
        queries: int64 (M,), ascending.
        segments: int64 (M,), the targets of these queries.
        on_host: ``segments`` in the host's memory, for what is picked there.
    """

    queries: Tensor
    segments: Tensor
    on_host: Tensor

    @classmethod
    def of_all(cls, queries: Tensor) -> Match:
        """Return a pair for every segment, in their order; queries: int64 (n,), in any order."""
        order = torch.arange(len(queries))
        return cls(queries, torch.arange(len(queries), device=queries.device), order)


def assign(costs: list[Tensor]) -> list[Match]:
    """Solve independent assignments; a GPU is waited for once, whatever their number.

    Args:
        costs: a (Q, n) matrix per image and prediction point, all on one device.

    Raises:
        NumericError: a cost is not finite.
    """
    flat = torch.cat([cost.detach().float().flatten() for cost in costs]).cpu().numpy()
    parts = np.split(flat, np.cumsum([cost.numel() for cost in costs])[:-1])
    try:
        pairs = [linear_sum_assignment(part.reshape(cost.shape)) for part, cost in zip(parts, costs, strict=True)]
    except ValueError as err:
        raise NumericError("The matching cost is not finite.", allowed="finite costs") from err
    on_host = torch.from_numpy(np.concatenate([np.stack(pair) for pair in pairs], 1))  # 2 M...
    on_device = on_host.to(costs[0].device, non_blocking=True)
    sizes = [len(queries) for queries, _ in pairs]
    return [
        Match(*device, host) for *device, host in zip(*(x.split(sizes) for x in (*on_device, on_host[1])), strict=True)
    ]


@torch.no_grad()
def best_overlap(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """Return for each target the query whose mask overlaps it most, int64 (n,).

    The published Pix2Cap gives captions to queries this way, apart from the assignment; several targets may share a
    query. A target that vanishes at the masks' size goes to the first query with an empty mask, as there.

    Args:
        mask_logits: (Q, h, w).
        masks: float (n, h, w) of zeros and ones.
    """
    wanted, found = masks.flatten(1), (mask_logits > 0).flatten(1).to(masks.dtype)
    shared = wanted @ found.t()  # n Q
    union = wanted.sum(1, keepdim=True) + found.sum(1) - shared
    return (shared / union).nan_to_num(nan=2.0).argmax(1)
