"""Caption loss: next words with smoothed targets (GRiT).

Shapes: R regions, M region tokens, T words, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..text_decoders.bert_captioner import BertCaptioner
from .terms import LossTerm
from .vocabulary import projected_caption_loss


@dataclass(slots=True)
class CaptionTargets:
    """Regions of one image at one prediction point, and the sentences wanted.

    Attributes:
        region_tokens: (R, M, region_dim).
        words: int64 (R, T), start token first, padded; on the host.
        layer: the prediction point, counted from the last (0).
    """

    region_tokens: Tensor
    words: Tensor
    layer: int


class _SmoothedDivergence(torch.autograd.Function):
    """KL(smoothed target || softmax(logits)) per word, in closed form: no target and no probabilities are stored.

    With a = smoothing / (V - 1) and y the word, it is log sum exp(x) - a sum(x) - (1 - smoothing - a) x[y], less the
    target's entropy; its gradient is softmax(x) less the target. A few rows at a time, so that they stay in the cache.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, words: Tensor, smoothing: float) -> Tensor:
        others = logits.shape[-1] - 1
        floor = smoothing / others
        entropy = (1 - smoothing) * math.log(1 - smoothing) + smoothing * math.log(floor) if smoothing else 0.0
        partition = torch.empty(len(logits), device=logits.device)
        losses = torch.empty_like(partition)
        for x, word, total, loss in _in_pieces(logits, words, partition, losses):
            x = x.float()
            torch.logsumexp(x, -1, out=total)
            chosen = x.gather(1, word[:, None])[:, 0]
            loss.copy_(total - floor * x.sum(-1) - (1 - smoothing - floor) * chosen + entropy)
        ctx.save_for_backward(logits, words)
        ctx.smoothing, ctx.floor = smoothing, floor
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, words = ctx.saved_tensors
        out = torch.empty_like(logits)
        for x, word, factor, part in _in_pieces(logits, words, grad, out):
            slope = part if part.dtype == torch.float32 else torch.empty(part.shape, device=part.device)
            torch.softmax(x.float(), -1, out=slope).sub_(ctx.floor)  # sums to one, exp(x - log sum) would not
            peak = slope.new_full((len(word), 1), ctx.smoothing + ctx.floor - 1)
            slope.scatter_add_(1, word[:, None], peak).mul_(factor[:, None])
            if slope is not part:
                part.copy_(slope)
        return out, None, None


def _in_pieces(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split along the words: for the processor's cache, or to bound the float32 copies on a GPU."""
    rows = 16 if logits.device.type == "cpu" else 1024
    return zip(*(tensor.split(rows) for tensor in (logits, *others)), strict=True)


def smoothed_caption_loss(logits: Tensor, words: Tensor, *, smoothing: float = 0.1) -> Tensor:
    """Return per word KL(smoothed target || prediction), computed in float32: (N,).

    The target gives the word 1 - smoothing and every other word smoothing / (V - 1). Where an output layer makes the
    logits, `projected_caption_loss` is cheaper.

    Args:
        logits: (N, V).
        words: int64 (N,).
        smoothing: epsilon.
    """
    return _SmoothedDivergence.apply(logits, words, smoothing)


def caption_losses(
    captioner: BertCaptioner, readings: list[CaptionTargets], *, pad_id: int, weight: float
) -> dict[str, LossTerm]:
    """Describe all regions in one call of the captioner; only states that a word follows are mapped to the vocabulary.

    Args:
        captioner: writes the sentences.
        readings: what it reads and should write; at least one, those of a layer one after another.
        pad_id: padding of the words; a region of padding alone has no caption.
        weight: factor of each loss.

    Returns:
        ``loss_densecaption_<layer>`` for each layer among the readings, a sum over words.
    """
    words = _stack_words([reading.words for reading in readings], pad_id)
    spoken = words[:, 1:] != pad_id  # R T-1
    at, following = (torch.from_numpy(x) for x in (np.flatnonzero(spoken), words[:, 1:][spoken]))
    tokens = torch.cat([reading.region_tokens for reading in readings])
    read = torch.from_numpy(words[:, :-1])
    read, at, following = (x.to(tokens.device, non_blocking=True) for x in (read, at, following))
    states = captioner(tokens, read)
    output = captioner.output
    losses = projected_caption_loss(states.flatten(0, 1)[at], output.weight, output.bias, following)
    layers = np.repeat([r.layer for r in readings], [len(r.words) for r in readings])
    counts = {layer: int(spoken[layers == layer].sum()) for layer in dict.fromkeys(r.layer for r in readings)}
    parts = zip(counts, losses.split(list(counts.values())), strict=True)
    return {f"loss_densecaption_{layer}": LossTerm(part.sum(), "words", weight) for layer, part in parts}


def _stack_words(rows: list[Tensor], pad_id: int) -> np.ndarray:
    """Pad (n_i, T_i) word matrices to one (R, T); T is at least 2, so that something can be predicted."""
    length = max([2, *(words.shape[1] for words in rows)])
    padding = [((0, 0), (0, length - words.shape[1])) for words in rows]
    return np.concatenate(
        [np.pad(x.numpy(), room, constant_values=pad_id) for x, room in zip(rows, padding, strict=True)]
    )
