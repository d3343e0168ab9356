"""An image put on a square canvas: flip, resize to a longest side, crop, zero padding; points and masks go along.

What PixelLLM's data pipeline does (arXiv 2312.09237): bilinear without antialiasing, half-pixel centres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Canvas:
    """One drawn augmentation.

    Attributes:
        original: (height, width) of the image.
        flipped: mirrored left to right, first of all.
        resized: (height, width) after resizing.
        offset: (y, x) of the crop in the resized image.
        side: of the square that results; what the crop leaves empty, at the right and bottom, is zero.
    """

    original: tuple[int, int]
    flipped: bool
    resized: tuple[int, int]
    offset: tuple[int, int]
    side: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the valid pixels."""
        return min(self.resized[0], self.side), min(self.resized[1], self.side)

    def apply_image(self, image: np.ndarray) -> Tensor:
        """Transform uint8 (height, width, 3) to uint8 (3, side, side).

        Resized in fixed point, which is many times faster than in float32 and differs from it by at most 1.
        """
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        if self.resized != self.original:
            pixels = functional.interpolate(pixels[None], self.resized, mode="bilinear", align_corners=False)[0]
        return self._place(pixels)

    def apply_masks(self, masks: np.ndarray) -> np.ndarray:
        """Transform bool (n, height, width) to packed uint8 (n, side, ceil(side / 8)), by nearest pixels."""
        pixels = torch.from_numpy(np.ascontiguousarray(masks)).to(torch.uint8)
        if self.resized != self.original:
            pixels = functional.interpolate(pixels[None], self.resized, mode="nearest-exact")[0]
        return np.packbits(self._place(pixels).numpy(), axis=-1)

    def _place(self, pixels: Tensor) -> Tensor:
        (y, x), (height, width) = self.offset, self.size
        if self.flipped:  # after resizing, which is symmetric
            pixels = pixels.flip(-1)
        placed = pixels.new_zeros(len(pixels), self.side, self.side)
        placed[:, :height, :width] = pixels[:, y : y + height, x : x + width]
        return placed

    def move_points(self, points: np.ndarray) -> np.ndarray:
        """Move (..., 2) points (x, y) to where they are on the canvas, which may be outside of it."""
        points = np.asarray(points, float)
        if self.flipped:
            points = np.stack([self.original[1] - points[..., 0], points[..., 1]], -1)
        scale = np.divide(self.resized[::-1], self.original[::-1])
        return points * scale - self.offset[::-1]

    def move_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Move (n, 4) boxes (x0, y0, x1, y1), unclipped."""
        corners = self.move_points(np.asarray(boxes, float).reshape(-1, 2, 2))
        return np.concatenate([corners.min(1), corners.max(1)], -1)

    def clip(self, values: np.ndarray) -> np.ndarray:
        """Clip points (..., 2) or boxes (..., 4) to the valid pixels."""
        height, width = self.size
        return np.clip(values, 0, np.resize((width, height), np.shape(values)[-1]))

    def undo_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Move (n, 4) boxes on the canvas back to the original image, clipped to it."""
        corners = np.asarray(boxes, float).reshape(-1, 2, 2) + self.offset[::-1]
        corners = corners * np.divide(self.original[::-1], self.resized[::-1])
        if self.flipped:
            corners = np.stack([self.original[1] - corners[..., 0], corners[..., 1]], -1)
        corners = corners.clip(0, self.original[::-1])
        return np.concatenate([corners.min(1), corners.max(1)], -1)


def draw_canvas(
    generator: np.random.Generator,
    height: int,
    width: int,
    *,
    side: int,
    min_scale: float,
    max_scale: float,
    flip: float,
    published: bool = False,
) -> Canvas:
    """Draw flip (with probability ``flip``), scale and crop position, in this order."""
    flipped = bool(generator.random() < flip)
    longest = max(int(side * generator.uniform(min_scale, max_scale)), 1)
    resized = longest_side_size(height, width, longest, published=published)
    offset = tuple(int(generator.integers(max(length - side, 0) + 1)) for length in resized)
    return Canvas((height, width), flipped, resized, offset, side)


def fit_canvas(height: int, width: int, *, side: int, published: bool = False) -> Canvas:
    """Return the canvas of evaluation: the longest side becomes ``side``, nothing is cropped or flipped."""
    return Canvas((height, width), False, longest_side_size(height, width, side, published=published), (0, 0), side)


def longest_side_size(height: int, width: int, longest: int, *, published: bool = False) -> tuple[int, int]:
    """Return (height, width) scaled so that the longer side is ``longest``.

    Args:
        height, width: of the image.
        longest: pixels.
        published: cut the shorter side to whole pixels and compute the longer one from it, cut again, as PixelLLM did:
            it loses up to 2 pixels.
    """
    short, long = sorted((height, width))
    if published:
        ratio = np.float32(long) / np.float32(short)
        shorter = max(int(longest * short / long), 1)
        longer = longest if long == short else max(int(np.float32(shorter) * ratio), 1)
        if shorter == short:
            longer = long
    else:
        shorter, longer = max(round(longest * short / long), 1), longest
    return (shorter, longer) if height <= width else (longer, shorter)
