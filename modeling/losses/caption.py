"""Caption loss: next words with smoothed targets (GRiT).

Shapes: R regions, M region tokens, T words, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..text_decoders.bert_captioner import BertCaptioner
from .terms import LossTerm


@dataclass(slots=True)
class CaptionTargets:
    """Regions of one image at one prediction point, and the sentences wanted.

    Attributes:
        region_tokens: (R, M, region_dim).
        words: int64 (R, T), start token first, padded.
        layer: the prediction point, counted from the last (0).
    """

    region_tokens: Tensor
    words: Tensor
    layer: int


def smoothed_caption_loss(logits: Tensor, words: Tensor, *, smoothing: float = 0.1) -> Tensor:
    """Sum over words of KL(smoothed target || prediction).

    The target gives the word 1 - smoothing and every other word smoothing / (V - 1). The divergence is computed in
    closed form: a cross-entropy whose library smoothing is scaled to this target, plus the target's constant entropy.

    Args:
        logits: (N, V).
        words: int64 (N,).
        smoothing: epsilon.

    Returns:
        A scalar, computed in float32.
    """
    others = logits.shape[-1] - 1
    cross_entropy = F.cross_entropy(
        logits.float(), words, label_smoothing=smoothing * (others + 1) / others, reduction="sum"
    )
    entropy = (1 - smoothing) * math.log(1 - smoothing) + smoothing * math.log(smoothing / others)
    return cross_entropy + len(words) * entropy


def caption_losses(
    captioner: BertCaptioner, readings: list[CaptionTargets], *, pad_id: int, weight: float
) -> dict[str, LossTerm]:
    """Describe all regions in one call of the captioner.

    Args:
        captioner: writes the sentences.
        readings: what it reads and should write; at least one.
        pad_id: padding of the words; a region of padding alone has no caption.
        weight: factor of each loss.

    Returns:
        ``loss_densecaption_<layer>`` for each layer among the readings, a sum over words.
    """
    words = _stack_words([reading.words for reading in readings], pad_id)
    layers = torch.cat([r.words.new_full((len(r.words),), r.layer) for r in readings])
    states = captioner(torch.cat([reading.region_tokens for reading in readings]), words[:, :-1])
    spoken = words[:, 1:] != pad_id  # R T-1
    logits, following = captioner.logits(states[spoken]), words[:, 1:][spoken]
    layer_of_word = layers[:, None].expand_as(spoken)[spoken]
    losses = {}
    for layer in dict.fromkeys(reading.layer for reading in readings):
        here = layer_of_word == layer
        total = smoothed_caption_loss(logits[here], following[here])
        losses[f"loss_densecaption_{layer}"] = LossTerm(total, "words", weight)
    return losses


def _stack_words(rows: list[Tensor], pad_id: int) -> Tensor:
    """Pad (n_i, T_i) word matrices to one (R, T); T is at least 2, so that something can be predicted."""
    length = max([2, *(words.shape[1] for words in rows)])
    return torch.cat([F.pad(words, (0, length - words.shape[1]), value=pad_id) for words in rows])
