"""From region tokens to sentences: search, then detokenise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from ...utils.tokenizers import CaptionTokenizer
from .bert_captioner import BertCaptioner
from .generation import Recomputed, Search, Watch, search_texts


@dataclass(frozen=True, slots=True)
class CaptionSearch:
    """How captions are looked for.

    Attributes:
        max_length: tokens, start token included.
        beam_size: 1 is greedy search.
        rollouts: with beams, continue each first word greedily, as GRiT and Pix2Cap; else a true beam search.
        queries: describe only what becomes a result ("kept") or, as the published code, every object query ("all"). The
            captions of the results are the same.
        use_cache: keep the keys and values of what was read; without, everything is read anew for every word.
    """

    max_length: int = 40
    beam_size: int = 1
    rollouts: bool = True
    queries: Literal["kept", "all"] = "kept"
    use_cache: bool = True


class Caption(NamedTuple):
    """A sentence and its score, the mean log-probability per generated token."""

    text: str
    score: float


def write_captions(
    captioner: BertCaptioner,
    region_tokens: Tensor,
    tokenizer: CaptionTokenizer,
    search: CaptionSearch,
    watch: Watch | None = None,
) -> list[Caption]:
    """Return a caption per region; region_tokens: (R, M, region_dim)."""
    options = Search(
        start_id=tokenizer.start_id,
        end_id=tokenizer.end_id,
        max_length=search.max_length,
        beam_size=search.beam_size,
        rollouts=search.rollouts,
    )
    found = search_texts(captioner if search.use_cache else Recomputed(captioner), region_tokens, options, watch)
    rows = zip(found.tokens.tolist(), found.scores.tolist(), strict=True)
    return [Caption(tokenizer.decode(row[1:]), score) for row, score in rows]
