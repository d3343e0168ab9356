"""One map from a backbone of four levels, for systems that read an image as a single map.

Shapes: B images, C channels, h x w the map.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..layers.resampling import resize_map

LEVELS = ("res2", "res3", "res4", "res5")
STRIDES = (4, 8, 16, 32)


class PyramidMap(nn.Module):
    """Every level projected to one width, brought to one size and added; (B, 3, H, W) -> (B, dim, H / s, W / s).

    Args:
        backbone: gives the maps of `LEVELS`, with ``channels`` of each.
        dim: C.
        stride: s, one of 4, 8, 16, 32.
    """

    def __init__(self, backbone: nn.Module, *, dim: int, stride: int) -> None:
        super().__init__()
        self.body, self.level = backbone, LEVELS[STRIDES.index(stride)]
        self.out_dim, self.patch, self.stride = dim, STRIDES[-1], stride
        shrinks = {name: max(stride // own, 1) for name, own in zip(LEVELS, STRIDES, strict=True)}
        self.laterals = nn.ModuleDict(  # finer levels keep their detail in the channels
            {name: nn.Conv2d(backbone.channels[name], dim, shrink, shrink) for name, shrink in shrinks.items()}
        )
        self.mix = nn.Sequential(
            nn.GELU(), nn.Conv2d(dim, dim, 3, padding=1), nn.GELU(), nn.Conv2d(dim, dim, 3, padding=1)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images whose sides 32 divides."""
        levels = self.body(images)
        levels = {name: conv(levels[name]) for name, conv in self.laterals.items()}
        size = tuple(levels[self.level].shape[-2:])
        x = sum(resize_map(level, size, mode="bilinear") for level in levels.values())
        return self.norm((x + self.mix(x)).movedim(1, -1)).movedim(-1, 1)  # B C h w
