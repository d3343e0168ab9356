"""Open-vocabulary classification: a region's class is the class text it is most like (CLIP, X-Decoder)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def unit(x: Tensor) -> Tensor:
    """Scale vectors to length one, x / (|x| + 1e-7)."""
    return x / (x.norm(dim=-1, keepdim=True) + 1e-7)


class TextClassifier(nn.Module):
    """Project a region into the text space and compare it with every class text.

    Args:
        dim: width of region vectors.
        text_dim: width of the shared vision-language space.
    """

    def __init__(self, dim: int, text_dim: int) -> None:
        super().__init__()
        self.class_embed = nn.Parameter(torch.empty(dim, text_dim))
        nn.init.trunc_normal_(self.class_embed, std=0.02)

    def forward(self, hidden: Tensor, class_texts: Tensor, logit_scale: Tensor) -> Tensor:
        """Return exp(logit_scale) * cosine, unclamped.

        Args:
            hidden: (B, Q, dim).
            class_texts: (K + 1, text_dim), unit length; the last row is "background", read as "no object".
            logit_scale: scalar, natural logarithm of the scale.

        Returns:
            (B, Q, K + 1).
        """
        return logit_scale.exp() * unit(hidden @ self.class_embed) @ class_texts.t()
