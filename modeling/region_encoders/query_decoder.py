"""Masked-attention query decoder (Mask2Former, equation 2; X-Decoder), with heads at every prediction point.

Shapes: B batch, Q queries (the last one is the class query, if there is one), D width, C mask width, K classes,
HW tokens of one memory level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..heads.classification import TextClassifier, unit
from ..layers.mask_pooling import mask_geometry, mask_pool
from ..layers.mlp import MLP
from ..layers.position_encoding import sine_encoding, sine_position_map
from ..layers.transformer import CrossAttentionLayer, FeedForwardLayer, SelfAttentionLayer


@dataclass(slots=True)
class QueryPrediction:
    """What the heads say about the queries at one prediction point.

    Attributes:
        hidden: (B, Q, D), normalised states; what a captioner reads.
        class_logits: (B, Q, K + 1).
        mask_embed: (B, Q, C); a mask is its product with the mask features.
        boxes_cxcywh: (B, Q, 4), in units of the padded image.
    """

    hidden: Tensor
    class_logits: Tensor
    mask_embed: Tensor
    boxes_cxcywh: Tensor


@dataclass(slots=True)
class DecodedQueries:
    """Predictions of the initial queries and after each layer, and the maps they refer to.

    Attributes:
        points: first the initial queries, last the final prediction.
        mask_features: (B, C, H/4, W/4).
        global_feature: (B, D), maximum over the coarsest memory level.
    """

    points: list[QueryPrediction]
    mask_features: Tensor
    global_feature: Tensor


@dataclass(slots=True)
class _Level:
    """One memory level: tokens and positions (B or 1, HW, D), and the mask features at its size (B, C, h, w)."""

    memory: Tensor
    position: Tensor
    mask_features: Tensor


class QueryDecoder(nn.Module):
    """Learned queries look at the image through their own masks, coarse to fine, again and again.

    Args:
        num_queries: Q, including the class query.
        dim: D.
        input_dim: width of the memory maps; projected when it differs from D or ``project_input``.
        mask_dim: C.
        text_dim: width of the vision-language space.
        num_heads, ffn_dim, num_layers: of the transformer.
        project_input: project memory maps even when the widths agree.
        class_query: the last query is an image-level one: objects do not see it, it sees only itself.
        mask_class_query: the class query looks only under its own mask, like the others. Published weights were trained
            that way; their code meant to leave it unmasked, by an index that does not exist.
        class_mask_after_pooling: predict the class query's mask after the objects are pooled into it, as X-Decoder;
            Pix2Cap does it before. Object queries are the same either way.
        pre_norm: normalise before each block instead of after.
        query_init_std: standard deviation of the learned queries' start.
        mask_pooled: add the mean mask feature under its mask to each query before every layer.
        position_from_mask: add an encoding of its mask's centre and extent to each query's position.
    """

    def __init__(
        self,
        *,
        num_queries: int,
        dim: int,
        input_dim: int,
        mask_dim: int,
        text_dim: int,
        num_heads: int,
        ffn_dim: int,
        num_layers: int,
        num_levels: int = 3,
        project_input: bool = False,
        class_query: bool = True,
        mask_class_query: bool = True,
        class_mask_after_pooling: bool = False,
        pre_norm: bool = False,
        query_init_std: float = 1.0,
        mask_pooled: bool = False,
        position_from_mask: bool = False,
    ) -> None:
        super().__init__()
        self.class_query, self.mask_class_query = class_query, mask_class_query
        self.class_mask_after_pooling = class_mask_after_pooling
        self.query_feat = nn.Embedding(num_queries, dim)
        self.query_embed = nn.Embedding(num_queries, dim)
        self.level_embed = nn.Embedding(num_levels, dim)
        for queries in (self.query_feat, self.query_embed):
            nn.init.normal_(queries.weight, std=query_init_std)
        projected = project_input or input_dim != dim
        self.input_proj = nn.ModuleList(
            _projection(input_dim, dim) if projected else nn.Identity() for _ in range(num_levels)
        )
        style = {"pre_norm": pre_norm}
        self.cross_attention = nn.ModuleList(CrossAttentionLayer(dim, num_heads, **style) for _ in range(num_layers))
        self.self_attention = nn.ModuleList(SelfAttentionLayer(dim, num_heads, **style) for _ in range(num_layers))
        self.ffn = nn.ModuleList(FeedForwardLayer(dim, ffn_dim, **style) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.classifier = TextClassifier(dim, text_dim)
        self.mask_embed = MLP((dim, dim, dim, mask_dim))
        self.box_embed = MLP((dim, dim, dim, 4))
        self.pooled_proj = nn.Linear(mask_dim, dim) if mask_pooled else None
        self.geometry_proj = MLP((4 * dim // 2, dim, dim)) if position_from_mask else None

    def forward(
        self, multi_scale: Sequence[Tensor], mask_features: Tensor, class_texts: Tensor, logit_scale: Tensor
    ) -> DecodedQueries:
        """Decode.

        Args:
            multi_scale: memory maps (B, input_dim, h, w), coarse first.
            mask_features: (B, C, H/4, W/4).
            class_texts: (K + 1, text_dim), see `TextClassifier`.
            logit_scale: scalar.
        """
        levels = [self._level(i, x, mask_features) for i, x in enumerate(multi_scale)]
        batch = mask_features.shape[0]
        x = self.query_feat.weight.expand(batch, -1, -1)
        learned_position = self.query_embed.weight.expand(batch, -1, -1)
        self_blocked = self._self_mask(x.device)
        points = [self._predict(x, class_texts, logit_scale)]
        for i, (cross, attend, ffn) in enumerate(zip(self.cross_attention, self.self_attention, self.ffn, strict=True)):
            level = levels[i % len(levels)]
            x, position, blocked = self._look(x, learned_position, points[-1].mask_embed, level, mask_features)
            x = cross(x, position, level.memory, level.position, blocked)
            x = attend(x, position, self_blocked)
            x = ffn(x)
            points.append(self._predict(x, class_texts, logit_scale))
        return DecodedQueries(points, mask_features, levels[0].memory.amax(1))

    def _level(self, index: int, x: Tensor, mask_features: Tensor) -> _Level:
        """Prepare a memory level; masks are resized by resizing their features, which is the same and cheaper."""
        height, width = x.shape[-2:]
        memory = self.input_proj[index](x).flatten(2).transpose(1, 2) + self.level_embed.weight[index]
        position = sine_position_map(height, width, memory.shape[-1], device=x.device).to(memory.dtype)
        resized = F.interpolate(
            mask_features.detach().float(), size=(height, width), mode="bicubic", align_corners=False, antialias=True
        )
        return _Level(memory, position, resized.to(mask_features.dtype))

    def _look(
        self, x: Tensor, position: Tensor, mask_embed: Tensor, level: _Level, mask_features: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, positions and the cross-attention mask (B, 1, Q, HW) that the current masks imply."""
        with torch.no_grad():
            logits = torch.einsum("bqc,bchw->bqhw", mask_embed, level.mask_features)
            blocked = (logits < 0).flatten(2)
            blocked &= ~blocked.all(-1, keepdim=True)  # a query with an empty mask looks everywhere
            if self.class_query and not self.mask_class_query:
                blocked[:, -1] = False
        if self.pooled_proj is None and self.geometry_proj is None:
            return x, position, blocked[:, None]
        masks = torch.einsum("bqc,bchw->bqhw", mask_embed, mask_features).detach()
        if self.pooled_proj is not None:
            x = x + self.pooled_proj(mask_pool(masks, mask_features))
        if self.geometry_proj is not None:
            geometry = sine_encoding(mask_geometry(masks), x.shape[-1] // 2).to(x.dtype)
            position = position + self.geometry_proj(geometry)
        return x, position, blocked[:, None]

    def _predict(self, x: Tensor, class_texts: Tensor, logit_scale: Tensor) -> QueryPrediction:
        states = self.norm(x)
        hidden = _with_pooled_class_query(states) if self.class_query else states
        class_logits = self.classifier(hidden, class_texts, logit_scale)
        mask_embed = self.mask_embed(hidden if self.class_mask_after_pooling else states)
        return QueryPrediction(hidden, class_logits, mask_embed, self.box_embed(hidden).sigmoid())

    def _self_mask(self, device: torch.device) -> Tensor | None:
        """Return bool (Q, Q), True = blocked: objects do not see the class query, it sees only itself."""
        if not self.class_query:
            return None
        size = self.query_feat.num_embeddings
        blocked = torch.zeros(size, size, dtype=torch.bool, device=device)
        blocked[-1, :-1] = blocked[:-1, -1] = True
        return blocked


def _with_pooled_class_query(hidden: Tensor) -> Tensor:
    """Replace the class query by the objects' mean, weighted by their likeness to it (X-Decoder)."""
    objects, query = hidden[:, :-1], hidden[:, -1:]
    likeness = (unit(query) @ unit(objects).transpose(1, 2)).softmax(-1)  # B 1 Q-1
    return torch.cat((objects, likeness @ objects), 1)


def _projection(input_dim: int, dim: int) -> nn.Conv2d:
    conv = nn.Conv2d(input_dim, dim, 1)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    nn.init.zeros_(conv.bias)
    return conv
