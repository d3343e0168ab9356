"""FocalNet (Yang et al., 2022, "Focal Modulation Networks"), as X-Decoder uses it.

An own file and not timm's, because published weights need X-Decoder's variants exactly: zero padding of odd inputs,
the residual depthwise convolutions of ``focal_dw``, and a norm per output stage.

Shapes: B batch, H x W the stage's map, C the stage's width, L focal levels. Tensors between blocks are channels last.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.depthwise import DepthwiseConv2d
from ..layers.recompute import recompute


class FocalModulation(nn.Module):
    """Gather context at L growing scales and one global one, gate them per position, modulate the query with them."""

    def __init__(
        self, dim: int, *, num_levels: int, window: int, normalize: bool, post_norm: bool, dropout: float
    ) -> None:
        super().__init__()
        self.num_levels, self.normalize = num_levels, normalize
        self.f = nn.Linear(dim, 2 * dim + num_levels + 1)
        self.h = nn.Conv2d(dim, dim, 1)
        self.norm = nn.LayerNorm(dim) if post_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.focal_layers = nn.ModuleList(DepthwiseConv2d(dim, window + 2 * level) for level in range(num_levels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        dim = x.shape[-1]
        projected = self.f(x).permute(0, 3, 1, 2)  # B 2C+L+1 H W
        query, context, gates = projected.split((dim, dim, self.num_levels + 1), 1)
        modulator = self.h(self._gather(context, gates))
        out = (query * modulator).permute(0, 2, 3, 1)
        return self.dropout(self.proj(self.norm(out)))

    def _gather(self, context: Tensor, gates: Tensor) -> Tensor:
        gathered = 0
        for level, conv in enumerate(self.focal_layers):
            context = F.gelu(conv(context))
            gathered = gathered + context * gates[:, level : level + 1]
        whole = F.gelu(context.mean((2, 3), keepdim=True))
        gathered = gathered + whole * gates[:, self.num_levels :]
        return gathered / (self.num_levels + 1) if self.normalize else gathered


class FocalBlock(nn.Module):
    """Focal modulation and an MLP, each with a residual.

    Args:
        post_norm: normalise after the branch (published) or before it.
        layer_scale: learn a per-channel scale of each branch, starting at 1e-4.
        depthwise: the ``focal_dw`` variant: a depthwise 3x3 before each branch, and the norm after the residual sum.
    """

    def __init__(
        self,
        dim: int,
        *,
        modulation: FocalModulation,
        mlp_ratio: float,
        dropout: float,
        drop_path: float,
        post_norm: bool,
        layer_scale: bool,
        depthwise: bool,
    ) -> None:
        super().__init__()
        self.post_norm, self.depthwise = post_norm, depthwise
        hidden = int(dim * mlp_ratio)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.modulation = modulation
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = _stochastic_depth(drop_path)
        self.gamma_1 = nn.Parameter(torch.full((dim,), 1e-4)) if layer_scale else None
        self.gamma_2 = nn.Parameter(torch.full((dim,), 1e-4)) if layer_scale else None
        if depthwise:
            self.dw1 = DepthwiseConv2d(dim, 3, bias=True)
            self.dw2 = DepthwiseConv2d(dim, 3, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        if self.depthwise:
            x = x + _channels_first(self.dw1, x)
        x = self._residual(x, self.modulation, self.norm1, self.gamma_1)
        if self.depthwise:
            x = x + _channels_first(self.dw2, x)
        return self._residual(x, self._mlp, self.norm2, self.gamma_2)

    def _residual(self, x: Tensor, branch, norm: nn.LayerNorm, gamma: Tensor | None) -> Tensor:
        y = branch(x if self.post_norm else norm(x))
        if self.post_norm and not self.depthwise:
            y = norm(y)
        if gamma is not None:
            y = gamma * y
        x = x + self.drop_path(y)
        return norm(x) if self.post_norm and self.depthwise else x

    def _mlp(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


class PatchEmbed(nn.Module):
    """Strided convolution and layer norm; the input is zero-padded right and below to a multiple of the stride."""

    def __init__(
        self, in_channels: int, dim: int, *, kernel_size: int, stride: int, padding: int, norm: bool = True
    ) -> None:
        super().__init__()
        self.stride = stride
        self.proj = nn.Conv2d(in_channels, dim, kernel_size, stride, padding)
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, ceil(H / stride), ceil(W / stride), C)."""
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % self.stride, 0, -height % self.stride))
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class FocalNet(nn.Module):
    """Four stages at strides 4, 8, 16, 32; every stage's map leaves through a norm of its own.

    Args:
        embed_dim: width of the first stage; it doubles from stage to stage.
        depths: blocks per stage.
        num_levels: focal levels L per stage.
        windows: smallest focal kernel per stage.
        mlp_ratio: hidden width of the MLPs over C.
        dropout: dropout of projections and MLPs.
        drop_path: stochastic depth of the last block; it grows linearly from 0.
        conv_embed: overlapping convolutions (7x7, then 3x3) for patch embedding; else kernel = stride.
        patch_norm: layer norm after the stem.
        scaling_modulator: divide the gathered context by L + 1.
        post_norm, modulation_post_norm, layer_scale: see `FocalBlock` and `FocalModulation`.
        depthwise: the ``focal_dw`` variant (X-Decoder Focal-T), whose stem pads by 3 and not by 2.
        checkpoint: recompute the blocks in the backward pass.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: Sequence[int],
        num_levels: Sequence[int],
        windows: Sequence[int],
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        drop_path: float = 0.3,
        conv_embed: bool = True,
        patch_norm: bool = True,
        scaling_modulator: bool = True,
        post_norm: bool = True,
        modulation_post_norm: bool = False,
        layer_scale: bool = True,
        depthwise: bool = False,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        dims = [embed_dim * 2**stage for stage in range(len(depths))]
        self.channels = {f"res{stage + 2}": dim for stage, dim in enumerate(dims)}
        stem = {"kernel_size": 7, "padding": 3 if depthwise else 2} if conv_embed else {"kernel_size": 4, "padding": 0}
        down = {"kernel_size": 3, "padding": 1} if conv_embed else {"kernel_size": 2, "padding": 0}
        self.patch_embed = PatchEmbed(3, embed_dim, stride=4, norm=patch_norm, **stem)
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())

        def block(stage: int) -> FocalBlock:
            modulation = FocalModulation(
                dims[stage],
                num_levels=num_levels[stage],
                window=windows[stage],
                normalize=scaling_modulator,
                post_norm=modulation_post_norm,
                dropout=dropout,
            )
            return FocalBlock(
                dims[stage],
                modulation=modulation,
                mlp_ratio=mlp_ratio,
                dropout=dropout,
                drop_path=next(rates),
                post_norm=post_norm,
                layer_scale=layer_scale,
                depthwise=depthwise,
            )

        self.stages = nn.ModuleList(
            nn.Sequential(*(block(stage) for _ in range(depth))) for stage, depth in enumerate(depths)
        )
        self.downsamples = nn.ModuleList(PatchEmbed(a, b, stride=2, **down) for a, b in pairwise(dims))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images (B, 3, H, W) -> {"res2": (B, C, H/4, W/4), ..., "res5": (B, 8C, H/32, W/32)}."""
        features = {}
        x = self.patch_embed(images)
        for index, (stage, norm) in enumerate(zip(self.stages, self.norms, strict=True)):
            if index:
                x = self.downsamples[index - 1](x.permute(0, 3, 1, 2))
            for block in stage:
                x = recompute(block, x, enabled=self.checkpoint)
            features[f"res{index + 2}"] = norm(x).permute(0, 3, 1, 2).contiguous()
        return features


def _channels_first(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _stochastic_depth(rate: float) -> nn.Module:
    """Return a layer that leaves its branch out at this rate."""
    if not rate:
        return nn.Identity()
    from timm.layers import DropPath  # timm takes seconds to import: only who needs it waits

    return DropPath(rate)
