"""The generation loop: batched over regions, cached, stopping early.

Shapes: R regions, K beams, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

FORBIDDEN = -10000.0  # the published search overwrites a forbidden word's logit with this


class StepDecoder(Protocol):
    """What `generate` needs of a decoder; `Recomputed` makes one of any that reads whole sequences."""

    def prefill(self, region_tokens: Tensor, max_words: int) -> Any:
        """Return a cache with ``select(rows)``."""

    def step(self, words: Tensor, cache: Any) -> Tensor:
        """Return the next word's logits, float32 (R, V)."""


class SequenceDecoder(Protocol):
    """What `Recomputed` needs of a decoder."""

    def __call__(self, region_tokens: Tensor, words: Tensor) -> Tensor:
        """(R, M, region_dim), int64 (R, T) -> states (R, T, D)."""

    def logits(self, states: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""


@dataclass(slots=True)
class _Prefix:
    """Everything read so far."""

    region_tokens: Tensor
    words: Tensor

    def select(self, rows: Tensor) -> None:
        self.region_tokens, self.words = self.region_tokens[rows], self.words[rows]


class Recomputed:
    """Reads the whole sequence anew for every word, and scores the vocabulary at every position, as the published code.

    The result is that of the decoder's own cache, for many times the work: a reference to measure and to test against.
    """

    def __init__(self, decoder: SequenceDecoder) -> None:
        self.decoder = decoder

    def prefill(self, region_tokens: Tensor, max_words: int) -> _Prefix:
        """See `StepDecoder`."""
        words = torch.zeros(len(region_tokens), 0, dtype=torch.long, device=region_tokens.device)
        return _Prefix(region_tokens, words)

    def step(self, words: Tensor, cache: _Prefix) -> Tensor:
        """See `StepDecoder`."""
        cache.words = torch.cat((cache.words, words[:, None]), 1)
        return self.decoder.logits(self.decoder(cache.region_tokens, cache.words))[:, -1].float()


@dataclass(slots=True)
class GeneratedText:
    """Attributes:
    tokens: int64 (R, T), start token first, ``end_id`` after the end.
    scores: float32 (R,), summed log-probability over the number of generated tokens (the end counted once).
    """

    tokens: Tensor
    scores: Tensor


@torch.no_grad()
def generate(
    decoder: StepDecoder,
    region_tokens: Tensor,
    *,
    start_id: int,
    end_id: int,
    max_length: int = 40,
    beam_size: int = 1,
    rollouts: bool = False,
) -> GeneratedText:
    """Write one text per region; immediate repetition of a word is forbidden, as in GRiT.

    Args:
        decoder: with `StepDecoder`'s two methods.
        region_tokens: (R, M, D).
        start_id, end_id: first and last token of every text.
        max_length: tokens, start token included.
        beam_size: K; 1 is greedy search.
        rollouts: GRiT's "beam" search, which continues the K best first words greedily; else a true beam search.

    Returns:
        `GeneratedText`; with beams, the text with the largest summed log-probability.
    """
    if not len(region_tokens):
        empty = torch.full((0, 1), start_id, dtype=torch.long, device=region_tokens.device)
        return GeneratedText(empty, region_tokens.new_zeros(0, dtype=torch.float32))
    cache = decoder.prefill(region_tokens, max_length)
    start = torch.full((len(region_tokens),), start_id, dtype=torch.long, device=region_tokens.device)
    if beam_size == 1:
        return _greedy(decoder, cache, start, end_id, max_length)
    return _beam(decoder, cache, start, end_id, max_length, beam_size, rollouts)


def _greedy(decoder: StepDecoder, cache: Any, start: Tensor, end_id: int, max_length: int) -> GeneratedText:
    num_regions, device = len(start), start.device
    tokens = torch.full((num_regions, max_length), end_id, dtype=torch.long, device=device)
    tokens[:, 0] = start
    total = torch.zeros(num_regions, device=device)
    count = torch.zeros(num_regions, device=device)
    rows = torch.arange(num_regions, device=device)  # regions still being written
    words = tokens[:, 0]
    for position in range(1, max_length):
        log_probs = _step(decoder, words, cache, forbid_repeat=position > 1)
        best, words = log_probs.max(-1)
        tokens[rows, position] = words
        total[rows] += best
        count[rows] += 1
        alive = (words != end_id).nonzero()[:, 0]
        if not len(alive):
            break
        if len(alive) < len(rows):
            rows, words = rows[alive], words[alive]
            cache.select(alive)
    return GeneratedText(tokens[:, : position + 1], total / count)


def _step(decoder: StepDecoder, words: Tensor, cache: Any, *, forbid_repeat: bool) -> Tensor:
    logits = decoder.step(words, cache)
    if forbid_repeat:
        logits = logits.scatter(1, words[:, None], FORBIDDEN)
    return logits.log_softmax(-1)


def _beam(
    decoder: StepDecoder, cache: Any, start: Tensor, end_id: int, max_length: int, beams: int, rollouts: bool
) -> GeneratedText:
    num_regions, device = len(start), start.device
    total, first = _step(decoder, start, cache, forbid_repeat=False).topk(beams, -1)  # R K
    cache.select(torch.arange(num_regions, device=device).repeat_interleave(beams))
    tokens = torch.stack((start[:, None].expand_as(first), first), -1)  # R K 2
    while tokens.shape[-1] < max_length and not bool((tokens[..., -1] == end_id).all()):
        words = tokens[..., -1].flatten()
        log_probs = _step(decoder, words, cache, forbid_repeat=True)
        finished = words == end_id
        log_probs[finished] = float("-inf")
        log_probs[finished, end_id] = 0.0
        log_probs = log_probs.view(num_regions, beams, -1)
        total, origin, chosen = _extend(total, log_probs, rollouts)
        cache.select((origin + torch.arange(num_regions, device=device)[:, None] * beams).flatten())
        tokens = torch.cat((tokens.gather(1, origin[..., None].expand_as(tokens)), chosen[..., None]), -1)
    best = total.argmax(1)
    rows = torch.arange(num_regions, device=device)
    tokens, total = tokens[rows, best], total[rows, best]
    generated = (tokens[:, 1:] != end_id).sum(1) + (tokens[:, 1:] == end_id).any(1)
    return GeneratedText(tokens, total / generated)


def _extend(total: Tensor, log_probs: Tensor, rollouts: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return new scores, the beam each text continues and its next word, all (R, K)."""
    num_regions, beams, vocab = log_probs.shape
    if rollouts:
        best, chosen = log_probs.max(-1)
        return total + best, torch.arange(beams, device=total.device).expand(num_regions, -1), chosen
    total, flat = (total[..., None] + log_probs).flatten(1).topk(beams, -1)
    return total, flat // vocab, flat % vocab
