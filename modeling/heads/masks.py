"""Masks from queries, at the size the user sees.

Shapes: k masks, C mask width, h x w the mask features, H x W the output size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Frame:
    """Sizes, (height, width), of one image: padded in its batch, before padding, and wanted in the output."""

    padded: Size
    image: Size
    output: Size


def resize_masks(logits: Tensor, frame: Frame) -> Tensor:
    """Bring mask logits (k, h, w) to the padded size, cut the padding off, and resize to the output size.

    Both steps are bicubic with antialiasing, on logits, as published.
    """
    if not len(logits):
        return logits.new_zeros(0, *frame.output)
    height, width = frame.image
    logits = _bicubic(logits[None].float(), frame.padded)[..., :height, :width]
    return (logits if frame.image == frame.output else _bicubic(logits, frame.output))[0]


def _bicubic(x: Tensor, size: Size) -> Tensor:
    return F.interpolate(x, size=size, mode="bicubic", align_corners=False, antialias=True)


@dataclass(slots=True)
class QueryMasks:
    """The masks of one image's queries, made for those asked for only.

    Attributes:
        embed: (Q, C).
        features: (C, h, w).
        frame: sizes of the image.
    """

    embed: Tensor
    features: Tensor
    frame: Frame

    def __getitem__(self, queries: Tensor | slice) -> Tensor:
        """Return mask logits of some queries at the output size, float32 (k, H, W)."""
        return resize_masks(torch.einsum("qc,chw->qhw", self.embed[queries], self.features), self.frame)
