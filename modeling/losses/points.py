"""Where masks are compared: random points instead of every pixel (PointRend; Mask2Former, section 3.3).

Points are (x, y) in [0, 1] of the image. Shapes: P points, n masks, N masks of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class PointSource(Protocol):
    """Draws points for one batch; ``layer`` counts prediction points from the last (0) backwards."""

    def shared(self, layer: int, image: int, num_points: int) -> Tensor:
        """Return (P, 2), the points at which all masks of one image are compared in matching."""

    def per_mask(self, layer: int, purpose: int, counts: Sequence[int], num_points: int) -> Tensor:
        """Return (N, P, 2), points of their own for each of counts[0] + counts[1] + ... masks."""


class SeededPoints:
    """Draws that depend on the image's own seed alone, so that batch, rank and order cannot change them.

    They are drawn where they are wanted: a CPU and a GPU draw different points.

    Args:
        seeds: one per image, see `RegionTargets.seed`.
        device: where the points are wanted.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str) -> None:
        self.seeds, self.device = seeds, device

    def shared(self, layer: int, image: int, num_points: int) -> Tensor:
        """See `PointSource`."""
        return self._draw(image, 3 * layer, (num_points, 2))

    def per_mask(self, layer: int, purpose: int, counts: Sequence[int], num_points: int) -> Tensor:
        """See `PointSource`."""
        draws = [self._draw(i, 3 * layer + 1 + purpose, (count, num_points, 2)) for i, count in enumerate(counts)]
        return torch.cat(draws)

    def _draw(self, image: int, stream: int, shape: tuple[int, ...]) -> Tensor:
        generator = torch.Generator(self.device).manual_seed((self.seeds[image] * 1_000_003 + stream) % 2**63)
        return torch.rand(shape, generator=generator, device=self.device)


class SequentialPoints:
    """Draws from PyTorch's global generator, all at once, in the order in which the published code comes to need them.

    Args:
        device: where the points are wanted.
        counts: matched segments per image.
        num_layers: prediction points.
        num_points, oversample_ratio, importance_ratio: see `uncertain_points`.
    """

    def __init__(
        self,
        device: torch.device | str,
        *,
        counts: Sequence[int],
        num_layers: int,
        num_points: int,
        oversample_ratio: float = 3.0,
        importance_ratio: float = 0.75,
    ) -> None:
        candidates = int(num_points * oversample_ratio)
        anywhere = num_points - int(importance_ratio * num_points)
        self._shared, self._per_mask = [], []
        for _ in range(num_layers):
            self._shared.append([torch.rand(1, num_points, 2, device=device)[0] for _ in counts])
            self._per_mask.append([torch.rand(sum(counts), n, 2, device=device) for n in (candidates, anywhere)])

    def shared(self, layer: int, image: int, num_points: int) -> Tensor:
        """See `PointSource`."""
        return self._shared[layer][image]

    def per_mask(self, layer: int, purpose: int, counts: Sequence[int], num_points: int) -> Tensor:
        """See `PointSource`."""
        return self._per_mask[layer][purpose]


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Sample maps bilinearly, zero outside: (N, C, H, W) at (N, P, 2) -> (N, C, P)."""
    grid = (2 * points - 1).to(maps.dtype)[:, :, None]  # N P 1 2
    return F.grid_sample(maps, grid, align_corners=False)[..., 0]


def uncertain_points(
    mask_logits: Tensor,
    counts: Sequence[int],
    source: PointSource,
    layer: int,
    *,
    num_points: int,
    oversample_ratio: float,
    importance_ratio: float,
) -> Tensor:
    """Pick points where the masks are least certain, and some anywhere.

    Args:
        mask_logits: (N, h, w).
        counts: masks per image, N in all.
        source, layer: where the candidates come from.
        num_points: P.
        oversample_ratio: candidates per point.
        importance_ratio: share of P chosen by the smallest absolute logit.

    Returns:
        (N, P, 2), without gradient.
    """
    num_important = int(importance_ratio * num_points)
    with torch.no_grad():
        candidates = source.per_mask(layer, 0, counts, int(num_points * oversample_ratio))
        certainty = sample_points(mask_logits[:, None], candidates)[:, 0].abs()
        chosen = certainty.topk(num_important, dim=1, largest=False).indices
        important = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
        anywhere = source.per_mask(layer, 1, counts, num_points - num_important)
    return torch.cat((important, anywhere), 1)
