"""Text loss: the next word, with smoothed labels.

Shapes: R prompts, T text tokens, D width of the states, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..llm.adapter import LanguageModel
from .caption import smoothed_caption_loss
from .terms import LossTerm

ROWS = 2048  # words whose logits exist at the same time


def spoken_words(text: Tensor, *, end_id: int, pad_id: int) -> Tensor:
    """Return which positions have a next word to learn: bool (R, T - 1).

    A row is begin, words, end, padding. Padding is no word, and a text that is empty, whose first word is the end,
    teaches nothing. Works on the host, where the trainer counts before the forward pass, and on the device.

    Args:
        text: int64 (R, T).
        end_id: end of a text.
        pad_id: padding; T5 begins with it too.
    """
    following = text[:, 1:]
    return (following != pad_id) & (following[:, :1] != end_id)


def smoothed_cross_entropy(logits: Tensor, words: Tensor, *, smoothing: float) -> Tensor:
    """Return the cross entropy of each prediction with smoothed labels, in closed form and in float32: (N,).

    The label gives the word 1 - smoothing and every other word smoothing / (V - 1).

    Args:
        logits: (N, V).
        words: int64 (N,).
        smoothing: epsilon, in [0, 1).
    """
    floor = smoothing / (logits.shape[-1] - 1)
    entropy = -(1 - smoothing) * math.log(1 - smoothing) - (smoothing * math.log(floor) if smoothing else 0.0)
    return smoothed_caption_loss(logits, words, smoothing=smoothing) + entropy


def text_loss(
    model: LanguageModel,
    states: Tensor,
    text: Tensor,
    *,
    learns: Tensor | None,
    end_id: int,
    pad_id: int,
    smoothing: float,
    weight: float,
) -> LossTerm:
    """Compare the words predicted from states with those that follow: a sum over ``words``.

    Only states that a word follows are mapped to the vocabulary, `ROWS` at a time. The logits of a piece are computed
    again in the backward pass, so that (R, T, V) never exists as a whole.

    Args:
        model: maps states to logits.
        states: (R, T, D), those of ``text``.
        text: int64 (R, T), begin first.
        learns: bool (R,), rows that teach text; None: all.
        end_id, pad_id: see `spoken_words`.
        smoothing: see `smoothed_cross_entropy`.
        weight: factor of the mean in the objective.
    """
    spoken = spoken_words(text, end_id=end_id, pad_id=pad_id)
    if learns is not None:
        spoken = spoken & learns[:, None]
    at = spoken.flatten().nonzero()[:, 0].to(states.device, non_blocking=True)
    following = text[:, 1:].flatten().to(states.device, non_blocking=True)[at]
    states = states[:, :-1].flatten(0, 1)[at]
    total = states.new_zeros((), dtype=torch.float32) + 0 * states.sum().float()  # a graph even without words
    for piece, words in zip(states.split(ROWS), following.split(ROWS), strict=True):
        total = total + checkpoint(_piece, model, piece, words, smoothing, use_reentrant=False)
    return LossTerm(total, "words", weight)


def _piece(model: LanguageModel, states: Tensor, words: Tensor, smoothing: float) -> Tensor:
    return smoothed_cross_entropy(model.logits(states), words, smoothing=smoothing).sum()
