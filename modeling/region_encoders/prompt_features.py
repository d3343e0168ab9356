"""What an image shows at a prompt: learned queries read the image and the prompt (PixelLLM's prompt feature extractor).

Shapes: B images, R prompts of all of them, P tokens per prompt, Q queries, D width inside, M = h * w.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..layers.two_way import ORIGINAL_NAMES as TWO_WAY_NAMES
from ..layers.two_way import TwoWayTransformer
from .location_prompts import PromptTokens


class PromptFeatures(nn.Module):
    """Q learned queries beside the prompt's tokens in a two-way transformer; every query has its own output layer.

    Args:
        image_dim: channels of the image's map.
        prompt_dim: width of prompts and positions.
        dim: width D of the transformer.
        out_dim: width of the results.
        num_queries: Q.
        depth, num_heads, mlp_dim: of the transformer.
        downsample: the attention between tokens and image works at width D / downsample.
    """

    def __init__(
        self,
        *,
        image_dim: int,
        prompt_dim: int,
        dim: int,
        out_dim: int,
        num_queries: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        downsample: int = 2,
    ) -> None:
        super().__init__()
        self.queries = nn.Embedding(num_queries, dim)
        self.image_proj = nn.Linear(image_dim, dim)
        self.prompt_proj = nn.Linear(prompt_dim, dim)
        self.position_proj = nn.Linear(prompt_dim, dim)
        self.transformer = TwoWayTransformer(depth, dim, num_heads, mlp_dim, downsample)
        self.outputs = nn.ModuleList(nn.Linear(dim, out_dim) for _ in range(num_queries))

    def forward(
        self, image: Tensor, position: Tensor, prompts: PromptTokens, no_mask: Tensor, *, counts: Sequence[int]
    ) -> Tensor:
        """Read the images at their prompts.

        Args:
            image: (B, C, h, w).
            position: encoding of the map's places, (h * w, prompt_dim).
            prompts: of all images, those of the first image first.
            no_mask: the dense prompt of every place, (1, prompt_dim).
            counts: prompts of each image, sums to R.

        Returns:
            (R, Q, out_dim).
        """
        source = self.image_proj(image.flatten(2).transpose(1, 2)) + self.prompt_proj(no_mask)  # B M D
        queries = self.queries.weight.expand(len(prompts.tokens), -1, -1)
        tokens = torch.cat((queries, self.prompt_proj(prompts.tokens)), 1)  # R Q+P D
        valid = torch.cat((prompts.valid.new_ones(queries.shape[:2]), prompts.valid), 1)
        tokens, _ = self.transformer(source, self.position_proj(position), tokens, counts=counts, valid=valid)
        return torch.stack([layer(tokens[:, index]) for index, layer in enumerate(self.outputs)], 1)


# PixelLLM's names and ours, below "prompt_adapter."; {} is an index, * is weight or bias
ORIGINAL_NAMES = (
    ("output_tokens.weight", "queries.weight"),
    ("image_projection_mlp.layers.0.*", "image_proj.*"),
    ("prompt_embedding_projection_mlp.layers.0.*", "prompt_proj.*"),
    ("image_pe_projection_mlp.layers.0.*", "position_proj.*"),
    ("output_hypernetworks_mlps.{}.layers.0.*", "outputs.{}.*"),
    *((f"transformer.{theirs}", f"transformer.{ours}") for theirs, ours in TWO_WAY_NAMES),
)
