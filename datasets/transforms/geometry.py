"""Resizing, cropping and flipping of an image together with its id map.

Large-scale jitter (Ghiasi et al., "Simple Copy-Paste", 2021) as Mask2Former and Pix2Cap use it: flip, resize by a
random scale, crop or pad to a square.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ...utils.id_maps import PADDING_ID

PADDING_VALUE = 128  # of images, each channel
FLIPS = ("none", "horizontal", "vertical")


@dataclass(frozen=True, slots=True)
class Jitter:
    """One drawn augmentation: flip, resize, crop, pad.

    Attributes:
        flip: "none", "horizontal" or "vertical".
        resized: (height, width) after resizing.
        offset: (y, x) of the crop in the resized image.
        size: side of the square that results.
    """

    flip: str
    resized: tuple[int, int]
    offset: tuple[int, int]
    size: int

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """Transform uint8 (height, width, 3) to (size, size, 3): bilinear, padded with 128 at the right and bottom."""
        return self._apply(image, Image.Resampling.BILINEAR, PADDING_VALUE)

    def apply_id_map(self, ids: np.ndarray) -> np.ndarray:
        """Transform int32 (height, width) to (size, size): nearest, padded with `PADDING_ID`."""
        return self._apply(ids, Image.Resampling.NEAREST, PADDING_ID)

    def _apply(self, pixels: np.ndarray, resampling: Image.Resampling, padding: int) -> np.ndarray:
        if self.flip != "none":
            pixels = pixels[:, ::-1] if self.flip == "horizontal" else pixels[::-1]
        pixels = resize(pixels, self.resized, resampling)
        y, x = self.offset
        crop = pixels[y : y + self.size, x : x + self.size]
        if crop.shape[:2] == (self.size, self.size):
            return np.ascontiguousarray(crop)
        padded = np.full((self.size, self.size, *pixels.shape[2:]), padding, pixels.dtype)
        padded[: crop.shape[0], : crop.shape[1]] = crop
        return padded


def draw_jitter(
    generator: np.random.Generator,
    height: int,
    width: int,
    *,
    size: int,
    min_scale: float,
    max_scale: float,
    flip: str = "horizontal",
) -> Jitter:
    """Draw flip (probability 1/2), scale and crop position, in this order, for a (height, width) image."""
    flipped = generator.random() < 0.5
    scale = generator.uniform(min_scale, max_scale)
    position = generator.random()
    return jitter(height, width, size=size, flip=flip if flipped else "none", scale=scale, position=position)


def jitter(height: int, width: int, *, size: int, flip: str, scale: float, position: float) -> Jitter:
    """Return the augmentation of given draws.

    The image is scaled to fit a square of ``size * scale``; ``position`` in [0, 1) moves the crop along *both* axes.
    Sides and offsets are rounded half to even.
    """
    ratio = min(size * scale / height, size * scale / width)
    resized = np.maximum(np.round(np.multiply((height, width), ratio)), 1).astype(int)
    offset = np.round(np.maximum(resized - size, 0) * position).astype(int)
    return Jitter(flip, tuple(resized.tolist()), tuple(offset.tolist()), size)


def shortest_side_size(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """Return (height, width) scaled so that the shorter side is ``shortest`` unless the longer exceeds ``longest``."""
    scale = shortest / min(height, width)
    sides = (shortest, scale * width) if height < width else (scale * height, shortest)
    if max(sides) > longest:
        shrink = longest / max(sides)
        sides = (sides[0] * shrink, sides[1] * shrink)
    return max(int(sides[0] + 0.5), 1), max(int(sides[1] + 0.5), 1)


def resize(
    pixels: np.ndarray, size: tuple[int, int], resampling: Image.Resampling = Image.Resampling.BILINEAR
) -> np.ndarray:
    """Resize uint8 (height, width, 3) or int32 (height, width) to ``size`` = (height, width) as Pillow does."""
    if pixels.shape[:2] == size:
        return pixels
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size[::-1], resampling))
