"""Multi-scale deformable attention pixel decoder (Mask2Former; X-Decoder's ``transformer_encoder_deform``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.ms_deform_attn import ms_deform_attn_fused
from ..layers.conv import ConvNorm, group_norm
from ..layers.position_encoding import sine_position_map
from ..layers.transformer import FeedForwardLayer
from .output import PixelFeatures

Shapes = Sequence[tuple[int, int]]


class DeformableAttention(nn.Module):
    """Every token attends to a few learned locations on every level (Deformable DETR).

    Args:
        dim: width.
        num_levels, num_heads, num_points: L, H and K of the operator.
        backend: ``auto``, ``cuda``, ``cpu`` or ``reference``.
    """

    def __init__(self, dim: int, *, num_levels: int, num_heads: int, num_points: int, backend: str = "auto") -> None:
        super().__init__()
        self.backend = backend
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(dim, samples * 2)
        self.attention_weights = nn.Linear(dim, samples)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for linear in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        theta = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack((theta.cos(), theta.sin()), -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = direction[:, None, None] * steps[:, None]  # H 1 K 2
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_levels, -1, -1).flatten())

    def forward(self, query: Tensor, reference: Tensor, tokens: Tensor, shapes: Shapes) -> Tensor:
        """Attend.

        Args:
            query: (B, N, D), tokens plus positions.
            reference: (1, N, 1, 2), (x, y) in [0, 1].
            tokens: (B, S, D), all levels one after the other.
            shapes: (height, width) per level.

        Returns:
            (B, N, D).
        """
        layout = (self.num_heads, self.num_levels, self.num_points)
        value = self.value_proj(tokens).unflatten(-1, (self.num_heads, -1))
        offsets = self.sampling_offsets(query).unflatten(-1, (*layout, 2))
        logits = self.attention_weights(query).unflatten(-1, layout)
        return self.output_proj(ms_deform_attn_fused(value, shapes, offsets, logits, reference, backend=self.backend))


class DeformableEncoderLayer(nn.Module):
    """x <- LN(x + DeformableAttention(x + position)); x <- LN(x + FFN(x))."""

    def __init__(
        self, dim: int, num_heads: int, ffn_dim: int, dropout: float, num_levels: int, backend: str = "auto"
    ) -> None:
        super().__init__()
        self.attn = DeformableAttention(dim, num_levels=num_levels, num_heads=num_heads, num_points=4, backend=backend)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.ffn = FeedForwardLayer(dim, ffn_dim, dropout)

    def forward(self, x: Tensor, position: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
        """x, position: (B, S, D) -> (B, S, D)."""
        x = self.norm(x + self.dropout(self.attn(x + position, reference, x, shapes)))
        return self.ffn(x)


class DeformablePixelDecoder(nn.Module):
    """Deformable self-attention over strides 32, 16 and 8, then one pyramid step to stride 4.

    Args:
        channels: widths of res2 ... res5.
        dim: width of the encoder.
        mask_dim: width of the mask features.
        num_layers, num_heads, dropout: of the encoder.
        ffn_dim: its hidden width; 1024 in every published model.
        norm: group norm after the pyramid step's convolutions; else they have biases.
        backend: of the deformable attention: ``auto``, ``cuda``, ``cpu`` or ``reference``.
        full_precision: compute everything in float32 under autocast too, as published; else only sampling locations and
            attention weights are.
    """

    LEVELS = ("res5", "res4", "res3")

    def __init__(
        self,
        channels: Mapping[str, int],
        *,
        dim: int,
        mask_dim: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int = 1024,
        dropout: float = 0.0,
        norm: bool = True,
        backend: str = "auto",
        full_precision: bool = False,
    ) -> None:
        super().__init__()
        self.full_precision = full_precision
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels[name], dim, 1), group_norm(dim)) for name in self.LEVELS
        )
        self.level_embed = nn.Parameter(torch.randn(len(self.LEVELS), dim))
        self.encoder = nn.ModuleList(
            DeformableEncoderLayer(dim, num_heads, ffn_dim, dropout, len(self.LEVELS), backend)
            for _ in range(num_layers)
        )
        self.lateral = ConvNorm(channels["res2"], dim, 1, norm=norm)
        self.output = ConvNorm(dim, dim, 3, relu=True, norm=norm)
        self.mask_features = nn.Conv2d(dim, mask_dim, 1)
        for conv, _ in self.input_proj:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)
        nn.init.kaiming_uniform_(self.mask_features.weight, a=1)
        nn.init.zeros_(self.mask_features.bias)

    def forward(self, features: Mapping[str, Tensor]) -> PixelFeatures:
        """features: res2 ... res5, (B, C, H/s, W/s)."""
        if not self.full_precision:
            return self._decode(features)
        with torch.autocast(features["res2"].device.type, enabled=False):
            return self._decode({name: x.float() for name, x in features.items()})

    def _decode(self, features: Mapping[str, Tensor]) -> PixelFeatures:
        maps = [proj(features[name]) for proj, name in zip(self.input_proj, self.LEVELS, strict=True)]
        multi_scale = self._encode(maps)
        lateral = self.lateral(features["res2"])
        above = F.interpolate(multi_scale[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        return PixelFeatures(self.mask_features(self.output(lateral + above)), multi_scale)

    def _encode(self, maps: list[Tensor]) -> list[Tensor]:
        shapes = [tuple(x.shape[-2:]) for x in maps]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)  # B S D
        position = torch.cat(
            [
                sine_position_map(h, w, tokens.shape[-1], device=tokens.device) + level
                for (h, w), level in zip(shapes, self.level_embed, strict=True)
            ],
            1,
        )
        reference = torch.cat([pixel_centres(h, w, tokens.device) for h, w in shapes])[None, :, None]
        for layer in self.encoder:
            tokens = layer(tokens, position, reference, shapes)
        levels = tokens.transpose(1, 2).split([h * w for h, w in shapes], 2)
        return [level.unflatten(2, shape) for level, shape in zip(levels, shapes, strict=True)]


def pixel_centres(height: int, width: int, device: torch.device) -> Tensor:
    """Return (height * width, 2), (x, y) in [0, 1]."""
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack((columns, rows), -1).flatten(0, 1)
