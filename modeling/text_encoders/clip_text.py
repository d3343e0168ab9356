"""CLIP's causal text transformer (Radford et al., 2021) with X-Decoder's numerics.

Shapes: N sentences, T tokens, D width, P width of the vision-language space.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..heads.classification import unit
from ..layers.attention import MultiHeadAttention


class Float32LayerNorm(nn.LayerNorm):
    """Layer norm computed in float32; the affine part runs in the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        normalized = F.layer_norm(x.float(), self.normalized_shape, eps=self.eps)
        return self.weight * normalized.to(x.dtype) + self.bias


class ResidualBlock(nn.Module):
    """x <- x + Attention(LN(x)); x <- x + MLP(LN(x)), with QuickGELU."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attn = MultiHeadAttention(dim, num_heads)
        self.norm1 = Float32LayerNorm(dim, eps=1e-12)
        self.norm2 = Float32LayerNorm(dim, eps=1e-12)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)
        for linear in (self.attn.out_proj, self.fc1, self.fc2):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        y = self.norm1(x)
        x = x + self.attn(y, y, y, is_causal=True)
        y = self.fc1(self.norm2(x))
        return x + self.fc2(y * torch.sigmoid(1.702 * y))


class ClipTextEncoder(nn.Module):
    """Sentence embeddings, read at the end token.

    Args:
        vocab_size: size of the token table.
        context_length: longest sentence, tokens.
        width: D.
        num_heads, num_layers: of the transformer.
        output_dim: P.
    """

    def __init__(
        self, *, vocab_size: int, context_length: int, width: int, num_heads: int, num_layers: int, output_dim: int
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, width))
        self.blocks = nn.ModuleList(ResidualBlock(width, num_heads) for _ in range(num_layers))
        self.norm = Float32LayerNorm(width, eps=1e-12)
        self.projection = nn.Parameter(torch.empty(width, output_dim))
        self.logit_scale = nn.Parameter(torch.ones([]))
        nn.init.trunc_normal_(self.token_embedding.weight, std=0.02)
        nn.init.trunc_normal_(self.positional_embedding, std=0.02)
        nn.init.trunc_normal_(self.projection, std=0.02)

    @property
    def is_frozen(self) -> bool:
        """Whether no weight that an embedding depends on is trained."""
        return not any(weight.requires_grad for weight in self.sentence_weights())

    def sentence_weights(self) -> list[Tensor]:
        """Return all weights that an embedding depends on."""
        return [weight for weight in self.parameters() if weight is not self.logit_scale]

    def forward(self, tokens: Tensor, end_id: int) -> Tensor:
        """Embed sentences.

        Args:
            tokens: int64 (N, T), each row holding ``end_id`` at its end and in its padding. Columns beyond the last
                end are computed and, attention being causal, never read: cut them off.
            end_id: the end token.

        Returns:
            (N, P), unit length.
        """
        end = (tokens == end_id).int().argmax(1)
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        sentence = self.norm(x[torch.arange(len(x), device=x.device), end])
        return unit(sentence @ self.projection)
