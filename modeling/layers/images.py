"""Images of different sizes as one padded batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ImageBatch(nn.Module):
    """Normalise, then pad right and below with zeros (the data set's mean colour).

    Args:
        mean, std: per channel, RGB, 0-255.
        divisor: the padded size is the batch's largest, rounded up to a multiple of this.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], divisor: int) -> None:
        super().__init__()
        self.divisor = divisor
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def padded_size(self, images: Sequence[Tensor]) -> tuple[int, int]:
        """Return the height and width that hold all images, (3, H_i, W_i) each."""
        height, width = (max(image.shape[axis] for image in images) for axis in (-2, -1))
        return -(-height // self.divisor) * self.divisor, -(-width // self.divisor) * self.divisor

    def by_size(self, images: Sequence[Tensor]) -> list[list[int]]:
        """Return the indices of images that are padded to the same size when alone, a list per size."""
        groups: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(self.padded_size([image]), []).append(index)
        return list(groups.values())

    def forward(self, images: Sequence[Tensor], *, canvas: tuple[int, int] | None = None) -> Tensor:
        """uint8 or float (3, H_i, W_i) each -> float32 (B, 3, H, W); ``canvas`` is H, W whatever the images.

        Raises:
            ValueError: an image is larger than the canvas.
        """
        height, width = canvas or self.padded_size(images)
        largest = tuple(max(image.shape[axis] for image in images) for axis in (-2, -1))
        if largest[0] > height or largest[1] > width:
            raise ValueError(f"images of up to {largest} (height, width) do not fit the canvas {(height, width)}")
        return torch.stack(
            [
                F.pad((image.float() - self.mean) / self.std, (0, width - image.shape[-1], 0, height - image.shape[-2]))
                for image in images
            ]
        )

    def padded(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Do what `forward` does to images that share a tensor already, (B, 3, H, W), whatever fills the rest of it.

        Args:
            images: uint8 or float, each in the upper left corner.
            sizes: int64 (B, 2), height and width of each.
        """
        rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
        inside = (rows[:, None] < sizes[:, 0, None, None]) & (columns < sizes[:, 1, None, None])  # B H W
        return (images.float() - self.mean) / self.std * inside[:, None]
