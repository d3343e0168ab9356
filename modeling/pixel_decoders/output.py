"""What every pixel decoder returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class PixelFeatures(NamedTuple):
    """Attributes:
    mask_features: (B, MASK_DIM, H/4, W/4).
    multi_scale: three maps (B, CONVS_DIM, H/s, W/s) at strides s = 32, 16, 8, coarse first.
    """

    mask_features: Tensor
    multi_scale: list[Tensor]
