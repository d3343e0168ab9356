"""Convolution followed by an optional norm and an optional activation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def group_norm(channels: int) -> nn.GroupNorm:
    """Return GroupNorm with the 32 groups of the published models, fewer only where 32 does not divide the width."""
    groups = 32 if channels % 32 == 0 else max(g for g in range(1, 32) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


class ConvNorm(nn.Conv2d):
    """Convolution, group norm, optional ReLU; Kaiming-uniform start (a = 1). Without norm it has a bias instead."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, relu: bool = False, norm: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=not norm)
        self.norm = group_norm(out_channels) if norm else nn.Identity()
        self.relu = relu
        nn.init.kaiming_uniform_(self.weight, a=1)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W)."""
        x = self.norm(super().forward(x))
        return F.relu(x) if self.relu else x
