"""The published code's way through the query decoder: masks at full size, repeated per head, and attention kept.

At every layer all masks are built at full size and resized as masks; the blocked positions are repeated for each head;
rows without any free position are found by their indices, for which the host waits; and the attention module returns
its averaged weights, which nobody reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers.attention import MultiHeadAttention
from ..region_encoders.query_decoder import QueryDecoder, _Level


@contextmanager
def original_decoder(decoder: QueryDecoder) -> Iterator[list[Tensor]]:
    """Let a decoder without aids work the published way; yields the masks (B, Q, h, w) of each layer's queries."""
    if decoder.pooled_proj is not None or decoder.geometry_proj is not None:
        raise ValueError("the published decoder has no aids")
    masks: list[Tensor] = []
    heads = decoder.cross_attention[0].attn.num_heads
    attentions = [layer.attn for layer in (*decoder.cross_attention, *decoder.self_attention)]
    decoder._look, decoder._level = _look(decoder, masks, heads), MethodType(_level, decoder)
    for attention in attentions:
        attention.forward = MethodType(_attend, attention)
    try:
        yield masks
    finally:
        del decoder._look, decoder._level
        for attention in attentions:
            del attention.forward


def _level(decoder: QueryDecoder, index: int, x: Tensor, mask_features: Tensor) -> _Level:
    small = x.new_zeros(len(x), 1, *x.shape[-2:])  # of which only the size is used
    level = QueryDecoder._level(decoder, index, x, small)
    level.mask_features = small
    return level


def _look(decoder: QueryDecoder, masks: list[Tensor], heads: int) -> Callable:
    def look(x: Tensor, position: Tensor, mask_embed: Tensor, level: _Level, mask_features: Tensor):
        masks.append(torch.einsum("bqc,bchw->bqhw", mask_embed, mask_features))
        size = level.mask_features.shape[-2:]
        resized = F.interpolate(
            masks[-1].detach().float(), size=size, mode="bicubic", align_corners=False, antialias=True
        )
        blocked = (resized.sigmoid().flatten(2)[:, None].repeat(1, heads, 1, 1).flatten(0, 1) < 0.5).detach()
        if decoder.class_query and not decoder.mask_class_query:
            blocked[:, -1] = False
        blocked[torch.where(blocked.sum(-1) == blocked.shape[-1])] = False
        return x, position, blocked

    return look


def _attend(
    attention: MultiHeadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    blocked: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    out, _ = F.multi_head_attention_forward(
        *(x.transpose(0, 1) for x in (query, key, value)),
        query.shape[-1],
        attention.num_heads,
        attention.in_proj_weight,
        attention.in_proj_bias,
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=attention.out_proj.weight,
        out_proj_bias=attention.out_proj.bias,
        need_weights=True,
        attn_mask=blocked,
    )
    return out.transpose(0, 1)
