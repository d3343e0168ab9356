"""Five maps from one (the simple feature pyramid of ViTDet, Li et al., 2022)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SimplePyramid(nn.Module):
    """Twice the resolution by a transposed convolution, half by pooling, two more by strided convolutions.

    Args:
        in_dim: channels of the feature map.
        dim: channels of the levels.
        deconv_dim: channels after the transposed convolution (published: 384, whatever the input).
    """

    def __init__(self, *, in_dim: int, dim: int = 256, deconv_dim: int = 384) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(in_dim, deconv_dim, 2, stride=2)
        self.p3 = _to_width(deconv_dim, dim)
        self.p4 = _to_width(in_dim, dim)
        self.p5 = _to_width(in_dim, dim)
        self.p6, self.p7 = (nn.Conv2d(dim, dim, 3, stride=2, padding=1) for _ in range(2))

    def forward(self, features: Tensor) -> list[Tensor]:
        """(B, in_dim, h, w) -> p3 (B, dim, 2 h, 2 w), p4 (h, w), p5 (h // 2, w // 2), p6, p7 (halves, rounded up)."""
        p5 = self.p5(F.max_pool2d(features, 2))
        p6 = self.p6(p5)
        return [self.p3(self.upsample(features)), self.p4(features), p5, p6, self.p7(F.relu(p6))]


class _ConvLayerNorm(nn.Conv2d):
    """Convolution without bias, then LayerNorm over the channels."""

    def __init__(self, in_dim: int, dim: int, kernel_size: int) -> None:
        super().__init__(in_dim, dim, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W)."""
        return self.norm(super().forward(x).movedim(1, -1)).movedim(-1, 1)


def _to_width(in_dim: int, dim: int) -> nn.Sequential:
    return nn.Sequential(_ConvLayerNorm(in_dim, dim, 1), _ConvLayerNorm(dim, dim, 3))
