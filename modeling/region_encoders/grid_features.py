"""What an image shows under a prompt's box, cell by cell, with where each cell is (RoIAlign, as GPT4RoI reads regions).

Shapes: B images, C channels, h x w the map, Q prompts, k cells each way, D width of the results.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from .location_prompts import LocationPrompts


class GridFeatures(nn.Module):
    """k x k tokens per prompt, row by row.

    Args:
        image_dim: C.
        prompt_dim: width of encoded places.
        out_dim: D.
        cells: k for boxes and points; 0: no tokens.
        whole_cells: k for whole images.
    """

    def __init__(self, *, image_dim: int, prompt_dim: int, out_dim: int, cells: int, whole_cells: int) -> None:
        super().__init__()
        self.cells, self.whole_cells = cells, whole_cells
        self.image_proj, self.place_proj = nn.Linear(image_dim, out_dim), nn.Linear(prompt_dim, out_dim)
        self.norm = nn.LayerNorm(out_dim)

    def forward(
        self,
        image: Tensor,
        boxes: Tensor,
        prompts: LocationPrompts,
        *,
        counts: Sequence[int],
        canvas: tuple[int, int],
        whole: bool,
    ) -> Tensor:
        """Read the images under boxes.

        Args:
            image: (B, C, h, w).
            boxes: (Q, 4) pixels of the canvas, those of the first image first; a point is a box without area.
            prompts: encodes places.
            counts: prompts of each image, sum Q.
            canvas: (height, width) that the map covers, pixels.
            whole: the boxes are whole images.

        Returns:
            (Q, k * k, D).
        """
        k = self.whole_cells if whole else self.cells
        (h, w), (height, width) = image.shape[-2:], canvas
        scaled = boxes.float() * boxes.new_tensor((w / width, h / height, w / width, h / height))
        if k:
            seen = roi_align(image.float(), list(scaled.split(list(counts))), k, sampling_ratio=2, aligned=True)
        else:  # no tokens, yet the layers get their (zero) gradients, which other ranks wait for
            seen = image.new_zeros(len(boxes), image.shape[1], 0, 0, dtype=torch.float32)
        tokens = self.image_proj(seen.flatten(2).transpose(1, 2))  # Q kk D
        return self.norm(F.gelu(tokens + self.place_proj(prompts.places(_centres(boxes, k), canvas=canvas))))


def _centres(boxes: Tensor, cells: int) -> Tensor:
    """Return the middles of the cells, (Q, 4) -> (Q, k * k, 2) pixels, row by row."""
    steps = (torch.arange(cells, device=boxes.device) + 0.5) / cells
    x = boxes[:, 0, None] + (boxes[:, 2] - boxes[:, 0])[:, None] * steps  # Q k
    y = boxes[:, 1, None] + (boxes[:, 3] - boxes[:, 1])[:, None] * steps
    return torch.stack((x[:, None].expand(-1, cells, -1), y[:, :, None].expand(-1, -1, cells)), -1).flatten(1, 2)
