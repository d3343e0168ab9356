"""Sine position encodings (DETR, appendix)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_position_map(height: int, width: int, dim: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Return the encoding of a feature map, float32 (1, height * width, dim), row by row.

    The first half of the channels encodes y, the second x. A coordinate is its 1-based index divided by
    (size + 1e-6), times 2 pi; frequencies are 10000 ** (2 floor(i / 2) / (dim / 2)), sine on even channels, cosine on
    odd ones.
    """
    rows = torch.arange(1, height + 1, device=device, dtype=torch.float32) / (height + 1e-6)
    columns = torch.arange(1, width + 1, device=device, dtype=torch.float32) / (width + 1e-6)
    y = _encode(rows, dim // 2)[:, None].expand(height, width, -1)
    x = _encode(columns, dim // 2)[None].expand(height, width, -1)
    return torch.cat((y, x), -1).flatten(0, 1)[None]


def sine_encoding(coordinates: Tensor, dim: int) -> Tensor:
    """Encode coordinates in [0, 1], (..., K), as (..., K * dim)."""
    return _encode(coordinates.float(), dim).flatten(-2)


def _encode(coordinates: Tensor, dim: int) -> Tensor:
    """(...) in [0, 1] -> (..., dim)."""
    index = torch.arange(dim, device=coordinates.device, dtype=torch.float32)
    frequency = 10000 ** (2 * torch.div(index, 2, rounding_mode="floor") / dim)
    angle = coordinates[..., None] * 2 * math.pi / frequency
    return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), -1).flatten(-2)
