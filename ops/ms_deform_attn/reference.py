"""Multi-scale deformable attention in plain PyTorch: the oracle, and the path that always works.

Shapes: B batch, S value tokens of all levels, N queries, H heads, D width per head, L levels, K points.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Sum bilinear samples of the value maps, weighted per query, head, level and point.

    Args:
        value: (B, S, H, D), the levels' tokens one after the other, row by row.
        shapes: (height, width) of each of the L levels; S is the sum of their products.
        locations: (B, N, H, L, K, 2), (x, y) in units of the map: 0 is its left or upper edge, 1 the other one.
        weights: (B, N, H, L, K).

    Returns:
        (B, N, H * D). Samples outside a map count as zero.
    """
    batch, _, heads, dim = value.shape
    queries = locations.shape[1]
    grids = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # L BH N K 2
    level_weights = weights.permute(3, 0, 2, 1, 4).flatten(1, 2)  # L BH N K
    total = value.new_zeros(batch * heads, dim, queries)
    tokens = value.split([height * width for height, width in shapes], 1)
    for (height, width), level, grid, weight in zip(shapes, tokens, grids, level_weights, strict=True):
        maps = level.permute(0, 2, 3, 1).reshape(batch * heads, dim, height, width)
        samples = F.grid_sample(maps, grid.to(maps.dtype), align_corners=False)  # BH D N K
        total = total + torch.einsum("cdnk,cnk->cdn", samples, weight.to(maps.dtype))
    return total.view(batch, heads * dim, queries).transpose(1, 2)


def sampling_locations(offsets: Tensor, reference: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """Turn offsets into locations.

    Args:
        offsets: (B, N, H, L, K, 2), pixels of the level; with boxes, units of half a box / K.
        reference: (B or 1, N, L or 1, 2), (x, y), or (..., 4), (centre x, centre y, width, height), in units of the
            map.
        shapes: (height, width) of each level.

    Returns:
        (B, N, H, L, K, 2), in units of the map.
    """
    centre = reference[:, :, None, :, None, :2]
    if reference.shape[-1] == 4:
        return centre + offsets * (reference[:, :, None, :, None, 2:] * (0.5 / offsets.shape[4]))
    sizes = offsets.new_tensor([(width, height) for height, width in shapes])
    return centre + offsets / sizes[:, None]
