"""Regions read off soft masks: their mean feature, their centre and extent.

Shapes: B batch, Q masks, C channels, H x W the map.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mask_pool(mask_logits: Tensor, features: Tensor) -> Tensor:
    """Average features under soft masks: (B, Q, H, W), (B, C, H, W) -> (B, Q, C)."""
    weights = mask_logits.flatten(2).sigmoid()
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-6)
    return weights @ features.flatten(2).transpose(1, 2)


def mask_geometry(mask_logits: Tensor) -> Tensor:
    """Return (x, y, width, height) of soft masks in units of the map, (B, Q, 4).

    The centre is the mass centre, the extent four standard deviations per axis (a box's exact extent is 3.46 of its
    own), both in [0, 1].
    """
    weights = mask_logits.float().sigmoid()
    height, width = weights.shape[-2:]
    mass = weights.sum((-2, -1)) + 1e-6
    x, x_extent = _moments(weights.sum(-2), mass, width)
    y, y_extent = _moments(weights.sum(-1), mass, height)
    return torch.stack((x, y, x_extent, y_extent), -1)


def _moments(profile: Tensor, mass: Tensor, size: int) -> tuple[Tensor, Tensor]:
    at = (torch.arange(size, device=profile.device, dtype=torch.float32) + 0.5) / size
    mean = (profile @ at) / mass
    variance = (profile @ at.square()) / mass - mean.square()
    return mean, (4 * variance.clamp(min=1e-8).sqrt()).clamp(max=1)
