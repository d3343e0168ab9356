"""Words that point at cells of the map: what a word is about is chosen from the cells instead of only remembered.

Not in the published PixelLLM, where the place of a word is read from its state alone; learning from nothing, choosing
is found in a fraction of the steps that remembering takes.

Shapes: B images, R texts, T tokens, D width of states, N = h * w cells, P width of encoded places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.two_way import repeat_rows


class Pointed(NamedTuple):
    """Where words point.

    Attributes:
        scores: (R, T, N) logits of the cells, float32.
        read: (R, T, D) what is there, and where that is; to be added to the states.
    """

    scores: Tensor
    read: Tensor


class WordPointer(nn.Module):
    """One head of attention from words to cells, whose weights are supervised.

    Args:
        dim: D.
        image_dim: channels of the map.
        place_dim: P.
        hidden_dim: width in which words and cells meet.
    """

    def __init__(self, *, dim: int, image_dim: int, place_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.query = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden_dim))
        self.key = nn.Linear(image_dim, hidden_dim)
        self.place_key = nn.Linear(place_dim, hidden_dim)
        self.value, self.place_value = nn.Linear(image_dim, dim), nn.Linear(place_dim, dim)

    def forward(self, states: Tensor, image: Tensor, places: Tensor, *, counts: Sequence[int]) -> Pointed:
        """Point.

        Args:
            states: (R, T, D), those of the first image first.
            image: (B, C, h, w).
            places: the cells' encoded places, (N, P).
            counts: texts of each image, sum R.
        """
        cells = image.flatten(2).transpose(1, 2)  # B N C
        keys = repeat_rows(self.key(cells) + self.place_key(places), counts)  # R N H
        values = repeat_rows(self.value(cells) + self.place_value(places), counts)  # R N D
        query = self.query(states)
        scores = (query @ keys.transpose(1, 2)).float() * query.shape[-1] ** -0.5
        return Pointed(scores, scores.softmax(-1).to(values.dtype) @ values)


def pointing_loss(scores: Tensor, inside: Tensor) -> Tensor:
    """Cross entropy of tokens against the cells that their place covers, all equally likely.

    Args:
        scores: (M, N) of M tokens.
        inside: (M, N), 1 in the covered cells and 0 elsewhere, at least one each.

    Returns:
        The sum over tokens, float32.
    """
    share = inside / inside.sum(1, keepdim=True)
    return -(share * F.log_softmax(scores.float(), -1)).sum()


def covered_cells(boxes: Tensor, size: tuple[int, int], canvas: tuple[int, int]) -> Tensor:
    """Return which cells boxes cover, at least that of their middle: 1 or 0, float32 (M, h * w).

    Args:
        boxes: (M, 4) pixels.
        size: (h, w) of the map.
        canvas: (height, width) that it covers, pixels.
    """
    down, across = (
        _covered(boxes[:, axis], boxes[:, axis + 2], cells, side)
        for axis, cells, side in ((1, size[0], canvas[0]), (0, size[1], canvas[1]))
    )
    return (down[:, :, None] & across[:, None]).flatten(1).float()


def _covered(low: Tensor, high: Tensor, cells: int, side: int) -> Tensor:
    """Return the cells of a side whose centres lie in an interval, and that of its middle: bool (M, cells)."""
    index = torch.arange(cells, device=low.device)
    centres = (index + 0.5) * side / cells
    middle = ((low + high) / 2 * cells / side).long().clamp(0, cells - 1)
    return ((centres >= low[:, None]) & (centres <= high[:, None])) | (index == middle[:, None])
