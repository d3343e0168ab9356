"""What a captioner reads about a region: a few vectors gathered from the query and from the picture under its mask.

Shapes: R regions, D width, C mask width, h x w the mask features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.mask_pooling import mask_geometry, mask_pool
from ..layers.mlp import MLP
from ..layers.position_encoding import sine_encoding

RELATIVE = 5  # numbers that say where one region lies as seen from another
KINDS = ("query", "global", "mask_pooled", "position", "grid", "others")


class RegionTokens(nn.Module):
    """Gathers region tokens.

    Published models read ``("query", "global")``: the query's state and the image's strongest activations. The other
    kinds show the captioner the picture itself: ``mask_pooled``, the mean of the fine features under the mask;
    ``grid``, the fine features on a ``grid_size`` x ``grid_size`` raster over the mask's extent; ``position``, where
    the mask lies and how large it is; ``others``, the states of all object queries of the image and where they lie as
    seen from the region (Relation Networks, arXiv 1711.11575).

    Args:
        kinds: of `KINDS`, in the order of the tokens.
        dim: D, width of every token.
        fine_dims: widths of the fine maps given to `forward`, concatenated for ``mask_pooled`` and ``grid``.
    """

    def __init__(self, kinds: Sequence[str], *, dim: int, fine_dims: Sequence[int] = (), grid_size: int = 3) -> None:
        super().__init__()
        unknown = sorted(set(kinds) - set(KINDS))
        if unknown:
            raise ValueError(f"unknown region tokens {unknown}, choose from {KINDS}")
        self.kinds, self.dim, self.grid_size = tuple(kinds), dim, grid_size
        fine = sum(fine_dims)
        self.pooled_proj = MLP((fine, dim, dim)) if "mask_pooled" in kinds else None
        self.grid_proj = nn.Linear(fine, dim) if "grid" in kinds else None
        self.grid_position = nn.Parameter(torch.zeros(grid_size**2, dim)) if "grid" in kinds else None
        published = self.kinds == ("query", "global")
        self.kind_embed = None if published else nn.Parameter(torch.randn(len(self.kinds), dim))
        self.position_proj = MLP((4 * (dim // 4), dim, dim)) if "position" in kinds else None
        self.relation_proj = MLP((RELATIVE * (dim // 4), dim, dim)) if "others" in kinds else None

    @property
    def needs_masks(self) -> bool:
        """Whether any token is read under the mask."""
        return not set(self.kinds) <= {"query", "global"}

    def forward(
        self,
        hidden: Tensor,
        global_feature: Tensor,
        queries: Tensor,
        mask_logits: Tensor | None,
        fine_maps: Sequence[Tensor] = (),
    ) -> Tensor:
        """Gather the tokens of some queries of one image.

        Args:
            hidden: (Q, D), states of all object queries.
            global_feature: (D,).
            queries: int64 (R,), the queries wanted.
            mask_logits: (Q, h, w), or None when no token needs masks.
            fine_maps: maps (C_i, h, w).

        Returns:
            (R, M, D), M being one per kind, ``grid_size`` squared for ``grid`` and Q for ``others``.
        """
        geometry = None if mask_logits is None else mask_geometry(mask_logits.detach())  # Q 4
        fine = torch.cat(tuple(fine_maps))[None] if fine_maps else None  # 1 C h w
        gathered = []
        for index, kind in enumerate(self.kinds):
            if kind == "query":
                tokens = hidden[queries][:, None]
            elif kind == "global":
                tokens = global_feature.expand(len(queries), 1, -1)
            elif kind == "mask_pooled":
                tokens = self.pooled_proj(mask_pool(mask_logits[None, queries], fine)[0])[:, None]
            elif kind == "grid":
                tokens = self._grid(mask_logits[queries], fine)
            elif kind == "position":
                tokens = self._encode(self.position_proj, geometry[queries], hidden.dtype)[:, None]
            else:
                seen = relative_geometry(geometry[queries], geometry)  # R Q 5
                tokens = hidden + self._encode(self.relation_proj, seen, hidden.dtype)
            gathered.append(tokens if self.kind_embed is None else tokens + self.kind_embed[index])
        return torch.cat(gathered, 1)

    def _encode(self, proj: MLP, coordinates: Tensor, dtype: torch.dtype) -> Tensor:
        return proj(sine_encoding(coordinates, self.dim // 4).to(dtype))

    def _grid(self, mask_logits: Tensor, fine: Tensor) -> Tensor:
        """Sample the fine maps on a raster over each mask's extent: (R, h, w) -> (R, grid_size ** 2, D)."""
        x, y, width, height = mask_geometry(mask_logits.detach())[..., None].unbind(1)  # R 1
        steps = (torch.arange(self.grid_size, device=fine.device) + 0.5) / self.grid_size - 0.5
        columns, rows = x + width * steps, y + height * steps  # R G
        raster = torch.stack(
            (columns[:, None].expand(-1, self.grid_size, -1), rows[..., None].expand(-1, -1, self.grid_size)), -1
        )
        samples = F.grid_sample(fine, (2 * raster.flatten(0, 1) - 1)[None].to(fine.dtype), align_corners=False)
        tokens = samples[0].flatten(1).t().unflatten(0, (-1, self.grid_size**2))  # R G*G C
        return self.grid_proj(tokens) + self.grid_position


def relative_geometry(regions: Tensor, others: Tensor) -> Tensor:
    """Return where others lie as seen from regions, all in [0, 1].

    Args:
        regions, others: (R, 4) and (Q, 4), centre and extent in units of the picture.

    Returns:
        (R, Q, 5): offset x and y (0.5 = same place), distance, extent x and y of the other.
    """
    offset = others[None, :, :2] - regions[:, None, :2]
    distance = offset.norm(dim=-1, keepdim=True) / 2**0.5
    extent = others[None, :, 2:].expand(len(regions), -1, -1)
    return torch.cat((offset / 2 + 0.5, distance, extent), -1)
