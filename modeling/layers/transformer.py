"""Transformer layers of DETR-style decoders and encoders: post-norm as published, or pre-norm.

Shapes: B batch, N queries or tokens, M memory tokens, D width. Positions are added to queries and keys, not to values.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .attention import MultiHeadAttention


class SelfAttentionLayer(nn.Module):
    """x <- LN(x + SelfAttention(x + position)); pre-norm: x <- x + SelfAttention(LN(x) + position)."""

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0, *, pre_norm: bool = False) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.attn = MultiHeadAttention(dim, num_heads)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, blocked: Tensor | None = None) -> Tensor:
        """x, position: (B, N, D); blocked: bool broadcastable to (B, heads, N, N)."""
        value = self.norm(x) if self.pre_norm else x
        query = value + position
        x = x + self.dropout(self.attn(query, query, value, blocked=blocked))
        return x if self.pre_norm else self.norm(x)


class CrossAttentionLayer(nn.Module):
    """x <- LN(x + Attention(x + position, memory + memory_position, memory)); pre-norm: LN on the queries only."""

    def __init__(self, dim: int, num_heads: int, *, pre_norm: bool = False) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.attn = MultiHeadAttention(dim, num_heads)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, position: Tensor, memory: Tensor, memory_position: Tensor, blocked: Tensor | None = None
    ) -> Tensor:
        """x, position: (B, N, D); memory: (B, M, D); blocked: bool broadcastable to (B, heads, N, M)."""
        query = (self.norm(x) if self.pre_norm else x) + position
        x = x + self.attn(query, memory + memory_position, memory, blocked=blocked)
        return x if self.pre_norm else self.norm(x)


class FeedForwardLayer(nn.Module):
    """x <- LN(x + Linear(ReLU(Linear(x)))); pre-norm: x <- x + Linear(ReLU(Linear(LN(x))))."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0, *, pre_norm: bool = False) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        hidden = self.dropout(F.relu(self.linear1(self.norm(x) if self.pre_norm else x)))
        x = x + self.dropout(self.linear2(hidden))
        return x if self.pre_norm else self.norm(x)


class EncoderLayer(nn.Module):
    """A self-attention layer and a feed-forward layer."""

    def __init__(
        self, dim: int, num_heads: int, hidden_dim: int, dropout: float = 0.0, *, pre_norm: bool = False
    ) -> None:
        super().__init__()
        self.attention = SelfAttentionLayer(dim, num_heads, dropout, pre_norm=pre_norm)
        self.ffn = FeedForwardLayer(dim, hidden_dim, dropout, pre_norm=pre_norm)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """x, position: (B, N, D) -> (B, N, D)."""
        return self.ffn(self.attention(x, position))
