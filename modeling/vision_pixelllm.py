"""What of PixelLLM reads images, as a module of tensors alone, to be exported."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .pixelllm import PixelLLM
from .vision import VisionPart


class PixelLLMVision(nn.Module):
    """The image encoders.

    Args:
        model: the system, in evaluation mode, whose parts are used as they are.
    """

    def __init__(self, model: PixelLLM) -> None:
        super().__init__()
        self.encoder, self.canvas = model.encoder, model.canvas

    def forward(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """Read images.

        Args:
            images: uint8 (B, 3, H, W), RGB, each in the upper left corner of the canvas.
            sizes: int64 (B, 2), height and width of each.

        Returns:
            Every encoder's map, (B, C, h, w), and ``fused``, their concatenation.
        """
        encoders = self.encoder.encoders.items()
        maps = {name: part.encode(part.images.padded(images, sizes), self.canvas) for name, part in encoders}
        return self.encoder.fused(maps, self.canvas)


def vision_part(cfg: Any, model: PixelLLM) -> VisionPart:
    """Return what reads images of the canvas's size."""
    return VisionPart(PixelLLMVision(model).eval(), *model.canvas, model.encode)
