"""The one place where a language model meets the house.

A language model is given visual tokens, an instruction (the context) and a text. It returns a state for every token of
the text, from which come the next word (`LanguageModel.logits`) and, in a head of the system, that word's place.
Another model joins by these seven members; generation, losses and systems know nothing else of it.

Conventions: a text row is begin, words, end, padding. A context row is words, perhaps an end, padding; its padding is
the model's ``pad_id`` and no state depends on it, nor on how much of it there is. States are those from which logits
are computed: after the last norm, before dropout. A state belongs to the token that was read, not to the one that it
predicts.

Shapes: R prompts, M visual tokens each, C context tokens, T text tokens, D the model's width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..text_decoders.generation import GeneratedText, Search, Watch, search_texts


class LanguageModel(Protocol):
    """What every language model has.

    Attributes:
        dim: D.
        vocab_size: V.
    """

    dim: int
    vocab_size: int

    def embed(self, tokens: Tensor) -> Tensor:
        """Return tokens as they enter the layers, int64 (R, T) -> (R, T, D)."""

    def states(self, visual: Tensor, context: Tensor | None, text: Tensor) -> Tensor:
        """Read texts whole: (R, M, visual_dim), int64 (R, C) or None, int64 (R, T) -> (R, T, D)."""

    def logits(self, states: Tensor) -> Tensor:
        """Score the word after each state, (..., D) -> (..., V)."""

    def start(self, visual: Tensor, context: Tensor | None, max_words: int) -> Any:
        """Read all that comes before the text; the cache has ``select(rows)`` and room for ``max_words`` tokens."""

    def step(self, tokens: Tensor, cache: Any) -> Tensor:
        """Read one more token per prompt, int64 (R,) -> (R, D)."""


@dataclass(frozen=True, slots=True)
class Instructed:
    """A language model with its instructions, int64 (R, C) or None, as the generation loop reads it."""

    model: LanguageModel
    context: Tensor | None

    @property
    def dim(self) -> int:
        """Width of the states."""
        return self.model.dim

    def prefill(self, region_tokens: Tensor, max_words: int) -> Any:
        """See `locap.modeling.text_decoders.generation.StepDecoder`."""
        return self.model.start(region_tokens, self.context, max_words)

    def read(self, words: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        """See `locap.modeling.text_decoders.generation.StepDecoder`."""
        states = self.model.step(words, cache)
        return states, self.model.logits(states).float()


def write_texts(
    model: LanguageModel, visual: Tensor, context: Tensor | None, search: Search, watch: Watch | None = None
) -> GeneratedText:
    """Write one text per prompt.

    Args:
        model: the language model, in evaluation mode.
        visual: (R, M, visual_dim).
        context: int64 (R, C), padded; None: no instruction.
        search: how; with ``keep_states`` the place of every word can be read from the result without a second pass.
        watch: see `search_texts`.
    """
    return search_texts(Instructed(model, context), visual, search, watch)
