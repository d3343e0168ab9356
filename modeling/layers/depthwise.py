"""Depthwise convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DepthwiseConv2d(nn.Conv2d):
    """One filter per channel, "same" padding.

    On the CPU it runs in float32 and channels last, whatever autocast says: there the other kernels are three to five
    times slower.

    Args:
        dim: channels.
        kernel_size: odd.
        bias: add a learned constant per channel.
    """

    def __init__(self, dim: int, kernel_size: int, *, bias: bool = False) -> None:
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if x.device.type != "cpu":
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            x = x.to(self.weight.dtype).contiguous(memory_format=torch.channels_last)
            return super().forward(x)
