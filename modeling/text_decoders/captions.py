"""From region tokens to sentences: search, then detokenise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ...utils.tokenizers import CaptionTokenizer
from .generation import StepDecoder, generate


@dataclass(frozen=True, slots=True)
class CaptionSearch:
    """How captions are looked for.

    Attributes:
        max_length: tokens, start token included.
        beam_size: 1 is greedy search.
        rollouts: with beams, continue each first word greedily, as GRiT and Pix2Cap; else a true beam search.
    """

    max_length: int = 40
    beam_size: int = 1
    rollouts: bool = True


class Caption(NamedTuple):
    """A sentence and its score, the mean log-probability per generated token."""

    text: str
    score: float


def write_captions(
    captioner: StepDecoder, region_tokens: Tensor, tokenizer: CaptionTokenizer, search: CaptionSearch
) -> list[Caption]:
    """Return a caption per region; region_tokens: (R, M, region_dim)."""
    found = generate(
        captioner,
        region_tokens,
        start_id=tokenizer.start_id,
        end_id=tokenizer.end_id,
        max_length=search.max_length,
        beam_size=search.beam_size,
        rollouts=search.rollouts,
    )
    rows = zip(found.tokens.tolist(), found.scores.tolist(), strict=True)
    return [Caption(tokenizer.decode(row[1:]), score) for row, score in rows]
