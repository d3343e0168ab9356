"""Regions read off soft masks: their mean feature, their centre and extent.

Shapes: B batch, Q masks, C channels, H x W the map.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mask_pool(mask_logits: Tensor, features: Tensor) -> Tensor:
    """Average features under masks: (B, Q, H, W), (B, C, H, W) -> (B, Q, C)."""
    weights = _inside(mask_logits).flatten(2)
    weights = weights / weights.sum(-1, keepdim=True)
    return weights.to(features.dtype) @ features.flatten(2).transpose(1, 2)


def mask_geometry(mask_logits: Tensor) -> Tensor:
    """Return (x, y, width, height) of masks in units of the map, float32 (B, Q, 4) or (Q, 4).

    The centre is the mass centre, the extent that of a box with the mask's variance, both in [0, 1].
    """
    weights = _inside(mask_logits)
    height, width = weights.shape[-2:]
    mass = weights.sum((-2, -1))
    x, x_extent = _moments(weights.sum(-2), mass, width)
    y, y_extent = _moments(weights.sum(-1), mass, height)
    return torch.stack((x, y, x_extent, y_extent), -1)


def _inside(mask_logits: Tensor) -> Tensor:
    """Return probabilities, zero outside the mask: many faint positions would outweigh a small one.

    An empty mask keeps its probabilities everywhere.
    """
    logits = mask_logits.float()
    inside = logits > 0
    inside = inside | ~inside.flatten(-2).any(-1)[..., None, None]
    return logits.sigmoid() * inside + 1e-8


def _moments(profile: Tensor, mass: Tensor, size: int) -> tuple[Tensor, Tensor]:
    at = (torch.arange(size, device=profile.device, dtype=torch.float32) + 0.5) / size
    mean = (profile @ at) / mass
    variance = (profile @ at.square()) / mass - mean.square()
    return mean, (12 * variance + size**-2).clamp(min=1e-8).sqrt().clamp(max=1)
