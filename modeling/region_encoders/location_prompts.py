"""Where the user points, as vectors: SAM's prompt encoder (Kirillov et al., 2023) for points, boxes and traces.

A prompt is a row of labelled points: clicks, the steps of a trace, or the two corners of a box. Coordinates are pixels
of the padded canvas with (0, 0) at the corner of the first pixel; half a pixel is added to all of them, as in SAM.

Shapes: R prompts, P points per prompt (padded), D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

PADDING, BACKGROUND, POINT, TOP_LEFT, BOTTOM_RIGHT = -1, 0, 1, 2, 3  # labels of points


@dataclass(frozen=True)
class PromptTokens:
    """Prompts as vectors.

    Attributes:
        tokens: (R, P', D).
        valid: bool (R, P'); False is padding, which nothing may read.
    """

    tokens: Tensor
    valid: Tensor


class LocationPrompts(nn.Module):
    """Random Fourier features of a point plus a vector per kind of point.

    Args:
        dim: width D, even.
        scale: standard deviation of the random frequencies.
    """

    def __init__(self, *, dim: int, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", scale * torch.randn(2, dim // 2))
        self.point_embed = nn.ModuleList(nn.Embedding(1, dim) for _ in range(4))
        self.not_a_point = nn.Embedding(1, dim)
        self.no_mask = nn.Embedding(1, dim)

    def forward(self, points: Tensor, labels: Tensor, *, canvas: tuple[int, int]) -> PromptTokens:
        """Encode labelled points.

        Args:
            points: float (R, P, 2), x and y in pixels; anything where the label is -1.
            labels: integer (R, P): 1 a point, 0 a point outside the region, 2 and 3 the upper left and lower right
                corner of a box, -1 padding.
            canvas: height and width that the coordinates refer to, pixels.

        Returns:
            P' = P + 1: prompts without a box end with a "not a point" vector, as in SAM. Padding is marked, so a
            prompt's encoding does not depend on the other prompts of its batch.
        """
        labels = torch.cat((labels, labels.new_full((len(labels), 1), PADDING)), 1)
        points = torch.cat((points, points.new_zeros(len(points), 1, 2)), 1)
        known = labels != PADDING
        has_box = (labels >= TOP_LEFT).any(1, keepdim=True)
        first_padding = ~known & (known.int().cumprod(1).sum(1, keepdim=True) == _places(labels))
        return PromptTokens(self._embed(points, labels, canvas), known | (first_padding & ~has_box))

    def published(self, boxes_xyxy: Tensor, *, canvas: tuple[int, int]) -> PromptTokens:
        """Encode boxes as the published PixelLLM does.

        Args:
            boxes_xyxy: (R, 4), pixels.
            canvas: height and width that the coordinates refer to, pixels.

        Returns:
            Five vectors, all read: both corners and three times "no mask"; of a box without a positive coordinate
            (padding there) its four corners as points and "not a point".
        """
        corners, labels = box_prompt(boxes_xyxy)
        box = torch.cat((self._embed(corners, labels, canvas), self.no_mask.weight.expand(len(boxes_xyxy), 3, -1)), 1)
        (left, top), (right, bottom) = (corner.unbind(1) for corner in corners.unbind(1))
        four = torch.stack((left, top, right, top, left, bottom, right, bottom, left, top), 1).unflatten(1, (5, 2))
        kinds = torch.full_like(four[..., 0], POINT, dtype=torch.long)
        kinds[:, 4] = PADDING
        tokens = torch.where((boxes_xyxy.amax(1) > 0)[:, None, None], box, self._embed(four, kinds, canvas))
        return PromptTokens(tokens, torch.ones_like(kinds, dtype=torch.bool))

    def grid(self, height: int, width: int) -> Tensor:
        """Return the encoding of the centres of a feature map, (height * width, D), row by row."""
        device = self.frequencies.device
        rows = (torch.arange(height, device=device) + 0.5) / height
        columns = (torch.arange(width, device=device) + 0.5) / width
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        return self._fourier(torch.stack((x, y), -1).flatten(0, 1))

    def places(self, points: Tensor, *, canvas: tuple[int, int]) -> Tensor:
        """Encode places alone, of no kind: (..., 2) pixels -> (..., D)."""
        return self._fourier((points + 0.5) / points.new_tensor(canvas[::-1]))

    def _embed(self, points: Tensor, labels: Tensor, canvas: tuple[int, int]) -> Tensor:
        """(R, P, 2), (R, P) -> (R, P, D)."""
        kinds = torch.cat([embedding.weight for embedding in self.point_embed])  # 4 D
        embedded = self.places(points, canvas=canvas) + kinds[labels.clamp(min=0)]
        return torch.where((labels == PADDING)[..., None], self.not_a_point.weight.to(embedded.dtype), embedded)

    def _fourier(self, places: Tensor) -> Tensor:
        """(..., 2), x and y in [0, 1] -> (..., D); never in half precision, the frequencies are high."""
        with torch.autocast(places.device.type, enabled=False):
            angles = 2 * math.pi * ((2 * places - 1).to(self.frequencies.dtype) @ self.frequencies)
        return torch.cat((angles.sin(), angles.cos()), -1)


def _places(labels: Tensor) -> Tensor:
    return torch.arange(labels.shape[1], device=labels.device)


def box_prompt(boxes_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """(R, 4) -> points (R, 2, 2) and labels (R, 2)."""
    labels = torch.arange(TOP_LEFT, BOTTOM_RIGHT + 1, device=boxes_xyxy.device)
    return boxes_xyxy.unflatten(-1, (2, 2)), labels.expand(len(boxes_xyxy), 2)


def whole_image_prompt(size: tuple[int, int], *, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """``size`` (height, width) before padding -> points (1, 2, 2), labels (1, 2): the box around the whole image."""
    height, width = size
    return box_prompt(torch.tensor([[0.0, 0.0, width, height]], device=device))


# transformers' names (SamModel) and ours; {} is an index
TRANSFORMERS_NAMES = (
    ("shared_image_embedding.positional_embedding", "frequencies"),
    ("prompt_encoder.point_embed.{}.weight", "point_embed.{}.weight"),
    ("prompt_encoder.not_a_point_embed.weight", "not_a_point.weight"),
    ("prompt_encoder.no_mask_embed.weight", "no_mask.weight"),
)

# PixelLLM's names (SAM's own) and ours, below "prompt_encoder."
ORIGINAL_NAMES = (
    ("pe_layer.positional_encoding_gaussian_matrix", "frequencies"),
    ("point_embeddings.{}.weight", "point_embed.{}.weight"),
    ("not_a_point_embed.weight", "not_a_point.weight"),
    ("no_mask_embed.weight", "no_mask.weight"),
)
