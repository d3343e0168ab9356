"""Multi-head attention with packed projections, on PyTorch's fused kernel.

Shapes: B batch, N queries, M keys, H heads, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, allowed: Tensor | None = None, is_causal: bool = False, dropout: float = 0.0
) -> Tensor:
    """Fused attention, (B, H, N, D/H) and (B, H, M, D/H) twice -> (B, H, N, D/H); ``allowed`` is a bool mask.

    On the CPU half precision becomes float32: its backward kernel is many times slower there.
    """
    dtype = q.dtype
    if q.device.type == "cpu" and dtype.itemsize < 4:
        q, k, v = q.float(), k.float(), v.float()
    with torch.autocast(q.device.type, enabled=False):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=is_causal, dropout_p=dropout)
    return out.to(dtype)


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention (Vaswani et al., 2017), batch first.

    The parameters are laid out as in `torch.nn.MultiheadAttention` (``in_proj_weight`` holds the query, key and value
    projections), so weights move between the two without a change. The averaged attention map is never built.

    Args:
        dim: width D of queries, keys, values and output.
        num_heads: H, divides D.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"width {dim} is not divisible by {num_heads} heads")
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, blocked: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Attend.

        Args:
            query: (B, N, D).
            key: (B, M, D).
            value: (B, M, D).
            blocked: bool, broadcastable to (B, H, N, M); True forbids a key. No row may be True everywhere.
            is_causal: forbid keys to the right of their query.

        Returns:
            (B, N, D).
        """
        q, k, v = self._project(query, key, value)
        out = attend(q, k, v, allowed=None if blocked is None else ~blocked, is_causal=is_causal)  # B H N D/H
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v as (B, H, N or M, D/H); inputs that are one tensor share one matrix product."""
        if query is key is value:
            projected = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
            projected = [F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)]
        return tuple(x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in projected)
