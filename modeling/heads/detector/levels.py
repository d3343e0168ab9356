"""Where the cells of the pyramid are in the image.

Shapes: L cells of all levels, level by level and row by row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..masks import Size

NUM_LEVELS = 5  # p3 ... p7


@dataclass(frozen=True, slots=True)
class Levels:
    """The levels of one canvas.

    Attributes:
        sizes: cells (height, width) of each level.
        strides: pixels (down, across) from one cell to the next, per level.
        canvas: (height, width) of the padded images.
    """

    sizes: tuple[Size, ...]
    strides: tuple[tuple[float, float], ...]
    canvas: Size

    @property
    def counts(self) -> tuple[int, ...]:
        """Cells of each level, summing to L."""
        return tuple(h * w for h, w in self.sizes)

    def strides_xy(self, device: torch.device | str = "cpu") -> Tensor:
        """Return float32 (levels, 2), across and down."""
        return torch.tensor(self.strides, device=device).flip(-1)

    def of_cells(self, values: Tensor) -> Tensor:
        """Repeat one row per level for all its cells: (levels, ...) -> (L, ...)."""
        return torch.cat([row.expand(count, *row.shape) for row, count in zip(values, self.counts, strict=True)])

    def centres(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the middle of each cell, float32 (L, 2), x and y in pixels."""
        levels = []
        for (h, w), (down, across) in zip(self.sizes, self.strides, strict=True):
            y = (torch.arange(h, device=device) + 0.5) * down
            x = (torch.arange(w, device=device) + 0.5) * across
            levels.append(torch.stack((x.expand(h, w), y[:, None].expand(h, w)), -1).flatten(0, 1))
        return torch.cat(levels)


def pyramid_levels(grid: Size, canvas: Size, *, published_strides: bool) -> Levels:
    """Return the levels over a feature map.

    Args:
        grid: cells (height, width) of the feature map, at least two each way.
        canvas: (height, width) of the padded images, pixels.
        published_strides: 8, 16, ... 128 pixels, whatever the canvas, as in the published PixelLLM, whose second level
            (27 cells at 16 pixels for 384) is therefore 12 % out of place. Otherwise the second level's stride is
            canvas / grid, and each level's is twice that of the one before.
    """
    h, w = grid
    sizes = [(2 * h, 2 * w), (h, w), (h // 2, w // 2)]
    while len(sizes) < NUM_LEVELS:
        sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
    base = (16.0, 16.0) if published_strides else (canvas[0] / h, canvas[1] / w)
    strides = tuple((base[0] * 2**k, base[1] * 2**k) for k in range(-1, NUM_LEVELS - 1))
    return Levels(tuple(sizes), strides, canvas)
