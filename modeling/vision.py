"""What a system offers to be exported: the part that reads images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class VisionPart:
    """The part of a system that reads images, as a module of tensors alone.

    Attributes:
        module: images, uint8 (B, 3, height, width), RGB, each in the upper left corner, and their sizes, int64 (B, 2)
            -> name -> tensor.
        height, width: of its input, pixels.
        system: images, uint8 (3, H_i, W_i) each -> the same tensors, as the system itself computes them.
    """

    module: nn.Module
    height: int
    width: int
    system: Callable[[Sequence[Tensor]], dict[str, Tensor]]
