"""Transformer-encoder FPN (MaskFormer; X-Decoder's default pixel decoder)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.conv import ConvNorm
from ..layers.position_encoding import sine_position_map
from ..layers.transformer import EncoderLayer
from .output import PixelFeatures


class TransformerFPN(nn.Module):
    """Self-attention on the stride-32 map, then a top-down feature pyramid.

    Args:
        channels: widths of res2 ... res5.
        dim: width of the pyramid.
        mask_dim: width of the mask features.
        num_layers, num_heads, ffn_dim, dropout: of the transformer encoder.
        pre_norm: normalise before each block of the encoder, and once after the last.
        norm: group norm after the pyramid's convolutions; else they have biases.
        memory_strides: which three maps the queries look at, coarse first; published models take 32, 16 and 8.
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        *,
        dim: int,
        mask_dim: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float = 0.0,
        pre_norm: bool = False,
        norm: bool = True,
        memory_strides: Sequence[int] = (32, 16, 8),
    ) -> None:
        super().__init__()
        self.memory = [(32, 16, 8, 4).index(stride) for stride in memory_strides]
        self.input_proj = nn.Conv2d(channels["res5"], dim, 1)
        self.encoder = nn.ModuleList(
            EncoderLayer(dim, num_heads, ffn_dim, dropout, pre_norm=pre_norm) for _ in range(num_layers)
        )
        self.encoder_norm = nn.LayerNorm(dim) if pre_norm else nn.Identity()
        self.laterals = nn.ModuleDict(
            {name: ConvNorm(channels[name], dim, 1, norm=norm) for name in ("res2", "res3", "res4")}
        )
        self.outputs = nn.ModuleDict(
            {name: ConvNorm(dim, dim, 3, relu=True, norm=norm) for name in ("res2", "res3", "res4", "res5")}
        )
        self.mask_features = nn.Conv2d(dim, mask_dim, 3, padding=1)
        for conv in (self.input_proj, self.mask_features):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)

    def forward(self, features: Mapping[str, Tensor]) -> PixelFeatures:
        """features: res2 ... res5, (B, C, H/s, W/s)."""
        maps = [self.outputs["res5"](self._encode(self.input_proj(features["res5"])))]
        for name in ("res4", "res3", "res2"):
            lateral = self.laterals[name](features[name])
            above = F.interpolate(maps[-1], size=lateral.shape[-2:], mode="nearest")
            maps.append(self.outputs[name](lateral + above))
        return PixelFeatures(self.mask_features(maps[-1]), [maps[index] for index in self.memory])

    def _encode(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        position = sine_position_map(height, width, x.shape[1], device=x.device)
        tokens = x.flatten(2).transpose(1, 2)  # B HW D
        for layer in self.encoder:
            tokens = layer(tokens, position)
        return self.encoder_norm(tokens).transpose(1, 2).unflatten(2, (height, width))
