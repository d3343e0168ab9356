"""The masks of an image's segments, which cannot overlap, read from their one map: no mask is made at full size.

What bilinear sampling and resizing of the masks would give follows from the ids at the four pixels around a place.
Shapes: n segments of an image, P points, H x W the canvas, h x w a smaller one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]


@dataclass(frozen=True)
class SegmentMap:
    """One image's segments.

    Attributes:
        ids: int32 (H' <= H, W' <= W), the upper left part of the canvas; no segment is outside it.
        segments: int64 (n,), the ids of the segments.
        canvas: (H, W) of the padded batch.
    """

    ids: Tensor
    segments: Tensor
    canvas: Size

    def __len__(self) -> int:
        return len(self.segments)

    def at_shared(self, points: Tensor) -> Tensor:
        """Sample all masks at the same points, (P, 2) -> float32 (n, P); see `sample_points`."""
        wanted = self.segments.to(self.ids.dtype)[:, None]  # one type: compared faster
        parts = [(ids == wanted) * weight for ids, weight in self._corners(points)]
        return sum(parts[1:], parts[0])

    def at_own(self, segments: Tensor, points: Tensor) -> Tensor:
        """Sample some masks, int64 (M,) their rows, each at points of its own: (M, P, 2) -> float32 (M, P)."""
        wanted = self.segments[segments].to(self.ids.dtype)[:, None]
        parts = [(ids == wanted) * weight for ids, weight in self._corners(points)]
        return sum(parts[1:], parts[0])

    def shrunk(self, height: int, width: int) -> Tensor:
        """Return the masks at a smaller size, wherever bilinear interpolation is above zero: float32 (n, h, w)."""
        rows, columns = (
            _sources(size, full, self.ids.device) for size, full in zip((height, width), self.canvas, strict=True)
        )
        found = self.ids.new_zeros(len(self), height, width, dtype=torch.bool)
        for y, sees_y in rows:
            for x, sees_x in columns:
                ids, inside = self._look_up(y[:, None], x)
                found |= (ids == self.segments[:, None, None]) & (inside & sees_y[:, None] & sees_x)
        return found.float()

    def _corners(self, points: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ids and weights at the four pixels around points (..., 2), as `grid_sample` counts them: (...)."""
        x, y = points.unbind(-1)
        sides = ((x, self.canvas[1]), (y, self.canvas[0]))
        x, y = ((((2 * v - 1) + 1) * (side / 2) - 0.5).clamp(-1, side) for v, side in sides)
        x0, y0 = x.floor(), y.floor()
        right, below = x - x0, y - y0
        stride = self.canvas[1] + 3
        first = (y0.long() + 1) * stride + (x0.long() + 1)
        for dy, weight_y in ((0, 1 - below), (1, below)):
            for dx, weight_x in ((0, 1 - right), (1, right)):
                yield self._framed.take(first + (dy * stride + dx)), weight_y * weight_x

    @cached_property
    def _framed(self) -> Tensor:
        """The canvas with one more row and column before and two behind, where no segment is: (H + 3, W + 3)."""
        below, right = (full - size for full, size in zip(self.canvas, self.ids.shape, strict=True))
        return F.pad(self.ids, (1, right + 2, 1, below + 2), value=torch.iinfo(self.ids.dtype).min)

    def _look_up(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ids at pixels and whether these are in the map."""
        height, width = self.ids.shape
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        return self.ids[y.clamp(0, height - 1), x.clamp(0, width - 1)], inside


def _sources(size: int, full: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Return along one axis the two pixels that each of ``size`` is made of, and whether they weigh anything."""
    at = ((torch.arange(size, device=device) + 0.5) * (full / size) - 0.5).clamp(min=0)
    first = at.long()
    return [(first, first >= 0), ((first + 1).clamp(max=full - 1), at > first)]
