"""Maps and tables at another size, as `jax.image.resize` does it: half-pixel centres, antialiased when shrinking."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Mode = Literal["bicubic", "bilinear"]  # cubic with a = -0.5


def resize_map(x: Tensor, size: tuple[int, int], *, mode: Mode = "bicubic") -> Tensor:
    """(B, C, h, w) -> (B, C, *size), computed in float32 at least; weights are renormalised at the borders."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    channels, dtype = x.shape[1], x.dtype
    x = x.float() if dtype.itemsize < 4 else x
    if size[1] == 1:  # torch's CPU kernel is wrong by O(1) there, but for channels last (seen with torch 2.13 and 2.15)
        x = x.expand(-1, max(channels, 2), -1, -1) if channels == 1 else x
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast(x.device.type, enabled=False):
        x = F.interpolate(x, size=size, mode=mode, align_corners=False, antialias=True)
    return x[:, :channels].to(dtype)


def resize_grid(grid: Tensor, size: tuple[int, int], *, mode: Mode = "bicubic") -> Tensor:
    """A table of places, channels last: (1, h, w, C) -> (1, *size, C)."""
    return resize_map(grid.permute(0, 3, 1, 2), size, mode=mode).permute(0, 2, 3, 1)


def resize_rows(table: Tensor, length: int) -> Tensor:
    """A table of distances, linearly: (L, C) -> (length, C)."""
    return resize_map(table[None, None], (length, table.shape[1]), mode="bilinear")[0, 0]
