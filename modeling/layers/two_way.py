"""SAM's two-way transformer: tokens read an image, and the image reads the tokens (Kirillov et al., 2023).

Shapes: B images, R rows of tokens (one per prompt, every image's rows together), T tokens, M positions of the image,
D width, H heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .attention import attend
from .mlp import MLP


class TwoWayTransformer(nn.Module):
    """Layers of self-attention, tokens to image, MLP, image to tokens; at the end tokens to image once more.

    The first layer's self-attention sees no positions and replaces the tokens. What the first layer needs of an image
    is projected once per image, not once per prompt; from then on every prompt has its own copy of the image.

    Args:
        depth: number of layers.
        dim: width D.
        num_heads: H.
        mlp_dim: hidden width of the MLPs (ReLU).
        downsample: the attention between tokens and image works at width D / downsample.
        eps: of every layer norm.
    """

    def __init__(
        self, depth: int, dim: int, num_heads: int, mlp_dim: int, downsample: int = 2, *, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayLayer(dim, num_heads, mlp_dim, downsample, first=index == 0, eps=eps) for index in range(depth)
        )
        self.final_attn = NarrowAttention(dim, num_heads, downsample)
        self.norm_final = nn.LayerNorm(dim, eps=eps)

    def forward(
        self,
        image: Tensor,
        image_pe: Tensor,
        tokens: Tensor,
        *,
        counts: Sequence[int] | None = None,
        valid: Tensor | None = None,
        shown: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run every layer. The tokens as they come in are also their positions.

        Args:
            image: (B, M, D).
            image_pe: positions, (M, D) or (1, M, D).
            tokens: (R, T, D), the rows of the first image, then of the second, ...
            counts: rows of each image, sums to R; None means one each (R = B).
            valid: bool (R, T), False for padding that nothing may read; None: all are read.
            shown: bool (R, M), the same of the image; None: all is read.

        Returns:
            tokens (R, T, D) and image (R, M, D).
        """
        pe = tokens
        allowed = None if valid is None else valid[:, None, None]  # R 1 1 T
        shown = None if shown is None else shown[:, None, None]  # R 1 1 M
        for layer in self.layers:
            tokens, image = layer(tokens, pe, image, image_pe, counts=counts, allowed=allowed, shown=shown)
            counts = None
        if counts is not None:  # no layer has given the rows their images
            image = repeat_rows(image, counts)
        tokens = tokens + self.final_attn(tokens + pe, image + image_pe, image, allowed=shown)
        return self.norm_final(tokens), image


class TwoWayLayer(nn.Module):
    """One layer; ``first`` replaces the tokens by their self-attention without positions."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, downsample: int, *, first: bool, eps: float) -> None:
        super().__init__()
        self.first = first
        self.self_attn = NarrowAttention(dim, num_heads)
        self.token_to_image = NarrowAttention(dim, num_heads, downsample)
        self.mlp = MLP((dim, mlp_dim, dim))
        self.image_to_token = NarrowAttention(dim, num_heads, downsample)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(dim, eps=eps) for _ in range(4))

    def forward(
        self,
        tokens: Tensor,
        pe: Tensor,
        image: Tensor,
        image_pe: Tensor,
        *,
        counts: Sequence[int] | None,
        allowed: Tensor | None,
        shown: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """tokens, pe: (R, T, D); image: (B, M, D), without counts (R, M, D); allowed, shown: bool (R, 1, 1, T or M)."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens, allowed=allowed)
        else:
            query = tokens + pe
            tokens = tokens + self.self_attn(query, query, tokens, allowed=allowed)
        tokens = self.norm1(tokens)
        placed = image + image_pe
        seen = self.token_to_image(tokens + pe, placed, image, memory_counts=counts, allowed=shown)
        tokens = self.norm2(tokens + seen)
        tokens = self.norm3(tokens + self.mlp(tokens))
        read = self.image_to_token(placed, tokens + pe, tokens, query_counts=counts, allowed=allowed)  # R M D
        return tokens, self.norm4((image if counts is None else repeat_rows(image, counts)) + read)


class NarrowAttention(nn.Module):
    """Multi-head attention whose projections may be narrower than its inputs."""

    def __init__(self, dim: int, num_heads: int, downsample: int = 1) -> None:
        super().__init__()
        inner = dim // downsample
        if dim % downsample or inner % num_heads:
            raise ValueError(f"width {dim} / {downsample} is not divisible by {num_heads} heads")
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, dim)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        query_counts: Sequence[int] | None = None,
        memory_counts: Sequence[int] | None = None,
        allowed: Tensor | None = None,
    ) -> Tensor:
        """(R, N, D) attends to (R, M, D) -> (R, N, D).

        With ``query_counts`` the queries, with ``memory_counts`` keys and values are (B, ..., D): they are projected
        first and repeated after.
        """
        q, k, v = (
            self._heads(layer(x), counts)
            for layer, x, counts in (
                (self.q_proj, query, query_counts),
                (self.k_proj, key, memory_counts),
                (self.v_proj, value, memory_counts),
            )
        )
        return self.out_proj(attend(q, k, v, allowed=allowed).transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor, counts: Sequence[int] | None) -> Tensor:
        """(B, N, H * d) -> (R, H, N, d)."""
        x = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return x if counts is None else repeat_rows(x, counts)


def repeat_rows(x: Tensor, counts: Sequence[int]) -> Tensor:
    """(B, ...) -> (sum of counts, ...); of one image a view. The counts are known to the host: nothing waits."""
    parts = [part.expand(count, *part.shape[1:]) for part, count in zip(x.split(1), counts, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


_ATTENTIONS = (
    ("layers.{}.self_attn", "layers.{}.self_attn"),
    ("layers.{}.cross_attn_token_to_image", "layers.{}.token_to_image"),
    ("layers.{}.cross_attn_image_to_token", "layers.{}.image_to_token"),
    ("final_attn_token_to_image", "final_attn"),
)
_LINEAR = (
    *((f"{theirs}.{part}_proj.*", f"{ours}.{part}_proj.*") for theirs, ours in _ATTENTIONS for part in "qkv"),
    *((f"{theirs}.out_proj.*", f"{ours}.out_proj.*") for theirs, ours in _ATTENTIONS),
    ("layers.{}.mlp.lin1.*", "layers.{}.mlp.layers.0.*"),
    ("layers.{}.mlp.lin2.*", "layers.{}.mlp.layers.1.*"),
)

# transformers' names (SamTwoWayTransformer) and ours; {} is an index, * is weight or bias
TRANSFORMERS_NAMES = (
    *_LINEAR,
    ("layers.{}.layer_norm{}.*", "layers.{}.norm{}.*"),
    ("layer_norm_final_attn.*", "norm_final.*"),
)

# SAM's own names, which are PixelLLM's, and ours
ORIGINAL_NAMES = (
    *_LINEAR,
    ("layers.{}.norm{}.*", "layers.{}.norm{}.*"),
    ("norm_final_attn.*", "norm_final.*"),
)
